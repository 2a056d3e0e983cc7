"""Folders of images for tests, and trainings on them."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cvt_nas.config import DataConfig, parse_experiment
from cvt_nas.data import SPLITS, ImageData, find_data, load_data
from cvt_nas.data.streams import StreamedData
from cvt_nas.run import RunFolder
from cvt_nas.train import train

CPU = torch.device("cpu")
NAMES = ("cat", "dog", "fish")


def write_images(folder: Path, names: tuple[str, ...] = NAMES, num: int = 8, suffix: str = ".png") -> None:
    """Each class has a brightness of its own."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(num):
            pixels = rng.integers(0, 30, (20, 24, 3)) + [20, 110, 200][index % 3]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}{suffix}")


def open_folder(
    root: Path, *, num_classes: int = 3, num_channels: int = 3, test_only: bool = False, **config: Any
) -> StreamedData:
    data = load_data(
        DataConfig(dataset="imagefolder", **{"num_workers": 0, "search_fraction": 0.25, **config}),
        root=root, image_size=16, num_channels=num_channels, num_classes=num_classes, test_only=test_only,
    )  # fmt: skip
    assert isinstance(data, StreamedData)
    return data


def sizes(data: ImageData) -> list[int]:
    return [data.num_images(split) for split in SPLITS]


def png(path: Path, values: np.ndarray, color: int) -> None:
    """A PNG of 16 bits, which Pillow writes of grey alone."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


def open_kind(
    root: Path | str, num_classes: int = 3, *, num_channels: int = 3, test_only: bool = False, **config: Any
) -> ImageData:
    """The data set at `root`, of the kind that is found there."""
    dataset, place = find_data(root)
    return load_data(
        DataConfig(dataset=dataset, **{"num_workers": 0, "search_fraction": 0.25, **config}),
        root=place, image_size=16, num_channels=num_channels, num_classes=num_classes, test_only=test_only,
    )  # fmt: skip


def spoil(path: Path) -> None:
    """In the middle, where neither the header nor the end of the file tells."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


SPACE = """
format: 1
name: tiny
space:
  image_size: 16
  num_classes: 3
  stages:
    - {patch: {kernel: 3, stride: 2, padding: 1}, embed_dim: [8, 16], depth: 1, num_heads: 1, mlp_ratio: [1.0, 2.0]}
    - {patch: {kernel: 3, stride: 2, padding: 1}, embed_dim: 16, depth: 1, num_heads: 2, mlp_ratio: 1.0}
data: {dataset: imagefolder, search_fraction: 0.25, num_workers: 0}
training: {epochs: 4, batch_size: 6, lr: 1.0e-2}
search: {trials: 2, grace_period: 1}
"""


def trained(
    root: Path, out: Path, *, resume: bool = False, on_error: str = "raise", dataset: str = "imagefolder"
) -> tuple[float, list[str]]:
    """Test accuracy, and what was said."""
    experiment = parse_experiment(SPACE, "tiny.yaml").changed(data={"on_error": on_error, "dataset": dataset})
    arch, notes = experiment.space.largest, list[str]()
    train(arch, experiment, out=out, data=root, device="cpu", resume=resume, on_note=notes.append)
    return RunFolder.open(out).test_accuracies()[arch.id], notes
