"""What Hypothesis draws: architectures of every kind that can exist, and small spaces of them."""

from collections.abc import Sequence

from hypothesis import strategies as st

from cvt_nas.arch import PROJECTIONS, Activation, ArchConfig, BlockConfig, ImageSize, StageConfig
from cvt_nas.errors import ArchError
from cvt_nas.space import BLOCK_CHOICES, SearchSpace, StageSpace


@st.composite
def blocks(draw: st.DrawFn, embed_dim: int) -> BlockConfig:
    projection = draw(st.sampled_from(PROJECTIONS))
    linear = projection == "linear"
    return BlockConfig(
        projection=projection,
        kv_stride=1 if linear else draw(st.integers(1, 4)),
        kernel_size=1 if linear else draw(st.sampled_from([1, 3, 5, 7])),
        num_heads=draw(st.sampled_from([h for h in (1, 2, 3, 4) if embed_dim % h == 0])),
        mlp_ratio=draw(st.sampled_from([0.5, 1.0, 1.7, 2.0, 4.0])),
    )


@st.composite
def archs(draw: st.DrawFn) -> ArchConfig:
    """Any projection, kernel, stride and image size, square or not; odd grids; with and without a class token."""
    num_stages = draw(st.integers(1, 3))
    stages = []
    for index in range(num_stages):
        embed_dim = draw(st.sampled_from([4, 6, 8, 12]))
        stages.append(
            StageConfig(
                patch_kernel=draw(st.integers(1, 7)),
                patch_stride=draw(st.integers(1, 4)),
                patch_padding=draw(st.integers(0, 3)),
                embed_dim=embed_dim,
                blocks=tuple(draw(st.lists(blocks(embed_dim), min_size=1, max_size=3))),
                class_token=index == num_stages - 1 and draw(st.booleans()),
                pos_embed=draw(st.booleans()),
            )
        )
    sizes = []
    for size in range(1, 160):
        try:
            ArchConfig(image_size=size, num_classes=1, stages=tuple(stages))
        except ArchError:
            continue
        sizes.append(size)
    side = st.sampled_from(sizes[:30])
    return ArchConfig(
        image_size=draw(side | st.tuples(side, side)),
        num_channels=draw(st.sampled_from([1, 3])),
        num_classes=draw(st.integers(1, 12)),
        stages=tuple(stages),
    )


def _options(values: list) -> st.SearchStrategy[tuple]:
    """One, two or three of `values`, in their order."""
    return st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True).map(
        lambda picked: tuple(sorted(picked, key=values.index))
    )


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Spaces small enough to enumerate, with choices per stage and per block."""
    num_stages = draw(st.integers(1, 2))
    stages = tuple(
        StageSpace(
            patch_kernel=draw(_options([1, 3])),
            patch_stride=draw(_options([1, 2])),
            patch_padding=draw(st.sampled_from([None, 1])),
            embed_dim=draw(_options([4, 8])),
            depth=draw(_options([1, 2])),
            kv_stride=draw(_options([1, 2])),
            kernel_size=draw(_options([1, 3])),
            num_heads=draw(_options([1, 2])),
            mlp_ratio=draw(_options([1.0, 2.0])),
            projection=draw(_options(["dw_bn", "linear"]) | _options(["dw_bn", "avg"])),
            per_block=frozenset(draw(st.lists(st.sampled_from(BLOCK_CHOICES), max_size=2, unique=True))),
            class_token=index == num_stages - 1,
            pos_embed=draw(st.booleans()),
        )
        for index in range(num_stages)
    )
    size = draw(st.sampled_from([9, (9, 6), (5, 12)]))
    return SearchSpace(image_size=size, num_channels=1, num_classes=3, stages=stages, bounds={})


def per_stage(
    *,
    image_size: ImageSize,
    dims: Sequence[int],
    depths: Sequence[int],
    heads: Sequence[int],
    kernels: Sequence[int],
    strides: Sequence[int],
    ratios: Sequence[float],
    stem: tuple[int, int, int] = (7, 4, 2),
    num_channels: int = 3,
    activation: Activation = "quick_gelu",
) -> ArchConfig:
    """An architecture whose blocks are equal within each stage."""
    return ArchConfig(
        image_size=image_size,
        num_channels=num_channels,
        num_classes=10,
        stages=tuple(
            StageConfig(
                patch_kernel=stem[0] if index == 0 else 3,
                patch_stride=stem[1] if index == 0 else 2,
                patch_padding=stem[2] if index == 0 else 1,
                embed_dim=dim,
                blocks=(
                    BlockConfig(
                        num_heads=heads[index],
                        kernel_size=kernels[index],
                        kv_stride=strides[index],
                        mlp_ratio=ratios[index],
                        activation=activation,
                    ),
                )
                * depths[index],
                class_token=index == len(dims) - 1,
            )
            for index, dim in enumerate(dims)
        ),
    )
