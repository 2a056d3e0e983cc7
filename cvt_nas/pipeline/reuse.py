"""Finds trainings of other runs that can judge a supernet in place of new ones."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cvt_nas.arch import ArchConfig
from cvt_nas.config import Experiment, TrainingConfig, experiment_of
from cvt_nas.errors import RunFolderError
from cvt_nas.pipeline.beginning import begun_with
from cvt_nas.propose.surrogate import NUM_INITIAL
from cvt_nas.results import DataIdentity, TrialResult
from cvt_nas.run import RunFolder

# Number of trials that a sampler draws before it uses any accuracy.
_NUM_DRAWN = {"surrogate": NUM_INITIAL, "tpe": 10, "gp": 10, "nsga2": 20}


@dataclass(frozen=True, kw_only=True, slots=True)
class Alone:
    """An architecture that another run trained standalone.

    Args:
        accuracies: Accuracies after each of its trainings.
        is_drawn: Whether it was drawn without regard to any accuracy, so it may be part of a random sample.
    """

    arch: ArchConfig
    accuracies: tuple[float, ...]
    is_drawn: bool


def trained_alone(
    sources: Sequence[RunFolder], experiment: Experiment, run: RunFolder, *, identity: DataIdentity, metric: str
) -> list[Alone]:
    """Architectures of the space of `experiment` that `sources` trained standalone, each listed once.

    A source contributes its standalone trainings. It also contributes the complete trials of its race, if they did not
    begin with the weights of a supernet. A race prefers architectures that looked good. So only the draws of its
    initial design count as drawn, and only if all of them were trained to the end. If a scheduler stopped the weak
    ones, only good ones would be left.

    Raises:
        RunFolderError: The trainings of a source do not compare, or it has none. Or it is `run`, or is named twice.
    """
    found: dict[str, Alone] = {}
    paths = {run.path.resolve(): "is the run itself, whose standalone trainings count anyway"}
    for source in sources:
        if (reason := paths.get(source.path.resolve())) is not None:
            raise RunFolderError(f"--reuse {source.place}: {reason}")
        paths[source.path.resolve()] = "is named twice, and its trainings would count twice; name it once"
        theirs = experiment_of(source)
        _check_compares(source, theirs, experiment, run, identity=identity, metric=metric)
        is_same_space = _space_of(theirs) == _space_of(experiment) and theirs.search.weights != "da-nas"
        alone = standalone_of(source, experiment.training.epochs)
        if not has_supernet(theirs) and theirs.training.epochs == experiment.training.epochs:
            alone += _by_arch(source.results(), drawn=drawn_numbers(source, theirs))
        alone = [each for each in alone if each.arch in experiment.space]
        if not alone:
            raise RunFolderError(
                f"--reuse {source.place}: has no network of this space that was trained by itself to the last epoch"
            )
        for each in alone:
            known = found.get(each.arch.id)
            found[each.arch.id] = Alone(
                arch=each.arch,
                accuracies=(*(() if known is None else known.accuracies), *each.accuracies),
                is_drawn=(each.is_drawn and is_same_space) or (known is not None and known.is_drawn),
            )
    return list(found.values())


def has_supernet(experiment: Experiment) -> bool:
    """Whether the trials of a race begin with weights of a supernet, so that none of them is standalone."""
    return experiment.supernet is not None and experiment.search.has_supernet


def standalone_of(source: RunFolder, epochs: int) -> list[Alone]:
    """Architectures that judge the supernet of a run, each trained from scratch for `epochs`."""
    folder = source.standalone
    folder.refresh()
    if not folder.has_begun or folder.manifest["epochs"] != epochs:
        return []
    return _by_arch(folder.results(), drawn={result.number for result in folder.results()})


def _by_arch(results: Sequence[TrialResult], *, drawn: set[int]) -> list[Alone]:
    accuracies: dict[str, list[float]] = {}
    archs: dict[str, TrialResult] = {}
    for result in results:
        if result.status == "complete":
            accuracies.setdefault(result.arch_id, []).append(result.metric("accuracy"))
            archs.setdefault(result.arch_id, result)
    return [
        Alone(arch=first.arch, accuracies=tuple(accuracies[arch_id]), is_drawn=first.number in drawn)
        for arch_id, first in archs.items()
    ]


def drawn_numbers(source: RunFolder, theirs: Experiment) -> set[int]:
    """Numbers of the trials of a race that were drawn without regard to any accuracy.

    The result is empty unless all of them ended and none was stopped. Anchors do not count, because the user chose
    them. The first trial of the surrogate does not count either, because it is the cheapest network of the space.
    """
    num_trials = int(source.manifest["trials"])
    sampler = theirs.search.sampler
    limit = num_trials if sampler == "random" else min(_NUM_DRAWN.get(sampler, 0), num_trials)
    if theirs.priors or "learn_from" in source.manifest:
        limit = 0
    ended = {result.number: result for result in source.ended()}
    if any(number not in ended or ended[number].status == "stopped" for number in range(limit)):
        return set()
    anchors = {arch.id for arch in theirs.anchor_archs().values()}
    drawn = [number for number in range(limit) if ended[number].arch_id not in anchors]
    return set(drawn[1:] if sampler == "surrogate" else drawn)


def _check_compares(
    source: RunFolder, theirs: Experiment, ours: Experiment, run: RunFolder, *, identity: DataIdentity, metric: str
) -> None:
    where = f"--reuse {source.place}"
    if (known := DataIdentity.of(source.manifest)) is None:
        raise RunFolderError(f"{where}: was begun by an earlier version, so whether its data are the same is unknown")
    if (difference := known.difference(identity)) is not None:
        raise RunFolderError(f"{where}: has other data: {difference}; accuracies would not compare")
    shown = dataclasses.replace(theirs.data, show_images=ours.data.show_images)
    if shown != ours.data:
        raise RunFolderError(f"{where}: has another section data, and so other images to train on or to judge by")
    if (other := source.manifest.get("metric", "accuracy")) != metric:
        raise RunFolderError(f"{where}: maximised {other}, and this run {metric}")
    epochs = ours.training.epochs
    folder = source.standalone
    lengths = {theirs.training.epochs} | ({folder.manifest["epochs"]} if folder.has_begun else set())
    if epochs not in lengths:
        told = " and ".join(map(str, sorted(lengths)))
        raise RunFolderError(f"{where}: has trainings of {told} epochs, and these are of {epochs}")
    if _training(theirs.training, epochs) != _training(ours.training, epochs):
        raise RunFolderError(f"{where}: has another section training, so accuracies would not compare")
    for what, of in (("weights to begin with", begun_with), ("teacher", _teacher)):
        if _digest(of(source)) != _digest(of(run)):
            raise RunFolderError(f"{where}: has another {what}, so accuracies would not compare")


def _training(training: TrainingConfig, epochs: int) -> TrainingConfig:
    """`training` for `epochs`, without the settings that do not affect accuracy."""
    return dataclasses.replace(
        training.lasting(epochs), micro_batch="auto", activation_checkpointing="auto", compile="auto",
        checkpoint_minutes=1.0,
    )  # fmt: skip


def _space_of(experiment: Experiment) -> tuple[object, ...]:
    return experiment.space.genes, dict(experiment.space.bounds), experiment.space.stages


def _teacher(run: RunFolder) -> dict[str, Any] | None:
    return run.manifest.get("teacher")


def _digest(told: Mapping[str, Any] | None) -> object:
    return None if told is None else (told.get("sha256"), told.get("path") if "sha256" not in told else None)
