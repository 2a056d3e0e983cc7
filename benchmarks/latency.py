"""How well a table of parts tells the latency of whole networks: networks that had no part in it, timed.

OMP_NUM_THREADS=1 python benchmarks/latency.py --space search_spaces/fashion_mnist.yaml
"""

import argparse
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from cvt_nas.config import load_experiment
from cvt_nas.engine.latency import measure_latency, measure_table
from cvt_nas.model import CvT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, required=True)
    parser.add_argument("--networks", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1, help="of the networks")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    experiment, device = load_experiment(options.space), torch.device(options.device)
    started = time.perf_counter()
    table = measure_table(experiment.space, device=device)
    seconds = time.perf_counter() - started
    space, rng = experiment.with_latency(table).space, random.Random(options.seed)
    genomes = [genome for _ in range(options.networks) if (genome := space.sample_feasible(rng)) is not None]
    measured = np.array([
        measure_latency(CvT(space.decode(genome)), device=device, max_seconds=1.0, max_runs=100).median_ms
        for genome in genomes
    ])  # fmt: skip
    print(
        f"{experiment.name} on {table.device}: {len(table.parts)} parts in {seconds:.0f} s, own error {table.error:.1%}"
    )
    print(f"{len(genomes)} networks of {measured.min():.2f} to {measured.max():.2f} ms")
    costs = [space.cost(genome) for genome in genomes]
    for name in ("latency_ms", "flops", "params"):
        told = np.array([getattr(cost, name) for cost in costs], dtype=float)
        found: Any = kendalltau(told, measured)
        off = np.median(np.abs(told / measured - 1)) if name == "latency_ms" else None
        print(f"{name:10}: Kendall's tau {found.statistic:.3f}" + ("" if off is None else f", median error {off:.1%}"))


if __name__ == "__main__":
    main()
