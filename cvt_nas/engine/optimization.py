"""Parts that all trainings share: optimizer, learning rate, averaged weights and ranks."""

import contextlib
import functools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cvt_nas.config import TrainingConfig
from cvt_nas.engine.criterion import Criterion

# cuBLAS reads it when it is first used in a process, which may be before a training
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

T = TypeVar("T")
State = dict[str, Any]  # content of a checkpoint: numbers, text, tensors, and lists and dictionaries of them


class DivergedError(Exception):
    """A loss, a weight or a statistic is not finite.

    Attributes:
        epoch: Number of the epoch, from 1.
        curve: Accuracies before it.
    """

    def __init__(self, epoch: int, curve: Sequence[float] = (), num_rollbacks: int = 0) -> None:
        times = f", after it was rolled back {times_of(num_rollbacks)}" if num_rollbacks else ""
        super().__init__(f"loss not finite in epoch {epoch}{times}")
        self.epoch, self.curve = epoch, tuple(curve)


def times_of(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def prepare_device(device: torch.device) -> None:
    """Lets a GPU multiply in TF32, and makes its sums deterministic, so that a seed fixes the weights.

    Convolutions would otherwise add gradients in the order in which threads end. For attention, see `ordered_sums`.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # this safeguard costs a pass over each tensor
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


@contextlib.contextmanager
def ordered_sums(device: torch.device) -> Iterator[None]:
    """Context for a forward and backward pass, in which attention on a GPU is deterministic, too.

    Torch makes it so only where operations without a deterministic kernel raise errors. None of CvT is one. Outside,
    they warn, as users may call others.
    """
    if device.type != "cuda" or not _has_ordered_products(device):
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


@functools.cache
def _has_ordered_products(device: torch.device) -> bool:
    """False if cuBLAS was used before this module was imported, or has other settings. Torch refuses its products."""
    torch.use_deterministic_algorithms(True)
    try:
        torch.mm(torch.ones(2, 2, device=device), torch.ones(2, 2, device=device))
    except RuntimeError as error:
        if "CUBLAS_WORKSPACE_CONFIG" not in str(error):
            raise  # memory may be short
        return False
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)
    return True


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` says that a device or the machine is out of memory. The latter has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)


def optimizer_of(model: nn.Module, training: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """Makes the optimizer. Weight decay applies to matrices and kernels.

    It does not apply to norms, biases, the class token, position embeddings, and maps near the identity.
    """

    def is_decayed(name: str, parameter: nn.Parameter) -> bool:
        return (
            parameter.ndim > 1 and not name.endswith(("cls_token", "pos_embed")) and not name.startswith("kernel_maps.")
        )

    named = list(model.named_parameters())
    decayed = [parameter for name, parameter in named if is_decayed(name, parameter)]
    plain = [parameter for name, parameter in named if not is_decayed(name, parameter)]
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    fused = device.type in ("cuda", "cpu")
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=training.lr, fused=fused)
    return torch.optim.SGD(groups, lr=training.lr, momentum=training.momentum, fused=fused)


def learning_rate(training: TrainingConfig, epoch: float) -> float:
    """Learning rate `epoch` epochs into the training: linear warm-up, then the schedule down to the floor.

    Sources: Loshchilov and Hutter 2017, arXiv:1608.03983, for `cosine` and its restarts; Haegele et al. 2024,
    arXiv:2405.18392, for `wsd` and its 1 - sqrt decay.
    """
    if epoch < training.warmup_epochs:
        return training.warmup_lr + (training.lr - training.warmup_lr) * epoch / training.warmup_epochs
    if training.schedule == "cosine":
        begins = [training.warmup_epochs, *training.restarts]
        begin = max(at for at in begins if at <= epoch)
        end = min((at for at in training.restarts if at > epoch), default=training.epochs)
        share = (1 + math.cos(math.pi * min((epoch - begin) / (end - begin), 1.0))) / 2
    else:
        length = training.epochs * training.decay_fraction
        share = 1 - math.sqrt(min(max((epoch - training.epochs) / length + 1, 0.0), 1.0))
    return training.min_lr + (training.lr - training.min_lr) * share


def batch_size_of_rank(training: TrainingConfig, world_size: int) -> int:
    """Images a step on each of `world_size` ranks. Mixup and CutMix need an even number."""
    share = max(training.batch_size // world_size, 1)
    return max(share - share % 2, 2) if training.augment.mixup or training.augment.cutmix else share


def set_learning_rate(optimizer: torch.optim.Optimizer, training: TrainingConfig, epoch: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(training, epoch)


def averaged_model(model: nn.Module, training: TrainingConfig, *, num_steps: int) -> AveragedModel | None:
    """Exponential moving average of weights and batch norm statistics; None if it is off.

    The decay warms up as (1 + n) / (10 + n), like TensorFlow's ExponentialMovingAverage.

    Args:
        num_steps: Steps of an epoch.
    """
    decay = 1 - 1 / num_steps if training.ema_decay is None else training.ema_decay
    return None if decay == 0 else _WeightAverage(model, decay)


class _WeightAverage(AveragedModel):
    """An `AveragedModel` that counts updates on the CPU. Reading a count on a GPU would stall it in each step."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.n_averaged = self.n_averaged.cpu()
        self._decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        number = int(self.n_averaged)
        decay = min(self._decay, (1 + number) / (10 + number)) if number else 0.0
        averaged, current = (
            [tensor for tensor in (*of.parameters(), *of.buffers()) if tensor.is_floating_point()]
            for of in (self.module, model)
        )
        get_ema_multi_avg_fn(decay)(averaged, current, self.n_averaged)
        self.n_averaged += 1


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process and number of ranks in the training; 0 and 1 for a training in one process."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def from_first_rank(value: T, device: torch.device) -> T:
    """Returns the first rank's `value` on every rank. `device` is the device of their communication."""
    if rank_and_world_size()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=device)
    return box[0]


def average_over_ranks(tensors: Sequence[torch.Tensor]) -> None:
    """Replaces each tensor by its mean over ranks, in place and in one message. All tensors have the same type."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def least_over_ranks(value: int, device: torch.device) -> int:
    """Returns the smallest value of all ranks on every rank. `device` is the device of their communication."""
    if rank_and_world_size()[1] == 1:
        return value
    least = torch.tensor(value, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def share_of_rank(num_images: int, device: torch.device) -> float:
    """Weight of a rank's mean in the mean over ranks, so that all images count alike.

    It is 1 if all ranks have the same number of images. Each rank calls this with its own number.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return 1.0
    total = torch.tensor(num_images, device=device)
    dist.all_reduce(total)
    return num_images * world_size / max(int(total), 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """Everything that a training needs after a restart. Random states follow from its seed and position.

    The criterion follows from settings and data, so it is not saved.
    """

    model: nn.Module
    averaged: AveragedModel | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    criterion: Criterion

    @classmethod
    def of(
        cls,
        model: nn.Module,
        training: TrainingConfig,
        device: torch.device,
        *,
        num_steps: int,
        criterion: Criterion | None = None,
    ) -> Self:
        """Makes the state before the first step.

        Args:
            model: Network on `device`.
            num_steps: Steps of an epoch.
            criterion: The loss; None for cross-entropy.
        """
        return cls(
            criterion=criterion or Criterion("cross_entropy", label_smoothing=training.label_smoothing),
            model=model,
            averaged=averaged_model(model, training, num_steps=num_steps),
            optimizer=optimizer_of(model, training, device),
            scaler=torch.amp.GradScaler(device.type, enabled=training.precision == "fp16" and device.type == "cuda"),
        )

    def to_plain(self) -> State:
        """Plain values for `load`."""
        return {
            "model": self.model.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def step(self, clip_grad_norm: float | None) -> None:
        """Steps the optimizer with the current gradients, and updates the averages."""
        if clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def bytes_to_come(self) -> int:
        """Bytes of the optimizer's moments, which it allocates in its first step."""
        if self.optimizer.state:
            return 0
        is_adam = isinstance(self.optimizer, torch.optim.AdamW)
        number = 2 if is_adam else int(self.optimizer.defaults["momentum"] > 0)
        return number * sum(parameter.nbytes for parameter in self.model.parameters())

    def statistics(self) -> list[torch.Tensor]:
        """Batch norm statistics and their averages, which each rank has from its own images."""
        modules = [self.model] if self.averaged is None else [self.model, self.averaged]
        return [buffer for module in modules for buffer in module.buffers() if buffer.is_floating_point()]

    @torch.no_grad()
    def greatest(self) -> Float[torch.Tensor, "1"]:
        """Greatest absolute value of all weights, statistics, averages and moments; NaN if one of them is NaN."""
        moments = [
            value
            for values in self.optimizer.state.values()
            for value in values.values()
            if isinstance(value, torch.Tensor) and value.ndim and value.is_floating_point()
        ]
        averaged = [] if self.averaged is None else list(self.averaged.parameters())
        return nn.utils.get_total_norm(
            [*self.model.parameters(), *averaged, *self.statistics(), *moments], norm_type=math.inf
        )[None]

    def load(self, state: State) -> State:
        """Loads the values of `to_plain` from `state`, and returns the other entries of `state`."""
        self.model.load_state_dict(state.pop("model"))
        averaged = state.pop("averaged")
        if self.averaged is not None:
            self.averaged.load_state_dict(averaged)
        self.optimizer.load_state_dict(state.pop("optimizer"))
        self.scaler.load_state_dict(state.pop("scaler"))
        return state
