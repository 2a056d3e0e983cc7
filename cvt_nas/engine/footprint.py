"""How much device memory a training takes, estimated without the device."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cvt_nas.arch import ArchConfig
from cvt_nas.config import TrainingConfig
from cvt_nas.engine.memory import LEAST_USEFUL, SPARE
from cvt_nas.model import CvT

_CONTEXT_BYTES = 2**29  # that CUDA takes for itself


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Device memory of a training.

    Args:
        image_bytes: Kept by a forward pass for the backward pass, for each image.
        fixed_bytes: Needed whatever the number of images: weights, gradients, moments, averages, and CUDA itself.
    """

    image_bytes: int
    fixed_bytes: int

    def room(self, training: TrainingConfig, *, batch_size: int, memory_bytes: int) -> tuple[int, bool]:
        """Images at once, and whether blocks are computed again; see `MicroBatches`, which measures both. 0 images
        where not even one fits. A device has `batch_size` images of a batch, and this training `memory_bytes` of it.

        What is saved by computing again is not estimated: where it is needed, the number is the least to be expected.
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
    """Memory that a training would need on a GPU, by what autograd keeps of a few images' forward pass on the CPU.

    A GPU's autocast runs layer norms in fp32, and with them the tokens between blocks; so does this. The memory that
    single operations need for themselves is not counted.
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
    kept: dict[int, Tensor] = {}  # which holds on to them, so that no storage takes another's place

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
