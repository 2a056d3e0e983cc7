"""How many images a device has memory for at once, and batches that are cut to that.

A batch is cut into parts, whose gradients are added up, each by its share of the images. That is the gradient of the
whole batch, to rounding, wherever the answer to an image does not depend on the others: all but batch norm.
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
_PROBED = 16  # images of the larger pass, which even a small device has memory for
SPARE = 0.1  # of the memory: blocks do not fit into it without gaps
T = TypeVar("T")


class Meter(Protocol):
    """The memory of a device, as this process sees it."""

    def room(self) -> int:
        """Bytes that this process may have in all, those included that it has already."""
        ...

    def peak_of(self, run: Callable[[], object], /) -> int:
        """The most bytes that this process had at a time while `run` ran, those included that it had before."""
        ...


class CudaMeter:
    """A GPU's memory, of which `share` is meant for this process; see `torch.cuda.set_per_process_memory_fraction`."""

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
    """None for a CPU, whose memory is the machine's, and large."""
    return CudaMeter(device, share) if device.type == "cuda" else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """How much of a batch the device of a training has memory for.

    Args:
        micro_batch: Images at once, on each device.
        activation_checkpointing: Whether what is inside a block is computed again in the backward pass.
        ran_out: Whether that is less than before, since memory ran out.
        note: For people; None where a batch goes through as the file has it.
    """

    micro_batch: int
    activation_checkpointing: bool
    ran_out: bool
    note: str | None


class _Statistics:
    """The running statistics of a network's batch norms, moved once a batch by the mean over its parts.

    Each part replaces them by its own, so that the momentum of a batch norm is the same for all parts: a compiled block
    has it as a constant.
    """

    def __init__(self, model: nn.Module) -> None:
        self._norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        self._norms = [norm for norm in self._norms if norm.track_running_stats]
        self._before, self._sums = list[Tensor](), list[Tensor]()

    @contextlib.contextmanager
    def of_part(self, share: float, *, is_first: bool, is_last: bool) -> Iterator[None]:
        """The pass of a part that has this share of the batch."""
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
    """Of a batch: which images, and their share of it; their mean loss counts by `weight`, which is `share` unless
    ranks have unequal batches."""

    rows: slice
    share: float
    weight: float
    is_first: bool
    is_last: bool
    statistics: _Statistics

    def moving_statistics(self) -> contextlib.AbstractContextManager[None]:
        """The forward and backward pass of the part, in which batch norms move their running statistics by its share
        of the batch: as far as in one piece."""
        if self.share == 1:
            return contextlib.nullcontext()
        return self.statistics.of_part(self.share, is_first=self.is_first, is_last=self.is_last)


class MicroBatches:
    """Cuts the batches of a training into parts that its device has memory for, and begins one again where it has not.

    Where several ranks train, all cut alike, by the one that has the least memory.

    Args:
        batch_size: Images of a batch that a rank has at most.
        meter: Measures before the first batch; where it is None, a batch goes through whole until memory runs out.
        bytes_to_come: What the training will hold that it does not hold yet, as the moments of the optimizer.
        is_uneven: Whether ranks may have batches of different sizes.
        known: What a checkpoint holds of it: images at once, and whether blocks are computed again.
        at_most: Images at once, since memory ran out with more.
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
        """Of a batch that is not cut."""
        return Part(
            rows=slice(None), share=1.0, weight=1.0, is_first=True, is_last=True, statistics=self._statistics
        )  # fmt: skip

    @property
    def _asked(self) -> int:
        """Images at once, where there is memory for them."""
        said = self._config.micro_batch
        return self._batch_size if said == "auto" else min(int(said), self._batch_size)

    @property
    def _wanted(self) -> int:
        return min(self._asked, self._at_most or self._asked)

    @property
    def _may_recompute(self) -> bool:
        """Whether it is for us to say that blocks are to be computed again, and they are not."""
        return self._config.activation_checkpointing == "auto" and not self._recomputes

    def _is_few(self, number: int) -> bool:
        return number < min(self._asked, LEAST_USEFUL)

    def run(
        self, backward: Callable[[Sequence[Part]], T], probe: Callable[[Sequence[Part]], object], num_images: int
    ) -> T:
        """What `backward` returns for the parts of a batch of `num_images`, whose gradients it leaves.

        Where memory runs out, the running statistics and random states go back to what they were, and it is called
        again, with smaller parts. With several ranks it raises, since the others wait for this one.

        Args:
            probe: The same for parts of this batch, without a word to other ranks: one may run out of memory in it. The
                memory that it takes is the most that `backward` takes of any batch.

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
            self._undo()  # only here, since an exception holds on to the tensors of the pass that failed

    def _parts(self, num_images: int, weight: float) -> list[Part]:
        """As many of any batch, on any rank, and as equal as can be."""
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
        """Images that the device has memory for, by a line through the peaks of two small passes; at least 1."""
        assert self._meter is not None, "else nothing is measured"
        # where blocks are computed again, the peak of a few images is not where that of many is, and each takes less
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
        """Of two parts of so many images: the second goes forward while the gradients of the first are there."""
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
        """Halves the parts, or computes blocks again instead, where that leaves too few; False where nothing is left
        to do."""
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
        # of one type each, which a GPU copies at once
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
