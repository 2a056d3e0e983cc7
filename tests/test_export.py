"""Every format, loaded again by the tools that it is for."""

import dataclasses
import functools
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import small_digits
from cvt_nas.arch import ArchConfig, BlockConfig, arch_from_dict, arch_to_dict, cost_of, load_arch
from cvt_nas.cli import main
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.errors import ExportError, RunFolderError
from cvt_nas.export import FORMATS, Format, export
from cvt_nas.export.hub import FILES
from cvt_nas.export.hugging_face import misfits
from cvt_nas.model import CvT, load_model, save_model
from cvt_nas.results import TrialResult
from cvt_nas.run import RunFolder
from strategies import per_stage
from test_model import randomise

GELU = per_stage(
    image_size=32, num_channels=1, dims=(16, 32, 48), depths=(1, 2, 3), heads=(1, 2, 3), kernels=(3, 5, 3),
    strides=(2, 1, 2), ratios=(2.0, 1.0, 3.0), activation="gelu",
)  # fmt: skip
WIDE = GELU.with_image_size((32, 48))
CLASSES = [f"class {index}" for index in range(10)]
PREPROCESSING = {"image_size": 32, "mean": [0.3], "std": [0.4], "classes": CLASSES}


def run_of(arch: ArchConfig, experiment: Experiment, folder: Path) -> RunFolder:
    """A run whose only trial is `arch`, with random weights."""
    run = RunFolder.create(folder, experiment.manifest(seed=0, num_trials=1))
    torch.manual_seed(0)
    model = CvT(arch).eval()
    randomise(model)
    save_model(model, run.model_path(arch.id))
    (run.model_path(arch.id) / "preprocessing.json").write_text(
        json.dumps({**PREPROCESSING, "image_size": arch.image_size})
    )
    run.append(
        TrialResult(
            number=0,
            arch=arch,
            status="complete",
            epochs=3,
            accuracy=0.5,
            cost=cost_of(arch),
            curve=(0.1, 0.2, 0.5),
            seconds=1.0,
            train_seconds=1.0,
            seed=0,
            device="cpu",
        )
    )
    return run


@pytest.fixture(scope="module")
def run(small: Experiment, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_of(WIDE, small, tmp_path_factory.mktemp("exported") / "run")


@pytest.fixture(scope="module")
def exported(run: RunFolder) -> Callable[[str], Path]:
    """The folder `model` of a format, which is written once, as that takes seconds."""

    @functools.cache
    def folder_of(name: str) -> Path:
        to = run.path.parent / name / "model"
        assert export(run, "best", str(to), format=name).arch_id == WIDE.id
        return to

    return folder_of


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What loads an export again is executed as it is for users, and not forked."""
    monkeypatch.setattr("cvt_nas.export.exporting.subprocess", subprocess)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "torch" and FORMATS[name].int8 is None])
def test_what_is_exported_answers_as_the_trained_model_for_any_number_of_images(
    run: RunFolder, exported: Callable[[str], Path], name: str
) -> None:
    to = exported(name)
    assert {path.name for path in to.iterdir()} <= set(FILES), "what `push` uploads"
    model, logits_of = load_model(run.model_path(WIDE.id)), FORMATS[name].load(to)
    for num_images in (1, 5):
        images = torch.randn(num_images, *WIDE.image_shape)
        with torch.inference_mode():
            torch.testing.assert_close(logits_of(images), model(images), rtol=1e-4, atol=1e-4)


def test_one_file_of_a_program_tells_its_classes_and_how_images_are_prepared(exported: Callable[[str], Path]) -> None:
    import onnxruntime

    told: dict[str, str] = {"preprocessing.json": ""}
    torch.export.load(exported("pt2") / "model.pt2", extra_files=told)
    session = onnxruntime.InferenceSession(exported("onnx") / "model.onnx", providers=["CPUExecutionProvider"])
    for text in (told["preprocessing.json"], session.get_modelmeta().custom_metadata_map["preprocessing"]):
        assert json.loads(text) == {**PREPROCESSING, "image_size": [32, 48]}


@pytest.mark.parametrize("name", ["hf", "timm", "onnx", "pt2"])
def test_the_lines_of_the_model_card_run(
    small: Experiment, exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    card = (exported(name) / "README.md").read_text()
    lines = card.partition("## Use\n")[2].partition("\nImages are")[0]
    monkeypatch.chdir(exported(name).parent)
    found: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in lines.splitlines()), found)
    assert np.shape(found["logits"].detach() if name != "onnx" else found["logits"]) == (1, 10)
    assert small.text.splitlines()[0] in card


@pytest.mark.parametrize(
    ("preprocessing", "crop"), [({}, False), ({"crop_pct": 0.875, "interpolation": "bicubic"}, True)]
)
def test_the_image_processor_prepares_an_image_as_training_did(
    exported: Callable[[str], Path], tmp_path: Path, preprocessing: dict[str, Any], crop: bool
) -> None:
    from timm.data.transforms_factory import create_transform
    from transformers import AutoImageProcessor

    if preprocessing:
        folder = tmp_path
        FORMATS["hf"].write(CvT(GELU), folder, {**PREPROCESSING, **preprocessing})
    else:
        folder = exported("hf")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70), dtype=np.uint8), mode="L")
    found = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    expected: Any = create_transform(
        32 if crop else (32, 48),
        interpolation=preprocessing.get("interpolation", "bilinear"),
        crop_pct=preprocessing.get("crop_pct", 1.0),
        crop_mode="center" if crop else "squash",
        mean=(0.3,),
        std=(0.4,),
    )
    torch.testing.assert_close(found[0], expected(image), rtol=0, atol=0.02)  # two roundings to 8 bits


def test_a_folder_that_exporters_cannot_name_is_refused_before_anything_is_written(
    small: Experiment, tmp_path: Path
) -> None:
    to = tmp_path / os.fsdecode(b"\xff") / "model"
    with pytest.raises(ExportError, match="^--to .*: is not UTF-8; take another name$"):
        export(run_of(GELU, small, tmp_path / "run"), "best", to, format="onnx")
    assert not to.parent.exists()


@pytest.mark.parametrize("what", ["flop<1e9", "params<=1e9", "flops>1"])
def test_a_limit_that_is_none_says_how_they_are_written(small: Experiment, tmp_path: Path, what: str) -> None:
    with pytest.raises(RunFolderError, match=r"must be knee, best, an arch id, or a limit as flops<4e9, params<20e6"):
        export(run_of(GELU, small, tmp_path / "run"), what, tmp_path / "model")


def test_labels_travel_to_transformers(exported: Callable[[str], Path]) -> None:
    config = json.loads((exported("hf") / "config.json").read_text())
    assert config["id2label"] == {str(index): label for index, label in enumerate(CLASSES)}
    assert config["label2id"]["class 3"] == 3


def varied(**changes: Any) -> ArchConfig:
    """`GELU` with another last block of its second stage."""
    stage = GELU.stages[1]
    blocks = (*stage.blocks[:-1], dataclasses.replace(stage.blocks[-1], **changes))
    return dataclasses.replace(
        GELU, stages=(GELU.stages[0], dataclasses.replace(stage, blocks=blocks), *GELU.stages[2:])
    )


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        (varied(kv_stride=2), "stage 1: its blocks differ in kv_stride"),
        (varied(mlp_ratio=2.0), "stage 1: its blocks differ in mlp_ratio"),
        (varied(activation="quick_gelu"), "activation quick_gelu"),
        (load_arch("cvt-13"), "activation quick_gelu"),
        (
            dataclasses.replace(GELU, stages=(dataclasses.replace(GELU.stages[0], pos_embed=True), *GELU.stages[1:])),
            "stage 0: position embedding, it has none",
        ),
        (
            dataclasses.replace(
                GELU,
                stages=(
                    dataclasses.replace(
                        GELU.stages[0], blocks=(BlockConfig(projection="avg", activation="gelu", num_heads=1),)
                    ),
                    dataclasses.replace(GELU.stages[1], blocks=GELU.stages[1].blocks[:1]),
                    GELU.stages[2],
                ),
            ),
            "stage 0: projection avg, it has dw_bn alone; stage 1: depth 1, it needs more than 1",
        ),
    ],
    ids=["strides", "ratios", "one activation", "cvt-13", "positions", "projection and depth"],
)
def test_what_transformers_cannot_be_is_refused_with_the_reason(arch: ArchConfig, reason: str) -> None:
    assert reason in "; ".join(misfits(CvT(arch), {}))


def test_a_centre_that_no_processor_of_transformers_crops_is_refused() -> None:
    assert misfits(CvT(WIDE), {"crop_pct": 1.0}) == []
    (reason,) = misfits(CvT(WIDE), {"crop_pct": 0.875})
    assert reason == "the centre of images, 32 x 48, is cropped, its processors crop squares alone"


def test_a_refusal_names_the_formats_that_can(
    small: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(dataclasses.replace(load_arch("cvt-13"), image_size=32, num_classes=10), small, tmp_path / "run")
    arguments = ["export", str(run.path), "--pick", "best", "--to", str(tmp_path / "model"), "--format", "hf"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "cannot be this network: activation quick_gelu" in message
    assert "--format torch, timm, onnx and pt2 can" in message
    assert not (tmp_path / "model").exists()


def test_an_unknown_format_is_an_error_that_names_the_others(small: Experiment, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="format 'onx': must be one of torch, hf, timm, onnx"):
        export(run_of(GELU, small, tmp_path / "run"), "best", tmp_path / "model", format="onx")
    assert not (tmp_path / "model").exists()


def test_a_mismatch_fails_says_by_how_much_and_deletes_nothing(
    small: Experiment, tmp_path: Path, executed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_a_little_wrong(model: CvT, folder: Path, preprocessing: Any) -> None:
        with torch.no_grad():
            model.head.bias.add_(0.01)
        FORMATS["torch"].write(model, folder, preprocessing)
        with torch.no_grad():
            model.head.bias.sub_(0.01)

    wrong = Format(write=write_a_little_wrong, load=load_model, usage="")
    run = run_of(GELU, small, tmp_path / "run")
    monkeypatch.setattr("cvt_nas.export.exporting.FORMATS", {"torch": wrong})
    with pytest.raises(ExportError, match=r"loaded again, its logits differ by 0\.01 from those of the trained model"):
        export(run, "best", tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_a_place_that_cannot_be_written_is_named(small: Experiment, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExportError, match="file/model: cannot be written: Not a directory"):
        export(run_of(GELU, small, tmp_path / "run"), "best", tmp_path / "file" / "model")


def test_the_command_line_offers_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "run", "--to", "there", "--format", "none"])
    message = capsys.readouterr().err.replace("'", "")  # which newer versions of Python leave out
    assert message.rstrip().endswith(f"(choose from {', '.join(FORMATS)})")


def test_a_package_that_is_missing_is_named_with_its_extra(
    small: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(GELU, small, tmp_path / "run")
    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], needs=("onnx", "no_such_package")))
    with pytest.raises(ExportError, match=r"needs no_such_package: pip install 'cvt-nas\[onnx\]'"):
        export(run, "best", tmp_path / "model", format="onnx")


def test_a_space_file_says_the_activation_and_ids_of_other_networks_stay(small: Experiment) -> None:
    gelu = parse_experiment(small_digits(**{"  num_classes:": "  num_classes: 10\n  activation: gelu"}), "gelu.yaml")
    blocks = [block for stage in gelu.space.largest.stages for block in stage.blocks]
    assert {block.activation for block in blocks} == {"gelu"}
    assert gelu.space.largest.id != small.space.largest.id
    assert arch_from_dict(arch_to_dict(gelu.space.largest)) == gelu.space.largest
    assert gelu.space.encode(gelu.space.largest)
    assert "activation" not in json.dumps(arch_to_dict(small.space.largest))
    assert cost_of(gelu.space.largest) == cost_of(small.space.largest)


# one that is not the default takes the same way as another
@pytest.mark.parametrize("opset", [18, pytest.param(22, marks=pytest.mark.slow)])
def test_an_onnx_file_has_the_opset_that_was_asked_for_and_the_card_says_it(
    small: Experiment, tmp_path: Path, executed: None, opset: int
) -> None:
    import onnx

    arch, to = dataclasses.replace(WIDE, stages=WIDE.stages[:1]), tmp_path / "model"
    run = run_of(arch, small, tmp_path / "run")
    arguments = ["export", str(run.path), "--pick", "best", "--to", str(to), "--format", "onnx"]
    assert main([*arguments, "--opset", str(opset)]) == 0
    assert [(found.domain, found.version) for found in onnx.load(to / "model.onnx").opset_import] == [("", opset)]
    assert f"# opset {opset}, any number of images" in (to / "README.md").read_text()
    images = torch.randn(3, *WIDE.image_shape)
    with torch.inference_mode():
        expected = load_model(run.model_path(arch.id))(images)
    torch.testing.assert_close(FORMATS["onnx"].load(to)(images), expected, rtol=1e-4, atol=1e-4)


def test_an_opset_that_cannot_be_written_is_refused_before_anything_is(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(run.path), "--pick", "best", "--to", str(tmp_path / "model")]
    for opset in (11, 17, 99):
        assert main([*arguments, "--format", "onnx", "--opset", str(opset)]) == 2
        assert f"--opset {opset}: must be from 18 to 2" in capsys.readouterr().err
    assert main([*arguments, "--format", "timm", "--opset", "18"]) == 2
    assert "--opset 18: is for --format onnx, not timm" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
