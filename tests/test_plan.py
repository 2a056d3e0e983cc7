"""What `cvt-nas plan` says before anything is spent."""

import dataclasses
import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from conftest import SPACES, small_digits
from cvt_nas.arch import ArchConfig
from cvt_nas.cli import main
from cvt_nas.config import Experiment, load_experiment, parse_experiment
from cvt_nas.data import Split
from cvt_nas.engine import TrainingSetup
from cvt_nas.engine.footprint import Footprint, footprint
from cvt_nas.engine.speed import measure_loader, measure_supernet, measure_training
from cvt_nas.model import CvT
from cvt_nas.plan import measuring
from cvt_nas.plan.forecast import fit_to_hours, plan_search
from cvt_nas.plan.machine import Machine, three_networks
from cvt_nas.plan.measuring import state_machine
from cvt_nas.plan.values import Begun, Plan
from cvt_nas.report import write_report
from cvt_nas.run import RunFolder
from cvt_nas.run.places import cache_folder
from small_device import SmallDevice
from test_results import MANIFEST, trial

IMAGES: dict[Split, int] = {"train": 10_000, "search": 1_000, "test": 1_000}
CPU = torch.device("cpu")
KEYS = {
    "name", "gpus", "slots", "trials", "images", "networks", "loader_images_per_second", "epochs", "trained_in_full",
    "sampler_seconds", "parts", "hours", "gpu_hours", "first_front_hours", "disk_bytes", "shared_memory_bytes",
    "bottleneck", "advice", "notes", "fit", "supernet",
}  # fmt: skip


@pytest.fixture(scope="module")
def cvt13() -> Experiment:
    return load_experiment(SPACES / "cvt13.yaml")


def stated(experiment: Experiment, *, num_gpus: int = 8, gpus_per_trial: float = 1.0, **settings: Any) -> Machine:
    speeds: dict[str, Any] = {"images_per_second": 1_000.0, "loader_images_per_second": None, "gpu_memory": None}
    return state_machine(experiment, num_gpus=num_gpus, gpus_per_trial=gpus_per_trial, **{**speeds, **settings})


def plan_of(experiment: Experiment, machine: Machine, **settings: Any) -> Plan:
    given = {"num_trials": experiment.search.trials, "seed": 0, "out": None, **settings}
    return plan_search(experiment, machine, IMAGES, **given)


def test_the_estimate_of_memory_is_what_was_measured_of_cvt_13_and_its_space(cvt13: Experiment) -> None:
    def mib(arch: ArchConfig) -> float:
        return footprint(arch, cvt13.training).image_bytes / 2**20

    rng = random.Random(0)
    drawn = [cvt13.space.decode(cvt13.space.sample_feasible(rng) or ()) for _ in range(20)]
    # measured at 224 pixels in bf16: 57 MiB an image of CvT-13, 43 to 68 of random networks of cvt13.yaml
    for arch, measured in ((cvt13.anchor_archs()["cvt-13"], 57), (drawn[6], 43), (drawn[15], 68)):
        assert mib(arch) == pytest.approx(measured, rel=0.15)


def test_the_estimate_of_memory_is_what_a_step_takes(digits: Experiment) -> None:
    arch = digits.space.largest

    def peak(num_images: int) -> int:
        with SmallDevice() as device:
            model = CvT(arch, drop_path=digits.training.drop_path)
            images = torch.zeros(num_images, 1, 8, 8).contiguous(memory_format=torch.channels_last)

            def step() -> None:
                F.cross_entropy(model(images), torch.zeros(num_images, dtype=torch.long)).backward()

            step()  # leaves gradients
            return device.peak_of(step)

    each = (peak(96) - peak(64)) / 32
    assert footprint(arch, digits.training).image_bytes == pytest.approx(each, rel=0.15)


@pytest.mark.parametrize(
    ("gib", "settings", "room"),
    [
        (80, {}, (1024, False)),  # of 2,048: two equal parts
        (24, {}, (342, False)),
        (2.5, {}, (23, False)),
        (1.5, {}, (7, True)),  # fewer than batch norm needs
        (0.5, {}, (0, True)),
        (80, {"micro_batch": 100}, (98, False)),
        (80, {"activation_checkpointing": "on"}, (1024, True)),
    ],
)
def test_a_batch_is_cut_to_what_memory_holds(
    cvt13: Experiment, gib: float, settings: dict[str, Any], room: tuple[int, bool]
) -> None:
    training = dataclasses.replace(cvt13.training, **settings)
    taken = Footprint(image_bytes=57 * 2**20, fixed_bytes=950 * 2**20)
    assert taken.room(training, batch_size=2048, memory_bytes=int(gib * 2**30)) == room


def test_steps_evaluations_and_loading_are_timed(digits: Experiment) -> None:
    data = TrainingSetup.of(digits, run=RunFolder(Path("unused")), data=None).open_data()
    small, large = (
        measure_training(arch, digits.training, data, device=CPU, seconds=0.2)
        for arch in (digits.space.smallest, digits.space.largest)
    )
    assert small is not None
    assert large is not None
    assert 0 < small.step < large.step
    assert small.room is None, "a CPU takes batches whole"
    assert min(small.load, small.evaluation, small.begin, small.epoch_end) > 0
    assert measure_loader(data, digits.training, device=CPU, seconds=0.1) > 1 / (small.step + small.load)


def test_a_small_data_set_is_trained_on_again_until_the_seconds_are_over(digits: Experiment) -> None:
    few = digits.changed(data={"train_fraction": 0.01}, training={"batch_size": 2})
    data = TrainingSetup.of(few, run=RunFolder(Path("unused")), data=None).open_data()
    num_batches = data.num_images("train") // 2
    speeds = [
        measure_training(few.space.smallest, few.training, data, device=CPU, seconds=0.5, repeats=repeats)
        for repeats in (False, True)
    ]
    once, again = (speed.batches for speed in speeds if speed is not None)
    assert len(once) < num_batches < len(again), "without the first, which is not counted"
    assert all(batch.began >= last.ended - 1e-6 for last, batch in itertools.pairwise(again))


def test_a_step_of_a_supernet_takes_longer_than_one_of_its_largest_network() -> None:
    text = small_digits(**{"search:": "supernet: {epochs: 2, batch_size: 64}\nsearch: {weights: supernet}"})
    setup = TrainingSetup.of(parse_experiment(text, "supernet.yaml"), run=RunFolder(Path("unused")), data=None)
    assert setup.shared is not None
    data, space = setup.open_data(), setup.shared.space
    seconds = measure_supernet(setup.shared, data, device=CPU, seconds=0.2, num_devices=1)
    largest = measure_training(space.largest, setup.training, data, device=CPU, seconds=0.2)
    assert seconds is not None
    assert largest is not None
    assert seconds > largest.step


def test_the_three_networks_are_feasible_and_in_order(cvt13: Experiment) -> None:
    costs = [cvt13.space.cost(genome) for genome in three_networks(cvt13).values()]
    assert all(cvt13.space.is_feasible(cost) for cost in costs)
    assert costs[0].flops < costs[1].flops < costs[2].flops


def test_the_first_anchor_has_the_stated_speed(digits: Experiment) -> None:
    machine = stated(digits, images_per_second=1420)
    flops = digits.space.cost(digits.anchors["cvt-like"]).flops
    assert 1 / machine.step(flops) == pytest.approx(1420, rel=1e-3)


@pytest.mark.parametrize("more", [{"num_gpus": 4}, {"images_per_second": 2_000.0}])
def test_more_gpus_or_faster_ones_take_less_time(small: Experiment, more: dict[str, Any]) -> None:
    one, other = plan_of(small, stated(small, num_gpus=2)), plan_of(small, stated(small, **{"num_gpus": 2, **more}))
    assert other.hours < one.hours
    assert other.first_front <= one.first_front


def test_trials_that_are_left_take_less_time_where_they_are_spread() -> None:
    """Of five alike on four GPUs, the last has one until the others end, and all of them from its next epoch on."""
    lines = {"search:": "search: {trials: 5, sampler: random, scheduler: none, seed: 0, spread_last: %s}"}
    experiment = parse_experiment(small_digits(**lines).replace("%s", "false"), "one.yaml")
    spread = parse_experiment(small_digits(**lines).replace("%s", "true"), "spread.yaml")
    machine = stated(experiment, num_gpus=4)
    alike = [dataclasses.replace(network, step=0.1, evaluation=0.0) for network in machine.networks]
    machine = dataclasses.replace(machine, networks=tuple(alike), begin=0.0, epoch_end=0.0, worker_start=0.0)
    epoch = 0.1 * IMAGES["train"]
    assert plan_of(experiment, machine).parts["race"] == pytest.approx(2 * 3 * epoch, rel=1e-3)
    assert plan_of(spread, machine).parts["race"] == pytest.approx(3 * epoch + epoch + 2 * epoch / 4, rel=1e-3)


@pytest.mark.parametrize("num_trials", [20, 60])  # of more than 50, architectures are drawn at random
def test_freeze_thaw_is_counted_as_if_all_trials_were_trained_in_full(num_trials: int) -> None:
    text = small_digits(**{"search:": f"search: {{trials: {num_trials}, sampler: surrogate, scheduler: freeze-thaw}}"})
    experiment = parse_experiment(text, "thaw.yaml")
    found = plan_of(experiment, stated(experiment), is_quick=True)
    assert found.race is not None
    assert found.race.num_epochs == num_trials * experiment.training.epochs
    assert any(note.startswith("freeze-thaw is counted") for note in found.notes)


def test_trials_beyond_those_that_are_simulated_are_counted_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {"search:": "search: {trials: 60, sampler: random, scheduler: pareto-asha, grace_period: 1, seed: 0}"}
    experiment = parse_experiment(small_digits(**lines), "many.yaml")
    whole = plan_of(experiment, stated(experiment)).race
    monkeypatch.setattr("cvt_nas.plan.forecast.MAX_SIMULATED_TRIALS", 30)
    found = plan_of(experiment, stated(experiment))
    part = found.race
    assert whole is not None
    assert part is not None
    assert (len(part.proposals), part.num_trials) == (30, 60)
    for name in ("seconds", "num_epochs", "num_complete"):
        assert getattr(part, name) == pytest.approx(getattr(whole, name), rel=0.2), name
    assert "30 of the 60 trials were simulated; the others are counted alike" in found.notes


def test_the_parts_of_a_search_are_counted() -> None:
    plain = parse_experiment(small_digits(), "plain.yaml")
    search = "search: {weights: WEIGHTS, trials: 4, candidates: 20, confirm: {seeds: 2}}"
    text = small_digits(**{"search:": "supernet: {epochs: 5, batch_size: 64}\n" + search})
    supernet, narrowed = (
        parse_experiment(text.replace("WEIGHTS", weights), f"{weights}.yaml") for weights in ("supernet", "da-nas")
    )
    begun = Begun(is_sorted_by_taylor=True, num_bytes=10**9)
    plans = [plan_of(each, changed(stated(each), teacher=1e-3), begun=begun) for each in (plain, supernet, narrowed)]
    parts = [each.parts for each in plans]
    bare = plan_of(plain, stated(plain))
    assert [name for name, seconds in bare.parts.items() if seconds] == ["start", "race", "test"]
    assert plans[0].disk_bytes == bare.disk_bytes + 10**9
    assert plans[0].first_front - bare.first_front == pytest.approx(parts[0]["init"] + parts[0]["teacher"], rel=0.1)
    assert all(parts[1].values())
    assert parts[2]["supernet"] != parts[1]["supernet"], "fewer classes at first, and probes"
    assert [each.supernet is None for each in plans] == [True, False, True]
    assert plans[1].supernet is not None
    assert set(plans[1].supernet.lines()) <= set(plans[1].short_lines())
    assert plans[1].to_json()["supernet"]["steps"] == 5 * (IMAGES["train"] // 64)


@pytest.mark.parametrize(("runtime", "num_passes"), [("onnxruntime-int8", 3), ("openvino-int8", 2)])
def test_judging_in_int8_takes_passes_on_the_cpu_for_each_further_training_and_each_network_of_the_race(
    runtime: str, num_passes: int
) -> None:
    line = "search: {trials: 4, sampler: random, scheduler: none, seed: 0, confirm: {top: 2, seeds: 3%s}}"
    plain, judged = (
        parse_experiment(small_digits(**{"search:": line % more}), "confirm.yaml") for more in ("", f", as: {runtime}")
    )
    machine = changed(stated(plain), num_slots=1, judging=0.5)  # slow CPUs, so that passes outweigh all else
    more = plan_of(judged, machine).parts["confirm"] - plan_of(plain, machine).parts["confirm"]
    images, speeds = (
        256 + num_passes * IMAGES["search"],
        [machine.evaluation_on_cpu(n.cost.flops) for n in machine.networks],
    )
    least, most = (2 * (4 * (8 + images * speed) + 5) for speed in (speeds[0], speeds[-1]))
    assert least <= more <= most
    unknown = plan_of(judged, changed(machine, judging=None))
    assert unknown.parts["confirm"] < plan_of(judged, machine).parts["confirm"]
    assert any(note.startswith("judging in int8 is counted without its passes") for note in unknown.notes)


@pytest.mark.parametrize("objectives", ["latency_ms: minimize", "params: minimize, latency_ms: minimize"])
def test_latency_that_nobody_has_measured_yet_is_left_out(objectives: str) -> None:
    line = f"objectives: {{accuracy: maximize, {objectives}}}\nconstraints: {{latency_ms: {{max: 5}}}}"
    experiment = parse_experiment(small_digits(**{"objectives:": line}), "latency.yaml")
    found = plan_of(experiment, stated(experiment))
    assert found.race is not None
    assert len(found.race.proposals) == experiment.search.trials
    assert any(note.startswith("latency is not known before") for note in found.notes)


def test_only_candidates_are_counted_where_nothing_is_trained_on() -> None:
    text = small_digits(**{
        "search:": "supernet: {epochs: 5, batch_size: 64}\nsearch: {weights: supernet, trials: 9, candidates: 20}",
        "  epochs:": "  epochs: 0", "  warmup_epochs:": "  warmup_epochs: 0",
    })  # fmt: skip
    found = plan_of(parse_experiment(text, "one_shot.yaml"), stated(parse_experiment(text, "one_shot.yaml")))
    assert found.race is None
    assert found.parts["race"] == 0
    assert found.first_front == pytest.approx(3600 * found.hours)


def changed(machine: Machine, **settings: Any) -> Machine:
    return dataclasses.replace(machine, **settings)


def _flat(machine: Machine) -> Machine:
    step = machine.networks[1].step
    return changed(machine, networks=tuple(dataclasses.replace(each, step=step) for each in machine.networks))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("network", lambda machine: machine),
        ("loader", lambda machine: changed(machine, load=1.0)),
        ("launches", _flat),
        ("memory", lambda machine: changed(machine, networks=tuple(
            dataclasses.replace(each, micro_batch=0) for each in machine.networks))),
        ("sampler", lambda machine: changed(machine, begin=0.0, networks=tuple(
            dataclasses.replace(each, step=1e-12, evaluation=1e-12) for each in machine.networks))),
    ],
)  # fmt: skip
def test_what_holds_a_search_up_has_a_name(small: Experiment, name: str, change: Any) -> None:
    assert plan_of(small, change(stated(small))).bottleneck == name


def test_whoever_shares_gpus_is_not_told_to(small: Experiment) -> None:
    advice = [plan_of(small, _flat(stated(small, gpus_per_trial=share))).advice for share in (1.0, 0.5)]
    assert ["--gpus-per-trial auto" in each for each in advice] == [True, False]
    assert all(each.endswith("a greater training.batch_size") for each in advice)


def test_a_disk_that_is_too_small_is_named(digits: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr("cvt_nas.plan.forecast.shutil.disk_usage", lambda _: usage)
    found = plan_of(digits, stated(digits), out=tmp_path / "not" / "there")
    assert found.bottleneck == "disk"
    assert str(tmp_path) in found.advice


def test_settings_are_found_that_end_in_time(digits: Experiment) -> None:
    machine = changed(stated(digits, num_gpus=2), start=0.0, worker_start=0.0, begin=0.0)
    whole = plan_of(digits, machine)
    assert whole.race is not None

    def fit(hours: float) -> Any:
        known = whole.race.proposals if whole.race else ()
        return fit_to_hours(digits, machine, IMAGES, hours=hours, seed=0, known=known)

    enough, less, least = fit(2 * whole.hours), fit(0.8 * whole.hours), fit(0.5 * whole.hours)
    assert (enough.trials, enough.epochs) == (digits.search.trials, digits.training.epochs)
    assert less.trials < enough.trials, "trials go first"
    assert less.epochs == enough.epochs
    assert least.epochs < less.epochs, "then epochs"
    assert least.grace_period <= enough.grace_period
    for found, hours in ((less, 0.8), (least, 0.5)):
        assert found.hours <= hours * whole.hours


def plan_line(tmp_path: Path, *more: str, text: str | None = None) -> list[str]:
    space = tmp_path / "small.yaml"
    space.write_text(small_digits() if text is None else text)
    return ["plan", "--space", str(space), *more]


def test_the_plan_of_this_machine_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, usage = list[Path](), shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: (looked.append(folder), usage(folder))[1])
    assert main(plan_line(tmp_path, "--cpus", "2", "--gpus", "0", "--out", f"file://{tmp_path}/run", "--json")) == 0
    assert looked, "a run at a URL keeps a folder on this machine's disk"
    assert all(folder.is_relative_to(cache_folder()) for folder in looked)
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == KEYS
    assert (found["gpus"], found["slots"], found["gpu_hours"]) == (0, 2, 0)
    assert found["hours"] == pytest.approx(sum(found["parts"].values()))
    assert 0 < found["first_front_hours"] <= found["hours"]
    assert found["images"] == {"train": 1077, "search": 360, "test": 360}
    assert [network["name"] for network in found["networks"]] == ["smallest", "median", "largest"]
    assert all(network["images_per_second"] > 1 for network in found["networks"])
    assert not [note for note in found["notes"] if "stated" in note or "taken to be" in note]


def test_the_plan_of_another_machine_tells_what_was_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--gpus", "8", "--images-per-second", "50000", "--gpu-memory", "24"]
    assert main(plan_line(tmp_path, *words, "--hours", "5")) == 0
    out = capsys.readouterr().out
    assert "GPU hours" in out
    assert "stated: 50,000 images/s of cvt-like" in out
    assert "search: trials: 8, grace_period: 1" in out


def test_imagenet_is_planned_without_its_images(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--gpus", "8", "--images-per-second", "1420", "--trials", "12", "--json"]
    assert main(["plan", "--space", str(SPACES / "cvt13.yaml"), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["images"].values()) == 1_281_167 + 50_000
    assert found["shared_memory_bytes"] > 2**30
    assert any("a loader of" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--images-per-second", "100"], "say how many by --gpus N"),
        (["--gpus", "8", "--images-per-second", "100", "--cpus", "4"], "--cpus: is of this machine"),
        (["--gpu-memory", "24"], "are of another machine"),
        (["--gpus", "2", "--images-per-second", "100", "--gpus-per-trial", "4"], "more than the 2 of --gpus"),
        (["--gpus", "2", "--images-per-second", "100", "--gpus-per-trial", "1.5"], "a fraction below 1 or a whole"),
        (["--gpus", "1", "--images-per-second", "1", "--hours", "0.01"], "--hours 0.01: 8 trials of"),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(plan_line(tmp_path, *words)) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("plan", "told"), [({"hours": 0.5}, "30 min expected"), ([], "<dd>28.3 min<small></small>")])
def test_the_page_of_a_run_tells_what_was_expected(tmp_path: Path, plan: Any, told: str) -> None:
    run = RunFolder.create(tmp_path / "run", {**MANIFEST, "plan": plan})
    run.append(trial(0, 0.9))
    run.write_seconds_spent(1700.0)
    write_report(run)
    assert told in (run.path / "report.html").read_text(encoding="utf-8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_gpus_that_are_not_here_cannot_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(plan_line(tmp_path, "--gpus", "8")) == 2
    assert "--gpus 8: this machine has none to measure on; give --images-per-second" in capsys.readouterr().err


def test_a_measurement_that_does_not_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring, "_MOST_SECONDS", 0.0)
    (tmp_path / "small.yaml").write_text(small_digits())
    assert main(["plan", "--space", str(tmp_path / "small.yaml"), "--gpus", "0", "--cpus", "1"]) == 2
    assert "the speed of this machine was not measured: a process was killed, or took more than 0 s" in (
        capsys.readouterr().err
    )
