"""Exports a network of a run in int8: calibrates it, compares it with fp32 in each runtime, times it and writes it."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cvt_nas.config import space_file_of
from cvt_nas.data import ImageData
from cvt_nas.engine import TrainingSetup
from cvt_nas.engine.quantised import RECIPES, quantise_and_judge
from cvt_nas.errors import ExportError, RunFolderError, StorageError
from cvt_nas.export.formats import Format
from cvt_nas.export.hugging_face import write_json
from cvt_nas.model import CvT, runtimes_for
from cvt_nas.results import Int8
from cvt_nas.run import RunFolder

_BESIDE = ("arch.json", "preprocessing.json")  # files that accompany the program


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
        chosen: A format in int8.
        preprocessing, data, max_loss, runtime, on_note: See `export`.

    Raises:
        ExportError: Its answers differ too much from fp32, see `complaints`; or `runtime` is not usable. Nothing is
            written then.
        DataError: The data set is missing, or is not the run's.
    """
    assert chosen.int8 is not None, "the caller has chosen a format in int8"
    recipe = RECIPES[chosen.int8]
    say = on_note or (lambda _: None)
    runtimes = runtimes_for(recipe.file, only=runtime)
    if not runtimes:
        raise ExportError(f"--runtime {runtime}: is not installed, or cannot read {recipe.file}")
    images, setup = _data_of(run, data, on_note)
    with tempfile.TemporaryDirectory() as scratch:
        fp32, int8 = Path(scratch) / "fp32", Path(scratch) / "int8"
        int8.mkdir()
        fp32.mkdir()
        chosen.write(model, fp32, preprocessing)
        found = quantise_and_judge(
            model, fp32 / "model.onnx", int8 / recipe.file,
            runtime=chosen.int8, quantise=recipe.quantise, runtimes=runtimes, data=images, training=setup.training,
            max_loss=max_loss, on_note=on_note,
        )  # fmt: skip
        _keep_figures(found, model.arch.id, run, say)
        if found.faults:
            raise ExportError(
                f"{model.arch.id}: int8 does not answer as fp32 does, so nothing was written: "
                f"{'; '.join(found.faults)}; --max-loss accepts a greater loss, and --runtime judges one runtime alone"
            )
        for judged in found.judgement.judged:
            if judged.why:
                say(f"{judged.runtime} cannot open this {recipe.file}, a fault of its own: {judged.why}")
        for name in _BESIDE:
            shutil.copy(fp32 / name, int8 / name)
        write_json(int8 / "int8.json", found.to_json())
        to.mkdir(parents=True, exist_ok=True)
        shutil.copytree(int8, to, dirs_exist_ok=True)
    return found


def _keep_figures(found: Int8, arch_id: str, run: RunFolder, say: Callable[[str], None]) -> None:
    """Records the figures in the run, for its page. Says so if that is not possible; the export does not need it."""
    if found.accuracy is None and not found.faults:
        return  # --runtime left out the runtime that the file is for
    try:
        with run.locked():
            run.int8.append(arch_id, found)
    except (RunFolderError, StorageError) as error:
        say(f"the page of the run will not show these figures, since they cannot be recorded in it: {error}")


def _data_of(
    run: RunFolder, data: str | Path | None, on_note: Callable[[str], None] | None
) -> tuple[ImageData, TrainingSetup]:
    experiment = space_file_of(run)
    setup = TrainingSetup.of(experiment, run=run, data=data).on("cpu", num_threads=torch.get_num_threads(), gpus=0)
    setup = setup.identified(run, on_note=on_note)
    return setup.open_data(), setup


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
    assert found.num_bytes is not None, "it was written"
    assert found.ms is not None, "it was timed"
    return [
        *rows,
        f"| training images that int8 was calibrated on | {found.num_calibrated:,} |",
        f"| MB in fp32 and in int8 | {', '.join(f'{size / 1e6:.2f}' for size in found.num_bytes)} |",
        f"| ms for one image in fp32 and in int8, in {found.software} on {threads} of a CPU | "
        f"{', '.join(f'{ms:.3g}' for ms in found.ms)} |",
    ]
