"""Trainings and runs on folders of images."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvt_nas.arch import load_arch
from cvt_nas.cli import main
from cvt_nas.config import DataConfig, parse_experiment
from cvt_nas.data import check_data
from cvt_nas.data.splitting import hold_out, split_off_search
from cvt_nas.engine import TrainingSetup
from cvt_nas.errors import DataError, RunFolderError
from cvt_nas.report import Comparison
from cvt_nas.report.run_page import run_page
from cvt_nas.run import RunFolder
from cvt_nas.train import fitted
from image_folders import CPU, NAMES, SPACE, open_folder, spoil, trained, write_images


def test_at_least_one_image_of_each_class_is_held_out_and_one_stays() -> None:
    labels = np.repeat(np.arange(102), 10)
    train, search = split_off_search(labels, DataConfig(dataset="imagefolder", search_fraction=0.01))
    assert np.bincount(labels[search]).tolist() == [1] * 102
    assert len(train) == 918
    uneven = np.repeat([0, 1, 2], [500, 2, 40])
    kept, held = hold_out(uneven, 0.05, 0, setting="search_fraction")
    assert np.bincount(uneven[held]).tolist() == [25, 1, 2]
    assert sorted([*kept, *held]) == list(range(542))
    config = DataConfig(dataset="imagefolder", search_fraction=0.5, train_fraction=0.01)
    train, _ = split_off_search(np.repeat(np.arange(5), 4), config)
    assert len(train) == 5


def test_a_class_of_one_image_is_refused_by_its_name(tmp_path: Path) -> None:
    write_images(tmp_path / "train", num=4)
    write_images(tmp_path / "val", num=1)
    for number in (1, 2, 3):
        (tmp_path / "train" / "dog" / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"data.search_fraction: .* a single image is left of dog; add images"):
        open_folder(tmp_path)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_fails_in_training_is_named_in_one_line(tmp_path: Path, num_workers: int) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    spoil(tmp_path / "val" / "dog" / "1.png")
    data = open_folder(tmp_path, num_workers=num_workers)
    with pytest.raises(DataError) as error:
        list(data.eval_batches("test", batch_size=2, device=CPU))
    assert str(error.value).startswith(f"{tmp_path}/val/dog/1.png: damaged: ")
    assert "\n" not in str(error.value)


def test_classes_told_apart_by_sixteen_bits_alone_are_learnt(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, num in (("train", 40), ("val", 8)):
        for index, name in enumerate(NAMES):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(num):
                pixels = rng.integers(0, 30, (16, 16)) + [20, 110, 200][index]
                Image.fromarray((pixels * 257).astype(np.uint16)).save(tmp_path / part / name / f"{number}.png")
    accuracy, notes = trained(tmp_path, tmp_path / "run")
    assert accuracy == 1.0
    assert notes == ["144 images with more than 8 bits, read as 8"]


def test_a_damaged_image_ends_a_training_before_it_begins_or_is_skipped_counted_and_shown(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    (tmp_path / "train" / "cat" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 30 images cannot be read: train/cat/3.png: no image: the file is empty"):
        trained(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    _, notes = trained(tmp_path, tmp_path / "run", on_error="skip")
    assert notes[-1].startswith("1 of 30 images cannot be read and is skipped: train/cat/3.png: ")
    run = RunFolder.open(tmp_path / "run")
    assert run.manifest["data"]["skipped"] == ["train/cat/3.png"]
    assert run.manifest["data"]["splits"] == {"train": 17, "search": 6, "test": 6}
    page = run_page(run)
    assert "images that cannot be read, and are skipped: 1" in page
    assert "3 classes; 17 train, 6 search, 6 test images; search held out of the training images" in page


def test_a_held_out_test_split_is_said_and_kept_in_the_manifest(tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "train")
    _, notes = trained(tmp_path / "data", tmp_path / "run")
    assert "no test images in val/ or test/: 5 of the images are held out for it" in notes[0]
    told = RunFolder.open(tmp_path / "run").manifest["data"]
    assert told["held_out"] == ["search", "test"]
    assert told["splits"] == {"train": 14, "search": 5, "test": 5}
    assert told["notes"] == notes


def test_a_run_goes_on_with_its_own_data_alone(tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "run"
    write_images(root / "train")
    write_images(root / "val", num=2)
    trained(root, out)
    shutil.copytree(root, tmp_path / "moved")
    trained(tmp_path / "moved", out, resume=True)
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / "new.png")
    with pytest.raises(RunFolderError, match=r"run: was begun with other data: 1 train image more"):
        trained(root, out, resume=True)
    experiment, run = parse_experiment(SPACE, "tiny.yaml"), RunFolder.open(out)
    setup = TrainingSetup.of(experiment, run=RunFolder(out), data=root)
    with pytest.raises(RunFolderError, match=r"1 train image more"):  # as for a query
        setup.identified(run)
    assert (
        TrainingSetup.of(experiment, run=RunFolder(out), data=tmp_path / "moved").identified(run).identity is not None
    )

    trained(root, tmp_path / "other")
    with pytest.raises(RunFolderError, match=r"are of other data, and do not compare: 1 train image more"):
        Comparison.of([run, RunFolder.open(tmp_path / "other")])

    manifest = {name: value for name, value in run.manifest.items() if name != "data"}
    (out / "manifest.json").write_text(json.dumps(manifest))  # as an earlier version wrote it
    _, notes = trained(root, out, resume=True)
    notes = [note for note in notes if not note.startswith("checking images: ")]  # which a slow machine says
    assert notes == [f"{out}: was begun by an earlier version, so whether its data are the same cannot be told"]
    assert len(Comparison.of([run, RunFolder.open(tmp_path / "other")]).groups) == 1


def test_data_mended_before_anything_was_trained_take_the_place_of_the_damaged_ones(tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "run"
    write_images(root / "train")
    write_images(root / "val", num=2)
    path = root / "train" / "cat" / "3.png"
    spoil(path)
    with pytest.raises(DataError, match=r"train/cat/3.png: damaged: "):  # in the middle of an epoch
        trained(root, out)
    shutil.copy(root / "train" / "cat" / "4.png", path)
    _, notes = trained(root, out, resume=True)
    assert notes == [
        f"{out}: was begun with other data: as many images, but some files have another name or size; nothing was "
        f"trained on those yet"
    ]
    trained(root, out, resume=True)


def test_a_training_that_somebody_works_on_keeps_its_manifest(tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "run"
    write_images(root / "train")
    write_images(root / "val", num=2)
    path = root / "train" / "cat" / "3.png"
    spoil(path)
    with pytest.raises(DataError, match="damaged"):
        trained(root, out)
    shutil.copy(root / "train" / "cat" / "4.png", path)
    before = (out / "manifest.json").read_text()
    with RunFolder.open(out).locked(), pytest.raises(RunFolderError, match="is at work on it"):
        trained(root, out, resume=True)
    assert (out / "manifest.json").read_text() == before


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_image_damaged_since_a_run_was_trained_is_to_be_mended(tmp_path: Path, on_error: Any) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    settings: Any = {"root": tmp_path, "image_size": 16, "num_channels": 3, "num_classes": 3}
    config = DataConfig(dataset="imagefolder", num_workers=0, search_fraction=0.25, on_error=on_error)
    _, known = check_data(config, **settings)
    path = tmp_path / "train" / "cat" / "3.png"
    path.write_bytes(bytes(path.stat().st_size))  # of the same size
    with pytest.raises(DataError, match=r"train/cat/3.png: .*; repair them, or begin another run$"):
        check_data(config, **settings, known=known, place="run")


@pytest.mark.usefixtures("two_cpus")
def test_a_search_keeps_the_identity_of_its_data_and_checks_it(tmp_path: Path) -> None:
    from cvt_nas import search

    root, out = tmp_path / "data", tmp_path / "run"
    write_images(root / "train")
    write_images(root / "val", num=2)
    experiment = parse_experiment(SPACE, "tiny.yaml")
    run = search(experiment, out=out, data=root, cpus=1, gpus=0, trials=1)
    assert run.manifest["data"]["images"] == {"train": 24, "validation": 6}
    (root / "val" / "cat" / "0.png").rename(root / "val" / "cat" / "x.png")
    with pytest.raises(RunFolderError, match=r"as many images, but some files have another name or size"):
        search(experiment, out=out, data=root, cpus=1, gpus=0, resume=True)


def test_a_named_network_takes_the_channels_and_classes_of_the_file() -> None:
    experiment = parse_experiment(SPACE.replace("num_classes: 3", "num_classes: 102"), "tiny.yaml")
    arch, note = fitted(load_arch("cvt-13"), experiment)
    assert (arch.num_classes, arch.num_channels) == (102, 3)
    assert note == "the network takes 3 channels and 102 classes of tiny"
    assert fitted(arch, experiment) == (arch, None)


def test_a_run_of_a_folder_that_is_not_utf8_can_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / os.fsdecode(b"b\xe9")
    write_images(root / "train")
    monkeypatch.setattr("sys.argv", ["cvt-nas", "train", "--data", str(root)])
    trained(root, tmp_path / "run")
    manifest = RunFolder.open(tmp_path / "run").manifest
    assert r"b\xe9" in manifest["command"]
    assert r"b\udce9: no test images" in manifest["data"]["notes"][0]
    trained(root, tmp_path / "run", resume=True)


def test_eval_of_a_run_skips_what_the_run_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "data", tmp_path / "run"
    write_images(root / "train")
    write_images(root / "val", num=2)
    spoil(root / "val" / "dog" / "1.png")
    trained(root, out, on_error="skip")
    (arch_id,) = RunFolder.open(out).test_accuracies()
    assert main(["eval", f"{out}:{arch_id}", "--data", str(root), "--device", "cpu"]) == 0
    told = capsys.readouterr()
    assert "of 5 images" in told.out
    assert "1 of 6 images cannot be read and is skipped: val/dog/1.png" in told.err
    assert main(["eval", str(out / "models" / arch_id), "--data", str(root), "--device", "cpu"]) == 2


def test_training_an_architecture_of_a_run_on_other_data_is_said_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "data", tmp_path / "run"
    write_images(root / "train")
    write_images(root / "val", num=2)
    trained(root, out)
    (arch_id,) = RunFolder.open(out).test_accuracies()
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / "new.png")
    again = ["train", f"{out}:{arch_id}", "--data", str(root), "--gpus", "0", "--epochs", "2"]
    assert main([*again, "--out", str(tmp_path / "a")]) == 0
    assert "other data than those that the architecture was found on: 1 train image more" in capsys.readouterr().err
    for part in ("train", "val"):
        (root / part / "cat").rename(root / part / "cow")
    assert main([*again, "--out", str(tmp_path / "b")]) == 2
    assert "the classes have other names: the architecture was found on other classes" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()

    run = RunFolder.open(out)
    manifest = {name: value for name, value in run.manifest.items() if name != "data"}
    (out / "manifest.json").write_text(json.dumps(manifest))  # as an earlier version wrote it
    notes: list[str] = []
    setup = TrainingSetup.of(parse_experiment(SPACE, "tiny.yaml"), run=RunFolder(out), data=root)
    setup.identified(run, on_note=notes.append)  # as for a query
    assert notes == [f"{out}: was begun by an earlier version, so whether its data are the same cannot be told"]
