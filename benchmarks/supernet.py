"""Supernets trained with and without each ingredient, judged by how they rank the networks of the CvT table.

The truth is the table's: accuracy after 8 epochs of a training of its own, the mean over its seeds. Space, images and
splits are the same. Rows that are in the file already are not made again, so that this can be stopped and continued.

    OMP_NUM_THREADS=1 python benchmarks/supernet.py --processes 2 --seeds 2 --first-seed 100
    OMP_NUM_THREADS=1 python benchmarks/supernet.py --variant base --seeds 3
"""

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cvt_nas.config import AugmentConfig, SupernetConfig, load_experiment
from cvt_nas.data import load_data
from cvt_nas.engine import Inheritance, train_supernet
from cvt_nas.results import judge_supernet, write_atomically

TABLES = Path(__file__).parent / "tables"
TABLE, ROWS = TABLES / "cvt_fashion_mnist.parquet", TABLES / "supernets.csv"
BASE: dict[str, Any] = {
    "epochs": 20, "batch_size": 128, "lr": 2.0e-3, "schedule": "wsd", "warmup_epochs": 0.5, "weight_decay": 0.05,
    "ema_decay": 0.99, "augment": AugmentConfig(flip=True), "num_random": 2, "distillation": "kl",
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "no sandwich, labels": {"sandwich": False, "num_random": 4, "distillation": "none"},
    "1 random": {"num_random": 1},
    "3 random": {"num_random": 3},
    "labels": {"distillation": "none"},
    "alpha-divergence": {"distillation": "alpha"},
    "sampling by flops": {"sampling": "flops"},
    "sampling to the front": {"sampling": "front"},
    "gradient projection": {"project_gradients": True},
    "drop path .1 on the largest": {"drop_path": 0.1},
    "drop path .1 on all": {"drop_path": 0.1, "drop_path_on_all": True},
    "kernel maps": {"kernel_maps": True},
    "norms a kv stride": {"own_norms": ["kv_stride"]},
    "norms a kv stride and kernel": {"own_norms": ["kv_stride", "kernel_size"]},
    "no averaged weights": {"ema_decay": 0.0},
    "cosine": {"schedule": "cosine"},
    "clipped to 1": {"clip_grad_norm": 1.0},
    "opened one by one": {"opening": {"kv_stride": 2, "mlp_ratio": 4, "depth": 6, "embed_dim": 8}},
    "half as long": {"epochs": 10},
    "twice as long": {"epochs": 40},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="several times; all where absent")
    parser.add_argument("--archs", type=int, default=100, help="the first so many of the table's")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    rows = pd.read_csv(ROWS) if ROWS.exists() else pd.DataFrame(columns=["variant", "seed", "archs"])
    done = set(zip(rows["variant"], rows["seed"], rows["archs"], strict=True))
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    missing = [
        (variant, seed, options.archs)
        for seed in seeds
        for variant in options.variant or VARIANTS
        if (variant, seed, options.archs) not in done
    ]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for row in pool.imap_unordered(judged, missing):
            rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)
            write_atomically(ROWS, rows.to_csv(index=False))
            print({name: row[name] for name in ("variant", "seed", "tau", "within_bins", "gap", "seconds")}, flush=True)


def judged(task: tuple[str, int, int]) -> dict[str, Any]:
    """One supernet, trained and compared."""
    variant, seed, num_archs = task
    torch.set_num_threads(1)
    experiment = load_experiment(TABLES / "cvt_fashion_mnist.yaml")
    space, device = experiment.space, torch.device("cpu")
    data = load_data(
        experiment.data, root=None, image_size=space.image_size, num_channels=space.num_channels,
        num_classes=space.num_classes,
    )  # fmt: skip
    config = SupernetConfig(**{**BASE, **VARIANTS[variant]})
    started = time.process_time()  # of one thread: the wall time of an idle core, whatever else the machine does
    *_, last = train_supernet(space, config, data, device=device, seed=seed)
    seconds = time.process_time() - started
    table = pd.read_parquet(TABLE)
    genes = [name for name in table.columns if name.startswith("g")]
    by_arch = table.groupby(genes, sort=False).agg({"params": "first", "flops": "first", "acc_8": "mean"}).reset_index()
    chosen = by_arch.sample(frac=1, random_state=0).head(num_archs)
    inheritance, started = Inheritance(last.supernet, config, data, device), time.process_time()
    archs = [space.decode(tuple(genome)) for genome in chosen[genes].to_numpy(dtype=int).tolist()]
    inherited = [inheritance.accuracy(arch)[0] for arch in archs]
    seconds_an_arch = (time.process_time() - started) / len(archs)
    quality = judge_supernet(
        inherited, chosen[["acc_8"]].to_numpy(), chosen["params"].tolist(), chosen["flops"].tolist()
    )
    ours = quality.rankers["inherited"]
    return {
        "variant": variant, "seed": seed, "archs": len(archs), "seconds": round(seconds, 1),
        "seconds_an_arch": round(seconds_an_arch, 3),
        **{f"loss_{kind}": round(loss, 4) for kind, loss in last.losses.items()},
        "tau": ours.overall.value, "tau_low": ours.overall.low, "tau_high": ours.overall.high,
        "within_bins": ours.within_bins.value, "top_third": ours.top_third.value,
        "precision_at_10": ours.precision_at_10, "regret_at_1": ours.regret_at[1], "regret_at_10": ours.regret_at[10],
        "inherited": float(np.mean(inherited)), "gap": quality.standalone - quality.inherited,
        "tau_params": quality.rankers["params"].overall.value, "tau_flops": quality.rankers["flops"].overall.value,
        "within_bins_params": quality.rankers["params"].within_bins.value,
        "within_bins_flops": quality.rankers["flops"].within_bins.value,
    }  # fmt: skip


if __name__ == "__main__":
    main()
