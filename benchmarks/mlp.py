"""What it costs that an MLP calls its two linear layers, instead of scaling their weights around one fused SiLU.

CPU time of a training step and of a forward pass with each form of the MLP, over that of the fused form, one thread,
interleaved; the median of the pairs.

    python benchmarks/mlp.py --pairs 9
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from cvt_nas.model import CvT
from cvt_nas.model.network import Mlp, quick_gelu
from shared import eval_step, networks, train_step

SCALE = 1.702


def fused(mlp: Mlp, tokens: Tensor) -> Tensor:
    """The factors of QuickGELU on the weights: fast, but no hook, adapter or quantiser sees the linear layers."""
    hidden = F.silu(F.linear(tokens, SCALE * mlp.fc1.weight, SCALE * mlp.fc1.bias))
    return F.linear(hidden, mlp.fc2.weight / SCALE, mlp.fc2.bias)


def by_sigmoid(mlp: Mlp, tokens: Tensor) -> Tensor:
    hidden = mlp.fc1(tokens)
    return mlp.fc2(hidden * torch.sigmoid(SCALE * hidden))


def as_it_is(mlp: Mlp, tokens: Tensor) -> Tensor:
    return mlp.fc2(quick_gelu(mlp.fc1(tokens)))


FORMS: dict[str, Callable[[Mlp, Tensor], Tensor]] = {"fused": fused, "sigmoid": by_sigmoid, "as it is": as_it_is}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    for name, (arch, batch_size) in networks().items():
        images = torch.randn(batch_size, *arch.image_shape)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, arch.num_classes, (batch_size,))
        for kind, make in (("training step", train_step), ("forward pass", eval_step)):
            step = make(CvT(arch), "fp32", device, in_order=False)
            seconds: dict[str, list[float]] = {form: [] for form in FORMS}
            for _ in range(options.pairs + 1):
                for form, forward in FORMS.items():
                    setattr(Mlp, "forward", forward)  # noqa: B010  whose arguments may have other names
                    started = time.process_time()
                    step(images, labels)
                    seconds[form].append(time.process_time() - started)
            for form, times in seconds.items():
                ratios = [ours / base for ours, base in zip(times[1:], seconds["fused"][1:], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
                print(f"{name}, {kind}, {form}: {middle:.3f} ({low:.3f} to {high:.3f})", flush=True)


if __name__ == "__main__":
    main()
