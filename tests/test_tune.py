"""Tune's view of a race, and how trials end, on made-up reports."""

import dataclasses
import queue
from pathlib import Path
from typing import Any

import pytest

from cvt_nas.config import Experiment
from cvt_nas.errors import SearchFailedError
from cvt_nas.launch.flight import kind_of_failure
from cvt_nas.launch.tune import RaceSearcher
from cvt_nas.propose.race import Race, race_of
from cvt_nas.propose.spread import Spread
from cvt_nas.propose.study import PartialTrial
from cvt_nas.run import RunFolder
from test_study import lost, study_of, with_sampler


def test_a_trial_that_has_passed_a_rung_is_not_judged_there_again_after_a_crash(tmp_path: Path) -> None:
    experiment = with_sampler("random")
    study, run = study_of(experiment, tmp_path / "run", 5)
    proposals = [proposal for _ in range(4) if (proposal := study.ask()) is not None]
    first, *others = [
        PartialTrial(proposal=proposal, curve=(0.1 if proposal.number == 0 else 0.9,), seconds=3.0, train_seconds=2.0)
        for proposal in proposals
    ]
    study.report(first)  # it was the first to arrive, so it went on
    for better in others:
        study.pause(better)  # and killed here
    study, run = study_of(experiment, tmp_path / "run", 5)
    searcher = RaceSearcher(race_of(experiment, study, run.results()), experiment, run, run.append, queue.Queue())
    assert searcher.suggest("again")["number"] == 0
    assert searcher.goes_on("again", {"curve": [0.1], "epoch": 1})


@pytest.mark.parametrize(
    ("one", "two", "are_alike"),
    [
        ("RuntimeError: no kernel at 0x7f2a", "RuntimeError: no kernel at 0x91bb", True),
        ("FileNotFoundError: /data/a/3.jpg is gone", "FileNotFoundError: /data/b/17.jpg is gone", True),
        ("the worker process died, 4 times", "the worker process died", False),
        ("no report within 20 s, 4 times", "no report within 21 s, 5 times", True),
        ("RuntimeError: a", "RuntimeError: b", False),
    ],
)
def test_failures_are_alike_whatever_numbers_and_paths_they_name(
    small: Experiment, tmp_path: Path, one: str, two: str, are_alike: bool
) -> None:
    proposal = study_of(small, tmp_path / "run", 1)[0].ask()
    assert proposal is not None
    kinds = {kind_of_failure(dataclasses.replace(lost(small, proposal, "failed"), reason=why)) for why in (one, two)}
    assert (len(kinds) == 1) == are_alike
    out_of_memory = lost(small, proposal, "oom")
    assert kind_of_failure(out_of_memory) == kind_of_failure(dataclasses.replace(out_of_memory, reason="2 GiB"))


def searcher_of(experiment: Experiment, path: Path) -> tuple[RaceSearcher, queue.Queue[Any], RunFolder]:
    study, run = study_of(experiment, path, 8)
    events = queue.Queue[Any]()
    race = Race(study)
    return RaceSearcher(race, experiment, run, run.append, events), events, run


@pytest.mark.usefixtures("fast_disk")
def test_a_search_whose_first_trials_run_out_of_memory_ends_and_a_resumed_one_where_all_do_again(
    tmp_path: Path,
) -> None:
    experiment = with_sampler("random")
    for attempt in range(2):
        searcher, events, run = searcher_of(experiment, tmp_path / "run")
        for number in range(3):
            trial_id = f"{attempt}-{number}"
            searcher.suggest(trial_id)
            reason = f"CUDA out of memory. Tried to allocate {number + 1}.00 GiB"
            searcher.on_trial_complete(trial_id, {"status": "oom", "epoch": 0, "reason": reason})
        assert searcher.suggest("one more") is None, "it would go first in the resumed one, as one in flight"
        errors = [event for event in list(events.queue) if isinstance(event, SearchFailedError)]
        assert [str(error) for error in errors] == [
            "the first 3 trials all failed: CUDA out of memory. Tried to allocate 3.00 GiB"
        ]
        assert len(run.results()) == 3
        assert len(run.ended()) == 3 * (attempt + 1)


@pytest.mark.usefixtures("fast_disk")
def test_a_trial_that_waits_for_gpus_that_are_gone_begins_again_on_those_that_are_left(tmp_path: Path) -> None:
    experiment, gpus, events = with_sampler("random"), [4], queue.Queue[Any]()
    study, run = study_of(experiment, tmp_path / "run", 1)
    searcher = RaceSearcher(
        Race(study), experiment, run, run.append, events, gpus_per_trial=1,
        spread=Spread(num_gpus=lambda: gpus[0], gpus_per_trial=1, batch_size=64),
    )  # fmt: skip
    first = searcher.suggest("more")
    assert (first["number"], first["gpus"]) == (0, 4), "there is no other trial"
    assert not searcher.waits_in_vain("more")
    gpus[0] = 2  # a node died
    assert searcher.waits_in_vain("more")
    searcher.on_trial_complete("more")  # as Tune says of one that it stops before it had a worker
    again = searcher.suggest("again")
    assert (again["number"], again["gpus"]) == (0, 2)
    assert not searcher.waits_in_vain("again")
    assert not run.results()


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("Traceback\n  File x\nOSError: Truncated\n\n", "OSError: Truncated"),
        ("Traceback\n  File x\nValueError: one\n  two\n", "ValueError: one"),
        ("\n", "no reason was given"),
    ],
)
def test_a_failed_trial_has_a_reason(tmp_path: Path, log: str, reason: str) -> None:
    searcher, _, run = searcher_of(with_sampler("random"), tmp_path / "run")
    searcher.suggest("one")
    run.error_path(0).parent.mkdir()
    run.error_path(0).write_text(log)
    searcher.on_trial_complete("one", error=True)
    searcher.suggest("two")
    searcher.on_trial_complete("two", {"status": "oom", "epoch": 0, "reason": ""})
    assert [result.reason for result in run.results()] == [reason, "no reason was given"]
