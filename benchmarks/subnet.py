r"""What a forward pass, and one with its backward pass, cost in a supernet, over the same subnet extracted from it.

Both run in this process, interleaved, on the same images; what is compared is the ratio of each pair of runs. `cold`
is the first pass of each of the random subnets, in a supernet that has seen none of their stages.

    OMP_NUM_THREADS=1 python benchmarks/subnet.py --space benchmarks/tables/cvt-bench.yaml --batch 128
    OMP_NUM_THREADS=1 python benchmarks/subnet.py --space benchmarks/tables/cvt-bench.yaml --batch 128 \
        --kernel-maps --own-norms kv_stride kernel_size
    OMP_NUM_THREADS=1 python benchmarks/subnet.py --space search_spaces/cvt13.yaml --batch 2 --pairs 3

`--step` times whole steps of the training of a supernet instead, with a setting over its default. It takes the time of
the processor, and the same images, and the same subnets where the setting does not change how they are drawn.

    OMP_NUM_THREADS=1 python benchmarks/subnet.py --space benchmarks/tables/cvt-bench.yaml --batch 64 \
        --step '{distil_from: averaged}'
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from cvt_nas.config import SupernetConfig, load_experiment
from cvt_nas.engine import SharedWeights
from cvt_nas.engine.memory import MicroBatches
from cvt_nas.engine.optimization import TrainingState
from cvt_nas.engine.subnets import SubnetSampler
from cvt_nas.engine.supernet import _step as train_step
from cvt_nas.engine.supernet import supernet_of
from cvt_nas.space import SearchSpace
from cvt_nas.supernet import Supernet, extract


def seconds_of(forward: Callable[[], torch.Tensor], *, backward: bool) -> float:
    started = time.perf_counter()
    with torch.set_grad_enabled(backward):
        logits = forward()
        if backward:
            logits.sum().backward()
    if logits.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def time_steps(space: SearchSpace, options: argparse.Namespace) -> None:
    """Prints the ratio of the times of a step with a setting and without."""
    device, ratios = torch.device(options.device), list[float]()
    images = torch.randn(options.batch, *space.largest.image_shape, device=device)
    targets = torch.randint(space.largest.num_classes, (options.batch,), device=device)
    trained = []
    for setting in (yaml.safe_load(options.step), {}):
        config = SupernetConfig(epochs=1, batch_size=options.batch, ema_decay=0.99, **setting)
        state = TrainingState.of(supernet_of(SharedWeights(space=space, config=config)), config, device, num_steps=100)
        batches = MicroBatches(config, state.model, device, batch_size=options.batch, meter=None)
        trained.append((config, state, batches, SubnetSampler(space, config, seed=0)))
    for step in range(options.pairs + 2):
        seconds = []
        for config, state, batches, sampler in trained:
            started = time.process_time()
            train_step(state, sampler.draw(0, step), images, targets, config, batches, [])
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.process_time() - started)
        ratios.append(seconds[0] / seconds[1])
    ratios = sorted(ratios[2:])  # in the first step there is no average yet
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    print(f"a step with {options.step}: {statistics.median(ratios):.3f} (quartiles {low:.3f} to {high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--subnets", type=int, default=4, help="random ones, beside the largest and the smallest")
    parser.add_argument("--pairs", type=int, default=15, help="of runs, of each subnet")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kernel-maps", action="store_true")
    parser.add_argument("--own-norms", nargs="+", choices=["kv_stride", "kernel_size"], default=())
    parser.add_argument("--step", metavar="SETTING", help="of the section supernet, in YAML, whose steps are timed")
    options = parser.parse_args()
    if options.step:
        time_steps(load_experiment(options.space).space, options)
        return
    space, device, rng = load_experiment(options.space).space, torch.device(options.device), random.Random(0)
    settings = {"kernel_maps": options.kernel_maps, "own_norms": tuple(options.own_norms)}
    supernet = Supernet(space, **settings).to(device)
    images = torch.randn(options.batch, *space.largest.image_shape, device=device)
    random_ones = [space.decode(space.sample(rng)) for _ in range(options.subnets)]
    cold = []
    for arch in random_ones:
        model = extract(Supernet(space, **settings).to(device), arch).train()
        seconds_of(lambda model=model: model(images), backward=True)
        first = seconds_of(lambda arch=arch: supernet(images, arch), backward=True)
        cold.append(first / seconds_of(lambda model=model: model(images), backward=True))
    print(f"cold, forward and backward: {statistics.median(cold):.2f} ({min(cold):.2f} to {max(cold):.2f})", flush=True)
    named = {"largest": space.largest, "smallest": space.smallest}
    named |= {f"random {index}": arch for index, arch in enumerate(random_ones)}
    for name, arch in named.items():
        for kind, backward in (("forward", False), ("forward and backward", True)):
            model = extract(supernet, arch).train(backward)
            ratios = []
            for _ in range(options.pairs + 2):
                supernet.train(backward).zero_grad()
                model.zero_grad()
                ours = seconds_of(lambda arch=arch: supernet(images, arch), backward=backward)
                ratios.append(ours / seconds_of(lambda model=model: model(images), backward=backward))
            ratios = sorted(ratios[2:])  # the first two warm up
            low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
            print(
                f"{name:10} {kind:20}: {statistics.median(ratios):.3f} (quartiles {low:.3f} to {high:.3f})", flush=True
            )


if __name__ == "__main__":
    main()
