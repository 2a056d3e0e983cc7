"""Data sets of Hugging Face's library."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from cvt_nas.config import parse_experiment
from cvt_nas.data import SPLITS, find_data, load_data, shape_of
from cvt_nas.data.report import check_set
from cvt_nas.engine import TrainingSetup
from cvt_nas.errors import DataError
from cvt_nas.run import RunFolder
from image_folders import CPU, NAMES, SPACE, open_kind, sizes, trained, write_images
from test_listing import as_in_another_process

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*metadata.csv:ResourceWarning")  # the library's


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def picture(label: int, number: int) -> Image.Image:
    noise = np.random.default_rng((label, number)).integers(0, 30, (20, 24, 3))
    return Image.fromarray((noise + [20, 110, 200][label]).astype(np.uint8))


def part(num: int, *, labels: Any = None, feature: Any = None, **more: Any) -> Any:
    own = [row % 3 for row in range(num)]
    features = {"image": datasets.Image(), "label": feature or datasets.ClassLabel(names=list(NAMES))}
    rows = {"image": [picture(label, row) for row, label in enumerate(own)], "label": labels or own}
    more_features = {name: values[0] for name, values in more.items()}
    return datasets.Dataset.from_dict(
        {**rows, **{name: values[1] for name, values in more.items()}},
        features=datasets.Features({**features, **more_features}),
    )


def saved(to: Path, **parts: Any) -> Path:
    splits: Any = parts
    datasets.DatasetDict(splits).save_to_disk(to)
    return to


def as_parquet(to: Path, **parts: Any) -> Path:
    for name, each in parts.items():
        (to / "data").mkdir(parents=True, exist_ok=True)
        each.to_parquet(to / "data" / f"{name}-00000-of-00001.parquet")
    return to


@pytest.mark.parametrize("write", [saved, as_parquet])
def test_splits_classes_and_images_are_those_of_the_library(write: Any, tmp_path: Path) -> None:
    root = write(tmp_path / "set", train=part(30), validation=part(9), test=part(12))
    assert find_data(root) == ("huggingface", root)
    assert shape_of("huggingface", root) == (None, 3)
    data: Any = open_kind(root)
    assert (data.class_names, sizes(data)) == (NAMES, [30, 9, 12])
    assert data.notes[0] == f"{root}: labels are in column 'label'"
    for split in SPLITS:
        ((images, labels),) = data.eval_batches(split, batch_size=30, device=CPU)
        assert labels.tolist() == [row % 3 for row in range(len(labels))]
        assert torch.equal(labels[images.mean(dim=(1, 2, 3)).argsort()], labels.sort().values)
    assert open_kind(root, test_only=True).num_images("test") == 12
    report = check_set(root)
    assert (report.is_usable, report.class_counts) == (True, (10, 10, 10))
    assert report.images is not None
    assert report.images.formats == {"PNG": 51}


def test_one_set_without_splits_has_test_images_held_out(tmp_path: Path) -> None:
    part(30).save_to_disk(tmp_path / "set")
    assert sizes(open_kind(tmp_path / "set")) == [18, 6, 6]
    whole = open_kind(tmp_path / "set", test_only=True)
    assert whole.num_images("test") == 30


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_folder_of_images_with_metadata_is_read_by_the_library(kind: str, tmp_path: Path) -> None:
    for split, num in (("train", 24), ("test", 6)):
        folder = tmp_path / split
        folder.mkdir()
        rows = [{"file_name": f"{row}.png", "label": NAMES[row % 3]} for row in range(num)]
        for row in range(num):
            picture(row % 3, row).save(folder / f"{row}.png")
        lines = ["file_name,label", *(f"{row['file_name']},{row['label']}" for row in rows)]
        text = "\n".join(lines if kind == "csv" else map(json.dumps, rows))
        (folder / f"metadata.{kind}").write_text(text)
    assert find_data(tmp_path) == ("huggingface", tmp_path)
    data = open_kind(tmp_path)
    assert (data.class_names, sizes(data)) == (NAMES, [18, 6, 6])


def test_class_folders_stay_class_folders_whatever_lies_beside_them(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    (tmp_path / "metadata.csv").write_text("file_name,label\n")
    (tmp_path / "train" / "labels.parquet").write_text("")
    assert find_data(tmp_path)[0] == "imagefolder"


def test_lists_of_classes_are_several_labels(tmp_path: Path) -> None:
    tags = [[row % 4] if row % 5 else [0, 3] for row in range(38)] + [[], [1, 2]]
    feature = datasets.List(datasets.ClassLabel(names=["round", "red", "soft", "old"]))
    data = open_kind(saved(tmp_path / "set", train=part(40, labels=tags, feature=feature)), 4)
    assert data.is_multi_label
    assert data.class_names == ("round", "red", "soft", "old")
    assert sum(int(data.labels(split).sum()) for split in SPLITS) == sum(map(len, tags))


def test_columns_that_cannot_be_told_are_refused(tmp_path: Path) -> None:
    coarse = (datasets.ClassLabel(names=["a", "b"]), [row % 2 for row in range(12)])
    root = saved(tmp_path / "set", train=part(12, coarse=coarse, fine=coarse))
    assert open_kind(root).class_names == NAMES  # the usual name
    assert open_kind(root, 2, label_column="coarse").class_names == ("a", "b")
    renamed = part(12, coarse=coarse).rename_column("label", "fine")
    root = saved(tmp_path / "renamed", train=renamed)
    with pytest.raises(DataError, match=r"data.label_column: fine, coarse could each be meant; set it"):
        open_kind(root)
    with pytest.raises(DataError, match=r"data.label_column: there is no column kind, but image, fine, coarse"):
        open_kind(root, label_column="kind")
    with pytest.raises(DataError, match=r"data.image_column: no column holds images"):
        open_kind(saved(tmp_path / "none", train=renamed.remove_columns("image")))
    with pytest.raises(DataError, match=r"has the splits extra; must have train"):
        open_kind(saved(tmp_path / "odd", extra=part(12)))
    (tmp_path / "set" / "train" / "state.json").unlink()
    with pytest.raises(DataError, match=r"set: cannot be read by Hugging Face's datasets: "):
        open_kind(tmp_path / "set")


def test_a_split_without_labels_is_ignored_and_images_that_are_none_are_named(tmp_path: Path) -> None:
    hidden = part(6, labels=[-1] * 6)
    broken = part(12).cast_column("image", datasets.Image(decode=False))
    spoilt = broken.map(
        lambda row, at: {"image": {"bytes": b"no image", "path": None}} if at == 4 else row, with_indices=True
    )
    root = saved(
        tmp_path / "set", train=part(30), validation=spoilt.cast_column("image", datasets.Image()), test=hidden
    )
    data: Any = open_kind(root)
    assert data.notes[1] == f"{root}: split test has no labels and is ignored"
    report = check_set(root)
    assert report.images is not None
    assert report.images.damaged == {"validation/4": "no image: it begins as text"}


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("cat", "fish"), "have different classes: only one of them has dog"),
        (("cat", "fish", "dog"), "have their classes in different orders: dog, fish in train, fish, dog in test"),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_splits_whose_classes_were_numbered_apart_are_refused(
    several: bool, names: tuple[str, ...], what: str, tmp_path: Path
) -> None:
    def encoded(num: int, names: tuple[str, ...]) -> Any:
        feature, labels = datasets.ClassLabel(names=list(names)), [row % len(names) for row in range(num)]
        if not several:
            return part(num, labels=labels, feature=feature)
        return part(num, labels=[[label] for label in labels], feature=datasets.List(feature))

    root = saved(tmp_path / "set", train=encoded(30, NAMES), validation=encoded(9, NAMES), test=encoded(12, names))
    with pytest.raises(DataError) as error:
        open_kind(root)
    assert str(error.value) == f"{root}: splits train and test {what}; give all splits the same ones in one order"


def test_class_names_of_a_split_without_labels_say_nothing(tmp_path: Path) -> None:
    hidden = part(6, labels=[-1] * 6, feature=datasets.ClassLabel(names=["fish", "dog", "cat"]))
    root = saved(tmp_path / "set", test=hidden, train=part(30))
    assert open_kind(root).class_names == NAMES
    numbers = part(12, feature=datasets.Value("int64"))
    assert open_kind(saved(tmp_path / "numbers", train=part(30), test=numbers)).class_names == NAMES


def test_a_training_learns_and_a_worker_has_the_images_that_its_driver_listed(tmp_path: Path) -> None:
    root, run = saved(tmp_path / "set", train=part(48), test=part(12)), tmp_path / "listed"
    accuracy, _ = trained(root, tmp_path / "run", dataset="huggingface")
    assert accuracy > 0.9
    run.mkdir()
    experiment = parse_experiment(SPACE, "tiny.yaml").changed(data={"dataset": "huggingface"})
    setup = TrainingSetup.of(experiment, run=RunFolder(run), data=root).checked()
    setup.save_listing()
    found: Any = setup.open_data()
    as_in_another_process()
    again: Any = setup.open_data()
    assert again is not found
    for split in SPLITS:
        pairs = zip(*(data.eval_batches(split, batch_size=8, device=CPU) for data in (again, found)), strict=True)
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


def test_a_set_on_the_hub_is_named_by_its_name_and_a_missing_library_by_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert find_data("hf:beans") == ("hf:beans", None)
    setup = TrainingSetup.of(parse_experiment(SPACE, "tiny.yaml"), run=RunFolder(Path("run")), data="hf:beans")
    assert setup.data_root is None
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"hf:beans: needs datasets: pip install 'cvt-nas\[datasets\]'"):
        load_data(
            parse_experiment(SPACE, "tiny.yaml").changed(data={"dataset": "hf:beans"}).data,
            root=None, image_size=16, num_channels=3, num_classes=3,
        )  # fmt: skip
