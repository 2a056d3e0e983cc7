"""Class folders of images with any number of channels."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from cvt_nas.cli import main
from cvt_nas.config import AugmentConfig, parse_experiment
from cvt_nas.data import find_data, shape_of
from cvt_nas.data.listing import save_records
from cvt_nas.data.report import check_set
from cvt_nas.errors import DataError, SpaceFileError
from cvt_nas.run import RunFolder
from cvt_nas.train import train
from image_folders import CPU, NAMES, SPACE, open_folder, open_kind, sizes, write_images


def pixels_of(index: int, number: int, channels: int) -> np.ndarray:
    """Each class is bright in channels of its own; `(20, 24, channels)`."""
    noise = np.random.default_rng((index, number)).integers(0, 60, (20, 24, channels))
    return (noise + 150 * (np.arange(channels) % 3 == index)).astype(np.uint8)


def write_channels(root: Path, channels: int, *, suffix: str = ".npy", white: int = 255, num: int = 8) -> Path:
    for index, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for number in range(num):
            values = pixels_of(index, number, channels).astype(np.uint16) * (white // 255)
            values = values if white > 255 else values.astype(np.uint8)
            path = root / name / f"{number}{suffix}"
            if suffix == ".npy":
                np.save(path, values)
            elif number % 2:  # planes one after the other, and compressed
                tifffile.imwrite(
                    path, np.moveaxis(values, -1, 0), photometric="minisblack", planarconfig="separate",
                    compression="lzw",
                )  # fmt: skip
            else:
                tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
    return root


@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize(("suffix", "white"), [(".npy", 255), (".npy", 65535), (".tif", 255), (".tiff", 65535)])
def test_class_folders_hold_arrays_and_tiffs_with_any_number_of_channels(
    suffix: str, white: int, channels: int, tmp_path: Path
) -> None:
    write_channels(tmp_path, channels, suffix=suffix, white=white)
    assert find_data(tmp_path) == ("imagefolder", tmp_path)
    assert shape_of("imagefolder", tmp_path) == (channels, 3)
    data: Any = open_kind(tmp_path, num_channels=channels)
    assert sizes(data) == [14, 5, 5]
    assert len(data.preprocessing.mean) == channels
    every = np.stack([pixels_of(index, number, channels) for index in range(3) for number in range(8)])
    chosen = every[data._rows["train"]].reshape(-1, channels) / 255
    np.testing.assert_allclose(data.preprocessing.mean, chosen.mean(0), atol=1e-3)
    np.testing.assert_allclose(data.preprocessing.std, chosen.std(0), atol=1e-3)
    augment = AugmentConfig(crop_scale=0.3, flip=True, random_erasing=0.5, mixup=0.2)
    inputs, targets = next(data.train_batches(batch_size=4, augment=augment, device=CPU, seed=0, epoch=0))
    assert (inputs.shape, targets.shape) == ((4, channels, 16, 16), (4, 3))
    shown, labels = next(data.eval_batches("test", batch_size=5, device=CPU, as_bytes=True))
    assert torch.equal(shown.float().mean((2, 3))[:, :3].argmax(1) if channels > 2 else labels, labels)


def test_one_and_three_channels_of_arrays_are_read_as_grey_and_colour(tmp_path: Path) -> None:
    for channels in (1, 3):
        data = open_folder(write_channels(tmp_path / str(channels), channels), num_channels=channels)
        shown, _ = next(data.eval_batches("train", batch_size=4, device=CPU, as_bytes=True))
        assert shown.shape == (4, channels, 16, 16)


def test_arrays_beside_images_are_no_images(tmp_path: Path) -> None:
    write_images(tmp_path)
    np.save(tmp_path / "cat" / "0-mask.npy", np.zeros((20, 24)))
    data = open_folder(tmp_path)
    assert sum(sizes(data)) == 24
    assert data.notes[0] == f"{tmp_path}: ignored files that are no images: 1 .npy"


def test_images_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write_channels(tmp_path, 5)
    np.save(tmp_path / "cat" / "7.npy", np.zeros((20, 24, 4), np.uint8))
    np.save(tmp_path / "cat" / "1.npy", np.full((20, 24, 5), 2.5))
    np.save(tmp_path / "dog" / "2.npy", np.zeros((20, 24, 5), np.int32))
    np.save(tmp_path / "dog" / "3.npy", np.zeros(20))
    (tmp_path / "fish" / "4.npy").write_bytes((tmp_path / "fish" / "3.npy").read_bytes()[:1000])
    np.save(tmp_path / "fish" / "5.npy", np.array([{}]))
    report = check_set(tmp_path, decode=True)
    assert report.images is not None
    damaged = dict(report.images.damaged)
    assert {name: why.partition(":")[0] for name, why in damaged.items() if name.startswith("fish")} == {
        "fish/4.npy": "damaged", "fish/5.npy": "damaged",
    }  # fmt: skip
    assert {name: why for name, why in damaged.items() if not name.startswith("fish")} == {
        "cat/7.npy": "has 4 channels, space.num_channels is 5",
        "cat/1.npy": "has values from 2.5 to 2.5, must be from 0 to 1",
        "dog/2.npy": "has values of int32, must be uint8, uint16, or floats between 0 and 1",
        "dog/3.npy": "has the shape (20,), must be (height, width), or with channels at the end",
    }
    with pytest.raises(DataError, match=r"cat.\d.npy: has 5 channels, space.num_channels is 4"):
        open_folder(write_channels(tmp_path / "more", 5), num_channels=4)


def test_values_of_sixteen_bits_that_are_nearly_black_are_told(tmp_path: Path) -> None:
    write_channels(tmp_path, 4, white=65535)
    for path in tmp_path.rglob("*.npy"):
        np.save(path, np.load(path) // 16)
    report = check_set(tmp_path, decode=True)
    assert "with more than 8 bits, read as 8: no pixel that was looked at is above 13 of 255" in "".join(report.notes)


def test_what_needs_colours_is_refused_by_its_line(tmp_path: Path) -> None:
    for setting in ("randaugment: rand-m9", "color_jitter: 0.4"):
        name = setting.partition(":")[0]
        text = SPACE.replace("image_size: 16", "image_size: 16\n  num_channels: 5").replace(
            "lr: 1.0e-2", f"lr: 1.0e-2, augment: {{{setting}}}"
        )
        with pytest.raises(
            SpaceFileError, match=rf"training.augment.{name}: needs grey or colour images, and space.num_channels is 5"
        ):
            parse_experiment(text, "tiny.yaml")
    write_channels(tmp_path, 5)
    assert main(["pack", str(tmp_path), "--to", str(tmp_path.parent / "packed"), "--short-side", "16"]) == 2


def test_a_training_on_five_channels_learns_and_a_worker_measures_none_again(tmp_path: Path) -> None:
    root = write_channels(tmp_path / "set", 5, num=20)
    text = SPACE.replace("image_size: 16", "image_size: 16\n  num_channels: 5")
    experiment = parse_experiment(text, "tiny.yaml")
    arch = experiment.space.largest
    train(arch, experiment, out=tmp_path / "run", data=root, device="cpu")
    assert RunFolder.open(tmp_path / "run").test_accuracies()[arch.id] > 0.9
    data: Any = open_kind(root, num_channels=5)
    listing = tmp_path / "images.npz"
    content = io.BytesIO()
    save_records(data.records, content)
    listing.write_bytes(content.getvalue())
    from cvt_nas.data.folders import find_folders

    assert find_folders("imagefolder", root, listing=listing).normalisation == (
        data.preprocessing.mean,
        data.preprocessing.std,
    )
