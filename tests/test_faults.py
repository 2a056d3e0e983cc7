"""Searches that are broken on purpose, on real Ray: what ends, what goes on, and that nothing is lost or done twice."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import ray_constants
from ray.cluster_utils import Cluster

import fault_drill
from conftest import Watch, own_processes, small_digits
from cvt_nas import search
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.distributed import start_local_ray
from cvt_nas.errors import ResourceError, RunFolderError, SearchFailedError
from cvt_nas.race.disk import bytes_needed
from cvt_nas.race.events import EpochDone, TrialStarted
from cvt_nas.results import RunFolder

IN_FULL = {"trials": 4, "sampler": "random", "scheduler": "none", "seed": 0}


def experiment_with(**search_settings: Any) -> Experiment:
    line = "search: {" + ", ".join(f"{name}: {value}" for name, value in search_settings.items()) + "}"
    return parse_experiment(small_digits(**{"search:": line}), "faulty.yaml")


@pytest.fixture(scope="class")
def two_cpus() -> Iterator[None]:
    start_local_ray(num_cpus=2, num_gpus=0)
    yield
    ray.shutdown()


@pytest.fixture(scope="class")
def undisturbed(two_cpus: None, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    run = search(experiment_with(**IN_FULL), out=tmp_path_factory.mktemp("undisturbed") / "run", cpus=2)
    return by_number(run)


def by_number(run: RunFolder) -> list[dict[str, Any]]:
    return sorted(fault_drill.record_of(run.path), key=lambda tree: tree["number"])


def at_epoch(count: int, action: Any) -> Watch:
    """Does `action` once, when so many epochs were reported."""
    seen: list[Any] = []

    def react(event: Any) -> None:
        if isinstance(event, EpochDone):
            seen.append(event)
            if len(seen) == count:
                action()

    return Watch(react)


@pytest.mark.usefixtures("two_cpus")
class TestOnTwoCpus:
    @pytest.mark.parametrize(
        "number", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGSTOP], ids=["killed", "hung"]
    )
    def test_a_trial_that_loses_its_worker_goes_on_from_its_checkpoint(
        self, undisturbed: list[dict[str, Any]], tmp_path: Path, number: signal.Signals
    ) -> None:
        experiment = experiment_with(**IN_FULL, trial_timeout=20)
        started = Counter[int]()

        def follow(event: Any) -> None:
            if isinstance(event, TrialStarted):
                started[event.number] += 1
            at_second(event)

        at_second = at_epoch(2, lambda: os.kill(own_processes("ray::ImplicitFunc")[0], number)).__enter__()
        run = search(experiment, out=tmp_path / "run", cpus=2, progress=Watch(follow))
        assert by_number(run) == undisturbed
        assert sorted(started.values()) == [1, 1, 1, 2]

    def test_a_trial_that_loses_its_worker_too_often_ends_as_failed_and_the_others_go_on(self, tmp_path: Path) -> None:
        def follow(event: Any) -> None:
            if isinstance(event, EpochDone) and event.number == 0:
                for pid in own_processes("ray::ImplicitFunc"):
                    os.kill(pid, signal.SIGKILL)

        run = search(
            experiment_with(**IN_FULL, max_failures=1), out=tmp_path / "run", cpus=1, trials=2, progress=Watch(follow)
        )
        first, second = run.results()
        assert (first.status, first.reason) == ("failed", "the worker process died, 2 times")
        assert 1 <= first.epochs < 3
        assert second.status == "complete"

    def test_a_search_whose_first_trials_all_fail_alike_ends(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "checkpoints").write_text("a file where the checkpoints' folder should be")
        with pytest.raises(SearchFailedError, match=r"the first 3 trials all failed: FileExistsError"):
            search(experiment_with(**(IN_FULL | {"trials": 20})), out=tmp_path / "run", cpus=2)
        assert 3 <= len(RunFolder.open(tmp_path / "run").results()) < 20

    @pytest.mark.slow
    def test_a_time_budget_counts_what_was_spent_before(self, tmp_path: Path) -> None:
        experiment, run = experiment_with(**(IN_FULL | {"trials": 500})), RunFolder(tmp_path / "run")
        stop = threading.Event()
        watch = at_epoch(1, stop.set)
        search(experiment, out=run.path, cpus=2, time_budget=30, stop=stop, progress=watch)
        spent = run.seconds_spent
        assert 1 < spent < 30
        started = time.monotonic()
        search(experiment, out=run.path, cpus=2, resume=True)
        assert time.monotonic() - started < 30 - spent + 25  # a trial in flight has ten seconds to stop
        assert run.seconds_spent >= 30
        with pytest.raises(RunFolderError, match=r"its time budget of 30 s is spent"):
            search(experiment, out=run.path, cpus=2, resume=True)

    def test_two_searches_in_one_folder_are_one_too_many(self, tmp_path: Path) -> None:
        experiment, errors = experiment_with(**IN_FULL), list[Exception]()

        def second() -> None:
            with pytest.raises(RunFolderError, match=rf"process {os.getpid()} on \S+ is at work on it") as caught:
                search(experiment, out=tmp_path / "run", cpus=2, resume=True)
            errors.append(caught.value)

        search(experiment, out=tmp_path / "run", cpus=2, trials=1, progress=at_epoch(1, second))
        assert len(errors) == 1


def test_a_search_that_does_not_fit_on_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiment_with(trials=16, mode="promote", reduction_factor=4)
    greatest, least = experiment.space.cost_range[1].params, experiment.space.cost_range[0].params
    middle = (greatest + least) / 2
    # four trained in full, twelve paused with weights, average and AdamW's two; two checkpoints of each of two
    assert bytes_needed(experiment, num_trials=16, num_slots=2) == round(
        4 * (4 * middle + 12 * 4 * middle + 2 * 2 * 4 * greatest)
    )
    monkeypatch.setattr("cvt_nas.race.disk._BYTES", 2**50)
    with pytest.raises(
        ResourceError, match=r"needs about \S+ GiB for weights and checkpoints, and \S+ has \S+ GiB left"
    ):
        search(experiment, out=tmp_path / "run", cpus=1)
    assert not (tmp_path / "run").exists()


def test_a_short_drill_loses_nothing(tmp_path: Path) -> None:
    kinds = ["driver", "sigterm", "torn record", "damaged", "worker"]
    outcomes = list(fault_drill.drill(tmp_path, kinds=kinds, num_faults=5, seed=1, num_trials=8))
    assert sum(outcome.lost + outcome.twice + outcome.wrong for outcome in outcomes) == 0
    faults = [fault for outcome in outcomes for fault in outcome.faults]
    assert sorted(fault.kind for fault in faults) == sorted(kinds)
    assert sum(outcome.epochs_again for outcome in outcomes) <= 5
    assert all(fault.is_over == (fault.kind != "worker") for fault in faults)


def test_work_moves_from_nodes_that_are_lost_to_one_that_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # keeps the cluster's nodes on loopback, as `start_local_ray` does for a Ray of its own
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    monkeypatch.setenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
    experiment = experiment_with(**(IN_FULL | {"trials": 8}))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})  # without a GPU it has no trials
    try:
        nodes = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        started = Counter[int]()

        def swap() -> None:
            for node in nodes:
                cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(num_cpus=1, num_gpus=1)

        swap_once = at_epoch(5, swap).__enter__()

        def follow(event: Any) -> None:
            if isinstance(event, TrialStarted):
                started[event.number] += 1
            swap_once(event)

        run = search(experiment, out=tmp_path / "run", address=cluster.address, device="cpu", progress=Watch(follow))
    finally:
        cluster.shutdown()
    assert run.manifest["resources"]["num_slots"] == 2
    assert [result.number for result in run.results()] == list(range(8))
    assert {result.status for result in run.results()} == {"complete"}
    assert set(started.values()) == {1, 2}, "what the lost nodes had was tried again"
    alone = search(experiment, out=tmp_path / "alone", cpus=2)
    assert by_number(alone) == by_number(run)
