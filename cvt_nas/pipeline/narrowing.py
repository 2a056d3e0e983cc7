"""DA-NAS-style search: a supernet is trained on more and more classes, and loses its weakest options on the way.

It follows Dai et al. 2020, arXiv:2003.12563, whose code is not public. These ideas come from the paper:

- Classes are ordered by how soon they are learned.
- A warm-up and three steps train on a growing share of the classes.
- A share of the options is dropped after each step.

These are our own:

- The smallest network of the space orders the classes. It is trained for a short time, and classes are sorted by their
  mean accuracy over its epochs.
- Subnets use slices of shared weights instead of gates, so the loss has no cost term.
- Options are judged by the accuracies that random subnets inherit, at equal cost; see `contributions`.
"""

import dataclasses
import math
import random
import threading
from collections.abc import Generator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from cvt_nas.config import Experiment
from cvt_nas.engine import Phase, TrainingSetup, class_curves
from cvt_nas.errors import RunFolderError
from cvt_nas.launch.judges import measure_inherited
from cvt_nas.launch.resources import Resources
from cvt_nas.launch.search import Search
from cvt_nas.launch.tasks import on_worker
from cvt_nas.pipeline.inherit import train_weights
from cvt_nas.propose.samplers import derive_seed
from cvt_nas.results import DroppedOption, Metric, Narrowing, NarrowingStep, smoothed_accuracies
from cvt_nas.results.events import OptionsDropped, SupernetEpochDone
from cvt_nas.run import RunFolder
from cvt_nas.space import ArchSpace, Genome, NarrowedSpace, spread_over_flops

_RIDGE = 1.0  # prior precision of each option's effect, in units of the noise


def searched_space(experiment: Experiment, run: RunFolder) -> ArchSpace:
    """Space that candidates are drawn from: the space of `experiment`, as far as the run has narrowed it. Raises
    RunFolderError if the record of the narrowing is damaged."""
    narrowing = run.supernet.narrowing() if experiment.search.weights == "da-nas" else None
    try:
        return experiment.space if narrowing is None else NarrowedSpace(experiment.space, narrowing.kept)
    except ValueError as error:
        raise RunFolderError(f"{run.path}: what is left of the space: {error}") from error


def train_and_narrow(search: Search) -> Generator[SupernetEpochDone | OptionsDropped, None, bool]:
    """Runs `train_weights` part by part, and drops and records options after each part. Returns whether the last part
    is done."""
    experiment, run, setup, resources = search.experiment, search.run, search.setup, search.resources
    shared, config = setup.shared, experiment.da_nas
    assert shared is not None, "the caller knows that there is a supernet"
    narrowing = run.supernet.narrowing()
    if narrowing is None:
        curves = _class_curves(setup, resources, epochs=config.ordering_epochs, seed=search.seed, stop=search.stop)
        if curves is None:
            return False
        narrowing = Narrowing(class_order=easiest_first(curves), class_curves=tuple(map(tuple, curves)))
        run.supernet.write_narrowing(narrowing)
    counts = config.class_counts(len(narrowing.class_order))
    parts = zip(config.last_epochs(shared.config.epochs), counts, strict=True)
    for number, (last_epoch, num_classes) in list(enumerate(parts))[len(narrowing.steps) :]:
        classes = narrowing.class_order[:num_classes]
        phase = Phase(last_epoch=last_epoch, classes=classes, kept=narrowing.kept)
        part = dataclasses.replace(setup, shared=dataclasses.replace(shared, phase=phase))
        is_trained = yield from train_weights(dataclasses.replace(search, setup=part))
        if not is_trained or search.stop.is_set():
            return False
        space, dropped = NarrowedSpace(experiment.space, narrowing.kept), ()
        if number > 0 and space.genes:
            genomes = spread_over_flops(space, config.probes, seed=derive_seed(search.seed, number, "probes"))
            archs = [space.decode(genome) for genome in genomes]
            inherited = measure_inherited(archs, part, resources, stop=search.stop, is_screening=True)
            if inherited is None:
                return False
            effects = contributions(space, genomes, smoothed_accuracies(inherited), experiment.objectives)
            space, dropped = without_weakest(space, effects, config.drop_ratio)
        num_left = math.prod(len(gene.options) for gene in space.genes)
        step = NarrowingStep(last_epoch=last_epoch, classes=classes, dropped=dropped, num_left=num_left)
        narrowing = narrowing.after(step, space.kept)
        run.supernet.write_narrowing(narrowing)
        if last_epoch < shared.config.epochs:
            run.store.delete(run.supernet.phase_weights_path(last_epoch))
        yield OptionsDropped(step=step)
    return True


def _class_curves(
    setup: TrainingSetup, resources: Resources, *, epochs: int, seed: int, stop: threading.Event
) -> list[list[float]] | None:
    """`class_curves` of the smallest network of the space, from a worker. None if `stop` is set before it is done."""
    assert setup.shared is not None, "the caller knows that there is a supernet"
    seed = derive_seed(seed, 0, "classes")
    return on_worker(resources, class_curves, setup.shared.space.smallest, setup, epochs, seed, stop=stop)


def easiest_first(curves: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Classes by their mean accuracy over the epochs, highest first. Classes that are learned soon and well come first.

    Args:
        curves: Accuracies, `(epochs, classes)`.
    """
    return tuple(np.argsort(-np.mean(curves, axis=0), kind="stable").tolist())


def contributions(
    space: ArchSpace, genomes: Sequence[Genome], accuracies: Sequence[float], objectives: Sequence[Metric]
) -> dict[str, Float[np.ndarray, " options"]]:
    """Contribution of each option of each gene to accuracy, at equal cost.

    It is the effect of the option in a ridge regression that also contains a parabola in the log of each cost
    objective. The parabola absorbs the trend of accuracy over cost, so no option gets credit for its cost.
    """
    costs = [space.cost(genome) for genome in genomes]
    logs = np.log([[cost.loss(metric) for metric in objectives if metric != "accuracy"] for cost in costs])
    logs = (logs - logs.mean(axis=0)) / np.maximum(logs.std(axis=0), 1e-9)
    trend = np.hstack([np.ones((len(genomes), 1)), logs, logs**2])
    options = np.array([_features(space, genome) for genome in genomes])
    scale = max(float(np.std(accuracies)), 1e-9)
    design = np.hstack([trend, options])
    prior = np.diag(np.r_[np.full(trend.shape[1], 1e-6), np.full(options.shape[1], _RIDGE)])
    effects = np.linalg.solve(design.T @ design + prior, design.T @ (np.array(accuracies) / scale))[trend.shape[1] :]
    ends = np.cumsum([len(gene.options) for gene in space.genes])[:-1]
    return {gene.name: part * scale for gene, part in zip(space.genes, np.split(effects, ends), strict=True)}


def _features(space: ArchSpace, genome: Genome) -> list[float]:
    """One-hot encoding of the options of a network. Genes without an effect on it are all zero."""
    return [
        float(index == option and is_active)
        for gene, option, is_active in zip(space.genes, genome, space.active(genome), strict=True)
        for index in range(len(gene.options))
    ]


def without_weakest(
    space: NarrowedSpace, effects: Mapping[str, Float[np.ndarray, " options"]], ratio: float
) -> tuple[NarrowedSpace, tuple[DroppedOption, ...]]:
    """`space` without the options that are farthest behind the best of their gene, and the options that were dropped.

    All options but the best of each gene are candidates, and a share `ratio` of them is dropped. An option stays if no
    feasible network would be left without it.
    """
    genes = space.genes
    behind = sorted(
        (effects[gene.name][index] - effects[gene.name].max(), place, index)
        for place, gene in enumerate(genes)
        for index in range(len(gene.options))
        if index != int(effects[gene.name].argmax())
    )
    dropped: list[DroppedOption] = []
    for contribution, place, index in behind:
        if len(dropped) == round(ratio * len(behind)):
            break
        name, option = genes[place].name, genes[place].options[index]
        less = space.without(name, option)
        if less.sample_feasible(random.Random(0)) is not None:
            space = less
            dropped.append(DroppedOption(gene=name, option=option, contribution=round(float(contribution), 6)))
    return space, tuple(dropped)
