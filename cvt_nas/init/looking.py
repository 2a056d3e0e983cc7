"""Facts about a data set and a machine that a space file depends on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from joblib import cpu_count

from cvt_nas.config import DataConfig, Dataset
from cvt_nas.data import SPLITS, ImageData, Split, StreamedData, find_data, load_data, shape_of
from cvt_nas.data.arrays import ArrayData

_NUM_LOOKED_AT = 1000  # images, evenly over the set: headers of 100,000 files take 18 s


@dataclass(frozen=True, kw_only=True, slots=True)
class DataLook:
    """A data set as a training with default settings would read it.

    Args:
        root: Folder or file; None for an installed set.
        counts: Number of images of each class or label, in all splits.
        num_images: Number of images of each split.
        held_out: Splits that are held out of the training images.
        num_channels: Channels of the images; 1 if all images that were looked at are grey.
        sizes: Height and width of some images, `(images, 2)`.
        is_in_memory: Whether all images have one size and lie in memory.
    """

    dataset: Dataset
    root: Path | None
    class_names: tuple[str, ...]
    is_multi_label: bool
    counts: tuple[int, ...]
    num_images: dict[Split, int]
    held_out: tuple[str, ...]
    num_channels: int
    sizes: np.ndarray
    is_in_memory: bool
    notes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def imbalance(self) -> float:
        """Number of images of the most common class divided by that of the rarest class."""
        return max(self.counts) / max(min(self.counts), 1)

    @property
    def median_size(self) -> tuple[int, int]:
        height, width = np.median(self.sizes, axis=0)
        return int(height), int(width)

    @property
    def ratio(self) -> float:
        """Ratio of height to width that nine of ten images reach in the same direction; 1 if directions differ."""
        ratios = self.sizes[:, 0] / self.sizes[:, 1]
        low, high = np.percentile(ratios, (10, 90))
        return float(low) if low > 1 else float(high) if high < 1 else 1.0

    def lines(self) -> list[str]:
        """For a person."""
        of = "labels, of which an image can have several" if self.is_multi_label else "classes"
        counts = ", ".join(f"{number:,} {split}" for split, number in self.num_images.items())
        held = f"; {' and '.join(self.held_out)} held out of the training images" if self.held_out else ""
        least, most = min(self.counts), max(self.counts)
        (low_h, low_w), (high_h, high_w) = (np.percentile(self.sizes, at, axis=0).astype(int) for at in (5, 95))
        height, width = self.median_size
        spread = "" if (low_h, low_w) == (high_h, high_w) else f" (most from {low_w} x {low_h} to {high_w} x {high_h})"
        colour = {1: "grey", 3: "colour"}.get(self.num_channels, f"{self.num_channels} channels")
        return [
            f"{self.dataset}: {self.num_classes:,} {of}; {counts} images{held}",
            f"images a class: {least:,} to {most:,}",
            f"{colour}; width x height {width} x {height}{spread}",
            *self.notes,
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """This machine.

    Args:
        gpu_names: Names of all GPUs.
        gpu_bytes: Memory of the smallest GPU; 0 without GPUs.
    """

    num_cpus: int
    gpu_names: tuple[str, ...]
    gpu_bytes: int

    def line(self) -> str:
        """For a person."""
        gpus = ", ".join(f"{self.gpu_names.count(name)} x {name}" for name in dict.fromkeys(self.gpu_names))
        memory = f" of {self.gpu_bytes / 2**30:.3g} GiB" if self.gpu_names else ""
        return f"{self.num_cpus} CPUs, {gpus or 'no GPU'}{memory}"


def look_at_machine() -> Host:
    """Looks at this machine with torch."""
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Host(
        num_cpus=cpu_count(),
        gpu_names=tuple(gpu.name for gpu in found),
        gpu_bytes=min((gpu.total_memory for gpu in found), default=0),
    )


def look_at_data(named: str | Path, *, on_note: Callable[[str], None] | None = None) -> DataLook:
    """Looks at a data set: lists its images and reads the headers of some.

    Args:
        named: See `find_data`.
        on_note: Called with progress notes if it takes long.

    Raises:
        DataError: The data set cannot be trained on; see `load_data`.
    """
    dataset, root = find_data(named)
    channels, num_classes = shape_of(dataset, root)
    data = load_data(
        DataConfig(dataset=dataset), root=root, image_size=32, num_channels=channels or 3, num_classes=num_classes,
        on_note=on_note,
    )  # fmt: skip
    sizes, is_grey = _sizes_of(data)
    labels = np.concatenate([data.labels(split) for split in SPLITS])
    is_counted = data.is_multi_label
    counts = labels.sum(axis=0, dtype=np.int64) if is_counted else np.bincount(labels, minlength=num_classes)
    return DataLook(
        dataset=dataset,
        root=root,
        class_names=data.class_names,
        is_multi_label=data.is_multi_label,
        counts=tuple(counts.tolist()),
        num_images={split: data.num_images(split) for split in SPLITS},
        held_out=tuple(data.identity().held_out),
        num_channels=channels or (1 if is_grey else 3),
        sizes=sizes,
        is_in_memory=isinstance(data, ArrayData),
        notes=tuple(getattr(data, "notes", ())),
    )


def _sizes_of(data: ImageData) -> tuple[np.ndarray, bool]:
    """Returns height and width of some images, and whether all of them are grey."""
    num = data.num_images("train")
    rows = np.unique(np.linspace(0, num - 1, min(num, _NUM_LOOKED_AT)).round().astype(int))
    if isinstance(data, StreamedData):
        headers = data.headers("train", rows)
        is_grey = all(header.mode in ("1", "L", "LA", "F", "I") or header.mode.startswith("I;16") for header in headers)
        return np.array([header.size[::-1] for header in headers]).reshape(-1, 2), is_grey
    images, _ = next(data.eval_batches("train", batch_size=1, device=torch.device("cpu"), as_bytes=True))
    return np.array([images.shape[2:]]), images.shape[1] == 1
