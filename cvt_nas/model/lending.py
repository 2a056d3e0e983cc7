"""Foreign weights as initial weights of networks of other sizes. Each takes the part that fits."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_of
from torch import Tensor

from cvt_nas.arch import NAMED_ARCHS, ArchConfig, BlockConfig, StageConfig, arch_from_dict, arch_to_dict, mlp_width
from cvt_nas.errors import ArchError, first_line
from cvt_nas.model.checkpoints import Weights, with_gelu
from cvt_nas.model.weights import HEAD, NORM, adapted_channels, check_fits, head_rows, shapes_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Lent:
    """Weights that networks of other sizes start from.

    Args:
        state: Tensors by official names, in fp32 on the CPU. There is no head if no class is known.
        arch: Architecture of the weights, with the channels and classes of the data.
        knows_heads: Whether the numbers of heads in `arch` are known. Shapes do not tell them.
        classes: Classes of the data that the rows of the head stand for.
        blocks: Blocks of each stage, the most important first.
        importance: Order of units and blocks.
    """

    state: Mapping[str, Tensor]
    arch: ArchConfig
    knows_heads: bool
    classes: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    importance: str = "none"

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.state.values())

    def to_bytes(self) -> bytes:
        """Content of a safetensors file. `load` is the inverse."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "state"}
        facts["arch"] = arch_to_dict(self.arch)
        state = {name: tensor.contiguous() for name, tensor in self.state.items()}
        return safetensors_of(state, {_FACTS: json.dumps(facts)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Loads a file of `to_bytes`.

        Raises:
            ArchError: The file is missing or damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts: dict[str, Any] = json.loads(file.metadata()[_FACTS])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
            return cls(
                state=state,
                arch=arch_from_dict(facts["arch"]),
                knows_heads=facts["knows_heads"],
                classes=tuple(facts["classes"]),
                blocks=tuple(map(tuple, facts["blocks"])),
                importance=facts["importance"],
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ArchError(f"{path}: {first_line(error)}") from error


_FACTS = "cvt_nas"


def lend(
    weights: Weights, *, num_channels: int, num_classes: int, classes: Sequence[str] | None = None
) -> tuple[Lent, tuple[str, ...]]:
    """Prepares `weights` for networks with these numbers of channels and classes, unsorted.

    Args:
        classes: Class names of the data in order, if known.

    Returns:
        The lent weights, and notes for people.

    Raises:
        ArchError: Tensors are missing, or are of no CvT.
    """
    state, notes = dict(weights.state), list(weights.notes)
    arch, knows_heads = _arch_of(weights)
    if weights.arch is None and knows_heads:
        notes.append(
            f"{weights.path}: taken for a published network, which the weights fit, with its heads and strides"
        )
    whole = dict(shapes_of(arch))
    for name in whole:
        if name.endswith(".pos_embed") and name in state:  # its grid depends on the image size
            whole[name] = state[name]
        elif name in (*HEAD, *NORM) and name not in state:  # a backbone has no head
            state[name] = whole[name]
    check_fits(weights, state, whole, arch)
    state = {name: tensor for name, tensor in weights.state.items() if name not in HEAD}
    rows, note = head_rows(weights, num_classes, classes)
    known = [index for index, row in enumerate(rows or ()) if row is not None]
    if rows is not None:
        state |= {name: weights.state[name][[rows[index] for index in known]] for name in HEAD}
    notes += [] if note is None else [note]
    notes += adapted_channels(state, num_channels)
    lent = Lent(
        state=state,
        arch=dataclasses.replace(arch, num_channels=num_channels, num_classes=num_classes),
        knows_heads=knows_heads,
        classes=tuple(known),
        blocks=tuple(tuple(range(len(stage.blocks))) for stage in arch.stages),
    )
    return lent, tuple(notes)


def _arch_of(weights: Weights) -> tuple[ArchConfig, bool]:
    """Returns the architecture of the weights, and whether its numbers of heads are known."""
    if weights.arch is not None:
        return weights.arch, True
    shapes = {name: tensor.shape for name, tensor in weights.state.items() if name not in HEAD}
    for named in NAMED_ARCHS.values():
        if {name: tensor.shape for name, tensor in shapes_of(named).items() if name not in HEAD} == shapes:
            arch = dataclasses.replace(named, num_classes=weights.num_classes or 1)
            return (with_gelu(arch) if weights.is_port else arch), True
    return _arch_by_shapes(weights), False


def _arch_by_shapes(weights: Weights) -> ArchConfig:
    """An architecture with tensors of these shapes. Settings that shapes do not tell, such as heads, are arbitrary."""
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
        if mlp_width(width, ratio) != hidden:  # differs by rounding
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
