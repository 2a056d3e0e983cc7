"""A race as it is decided: a source of proposals, and the scheduler that pauses, stops and promotes their trials.

Ray Tune drives it (`cvt_nas.launch.tune`), and so does a simulated clock (`cvt_nas.propose.simulation`).
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
    """Who says what is trained next, and hears how it ended: `Study`, or one that keeps nothing of its trials."""

    def ask(self) -> Proposal | None:
        """What to train next; None where nothing is left."""
        ...

    def tell(self, ended: Ended, /) -> None:
        """How a trial ended for good."""
        ...

    @property
    def has_no_more(self) -> bool:
        """Whether `ask` would give nothing, as far as that is known beforehand."""
        return False

    def report(self, trial: PartialTrial, /) -> None:
        """How far a trial in flight has come; one that waited goes on."""

    def pause(self, trial: PartialTrial, /) -> None:
        """A trial waits at a rung."""

    def paused(self) -> Iterator[PartialTrial]:
        """What an earlier process paused."""
        return iter(())

    def interrupted(self) -> Iterator[PartialTrial]:
        """What was in flight when an earlier process ended, taken out of what `ask` gives."""
        return iter(())


class FixedPlan(Source):
    """Trainings that are fixed beforehand, asked for in their order; nobody learns from them.

    One that was in flight when the process ended is in the plan of the next one, and goes on from its checkpoint.
    """

    def __init__(self, proposals: Iterable[Proposal]) -> None:
        self._left = deque(proposals)

    def ask(self) -> Proposal | None:
        return self._left.popleft() if self._left else None

    def tell(self, ended: Ended, /) -> None:
        """Nothing: the record holds it."""

    @property
    def has_no_more(self) -> bool:
        return not self._left


class Scheduler(Protocol):
    """Who decides which trials go on."""

    def take_over(self, trial: PartialTrial, *, is_paused: bool) -> Decision:
        """What becomes of a trial that an earlier process paused, or had in flight; the paused ones come first."""
        ...

    def decide(self, trial: PartialTrial) -> Decision:
        """After each epoch of a trial but the last: whether it goes on."""
        ...

    def promote(self) -> int | None:
        """A paused trial that goes on now, before any new one."""
        ...

    @property
    def num_promotable(self) -> int:
        """Paused trials that go on as soon as a worker is free."""
        ...


class OnRungs(Scheduler):
    """Successive halving by the losses of trials.

    Args:
        metrics: The objectives, accuracy first.
    """

    def __init__(self, asha: Asha, metrics: Sequence[Metric]) -> None:
        self.asha, self._metrics = asha, metrics

    def take_over(self, trial: PartialTrial, *, is_paused: bool) -> Decision:
        # Tune asks about a report before anybody hears of it, so one that was in flight has passed its rungs
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
    """Who is trained next, and who goes on.

    Args:
        source: What an earlier process left of its trials is taken over: those in flight are asked for first.
        scheduler: Stops or pauses trials; None trains each of them in full.
        ask_first: What is trained before a paused trial goes on, as a person asked for it; gives None for nothing.
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
        """Whether no new trial will be asked for, as far as that is known beforehand."""
        return self._source.has_no_more

    @property
    def num_waiting(self) -> int:
        """Trials that have begun and go on as soon as somebody asks."""
        return len(self._again) + (0 if self._scheduler is None else self._scheduler.num_promotable)

    def ask(self) -> Proposal | None:
        """What a free worker trains next: a trial that lost its worker, what a person asked for, a paused trial that
        may go on, or a new one; None where there is nothing to train until another trial reports."""
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
        """A trial lost its worker: `ask` gives it before any other."""
        self._again.append(proposal)

    def report(self, trial: PartialTrial) -> None:
        """Keeps how far a trial came, for another process."""
        self._source.report(trial)

    def decide(
        self, proposal: Proposal, curve: tuple[float, ...], *, seconds: float = 0.0, train_seconds: float = 0.0
    ) -> Decision:
        """After each epoch of a trial but the last: whether it goes on. The seconds are kept with a trial that
        pauses."""
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
        """A trial ended for good."""
        self._source.tell(ended)

    def end_paused(self) -> list[Proposal]:
        """Trials that wait where nothing else is left to train, in the order of their numbers: they have ended."""
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
    """The race of the experiment's scheduler, with its rungs as the trials of earlier processes left them: those that
    the run began with, since trials that met different `rungs` would not compare. `ask_first` is `Race`'s."""
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
        if result.status in FAILURES:  # it is tried again, and must not meet itself on a rung
            continue
        costs = losses_of_cost(result.cost, metrics)
        asha.replay(result.number, result.curve, costs, is_stopped=result.status == "stopped")
    return Race(study, OnRungs(asha, metrics), ask_first=ask_first)
