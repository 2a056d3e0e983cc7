"""Turns an ONNX file in fp32 into a file whose convolutions and matrix products are computed in int8.

Do not trust the result before it is compared with fp32 in the runtime that will run it; see `engine.int8`. Libraries
have made wrong files from right networks, and have given wrong answers.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

Images = Float[np.ndarray, "batch channels height width"]

INPUT = "images"  # name of the graph's input in every file that this package writes
OP_TYPES = ["Conv", "MatMul", "Gemm"]  # whose nodes are quantised


def quantise_onnx(source: Path, to: Path, batches: Iterable[Images], **settings: Any) -> None:
    """Writes `source` with quantised nodes (QDQ), by onnxruntime's static quantisation.

    Weights are int8 with a scale per output channel, and use 7 of the 8 bits. Without VNNI, x86 CPUs add two products
    in 16 bits, where products with weights of 8 bits saturate. (Source: "Quantize ONNX models" in the documentation of
    onnxruntime.) Activations are uint8 with a scale from the smallest and largest value of each tensor. The two
    products of attention stay in fp32, since they are not products with weights and would be slower in int8. Norms,
    softmax and sums also stay in fp32. With 8 bits, this cost .00 +- .1 points on 15 networks of Fashion-MNIST, and
    made CvT-13 2.09 times as fast. Weights of 7 bits cost no more; see `benchmarks/README.md`.

    Args:
        source: A file with one input, `images`, whose first axis is the batch.
        to: The new file. It replaces an old one, and keeps the metadata of `source`.
        batches: Normalised images for calibration. A few hundred are enough.
        settings: Arguments of `onnxruntime.quantization.quantize_static` that override those above.

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
        quant_pre_process(os.fspath(source), os.fspath(prepared), auto_merge=True)  # else 2.5 times as large
        usual = {
            "quant_format": quantization.QuantFormat.QDQ,
            "per_channel": True,
            "activation_type": quantization.QuantType.QUInt8,
            "weight_type": quantization.QuantType.QInt8,
            "reduce_range": True,
            "calibrate_method": quantization.CalibrationMethod.MinMax,
            "op_types_to_quantize": OP_TYPES,
            "nodes_to_exclude": _products_of_activations(onnx.load(prepared).graph),
        }
        quantization.quantize_static(os.fspath(prepared), os.fspath(to), Reader(), **(usual | settings))
    written, told = onnx.load(to), onnx.load(source, load_external_data=False).metadata_props
    known = {entry.key for entry in written.metadata_props}
    written.metadata_props.extend(entry for entry in told if entry.key not in known)
    onnx.save(written, to)


def _products_of_activations(graph: Any) -> list[str]:
    """Names of the matrix products whose second factor is not a weight. These are the products of attention."""
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in weights]


def quantise_openvino(source: Path, to: Path, batches: Iterable[Images], **settings: Any) -> None:
    """Writes `source` as a file for OpenVINO (.xml, with a .bin beside it), by NNCF's post-training quantisation.

    NNCF distinguishes two kinds of networks. Its default also quantises sums and norms, which cost 13 and 1.4 points in
    two networks for the digits. The kind `TRANSFORMER` leaves sums and norms in fp32 and cost nothing. But it begins
    with SmoothQuant, which has destroyed networks for Fashion-MNIST. So this function uses `TRANSFORMER` without
    SmoothQuant. Weights use 7 bits, as in `quantise_onnx`; NNCF's default does so in the first layer alone.

    Args:
        source, batches: See `quantise_onnx`.
        to: The new file. It replaces an old one, and has the metadata of `source` in its runtime information.
        settings: Arguments of `nncf.quantize` that override those above.

    Raises:
        ImportError: openvino or nncf is missing.
    """
    import onnx  # pyright: ignore[reportMissingImports]
    import openvino

    with _quiet():
        import nncf
        from nncf.quantization.advanced_parameters import OverflowFix

        shown = list(batches)
        model = openvino.Core().read_model(source)
        calibration = nncf.Dataset(shown, lambda images: {INPUT: images})
        no_smoothing = nncf.AdvancedSmoothQuantParameters(matmul=-1)
        usual = {
            "model_type": nncf.ModelType.TRANSFORMER,
            "advanced_parameters": nncf.AdvancedQuantizationParameters(
                overflow_fix=OverflowFix.ENABLE, smooth_quant_alphas=no_smoothing
            ),
        }
        quantised = nncf.quantize(model, calibration, subset_size=len(shown), **(usual | settings))
    for entry in onnx.load(source, load_external_data=False).metadata_props:
        quantised.set_rt_info(entry.value, [entry.key])
    openvino.save_model(quantised, to, compress_to_fp16=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides notes and progress bars of the libraries, but not errors. Also keeps NNCF from sending statistics to
    Intel."""
    names = ("", "nncf")
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    for logger, _ in levels:
        logger.setLevel(logging.ERROR)
    os.environ.setdefault("NNCF_CI", "1")  # else it sends statistics of its use, if openvino-telemetry may
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
