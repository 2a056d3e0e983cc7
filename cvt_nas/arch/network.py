"""One architecture as frozen values."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from cvt_nas.arch.sizes import GREATEST, Grid, ImageSize, checked_size, sides_of, size_text
from cvt_nas.errors import ArchError

Projection = Literal["dw_bn", "avg", "linear"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
Activation = Literal["quick_gelu", "gelu"]


def _check_whole(config: Any, *names: str, least: int = 1) -> None:
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or not least <= value <= GREATEST:
            raise ArchError(f"{name}: got {value!r}, must be a whole number of at least {least}")


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockConfig:
    """One transformer block.

    Args:
        kv_stride: Stride of the convolutional projection of keys and values. Queries have stride 1.
        kernel_size: Side of the kernel of that projection. It is odd, and padding is half of it.
        num_heads: Parts into which attention divides the channels. Changes neither params nor FLOPs.
        mlp_ratio: Hidden width of the MLP as a multiple of `embed_dim`.
        projection: `dw_bn` is a depth-wise convolution and batch norm before each linear layer (figures 3b and 3c of
            the paper), `avg` is average pooling of keys and values, `linear` is neither (figure 3a).
        activation: Activation of the MLP. `quick_gelu` as in the official code, `gelu` as in its port in transformers.
    """

    kv_stride: int = 2
    kernel_size: int = 3
    num_heads: int = 1
    mlp_ratio: float = 4.0
    projection: Projection = "dw_bn"
    activation: Activation = "quick_gelu"

    def __post_init__(self) -> None:
        _check_whole(self, "kv_stride", "kernel_size", "num_heads")
        if self.kernel_size % 2 == 0:
            raise ArchError(f"kernel_size: got {self.kernel_size}, must be odd to keep the grid of the queries")
        if not 0 < self.mlp_ratio <= GREATEST:
            raise ArchError(f"mlp_ratio: got {self.mlp_ratio}, must be above 0")
        if self.projection not in PROJECTIONS:
            raise ArchError(f"projection: got {self.projection!r}, must be one of {', '.join(PROJECTIONS)}")
        if self.activation not in get_args(Activation):
            raise ArchError(f"activation: got {self.activation!r}, must be one of {', '.join(get_args(Activation))}")
        if self.projection == "linear" and (self.kv_stride, self.kernel_size) != (1, 1):
            raise ArchError(
                f"projection 'linear' has neither kernel nor stride: got kernel_size {self.kernel_size} and "
                f"kv_stride {self.kv_stride}, must be 1 and 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """A convolutional token embedding and the blocks after it.

    Args:
        patch_kernel, patch_stride, patch_padding: Geometry of the embedding's convolution.
        embed_dim: Width of the stage's tokens.
        class_token: Whether the stage has a class token. Only the last stage may.
        pos_embed: Whether a learned position embedding is added to each token.
    """

    patch_kernel: int
    patch_stride: int
    patch_padding: int
    embed_dim: int
    blocks: tuple[BlockConfig, ...]
    class_token: bool = False
    pos_embed: bool = False

    def __post_init__(self) -> None:
        _check_whole(self, "patch_kernel", "patch_stride", "embed_dim")
        _check_whole(self, "patch_padding", least=0)
        for name in ("class_token", "pos_embed"):
            if not isinstance(getattr(self, name), bool):
                raise ArchError(f"{name}: got {getattr(self, name)!r}, must be true or false")
        if not self.blocks:
            raise ArchError("blocks: got none, a stage needs at least one")
        for block in self.blocks:
            if self.embed_dim % block.num_heads:
                raise ArchError(f"num_heads: got {block.num_heads}, must divide embed_dim {self.embed_dim}")

    def grid_after(self, grid: Grid) -> Grid:
        """Token grid after the embedding of an image or a map of tokens. A side is below 1 if no token is left."""
        height, width = ((side + 2 * self.patch_padding - self.patch_kernel) // self.patch_stride + 1 for side in grid)
        return height, width


@dataclass(frozen=True, kw_only=True)
class ArchConfig:
    """All that is needed to build one network.

    Args:
        image_size: Side of square images, or height and width, in pixels.
        num_channels: 1 for grey images, 3 for colour.
        num_classes: Width of the head.

    Raises:
        ArchError: The network cannot exist: a stage has no tokens, heads do not divide the width, or a stage before the
            last has a class token.
    """

    image_size: ImageSize
    num_channels: int = 3
    num_classes: int
    stages: tuple[StageConfig, ...]

    def __post_init__(self) -> None:
        try:
            object.__setattr__(
                self, "image_size", checked_size(self.image_size)
            )  # one form of each size, so that ids are equal
        except ValueError as error:
            raise ArchError(f"image_size: got {self.image_size!r}, {error}") from error
        _check_whole(self, "num_channels", "num_classes")
        if not self.stages:
            raise ArchError("stages: got none, must be at least one")
        if any(stage.class_token for stage in self.stages[:-1]):
            raise ArchError("class_token: only the last stage can have one")
        before = sides_of(self.image_size)
        for index, (stage, grid) in enumerate(zip(self.stages, self.grids, strict=True)):
            if min(grid) < 1:
                raise ArchError(
                    f"stage {index}: no token is left of a grid of {size_text(before)} after patch kernel "
                    f"{stage.patch_kernel}, stride {stage.patch_stride}, padding {stage.patch_padding}"
                )
            before = grid

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Height and width of the token grid of each stage."""
        grids, grid = [], sides_of(self.image_size)
        for stage in self.stages:
            grid = stage.grid_after(grid)
            grids.append(grid)
        return tuple(grids)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return (self.num_channels, *sides_of(self.image_size))

    @property
    def depth(self) -> int:
        """Number of blocks over all the stages."""
        return sum(len(stage.blocks) for stage in self.stages)

    @cached_property
    def id(self) -> str:
        """Short hash of the canonical JSON. Equal networks have equal ids on all machines."""
        canonical = json.dumps(arch_to_dict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:10]

    def with_image_size(self, image_size: ImageSize) -> "ArchConfig":
        """The same network for images of another size. Weights stay the same, costs differ."""
        return dataclasses.replace(self, image_size=image_size)


def arch_to_dict(arch: ArchConfig) -> dict[str, Any]:
    """`arch` as plain JSON values; `arch_from_dict` is the inverse."""
    tree = _fields_of(arch)  # dataclasses.asdict takes ten times as long, and a report has thousands of networks
    tree["stages"] = stages = [_fields_of(stage) for stage in arch.stages]
    for stage in stages:
        if not stage["pos_embed"]:  # left out, like the default activation, so that older ids stay the same
            del stage["pos_embed"]
        stage["blocks"] = blocks = [_fields_of(block) for block in stage["blocks"]]
        for block in blocks:
            block["mlp_ratio"] = float(block["mlp_ratio"])
            if block["activation"] == "quick_gelu":
                del block["activation"]
    return json.loads(json.dumps(tree))


def _fields_of(value: ArchConfig | StageConfig | BlockConfig) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def arch_from_dict(tree: Mapping[str, Any]) -> ArchConfig:
    """Inverse of `arch_to_dict`. Raises ArchError if a key is missing or unknown, or the network cannot exist."""
    try:
        stages = tuple(
            StageConfig(
                **{
                    **stage,
                    "blocks": tuple(
                        BlockConfig(**{**block, "mlp_ratio": float(block["mlp_ratio"])}) for block in stage["blocks"]
                    ),
                }
            )
            for stage in tree["stages"]
        )
        return ArchConfig(**{**tree, "stages": stages})
    except ArchError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ArchError(f"not an architecture: {error}") from error


def describe_stages(arch: ArchConfig) -> tuple[str, ...]:
    """One line of text for each stage. Values that differ between blocks are listed by block."""
    lines = []
    for index, (stage, grid) in enumerate(zip(arch.stages, arch.grids, strict=True)):

        def each(name: str, blocks: tuple[BlockConfig, ...] = stage.blocks) -> str:
            values = [getattr(block, name) for block in blocks]
            shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
            return shown[0] if len(set(shown)) == 1 else "[" + " ".join(shown) + "]"

        lines.append(
            f"stage {index}: {grid[0]}x{grid[1]} tokens, width {stage.embed_dim}, depth {len(stage.blocks)}, "
            f"heads {each('num_heads')}, mlp {each('mlp_ratio')}, kernel {each('kernel_size')}, "
            f"kv stride {each('kv_stride')}, {each('projection')}"
            + (f", {each('activation')}" if any(block.activation != "quick_gelu" for block in stage.blocks) else "")
            + (", position embedding" if stage.pos_embed else "")
        )
    return tuple(lines)
