"""Weights from elsewhere for a supernet, which has a place for each tensor whatever network it is of."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from cvt_nas.arch import ArchConfig, BlockConfig, StageConfig, mlp_width
from cvt_nas.errors import ArchError, first_line
from cvt_nas.model.checkpoints import Weights
from cvt_nas.model.weights import check_fits, head_rows, shapes_of


def lent_state(
    weights: Weights, num_classes: int, classes: Sequence[str] | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors that weights lend to a network of so many classes, and notes for people; the head's only where it is
    of these classes. Raises ArchError where tensors are missing, or are of no CvT."""
    state = dict(weights.state)
    arch = weights.arch or _arch_by_shapes(weights)
    whole = {**shapes_of(arch)}
    for name in whole:
        if name.endswith(".pos_embed") and name in state:  # of a grid that depends on the size of images
            whole[name] = state[name]
        elif name.startswith(("head.", "norm.")) and name not in state:  # of a backbone
            state[name] = whole[name]
    check_fits(weights, state, whole, arch)
    rows, note = head_rows(weights, num_classes, classes)
    lent = {name: tensor for name, tensor in weights.state.items() if rows is not None or not name.startswith("head.")}
    if rows is not None:
        lent |= {name: lent[name][list(rows)] for name in ("head.weight", "head.bias")}
    return lent, (*weights.notes, *(() if note is None else (note,)))


def _arch_by_shapes(weights: Weights) -> ArchConfig:
    """A network with tensors of these shapes. What no shape tells, such as the number of heads, is anything."""
    state, stages = weights.state, []
    try:
        while f"stage{len(stages)}.patch_embed.proj.weight" in state:
            stages.append(_stage_by_shapes(state, f"stage{len(stages)}"))
        channels = state["stage0.patch_embed.proj.weight"].shape[1]
        return ArchConfig(
            image_size=1024, num_channels=channels, num_classes=weights.num_classes or 1, stages=tuple(stages)
        )
    except (KeyError, IndexError, ValueError, ArithmeticError) as error:
        raise ArchError(f"{weights.path}: is no state dict of a CvT: {first_line(error)}") from error


def _stage_by_shapes(state: Mapping[str, Tensor], name: str) -> StageConfig:
    width, _, side, _ = state[f"{name}.patch_embed.proj.weight"].shape
    blocks = []
    while (mlp := f"{name}.blocks.{len(blocks)}.mlp.fc1.weight") in state:
        kernel = state.get(f"{name}.blocks.{len(blocks)}.attn.conv_proj_q.conv.weight")
        ratio = (hidden := state[mlp].shape[0]) / width
        if mlp_width(width, ratio) != hidden:  # by rounding
            ratio = math.nextafter(ratio, math.inf)
        blocks.append(
            BlockConfig(projection="linear", kernel_size=1, kv_stride=1, mlp_ratio=ratio)
            if kernel is None
            else BlockConfig(kernel_size=kernel.shape[-1], mlp_ratio=ratio)
        )
    return StageConfig(
        patch_kernel=side,
        patch_stride=1,
        patch_padding=side // 2,
        embed_dim=width,
        blocks=tuple(blocks),
        class_token=f"{name}.cls_token" in state,
        pos_embed=f"{name}.patch_embed.pos_embed" in state,
    )
