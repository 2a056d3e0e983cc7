"""Earlier runs that a search learns from. They are read once and kept in the folder of the search."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvt_nas.arch import Cost, cost_of
from cvt_nas.config import Experiment
from cvt_nas.errors import ArchError, RunFolderError
from cvt_nas.propose.beliefs import FEWEST_TRIALS, Beliefs, EarlierRun, choices_of, skill_of
from cvt_nas.propose.curves import one_thread
from cvt_nas.results import TrialResult
from cvt_nas.run import RunFolder, is_url
from cvt_nas.run.records import Record
from cvt_nas.space import Option, SearchSpace

_MOST_EPOCHS = 100_000  # of a full training, far above any; a model of more would fill the memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An earlier run.

    Args:
        place: Path or URL of its folder.
        epochs: Number of epochs of a full training.
        trials: Its trials that have an accuracy.
    """

    place: str
    epochs: int
    trials: tuple[TrialResult, ...]

    def to_json(self) -> dict[str, object]:
        """The entry for a manifest, without what `entries_of` adds."""
        return {"place": self.place, "epochs": self.epochs, "trials": len(self.trials)}


def read_sources(places: Sequence[str | Path], *, metric: str) -> list[Source]:
    """Reads the runs in folders or at URLs.

    Raises:
        RunFolderError: One of them is no run, is named twice, has fewer than five trials with an accuracy, maximised
            another metric, or has a record that cannot be true.
    """
    sources, paths = list[Source](), set[Path]()
    for place in places:
        run = RunFolder.open(place)
        if (resolved := run.path.resolve()) in paths:
            raise RunFolderError(f"--learn-from {place}: is named twice, and would be believed twice; name it once")
        paths.add(resolved)
        theirs = run.manifest.get("metric", "accuracy")
        if theirs != metric:
            raise RunFolderError(
                f"--learn-from {place}: maximised {theirs}, and this search maximises {metric}; ranks would not compare"
            )
        trials = tuple(trial for trial in run.results() if trial.status in ("complete", "stopped") and trial.curve)
        if not trials:
            raise RunFolderError(f"--learn-from {place}: has no trial with an accuracy to learn from")
        if len(trials) < FEWEST_TRIALS:
            raise RunFolderError(
                f"--learn-from {place}: got {len(trials)} trials with an accuracy, must be at least {FEWEST_TRIALS} to "
                f"learn from; leave it out"
            )
        source = Source(place=run.place, epochs=run.manifest["epochs"], trials=trials)
        _check(source, f"--learn-from {place}")
        sources.append(source)
    return sources


def _check(source: Source, where: str) -> None:
    """Raises RunFolderError if no search can have written this, as after an edit by hand."""
    epochs = source.epochs
    if type(epochs) is not int or not 1 <= epochs <= _MOST_EPOCHS:
        raise RunFolderError(
            f"{where}: epochs in its manifest: got {epochs!r}, must be a whole number from 1 to {_MOST_EPOCHS:,}"
        )
    numbers = set[int]()
    for trial in source.trials:
        if trial.number in numbers:
            raise RunFolderError(
                f"{where}: trial {trial.number}: is in its record twice, and would be believed twice; remove one of "
                f"the lines"
            )
        numbers.add(trial.number)
        curve, of_trial = trial.curve, f"{where}: trial {trial.number}: curve"
        if (wrong := next((value for value in curve if not 0 <= value <= 1), None)) is not None:
            raise RunFolderError(f"{of_trial}: got {wrong!r}, must be fractions from 0 to 1")
        if len(curve) > epochs or (trial.status == "complete" and len(curve) < epochs):
            raise RunFolderError(
                f"{of_trial}: got {len(curve)} epochs of a {trial.status} trial, and the manifest has epochs {epochs}; "
                f"a complete trial must have as many, and others no more"
            )


def entries_of(sources: Sequence[Source], experiment: Experiment) -> list[dict[str, object]]:
    """Entries of earlier runs for a manifest, with their `skill`, by which the first lines of a search say what they
    tell. See `skill_of`."""
    space = experiment.space
    with one_thread():  # as in `Surrogate`, so that both find the same
        return [
            {**source.to_json(), "skill": skill_of(_as_earlier(source, space), space, _fixed_choices(space))}
            for source in sources
        ]


def keep_sources(sources: Sequence[Source], run: RunFolder) -> None:
    """Writes earlier runs into the folder of a run before it begins."""
    for number, source in enumerate(sources):
        path = run.earlier_path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        run.store.write(path, "".join(json.dumps(trial.to_json()) + "\n" for trial in source.trials))


def check_same_sources(run: RunFolder, places: Sequence[str | Path]) -> None:
    """Raises RunFolderError if a resumed run is given other earlier runs than it began with."""
    began = [told["place"] for told in run.manifest.get("learn_from", ())]
    asked = [str(place) for place in places]
    if asked and [_resolved(place) for place in asked] != [_resolved(place) for place in began]:
        raise RunFolderError(
            f"--learn-from {' '.join(asked)}: {run.path} began with {' '.join(began) or 'none'}; leave it out"
        )


def _resolved(place: str) -> str:
    return place if is_url(place) else str(Path(place).resolve())


def beliefs_of(experiment: Experiment, run: RunFolder) -> Beliefs:
    """Beliefs at the start of a search, from the earlier runs in its folder and from the priors of its file."""
    space, told = experiment.space, run.manifest.get("learn_from", ())
    return Beliefs(
        runs=tuple(_earlier_run(source, run, number, space) for number, source in enumerate(told)),
        fixed=_fixed_choices(space) if told else {},
        priors=experiment.priors,
    )


def _earlier_run(told: Mapping[str, Any], run: RunFolder, number: int, space: SearchSpace) -> EarlierRun:
    path = run.earlier_path(number)
    run.store.fetch(path)
    trials = Record(path, run.store, TrialResult.from_json).read()
    if not trials:
        raise RunFolderError(f"{path}: is missing, so that the search cannot go on as it began")
    if len(trials) != told["trials"]:
        raise RunFolderError(
            f"{path}: has {len(trials)} trials, and the search began with {told['trials']}, so that it cannot go on as "
            f"it began"
        )
    source = Source(place=told["place"], epochs=told["epochs"], trials=tuple(trials))
    _check(source, f"{run.place}: what it learns from, {source.place}")
    return _as_earlier(source, space)


def _as_earlier(source: Source, space: SearchSpace) -> EarlierRun:
    return EarlierRun(
        name=source.place,
        choices=tuple(choices_of(trial.arch) for trial in source.trials),
        costs=tuple(_cost_here(trial, space) for trial in source.trials),
        curves=tuple(trial.curve for trial in source.trials),
        num_epochs=source.epochs,
    )


def _cost_here(trial: TrialResult, space: SearchSpace) -> Cost:
    """Cost of the trial's network for the images and classes of this space; for its own if it cannot take them."""
    try:
        arch = dataclasses.replace(
            trial.arch, image_size=space.image_size, num_channels=space.num_channels, num_classes=space.num_classes
        )
    except ArchError:
        return cost_of(trial.arch)
    return cost_of(arch)


def _fixed_choices(space: SearchSpace) -> dict[str, Option]:
    """Values of the choices that a space fixes, by the names that genes of stages would have."""
    is_open = {f"stage{gene.stage}.{gene.choice}" for gene in space.genes}
    # a linear projection has neither the kernel nor the stride that the space fixes
    genome = tuple(
        next((index for index, option in enumerate(gene.options) if option != "linear"), 0) for gene in space.genes
    )
    every = choices_of(space.decode(genome))
    return {name: value for name, value in every.items() if "block" not in name and name not in is_open}
