"""Freezing and thawing: who keeps the worker, who waits, and who goes on."""

import itertools
import random
import statistics
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import small_digits
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.errors import SpaceFileError
from cvt_nas.pipeline import open_study
from cvt_nas.propose import surrogate
from cvt_nas.propose.asha import Decision
from cvt_nas.propose.curves import CurvePosterior
from cvt_nas.propose.race import race_of
from cvt_nas.propose.study import PartialTrial, Proposal
from cvt_nas.propose.surrogate import NUM_INITIAL
from cvt_nas.results import Status, TrialResult
from cvt_nas.run import RunFolder

NUM_EPOCHS = 6
Event = tuple[int, int, str]  # a trial, its epochs, and what followed


def experiment_of(more: str = "") -> Experiment:
    search = f"search: {{sampler: surrogate, scheduler: freeze-thaw{more}}}"
    return parse_experiment(small_digits(**{"  epochs:": f"  epochs: {NUM_EPOCHS}", "search:": search}), "thaw.yaml")


def curve_of(proposal: Proposal) -> list[float]:
    """Larger networks are better at the end, and no better at the beginning; each is better or worse for its size."""
    rng = random.Random(f"{proposal.genome}")
    end = 0.9 - 0.4 / (1 + proposal.cost.flops / 3e5) + 0.1 * rng.random()
    return [0.3 + (end - 0.3) * (1 - 0.5**epoch) / (1 - 0.5**NUM_EPOCHS) for epoch in range(1, NUM_EPOCHS + 1)]


def partial_of(proposal: Proposal, num_epochs: int) -> PartialTrial:
    """A trial whose epochs take seconds by the square of its FLOPs."""
    seconds = num_epochs * (proposal.cost.flops / 3e5) ** 2
    return PartialTrial(
        proposal=proposal, curve=tuple(curve_of(proposal)[:num_epochs]), seconds=seconds, train_seconds=seconds
    )


def ended(experiment: Experiment, proposal: Proposal, status: Status = "complete") -> TrialResult:
    curve = tuple(curve_of(proposal)) if status == "complete" else ()
    return TrialResult(
        number=proposal.number, arch=experiment.space.decode(proposal.genome), status=status, epochs=len(curve),
        accuracy=curve[-1] if curve else None, cost=proposal.cost, curve=curve, seconds=1.0, train_seconds=1.0,
        seed=proposal.seed, reason=None if curve else "it diverged",
    )  # fmt: skip


class Driver:
    """A race that can be interrupted after any epoch."""

    def __init__(self, experiment: Experiment, path: Path, *, num_trials: int) -> None:
        self.experiment, self._num_trials = experiment, num_trials
        self.run = RunFolder.create(path, experiment.manifest(seed=0, num_trials=num_trials))
        self._epochs = dict[int, int]()
        self.reopen()

    def reopen(self) -> None:
        """Goes on as a new process would."""
        self.study = open_study(self.experiment, self.run, num_trials=self._num_trials, seed=0)
        self.race = race_of(self.experiment, self.study, self.run.results())

    def decide(self, partial: PartialTrial) -> Decision:
        """Decides about a trial, and stores its progress if it goes on."""
        decision = self.race.decide(
            partial.proposal, partial.curve, seconds=partial.seconds, train_seconds=partial.train_seconds
        )
        if decision == "go":
            self.race.report(partial)
        return decision

    def events(self, *, cut_after: tuple[int, ...] = (), cut_before: tuple[int, ...] = ()) -> Iterator[Event]:
        """Of one worker, until the race ends. The process ends right after, or right before, these decisions."""
        num_decisions, proposal = 0, self.race.ask()
        while proposal is not None:
            self._epochs[proposal.number] = num_epochs = self._epochs.get(proposal.number, 0) + 1
            if num_epochs == NUM_EPOCHS:
                self.finish(proposal)
                yield proposal.number, num_epochs, "complete"
                proposal = self.race.ask()
                continue
            partial = partial_of(proposal, num_epochs)
            num_decisions += 1
            is_next = proposal
            if num_decisions in cut_before:
                self.race.report(partial)
                self.reopen()
                is_next = self.race.ask()
            else:
                if self.decide(partial) == "pause":
                    is_next = self.race.ask()
                if num_decisions in cut_after:
                    self.reopen()
                    is_next = self.race.ask()
            yield proposal.number, num_epochs, "go" if is_next == proposal else "pause"
            proposal = is_next

    def finish(self, proposal: Proposal, status: Status = "complete") -> None:
        result = ended(self.experiment, proposal, status)
        self.run.append(result)
        self.race.tell(result)


@pytest.mark.usefixtures("fast_disk")
def test_the_initial_design_is_trained_in_full_and_later_trials_wait_or_go_on(tmp_path: Path) -> None:
    driver = Driver(experiment_of(), tmp_path / "run", num_trials=20)
    events = list(driver.events())
    complete = [number for number, _, what in events if what == "complete"]
    assert complete[:NUM_INITIAL] == list(range(NUM_INITIAL))
    paused = {number for number, _, what in events if what == "pause"}
    assert len(paused) >= 5
    assert paused & set(complete), "some go on later"
    assert paused - set(complete), "others never do"
    begun = list(dict.fromkeys(number for number, _, _ in events))
    assert begun == list(range(20))


@pytest.mark.usefixtures("fast_disk")
def test_an_interrupted_race_decides_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = list(Driver(experiment_of(), tmp_path / "whole", num_trials=20).events())
    pauses = [index + 1 for index, event in enumerate(e for e in whole if e[2] != "complete") if event[2] == "pause"]
    assert len(pauses) > 2
    for name, cuts in {
        "cut_after": (3, pauses[0], pauses[-1] + 1),
        "cut_before": (50, pauses[1], pauses[-1] + 1),
    }.items():
        driver = Driver(experiment_of(), tmp_path / name, num_trials=20)
        assert list(driver.events(**{name: cuts})) == whole


@pytest.mark.usefixtures("fast_disk")
def test_trials_that_fail_end_and_those_that_wait_at_the_end_are_handed_over(tmp_path: Path) -> None:
    driver = Driver(experiment_of(), tmp_path / "run", num_trials=20)
    failed = set[int]()
    while (proposal := driver.race.ask()) is not None:
        if proposal.number % 5 == 4:
            failed.add(proposal.number)
            driver.finish(proposal, "diverged")
            continue
        for num_epochs in range(len(driver.study.observed()[proposal.number].curve) + 1, NUM_EPOCHS):
            if driver.decide(partial_of(proposal, num_epochs)) == "pause":
                break
        else:
            driver.finish(proposal)
    assert failed == {4, 9, 14, 19}
    assert driver.race.num_waiting == 0
    waiting = driver.race.end_paused()
    assert waiting
    assert driver.race.has_no_more
    complete = [o for o in driver.study.observed().values() if o.status == "complete"]
    assert len(complete) + len(waiting) + len(failed) == 20


@pytest.mark.usefixtures("fast_disk")
def test_several_workers_train_no_epoch_twice_and_lose_no_trial_when_a_race_is_interrupted(tmp_path: Path) -> None:
    driver, in_flight, trained = (
        Driver(experiment_of(), tmp_path / "run", num_trials=20),
        deque[Proposal](),
        Counter[int](),
    )
    for step in itertools.count(1):
        while len(in_flight) < 3:
            is_old, will_be_old = driver.race.has_no_more, driver.race.num_waiting > 0
            proposal = driver.race.ask()
            assert not is_old or (proposal is not None) == will_be_old
            if proposal is None:
                break
            in_flight.append(proposal)
        if not in_flight:
            break
        proposal = in_flight.popleft()
        trained[proposal.number] += 1
        if trained[proposal.number] == NUM_EPOCHS:
            driver.finish(proposal)
        elif driver.decide(partial_of(proposal, trained[proposal.number])) == "go":
            in_flight.append(proposal)
        if step % 13 == 0:
            in_flight.clear()
            driver.reopen()
    complete = {result.number for result in driver.run.results()}
    assert set(trained) == set(range(20))
    assert complete == {number for number, epochs in trained.items() if epochs == NUM_EPOCHS}
    assert complete > set(range(NUM_INITIAL))
    waiting = {
        proposal.number: len(driver.study.observed()[proposal.number].curve) for proposal in driver.race.end_paused()
    }
    assert waiting == {number: epochs for number, epochs in trained.items() if number not in complete}
    assert waiting


@pytest.mark.usefixtures("fast_disk")
def test_where_seconds_count_costly_networks_get_fewer_epochs(tmp_path: Path) -> None:
    flops = {}
    for per in ("epoch", "second"):
        driver = Driver(experiment_of(f", per: {per}"), tmp_path / per, num_trials=16)
        trained = [number for number, *_ in driver.events() if number >= NUM_INITIAL]
        space, observed = driver.experiment.space, driver.study.observed()
        flops[per] = statistics.mean(space.cost(observed[number].genome).flops for number in trained)
    assert flops["second"] < 0.9 * flops["epoch"]


@pytest.mark.usefixtures("fast_disk")
def test_a_decision_and_the_next_trial_are_computed_by_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[CurvePosterior]()

    def counted(*args: Any, **kwargs: Any) -> CurvePosterior:
        made.append(CurvePosterior(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(surrogate, "CurvePosterior", counted)
    events = list(Driver(experiment_of(), tmp_path / "run", num_trials=20).events())
    assert any(what == "pause" for _, _, what in events)
    assert 20 < len(made) < len(events)


def test_it_goes_by_the_surrogate_alone() -> None:
    text = small_digits(**{"search:": "search: {sampler: tpe, scheduler: freeze-thaw}"})
    with pytest.raises(SpaceFileError, match=r"search\.scheduler: got freeze-thaw, .* not by tpe"):
        parse_experiment(text, "thaw.yaml")
