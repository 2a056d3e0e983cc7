"""Loads networks from the folders that `export` writes, in other runtimes."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Logits = Callable[[Float[Tensor, "batch channels height width"]], Float[Tensor, "batch classes"]]


def load_onnx(folder: Path) -> Logits:
    """Loads `model.onnx` with onnxruntime, on the CPU."""
    return open_onnx(folder / "model.onnx")


def open_onnx(file: Path, level: Literal["BASIC", "EXTENDED", "ALL"] = "ALL", num_threads: int = 0) -> Logits:
    """Opens a file in onnxruntime, on the CPU.

    Args:
        level: How far onnxruntime may change the graph: `GraphOptimizationLevel.ORT_ENABLE_...`.
        num_threads: 0 for as many as there are cores.
    """
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def load_openvino(folder: Path) -> Logits:
    """Loads `model.xml` with OpenVINO, on the CPU."""
    return open_openvino(folder / "model.xml")


def open_openvino(file: Path, num_threads: int = 0) -> Logits:
    """Opens an .xml or .onnx file in OpenVINO, on the CPU. All that is not in int8 is computed in fp32.

    By default, OpenVINO uses bfloat16 instead of fp32 on CPUs that support it, so the answers would depend on the CPU.

    Args:
        num_threads: 0 for as many as there are cores.
    """
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": num_threads}
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())


def runtimes_for(name: str, *, only: str | None = None, num_threads: int = 0) -> Mapping[str, Callable[[Path], Logits]]:
    """Installed runtimes that read files with such a name. onnxruntime is listed twice, without and with its fusions.

    Args:
        only: `onnxruntime` or `openvino`, to leave out the other one.
        num_threads: 0 for as many as there are cores.
    """
    found: dict[str, Callable[[Path], Logits]] = {}

    def is_asked(runtime: str) -> bool:
        return only in (None, runtime) and importlib.util.find_spec(runtime) is not None

    if name.endswith(".onnx") and is_asked("onnxruntime"):
        found["onnxruntime, ENABLE_BASIC"] = lambda file: open_onnx(file, "BASIC", num_threads)
        found["onnxruntime, ENABLE_ALL"] = lambda file: open_onnx(file, "ALL", num_threads)
    if is_asked("openvino"):
        found["openvino"] = lambda file: open_openvino(file, num_threads)
    return found


def load_program(folder: Path) -> Logits:
    """Loads `model.pt2` with torch.export, on the CPU."""
    return torch.export.load(folder / "model.pt2").module()
