"""One architecture, trained from a fresh initialisation or on from a checkpoint."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from cvt_nas.arch import ArchConfig
from cvt_nas.config import TrainingConfig
from cvt_nas.data import ImageData, save_preprocessing, seed_all
from cvt_nas.engine.evaluation import autocast, class_accuracies, evaluate
from cvt_nas.engine.optimization import (
    DivergedError,
    TrainingState,
    averaged_model,
    batch_size_of_rank,
    is_out_of_memory,
    mean_over_ranks,
    optimizer_of,
    prepare_device,
    rank_and_world_size,
    read_checkpoint,
    set_learning_rate,
    share_buffers,
)
from cvt_nas.engine.setup import TrainingSetup
from cvt_nas.engine.supernet import open_inheritance
from cvt_nas.errors import StorageError
from cvt_nas.model import CvT, initialise, save_model
from cvt_nas.results import patiently


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """State after one epoch.

    Args:
        number: From 1.
        accuracy: On the search split, a fraction.
        curve: `accuracy` of every epoch so far.
        loss: Mean over the epoch's training batches.
        train_seconds: Of all epochs so far, their evaluation included.
        model: What was evaluated: the averaged weights where EMA is on. Valid until the next epoch.
    """

    number: int
    accuracy: float
    curve: tuple[float, ...]
    loss: float
    train_seconds: float
    model: CvT


def fit(
    arch: ArchConfig,
    training: TrainingConfig,
    data: ImageData,
    *,
    device: torch.device,
    seed: int,
    checkpoint: Path | None = None,
    model_folder: Path | None = None,
    initial: Callable[[], CvT] | None = None,
    num_parts: int = 1,
) -> Generator[Epoch, None, None]:
    """Trains `arch` from the start, or on from `checkpoint`, an epoch at a time.

    The same seed gives the same weights on the same kind of device, also across a restart.

    Args:
        training: Section `training` of the space file.
        device: Where to train; the current rank's, where there are several.
        seed: Of initialisation, order, augmentation and drop path.
        checkpoint: File that is read if it is there, and replaced after each epoch.
        model_folder: Gets the trained model, complete before the last epoch is yielded.
        initial: Whose weights it begins with where there is no checkpoint, instead of a fresh initialisation.
        num_parts: Parts of a batch that go through the network one after the other, to take less memory.

    Yields:
        One `Epoch` after each; before them again the one that the checkpoint is of, where there is one.

    Raises:
        DivergedError: A loss is not finite.
    """
    rank, world_size = rank_and_world_size()
    prepare_device(device)
    seed_all(seed)
    model = CvT(arch, drop_path=training.drop_path).to(device)
    saved = read_checkpoint(checkpoint, device)
    if saved is not None and saved.pop("arch_id", None) != arch.id:  # of a trial that the record has forgotten
        saved = None
    if saved is None and initial is not None:
        model.load_state_dict(initial().state_dict())
    batch_size = batch_size_of_rank(training, world_size)
    num_steps = max(data.num_images("train") // (batch_size * world_size), 1)
    averaged = averaged_model(model, training, num_steps=num_steps)
    optimizer = optimizer_of(model, training, device)
    scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16" and device.type == "cuda")
    state = TrainingState(model=model, averaged=averaged, optimizer=optimizer, scaler=scaler)
    kept = None if saved is None else state.load(saved)
    curve, train_seconds = (tuple(kept["curve"]), kept["train_seconds"]) if kept else ((), 0.0)
    done = len(curve)
    evaluated = model if averaged is None else cast(CvT, averaged.module)
    if done:
        if done == training.epochs:
            _keep(evaluated, data, model_folder, rank)
        yield _epoch(done, curve, math.nan, train_seconds, evaluated)
    trained: nn.Module = model
    if world_size > 1:
        trained = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    for epoch in range(done, training.epochs):
        started = time.perf_counter()
        trained.train()
        # summed on the device and read once an epoch: reading it each step would stall a GPU
        loss_sum = torch.zeros((), device=device)
        batches = data.train_batches(
            batch_size=batch_size,
            augment=training.augment,
            device=device,
            seed=seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
        )
        for step, (images, targets) in enumerate(batches):
            set_learning_rate(optimizer, training, epoch + step / num_steps)
            optimizer.zero_grad(set_to_none=True)
            for some, their_targets in zip(images.chunk(num_parts), targets.chunk(num_parts), strict=True):
                with autocast(training, device):
                    logits = trained(some)
                loss = F.cross_entropy(logits.float(), their_targets, label_smoothing=training.label_smoothing)
                loss = loss * (len(some) / len(images))
                scaler.scale(loss).backward()
                loss_sum += loss.detach()
            if training.clip_grad_norm is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), training.clip_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            if averaged is not None:
                averaged.update_parameters(model)
        mean_loss = mean_over_ranks(loss_sum[None])[0] / num_steps
        if not math.isfinite(mean_loss):
            raise DivergedError(epoch + 1, curve)
        share_buffers(model, averaged)
        accuracy = evaluate(evaluated, data, "search", training=training, device=device)
        curve = (*curve, accuracy)
        train_seconds += time.perf_counter() - started
        if checkpoint is not None and rank == 0:
            state.save(checkpoint, arch_id=arch.id, curve=list(curve), train_seconds=train_seconds)
        if epoch + 1 == training.epochs:
            _keep(evaluated, data, model_folder, rank)
        yield _epoch(epoch + 1, curve, mean_loss, train_seconds, evaluated)


def progress_reports(
    arch: ArchConfig,
    setup: TrainingSetup,
    *,
    device: torch.device,
    seed: int,
    checkpoint: Path,
    model_folder: Path | None,
    num_known: int = 0,
    num_parts: int = 1,
) -> Iterator[dict[str, Any]]:
    """`fit`, as plain values that travel between processes: what a worker reports of its training.

    Args:
        num_known: Epochs that the reader knows already, from before an interruption, and is not told again.
        num_parts: See `fit`.

    Yields:
        After each epoch `epoch, accuracy, curve, train_seconds, status`; status is `running`, or in a
        last report `diverged`, `oom` or, where nothing more can be written, `storage`, then with a `reason`.
    """
    torch.set_num_threads(setup.num_threads)
    report: dict[str, Any] = {"epoch": 0, "accuracy": 0.0, "curve": [], "train_seconds": 0.0, "status": "running"}
    try:
        for epoch in fit(
            arch,
            setup.training,
            setup.open_data(),
            device=device,
            seed=seed,
            checkpoint=checkpoint,
            model_folder=model_folder,
            initial=_initial(arch, setup, device),
            num_parts=num_parts,
        ):
            if epoch.number <= num_known < setup.training.epochs:
                continue
            report |= {"epoch": epoch.number, "accuracy": epoch.accuracy, "train_seconds": epoch.train_seconds}
            report["curve"] = list(epoch.curve)
            yield dict(report)
    except DivergedError as error:
        known = {"epoch": error.epoch, "curve": list(error.curve), "accuracy": error.curve[-1] if error.curve else 0.0}
        yield {**report, **known, "status": "diverged", "reason": str(error)}
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        yield {**report, "status": "oom", "reason": str(error).splitlines()[0]}
        if rank_and_world_size()[1] > 1:
            raise  # the other ranks wait for this one, until it dies
    except StorageError as error:
        yield {**report, "status": "storage", "reason": f"{error.strerror}: {error.filename}"}
        if rank_and_world_size()[1] > 1:
            raise
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def class_curves(arch: ArchConfig, setup: TrainingSetup, *, epochs: int, seed: int) -> list[list[float]]:
    """Accuracy of each class on the search split, after each epoch of a short training as that of `setup.shared`."""
    assert setup.shared is not None, "the caller knows that there is a supernet"
    torch.set_num_threads(setup.num_threads)
    training, data, device = setup.shared.config.lasting(epochs), setup.open_data(), setup.torch_device
    return [
        class_accuracies(epoch.model, data, "search", training=training, device=device)
        for epoch in fit(arch, training, data, device=device, seed=seed)
    ]


def _initial(arch: ArchConfig, setup: TrainingSetup, device: torch.device) -> Callable[[], CvT] | None:
    """Whose weights a training begins with; None for a fresh initialisation."""
    init = setup.init

    def initialised() -> CvT:
        assert init is not None
        model = CvT(arch)
        initialise(model, init, classes=setup.open_data().class_names)
        return model

    if init is not None:
        return initialised
    return None if setup.shared is None else lambda: open_inheritance(setup, device).model(arch)


def _keep(model: CvT, data: ImageData, folder: Path | None, rank: int) -> None:
    if folder is not None and rank == 0:
        patiently(folder.parent.parent.stat)  # where a disk is not mounted, nothing takes its place
        save_model(model, folder)
        save_preprocessing(data, folder)


def _epoch(number: int, curve: tuple[float, ...], loss: float, train_seconds: float, model: CvT) -> Epoch:
    return Epoch(number=number, accuracy=curve[-1], curve=curve, loss=loss, train_seconds=train_seconds, model=model)
