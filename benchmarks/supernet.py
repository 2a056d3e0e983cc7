"""Supernets trained with and without each ingredient, judged by how they rank the networks of the CvT table.

The truth is the table's: accuracy after 8 epochs of a training of its own, the mean over its seeds. What ends in
`_sharp` is by the networks that have `--sharp-seeds` of them, and by the mean of so many, and the ceiling is one seed's
agreement with the next. Space, images and splits are the same. The seconds are those of one thread of a CPU; on a GPU,
which several share, there are none. Rows that are in the file already are not made again, so that this can be stopped
and continued; a table that has grown makes new ones.

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
from cvt_nas.engine import Inheritance, SharedWeights, fit, train_supernet
from cvt_nas.model import CvT
from cvt_nas.results import SupernetQuality, judge_supernet, write_atomically

TABLES = Path(__file__).parent / "tables"
TABLE, ROWS = TABLES / "cvt_fashion_mnist.parquet", TABLES / "supernets.csv"
KEY = ["variant", "seed", "epochs", "archs", "device", "seeds_sharp", "archs_sharp"]
BASE: dict[str, Any] = {
    "batch_size": 128, "lr": 2.0e-3, "schedule": "wsd", "warmup_epochs": 0.5, "weight_decay": 0.05,
    "ema_decay": 0.99, "augment": AugmentConfig(flip=True), "num_random": 2, "distillation": "kl",
}  # fmt: skip
OPENING = {"kv_stride": 1, "mlp_ratio": 2, "depth": 3, "embed_dim": 4}  # the epoch of each
VARIANTS: dict[str, dict[str, Any]] = {  # `warm_epochs` of the largest network by itself, before the supernet's
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
    "opened one by one": {"opening": OPENING},
    "warm start": {"warm_epochs": 4},
    "warm start, opened one by one": {"warm_epochs": 4, "opening": OPENING},
    "batches of 64": {"batch_size": 64},
    "batches of 64, half labels": {"batch_size": 64, "distillation_weight": 0.5},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="several times; all where absent")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--archs", type=int, default=100, help="the first so many of the table's")
    parser.add_argument(
        "--sharp-seeds", type=int, default=2, help="of the table, that the sharper truth is the mean of"
    )
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
    truth = known_networks(options.archs, options.sharp_seeds)
    judged_by = (options.epochs, options.archs, options.device, options.sharp_seeds, len(truth.loc[truth["sharp"]]))
    missing = [
        Task(variant, seed, options.epochs, options.device, options.data, truth, options.sharp_seeds)
        for seed in seeds
        for variant in options.variant or VARIANTS
        if (variant, seed, *judged_by) not in done
    ]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for row in pool.imap_unordered(judged, missing):
            rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)
            write_atomically(options.rows, rows.to_csv(index=False))
            print({name: row[name] for name in ("variant", "seed", "tau", "within_bins", "gap", "seconds")}, flush=True)


@dataclass(frozen=True, slots=True)
class Task:
    """A supernet to train: which, and the networks to judge it by; see `known_networks`."""

    variant: str
    seed: int
    epochs: int
    device: str
    data: Path | None
    truth: pd.DataFrame
    num_seeds: int


def known_networks(num_archs: int, num_seeds: int) -> pd.DataFrame:
    """Networks of the table, a row each, with `acc_8` of all their seeds: as many as are asked for, `chosen` at random,
    and those that have the seeds of the sharper truth, `sharp`."""
    table = pd.read_parquet(TABLE).sort_values(by="seed", kind="stable")
    genes = [name for name in table.columns if name.startswith("g")]
    known = table.groupby(genes, sort=False).agg({"params": "first", "flops": "first", "acc_8": list}).reset_index()
    known["chosen"] = known.index.isin(known.sample(frac=1, random_state=0).head(num_archs).index)
    known["sharp"] = known["acc_8"].map(len) >= num_seeds
    return known.loc[known["chosen"] | known["sharp"]]


def judged(task: Task) -> dict[str, Any]:
    """One supernet, trained and compared."""
    torch.set_num_threads(1)
    experiment = load_experiment(TABLES / "cvt_fashion_mnist.yaml")
    space, device = experiment.space, torch.device(task.device)
    data = load_data(
        experiment.data, root=task.data, image_size=space.image_size, num_channels=space.num_channels,
        num_classes=space.num_classes,
    )  # fmt: skip
    settings = {"epochs": task.epochs, **BASE, **VARIANTS[task.variant]}
    warm_epochs = settings.pop("warm_epochs", 0)
    config = SupernetConfig(**settings)
    started = time.process_time()  # of one thread: the wall time of an idle core, whatever else the machine does

    def largest_alone() -> CvT:
        *_, epoch = fit(space.largest, experiment.training.lasting(warm_epochs), data, device=device, seed=task.seed)
        return epoch.model.cpu()

    initial = largest_alone if warm_epochs else None
    shared = SharedWeights(space=space, config=config)
    *_, last = train_supernet(shared, data, device=device, seed=task.seed, initial=initial)
    seconds = time.process_time() - started
    genes = [name for name in task.truth.columns if name.startswith("g")]
    inheritance, started = Inheritance(last.supernet, config, data, device), time.process_time()
    archs = [space.decode(tuple(genome)) for genome in task.truth[genes].to_numpy(dtype=int).tolist()]
    known = task.truth.assign(inherited=[inheritance.accuracy(arch)[0] for arch in archs])
    seconds_an_arch = (time.process_time() - started) / len(archs)
    chosen, sharp = known.loc[known["chosen"]], known.loc[known["sharp"]]
    quality = _quality(chosen, chosen["acc_8"].map(np.mean))
    sharper = _quality(sharp, sharp["acc_8"].map(lambda accuracies: accuracies[: task.num_seeds]))
    assert sharper.ceiling is not None, "there are two seeds"
    ours, ours_sharp = quality.rankers["inherited"], sharper.rankers["inherited"]
    return {
        "variant": task.variant, "seed": task.seed, "epochs": task.epochs, "archs": len(chosen), "device": task.device,
        "seconds": round(seconds, 1) if task.device == "cpu" else None,
        "seconds_an_arch": round(seconds_an_arch, 3) if task.device == "cpu" else None,
        **{f"loss_{kind}": round(loss, 4) for kind, loss in last.losses.items()},
        **_taus(quality, ""), "tau_low": ours.overall.low, "tau_high": ours.overall.high,
        "precision_at_10": ours.precision_at_10, **{f"regret_at_{k}": ours.regret_at[k] for k in ours.regret_at},
        "inherited": quality.inherited, "gap": quality.standalone - quality.inherited,
        "seeds_sharp": task.num_seeds, "archs_sharp": len(sharp), "ceiling": sharper.ceiling.value,
        **_taus(sharper, "_sharp"), "tau_low_sharp": ours_sharp.overall.low, "tau_high_sharp": ours_sharp.overall.high,
        "gap_sharp": sharper.standalone - sharper.inherited,
    }  # fmt: skip


def _quality(networks: pd.DataFrame, accuracies: pd.Series) -> SupernetQuality:
    """Of what `networks` inherit, by their `accuracies`: one each, or a list of as many for each."""
    truth = np.array(accuracies.tolist()).reshape(len(networks), -1)
    return judge_supernet(
        networks["inherited"].tolist(), truth, networks["params"].tolist(), networks["flops"].tolist()
    )


def _taus(quality: SupernetQuality, suffix: str) -> dict[str, float]:
    """Of each ranker, overall, within bins and in the top third."""
    return {
        f"{column}{suffix}{of}": getattr(quality.rankers[ranker], part).value
        for ranker, of in (("inherited", ""), ("params", "_params"), ("flops", "_flops"))
        for column, part in (("tau", "overall"), ("within_bins", "within_bins"), ("top_third", "top_third"))
    }


if __name__ == "__main__":
    main()
