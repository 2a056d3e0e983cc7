"""How long a forward pass of each network of a space takes, by a table of parts that are measured.

Source: Cai et al. 2019, arXiv:1812.00332, section 3.3, for the sum of parts.
"""

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cvt_nas.arch import ArchConfig, Grid
from cvt_nas.engine.latency import Latency, check_device, device_name, latency_of
from cvt_nas.engine.optimization import is_out_of_memory
from cvt_nas.engine.turns import Turns, time_in_turns
from cvt_nas.errors import ResourceError
from cvt_nas.latency import Judged, LatencyTable, block_key, embedding_key, head_key
from cvt_nas.model import Block, ConvEmbed, CvT
from cvt_nas.space import SearchSpace

_MAX_PARTS, _PART_SECONDS = 3_000, 0.1  # of a table, and the time of each
_NUM_FITTED, _WHOLE_SECONDS = 12, 0.5  # whole networks, and the time of each


def measure_latencies(archs: Sequence[ArchConfig], *, device: torch.device) -> list[Latency]:
    """Times a forward pass of one image of each architecture, all in turns; see `time_in_turns`.

    Weights are made up: they have no part in it. All networks have them in the same memory.

    Raises:
        ResourceError: The device is not there, or has too little memory.
    """
    turns = time_networks(archs, device=device, max_seconds=_WHOLE_SECONDS * len(archs))
    runtime = f"torch {torch.__version__}"
    return [latency_of(times, batch_size=1, device=device, runtime=runtime) for times in turns.seconds.T.tolist()]


def time_networks(archs: Sequence[ArchConfig], *, device: torch.device, max_seconds: float) -> Turns:
    """The turns of `measure_latencies`, which raises the same."""
    check_device(device)
    return _in_turns([_whole(arch) for arch in archs], device, max_seconds=max_seconds, seed=0)


def measure_table(space: SearchSpace, *, device: torch.device, num_judged: int = 12, seed: int = 0) -> LatencyTable:
    """Times all the parts of a space's networks, and some whole ones, by which it scales the times of the parts.

    All of them take turns; see `time_in_turns`. A part alone pays for its start and its end, which in a network overlap
    with others, so sums alone would be too great. A line through twelve whole networks mends that, and others tell how
    well.

    Args:
        num_judged: Of these others.
        seed: Of the whole networks, which are drawn evenly.

    Raises:
        ResourceError: The space has too many parts, or the device is not there, or has too little memory.
    """
    check_device(device)
    parts = _parts(space)
    if len(parts) > _MAX_PARTS:
        raise ResourceError(f"latency: the space has {len(parts):,} parts to time, at most {_MAX_PARTS:,} can be")
    free = dataclasses.replace(space, bounds={m: bound for m, bound in space.bounds.items() if m != "latency_ms"})
    rng = random.Random(f"{seed} latency")
    genomes = [free.sample_feasible(rng) or free.sample(rng) for _ in range(_NUM_FITTED + num_judged)]
    wholes = [_whole(free.decode(genome)) for genome in genomes]
    seconds = _PART_SECONDS * len(parts) + _WHOLE_SECONDS * len(wholes)
    turns = _in_turns([*parts.values(), *wholes], device, max_seconds=seconds, seed=seed)
    times_us = dict(zip(parts, 1e6 * turns.low, strict=False))
    wholes_us = 1e6 * turns.low[len(parts) :]
    plain = LatencyTable(parts={key: round(us) for key, us in times_us.items()}, constant_us=0, device="", error=0.0)
    summed = dataclasses.replace(free, latency=plain)
    sums_us = np.array([summed.cost(genome).latency_us for genome in genomes], dtype=float)
    scale, constant = np.polyfit(sums_us[:_NUM_FITTED], wholes_us[:_NUM_FITTED], 1)
    if scale <= 0:  # where the networks are all alike, and their times noise
        scale, constant = float(wholes_us.mean() / sums_us.mean()), 0.0
    off = (scale * sums_us + constant)[_NUM_FITTED:] / wholes_us[_NUM_FITTED:] - 1
    return LatencyTable(
        parts={key: round(scale * us) for key, us in times_us.items()},
        constant_us=round(constant),
        device=f"{device_name(device)}, torch {torch.__version__}, threads: {torch.get_num_threads()}",
        error=float(np.median(np.abs(off))),
        judged=Judged(
            number=num_judged,
            within_5=float((np.abs(off) <= 0.05).mean()),
            within_10=float((np.abs(off) <= 0.1).mean()),
            bias=float(off.mean()),
            spearman=_spearman(sums_us[_NUM_FITTED:], wholes_us[_NUM_FITTED:]),
            noise=float(np.median(turns.noise[len(parts) + _NUM_FITTED :])),
            drift=turns.drift,
        ),
    )


class _Input(NamedTuple):
    """An image or tokens of one network, whose values do not matter."""

    shape: tuple[int, ...]
    channels_last: bool = False


class _Timed(NamedTuple):
    """A module that has no memory yet, and what it is called with."""

    module: nn.Module
    inputs: tuple[_Input | Grid, ...]

    @classmethod
    def of(cls, build: Callable[[], nn.Module], inputs: tuple[_Input | Grid, ...]) -> "_Timed":
        with torch.device("meta"):
            return cls(build().eval(), inputs)


def _whole(arch: ArchConfig) -> _Timed:
    return _Timed.of(partial(CvT, arch), (_Input(arch.image_shape, channels_last=True),))


def _parts(space: SearchSpace) -> dict[str, _Timed]:
    """By the keys of `LatencyTable`."""
    parts, timed = space.parts(), dict[str, _Timed]()
    for stage, channels, before in parts.embeddings:
        grid = stage.grid_after(before)
        key = embedding_key(stage, in_channels=channels, grid=grid)
        images = _Input((channels, *before), channels_last=True)
        timed[key] = _Timed.of(partial(ConvEmbed, stage, channels, grid), (images,))
    for block, dim, grid, token in parts.blocks:
        key = block_key(block, embed_dim=dim, grid=grid, class_token=token)
        tokens = _Input((math.prod(grid) + token, dim))
        timed[key] = _Timed.of(partial(Block, block, dim, token, 0.0), (tokens, grid))
    for dim, grid in parts.heads:
        tokens = _Input((1 if space.stages[-1].class_token else math.prod(grid), dim))
        head = partial(_head, dim, space.num_classes)
        timed[head_key(dim=dim, grid=grid)] = _Timed.of(head, (tokens,))
    return timed


def _head(dim: int, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))


@torch.inference_mode()
def _in_turns(timed: Sequence[_Timed], device: torch.device, *, max_seconds: float, seed: int) -> Turns:
    """Times the modules, which all have their weights in the same memory: thousands of parts would not fit beside each
    other."""
    try:
        floats = max(sum(_aligned(tensor) for tensor in _tensors(each.module).values()) for each in timed)
        memory = torch.rand(floats, device=device).mul_(0.02).add_(0.01)  # small and positive, as variances are
        inputs = dict[_Input, Tensor]()
        runs = list[Callable[[], object]]()
        for module, arguments in timed:
            _place(module, memory)
            given = [_made(each, device, inputs) if isinstance(each, _Input) else each for each in arguments]
            runs.append(partial(_run, module, given, device))
        return time_in_turns(runs, device=device, max_seconds=max_seconds, seed=seed)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(f"latency: a network does not fit in the memory of {device_name(device)}") from error


def _run(module: nn.Module, inputs: Sequence[Tensor | Grid], device: torch.device) -> None:
    module(*inputs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _aligned(tensor: Tensor) -> int:
    """Its number of values, rounded up to whole lines of a cache."""
    return -(-tensor.numel() // 16) * 16


def _place(module: nn.Module, memory: Tensor) -> None:
    """Gives a module without memory the first part of `memory`."""
    start, state = 0, dict[str, Tensor]()
    for name, tensor in _tensors(module).items():
        if tensor.is_floating_point():
            state[name] = memory[start : start + tensor.numel()].view(tensor.shape)
            start += _aligned(tensor)
        else:
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype, device=memory.device)
    module.load_state_dict(state, assign=True)


def _made(like: _Input, device: torch.device, known: dict[_Input, Tensor]) -> Tensor:
    if like not in known:
        made = torch.randn(1, *like.shape, device=device)
        known[like] = made.contiguous(memory_format=torch.channels_last) if like.channels_last else made
    return known[like]


def _spearman(told: np.ndarray, measured: np.ndarray) -> float:
    from scipy.stats import rankdata  # half a second, which workers need not wait

    ranks = rankdata(told), rankdata(measured)
    return float(np.corrcoef(*ranks)[0, 1]) if all(np.ptp(rank) > 0 for rank in ranks) else 0.0
