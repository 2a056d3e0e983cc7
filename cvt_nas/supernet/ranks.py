"""Batch norm over the images of all ranks."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


class _SumOverRanks(torch.autograd.Function):
    """Sums a tensor over all ranks, and so its gradients. torch has deprecated its own function."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        del ctx
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


_sum_over_ranks: Any = _SumOverRanks.apply


@dataclass(slots=True)
class Ranks:
    """Whether the statistics of batch norm include the images of other ranks."""

    are_heard: bool = True


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of the images of all ranks in training. torch's own works on GPUs only."""

    def __init__(self, num_features: int, ranks: Ranks) -> None:
        super().__init__(num_features)
        self._ranks = ranks

    def forward(self, input: Float[Tensor, "batch channels height width"]) -> Tensor:  # noqa: A002  torch's name
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        values = input.float()
        moments = torch.stack([values.mean((0, 2, 3)), values.square().mean((0, 2, 3))])
        if self._ranks.are_heard:
            moments = _sum_over_ranks(moments).div(dist.get_world_size())
        mean, square = moments.unbind()
        scale = self.weight * torch.rsqrt((square - mean.square()).clamp(min=0) + self.eps)
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(input.dtype)
