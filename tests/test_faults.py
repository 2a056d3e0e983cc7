"""Searches that are broken on purpose, on real Ray: what ends, what goes on, and that nothing is lost or done twice."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
from PIL import Image
from ray._private import ray_constants
from ray.cluster_utils import Cluster

import fault_drill
from conftest import Watch, own_processes, small_digits
from cvt_nas import search
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.engine import TrainingSetup
from cvt_nas.errors import ResourceError, RunFolderError, SearchFailedError
from cvt_nas.launch.cluster import start_local_ray, temporary_folder_of_ray
from cvt_nas.plan.disk import bytes_needed, check_disk
from cvt_nas.results.events import EpochDone, TrialStarted
from cvt_nas.run import RunFolder

IN_FULL = {"trials": 4, "sampler": "random", "scheduler": "none", "seed": 0}


def experiment_with(epochs: int = 3, **search_settings: Any) -> Experiment:
    line = "search: {" + ", ".join(f"{name}: {value}" for name, value in search_settings.items()) + "}"
    return parse_experiment(small_digits(**{"search:": line, "  epochs:": f"  epochs: {epochs}"}), "faulty.yaml")


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
    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
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

    @pytest.mark.slow  # five workers are started; test_tune.py has the same of made-up reports
    def test_a_search_whose_first_trials_all_fail_alike_ends_and_goes_on_with_them_once_the_cause_is_gone(
        self, tmp_path: Path
    ) -> None:
        experiment, blocked = experiment_with(epochs=2, **IN_FULL), tmp_path / "run" / "checkpoints"
        blocked.parent.mkdir()
        blocked.write_text("a file where the checkpoints' folder should be")
        run = RunFolder(tmp_path / "run")
        with pytest.raises(SearchFailedError, match=r"the first 3 trials all failed: FileExistsError"):
            search(experiment, out=run.path, cpus=1)
        assert [result.status for result in run.ended()] == ["failed"] * 3
        failed = [result.arch_id for result in run.results()]
        blocked.unlink()
        search(experiment, out=run.path, cpus=1, resume=True)
        results = run.results()
        assert [result.status for result in results] == ["complete"] * 4
        assert [result.arch_id for result in results[:3]] == failed, "these first, in their order"
        assert [result.number for result in results] == [3, 4, 5, 6]
        assert results[0].arch_id == next(iter(experiment.anchor_archs().values())).id
        assert len({result.seed for result in run.ended()}) == 7
        assert run.test_accuracies().keys() == {member.arch_id for member in run.front().members}

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
        experiment, errors = experiment_with(epochs=2, **IN_FULL), list[Exception]()

        def second() -> None:
            with pytest.raises(RunFolderError, match=rf"process {os.getpid()} on \S+ is at work on it") as caught:
                search(experiment, out=tmp_path / "run", cpus=1, resume=True)
            errors.append(caught.value)

        search(experiment, out=tmp_path / "run", cpus=1, trials=1, progress=at_epoch(1, second))
        assert len(errors) == 1


class FullestMoment:
    """The most bytes that a run folder had at any moment, as far as a look every few milliseconds tells."""

    def __init__(self, path: Path) -> None:
        self._path, self._is_over, self.num_bytes = path, threading.Event(), 0
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "FullestMoment":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.02):
            sizes = []
            for part in ("models", "checkpoints", "supernet"):
                for path in (self._path / part).rglob("*"):
                    with contextlib.suppress(OSError):  # it was replaced meanwhile
                        sizes.append(path.stat().st_size)
            self.num_bytes = max(self.num_bytes, sum(sizes))


def test_what_a_race_with_paused_trials_takes_is_what_was_estimated(tmp_path: Path, two_cpus: None) -> None:
    # all networks have as many weights, so it does not matter which of them pass
    sizes = {"embed_dim:": "64", "depth:": "1", "mlp_ratio:": "2.0", "kernel_size:": "3"}
    lines = {f"      {name}": f"      {name} {value}" for name, value in sizes.items()}
    settings = "trials: 4, sampler: random, mode: promote, grace_period: 2, reduction_factor: 4, seed: 0"
    text = small_digits(**lines, **{"anchors:": "", "  cvt-like:": "", "search:": f"search: {{{settings}}}"})
    experiment = parse_experiment(text, "alike.yaml")
    with FullestMoment(tmp_path / "run") as most:
        search(experiment, out=tmp_path / "run", cpus=1)
    estimated = bytes_needed(experiment, num_trials=4, num_slots=1)
    # 25 of these 36 are there when the last trial has paused or ended
    weights = experiment.space.cost_range[1].params * 4
    assert estimated == (3 * 2 + 1 * 3) * 4 * weights
    assert 0.5 < most.num_bytes / estimated < 1.2, (most.num_bytes, estimated)


def test_paused_trials_and_averages_and_moments_are_counted() -> None:
    def needed(num_trials: int, training: str = "", **settings: Any) -> int:
        line = "search: {" + ", ".join(f"{name}: {value}" for name, value in settings.items()) + "}"
        text = small_digits(**{"search:": line, "  epochs:": f"  epochs: 3\n  {training}"})
        return bytes_needed(parse_experiment(text, "disk.yaml"), num_trials=num_trials, num_slots=0)

    def each(*args: Any, **settings: Any) -> float:
        """Bytes for each trial, in weights of an average network."""
        return needed(1000, *args, **settings) / 1000 / weights

    weights = needed(1000, scheduler="none") / 1000
    promoting = {"mode": "promote", "grace_period": 2, "reduction_factor": 4}
    assert each(mode="stop", grace_period=2, reduction_factor=4) == pytest.approx(1 / 4, rel=1e-3)
    assert each(**promoting) == pytest.approx(1 / 4 + 3 / 4 * 2 * 4, rel=1e-3)
    assert each("ema_decay: 0", **promoting) == pytest.approx(1 / 4 + 3 / 4 * 2 * 3, rel=1e-3)
    assert each("optimizer: sgd", **promoting) == pytest.approx(1 / 4 + 3 / 4 * 2 * 3, rel=1e-3)
    assert each(mode="promote", grace_period=1, reduction_factor=4) == pytest.approx(1 / 4 + 3 / 4 * 4, rel=1e-3)


def test_a_few_trials_pass_rung_after_rung_rounded_up_and_those_that_pause_later_keep_two_files() -> None:
    def needed(num_trials: int, training: str = "epochs: 9", **more: Any) -> int:
        settings = "grace_period: 1, reduction_factor: 3"
        text = small_digits(**{"search:": f"search: {{{settings}}}", "  epochs:": f"  {training}"})
        return bytes_needed(parse_experiment(text, "disk.yaml"), num_trials=num_trials, num_slots=0, **more)

    weights = needed(1, rungs=())

    def counted(*args: Any, **more: Any) -> float:
        """Bytes of all trials, in weights of an average network; a checkpoint holds four of these."""
        return needed(*args, **more) / weights

    assert counted(1) == pytest.approx(1)  # the first always goes on
    assert counted(7) == pytest.approx(1 + (4 * 1 + 2 * 2) * 4)  # rungs 1 and 3: 7, then 3, then 1
    assert counted(9, rungs=(1,)) == pytest.approx(3 + 6 * 4)
    assert counted(9, rungs=(2, 3)) == pytest.approx(1 + (6 * 2 + 2 * 2) * 4)


def test_a_trial_in_flight_is_counted_once_with_three_checkpoints() -> None:
    text = small_digits(**{"search:": "search: {grace_period: 2, reduction_factor: 4}", "  epochs:": "  epochs: 3"})
    experiment = parse_experiment(text, "disk.yaml")

    def needed(num_slots: int) -> int:
        return bytes_needed(experiment, num_trials=8, num_slots=num_slots)

    weights = bytes_needed(experiment, num_trials=1, num_slots=0, rungs=())
    more = [(needed(slots + 1) - needed(slots)) / weights for slots in range(1, 10)]
    assert more[0] == pytest.approx(3 * 4 - 1)  # the second that passes has checkpoints and no weights yet
    assert more[1:7] == pytest.approx([1 * 4] * 6)  # six would be paused with two files, and have three
    assert more[7:] == [0, 0]  # eight slots are enough for eight trials


def test_a_resume_does_not_ask_for_the_disk_that_its_checkpoints_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = experiment_with(trials=8, mode="promote", reduction_factor=4)
    run = RunFolder.create(tmp_path / "run", experiment.manifest(seed=0, num_trials=8))
    needed = bytes_needed(experiment, num_trials=8, num_slots=1)
    (run.path / "checkpoints").mkdir()
    for number in range(4):
        run.checkpoint_path(number).write_bytes(bytes(needed // 8))
    left = shutil.disk_usage(tmp_path)._replace(free=needed - 4 * (needed // 8))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: left)
    with pytest.raises(ResourceError, match="needs about"):
        check_disk(experiment, tmp_path / "new", num_trials=8, num_slots=1)
    check_disk(experiment, run.path, num_trials=8, num_slots=1, run=run)
    with pytest.raises(ResourceError, match="needs about"):
        check_disk(experiment, run.path, num_trials=8, num_slots=1, to_keep=100, run=run)
    run.checkpoint_path(0).unlink()
    with pytest.raises(ResourceError, match="needs about"):
        check_disk(experiment, run.path, num_trials=8, num_slots=1, run=run)


def test_a_place_that_cannot_be_written_is_refused_before_anything_starts(small: Experiment, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunFolderError, match=r"run: cannot be written, since \S+file cannot; name another place by --out"
    ):
        search(small, out=tmp_path / "file" / "run", cpus=1)
    assert not ray.is_initialized()


def test_batches_that_have_no_room_in_shared_memory_go_through_pipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(8):
                Image.new("L", (8, 8)).save(tmp_path / part / name / f"{index}.png")
    change = {"data:": "data: {dataset: imagefolder, num_workers: 1}", "  num_classes:": "  num_classes: 2"}
    experiment = parse_experiment(small_digits(**change), "folder.yaml")
    setup = TrainingSetup.of(experiment, run=RunFolder(tmp_path / "run"), data=tmp_path)
    needed = 2 * 3 * 256 * 8 * 8  # processes that train, batches of each, bytes
    usage, notes = shutil.disk_usage(tmp_path), list[str]()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    assert setup.fitting_shared_memory(num_processes=2, on_note=notes.append) == setup
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    assert not setup.fitting_shared_memory(num_processes=2, on_note=notes.append).shares_memory
    (note,) = notes
    assert re.match(r"/dev/shm has \S+ MiB left, and batches .* go through pipes.* --shm-size", note)
    arrays = TrainingSetup.of(
        parse_experiment(small_digits(), "small.yaml"), run=RunFolder(tmp_path / "run"), data=None
    )
    assert arrays.fitting_shared_memory(num_processes=2) == arrays


ODD_PLACE = """
import ray, sys
from cvt_nas.launch.cluster import start_local_ray, temporary_folder_of_ray
from cvt_nas.engine import TrainingSetup
start_local_ray(num_cpus=1, num_gpus=0)
print(ray.get(ray.remote(lambda: "works").remote()))
"""


def test_ray_starts_where_home_cannot_be_written_and_the_temporary_folder_has_a_long_name(tmp_path: Path) -> None:
    long = tmp_path / ("t" * 90)
    long.mkdir()
    (tmp_path / "file").write_text("")
    odd = {
        "HOME": str(tmp_path / "file" / "home"), "TMPDIR": str(long), "LC_ALL": "C", "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii",
    }  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_AUTH_MODE", "RAY_TMPDIR")}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ODD_PLACE], env=kept | odd, capture_output=True, text=True, timeout=300
    )
    assert found.stdout == "works\n", found.stderr


def test_a_word_of_the_command_that_the_locale_cannot_read_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.orig_argv", ["cvt-nas", "search", "--out", "r\udcc3\udcb6"])
    with pytest.raises(ResourceError, match="is not UTF-8; set PYTHONUTF8=1"):
        start_local_ray(num_cpus=1, num_gpus=0)


def test_a_folder_for_ray_that_is_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("t" * 90)))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    assert temporary_folder_of_ray() == "/tmp/ray"
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("t" * 90)))
    with pytest.raises(ResourceError, match="set RAY_TMPDIR to a folder with at most"):
        temporary_folder_of_ray()


@pytest.mark.usefixtures("two_cpus")
def test_a_search_that_does_not_fit_on_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiment_with(trials=16, mode="promote", reduction_factor=4)
    monkeypatch.setattr("cvt_nas.plan.disk._BYTES", 2**50)
    with pytest.raises(
        ResourceError, match=r"needs about \S+ GiB for weights and checkpoints, and \S+ has \S+ GiB left"
    ):
        search(experiment, out=tmp_path / "run", cpus=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_short_drill_loses_nothing(tmp_path: Path) -> None:
    kinds = ["driver", "sigterm", "torn record", "damaged", "worker"]
    outcomes = list(fault_drill.drill(tmp_path, kinds=kinds, num_faults=5, seed=1, num_trials=8))
    assert sum(outcome.lost + outcome.twice + outcome.wrong for outcome in outcomes) == 0
    faults = [fault for outcome in outcomes for fault in outcome.faults]
    assert sorted(fault.kind for fault in faults) == sorted(kinds)
    assert sum(outcome.epochs_again for outcome in outcomes) <= 5
    assert all(fault.is_over == (fault.kind != "worker") for fault in faults)


@pytest.mark.slow
def test_work_moves_from_nodes_that_are_lost_to_one_that_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # keeps the cluster's nodes on loopback, as `start_local_ray` does for a Ray of its own
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    monkeypatch.setenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
    experiment = experiment_with(**(IN_FULL | {"trials": 5}))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})  # without a GPU it has no trials
    try:
        nodes = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        started = Counter[int]()

        def swap() -> None:
            for node in nodes:
                cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(num_cpus=1, num_gpus=1)

        swap_once = at_epoch(4, swap).__enter__()

        def follow(event: Any) -> None:
            if isinstance(event, TrialStarted):
                started[event.number] += 1
            swap_once(event)

        run = search(experiment, out=tmp_path / "run", address=cluster.address, device="cpu", progress=Watch(follow))
    finally:
        cluster.shutdown()
    assert run.manifest["resources"]["num_slots"] == 2
    assert [result.number for result in run.results()] == list(range(5))
    assert {result.status for result in run.results()} == {"complete"}
    assert set(started.values()) == {1, 2}, "what the lost nodes had was tried again"
    alone = search(experiment, out=tmp_path / "alone", cpus=2)
    assert by_number(alone) == by_number(run)
