"""Everything that runs batches through a network: training, evaluation, counting.

One code path for the CPU, one GPU and several: where a process group is initialised, `fit` trains by
DDP and `batch_size` is divided among the ranks. The device is an argument, never a guess.
"""

import contextlib
import math
import time
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cvt_nas.arch import ArchConfig, Cost
from cvt_nas.config import DataConfig, TrainingConfig
from cvt_nas.data import ImageData, Split, load_data, save_preprocessing, seed_all
from cvt_nas.model import CvT, save_model
from cvt_nas.results import write_atomically

EVAL_BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSetup:
    """What every worker needs to train any architecture of an experiment.

    Args:
        data_root: Folder of the data set, absolute, since workers run elsewhere.
        run_path: The run folder, absolute; every node sees it.
        device: `cpu` or `cuda`, as it was resolved before the start.
        num_threads: Of torch in each worker, so that workers side by side do not fight for cores.
    """

    training: TrainingConfig
    data: DataConfig
    data_root: Path | None
    image_size: int
    num_channels: int
    num_classes: int
    run_path: Path
    device: str = "cpu"
    num_threads: int = 1

    @property
    def torch_device(self) -> torch.device:
        """On a worker with one device: it is shown only the GPU that is its own."""
        return torch.device("cuda:0" if self.device == "cuda" else "cpu")

    def open_data(self) -> ImageData:
        return _open_data(self.data, self.data_root, self.image_size, self.num_channels, self.num_classes)


@lru_cache(maxsize=1)
def _open_data(
    config: DataConfig, root: Path | None, image_size: int, num_channels: int, num_classes: int
) -> ImageData:
    """A worker that goes from trial to trial opens the data set once."""
    return load_data(config, root=root, image_size=image_size, num_channels=num_channels, num_classes=num_classes)


class DivergedError(Exception):
    """The loss is no longer finite.

    Args:
        epoch: From 1.
        curve: Accuracy after each epoch before it.
    """

    def __init__(self, epoch: int, curve: tuple[float, ...]) -> None:
        super().__init__(f"loss not finite in epoch {epoch}")
        self.epoch, self.curve = epoch, curve


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
) -> Generator[Epoch, None, None]:
    """Trains `arch` from a fresh initialisation, or on from `checkpoint`, an epoch at a time.

    The same seed gives the same weights on the same kind of device, also across a restart.

    Args:
        training: Section `training` of the space file.
        device: Where to train; the current rank's, where there are several.
        seed: Of initialisation, order, augmentation and drop path.
        checkpoint: File that is read if it is there, and replaced after each epoch.
        model_folder: Gets the trained model, complete before the last epoch is yielded.

    Yields:
        One `Epoch` after each; the last one again where the checkpoint is complete already.

    Raises:
        DivergedError: A loss is not finite.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    seed_all(seed)
    model = CvT(arch, drop_path=training.drop_path).to(device)
    averaged = _averaged(model, training.ema_decay)
    optimizer = _optimizer_of(model, training, device)
    scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16" and device.type == "cuda")
    state = _State(model=model, averaged=averaged, optimizer=optimizer, scaler=scaler)
    done, curve, train_seconds = state.load(checkpoint, device)
    evaluated = model if averaged is None else cast(CvT, averaged.module)
    if done == training.epochs:
        _keep(evaluated, data, model_folder, rank)
        yield _epoch(done, curve, math.nan, train_seconds, evaluated)
        return
    trained: nn.Module = model
    if world_size > 1:
        trained = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    batch_size = max(training.batch_size // world_size, 1)
    num_steps = max(data.num_images("train") // (batch_size * world_size), 1)
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
            _set_learning_rate(optimizer, training, epoch + step / num_steps)
            with _autocast(training, device):
                logits = trained(images)
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=training.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            if training.clip_grad_norm is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), training.clip_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            if averaged is not None:
                averaged.update_parameters(model)
            loss_sum += loss.detach()
        mean_loss = _mean_over_ranks(loss_sum) / num_steps
        if not math.isfinite(mean_loss):
            raise DivergedError(epoch + 1, curve)
        accuracy = evaluate(evaluated, data, "search", training=training, device=device)
        curve = (*curve, accuracy)
        train_seconds += time.perf_counter() - started
        if checkpoint is not None and rank == 0:
            state.save(checkpoint, curve, train_seconds)
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
) -> Iterator[dict[str, Any]]:
    """`fit`, as plain values that travel between processes: what a worker reports of its training.

    Yields:
        After each epoch `epoch, accuracy, curve, train_seconds, status`; status is `running`, or in a
        last report `diverged` or `oom`, then with a `reason`.
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
        ):
            report |= {"epoch": epoch.number, "accuracy": epoch.accuracy, "train_seconds": epoch.train_seconds}
            report["curve"] = list(epoch.curve)
            yield dict(report)
    except DivergedError as error:
        yield {**report, "epoch": error.epoch, "curve": list(error.curve), "status": "diverged", "reason": str(error)}
    except torch.OutOfMemoryError as error:
        yield {**report, "status": "oom", "reason": str(error).splitlines()[0]}
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _keep(model: CvT, data: ImageData, folder: Path | None, rank: int) -> None:
    if folder is not None and rank == 0:
        save_model(model, folder)
        save_preprocessing(data, folder)


def _epoch(number: int, curve: tuple[float, ...], loss: float, train_seconds: float, model: CvT) -> Epoch:
    return Epoch(number=number, accuracy=curve[-1], curve=curve, loss=loss, train_seconds=train_seconds, model=model)


@torch.inference_mode()
def evaluate(model: CvT, data: ImageData, split: Split, *, training: TrainingConfig, device: torch.device) -> float:
    """Fraction of `split` that `model` classifies right, over all ranks together. Leaves it in eval mode."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model.eval()
    num_right = torch.zeros((), device=device)
    batches = data.eval_batches(split, batch_size=EVAL_BATCH_SIZE, device=device, rank=rank, world_size=world_size)
    for images, labels in batches:
        with _autocast(training, device):
            logits = model(images)
        num_right += (logits.argmax(dim=1) == labels).sum()
    if world_size > 1:
        dist.all_reduce(num_right)
    return num_right.item() / data.num_images(split)


def _mean_over_ranks(value: torch.Tensor) -> float:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value.item()


def _autocast(training: TrainingConfig, device: torch.device) -> Any:
    if training.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if training.precision == "bf16" else torch.float16)


def _averaged(model: CvT, decay: float | None) -> AveragedModel | None:
    """Exponential moving average of weights and batch-norm statistics; None where it is off.

    The decay warms up as (1 + n) / (10 + n), a rule of TensorFlow's ExponentialMovingAverage.
    """
    if decay is None:
        return None

    def average(averaged: Any, current: Any, num_averaged: Any) -> None:
        num_steps = int(num_averaged)
        get_ema_multi_avg_fn(min(decay, (1 + num_steps) / (10 + num_steps)))(averaged, current, num_averaged)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def _optimizer_of(model: CvT, training: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels only: not on norms, biases and the class token."""
    named = list(model.named_parameters())
    plain = [p for name, p in named if p.ndim <= 1 or name.endswith("cls_token")]
    decayed = [p for name, p in named if not (p.ndim <= 1 or name.endswith("cls_token"))]
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    fused = device.type in ("cuda", "cpu")
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=training.lr, fused=fused)
    return torch.optim.SGD(groups, lr=training.lr, momentum=training.momentum, fused=fused)


def learning_rate(training: TrainingConfig, epoch: float) -> float:
    """Learning rate `epoch` epochs into the training: linear warm-up, then the schedule's way to the floor.

    Sources: Loshchilov and Hutter 2017, arXiv:1608.03983, for `cosine`, without restarts; Haegele et al. 2024,
    arXiv:2405.18392, for `wsd` and its 1 - sqrt decay.
    """
    if epoch < training.warmup_epochs:
        return training.warmup_lr + (training.lr - training.warmup_lr) * epoch / training.warmup_epochs
    if training.schedule == "cosine":
        progress = (epoch - training.warmup_epochs) / (training.epochs - training.warmup_epochs)
        share = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    else:
        length = training.epochs * training.decay_fraction
        share = 1 - math.sqrt(min(max((epoch - training.epochs) / length + 1, 0.0), 1.0))
    return training.min_lr + (training.lr - training.min_lr) * share


def _set_learning_rate(optimizer: torch.optim.Optimizer, training: TrainingConfig, epoch: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(training, epoch)


@dataclass(frozen=True, kw_only=True)
class _State:
    """All that a training needs to go on after a restart; random states follow from seed and epoch."""

    model: CvT
    averaged: AveragedModel | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    def save(self, path: Path, curve: tuple[float, ...], train_seconds: float) -> None:
        state = {
            "model": self.model.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "curve": list(curve),
            "train_seconds": train_seconds,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda partial: torch.save(state, partial))

    def load(self, path: Path | None, device: torch.device) -> tuple[int, tuple[float, ...], float]:
        """Epochs done, their accuracies, and the seconds spent on them; nothing where there is no file."""
        if path is None or not path.exists():
            return 0, (), 0.0
        state = torch.load(path, map_location=device, weights_only=True)
        self.model.load_state_dict(state["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        return len(state["curve"]), tuple(state["curve"]), state["train_seconds"]


def fvcore_cost(model: CvT) -> Cost:
    """Params and FLOPs as fvcore counts them on the built model, attention's products included.

    Slow (it traces the network); `cvt_nas.arch.cost_of` is the closed form that must equal it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        size = model.arch.image_size
        images = torch.zeros(1, model.arch.num_channels, size, size, device=model.head.weight.device)
        training = model.training
        analysis = FlopCountAnalysis(model.eval(), images)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        flops = int(analysis.total())
        model.train(training)
    return Cost(params=sum(p.numel() for p in model.parameters()), flops=flops)


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> int:  # noqa: ARG001  fvcore's signature
    """Queries x keys x width, for each of the two products."""
    (batch, heads, queries, width), (_, _, keys, _) = inputs[0].type().sizes(), inputs[1].type().sizes()
    return 2 * batch * heads * queries * keys * width
