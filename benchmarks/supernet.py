"""Supernets trained with and without each ingredient, judged by how they rank the networks of the CvT table.

The truth is the table's: accuracy after 8 epochs of a training of its own, the mean over its seeds. What ends in
`_of_two` is by the networks that have two seeds, as is the ceiling: one seed's agreement with the other. Space, images
and splits are the same. The seconds are those of one thread of a CPU; on a GPU, which several share, there are none.
Rows that are in the file already are not made again, so that this can be stopped and continued.

    OMP_NUM_THREADS=1 python benchmarks/supernet.py --processes 2 --seeds 2 --first-seed 100
    OMP_NUM_THREADS=1 python benchmarks/supernet.py --variant base --seeds 3
"""

import argparse
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cvt_nas.config import AugmentConfig, SupernetConfig, load_experiment
from cvt_nas.data import load_data
from cvt_nas.engine import Inheritance, SharedWeights, train_supernet
from cvt_nas.results import SupernetQuality, judge_supernet, write_atomically

TABLES = Path(__file__).parent / "tables"
TABLE, ROWS = TABLES / "cvt_fashion_mnist.parquet", TABLES / "supernets.csv"
KEY = ["variant", "seed", "epochs", "archs", "device"]
BASE: dict[str, Any] = {
    "batch_size": 128, "lr": 2.0e-3, "schedule": "wsd", "warmup_epochs": 0.5, "weight_decay": 0.05,
    "ema_decay": 0.99, "augment": AugmentConfig(flip=True), "num_random": 2, "distillation": "kl",
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "no sandwich, labels": {"sandwich": False, "num_random": 4, "distillation": "none"},
    "1 random": {"num_random": 1},
    "3 random": {"num_random": 3},
    "labels": {"distillation": "none"},
    "half labels": {"distillation_weight": 0.5},
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
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="several times; all where absent")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--archs", type=int, default=100, help="the first so many of the table's")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST, where it is not where Debian puts it")
    parser.add_argument("--rows", type=Path, default=ROWS, help="the file")
    options = parser.parse_args()
    rows = pd.read_csv(options.rows) if options.rows.exists() else pd.DataFrame(columns=KEY)
    done = set(rows[KEY].itertuples(index=False, name=None))
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    missing = [
        Task(variant, seed, options.epochs, options.archs, options.device, options.data)
        for seed in seeds
        for variant in options.variant or VARIANTS
        if (variant, seed, options.epochs, options.archs, options.device) not in done
    ]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for row in pool.imap_unordered(judged, missing):
            rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)
            write_atomically(options.rows, rows.to_csv(index=False))
            print({name: row[name] for name in ("variant", "seed", "tau", "within_bins", "gap", "seconds")}, flush=True)


@dataclass(frozen=True, slots=True)
class Task:
    """A supernet to train: which, and the first so many architectures of the table to judge it by."""

    variant: str
    seed: int
    epochs: int
    num_archs: int
    device: str
    data: Path | None


def judged(task: Task) -> dict[str, Any]:
    """One supernet, trained and compared."""
    torch.set_num_threads(1)
    experiment = load_experiment(TABLES / "cvt_fashion_mnist.yaml")
    space, device = experiment.space, torch.device(task.device)
    data = load_data(
        experiment.data, root=task.data, image_size=space.image_size, num_channels=space.num_channels,
        num_classes=space.num_classes,
    )  # fmt: skip
    config = SupernetConfig(**{"epochs": task.epochs, **BASE, **VARIANTS[task.variant]})
    started = time.process_time()  # of one thread: the wall time of an idle core, whatever else the machine does
    *_, last = train_supernet(SharedWeights(space=space, config=config), data, device=device, seed=task.seed)
    seconds = time.process_time() - started
    table = pd.read_parquet(TABLE)
    genes = [name for name in table.columns if name.startswith("g")]
    known = table.groupby(genes, sort=False).agg({"params": "first", "flops": "first", "acc_8": list}).reset_index()
    known["chosen"] = known.index.isin(known.sample(frac=1, random_state=0).head(task.num_archs).index)
    known["seeds"] = known["acc_8"].map(len)
    known = known.loc[known["chosen"] | (known["seeds"] > 1)]
    inheritance, started = Inheritance(last.supernet, config, data, device), time.process_time()
    archs = [space.decode(tuple(genome)) for genome in known[genes].to_numpy(dtype=int).tolist()]
    known = known.assign(inherited=[inheritance.accuracy(arch)[0] for arch in archs])
    seconds_an_arch = (time.process_time() - started) / len(archs)
    chosen, sharp = known.loc[known["chosen"]], known.loc[known["seeds"] > 1]
    quality, of_two = _quality(chosen, chosen["acc_8"].map(np.mean)), _quality(sharp, sharp["acc_8"])
    assert of_two.ceiling is not None, "there are two seeds"
    ours, ours_of_two = quality.rankers["inherited"], of_two.rankers["inherited"]
    return {
        "variant": task.variant, "seed": task.seed, "epochs": task.epochs, "archs": len(chosen), "device": task.device,
        "seconds": round(seconds, 1) if task.device == "cpu" else None,
        "seconds_an_arch": round(seconds_an_arch, 3) if task.device == "cpu" else None,
        **{f"loss_{kind}": round(loss, 4) for kind, loss in last.losses.items()},
        "tau": ours.overall.value, "tau_low": ours.overall.low, "tau_high": ours.overall.high,
        "within_bins": ours.within_bins.value, "top_third": ours.top_third.value,
        "precision_at_10": ours.precision_at_10, "regret_at_1": ours.regret_at[1], "regret_at_10": ours.regret_at[10],
        "inherited": quality.inherited, "gap": quality.standalone - quality.inherited,
        "tau_params": quality.rankers["params"].overall.value, "tau_flops": quality.rankers["flops"].overall.value,
        "within_bins_params": quality.rankers["params"].within_bins.value,
        "within_bins_flops": quality.rankers["flops"].within_bins.value,
        "top_third_params": quality.rankers["params"].top_third.value,
        "top_third_flops": quality.rankers["flops"].top_third.value,
        "archs_of_two": len(sharp), "tau_of_two": ours_of_two.overall.value, "ceiling": of_two.ceiling.value,
        "within_bins_of_two": ours_of_two.within_bins.value, "top_third_of_two": ours_of_two.top_third.value,
    }  # fmt: skip


def _quality(networks: pd.DataFrame, accuracies: pd.Series) -> SupernetQuality:
    """Of what `networks` inherit, by their `accuracies`: one each, or a list of as many for each."""
    truth = np.array(accuracies.tolist()).reshape(len(networks), -1)
    return judge_supernet(
        networks["inherited"].tolist(), truth, networks["params"].tolist(), networks["flops"].tolist()
    )


if __name__ == "__main__":
    main()
