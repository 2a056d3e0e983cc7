"""Accuracy on test images, of weights from wherever they come."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cvt_nas import build_model, load_arch, load_model
from cvt_nas.arch import ArchConfig
from cvt_nas.cli import main
from cvt_nas.config import Experiment
from cvt_nas.errors import ArchError, DataError, ResourceError
from cvt_nas.evaluate import evaluate_model
from cvt_nas.export import export
from cvt_nas.model import CvT, load_checkpoint, save_model
from cvt_nas.results import RunFolder
from cvt_nas.train import train
from strategies import per_stage
from test_init import GELU, port_of

RGB = per_stage(
    image_size=32, dims=(8, 16), depths=(1, 1), heads=(1, 2), kernels=(3, 3), strides=(2, 1), ratios=(2.0, 2.0)
)


def write_images(folder: Path, *, num_classes: int, num_images: int = 4, side: int = 40) -> None:
    """Noise, in one folder a class."""
    rng = np.random.default_rng(0)
    for index in range(num_classes):
        (folder / f"class{index}").mkdir(parents=True)
        for image in range(num_images):
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{index}" / f"{image}.png")


def biased_to(model: CvT, *classes: int) -> CvT:
    """Answers with these classes first, in this order, whatever it sees."""
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
        for place, index in enumerate(classes):
            model.head.bias[index] = 10.0 - place
    return model


@pytest.fixture(scope="module")
def trained(digits: Experiment, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("trained") / "run"
    experiment = dataclasses.replace(digits, training=digits.training.lasting(2))
    train(digits.space.smallest, experiment, out=out, device="cpu")
    return RunFolder.open(out)


def test_a_run_an_export_and_its_state_dict_have_the_accuracy_that_the_run_reports(
    trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (arch_id,) = trained.test_accuracies()
    expected = trained.test_accuracies()[arch_id]
    assert main(["eval", f"{trained.path}:{arch_id}", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["top1"] == pytest.approx(expected)
    assert found["top1"] <= found["top5"] <= 1
    assert (found["num_images"], found["image_size"], found["arch_id"]) == (360, 8, arch_id)

    export(trained, "best", tmp_path / "model")
    assert evaluate_model(tmp_path / "model", data="digits", device="cpu").top1 == pytest.approx(expected)
    weights, arch = tmp_path / "weights.pth", tmp_path / "model" / "arch.json"
    torch.save(load_model(tmp_path / "model").state_dict(), weights)
    command = ["eval", str(weights), "--arch", str(arch), "--data", "digits", "--device", "cpu"]
    assert main(command) == 0
    assert "of 360 test images at 8 x 8" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(expected)


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="^--device cuda: this machine has no GPU$"):
        evaluate_model("nowhere", data="digits", device="cuda")


def test_an_official_state_dict_is_recognised_and_its_images_are_those_of_val(tmp_path: Path) -> None:
    model = biased_to(build_model(dataclasses.replace(load_arch("cvt-13-cifar"), num_classes=7)), 2, 5, 0, 1, 3)
    torch.save(model.state_dict(), tmp_path / "official.pth")
    write_images(tmp_path / "data" / "val", num_classes=7)
    assert load_checkpoint(tmp_path / "official.pth").arch == model.arch
    found = evaluate_model(tmp_path / "official.pth", data=tmp_path / "data", device="cpu", num_workers=0)
    assert (found.top1, found.top5) == pytest.approx((1 / 7, 5 / 7))
    assert (found.num_images, found.image_size) == (28, 32)
    alone = evaluate_model(tmp_path / "official.pth", data=tmp_path / "data" / "val", device="cpu", num_workers=0)
    assert alone == found


@torch.inference_mode()
def test_a_folder_of_transformers_sees_images_as_its_processor_prepares_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import ConvNextImageProcessor

    import cvt_nas.evaluate

    answers, original = list[torch.Tensor](), cvt_nas.evaluate.logits_of
    monkeypatch.setattr(cvt_nas.evaluate, "logits_of", lambda *about: answers.append(original(*about)) or answers[-1])

    port = port_of(GELU, tmp_path / "port")
    means, deviations = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
    processor = ConvNextImageProcessor(
        size={"shortest_edge": 32}, crop_pct=0.8, image_mean=means, image_std=deviations, resample=3
    )
    processor.save_pretrained(tmp_path / "port")
    write_images(tmp_path / "data", num_classes=10, num_images=6, side=80)
    right, expected = [], []
    for label, folder in enumerate(sorted((tmp_path / "data").iterdir())):
        for file in sorted(folder.iterdir()):
            pixels = processor(Image.open(file), return_tensors="pt")["pixel_values"]
            expected.append(port(pixels).logits)
            right.append(bool(expected[-1].argmax() == label))
    found = evaluate_model(tmp_path / "port", data=tmp_path / "data", device="cpu", num_workers=0)
    assert found.image_size == 32
    torch.testing.assert_close(torch.cat(answers), torch.cat(expected), rtol=1e-3, atol=1e-4)
    assert found.top1 == pytest.approx(np.mean(right))


def test_from_384_pixels_on_the_whole_image_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cvt_nas.evaluate

    seen = []
    original = cvt_nas.evaluate.logits_of
    monkeypatch.setattr(cvt_nas.evaluate, "logits_of", lambda model, images, training: (
        seen.append(images) or original(model, images, training)
    ))  # fmt: skip
    torch.save(build_model(RGB).state_dict(), tmp_path / "w.pth")
    pixels = np.zeros((448, 448, 3), np.uint8)
    pixels[:28] = 255  # which the centre, 7/8 of the image, leaves out
    for index in range(10):
        (tmp_path / "data" / f"class{index}").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "data" / f"class{index}" / "0.png")
    for size in (224, 384):
        evaluate_model(
            tmp_path / "w.pth", data=tmp_path / "data", arch=RGB, image_size=size, device="cpu", num_workers=0
        )
    centre, whole = seen
    assert centre.shape[-1] == 224
    assert whole.shape[-1] == 384
    assert centre[0, 0, 2].max() < 0 < whole[0, 0, 2].min()


def renamed(folder: Path, *classes: str) -> None:
    tree = json.loads((folder / "preprocessing.json").read_text())
    (folder / "preprocessing.json").write_text(json.dumps({**tree, "classes": list(classes)}))


def test_what_does_not_fit_is_said(trained: RunFolder, tmp_path: Path) -> None:
    export(trained, "best", tmp_path / "model")
    with pytest.raises(DataError, match="cifar10 has 3 channels, .*model is for 1"):
        evaluate_model(tmp_path / "model", data="cifar10", device="cpu")
    write_images(tmp_path / "data", num_classes=3)
    with pytest.raises(DataError, match="imagefolder has 3 classes, .*model is for 10"):
        evaluate_model(tmp_path / "model", data=tmp_path / "data", device="cpu")
    renamed(tmp_path / "model", "1", "0", *"23456789")
    with pytest.raises(DataError, match="its class 1 stands where the data set has 0; the orders differ"):
        evaluate_model(tmp_path / "model", data="digits", device="cpu")
    torch.save(build_model(RGB).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ArchError, match="fits none of cvt-13, cvt-21, cvt-w24, cvt-13-cifar; name its architecture"):
        evaluate_model(tmp_path / "w.pth", data="digits", device="cpu")
    other: ArchConfig = dataclasses.replace(RGB, num_channels=1)
    with pytest.raises(ArchError, match="stage0.patch_embed.proj.weight: 8 x 3 x 7 x 7 instead of 8 x 1 x 7 x 7"):
        evaluate_model(tmp_path / "w.pth", arch=other, data="digits", device="cpu")
    (tmp_path / "model" / "preprocessing.json").write_text("[]")
    with pytest.raises(DataError, match="preprocessing.json: cannot be read"):
        evaluate_model(tmp_path / "model", data="digits", device="cpu")


def test_the_command_line_asks_for_weights_and_for_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(build_model(RGB), tmp_path / "model")
    assert main(["eval", "cvt-13"]) == 2
    assert "cvt-13: is an architecture; give its weights" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "model")]) == 2
    assert "name the images by --data DIR, or a data set by its name" in capsys.readouterr().err
