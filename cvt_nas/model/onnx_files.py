"""Writes networks as ONNX files."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cvt_nas.errors import ExportError
from cvt_nas.model.network import CvT
from cvt_nas.model.pooling import by_whole_windows
from cvt_nas.model.quantising import INPUT

OPSET = 20


def write_onnx(model: CvT, file: Path, *, opset: int = OPSET, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a network to a file with one input, `images`, for batches of any size, and one output, `logits`.

    Args:
        model: On the CPU, in eval mode.
        opset: Version of the ONNX operators.
        metadata: Text that the file keeps for its users.

    Raises:
        ExportError: Torch cannot write the network in that opset.
        ImportError: onnx or onnxscript is missing.
    """
    program = torch.onnx.export(
        by_whole_windows(model), (example_of(model),), dynamo=True, opset_version=opset, verbose=False,
        input_names=[INPUT], output_names=["logits"], dynamic_shapes={INPUT: {0: any_batch()}},
    )  # fmt: skip
    assert program is not None, "dynamo gives a program"
    if (written := program.model.opset_imports[""]) != opset:  # torch only warns if it cannot convert
        raise ExportError(f"--opset {opset}: torch {torch.__version__} cannot write this network so, but as {written}")
    program.model.metadata_props.update(metadata or {})
    program.save(file)


def example_of(model: CvT) -> Tensor:
    """A batch of two images. With one image, the exporter would make the batch size a constant."""
    return torch.zeros(2, *model.arch.image_shape)


def any_batch() -> "torch.export.Dim":
    """The first axis of images, as torch's exporters name it."""
    return torch.export.Dim("batch", min=1, max=2**16)
