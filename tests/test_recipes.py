"""How the published networks were trained, and on other images."""

import json
from pathlib import Path

import pytest

from conftest import SPACES
from cvt_nas import load_recipe
from cvt_nas.arch import NAMED_ARCHS, save_arch
from cvt_nas.cli import main
from cvt_nas.config import TrainingConfig, load_experiment, parse_experiment
from cvt_nas.errors import ArchError, DataError
from cvt_nas.train import recipe_for, train
from test_evaluate import write_images


@pytest.mark.parametrize("name", NAMED_ARCHS)
def test_a_recipe_is_of_its_network_alone(name: str) -> None:
    experiment = load_recipe(name)
    assert experiment.space.size == 1
    assert experiment.space.largest == NAMED_ARCHS[name]
    assert not experiment.warnings


# experiments/imagenet/cvt of github.com/microsoft/CvT; the rate is that of all the devices together
@pytest.mark.parametrize(
    ("name", "weight_decay", "drop_path"), [("cvt-13", 0.05, 0.1), ("cvt-21", 0.1, 0.1), ("cvt-w24", 0.1, 0.3)]
)
def test_the_official_settings(name: str, weight_decay: float, drop_path: float) -> None:
    training = load_recipe(name).training
    assert (training.optimizer, training.lr, training.batch_size, training.epochs) == ("adamw", 0.002, 2048, 300)
    assert (training.schedule, training.warmup_epochs, training.warmup_lr, training.min_lr) == ("cosine", 5, 1e-6, 1e-5)
    assert (training.weight_decay, training.drop_path) == (weight_decay, [0.0, 0.0, drop_path])
    assert (training.label_smoothing, training.ema_decay, training.clip_grad_norm) == (0.1, 0, None)
    augment = training.augment
    assert (augment.mixup, augment.cutmix, augment.random_erasing) == (0.8, 1.0, 0.25)
    assert (augment.randaugment, augment.color_jitter, augment.crop_scale) == ("rand-m9-mstd0.5-inc1", 0.0, 0.08)


def test_a_recipe_takes_the_channels_and_classes_of_other_images(tmp_path: Path) -> None:
    experiment, root = recipe_for("cvt-13-cifar", "fashion-mnist")
    assert (experiment.space.num_channels, experiment.data.dataset, root) == (1, "fashion-mnist", None)
    assert experiment.training == load_recipe("cvt-13-cifar").training

    for part in ("train", "val"):
        write_images(tmp_path / part, num_classes=3)
    experiment, root = recipe_for("cvt-13", tmp_path)
    assert (experiment.space.num_classes, experiment.data.dataset, root) == (3, "imagefolder", tmp_path)
    assert experiment.space.largest.stages == NAMED_ARCHS["cvt-13"].stages


def test_what_is_no_recipe_and_no_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchError, match="cvt-14: no recipe has this name, but cvt-13, cvt-21"):
        load_recipe("cvt-14")
    with pytest.raises(DataError, match="--data imagenette: no such file or folder, and none of digits, fashion-mnist"):
        recipe_for("cvt-13", "imagenette")
    with pytest.raises(DataError, match="must hold train/ and val/, one folder a class"):
        recipe_for("cvt-13", tmp_path)
    experiment, root = recipe_for("cvt-13-cifar", "cifar10")
    with pytest.raises(DataError, match="cifar10: no folder .*data/cifar-10-batches-py"):
        train(experiment.space.largest, experiment, out=tmp_path / "run", data=root)


def test_options_of_a_training_are_in_its_record_and_a_change_of_them_is_another_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    arch = tmp_path / "arch.json"
    save_arch(load_experiment(SPACES / "digits.yaml").space.smallest, arch)
    arguments = [
        "train",
        str(arch),
        "--space",
        str(SPACES / "digits.yaml"),
        "--epochs",
        "2",
        "--gpus",
        "0",
        "--out",
        out,
    ]
    assert main([*arguments, "--optimizer", "sgd", "--sched", "cosine", "--lr", "0.05", "--batch-size", "32"]) == 0
    text = json.loads((tmp_path / "run" / "manifest.json").read_text())["space_file"]
    training = parse_experiment(text, "the record").training
    assert (training.optimizer, training.schedule, training.lr, training.batch_size) == ("sgd", "cosine", 0.05, 32)
    assert training.epochs == 2
    capsys.readouterr()
    assert main([*arguments, "--resume", "--optimizer", "sgd", "--lr", "0.1"]) == 2
    assert "holds another run than this training" in capsys.readouterr().err


def test_learning_rates_go_with_the_batch_size_unless_one_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (SPACES / "digits.yaml").read_text().replace("{dataset: digits", "{dataset: digits, train_fraction: 0.2")
    (tmp_path / "few.yaml").write_text(text)
    file = parse_experiment(text, "digits.yaml").training
    save_arch(load_experiment(SPACES / "digits.yaml").space.smallest, tmp_path / "arch.json")

    def trained(*options: str) -> tuple[TrainingConfig, str]:
        out = tmp_path / "-".join(options)
        arguments = ["train", str(tmp_path / "arch.json"), "--space", str(tmp_path / "few.yaml"), "--epochs", "1"]
        assert main([*arguments, "--gpus", "0", "--out", str(out), *options]) == 0
        record = json.loads((out / "manifest.json").read_text())["space_file"]
        return parse_experiment(record, "the record").training, capsys.readouterr().err

    size = file.batch_size // 4
    scaled, note = trained("--batch-size", str(size))
    assert scaled.batch_size == size
    assert (scaled.lr, scaled.min_lr) == pytest.approx((file.lr / 4, file.min_lr / 4))
    assert f"note: --batch-size {size} instead of {file.batch_size}: lr {file.lr:g} becomes {file.lr / 4:g}" in note

    given, note = trained("--batch-size", str(size), "--lr", "0.01")
    assert (given.batch_size, given.lr, given.min_lr) == (size, 0.01, file.min_lr)
    assert "note: --batch-size" not in note

    same, note = trained("--batch-size", str(file.batch_size))
    assert (same.lr, same.min_lr) == (file.lr, file.min_lr)
    assert "note: --batch-size" not in note

    least, _ = trained("--lr", "1e-8")
    assert (least.lr, least.warmup_lr) == (1e-8, 1e-8)
