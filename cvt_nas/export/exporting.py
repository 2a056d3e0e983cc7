"""Writes a network of a run to a folder, and checks that it gives the same logits when a new process loads it."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cvt_nas.arch import ArchConfig
from cvt_nas.engine.int8 import MAX_LOSS
from cvt_nas.errors import ExportError
from cvt_nas.escaping import told, why_no_text
from cvt_nas.export.card import model_card
from cvt_nas.export.formats import FORMATS, check_opset
from cvt_nas.export.int8 import card_rows, export_int8
from cvt_nas.model import CvT, Logits, load_model, probe_error, probe_logits
from cvt_nas.model.onnx_files import OPSET
from cvt_nas.results import TrialResult
from cvt_nas.run import RunFolder, check_target

LOGIT_TOLERANCE = 1e-5
_NUM_IMAGES = 3  # differs from the exporters' example, to test that any number of images works


def export(
    run: RunFolder,
    pick: str,
    to: str | Path,
    *,
    format: str = "torch",  # noqa: A002
    opset: int | None = None,
    data: str | Path | None = None,
    max_loss: float | None = None,
    runtime: str | None = None,
    on_note: Callable[[str], None] | None = None,
) -> TrialResult:
    """Writes one of the run's networks to `to`, with a model card.

    A new process loads the export. Its logits must match those that the trained network had when its training ended, or
    in int8 those of the file that was judged. If they do not, the files stay in `to` for inspection.

    Args:
        pick: See `RunFolder.pick`.
        to: A folder that is new or empty.
        format: One of `FORMATS`.
        opset: Version of the ONNX operators, only for format `onnx`. The default is 20.
        data: Folder or file of the run's data set, if it needs one. Only for formats in int8.
        max_loss: Largest loss of the run's metric that int8 may cause. The default is 0.01. Only for formats in int8.
        runtime: `onnxruntime` or `openvino`, to judge int8 in this runtime alone. By default, int8 is judged in every
            installed runtime that reads the format. Only for formats in int8.
        on_note: Called with messages on progress and results. Only for formats in int8.

    Returns:
        The trial whose network was exported.

    Raises:
        ExportError: There is no such format. The folder `to` is not empty or cannot be written. The trial has no
            weights. The format cannot hold the network, needs a missing package or lacks the opset. Or the logits
            differ, or int8 differs too much from fp32.
        DataError: The data set is missing, or is not the run's.
        RunFolderError: `pick` matches nothing in this run.
        StorageError: `to` is a URL.
    """
    check_target(to, called=f"--to {to}", makes_folders=True)
    if format not in FORMATS:
        raise ExportError(f"format {format!r}: must be one of {', '.join(FORMATS)}")
    to, chosen, result = Path(to), FORMATS[format], run.pick(pick)
    source = _weights_of(run, result)
    if chosen.missing:
        raise ExportError(
            f"--format {format}: needs {', '.join(chosen.missing)}: pip install 'cvt-nas[{chosen.extra}]'"
        )
    if opset is not None:
        if format != "onnx":
            raise ExportError(f"--opset {opset}: is for --format onnx, not {format}")
        check_opset(opset)
    if chosen.int8 is None:
        for option, value in (("--data", data), ("--max-loss", max_loss), ("--runtime", runtime)):
            if value is not None:
                raise ExportError(f"{option} {value}: is for formats in int8, not {format}")
    if why := why_no_text(to.absolute()):  # exporters store paths as text
        raise ExportError(f"--to {told(str(to))}: {why}")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ExportError(f"--to {to}: is not empty; name a new folder")
    model = load_model(source)
    error = probe_error(model, source)
    if not error <= LOGIT_TOLERANCE:  # also true for NaN
        raise ExportError(f"{result.arch_id}: its logits differ by {error:.3g} from those of the trained model")
    preprocessing = json.loads((source / "preprocessing.json").read_text(encoding="utf-8"))
    if reasons := chosen.misfits(model, preprocessing):
        raise ExportError(
            f"{result.arch_id}: --format {format} cannot be this network: {'; '.join(reasons)}. "
            f"--format torch, timm, onnx and pt2 can"
        )
    rows: list[str] = []
    expected: Logits = model
    try:
        if chosen.int8 is None:
            to.mkdir(parents=True, exist_ok=True)
            chosen.write(model, to, preprocessing, **({} if opset is None else {"opset": opset}))
        else:
            limit = MAX_LOSS if max_loss is None else max_loss
            found = export_int8(
                model, run, to, chosen=chosen, preprocessing=preprocessing, data=data, max_loss=limit, runtime=runtime,
                on_note=on_note,
            )  # fmt: skip
            rows, expected = card_rows(found, run.score_name), chosen.load(to)
        card = model_card(
            run, result, to, preprocessing=preprocessing, usage=chosen.usage, opset=opset or OPSET, rows=rows
        )
        (to / "README.md").write_text(card, encoding="utf-8")
    except OSError as error:
        raise ExportError(f"--to {to}: cannot be written: {error.strerror or error}") from error
    error, largest = _difference(expected, model.arch, to, format)
    if not error <= chosen.tolerance * max(largest, 1.0):
        raise ExportError(
            f"{result.arch_id}: loaded again, its logits differ by {error:.3g} from those of the trained model; "
            f"what was written is in {to}"
        )
    return result


def _weights_of(run: RunFolder, result: TrialResult) -> Path:
    """The folder of the trial's trained model. Raises ExportError if it has no weights."""
    source = run.fetched_model(result.arch_id)
    if not (source / "model.safetensors").is_file():
        why = (
            f"its weights are not in {source.parent}"
            if result.status == "complete"
            else f"its training ended as '{result.status}' after epoch {result.epochs} and left no weights"
        )
        arch = shlex.quote(f"{run.place}:{result.arch_id}")
        raise ExportError(f"{result.arch_id}: {why}; train it in full: cvt-nas train {arch} --out DIR")
    return source


def _difference(network: Logits, arch: ArchConfig, folder: Path, format: str) -> tuple[float, float]:  # noqa: A002
    """Compares `network` with the export in `folder`, which a new process loads.

    Returns:
        Largest absolute difference of their logits, and largest absolute logit of `network`.
    """
    images = torch.randn(_NUM_IMAGES, *arch.image_shape, generator=torch.Generator().manual_seed(1))
    expected = probe_logits(network, images) if isinstance(network, CvT) else network(images)
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch) / "images.safetensors", Path(scratch) / "logits.safetensors"
        save_file({"images": images}, asked)
        process = subprocess.run(
            [sys.executable, "-m", "cvt_nas.export.reload", format, folder, asked, answered],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        if process.returncode:
            said = process.stderr.strip().splitlines()
            raise ExportError(f"{folder}: cannot be loaded again: {said[-1] if said else process.returncode}")
        return float((load_file(answered)["logits"] - expected).abs().max()), float(expected.abs().max())
