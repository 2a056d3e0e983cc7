"""A race as it is decided: a source of proposals, and the rungs that pause, stop and promote their trials.

Ray Tune drives it (`cvt_nas.launch.tune`), and so does a simulated clock (`cvt_nas.propose.simulation`).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from cvt_nas.config import Experiment
from cvt_nas.propose.asha import RANKINGS, Asha, Decision, losses_of_cost
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


class Race:
    """Who is trained next, and who goes on.

    Args:
        source: What an earlier process left of its trials is taken over: those in flight are asked for first.
        asha: Stops or pauses trials; None trains each of them in full.
        metrics: The objectives, accuracy first.
    """

    def __init__(self, source: Source, asha: Asha | None, metrics: Sequence[Metric]) -> None:
        self._source, self.asha, self._metrics = source, asha, metrics
        self._paused = {trial.proposal.number: trial for trial in source.paused()}
        self.begun = {trial.proposal.number: trial for trial in source.interrupted()}
        for number, trial in self.begun.items():
            if asha is not None:  # Tune asks about a report before anybody hears of it, so it has passed its rungs
                asha.replay(number, trial.curve, losses_of_cost(trial.proposal.cost, metrics))
        self._again = deque(trial.proposal for trial in self.begun.values())
        self.begun |= self._paused

    @property
    def has_no_more(self) -> bool:
        """Whether no new trial will be asked for, as far as that is known beforehand."""
        return self._source.has_no_more

    @property
    def num_waiting(self) -> int:
        """Trials that have begun and go on as soon as somebody asks."""
        return len(self._again) + (0 if self.asha is None else self.asha.num_promotable)

    def ask(self) -> Proposal | None:
        """What a free worker trains next: a trial that lost its worker, a paused one that may go on, or a new one; None
        where there is nothing to train until another trial reports."""
        if self._again:
            return self._again.popleft()
        if self.asha is not None and self._paused and (number := self.asha.promote()) is not None:
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
        if self.asha is None:
            return "go"
        losses = (1 - curve[-1], *losses_of_cost(proposal.cost, self._metrics))
        decision = self.asha.decide(proposal.number, len(curve), losses)
        if decision == "pause":
            trial = PartialTrial(proposal=proposal, curve=curve, seconds=seconds, train_seconds=train_seconds)
            self._paused[proposal.number] = trial
            self._source.pause(trial)
        return decision

    def tell(self, ended: Ended) -> None:
        """A trial ended for good."""
        self._source.tell(ended)

    def end_paused(self) -> list[Proposal]:
        """Trials that wait where nothing else is left to train, in the order of their numbers: they have ended."""
        ended = [self._paused[number].proposal for number in sorted(self._paused)]
        self._paused.clear()
        return ended


def race_of(experiment: Experiment, study: Study, results: Sequence[TrialResult], *, rungs: Sequence[int] = ()) -> Race:
    """The race of the experiment's scheduler, with its rungs as the trials of earlier processes left them: those that
    the run began with, since trials that met different `rungs` would not compare."""
    settings, metrics = experiment.search, experiment.objectives
    if settings.scheduler == "none":
        return Race(study, None, metrics)
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
    for trial in study.paused():
        costs = losses_of_cost(trial.proposal.cost, metrics)
        asha.replay(trial.proposal.number, trial.curve, costs, is_paused=True)
    return Race(study, asha, metrics)
