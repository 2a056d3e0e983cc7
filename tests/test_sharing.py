"""How many trials share a GPU: the decision on made-up rates, and the measurement by real Ray with a logical GPU."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group_table

from conftest import Watch, own_processes, small_digits
from cvt_nas import search
from cvt_nas.arch import ArchConfig
from cvt_nas.cli import main
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.engine import TrainingSetup
from cvt_nas.engine.memory import Room
from cvt_nas.engine.speed import Speed, Timing
from cvt_nas.launch.cluster import start_local_ray
from cvt_nas.launch.resources import Resources, claim_resources
from cvt_nas.launch.tasks import SharedGpu
from cvt_nas.plan import sharing
from cvt_nas.plan.sharing import (
    Sharing,
    _Probe,
    _Process,
    choose_sharing,
    divide_as_asked,
    is_starved,
    most_on_a_gpu,
    rate_together,
)
from cvt_nas.run import RunFolder
from test_results import MANIFEST

LIMIT = "no more are allowed"


@pytest.mark.parametrize(
    ("rates", "most", "chosen", "reason"),
    [
        ([3_100, 5_900, 9_200, 9_400, 9_900], 16, 4, "8 gain less than 10% over 4"),
        ([3_100, 3_200, 9_000], 16, 1, "2 gain less than 10% over 1"),
        ([3_100, 2_000], 16, 1, "2 gain less than 10% over 1"),
        ([100, 111, 124], 4, 4, LIMIT),
        ([100, 200, 400, 800], 7, 4, LIMIT),
        ([100, 200, "no room"], 16, 2, "no room"),
        (["no room"], 16, 1, "no room"),
        ([100], 1, 1, LIMIT),
    ],
)
def test_processes_are_doubled_as_long_as_it_gains(rates: list[Any], most: int, chosen: int, reason: str) -> None:
    asked: list[int] = []

    def rate_of(number: int) -> Any:
        asked.append(number)
        return rates[len(asked) - 1]

    found = choose_sharing(rate_of, most=most, reason=LIMIT)
    assert (found.trials_per_gpu, found.reason) == (chosen, reason)
    assert asked == [2**power for power in range(len(asked))]
    assert asked[-1] <= min(2 * chosen, most), "what is found is not gone beyond"
    assert found.rates == {number: rate for number, rate in zip(asked, rates, strict=False) if rate != "no room"}


@pytest.mark.parametrize(
    ("gpus", "cpus_per_gpu", "num_trials", "expected"),
    [
        (1, 64, 200, (16, "no more than 16 are tried")),
        (8, 6, 200, (6, "each needs a CPU, and there are 6 for a GPU")),
        (1, 0.5, 200, (1, "each needs a CPU, and there are 0.5 for a GPU")),
        (8, 16, 20, (3, "there are 8 GPUs for 20 trials")),
        (1, 16, 5, (5, "5 trials in all")),
    ],
)
def test_cpus_and_trials_bound_the_processes(
    gpus: int, cpus_per_gpu: float, num_trials: int, expected: tuple[int, str]
) -> None:
    assert most_on_a_gpu(resources_of(gpus, cpus_per_gpu), num_trials=num_trials) == expected


def resources_of(gpus: int, cpus_per_gpu: float) -> Resources:
    return Resources(
        num_slots=gpus, cpus_per_trial=cpus_per_gpu, gpus_per_trial=1, device="cuda", num_gpus=gpus,
        cpus_per_gpu=cpus_per_gpu,
    )  # fmt: skip


def steady(*, began: float, ended: float, seconds: float) -> list[Timing]:
    number = round((ended - began) / seconds)
    return [Timing(10, began + index * seconds, seconds / 4, 3 * seconds / 4) for index in range(number)]


@pytest.mark.parametrize(
    ("processes", "rate"),
    [
        ([steady(began=0, ended=2, seconds=0.1)], 100),
        ([steady(began=0, ended=2, seconds=0.1), steady(began=0.25, ended=2.25, seconds=0.1)], 200),
        ([steady(began=0, ended=2, seconds=0.1), steady(began=0.55, ended=2.05, seconds=0.5)], 120),
        # alone at first, the former was twice as fast, which does not count
        ([steady(began=0, ended=0.5, seconds=0.05) + steady(began=0.5, ended=2, seconds=0.1),
          steady(began=0.5, ended=2.5, seconds=0.1)], 200),
        ([steady(began=0, ended=2, seconds=0.1), steady(began=1.5, ended=3.5, seconds=0.1)], None),
        ([steady(began=0, ended=2, seconds=0.1), steady(began=3, ended=5, seconds=0.1)], None),
    ],
)  # fmt: skip
def test_a_rate_is_of_the_time_in_which_all_trained(processes: list[list[Timing]], rate: float | None) -> None:
    found = rate_together(processes)
    assert found == (None if rate is None else pytest.approx(rate))


def room(micro_batch: int, *, recomputes: bool = False) -> Room:
    return Room(micro_batch=micro_batch, activation_checkpointing=recomputes, ran_out=False, note=None)


@pytest.mark.parametrize(
    ("found", "alone", "expected"),
    [
        (room(16), room(256), False),
        (room(15), room(256), True),
        (room(8), room(8), False),
        (room(256, recomputes=True), room(256), True),
        (room(64, recomputes=True), room(64, recomputes=True), False),
        (room(1), None, False),
    ],
)
def test_a_network_is_starved_that_would_train_otherwise_alone(found: Room, alone: Room | None, expected: bool) -> None:
    assert is_starved(found, alone) is expected


def test_what_was_found_is_said_in_a_line_and_read_back() -> None:
    found = Sharing(trials_per_gpu=4, rates={1: 3_100.4, 2: 5_900, 4: 9_200, 8: 9_400}, reason="8 gain too little")
    line = "images/s by the number of processes on one of 2: 1: 3,100, 2: 5,900, 4: 9,200, 8: 9,400; 8 gain too little"
    assert found.describe(2) == f"4 trials share a GPU; {line}"
    assert Sharing.of({"sharing": found.to_json()}) == found
    assert Sharing(trials_per_gpu=1, rates={}, reason="why").describe(1) == "each trial has a GPU of its own; why"
    assert Sharing.of({}) is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plan", "--gpus", "2", "--images-per-second", "100"], "auto: is measured on this machine; give a number"),
        (["plan", "--gpus", "0"], "--gpus-per-trial: got auto with --gpus 0; drop one of the two"),
        (["search", "--gpus", "0"], "--gpus-per-trial: got auto with --gpus 0; drop one of the two"),
    ],
)
def test_where_no_gpu_can_be_measured_auto_is_refused(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "small.yaml"
    space.write_text(small_digits())
    assert main([*words, "--space", str(space), "--out", str(tmp_path / "run"), "--gpus-per-trial", "auto"]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("word", ["many", "0", "-1", "inf", "nan", ""])
def test_a_share_that_is_none_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        (["search", "--space", "unused.yaml"], "must be auto, a fraction below 1, or a whole number"),
        (["supernet", "evaluate", "unused"], "must be a number above 0"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*arguments, f"--gpus-per-trial={word}"])
        assert f"got '{word}', {told}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "gpus", "slots"), [("auto", 2, 8), (None, 2, 8), (1, 2, 2), (0.5, 2, 2), (None, 0, 3)]
)
def test_a_run_keeps_what_was_found_unless_another_number_is_asked_for(
    asked: Any, gpus: int, slots: int, tmp_path: Path, small: Experiment
) -> None:
    """A number that is asked for was divided by before; without GPUs, there are as many slots as CPUs."""
    found = Sharing(trials_per_gpu=4, rates={1: 10.0, 2: 20.0, 4: 40.0}, reason="it is made up")
    run = RunFolder.create(tmp_path / "run", {**MANIFEST, "sharing": found.to_json()})
    setup = TrainingSetup.of(small, run=run, data=None)
    resources = resources_of(gpus, 16)
    if gpus == 0:
        resources = Resources(num_slots=3, cpus_per_trial=1, gpus_per_trial=0, device="cpu")
    divided, _ = divide_as_asked(small, setup, resources, asked=asked, num_trials=9, run=run, on_note=None)
    assert divided.num_slots == slots
    assert run.manifest["sharing"] == found.to_json()


@pytest.fixture(scope="class")
def one_gpu() -> Iterator[None]:
    """That exists only in Ray's books, and two CPUs."""
    start_local_ray(num_cpus=2, num_gpus=1)
    yield
    ray.shutdown()


@contextlib.contextmanager
def probe_of(kind: type, experiment: Experiment, tmp_path: Path) -> Iterator[_Probe]:
    """Measures up to two processes of a `kind`."""
    setup = TrainingSetup.of(experiment, run=RunFolder(tmp_path / "run"), data=None)
    with (
        claim_resources(gpus_per_trial="auto", device="cpu") as resources,
        SharedGpu(kind, num_cpus=2, most=2) as gpu,
    ):
        yield _Probe(experiment, setup, resources, gpu)


@pytest.mark.usefixtures("one_gpu")
class TestWithALogicalGpu:
    @pytest.mark.slow  # a minute
    def test_a_search_has_the_slots_that_were_found_and_goes_on_with_these(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sharing, "_SECONDS", 0.3)
        line = "search: {trials: 2, sampler: random, scheduler: none}"
        epoch = {"  epochs:": "  epochs: 1", "  warmup_epochs:": "  warmup_epochs: 0"}
        experiment = parse_experiment(small_digits(**epoch, **{"search:": line}), "two.yaml")
        notes: list[str] = []
        slots: list[Resources] = []

        class Slots(Watch):
            def __call__(self, *about: Any) -> Watch:
                slots.append(about[1])
                return self

        def run(**settings: Any) -> RunFolder:
            follow = Slots(lambda event: None)
            return search(
                experiment, out=tmp_path / "run", gpus_per_trial="auto", device="cpu", progress=follow,
                on_note=notes.append, **settings,
            )  # fmt: skip

        manifest = run().manifest
        found = Sharing.of(manifest)
        assert found is not None
        assert min(found.rates.values()) > 0
        assert set(found.rates) <= {1, 2}
        assert found.describe(1) in notes
        assert (slots[0].num_slots, slots[0].gpus_per_trial) == (found.trials_per_gpu, 1 / found.trials_per_gpu)
        assert manifest["resources"] == dataclasses.asdict(slots[0])
        assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}
        other = Sharing(trials_per_gpu=3 - found.trials_per_gpu, rates={}, reason="it is another one")
        RunFolder.open(tmp_path / "run").amend_manifest(sharing=other.to_json())
        stop = threading.Event()
        stop.set()  # as soon as it has begun
        run(resume=True, stop=stop)
        assert slots[1].num_slots == other.trials_per_gpu, "it was not measured again"
        assert f"{other.outcome}, as was found when the run began" in notes

    def test_a_run_that_began_without_keeps_what_is_found_later(self, tmp_path: Path, small: Experiment) -> None:
        run = RunFolder.create(tmp_path / "run", MANIFEST)
        setup = TrainingSetup.of(small, run=run, data=None)
        notes: list[str] = []
        with claim_resources(gpus_per_trial="auto", device="cpu") as resources:
            divided, found = divide_as_asked(
                small, setup, resources, asked="auto", num_trials=1, run=run, on_note=notes.append
            )
        assert divided == resources
        assert notes == ["each trial has a GPU of its own; 1 trial in all"]
        assert found == Sharing.of(run.manifest)

    def test_what_cannot_be_trained_is_a_note_and_each_trial_has_a_gpu(self, tmp_path: Path) -> None:
        experiment = parse_experiment(small_digits(**{"data:": "data: {dataset: imagefolder}"}), "folder.yaml")
        setup = TrainingSetup.of(experiment, run=RunFolder(tmp_path / "run"), data=tmp_path / "missing")
        notes: list[str] = []
        with claim_resources(gpus_per_trial="auto", device="cpu") as resources:
            assert divide_as_asked(
                experiment, setup, resources, asked="auto", num_trials=8, run=None, on_note=notes.append
            ) == (resources, None)
        (note,) = notes
        assert note.startswith("how many trials share a GPU best cannot be told, so each has one of its own: ")
        assert "missing" in note

    @pytest.mark.slow
    def test_processes_that_die_side_by_side_are_too_many(
        self, tmp_path: Path, small: Experiment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sharing, "_SECONDS", 0.1)
        with probe_of(_Process, small, tmp_path) as probe:
            assert isinstance(probe.rate(1), float)
            (process,) = own_processes("ray::_Process")
            os.kill(process, signal.SIGKILL)
            assert str(probe.rate(2)).startswith("2 processes failed: ")

    @pytest.mark.slow
    def test_processes_of_which_one_begins_late_train_for_longer_until_they_overlap(
        self, tmp_path: Path, small: Experiment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sharing, "_SECONDS", 0.2)

        class Late(_Process):
            def open(self, setup: TrainingSetup) -> None:
                super().open(setup)
                (tmp_path / str(os.getpid())).touch()

            def train(self, setup: TrainingSetup, arch: ArchConfig, num_processes: int, seconds: float) -> Speed | None:
                times = [(path.stat().st_ctime_ns, path.name) for path in tmp_path.glob("[0-9]*")]
                if num_processes == 2 and max(times)[1] == str(os.getpid()):
                    time.sleep(0.8)
                return super().train(setup, arch, num_processes, seconds)

        with probe_of(Late, small, tmp_path) as probe:
            assert isinstance(probe.rate(1), float)
            assert isinstance(probe.rate(2), float)
            monkeypatch.setattr(sharing, "_TRIES", 1)
            assert probe.rate(2) == "2 did not train at the same time"
