"""Cuts batches into parts that fit into a device's memory.

The gradients of parts are added, weighted by their shares of the images. Up to rounding, this is the gradient of the
whole batch, as long as the answer to an image does not depend on other images. Only batch norm is an exception.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from cvt_nas.config import TrainingConfig
from cvt_nas.engine.optimization import is_out_of_memory, least_over_ranks, rank_and_world_size, share_of_rank

LEAST_USEFUL = 16  # images that batch norm needs: `training.activation_checkpointing` has the source
_PROBED = 16  # images of the larger test pass; even a small device has memory for them
SPARE = 0.1  # share of the memory that stays free, since allocations leave gaps
T = TypeVar("T")


class Meter(Protocol):
    """Measures the memory of a device for this process."""

    def room(self) -> int:
        """Bytes that this process may use in total, including those in use."""
        ...

    def peak_of(self, run: Callable[[], object], /) -> int:
        """Peak of bytes that this process used while `run` ran, including those used before."""
        ...


class CudaMeter:
    """Measures a GPU's memory. `share` is this process's part; see `torch.cuda.set_per_process_memory_fraction`."""

    def __init__(self, device: torch.device, share: float = 1.0) -> None:
        self._device, self._share = device, share

    def room(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        share = min(self._share, torch.cuda.get_per_process_memory_fraction(self._device))
        return min(int(share * total), free + torch.cuda.memory_reserved(self._device))

    def peak_of(self, run: Callable[[], object], /) -> int:
        torch.cuda.reset_peak_memory_stats(self._device)
        run()
        return torch.cuda.max_memory_allocated(self._device)


def meter_of(device: torch.device, share: float = 1.0) -> Meter | None:
    """The meter of a device; None for a CPU, which has the large memory of the machine."""
    return CudaMeter(device, share) if device.type == "cuda" else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """The part of a batch that fits into the memory of a training's device.

    Args:
        micro_batch: Images at once on each device.
        activation_checkpointing: Whether the backward pass recomputes the inside of blocks.
        ran_out: Whether the number was reduced because memory ran out.
        note: Note for people; None if the settings of the file are unchanged.
    """

    micro_batch: int
    activation_checkpointing: bool
    ran_out: bool
    note: str | None


class _Statistics:
    """Moves the running statistics of batch norms once a batch, by the mean over its parts.

    Each part replaces them by its own statistics. So the momentum is the same for all parts, which compiled blocks need
    since it is a constant there.
    """

    def __init__(self, model: nn.Module) -> None:
        self._norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        self._norms = [norm for norm in self._norms if norm.track_running_stats]
        self._before, self._sums = list[Tensor](), list[Tensor]()

    @contextlib.contextmanager
    def of_part(self, share: float, *, is_first: bool, is_last: bool) -> Iterator[None]:
        """Context for the pass of a part with this share of the batch."""
        momenta = [norm.momentum for norm in self._norms]
        assert len(set(momenta)) <= 1, "a network's batch norms have torch's default"
        running: list[Any] = [tensor for norm in self._norms for tensor in (norm.running_mean, norm.running_var)]
        for norm in self._norms:
            norm.momentum = 1.0
        if is_first and running:
            self._before = [tensor.clone() for tensor in running]
            self._sums = [torch.zeros_like(tensor) for tensor in running]
        try:
            yield
        finally:
            for norm, momentum in zip(self._norms, momenta, strict=True):
                norm.momentum = momentum
        if running:
            with torch.no_grad():
                _add(self._sums, running, alpha=share)
                if is_last:
                    _copy(running, cast(Any, torch)._foreach_lerp(self._before, self._sums, momenta[0]))
                    self._before, self._sums = [], []


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of a batch.

    Args:
        rows: Its images.
        share: Its share of the batch.
        weight: Weight of its mean loss. It equals `share` unless ranks have unequal batches.
    """

    rows: slice
    share: float
    weight: float
    is_first: bool
    is_last: bool
    statistics: _Statistics

    def moving_statistics(self) -> contextlib.AbstractContextManager[None]:
        """Context for the forward and backward pass of the part, in which running statistics move by its share.

        After all parts, they have moved as far as with the whole batch.
        """
        if self.share == 1:
            return contextlib.nullcontext()
        return self.statistics.of_part(self.share, is_first=self.is_first, is_last=self.is_last)


class MicroBatches:
    """Cuts the batches of a training into parts that fit into memory, and repeats a batch if memory runs out.

    All ranks use the same parts. The rank with the least memory decides.

    Args:
        batch_size: Greatest number of images of a rank's batch.
        meter: Measures memory before the first batch. With None, batches are whole until memory runs out.
        bytes_to_come: Bytes that the training will still allocate, such as the moments of the optimizer.
        is_uneven: Whether ranks may have batches of different sizes.
        known: Values of a checkpoint: images at once, and whether blocks are recomputed.
        at_most: Greatest number of images at once, after memory ran out with more.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: Any,
        device: torch.device,
        *,
        batch_size: int,
        meter: Meter | None,
        bytes_to_come: Callable[[], int] = int,
        is_uneven: bool = False,
        known: tuple[int | None, bool] = (None, False),
        at_most: int | None = None,
        on_room: Callable[[Room], None] | None = None,
    ) -> None:
        self._config, self._model, self._device, self._meter = config, model, device, meter
        self._batch_size, self._bytes_to_come, self._is_uneven = batch_size, bytes_to_come, is_uneven
        self._on_room, self._at_most, self._ran_out = on_room, at_most, at_most is not None
        self._statistics = _Statistics(model)
        self._undo = Undo(list(model.buffers()), device)
        self._micro_batch: int | None = None
        self._recomputes = config.activation_checkpointing == "on"
        if known[0] is not None:
            is_auto = config.activation_checkpointing == "auto"
            self._settle(min(known[0], self._wanted), known[1] if is_auto else self._recomputes)
        elif meter is None or (config.micro_batch != "auto" and config.activation_checkpointing != "auto"):
            self._settle(self._wanted, self._recomputes)

    @property
    def whole_part(self) -> "Part":
        """The only part of a batch that is not cut."""
        return Part(
            rows=slice(None), share=1.0, weight=1.0, is_first=True, is_last=True, statistics=self._statistics
        )  # fmt: skip

    @property
    def _asked(self) -> int:
        """Images at once if there is enough memory."""
        said = self._config.micro_batch
        return self._batch_size if said == "auto" else min(int(said), self._batch_size)

    @property
    def _wanted(self) -> int:
        return min(self._asked, self._at_most or self._asked)

    @property
    def _may_recompute(self) -> bool:
        """Whether recomputing is off and may be turned on."""
        return self._config.activation_checkpointing == "auto" and not self._recomputes

    def _is_few(self, number: int) -> bool:
        return number < min(self._asked, LEAST_USEFUL)

    def run(
        self, backward: Callable[[Sequence[Part]], T], probe: Callable[[Sequence[Part]], object], num_images: int
    ) -> T:
        """Calls `backward` for the parts of a batch of `num_images`, and returns its result.

        If memory runs out, running statistics and random states are restored, and `backward` is called with smaller
        parts. With several ranks, it raises instead, since the others wait for this rank.

        Args:
            probe: As `backward`, without communication between ranks, since one rank may run out of memory in it. It
                takes as much memory as `backward` takes for any batch.

        Raises:
            torch.OutOfMemoryError: There is no memory for one image, or there are several ranks.
        """
        if self._micro_batch is None:
            self._measure(probe)
        weight = share_of_rank(num_images, self._device) if self._is_uneven else 1.0
        while True:
            self._undo.remember()
            try:
                return backward(self._parts(num_images, weight))
            except RuntimeError as error:
                if not is_out_of_memory(error) or rank_and_world_size()[1] > 1 or not self._shrink():
                    raise
            self._undo()  # outside of the handler, since the exception keeps the tensors of the failed pass

    def _parts(self, num_images: int, weight: float) -> list[Part]:
        """The parts of a batch. Their number is the same for all batches and ranks, and they are nearly equal."""
        assert self._micro_batch is not None, "it was measured"
        number = min(math.ceil(self._batch_size / self._micro_batch), max(num_images, 1))
        ends = [index * num_images // number for index in range(number + 1)]
        if number == 1:
            return [dataclasses.replace(self.whole_part, weight=weight)]
        return [
            Part(
                rows=slice(start, end),
                share=(end - start) / num_images,
                weight=weight * (end - start) / num_images,
                is_first=index == 0,
                is_last=index == number - 1,
                statistics=self._statistics,
            )
            for index, (start, end) in enumerate(itertools.pairwise(ends))
        ]

    def _measure(self, probe: Callable[[Sequence[Part]], object]) -> None:
        found = self._fitting(probe)
        if self._may_recompute and self._is_few(found):
            self._recomputes = True
            self._model.set_recomputing(True)
            found = self._fitting(probe)
        self._settle(min(found, self._wanted), self._recomputes)

    def _fitting(self, probe: Callable[[Sequence[Part]], object]) -> int:
        """Images that fit into memory, extrapolated from the peaks of two small passes; at least 1."""
        assert self._meter is not None, "else nothing is measured"
        # with recomputing, few images have their peak elsewhere than many images, and each takes less memory
        larger, peaks = min(4 * _PROBED if self._recomputes else _PROBED, self._batch_size), list[int]()
        while larger > 1 and not peaks:
            try:
                peaks = [self._peak_of(probe, size) for size in (larger // 2, larger)]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                larger //= 2
        found = self._batch_size if peaks else 1
        if peaks and peaks[1] > peaks[0]:
            slope = (peaks[1] - peaks[0]) / (larger - larger // 2)
            left = (1 - SPARE) * self._meter.room() - self._bytes_to_come() - peaks[1]
            found = max(math.floor(left / slope) + larger, 1)
        return least_over_ranks(min(found, self._batch_size), self._device)

    def _peak_of(self, probe: Callable[[Sequence[Part]], object], size: int) -> int:
        """Peak of two parts of `size` images: the second one runs while the gradients of the first one exist."""
        assert self._meter is not None, "else nothing is measured"
        halves = [
            Part(
                rows=slice(0, size), share=0.5, weight=0.5,
                is_first=is_first, is_last=not is_first, statistics=self._statistics,
            )
            for is_first in (True, False)
        ]  # fmt: skip
        self._undo.remember()
        try:
            return self._meter.peak_of(lambda: probe(halves))
        finally:
            self._undo()

    def _shrink(self) -> bool:
        """Halves the parts, or recomputes blocks if the parts would become too small. False if neither is possible."""
        assert self._micro_batch is not None, "a batch was begun"
        self._ran_out = True
        if self._may_recompute and self._is_few(self._micro_batch // 2):
            self._settle(self._micro_batch, True)
        elif self._micro_batch > 1:
            self._settle(self._micro_batch // 2, self._recomputes)
        else:
            return False
        return True

    def _settle(self, micro_batch: int, recomputes: bool) -> None:
        if self._ran_out and self._config.activation_checkpointing == "auto" and self._is_few(micro_batch):
            recomputes = True
        micro_batch = math.ceil(self._batch_size / math.ceil(self._batch_size / micro_batch))  # parts are equal
        self._micro_batch, self._recomputes = micro_batch, recomputes
        self._model.set_recomputing(recomputes)
        if self._on_room is not None:
            self._on_room(
                Room(
                    micro_batch=micro_batch,
                    activation_checkpointing=recomputes,
                    ran_out=self._ran_out,
                    note=self._note(micro_batch, recomputes),
                )
            )

    def _note(self, micro_batch: int, recomputes: bool) -> str | None:
        is_cut = math.ceil(self._batch_size / micro_batch) > math.ceil(self._batch_size / self._asked)
        is_new = recomputes and self._config.activation_checkpointing == "auto"
        if not (is_cut or is_new or self._ran_out):
            return None
        why = "device memory ran out" if self._ran_out else "the device has no memory for more"
        again = ", and each block is computed again in the backward pass" if recomputes else ""
        whose = " a device" if rank_and_world_size()[1] > 1 else ""
        return f"{micro_batch:,} of the {self._batch_size:,} images of a batch{whose} are trained at once{again}: {why}"


_add, _copy = cast(Any, torch)._foreach_add_, cast(Any, torch)._foreach_copy_


class Undo:
    """Restores a network's buffers and the random states as they were at the last `remember`."""

    def __init__(self, buffers: Sequence[Tensor], device: torch.device) -> None:
        # grouped by type, so that a GPU copies each group at once
        self._groups = [
            [buffer for buffer in buffers if buffer.is_floating_point() == is_float] for is_float in (True, False)
        ]
        self._kept = [[buffer.clone() for buffer in group] for group in self._groups]
        self._device, self._states = device, list[Tensor]()

    @torch.no_grad()
    def remember(self) -> None:
        for kept, group in zip(self._kept, self._groups, strict=True):
            if group:
                _copy(kept, group)
        self._states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            self._states.append(torch.cuda.get_rng_state(self._device))

    @torch.no_grad()
    def __call__(self) -> None:
        for kept, group in zip(self._kept, self._groups, strict=True):
            if group:
                _copy(group, kept)
        torch.set_rng_state(self._states[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._states[1], self._device)
            torch.cuda.empty_cache()
