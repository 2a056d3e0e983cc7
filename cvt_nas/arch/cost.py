"""Cost of an architecture in closed form, so that a search knows it before any training."""

import math
from dataclasses import dataclass
from functools import lru_cache

from cvt_nas.arch.network import ArchConfig, BlockConfig, StageConfig
from cvt_nas.arch.sizes import Grid

# fvcore's handles count a layer norm with weights as 5 operations an element, and a batch norm in
# eval mode as 2 (one multiply, one add).
_LAYER_NORM_FLOPS = 5
_BATCH_NORM_FLOPS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Cost of a network. Params and FLOPs are exact.

    Args:
        params: Learnable parameters.
        flops: Operations of the forward pass of one image in eval mode, by fvcore's convention. One multiply-add is
            one FLOP. The two products of attention, layer norm (5 an element) and batch norm (2) are counted. Softmax,
            activations, additions and pooling are not.
        latency_us: Microseconds of the forward pass of a batch, predicted by a `LatencyTable`. 0 without a table.
        model_bytes: Bytes of the parameters in the precision of a `Deployment`. This and the following are 0 without a
            deployment.
        value_bytes: Greatest number of bytes that the values between operations take at once, for one batch.
        batch: Images of that batch.
    """

    params: int
    flops: int
    latency_us: int = 0
    model_bytes: int = 0
    value_bytes: int = 0
    batch: int = 0

    @property
    def latency_ms(self) -> float:
        return self.latency_us / 1000

    @property
    def throughput(self) -> float:
        """Images a second, where batches follow one another; 0 where latency is not known."""
        return 1e6 * self.batch / self.latency_us if self.latency_us else 0.0

    @property
    def model_mb(self) -> float:
        """Megabytes of the parameters; a file also holds the graph, and names."""
        return self.model_bytes / 1e6

    @property
    def peak_memory_mb(self) -> float:
        """Megabytes of the parameters and of the values that are alive at once; a runtime takes more beside them."""
        return (self.model_bytes + self.value_bytes) / 1e6

    def loss(self, metric: str) -> float:
        """A cost of which less is better: seconds an image for throughput, and else the metric itself."""
        if metric == "throughput":
            return self.latency_us / 1e6 / max(self.batch, 1)
        return float(getattr(self, metric))

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            params=self.params + other.params,
            flops=self.flops + other.flops,
            latency_us=self.latency_us + other.latency_us,
            model_bytes=self.model_bytes + other.model_bytes,
            value_bytes=max(self.value_bytes, other.value_bytes),
            batch=max(self.batch, other.batch),
        )

    def to_json(self) -> dict[str, int]:
        """The arguments. Those of a deployment are left out if they are not known."""
        names = ("latency_us", "model_bytes", "value_bytes", "batch")
        known = {name: value for name in names if (value := getattr(self, name))}
        return {"params": self.params, "flops": self.flops, **known}


def kv_grid(grid: Grid, block: BlockConfig) -> Grid:
    """The grid of keys and values for queries on `grid`.

    `dw_bn` pads by half of the kernel, so it keeps every `kv_stride`-th position. `avg` pools with `ceil_mode`, which
    also keeps a last window that starts inside the image or its padding.
    """
    height, width = grid
    down = _kv_side(height, block)
    return down, down if width == height else _kv_side(width, block)


def _kv_side(side: int, block: BlockConfig) -> int:
    if block.projection == "linear":
        return side
    if block.projection == "dw_bn":
        return (side - 1) // block.kv_stride + 1
    pooled = -((1 - side) // block.kv_stride) + 1
    return pooled - 1 if (pooled - 1) * block.kv_stride >= side + block.kernel_size // 2 else pooled


@lru_cache(maxsize=65536)
def block_cost(block: BlockConfig, *, embed_dim: int, grid: Grid, class_token: bool) -> Cost:
    """Cost of one block on the tokens of `grid`, and on the class token if there is one."""
    dim, hidden = embed_dim, mlp_width(embed_dim, block.mlp_ratio)
    queries_map, kv_map = math.prod(grid), math.prod(kv_grid(grid, block))
    queries, keys = queries_map + class_token, kv_map + class_token

    linears = dim * dim * (2 * queries + 2 * keys) + 2 * queries * dim * hidden
    attention = _attention_flops(queries, keys, dim)
    norms = 2 * _LAYER_NORM_FLOPS * queries * dim
    params = 4 * (dim * dim + dim) + 2 * dim * hidden + hidden + dim + 4 * dim
    convolutions = 0
    if block.projection == "dw_bn":
        maps = queries_map + 2 * kv_map
        convolutions = maps * dim * block.kernel_size**2
        norms += _BATCH_NORM_FLOPS * maps * dim
        params += 3 * (dim * block.kernel_size**2 + 2 * dim)
    return Cost(params=params, flops=linears + attention + norms + convolutions)


def _attention_flops(queries: int, keys: int, embed_dim: int) -> int:
    """FLOPs of the product of queries and keys, and of attention weights and values."""
    return 2 * queries * keys * embed_dim


def mlp_width(embed_dim: int, mlp_ratio: float) -> int:
    """Hidden width of a block's MLP, rounded down as in the official code."""
    return int(embed_dim * mlp_ratio)


def embedding_cost(stage: StageConfig, *, in_channels: int, grid: Grid) -> Cost:
    """Cost of the convolutional token embedding of a stage, with layer norm, class token and position embedding."""
    dim, num_tokens = stage.embed_dim, math.prod(grid)
    weights = dim * in_channels * stage.patch_kernel**2
    return Cost(
        params=weights + dim + 2 * dim + dim * stage.class_token + dim * num_tokens * stage.pos_embed,
        flops=weights * num_tokens + _LAYER_NORM_FLOPS * dim * num_tokens,
    )


def head_cost(*, dim: int, grid: Grid, class_token: bool, num_classes: int) -> Cost:
    """Cost of the classifier, and of the last layer norm over the class token or over all tokens."""
    normed = 1 if class_token else math.prod(grid)
    return Cost(
        params=2 * dim + (dim + 1) * num_classes,
        flops=_LAYER_NORM_FLOPS * normed * dim + dim * num_classes,
    )


def stage_cost(stage: StageConfig, *, in_channels: int, grid: Grid) -> Cost:
    """Cost of the embedding and the blocks of a stage, whose tokens are on `grid`."""
    cost = embedding_cost(stage, in_channels=in_channels, grid=grid)
    for block in stage.blocks:
        cost += block_cost(block, embed_dim=stage.embed_dim, grid=grid, class_token=stage.class_token)
    return cost


def stage_costs(arch: ArchConfig) -> tuple[Cost, ...]:
    """Cost of each stage. The head is not included."""
    costs, in_channels = [], arch.num_channels
    for stage, grid in zip(arch.stages, arch.grids, strict=True):
        costs.append(stage_cost(stage, in_channels=in_channels, grid=grid))
        in_channels = stage.embed_dim
    return tuple(costs)


def cost_of(arch: ArchConfig) -> Cost:
    """Parameters and FLOPs of `arch` in closed form. They equal the counts of fvcore on the built model exactly."""
    last = arch.stages[-1]
    head = head_cost(
        dim=last.embed_dim, grid=arch.grids[-1], class_token=last.class_token, num_classes=arch.num_classes
    )
    return sum(stage_costs(arch), start=head)


def attention_flops(arch: ArchConfig) -> int:
    """FLOPs of the two products of attention in all blocks. `cost_of` counts them; many papers do not."""
    total = 0
    for stage, grid in zip(arch.stages, arch.grids, strict=True):
        for block in stage.blocks:
            queries, keys = (math.prod(each) + stage.class_token for each in (grid, kv_grid(grid, block)))
            total += _attention_flops(queries, keys, stage.embed_dim)
    return total
