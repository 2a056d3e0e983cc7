import dataclasses
import gzip
import io
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from cvt_nas.config import AugmentConfig, DataConfig
from cvt_nas.data import DEBIAN_FASHION_MNIST, SPLITS, ImageData, Split, load_data
from cvt_nas.errors import DataError

CPU = torch.device("cpu")


def digits_data(image_size: int = 8, **config: object) -> ImageData:
    return load_data(
        DataConfig(dataset="digits", **config),  # type: ignore[arg-type]
        root=None, image_size=image_size, num_channels=1, num_classes=10,
    )  # fmt: skip


def labels_of(data: ImageData, split: Split) -> torch.Tensor:
    return torch.cat([labels for _, labels in data.eval_batches(split, batch_size=100, device=CPU)])


def images_of(data: ImageData, split: Split) -> torch.Tensor:
    return torch.cat([images for images, _ in data.eval_batches(split, batch_size=100, device=CPU)])


def test_digits_have_three_splits_that_share_no_image_and_lose_none() -> None:
    data = digits_data()
    assert [data.num_images(split) for split in SPLITS] == [1149, 288, 360]
    # 16 of scikit-learn's digits are the same picture as another one, so pictures are counted, not compared
    seen = [tuple(image.flatten().tolist()) for split in SPLITS for image in images_of(data, split)]
    digits = digits_data(search_fraction=0.5)
    again = [tuple(image.flatten().tolist()) for split in SPLITS for image in images_of(digits, split)]
    assert len(seen) == len(again) == 1797
    assert len(set(seen)) > 1780


def test_an_odd_image_of_a_set_smaller_than_a_batch_is_left_out_where_images_are_mixed() -> None:
    data = digits_data(train_fraction=0.25)
    assert data.num_images("train") == 287
    augment = AugmentConfig(mixup=0.2)
    ((images, targets),) = data.train_batches(batch_size=300, augment=augment, device=CPU, seed=0, epoch=0)
    assert images.shape[0] == targets.shape[0] == 286


def test_an_in_memory_set_is_cropped_as_its_preprocessing_says() -> None:
    whole, centre = digits_data(image_size=16), digits_data(image_size=8)
    centre.preprocessing = dataclasses.replace(centre.preprocessing, crop_pct=0.5)
    torch.testing.assert_close(images_of(centre, "test"), images_of(whole, "test")[..., 4:12, 4:12])


def test_the_search_split_is_stratified_and_fixed_by_its_seed() -> None:
    data, again, other = digits_data(), digits_data(), digits_data(split_seed=1)
    counts = Counter(labels_of(data, "search").tolist())
    assert len(counts) == 10
    assert max(counts.values()) - min(counts.values()) <= 3
    assert torch.equal(images_of(data, "search"), images_of(again, "search"))
    assert not torch.equal(images_of(data, "search"), images_of(other, "search"))
    assert torch.equal(labels_of(data, "test"), labels_of(other, "test"))


def test_a_fraction_of_the_training_split_is_a_stratified_part_of_it() -> None:
    part = digits_data(train_fraction=0.25)
    assert [part.num_images(split) for split in SPLITS] == [287, 288, 360]
    counts = Counter(labels_of(part, "train").tolist())
    assert max(counts.values()) - min(counts.values()) <= 3


def test_inputs_are_normalised_and_resized() -> None:
    data = digits_data(image_size=20)
    images = next(data.eval_batches("train", batch_size=1149, device=CPU))[0]
    assert images.shape == (1149, 1, 20, 20)
    assert abs(images.mean().item()) < 0.05
    assert images_of(digits_data(), "train").std().item() == pytest.approx(1, abs=0.01)


def test_an_epoch_is_a_function_of_seed_epoch_and_rank() -> None:
    data = digits_data()
    augment = AugmentConfig(crop_padding=1, flip=True, random_erasing=0.5, mixup=0.8, cutmix=1.0)

    def first(seed: int = 0, epoch: int = 0, rank: int = 0, world_size: int = 1) -> torch.Tensor:
        batches = data.train_batches(
            batch_size=32, augment=augment, device=CPU, seed=seed, epoch=epoch, rank=rank, world_size=world_size
        )
        return next(iter(batches))[0]

    assert torch.equal(first(), first())
    assert not torch.equal(first(), first(seed=1))
    assert not torch.equal(first(), first(epoch=1))
    assert not torch.equal(first(world_size=2), first(rank=1, world_size=2))


def test_ranks_share_an_epoch_without_overlap() -> None:
    data = digits_data()

    def images(rank: int, world_size: int) -> set[tuple[float, ...]]:
        batches = data.train_batches(
            batch_size=32, augment=AugmentConfig(), device=CPU, seed=0, epoch=0, rank=rank, world_size=world_size
        )
        return {tuple(image.flatten().tolist()) for batch, _ in batches for image in batch}

    both = [images(0, 2), images(1, 2)]
    assert len(both[0] & both[1]) <= 16  # the duplicates of the set itself
    assert len(both[0] | both[1]) >= 17 * 64 - 20


def test_augmentation_moves_and_mirrors_pixels_and_invents_none() -> None:
    data = digits_data()
    batches = data.train_batches(
        batch_size=512, augment=AugmentConfig(crop_padding=2, flip=True), device=CPU, seed=0, epoch=0
    )
    augmented, _ = next(iter(batches))
    plain = images_of(data, "train")
    assert set(augmented.unique().tolist()) <= set(plain.unique().tolist())
    known = {tuple(image.flatten().tolist()) for image in plain}
    num_moved = sum(tuple(image.flatten().tolist()) not in known for image in augmented)
    assert num_moved > 400


def test_an_image_is_mirrored_or_not_by_itself() -> None:
    data = digits_data()
    batches = data.train_batches(batch_size=512, augment=AugmentConfig(flip=True), device=CPU, seed=0, epoch=0)
    plain = images_of(data, "train")
    known, mirrored = ({tuple(image.flatten().tolist()) for image in images} for images in (plain, plain.flip(-1)))
    augmented = [tuple(image.flatten().tolist()) for image in next(iter(batches))[0]]
    assert all(image in known | mirrored for image in augmented)
    assert 200 < sum(image in known for image in augmented) < 312


def test_mixed_targets_are_probabilities() -> None:
    batches = digits_data().train_batches(
        batch_size=32, augment=AugmentConfig(mixup=0.8, cutmix=1.0), device=CPU, seed=0, epoch=0
    )
    targets = [target for _, target in batches]
    assert targets[0].shape == (32, 10)
    torch.testing.assert_close(targets[0].sum(dim=1), torch.ones(32))
    assert any(((target > 0).sum(dim=1) == 2).any() for target in targets)


def test_randaugment_runs_on_grey_images() -> None:
    augment = AugmentConfig(randaugment="rand-m9-mstd0.5-inc1")
    images, _ = next(iter(digits_data().train_batches(batch_size=64, augment=augment, device=CPU, seed=0, epoch=0)))
    assert images.shape == (64, 1, 8, 8)


def test_a_second_reader_of_a_small_set_maps_the_first_one_s_file() -> None:
    first, second = digits_data(), digits_data()
    maps = [data._images["train"] for data in (first, second)]  # type: ignore[attr-defined]
    assert all(isinstance(images, np.memmap) and images.dtype == np.uint8 for images in maps)
    assert maps[0].filename == maps[1].filename


def test_a_set_that_does_not_fit_the_space_is_refused() -> None:
    with pytest.raises(DataError, match="digits has 1 channels, space.num_channels is 3"):
        load_data(DataConfig(dataset="digits"), root=None, image_size=8, num_channels=3, num_classes=10)
    with pytest.raises(DataError, match="digits has 10 classes, space.num_classes is 11"):
        load_data(DataConfig(dataset="digits"), root=None, image_size=8, num_channels=1, num_classes=11)


# --- Fashion-MNIST: the real one where Debian's package is installed, its layout on made-up pixels elsewhere


def write_fashion_mnist(folder: Path, compress: bool) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, num in (("train", 60_000), ("t10k", 10_000)):
        images = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (num, 28, 28))
        images += rng.integers(0, 255, num * 784, dtype=np.uint8).tobytes()
        labels = bytes([0, 0, 8, 1]) + num.to_bytes(4, "big") + (np.arange(num) % 10).astype(np.uint8).tobytes()
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{name}-{kind}-ubyte"
            if compress:
                Path(f"{path}.gz").write_bytes(gzip.compress(content, compresslevel=1))
            else:
                path.write_bytes(content)


def fashion_mnist(root: Path | None) -> ImageData:
    return load_data(DataConfig(dataset="fashion-mnist"), root=root, image_size=28, num_channels=1, num_classes=10)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzipped"])
def test_fashion_mnist_is_read_as_torchvision_lays_it(tmp_path: Path, compress: bool) -> None:
    write_fashion_mnist(tmp_path / "FashionMNIST" / "raw", compress)
    data = fashion_mnist(tmp_path)
    assert [data.num_images(split) for split in SPLITS] == [48_000, 12_000, 10_000]
    assert labels_of(data, "test")[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_a_half_downloaded_fashion_mnist_is_one_line(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    write_fashion_mnist(raw, compress=False)
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(DataError) as error:
        fashion_mnist(tmp_path)
    assert str(error.value) == (
        f"fashion-mnist: {images} is incomplete: 1,000 bytes, not (60000, 28, 28) values of one byte"
    )
    (raw / "t10k-labels-idx1-ubyte").unlink()
    write_fashion_mnist(tmp_path / "whole", compress=False)
    images.write_bytes((tmp_path / "whole" / images.name).read_bytes())
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte is missing, with and without .gz"):
        fashion_mnist(tmp_path)


def test_a_missing_fashion_mnist_says_where_it_was_sought(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fashion-mnist: no train-images-idx3-ubyte in .*FashionMNIST/raw or "):
        fashion_mnist(tmp_path)


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debian_s_fashion_mnist_is_the_published_one() -> None:
    data = fashion_mnist(None)
    assert [data.num_images(split) for split in SPLITS] == [48_000, 12_000, 10_000]
    assert data.preprocessing.mean == pytest.approx((0.286,), abs=0.002)
    assert labels_of(data, "test")[:5].tolist() == [9, 2, 1, 1, 6]


# --- CIFAR, in its authors' layout with made-up pixels


def write_cifar10(folder: Path, num_in_last: int = 10_000) -> None:
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]:
        num = num_in_last if name == "data_batch_5" else 10_000
        batch = {b"data": np.zeros((num, 3072), np.uint8), b"labels": [row % 10 for row in range(num)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = [name.encode() for name in "airplane automobile bird cat deer dog frog horse ship truck".split()]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}))


def cifar10(root: Path | None) -> ImageData:
    return load_data(DataConfig(dataset="cifar10"), root=root, image_size=32, num_channels=3, num_classes=10)


def test_cifar_10_is_read_in_its_authors_layout(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py")
    data = cifar10(tmp_path)
    assert [data.num_images(split) for split in SPLITS] == [40_000, 10_000, 10_000]
    assert data.class_names[:2] == ("airplane", "automobile")


def test_a_cifar_10_that_is_missing_or_incomplete_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give the folder that holds cifar-10-batches-py by --data DIR"):
        cifar10(None)
    with pytest.raises(DataError, match="no folder .*cifar-10-batches-py; unpack the archive of its Python version"):
        cifar10(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar10(folder, num_in_last=7)
    with pytest.raises(DataError, match="is incomplete: 40,007 images in data_batch_1, data_batch_2"):
        cifar10(tmp_path)
    (folder / "data_batch_5").write_bytes((folder / "data_batch_4").read_bytes()[:500])
    with pytest.raises(DataError, match="data_batch_5 is missing or incomplete: pickle data was truncated"):
        cifar10(tmp_path)


def test_a_pickle_that_asks_for_code_is_refused_and_not_run(tmp_path: Path) -> None:
    folder, proof = tmp_path / "cifar-10-batches-py", tmp_path / "was-run"
    write_cifar10(folder)

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (proof,))

    (folder / "data_batch_2").write_bytes(pickle.dumps({b"data": Hostile(), b"labels": []}))
    with pytest.raises(DataError, match=r"data_batch_2: asks for .*, which is no array and no plain value"):
        cifar10(tmp_path)
    assert not proof.exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_cifar_is_read_whatever_protocol_pickled_it(protocol: int) -> None:
    from cvt_nas.data.named_sets import _ArraysOnly

    batch = {b"data": np.arange(12, dtype=np.uint8).reshape(2, 6), b"labels": [3, 1], b"filenames": [b"a", "b"]}
    read = _ArraysOnly(io.BytesIO(pickle.dumps(batch, protocol=protocol)), encoding="bytes").load()
    assert read[b"data"].tolist() == batch[b"data"].tolist()
    assert read[b"labels"] == [3, 1]


# --- folders of images


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, num in (("train", 20), ("val", 5)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(num):
                pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("num_channels", [1, 3])
def test_a_folder_of_images_streams_in_three_splits(image_folder: Path, num_channels: int) -> None:
    config = DataConfig(dataset="imagefolder", search_fraction=0.25, num_workers=0)
    data = load_data(config, root=image_folder, image_size=32, num_channels=num_channels, num_classes=2)
    assert [data.num_images(split) for split in SPLITS] == [30, 10, 10]
    assert data.class_names == ("cat", "dog")
    assert Counter(labels_of(data, "search").tolist()) == {0: 5, 1: 5}
    augment = AugmentConfig(
        crop_scale=0.3, flip=True, randaugment="rand-m9-mstd0.5-inc1", random_erasing=0.5, mixup=0.2,
        color_jitter=0.4 if num_channels == 3 else 0.0,
    )  # fmt: skip
    batches = list(data.train_batches(batch_size=8, augment=augment, device=CPU, seed=0, epoch=0))
    assert len(batches) == 3
    assert batches[0][0].shape == (8, num_channels, 32, 32)
    if num_channels > 1:  # one is both
        assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _ in batches)


def test_a_folder_with_workers_gives_the_same_images(image_folder: Path) -> None:
    def images(num_workers: int) -> torch.Tensor:
        config = DataConfig(dataset="imagefolder", search_fraction=0.25, num_workers=num_workers)
        return images_of(load_data(config, root=image_folder, image_size=32, num_channels=3, num_classes=2), "search")

    assert torch.equal(images(0), images(64))  # as far as there are CPUs, or torch warns


def test_a_folder_without_val_or_with_other_classes_is_one_line(image_folder: Path) -> None:
    config = DataConfig(dataset="imagenet")
    (image_folder / "val" / "dog").rename(image_folder / "val" / "wolf")
    with pytest.raises(DataError, match=r"in only one of train/ and val/: dog, wolf"):
        load_data(config, root=image_folder, image_size=32, num_channels=3, num_classes=2)
    (image_folder / "val").rename(image_folder / "elsewhere")
    data = load_data(config, root=image_folder, image_size=32, num_channels=3, num_classes=2)
    assert [data.num_images(split) for split in SPLITS] == [25, 7, 8]  # test images are held out
    (image_folder / "train").rename(image_folder / "val")
    with pytest.raises(DataError, match=r"must hold train/ and val/, one folder a class; it has no train/"):
        load_data(config, root=image_folder, image_size=32, num_channels=3, num_classes=2)


def test_an_epoch_can_begin_at_any_batch(image_folder: Path) -> None:
    config = DataConfig(dataset="imagefolder", search_fraction=0.25, num_workers=2)
    folder = load_data(config, root=image_folder, image_size=32, num_channels=3, num_classes=2)
    in_memory = AugmentConfig(crop_padding=1, flip=True, random_erasing=0.5, mixup=0.8)
    streamed = AugmentConfig(crop_scale=0.3, flip=True, randaugment="rand-m9-mstd0.5-inc1", random_erasing=0.5)

    for data, augment, batch_size in ((digits_data(), in_memory, 256), (folder, streamed, 8)):

        def batches(
            first: int, data: ImageData = data, augment: AugmentConfig = augment, size: int = batch_size
        ) -> list:
            found = data.train_batches(batch_size=size, augment=augment, device=CPU, seed=0, epoch=1, first=first)
            return [(images, targets, torch.rand(1)) for images, targets in found]  # what is drawn after it, too

        whole = batches(0)
        assert len(whole) >= 3
        for first in range(len(whole) + 1):
            rest = batches(first)
            assert len(rest) == len(whole) - first
            assert all(
                torch.equal(a, b) for x, y in zip(whole[first:], rest, strict=True) for a, b in zip(x, y, strict=True)
            )
