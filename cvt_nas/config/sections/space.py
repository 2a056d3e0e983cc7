"""Sections `space`, `objectives` and `constraints`: the networks to search, their metrics and their bounds."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from cvt_nas.config.values import (
    FEW,
    STRICT,
    DepthOptions,
    FloatOptions,
    IntOptions,
    PositiveFloat,
    PositiveInt,
    ProjectionOptions,
    Sides,
    Size,
)


@validated(config=STRICT, frozen=True, kw_only=True)
class PatchSection:
    """Section `space.stages[].patch`: the convolution at the start of a stage, which embeds its input.

    Args:
        kernel: Side of the kernel, in pixels.
        stride: Stride of the convolution: each side of the grid is divided by it.
        padding: Pixels of zero padding on each side. Half of the kernel where absent.
    """

    kernel: Annotated[IntOptions, Field(examples=[3])]
    stride: Annotated[IntOptions, Field(examples=[2])]
    padding: Annotated[int, Field(ge=0, le=2**16, examples=[1])] | None = None


@validated(config=STRICT, frozen=True, kw_only=True)
class StageSection:
    """One stage of the networks. A scalar is fixed, and a list is a choice of the search.

    Args:
        embed_dim: Channels of the stage.
        depth: Number of blocks.
        num_heads: Attention heads of a block. Each option must divide every `embed_dim` of the stage.
        mlp_ratio: Hidden units of a block's MLP, as a multiple of `embed_dim`.
        kernel_size: Side of the depth-wise kernels that project queries, keys and values. It must be odd.
        kv_stride: Stride of the projections of keys and values. A larger stride gives attention fewer of them.
        projection: Layer before the linear projections: `dw_bn` is a depth-wise convolution with a batch norm, as in
            the official CvT; `avg` is average pooling of keys and values; `linear` is no layer.
        per_block: Choices that are made for each block of the stage. The others are made once for all blocks.
        pos_embed: Whether the stage has a learned position embedding.
    """

    patch: PatchSection
    embed_dim: Annotated[IntOptions, Field(examples=[[64, 96, 128]])]
    depth: Annotated[DepthOptions, Field(examples=[[1, 2]])]
    num_heads: Annotated[IntOptions, Field(examples=[[1, 2]])]
    mlp_ratio: Annotated[FloatOptions, Field(examples=[[2.0, 4.0]])] = field(default_factory=lambda: [4.0])
    kernel_size: Annotated[IntOptions, Field(examples=[[3, 5]])] = field(default_factory=lambda: [3])
    kv_stride: Annotated[IntOptions, Field(examples=[[1, 2]])] = field(default_factory=lambda: [2])
    projection: Annotated[ProjectionOptions, Field(examples=[["dw_bn", "avg"]])] = field(
        default_factory=lambda: ["dw_bn"]
    )
    per_block: Annotated[
        list[Literal["kv_stride", "kernel_size", "num_heads", "mlp_ratio", "projection"]],
        Field(examples=[["kv_stride", "mlp_ratio"]]),
    ] = field(default_factory=list)
    pos_embed: bool = False


@validated(config=STRICT, frozen=True, kw_only=True)
class SpaceSection:
    """Section `space`: the networks that a search may choose from.

    Args:
        image_size: Side of square images in pixels, or `[height, width]`. It is the same for all networks.
        num_channels: Channels of the images: 1 for grey, 3 for colour, other numbers for arrays and TIFF files.
        num_classes: Number of classes.
        activation: Activation of all MLPs: `quick_gelu` as in the official CvT, or `gelu` as in transformers' port.
            Networks with `gelu` can be exported to transformers.
        pool: Input of the head: the `class_token` of the last stage, or the `mean` of its tokens.
        stages: The stages of the networks, first to last.
    """

    image_size: Annotated[Sides, Field(examples=[224])]
    num_channels: Size = 3
    num_classes: Annotated[int, Field(ge=1, le=2**20, examples=[1000])]
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    pool: Literal["class_token", "mean"] = "class_token"
    stages: Annotated[list[StageSection], FEW]


@validated(config=STRICT, frozen=True, kw_only=True)
class BoundSection:
    """Bounds on a cost of networks.

    Args:
        min: Least allowed value. No limit where absent.
        max: Greatest allowed value. No limit where absent.
    """

    min: Annotated[PositiveInt, Field(examples=[1_000_000])] | None = None
    max: Annotated[PositiveInt, Field(examples=[20_000_000])] | None = None


@validated(config=STRICT, frozen=True, kw_only=True)
class LatencyBoundSection:
    """Bound on the latency of networks.

    Args:
        max: Greatest allowed latency of a pass, in milliseconds; see section `deploy`. No limit where absent.
    """

    max: Annotated[PositiveFloat, Field(examples=[5.0])] | None = None


@validated(config=STRICT, frozen=True, kw_only=True)
class ThroughputBoundSection:
    """Bound on the throughput of networks.

    Args:
        min: Least allowed number of images a second; see section `deploy`. No limit where absent.
    """

    min: Annotated[PositiveFloat, Field(examples=[200.0])] | None = None


@validated(config=STRICT, frozen=True, kw_only=True)
class MegabytesBoundSection:
    """Bound on megabytes.

    Args:
        max: Greatest allowed number of megabytes, each of a million bytes. No limit where absent.
    """

    max: Annotated[PositiveFloat, Field(examples=[20.0])] | None = None


@validated(config=STRICT, frozen=True, kw_only=True)
class ConstraintsSection:
    """Section `constraints`: bounds on costs. Networks outside them are not proposed.

    Args:
        params: Bounds on the number of parameters.
        flops: Bounds on the FLOPs of one image; a multiply-add is one.
        latency_ms: Bound on the latency of a pass.
        throughput: Bound on images a second.
        peak_memory_mb: Bound on the memory of a pass.
        model_mb: Bound on the size of the parameters.
    """

    params: BoundSection = field(default_factory=BoundSection)
    flops: BoundSection = field(default_factory=BoundSection)
    latency_ms: LatencyBoundSection = field(default_factory=LatencyBoundSection)
    throughput: ThroughputBoundSection = field(default_factory=ThroughputBoundSection)
    peak_memory_mb: MegabytesBoundSection = field(default_factory=MegabytesBoundSection)
    model_mb: MegabytesBoundSection = field(default_factory=MegabytesBoundSection)


@validated(config=STRICT | {"json_schema_extra": {"minProperties": 2}}, frozen=True, kw_only=True)
class ObjectivesSection:
    """Section `objectives`: accuracy and one or two costs. The default is accuracy, params and FLOPs.

    Args:
        accuracy: Accuracy on the search split. Every search has this objective.
        params: Number of parameters.
        flops: FLOPs of one image; a multiply-add is one.
        latency_ms: Milliseconds of a pass as section `deploy` describes it, by a table that is measured before.
        throughput: Images a second, by the same table.
        peak_memory_mb: Megabytes of parameters and of values that are alive at once in a pass of section `deploy`.
        model_mb: Megabytes of the parameters in the precision of section `deploy`.
    """

    accuracy: Literal["maximize"]
    params: Literal["minimize"] | None = None
    flops: Literal["minimize"] | None = None
    latency_ms: Literal["minimize"] | None = None
    throughput: Literal["maximize"] | None = None
    peak_memory_mb: Literal["minimize"] | None = None
    model_mb: Literal["minimize"] | None = None
