"""What reading images costs a CPU: timm's pipeline, as it was before, against ours; and images a second of all cores.

    python benchmarks/feed.py
    python benchmarks/feed.py --workers 14 --rounds 9 --json

JPEGs of 500 x 375 pixels are made of the photographs in scikit-learn, and in scikit-image where it is installed. The
pipelines take turns, on the same images, in this process and one thread; its CPU time counts, to the batch that is
handed over. What the device does with a batch does not. With `--workers`, processes read for the wall clock, too.
"""

import argparse
import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

import gpu
from cvt_nas import load_experiment
from cvt_nas.config import AugmentConfig, DataConfig
from cvt_nas.data import seed_all
from cvt_nas.data.augment import with_every_magnitude
from cvt_nas.data.folders import find_folders
from cvt_nas.data.loading import Portion, Reader, Source, Stream, collated
from cvt_nas.data.reading import read_image, read_pixels
from cvt_nas.data.records import Images
from cvt_nas.data.streams import StreamedData
from cvt_nas.data.transforms import EvalTransform, TrainTransform
from shared import make_photographs

Read = Callable[[np.ndarray], Any]  # of some rows, the batch
BEFORE = {"training": "timm", "evaluation": "timm"}


class Timm(Dataset[Any]):
    """Timm's transform of each image, and torch's collation."""

    def __init__(self, images: Images, transform: Any, *, seeds: Callable[[int], None] | None = None) -> None:
        self._images, self._transform, self._seeds = images, transform, seeds

    def __getitem__(self, index: Any) -> tuple[Tensor, int]:
        row = int(index)
        if self._seeds is not None:
            self._seeds(row)
        image = read_image(f"{self._images.root}/{self._images.names[row]}", "RGB")
        return self._transform(image), int(self._images.labels[row])

    def read(self, rows: np.ndarray) -> Any:
        return default_collate([self[row] for row in rows])


def pipelines(data: StreamedData, augment: AugmentConfig) -> dict[str, dict[str, Any]]:
    """Of training and of evaluation, each way to read; the values read a batch of rows, or are a `Timm`."""
    from timm.data.transforms_factory import create_transform

    pre, cpu = data.preprocessing, torch.device("cpu")
    common: dict[str, Any] = {"interpolation": pre.interpolation, "mean": pre.mean, "std": pre.std}
    timm_s = with_every_magnitude(
        create_transform(
            pre.image_size, is_training=True, scale=(augment.crop_scale, 1.0), hflip=0.5 if augment.flip else 0.0,
            color_jitter=augment.color_jitter, auto_augment=augment.randaugment, re_prob=augment.random_erasing,
            re_mode="pixel", **common,
        )
    )  # fmt: skip
    trained, tested = data.records.files["train"], data.records.files["validation"]
    ours = TrainTransform(pre, augment, cpu)
    with mock.patch("cvt_nas.data.transforms.computes_on", return_value=True):
        drawn = TrainTransform(pre, augment, cpu)
    by_pillow = functools.partial(read_image, mode="RGB")
    by_simplejpeg = functools.partial(read_pixels, mode="RGB")

    def reader(images: Images, transform: Any, read: Any, seeds: tuple[int, ...] | None) -> Any:
        return Reader({"": Source(images=images, transform=transform)}, read), seeds

    found: dict[str, dict[str, Any]] = {
        "training": {
            "timm, all devices seeded for each image": Timm(trained, timm_s, seeds=functools.partial(seed_all, 0, 0)),
            "timm": Timm(trained, timm_s, seeds=functools.partial(seed_all, 0, 0, on_devices=False)),
            "ours": reader(trained, ours, by_pillow, (0, 0)),
            "ours, RandAugment left to a GPU": reader(trained, drawn, by_pillow, (0, 0)),
        },
        "evaluation": {
            "timm, normalised": Timm(tested, create_transform(pre.image_size, crop_pct=pre.crop_pct, **common)),
            "timm": Timm(
                tested, create_transform(pre.image_size, crop_pct=pre.crop_pct, normalize=False, **common)
            ),
            "ours": reader(tested, EvalTransform(pre), by_pillow, None),
        },
    }  # fmt: skip
    if has_simplejpeg():
        found["training"] |= {
            "ours, simplejpeg": reader(trained, ours, by_simplejpeg, (0, 0)),
            "ours, simplejpeg, RandAugment left to a GPU": reader(trained, drawn, by_simplejpeg, (0, 0)),
        }
        found["evaluation"]["ours, simplejpeg"] = reader(tested, EvalTransform(pre), by_simplejpeg, None)
    return found


def has_simplejpeg() -> bool:
    from importlib.util import find_spec

    return find_spec("simplejpeg") is not None


def read_of(pipeline: Any) -> Read:
    if isinstance(pipeline, Timm):
        return pipeline.read
    reader, seeds = pipeline
    return lambda rows: collated(reader[("", rows, seeds)])


def batches_of(pipeline: Any, batches: list[np.ndarray], workers: int) -> Iterator[Any]:
    """By processes, as many as told."""
    if isinstance(pipeline, Timm):
        return iter(DataLoader(pipeline, batch_sampler=cast(Any, batches), num_workers=workers))
    reader, seeds = pipeline
    portion = Portion(key=None, source="", batches=batches, seeds=seeds)
    return Stream(reader, portion, num_workers=workers, pin_memory=False).portion()


def milliseconds(read: Read, rows: np.ndarray) -> float:
    """CPU time of an image."""
    started = time.process_time()
    read(rows)
    return (time.process_time() - started) / len(rows) * 1e3


def images_per_second(pipeline: Any, rows: np.ndarray, batch_size: int, workers: int) -> float:
    """From the moment when each process has had the time for its first batches."""
    batches = np.split(rows, range(batch_size, len(rows), batch_size))
    stream = batches_of(pipeline, batches, workers)
    skipped = min(2 * workers, len(batches) // 2)
    for _ in range(skipped):
        next(stream)
    started = time.perf_counter()
    number = sum(1 for _ in stream)
    return number * batch_size / (time.perf_counter() - started)


def measured(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A line for each pipeline."""
    make_photographs(folder, options.images, num_links=1)
    augment = load_experiment(gpu.ROOT / "search_spaces" / "cvt13.yaml").training.augment
    config = DataConfig(dataset="imagefolder", num_workers=0)
    data = StreamedData(config, find_folders("imagefolder", folder), options.size, 3)
    for stage, ways in pipelines(data, augment).items():
        files = data.records.files["train" if stage == "training" else "validation"]
        rng = np.random.default_rng(0)
        times: dict[str, list[float]] = {name: [] for name in ways}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(-1, options.rounds):  # the first does not count
            rows = rng.integers(0, len(files.names), options.batch)
            for name, way in ways.items():
                spent = milliseconds(read_of(way), rows)
                if number >= 0:
                    times[name].append(spent)
        for _ in range(options.rounds if options.workers else 0):
            rows = rng.integers(0, len(files.names), options.batch * options.workers * options.batches)
            for name, way in ways.items():
                rates[name].append(images_per_second(way, rows, options.batch, options.workers))
        before = BEFORE[stage]
        for name in ways:
            ratios = [old / new for old, new in zip(times[before], times[name], strict=True)]
            yield {
                "stage": stage,
                "pipeline": name,
                "ms": round(statistics.median(times[name]), 3),
                "images_per_second_a_core": round(1e3 / statistics.median(times[name])),
                "times_timm": _spread(ratios),
                **({"images_per_second": _spread(rates[name], 0)} if options.workers else {}),
            }


def _spread(values: list[float], digits: int = 2) -> list[float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return [round(value, digits) for value in (middle, low, high)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400, help="files to make")
    parser.add_argument("--size", type=int, default=224, help="pixels that the network sees along a side")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--workers", type=int, default=0, help="processes of a second look, by the wall clock")
    parser.add_argument("--batches", type=int, default=6, help="of each of these processes, in a round")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each pipeline instead of a table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if not options.json:
            print(f"{os.cpu_count()} CPUs, torch {torch.__version__}, {options.rounds} rounds; median and quartiles")
        for line in measured(options, Path(folder)):
            if options.json:
                print(json.dumps(line), flush=True)
                continue
            ratio, low, high = line["times_timm"]
            rate = line.get("images_per_second")
            print(
                f"{line['stage']:<11} {line['pipeline']:<44} {line['ms']:7.2f} ms {line['images_per_second_a_core']:6} "
                f"a second, {ratio:5.2f} ({low:.2f} to {high:.2f}) times timm"
                + (
                    ""
                    if rate is None
                    else f"; {options.workers} processes: {rate[0]:.0f} ({rate[1]:.0f} to {rate[2]:.0f})"
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
