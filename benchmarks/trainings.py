"""Networks by name, each trained with several seeds: what other scripts here make their tables of."""

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cvt_nas.arch import ArchConfig, cost_of
from cvt_nas.config import Experiment, load_experiment
from cvt_nas.data import ImageData, load_data
from cvt_nas.engine import evaluate, fit
from cvt_nas.run import write_atomically

Task = tuple[str, ArchConfig, int]


def train_all(
    archs: Mapping[str, ArchConfig],
    space_file: Path,
    *,
    seeds: Sequence[int],
    to: Path,
    processes: int = 2,
    data: Path | None = None,
) -> pd.DataFrame:
    """Trains each of `archs` from scratch with each seed, by the data and training of `space_file`.

    Can be stopped at any moment and started again: the rows in `to` are kept, the rest goes on.

    Returns:
        One row for each, as in the CSV file `to`: name, seed, arch_id, params, flops, search_accuracy, test_accuracy,
        the curve of the former (`acc_1` and so on) and the seconds of one core.
    """
    rows = pd.read_csv(to).to_dict("records") if to.exists() else []
    done = {(row["arch_id"], row["seed"]) for row in rows}
    missing = [(name, arch, seed) for seed in seeds for name, arch in archs.items() if (arch.id, seed) not in done]
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(processes, _open_worker, (space_file, data)) as pool:
        for count, row in enumerate(pool.imap_unordered(_train, missing), start=1):
            rows.append(row)
            table = pd.DataFrame(rows).sort_values(["seed", "flops", "name"], ignore_index=True)
            to.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(to, table.to_csv(index=False))
            left = (time.monotonic() - started) / count * (len(missing) - count)
            print(f"{count}/{len(missing)} trained, left {left / 60:.0f} min", flush=True)
    table = pd.DataFrame(rows)
    wanted = {(arch.id, seed) for arch in archs.values() for seed in seeds}
    return table.loc[[key in wanted for key in zip(table["arch_id"], table["seed"], strict=True)]]


experiment: Experiment
images: ImageData


def _open_worker(space_file: Path, data: Path | None) -> None:
    global experiment, images
    torch.set_num_threads(1)
    experiment = load_experiment(space_file)
    space = experiment.space
    images = load_data(
        experiment.data, root=data, image_size=space.image_size, num_channels=space.num_channels,
        num_classes=space.num_classes,
    )  # fmt: skip


def _train(task: Task) -> dict[str, Any]:
    name, arch, seed = task
    cpu, cost = torch.device("cpu"), cost_of(arch)
    started = time.process_time()  # of one thread: the wall time of an idle core, whatever else the machine does
    *_, last = fit(arch, experiment.training, images, device=cpu, seed=seed)
    return {
        "name": name, "seed": seed, "arch_id": arch.id, "params": cost.params, "flops": cost.flops,
        "search_accuracy": last.accuracy,
        "test_accuracy": evaluate(last.model, images, "test", training=experiment.training, device=cpu),
        **{f"acc_{epoch}": round(accuracy, 4) for epoch, accuracy in enumerate(last.curve, start=1)},
        "seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


def markdown(table: pd.DataFrame, names: Sequence[str], **columns: Mapping[str, str]) -> str:
    """Rows `names` with costs, test accuracy over the seeds, and the paired difference to the first of them.

    Args:
        columns: Further ones, of what each name has there.
    """
    by_name = {name: group.set_index("seed")["test_accuracy"] for name, group in table.groupby("name")}
    head = ["", "params", "FLOPs", "test accuracy", f"to {names[0]}", *columns]
    lines = [" | ".join(head), "|".join("---" for _ in head)]
    for name in names:
        accuracy, some = 100 * by_name[name], table[table["name"] == name].iloc[0]
        difference = accuracy - 100 * by_name[names[0]]
        lines.append(" | ".join([
            name, f"{some['params'] / 1e6:.3f} M", f"{some['flops'] / 1e6:.2f} M",
            f"{accuracy.mean():.2f} ± {accuracy.std():.2f}",
            "" if name == names[0] else f"{difference.mean():+.2f} ± {difference.std():.2f}",
            *(values.get(name, "") for values in columns.values()),
        ]))  # fmt: skip
    return "\n".join(f"| {line} |" for line in lines)
