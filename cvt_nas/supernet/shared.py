"""The shared weights of a space, and the subnets that are cut out of them."""

import contextlib
import copy
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cvt_nas.arch import ArchConfig, BlockConfig, Grid, StageConfig
from cvt_nas.errors import ArchError
from cvt_nas.model import Block, ConvEmbed, ConvProjection, CvT, forward_stages, resized_positions
from cvt_nas.space import SearchSpace
from cvt_nas.supernet.cuts import Cut, cut_from
from cvt_nas.supernet.hollow import Hollow, HollowModel, HollowStage
from cvt_nas.supernet.ranks import Ranks, SyncedBatchNorm

NormChoice = Literal["kv_stride", "kernel_size"]
ConvChoice = Literal["kv_stride", "patch_stride"]
_MAX_CACHED = 4096  # modules without weights, which take tens of kilobytes each
_CONVOLUTION = re.compile(r"stage(\d+)\.(?:(patch_embed\.proj)|blocks\.\d+\.attn\.conv_proj_[kv]\.conv)")
_PROJECTION = re.compile(r"stage(\d+)\.blocks\.(\d+)\.attn\.conv_proj_([qkv])")


class Supernet(nn.Module):
    """The shared weights of a space.

    A forward pass leaves no state. The subnet is an argument, and batch norm in training uses the statistics of the
    batch and stores none. So the accuracy of a subnet means nothing before the subnet is extracted and the statistics
    of its batch norms are measured.

    Args:
        space: Its architectures are the subnets.
        drop_path: Rates as in `CvT`. They apply only to the largest subnet, since small ones underfit anyway.
        drop_path_on_all: Whether `drop_path` applies to all subnets.
        kernel_maps, own_norms, own_convs, sync_batch_norm: See `SupernetConfig`.
        regularised: The subnet to which `drop_path` applies, if only a part of the space is trained.

    Raises:
        ValueError: `drop_path` does not have one rate for each stage.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        drop_path: float | Sequence[float] = 0.0,
        drop_path_on_all: bool = False,
        kernel_maps: bool = False,
        own_norms: Collection[NormChoice] = (),
        own_convs: Collection[ConvChoice] = (),
        sync_batch_norm: bool = False,
        regularised: ArchConfig | None = None,
    ) -> None:
        super().__init__()
        self.largest = space.largest
        self.shared = CvT(self.largest, drop_path=drop_path)
        for index, grid in enumerate(space.greatest_grids):
            embedding: Any = self.shared.get_submodule(f"stage{index}.patch_embed")
            if embedding.pos_embed is not None:
                embedding.pos_embed = nn.Parameter(resized_positions(embedding.pos_embed.detach(), grid))
        self._drop_path = [drop_path] * len(space.stages) if isinstance(drop_path, int | float) else list(drop_path)
        self._drop_path_on_all = drop_path_on_all
        self._own_norms, self._own_convs = frozenset(own_norms), frozenset(own_convs)
        self._ranks = Ranks() if sync_batch_norm else None
        self._regularised = regularised or self.largest
        self.kernel_maps, self.norms, self.convs = nn.ParameterDict(), nn.ModuleDict(), nn.ModuleDict()
        for name, module in list(self.shared.named_modules()):
            if (place := _CONVOLUTION.fullmatch(name)) is not None:
                stage = space.stages[int(place[1])]
                for stride in stage.patch_stride if place[2] else stage.kv_stride:
                    if (key := self._conv_key(name, stride)) is not None:
                        self.convs[key] = copy.deepcopy(module)
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
        self._hollows: dict[Any, Hollow] = {}
        self._hollow_models: dict[ArchConfig, HollowModel] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Drops the caches, so that a copy cuts from its own weights."""
        return {**self.__dict__, "_hollows": {}, "_hollow_models": {}}

    def train(self, mode: bool = True) -> Self:
        for hollow in self._hollows.values():
            hollow.module.train(mode)
        return super().train(mode)

    def forward(
        self, images: Float[Tensor, "batch channels height width"], arch: ArchConfig
    ) -> Float[Tensor, "batch classes"]:
        """Logits of the subnet `arch`. Raises ArchError if it needs a weight that is missing here."""
        hollow = self._hollow_model(arch)
        stages = [partial(stage, recomputes=self._recomputes) for stage in hollow.stages]
        return forward_stages(arch, stages, hollow.norm, hollow.head, images)

    def set_recomputing(self, on: bool) -> None:
        """Like `CvT.set_recomputing`, for all subnets."""
        self._recomputes = on

    @contextlib.contextmanager
    def without_other_ranks(self) -> Iterator[None]:
        """Within the block, a pass waits for no other rank. Batch norm uses only the images of this rank.

        A pass takes as much memory as usual. So it shows how much is needed, and it may run out of memory on one rank
        alone.
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
        """State dict of the plain `CvT(arch)`. Tensors that are not cut share memory with the supernet.

        Raises ArchError if `arch` needs a weight that is missing here.
        """
        return {name: cut() for name, cut in self._hollow_model(arch).cuts()}

    @torch.no_grad()
    def insert(self, model: CvT) -> None:
        """Writes the weights of `model` into the subnet of its architecture. It is the inverse of `extract`.

        Weights around a kernel are set to zero, so that subnets with a larger kernel have the same outputs. Weights
        beyond the channels and blocks of `model` do not change, nor does the head if `model` has another number of
        classes. Where options have batch norms or convolutions of their own, all are set to those of `model`.

        Raises:
            ArchError: `model` has a weight that has no place here.
        """
        has_head = model.arch.num_classes == self.largest.num_classes
        self.insert_state({n: t for n, t in model.state_dict().items() if has_head or not n.startswith("head.")})

    @torch.no_grad()
    def insert_state(self, state: Mapping[str, Tensor]) -> None:
        """Like `insert`, for a state dict that may be incomplete. Raises ArchError if a tensor has no place here."""
        for name, tensor in state.items():
            path, _, last = name.rpartition(".")
            self._cut_of(name, tensor.shape, None).put(tensor)
            for key, norm in self.norms.items():
                if path.endswith(".bn") and key.startswith(_key(f"{path[:-3]}.")):
                    cut_from(norm, last, name, tensor.shape).put(tensor)
            for key, conv in self.convs.items():
                if _CONVOLUTION.fullmatch(path) and key.startswith(_key(f"{path}.")):
                    cut_from(conv, last, name, tensor.shape).put(tensor)

    def _hollow_model(self, arch: ArchConfig) -> "HollowModel":
        if arch in self._hollow_models:
            return self._hollow_models[arch]
        if len(self._hollows) + len(self._hollow_models) >= _MAX_CACHED:
            self._hollows.clear()
            self._hollow_models.clear()
        is_regularised = self._drop_path_on_all or arch == self._regularised
        rates = self._drop_path if is_regularised else [0.0] * len(arch.stages)
        channels = (arch.num_channels, *(stage.embed_dim for stage in arch.stages))
        self._hollow_models[arch] = HollowModel(
            stages=[
                self._hollow_stage(index, stage, channels[index], grid, rates[index])
                for index, (stage, grid) in enumerate(zip(arch.stages, arch.grids, strict=True))
            ],
            norm=self._hollow("norm", None, nn.LayerNorm, channels[-1]),
            head=self._hollow("head", None, nn.Linear, channels[-1], arch.num_classes),
        )
        return self._hollow_models[arch]

    def _hollow_stage(
        self, index: int, stage: StageConfig, in_channels: int, grid: Grid, drop_path: float
    ) -> "HollowStage":
        name, width, last = f"stage{index}", stage.embed_dim, max(len(stage.blocks) - 1, 1)
        embedding = replace(stage, blocks=(BlockConfig(),))  # blocks do not affect the embedding
        token = f"{name}.cls_token"
        patch_embed = self._hollow(f"{name}.patch_embed", embedding, ConvEmbed, embedding, in_channels, grid)
        blocks = []
        for number, block in enumerate(stage.blocks):
            arguments = (block, width, stage.class_token, drop_path * number / last)
            blocks.append(self._hollow(f"{name}.blocks.{number}", block, Block, *arguments))
        return HollowStage(
            patch_embed=patch_embed,
            cls_token=(token, self._cut_of(token, torch.Size((1, 1, width)), None)) if stage.class_token else None,
            blocks=blocks,
        )

    def _hollow(
        self, name: str, of: BlockConfig | StageConfig | None, make: Callable[..., nn.Module], *arguments: Any
    ) -> "Hollow":
        """The module `name` of a `CvT`, made by `make(*arguments)`. It is cached, since this takes milliseconds."""
        key = (name, *arguments)
        if key not in self._hollows:
            with torch.device("meta"):
                module = make(*arguments)
                for part in list(module.modules()):
                    if isinstance(part, ConvProjection) and self._ranks is not None:
                        part.bn = SyncedBatchNorm(part.bn.num_features, self._ranks)
            self._hollows[key] = Hollow(module.train(self.training), name, of, self._cut_of)
        return self._hollows[key]

    def _cut_of(self, name: str, shape: torch.Size, of: BlockConfig | StageConfig | None) -> "Cut":
        """The place of the tensor `name` of a subnet, with its shape and the block or embedding that it belongs to."""
        path, _, tensor = name.rpartition(".")
        owners, own, kernel_map = self.norms, None, None
        if isinstance(of, BlockConfig) and path.endswith(".bn"):
            own = self._norm_key(path[:-3], of)
        elif of is not None and _CONVOLUTION.fullmatch(path):
            owners = self.convs
            own = self._conv_key(path, of.kv_stride if isinstance(of, BlockConfig) else of.patch_stride)
        if isinstance(of, BlockConfig) and path.endswith(".conv"):
            key = _key(f"{path[:-5]}.k{of.kernel_size}")
            kernel_map = (self.kernel_maps._parameters, key) if key in self.kernel_maps else None
        try:
            owner = self.shared.get_submodule(path) if own is None else owners[own]
        except (AttributeError, KeyError):
            raise ArchError(f"{name}: the supernet of {self.largest.id} has no such weight") from None
        return cut_from(owner, tensor, name, shape, kernel_map)

    def _norm_key(self, projection: str, block: BlockConfig) -> str | None:
        """Name in `norms` of the batch norm of a projection in `block`; None if it is the shared one."""
        size = f".k{block.kernel_size}" if "kernel_size" in self._own_norms else ""
        # the stride of queries is always 1
        stride = f".s{block.kv_stride}" if "kv_stride" in self._own_norms and projection[-1] != "q" else ""
        return _key(f"{projection}{size}{stride}") if size or stride else None

    def _conv_key(self, convolution: str, stride: int) -> str | None:
        """Name in `convs` of a convolution with this stride; None if it is the shared one."""
        choice = "patch_stride" if convolution.endswith("patch_embed.proj") else "kv_stride"
        return _key(f"{convolution}.s{stride}") if choice in self._own_convs else None


def extract(supernet: Supernet, arch: ArchConfig) -> CvT:
    """The subnet `arch` as a plain model with its own weights, on the device of the supernet.

    Raises ArchError if it needs a weight that is missing in the supernet.
    """
    with torch.device(supernet.shared.head.weight.device):
        model = CvT(arch)
    model.load_state_dict(supernet.state_of(arch))
    return model.train(supernet.training)


def _key(path: str) -> str:
    """Turns a path into a valid name for a dict of parameters."""
    return path.replace(".", "_")
