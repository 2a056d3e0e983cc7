"""Trains the networks of a space, spread over its FLOPs, into a table that searches can be compared on.

Can be stopped at any moment and started again: what is trained is kept, the rest goes on. Seed 0 of every
network comes first, then seed 1 of each, in an order that makes a part of the table a fair sample of it.
`--variant` trains the first of them by another schedule, to compare how well early epochs rank them. `--int8` also
quantises each network that it trains, as `cvt-nas export --format onnx-int8` does, and writes its accuracy. `--latency`
trains nothing: it writes how long a forward pass of one image takes, in milliseconds, on one thread of a CPU or on a
GPU. `--together` trains the missing seeds of a network at once, see cohort.py, and several networks share a GPU by
`--processes`. Such rows have no `seconds_per_epoch`, as it is the time of a core.

    python benchmarks/cvt_table.py --processes 2
    python benchmarks/cvt_table.py --networks 1000 --seeds 3 --together --device cuda --processes 4
    python benchmarks/cvt_table.py --variant cosine --networks 32 --seeds 1
    python benchmarks/cvt_table.py --latency
    python benchmarks/cvt_table.py --latency --device cuda
"""

import argparse
import dataclasses
import functools
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau

from cohort import fit_cohort
from cvt_nas.arch import cost_of
from cvt_nas.config import Experiment, load_experiment
from cvt_nas.data import ImageData, load_data
from cvt_nas.engine import fit
from cvt_nas.engine.latency_table import time_networks
from cvt_nas.engine.quantised import judged_in_int8
from cvt_nas.run import write_atomically
from cvt_nas.space import Genome, SearchSpace, spread_over_flops

TABLES = Path(__file__).parent / "tables"
VARIANTS: dict[str, dict[str, Any]] = {
    "wsd, averaged weights": {},
    "wsd": {"ema_decay": 0.0},
    "cosine": {"schedule": "cosine", "ema_decay": 0.0},
    "cosine, averaged weights": {"schedule": "cosine"},
    "cosine to each rung": {"schedule": "cosine", "restarts": [1, 3], "ema_decay": 0.0},
}
NUM_NETWORKS = 300
LATENCY_SECONDS = 1.0  # of each network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, default=TABLES / "cvt-bench.yaml")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--networks", type=int, default=NUM_NETWORKS, help="the first so many of them")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--together", action="store_true", help="train all missing seeds of a network at once")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: --together or --latency")
    parser.add_argument("--int8", action="store_true", help="also write acc_int8, the accuracy in int8 in onnxruntime")
    parser.add_argument("--latency", action="store_true", help="only measure the latency of what is in the table")
    parser.add_argument("--variant", choices=VARIANTS, default="wsd, averaged weights")
    options = parser.parse_args()
    if options.device == "cuda" and not (options.together or options.latency):
        parser.error("--device cuda: needs --together or --latency, as seconds_per_epoch is the time of a core")
    if options.int8 and options.together:
        parser.error("--int8: networks that are trained with --together are not quantised")
    experiment = load_experiment(options.space)
    suffix = "" if not VARIANTS[options.variant] else f".{options.variant.replace(', ', '_').replace(' ', '_')}"
    path = options.space.with_suffix(f"{suffix}.parquet")
    rows = pd.read_parquet(path).to_dict("records") if path.exists() else []
    if options.latency:
        frame = add_latency(pd.DataFrame(rows), experiment.space, torch.device(options.device))
        write_atomically(path, lambda file: frame.to_parquet(file))
        return
    genomes = networks_of(experiment.space, options.networks)
    genes = gene_columns(experiment.space)
    done = {(tuple(int(row[gene]) for gene in genes), row["seed"]) for row in rows}
    missing = [(g, [seed]) for seed in range(options.seeds) for g in genomes if (g, seed) not in done]
    if options.together:
        seeds = {g: [seed for seed in range(options.seeds) if (g, seed) not in done] for g in genomes}
        missing = [(g, of) for g, of in seeds.items() if of]
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(
        options.processes, open_worker, (options.space, options.data, options.variant, options.device)
    ) as pool:
        train = train_together if options.together else functools.partial(train_row, in_int8=options.int8)
        for count, found in enumerate(pool.imap_unordered(train, missing), start=1):
            rows += found
            table = pd.DataFrame(rows).sort_values(["seed", "flops", *genes], ignore_index=True)
            write_atomically(path, lambda file, table=table: table.to_parquet(file))
            left = (time.monotonic() - started) / count * (len(missing) - count)
            print(f"{count}/{len(missing)} trained, left {left / 60:.0f} min", flush=True)


def networks_of(space: SearchSpace, number: int) -> list[Genome]:
    """The first `number` networks of a table. More networks come after the 300 that each table begins with."""
    more = spread_over_flops(space, number) if number > NUM_NETWORKS else []
    return list(dict.fromkeys([*spread_over_flops(space, NUM_NETWORKS), *more]))[:number]


def add_latency(table: pd.DataFrame, space: SearchSpace, on: torch.device) -> pd.DataFrame:
    """`table` with `latency_cpu_ms` or `latency_cuda_ms`: of torch, eager, fp32, one image, weights at random.

    See `cvt_nas.latency.measuring`. Printed is Kendall's tau of the even and the odd rounds.
    """
    torch.set_num_threads(1)
    genes = gene_columns(space)
    genomes = [tuple(row) for row in table[genes].drop_duplicates().to_numpy(dtype=int).tolist()]
    archs = [space.decode(genome) for genome in genomes]
    turns = time_networks(archs, device=on, max_seconds=LATENCY_SECONDS * len(archs))
    halves = [np.quantile(turns.seconds[first::2], 0.1, axis=0) for first in (0, 1)]
    tau: Any = kendalltau(*halves)
    print(f"two halves of the rounds: tau {tau.statistic:.3f}, median difference {np.median(turns.noise):.1%}")
    latencies = dict(zip(genomes, 1e3 * turns.low, strict=True))
    found = [latencies[tuple(row)] for row in table[genes].to_numpy(dtype=int).tolist()]
    return table.assign(**{f"latency_{on.type}_ms": found})


def gene_columns(space: SearchSpace) -> list[str]:
    return [f"{'g' if gene.is_ordinal else 'c'}{index}" for index, gene in enumerate(space.genes)]


experiment: Experiment
data: ImageData
device: torch.device


def open_worker(space: Path, root: Path | None, variant: str, on: str) -> None:
    global experiment, data, device
    device = torch.device(on)
    torch.set_num_threads(1)
    experiment = load_experiment(space)
    training = dataclasses.replace(experiment.training, **VARIANTS[variant])
    experiment = dataclasses.replace(experiment, training=training)
    inside = experiment.space
    data = load_data(
        experiment.data, root=root, image_size=inside.image_size, num_channels=inside.num_channels,
        num_classes=inside.num_classes,
    )  # fmt: skip


def train_row(task: tuple[Genome, list[int]], *, in_int8: bool = False) -> list[dict[str, Any]]:
    genome, (seed,) = task
    arch = experiment.space.decode(genome)
    started = time.process_time()  # of one thread: the wall time of an idle core, whatever else the machine does
    *_, last = fit(arch, experiment.training, data, device=device, seed=seed)
    seconds = (time.process_time() - started) / last.number
    row = row_of(genome, seed, last.curve) | {"seconds_per_epoch": seconds}
    if in_int8:
        int8 = judged_in_int8(last.model, "onnxruntime-int8", data, experiment.training)
        print(*int8.faults, sep="\n", end="\n" if int8.faults else "")
        row["acc_int8"] = int8.accuracy if int8.accuracy is not None and not int8.faults else np.nan
    return [row]


def train_together(task: tuple[Genome, list[int]]) -> list[dict[str, Any]]:
    genome, seeds = task
    epochs = fit_cohort(experiment.space.decode(genome), experiment.training, data, device=device, seeds=seeds)
    curves = np.array(list(epochs)).T.tolist()
    return [row_of(genome, seed, curve) for seed, curve in zip(seeds, curves, strict=True)]


def row_of(genome: Genome, seed: int, curve: Sequence[float]) -> dict[str, Any]:
    cost = cost_of(experiment.space.decode(genome))
    return {
        **dict(zip(gene_columns(experiment.space), genome, strict=True)),
        "seed": seed, "params": cost.params, "flops": cost.flops,
        **{f"acc_{epoch}": accuracy for epoch, accuracy in enumerate(curve, start=1)},
    }  # fmt: skip


if __name__ == "__main__":
    main()
