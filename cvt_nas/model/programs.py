"""Networks as programs of other runtimes, in the folders that `export` writes."""

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

Logits = Callable[[Float[Tensor, "batch channels height width"]], Float[Tensor, "batch classes"]]


def load_onnx(folder: Path) -> Logits:
    """Loads `model.onnx` with onnxruntime, on the CPU."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def load_program(folder: Path) -> Logits:
    """Loads `model.pt2` with torch.export, on the CPU."""
    return torch.export.load(folder / "model.pt2").module()
