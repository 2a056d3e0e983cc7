"""Finds the trainings that correct the inherited accuracies of a run, and says what they changed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cvt_nas.arch import ArchConfig
from cvt_nas.config import Experiment, experiment_of
from cvt_nas.engine import TrainingSetup
from cvt_nas.errors import ArchError, RunFolderError
from cvt_nas.pipeline.inherit import measured_whole
from cvt_nas.pipeline.narrowing import searched_space
from cvt_nas.pipeline.reuse import Alone, standalone_of, trained_alone
from cvt_nas.propose.correction import corrected
from cvt_nas.propose.observations import Observation
from cvt_nas.results import DataIdentity, Inherited, kendall, smoothed_accuracies
from cvt_nas.run import RunFolder
from cvt_nas.space import ArchSpace, Genome

_MIN_CORRECTING = 6  # trainings
_MIN_RANKED = 2  # architectures whose order can change


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainings:
    """Trained architectures of one kind, whose accuracies compare with each other.

    Args:
        accuracies: Accuracy after the last epoch, by id of the architecture. It is the mean over seeds.
        kind: The kind of training, for people.
    """

    archs: Mapping[str, ArchConfig]
    accuracies: Mapping[str, float]
    kind: str


def trainings_of(
    run: RunFolder, experiment: Experiment, reuse: Sequence[RunFolder], *, identity: DataIdentity | None, metric: str
) -> Trainings:
    """Trainings of `run` and of the runs in `reuse`.

    There are two kinds: trainings from scratch (`cvt-nas supernet evaluate`, `reuse`), and complete trials of the race,
    which began with inherited weights. The kinds do not compare. The result is the kind with more architectures, or the
    first kind if `reuse` brings enough of it.

    Raises:
        RunFolderError: The trainings of a run to reuse do not compare, or it has none.
    """
    run.standalone.refresh()
    epochs = experiment.training.epochs
    if run.standalone.has_begun:
        epochs = run.standalone.manifest["epochs"]
    elif epochs == 0 and reuse:  # then the run says nothing of the length of trainings
        first = reuse[0].standalone
        first.refresh()
        epochs = first.manifest["epochs"] if first.has_begun else experiment_of(reuse[0]).training.epochs
    lasting = dataclasses.replace(experiment, training=experiment.training.lasting(epochs))
    alone = standalone_of(run, epochs)
    if reuse and identity is None:
        raise RunFolderError(
            f"--reuse: {run.place} was begun by an earlier version, so whether the data are the same is unknown"
        )
    if identity is not None:
        alone += trained_alone(reuse, lasting, run, identity=identity, metric=metric)
    raced = {
        trial.arch_id: trial for trial in run.results() if trial.status == "complete" and experiment.training.epochs > 0
    }
    num_alone = len({each.arch.id for each in alone})
    if num_alone >= len(raced) or (reuse and num_alone >= _MIN_CORRECTING):
        return _of_alone(alone, f"trainings from scratch, of {epochs} epochs" if epochs else "trainings from scratch")
    return Trainings(
        archs={arch_id: trial.arch for arch_id, trial in raced.items()},
        accuracies={arch_id: trial.metric("accuracy") for arch_id, trial in raced.items()},
        kind=f"trials of the race, of {experiment.training.epochs} epochs from inherited weights",
    )


def _of_alone(alone: Sequence[Alone], kind: str) -> Trainings:
    accuracies: dict[str, list[float]] = {}
    for each in alone:
        accuracies.setdefault(each.arch.id, []).extend(each.accuracies)
    return Trainings(
        archs={each.arch.id: each.arch for each in alone},
        accuracies={arch_id: float(np.mean(found)) for arch_id, found in accuracies.items()},
        kind=kind,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCorrection:
    """Corrects inherited accuracies by trainings.

    Args:
        inherited: What architectures of `space` inherit.
        own: Accuracies after training, of some of them.
    """

    space: ArchSpace
    inherited: Mapping[Genome, Inherited]
    own: Mapping[Genome, float]
    seed: int

    def expect(self, inherited: Mapping[Genome, Inherited]) -> np.ndarray:
        """Expected accuracies after training of further architectures."""
        return self._expected(list(inherited), {**self.inherited, **inherited})

    def most_accurate(self, genomes: Sequence[Genome]) -> list[Genome]:
        """`genomes`, the highest expected accuracy after training first."""
        expected = self._expected(genomes, self.inherited)
        return [genomes[index] for index in np.argsort(-expected, kind="stable")]

    def _expected(self, genomes: Sequence[Genome], inherited: Mapping[Genome, Inherited]) -> np.ndarray:
        observations = [
            Observation(
                genome=genome,
                curve=(self.own[genome],) if genome in self.own else (),
                status="complete" if genome in self.own else "stopped",
                inherited=accuracy,
            )
            for genome, accuracy in zip(inherited, smoothed_accuracies([*inherited.values()]), strict=True)
        ]
        return corrected(self.space, observations, genomes, seed=self.seed)

    def change(self, limits: ArchSpace) -> str:
        """Text on how much the correction changes the ranks of architectures that are feasible in `limits`."""
        within = [genome for genome in self.inherited if limits.is_feasible(limits.cost(genome))]
        if len(within) < _MIN_RANKED:
            return f"{len(within)} ranked architectures within the limits are too few to say how much ranks changed"
        before = np.array(smoothed_accuracies([self.inherited[genome] for genome in within]))
        after = self._expected(within, self.inherited)
        moved = np.abs(np.argsort(np.argsort(-before)) - np.argsort(np.argsort(-after))).mean()
        return (
            f"the {len(within)} ranked architectures within the limits moved by {moved:.1f} places in the mean "
            f"(tau between the two orders {kendall(before, after):.2f})"
        )


def correction_of(
    run: RunFolder,
    experiment: Experiment,
    reuse: Sequence[RunFolder],
    *,
    setup: TrainingSetup,
    limits: ArchSpace,
    inherited: Callable[[ArchConfig], Inherited],
    on_note: Callable[[str], None] | None = None,
) -> RunCorrection | None:
    """The correction by the trainings of `run` and of `reuse`. None if they are too few.

    Args:
        limits: The space within the limits of a query. The model does not depend on them.
        inherited: Measures what an architecture inherits.
        on_note: Called with a note on how much the correction changes, or why there is none.

    Raises:
        RunFolderError: The trainings of a run to reuse do not compare.
    """
    space = searched_space(experiment, run)
    trainings = trainings_of(run, experiment, reuse, identity=setup.identity, metric=setup.metric)
    archs = {arch_id: arch for arch_id, arch in trainings.archs.items() if _is_in(space, arch)}
    if len(archs) < _MIN_CORRECTING:
        if on_note is not None:
            on_note(
                f"not corrected: there are {len(archs)} {trainings.kind}, and it takes {_MIN_CORRECTING}; "
                f"cvt-nas supernet evaluate trains more"
            )
        return None
    known: dict[ArchConfig, Inherited] = {
        each.arch: each for each in (*run.supernet.inherited(), *measured_whole(run.candidates()))
    }
    known |= {arch: inherited(arch) for arch in archs.values() if arch not in known}
    correction = RunCorrection(
        space=space,
        inherited={space.encode(arch): found for arch, found in known.items() if _is_in(space, arch)},
        own={space.encode(arch): trainings.accuracies[arch_id] for arch_id, arch in archs.items()},
        seed=int(run.manifest["seed"]),
    )
    if on_note is not None:
        on_note(f"corrected by {len(archs)} {trainings.kind}: {correction.change(limits)}")
    return correction


def _is_in(space: ArchSpace, arch: ArchConfig) -> bool:
    """Whether an architecture has only options of the space. It may lie outside the limits of cost."""
    try:
        space.encode(arch)
    except ArchError:
        return False
    return True
