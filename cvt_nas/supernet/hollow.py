"""Hollow modules: parts of a `CvT` without weights. Each call borrows the weights from a supernet."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from cvt_nas.arch import BlockConfig, StageConfig
from cvt_nas.model import forward_stage
from cvt_nas.supernet.cuts import Cut, CutOut


class Hollow:
    """A plain module on the meta device, without weights. Each call borrows them from the supernet."""

    def __init__(
        self,
        module: nn.Module,
        name: str,
        of: BlockConfig | StageConfig | None,
        cut_of: Callable[[str, torch.Size, BlockConfig | StageConfig | None], Cut],
    ) -> None:
        self.module = module
        self._slots: list[tuple[dict[str, Any], str, str, Cut]] = []
        for path, part in module.named_modules():
            for values in (part._parameters, part._buffers):
                for key, value in values.items():
                    if value is not None:
                        full = ".".join(filter(None, (name, path, key)))
                        self._slots.append((values, key, full, cut_of(full, value.shape, of)))
            if isinstance(part, nn.BatchNorm2d):
                part.track_running_stats = False  # neither read nor written in training, but read in eval mode
        is_learned = [cut.index is not None and cut.whole.requires_grad for *_, cut in self._slots]
        self._learned = [slot for slot, is_so in zip(self._slots, is_learned, strict=True) if is_so]
        self._others = [slot for slot, is_so in zip(self._slots, is_learned, strict=True) if not is_so]
        self._indices = [cut.index for *_, cut in self._learned]
        self._empty()

    def __call__(self, *inputs: Any) -> Any:
        for values, key, _, cut in self._others:
            values[key] = cut()
        parts = CutOut.apply(self._indices, *(cut.whole for *_, cut in self._learned))
        for (values, key, _, cut), part in zip(self._learned, cast(Any, parts), strict=True):
            values[key] = cut(part)
        try:
            return self.module(*inputs)
        finally:
            self._empty()

    def cuts(self) -> Iterator[tuple[str, Cut]]:
        """Yields the cuts with their names in a `CvT`."""
        for _, _, name, cut in self._slots:
            yield name, cut

    def _empty(self) -> None:
        for values, key, _, _ in self._slots:
            values[key] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class HollowStage:
    """A stage of hollow parts. The class token comes with its name."""

    patch_embed: Hollow
    cls_token: tuple[str, Cut] | None
    blocks: Sequence[Hollow]

    def __call__(self, images: Tensor, *, recomputes: bool = False) -> tuple[Tensor, tuple[int, int]]:
        token = None if self.cls_token is None else self.cls_token[1]()
        return forward_stage(self.patch_embed, token, self.blocks, images, recomputes=recomputes)

    def cuts(self) -> Iterator[tuple[str, Cut]]:
        if self.cls_token is not None:
            yield self.cls_token
        for part in (self.patch_embed, *self.blocks):
            yield from part.cuts()


@dataclass(frozen=True, kw_only=True, slots=True)
class HollowModel:
    """A `CvT` of hollow parts."""

    stages: Sequence[HollowStage]
    norm: Hollow
    head: Hollow

    def cuts(self) -> Iterator[tuple[str, Cut]]:
        for part in (*self.stages, self.norm, self.head):
            yield from part.cuts()
