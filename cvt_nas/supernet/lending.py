"""Lends trained weights to the networks of a space, and to their supernet."""

from collections.abc import Collection, Sequence
from typing import Any

from cvt_nas.arch import mlp_width
from cvt_nas.errors import ArchError
from cvt_nas.model import Lent, Weights, cut_state, lend
from cvt_nas.space import SearchSpace
from cvt_nas.supernet.shared import Supernet


def lend_to(space: SearchSpace, weights: Weights, *, classes: Sequence[str]) -> tuple[Lent, tuple[str, ...]]:
    """The part of `weights` that networks of `space` can use.

    Args:
        classes: Names of the classes of the data, in their order.

    Returns:
        The lent weights, and notes for the user: the weights that are used, the parts of the largest networks that
        begin afresh, and the settings of the pretrained network that no network of the space has.

    Raises:
        ArchError: The weights belong to no CvT, or to one with another number of stages.
    """
    lent, notes = lend(weights, num_channels=space.num_channels, num_classes=space.num_classes, classes=classes)
    if len(lent.arch.stages) != len(space.stages):
        raise ArchError(
            f"{weights.path}: is of a network of {len(lent.arch.stages)} stages, and the space has {len(space.stages)}"
        )
    return lent, (*notes, *_elsewhere(space, weights, lent), *_afresh(space, lent))


def begin_supernet(supernet: Supernet, lent: Lent) -> None:
    """Gives the supernet the initial weights of its largest network; see `model.cut_state`."""
    supernet.insert_state(cut_state(lent, supernet.largest, supernet.shared.state_dict()))


def _afresh(space: SearchSpace, lent: Lent) -> list[str]:
    """Notes on the parts of the largest networks that the lent weights lack, a line for each kind."""
    found: dict[str, list[str]] = {}
    for index, (ours, theirs) in enumerate(zip(space.largest.stages, lent.arch.stages, strict=True)):
        hidden = [max(mlp_width(stage.embed_dim, b.mlp_ratio) for b in stage.blocks) for stage in (ours, theirs)]
        sizes = {
            "channels": (ours.embed_dim, theirs.embed_dim),
            "blocks": (len(ours.blocks), len(theirs.blocks)),
            "hidden units": (hidden[0], hidden[1]),
        }
        for what, (own, others) in sizes.items():
            if own > others:
                found.setdefault(what, []).append(f"{own} instead of {others} in stage {index}")
    notes = [f"{what} beyond those of the weights begin afresh: {', '.join(where)}" for what, where in found.items()]
    if space.stages[-1].class_token and not lent.arch.stages[-1].class_token:
        notes.append("the class token begins afresh: the weights have none")
    return notes


def _elsewhere(space: SearchSpace, weights: Weights, lent: Lent) -> list[str]:
    """Notes on settings that no weight shows, if those of the pretrained network differ or are unknown, a line each."""
    if not lent.knows_heads:
        activation = ", and gelu, as transformers computes it" if weights.is_port else ""
        return [f"{weights.path}: nothing tells the heads, strides and paddings that the weights were trained with"
                f"{activation}; those of the space are used"]  # fmt: skip
    found = []
    for index, (stage, theirs) in enumerate(zip(space.stages, lent.arch.stages, strict=True)):
        options: dict[str, Collection[Any]] = {
            "patch_stride": stage.patch_stride,
            "patch_padding": [stage.padding_of(kernel) for kernel in stage.patch_kernel],
            "num_heads": stage.num_heads,
            "kv_stride": stage.kv_stride,
            "activation": [stage.activation],
        }
        for name, values in options.items():
            told = {getattr(part, name) for part in ([theirs] if name.startswith("patch_") else theirs.blocks)}
            if odd := sorted(told - set(values)):
                shown = " or ".join(map(str, dict.fromkeys(values)))
                found.append(f"{name}: {shown} instead of {' and '.join(map(str, odd))} in stage {index}")
    return found
