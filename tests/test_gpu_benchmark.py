"""The benchmark for GPUs: by a CPU with tiny settings, and by stages that are made up, of which some hang."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import gpu
import gpu_stages
import gpu_steps
from shared import networks

MADE_UP = """
import json, os, subprocess, sys, time
from pathlib import Path
import gpu

told = json.loads(sys.argv[1])
setting = gpu.Setting(**told["setting"])
gpu.end_with_parent()
result = {"workers": 1, "cpus": 2, "images_per_second": 3.0, "median_ms": 1.0, "p10_ms": 1.0, "p90_ms": 1.0}
for name in gpu.STAGES[told["stage"]]:
    if name in told["skip"]:
        continue
    Path(setting.out, "now").write_text(name)
    if name == os.environ.get("FAILS"):
        sys.exit("no such thing")
    if name == os.environ.get("HANGS"):
        Path(setting.out, "pid").write_text(str(os.getpid()))
        if "CHILD" in os.environ:
            child = subprocess.Popen(["sleep", "300"], start_new_session=True)
            Path(setting.out, "pid").write_text(str(child.pid))
        time.sleep(300)
    setting.append(told["stage"], name, **result)
"""
MADE_UP_STAGES = ["feed", "latency"]
MADE_UP_NAMES = [(stage, name) for stage in MADE_UP_STAGES for name in gpu.STAGES[stage]]
CUDA = torch.device("cuda:0")
LATENCY = {"stage": "latency", "name": "CvT-13 at 224, batch 1", "median_ms": 5.25, "p10_ms": 5.0, "p90_ms": 6.5}


def setting_of(out: Path, **changes: Any) -> gpu.Setting:
    out.mkdir(exist_ok=True)
    fields = {"device": "cpu", "card": "CPU", "torch": torch.__version__, "tiny": True, "run": "now"}
    return gpu.Setting(out=str(out), **{**fields, **changes})


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "KEPT", tmp_path / "kept.jsonl")


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "made_up.py"
    path.write_text(MADE_UP)
    monkeypatch.setattr(gpu, "STAGES_FILE", path)
    monkeypatch.setenv("PYTHONPATH", str(gpu.HERE))
    return path


@pytest.fixture
def own_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_every_stage_has_names_a_share_and_words() -> None:
    assert list(gpu.STAGES) == list(gpu.SHARES) == list(gpu.TEXTS) == list(gpu_stages.STAGES)
    assert list(networks()) == list(gpu.NETWORKS)


@pytest.mark.parametrize("stage", ["throughput", "memory", "feed", "latency", "cohort"])
def test_a_stage_makes_a_line_of_each_of_its_measurements(stage: str, tmp_path: Path) -> None:
    bench = gpu_stages.Bench(setting=setting_of(tmp_path), stage=stage)
    gpu_stages.STAGES[stage](bench)
    lines = gpu.read_lines([tmp_path / "gpu.jsonl"])
    assert [(line["stage"], line["name"]) for line in lines] == [(stage, name) for name in gpu.STAGES[stage]]
    for line in lines:
        assert "error" not in line
        assert (line["device"], line["tiny"], line["torch"]) == ("cpu", True, torch.__version__)
        assert not line.get("failed")
        assert any(character.isdigit() for character in gpu.text_of(line))
    if stage == "memory":
        assert not any(fits for line in lines for fits in line["batch_of_the_file_fits"].values())
        assert all(line["largest_batch"]["4 MiB"] > line["largest_batch"]["1 MiB"] for line in lines)


def test_the_tests_of_pytest_are_lines_each_and_one_that_counts_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], own_signals: None
) -> None:
    gpu.main(["--device", "cpu", "--tiny", "--stages", "tests", "--out", str(tmp_path)])
    assert f"tests: {gpu_stages.TINY_TEST}: passed\ntests: pytest -m gpu: 1 of 1 passed\n" in capsys.readouterr().out
    assert not (tmp_path / "now").exists()


def test_the_line_of_a_skipped_test_has_the_reason_and_no_path(tmp_path: Path) -> None:
    reporter = gpu_stages.Reporter(gpu_stages.Bench(setting=setting_of(tmp_path), stage="tests"))
    where = (str(tmp_path / "test_some.py"), 3, "Skipped: no GPU")
    reporter.pytest_runtest_logstart("test_some")
    reporter.pytest_runtest_logreport(
        SimpleNamespace(failed=False, skipped=True, outcome="skipped", longrepr=where, longreprtext=str(where))
    )
    reporter.pytest_runtest_logfinish("test_some")
    (line,) = gpu.read_lines([tmp_path / "gpu.jsonl"])
    assert (line["outcome"], line["reason"]) == ("skipped", "Skipped: no GPU")


@pytest.mark.slow
def test_searches_run_by_the_command_line_and_through_ray(tmp_path: Path, own_signals: None) -> None:
    gpu.main(["--device", "cpu", "--tiny", "--stages", "search", "--out", str(tmp_path)])
    lines = gpu.read_lines([tmp_path / "gpu.jsonl"])
    assert [line["name"] for line in lines] == ["from scratch", "with a supernet"]
    for line in lines:
        assert line["statuses"] == {"complete": 2}
        assert (line["trials"], line["devices"], line["trials_per_gpu"]) == (2, ["cpu"], None)
        assert 0 < line["hypervolume"] < 1
        assert (tmp_path / line["folder"] / "report.html").exists()


@pytest.mark.parametrize(("shared", "told"), [({"trials_per_gpu": 4}, ", 4 trials at a time"), ({}, "")])
def test_a_search_tells_how_many_trials_shared_the_gpu(shared: dict[str, int], told: str) -> None:
    line = {
        "stage": "search", "name": "from scratch", "dataset": "digits", "trials": 24, "statuses": {"complete": 24},
        "seconds": 60.0, "front": 5, "best": 0.9, "hypervolume": 0.8, "gpu_busy": 0.91, **shared,
    }  # fmt: skip
    found = "front of 5, best 0.900, hypervolume 0.800"
    assert gpu.text_of(line) == f"digits: 24 trials (24 complete) in 60 s, {found}{told}, GPU busy 91%"


def test_a_measurement_that_fails_is_a_line_and_the_next_one_is_made(tmp_path: Path) -> None:
    bench = gpu_stages.Bench(setting=setting_of(tmp_path), stage="feed", skip=["skipped"])

    def fail() -> dict[str, Any]:
        raise ValueError("not so\nbut otherwise")

    bench.measure("first", fail)
    bench.measure("skipped", fail)
    bench.measure("second", lambda: {"images_per_second": 2.0})
    first, second = bench.setting.lines()
    assert (first["name"], first["error"]) == ("first", "ValueError: not so")
    assert (second["name"], second["images_per_second"]) == ("second", 2.0)


def test_a_run_goes_on_after_one_that_was_killed_and_measures_nothing_twice(tmp_path: Path, made_up: Path) -> None:
    setting = setting_of(tmp_path / "out", run="killed")
    run = f"""
import gpu
gpu.STAGES_FILE = {str(made_up)!r}
gpu.run_stages(gpu.Setting(**{dataclasses.asdict(setting)}), {MADE_UP_STAGES}, seconds=100)
"""
    env = {**os.environ, "HANGS": "half of the CPUs"}
    process = subprocess.Popen([sys.executable, "-c", run], env=env)
    pid = tmp_path / "out" / "pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    process.kill()
    process.wait()
    wait_for(lambda: not is_alive(int(pid.read_text())))
    lines = tmp_path / "out" / "gpu.jsonl"
    kept = gpu.read_lines([lines])
    assert [line["name"] for line in kept] == ["1 worker", "a quarter of the CPUs"]
    with lines.open("a") as file:
        file.write('{"stage": "feed", "na')  # as a crash tears it
    gpu.run_stages(setting_of(tmp_path / "out", run="next"), MADE_UP_STAGES, seconds=100)
    found = gpu.read_lines([lines])
    assert found[:2] == kept
    assert [(line["stage"], line["name"]) for line in found] == MADE_UP_NAMES
    gpu.run_stages(setting_of(tmp_path / "out", run="last"), MADE_UP_STAGES, seconds=100)
    assert gpu.read_lines([lines]) == found
    gpu.run_stages(setting_of(tmp_path / "out", run="again"), MADE_UP_STAGES, seconds=100, again=True)
    assert [(line["stage"], line["name"]) for line in gpu.read_lines([lines])] == 2 * MADE_UP_NAMES


def test_a_stage_that_hangs_is_ended_at_its_bound_with_its_children_and_the_others_are_measured(
    tmp_path: Path, made_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANGS", "half of the CPUs")
    monkeypatch.setenv("CHILD", "in a session of its own")
    gpu.run_stages(setting_of(tmp_path), MADE_UP_STAGES, seconds=8)
    assert not is_alive(int((tmp_path / "pid").read_text()))
    last = {(line["stage"], line["name"]): line for line in gpu.read_lines([tmp_path / "gpu.jsonl"])}
    assert set(last) == set(MADE_UP_NAMES)
    assert last["feed", "half of the CPUs"]["error"].startswith("ended at its bound of ")
    assert sum("error" in line for line in last.values()) == 1  # what came after it was measured at the end


def test_what_failed_is_tried_again_by_a_later_run_after_all_others(
    tmp_path: Path, made_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "1 worker")
    gpu.run_stages(setting_of(tmp_path, run="first"), ["feed"], seconds=100)
    first, *others = gpu.read_lines([tmp_path / "gpu.jsonl"])
    assert (first["name"], first["error"]) == ("1 worker", "ended with status 1: no such thing")
    assert [line["name"] for line in others] == list(gpu.STAGES["feed"][1:])
    monkeypatch.delenv("FAILS")
    gpu.run_stages(setting_of(tmp_path, run="second"), MADE_UP_STAGES, seconds=100)
    *_, last = gpu.read_lines([tmp_path / "gpu.jsonl"])
    assert (last["name"], "error" in last) == ("1 worker", False)


def test_a_stage_that_cannot_start_is_a_line_and_is_not_started_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module")
    monkeypatch.setattr(gpu, "STAGES_FILE", broken)
    gpu.run_stages(setting_of(tmp_path), ["feed"], seconds=100)
    (line,) = gpu.read_lines([tmp_path / "gpu.jsonl"])
    assert line["name"] == "start"
    assert line["error"] == "ended with status 1: ModuleNotFoundError: No module named 'no_such_module'"


def test_a_table_has_a_column_a_card_and_says_what_was_not_measured() -> None:
    of_cuda = {"device": "cuda", "card": "NVIDIA H100 80GB HBM3", "torch": "2.11.0+cu130", "tiny": False}
    lines = [
        {**LATENCY, **of_cuda, "median_ms": 7.0},
        {**LATENCY, **of_cuda},
        {**LATENCY, **of_cuda, "error": "measured again without success"},
        {**LATENCY, **of_cuda, "card": "NVIDIA L4", "error": "a | b"},
        {**LATENCY, **of_cuda, "card": "CPU", "device": "cpu"},
        {**LATENCY, **of_cuda, "card": "tiny", "tiny": True},
    ]
    head, _, *rows = gpu.table(lines).splitlines()
    assert head == "| measurement | NVIDIA H100 80GB HBM3, torch 2.11.0+cu130 | NVIDIA L4, torch 2.11.0+cu130 |"
    measured = "| latency: CvT-13 at 224, batch 1 | 5.25 ms (5.00 to 6.50) | failed: a \\| b |"
    assert measured in rows
    rows.remove(measured)
    assert len(rows) == sum(map(len, gpu.STAGES.values())) - 1
    assert all(row.endswith(" | not measured | not measured |") for row in rows)


def test_words_of_what_only_a_gpu_can_tell() -> None:
    rates = {"images_per_second": {"ours": 1420.4, "compiled": 2900.0}, "over_ours": {"compiled": [1.9, 2.04, 2.1]}}
    line = {"stage": "throughput", "batch": 128, **rates, "gpu_busy": {"ours": 0.9, "compiled": 0.97}, "failed": {}}
    assert gpu.text_of(line) == (
        "1,420 images/s, batch 128, GPU busy 90%; compiled 2.04 times as fast (1.90 to 2.10), GPU busy 97%"
    )
    fits = {"8 GiB": False, "16 GiB": False}
    line = {"stage": "memory", "bytes_per_image": 57 * 2**20, "largest_batch": {"8 GiB": 112, "16 GiB": 256}}
    assert gpu.text_of({**line, "batch_of_the_file": 2048, "batch_of_the_file_fits": fits}) == (
        "57.0 MiB an image; largest batch 112 in 8 GiB, 256 in 16 GiB; 2,048 fit in none of these"
    )


def test_the_readme_has_the_table_of_the_lines_that_are_kept(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(gpu.README.read_text())
    gpu.write_table(copy, [gpu.HERE / "gpu.jsonl"])
    assert copy.read_text() == gpu.README.read_text()


@pytest.mark.parametrize("guess", [1, 100, 5000])
@pytest.mark.parametrize(("most", "found"), [(7, 0), (8, 8), (431, 424), (1000, 1000)])
def test_the_largest_batch_is_found_from_any_guess(guess: int, most: int, found: int) -> None:
    assert gpu_steps.largest_batch(lambda size: size <= most, guess, step=8) == found


def test_time_in_which_kernels_overlap_counts_once() -> None:
    assert gpu_steps.covered([(0, 2), (1, 3), (5, 6), (5.5, 5.7), (6, 7)]) == pytest.approx(5)


def test_memory_of_a_step_grows_with_its_images_and_ends_at_the_limit() -> None:
    settings = gpu_stages.load_experiment(gpu.ROOT / "search_spaces" / "digits.yaml").training
    arch, device = gpu_steps.tiny_arch(), torch.device("cpu")
    few, many = (gpu_steps.peak_of_step(arch, settings, size, device) for size in (4, 16))
    assert few is not None
    assert many is not None
    assert many > 2 * few
    assert gpu_steps.peak_of_step(arch, settings, 16, device, limit=many) == many
    assert gpu_steps.peak_of_step(arch, settings, 16, device, limit=many - 1) is None


def test_a_limit_is_a_share_of_the_gpu_s_memory_and_ends_with_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70, 80))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 15)
    for name in ("init", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *device: None)
    with gpu_steps.limited(CUDA, None) as peak:
        assert peak() == 15
    with contextlib.suppress(torch.OutOfMemoryError), gpu_steps.limited(CUDA, 20):
        assert shares[-1] == 0.25
        raise torch.OutOfMemoryError
    assert shares == [1.0, 0.25, 1.0]


def test_a_gpu_is_busy_while_kernels_run_but_not_while_a_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def event(start_us: float, end_us: float, **changes: Any) -> Any:
        fields = {"device_type": SimpleNamespace(name="CUDA"), "is_user_annotation": False, **changes}
        return SimpleNamespace(time_range=SimpleNamespace(start=start_us, end=end_us), **fields)

    events = [
        event(0, 2000), event(1000, 3000), event(0, 9000, is_user_annotation=True),
        event(0, 9000, device_type=SimpleNamespace(name="CPU")),
    ]  # fmt: skip
    profiler = contextlib.nullcontext(SimpleNamespace(events=lambda: events))
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: profiler)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    steps: list[None] = []
    share = gpu_steps.busy_share(lambda: steps.append(None), CUDA, seconds=0.004)
    assert share == pytest.approx(0.003 / len(steps) / 0.004)
    assert gpu_steps.busy_share(lambda: None, torch.device("cpu"), seconds=1.0) is None


def test_nvidia_smi_is_asked_while_a_search_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    smi.write_text(f"#!/bin/sh\necho 0\necho 40\necho '[N/A]'\ntouch {tmp_path}/told\nexec sleep 300\n")
    smi.chmod(0o755)
    with gpu_stages.gpu_utilisation(has_gpu=True) as samples:
        wait_for((tmp_path / "told").exists)
    assert samples == [0, 40]
    with gpu_stages.gpu_utilisation(has_gpu=False) as samples:
        pass
    smi.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with gpu_stages.gpu_utilisation(has_gpu=True) as without:
        pass
    assert samples == without == []
