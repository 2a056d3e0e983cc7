"""Latency, measured in torch and in onnxruntime."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cvt_nas.arch import ArchConfig
from cvt_nas.engine.latency import Latency, device_name, latency_line, latency_of, measure_latency, time_runs
from cvt_nas.errors import ExportError, ResourceError
from cvt_nas.export import FORMATS
from cvt_nas.export.latency import measure_onnx_latency, profile_latency
from cvt_nas.latency import LatencyTable
from cvt_nas.latency.measuring import time_in_turns
from cvt_nas.model import CvT, build_model
from strategies import per_stage

CPU = torch.device("cpu")


def arch_of(width: int, depth: int = 1) -> ArchConfig:
    return per_stage(
        image_size=32, dims=(width,), depths=(depth,), heads=(1,), kernels=(3,), strides=(2,), ratios=(4.0,)
    )


@pytest.mark.parametrize("measure", [measure_latency, measure_onnx_latency])
def test_a_latency_says_how_long_how_often_and_where(measure) -> None:
    found: Latency = measure(build_model(arch_of(16)), device=CPU, batch_size=3, max_runs=20)
    assert 0 < found.p10_ms <= found.median_ms <= found.p90_ms
    assert found.images_per_second == pytest.approx(3000 / found.median_ms)
    assert (found.batch_size, found.num_runs, found.num_threads) == (3, 20, torch.get_num_threads())
    assert found.device == device_name(CPU)
    assert found.runtime.startswith("torch 2" if measure is measure_latency else "onnxruntime 1")
    tree = json.loads(json.dumps(found.to_json()))
    assert tree.pop("images_per_second") == found.images_per_second
    assert Latency(**tree) == found


def test_a_network_of_a_hundred_times_the_flops_takes_longer() -> None:
    small, large = (measure_latency(build_model(arch_of(*size)), device=CPU, max_runs=15) for size in ((8, 1), (64, 4)))
    assert large.p10_ms > small.median_ms


def test_a_measured_model_is_as_it_was() -> None:
    model = build_model(arch_of(8)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_latency(model, device=CPU, max_runs=5)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_images_are_given_as_in_an_evaluation() -> None:
    class Watched(CvT):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert torch.is_inference_mode_enabled()
            assert not self.training
            return super().forward(images)

    measure_latency(Watched(arch_of(8)), device=CPU, batch_size=2, max_runs=5)


@pytest.mark.parametrize(("max_seconds", "max_runs", "num_runs"), [(0.0, 100, 5), (60.0, 7, 7), (60.0, 1, 5)])
def test_runs_end_by_time_or_number_but_not_before_five(max_seconds: float, max_runs: int, num_runs: int) -> None:
    calls = []
    times = time_runs(lambda: calls.append(None), max_seconds=max_seconds, max_runs=max_runs)
    assert len(times) == num_runs
    assert len(calls) == num_runs + 3, "which warm up"


def test_the_spread_is_that_of_the_runs() -> None:
    found = latency_of([0.001 * ms for ms in range(1, 12)], batch_size=4, device=CPU, runtime="torch 2.8.0")
    assert (found.p10_ms, found.median_ms, found.p90_ms) == pytest.approx((2, 6, 10))
    line = latency_line(dataclasses.replace(found, device="a CPU", num_threads=2))
    assert line == (
        "6 ms a batch of 4, median of 11 runs (p10 2, p90 10), 666.7 images a second; torch 2.8.0, fp32, a CPU, "
        "threads: 2"
    )


@pytest.mark.parametrize("onnx", [False, True])
def test_a_gpu_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, onnx: bool) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ResourceError, match="^cuda: this machine has no GPU that torch can use$"):
        profile_latency(arch_of(8), device="cuda", onnx=onnx)


def test_an_onnxruntime_without_the_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    message = "^--onnx: this onnxruntime cannot use cuda: pip install onnxruntime-gpu$"
    with pytest.raises(ResourceError, match=message):
        profile_latency(arch_of(8), device="cuda", onnx=True)
    # and one that has it, but cannot load its libraries
    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], write=lambda *arguments: None))
    fallen_back = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *arguments, **options: fallen_back)
    with pytest.raises(ResourceError, match=message):
        profile_latency(arch_of(8), device="cuda", onnx=True)


def test_a_package_that_onnx_needs_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], needs=("onnx", "no_such_package")))
    with pytest.raises(ExportError, match=r"^--onnx: needs no_such_package: pip install 'cvt-nas\[onnx\]'$"):
        profile_latency(arch_of(8), device="cpu", onnx=True)


def test_a_batch_beyond_the_memory_is_said() -> None:
    with pytest.raises(ResourceError, match=r"^a batch of 10000000000000: does not fit in the memory of "):
        profile_latency(arch_of(8), device="cpu", batch_size=10**13)


def test_a_processor_has_a_name_where_the_system_tells_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path, **options: Any) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert device_name(CPU)


def cores(*kinds: str) -> str:
    """What Linux tells of ARM's cores in `/proc/cpuinfo`."""
    told = "processor\t: {}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {}\n\n"
    return "".join(told.format(number, kind) for number, kind in enumerate(kinds))


PI_4 = "Raspberry Pi 4 Model B Rev 1.4"
ON_LINUX = [
    ({"/proc/cpuinfo": "processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n"}, "AMD EPYC"),
    ({"/proc/cpuinfo": f"{cores('0xd08', '0xd08')}Model\t: {PI_4}\n"}, f"{PI_4}, 2 x 0x41 0xd08"),
    ({"/proc/cpuinfo": cores("0xd08", "0xd08"), "/proc/device-tree/model": f"{PI_4}\0"}, f"{PI_4}, 2 x 0x41 0xd08"),
    ({"/proc/cpuinfo": cores("0xd40", "0xd40")}, "ARM, 2 x 0x41 0xd40"),
    ({"/proc/cpuinfo": cores("0xd08", "0xd03", "0xd03")}, "ARM, 1 x 0x41 0xd08, 2 x 0x41 0xd03"),
    ({"/proc/cpuinfo": f"model name\t: ARMv7 Processor\n{cores('0xd03')}"}, "ARM, 1 x 0x41 0xd03"),
    ({"/proc/cpuinfo": "processor\t: 0\nisa\t: rv64imafdc\n"}, "unknown processor (riscv64)"),
]


@pytest.mark.parametrize(("files", "name"), ON_LINUX)
def test_a_processor_is_told_by_its_product_or_by_its_cores(
    files: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, **options: Any) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    monkeypatch.setattr("platform.processor", lambda: "riscv64")
    assert device_name(CPU) == name


def test_a_mac_tells_its_processor_by_sysctl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(path: Path, **options: Any) -> str:
        raise FileNotFoundError(path)

    program = tmp_path / "sysctl"
    program.write_text('#!/bin/sh\n[ "$*" = "-n machdep.cpu.brand_string" ] && echo "Apple M2"\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.processor", lambda: "arm")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert device_name(CPU) == "Apple M2"
    program.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device_name(CPU) == "unknown processor (arm64)"


def test_a_table_is_of_the_same_machine_only_if_its_processor_is_known() -> None:
    for name, is_same in (("AMD EPYC", True), ("unknown processor (aarch64)", False)):
        device = f"{name}, onnxruntime 1.23.0, fp32, threads: 1"
        table = LatencyTable(parts={}, constant_us=0, device=device, error=0.0)
        assert table.is_of(device) == is_same
        assert not table.is_of("Intel Xeon, onnxruntime 1.23.0, fp32, threads: 1")
        assert not table.is_of(None)


@pytest.mark.gpu
@pytest.mark.parametrize("onnx", [False, True])
def test_a_gpu_is_measured_after_its_work_is_done(onnx: bool) -> None:
    if onnx and "CUDAExecutionProvider" not in pytest.importorskip("onnxruntime").get_available_providers():
        pytest.skip("onnxruntime without CUDA")
    arch = per_stage(
        image_size=224, dims=(256,), depths=(4,), heads=(4,), kernels=(3,), strides=(1,), ratios=(4.0,)
    )  # fmt: skip
    one, many = (profile_latency(arch, device="cuda", onnx=onnx, batch_size=size) for size in (1, 64))
    assert one.device == torch.cuda.get_device_name(0)
    assert many.median_ms > 4 * one.median_ms, "a launch alone would take as long for many as for one"


class Busy:
    """A machine on which each call takes its time, and twice that while something else is at work."""

    def __init__(self, costs: Sequence[float], slow: range = range(0)) -> None:
        self.now, self.calls, self._costs, self._slow = 0.0, 0, costs, slow

    def perf_counter(self) -> float:
        return self.now

    thread_time = perf_counter

    def functions(self) -> list[Callable[[], None]]:
        def call(cost: float) -> None:
            self.calls += 1
            self.now += cost * (2 if self.calls in self._slow else 1)

        return [partial(call, cost) for cost in self._costs]


def test_work_beside_it_changes_no_time_of_what_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = [0.002, 0.005, 0.0001]
    machine = Busy(costs, slow=range(30, 110))
    monkeypatch.setattr("cvt_nas.latency.measuring.time", machine)
    turns = time_in_turns(machine.functions(), clock="thread_time", max_seconds=1.0)
    assert turns.low == pytest.approx(costs)
    assert turns.noise == pytest.approx([0.0, 0.0, 0.0], abs=1e-9)
    assert (turns.seconds > 1.5 * np.array(costs)).any(), "it was there"


def test_a_machine_that_becomes_slower_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Busy([0.002, 0.005], slow=range(30, 10_000))
    monkeypatch.setattr("cvt_nas.latency.measuring.time", machine)
    assert time_in_turns(machine.functions(), clock="thread_time", max_seconds=0.3).drift == pytest.approx(1.0)


def test_what_waits_costs_a_thread_no_time() -> None:
    asleep = time_in_turns([lambda: time.sleep(0.01)], clock="thread_time", max_seconds=0.1)
    assert asleep.low[0] < 0.005
