"""What processes make of the images of a folder, against timm's own pipeline; and how long they live."""

import dataclasses
import functools
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.transforms_factory import create_transform

import feed
from cvt_nas.arch import ArchConfig, BlockConfig, ImageSize, StageConfig
from cvt_nas.config import AugmentConfig, DataConfig, TrainingConfig
from cvt_nas.data import ImageData, Preprocessing, load_data, made_beside_steps, seed_all
from cvt_nas.data.augment import with_every_magnitude
from cvt_nas.data.folders import find_folders
from cvt_nas.data.streams import StreamedData
from cvt_nas.data.transforms import EvalTransform, TrainTransform
from cvt_nas.engine import fit

CPU = torch.device("cpu")
EVERYTHING = AugmentConfig(
    crop_scale=0.3, flip=True, randaugment="rand-m9-mstd0.5-inc1", random_erasing=0.5, mixup=0.2, cutmix=1.0
)
STAGE = StageConfig(patch_kernel=7, patch_stride=4, patch_padding=2, embed_dim=16, blocks=(BlockConfig(),))
TINY = ArchConfig(image_size=16, num_channels=3, num_classes=2, stages=(STAGE,))


@functools.cache
def photographs(mode: str) -> list[Image.Image]:
    """scikit-learn's two, in several shapes."""
    sizes = [(640, 427), (427, 640), (500, 375), (300, 299), (180, 240), (90, 60), (1000, 200), (256, 256)]
    pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    return [pictures[index % 2].resize(size).convert(mode) for index, size in enumerate(sizes)]


def preprocessing_of(mode: str, **changes: Any) -> Preprocessing:
    num = 1 if mode == "L" else 3
    return Preprocessing(**{
        "image_size": 64, "mean": (0.45,) * num, "std": (0.22,) * num, "interpolation": "bicubic", "crop_pct": 0.875,
        **changes,
    })  # fmt: skip


def difference(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Of the bytes of an image, from timm's."""
    assert (found.dtype, found.permute(2, 0, 1).shape) == (torch.uint8, expected.shape)
    return (found.permute(2, 0, 1).int() - expected.int()).abs().float()


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_training_image_is_timm_s_but_for_some_values_that_differ_by_one_or_two(
    interpolation: Any, as_array: bool, mode: str
) -> None:
    pre = preprocessing_of(mode, image_size=64 if as_array else (80, 48), interpolation=interpolation)
    augment = AugmentConfig(crop_scale=0.08, flip=True)
    ours = TrainTransform(pre, augment, CPU)
    without_jitter: dict[str, Any] = {"color_jitter": None}
    timm_s: Any = create_transform(
        pre.image_size, is_training=True, scale=(0.08, 1.0), hflip=0.5, normalize=False,
        interpolation=interpolation, **without_jitter,
    )  # fmt: skip
    found = []
    for seed in range(8):
        for picture in photographs(mode):
            seed_all(seed)
            expected = timm_s(picture)
            seed_all(seed)
            given = np.asarray(picture).reshape(*picture.size[::-1], -1) if as_array else picture
            found.append(difference(ours(given)[0], expected))
    assert max(each.max() for each in found) <= 2
    assert torch.stack(found).mean() < 0.02


@pytest.mark.parametrize("changes", [{"randaugment": "rand-m9-mstd0.5-inc1"}, {"color_jitter": 0.4},
                                     {"randaugment": "rand-m9-t3a-inc1", "color_jitter": 0.3}])  # fmt: skip
def test_colours_are_changed_by_timm_s_draws(changes: dict[str, Any]) -> None:
    pre, augment = preprocessing_of("RGB"), AugmentConfig(crop_scale=0.3, flip=True, **changes)
    ours = TrainTransform(pre, augment, CPU)
    timm_s: Any = with_every_magnitude(
        create_transform(
            pre.image_size, is_training=True, scale=(0.3, 1.0), hflip=0.5, color_jitter=augment.color_jitter,
            auto_augment=augment.randaugment, interpolation="bicubic", mean=pre.mean, std=pre.std, normalize=False,
        )
    )  # fmt: skip
    found = []
    for seed in range(8):
        for picture in photographs("RGB"):
            seed_all(seed)
            expected = timm_s(picture)
            seed_all(seed)
            found.append(difference(ours(picture)[0], expected))
    assert torch.stack(found).mean() < 0.25  # a value that differs by one may be on the other side of a threshold


def test_a_transform_can_be_sent_to_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for on_device in (False, True):
        monkeypatch.setattr("cvt_nas.data.transforms.computes_on", lambda device, there=on_device: there)
        transform = TrainTransform(preprocessing_of("RGB"), EVERYTHING, CPU)
        sent, (picture, *_) = pickle.loads(pickle.dumps(transform)), photographs("RGB")
        for seed in range(5):
            seed_all(seed)
            expected = transform(picture)
            seed_all(seed)
            assert all(torch.equal(*pair) for pair in zip(sent(picture), expected, strict=True))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize("size", [64, (48, 80), (81, 48), (48, 49)])
def test_an_image_is_evaluated_as_timm_has_it(size: ImageSize, interpolation: Any, crop_pct: float, mode: str) -> None:
    pre = preprocessing_of(mode, image_size=size, crop_pct=crop_pct, interpolation=interpolation)
    timm_s: Any = create_transform(
        pre.image_size, interpolation=interpolation, crop_pct=crop_pct, normalize=False,
        crop_mode="squash" if crop_pct == 1 else "center",
    )  # fmt: skip
    found = [difference(EvalTransform(pre)(picture)[0], timm_s(picture)) for picture in photographs(mode)]
    by_torch = interpolation in ("bicubic", "bilinear")
    assert max(each.max() for each in found) <= 2 * by_torch
    assert torch.stack(found).mean() < 0.02


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for part, number in (("train", 24), ("val", 6)):
        for index in range(number):
            place = root / part / ("a", "b")[index % 2]
            place.mkdir(parents=True, exist_ok=True)
            photographs("RGB")[index % 8].resize((40 + index, 40)).save(place / f"{index}.jpg")
    return root


def open_folder(root: Path, **config: Any) -> StreamedData:
    settings = DataConfig(dataset="imagefolder", **{"search_fraction": 0.25, **config})
    return StreamedData(settings, find_folders("imagefolder", root), 16, 3)


def test_an_image_is_the_same_in_whichever_batch_and_on_whichever_rank(folder: Path) -> None:
    augment = AugmentConfig(crop_scale=0.3, flip=True, randaugment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
    data = open_folder(folder, num_workers=0)

    def images(batch_size: int, **ranks: Any) -> set[bytes]:
        batches = data.train_batches(batch_size=batch_size, augment=augment, device=CPU, seed=1, epoch=2, **ranks)
        return {image.numpy().tobytes() for found, _ in batches for image in found}

    whole = images(18)
    assert len(whole) == 18
    assert images(6) == whole
    assert images(3, rank=0, world_size=2) | images(3, rank=1, world_size=2) == whole


def test_some_images_are_erased_by_noise_and_the_others_are_as_they_were(folder: Path) -> None:
    data = open_folder(folder, num_workers=0)

    def images(probability: float) -> torch.Tensor:
        augment = AugmentConfig(random_erasing=probability)
        ((found, _),) = data.train_batches(batch_size=18, augment=augment, device=CPU, seed=1, epoch=2)
        return found

    whole, half, every = images(0), images(0.5), images(1)
    changed = (half != whole).flatten(1).any(1)
    assert 0 < changed.sum() < 18
    assert torch.equal(half[changed], every[changed])
    assert ((every != whole).flatten(1).float().mean(1) < 0.4).all()


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_device_augments_a_folder_s_batches_as_pil_does(
    num_workers: int, num_channels: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(dataset="imagefolder", search_fraction=0.25, num_workers=num_workers)
    data = StreamedData(config, find_folders("imagefolder", folder), 16, num_channels)
    augment = dataclasses.replace(EVERYTHING, randaugment="rand-m9-mstd0.5-inc1-p1")

    def batches() -> list[Any]:
        return list(data.train_batches(batch_size=6, augment=augment, device=CPU, seed=1, epoch=2))

    by_pil = batches()
    monkeypatch.setattr("cvt_nas.data.transforms.computes_on", lambda device: True)
    for (ours, targets), (expected, same) in zip(batches(), by_pil, strict=True):
        away = (ours - expected).abs() * 255 * min(data.preprocessing.std)
        assert away.mean() < 0.05  # of 255
        assert torch.equal(targets, same)


def test_a_device_augments_arrays_as_pil_does(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data(DataConfig(dataset="digits"), root=None, image_size=8, num_channels=1, num_classes=10)
    augment = AugmentConfig(
        crop_padding=1, flip=True, randaugment="rand-m9-mstd0.5-inc1-p1", random_erasing=0.5, mixup=0.2, cutmix=1.0
    )

    def batches() -> list[Any]:
        found = data.train_batches(batch_size=64, augment=augment, device=CPU, seed=1, epoch=2)
        return [(images, targets, torch.rand(1)) for images, targets in found]

    by_pil = batches()
    monkeypatch.setattr("cvt_nas.data.augment.computes_on", lambda device: True)
    for (ours, *others), (expected, *same) in zip(batches(), by_pil, strict=True):
        assert (ours - expected).abs().mean() * 255 * data.preprocessing.std[0] < 0.05
        assert all(torch.equal(*pair) for pair in zip(others, same, strict=True))


def test_on_a_cpu_a_batch_is_made_when_it_is_asked_for_and_what_makes_them_ends_with_them() -> None:
    seen = list[str]()

    def batches() -> Iterator[Any]:
        try:
            for number in range(3):
                seen.append(f"{number} is made")
                yield number, number
        finally:
            seen.append("closed")

    for number, _ in made_beside_steps(batches(), CPU):
        seen.append(f"step {number}")
        if number == 1:
            break
    assert seen == ["0 is made", "step 0", "1 is made", "step 1", "closed"]


def started() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


@pytest.fixture
def no_more_processes() -> Iterator[None]:
    before = started()
    yield
    assert started() <= before


@pytest.mark.usefixtures("no_more_processes")
def test_the_processes_of_a_loader_live_through_epochs_and_evaluations(folder: Path) -> None:
    data, alone = open_folder(folder, num_workers=2), open_folder(folder, num_workers=0)
    options: dict[str, Any] = {"batch_size": 4, "augment": EVERYTHING, "device": CPU, "seed": 3}
    ahead: dict[str, Any] = {"until": 3, "evaluated": ("search", 4)}
    before, alive = started(), set[frozenset[int | None]]()
    for epoch in range(3):
        found = list(data.train_batches(epoch=epoch, **options, **ahead))
        alive.add(frozenset(started() - before))
        for batch, expected in zip(found, alone.train_batches(epoch=epoch, **options), strict=True):
            assert all(torch.equal(*pair) for pair in zip(batch, expected, strict=True))
        evaluated = data.eval_batches("search", batch_size=4, device=CPU)
        for batch, expected in zip(evaluated, alone.eval_batches("search", batch_size=4, device=CPU), strict=True):
            assert all(torch.equal(*pair) for pair in zip(batch, expected, strict=True))
    assert len(alive) == 1
    assert len(alive.pop()) == min(2, os.cpu_count() or 1)
    assert started() == before  # the last evaluation was all that was announced


@pytest.mark.usefixtures("no_more_processes")
@pytest.mark.parametrize("ends", ["closed", "elsewhere", "in mid-epoch"])
def test_processes_end_where_a_training_goes_another_way(ends: str, folder: Path) -> None:
    data, before = open_folder(folder, num_workers=1), started()
    options: dict[str, Any] = {"batch_size": 4, "augment": EVERYTHING, "device": CPU, "seed": 3}
    batches = data.train_batches(epoch=0, until=9, evaluated=("search", 4), **options)
    if ends == "in mid-epoch":
        next(batches)
        del batches
    else:
        assert len(list(batches)) == 4
        first = started() - before
        assert len(first) == 1
        if ends == "elsewhere":  # as after a rollback
            assert len(list(data.train_batches(epoch=9, **options))) == 4
        else:
            data.close()
    assert started() == before


@pytest.mark.usefixtures("no_more_processes")
@pytest.mark.parametrize("ends", ["itself", "early", "with an error"])
def test_a_training_leaves_no_process_behind(ends: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_folder(folder, num_workers=1)
    training = TrainingConfig(epochs=3, batch_size=4, lr=1e-3, augment=EVERYTHING)
    epochs = fit(TINY, training, data, device=CPU, seed=0)
    if ends == "itself":
        assert len(list(epochs)) == 3
        return
    next(epochs)
    assert started()
    if ends == "early":
        epochs.close()
        return

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("cvt_nas.engine.training._step", broken)
    with pytest.raises(RuntimeError, match="broken"):
        next(epochs)


def test_the_next_epoch_s_batches_are_read_while_it_is_evaluated(folder: Path) -> None:
    data = open_folder(folder, num_workers=1)
    options: dict[str, Any] = {"batch_size": 8, "augment": AugmentConfig(), "device": CPU, "seed": 3}
    for _ in data.train_batches(epoch=0, until=2, **options):
        pass
    time.sleep(0.5)
    for path in folder.glob("train/*/*.jpg"):
        path.rename(path.with_suffix(".away"))
    try:
        assert len(list(data.train_batches(epoch=1, until=2, **options))) == 2
    finally:
        for path in folder.glob("train/*/*.away"):
            path.rename(path.with_suffix(".jpg"))


SMALL = """
import sys, torch
from pathlib import Path
from cvt_nas.config import AugmentConfig, DataConfig
from cvt_nas.data import loading
from cvt_nas.data.folders import find_folders
from cvt_nas.data.streams import StreamedData

config = DataConfig(dataset="imagefolder", search_fraction=0.25, num_workers=2)
data = StreamedData(config, find_folders("imagefolder", Path(sys.argv[1])), 512, 3)
assert loading.free_shared_memory() <= 2**20
options = {"batch_size": 4, "augment": AugmentConfig(), "device": torch.device("cpu"), "seed": 3}
print(sum(len(labels) for epoch in range(2) for _, labels in data.train_batches(epoch=epoch, until=2, **options)))
"""


@pytest.mark.parametrize("kind", ["folder", "arrays", "arrays resized"])
def test_bytes_are_prepared_as_an_evaluation_prepares_them(kind: str, folder: Path) -> None:
    side = 12 if kind == "arrays resized" else 8
    config = DataConfig(dataset="digits")
    data: ImageData = load_data(config, root=None, image_size=side, num_channels=1, num_classes=10)
    if kind == "folder":
        data = open_folder(folder, num_workers=0)
    options: dict[str, Any] = {"batch_size": 4, "device": CPU}
    kept = data.eval_batches("search", as_bytes=True, **options)
    for (images, labels), (expected, same) in zip(kept, data.eval_batches("search", **options), strict=True):
        assert images.dtype == torch.uint8
        assert torch.equal(data.prepared(images), expected)
        assert torch.equal(labels, same)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root mounts")
def test_a_small_shared_memory_suffices(folder: Path) -> None:
    """Of 1 MiB, in which no batch of 3 MiB has room."""
    mounted = 'mount -t tmpfs -o size=1m none /dev/shm && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mounted, "sh", sys.executable, "-c", SMALL, str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in found.stderr or "mount:" in found.stderr:
        pytest.skip(f"this machine cannot: {found.stderr}")
    assert (found.returncode, found.stdout.strip()) == (0, "32"), found.stderr


def test_auto_follows_the_cpus_of_a_process_that_trains(folder: Path) -> None:
    data = open_folder(folder)
    machine = joblib.cpu_count()
    for num_cpus in (1, 2, 10**6):
        data.num_cpus = num_cpus
        assert data.num_workers(CPU) == min(num_cpus, machine) - 1
        assert data.num_workers(torch.device("cuda")) == max(min(num_cpus, machine) - 1, 1)
    assert open_folder(folder, num_workers=0).num_workers(torch.device("cuda")) == 0


def test_the_benchmark_compares_each_way_of_reading_with_timm_s(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        feed.main(["--images", "16", "--size", "32", "--batch", "4", "--rounds", "1", "--workers", "1", "--json"])
    finally:
        torch.set_num_threads(threads)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for stage in ("training", "evaluation"):
        found = {line["pipeline"]: line for line in lines if line["stage"] == stage}
        assert {"timm", "ours"} <= found.keys()
        assert found["timm"]["times_timm"] == [1, 1, 1]
        assert all(line["ms"] > 0 and line["images_per_second"][0] > 0 for line in found.values())
