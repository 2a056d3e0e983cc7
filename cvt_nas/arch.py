"""One architecture and its cost: frozen values, no torch.

An `ArchConfig` holds all that is needed to build a network. Its cost is a closed form, so a search
knows the parameters and FLOPs of every candidate before it spends anything on it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from cvt_nas.errors import ArchError

Projection = Literal["dw_bn", "avg", "linear"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
Activation = Literal["quick_gelu", "gelu"]

# fvcore's handles count a layer norm with weights as 5 operations an element, and a batch norm in
# eval mode as 2 (one multiply, one add).
_LAYER_NORM_FLOPS = 5
_BATCH_NORM_FLOPS = 2


_GREATEST = 2**20  # of any size: more is a mistake, or meant to exhaust the machine


def _check_whole(config: Any, *names: str, least: int = 1) -> None:
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or not least <= value <= _GREATEST:
            raise ArchError(f"{name}: got {value!r}, must be a whole number of at least {least}")


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockConfig:
    """One transformer block.

    Args:
        kv_stride: Stride of the convolutional projection of keys and values; queries keep stride 1.
        kernel_size: Odd side of that projection's kernel, padded by half of it.
        num_heads: Parts into which attention divides the channels. Changes neither params nor FLOPs.
        mlp_ratio: Hidden width of the MLP as a multiple of `embed_dim`.
        projection: `dw_bn` depth-wise convolution and batch norm before each linear (CvT, figure 3b
            and 3c of the paper), `avg` average pooling of keys and values, `linear` none (figure 3a).
        activation: Of the MLP: `quick_gelu` as in the official code, `gelu` as in transformers' port of it.
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
        if not 0 < self.mlp_ratio <= _GREATEST:
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
        blocks: Its transformer blocks, first to last.
        class_token: Whether a class token joins the tokens; the last stage only.
        pos_embed: Whether a learned vector is added to each token at its place on the map.
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

    def grid_after(self, grid: int) -> int:
        """Side of the token grid that the embedding makes of one of side `grid`; below 1 where none is left."""
        return (grid + 2 * self.patch_padding - self.patch_kernel) // self.patch_stride + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchConfig:
    """One network, complete: enough to build it with no other file at hand.

    Args:
        image_size: Side of the square images, in pixels.
        num_channels: 1 for grey images, 3 for colour.
        num_classes: Width of the head.
        stages: First to last.

    Raises:
        ArchError: It cannot exist: a stage left without tokens, heads that do not divide the width,
            a class token before the last stage.
    """

    image_size: int
    num_channels: int = 3
    num_classes: int
    stages: tuple[StageConfig, ...]

    def __post_init__(self) -> None:
        _check_whole(self, "image_size", "num_channels", "num_classes")
        if not self.stages:
            raise ArchError("stages: got none, must be at least one")
        if any(stage.class_token for stage in self.stages[:-1]):
            raise ArchError("class_token: only the last stage can have one")
        grid = self.image_size
        for index, stage in enumerate(self.stages):
            before, grid = grid, stage.grid_after(grid)
            if grid < 1:
                raise ArchError(
                    f"stage {index}: no token is left of a grid of {before} x {before} after patch kernel "
                    f"{stage.patch_kernel}, stride {stage.patch_stride}, padding {stage.patch_padding}"
                )

    @property
    def grids(self) -> tuple[int, ...]:
        """Side of each stage's token grid."""
        sides, grid = [], self.image_size
        for stage in self.stages:
            grid = stage.grid_after(grid)
            sides.append(grid)
        return tuple(sides)

    @property
    def depth(self) -> int:
        """Number of blocks over all the stages."""
        return sum(len(stage.blocks) for stage in self.stages)

    @property
    def id(self) -> str:
        """Short hash of the canonical JSON: equal for equal networks, on every machine."""
        return _id_of(self)

    def with_image_size(self, image_size: int) -> "ArchConfig":
        """The same network for images of another size: the weights fit, the costs differ."""
        return dataclasses.replace(self, image_size=image_size)


@lru_cache(maxsize=65536)
def _id_of(arch: ArchConfig) -> str:
    canonical = json.dumps(arch_to_dict(arch), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def arch_to_dict(arch: ArchConfig) -> dict[str, Any]:
    """`arch` as plain JSON values; `arch_from_dict` is the inverse."""
    tree = dataclasses.asdict(arch)
    for stage in tree["stages"]:
        if not stage["pos_embed"]:  # left out, as is the usual activation: networks keep the ids they had without it
            del stage["pos_embed"]
        for block in stage["blocks"]:
            block["mlp_ratio"] = float(block["mlp_ratio"])
            if block["activation"] == "quick_gelu":
                del block["activation"]
    return json.loads(json.dumps(tree))


def arch_from_dict(tree: Mapping[str, Any]) -> ArchConfig:
    """Inverse of `arch_to_dict`.

    Raises:
        ArchError: A key is missing or unknown, or the network cannot exist.
    """
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
    """One line for each stage, for people; a value that differs from block to block is listed by block."""
    lines = []
    for index, (stage, grid) in enumerate(zip(arch.stages, arch.grids, strict=True)):

        def each(name: str, blocks: tuple[BlockConfig, ...] = stage.blocks) -> str:
            values = [getattr(block, name) for block in blocks]
            shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
            return shown[0] if len(set(shown)) == 1 else "[" + " ".join(shown) + "]"

        lines.append(
            f"stage {index}: {grid}x{grid} tokens, width {stage.embed_dim}, depth {len(stage.blocks)}, "
            f"heads {each('num_heads')}, mlp {each('mlp_ratio')}, kernel {each('kernel_size')}, "
            f"kv stride {each('kv_stride')}, {each('projection')}"
            + (f", {each('activation')}" if any(block.activation != "quick_gelu" for block in stage.blocks) else "")
            + (", position embedding" if stage.pos_embed else "")
        )
    return tuple(lines)


def load_arch(name_or_path: str | Path) -> ArchConfig:
    """A published architecture by name, or the one in an `arch.json` (or in a folder that holds one).

    Raises:
        ArchError: Neither a known name nor a readable file.
    """
    if str(name_or_path) in NAMED_ARCHS:
        return NAMED_ARCHS[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "arch.json"
    if not path.is_file():
        raise ArchError(f"{name_or_path}: neither one of {', '.join(NAMED_ARCHS)} nor a file arch.json")
    try:
        tree = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ArchError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArchError(f"{path}: not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ArchError(f"{path}: got a {type(tree).__name__}, must be an object with the keys of an architecture")
    return arch_from_dict(tree)


def save_arch(arch: ArchConfig, path: Path) -> None:
    """Writes `arch` to `path` as JSON that `load_arch` reads."""
    path.write_text(json.dumps(arch_to_dict(arch), indent=2) + "\n")


def cvt(
    *,
    embed_dims: tuple[int, ...],
    depths: tuple[int, ...],
    num_heads: tuple[int, ...],
    stem_kernel: int = 7,
    stem_padding: int = 2,  # 2 in the official files, not 7 // 2
    class_token: bool = True,
    kv_stride: int = 2,
    image_size: int = 224,
    num_classes: int = 1000,
) -> ArchConfig:
    """A CvT as published: 7x7 stem of stride 4, then 3x3 of stride 2, 3x3 projections, MLP ratio 4."""
    return ArchConfig(
        image_size=image_size,
        num_classes=num_classes,
        stages=tuple(
            StageConfig(
                patch_kernel=stem_kernel if index == 0 else 3,
                patch_stride=4 if index == 0 else 2,
                patch_padding=stem_padding if index == 0 else 1,
                embed_dim=dim,
                blocks=(BlockConfig(num_heads=heads, kv_stride=kv_stride),) * depth,
                class_token=class_token and index == len(embed_dims) - 1,
            )
            for index, (dim, depth, heads) in enumerate(zip(embed_dims, depths, num_heads, strict=True))
        ),
    )


# Wu et al. 2021, arXiv:2103.15808, table 2, and experiments/imagenet/cvt of github.com/microsoft/CvT.
NAMED_ARCHS: dict[str, ArchConfig] = {
    "cvt-13": cvt(embed_dims=(64, 192, 384), depths=(1, 2, 10), num_heads=(1, 3, 6)),
    "cvt-21": cvt(embed_dims=(64, 192, 384), depths=(1, 4, 16), num_heads=(1, 3, 6)),
    "cvt-w24": cvt(embed_dims=(192, 768, 1024), depths=(2, 2, 20), num_heads=(3, 12, 16), image_size=384),
    # model/vit/cvt.py of github.com/pprp/PyTorch-CIFAR-Model-Hub: CvT-13 with another stem kernel and no class token
    "cvt-13-cifar": cvt(
        embed_dims=(64, 192, 384),
        depths=(1, 2, 10),
        num_heads=(1, 3, 6),
        stem_kernel=3,
        stem_padding=1,
        class_token=False,
        image_size=32,
        num_classes=10,
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a network costs: params and FLOPs exactly.

    Args:
        params: Learnable parameters.
        flops: Operations of one image's forward pass in eval mode, by fvcore's convention: one
            multiply-add is one; attention's two products, layer norm (5 an element) and batch norm
            (2) are counted; softmax, activations, additions and pooling are not.
        latency_us: Microseconds of one image's forward pass, as a `LatencyTable` predicts them; 0 without one.
    """

    params: int
    flops: int
    latency_us: int = 0

    @property
    def latency_ms(self) -> float:
        return self.latency_us / 1000

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            params=self.params + other.params,
            flops=self.flops + other.flops,
            latency_us=self.latency_us + other.latency_us,
        )

    def to_json(self) -> dict[str, int]:
        """The arguments; latency only where it is known."""
        known = {"latency_us": self.latency_us} if self.latency_us else {}
        return {"params": self.params, "flops": self.flops, **known}


def kv_grid(grid: int, block: BlockConfig) -> int:
    """Side of the grid of keys and values for queries on a grid of side `grid`.

    `dw_bn` pads by half the kernel, so it keeps every `kv_stride`-th position. `avg` pools with
    torch's `ceil_mode`, which also keeps a last window that starts inside the image or its padding.
    """
    if block.projection == "linear":
        return grid
    if block.projection == "dw_bn":
        return (grid - 1) // block.kv_stride + 1
    side = -((1 - grid) // block.kv_stride) + 1
    return side - 1 if (side - 1) * block.kv_stride >= grid + block.kernel_size // 2 else side


@lru_cache(maxsize=65536)
def block_cost(block: BlockConfig, *, embed_dim: int, grid: int, class_token: bool) -> Cost:
    """Cost of one block on `grid` x `grid` tokens, and the class token where there is one."""
    dim, hidden = embed_dim, mlp_width(embed_dim, block.mlp_ratio)
    queries_map, kv_map = grid**2, kv_grid(grid, block) ** 2
    queries, keys = queries_map + class_token, kv_map + class_token

    linears = dim * dim * (2 * queries + 2 * keys) + 2 * queries * dim * hidden
    attention = _attention_flops(block, embed_dim=dim, grid=grid, class_token=class_token)
    norms = 2 * _LAYER_NORM_FLOPS * queries * dim
    params = 4 * (dim * dim + dim) + 2 * dim * hidden + hidden + dim + 4 * dim
    convolutions = 0
    if block.projection == "dw_bn":
        maps = queries_map + 2 * kv_map
        convolutions = maps * dim * block.kernel_size**2
        norms += _BATCH_NORM_FLOPS * maps * dim
        params += 3 * (dim * block.kernel_size**2 + 2 * dim)
    return Cost(params=params, flops=linears + attention + norms + convolutions)


def _attention_flops(block: BlockConfig, *, embed_dim: int, grid: int, class_token: bool) -> int:
    """Of the products of queries with keys, and of what comes of them with values."""
    return 2 * (grid**2 + class_token) * (kv_grid(grid, block) ** 2 + class_token) * embed_dim


def mlp_width(embed_dim: int, mlp_ratio: float) -> int:
    """Hidden width of a block's MLP, rounded down as in the official code."""
    return int(embed_dim * mlp_ratio)


def embedding_cost(stage: StageConfig, *, in_channels: int, grid: int) -> Cost:
    """Cost of a stage's convolutional token embedding, with its layer norm, and what is learned beside it."""
    dim = stage.embed_dim
    weights = dim * in_channels * stage.patch_kernel**2
    return Cost(
        params=weights + dim + 2 * dim + dim * stage.class_token + dim * grid**2 * stage.pos_embed,
        flops=weights * grid**2 + _LAYER_NORM_FLOPS * dim * grid**2,
    )


def head_cost(*, dim: int, grid: int, class_token: bool, num_classes: int) -> Cost:
    """Cost of the last layer norm, over the class token or else every token, and of the classifier."""
    normed = 1 if class_token else grid**2
    return Cost(
        params=2 * dim + (dim + 1) * num_classes,
        flops=_LAYER_NORM_FLOPS * normed * dim + dim * num_classes,
    )


def stage_cost(stage: StageConfig, *, in_channels: int, side: int) -> Cost:
    """Cost of a stage, its embedding and its blocks, on a map of side `side`."""
    grid = stage.grid_after(side)
    cost = embedding_cost(stage, in_channels=in_channels, grid=grid)
    for block in stage.blocks:
        cost += block_cost(block, embed_dim=stage.embed_dim, grid=grid, class_token=stage.class_token)
    return cost


def stage_costs(arch: ArchConfig) -> tuple[Cost, ...]:
    """Cost of each stage. The head is missing to the total."""
    costs, in_channels, side = [], arch.num_channels, arch.image_size
    for stage in arch.stages:
        costs.append(stage_cost(stage, in_channels=in_channels, side=side))
        in_channels, side = stage.embed_dim, stage.grid_after(side)
    return tuple(costs)


def cost_of(arch: ArchConfig) -> Cost:
    """Parameters and FLOPs of `arch`, in closed form: what fvcore counts on the built model, to the last unit."""
    last = arch.stages[-1]
    head = head_cost(
        dim=last.embed_dim, grid=arch.grids[-1], class_token=last.class_token, num_classes=arch.num_classes
    )
    return sum(stage_costs(arch), start=head)


def attention_flops(arch: ArchConfig) -> int:
    """FLOPs of attention's two products in all blocks: `cost_of` counts them, and many a paper does not."""
    return sum(
        _attention_flops(block, embed_dim=stage.embed_dim, grid=grid, class_token=stage.class_token)
        for stage, grid in zip(arch.stages, arch.grids, strict=True)
        for block in stage.blocks
    )
