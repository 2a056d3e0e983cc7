"""Trainings on several ranks that are ended, killed or fail: on real Ray, with logical GPUs."""

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
import torch
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from conftest import Watch, own_processes, small_digits
from cvt_nas import search
from cvt_nas.config import parse_experiment
from cvt_nas.engine import TrainingReport, TrainingSetup
from cvt_nas.errors import DataError, TrainingEndedError
from cvt_nas.launch.cluster import connect_ray, start_local_ray
from cvt_nas.launch.devices import WorkerLostError, WorkersFailedError, ending_in, training_reports
from cvt_nas.launch.private import on_loopback
from cvt_nas.launch.ranks import reports_of_ranks
from cvt_nas.results.events import EpochDone, TrialPaused, TrialStarted
from cvt_nas.run import RunFolder

ON_TWO: dict[str, Any] = {"number": 0, "seed": 0, "num_devices": 2, "cpus_per_device": 1, "use_gpus": True}
LONG = parse_experiment(small_digits(**{"  epochs:": "  epochs: 1000"}), "long.yaml")


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    start_local_ray(num_cpus=3, num_gpus=2)
    yield
    ray.shutdown()


def train(path: Path) -> tuple[Generator[TrainingReport, None, None], Path]:
    """A training of a thousand epochs on two ranks, which has begun, and its checkpoint."""
    setup = TrainingSetup.of(LONG, run=RunFolder(path), data=None)
    path.mkdir(exist_ok=True)
    reports = training_reports(LONG.space.largest, setup, **ON_TWO)
    assert next(reports)["status"] == "running"
    return reports, setup.run.checkpoint_path(0)


def soon(condition: Callable[[], Any], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


def gpus_are_free() -> bool:
    return ray.available_resources().get("GPU") == 2


def ranks() -> list[int]:
    return own_processes("ray::_Rank")


@pytest.mark.usefixtures("two_gpus")
class TestOnTwoGpus:
    def test_ranks_end_at_once_where_nobody_reads_their_reports_any_more(self, tmp_path: Path) -> None:
        reports, checkpoint = train(tmp_path)
        assert len(ranks()) == 2
        written = checkpoint.stat().st_mtime_ns
        reports.close()
        assert soon(lambda: not ranks(), 5)
        assert soon(gpus_are_free, 5)
        assert checkpoint.stat().st_mtime_ns == written

    @pytest.mark.slow
    def test_a_trial_whose_process_is_killed_takes_its_ranks_along_and_goes_on_from_its_checkpoint(
        self, tmp_path: Path
    ) -> None:
        text = small_digits(**{"search:": "search: {trials: 1, sampler: random, scheduler: none, seed: 0}"})
        started, heard, killed = Counter[int](), list[int](), list[int]()

        def follow(event: Any) -> None:
            if isinstance(event, TrialStarted):
                started[event.number] += 1
            if isinstance(event, EpochDone):
                heard.append(event.epoch)
                assert len(ranks()) == 2
                if len(heard) == 1:
                    killed.extend(ranks())
                    (trial,) = own_processes("ray::ImplicitFunc")
                    os.kill(trial, signal.SIGKILL)

        run = search(
            parse_experiment(text, "small.yaml"), out=tmp_path / "run", gpus=2, gpus_per_trial=2, device="cpu",
            progress=Watch(follow),
        )  # fmt: skip
        assert [(result.status, result.reason) for result in run.results()] == [("complete", None)]
        assert started == {0: 2}
        assert heard == [1, 2, 3]
        assert not run.error_path(0).exists()
        assert not any(Path(f"/proc/{pid}").exists() for pid in killed)
        assert soon(gpus_are_free)

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
                at_once.append(len(ranks()))
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


def heard(reports: Callable[..., Iterator[Any]], path: Path, **changes: Any) -> list[dict[str, Any]]:
    """What is heard of `reports`, which each rank runs instead of a training."""
    setup = TrainingSetup.of(LONG, run=RunFolder(path), data=None)
    options: dict[str, Any] = {"num_ranks": 1, "cpus_per_rank": 1, "use_gpus": False, **changes}
    return list(reports_of_ranks(reports, setup=setup, **options))


def groups(condition: str) -> list[dict[str, Any]]:
    return [table for table in placement_group_table().values() if table["state"] == condition]


@pytest.mark.usefixtures("two_gpus")
class TestReports:
    """Of ranks that have no training to do."""

    def test_what_a_user_can_fix_is_raised_as_the_rank_raised_it_and_at_once(self, tmp_path: Path) -> None:
        def reports(**options: Any) -> Iterator[dict[str, Any]]:
            with (tmp_path / "attempts").open("a") as file:
                file.write("1")
            raise DataError("train/7/3.png: damaged")
            yield {}

        with pytest.raises(DataError, match="^train/7/3.png: damaged$"):
            heard(reports, tmp_path)
        assert (tmp_path / "attempts").read_text() == "1"

    @pytest.mark.slow
    def test_ranks_are_started_again_three_times_and_then_their_error_is_one_line_for_the_user(
        self, tmp_path: Path
    ) -> None:
        def reports(num_known: int, **options: Any) -> Iterator[dict[str, Any]]:
            with (tmp_path / "attempts").open("a") as file:
                file.write(str(num_known))
            yield {"epoch": num_known + 1, "status": "running"}
            raise ValueError("boom\nand more")

        with pytest.raises(TrainingEndedError) as raised, ending_in(TrainingEndedError, "the training ended"):
            heard(reports, tmp_path, num_known=0)
        assert str(raised.value) == "the training ended: ValueError: boom"
        assert "and more" in str(raised.value.__cause__)
        assert (tmp_path / "attempts").read_text() == "0123"

    def test_a_rank_that_raises_since_another_one_died_is_a_rank_that_was_lost(self, tmp_path: Path) -> None:
        def reports(**options: Any) -> Iterator[dict[str, Any]]:
            if torch.distributed.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            torch.distributed.barrier()
            yield {}

        def fails(**options: Any) -> Iterator[dict[str, Any]]:
            raise ValueError("boom")
            yield {}

        with pytest.raises(WorkerLostError):
            heard(reports, tmp_path, num_ranks=2, may_move=True)
        with pytest.raises(WorkersFailedError, match="^ValueError: boom$"):
            heard(fails, tmp_path, may_move=True)

    def test_ctrl_c_while_devices_are_waited_for_leaves_nothing_that_waits(self, tmp_path: Path) -> None:
        taken = placement_group([{"GPU": 1}])
        ray.get(taken.ready())
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.alarm(3)
        try:
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path)
            assert not groups("PENDING")
        finally:
            signal.signal(signal.SIGALRM, before)
            remove_placement_group(taken)


@pytest.mark.slow
def test_a_training_goes_on_where_nodes_are_lost_that_it_is_not_on(tmp_path: Path) -> None:
    ray.shutdown()  # the one of the tests above
    with on_loopback():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            others = [cluster.add_node(num_cpus=2, num_gpus=number) for number in (2, 0, 0)]
            cluster.wait_for_nodes()
            connect_ray(address=cluster.address)
            with contextlib.closing(train(tmp_path)[0]) as reports:
                for node in others[1:]:
                    cluster.remove_node(node, allow_graceful=False)
                assert [next(reports)["status"] for _ in range(3)] == ["running"] * 3
        finally:
            ray.shutdown()
            cluster.shutdown()
