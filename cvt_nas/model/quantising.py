"""From an ONNX file in fp32 to a file whose convolutions and matrix products are computed in int8.

What is written here is not to be trusted before it is compared with fp32 in the runtime that is to run it; see
`engine.int8`. Libraries have made wrong files and wrong answers from right networks.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

Images = Float[np.ndarray, "batch channels height width"]

INPUT = "images"  # name of the graph's input in every file that this package writes
OP_TYPES = ("Conv", "MatMul", "Gemm")


def quantise_onnx(source: Path, to: Path, batches: Iterable[Images], *, op_types: Sequence[str] = OP_TYPES) -> None:
    """Writes `source` with quantised nodes (QDQ), by onnxruntime's static quantisation.

    Weights are int8 for each output channel, activations uint8 by the least and greatest value of each tensor. The two
    products of attention stay in fp32: they would be slower, and are no product with weights. So do norms, softmax
    and sums. That lost .00 +- .1 points on 15 networks of Fashion-MNIST, and made CvT-13 2.09 times as fast.

    Args:
        source: With one input `images`, whose first axis is the batch.
        to: A file, which is replaced. It keeps the metadata of `source`.
        batches: Normalised images to calibrate with. A few hundred are enough.
        op_types: Operators of ONNX whose nodes are quantised.

    Raises:
        ImportError: onnx or onnxruntime is missing.
    """
    import onnx  # pyright: ignore[reportMissingImports]
    from onnxruntime import quantization  # pyright: ignore[reportMissingImports]
    from onnxruntime.quantization.shape_inference import quant_pre_process  # pyright: ignore[reportMissingImports]

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(batches)

        def get_next(self) -> dict[str, Images] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            images = next(self._left, None)
            return None if images is None else {INPUT: images}

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(os.fspath(source), os.fspath(prepared), auto_merge=True)  # or the file is 2.5 times as large
        quantization.quantize_static(
            os.fspath(prepared),
            os.fspath(to),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            op_types_to_quantize=list(op_types),
            nodes_to_exclude=_products_of_activations(onnx.load(prepared).graph),
        )
    written, told = onnx.load(to), onnx.load(source, load_external_data=False).metadata_props
    known = {entry.key for entry in written.metadata_props}
    written.metadata_props.extend(entry for entry in told if entry.key not in known)
    onnx.save(written, to)


def _products_of_activations(graph: Any) -> list[str]:
    """Names of the matrix products whose second factor is no weight: those of attention."""
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in weights]


def quantise_openvino(source: Path, to: Path, batches: Iterable[Images], **settings: Any) -> None:
    """Writes `source` as OpenVINO's `to` (.xml, with a .bin beside it), by NNCF's post-training quantisation.

    NNCF knows two kinds of networks. Its default also quantises sums and norms, which lost 13 and 1.4 points of two
    networks of the digits. The kind `TRANSFORMER` leaves them in fp32, and lost none; but it begins with SmoothQuant,
    which has destroyed networks of Fashion-MNIST. So this is the latter without SmoothQuant.

    Args:
        source, batches: See `quantise_onnx`.
        to: A file, which is replaced. Metadata of `source` is in its runtime information.
        settings: Of `nncf.quantize`, instead of these.

    Raises:
        ImportError: openvino or nncf is missing.
    """
    import onnx  # pyright: ignore[reportMissingImports]
    import openvino

    with _quiet():
        import nncf

        shown = list(batches)
        model = openvino.Core().read_model(source)
        calibration = nncf.Dataset(shown, lambda images: {INPUT: images})
        no_smoothing = nncf.AdvancedSmoothQuantParameters(matmul=-1)
        usual = {
            "model_type": nncf.ModelType.TRANSFORMER,
            "advanced_parameters": nncf.AdvancedQuantizationParameters(smooth_quant_alphas=no_smoothing),
        }
        quantised = nncf.quantize(model, calibration, subset_size=len(shown), **(usual | settings))
    for entry in onnx.load(source, load_external_data=False).metadata_props:
        quantised.set_rt_info(entry.value, [entry.key])
    openvino.save_model(quantised, to, compress_to_fp16=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' notes and progress bars; errors are told. NNCF sends nothing of it to Intel."""
    names = ("", "nncf")
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    for logger, _ in levels:
        logger.setLevel(logging.ERROR)
    os.environ.setdefault("NNCF_CI", "1")  # or it would send statistics of its use, if openvino-telemetry is allowed to
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
