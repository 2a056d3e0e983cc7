"""Training of one architecture, from a fresh initialisation or from a checkpoint."""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cvt_nas.arch import ArchConfig
from cvt_nas.config import TrainingConfig
from cvt_nas.data import ImageData, seed_all
from cvt_nas.engine.checkpoint import Checkpoint
from cvt_nas.engine.compiling import CompiledBlocks
from cvt_nas.engine.criterion import criterion_of
from cvt_nas.engine.evaluation import EVAL_BATCH_SIZE, autocast, evaluate
from cvt_nas.engine.keeper import Keeper, Progress, batches_from, micro_batches_for, num_steps_of
from cvt_nas.engine.memory import Meter, MicroBatches, Part, Room, meter_of
from cvt_nas.engine.optimization import (
    State,
    TrainingState,
    ordered_sums,
    prepare_device,
    rank_and_world_size,
    set_learning_rate,
)
from cvt_nas.engine.replay import ReplayedPass, recorder_of
from cvt_nas.model import CvT

# Each rank has statistics of its own images until they are averaged. torch 2.13 renamed the argument. It also copies
# the first rank's buffers at the start, which changes nothing, since all ranks start alike.
_OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}


Backward = Callable[..., Float[Tensor, ""]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """State after one epoch.

    Args:
        number: Number of the epoch, from 1.
        accuracy: Accuracy on the search split by the setting `metric`, from 0 to 1.
        curve: `accuracy` of every epoch so far.
        loss: Mean loss of the epoch's training batches.
        train_seconds: Seconds of all epochs so far, including evaluations.
        num_rollbacks: Number of times that the training went back because of non-finite numbers.
        model: The evaluated network, with averaged weights if EMA is on. Valid until the next epoch.
    """

    number: int
    accuracy: float
    curve: tuple[float, ...]
    loss: float
    train_seconds: float
    num_rollbacks: int
    model: CvT


def fit(
    arch: ArchConfig,
    training: TrainingConfig,
    data: ImageData,
    *,
    device: torch.device,
    seed: int,
    checkpoint: Checkpoint | None = None,
    initial: Callable[[], CvT] | None = None,
    meter: Meter | None = None,
    at_most: int | None = None,
    on_room: Callable[[Room], None] | None = None,
) -> Generator[Epoch, None, None]:
    """Trains `arch` from the start or from `checkpoint`, and yields after each epoch.

    The same seed gives the same weights on the same kind of device, also after a restart at any step. If a loss, a
    weight or a batch norm statistic is not finite, the epoch is restarted with other images. Batches that do not fit
    into memory are cut, see the settings `micro_batch` and `activation_checkpointing`.

    Args:
        device: Device of the training; with several ranks, the device of this rank.
        seed: Seed of initialisation, order, augmentation and drop path.
        checkpoint: Read if it exists, and replaced after each epoch and every `training.checkpoint_minutes`.
        initial: Makes a model whose weights replace a fresh initialisation if there is no checkpoint.
        at_most, on_room: See `MicroBatches`.

    Yields:
        An `Epoch` after each epoch. A checkpoint's last epoch is yielded first, with the checkpoint's model, which may
        be within the next epoch.

    Raises:
        DivergedError: There is no `checkpoint`, or the training went back three times already.
    """
    prepare_device(device)
    criterion, num_steps = criterion_of(training, data, device), num_steps_of(training, data)

    def begin(weights: Callable[[], CvT] | None = None) -> TrainingState:
        seed_all(seed)
        model = CvT(arch, drop_path=training.drop_path).to(device)
        if weights is not None:
            model.load_state_dict(weights().state_dict())
        return TrainingState.of(model, training, device, num_steps=num_steps, criterion=criterion)

    state = begin()
    keeper = Keeper(
        checkpoint, state, training, device,
        label={"arch_id": arch.id}, fresh=lambda: begin(initial),
    )  # fmt: skip
    saved = keeper.load()
    model = cast(CvT, state.model)
    if saved is None and initial is not None:
        model.load_state_dict(initial().state_dict())  # the first step copies them to the average
    progress = _progress_of(saved, device)
    evaluated = model if state.averaged is None else cast(CvT, state.averaged.module)

    micro_batches = micro_batches_for(
        training, state, data, progress, device, meter=meter, at_most=at_most, on_room=on_room
    )
    if progress.epoch:
        yield _epoch(progress, math.nan, evaluated)
    trained: nn.Module = model
    if rank_and_world_size()[1] > 1:
        trained = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **_OWN_BUFFERS,
        )
    backward = _fast_backward(state, trained, training, micro_batches, device=device, meter=meter)

    with contextlib.closing(data):  # ends processes that read images ahead
        while progress.epoch < training.epochs:
            keeper.start_clock(progress)
            trained.train()
            for images, targets in batches_from(
                progress, training, data, device,
                seed=seed, until=training.epochs, evaluated=("search", EVAL_BATCH_SIZE),
            ):  # fmt: skip
                set_learning_rate(state.optimizer, training, progress.epoch + progress.step / num_steps)
                progress.loss_sums += _step(state, trained, images, targets, training, micro_batches, backward)
                progress.counts[0] += 1
                progress.step += 1
                keeper.check(progress, num_steps=num_steps, begins_again=True)
                if progress.step == 0:
                    break
            if progress.step == 0:
                continue
            loss = progress.loss_sums.item() / max(progress.counts[0], 1)
            progress.curve.append(evaluate(evaluated, data, "search", training=training, device=device))
            progress.next_epoch()
            keeper.save(progress)
            yield _epoch(progress, loss, evaluated)


def _step(
    state: TrainingState,
    trained: nn.Module,
    images: Float[Tensor, "batch channels height width"],
    targets: Tensor,
    training: TrainingConfig,
    micro_batches: MicroBatches,
    backward: Backward | None = None,
) -> Float[Tensor, ""]:
    """Steps the optimizer. The mean loss stays on the device, since reading it in each step would stall a GPU."""
    backward = backward or functools.partial(_backward, state, trained, training=training)
    loss = micro_batches.run(
        lambda parts: backward(images, targets, parts=parts),
        lambda parts: _backward(state, state.model, images, targets, training=training, parts=parts),
        len(images),
    )
    state.step(training.clip_grad_norm)
    return loss


def _fast_backward(
    state: TrainingState,
    trained: nn.Module,
    training: TrainingConfig,
    micro_batches: MicroBatches,
    *,
    device: torch.device,
    meter: Meter | None,
) -> Backward:
    """Returns `_backward` in the way of the setting `compile`."""
    model = cast(CvT, state.model)
    compiled = CompiledBlocks(model) if training.compile == "blocks" else contextlib.nullcontext
    record = recorder_of(device) if training.compile in ("auto", "graph") and trained is model else None
    replayed = None
    if record is not None:
        whole = micro_batches.whole_part
        replayed = ReplayedPass(
            lambda images, targets: (_pass(state, model, images, targets, training, [whole]),),
            model, record, meter=meter or meter_of(device),
        )  # fmt: skip

    def backward(images: Tensor, targets: Tensor, *, parts: Sequence[Part]) -> Float[Tensor, ""]:
        if replayed is not None and len(parts) == 1:
            state.optimizer.zero_grad(set_to_none=True)
            return replayed(images, targets)[0]
        with compiled():
            return _backward(state, trained, images, targets, training=training, parts=parts)

    return backward


def _backward(
    state: TrainingState,
    trained: nn.Module,
    images: Float[Tensor, "batch channels height width"],
    targets: Tensor,
    *,
    training: TrainingConfig,
    parts: Sequence[Part],
) -> Float[Tensor, ""]:
    """Computes the gradient of the mean loss over the images of `parts`, and returns the loss."""
    state.optimizer.zero_grad(set_to_none=True)
    return _pass(state, trained, images, targets, training, parts)


def _pass(
    state: TrainingState,
    trained: nn.Module,
    images: Float[Tensor, "batch channels height width"],
    targets: Tensor,
    training: TrainingConfig,
    parts: Sequence[Part],
) -> Float[Tensor, ""]:
    """Adds the gradient of the mean loss over the images of `parts`, and returns the loss."""
    total = torch.zeros((), device=images.device)
    for part in parts:
        kept: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if isinstance(trained, DistributedDataParallel) and not part.is_last:
            kept = trained.no_sync()  # ranks add their gradients once a batch
        with kept, part.moving_statistics(), ordered_sums(images.device):
            with autocast(training, images.device):
                logits = trained(images[part.rows])
            loss = state.criterion(logits.float(), targets[part.rows]) * part.weight
            state.scaler.scale(loss).backward()
        total += loss.detach()
    return total


def _progress_of(saved: State | None, device: torch.device) -> Progress:
    """Progress in a checkpoint. Older versions saved only the ends of epochs, with fewer values."""
    if saved is None:
        saved = {}
    elif "epoch" not in saved:
        saved = {"epoch": len(saved["curve"]), "curve": saved["curve"], "seconds": saved["train_seconds"]}
    return Progress(**{"loss_sums": torch.zeros(1, device=device), "counts": [0], **saved})


def _epoch(progress: Progress, loss: float, model: CvT) -> Epoch:
    return Epoch(
        number=progress.epoch,
        accuracy=progress.curve[-1],
        curve=tuple(progress.curve),
        loss=loss,
        train_seconds=progress.seconds,
        num_rollbacks=progress.num_rollbacks,
        model=model,
    )
