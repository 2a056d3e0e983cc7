"""What is looked at before anything is trained, and the identity of the data that were."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from cvt_nas.cli import main
from cvt_nas.config import DataConfig
from cvt_nas.data import SPLITS, check_data, load_data
from cvt_nas.errors import DataError, RunFolderError
from cvt_nas.results import DataIdentity
from cvt_nas.results.parsing import parse_json
from image_folders import CPU, open_folder, spoil, trained, write_images


def test_skipped_images_are_left_out_of_every_split_and_kept_in_the_identity(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    spoil(tmp_path / "val" / "dog" / "1.png")
    (tmp_path / "train" / "cat" / "3.png").write_bytes(b"")
    settings: Any = {"root": tmp_path, "image_size": 16, "num_channels": 3, "num_classes": 3}
    config = DataConfig(dataset="imagefolder", num_workers=0, search_fraction=0.25, on_error="skip")
    notes: list[str] = []
    data, identity = check_data(config, **settings, on_note=notes.append)
    assert identity.skipped == ["train/cat/3.png", "val/dog/1.png"]
    assert identity.images == {"train": 24, "validation": 6}
    assert [data.num_images(split) for split in SPLITS] == [17, 6, 5]
    assert notes[-1] == (
        "2 of 30 images cannot be read and are skipped: train/cat/3.png: no image: the file is empty; and 1 more, see "
        "cvt-nas check"
    )
    list(data.eval_batches("test", batch_size=2, device=CPU))
    again, same = check_data(config, **settings, known=DataIdentity.of({"data": identity.to_json()}), place="run")
    assert same == identity
    assert [again.num_images(split) for split in SPLITS] == [17, 6, 5]
    for path in (tmp_path / "val" / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"val: no readable image is left of cat"):
        check_data(config, **settings)


def test_a_class_without_images_is_told_from_one_whose_images_cannot_be_read(tmp_path: Path) -> None:
    rows = [f"train/{name}/{number}.png,{name},train" for name in ("cat", "dog", "fish") for number in range(8)]
    rows += [f"val/{name}/{number}.png,{name},val" for name in ("cat", "dog") for number in range(2)]
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", ("cat", "dog"), num=2)
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
    config = DataConfig(dataset="table", num_workers=0)
    settings: Any = {"root": tmp_path / "labels.csv", "image_size": 16, "num_channels": 3, "num_classes": 3}
    for skipped in ((), ("val/cat/0.png", "val/cat/1.png")):
        with pytest.raises(DataError, match=r"its validation images: there is no image of fish$"):
            load_data(config, skipped=skipped, **settings)
    skipped = [f"train/fish/{number}.png" for number in range(8)]
    with pytest.raises(DataError, match=r"its train images: no readable image is left of fish$"):
        load_data(config, skipped=skipped, **settings)


def test_the_same_images_elsewhere_are_the_same_data_and_others_are_told_apart(tmp_path: Path) -> None:
    first = tmp_path / "first"
    write_images(first / "train")
    write_images(first / "val", num=2)
    known = open_folder(first).identity()

    def differs(change: Callable[[Path], object]) -> str | None:
        other = tmp_path / "other"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(first, other)
        change(other)
        return known.difference(open_folder(other).identity())

    assert differs(lambda other: None) is None
    assert differs(lambda other: (other / "train" / ".DS_Store").touch()) is None
    assert (
        differs(lambda other: shutil.copy(other / "val/cat/0.png", other / "train/dog/x.png")) == "1 train image more"
    )
    assert differs(lambda other: (other / "val/cat/0.png").unlink()) == "1 validation image fewer"
    assert differs(
        lambda other: [(other / part / "cat").rename(other / part / "cow") for part in ("train", "val")]
    ) == ("the classes have other names")
    other_files = "as many images, but some files have another name or size"
    assert differs(lambda other: (other / "val/cat/0.png").rename(other / "val/cat/9.png")) == other_files
    assert differs(lambda other: (other / "val/cat/0.png").write_bytes(b"1")) == other_files
    with pytest.raises(RunFolderError, match="run: was begun with other data: the classes have other names"):
        known.check_same(DataIdentity.of({"data": {**known.to_json(), "classes_sha256": "0"}}) or known, "run")


def test_check_lists_every_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    assert main(["check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "3 classes; 19 train, 5 search, 6 test images" in out
    assert out.endswith("usable as it is\n")
    for name in ("0", "5"):
        (tmp_path / "train" / "cat" / f"{name}.png").write_bytes(b"")
    spoil(tmp_path / "val" / "dog" / "1.png")
    (tmp_path / "val" / "cow").mkdir()
    assert main(["check", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    empty = dict.fromkeys(("train/cat/0.png", "train/cat/5.png"), "no image: the file is empty")
    assert found["damaged"] == {**empty, "val/dog/1.png": "damaged: broken data stream when reading image file"}
    assert found["usable"] is False
    assert len(found["problems"]) == 2
    spoil(tmp_path / "train" / "fish" / "1.png")
    assert main(["check", str(tmp_path), "--decode"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("cannot be read: ") for line in lines) == 4
    assert "4 of 30 images cannot be read" in lines
    assert main(["check", str(tmp_path / "nowhere")]) == 2


def test_check_knows_the_named_sets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "digits"]) == 0
    assert "digits: digits, 10 classes; 1,149 train, 288 search, 360 test images" in capsys.readouterr().out


def test_check_says_how_the_training_images_are_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    spoil(tmp_path / "val" / "dog" / "1.png")
    assert main(["check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "cannot be read: val/dog/1.png: damaged: " in out
    assert "note: training images: only headers and ends were read; --decode reads whole files" in out


@pytest.mark.parametrize("held_out", [False, True])
def test_damage_in_the_middle_of_a_test_image_is_found_before_a_training(tmp_path: Path, held_out: bool) -> None:
    write_images(tmp_path / "train")
    if held_out:
        data = open_folder(tmp_path)
        row = int(data._rows["test"][0])
        path = tmp_path / "train" / data.records.files["train"].names[row]
    else:
        write_images(tmp_path / "val", num=2)
        path = tmp_path / "val" / "dog" / "1.png"
    spoil(path)
    with pytest.raises(DataError, match=rf"images cannot be read: {path.relative_to(tmp_path)}: damaged: "):
        trained(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["class", "image", "folder"])
def test_a_name_that_is_not_utf8_is_refused_before_anything_is_trained(tmp_path: Path, where: str) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    name = os.fsdecode(b"caf\xe9")
    if where == "class":
        for part in ("train", "val"):
            (tmp_path / part / "cat").rename(tmp_path / part / name)
    elif where == "image":
        shutil.copy(tmp_path / "val" / "cat" / "0.png", tmp_path / "val" / "cat" / f"{name}.png")
    else:
        shutil.copytree(tmp_path / "val" / "cat", tmp_path / "val" / "cat" / name)
    with pytest.raises(DataError, match=r"caf\\xe9\S*: the name is not UTF-8; rename it"):
        trained(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


_IDENTITY = """
import json, sys
from pathlib import Path
from cvt_nas.config import DataConfig
from cvt_nas.data import check_data
config = DataConfig(dataset="imagefolder", num_workers=0, search_fraction=0.25, on_error="skip")
data, identity = check_data(config, root=Path(sys.argv[1]), image_size=16, num_channels=3, num_classes=3)
print(json.dumps([sys.getfilesystemencoding(), data.class_names, identity.to_json()]))
"""


def test_names_are_recorded_alike_in_every_locale(tmp_path: Path) -> None:
    names = ("chat", "chién", "poisson")
    write_images(tmp_path / "train", names)
    write_images(tmp_path / "val", names, num=2)
    (tmp_path / "train" / "chién" / "ü.png").write_bytes(b"")
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run([sys.executable, "-c", _IDENTITY, tmp_path], check=True, capture_output=True, env=env)
    encoding, class_names, identity = json.loads(run.stdout)
    assert (encoding, class_names) == ("ascii", list(names))
    config = DataConfig(dataset="imagefolder", num_workers=0, search_fraction=0.25, on_error="skip")
    _, here = check_data(config, root=tmp_path, image_size=16, num_channels=3, num_classes=3)
    assert identity == json.loads(json.dumps(here.to_json()))
    assert identity["skipped"] == ["train/chién/ü.png"]


def test_a_problem_of_a_whole_file_has_no_empty_place(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"^x.json: Invalid JSON"):
        parse_json(TypeAdapter(dict[str, int]), b"{", "x.json")
