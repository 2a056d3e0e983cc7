"""Which share of their time the workers that rank the candidates of a supernet spend in forward passes.

A real search without training, whose supernet is trained for one epoch only: how long its forward passes take does not
depend on its weights. `busy` is the share of the time between the first and the last result that the workers spent on
candidates, `forward` what of that was forward passes, measured in this process on the same architectures. Then the
supernet is searched again under a limit, as by `cvt-nas query`.

    OMP_NUM_THREADS=1 python benchmarks/ranking.py --space search_spaces/fashion_mnist.yaml --candidates 40
"""

import argparse
import contextlib
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cvt_nas import search
from cvt_nas.config import load_experiment
from cvt_nas.engine import TrainingSetup, open_inheritance
from cvt_nas.model import CvT
from cvt_nas.pipeline.query import query
from cvt_nas.results import Candidate
from cvt_nas.run import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, required=True)
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=0)
    options = parser.parse_args()
    experiment = load_experiment(options.space).changed(
        supernet={"epochs": 1, "batch_size": 128, "num_random": 0},
        training={"epochs": 0, "warmup_epochs": 0},
        search={"weights": "supernet", "candidates": options.candidates, "trials": options.candidates},
    )
    with tempfile.TemporaryDirectory() as folder:
        ends: list[tuple[float, float]] = []

        def follow(event: object) -> None:
            if isinstance(event, Candidate):
                ends.append((time.perf_counter(), event.seconds))

        run = search(
            experiment,
            out=f"{folder}/run",
            cpus=options.cpus,
            gpus=options.gpus,
            progress=lambda *_: contextlib.nullcontext(follow),
        )
        num_workers = options.gpus or options.cpus
        (began, _), *_ = ends
        busy = sum(seconds for _, seconds in ends[num_workers:]) / ((ends[-1][0] - began) * num_workers)
        forward = forward_share(experiment, run, torch.device("cuda:0" if options.gpus else "cpu"))
        started = time.perf_counter()
        median = sorted(candidate.cost.flops for candidate in run.candidates())[options.candidates // 2]
        num_answers = len(query(run, max_flops=median))
        seconds = time.perf_counter() - started
    print(
        f"{len(ends)} candidates, {num_workers} workers: busy {busy:.1%}, forward {forward:.1%} of that, "
        f"together {busy * forward:.1%}; {num_answers} answers to a query in {seconds:.1f} s"
    )


def forward_share(experiment: Any, run: RunFolder, device: torch.device) -> float:
    """Of the time of ranking each of the run's candidates again, what is spent in `CvT.forward`."""
    setup = dataclasses.replace(TrainingSetup.of(experiment, run=run, data=None), device=device.type)
    inheritance, inside, began = open_inheritance(setup, device), 0.0, 0.0

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def before(module: torch.nn.Module, *_: object) -> None:
        nonlocal began
        began = now() if isinstance(module, CvT) else began

    def after(module: torch.nn.Module, *_: object) -> None:
        nonlocal inside
        inside += now() - began if isinstance(module, CvT) else 0.0

    candidates = run.candidates()
    inheritance.measure(candidates[0].arch)  # the images are read once
    hooks = [
        torch.nn.modules.module.register_module_forward_pre_hook(before),
        torch.nn.modules.module.register_module_forward_hook(after),
    ]
    started = now()
    for candidate in candidates:
        inheritance.measure(candidate.arch)
    whole = now() - started
    for hook in hooks:
        hook.remove()
    return inside / whole


if __name__ == "__main__":
    main()
