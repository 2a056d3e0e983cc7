"""Trainings on several workers that are ended, or lose what they are heard by: on real Ray, with logical GPUs."""

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import ray_constants, state
from ray.cluster_utils import Cluster

from conftest import Watch, own_processes, small_digits
from cvt_nas import search
from cvt_nas.arch import ArchConfig
from cvt_nas.config import parse_experiment
from cvt_nas.distributed import WorkerLostError, connect_ray, fit_on_workers, start_local_ray
from cvt_nas.engine import TrainingSetup
from cvt_nas.race.events import EpochDone, TrialStarted

ON_TWO: dict[str, Any] = {"number": 0, "seed": 0, "num_workers": 2, "cpus_per_worker": 1, "use_gpus": True}
LONG = parse_experiment(small_digits(**{"  epochs:": "  epochs: 1000"}), "long.yaml")


@pytest.fixture(scope="class")
def two_gpus() -> Iterator[None]:
    start_local_ray(num_cpus=3, num_gpus=2)
    yield
    ray.shutdown()


def train(path: Path) -> tuple[Generator[dict[str, Any], None, None], Path]:
    """A training of a thousand epochs on two workers, which has begun, and its checkpoint."""
    setup = TrainingSetup.of(LONG, run_path=path, data=None)
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
        again, _ = train(tmp_path)  # at once, on the same checkpoint
        again.close()

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
        launcher.train.remote(LONG.space.largest, TrainingSetup.of(LONG, run_path=tmp_path, data=None), ON_TWO)
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
