"""Exports in int8: what they are worth, and that faults of quantisation and of libraries are seen."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from torch import nn

from cvt_nas.arch import ArchConfig
from cvt_nas.cli import main
from cvt_nas.config import Experiment, TrainingConfig
from cvt_nas.data import LoadedData, load_data
from cvt_nas.engine.int8 import calibration_batches, complaints, judge
from cvt_nas.engine.quantised import Recipe
from cvt_nas.errors import ExportError
from cvt_nas.evaluate import evaluate_model
from cvt_nas.export import FORMATS, export
from cvt_nas.export.hub import FILES
from cvt_nas.export.int8 import _keep_figures
from cvt_nas.model import CvT, Logits, by_whole_windows, open_onnx, open_openvino, runtimes_for
from cvt_nas.model.pooling import WholeWindows
from cvt_nas.model.quantising import OP_TYPES, quantise_onnx, quantise_openvino
from cvt_nas.results import Judged, Judgement
from cvt_nas.run import RunFolder
from cvt_nas.train import train
from strategies import per_stage
from test_confirm_int8 import int8 as figures_of

PLAIN = TrainingConfig(epochs=0)
OPENED = {"onnx-int8": "model.onnx", "openvino-int8": "model.xml"}


def pooling_arch() -> ArchConfig:
    """One stage of 4 x 4 tokens, whose keys and values are means of windows; the last ones reach over the padding."""
    arch = per_stage(
        image_size=8, num_channels=1, dims=(16,), depths=(1,), heads=(2,), kernels=(3,), strides=(2,), ratios=(2.0,),
        stem=(3, 2, 1),
    )  # fmt: skip
    (stage,) = arch.stages
    blocks = tuple(dataclasses.replace(block, projection="avg") for block in stage.blocks)
    return dataclasses.replace(arch, stages=(dataclasses.replace(stage, blocks=blocks, class_token=False),))


@pytest.fixture(scope="module")
def images(digits: Experiment) -> LoadedData:
    return load_data(digits.data, root=None, image_size=8, num_channels=1, num_classes=10)


@pytest.fixture(scope="module")
def pooling() -> CvT:
    """Values with a mean far from 0, so that a wrong divisor is seen."""
    torch.manual_seed(0)
    model = CvT(pooling_arch()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("proj_v.weight", "attn.proj.weight", "head.weight", "norm1.bias")):
                parameter.normal_(1.0 if "bias" in name else 0.0, 0.3)
    return model


@pytest.fixture(scope="module")
def trained(digits: Experiment, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("trained") / "run"
    experiment = dataclasses.replace(digits, training=digits.training.lasting(4))
    train(digits.space.smallest, experiment, out=out, device="cpu")
    return RunFolder.open(out)


@pytest.fixture(scope="module")
def exported(trained: RunFolder) -> Callable[[str], Path]:
    """The folder `model` of a format, which is written once."""

    @functools.cache
    def folder_of(name: str) -> Path:
        to = trained.path.parent / name / "model"
        export(trained, "best", to, format=name)
        return to

    return folder_of


def write_as_torch_exports(model: CvT, to: Path) -> Path:
    """In fp32, with average pooling as torch writes it."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.onnx.export(
        model, (torch.zeros(2, *model.arch.image_shape),), dynamo=True, opset_version=20, verbose=False,
        input_names=["images"], output_names=["logits"], dynamic_shapes={"images": {0: batch}},
    )  # fmt: skip
    assert program is not None
    program.save(to)
    return to


@pytest.mark.parametrize("name", OPENED)
def test_an_export_in_int8_is_worth_what_the_trained_network_is(
    trained: RunFolder, exported: Callable[[str], Path], name: str
) -> None:
    to = exported(name)
    assert {path.name for path in to.iterdir()} <= set(FILES), "what `push` uploads"
    found = json.loads((to / "int8.json").read_text())
    scores = [judged["score"] for judged in found["judged"] if judged["score"] is not None]
    assert scores == pytest.approx([found["score"]] * len(scores), abs=0.02)
    assert len(scores) == (2 if name == "onnx-int8" else 1), "this network is not for OpenVINO as ONNX"
    assert found["num_images"] == 360
    assert found["num_calibrated"] == 256
    if name == "onnx-int8":  # OpenVINO's graph is text, which is larger than the weights of this network
        assert found["num_bytes"][1] < found["num_bytes"][0] / 2
    (arch_id,) = trained.int8.by_arch()
    runtime = FORMATS[name].int8
    assert runtime is not None
    recorded = trained.int8.by_arch()[arch_id][runtime]
    assert recorded.to_json() == found
    assert recorded.accuracy == found["judged"][-1 if name == "openvino-int8" else 1]["score"]
    (expected,) = trained.test_accuracies().values()
    assert evaluate_model(to, data="digits").top1 == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("name", OPENED)
def test_products_of_bytes_do_not_saturate_on_a_cpu_without_vnni(exported: Callable[[str], Path], name: str) -> None:
    """Such a CPU adds two products of unsigned and signed bytes in 16 bits. So weights may use 7 of their 8 bits."""
    if name == "onnx-int8":
        tensors = [
            onnx.numpy_helper.to_array(each) for each in onnx.load(exported(name) / OPENED[name]).graph.initializer
        ]
    else:
        operations = openvino.Core().read_model(exported(name) / OPENED[name]).get_ops()
        tensors = [np.asarray(each.data) for each in operations if each.get_type_name() == "Constant"]
    weights = [tensor for tensor in tensors if tensor.dtype == np.int8 and tensor.ndim > 1]
    assert len(weights) > 5
    largest = max(np.abs(weight.astype(int)).max() for weight in weights)
    assert 255 * 2 * largest < 2**15
    assert largest > 60, "the range is used"


@pytest.mark.parametrize("name", OPENED)
def test_the_model_card_has_what_fp32_and_int8_are_worth_and_lines_that_run(
    exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    card, found = (exported(name) / "README.md").read_text(), json.loads((exported(name) / "int8.json").read_text())
    runtime = found["judged"][0]["runtime"]
    assert f"| accuracy in fp32, on 360 images of the search split | {found['score']:.4f} |" in card
    assert f"on 360 images of the search split, in {runtime} | {found['judged'][0]['score']:.4f} |" in card
    assert f"| {found['ms'][0]:.3g}, {found['ms'][1]:.3g} |" in card
    assert f"| MB in fp32 and in int8 | {found['num_bytes'][0] / 1e6:.2f}, " in card
    lines = card.partition("## Use\n")[2].partition("\nImages are")[0]
    monkeypatch.chdir(exported(name).parent)
    shown: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in lines.splitlines()), shown)
    assert np.shape(shown["logits"]) == (1, 10)


@pytest.mark.parametrize("name", OPENED)
def test_a_network_in_int8_answers_images_with_the_names_of_classes(
    exported: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    to = tmp_path / "answers.csv"
    assert main(["predict", str(exported(name)), str(tmp_path / "digit.png"), "--to", str(to)]) == 0
    header, row = to.read_text().splitlines()
    assert header.startswith("path,error,class_1,probability_1")
    assert row.split(",")[2] in {str(digit) for digit in range(10)}
    command = ["predict", str(exported(name)), str(tmp_path), "--to", str(tmp_path / "b.csv"), "--precision", "bf16"]
    assert main(command) == 2
    assert "is a program, whose precision is fixed" in capsys.readouterr().err


def test_a_file_in_int8_tells_its_classes_and_how_images_are_prepared(exported: Callable[[str], Path]) -> None:
    import onnxruntime
    import openvino

    session = onnxruntime.InferenceSession(exported("onnx-int8") / "model.onnx", providers=["CPUExecutionProvider"])
    read = openvino.Core().read_model(exported("openvino-int8") / "model.xml")
    for text in (session.get_modelmeta().custom_metadata_map["preprocessing"], read.get_rt_info("preprocessing").value):
        assert json.loads(text)["classes"] == [str(digit) for digit in range(10)]


def test_int8_is_calibrated_on_training_images_as_they_are_evaluated(images: LoadedData) -> None:
    found = np.concatenate(calibration_batches(images))
    assert found.shape == (256, 1, 8, 8)
    evaluated = np.concatenate([
        pixels.numpy() for pixels, _ in images.eval_batches("train", batch_size=512, device=torch.device("cpu"))
    ])  # fmt: skip
    known = {image.tobytes() for image in evaluated}
    assert all(image.tobytes() in known for image in found)


def judged(model: CvT, file: Path, images: LoadedData) -> Judgement:
    """In onnxruntime: OpenVINO 2026.4 answers otherwise where such a file has matrix products."""
    return judge(model, file, runtimes_for(file.name, only="onnxruntime"), images, PLAIN)


def test_a_quantised_average_pooling_that_onnxruntime_divides_wrongly_is_refused(
    pooling: CvT, images: LoadedData, tmp_path: Path
) -> None:
    source, file = write_as_torch_exports(pooling, tmp_path / "fp32.onnx"), tmp_path / "int8.onnx"
    quantise_onnx(source, file, calibration_batches(images), op_types_to_quantize=[*OP_TYPES, "AveragePool"])
    found = judged(pooling, file, images)
    basic, fused = found.judged
    assert basic.error is not None
    assert basic.error < 0.05
    assert any("the runtimes disagree" in line and fused.runtime in line for line in complaints(found))


@pytest.mark.parametrize("op_types", [OP_TYPES, [*OP_TYPES, "AveragePool"]])
def test_average_pooling_as_it_is_exported_is_computed_alike_by_all(
    pooling: CvT, images: LoadedData, tmp_path: Path, op_types: list[str]
) -> None:
    FORMATS["onnx"].write(pooling, tmp_path, {})
    file = tmp_path / "int8.onnx"
    quantise_onnx(tmp_path / "model.onnx", file, calibration_batches(images), op_types_to_quantize=op_types)
    found = judged(pooling, file, images)
    assert len([each for each in found.judged if each.error is not None]) == 2
    assert complaints(found) == []


@pytest.mark.parametrize("opened", [open_onnx, open_openvino])
def test_an_export_in_fp32_with_average_pooling_answers_as_torch_in_each_runtime(
    pooling: CvT, tmp_path: Path, opened: Callable[[Path], Logits]
) -> None:
    FORMATS["onnx"].write(pooling, tmp_path, {})
    images = torch.randn(5, *pooling.arch.image_shape)
    with torch.inference_mode():
        torch.testing.assert_close(opened(tmp_path / "model.onnx")(images), pooling(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_whole_windows_have_the_means_of_torch(kernel: int, stride: int) -> None:
    pool = nn.AvgPool2d(kernel, stride, kernel // 2, ceil_mode=True)
    for grid in [(4, 4), (5, 7), (8, 3), (14, 14)]:
        maps = torch.randn(2, 3, *grid)
        torch.testing.assert_close(WholeWindows(pool, grid)(maps), pool(maps))


def test_only_poolings_of_a_copy_are_changed(pooling: CvT) -> None:
    kinds = [{type(each) for each in model.modules()} for model in (by_whole_windows(pooling), pooling)]
    assert [(WholeWindows in kind, nn.AvgPool2d in kind) for kind in kinds] == [(True, False), (False, True)]


def test_a_network_that_nncf_destroys_is_refused_and_nothing_is_written(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destroyed = functools.partial(quantise_openvino, model_type=None, preset=None, advanced_parameters=None)
    monkeypatch.setattr("cvt_nas.export.int8.RECIPES", {"openvino-int8": Recipe(quantise=destroyed, file="model.xml")})
    said = "int8 does not answer as fp32 does, so nothing was written: .*openvino: its logits differ"
    with pytest.raises(ExportError, match=said):
        export(trained, "best", tmp_path / "model", format="openvino-int8")
    assert not (tmp_path / "model").exists()
    (figures,) = trained.int8.by_arch().values()
    assert any("its logits differ" in fault for fault in figures["openvino-int8"].faults), "the page can tell it"


def test_an_export_while_a_search_is_at_work_says_that_its_figures_are_not_recorded(
    digits: Experiment, tmp_path: Path
) -> None:
    run, notes = RunFolder.create(tmp_path / "run", digits.manifest(seed=0, num_trials=1)), list[str]()
    with run.locked():
        _keep_figures(figures_of(0.5), "abc", run, notes.append)
    assert run.int8.by_arch() == {}
    (note,) = notes
    assert note.startswith("the page of the run will not show these figures, since they cannot be recorded in it: ")
    assert "is at work on it" in note
    _keep_figures(figures_of(0.5), "abc", run, notes.append)
    assert set(run.int8.by_arch()) == {"abc"}


def of(**changes: Any) -> Judged:
    return Judged(**{"runtime": "a", "score": 0.9, "error": 0.02, "loss": 0.0, "loss_sd": 0.0, **changes})


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([of(), of(runtime="b", error=0.021)], []),
        ([of(loss=0.02, score=0.88, loss_sd=0.003)], ["a: accuracy 0.8800, fp32 has 0.9000: loses 2.00 points"]),
        ([of(loss=0.02, score=0.88, loss_sd=0.015)], []),
        ([of(loss=-0.05, score=0.95)], []),
        ([of(error=0.3)], ["a: its logits differ from those in fp32 by 0.3 standard deviations, more than 0.2"]),
        ([of(error=float("inf"))], ["a: its logits differ from those in fp32 by inf standard deviations"]),
        ([of(), of(runtime="b", error=0.04)], ["the runtimes disagree: logits differ from those in fp32 by 0.04"]),
        ([of(error=1e-4), of(runtime="b", error=1e-3)], []),
        ([of(), Judged(runtime="b", why="no such operator")], []),
        ([Judged(runtime="b", why="no such operator")], ["b: cannot open it: no such operator"]),
    ],
    ids=[
        "sound", "a loss", "a loss by chance", "a gain", "an error", "not a number", "disagreement", "rounding",
        "one cannot", "none can",
    ],
)  # fmt: skip
def test_a_file_is_refused_for(found: list[Judged], said: list[str]) -> None:
    lines = complaints(Judgement(metric="accuracy", score=0.9, num_images=360, judged=tuple(found)))
    assert len(lines) == len(said)
    assert all(line.startswith(begin) for line, begin in zip(lines, said, strict=True))


def test_the_limit_of_the_loss_can_be_raised() -> None:
    found = Judgement(metric="accuracy", score=0.9, num_images=360, judged=(of(loss=0.02, loss_sd=0.001),))
    assert complaints(found)
    assert not complaints(found, max_loss=0.03)


def test_what_is_for_int8_alone_is_refused_for_other_formats(
    trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(trained.path), "--pick", "best", "--to", str(tmp_path / "model"), "--format", "onnx"]
    for option in (["--data", "digits"], ["--max-loss", "0.02"], ["--runtime", "openvino"]):
        assert main([*arguments, *option]) == 2
        assert f"{option[0]} {option[1]}: is for formats in int8, not onnx" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
