"""What several scripts here share: trainings of networks by name, steps that are timed, and photographs as files."""

import contextlib
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from cvt_nas.arch import ArchConfig, cost_of, load_arch
from cvt_nas.config import Experiment, load_experiment
from cvt_nas.data import ImageData, load_data
from cvt_nas.engine import evaluate, fit
from cvt_nas.run import write_atomically

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # for what tests compare with, too
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


def networks() -> dict[str, tuple[ArchConfig, int]]:
    """Those whose steps are timed, each with a batch size for a CPU."""
    from strategies import per_stage

    return {
        "CvT-13 at 224": (load_arch("cvt-13"), 2),
        "small, 28 px, stem stride 4": (
            per_stage(image_size=28, num_channels=1, stem=(7, 4, 2), dims=(16, 48, 96), depths=(1, 2, 3),
                      heads=(1, 3, 6), kernels=(3,) * 3, strides=(2,) * 3, ratios=(4.0,) * 3), 128
        ),
        "small, 32 px, stem stride 2": (
            per_stage(image_size=32, stem=(3, 2, 1), dims=(32, 64, 128), depths=(1, 2, 4),
                      heads=(2, 4, 8), kernels=(3,) * 3, strides=(2,) * 3, ratios=(4.0,) * 3), 64
        ),
    }  # fmt: skip


def train_step(
    model: Any, precision: str, device: torch.device, *, in_order: bool
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        torch.use_deterministic_algorithms(in_order, warn_only=True)
        model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images)
        logits = getattr(logits, "logits", logits)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def eval_step(
    model: Any, precision: str, device: torch.device, *, in_order: bool
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    @torch.inference_mode()
    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        del labels
        torch.use_deterministic_algorithms(in_order, warn_only=True)
        model.eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            model(images)

    return step


def make_photographs(folder: Path, num_files: int, *, num_links: int) -> None:
    """Crops of photographs, 500 x 375, as JPEGs in `train/` and `val/`, each of the former with so many names."""
    from PIL import Image

    rng, sources = random.Random(0), _photographs()
    for index in range(num_files):
        image = Image.fromarray(sources[index % len(sources)])
        width, height = image.width * rng.uniform(0.7, 1), image.height * rng.uniform(0.7, 1)
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        cut = image.resize((500, 375), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        place = folder / ("train" if index % 4 else "val") / f"class-{index // 4 % 2}"
        place.mkdir(parents=True, exist_ok=True)
        cut.save(place / f"{index}.jpg", quality=rng.randint(90, 96))
        for link in range(num_links - 1 if index % 4 else 0):
            os.link(place / f"{index}.jpg", place / f"{index}-{link}.jpg")


def _photographs() -> list[np.ndarray]:
    """scikit-learn's two, and those that come with scikit-image, where it is installed."""
    from sklearn.datasets import load_sample_images

    found = list(load_sample_images().images)
    with contextlib.suppress(ImportError):
        from skimage import data  # type: ignore[import-not-found]

        for name in ("astronaut", "coffee", "chelsea"):
            with contextlib.suppress(Exception):  # it would have to be downloaded
                found.append(np.asarray(getattr(data, name)()))
    return found
