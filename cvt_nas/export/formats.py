"""The formats of an export: how each is written, and how the tools that it is meant for load it again."""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cvt_nas.arch import arch_to_dict, save_arch
from cvt_nas.errors import ExportError
from cvt_nas.export.hugging_face import load_hugging_face, misfits, write_hugging_face, write_json
from cvt_nas.latency import Int8Runtime
from cvt_nas.model import (
    CvT,
    Logits,
    load_model,
    load_onnx,
    load_openvino,
    load_program,
    write_weights,
)
from cvt_nas.model.onnx_files import OPSET, any_batch, example_of, write_onnx

_LEAST_OPSET = 18  # torch's exporter writes 18; it can convert to a higher opset, but not to a lower one


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One of `FORMATS`.

    Args:
        write: Writes a network in eval mode, and the content of `preprocessing.json`, to a folder. That of `onnx` also
            takes an `opset`.
        int8: Runtime whose recipe makes the file from the `model.onnx` that `write` wrote elsewhere; see `RECIPES`.
            None for formats that are not in int8.
        load: Loads the network from such a folder, with only the tools that the format is meant for.
        misfits: Reasons, one line each, why the format cannot hold a network with this content of `preprocessing.json`.
        needs: Packages that are needed to write and check the format.
        extra: Extra of cvt-nas that installs `needs`.
        tolerance: Largest accepted difference of a logit. It is relative to the largest logit if that is above 1.
        usage: Lines of Python that load the network. `{folder}`, `{channels}`, `{height}`, `{width}` and `{opset}` are
            filled in.
    """

    write: Callable[..., None]
    load: Callable[[Path], Logits]
    misfits: Callable[[CvT, Mapping[str, Any]], list[str]] = lambda *_: []
    needs: tuple[str, ...] = ()
    extra: str = ""
    tolerance: float = 1e-4
    usage: str
    int8: Int8Runtime | None = None

    @property
    def missing(self) -> list[str]:
        """Packages of `needs` that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def _write_torch(model: CvT, folder: Path, preprocessing: Mapping[str, Any]) -> None:
    write_weights(model, folder)
    write_json(folder / "preprocessing.json", preprocessing)


def _write_timm(model: CvT, folder: Path, preprocessing: Mapping[str, Any]) -> None:
    """Writes the files of format `torch`, and a `config.json` in timm's Hub format, which names the entry point and its
    arguments."""
    from cvt_nas.timm import facts_of, preprocessing_facts

    _write_torch(model, folder, preprocessing)
    names = ("mean", "std", "interpolation", "crop_pct")
    seen = {name: preprocessing[name] for name in names if name in preprocessing}
    config = {
        "architecture": "cvt_nas",
        "num_classes": model.arch.num_classes,
        "num_features": model.arch.stages[-1].embed_dim,
        "label_names": preprocessing["classes"],
        "model_args": {"arch": arch_to_dict(model.arch)},
        "pretrained_cfg": {**facts_of(model.arch), **preprocessing_facts(**seen)},
    }
    write_json(folder / "config.json", config)


def _load_timm(folder: Path) -> Logits:
    import timm

    import cvt_nas.timm  # noqa: F401  # registers the entry point in timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def check_opset(opset: int) -> None:
    """Raises ExportError if torch cannot write that opset, or onnxruntime cannot read it."""
    greatest = _greatest_opset()
    if not _LEAST_OPSET <= opset <= greatest:
        raise ExportError(
            f"--opset {opset}: must be from {_LEAST_OPSET} to {greatest} with the torch, onnx and onnxruntime installed"
        )


def _greatest_opset() -> int:
    """The last opset before the first one that the installed onnxruntime refuses."""
    import onnx  # pyright: ignore[reportMissingImports]

    known = range(_LEAST_OPSET, onnx.defs.onnx_opset_version() + 1)
    return next((opset - 1 for opset in known if not _is_read(opset)), known[-1])


def _is_read(opset: int) -> bool:
    """Whether onnxruntime loads a graph of one operator in that opset."""
    import onnx  # pyright: ignore[reportMissingImports]
    import onnxruntime  # pyright: ignore[reportMissingImports]

    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "one", value[:1], value[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:  # its exceptions have no public base class
        return False
    return True


def _write_onnx(model: CvT, folder: Path, preprocessing: Mapping[str, Any], *, opset: int = OPSET) -> None:
    told = {"preprocessing": json.dumps(preprocessing)}  # for users who have this file alone
    write_onnx(model, folder / "model.onnx", opset=opset, metadata=told)
    save_arch(model.arch, folder / "arch.json")
    write_json(folder / "preprocessing.json", preprocessing)


def _write_program(model: CvT, folder: Path, preprocessing: Mapping[str, Any]) -> None:
    save_arch(model.arch, folder / "arch.json")
    write_json(folder / "preprocessing.json", preprocessing)
    program = torch.export.export(model, (example_of(model),), dynamic_shapes={"images": {0: any_batch()}})
    told = {"preprocessing.json": json.dumps(preprocessing)}
    torch.export.save(program, os.fspath(folder / "model.pt2"), extra_files=told)


_RUN_ONNX = """session = onnxruntime.InferenceSession("{folder}/model.onnx")
images = numpy.zeros((1, {channels}, {height}, {width}), dtype=numpy.float32)
(logits,) = session.run(["logits"], {{"images": images}})"""

FORMATS: dict[str, Format] = {
    "torch": Format(
        write=_write_torch,
        load=load_model,
        tolerance=1e-5,
        usage="""import cvt_nas, torch
model = cvt_nas.load_model("{folder}")  # a torch.nn.Module in eval mode
logits = model(torch.zeros(1, {channels}, {height}, {width}))""",
    ),
    "hf": Format(
        write=write_hugging_face,
        load=load_hugging_face,
        misfits=misfits,
        needs=("transformers",),
        extra="hf",
        usage="""import torch
from transformers import AutoImageProcessor, CvtForImageClassification
model = CvtForImageClassification.from_pretrained("{folder}").eval()
processor = AutoImageProcessor.from_pretrained("{folder}")
logits = model(torch.zeros(1, {channels}, {height}, {width})).logits""",
    ),
    "timm": Format(
        write=_write_timm,
        load=_load_timm,
        usage="""import timm, torch
import cvt_nas.timm  # by it timm knows the architecture
model = timm.create_model("local-dir:{folder}", pretrained=True).eval()  # or "hf-hub:USER/NAME", once it is there
logits = model(torch.zeros(1, {channels}, {height}, {width}))""",
    ),
    "onnx": Format(
        write=_write_onnx,
        load=load_onnx,
        needs=("onnx", "onnxscript", "onnxruntime"),
        extra="onnx",
        usage=f"import numpy, onnxruntime  # opset {{opset}}, any number of images\n{_RUN_ONNX}",
    ),
    "onnx-int8": Format(
        write=_write_onnx,
        int8="onnxruntime-int8",
        load=load_onnx,
        needs=("onnx", "onnxscript", "onnxruntime"),
        extra="onnx",
        usage=f"import numpy, onnxruntime  # any number of images; images and logits are float32\n{_RUN_ONNX}",
    ),
    "openvino-int8": Format(
        write=_write_onnx,
        int8="openvino-int8",
        load=load_openvino,
        needs=("onnx", "onnxscript", "openvino", "nncf"),
        extra="openvino",
        usage="""import numpy, openvino  # any number of images; images and logits are float32
# what is not in int8 is computed in fp32; without this setting, in bfloat16 on some CPUs
settings = {{"INFERENCE_PRECISION_HINT": "f32"}}
model = openvino.Core().compile_model("{folder}/model.xml", "CPU", settings)
images = numpy.zeros((1, {channels}, {height}, {width}), dtype=numpy.float32)
logits = model(images)[0]""",
    ),
    "pt2": Format(
        write=_write_program,
        load=load_program,
        usage="""import torch  # any number of images
model = torch.export.load("{folder}/model.pt2").module()
logits = model(torch.zeros(1, {channels}, {height}, {width}))""",
    ),
}
