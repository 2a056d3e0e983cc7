"""Average pooling for other runtimes, with whole windows only.

With `ceil_mode`, the last windows may reach beyond the padding. torch divides by the size of the part within the
padding. OpenVINO 2026.4 divides by the size of the whole window. onnxruntime 1.32 does so too, if it fuses quantised
nodes into `QLinearAveragePool`. If all windows are whole, all runtimes agree.
"""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cvt_nas.arch import Grid
from cvt_nas.model.network import Attention, CvT


class WholeWindows(nn.Module):
    """Gives the same result as `pool` on maps of `grid`. It pads the maps until all windows are whole, and rescales the
    means."""

    factors: Tensor  # (1, 1, height, width) of the pooled map; 1 for windows that are whole in `pool`

    def __init__(self, pool: nn.AvgPool2d, grid: Grid) -> None:
        super().__init__()
        self.kernel, self.stride = int(pool.kernel_size), int(pool.stride)  # pyright: ignore[reportArgumentType]
        padding, pooled = int(pool.padding), pool(torch.zeros(1, 1, *grid)).shape[2:]  # pyright: ignore[reportArgumentType]
        further = [
            max((count - 1) * self.stride + self.kernel - side - 2 * padding, 0)
            for side, count in zip(grid, pooled, strict=True)
        ]
        self.pads = (padding, padding + further[1], padding, padding + further[0])  # left, right, top, bottom
        inside = F.pad(torch.ones(1, 1, *(side + 2 * padding for side in grid)), (0, further[1], 0, further[0]))
        self.register_buffer("factors", 1 / F.avg_pool2d(inside, self.kernel, self.stride), persistent=False)
        self.is_rescaled = any(further)

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Tensor:
        means = F.avg_pool2d(F.pad(maps, self.pads), self.kernel, self.stride)
        return means * self.factors if self.is_rescaled else means


def by_whole_windows(model: CvT) -> CvT:
    """Returns a copy of `model`, on the same device, whose poolings are `WholeWindows`."""
    found = copy.deepcopy(model)
    for index, grid in enumerate(model.arch.grids):
        for module in found.get_submodule(f"stage{index}").modules():
            if isinstance(module, Attention) and module.projection == "avg":
                module.add_module("pool_kv", WholeWindows(module.pool_kv, grid).to(model.head.weight.device))
    return found.eval()
