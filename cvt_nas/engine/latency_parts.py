"""Modules to time: the parts of the networks of a space, and whole networks."""

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

_MAX_PARTS = 3_000  # in a table
_NUM_FITTED = 12  # whole networks that the scale of a table is fitted to


class Input(NamedTuple):
    """Images or tokens that a module gets. Their values do not matter.

    Args:
        shape: Shape of one item of the batch.
    """

    shape: tuple[int, ...]
    channels_last: bool = False


class Timed(NamedTuple):
    """A module without memory (on torch's device `meta`), and the arguments to call it with."""

    module: nn.Module
    inputs: tuple[Input | Grid, ...]

    @classmethod
    def of(cls, build: Callable[[], nn.Module], inputs: tuple[Input | Grid, ...]) -> "Timed":
        with torch.device("meta"):
            return cls(build().eval(), inputs)


def whole_of(arch: ArchConfig) -> Timed:
    return Timed.of(partial(CvT, arch), (Input(arch.image_shape, channels_last=True),))


def parts_of(space: SearchSpace) -> dict[str, Timed]:
    """Parts of a space by their keys in a `LatencyTable`. Raises ResourceError if there are too many."""
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
    """Number of values that `place` takes from the memory."""
    return sum(map(_aligned, _tensors(module).values()))


def _aligned(tensor: Tensor) -> int:
    """Number of values of a tensor, rounded up to whole cache lines."""
    return -(-tensor.numel() // 16) * 16


def place(module: nn.Module, memory: Tensor) -> None:
    """Makes a module without memory use the first part of `memory` for its weights."""
    start, state = 0, dict[str, Tensor]()
    for name, tensor in _tensors(module).items():
        if tensor.is_floating_point():
            state[name] = memory[start : start + tensor.numel()].view(tensor.shape)
            start += _aligned(tensor)
        else:
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype, device=memory.device)
    module.load_state_dict(state, assign=True)


class Plan(NamedTuple):
    """Modules to time for a table, and the settings that turn the times into a table.

    Args:
        parts: Parts by key.
        networks: Whole networks, drawn evenly. The sums of parts are fitted to the first ones, and the others judge the
            fit.
        settings: Plain values that `table_of` needs.
    """

    parts: dict[str, Timed]
    networks: list[ArchConfig]
    settings: dict[str, object]


def plan_of(space: SearchSpace, deployment: Deployment, *, num_judged: int, seed: int) -> Plan:
    """Chooses the parts and networks to time for a table.

    Args:
        space: Its images must have the size of the deployment.
        deployment: Must have a definite device and number of threads.
        num_judged: Number of whole networks that judge the table.
        seed: Seed of the random choice of whole networks.

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
