"""The parts of a space's networks, and whole networks, as modules to time."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cvt_nas.arch import ArchConfig, Grid
from cvt_nas.errors import ResourceError
from cvt_nas.latency import Deployment, block_key, embedding_key, head_key, part_counts
from cvt_nas.model import Block, ConvEmbed, CvT
from cvt_nas.space import TIMED_METRICS, SearchSpace

_MAX_PARTS = 3_000  # of a table
_NUM_FITTED = 12  # whole networks


class Input(NamedTuple):
    """Images or tokens of one network, whose values do not matter: the shape of one of the batch."""

    shape: tuple[int, ...]
    channels_last: bool = False


class Timed(NamedTuple):
    """A module that has no memory yet, and what it is called with."""

    module: nn.Module
    inputs: tuple[Input | Grid, ...]

    @classmethod
    def of(cls, build: Callable[[], nn.Module], inputs: tuple[Input | Grid, ...]) -> "Timed":
        with torch.device("meta"):
            return cls(build().eval(), inputs)


def whole_of(arch: ArchConfig) -> Timed:
    return Timed.of(partial(CvT, arch), (Input(arch.image_shape, channels_last=True),))


def parts_of(space: SearchSpace) -> dict[str, Timed]:
    """By the keys of `LatencyTable`. Raises ResourceError where there are too many."""
    parts, timed = space.parts(), dict[str, Timed]()
    if (number := len(parts.keys)) > _MAX_PARTS:
        raise ResourceError(f"latency: the space has {number:,} parts to time, at most {_MAX_PARTS:,} can be")
    for stage, channels, before in parts.embeddings:
        grid = stage.grid_after(before)
        key = embedding_key(stage, in_channels=channels, grid=grid)
        images = Input((channels, *before), channels_last=True)
        timed[key] = Timed.of(partial(ConvEmbed, stage, channels, grid), (images,))
    for block, dim, grid, token in parts.blocks:
        key = block_key(block, embed_dim=dim, grid=grid, class_token=token)
        tokens = Input((math.prod(grid) + token, dim))
        timed[key] = Timed.of(partial(Block, block, dim, token, 0.0), (tokens, grid))
    for dim, grid in parts.heads:
        tokens = Input((1 if space.stages[-1].class_token else math.prod(grid), dim))
        head = partial(_head, dim, space.num_classes)
        timed[head_key(dim=dim, grid=grid)] = Timed.of(head, (tokens,))
    return timed


def _head(dim: int, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def memory_size(module: nn.Module) -> int:
    """How many values `place` takes of the memory."""
    return sum(map(_aligned, _tensors(module).values()))


def _aligned(tensor: Tensor) -> int:
    """Its number of values, rounded up to whole lines of a cache."""
    return -(-tensor.numel() // 16) * 16


def place(module: nn.Module, memory: Tensor) -> None:
    """Gives a module without memory the first part of `memory`."""
    start, state = 0, dict[str, Tensor]()
    for name, tensor in _tensors(module).items():
        if tensor.is_floating_point():
            state[name] = memory[start : start + tensor.numel()].view(tensor.shape)
            start += _aligned(tensor)
        else:
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype, device=memory.device)
    module.load_state_dict(state, assign=True)


class Plan(NamedTuple):
    """What is timed for a table, and how the times become one.

    Args:
        parts: By their keys.
        networks: Drawn evenly. The first of them fit the sums of parts to whole networks, and the others judge that.
        settings: The other plain values that `table_of` needs.
    """

    parts: dict[str, Timed]
    networks: list[ArchConfig]
    settings: dict[str, object]


def plan_of(space: SearchSpace, deployment: Deployment, *, num_judged: int, seed: int) -> Plan:
    """Args:
        space: With images of the size that the deployment has.
        deployment: With the device and the number of threads told.

    Raises:
        ResourceError: The space has too many parts.
    """
    parts = parts_of(space)
    keys = list(parts)
    free = replace(space, bounds={m: bound for m, bound in space.bounds.items() if m not in TIMED_METRICS})
    rng = random.Random(f"{seed} latency")
    genomes = [free.sample_feasible(rng) or free.sample(rng) for _ in range(_NUM_FITTED + num_judged)]
    networks = [free.decode(genome) for genome in genomes]
    counts = [part_counts(arch) for arch in networks]
    return Plan(
        parts,
        networks,
        {
            "keys": keys,
            "networks": [{"counts": [count[key] for key in keys]} for count in counts],
            "num_fitted": _NUM_FITTED,
            "seed": seed,
            "deployment": deployment.to_json(),
            "space": space.parts().id,
        },
    )
