"""Measurement of the time of a forward pass."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

from cvt_nas.engine.optimization import is_out_of_memory
from cvt_nas.errors import ResourceError
from cvt_nas.latency.measuring import processor_name
from cvt_nas.model import CvT

_MIN_RUNS, _MIN_WARMUPS = 5, 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Time of a forward pass. The images are on the device already.

    Args:
        batch_size: Images in a pass.
        median_ms, p10_ms, p90_ms: Median, 10th and 90th percentile of the runs, in milliseconds.
        device: Name of the processor.
        num_threads: Threads of the runtime on the CPU, even if the network runs on a GPU.
        num_runs: Number of timed runs, without warm-up runs.
        runtime: Library that ran the network, with its version.
        precision: Precision of weights and arithmetic.
    """

    batch_size: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    device: str
    num_threads: int
    num_runs: int
    runtime: str
    precision: str = "fp32"

    @property
    def images_per_second(self) -> float:
        """Images a second by the median."""
        return 1e3 * self.batch_size / self.median_ms

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "images_per_second": self.images_per_second}


def measure_latency(
    model: CvT, *, device: torch.device, batch_size: int = 1, max_seconds: float = 5.0, max_runs: int = 300
) -> Latency:
    """Times forward passes of a copy of `model` in eval mode, one after the other.

    Images are noise in the channels-last layout of evaluations. Torch's settings, such as TF32 and the number of
    threads, are those of the process.

    Args:
        model: Network on any device. It is not changed.
        max_seconds, max_runs: Limits; the first one that is reached ends the measurement. At least five runs are timed.

    Raises:
        ResourceError: The device does not exist, or has too little memory.
    """
    check_device(device)
    try:
        copied = copy.deepcopy(model).to(device).eval()
        images = torch.randn(batch_size, *model.arch.image_shape, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        seconds = _time_passes(copied, (images,), device, max_seconds=max_seconds, max_runs=max_runs)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(f"a batch of {batch_size}: does not fit in the memory of {device_name(device)}") from error
    return latency_of(seconds, batch_size=batch_size, device=device, runtime=f"torch {torch.__version__}")


@torch.inference_mode()
def _time_passes(
    module: nn.Module, inputs: tuple[object, ...], device: torch.device, *, max_seconds: float, max_runs: int
) -> list[float]:
    def run() -> None:
        module(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return time_runs(run, max_seconds=max_seconds, max_runs=max_runs)


def time_runs(run: Callable[[], object], *, max_seconds: float, max_runs: int) -> list[float]:
    """Seconds of each call of `run`, after a warm-up of up to a tenth of the time or a third of the runs."""
    times: list[float] = []
    for seconds, fewest, most in ((max_seconds / 10, _MIN_WARMUPS, max_runs // 3), (max_seconds, _MIN_RUNS, max_runs)):
        times, end = [], time.perf_counter() + seconds
        while len(times) < fewest or (len(times) < most and time.perf_counter() < end):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
    return times


def latency_of(seconds: Sequence[float], *, batch_size: int, device: torch.device, runtime: str) -> Latency:
    """Latency from the seconds of runs, for a runtime with as many threads as torch."""
    low, median, high = (float(ms) for ms in np.percentile(1e3 * np.asarray(seconds), [10, 50, 90]))
    return Latency(
        batch_size=batch_size,
        median_ms=median,
        p10_ms=low,
        p90_ms=high,
        device=device_name(device),
        num_threads=torch.get_num_threads(),
        num_runs=len(seconds),
        runtime=runtime,
    )


def latency_line(latency: Latency) -> str:
    """Describes a latency in one line for people."""
    return (
        f"{latency.median_ms:.3g} ms a batch of {latency.batch_size}, median of {latency.num_runs} runs "
        f"(p10 {latency.p10_ms:.3g}, p90 {latency.p90_ms:.3g}), {latency.images_per_second:.4g} images a second; "
        f"{latency.runtime}, {latency.precision}, {latency.device}, threads: {latency.num_threads}"
    )


def check_device(device: torch.device) -> None:
    """Raises ResourceError if `device` is a GPU and torch can use none."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ResourceError("cuda: this machine has no GPU that torch can use")


def device_name(device: torch.device) -> str:
    """Product name of the processor, if the system knows it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()
