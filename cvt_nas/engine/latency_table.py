"""Measures a table of parts in torch, which predicts the time of a forward pass of each network of a space.

Source: Cai et al. 2019, arXiv:1812.00332, section 3.3, for the sum of parts.
"""

import contextlib
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cvt_nas.arch import ArchConfig, Grid
from cvt_nas.engine.compiling import BACKEND
from cvt_nas.engine.latency import Latency, check_device, device_name, latency_of
from cvt_nas.engine.latency_parts import Input, Timed, memory_size, place, plan_of, whole_of
from cvt_nas.engine.optimization import is_out_of_memory
from cvt_nas.errors import ResourceError
from cvt_nas.latency import Deployment, LatencyTable
from cvt_nas.latency.measuring import (
    PART_SECONDS,
    WHOLE_SECONDS,
    Turns,
    clock_of_deployment,
    memory_growth,
    table_of,
    time_in_turns,
)
from cvt_nas.space import SearchSpace

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def on_device(deployment: Deployment | None, device: torch.device, *, image_size: Any = 1) -> Deployment:
    """`deployment` with a definite device and number of threads, which come from the trial if they are open.

    Args:
        deployment: None stands for single images in fp32, in torch.
        device: Device of a trial.
        image_size: Image size of the deployment that None stands for.

    Raises:
        ResourceError: The runtime cannot use the device.
    """
    deployment = deployment or Deployment(image_size=image_size)
    threads = torch.get_num_threads() if deployment.threads is None else deployment.threads
    return replace(deployment, device=deployment.device_of(device.type), threads=threads)


def measure_latencies(
    archs: Sequence[ArchConfig], *, device: torch.device, deployment: Deployment | None = None
) -> list[Latency]:
    """Times a forward pass of each architecture in turns, by default of one image in fp32; see `time_in_turns`.

    Weights are random, since they do not affect latency. All networks share the same memory for them.

    Raises:
        ResourceError: The device does not exist, or has too little memory.
    """
    deployment = on_device(deployment, device)
    turns = time_networks(archs, device=device, max_seconds=WHOLE_SECONDS * len(archs), deployment=deployment)
    runtime = f"{deployment.runtime} {torch.__version__}"
    return [
        replace(
            latency_of(times, batch_size=deployment.batch, device=device, runtime=runtime),
            num_threads=deployment.threads or 1,
            precision=deployment.precision,
        )
        for times in turns.seconds.T.tolist()
    ]


def time_networks(
    archs: Sequence[ArchConfig], *, device: torch.device, max_seconds: float, deployment: Deployment | None = None
) -> Turns:
    """Like `measure_latencies`, but returns the times of each turn."""
    check_device(device)
    networks = [whole_of(arch) for arch in archs]
    return _in_turns(networks, on_device(deployment, device), device, max_seconds=max_seconds, seed=0)


def measure_table(
    space: SearchSpace,
    *,
    device: torch.device,
    num_judged: int = 12,
    seed: int = 0,
    deployment: Deployment | None = None,
) -> LatencyTable:
    """Times all parts of the networks of a space, and some whole networks that the times of parts are scaled to.

    All of them take turns; see `time_in_turns` and `table_of`.

    Args:
        space: Its images must have the size of the deployment.
        num_judged: Number of whole networks that judge the table.
        seed: Seed of the random choice of whole networks, which are drawn evenly.
        deployment: Its runtime must be `torch` or `torch-compile`. None stands for single images in fp32.

    Raises:
        ResourceError: The space has too many parts, or the device does not exist or has too little memory.
    """
    check_device(device)
    deployment = on_device(deployment, device, image_size=space.image_size)
    parts, networks, plan = plan_of(space, deployment, num_judged=num_judged, seed=seed)
    seconds = PART_SECONDS * len(parts) + WHOLE_SECONDS * len(networks)
    timed = [*parts.values(), *map(whole_of, networks)]
    turns = _in_turns(timed, deployment, device, max_seconds=seconds, seed=seed)
    return LatencyTable.from_json(table_of(turns, plan, device=described(deployment, device)))


def described(deployment: Deployment, device: torch.device) -> str:
    """Text with the processor, and the runtime, version, precision and threads of a deployment."""
    precision = "" if deployment.precision == "fp32" else f", {deployment.precision}"
    return f"{device_name(device)}, {deployment.runtime} {torch.__version__}{precision}, threads: {deployment.threads}"


def measure_memory(arch: ArchConfig, deployment: Deployment, device: torch.device) -> float | None:
    """Memory in MB that a network and its passes take.

    On a GPU, it is GPU memory. On a CPU, it is `memory_growth`, which needs a new process to be accurate.
    """
    timed = whole_of(arch)

    def load() -> Callable[[], object]:
        return _runs([timed], deployment, device)[0]

    with torch.inference_mode(), _threads(deployment.threads or 1):
        if device.type != "cuda":
            return memory_growth(load)
        torch.cuda.init()  # or there are no statistics to reset
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run = load()
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6


@torch.inference_mode()
def _in_turns(
    timed: Sequence[Timed], deployment: Deployment, device: torch.device, *, max_seconds: float, seed: int
) -> Turns:
    """Times modules in turns. All share the same memory for their weights, since thousands of parts would not fit at
    once."""
    try:
        with _threads(deployment.threads or 1):
            runs = _runs(timed, deployment, device)
            clock = clock_of_deployment(deployment.to_json())
            return time_in_turns(runs, clock=clock, max_seconds=max_seconds, seed=seed)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(f"latency: a network does not fit in the memory of {device_name(device)}") from error


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Sets torch's number of threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _runs(timed: Sequence[Timed], deployment: Deployment, device: torch.device) -> list[Callable[[], object]]:
    dtype = _DTYPES[deployment.precision]
    size = max(memory_size(each.module) for each in timed)
    # small and positive, so that they are valid variances too
    memory = torch.rand(size, device=device).mul_(0.02).add_(0.01).to(dtype)
    inputs = dict[Input, Tensor]()
    runs = list[Callable[[], object]]()
    for module, arguments in timed:
        place(module, memory)
        given = [
            _made(each, deployment.batch, memory, inputs) if isinstance(each, Input) else each for each in arguments
        ]
        call = _compiled(len(runs)) if deployment.runtime == "torch-compile" else _call
        runs.append(partial(_run, partial(call, module, given), device))
    return runs


def _call(module: Callable[..., object], inputs: Sequence[Tensor | Grid]) -> object:
    return module(*inputs)


def _compiled(index: int) -> Callable[..., object]:
    """Compiles a copy of `_call` with a code object of its own.

    Modules that share a code object would also share torch's cache of compiled code. Each call would then check the
    entries of other modules, and torch would stop compiling after some of them.
    """
    code = _call.__code__.replace(co_name=f"call_{index}")
    return torch.compile(
        types.FunctionType(code, _call.__globals__, code.co_name), backend=BACKEND, dynamic=False, fullgraph=True
    )


def _run(call: Callable[[], object], device: torch.device) -> None:
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _made(like: Input, batch: int, memory: Tensor, known: dict[Input, Tensor]) -> Tensor:
    if like not in known:
        made = torch.randn(batch, *like.shape, device=memory.device).to(memory.dtype)
        known[like] = made.contiguous(memory_format=torch.channels_last) if like.channels_last else made
    return known[like]
