"""Supernets trained with and without each ingredient, judged by how they rank the networks of the CvT table.

What the networks inherit is kept in `tables/supernets.parquet`, a row for each network of each supernet; how it agrees
with the table, in `tables/supernets.csv`, a row for each supernet, made anew at the end of every call, also of one
that has nothing left to train. The truth is the table's: accuracy after 8 epochs of a training of its own, the mean
over the seeds that every one of these networks has; the ceiling is of that mean (`ceiling_of_mean`). Space, images and
splits are the same. The seconds are those of one thread of a CPU; on a GPU, which several share, there are none.
Supernets that are in the file already are not trained again, so that this can be stopped and continued. `largest` is
what the space's largest network inherits; `largest.py` trains it alone. `--space` judges on another space and table, as
`cvt_table.py --space` makes them; its supernets are in a file of its own.

    OMP_NUM_THREADS=1 python benchmarks/supernet.py --processes 2 --first-seed 100 --epochs 10
    OMP_NUM_THREADS=1 python benchmarks/supernet.py --processes 2 --variant base --seeds 3
    OMP_NUM_THREADS=1 python benchmarks/supernet.py --space strides --variant base --first-seed 100
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

from cvt_nas.config import AugmentConfig, Experiment, SupernetConfig, load_experiment
from cvt_nas.data import ImageData, load_data
from cvt_nas.engine import Inheritance, SharedWeights, fit, train_supernet
from cvt_nas.pipeline.judging import choices_of
from cvt_nas.results import ChoiceEffect, Inherited, choice_effects, judge_supernet, smoothed_accuracies
from cvt_nas.run import write_atomically
from cvt_nas.space import Genome, SearchSpace, spread_over_flops
from cvt_nas.supernet import Supernet
from cvt_table import NUM_NETWORKS, gene_columns

TABLES = Path(__file__).parent / "tables"
SPACES = ("cvt-bench", "strides", "blocks", "colour")
KEY = ["variant", "seed", "epochs", "device"]
BASE: dict[str, Any] = {
    "batch_size": 128, "lr": 2.0e-3, "schedule": "wsd", "warmup_epochs": 0.5, "weight_decay": 0.05,
    "ema_decay": 0.99, "augment": AugmentConfig(flip=True), "num_random": 2, "distillation": "kl",
    "distillation_weight": 1.0,
}  # fmt: skip
HALF_LABELS: dict[str, Any] = {"batch_size": 64, "distillation_weight": 0.5}
OWN_CONVS = {"own_convs": ["kv_stride", "patch_stride"]}
OPENING = {"kv_stride": 1, "mlp_ratio": 2, "depth": 3, "embed_dim": 4}  # the epoch of each
# `warm_epochs` of the largest network by itself, before the supernet's; `steps` in the place of epochs
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "no sandwich, labels": {"sandwich": False, "num_random": 4, "distillation": "none"},
    "1 random": {"num_random": 1},
    "3 random": {"num_random": 3},
    "labels": {"distillation": "none"},
    "half labels": {"distillation_weight": 0.5},
    "alpha-divergence": {"distillation": "alpha"},
    "fair sampling": {"sampling": "fair"},
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
    "batches of 64, half labels": HALF_LABELS,
    "batches of 64, half labels, fair sampling": HALF_LABELS | {"sampling": "fair"},
    "batches of 64, half labels, 2,600 steps": HALF_LABELS | {"steps": 2_600},
    "batches of 64, half labels, temperature 2": HALF_LABELS | {"distillation_temperature": 2.0},
    "batches of 64, half labels, from averaged weights": HALF_LABELS | {"distil_from": "averaged"},
    "batches of 64, half labels, the largest twice": HALF_LABELS | {"largest_weight": 2.0},
    "batches of 64, half labels, each option once a step": HALF_LABELS | {"num_random": 3, "sampling": "fair"},
    "batches of 64, half labels, extremes of sizes": HALF_LABELS | {"extremes": "sizes"},
    "batches of 64, half labels, warm start": HALF_LABELS | {"warm_epochs": 4},
    "batches of 64, half labels, opened one by one": HALF_LABELS | {"opening": OPENING},
    "batches of 64, half labels, convolutions a stride": HALF_LABELS | OWN_CONVS,
    "batches of 64, half labels, convolutions a stride, 2,600 steps": HALF_LABELS | OWN_CONVS | {"steps": 2_600},
    "batches of 64, half labels, kernel maps and norms": HALF_LABELS
    | {"kernel_maps": True, "own_norms": ["kv_stride", "kernel_size"]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=SPACES, default=SPACES[0])
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="several times; all where absent")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--archs", type=int, default=100, help="the first so many of the table's")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST, where it is not where Debian puts it")
    parser.add_argument("--inherited", type=Path, help="the file; the .csv goes beside it")
    options = parser.parse_args()
    file, inherited_file = file_of(options.space), options.inherited or inherited_of(options.space)
    rows = pd.read_parquet(inherited_file) if inherited_file.exists() else pd.DataFrame(columns=KEY)
    done = set(rows[KEY].itertuples(index=False, name=None))
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    space = load_experiment(file).space
    genomes = spread_over_flops(space, NUM_NETWORKS)[: options.archs]  # the order of the table
    missing = [
        Task(file, variant, seed, options.epochs, options.device, options.data, genomes)
        for seed in seeds
        for variant in options.variant or VARIANTS
        if (variant, seed, options.epochs, options.device) not in done
    ]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for found in pool.imap_unordered(inherited, missing):
            rows = pd.concat([rows, found], ignore_index=True) if len(rows) else found
            write_atomically(inherited_file, lambda file, rows=rows: rows.to_parquet(file))
            print(*found.loc[0, [*KEY, "seconds"]], flush=True)
    if not file.with_suffix(".parquet").exists():
        print(f"{file.stem}: no network is trained alone yet, so nothing is judged: see cvt_table.py")
        return
    truth = pd.read_parquet(file.with_suffix(".parquet"))
    judged = [_judged(of, truth) for _, of in rows.groupby(KEY, sort=False)]
    write_atomically(inherited_file.with_suffix(".csv"), pd.DataFrame(judged).to_csv(index=False))
    print(pd.DataFrame(judged)[[*KEY, "tau", "within_bins", "top_third", "gap"]].to_string(index=False))
    print_misjudged(rows, truth, space)


def file_of(space: str) -> Path:
    """The space file of one of `SPACES`. The table of its trainings lies beside it."""
    return TABLES / ("cvt-bench.yaml" if space == SPACES[0] else f"cvt-bench-{space}.yaml")


def data_of(experiment: Experiment, root: Path | None) -> ImageData:
    """The images of one of `SPACES`."""
    space = experiment.space
    return load_data(
        experiment.data, root=root, image_size=space.image_size, num_channels=space.num_channels,
        num_classes=space.num_classes,
    )  # fmt: skip


def inherited_of(space: str) -> Path:
    """The file of what the networks of one of `SPACES` inherit."""
    return TABLES / ("supernets.parquet" if space == SPACES[0] else f"supernets_{space}.parquet")


def ranked_networks(space: str) -> list[tuple[str, pd.DataFrame]]:
    """Of each supernet of one of `SPACES`, its name and the networks that it ranks.

    Their columns are those of the file of inherited accuracies, `acc_8`: a list, of the seeds that all have, and
    `length`: the seconds of a training, as a multiple of their mean over the networks.
    """
    genes = gene_columns(load_experiment(file_of(space)).space)
    table = pd.read_parquet(file_of(space).with_suffix(".parquet")).sort_values(by="seed")
    grouped = table.groupby(genes)
    own = pd.DataFrame({"acc_8": grouped["acc_8"].apply(list), "length": grouped["seconds_per_epoch"].mean()})
    rows = pd.read_parquet(inherited_of(space)).merge(own, left_on=genes, right_index=True)
    rows["length"] /= rows["length"].mean()
    num_seeds = min(map(len, rows["acc_8"]))
    rows["acc_8"] = rows["acc_8"].map(lambda accuracies: accuracies[:num_seeds])
    return [(str(key), of) for key, of in rows.groupby(KEY[:-1], sort=False)]


def print_misjudged(rows: pd.DataFrame, truth: pd.DataFrame, space: SearchSpace) -> None:
    """How many supernets misjudge each choice, and by how much: means over all of them, in points of accuracy."""
    genes, found = gene_columns(space), list[ChoiceEffect]()
    own = truth.groupby(genes).agg(flops=("flops", "first"), accuracy=("acc_8", "mean"))
    supernets = [of.merge(own, left_on=genes, right_index=True) for _, of in rows.groupby(KEY, sort=False)]
    for known in supernets:
        choices = choices_of(space, [tuple(genome) for genome in known[genes].to_numpy().tolist()])
        accuracies = known["inherited"].to_numpy(), known["accuracy"].to_numpy()
        effects = choice_effects(*accuracies, known["flops"].tolist(), choices)
        found += [effect for effect in effects if effect.is_misjudged]
    for _, of in pd.DataFrame(found).groupby(["choice", "option"]) if found else ():
        choice, option, instead_of = of.iloc[0][["choice", "option", "instead_of"]]
        print(
            f"{choice}, {option} instead of {instead_of}: misjudged by {len(of)} of {len(supernets)}; "
            f"alone {100 * of['alone'].mean():+.2f}, inherited {100 * of['inherited'].mean():+.2f}"
        )


@dataclass(frozen=True, slots=True)
class Task:
    """A supernet to train, and the networks to look at."""

    file: Path
    variant: str
    seed: int
    epochs: int
    device: str
    data: Path | None
    genomes: list[Genome]


def inherited(task: Task) -> pd.DataFrame:
    """What the networks inherit from the supernet, which is trained for it; a row each."""
    torch.set_num_threads(1)
    experiment = load_experiment(task.file)
    space, device = experiment.space, torch.device(task.device)
    data = data_of(experiment, task.data)
    settings = {"epochs": task.epochs, **BASE, **VARIANTS[task.variant]}
    warm_epochs = settings.pop("warm_epochs", 0)
    if steps := settings.pop("steps", None):
        settings["epochs"] = round(steps * settings["batch_size"] / data.num_images("train"))
    config = SupernetConfig(**settings)
    started = time.process_time()  # of one thread: the wall time of an idle core, whatever else the machine does

    def begin_with_largest_alone(supernet: Supernet) -> None:
        *_, epoch = fit(space.largest, experiment.training.lasting(warm_epochs), data, device=device, seed=task.seed)
        supernet.insert(epoch.model)

    initial = begin_with_largest_alone if warm_epochs else None
    shared = SharedWeights(space=space, config=config)
    *_, last = train_supernet(shared, data, device=device, seed=task.seed, initial=initial)
    seconds = time.process_time() - started
    inheritance = Inheritance(last.supernet, config, data, device)
    largest, started = inheritance.measure(space.largest).accuracy, time.process_time()
    measured = [inheritance.measure(space.decode(genome)) for genome in task.genomes]
    seconds_an_arch = (time.process_time() - started) / len(measured)
    return pd.DataFrame(task.genomes, columns=gene_columns(space)).assign(
        variant=task.variant, seed=task.seed, epochs=task.epochs, device=task.device,
        inherited=[each.accuracy for each in measured], brier=[each.brier for each in measured],
        num_images=measured[0].num_images, largest=largest,
        seconds=round(seconds, 1) if task.device == "cpu" else np.nan,
        seconds_an_arch=round(seconds_an_arch, 3) if task.device == "cpu" else np.nan,
        **{f"loss_{kind}": round(loss, 4) for kind, loss in last.losses.items()},
    )  # fmt: skip


def _judged(rows: pd.DataFrame, truth: pd.DataFrame) -> dict[str, Any]:
    """How what the networks inherit, `rows`, agrees with their own trainings in the table, `truth`."""
    genes = [name for name in rows.columns if name in truth.columns and name[1:].isdigit()]
    own = truth.sort_values(by="seed").groupby(genes).agg({"params": "first", "flops": "first", "acc_8": list})
    known = rows.merge(own, left_on=genes, right_index=True)
    num_seeds = known["acc_8"].map(len).min()
    alone = np.array([accuracies[:num_seeds] for accuracies in known["acc_8"]])
    costs = known["params"].tolist(), known["flops"].tolist()
    quality = judge_supernet(known["inherited"].tolist(), alone, *costs)
    ours, smoothed = quality.rankers["inherited"], {}
    if "brier" in known.columns and not known["brier"].hasnans:
        columns = zip(known["inherited"], known["brier"], strict=True)
        num_images = int(known["num_images"].iloc[0])
        found = [Inherited(accuracy=accuracy, num_images=num_images, brier=brier) for accuracy, brier in columns]
        by = judge_supernet(smoothed_accuracies(found), alone, *costs).rankers["inherited"]
        smoothed = {"tau_smoothed": by.overall.value, "within_bins_smoothed": by.within_bins.value}
        smoothed |= {"tau_smoothed_low": by.overall.low, "tau_smoothed_high": by.overall.high}
    return {
        **rows.drop(columns=[*genes, "inherited", "brier", "num_images"], errors="ignore").iloc[0],
        "archs": len(known), "seeds": num_seeds,
        "between_seeds": quality.between_seeds.value if quality.between_seeds else np.nan,
        "ceiling": quality.ceiling.value if quality.ceiling else np.nan,
        **{
            f"{column}{of}": getattr(quality.rankers[ranker], part).value
            for ranker, of in (("inherited", ""), ("params", "_params"), ("flops", "_flops"))
            for column, part in (("tau", "overall"), ("within_bins", "within_bins"), ("top_third", "top_third"))
        },
        "tau_low": ours.overall.low, "tau_high": ours.overall.high,
        "precision_at_10": ours.precision_at_10, **{f"regret_at_{k}": ours.regret_at[k] for k in ours.regret_at},
        "inherited": quality.inherited, "gap": quality.standalone - quality.inherited, **smoothed,
    }  # fmt: skip


if __name__ == "__main__":
    main()
