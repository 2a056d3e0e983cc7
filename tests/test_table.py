"""Images that a table names: CSV, TSV and Parquet."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cvt_nas.config import AugmentConfig, parse_experiment
from cvt_nas.data import SPLITS, StreamedData, find_data, shape_of
from cvt_nas.data.report import check_set
from cvt_nas.engine import TrainingSetup
from cvt_nas.errors import DataError
from cvt_nas.run import RunFolder
from image_folders import CPU, NAMES, SPACE, open_kind, sizes, spoil, trained, write_images
from test_listing import as_in_another_process


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, str]]:
    """24 images of three classes, in no order, of which six are marked as validation images."""
    write_images(tmp_path / "pictures")
    return [
        {"file": f"pictures/{name}/{number}.png", "species": name, "split": "val" if number > 5 else "Train"}
        for number in (3, 7, 0, 1, 6, 2, 4, 5)
        for name in ("dog", "fish", "cat")
    ]


def write(rows: Any, path: Path, **settings: Any) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, **settings)
    return path


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("labels.csv", {}),
        ("labels.csv", {"sep": ";", "encoding": "utf-8-sig"}),
        ("labels.tsv", {"sep": "\t"}),
        ("labels.csv.gz", {}),
        ("labels.parquet", {}),
    ],
)
def test_a_table_names_images_labels_and_splits(
    name: str, settings: dict[str, Any], rows: list[dict[str, str]], tmp_path: Path
) -> None:
    table = write(rows, tmp_path / name, **settings)
    assert find_data(table) == ("table", table)
    assert shape_of("table", table) == (None, 3)
    data = open_kind(table)
    assert data.class_names == NAMES
    assert sizes(data) == [13, 5, 6]
    assert isinstance(data, StreamedData)
    assert data.notes == (
        f"{table}: images are in column 'file', labels are in column 'species', splits are in column 'split'",
    )
    for split in SPLITS:
        ((images, labels),) = data.eval_batches(split, batch_size=24, device=CPU)
        assert torch.equal(labels[images.mean(dim=(1, 2, 3)).argsort()], labels.sort().values)
    test = torch.cat([labels for _, labels in data.eval_batches("test", batch_size=4, device=CPU)])
    assert test.tolist() == [1, 2, 0, 1, 2, 0]  # in the table's order
    assert open_kind(table, test_only=True).num_images("test") == 6


def test_columns_are_those_that_the_space_file_names(rows: list[dict[str, str]], tmp_path: Path) -> None:
    for number, row in enumerate(rows):
        row |= {"class": "one" if number % 2 else "two", "fold": row.pop("split")}
    table = write(rows, tmp_path / "labels.csv")
    assert sizes(open_kind(table, num_classes=2))[2] == 5  # held out: nothing marks a split
    data: Any = open_kind(table, label_column="species", image_column="file", split_column="fold")
    assert (data.class_names, sizes(data), data.notes) == (NAMES, [13, 5, 6], ())
    for setting in ("label_column", "image_column", "split_column"):
        wrong: Any = {setting: "kind"}
        with pytest.raises(DataError, match=rf"data.{setting}: there is no column kind, but file, species, class, fo"):
            open_kind(table, **wrong)


def test_what_could_be_meant_twice_is_refused(rows: list[dict[str, str]], tmp_path: Path) -> None:
    def refused(columns: dict[str, Any]) -> str:
        table = write([{**row, **columns} for row in rows], tmp_path / "labels.csv")
        with pytest.raises(DataError) as error:
            open_kind(table)
        return str(error.value).removeprefix(f"{table}: ")

    assert refused({"taken": "2024"}).startswith("data.label_column: species, taken could each be meant; set it")
    assert refused({"class": "a", "label": "b"}).startswith("data.label_column: class, label could each be meant")
    assert refused({"a.png": "1.png", "b.png": "2.png"}).startswith("data.label_column: species, a.png, b.png could")
    assert refused({"split": "fold 1"}) == (
        "column 'split' names the splits fold 1; must be train, val or test in each row. Set data.split_column to "
        "another column, or to none"
    )
    rows = [{"a": row["file"], "b": row["file"], "label": row["species"]} for row in rows]
    assert refused({}) == "data.image_column: a, b could each be meant; set it in the space file"


@pytest.mark.parametrize("kind", ["flags", "separated", "lists"])
def test_an_image_may_have_several_labels(kind: str, tmp_path: Path) -> None:
    write_images(tmp_path / "pictures")
    files = [f"pictures/{name}/{number}.png" for number in range(8) for name in NAMES]
    tags = np.random.default_rng(0).random((24, 3)) < (0.5, 0.4, 0.6)
    names = np.array(["round", "red", "soft"])
    if kind == "flags":
        rows = [
            {"path": file, **dict(zip(names, map(int, own), strict=True))}
            for file, own in zip(files, tags, strict=True)
        ]
    else:
        own_names = [names[own].tolist() for own in tags]
        joined = own_names if kind == "lists" else ["|".join(own) if own else "red" for own in own_names]
        rows = [{"path": file, "tags": own} for file, own in zip(files, joined, strict=True)]
    data = open_kind(write(rows, tmp_path / ("t.parquet" if kind == "lists" else "t.csv")))
    assert data.is_multi_label
    assert data.class_names == (("round", "red", "soft") if kind == "flags" else ("red", "round", "soft"))
    assert sum(sizes(data)) == 24
    for split in SPLITS:
        assert data.labels(split).any(axis=0).all()
    _, targets = next(data.eval_batches("train", batch_size=8, device=CPU))
    np.testing.assert_array_equal(targets.numpy(), data.labels("train")[:8])
    with_worker = open_kind(tmp_path / ("t.parquet" if kind == "lists" else "t.csv"), num_workers=1)
    augment = AugmentConfig(mixup=0.2)
    for batch in with_worker.train_batches(batch_size=4, augment=augment, device=CPU, seed=0, epoch=0):
        assert (batch[1].dtype, batch[1].shape) == (torch.float32, (4, 3))
    if kind != "separated":
        assert sum(int(data.labels(split).sum()) for split in SPLITS) == tags.sum()


def test_labels_are_text_in_the_order_of_their_bytes_or_numbers_in_theirs(
    rows: list[dict[str, str]], tmp_path: Path
) -> None:
    def classes(names: tuple[str, str, str], suffix: str = ".csv", kind: type = str) -> tuple[str, ...]:
        labels: dict[str, Any] = dict(zip(NAMES, map(kind, names), strict=True))
        table = write([{**row, "species": labels[row["species"]]} for row in rows], tmp_path / f"labels{suffix}")
        return open_kind(table).class_names

    assert classes(("10", "9", "-1")) == ("-1", "9", "10")
    assert classes(("10", "9", "07")) == ("07", "10", "9")
    assert classes(("b", "B", "a")) == ("B", "a", "b")
    assert classes(("10", "9", "2"), ".parquet", int) == ("2", "9", "10")
    assert classes(("10", "9", "2"), ".parquet", float) == ("2", "9", "10")
    assert classes(("NA", "None", "null")) == ("NA", "None", "null")


def test_rows_that_contradict_each_other_or_say_nothing_are_refused_by_name(
    rows: list[dict[str, str]], tmp_path: Path
) -> None:
    def refused(change: dict[str, str], **config: Any) -> str:
        table = write([*rows, {**rows[0], **change}], tmp_path / "labels.csv")
        with pytest.raises(DataError) as error:
            open_kind(table, **config)
        return str(error.value).removeprefix(f"{table}: ")

    assert refused({"species": ""}) == (
        "column 'species': 1 of 25 rows have no label, row 25 the first; fill them in, or remove them"
    )
    assert refused({"species": "NaN"}).startswith("column 'species': 1 of 25 rows have no label")
    assert refused({"file": " "}, image_column="file") == "1 of 25 rows have no path, row 25 the first"
    assert refused({"species": "cat"}) == (
        "pictures/dog/3.png has one label in row 1 and another in row 25; several labels of an image must be in one "
        "row, with | between them"
    )
    assert refused({"split": "test"}) == "pictures/dog/3.png is in two splits: train and test"
    cow = {"species": "cow", "file": "pictures/cow.png"}
    assert refused(cow) == "its validation images: there is no image of cow"
    assert "a single image is left of cow" in refused(cow, split_column="none")
    table = write([*rows, {**rows[0], "file": "./pictures/dog/../dog/3.png"}], tmp_path / "labels.csv")
    data: Any = open_kind(table)
    assert data.notes[1] == f"{table}: repeated rows that are left out: 1"
    assert sizes(data) == [13, 5, 6]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\na.png,caf\xe9\n".encode("latin-1"), "is not UTF-8: .* at byte 20; save it as UTF-8"),
        (b"", "cannot be read as a table: No columns to parse"),
        (b"file,label\n", "has no rows"),
        (b"file,label\na.png,b,c,d\n", "rows have more values than the first line has column names"),
        (b"file,label\na.png,b\na.png,b,c\n", "cannot be read as a table: .* Expected 2 fields in line 3, saw 3"),
        (b"name,label\na,b\n", "data.image_column: none of name, label seems to be meant; set it"),
        (b"file,label\nhttps://a.org/a.png,b\n", "paths are URLs such as https://a.org/a.png; download the images"),
        (b"file,label\na.png,b\n", "no file .*a.png; paths must be absolute, or begin in the folder of the table"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        open_kind(tmp_path / "labels.csv")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}/labels.csv: ")


def test_images_of_a_table_that_are_missing_or_damaged_are_named_before_anything_is_trained(
    rows: list[dict[str, str]], tmp_path: Path
) -> None:
    table = write(rows, tmp_path / "labels.csv")
    spoil(tmp_path / "pictures" / "dog" / "7.png")
    (tmp_path / "pictures" / "cat" / "0.png").unlink()
    report = check_set(table)
    assert report.class_counts == (6, 6, 6)
    assert report.images is not None
    assert set(report.images.damaged) == {"pictures/dog/7.png", "pictures/cat/0.png"}
    assert report.images.damaged["pictures/cat/0.png"] == "cannot be read: No such file or directory"


def test_a_training_reads_what_its_driver_has_listed_and_never_the_table_again(
    rows: list[dict[str, str]], tmp_path: Path
) -> None:
    table = write(rows, tmp_path / "labels.csv")
    run = tmp_path / "run"
    run.mkdir()
    experiment = parse_experiment(SPACE, "tiny.yaml").changed(data={"dataset": "table"})
    setup = TrainingSetup.of(experiment, run=RunFolder(run), data=table).checked()
    setup.save_listing()
    found: Any = setup.open_data()
    as_in_another_process()
    table.write_text("no table any more")
    again: Any = setup.open_data()
    assert again.class_names == found.class_names
    assert again.notes == found.notes
    for split in SPLITS:
        np.testing.assert_array_equal(again.labels(split), found.labels(split))
        pairs = zip(*(data.eval_batches(split, batch_size=4, device=CPU) for data in (again, found)), strict=True)
        assert all(torch.equal(a[0], b[0]) for a, b in pairs)
    assert again.identity().fingerprint == found.identity().fingerprint


def test_a_training_on_a_table_learns(rows: list[dict[str, str]], tmp_path: Path) -> None:
    table = write(rows, tmp_path / "labels.csv")
    accuracy, notes = trained(table, tmp_path / "run", dataset="table")
    assert accuracy == 1.0
    assert notes[0].startswith(f"{table}: images are in column 'file'")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["data"]["images"] == {"train": 18, "validation": 6}
    with pytest.raises(DataError, match=r"csv: is a file, but imagefolder is a folder: data.dataset must be table"):
        trained(table, tmp_path / "other")
