"""Exports a network of a run in int8: calibrates it, compares it with fp32 in each runtime, times it and writes it."""

import functools
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cvt_nas.config import parse_experiment
from cvt_nas.data import ImageData
from cvt_nas.engine import TrainingSetup
from cvt_nas.engine.int8 import Judgement, calibration_batches, complaints, judge
from cvt_nas.errors import ExportError
from cvt_nas.export.formats import Format
from cvt_nas.export.hugging_face import write_json
from cvt_nas.latency.measuring import clock_of, time_in_turns
from cvt_nas.model import CvT, Logits, open_onnx, open_openvino, runtimes_for
from cvt_nas.run import RunFolder

_SECONDS_TIMED = 5.0
_BESIDE = ("arch.json", "preprocessing.json")  # files that accompany the program


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8:
    """Facts of an export in int8. In each pair, fp32 is first and int8 is second.

    Args:
        num_calibrated: Number of training images that the ranges of activations were measured on.
        num_bytes: Sizes of the programs.
        ms: Milliseconds of a forward pass of one image on the CPU, in `runtime` with `num_threads`. They are the tenth
            percentile of shuffled rounds.
    """

    judgement: Judgement
    num_calibrated: int
    num_bytes: tuple[int, int]
    ms: tuple[float, float]
    runtime: str
    num_threads: int

    def to_json(self) -> dict[str, object]:
        """Content of `int8.json`."""
        names = ("num_calibrated", "num_bytes", "ms", "runtime", "num_threads")
        return {**asdict(self.judgement), **{name: getattr(self, name) for name in names}}


def export_int8(
    model: CvT,
    run: RunFolder,
    to: Path,
    *,
    chosen: Format,
    preprocessing: Mapping[str, Any],
    data: str | Path | None,
    max_loss: float,
    runtime: str | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Int8:
    """Writes `model` to `to` in int8, with its facts in `int8.json`, if its answers are close enough to fp32.

    Args:
        model: A network of `run`, on the CPU, in eval mode.
        chosen: A format with `quantise`.
        preprocessing, data, max_loss, runtime, on_note: See `export`.

    Raises:
        ExportError: Its answers differ too much from fp32, see `complaints`; or `runtime` is not usable. Nothing is
            written then.
        DataError: The data set is missing, or is not the run's.
    """
    assert chosen.quantise is not None, "the caller has chosen a format in int8"
    say = on_note or (lambda _: None)
    runtimes = runtimes_for(chosen.file, only=runtime)
    if not runtimes:
        raise ExportError(f"--runtime {runtime}: is not installed, or cannot read {chosen.file}")
    images, setup = _data_of(run, data, on_note)
    with tempfile.TemporaryDirectory() as scratch:
        fp32, int8 = Path(scratch) / "fp32", Path(scratch) / "int8"
        int8.mkdir()
        fp32.mkdir()
        chosen.write(model, fp32, preprocessing)
        batches = calibration_batches(images)
        num_calibrated = sum(map(len, batches))
        say(f"int8 is calibrated on {num_calibrated:,} training images")
        file = int8 / chosen.file
        chosen.quantise(fp32 / "model.onnx", file, batches)
        judgement = judge(model, file, runtimes, images, setup.training, on_note=on_note)
        if why := complaints(judgement, max_loss):
            raise ExportError(
                f"{model.arch.id}: int8 does not answer as fp32 does, so nothing was written: {'; '.join(why)}; "
                f"--max-loss accepts a greater loss, and --runtime judges one runtime alone"
            )
        for found in judgement.judged:
            if found.why:
                say(f"{found.runtime} cannot open this {chosen.file}, a fault of its own: {found.why}")
        for name in _BESIDE:
            shutil.copy(fp32 / name, int8 / name)
        name = "openvino" if file.suffix == ".xml" else "onnxruntime"
        found = Int8(
            judgement=judgement,
            num_calibrated=num_calibrated,
            num_bytes=(_num_bytes(fp32), _num_bytes(int8)),
            ms=_timed(_OPENED[name], [fp32 / "model.onnx", file], model.arch.image_shape),
            runtime=f"{name} {importlib.metadata.version(name)}",
            num_threads=torch.get_num_threads(),
        )
        write_json(int8 / "int8.json", found.to_json())
        to.mkdir(parents=True, exist_ok=True)
        shutil.copytree(int8, to, dirs_exist_ok=True)
    return found


def _data_of(
    run: RunFolder, data: str | Path | None, on_note: Callable[[str], None] | None
) -> tuple[ImageData, TrainingSetup]:
    experiment = parse_experiment(run.manifest["space_file"], f"{run.path}/manifest.json")
    setup = TrainingSetup.of(experiment, run=run, data=data).on("cpu", num_threads=torch.get_num_threads(), gpus=0)
    setup = setup.identified(run, on_note=on_note)
    return setup.open_data(), setup


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


_OPENED: Mapping[str, Callable[[Path, int], Logits]] = {
    "onnxruntime": lambda file, num_threads: open_onnx(file, num_threads=num_threads),
    "openvino": open_openvino,
}


def card_rows(found: Int8, score_name: str) -> list[str]:
    """Lines for the table of the model card."""
    judgement = found.judgement
    on = f"on {judgement.num_images:,} images of the search split"
    rows = [f"| {score_name} in fp32, {on} | {judgement.score:.4f} |"]
    for judged in judgement.judged:
        if judged.score is None or judged.error is None:
            rows.append(f"| int8, in {judged.runtime} | cannot open it |")
        else:
            rows.append(f"| {score_name} in int8, {on}, in {judged.runtime} | {judged.score:.4f} |")
            rows.append(
                f"| error of its logits, divided by the standard deviation of those in fp32 | {judged.error:.4f} |"
            )
    threads = f"{found.num_threads} thread{'s' if found.num_threads > 1 else ''}"
    return [
        *rows,
        f"| training images that int8 was calibrated on | {found.num_calibrated:,} |",
        f"| MB in fp32 and in int8 | {', '.join(f'{size / 1e6:.2f}' for size in found.num_bytes)} |",
        f"| ms for one image in fp32 and in int8, in {found.runtime} on {threads} of a CPU | "
        f"{', '.join(f'{ms:.3g}' for ms in found.ms)} |",
    ]
