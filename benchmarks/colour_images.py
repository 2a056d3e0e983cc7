"""Makes a data set of ten classes in colour, 32 x 32 pixels: Fashion-MNIST over photographs.

The recipe is that of MNIST-M (Ganin and Lempitsky 2015, arXiv:1409.7495): a crop of a photograph, and of each of its
channels the absolute difference to the grey image. The backgrounds of training are cut from the upper two thirds of the
photographs, those of the test from the lower third. The photographs are colour ones of scikit-learn and scikit-image
(0.26), which is installed for this alone.

    pip install scikit-image
    python benchmarks/colour_images.py --to /tmp/colour.npz
"""

import argparse
import importlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from sklearn.datasets import load_sample_image

from cvt_nas.data.named_sets import source_of

Split = Literal["train", "test"]
NUM_IMAGES: dict[Split, int] = {"train": 12_000, "test": 5_000}
SIDE, GREY_SIDE = 32, 28
Photographs = list[UInt8[np.ndarray, "height width 3"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="a file .npz as MedMNIST's")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST, where it is not where Debian puts it")
    options = parser.parse_args()
    read, _ = source_of("fashion-mnist", options.data)
    grey, photographs, rng = read(), read_photographs(), np.random.default_rng(0)
    backgrounds: dict[Split, Photographs] = {
        "train": [photograph[: 2 * len(photograph) // 3] for photograph in photographs],
        "test": [photograph[2 * len(photograph) // 3 :] for photograph in photographs],
    }
    images = {
        split: over(grey.images[split][:count, 0], backgrounds[split], rng) for split, count in NUM_IMAGES.items()
    }
    labels = {split: grey.labels[split][:count] for split, count in NUM_IMAGES.items()}
    np.savez_compressed(
        options.to, train_images=images["train"], train_labels=labels["train"], test_images=images["test"],
        test_labels=labels["test"],
    )  # fmt: skip


def read_photographs() -> Photographs:
    data: Any = importlib.import_module("skimage.data")  # installed by hand
    ours = [load_sample_image("china.jpg"), load_sample_image("flower.jpg")]
    return [*ours, data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), data.stereo_motorcycle()[0]]


def over(
    grey: UInt8[np.ndarray, "images 28 28"], photographs: Photographs, rng: np.random.Generator
) -> UInt8[np.ndarray, "images 32 32 3"]:
    """Each of the grey images in the middle of a crop, taken from a random place of a random photograph."""
    images = np.empty((len(grey), SIDE, SIDE, 3), np.uint8)
    margin = (SIDE - GREY_SIDE) // 2
    for image, garment in zip(images, np.pad(grey, ((0, 0), (margin, margin), (margin, margin))), strict=True):
        photograph = photographs[rng.integers(len(photographs))]
        top, left = (rng.integers(size - SIDE + 1) for size in photograph.shape[:2])
        crop = photograph[top : top + SIDE, left : left + SIDE].astype(np.int16)
        image[:] = np.abs(crop - garment[..., None].astype(np.int16))
    return images


if __name__ == "__main__":
    main()
