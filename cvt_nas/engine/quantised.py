"""Quantises networks to int8, judges them and times them. Exports and the confirmation of a search share this code."""

import dataclasses
import functools
import importlib.metadata
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cvt_nas.config import TrainingConfig
from cvt_nas.data import ImageData
from cvt_nas.engine.int8 import MAX_LOSS, calibration_batches, complaints, judge, last_line
from cvt_nas.latency import Int8Runtime
from cvt_nas.latency.measuring import clock_of, time_in_turns
from cvt_nas.model import CvT, Logits, open_onnx, open_openvino, runtimes_for
from cvt_nas.model.onnx_files import write_onnx
from cvt_nas.model.quantising import Images, quantise_onnx, quantise_openvino
from cvt_nas.results import Int8, plain_name

_SECONDS_TIMED = 5.0
Quantise = Callable[[Path, Path, Iterable[Images]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How networks come to int8 for a runtime.

    Args:
        quantise: Makes a file in int8 from an ONNX file in fp32 and batches of images for calibration.
        file: Name of that file.
    """

    quantise: Quantise
    file: str


RECIPES: Mapping[Int8Runtime, Recipe] = {
    "onnxruntime-int8": Recipe(quantise=quantise_onnx, file="model.onnx"),
    "openvino-int8": Recipe(quantise=quantise_openvino, file="model.xml"),
}
RUNS: Mapping[Int8Runtime, int] = {"onnxruntime-int8": 2, "openvino-int8": 1}  # times that a file is judged
_OPENED: Mapping[Int8Runtime, Callable[[Path, int], Logits]] = {
    "onnxruntime-int8": lambda file, num_threads: open_onnx(file, num_threads=num_threads),
    "openvino-int8": open_openvino,
}


def judged_in_int8(
    model: CvT, runtime: Int8Runtime, data: ImageData, training: TrainingConfig, *, is_timed: bool = False
) -> Int8:
    """What `model` is worth in int8, by the recipe of the exports.

    Int8 may lower the accuracy by any amount, since that is what is to be found out. Answers that differ from fp32 or
    between levels of optimisation by more than `complaints` allows are faults, and so is a network that cannot be
    quantised.

    Args:
        model: A trained network on any device. It is not changed.
        training: Settings that define the metric.
        is_timed: Whether the latencies of fp32 and int8 are measured.

    Raises:
        ImportError: A package is missing.
        OSError: The disk is full.
    """
    copied, recipe = CvT(model.arch), RECIPES[runtime]
    copied.load_state_dict(model.state_dict())
    with tempfile.TemporaryDirectory() as scratch:
        source, file = Path(scratch) / "fp32" / "model.onnx", Path(scratch) / "int8" / recipe.file
        source.parent.mkdir()
        file.parent.mkdir()
        try:
            write_onnx(copied.eval(), source)
            return _with_unopened(quantise_and_judge(
                copied, source, file,
                runtime=runtime, quantise=recipe.quantise, data=data, training=training,
                runtimes=runtimes_for(recipe.file, only=plain_name(runtime), num_threads=torch.get_num_threads()),
                max_loss=math.inf, is_timed=is_timed,
            ))  # fmt: skip
        except (ImportError, OSError, MemoryError):
            raise
        except Exception as error:  # exporters and quantisers raise various errors
            return Int8(
                runtime=runtime,
                judgement=judge(copied, file, {}, data, training),
                num_calibrated=0,
                num_bytes=None,
                ms=None,
                software=_software(runtime),
                num_threads=torch.get_num_threads(),
                faults=(f"it cannot be quantised: {last_line(error)}",),
            )


def _with_unopened(found: Int8) -> Int8:
    """Adds a fault if the runtime cannot open the file as it would run it, although it can with less optimisation."""
    if found.faults or found.accuracy is not None:
        return found
    unopened = [f"{judged.runtime}: cannot open it: {judged.why}" for judged in found.judgement.judged if judged.why]
    return dataclasses.replace(found, faults=tuple(unopened))


def quantise_and_judge(
    model: CvT,
    source: Path,
    file: Path,
    *,
    runtime: Int8Runtime,
    quantise: Quantise,
    runtimes: Mapping[str, Callable[[Path], Logits]],
    data: ImageData,
    training: TrainingConfig,
    max_loss: float = MAX_LOSS,
    is_timed: bool = True,
    on_note: Callable[[str], None] | None = None,
) -> Int8:
    """Makes `file` in int8 from `source`, and compares it with `model` in `runtimes`. It is timed if it has no faults.

    Args:
        model: On the CPU, in eval mode.
        source: `model.onnx` in a folder of its own.
        file: New file in a folder of its own.
        runtimes, on_note: See `judge`.
        max_loss: See `complaints`.
    """
    say = on_note or (lambda _: None)
    batches = calibration_batches(data)
    num_calibrated = sum(map(len, batches))
    say(f"int8 is calibrated on {num_calibrated:,} training images")
    quantise(source, file, batches)
    judgement = judge(model, file, runtimes, data, training, on_note=on_note)
    faults = complaints(judgement, max_loss)
    ms = None
    if is_timed and not faults:
        ms = _timed(_OPENED[runtime], [source, file], model.arch.image_shape)
    return Int8(
        runtime=runtime,
        judgement=judgement,
        num_calibrated=num_calibrated,
        num_bytes=(_num_bytes(source.parent), _num_bytes(file.parent)),
        ms=ms,
        software=_software(runtime),
        num_threads=torch.get_num_threads(),
        faults=tuple(faults),
    )


def _software(runtime: Int8Runtime) -> str:
    name = plain_name(runtime)
    return f"{name} {importlib.metadata.version(name)}"


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("model.*"))


def _timed(opened: Callable[[Path, int], Logits], files: Sequence[Path], shape: Sequence[int]) -> tuple[float, float]:
    """Milliseconds of a forward pass of one image through each of two files, timed in turns."""
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    programs = [opened(file, torch.get_num_threads()) for file in files]
    passes = [functools.partial(program, image) for program in programs]
    clock = clock_of(device="cpu", threads=torch.get_num_threads())
    fp32, int8 = 1e3 * time_in_turns(passes, clock=clock, max_seconds=_SECONDS_TIMED).low
    return float(fp32), float(int8)
