"""`cvt-nas init`: from images to a space file that a search takes as it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvt_nas.cli import main
from cvt_nas.cli.data import _name_of
from cvt_nas.config import load_experiment, parse_experiment
from cvt_nas.init.choosing import draft_around, draft_for, draft_like
from cvt_nas.init.looking import DataLook, Host, look_at_data
from cvt_nas.init.writing import text_of
from cvt_nas.run import RunFolder

CPUS = Host(num_cpus=2, gpu_names=(), gpu_bytes=0)
GPUS = Host(num_cpus=32, gpu_names=("H100", "H100"), gpu_bytes=80 * 2**30)


def write_images(
    folder: Path, counts: dict[str, int], size: tuple[int, int] = (40, 40), mode: str = "RGB", seed: int = 0
) -> Path:
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{index}.png")
    return folder


def look_of(
    num_train: int, *, side: tuple[int, int] = (300, 400), counts: tuple[int, ...] = (), **more: object
) -> DataLook:
    counts = counts or (num_train // 10,) * 10
    fields: dict[str, object] = {
        "dataset": "imagefolder", "root": Path("images"), "class_names": tuple(map(str, range(len(counts)))),
        "is_multi_label": False, "counts": counts, "num_channels": 3, "is_in_memory": False, "notes": (),
        "num_images": {"train": num_train, "search": num_train // 4, "test": num_train // 4},
        "held_out": ("search", "test"), "sizes": np.array([side, side[::-1]] * 20),
    }  # fmt: skip
    return DataLook(**{**fields, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("host", [CPUS, GPUS])
@pytest.mark.parametrize("num_train", [200, 4_000, 30_000, 1_000_000])
@pytest.mark.parametrize(
    "side", [(8, 8), (20, 20), (32, 32), (64, 64), (100, 120), (300, 400), (2000, 3000), (64, 256)]
)
def test_each_draft_is_a_file_that_the_reader_takes_without_a_warning(
    host: Host, num_train: int, side: tuple[int, int]
) -> None:
    draft = draft_for(look_of(num_train, side=side), host, name="mine")
    experiment = parse_experiment(text_of(draft, ["made"]), "mine.yaml")
    assert experiment.warnings == ()
    assert len(experiment.anchors) == 1
    assert experiment.space.size > 1_000


def test_a_gpu_and_many_images_have_larger_networks_and_images() -> None:
    few = parse_experiment(text_of(draft_for(look_of(2_000), CPUS, name="mine"), []), "few.yaml").space
    many = parse_experiment(text_of(draft_for(look_of(200_000), GPUS, name="mine"), []), "many.yaml").space
    assert (few.image_size, many.image_size) == (64, 224)
    assert many.cost_range[1].params > 5 * few.cost_range[1].params


def test_images_that_are_all_wide_make_rectangles() -> None:
    look = look_of(2_000, sizes=np.array([(100, 250)] * 30))
    draft = draft_for(look, GPUS, name="mine")
    assert draft.sections["space"]["image_size"] == [96, 240]
    assert "wide" in draft.reasons["image_size"]
    experiment = parse_experiment(text_of(draft, []), "mine.yaml")
    assert experiment.space.image_size == (96, 240)


def test_rare_classes_and_several_labels_choose_the_metric_and_the_loss() -> None:
    unbalanced = draft_for(look_of(1_000, counts=(900, 60, 40)), CPUS, name="mine").sections["training"]
    assert (unbalanced["metric"], unbalanced["class_weights"]) == ("balanced_accuracy", "balanced")
    several = draft_for(look_of(1_000, is_multi_label=True), CPUS, name="mine").sections["training"]
    assert several["metric"] == "mean_average_precision"
    assert "metric" not in draft_for(look_of(1_000), CPUS, name="mine").sections["training"]


def test_a_space_around_weights_goes_up_to_their_sizes() -> None:
    from cvt_nas.arch import NAMED_ARCHS

    arch = NAMED_ARCHS["cvt-13"]
    draft = draft_around(arch, draft_for(look_of(2_000), GPUS, name="mine"))
    experiment = parse_experiment(text_of(draft, []), "mine.yaml")
    stages = experiment.space.largest.stages
    assert [stage.embed_dim for stage in stages] == [64, 192, 384]
    assert [len(stage.blocks) for stage in stages] == [1, 2, 10]
    assert [stage.blocks[0].num_heads for stage in stages] == [1, 3, 6]


@pytest.mark.parametrize("name", ["cvt13", "cifar10", "fashion_mnist_supernet"])
def test_a_ready_file_is_adapted_to_other_images(name: str) -> None:
    import yaml

    from cvt_nas.ready import ready_spaces

    look = look_of(4_000, counts=(2_000, 2_000))
    draft = draft_like(yaml.safe_load(ready_spaces()[name].read_text()), look, name="mine", of=name)
    experiment = parse_experiment(text_of(draft, []), "mine.yaml")
    assert (experiment.space.num_classes, experiment.space.num_channels, experiment.data.dataset) == (
        2,
        3,
        "imagefolder",
    )
    assert experiment.warnings == ()


def test_a_look_counts_classes_and_sees_sizes_and_colours(tmp_path: Path) -> None:
    grey = write_images(tmp_path / "grey", {"a": 12, "b": 30}, (20, 50), "L")
    look = look_at_data(grey)
    assert (look.class_names, look.counts, look.num_channels) == (("a", "b"), (12, 30), 1)
    assert look.median_size == (20, 50)
    assert look.ratio == pytest.approx(0.4)
    assert sum(look.num_images.values()) == 42
    assert look_at_data(write_images(tmp_path / "colour", {"a": 8, "b": 8})).num_channels == 3


@pytest.mark.usefixtures("two_cpus")
def test_three_commands_lead_from_a_folder_to_an_exported_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "my images", {"cat": 24, "dog": 24}, (16, 16))
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my images", "--hours", "0.3"]) == 0
    said = capsys.readouterr().out
    assert "saw: imagefolder: 2 classes" in said
    assert "next: cvt-nas search --space my_images.yaml --data 'my images'" in said
    experiment = load_experiment("my_images.yaml")
    assert (experiment.space.image_size, experiment.data.dataset) == (16, "imagefolder")
    assert main(["search", "--space", "my_images.yaml", "--data", "my images", "--trials", "2", "--cpus", "2"]) == 0
    assert main(["export", "results/my_images", "--pick", "best", "--to", "model"]) == 0
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert main(["init", "my images"]) == 2
    assert "my_images.yaml: is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "name"),
    [("plants-1.5", "plants-1_5"), ("plants", "plants"), ("images.tar", "images"), ("hf:a/b", "hf_a_b")],
)
def test_a_name_is_made_from_the_whole_name_of_a_folder(data: str, name: str, tmp_path: Path) -> None:
    if data.startswith("plants"):
        (tmp_path / data).mkdir()
    elif data.endswith(".tar"):
        (tmp_path / data).touch()
    assert _name_of(data if ":" in data else str(tmp_path / data)) == name


def test_json_tells_what_was_seen_and_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "d.yaml"
    assert main(["init", "digits", "--to", str(to), "--no-measure", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["dataset"], found["image_size"], len(found["classes"]), found["fit"]) == ("digits", 8, 10, None)
    assert found["next"] == f"cvt-nas search --space {to}"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["nowhere"], "--data nowhere: no such file or folder"),
        (["digits", "--like", "cvt14"], "--like cvt14: no ready space has this name; did you mean 'cvt13'?"),
        (["digits", "--init", "nothing.pth"], "nothing.pth"),
        (["digits", "--hours", "1e-9"], "give more time"),
    ],
)
def test_what_cannot_be_begun_is_refused_and_nothing_is_written(
    words: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", *words]) == 2
    assert why in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_could_not_be_written_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cvt_nas.init.begin", lambda *_, **__: pytest.fail("it was begun"))
    assert main(["init", "digits", "--to", "nowhere/mine.yaml"]) == 2
    assert capsys.readouterr().err == "cvt-nas: nowhere/mine.yaml: cannot be written: there is no folder nowhere\n"
    Path("folder").mkdir()
    assert main(["init", "digits", "--to", "folder"]) == 2
    assert capsys.readouterr().err == "cvt-nas: folder: is there already; write elsewhere by --to FILE\n"


def crops(to: Path) -> Path:
    """Twelve classes of thirty crops each: parts of two photographs that come with scikit-learn."""
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(0)
    for name in ("china", "flower"):
        photo = load_sample_image(f"{name}.jpg")
        for index in range(6):
            row, column = divmod(index, 3)
            part = photo[row * 213 : (row + 1) * 213, column * 213 : (column + 1) * 213]
            folder = to / f"{name} {row} {column}"
            folder.mkdir(parents=True)
            for number in range(30):
                side = int(rng.integers(60, 120))
                top, left = rng.integers(0, 213 - side, 2)
                Image.fromarray(part[top : top + side, left : left + side]).save(folder / f"{number}.jpg")
    return to


def deep_grey(to: Path) -> Path:
    """Grey images of 16 bits, whose classes differ in the direction of their stripes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 12)):
        for index, name in enumerate(("across", "down", "diagonal")):
            folder = to / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                rows, columns = np.mgrid[:48, :48] + rng.integers(0, 8)
                wave = np.sin([rows, columns, rows + columns][index] / rng.uniform(1.5, 3))
                pixels = (30_000 + 20_000 * wave + rng.normal(0, 4_000, wave.shape)).clip(0, 65_535).astype(np.uint16)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return to


def unbalanced_table(to: Path) -> Path:
    """A CSV with two labels, of which one is rare."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    (to / "scans").mkdir(parents=True)
    lines = ["file,even,seven"]
    for number, (image, value) in enumerate(zip(digits.images[:600], digits.target[:600], strict=True)):
        Image.fromarray(np.kron(image * 15, np.ones((4, 4))).astype(np.uint8)).save(to / "scans" / f"{number}.png")
        lines.append(f"scans/{number}.png,{int(value % 2 == 0)},{int(value == 7)}")
    (to / "list.csv").write_text("\n".join(lines) + "\n")
    return to / "list.csv"


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize(
    ("make", "metric", "least"),
    [(crops, "accuracy", 0.5), (deep_grey, "accuracy", 0.7), (unbalanced_table, "mean_average_precision", 0.7)],
)
def test_images_that_nobody_tuned_for_become_a_model_in_three_commands(
    make: Callable[[Path], Path],
    metric: str,
    least: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = str(make(tmp_path / "images"))
    monkeypatch.chdir(tmp_path)
    assert main(["init", data, "--to", "mine.yaml", "--name", "mine", "--hours", "0.1"]) == 0
    assert main(["search", "--space", "mine.yaml", "--data", data, "--cpus", "2"]) == 0
    assert main(["export", "results/mine", "--pick", "best", "--to", "model"]) == 0
    run = RunFolder.open("results/mine")
    assert run.manifest["metric"] == metric
    best = run.front().best
    assert best is not None
    assert run.test_accuracies()[best.arch_id] > least
    page = (run.path / "report.html").read_text()
    assert page.count("data:image/jpeg;base64") == 36, "twelve images of each split"
    assert all(run.mistakes_path(member.arch_id).is_file() for member in run.front().members)
