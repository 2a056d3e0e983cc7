"""Units of a network and their order: channels of a stage, heads, hidden units, and whole blocks.

A unit lies along an axis of several tensors. If all of these are permuted together, the network's answers do not
change. After sorting by importance, the first units are the best part for a smaller network.
"""

import dataclasses
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from cvt_nas.arch import ArchConfig
from cvt_nas.model.lending import Lent

# Units along the rows and columns of a block's linear layers. Other axes have the channels of the stage.
_ROWS = {"attn.proj_q": "queries", "attn.proj_k": "queries", "attn.proj_v": "values", "mlp.fc1": "hidden"}
_COLUMNS = {"attn.proj": "values", "mlp.fc2": "hidden"}
WRITERS = ("attn.proj", "mlp.fc2")  # layers with which a block adds to the residual stream
_PLACE = re.compile(r"(?P<stage>stage(?P<index>\d+))\.(?P<block>blocks\.\d+\.)?(?P<part>.+)")


def units_of(name: str, arch: ArchConfig) -> tuple[str | None, ...]:
    """Returns the kind of units along each axis of a tensor; None for classes, pixels and similar axes.

    >>> units_of("stage0.blocks.0.mlp.fc1.weight", arch)
    ('stage0.blocks.0.hidden', 'stage0')
    """
    if (place := _PLACE.fullmatch(name)) is None:
        last = f"stage{len(arch.stages) - 1}"
        return {"head.weight": (None, last), "head.bias": (None,)}.get(name, (last,))
    stage, block, part = place["stage"], place["block"], place["part"]
    if part == "cls_token":
        return None, None, stage
    if part == "patch_embed.pos_embed":
        return None, stage, None, None
    if part == "patch_embed.proj.weight":
        before = int(place["index"]) - 1
        return stage, f"stage{before}" if before >= 0 else None, None, None
    if part.endswith("conv.weight"):
        return stage, None, None, None
    if part.endswith("num_batches_tracked"):
        return ()
    module, _, kind = part.rpartition(".")
    rows = f"{stage}.{block}{_ROWS[module]}" if module in _ROWS else stage
    if kind != "weight" or not re.fullmatch(r"attn\.proj(_[qkv])?|mlp\.fc[12]", module):
        return (rows,)
    return rows, f"{stage}.{block}{_COLUMNS[module]}" if module in _COLUMNS else stage


def magnitudes(lent: Lent) -> dict[str, Tensor]:
    """Absolute values of the weights of matrices and kernels. Norms and biases tell little about units."""
    return {name: tensor.abs() for name, tensor in lent.state.items() if len(units_of(name, lent.arch)) > 1}


def sorted_by(lent: Lent, scores: Mapping[str, Tensor], *, importance: str) -> Lent:
    """Returns the same network with units sorted by importance, the most important first.

    Blocks are ranked but not moved, since their order matters. Whole heads are sorted, and the channels within each
    head. Their order is kept if the number of heads is unknown.

    Args:
        scores: Scores of weights, in the shapes of their tensors. The score of a unit is the sum over its weights.
        importance: Name of the scores.
    """
    totals = _totals_of(scores, lent.arch)
    orders = {unit: _descending(total) for unit, total in totals.items() if not unit.endswith(("queries", "values"))}
    ranks = []
    for index, stage in enumerate(lent.arch.stages):
        names = [f"stage{index}.blocks.{number}." for number in range(len(stage.blocks))]
        ranks.append(
            _descending(torch.tensor([sum(float(scores[f"{n}{w}.weight"].sum()) for w in WRITERS) for n in names]))
        )
        for name, block in zip(names, stage.blocks, strict=True):
            if lent.knows_heads:
                inner = (totals[name + "queries"], totals[name + "values"])
                orders |= dict(zip((name + "queries", name + "values"), _by_head(inner, block.num_heads), strict=True))
    state = {}
    for name, tensor in lent.state.items():
        for axis, unit in enumerate(units_of(name, lent.arch)):
            if unit in orders:
                tensor = tensor.index_select(axis, orders[unit])
        state[name] = tensor
    blocks = tuple(tuple(rank.tolist()) for rank in ranks)
    return dataclasses.replace(lent, state=state, blocks=blocks, importance=importance)


def _totals_of(scores: Mapping[str, Tensor], arch: ArchConfig) -> dict[str, Tensor]:
    """Scores of units, by kinds of units."""
    totals: dict[str, Tensor] = {}
    for name, score in scores.items():
        for axis, unit in enumerate(units_of(name, arch)):
            if unit is not None:
                found = score.double().movedim(axis, 0).flatten(1).sum(1) if score.ndim > 1 else score.double()
                totals[unit] = totals.get(unit, torch.zeros_like(found)) + found
    return totals


def _by_head(totals: tuple[Tensor, Tensor], num_heads: int) -> list[Tensor]:
    """Orders of a block's queries and keys, and of its values."""
    heads = [total.unflatten(0, (num_heads, -1)) for total in totals]
    order = _descending(sum(head.sum(1) for head in heads))  # type: ignore[arg-type]
    width = heads[0].shape[1]
    return [
        (order[:, None] * width + head.argsort(dim=1, descending=True, stable=True)[order]).flatten() for head in heads
    ]


def _descending(scores: Tensor) -> Tensor:
    return scores.argsort(descending=True, stable=True)
