"""Accuracy on test images, of weights from wherever they come."""

import csv
import dataclasses
import gzip
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cvt_nas import build_model, load_arch, load_model
from cvt_nas.arch import ArchConfig
from cvt_nas.cli import main
from cvt_nas.config import DataConfig, Experiment
from cvt_nas.data.preprocessing import preprocessing_beside
from cvt_nas.errors import ArchError, DataError, ResourceError
from cvt_nas.evaluate import evaluate_model, predict
from cvt_nas.export import export
from cvt_nas.model import CvT, initialise, load_checkpoint, save_model
from cvt_nas.run import RunFolder
from cvt_nas.train import train
from strategies import per_stage
from test_initialise import GELU, port_of

RGB = per_stage(
    image_size=32, dims=(8, 16), depths=(1, 1), heads=(1, 2), kernels=(3, 3), strides=(2, 1), ratios=(2.0, 2.0)
)


def facts_beside(folder: Path) -> dict[str, Any]:
    return {**preprocessing_beside(folder)[0]}


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
    assert "of 360 images at 8 x 8" in capsys.readouterr().out
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

    from cvt_nas.engine import evaluation

    answers, original = list[torch.Tensor](), evaluation.logits_of
    monkeypatch.setattr(evaluation, "logits_of", lambda *about: answers.append(original(*about)) or answers[-1])

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
    from cvt_nas.engine import evaluation

    seen = []
    original = evaluation.logits_of
    monkeypatch.setattr(evaluation, "logits_of", lambda model, images, training, prepared: (
        seen.append(prepared(images)) or original(model, images, training, prepared)
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
    renamed(tmp_path / "model", "one", "0", *"23456789")
    with pytest.raises(
        DataError, match="other classes than the network: '1' is none of its classes, such as 'one', '0'"
    ):
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


# --- classes, and how images are prepared -----------------------------------------------------------------------------


CLASSES = ("cat", "dog", "fish")
TINY = dataclasses.replace(RGB, num_classes=3)


def colours(folder: Path, *classes: str, side: tuple[int, int] = (32, 32)) -> Path:
    """Three images a class, each with a channel of its own that is brighter."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for image in range(3):
            pixels = rng.integers(0, 90, (*side, 3), dtype=np.uint8)
            pixels[..., CLASSES.index(name) if name in CLASSES else index] += 120
            Image.fromarray(pixels).save(folder / name / f"{image}.png")
    return folder


def saved_port(folder: Path, order: tuple[str, ...], processor: Any) -> Any:
    """A CvT of transformers that tells the colours apart, with classes in this order, and its processor."""
    from transformers import CvtForImageClassification

    port = port_of(TINY_GELU, folder)
    images = torch.eye(3)[:, :, None, None].expand(3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        tokens = port.cvt(images).cls_token_value
        features = port.layernorm(tokens).mean(dim=1)
        centred = features - features.mean(dim=0)
        for row, name in enumerate(order):
            port.classifier.weight[row] = centred[CLASSES.index(name)]
        port.classifier.bias.copy_(-port.classifier.weight @ features.mean(dim=0))
    port.config.id2label = dict(enumerate(order))
    port.config.label2id = {name: index for index, name in enumerate(order)}
    port.save_pretrained(folder)
    assert isinstance(port, CvtForImageClassification)
    processor.save_pretrained(folder)
    return port


TINY_GELU = dataclasses.replace(
    per_stage(
        image_size=32, dims=(8, 16), depths=(1, 2), heads=(1, 2), kernels=(3, 3), strides=(2, 1), ratios=(2.0, 2.0),
        activation="gelu",
    ),
    num_classes=3,
)  # fmt: skip


@pytest.mark.parametrize("order", [("fish", "cat", "dog"), CLASSES])
def test_an_answer_is_right_by_the_name_of_its_class(
    order: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import ViTImageProcessor

    saved_port(tmp_path / "port", order, ViTImageProcessor(size={"height": 32, "width": 32}))
    data = colours(tmp_path / "data" / "val", *CLASSES).parent
    capsys.readouterr()  # transformers shows its progress
    assert main(["eval", str(tmp_path / "port"), "--data", str(data), "--device", "cpu", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["top1"] == 1.0
    note = (
        "the classes are matched by their names, since the orders differ: by config.json, the network's is 0 fish, "
        "1 cat, 2 dog"
    )
    assert found["notes"] == ([] if order == CLASSES else [note])
    assert said.err == "".join(f"note: {line}\n" for line in found["notes"])


def test_some_of_the_classes_are_enough_and_strange_ones_are_refused(tmp_path: Path) -> None:
    from transformers import ViTImageProcessor

    saved_port(tmp_path / "port", ("fish", "cat", "dog"), ViTImageProcessor(size={"height": 32, "width": 32}))
    some = colours(tmp_path / "some", "fish", "dog")
    options: Any = {"device": "cpu", "num_workers": 0}
    found = evaluate_model(tmp_path / "port", data=some, **options)
    assert (found.top1, found.notes) == (
        1.0,
        ("the data has 2 of the network's 3 classes; any of these can be its answer",),
    )
    by_index = colours(tmp_path / "by_index", *"012")
    found = evaluate_model(tmp_path / "port", data=by_index, **options)
    note = "the folders are named by the index of a class: these are 0 fish, 1 cat, 2 dog"
    assert (found.top1, found.notes) == (0.0, (note,))  # 0 is as bright as a cat, and means a fish
    strange = colours(tmp_path / "strange", "cat", "dog", "zebra")
    with pytest.raises(DataError, match="'zebra' is none of its classes, such as 'fish', 'cat', 'dog'"):
        evaluate_model(tmp_path / "port", data=strange, **options)


def test_what_nothing_tells_is_said(tmp_path: Path) -> None:
    torch.save(build_model(TINY).state_dict(), tmp_path / "w.pth")
    data, notes = colours(tmp_path / "data" / "val", *CLASSES).parent, []
    found = evaluate_model(tmp_path / "w.pth", data=data, arch=TINY, device="cpu", num_workers=0, on_note=notes.append)
    assert found.notes == tuple(notes)
    order, preparation = notes
    assert order == (
        "nothing beside the weights names their classes: they are taken in the data's order, 0 cat, 1 dog, 2 fish"
    )
    assert preparation.startswith(
        "nothing beside the weights says how images are prepared: the centre, 0.875 of it, is"
    )


def processors() -> dict[str, Any]:
    from transformers import CLIPImageProcessor, ConvNextImageProcessor, ViTImageProcessor

    size, means, deviations = {"height": 32, "width": 32}, [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
    usual: dict[str, Any] = {"image_mean": means, "image_std": deviations}
    return {
        "whole image": ViTImageProcessor(size=size, **usual),
        "no normalisation": ViTImageProcessor(size=size, do_normalize=False),
        "another scale": ViTImageProcessor(size=size, rescale_factor=1 / 127.5, **usual),
        "no scale": ViTImageProcessor(size=size, do_rescale=False, **usual),
        "neither": ViTImageProcessor(size=size, do_rescale=False, do_normalize=False),
        "bilinear": ViTImageProcessor(size=size, resample=2, **usual),
        "lanczos": ViTImageProcessor(size=size, resample=1, **usual),
        "ConvNeXt's crop": ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.8, **usual),
        "ConvNeXt without a crop": ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0, **usual),
        "CLIP's crop": CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=size, **usual),
        "CLIP's crop of all": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size, **usual),
    }


@pytest.mark.parametrize("name", [
    "whole image", "no normalisation", "another scale", "no scale", "neither", "bilinear", "lanczos", "ConvNeXt's crop",
    "ConvNeXt without a crop", "CLIP's crop", "CLIP's crop of all",
])  # fmt: skip
@torch.inference_mode()
def test_images_are_prepared_as_transformers_does_by_the_same_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cvt_nas.engine import evaluation

    seen, original = list[torch.Tensor](), evaluation.logits_of
    monkeypatch.setattr(evaluation, "logits_of", lambda model, images, settings, prepared: (
        seen.append(prepared(images)) or original(model, images, settings, prepared)
    ))  # fmt: skip
    processor = processors()[name]
    saved_port(tmp_path / "port", CLASSES, processor)
    data = colours(tmp_path / "data", *CLASSES, side=(48, 64))
    evaluate_model(tmp_path / "port", data=data, device="cpu", num_workers=0)
    images = [Image.open(file) for folder in sorted(data.iterdir()) for file in sorted(folder.iterdir())]
    expected = processor(images, return_tensors="pt")["pixel_values"].float()
    difference = (torch.cat(seen) - expected).abs() / expected.std()
    assert difference.mean() < 0.01, "but for the rounding of resized pixels"


@pytest.mark.parametrize(("resample", "mode"), [(0, "nearest"), (4, "box"), (5, "hamming")])
def test_each_of_pillows_ways_to_resize_is_used(resample: int, mode: str, tmp_path: Path) -> None:
    tree = {"image_processor_type": "ViTImageProcessor", "size": 32, "resample": resample, "image_mean": [0.5],
            "image_std": [0.5]}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(tree))
    found, path = facts_beside(tmp_path), preprocessing_beside(tmp_path)[1]
    assert (found["interpolation"], found["image_size"], path) == (mode, 32, tmp_path / "preprocessor_config.json")
    torch.save(build_model(TINY).state_dict(), tmp_path / "w.pth")
    data = colours(tmp_path / "data", *CLASSES, side=(48, 64))
    evaluate_model(tmp_path / "w.pth", data=data, arch=TINY, device="cpu", num_workers=0)


SIZES = [
    ({"size": 32}, 32, 1.0),
    ({"size": {"height": 32, "width": 32}}, 32, 1.0),
    ({"size": [32, 32]}, 32, 1.0),
    ({"size": 224, "feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875}, 224, 224 / 256),
    ({"size": {"shortest_edge": 384}, "image_processor_type": "ConvNextImageProcessor"}, 384, 1.0),
    ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}, 224, 224 / 256),
    ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}, 224, 0.875),
    (
        {"size": 256, "feature_extractor_type": "CLIPFeatureExtractor", "do_center_crop": True, "crop_size": 224},
        224,
        0.875,
    ),
    (
        {"size": 224, "image_processor_type": "LevitImageProcessor", "do_center_crop": True, "crop_size": 224},
        224,
        0.875,
    ),
    ({"size": {"shortest_edge": 40}, "image_processor_type": "CLIPImageProcessor", "crop_size": 32}, 32, 0.8),
    ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 224, 0.875),
]


@pytest.mark.parametrize(("told", "side", "share"), SIZES)
def test_a_size_is_read_however_it_is_written(told: dict[str, Any], side: int, share: float, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5], "image_std": [0.5], **told}))
    found = facts_beside(tmp_path)
    assert found["image_size"] == side
    assert found["crop_pct"] == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"size": {"height": 32, "width": 0}}, "size: got {'height': 32, 'width': 0}, must be a whole number"),
        ({"size": {"max_height": 32, "max_width": 48}}, "must be height and width, or one side"),
        (
            {"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": {"height": 64, "width": 32}},
            "size: got {'shortest_edge': 64}, must be one number, like crop_size",
        ),
        ({"size": {"shortest_edge": 32}}, "size: got {'shortest_edge': 32}, must be height and width where"),
        ({"size": 32, "do_resize": False}, "do_resize: got False, must be true"),
        ({"size": 32, "resample": 9}, "resample: got 9, must be one of 0 (nearest), 1 (lanczos), 2 (bilinear)"),
        ({"size": 32, "do_pad": True}, "do_pad: got True, must be false"),
        ({"size": 32, "do_flip_channel_order": True}, "do_flip_channel_order: got True"),
        (
            {"size": 256, "do_center_crop": True, "crop_size": 224},
            "size: got {'side': 256}, must be shortest_edge if",
        ),
        (
            {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 64},
            "crop_size: got 64, must be at most 32",
        ),
        ({"size": 32, "rescale_factor": 0}, "rescale_factor: got 0.0, must be above 0"),
        ({"size": 32, "image_mean": [0.5, 0.5]}, "mean: got 2 values for images of 3 channels"),
        ({}, "cannot be read: size is missing"),
        ({"size": 32, "image_std": [0.5, 0.0, 0.5]}, "image_std: got [0.5, 0.0, 0.5], must be numbers above 0"),
        ({"size": 32, "image_std": [-1, 1, 1]}, "image_std: got [-1, 1, 1], must be numbers above 0"),
        ({"size": 32, "image_std": float("inf")}, "image_std: got inf, must be numbers above 0"),
        (
            {"size": 32, "image_mean": [float("nan")] * 3},
            "image_mean: got [nan, nan, nan], must be numbers of at least",
        ),
        ({"size": 32, "image_mean": None}, "image_mean: got None, must be numbers of at least 0"),
        ({"size": 32, "image_mean": "imagenet"}, "image_mean: got 'imagenet', must be numbers"),
        ({"size": "64"}, "size: got '64', must be a whole number"),
        ({"size": None}, "size: got None, must be a whole number"),
        ({"size": [1, 2, 3]}, "size: got [1, 2, 3], must be a whole number"),
        (
            {"size": 32, "image_processor_type": "EfficientNetImageProcessor", "include_top": True, "resample": 3},
            "include_top: got True, must be false: it normalises the images twice",
        ),
        ({"size": 32, "image_processor_type": "EfficientNetImageProcessor"}, "include_top: got None, must be false"),
        ({"size": 32, "image_processor_type": "OddImageProcessor"}, "resample: got None, must be one of 0 (nearest)"),
    ],
)
def test_what_a_processor_asks_for_in_vain_is_named(told: dict[str, Any], message: str, tmp_path: Path) -> None:
    torch.save(build_model(TINY).state_dict(), tmp_path / "w.pth")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5], "image_std": [0.5], **told}))
    data = colours(tmp_path / "data", *CLASSES)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        evaluate_model(tmp_path / "w.pth", data=data, arch=TINY, device="cpu", num_workers=0)
    assert str(tmp_path / "preprocessor_config.json") in str(caught.value)


@pytest.mark.parametrize("kind", ["ViT", "ConvNext", "CLIP", "DeiT", "Bit", "Levit", "MobileNetV2", "PoolFormer"])
def test_what_a_processor_leaves_out_is_as_in_its_class(kind: str, tmp_path: Path) -> None:
    import transformers

    own: Any = getattr(transformers, f"{kind}ImageProcessor")()
    tree = {"image_processor_type": f"{kind}ImageProcessor", "size": {"shortest_edge": 40}, "crop_size": 32,
            "image_mean": [0.5], "image_std": [0.5]}  # fmt: skip
    if kind in ("ViT", "ConvNext"):
        tree = {**tree, "size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(tree))
    found = facts_beside(tmp_path)
    assert found["interpolation"] == {2: "bilinear", 3: "bicubic"}[int(own.resample)]
    assert found["image_size"] == 32
    assert bool(getattr(own, "do_center_crop", False)) == (kind not in ("ViT", "ConvNext"))


@pytest.mark.parametrize("kind", [
    "ViT", "ConvNext", "CLIP", "DeiT", "Bit", "Levit", "MobileNetV1", "MobileNetV2", "PoolFormer", "Beit", "Blip",
    "Siglip", "ChineseCLIP",
])  # fmt: skip
def test_statistics_that_a_processor_leaves_out_are_those_of_its_class(kind: str, tmp_path: Path) -> None:
    import transformers

    own: Any = getattr(transformers, f"{kind}ImageProcessor")()
    tree = {"image_processor_type": f"{kind}ImageProcessor", "size": {"shortest_edge": 40}, "crop_size": 32,
            "do_center_crop": True, "resample": "bicubic"}  # fmt: skip
    if kind == "ConvNext":
        tree = {**tree, "do_center_crop": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(tree))
    found = facts_beside(tmp_path)
    assert (found["mean"], found["std"]) == (pytest.approx(own.image_mean), pytest.approx(own.image_std))
    assert found["interpolation"] == "bicubic"


def test_what_timms_config_leaves_out_or_has_as_null_is_as_in_timm(tmp_path: Path) -> None:
    from timm.data.config import resolve_data_config

    for nulls in ((), ("mean", "std", "interpolation", "crop_pct", "crop_mode")):
        facts: dict[str, Any] = {"input_size": [3, 28, 28], **dict.fromkeys(nulls)}
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "cvt_13", "pretrained_cfg": facts}))
        found = facts_beside(tmp_path)
        expected = resolve_data_config(pretrained_cfg=facts)
        assert {name: found[name] for name in ("mean", "std", "interpolation")} == {
            name: expected[name] for name in ("mean", "std", "interpolation")
        }
        assert found["crop_pct"] == pytest.approx(expected["crop_pct"])


@pytest.mark.parametrize("name", ["preprocessing.json", "config.json"])
@pytest.mark.parametrize("told", [{"std": [0, 1, 1]}, {"mean": [float("nan")] * 3}, {"std": [float("inf")] * 3}])
def test_statistics_that_no_images_have_are_refused(name: str, told: dict[str, Any], tmp_path: Path) -> None:
    facts = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, **told}
    tree = facts if name == "preprocessing.json" else {"architecture": "cvt_13", "pretrained_cfg": facts}
    (tmp_path / name).write_text(json.dumps(tree))
    with pytest.raises(DataError, match=f"{name}: {next(iter(told))}: got .*, must be numbers"):
        preprocessing_beside(tmp_path)


def test_how_images_are_prepared_is_read_from_timms_config(tmp_path: Path) -> None:
    facts = {
        "input_size": [3, 32, 32],
        "mean": [0.1] * 3,
        "std": [0.2] * 3,
        "interpolation": "bilinear",
        "crop_pct": 0.8,
    }
    for changes, share in (({}, 32 / 40), ({"crop_mode": "squash", "crop_pct": 1.0}, 1.0), ({"crop_pct": 1.0}, None)):
        config = {"architecture": "cvt_13", "pretrained_cfg": {**facts, **changes}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        found = facts_beside(tmp_path)
        assert (found["image_size"], found["mean"], found["interpolation"]) == (32, (0.1,) * 3, "bilinear")
        assert found["crop_pct"] == pytest.approx(share or 1.0)
        assert share is not None or found["crop_pct"] < 1, "or the image would be squashed"
    wide = {**config, "pretrained_cfg": {**facts, "input_size": [3, 32, 48]}}
    (tmp_path / "config.json").write_text(json.dumps(wide))
    assert facts_beside(tmp_path)["image_size"] == (32, 48)
    assert load_arch(tmp_path).image_size == (32, 48)
    for wrong, message in (
        ({"crop_mode": "border"}, "crop_mode: got 'border', must be 'center' or 'squash'"),
        ({"crop_pct": 1.2}, "crop_pct: got 1.2, must be above 0 and at most 1"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {**facts, **wrong}}))
        with pytest.raises(DataError, match=message):
            preprocessing_beside(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("format_", ["onnx", "pt2"])
def test_an_export_as_a_program_has_the_accuracy_that_the_run_reports(
    trained: RunFolder, format_: str, tmp_path: Path
) -> None:
    (arch_id,) = trained.test_accuracies()
    export(trained, "best", tmp_path / "model", format=format_)
    found = evaluate_model(tmp_path / "model", data="digits")
    assert found.top1 == pytest.approx(trained.test_accuracies()[arch_id])
    assert (found.arch_id, found.notes) == (arch_id, ())
    file = tmp_path / "model" / f"model.{format_}"
    assert evaluate_model(file, data="digits").top1 == found.top1
    with pytest.raises(
        ArchError, match="--image-size: .*model is exported for images of 8 x 8 alone; evaluate its run instead"
    ):
        evaluate_model(tmp_path / "model", data="digits", image_size=16)
    with pytest.raises(ArchError, match="--precision bf16: .*model is exported in fp32"):
        evaluate_model(tmp_path / "model", data="digits", precision="bf16")
    model = build_model(load_arch(tmp_path / "model"))
    with pytest.raises(ArchError, match="without weights to begin with: cvt-nas export --format torch has them"):
        initialise(model, tmp_path / "model")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ArchError, match=f"model.{format_}: cannot be loaded"):
        evaluate_model(tmp_path / "model", data="digits")


def test_the_command_line_asks_for_weights_and_for_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(build_model(RGB), tmp_path / "model")
    assert main(["eval", "cvt-13"]) == 2
    assert "cvt-13: is an architecture; give its weights" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "model")]) == 2
    assert "name the images by --data DIR, or a data set by its name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nope.pth", "nope.pth: no such file or folder\n"),
        ("dangling.pth", "dangling.pth: no such file or folder\n"),
        (
            "microsoft/cvt-13",
            "microsoft/cvt-13: no such file or folder; of the Hugging Face Hub, download it first: hf",
        ),
        ("https://there.org/w.pth", "https://there.org/w.pth: is an address; download the weights first"),
    ],
)
def test_weights_that_are_not_there_are_said_to_be_missing(
    weights: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dangling.pth").symlink_to("nowhere")
    assert main(["eval", weights, "--data", "digits"]) == 2
    assert message in capsys.readouterr().err


def test_a_config_without_a_size_takes_that_of_its_processor_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import ViTImageProcessor

    saved_port(tmp_path / "port", CLASSES, ViTImageProcessor(size={"height": 32, "width": 32}))
    torch.save(load_checkpoint(tmp_path / "port").state_dict(), tmp_path / "w.pth")
    data = colours(tmp_path / "data", *CLASSES)
    command = ["eval", str(tmp_path / "w.pth"), "--data", str(data), "--device", "cpu", "--json"]
    capsys.readouterr()
    assert main([*command, "--arch", str(tmp_path / "port")]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["image_size"] == 32
    assert f"config.json tells no size of images: 32 x 32, as {tmp_path}/port/preprocessor_config.json says" in said.err
    (tmp_path / "port" / "preprocessor_config.json").unlink()
    assert main(["profile", str(tmp_path / "port"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["image_size"] == 224
    assert "tells no size of images: 224 x 224, as of the published models" in said.err


# --- figures of each class, and images without labels


def test_figures_of_each_class_are_written_where_they_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "data" / "val", num_classes=3)
    arch = dataclasses.replace(RGB, num_classes=3)
    save_model(biased_to(CvT(arch), 1, 0), tmp_path / "model")
    (tmp_path / "model" / "preprocessing.json").write_text(
        json.dumps({"mean": [0.5], "std": [0.5], "classes": ["class0", "class1", "class2"]})
    )
    words = ["eval", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--to", str(tmp_path / "figures")]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["top1"] == pytest.approx(1 / 3)
    assert found["metrics"] == pytest.approx({"balanced_accuracy": 1 / 3, "macro_f1": 1 / 6})
    assert set(found["written"]) == {"classes", "confusion", "picture"}
    classes = (tmp_path / "figures" / "classes.csv").read_text().splitlines()
    assert classes[0] == "class,images,answered,precision,recall,f1"
    assert classes[2].startswith("class1,4,12,0.333")
    confusion = (tmp_path / "figures" / "confusion.csv").read_text().splitlines()
    assert confusion == ["class,class0,class1,class2", *(f"class{index},0,4,0" for index in range(3))]
    page = (tmp_path / "figures" / "confusion.html").read_text()
    assert "What images of each class are taken for" in page
    assert 'src="http' not in page


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images in two folders, one that is damaged, and one of the system."""
    write_images(tmp_path / "photos", num_classes=2, num_images=5)
    (tmp_path / "photos" / "class0" / "broken.png").write_bytes(b"no image")
    (tmp_path / "photos" / "@eaDir").mkdir()
    (tmp_path / "photos" / "@eaDir" / "thumb.png").write_bytes(b"no image")
    return tmp_path / "photos"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = CvT(RGB).eval()
    with torch.no_grad():
        network.head.weight.normal_()
    save_model(network, tmp_path / "model")
    names = [f"kind {index}" for index in range(RGB.num_classes)]
    (tmp_path / "model" / "preprocessing.json").write_text(
        json.dumps({"image_size": 32, "mean": [0.4] * 3, "std": [0.2] * 3, "crop_pct": 0.875, "classes": names})
    )
    return tmp_path / "model"


def test_a_table_is_read_by_the_columns_of_the_training(model: Path, photos: Path, tmp_path: Path) -> None:
    paths = sorted((photos / "class1").glob("*.png"))
    lines = [
        f"{path},kind {place % 2},{'train' if place < 2 else 'test'},kind {2 + place % 2},test"
        for place, path in enumerate(paths)
    ]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["image,label,split,species,fold", *lines]))
    found, by_columns = (
        evaluate_model(model, data=table, device="cpu", read_as=read_as)
        for read_as in (None, DataConfig(dataset="table", label_column="species", split_column="fold"))
    )
    assert (found.class_names, found.num_images) == (("kind 0", "kind 1"), len(paths) - 2)
    assert (by_columns.class_names, by_columns.num_images) == (("kind 2", "kind 3"), len(paths))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_image_has_a_row_with_the_likeliest_classes_or_why_it_cannot_be_read(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "p.csv"
    assert main(["predict", str(model), str(photos), "--to", str(to), "--top", "3", "--batch-size", "4"]) == 1
    said = capsys.readouterr()
    assert "10 of 11 images answered" in said.out
    assert "broken.png" in said.err
    rows = rows_of(to)
    assert [row["path"] for row in rows] == sorted(str(path) for path in photos.glob("class*/*.png"))
    (broken,) = [row for row in rows if row["error"]]
    assert broken["path"].endswith("broken.png")
    assert not broken["class_1"]
    network = load_model(model)
    for row in rows:
        if row["error"]:
            continue
        pixels = torch.from_numpy(np.array(Image.open(row["path"]).resize((36, 36), Image.Resampling.BICUBIC)))
        inputs = ((pixels[2:34, 2:34].permute(2, 0, 1) / 255 - 0.4) / 0.2)[None]
        with torch.inference_mode():
            shares = network(inputs).softmax(dim=1)[0]
        assert row["class_1"] == f"kind {int(shares.argmax())}"
        assert float(row["probability_1"]) == pytest.approx(float(shares.max()), abs=0.01)
        assert float(row["probability_1"]) >= float(row["probability_2"]) >= float(row["probability_3"])


def test_predictions_that_were_cut_off_go_on_and_are_the_same(model: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "class0" / "broken.png").unlink()
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    words = ["predict", str(model), str(photos), "--batch-size", "4", "--to"]
    assert main([*words, str(whole)]) == 0
    text = whole.read_text()
    cut.write_text(text[: len(text) // 2])  # in the middle of a row
    assert main([*words, str(cut)]) == 2, "nothing is written over"
    assert main([*words, str(cut), "--resume"]) == 0
    assert cut.read_text() == text


def test_an_image_that_could_not_be_read_is_tried_again(model: Path, photos: Path, tmp_path: Path) -> None:
    words = ["predict", str(model), str(photos), "--to", str(tmp_path / "p.csv")]
    assert main(words) == 1
    assert main([*words, "--resume"]) == 1, "it is still broken"
    shutil.copy(photos / "class1" / "0.png", photos / "class0" / "broken.png")
    assert main([*words, "--resume"]) == 0
    rows = rows_of(tmp_path / "p.csv")
    assert sorted(row["path"] for row in rows) == sorted(map(str, photos.glob("class*/*.png")))
    assert not any(row["error"] for row in rows)


@pytest.mark.parametrize("top", [1, 3])
def test_answers_of_another_network_are_not_mixed(top: int, model: Path, photos: Path, tmp_path: Path) -> None:
    to, before = tmp_path / "p.csv", load_model(model)
    predict(model, photos / "class1" / "0.png", to=to, top=top, device="cpu")
    text = to.read_text()
    with torch.no_grad():
        before.head.weight.neg_()
    save_model(before, model)
    with pytest.raises(DataError, match=r"0\.png has the answer of another network there; write elsewhere by --to"):
        predict(model, photos / "class1", to=to, top=top, device="cpu", resume=True)
    assert to.read_text() == text


def test_images_come_from_a_pattern_or_a_table_and_any_export_answers_alike(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.csv").write_text("label;path\n?;photos/class1/0.png\n?;photos/class1/1.png\n")
    assert main(["predict", str(model), "photos/class1/[01].png", "--to", "pattern.csv"]) == 0
    assert main(["predict", str(model), "list.csv", "--to", "table.csv"]) == 0
    assert rows_of(tmp_path / "table.csv") == rows_of(tmp_path / "pattern.csv")
    assert len(rows_of(tmp_path / "table.csv")) == 2
    with gzip.open("windows.csv.gz", "wt") as file:
        file.write("path\n photos\\class1\\0.png\n photos\\class1\\1.png\n")
    assert main(["predict", str(model), "windows.csv.gz", "--to", "again.csv"]) == 0
    assert rows_of(tmp_path / "again.csv") == rows_of(tmp_path / "pattern.csv")


@pytest.mark.parametrize("name", ["path", "file", "filename", "name", "image"])
def test_a_table_of_paths_alone_is_read(name: str, model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"{name}\n{photos}/class1/0.png\n{photos}/class1/1.png\n")
    found = predict(model, tmp_path / "list.csv", to=tmp_path / "p.csv", device="cpu")
    assert (found.num_images, found.damaged) == (2, {})


def test_images_in_linked_folders_and_links_that_lead_nowhere_have_rows(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "class1").symlink_to(photos / "class1")
    (linked / "up").symlink_to(tmp_path)
    (linked / "gone.png").symlink_to(tmp_path / "nowhere.png")
    said: list[str] = []
    found = predict(model, linked, to=tmp_path / "p.csv", device="cpu", on_note=said.append)
    assert found.num_images == len(list((photos / "class1").iterdir())) + 1
    assert list(found.damaged) == [str(linked / "gone.png")]
    assert any("a link that leads up to" in line for line in said)
    below = linked / "class1" / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    assert predict(model, "..", to=tmp_path / "up.csv", device="cpu").num_images == found.num_images - 1


def test_a_name_with_a_line_separator_or_in_another_encoding_is_answered_once(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in ("a\x85b.png", "c\u2028d.png", 'e,"f.png', os.fsdecode(b"g\xff.png")):
        shutil.copy(photos / "class1" / "0.png", folder / name)
    predict(model, folder, to=tmp_path / "p.csv", device="cpu")
    whole = (tmp_path / "p.csv").read_bytes()
    found = predict(model, folder, to=tmp_path / "p.csv", device="cpu", resume=True)
    assert (found.num_images, found.num_known) == (4, 4)
    assert (tmp_path / "p.csv").read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "sign"),
    [("preprocessing.json", {"multi_label": True}), ("config.json", {"problem_type": "multi_label_classification"})],
)
def test_a_label_of_several_has_a_probability_of_its_own(
    name: str, sign: dict[str, Any], model: Path, photos: Path, tmp_path: Path
) -> None:
    path = model / name
    tree = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**tree, **sign}))
    found = predict(model, photos / "class1" / "0.png", to=tmp_path / "p.csv", top=10, device="cpu")
    assert (found.num_images, found.damaged) == (1, {})
    (row,) = rows_of(tmp_path / "p.csv")
    assert sum(float(row[f"probability_{rank}"]) for rank in range(1, 11)) > 1.5


def test_what_holds_no_images_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    for images, why in (
        (tmp_path / "empty", "no images"),
        (tmp_path / "x*.png", "no images"),
        (tmp_path / "t.csv", "no column of paths"),
    ):
        with pytest.raises(DataError, match=why):
            predict(model, images, to=tmp_path / "p.csv", device="cpu")
    assert not (tmp_path / "p.csv").exists()
