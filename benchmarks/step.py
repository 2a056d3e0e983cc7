"""Throughput of a training step and of a forward pass: our CvT against transformers' of the same configuration.

Both run in this process, interleaved, on the same images; what is compared is the ratio of each pair of
runs. The twin is as transformers ships it (its plain GELU is cheaper than the official QuickGELU). Options
try what could be faster than the defaults: `--compile`, `--precision bf16`; `--any-order` shows what it costs that
sums on a GPU are always in the same order.

    python benchmarks/step.py --pairs 15
    python benchmarks/step.py --device cuda --batch 128 --precision bf16 --any-order
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from cvt_nas.engine import prepare_device
from cvt_nas.model import CvT
from shared import eval_step, networks, train_step
from test_model import hugging_face_twin


def seconds_of(step: Callable[[torch.Tensor, torch.Tensor], None], *batch: torch.Tensor) -> float:
    started = time.perf_counter()
    step(*batch)
    if batch[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile ours, against ours as it is")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of ours, against ours in fp32")
    parser.add_argument("--any-order", action="store_true", help="ours as it is, against ours in any order")
    parser.add_argument("--batch", type=int, help="images; by the case where absent")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, any_order = torch.device(options.device), options.any_order
    against_ourselves = options.compile or options.precision != "fp32" or any_order
    prepare_device(device)
    print(f"torch {torch.__version__}, {options.threads} thread(s), {device}")
    for name, (arch, usual) in networks().items():
        batch_size = options.batch or usual
        ours: Any = CvT(arch).to(device)
        other = CvT(arch).to(device) if against_ourselves else hugging_face_twin(arch, quick_gelu=False).to(device)
        if options.compile:
            ours = torch.compile(ours)
        images = torch.randn(batch_size, *arch.image_shape, device=device)
        labels = torch.randint(0, arch.num_classes, (batch_size,), device=device)
        for kind, make in (("train", train_step), ("eval", eval_step)):
            in_order = torch.are_deterministic_algorithms_enabled()
            steps = (
                make(ours, options.precision, device, in_order=in_order),
                make(other, options.precision if any_order else "fp32", device, in_order=in_order and not any_order),
            )
            started = time.perf_counter()
            for step in steps * 2:  # warm-up, and compilation
                seconds_of(step, images, labels)
            warm_up = time.perf_counter() - started
            pairs = [[seconds_of(step, images, labels) for step in steps] for _ in range(options.pairs)]
            ratios = sorted(theirs / our for our, theirs in pairs)
            our_rate = batch_size / statistics.median(our for our, _ in pairs)
            quartiles = ratios[len(ratios) // 4], statistics.median(ratios), ratios[-1 - len(ratios) // 4]
            print(
                f"{name:28} {kind:5} ours {our_rate:7.1f} images/s; ours / other: "
                f"{quartiles[1]:.2f} (quartiles {quartiles[0]:.2f} to {quartiles[2]:.2f}); warm-up {warm_up:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
