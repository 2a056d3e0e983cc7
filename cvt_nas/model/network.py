"""CvT as a plain torch module, built from an `ArchConfig`.

Tokens have the shape `(batch, tokens, channels)`. A feature map is a view of them in torch's channels-last layout, in
which depth-wise convolutions are fastest, so no memory is copied. A stage with a class token is an exception: the token
lies between the maps of two images, so a convolution first copies the map.

Each submodule is called once in a forward pass, both in training and in evaluation, and nothing else uses its weights.
So tools that wrap, replace, hook or count modules see all of them.

Source: Wu et al. 2021, arXiv:2103.15808. Names in the state dict are those of the official code.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cvt_nas.arch import Activation, ArchConfig, BlockConfig, Grid, StageConfig, mlp_width

# Leaves to torch.fx, and so to what traces by it: both ask for shapes, which it does not know.
torch.fx.wrap("rearrange")
torch.fx.wrap("resized_positions")


def drop_path_scales(tokens: Float[Tensor, "batch tokens channels"], rate: float) -> Float[Tensor, "batch 1 1"]:
    """Factors of a residual branch of `tokens`: 0 with probability `rate`, and otherwise `1 / (1 - rate)`.

    Source: Huang et al. 2016, arXiv:1603.09382.
    """
    kind = tokens.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tokens.dtype  # that of the branch
    keep = torch.empty(tokens.shape[0], 1, 1, dtype=dtype, device=tokens.device).bernoulli_(1 - rate)
    return keep.div_(1 - rate)


class ConvEmbed(nn.Module):
    """Convolutional token embedding: a strided convolution over the map, then a layer norm over each token.

    If the stage has a position embedding, it has the size of `grid`. It is interpolated for maps and weights of other
    sizes. Source: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.2.
    """

    def __init__(self, stage: StageConfig, in_channels: int, grid: Grid) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, stage.embed_dim, stage.patch_kernel, stage.patch_stride, stage.patch_padding)
        self.norm = nn.LayerNorm(stage.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, stage.embed_dim, *grid)) if stage.pos_embed else None
        self.register_load_state_dict_pre_hook(_resize_saved_positions)

    def forward(
        self, images: Float[Tensor, "batch in_channels height width"]
    ) -> tuple[Float[Tensor, "batch tokens channels"], tuple[int, int]]:
        maps = self.proj(images)
        tokens = self.norm(rearrange(maps, "b c h w -> b (h w) c"))
        if self.pos_embed is not None:
            tokens = tokens + rearrange(resized_positions(self.pos_embed, maps.shape[2:]), "b c h w -> b (h w) c")
        return tokens, (maps.shape[2], maps.shape[3])


def resized_positions(positions: Float[Tensor, "1 channels height width"], sides: Sequence[int]) -> Tensor:
    """`positions` on a map of other `sides`, by bicubic interpolation.

    It multiplies by a matrix for each axis, since the gradient of `F.interpolate` is not deterministic on a GPU.
    """
    if positions.shape[2:] == tuple(sides):
        return positions
    with torch.autocast(positions.device.type, enabled=False):
        rows, columns = (_resizing(*sizes, like=positions) for sizes in zip(positions.shape[2:], sides, strict=True))
        return rows @ positions @ columns.T


def _resizing(size: int, wanted: int, *, like: Tensor) -> Float[Tensor, "wanted size"]:
    identity = torch.eye(size, dtype=like.dtype, device=like.device)
    return F.interpolate(identity[None, None], size=(wanted, size), mode="bicubic", align_corners=False)[0, 0]


def _resize_saved_positions(module: "ConvEmbed", state: dict[str, Tensor], prefix: str, *_: object) -> None:
    saved = state.get(f"{prefix}pos_embed")
    if module.pos_embed is not None and saved is not None and saved.ndim == 4:
        state[f"{prefix}pos_embed"] = resized_positions(saved, module.pos_embed.shape[2:])


class ConvProjection(nn.Module):
    """Depth-wise convolution and batch norm over the tokens' map, before a linear projection."""

    def __init__(self, dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size, stride, kernel_size // 2, groups=dim, bias=False)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens channels"]:
        return rearrange(self.bn(self.conv(maps)), "b c h w -> b (h w) c")


class Attention(nn.Module):
    """Multi-head attention whose queries, keys and values come from the projection of `block`.

    The scale is `embed_dim ** -0.5` as in the official code, and does not depend on the width of heads. So weights keep
    their meaning if only the number of heads changes.
    """

    def __init__(self, block: BlockConfig, dim: int, class_token: bool) -> None:
        super().__init__()
        self.num_heads = block.num_heads
        self.scale = dim**-0.5
        self.class_token = class_token
        self.projection = block.projection
        if block.projection == "dw_bn":
            self.conv_proj_q = ConvProjection(dim, block.kernel_size, stride=1)
            self.conv_proj_k = ConvProjection(dim, block.kernel_size, block.kv_stride)
            self.conv_proj_v = ConvProjection(dim, block.kernel_size, block.kv_stride)
        elif block.projection == "avg":
            self.pool_kv = nn.AvgPool2d(block.kernel_size, block.kv_stride, block.kernel_size // 2, ceil_mode=True)
        self.proj_q = nn.Linear(dim, dim)
        self.proj_k = nn.Linear(dim, dim)
        self.proj_v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def _project_maps(
        self, tokens: Float[Tensor, "batch tokens channels"], grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of the three linear projections, `(batch, queries or keys, channels)` each."""
        if self.projection == "linear":
            return tokens, tokens, tokens
        maps = rearrange(tokens, "b (h w) c -> b c h w", h=grid[0], w=grid[1])
        if self.projection == "avg":
            pooled = rearrange(self.pool_kv(maps), "b c h w -> b (h w) c")
            return tokens, pooled, pooled
        return self.conv_proj_q(maps), self.conv_proj_k(maps), self.conv_proj_v(maps)

    def forward(
        self, tokens: Float[Tensor, "batch tokens channels"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch tokens channels"]:
        if self.class_token:  # it has no place on the map, so it skips the projections
            cls, on_map = tokens.split([1, grid[0] * grid[1]], dim=1)
            q, k, v = (torch.cat((cls, x), dim=1) for x in self._project_maps(on_map, grid))
        else:
            q, k, v = self._project_maps(tokens, grid)
        q, k, v = (
            rearrange(x, "b t (h d) -> b h t d", h=self.num_heads)
            for x in (self.proj_q(q), self.proj_k(k), self.proj_v(v))
        )
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(rearrange(out, "b h t d -> b t (h d)"))


def quick_gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Computes `x * sigmoid(1.702 x)` as `silu(1.702 x) / 1.702`, which is cheaper.

    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    return F.silu(1.702 * x).mul_(1 / 1.702)


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, dim: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.activation = F.gelu if activation == "gelu" else quick_gelu
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch tokens channels"]:
        return self.fc2(self.activation(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP, each a residual branch that training may drop.

    Attributes:
        compute: A compiled function that replaces `compute_block` in training; None for `compute_block`.
    """

    compute: Callable[..., Tensor] | None = None

    def __init__(self, block: BlockConfig, dim: int, class_token: bool, drop_path_rate: float) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(block, dim, class_token)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_width(dim, block.mlp_ratio), block.activation)

    def forward(
        self, tokens: Float[Tensor, "batch tokens channels"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch tokens channels"]:
        if not self.training:
            return compute_block(self, tokens, grid)
        scales = []
        if self.drop_path_rate > 0:
            scales = [drop_path_scales(tokens, self.drop_path_rate) for _ in range(2)]
        return (self.compute or compute_block)(self, tokens, grid, *scales)


def compute_block(
    block: Block,
    tokens: Float[Tensor, "batch tokens channels"],
    grid: tuple[int, int],
    attention_scales: Float[Tensor, "batch 1 1"] | None = None,
    mlp_scales: Float[Tensor, "batch 1 1"] | None = None,
) -> Float[Tensor, "batch tokens channels"]:
    """Computes a block without random draws, so that a compiled block gives the same results.

    Args:
        attention_scales, mlp_scales: Factors of the two branches, see `drop_path_scales`; None without drop path.
    """
    branch = block.attn(block.norm1(tokens), grid)
    tokens = tokens + (branch if attention_scales is None else branch * attention_scales)
    branch = block.mlp(block.norm2(tokens))
    return tokens + (branch if mlp_scales is None else branch * mlp_scales)


class Stage(nn.Module):
    """A token embedding and its blocks. For `recomputes`, see `forward_stage`."""

    recomputes = False

    def __init__(self, stage: StageConfig, in_channels: int, grid: Grid, drop_path_rate: float) -> None:
        super().__init__()
        self.patch_embed = ConvEmbed(stage, in_channels, grid)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, stage.embed_dim)) if stage.class_token else None
        last = max(len(stage.blocks) - 1, 1)
        self.blocks = nn.ModuleList(
            Block(block, stage.embed_dim, stage.class_token, drop_path_rate * index / last)
            for index, block in enumerate(stage.blocks)
        )

    def forward(
        self, images: Float[Tensor, "batch in_channels height width"]
    ) -> tuple[Float[Tensor, "batch tokens channels"], tuple[int, int]]:
        return forward_stage(self.patch_embed, self.cls_token, self.blocks, images, recomputes=self.recomputes)


def forward_stage(
    patch_embed: Callable[[Tensor], tuple[Tensor, tuple[int, int]]],
    cls_token: Float[Tensor, "1 1 channels"] | None,
    blocks: Iterable[Callable[[Tensor, tuple[int, int]], Tensor]],
    images: Float[Tensor, "batch in_channels height width"],
    *,
    recomputes: bool = False,
) -> tuple[Float[Tensor, "batch tokens channels"], tuple[int, int]]:
    """Computes the tokens of a stage, class token first, and the grid of the others.

    The parts of the stage are arguments, so their weights may lie anywhere.

    Args:
        recomputes: Whether to keep only the inputs of blocks, and recompute the rest in the backward pass.
    """
    tokens, grid = patch_embed(images)
    if cls_token is not None:
        tokens = torch.cat((cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
    for block in blocks:
        tokens = _recomputed(block, tokens, grid) if recomputes and torch.is_grad_enabled() else block(tokens, grid)
    return tokens, grid


def _recomputed(block: Callable[[Tensor, tuple[int, int]], Tensor], tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Computes `block(tokens, grid)`, and recomputes it in the backward pass with the same draws and precision.

    Source: Chen et al. 2016, arXiv:1604.06174.
    """
    if torch.compiler.is_compiling():  # compiled code recomputes without side effects
        return checkpoint(block, tokens, grid, use_reentrant=False)
    modules = block.modules() if isinstance(block, nn.Module) else ()
    norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
    return checkpoint(
        block, tokens, grid, use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(norms)),
    )  # fmt: skip


@contextlib.contextmanager
def _statistics_kept(norms: Sequence[nn.BatchNorm2d]) -> Iterator[None]:
    """Restores the running statistics of batch norms after the block."""
    kept = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers.update({name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)


class CvT(nn.Module):
    """Convolutional vision transformer.

    Args:
        arch: Architecture to build. The weights fit images of any size that leaves a token in every stage. Position
            embeddings are interpolated.
        drop_path: Rate of each stage's last block. It rises linearly from 0 within the stage. One number holds for all
            stages.

    Raises:
        ValueError: `drop_path` does not have one rate for each stage.
    """

    def __init__(self, arch: ArchConfig, *, drop_path: float | Sequence[float] = 0.0) -> None:
        super().__init__()
        rates = [drop_path] * len(arch.stages) if isinstance(drop_path, int | float) else list(drop_path)
        if len(rates) != len(arch.stages):
            raise ValueError(f"drop_path: got {len(rates)} rates, must be one for each of {len(arch.stages)} stages")
        self.arch = arch
        channels = (arch.num_channels, *(stage.embed_dim for stage in arch.stages))
        for index, (stage, grid) in enumerate(zip(arch.stages, arch.grids, strict=True)):
            self.add_module(f"stage{index}", Stage(stage, channels[index], grid, rates[index]))
        self.norm = nn.LayerNorm(channels[-1])
        self.head = nn.Linear(channels[-1], arch.num_classes)
        self.apply(_init_weights)

    def set_recomputing(self, on: bool) -> None:
        """Sets whether the backward pass recomputes the inside of each block instead of keeping it in memory."""
        for stage in self.children():
            if isinstance(stage, Stage):
                stage.recomputes = on

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Returns logits. `images` are normalised as in training."""
        stages = [self.get_submodule(f"stage{index}") for index in range(len(self.arch.stages))]
        return forward_stages(self.arch, stages, self.norm, self.head, images)


def forward_stages(
    arch: ArchConfig,
    stages: Sequence[Callable[[Tensor], tuple[Tensor, tuple[int, int]]]],
    norm: Callable[[Tensor], Tensor],
    head: Callable[[Tensor], Tensor],
    images: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch classes"]:
    """Computes logits with the shape of `arch`. The stages are arguments, so their weights may lie anywhere.

    The head sees the class token, or the mean of the last stage's tokens if there is none.
    """
    maps, tokens, last = images, images, len(stages) - 1
    for index, stage in enumerate(stages):
        tokens, grid = stage(maps)
        if index < last:
            maps = rearrange(tokens, "b (h w) c -> b c h w", h=grid[0], w=grid[1])
    if arch.stages[-1].class_token:
        return head(norm(tokens[:, 0]))
    return head(norm(tokens).mean(dim=1))


def _init_weights(module: nn.Module) -> None:
    """Initialises linear layers, class token and position embeddings by truncated normals of deviation 0.02.

    Convolutions keep torch's default.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Stage) and module.cls_token is not None:
        nn.init.trunc_normal_(module.cls_token, std=0.02)
    elif isinstance(module, ConvEmbed) and module.pos_embed is not None:
        nn.init.trunc_normal_(module.pos_embed, std=0.02)


def build_model(arch: ArchConfig, *, drop_path: float | Sequence[float] = 0.0) -> CvT:
    """Builds a freshly initialised `CvT`. The weights come from torch's global random state."""
    return CvT(arch, drop_path=drop_path)
