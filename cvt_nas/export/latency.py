"""Measures the latency of a network: in torch, or in onnxruntime after export."""

import copy
import tempfile
from pathlib import Path
from typing import Literal

import torch

from cvt_nas.arch import ArchConfig
from cvt_nas.engine.latency import Latency, check_device, latency_of, measure_latency, time_runs
from cvt_nas.errors import ExportError, ResourceError
from cvt_nas.export.formats import FORMATS
from cvt_nas.model import CvT

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def profile_latency(
    arch: ArchConfig, *, device: Literal["cpu", "cuda"], onnx: bool = False, batch_size: int = 1
) -> Latency:
    """Latency of `arch` with random weights, since weights do not affect it; see `measure_latency` and
    `measure_onnx_latency`."""
    measure = measure_onnx_latency if onnx else measure_latency
    return measure(CvT(arch), device=torch.device(device), batch_size=batch_size)


def measure_onnx_latency(
    model: CvT, *, device: torch.device, batch_size: int = 1, max_seconds: float = 5.0, max_runs: int = 300
) -> Latency:
    """Like `measure_latency`, but for `model` as exported by `--format onnx`, in onnxruntime with torch's number of
    threads.

    Raises:
        ExportError: A package is missing.
        ResourceError: onnxruntime cannot use the device.
    """
    chosen, provider = FORMATS["onnx"], _PROVIDERS[device.type]
    if chosen.missing:
        raise ExportError(f"--onnx: needs {', '.join(chosen.missing)}: pip install 'cvt-nas[{chosen.extra}]'")
    check_device(device)
    import onnxruntime  # pyright: ignore[reportMissingImports]

    unusable = ResourceError(f"--onnx: this onnxruntime cannot use {device.type}: pip install onnxruntime-gpu")
    if provider not in onnxruntime.get_available_providers():
        raise unusable
    options, index = onnxruntime.SessionOptions(), device.index or 0
    options.intra_op_num_threads = torch.get_num_threads()
    settings = [{"device_id": index}] if device.type == "cuda" else None
    with tempfile.TemporaryDirectory() as folder:
        chosen.write(copy.deepcopy(model).cpu().eval(), Path(folder), {})
        session = onnxruntime.InferenceSession(Path(folder) / "model.onnx", options, [provider], settings)
        if provider not in session.get_providers():  # onnxruntime drops a provider that it cannot load
            raise unusable
        images = torch.randn(batch_size, *model.arch.image_shape).numpy()
        binding = session.io_binding()  # without it, each run would copy from the CPU and back
        binding.bind_ortvalue_input("images", onnxruntime.OrtValue.ortvalue_from_numpy(images, device.type, index))
        binding.bind_output("logits", device.type, index)
        seconds = time_runs(lambda: session.run_with_iobinding(binding), max_seconds=max_seconds, max_runs=max_runs)
    return latency_of(seconds, batch_size=batch_size, device=device, runtime=f"onnxruntime {onnxruntime.__version__}")
