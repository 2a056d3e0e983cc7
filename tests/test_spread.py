"""Trials that are left at the end of a search, on the GPUs that would stand idle."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Watch, own_processes, small_digits
from cvt_nas import search
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.launch.cluster import local_ray
from cvt_nas.propose import spread
from cvt_nas.propose.spread import Spread
from cvt_nas.results.events import EpochDone, TrialStarted


@pytest.mark.parametrize(
    ("others", "num_waiting", "expected"),
    [
        ([1] * 7, 0, 1),  # every GPU is busy
        ([1] * 3, 0, 2),  # its share of eight is two, though five are idle
        ([1] * 3, 1, 1),
        ([2, 2], 0, 2),
        ([2], 0, 4),
        ([], 0, 8),
        ([], 1, 4),
        ([], 2, 2),
        ([6], 0, 2),  # what is idle, where the other has more than its share
        ([0.5] * 6, 0, 1),  # each may be on a GPU of its own
    ],
)
def test_a_trial_gets_its_fair_share_of_idle_gpus(others: list[float], num_waiting: int, expected: int) -> None:
    of_eight = Spread(num_gpus=lambda: 8, gpus_per_trial=1, batch_size=256)
    assert of_eight.gpus_for(others, num_waiting) == expected


@pytest.mark.parametrize(("batch_size", "expected"), [(256, 6), (96, 6), (80, 5), (64, 4), (48, 3), (31, 1), (8, 1)])
def test_gpus_share_a_batch_equally_and_each_has_enough_for_batch_norm(batch_size: int, expected: int) -> None:
    batch_size = 96 * 6 if batch_size == 256 else batch_size
    assert Spread(num_gpus=lambda: 6, gpus_per_trial=1, batch_size=batch_size).gpus_for([]) == expected


def test_a_trial_keeps_what_it_has_by_default_and_begins_again_only_where_that_saves_time() -> None:
    halves = Spread(num_gpus=lambda: 2, gpus_per_trial=0.5, batch_size=64)
    assert halves.gpus_for([0.5]) == 0.5
    assert halves.gpus_for([]) == 2
    assert halves.is_worth_it(0.5, 2, seconds_left=100)
    assert not halves.is_worth_it(1, 2, seconds_left=100)
    assert not halves.is_worth_it(2, 2, seconds_left=1e6)


def experiment_of(trials: int, epochs: int, **settings: Any) -> Experiment:
    values = {"trials": trials, "sampler": "random", "scheduler": "none", "seed": 0, "spread_last": True} | settings
    section = ", ".join(f"{name}: {str(value).lower()}" for name, value in values.items())
    lines = {"  epochs:": f"  epochs: {epochs}", "  warmup_epochs:": "  warmup_epochs: 0"}
    return parse_experiment(small_digits(**lines, **{"search:": f"search: {{{section}}}"}), "spread.yaml")


@pytest.fixture(scope="module")
def four_gpus() -> Iterator[None]:
    with local_ray(num_cpus=4, num_gpus=4):  # logical ones
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("four_gpus")
def test_what_is_left_at_the_end_trains_on_all_gpus_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "_WORTH_SECONDS", 0.0)
    seen: list[Any] = []
    run = search(experiment_of(5, epochs=20), out=tmp_path / "run", gpus=4, device="cpu", progress=Watch(seen.append))
    results = {result.number: result for result in run.results()}
    assert {result.status for result in results.values()} == {"complete"}
    assert results[4].device == "4 gpus"
    assert {results[number].device for number in range(4)} <= {*(f"gpu {index}" for index in range(4)), "2 gpus"}
    epochs = [event.epoch for event in seen if isinstance(event, EpochDone) and event.number == 4]
    assert epochs == list(range(1, 21))
    assert len([event for event in seen if isinstance(event, TrialStarted) and event.number == 4]) >= 2


@pytest.mark.slow
@pytest.mark.usefixtures("four_gpus")
def test_a_trial_on_several_gpus_that_loses_one_begins_again_on_its_checkpoint(tmp_path: Path) -> None:
    killed, epochs = list[int](), list[int]()

    def kill(event: Any) -> None:
        if isinstance(event, EpochDone):
            epochs.append(event.epoch)
            if event.epoch == 2 and not killed:
                killed.append(own_processes("ray::_Rank")[0])
                os.kill(killed[0], signal.SIGKILL)

    run = search(experiment_of(1, epochs=20), out=tmp_path / "run", gpus=4, device="cpu", progress=Watch(kill))
    (result,) = run.results()
    assert (result.status, result.epochs, result.device) == ("complete", 20, "4 gpus")
    assert killed
    assert epochs == list(range(1, 21))
