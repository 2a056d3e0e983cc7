"""From an architecture of a run to a plain model folder that one line loads."""

import json
import shutil
from pathlib import Path

from cvt_nas.arch import describe_stages
from cvt_nas.errors import ExportError
from cvt_nas.model import load_model, probe_error
from cvt_nas.results import RunFolder, TrialResult, fetch

LOGIT_TOLERANCE = 1e-5


def export(run: RunFolder, pick: str, to: Path) -> TrialResult:
    """Writes `arch.json`, `model.safetensors`, `preprocessing.json` and a model card to `to`.

    The exported model is loaded again and must answer as the trained one did when its training ended.

    Args:
        pick: See `RunFolder.pick`.
        to: A folder that is new or empty.

    Returns:
        The trial whose model it is.

    Raises:
        ExportError: `to` is not empty, the trial has no weights, or the logits differ.
        RunFolderError: `pick` means nothing in this run.
    """
    result = run.pick(pick)
    source = run.model_path(result.arch_id)
    if not source.exists():
        fetch(source)
    if not (source / "model.safetensors").is_file():
        why = (
            f"its weights are not in {source.parent}"
            if result.status == "complete"
            else f"its training ended as '{result.status}' after epoch {result.epochs} and left no weights"
        )
        raise ExportError(
            f"{result.arch_id}: {why}; train it in full: cvt-nas train {run.place}:{result.arch_id} --out DIR"
        )
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ExportError(f"--to {to}: is not empty; name a new folder")
    to.mkdir(parents=True, exist_ok=True)
    for name in ("arch.json", "model.safetensors", "preprocessing.json"):
        shutil.copyfile(source / name, to / name)
    error = probe_error(load_model(to), source)
    if not error <= LOGIT_TOLERANCE:  # also where it is not a number
        shutil.rmtree(to)
        raise ExportError(f"{result.arch_id}: its logits differ by {error:.3g} from those of the trained model")
    (to / "README.md").write_text(_model_card(run, result, to))
    return result


def _model_card(run: RunFolder, result: TrialResult, folder: Path) -> str:
    manifest, test = run.manifest, run.test_accuracies().get(result.arch_id)
    preprocessing = json.loads((folder / "preprocessing.json").read_text())
    size, channels = result.arch.image_size, result.arch.num_channels
    test_line = "not read for this model" if test is None else f"{test:.4f}"
    accuracy_lines = f"| accuracy on the search split, which guided the search | {result.own_accuracy:.4f} |"
    if (found := result.confirmation) is not None:
        spread = f", standard deviation {found.sd:.4f}" if found.sd is not None else ""
        lost = f"; {found.num_lost} more ended without one" if found.num_lost else ""
        accuracy_lines = (
            f"| accuracy on the search split of this architecture, mean over {len(found.accuracies)} further "
            f"trainings{lost} | {found.mean:.4f}{spread} |\n"
            f"| accuracy of these weights on the search split, for which they were selected | "
            f"{result.own_accuracy:.4f} |"
        )
    return f"""# CvT {result.arch_id}

A Convolutional vision Transformer (arXiv:2103.15808), found on `{manifest["dataset"]}` by cvt-nas.

| | |
|---|---|
{accuracy_lines}
| accuracy on the test split | {test_line} |
| parameters | {result.cost.params:,} |
| FLOPs of one image at {size} x {size} (a multiply-add is one, by fvcore's convention) | {result.cost.flops:,} |
| epochs, seed | {result.epochs}, {result.seed} |

    {(chr(10) + "    ").join(describe_stages(result.arch))}

## Use

    import cvt_nas, torch
    model = cvt_nas.load_model("{folder.name}")  # a torch.nn.Module in eval mode
    logits = model(torch.zeros(1, {channels}, {size}, {size}))

Images are resized to {size} x {size}, scaled to [0, 1], then normalised by mean {preprocessing["mean"]} and
standard deviation {preprocessing["std"]}. Classes, in the order of the logits: {
        ", ".join(preprocessing["classes"][:20])
    }{", ..." if len(preprocessing["classes"]) > 20 else ""}.
"""
