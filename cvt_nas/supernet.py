"""One set of weights for every architecture of a space.

A subnet's weights are cuts of the supernet's: the first channels, hidden units and blocks, and the centre of each
kernel and grid of positions. Strides and the number of heads have no weights. The forward pass of a subnet is that of
the plain `CvT`, with the cuts in place of its own weights, so that the two cannot differ.

Sources: Yu et al. 2020, arXiv:2003.11142, one set of weights that is trained at every size at once; Chen et al. 2021,
arXiv:2107.00651, shared so between transformers.
"""

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from cvt_nas.arch import ArchConfig, BlockConfig, StageConfig
from cvt_nas.errors import ArchError
from cvt_nas.model import (
    Block,
    ConvEmbed,
    ConvProjection,
    CvT,
    Weights,
    forward_stage,
    forward_stages,
    lent_state,
    read_weights,
    resized_positions,
)
from cvt_nas.space import SearchSpace

NormChoice = Literal["kv_stride", "kernel_size"]

_MAX_CACHED = 4096  # modules without weights: tens of kilobytes each
_PROJECTION = re.compile(r"stage(\d+)\.blocks\.(\d+)\.attn\.conv_proj_([qkv])")


class Supernet(nn.Module):
    """The shared weights of a space.

    Nothing of a forward pass stays behind: which subnet runs is an argument, and batch norm in training uses the
    statistics of the batch and keeps none. So a subnet has to be extracted, and the statistics of its batch norms
    measured, before its accuracy means anything.

    Args:
        space: Whose members are the subnets.
        drop_path: As in `CvT`; of the largest subnet alone, since the small ones underfit as they are.
        regularised: Which that is, where not all of the space is trained.
        drop_path_on_all: Of every subnet instead.
        kernel_maps: Whether the centre of a depth-wise kernel passes a learned linear map, one for each convolution
            and size, at first the identity (Cai et al. 2020, arXiv:1908.09791, section 3.3).
        own_norms: Choices of a block whose options have batch norms of their own, as widths have in Yu et al. 2019,
            arXiv:1812.08928.
        sync_batch_norm: Whether the statistics of a batch are over all the ranks of the process group.

    Raises:
        ValueError: `drop_path` has not one rate for each stage.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        drop_path: float | Sequence[float] = 0.0,
        drop_path_on_all: bool = False,
        kernel_maps: bool = False,
        own_norms: Collection[NormChoice] = (),
        sync_batch_norm: bool = False,
        regularised: ArchConfig | None = None,
    ) -> None:
        super().__init__()
        self.largest = space.largest
        self.shared = CvT(self.largest, drop_path=drop_path)
        for index, side in enumerate(space.greatest_grids):
            embedding: Any = self.shared.get_submodule(f"stage{index}.patch_embed")
            if embedding.pos_embed is not None:
                embedding.pos_embed = nn.Parameter(resized_positions(embedding.pos_embed.detach(), (side, side)))
        self._drop_path = [drop_path] * len(space.stages) if isinstance(drop_path, int | float) else list(drop_path)
        self._drop_path_on_all, self._own_norms = drop_path_on_all, frozenset(own_norms)
        self._ranks = _Ranks() if sync_batch_norm else None
        self._regularised = regularised or self.largest
        self.kernel_maps, self.norms = nn.ParameterDict(), nn.ModuleDict()
        for name, module in list(self.shared.named_modules()):
            if (place := _PROJECTION.fullmatch(name)) is None:
                continue
            stage = space.stages[int(place[1])]
            for side in stage.kernel_size[:-1] if kernel_maps else ():
                self.kernel_maps[_key(f"{name}.k{side}")] = nn.Parameter(torch.eye(side * side))
            for side in stage.kernel_size:
                for stride in stage.kv_stride:
                    key = self._norm_key(name, BlockConfig(kernel_size=side, kv_stride=stride))
                    if key is not None and key not in self.norms:
                        self.norms[key] = nn.BatchNorm2d(module.get_submodule("bn").num_features)  # type: ignore[arg-type]
        self._recomputes = False
        self._hollows: dict[Any, _Hollow] = {}
        self._hollow_models: dict[ArchConfig, _HollowModel] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For copies: they cut from their own weights."""
        return {**self.__dict__, "_hollows": {}, "_hollow_models": {}}

    def train(self, mode: bool = True) -> Self:
        for hollow in self._hollows.values():
            hollow.module.train(mode)
        return super().train(mode)

    def forward(
        self, images: Float[Tensor, "batch channels height width"], arch: ArchConfig
    ) -> Float[Tensor, "batch classes"]:
        """Logits of the subnet `arch`.

        Raises:
            ArchError: `arch` needs a weight that is not there.
        """
        hollow = self._hollow_model(arch)
        stages = [partial(stage, recomputes=self._recomputes) for stage in hollow.stages]
        return forward_stages(arch, stages, hollow.norm, hollow.head, images)

    def set_recomputing(self, on: bool) -> None:
        """As in `CvT`, for all subnets."""
        self._recomputes = on

    @contextlib.contextmanager
    def without_other_ranks(self) -> Iterator[None]:
        """Within it, a pass waits for no other rank: batch norm has the statistics of this rank's images alone.

        It takes as much memory, so it shows what a pass takes, and may end for want of it on one rank alone.
        """
        if self._ranks is None:
            yield
            return
        self._ranks.are_heard = False
        try:
            yield
        finally:
            self._ranks.are_heard = True

    @torch.no_grad()
    def state_of(self, arch: ArchConfig) -> dict[str, Tensor]:
        """State dict of the plain `CvT(arch)`: cuts, which share memory with the supernet where they are whole.

        Raises:
            ArchError: `arch` needs a weight that is not there.
        """
        return {name: cut() for name, cut in self._hollow_model(arch).cuts()}

    @torch.no_grad()
    def insert(self, model: CvT) -> None:
        """Puts the weights of `model` where the subnet of its architecture has them: the inverse of `extract`.

        What lies around a kernel is set to zero, so that subnets with a larger one answer as `model` does, too. What
        lies beyond its channels and blocks stays as it is, and so does the head where `model` has other classes. Batch
        norms of one projection are all set to that of `model`.

        Raises:
            ArchError: It has a weight that has no place here.
        """
        has_head = model.arch.num_classes == self.largest.num_classes
        self.insert_state({n: t for n, t in model.state_dict().items() if has_head or not n.startswith("head.")})

    @torch.no_grad()
    def insert_state(self, state: Mapping[str, Tensor]) -> None:
        """`insert` of the tensors of a model, of which some may be missing.

        Raises:
            ArchError: One has no place here.
        """
        for name, tensor in state.items():
            path, _, last = name.rpartition(".")
            self._cut_of(name, tensor.shape, None).put(tensor)
            for key, norm in self.norms.items():
                if path.endswith(".bn") and key.startswith(_key(f"{path[:-3]}.")):
                    _cut_from(norm, last, name, tensor.shape).put(tensor)

    def _hollow_model(self, arch: ArchConfig) -> "_HollowModel":
        if arch in self._hollow_models:
            return self._hollow_models[arch]
        if len(self._hollows) + len(self._hollow_models) >= _MAX_CACHED:
            self._hollows.clear()
            self._hollow_models.clear()
        is_regularised = self._drop_path_on_all or arch == self._regularised
        rates = self._drop_path if is_regularised else [0.0] * len(arch.stages)
        channels = (arch.num_channels, *(stage.embed_dim for stage in arch.stages))
        self._hollow_models[arch] = _HollowModel(
            stages=[
                self._hollow_stage(index, stage, channels[index], grid, rates[index])
                for index, (stage, grid) in enumerate(zip(arch.stages, arch.grids, strict=True))
            ],
            norm=self._hollow("norm", None, nn.LayerNorm, channels[-1]),
            head=self._hollow("head", None, nn.Linear, channels[-1], arch.num_classes),
        )
        return self._hollow_models[arch]

    def _hollow_stage(
        self, index: int, stage: StageConfig, in_channels: int, grid: int, drop_path: float
    ) -> "_HollowStage":
        name, width, last = f"stage{index}", stage.embed_dim, max(len(stage.blocks) - 1, 1)
        embedding = replace(stage, blocks=(BlockConfig(),))  # in which the blocks have no part
        token = f"{name}.cls_token"
        patch_embed = self._hollow(f"{name}.patch_embed", None, ConvEmbed, embedding, in_channels, grid)
        blocks = []
        for number, block in enumerate(stage.blocks):
            arguments = (block, width, stage.class_token, drop_path * number / last)
            blocks.append(self._hollow(f"{name}.blocks.{number}", block, Block, *arguments))
        return _HollowStage(
            patch_embed=patch_embed,
            cls_token=(token, self._cut_of(token, torch.Size((1, 1, width)), None)) if stage.class_token else None,
            blocks=blocks,
        )

    def _hollow(
        self, name: str, block: BlockConfig | None, make: Callable[..., nn.Module], *arguments: Any
    ) -> "_Hollow":
        """The module `name` of a `CvT`, which is `make(*arguments)`; made once, since that takes milliseconds."""
        key = (name, *arguments)
        if key not in self._hollows:
            with torch.device("meta"):
                module = make(*arguments)
                for part in list(module.modules()):
                    if isinstance(part, ConvProjection) and self._ranks is not None:
                        part.bn = _SyncedBatchNorm(part.bn.num_features, self._ranks)
            self._hollows[key] = _Hollow(module.train(self.training), name, block, self._cut_of)
        return self._hollows[key]

    def _cut_of(self, name: str, shape: torch.Size, block: BlockConfig | None) -> "_Cut":
        """Where the tensor `name` of a subnet, of that shape, lies; `block` is the one that it belongs to."""
        path, _, tensor = name.rpartition(".")
        own_norm, kernel_map = None, None
        if block is not None and path.endswith(".bn"):
            own_norm = self._norm_key(path[:-3], block)
        if block is not None and path.endswith(".conv"):
            key = _key(f"{path[:-5]}.k{block.kernel_size}")
            kernel_map = (self.kernel_maps._parameters, key) if key in self.kernel_maps else None
        try:
            owner = self.shared.get_submodule(path) if own_norm is None else self.norms[own_norm]
        except (AttributeError, KeyError):
            raise ArchError(f"{name}: the supernet of {self.largest.id} has no such weight") from None
        return _cut_from(owner, tensor, name, shape, kernel_map)

    def _norm_key(self, projection: str, block: BlockConfig) -> str | None:
        """Name in `norms` of a projection's batch norm in such a block; None where it has none of its own."""
        size = f".k{block.kernel_size}" if "kernel_size" in self._own_norms else ""
        # queries keep stride 1, whatever that of keys and values is
        stride = f".s{block.kv_stride}" if "kv_stride" in self._own_norms and projection[-1] != "q" else ""
        return _key(f"{projection}{size}{stride}") if size or stride else None


def extract(supernet: Supernet, arch: ArchConfig) -> CvT:
    """The subnet `arch` as a plain model with weights of its own, on the supernet's device.

    Raises:
        ArchError: `arch` needs a weight that is not there.
    """
    with torch.device(supernet.shared.head.weight.device):
        model = CvT(arch)
    model.load_state_dict(supernet.state_of(arch))
    return model.train(supernet.training)


def lent_weights(
    space: SearchSpace, path: Path, *, classes: Sequence[str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What the weights at `path` lend to a supernet of `space`; see `Supernet.insert_state`.

    Args:
        classes: Names of the classes of the data, in their order.

    Returns:
        With the tensors, notes for people: what was taken, and what is otherwise in every network of the space.

    Raises:
        ArchError: They cannot be read, or are of no CvT.
    """
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


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks, and so the sum of its gradients; torch has deprecated its own."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        del ctx
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


_sum_over_ranks: Any = _SumOverRanks.apply


@dataclass(slots=True)
class _Ranks:
    """Whether batch norm has the statistics of other ranks' images, too."""

    are_heard: bool = True


class _SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics in training are of all ranks' images; torch's own is for GPUs alone."""

    def __init__(self, num_features: int, ranks: _Ranks) -> None:
        super().__init__(num_features)
        self._ranks = ranks

    def forward(self, input: Float[Tensor, "batch channels height width"]) -> Tensor:  # noqa: A002  torch's name
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        values = input.float()
        moments = torch.stack([values.mean((0, 2, 3)), values.square().mean((0, 2, 3))])
        if self._ranks.are_heard:
            moments = _sum_over_ranks(moments).div(dist.get_world_size())
        mean, square = moments.unbind()
        scale = self.weight * torch.rsqrt((square - mean.square()).clamp(min=0) + self.eps)
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(input.dtype)


class _Cut:
    """Where a subnet's tensor lies in the supernet.

    Args:
        values, name: The dict of a module's parameters or buffers, and the name there; looked up at each call, since
            moving a module to another device may replace them.
        index: The part of it; None for the whole.
        kernel_map: Of the linear map that the part, a kernel's centre, passes; None where there is none.
    """

    __slots__ = ("_index", "_kernel_map", "_name", "_values")

    def __init__(
        self, values: dict[str, Any], name: str, index: tuple[slice, ...] | None, kernel_map: tuple[dict, str] | None
    ) -> None:
        self._values, self._name, self._index, self._kernel_map = values, name, index, kernel_map

    @property
    def whole(self) -> Tensor:
        return self._values[self._name]

    @property
    def index(self) -> tuple[slice, ...] | None:
        return self._index

    def __call__(self, part: Tensor | None = None) -> Tensor:
        """The subnet's tensor; of `part` where that was cut out already."""
        tensor = self.whole if part is None else part
        if part is None and self._index is not None:
            tensor = tensor[self._index].contiguous()
        if self._kernel_map is not None:
            owner, name = self._kernel_map
            tensor = (tensor.flatten(2) @ owner[name]).view_as(tensor)
        return tensor

    def put(self, tensor: Tensor) -> None:
        whole = self.whole
        if self._index is None:
            whole.copy_(tensor)
            return
        if whole.ndim == 4:  # what surrounds the kernel
            whole[self._index[:2]] = 0
        whole[self._index] = tensor


class _CutOut(torch.autograd.Function):
    """Parts of parameters, whose gradients are added to those of the parameters where they lie.

    Autograd by itself would lay each into a tensor of zeros as large as the parameter, and add that: two launches more
    on a GPU, and more memory to go through.
    """

    @staticmethod
    def forward(ctx: Any, indices: Sequence[tuple[slice, ...]], *wholes: Tensor) -> tuple[Tensor, ...]:
        ctx.indices, ctx.wholes = indices, wholes
        return tuple(whole[index].contiguous() for whole, index in zip(wholes, indices, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        for whole, index, gradient in zip(ctx.wholes, ctx.indices, gradients, strict=True):
            if gradient is not None:
                if whole.grad is None:
                    whole.grad = torch.zeros_like(whole)
                whole.grad[index].add_(gradient)
        return (None,) * (1 + len(gradients))


def _cut_from(
    owner: nn.Module, tensor: str, name: str, shape: torch.Size, kernel_map: tuple[dict, str] | None = None
) -> _Cut:
    """Of the tensor of a module, which a subnet knows as `name`.

    Raises:
        ArchError: The module has less of it than `shape`, or none.
    """
    values = owner._parameters if tensor in owner._parameters else owner._buffers
    whole = values.get(tensor)
    if whole is None or any(inner > outer for inner, outer in zip(shape, whole.shape, strict=True)):
        have = "none" if whole is None else tuple(whole.shape)
        raise ArchError(f"{name}: the subnet needs {tuple(shape)}, the supernet has {have}")
    return _Cut(values, tensor, _index_of(shape, whole.shape), kernel_map)


class _Hollow:
    """A plain module without weights: each call borrows them from the supernet.

    Args:
        module: On the meta device.
        name: Of it, in a `CvT`.
        block: Where it is one.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        block: BlockConfig | None,
        cut_of: Callable[[str, torch.Size, BlockConfig | None], _Cut],
    ) -> None:
        self.module = module
        self._slots: list[tuple[dict[str, Any], str, str, _Cut]] = []
        for path, part in module.named_modules():
            for values in (part._parameters, part._buffers):
                for key, value in values.items():
                    if value is not None:
                        full = ".".join(filter(None, (name, path, key)))
                        self._slots.append((values, key, full, cut_of(full, value.shape, block)))
            if isinstance(part, nn.BatchNorm2d):
                part.track_running_stats = False  # in training, neither read nor written; in eval mode, read
        is_learned = [cut.index is not None and cut.whole.requires_grad for *_, cut in self._slots]
        self._learned = [slot for slot, is_so in zip(self._slots, is_learned, strict=True) if is_so]
        self._others = [slot for slot, is_so in zip(self._slots, is_learned, strict=True) if not is_so]
        self._indices = [cut.index for *_, cut in self._learned]
        self._empty()

    def __call__(self, *inputs: Any) -> Any:
        for values, key, _, cut in self._others:
            values[key] = cut()
        parts = _CutOut.apply(self._indices, *(cut.whole for *_, cut in self._learned))
        for (values, key, _, cut), part in zip(self._learned, cast(Any, parts), strict=True):
            values[key] = cut(part)
        try:
            return self.module(*inputs)
        finally:
            self._empty()

    def cuts(self) -> Iterator[tuple[str, _Cut]]:
        """Names as in a `CvT`."""
        for _, _, name, cut in self._slots:
            yield name, cut

    def _empty(self) -> None:
        for values, key, _, _ in self._slots:
            values[key] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _HollowStage:
    """A stage of hollow parts; the class token with its name."""

    patch_embed: _Hollow
    cls_token: tuple[str, _Cut] | None
    blocks: Sequence[_Hollow]

    def __call__(self, images: Tensor, *, recomputes: bool = False) -> tuple[Tensor, tuple[int, int]]:
        token = None if self.cls_token is None else self.cls_token[1]()
        return forward_stage(self.patch_embed, token, self.blocks, images, recomputes=recomputes)

    def cuts(self) -> Iterator[tuple[str, _Cut]]:
        if self.cls_token is not None:
            yield self.cls_token
        for part in (self.patch_embed, *self.blocks):
            yield from part.cuts()


@dataclass(frozen=True, kw_only=True, slots=True)
class _HollowModel:
    """A `CvT` of hollow parts."""

    stages: Sequence[_HollowStage]
    norm: _Hollow
    head: _Hollow

    def cuts(self) -> Iterator[tuple[str, _Cut]]:
        for part in (*self.stages, self.norm, self.head):
            yield from part.cuts()


def _index_of(shape: torch.Size, whole: torch.Size) -> tuple[slice, ...] | None:
    """First channels, and the centre of a kernel or a grid of positions; None where nothing is cut off."""
    if shape == whole:
        return None
    starts = [(outer - inner) // 2 if axis >= 2 and len(shape) == 4 else 0
              for axis, (inner, outer) in enumerate(zip(shape, whole, strict=True))]  # fmt: skip
    return tuple(slice(start, start + inner) for start, inner in zip(starts, shape, strict=True))


def _key(path: str) -> str:
    """A path as a name that a dict of parameters takes."""
    return path.replace(".", "_")
