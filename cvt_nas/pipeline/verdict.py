"""The quality gate of a supernet: architectures that it ranks are trained by themselves, and the ranks compared."""

import dataclasses
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import numpy as np

from cvt_nas.config import Experiment
from cvt_nas.engine import TrainingSetup, find_teacher, keep_lent, open_lent, share_answers
from cvt_nas.errors import RunFolderError
from cvt_nas.launch.judges import inherited_accuracies
from cvt_nas.launch.resources import claim_resources
from cvt_nas.launch.search import Search
from cvt_nas.launch.trials import run_trials
from cvt_nas.pipeline.latency import experiment_of
from cvt_nas.pipeline.narrowing import searched_space
from cvt_nas.pipeline.searching import ProgressFactory
from cvt_nas.propose.race import FixedPlan, Race
from cvt_nas.propose.samplers import derive_seed
from cvt_nas.propose.study import Proposal
from cvt_nas.results import (
    Choice,
    DataIdentity,
    Origin,
    SupernetQuality,
    further_number,
    judge_supernet,
    round_and_trial,
)
from cvt_nas.results.events import following
from cvt_nas.run import RunFolder
from cvt_nas.space import Genome, SearchSpace, spread_over_flops

_MIN_ARCHS, _MAX_ARCHS = 8, 500


def evaluate_supernet(
    run: RunFolder,
    *,
    num_archs: int = 40,
    num_seeds: int = 2,
    epochs: int | None = None,
    data: str | Path | None = None,
    gpus: int | None = None,
    gpus_per_trial: float | None = None,
    cpus: int | None = None,
    address: str | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    stop: threading.Event | None = None,
    progress: ProgressFactory | None = None,
) -> SupernetQuality | None:
    """Judges the supernet of `run` by architectures spread over log-FLOPs, each trained with `num_seeds` seeds.

    They are trained by the run's `training` section, with no scheduler, in a run of their own inside its folder. What
    is there already is not trained again, so that it can be stopped, and go on, also to more of them.

    Args:
        epochs: Instead of the file's number.
        data: Folder of the data set, where it needs one.
        gpus, gpus_per_trial, cpus, address, device: See `claim_resources`.
        stop: Ends the trainings in order once it is set.
        progress: See `search`.

    Returns:
        None where it was stopped before every architecture was trained. What is returned is in the folder, too.

    Raises:
        RunFolderError: The run has no trained supernet, its file no epochs to train for, or the folder trainings of
            another length; fewer than 8 or more than 500 architectures are asked for, or fewer than 8 are left of
            those that diverged.
        CvtNasError: Data or resources are not as they must be.
    """
    stop = threading.Event() if stop is None else stop
    experiment = _standalone(experiment_of(run), run, epochs)
    seed = int(run.manifest["seed"])
    if not _MIN_ARCHS <= num_archs <= _MAX_ARCHS:
        raise RunFolderError(f"{num_archs} architectures: must be {_MIN_ARCHS} to {_MAX_ARCHS}")
    # the first of a fixed number, so that more of them are these and others
    space = searched_space(experiment, run)
    drawn = spread_over_flops(space, _MAX_ARCHS, seed=derive_seed(seed, 0, "quality"))[:num_archs]
    genomes = [experiment.space.encode(space.decode(genome)) for genome in drawn]
    of_supernet = TrainingSetup.of(experiment, run=run, data=data).checked(run)
    assert of_supernet.identity is not None, "it was just looked at"
    alone = _open_standalone(run, experiment, of_supernet.identity, seed=seed, num_trainings=len(genomes) * num_seeds)
    answers, teacher = None, find_teacher(of_supernet, init=None, run=run) if "teacher" in run.manifest else None
    if teacher is not None:
        share_answers(run, alone, answers := teacher.answers)
    setup = dataclasses.replace(of_supernet, run=alone, shared=None, answers=answers)
    with (
        alone.locked(),
        claim_resources(
            gpus=gpus, gpus_per_trial=gpus_per_trial, cpus=cpus, address=address, device=device
        ) as resources,
    ):
        # what failed, and not by its own fault, is tried again
        done = {result.number for result in alone.results() if result.status in ("complete", "diverged")}
        left = [p for p in _proposals(genomes, experiment, seed=seed, num_seeds=num_seeds) if p.number not in done]
        setup, of_supernet = (
            dataclasses.replace(each, device=resources.device, num_threads=resources.num_threads)
            for each in (setup, of_supernet)
        )
        follow = (
            nullcontext(following()) if progress is None else progress(alone, resources, len(left) + len(done), None)
        )
        with follow as on_event:
            search = Search(
                experiment=experiment, run=alone, setup=setup, resources=resources, seed=seed, num_trials=len(left),
                stop=stop,
            )  # fmt: skip
            race = Race(FixedPlan(left))
            for event in run_trials(search, race, keep=alone.append, keep_models=False):
                on_event(event)
        if stop.is_set():
            return None
        found: dict[int, dict[int, float]] = {}
        for result in alone.results():
            round_, index = round_and_trial(result.number)
            if result.status == "complete" and round_ <= num_seeds and index < len(genomes):
                found.setdefault(index, {})[round_] = result.metric("accuracy")
        whole = [index for index in sorted(found) if len(found[index]) == num_seeds]
        if len(whole) < _MIN_ARCHS:
            raise RunFolderError(f"{alone.path}: {len(whole)} architectures were trained in full, too few to judge by")
        archs = [experiment.space.decode(genomes[index]) for index in whole]
        costs = [experiment.space.cost(genomes[index]) for index in whole]
        inherited = inherited_accuracies(archs, of_supernet, resources, stop=stop)
        if inherited is None:
            return None
    quality = judge_supernet(
        inherited,
        np.array([[found[index][round_] for round_ in range(1, num_seeds + 1)] for index in whole]),
        params=[cost.params for cost in costs],
        flops=[cost.flops for cost in costs],
        origin=Origin(
            dataset=experiment.data.dataset,
            num_images=setup.open_data().num_images("search"),
            epochs=experiment.training.epochs,
            seed=seed,
        ),
        choices=_choices(experiment.space, [genomes[index] for index in whole]),
    )
    run.supernet.write_quality(quality)
    return quality


def _choices(space: SearchSpace, genomes: Sequence[Genome]) -> list[Choice]:
    chosen = np.array(genomes)
    return [
        Choice(gene.name, tuple(str(option) for option in gene.options), gene.is_ordinal, chosen[:, position])
        for position, gene in enumerate(space.genes)
    ]


def _standalone(experiment: Experiment, run: RunFolder, epochs: int | None) -> Experiment:
    if not run.supernet.is_trained:
        raise RunFolderError(f"{run.path}: has no trained supernet; it needs search.weights: supernet")
    num_epochs = experiment.training.epochs if epochs is None else epochs
    if num_epochs == 0:
        raise RunFolderError(f"{run.path}: its training.epochs are 0; say how long to train each by --epochs N")
    return dataclasses.replace(experiment, training=experiment.training.lasting(num_epochs))


def _open_standalone(
    run: RunFolder, experiment: Experiment, identity: DataIdentity, *, seed: int, num_trainings: int
) -> RunFolder:
    alone = run.standalone
    alone.refresh()
    if not alone.has_begun:
        alone.begin({**experiment.manifest(seed=seed, num_trials=num_trainings), "data": identity.to_json()})
        if run.lends_weights:
            keep_lent(open_lent(run), alone, alone.init_path)
        return alone
    if (known := DataIdentity.of(alone.manifest)) is not None:
        known.check_same(identity, str(alone.path))
    if alone.manifest["epochs"] != experiment.training.epochs:
        raise RunFolderError(
            f"{alone.path} holds trainings of {alone.manifest['epochs']} epochs; go on with --epochs "
            f"{alone.manifest['epochs']}, or move it away"
        )
    return alone


def _proposals(genomes: list[Genome], experiment: Experiment, *, seed: int, num_seeds: int) -> list[Proposal]:
    """All of them with a first seed, then with a second."""
    return [
        Proposal(
            number=further_number(index, round_),
            genome=genome,
            cost=experiment.space.cost(genome),
            seed=derive_seed(seed, index, "standalone", round_),
        )
        for round_ in range(1, num_seeds + 1)
        for index, genome in enumerate(genomes)
    ]
