"""Checkpoints of a training. It resumes from them after a kill, and goes back to them after non-finite numbers."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cvt_nas.config import TrainingConfig
from cvt_nas.data import Batch, ImageData, Split, made_beside_steps
from cvt_nas.engine.checkpoint import Checkpoint
from cvt_nas.engine.memory import Meter, MicroBatches, Room, meter_of
from cvt_nas.engine.optimization import (
    DivergedError,
    State,
    TrainingState,
    average_over_ranks,
    batch_size_of_rank,
    rank_and_world_size,
)

_STEPS_BETWEEN_CHECKS = 20  # a check stalls the GPU
_MAX_ROLLBACKS = 3


@dataclass(kw_only=True)
class Progress:
    """Position of a training, and the losses of its current epoch.

    Args:
        epoch, step: The next epoch and step, from 0.
        again: Number of times that this epoch was restarted, each time with other images.
        num_rollbacks: Number of times that the training went back because of non-finite numbers.
        seconds: Seconds of all epochs so far.
        curve: Accuracy after each epoch, if it is measured.
        loss_sums, counts: Sum and count of each kind of loss.
        micro_batch, activation_checkpointing: See `Room`; None if not known yet.
    """

    epoch: int = 0
    step: int = 0
    again: int = 0
    num_rollbacks: int = 0
    seconds: float = 0.0
    curve: list[float] = field(default_factory=list)
    loss_sums: Tensor
    counts: list[int]
    micro_batch: int | None = None
    activation_checkpointing: bool = False

    def to_plain(self) -> State:
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}

    def take(self, room: Room) -> None:
        self.micro_batch, self.activation_checkpointing = room.micro_batch, room.activation_checkpointing

    def draws(self, config: TrainingConfig) -> int:
        """Number of the epoch whose images are drawn. For a restarted epoch, it lies beyond the last epoch."""
        return self.epoch + config.epochs * self.again

    def begin_again(self) -> None:
        self.step, self.again = 0, self.again + 1

    def next_epoch(self) -> None:
        self.epoch, self.step, self.again = self.epoch + 1, 0, 0
        self.forget_losses()

    def forget_losses(self) -> None:
        self.loss_sums = torch.zeros_like(self.loss_sums)
        self.counts = [0] * len(self.counts)


def micro_batches_for(
    config: TrainingConfig,
    state: TrainingState,
    data: ImageData,
    progress: Progress,
    device: torch.device,
    *,
    meter: Meter | None,
    at_most: int | None,
    on_room: Callable[[Room], None] | None,
) -> MicroBatches:
    """Makes the `MicroBatches` of a training on `data`. `progress` holds the checkpoint's values, and is updated."""
    world_size = rank_and_world_size()[1]
    num_images, batch_size = data.num_images("train"), batch_size_of_rank(config, world_size)

    def told(room: Room) -> None:
        progress.take(room)
        if on_room is not None:
            on_room(room)

    return MicroBatches(
        config, state.model, device,
        batch_size=min(batch_size, math.ceil(num_images / world_size)),
        meter=meter or meter_of(device),
        bytes_to_come=state.bytes_to_come,
        is_uneven=num_images < batch_size * world_size,
        known=(progress.micro_batch, progress.activation_checkpointing),
        at_most=at_most,
        on_room=told,
    )  # fmt: skip


def num_steps_of(config: TrainingConfig, data: ImageData) -> int:
    """Number of steps of an epoch."""
    world_size = rank_and_world_size()[1]
    return max(data.num_images("train") // (batch_size_of_rank(config, world_size) * world_size), 1)


def batches_from(
    progress: Progress,
    config: TrainingConfig,
    data: ImageData,
    device: torch.device,
    *,
    seed: int,
    until: int,
    evaluated: tuple[Split, int] | None = None,
) -> Iterator[Batch]:
    """This rank's batches of the current epoch, from the next step on; see `ImageData.train_batches`."""
    rank, world_size = rank_and_world_size()
    batches = data.train_batches(
        batch_size=batch_size_of_rank(config, world_size),
        augment=config.augment,
        device=device,
        seed=seed,
        epoch=progress.draws(config),
        first=progress.step,
        rank=rank,
        world_size=world_size,
        until=until,
        evaluated=evaluated,
        temperature=config.teacher_temperature,
    )
    return made_beside_steps(batches, device)


class Keeper:
    """Writes the checkpoints of a training, and takes it back if a loss, a weight or a statistic is not finite.

    The clock of the first rank decides when checkpoints are written, and all ranks do the same. The effect on the
    training depends only on the number of the step. So weights do not depend on when checkpoints were written or read.

    Args:
        checkpoint: None if nothing is kept; the training then cannot go back.
        config: Settings, which say when a checkpoint is due.
        fresh: Makes the initial state, to go back to in the first epoch. None if it was saved.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        state: TrainingState,
        config: TrainingConfig,
        device: torch.device,
        *,
        label: State | None = None,
        fresh: Callable[[], TrainingState] | None = None,
    ) -> None:
        self._checkpoint, self._state, self._device = checkpoint, state, device
        self._due_after = 60 * config.checkpoint_minutes or math.inf
        self._label, self._fresh = label or {}, fresh
        self._saved_step: int | None = None  # step of the last checkpoint; None if this training has written none
        self._started = self._last_saved = time.perf_counter()

    def load(self) -> State | None:
        """Loads the last checkpoint, and returns the progress saved with it; None if there is no checkpoint."""
        saved = self._read(self._is_own)
        if saved is None:
            return None
        self._saved_step = saved.get("step", 0)
        progress = self._state.load(saved)
        return {
            name: value.to(self._device) if isinstance(value, Tensor) else value
            for name, value in progress.items()
            if name not in self._label
        }

    def _read(self, is_wanted: Callable[[State], bool]) -> State | None:
        return None if self._checkpoint is None else self._checkpoint.read(self._device, is_wanted=is_wanted)

    def _is_own(self, saved: State) -> bool:
        return all(saved.get(name) == value for name, value in self._label.items())

    def start_clock(self, progress: Progress) -> None:
        """Starts to count seconds for `progress`."""
        self._started = time.perf_counter() - progress.seconds

    def save(self, progress: Progress) -> None:
        self._last_saved = time.perf_counter()
        progress.seconds = self._last_saved - self._started
        if self._checkpoint is not None and rank_and_world_size()[0] == 0:
            self._checkpoint.write(
                {**self._state.to_plain(), **self._label, **progress.to_plain()},
                keep=self._saved_step == 0,  # the checkpoint of an epoch's end stays until the next end
            )
        self._saved_step = progress.step

    def check(self, progress: Progress, *, num_steps: int, begins_again: bool, stop: Callable[[], bool] = bool) -> bool:
        """Checks the training every 20 steps, and after the last step of an epoch. Call it after each step.

        A check averages the sums of losses and the batch norm statistics over ranks. These are sums and moving
        averages, so this does not change their values at the end of an epoch. A checkpoint is written if it is due. If
        a number is not finite, the training goes back to the end of the last epoch.

        Args:
            num_steps: Steps of an epoch.
            begins_again: Whether the epoch is then restarted with other images, or continues with the images left.
            stop: Says whether to stop. It is called after each step, or by every rank every 20 steps.

        Returns:
            Whether any rank was asked to stop. There is a checkpoint then.

        Raises:
            DivergedError: There is nothing to go back to, or the training went back three times already.
        """
        is_last = progress.step == num_steps
        is_check = is_last or progress.step % _STEPS_BETWEEN_CHECKS == 0
        rank, world_size = rank_and_world_size()
        is_asked = (is_check or world_size == 1) and stop()
        if not is_check and not is_asked:
            return False
        is_due = rank == 0 and time.perf_counter() - self._last_saved > self._due_after
        flags = torch.tensor([float(is_asked), float(is_due)], device=self._device)
        numbers = torch.cat([progress.loss_sums, self._state.greatest(), flags])
        average_over_ranks([*self._state.statistics(), progress.loss_sums, numbers])
        *measured, asked, due = numbers.tolist()
        if not all(map(math.isfinite, measured)):
            self._go_back(progress, begins_again=begins_again)
        elif asked or (due and not is_last):
            self.save(progress)
        return asked > 0

    def _go_back(self, progress: Progress, *, begins_again: bool) -> None:
        good = None
        if self._checkpoint is not None and progress.num_rollbacks < _MAX_ROLLBACKS:

            def is_end_of_last_epoch(saved: State) -> bool:
                # an older checkpoint may be left from an earlier time when this machine had the training
                end = saved.get("step", 0), saved.get("epoch", progress.epoch)
                return self._is_own(saved) and end == (0, progress.epoch)

            good = self._read(is_end_of_last_epoch)
            if good is None and progress.epoch == 0 and self._fresh is not None:
                good = self._fresh().to_plain()
            good = good or self._read(self._is_own)
        if good is None:
            raise DivergedError(progress.epoch + 1, progress.curve, progress.num_rollbacks)
        self._state.load(good)
        progress.num_rollbacks += 1
        progress.forget_losses()
        if begins_again:
            progress.begin_again()
        self.save(progress)
