"""Ways to run the depth-wise convolutions of the projections on a CPU: milliseconds of forward and backward.

python benchmarks/depthwise.py
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# batch, channels, side of the map, stride; kernel 3
CASES = [
    (64, 32, 14, 1), (64, 32, 14, 2), (64, 128, 4, 1), (32, 192, 8, 1), (2, 384, 14, 1), (2, 384, 14, 2),
    (128, 96, 2, 1), (128, 96, 2, 2),
]  # fmt: skip


def milliseconds(forward: Callable[[], Tensor], repeats: int = 10) -> float:
    """The fastest of `repeats`, after two that do not count."""
    seconds = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        out = forward()
        out.backward(torch.ones_like(out))
        seconds.append(time.perf_counter() - started)
    return min(seconds[2:]) * 1e3


def sum_of_shifts(maps: Tensor, weight: Tensor, stride: int) -> Tensor:
    padded, side = F.pad(maps, (1, 1, 1, 1)), (maps.shape[-1] - 1) // stride + 1
    reach = stride * (side - 1) + 1
    return sum(
        padded[:, :, row : row + reach : stride, column : column + reach : stride]
        * weight[:, 0, row, column, None, None]
        for row in range(3)
        for column in range(3)
    )  # type: ignore[return-value]


def measure(batch: int, channels: int, side: int, stride: int) -> dict[str, float]:
    tokens = torch.randn(batch, side * side, channels, requires_grad=True)
    one, two = (torch.randn(outputs * channels, 1, 3, 3, requires_grad=True) for outputs in (1, 2))

    def maps() -> Tensor:
        return tokens.view(batch, side, side, channels).permute(0, 3, 1, 2)

    def convolve(x: Tensor, weight: Tensor, padding: int = 1) -> Tensor:
        return F.conv2d(x, weight, None, stride, padding, groups=channels)

    return {
        "channels-last": milliseconds(lambda: convolve(maps(), one)),
        "padded before": milliseconds(lambda: convolve(F.pad(maps(), (1, 1, 1, 1)), one, padding=0)),
        "NCHW": milliseconds(lambda: convolve(maps().contiguous(), one)),
        "k and v at once": milliseconds(lambda: convolve(maps(), two)),
        "sum of shifts": milliseconds(lambda: sum_of_shifts(maps(), one, stride)),
    }


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread; batch, channels, side, stride")
    for case in CASES:
        print(f"{case!s:18}", ", ".join(f"{name} {ms:.2f}" for name, ms in measure(*case).items()))


if __name__ == "__main__":
    main()
