"""The decisions of a race: a source proposes trials, and a scheduler pauses, stops and promotes them.

Ray Tune drives a race (`cvt_nas.launch.tune`), and so does a simulated clock (`cvt_nas.propose.simulation`).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from cvt_nas.config import Experiment
from cvt_nas.propose.asha import RANKINGS, Asha, Decision, losses_of_cost
from cvt_nas.propose.freeze_thaw import FreezeThaw
from cvt_nas.propose.study import Ended, PartialTrial, Proposal, Study
from cvt_nas.results import FAILURES, Metric, TrialResult


class Source(Protocol):
    """Proposes trials, and is told how they ended: `Study`, or a source that stores nothing."""

    def ask(self) -> Proposal | None:
        """The next proposal to train; None if nothing is left."""
        ...

    def tell(self, ended: Ended, /) -> None:
        """Records the final end of a trial."""
        ...

    @property
    def has_no_more(self) -> bool:
        """Whether `ask` would return None, as far as is known beforehand."""
        return False

    def report(self, trial: PartialTrial, /) -> None:
        """Stores the progress of a trial in flight. A paused trial counts as gone on."""

    def pause(self, trial: PartialTrial, /) -> None:
        """Stores that a trial is paused."""

    def paused(self) -> Iterator[PartialTrial]:
        """Trials that an earlier process paused."""
        return iter(())

    def interrupted(self) -> Iterator[PartialTrial]:
        """Trials in flight when an earlier process ended. `ask` does not return them any more."""
        return iter(())


class FixedPlan(Source):
    """Trainings that are fixed beforehand, in their order. Their results do not influence what is proposed.

    A trial in flight when the process ends is in the plan of the next process, and goes on from its checkpoint.
    """

    def __init__(self, proposals: Iterable[Proposal]) -> None:
        self._left = deque(proposals)

    def ask(self) -> Proposal | None:
        return self._left.popleft() if self._left else None

    def tell(self, ended: Ended, /) -> None:
        """Does nothing, since the record holds the result."""

    @property
    def has_no_more(self) -> bool:
        return not self._left


class Scheduler(Protocol):
    """Decides which trials go on."""

    def take_over(self, trial: PartialTrial, *, is_paused: bool) -> Decision:
        """Decides about a trial that an earlier process paused, or had in flight. Paused trials come first."""
        ...

    def decide(self, trial: PartialTrial) -> Decision:
        """Decides whether a trial goes on. It is called after each epoch except the last."""
        ...

    def promote(self) -> int | None:
        """A paused trial that goes on now, before any new trial begins; None if there is none."""
        ...

    @property
    def num_promotable(self) -> int:
        """Number of paused trials that go on as soon as a worker is free."""
        ...


class OnRungs(Scheduler):
    """Successive halving by the losses of trials.

    Args:
        metrics: The objectives, accuracy first.
    """

    def __init__(self, asha: Asha, metrics: Sequence[Metric]) -> None:
        self.asha, self._metrics = asha, metrics

    def take_over(self, trial: PartialTrial, *, is_paused: bool) -> Decision:
        # Tune asks for a decision before a report is stored, so a trial in flight has passed the rungs in its curve
        costs = losses_of_cost(trial.proposal.cost, self._metrics)
        self.asha.replay(trial.proposal.number, trial.curve, costs, is_paused=is_paused)
        return "pause" if is_paused else "go"

    def decide(self, trial: PartialTrial) -> Decision:
        losses = (1 - trial.curve[-1], *losses_of_cost(trial.proposal.cost, self._metrics))
        return self.asha.decide(trial.proposal.number, len(trial.curve), losses)

    def promote(self) -> int | None:
        return self.asha.promote()

    @property
    def num_promotable(self) -> int:
        return self.asha.num_promotable


class Race:
    """Decides what is trained next, and which trials go on.

    Args:
        source: Proposes trials. Its unfinished trials from an earlier process are taken over. Trials that were in
            flight come first.
        scheduler: Stops or pauses trials; None trains each of them in full.
        ask_first: Returns a trial that a user asked for, or None. It is trained before a paused trial goes on.
    """

    def __init__(
        self,
        source: Source,
        scheduler: Scheduler | None = None,
        *,
        ask_first: Callable[[], Proposal | None] | None = None,
    ) -> None:
        self._source, self._scheduler, self._ask_first = source, scheduler, ask_first
        self._paused = {trial.proposal.number: trial for trial in source.paused()}
        in_flight = {trial.proposal.number: trial for trial in source.interrupted()}
        self.begun = self._paused | in_flight
        self._again = deque[Proposal]()
        for number, trial in self.begun.items():
            is_paused = number in self._paused
            decision = "go" if scheduler is None else scheduler.take_over(trial, is_paused=is_paused)
            if decision == "go":
                self._again.append(trial.proposal)
            elif not is_paused:
                self._pause(trial)

    @property
    def has_no_more(self) -> bool:
        """Whether there will be no new trial, as far as is known beforehand."""
        return self._source.has_no_more

    @property
    def num_waiting(self) -> int:
        """Number of trials that have begun and go on at the next call of `ask`."""
        return len(self._again) + (0 if self._scheduler is None else self._scheduler.num_promotable)

    def ask(self) -> Proposal | None:
        """The next trial for a free worker; None if there is nothing to train until another trial reports.

        Trials come in this order: those that lost their worker, those that a user asked for, paused trials that may
        go on, and new trials.
        """
        if self._again:
            return self._again.popleft()
        if self._ask_first is not None and (asked_for := self._ask_first()) is not None:
            return asked_for
        if self._scheduler is not None and self._paused and (number := self._scheduler.promote()) is not None:
            trial = self._paused.pop(number)
            self._source.report(trial)
            return trial.proposal
        return self._source.ask()

    def try_again(self, proposal: Proposal) -> None:
        """Makes `ask` return a trial that lost its worker, before any other trial."""
        self._again.append(proposal)

    def report(self, trial: PartialTrial) -> None:
        """Stores the progress of a trial for a later process."""
        self._source.report(trial)

    def decide(
        self, proposal: Proposal, curve: tuple[float, ...], *, seconds: float = 0.0, train_seconds: float = 0.0
    ) -> Decision:
        """Decides whether a trial goes on. It is called after each epoch except the last.

        Args:
            seconds, train_seconds: See `PartialTrial`. They are stored with a trial that pauses.
        """
        if self._scheduler is None:
            return "go"
        trial = PartialTrial(proposal=proposal, curve=curve, seconds=seconds, train_seconds=train_seconds)
        decision = self._scheduler.decide(trial)
        if decision == "pause":
            self._pause(trial)
        return decision

    def _pause(self, trial: PartialTrial) -> None:
        self._paused[trial.proposal.number] = trial
        self._source.pause(trial)

    def tell(self, ended: Ended) -> None:
        """Records the final end of a trial."""
        self._source.tell(ended)

    def end_paused(self) -> list[Proposal]:
        """Ends all paused trials when nothing else is left to train, and returns them in the order of their numbers."""
        ended = [self._paused[number].proposal for number in sorted(self._paused)]
        self._paused.clear()
        return ended


def race_of(
    experiment: Experiment,
    study: Study,
    results: Sequence[TrialResult],
    *,
    rungs: Sequence[int] = (),
    ask_first: Callable[[], Proposal | None] | None = None,
) -> Race:
    """Makes the race of an experiment, with the trials of earlier processes on its rungs.

    Args:
        rungs: Rungs that the run began with. Trials on different rungs could not be compared.
        ask_first: See `Race`.
    """
    settings, metrics = experiment.search, experiment.objectives
    if settings.scheduler == "none":
        return Race(study, ask_first=ask_first)
    if settings.scheduler == "freeze-thaw":
        return Race(study, FreezeThaw(study, num_epochs=experiment.training.epochs), ask_first=ask_first)
    asha = Asha(
        max_epochs=experiment.training.epochs,
        grace_period=settings.grace_period,
        reduction_factor=settings.reduction_factor,
        ranking=RANKINGS[settings.scheduler],
        mode=settings.mode,
        rungs=rungs,
    )
    for result in results:
        if result.status in FAILURES:  # it is tried again, and must not compete with itself on a rung
            continue
        costs = losses_of_cost(result.cost, metrics)
        asha.replay(result.number, result.curve, costs, is_stopped=result.status == "stopped")
    return Race(study, OnRungs(asha, metrics), ask_first=ask_first)
