"""Estimate of the device memory of a training, without the device."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cvt_nas.arch import ArchConfig
from cvt_nas.config import TrainingConfig
from cvt_nas.engine.memory import LEAST_USEFUL, SPARE
from cvt_nas.model import CvT

_CONTEXT_BYTES = 2**29  # taken by CUDA itself


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Device memory of a training.

    Args:
        image_bytes: Bytes of each image that the forward pass keeps for the backward pass.
        fixed_bytes: Bytes that do not depend on the number of images: weights, gradients, moments, averages, and CUDA.
    """

    image_bytes: int
    fixed_bytes: int

    def room(self, training: TrainingConfig, *, batch_size: int, memory_bytes: int) -> tuple[int, bool]:
        """Returns the number of images at once, and whether blocks are recomputed. It is 0 if not even one fits.

        `MicroBatches` measures both. The memory saved by recomputing is not estimated, so with it, the number is a
        lower bound.

        Args:
            batch_size: Images of a batch on the device.
            memory_bytes: Memory of the device for this training.
        """
        left = (1 - SPARE) * memory_bytes - self.fixed_bytes
        fitting = max(math.floor(left / self.image_bytes), 0)
        asked = batch_size if training.micro_batch == "auto" else min(int(training.micro_batch), batch_size)
        recomputes = training.activation_checkpointing == "on" or (
            training.activation_checkpointing == "auto" and fitting < min(asked, LEAST_USEFUL)
        )
        micro_batch = min(fitting, asked)
        if micro_batch:
            micro_batch = math.ceil(batch_size / math.ceil(batch_size / micro_batch))  # parts are equal
        return micro_batch, recomputes


def footprint(arch: ArchConfig, training: TrainingConfig) -> Footprint:
    """Estimates the memory of a training on a GPU from the tensors that autograd keeps of a few images on the CPU.

    As with a GPU's autocast, layer norms run in fp32, and so do the tokens between blocks. Temporary memory of single
    operations is not counted.
    """
    model = CvT(arch, drop_path=training.drop_path).train()
    is_half = training.precision != "fp32"
    if is_half:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_pre_hook(_in_fp32)
    few, more = (_kept_bytes(model, arch, size, is_half=is_half) for size in (2, 3))
    num_params = sum(parameter.numel() for parameter in model.parameters())
    copies = 2 + (2 if training.optimizer == "adamw" else 1) + (training.ema_decay != 0)
    of_params = num_params * (4 * copies + (2 if is_half else 0))  # autocast keeps the weights in 16 bits, too
    return Footprint(image_bytes=more - few, fixed_bytes=of_params + _CONTEXT_BYTES)


def _in_fp32(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    del module
    return tuple(each.float() for each in inputs)


def _kept_bytes(model: CvT, arch: ArchConfig, num_images: int, *, is_half: bool) -> int:
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # keeps the tensors alive, so that no storage is reused

    def keep(tensor: Tensor) -> Tensor:
        if (key := tensor.untyped_storage()._cdata) not in own:
            kept[key] = tensor
        return tensor

    def give(tensor: Tensor) -> Tensor:
        return tensor

    images = torch.zeros(num_images, *arch.image_shape)
    hooks: Any = torch.autograd.graph.saved_tensors_hooks(keep, give)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        model(images.contiguous(memory_format=torch.channels_last))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
