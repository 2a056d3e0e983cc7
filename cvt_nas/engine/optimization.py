"""What every training shares: optimizer, learning rate, averaged weights, and the ranks that it runs on."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cvt_nas.config import TrainingConfig
from cvt_nas.engine.criterion import Criterion

T = TypeVar("T")
State = dict[str, Any]  # of a checkpoint: numbers, texts, tensors, and lists and dictionaries of them


class DivergedError(Exception):
    """A loss, a weight or a statistic is no longer finite, in `epoch`, from 1; `curve` has the accuracies before it."""

    def __init__(self, epoch: int, curve: Sequence[float] = (), num_rollbacks: int = 0) -> None:
        times = f", after it was rolled back {times_of(num_rollbacks)}" if num_rollbacks else ""
        super().__init__(f"loss not finite in epoch {epoch}{times}")
        self.epoch, self.curve = epoch, tuple(curve)


def times_of(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def prepare_device(device: torch.device) -> None:
    """Lets a GPU multiply in TF32, and makes it add in the same order each time, so that a seed fixes the weights.

    Convolutions and attention would otherwise add up their gradients in whichever order threads end; attention in fp32
    to very many keys still does, since it has no other way.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True, warn_only=True)
        # a safeguard that costs a pass over each tensor
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` says that a device, or the machine, has no memory left; the latter has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)


def optimizer_of(model: nn.Module, training: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels only: not on norms, biases, the class token, positions, and maps near the
    identity."""

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
    """Learning rate `epoch` epochs into the training: linear warm-up, then the schedule's way to the floor.

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
    """Images a step of each of `world_size` ranks; mixup and cutmix need an even number."""
    share = max(training.batch_size // world_size, 1)
    return max(share - share % 2, 2) if training.augment.mixup or training.augment.cutmix else share


def set_learning_rate(optimizer: torch.optim.Optimizer, training: TrainingConfig, epoch: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(training, epoch)


def averaged_model(model: nn.Module, training: TrainingConfig, *, num_steps: int) -> AveragedModel | None:
    """Exponential moving average of weights and batch-norm statistics; None where it is off. `num_steps` are of an
    epoch.

    The decay warms up as (1 + n) / (10 + n), a rule of TensorFlow's ExponentialMovingAverage.
    """
    decay = 1 - 1 / num_steps if training.ema_decay is None else training.ema_decay
    return None if decay == 0 else _WeightAverage(model, decay)


class _WeightAverage(AveragedModel):
    """An `AveragedModel` that counts its updates on the CPU: to read the count a GPU would stand still, each step."""

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
    """Of this process, among those that share a training; 0 and 1 where it has it to itself."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def from_first_rank(value: T, device: torch.device) -> T:
    """What the first rank gives here, on every rank; `device` is that by which they talk to each other."""
    if rank_and_world_size()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=device)
    return box[0]


def average_over_ranks(tensors: Sequence[torch.Tensor]) -> None:
    """Gives every rank the mean over ranks of each tensor, in place and in one message; all are of one type."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def least_over_ranks(value: int, device: torch.device) -> int:
    """The smallest of the ranks' values, on every rank; `device` is that by which they talk to each other."""
    if rank_and_world_size()[1] == 1:
        return value
    least = torch.tensor(value, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def share_of_rank(num_images: int, device: torch.device) -> float:
    """What the mean over a rank's images counts in the mean over ranks, so that all their images count alike.

    1 where all have as many. Each rank calls it, with its own number.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return 1.0
    total = torch.tensor(num_images, device=device)
    dist.all_reduce(total)
    return num_images * world_size / max(int(total), 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """All that a training needs to go on after a restart; random states follow from its seed and where it is.

    The criterion follows from settings and data, and is not saved.
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
        """Before the first step.

        Args:
            model: On `device`.
            num_steps: Of an epoch.
            criterion: Cross-entropy where None.
        """
        return cls(
            criterion=criterion or Criterion("cross_entropy", label_smoothing=training.label_smoothing),
            model=model,
            averaged=averaged_model(model, training, num_steps=num_steps),
            optimizer=optimizer_of(model, training, device),
            scaler=torch.amp.GradScaler(device.type, enabled=training.precision == "fp16" and device.type == "cuda"),
        )

    def to_plain(self) -> State:
        """What `load` takes."""
        return {
            "model": self.model.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def step(self, clip_grad_norm: float | None) -> None:
        """Of the optimizer, by the gradients that are there, and of the averages."""
        if clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def bytes_to_come(self) -> int:
        """Of the optimizer's moments, which it makes in its first step."""
        if self.optimizer.state:
            return 0
        is_adam = isinstance(self.optimizer, torch.optim.AdamW)
        number = 2 if is_adam else int(self.optimizer.defaults["momentum"] > 0)
        return number * sum(parameter.nbytes for parameter in self.model.parameters())

    def statistics(self) -> list[torch.Tensor]:
        """The statistics of batch norm, and their averages: what each rank has of its own images."""
        modules = [self.model] if self.averaged is None else [self.model, self.averaged]
        return [buffer for module in modules for buffer in module.buffers() if buffer.is_floating_point()]

    @torch.no_grad()
    def greatest(self) -> Float[torch.Tensor, "1"]:
        """The greatest absolute value of all weights, statistics, averages and moments; no number where one is none."""
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
        """Takes over what `to_plain` gave, out of `state`; what else was in that."""
        self.model.load_state_dict(state.pop("model"))
        averaged = state.pop("averaged")
        if self.averaged is not None:
            self.averaged.load_state_dict(averaged)
        self.optimizer.load_state_dict(state.pop("optimizer"))
        self.scaler.load_state_dict(state.pop("scaler"))
        return state
