"""What Optuna proposed, and how each trial ended: ask and tell, on a storage that survives a crash."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from cvt_nas.arch import Cost
from cvt_nas.race.samplers import (
    SamplerName,
    UnseenSampler,
    derive_seed,
    distributions_of,
    genome_of,
    is_whole,
    params_of,
)
from cvt_nas.results import Metric, Status
from cvt_nas.space import Genome, GenomeSpace

_STUDY_NAME = "cvt-nas"


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """An architecture to train, feasible and new.

    Args:
        number: Of the trial, in the run and in the study.
        seed: Of its training.
    """

    number: int
    genome: Genome
    cost: Cost
    seed: int


class Ended(Protocol):
    """How a trial ended; a `TrialResult` is one."""

    @property
    def number(self) -> int: ...
    @property
    def status(self) -> Status: ...
    @property
    def epochs(self) -> int: ...
    @property
    def curve(self) -> tuple[float, ...]: ...
    @property
    def cost(self) -> Cost: ...
    @property
    def reason(self) -> str | None: ...


class Study:
    """Ask and tell.

    Opening the storage of a search that was interrupted settles what its record already holds, and makes
    `ask` begin with the trials that were in flight.

    Args:
        metrics: The objectives, accuracy first.
        num_trials: After how many `ask` ends; None where it never does.
        seed: Of proposals and of the trials' trainings.
        anchors: Proposed first, by name.
        recorded: The trials that have ended, of which Optuna may not know yet.
    """

    def __init__(
        self,
        space: GenomeSpace,
        *,
        metrics: Sequence[Metric],
        sampler: SamplerName,
        storage: BaseStorage,
        num_trials: int | None,
        seed: int,
        anchors: Mapping[str, Genome] | None = None,
        recorded: Sequence[Ended] = (),
    ) -> None:
        self._space, self._num_trials, self._seed = space, num_trials, seed
        self._metrics = tuple(metrics)
        self._seen: set[Genome] = set()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._sampler = UnseenSampler(sampler, space, metrics=metrics, seed=seed, seen=self._seen)
        self._study = optuna.create_study(
            study_name=_STUDY_NAME,
            storage=storage,
            directions=["maximize" if metric == "accuracy" else "minimize" for metric in self._metrics],
            sampler=self._sampler,
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.set_metric_names(list(self._metrics))
        self._orphans: list[FrozenTrial] = []
        self._paused: list[FrozenTrial] = []
        self._exhausted = False
        self._resume({ended.number: ended for ended in recorded})
        for name, genome in (anchors or {}).items():
            genome = space.canonical(genome)
            self._study.enqueue_trial(params_of(space, genome), user_attrs={"anchor": name}, skip_if_exists=True)

    def _resume(self, recorded: Mapping[int, Ended]) -> None:
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state == TrialState.WAITING:
                continue
            if trial.state == TrialState.RUNNING:
                if trial.number in recorded:  # recorded, then killed before Optuna was told
                    self.tell(recorded[trial.number])
                elif is_whole(trial, self._space):
                    (self._paused if trial.user_attrs.get("paused") else self._orphans).append(trial)
                else:  # killed while Optuna was writing the proposal: nothing was trained
                    self._study.tell(trial.number, state=TrialState.FAIL)
                    continue
            if is_whole(trial, self._space):
                self._seen.add(self._space.canonical(genome_of(self._space, trial.params)))

    @property
    def num_asked(self) -> int:
        """Trials that were launched, in this process or an earlier one."""
        return len(self._seen)

    @property
    def is_done(self) -> bool:
        """Whether every trial that was launched has ended, and no further one would be launched."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return not running and (self._exhausted or self._is_full)

    def ask(self) -> Proposal | None:
        """The next architecture to train: first those in flight when the run was interrupted, then anchors.

        Returns:
            None where the number of trials is reached, or the space holds nothing feasible that is new.
        """
        if self._orphans:
            return self._proposal(self._orphans.pop(0))
        if self._is_full:
            return None
        number = len(self._study.get_trials(deepcopy=False, states=None))
        if not self._sampler.prepare(number):
            self._exhausted = True
            return None
        trial = self._study.ask(distributions_of(self._space))
        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        proposal = self._proposal(frozen)
        self._seen.add(self._space.canonical(proposal.genome))
        trial.set_user_attr("arch_id", self._space.arch_id(proposal.genome))
        # what the indices mean, for whoever opens the journal in optuna-dashboard
        trial.set_user_attr("choices", _choices_of(self._space, proposal.genome))
        return proposal

    @property
    def _is_full(self) -> bool:
        return self._num_trials is not None and self.num_asked >= self._num_trials

    def pause(self, number: int, curve: Sequence[float], seconds: float) -> None:
        """Keeps how far trial `number` came, for `paused` after a crash; to Optuna it goes on running."""
        self._set_paused(number, {"curve": list(curve), "seconds": seconds})

    def promote(self, number: int) -> None:
        """Marks a paused trial as in flight, so that after a crash `ask` begins with it."""
        self._set_paused(number, None)

    def _set_paused(self, number: int, state: dict[str, Any] | None) -> None:
        storage = self._study._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)
        storage.set_trial_user_attr(trial_id, "paused", state)

    def paused(self) -> Iterator[tuple[Proposal, tuple[float, ...], float]]:
        """Trials that were paused when the search was interrupted: proposal, curve, and seconds spent."""
        for trial in self._paused:
            state = trial.user_attrs["paused"]
            yield self._proposal(trial), tuple(state["curve"]), state["seconds"]

    def _proposal(self, trial: FrozenTrial) -> Proposal:
        genome = genome_of(self._space, trial.params)
        return Proposal(
            number=trial.number,
            genome=genome,
            cost=self._space.cost(genome),
            seed=derive_seed(self._seed, trial.number, "training"),
        )

    def tell(self, ended: Ended) -> None:
        """Tells Optuna how a trial ended: complete with its values, stopped as pruned, all others as failed."""
        storage = self._study._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self._study._study_id, ended.number)
        attributes = {"status": ended.status, "epochs": ended.epochs, "curve": list(ended.curve)}
        for name, value in {**attributes, "params": ended.cost.params, "flops": ended.cost.flops}.items():
            storage.set_trial_user_attr(trial_id, name, value)
        if ended.status == "complete":
            values = {"accuracy": ended.curve[-1], "params": ended.cost.params, "flops": ended.cost.flops}
            self._study.tell(ended.number, [values[metric] for metric in self._metrics])
        elif ended.status == "stopped":
            self._study.tell(ended.number, state=TrialState.PRUNED)
        else:
            storage.set_trial_user_attr(trial_id, "reason", ended.reason or "")
            self._study.tell(ended.number, state=TrialState.FAIL)


def _choices_of(space: GenomeSpace, genome: Genome) -> dict[str, Any]:
    return {gene.name: gene.options[index] for gene, index in zip(space.genes, genome, strict=True)}
