"""Trainings on several workers that are ended, or lose what they are heard by: on real Ray, with logical GPUs."""

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray._private import ray_constants, state
from ray.cluster_utils import Cluster
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.train import TrainingFailedError
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from conftest import Watch, own_processes, small_digits
from cvt_nas import search
from cvt_nas.arch import ArchConfig
from cvt_nas.config import parse_experiment
from cvt_nas.engine import TrainingSetup
from cvt_nas.errors import DataError, TrainingEndedError
from cvt_nas.launch.ranks import (
    WorkerLostError,
    _reports_of_workers,
    _run_on_worker,
    connect_ray,
    ending_in,
    fit_on_workers,
    start_local_ray,
)
from cvt_nas.results.events import EpochDone, TrialPaused, TrialStarted
from cvt_nas.run import RunFolder

ON_TWO: dict[str, Any] = {"number": 0, "seed": 0, "num_workers": 2, "cpus_per_worker": 1, "use_gpus": True}
LONG = parse_experiment(small_digits(**{"  epochs:": "  epochs: 1000"}), "long.yaml")


@pytest.fixture(scope="class")
def two_gpus() -> Iterator[None]:
    start_local_ray(num_cpus=3, num_gpus=2)
    yield
    ray.shutdown()


def train(path: Path) -> tuple[Generator[dict[str, Any], None, None], Path]:
    """A training of a thousand epochs on two workers, which has begun, and its checkpoint."""
    setup = TrainingSetup.of(LONG, run=RunFolder(path), data=None)
    path.mkdir(exist_ok=True)
    reports = fit_on_workers(LONG.space.largest, setup, **ON_TWO)
    assert next(reports)["status"] == "running"
    return reports, setup.run.checkpoint_path(0)


def soon(condition: Callable[[], Any], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


def gpus_are_free() -> bool:
    return ray.available_resources().get("GPU") == 2


@pytest.mark.usefixtures("two_gpus")
class TestOnTwoGpus:
    def test_workers_end_at_once_where_nobody_reads_their_reports_any_more(self, tmp_path: Path) -> None:
        reports, checkpoint = train(tmp_path)
        assert len(own_processes("TrainWorker")) == 2
        reports.close()
        written = checkpoint.stat().st_mtime_ns
        assert soon(lambda: not own_processes("TrainWorker"), 5)
        assert soon(gpus_are_free, 5)
        assert soon(lambda: not own_processes("Janitor"))
        assert checkpoint.stat().st_mtime_ns == written

    def test_a_lost_queue_is_a_lost_worker_and_writes_nothing_more(self, tmp_path: Path) -> None:
        reports, checkpoint = train(tmp_path)
        (queue,) = own_processes("_QueueActor")
        os.kill(queue, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            list(reports)
        written = checkpoint.stat().st_mtime_ns
        assert soon(lambda: not own_processes("TrainWorker"), 5)
        assert soon(gpus_are_free)
        assert checkpoint.stat().st_mtime_ns == written

    @pytest.mark.slow
    def test_a_launcher_that_is_killed_takes_its_workers_along_and_frees_their_gpus(self, tmp_path: Path) -> None:
        class Launcher:
            """What a trial is: a process that launches workers, and hears them."""

            def __init__(self) -> None:
                self.epoch = 0

            def train(self, arch: ArchConfig, setup: TrainingSetup, options: dict[str, Any]) -> None:
                for report in fit_on_workers(arch, setup, **options):
                    self.epoch = report["epoch"]

            def told(self) -> tuple[int, int]:
                return os.getpid(), self.epoch

        launcher: Any = ray.remote(Launcher).options(num_cpus=0, max_concurrency=2).remote()
        launcher.train.remote(LONG.space.largest, TrainingSetup.of(LONG, run=RunFolder(tmp_path), data=None), ON_TWO)
        pid = ray.get(launcher.told.remote())[0]
        try:
            assert soon(lambda: ray.get(launcher.told.remote())[1] > 0, 300)
        finally:
            os.kill(pid, signal.SIGKILL)
        assert soon(lambda: not own_processes("TrainWorker"))
        assert soon(gpus_are_free), "Ray would keep them for a controller that is dead"

    @pytest.mark.slow
    def test_a_trial_that_loses_its_queue_is_tried_again_on_its_checkpoint(self, tmp_path: Path) -> None:
        text = small_digits(**{"search:": "search: {trials: 1, sampler: random, scheduler: none, seed: 0}"})
        started, heard = Counter[int](), list[int]()

        def follow(event: Any) -> None:
            if isinstance(event, TrialStarted):
                started[event.number] += 1
            if isinstance(event, EpochDone):
                heard.append(event.epoch)
                if len(heard) == 1:
                    for pid in own_processes("_QueueActor"):
                        os.kill(pid, signal.SIGKILL)

        run = search(
            parse_experiment(text, "small.yaml"), out=tmp_path / "run", gpus=2, gpus_per_trial=2, device="cpu",
            progress=Watch(follow),
        )  # fmt: skip
        assert [(result.status, result.reason) for result in run.results()] == [("complete", None)]
        assert started == {0: 2}
        assert heard == [1, 2, 3]
        assert not run.error_path(0).exists()

    @pytest.mark.slow
    def test_a_trial_that_is_paused_gives_its_workers_up_at_once_and_the_next_ones_have_their_gpus(
        self, tmp_path: Path
    ) -> None:
        settings = "trials: 4, sampler: random, grace_period: 1, reduction_factor: 4, mode: promote, seed: 0"
        experiment = parse_experiment(small_digits(**{"search:": f"search: {{{settings}}}"}), "small.yaml")
        heard, paused, at_once = list[tuple[int, int]](), dict[int, float](), list[int]()
        run = RunFolder(tmp_path / "run")

        def follow(event: Any) -> None:
            if isinstance(event, EpochDone):
                heard.append((event.number, event.epoch))
                at_once.append(len(own_processes("TrainWorker")))
                for number, written in paused.items():
                    if number != event.number:
                        assert run.checkpoint_path(number).stat().st_mtime_ns == written
            if isinstance(event, TrialPaused):
                checkpoint = run.checkpoint_path(event.number)
                assert torch.load(checkpoint, weights_only=True)["epoch"] == 1
                paused[event.number] = checkpoint.stat().st_mtime_ns

        search(experiment, out=run.path, gpus=2, gpus_per_trial=2, device="cpu", progress=Watch(follow))
        whole = [result.number for result in run.results() if result.status == "complete"]
        assert len(whole) == 1
        assert sorted(heard) == sorted([(number, 1) for number in range(4)] + [(whole[0], 2), (whole[0], 3)])
        assert max(at_once) <= 2, "no trial that was paused trains on beside the next one"
        assert set(range(4)) - set(whole) <= set(paused)


def heard(train: Callable[[dict[str, Any]], None], path: Path, **changes: Any) -> list[dict[str, Any]]:
    """The reports of `train`, which each worker runs instead of a training."""
    setup = TrainingSetup.of(LONG, run=RunFolder(path), data=None)
    options = {"num_workers": 1, "cpus_per_worker": 1, "use_gpus": False, "max_failures": 1, **changes}
    return list(_reports_of_workers(train, {"setup": setup, "seed": 0}, name="train-0", setup=setup, **options))


def two_epochs() -> Callable[..., Iterator[dict[str, Any]]]:
    """Reports of a worker, as a function that travels to it."""

    def reports(**options: Any) -> Iterator[dict[str, Any]]:
        for epoch in (1, 2):
            options["before_writing"]()
            yield {"epoch": epoch, "status": "running"}

    return reports


def unreachable(method: str, times: int) -> Callable[[Any], Any]:
    """Makes the queue of a worker fail as where a network is away for a while: it is alive, and cannot be reached."""

    def wrap(reports: Any) -> Any:
        original, left = getattr(reports, method), [times]

        def fail(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] >= 0:
                raise ActorUnavailableError("the queue cannot be reached", None)
            return original(*arguments)

        setattr(reports, method, fail)
        return reports

    return wrap


@pytest.mark.usefixtures("two_gpus")
class TestReports:
    """Of workers that have no training to do."""

    @pytest.mark.slow
    def test_a_report_whose_queue_cannot_be_reached_at_first_arrives(self, tmp_path: Path) -> None:
        reports_of, wrap = two_epochs(), unreachable("put", 1)
        found = heard(
            lambda config: _run_on_worker({**config, "reports": wrap(config["reports"])}, reports_of), tmp_path
        )
        assert [report["epoch"] for report in found] == [1, 2]

    @pytest.mark.slow
    def test_workers_that_cannot_tell_whether_they_are_heard_are_started_again(self, tmp_path: Path) -> None:
        reports_of, wrap = two_epochs(), unreachable("empty", 99)

        def train(config: dict[str, Any]) -> None:
            from cvt_nas.launch import ranks as distributed

            begun = tmp_path / "begun"
            if not begun.exists():
                begun.touch()
                distributed._SECONDS_TO_END = 0.1
                config = {**config, "reports": wrap(config["reports"])}
            distributed._run_on_worker(config, reports_of)

        assert [report["epoch"] for report in heard(train, tmp_path)] == [1, 2]

    def test_workers_that_end_before_they_are_done_are_lost(self, tmp_path: Path) -> None:
        def train(config: dict[str, Any]) -> None:
            config["reports"].put({"epoch": 1, "status": "running"})

        with pytest.raises(WorkerLostError, match="before their last report"):
            heard(train, tmp_path)

    def test_what_a_user_can_fix_is_raised_as_the_worker_raised_it_and_at_once(self, tmp_path: Path) -> None:
        def reports(**options: Any) -> Iterator[dict[str, Any]]:
            with (tmp_path / "attempts").open("a") as file:
                file.write("1")
            raise DataError("train/7/3.png: damaged")
            yield {}

        with pytest.raises(DataError, match="^train/7/3.png: damaged$"):
            heard(lambda config: _run_on_worker(config, reports), tmp_path)
        assert (tmp_path / "attempts").read_text() == "1"

    def test_an_error_of_the_code_is_one_line_for_the_user(self, tmp_path: Path) -> None:
        def reports(**options: Any) -> Iterator[dict[str, Any]]:
            raise ValueError("boom\nand more")
            yield {}

        with pytest.raises(TrainingEndedError) as raised, ending_in(TrainingEndedError, "the training ended"):
            heard(lambda config: _run_on_worker(config, reports), tmp_path, max_failures=0)
        assert str(raised.value) == "the training ended: ValueError: boom"

    @pytest.mark.slow
    def test_a_training_that_still_waits_for_devices_asks_for_none_once_it_is_ended(self, tmp_path: Path) -> None:
        taken = placement_group([{"CPU": 3}])
        ray.get(taken.ready())
        launcher = threading.Thread(target=launch, args=(tmp_path,), daemon=True)
        launcher.start()
        try:
            assert soon(lambda: len(groups("PENDING")) == 1, 120), "it waits"
            for name in ("_QueueActor", "TrainController"):
                (pid,) = own_processes(name)
                os.kill(pid, signal.SIGKILL)
            assert soon(lambda: not groups("PENDING"), 60)
        finally:
            launcher.join(60)
            remove_placement_group(taken)
        assert soon(lambda: not own_processes("Janitor"))


def launch(path: Path) -> None:
    with contextlib.suppress(WorkerLostError, TrainingFailedError, RayActorError):
        heard(lambda config: None, path)


def groups(condition: str) -> list[dict[str, Any]]:
    return [table for table in placement_group_table().values() if table["state"] == condition]


@pytest.mark.slow
def test_reports_are_heard_on_the_launcher_s_own_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # keeps the cluster's nodes on loopback, as `start_local_ray` does for a Ray of its own
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    monkeypatch.setenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        others = [cluster.add_node(num_cpus=2, num_gpus=number) for number in (2, 0, 0)]
        cluster.wait_for_nodes()
        connect_ray(address=cluster.address)
        with contextlib.closing(train(tmp_path)[0]) as reports:
            here = ray.get_runtime_context().get_node_id()
            queues = [
                actor for actor in state.actors().values()
                if actor["ActorClassName"].endswith("_QueueActor") and actor["State"] == "ALIVE"
            ]  # fmt: skip
            assert [actor["Address"]["NodeID"] for actor in queues] == [here]
            for node in others[1:]:  # where neither the launcher nor its workers are
                cluster.remove_node(node, allow_graceful=False)
            assert [next(reports)["status"] for _ in range(3)] == ["running"] * 3
    finally:
        ray.shutdown()
        cluster.shutdown()
