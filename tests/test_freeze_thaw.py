"""Freezing and thawing: who keeps the worker, who waits, and who goes on."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import small_digits
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.errors import SpaceFileError
from cvt_nas.pipeline import open_study
from cvt_nas.propose.race import Race, race_of
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
    return PartialTrial(
        proposal=proposal, curve=tuple(curve_of(proposal)[:num_epochs]), seconds=num_epochs, train_seconds=num_epochs
    )


def ended(experiment: Experiment, proposal: Proposal, status: Status = "complete") -> TrialResult:
    curve = tuple(curve_of(proposal)) if status == "complete" else ()
    return TrialResult(
        number=proposal.number, arch=experiment.space.decode(proposal.genome), status=status, epochs=len(curve),
        accuracy=curve[-1] if curve else None, cost=proposal.cost, curve=curve, seconds=1.0, train_seconds=1.0,
        seed=proposal.seed, reason=None if curve else "it diverged",
    )  # fmt: skip


class Driver:
    """A race with one worker, which can be interrupted after any epoch."""

    def __init__(self, experiment: Experiment, path: Path, *, num_trials: int) -> None:
        self.experiment, self._num_trials = experiment, num_trials
        self.run = RunFolder.create(path, experiment.manifest(seed=0, num_trials=num_trials))
        self.race, self._epochs = self._open(), dict[int, int]()

    def _open(self) -> Race:
        self.study = open_study(self.experiment, self.run, num_trials=self._num_trials, seed=0)
        return race_of(self.experiment, self.study, self.run.results())

    def events(self, *, cut_after: tuple[int, ...] = (), cut_before: tuple[int, ...] = ()) -> Iterator[Event]:
        """Until the race ends; the process ends right after, or right before, the decisions of these numbers."""
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
                self.race = self._open()
                is_next = self.race.ask()
            else:
                if self.race.decide(proposal, partial.curve) == "pause":
                    is_next = self.race.ask()
                else:
                    self.race.report(partial)
                if num_decisions in cut_after:
                    self.race = self._open()
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
            if driver.race.decide(proposal, partial_of(proposal, num_epochs).curve) == "pause":
                break
        else:
            driver.finish(proposal)
    assert failed == {4, 9, 14, 19}
    waiting = driver.race.end_paused()
    assert waiting
    assert driver.race.has_no_more
    complete = [o for o in driver.study.observed().values() if o.status == "complete"]
    assert len(complete) + len(waiting) + len(failed) == 20


def test_it_goes_by_the_surrogate_alone() -> None:
    text = small_digits(**{"search:": "search: {sampler: tpe, scheduler: freeze-thaw}"})
    with pytest.raises(SpaceFileError, match=r"search\.scheduler: got freeze-thaw, .* not by tpe"):
        parse_experiment(text, "thaw.yaml")
