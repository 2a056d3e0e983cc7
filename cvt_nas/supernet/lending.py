"""What trained weights lend to a supernet that begins with them."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cvt_nas.model import Weights, lent_state, read_weights
from cvt_nas.space import SearchSpace


def lent_weights(
    space: SearchSpace, path: Path, *, classes: Sequence[str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What the weights at `path` lend to a supernet of `space` for data of these classes, in their order, see
    `Supernet.insert_state`; and notes for people. Raises ArchError where they cannot be read, or are of no CvT."""
    weights = read_weights(path)
    state, notes = lent_state(weights, space.num_classes, classes)
    return state, (*notes, *_elsewhere(space, weights))


def _elsewhere(space: SearchSpace, weights: Weights) -> list[str]:
    """What shows in no weight, and is otherwise in the network that they are of, or not known of it; a line each."""
    if weights.arch is None:
        activation = ", and gelu, as transformers computes it" if weights.is_port else ""
        return [f"{weights.path}: nothing tells the heads, strides and paddings that the weights were trained with"
                f"{activation}; those of the space are used"]  # fmt: skip
    found = []
    for index, (stage, theirs) in enumerate(zip(space.stages, weights.arch.stages, strict=False)):
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
