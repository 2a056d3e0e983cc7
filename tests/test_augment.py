"""RandAugment over the whole range of its magnitudes, and trainings with every augmentation on."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.auto_augment import RandAugment, rand_augment_transform
from timm.data.transforms_factory import create_transform

from cvt_nas.arch import ArchConfig, BlockConfig, StageConfig
from cvt_nas.config import AugmentConfig, DataConfig, TrainingConfig
from cvt_nas.data import ImageData, load_data, seed_all
from cvt_nas.data.arrays import ArrayData
from cvt_nas.data.augment import mixing_of, with_every_magnitude
from cvt_nas.data.stacks import Arrays
from cvt_nas.engine import fit
from small_device import SmallDevice

CPU = torch.device("cpu")
ENDS = (
    "m0",
    "m10",
    "m30-mmax30",
    "m10-mstd101",
    "m10-mstd3-mmax15",
)  # mstd above 100 draws evenly from the whole range
SETS = ("inc0", "inc1", "tweights-inc1", "t3a-inc1", "t3aw-inc1")


load_pictures = functools.cache(load_sample_images)  # which decodes two JPEG files


def photographs(number: int, sides: tuple[int, int], mode: str = "RGB") -> list[Image.Image]:
    """Crops of scikit-learn's two photographs, one after the other, of random sides in a range."""
    rng, pictures = np.random.default_rng(0), load_pictures().images
    found = []
    for index in range(number):
        picture = pictures[index % 2]
        height, width = rng.integers(*sides, size=2, endpoint=True)
        top, left = (int(rng.integers(0, whole - side)) for whole, side in zip(picture.shape, (height, width)))  # noqa: B905
        found.append(Image.fromarray(picture[top : top + height, left : left + width]).convert(mode))
    return found


def policy_of(config: str, mode: str) -> RandAugment:
    return with_every_magnitude(rand_augment_transform(config, {"img_mean": 128 if mode == "L" else (124, 116, 104)}))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("chosen", SETS)
@pytest.mark.parametrize("end", ENDS)
def test_each_operation_of_randaugment_runs_at_the_ends_of_its_range(end: str, chosen: str, mode: str) -> None:
    policy = policy_of(f"rand-{end}-{chosen}-p1", mode)
    assert len(policy.ops) in (3, 14, 15)
    for operation in policy.ops:
        for picture in [Image.new(mode, (1, 1)), *photographs(2, (2, 45), mode)]:
            for _ in range(3):
                changed = operation(picture)
                assert (changed.mode, changed.size) == (mode, picture.size), operation


@pytest.mark.parametrize(("magnitude", "bits"), [(10, 0), (9, 1), (5, 2), (0, 4)])
def test_posterize_keeps_that_many_bits_and_none_is_black(magnitude: int, bits: int) -> None:
    (operation,) = [op for op in policy_of(f"rand-m{magnitude}-inc1-p1", "RGB").ops if op.name == "PosterizeIncreasing"]
    (picture,) = photographs(1, (31, 31))
    kept = np.asarray(picture) & ~np.uint8(2 ** (8 - bits) - 1)
    assert np.array_equal(np.asarray(operation(picture)), kept)


def test_a_folder_s_and_an_array_s_randaugment_are_mended_by_one_function() -> None:
    transform: Any = create_transform(16, is_training=True, auto_augment="rand-m10-inc1-n20-p1")
    assert with_every_magnitude(transform) is transform
    for picture in photographs(10, (20, 40)):
        assert transform(picture).shape == (3, 16, 16)


def test_timm_s_own_operations_stay_as_they_are() -> None:
    policy_of("rand-m10-inc1", "RGB")
    from timm.data import auto_augment

    untouched = rand_augment_transform("rand-m10-inc1", {"img_mean": 128})
    assert {op.aug_fn for op in untouched.ops} <= set(auto_augment.NAME_TO_OP.values())


def image_folder(root: Path, number: int) -> Path:
    """JPEG files of two classes, one of each photograph."""
    for split, count in (("train", number), ("val", 8)):
        for index, picture in enumerate(photographs(count, (24, 64))):
            place = root / split / ("temple" if index % 2 == 0 else "flower")
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{index}.jpg")
    return root


def folder_data(root: Path, number: int, num_channels: int = 3) -> ImageData:
    config = DataConfig(dataset="imagefolder", search_fraction=0.1, num_workers=0)
    return load_data(
        config, root=image_folder(root, number), image_size=16, num_channels=num_channels, num_classes=2
    )  # fmt: skip


def array_data(number: int, num_channels: int = 3) -> ImageData:
    mode = "L" if num_channels == 1 else "RGB"
    pictures = [np.asarray(picture) for picture in photographs(number, (16, 16), mode)]
    images = np.stack(pictures).reshape(number, 16, 16, num_channels).transpose(0, 3, 1, 2)
    labels = np.arange(number) % 2
    arrays = Arrays(
        images={"train": images, "test": images[:8]}, labels={"train": labels, "test": labels[:8]},
        class_names=("temple", "flower"),
    )  # fmt: skip
    return ArrayData(DataConfig(dataset="cifar10", search_fraction=0.1), arrays, 16)


@pytest.mark.parametrize("kind", ["folder", "array"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_images_pass_twenty_operations_of_the_greatest_magnitude(kind: str, num_channels: int, tmp_path: Path) -> None:
    data = folder_data(tmp_path, 40, num_channels) if kind == "folder" else array_data(40, num_channels)
    augment = AugmentConfig(randaugment="rand-m10-inc1-n20-p1")
    ((images, _),) = data.train_batches(batch_size=36, augment=augment, device=CPU, seed=0, epoch=0)
    assert images.shape == (36, num_channels, 16, 16)
    assert images.isfinite().all()


@pytest.mark.parametrize("number", [66, 65, 8])
@pytest.mark.parametrize("kinds", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_a_batch_that_is_mixed_in_pieces_is_the_same_to_the_bit(
    kinds: dict[str, Any], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mix = mixing_of(AugmentConfig(**kinds), 10)

    def mixed(seed: int, pieces: int) -> list[torch.Tensor]:
        """Of so many values each, and what is drawn after it."""
        monkeypatch.setattr("cvt_nas.data.augment._MIXED_VALUES", pieces)
        seed_all(seed)
        images = torch.randn(number, 3, 8, 8).contiguous(memory_format=torch.channels_last)
        return [*mix(images, torch.randint(0, 10, (number,))), torch.from_numpy(np.random.rand(1))]

    for seed in range(4):
        whole = mixed(seed, 2**30)
        assert [len(each) for each in whole[:2]] == [number // 2 * 2] * 2
        assert not torch.equal(whole[0], whole[0].flip(0))
        for pieces in (1, 10 * 3 * 8 * 8):
            assert all(torch.equal(*pair) for pair in zip(mixed(seed, pieces), whole, strict=True))


@pytest.mark.parametrize("randaugment", [None, "rand-m9-mstd0.5-inc1-p1"])
@pytest.mark.parametrize("kind", ["folder", "array"])
def test_a_batch_takes_little_more_memory_to_make_than_it_has(
    kind: str, randaugment: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder_data(tmp_path, 60) if kind == "folder" else array_data(60)
    for module, name, value in (
        ("augment", "computes_on", lambda device: True),
        ("transforms", "computes_on", lambda device: True),
        ("augment", "_MIXED_VALUES", 4 * 3 * 16 * 16),
        ("randaugment", "_CHUNK_VALUES", 3 * 16 * 16),
    ):
        monkeypatch.setattr(f"cvt_nas.data.{module}.{name}", value)
    augment = AugmentConfig(
        flip=True, crop_padding=2 if kind == "array" else 0, randaugment=randaugment, random_erasing=0.5, mixup=0.8,
        cutmix=1.0,
    )  # fmt: skip
    with SmallDevice() as device:
        batches = data.train_batches(batch_size=50, augment=augment, device=CPU, seed=0, epoch=0)
        images, targets = next(batches)
        held = device.live
    assert device.peak <= 1.75 * images.nbytes, "its bytes, and a few images that are mixed or changed"
    if kind == "array":
        assert held <= images.nbytes + targets.nbytes + 100, "its bytes are gone"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "array"])
def test_a_training_with_every_augmentation_goes_through_5000_images(kind: str, tmp_path: Path) -> None:
    data = folder_data(tmp_path, 556) if kind == "folder" else array_data(556)
    everything: dict[str, Any] = {"flip": True, "random_erasing": 0.25, "mixup": 0.8, "cutmix": 1.0}
    if kind == "folder":
        everything |= {"crop_scale": 0.08, "color_jitter": 0.4}
    else:
        everything |= {"crop_padding": 2}
    stage = StageConfig(patch_kernel=7, patch_stride=4, patch_padding=2, embed_dim=16, blocks=(BlockConfig(),))
    arch = ArchConfig(image_size=16, num_channels=3, num_classes=2, stages=(stage,))
    for policy in ("rand-m9-mstd0.5-inc1", None):  # color_jitter has a part only without it
        training = TrainingConfig(
            epochs=11, batch_size=100, lr=1e-3, augment=AugmentConfig(randaugment=policy, **everything)
        )
        epochs = list(fit(arch, training, data, device=CPU, seed=0))
        assert len(epochs) * data.num_images("train") // 100 * 100 >= 5000
        assert all(np.isfinite(epoch.loss) for epoch in epochs)
