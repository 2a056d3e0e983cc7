"""The model card: figures of a model with their split and seeds, how to load the model, and how it was found."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cvt_nas.arch import describe_stages, size_text
from cvt_nas.results import TrialResult, in_int8
from cvt_nas.run import RunFolder


def model_card(
    run: RunFolder,
    result: TrialResult,
    folder: Path,
    *,
    preprocessing: Mapping[str, Any],
    usage: str,
    opset: int,
    rows: Sequence[str] = (),
) -> str:
    """The card in Markdown, with the header that the Hugging Face Hub reads.

    Args:
        usage: Lines of Python that load the model; see `Format`.
        opset: Opset of an ONNX file.
        rows: Further lines of the table of figures.
    """
    score, manifest, test = run.score_name, run.manifest, run.test_accuracies().get(result.arch_id)
    channels, height, width = result.arch.image_shape
    size = size_text(result.arch.image_size)
    resized = f"resized to {size}"
    if (crop_pct := preprocessing.get("crop_pct", 1.0)) < 1:
        down, across = (math.floor(side / crop_pct) for side in (height, width))
        least = f"{down} pixels on their shorter side" if height == width else f"cover {down} x {across} pixels"
        resized = f"resized to {least} and cropped to {size}"
    test_line = "not read for this model" if test is None else f"{test:.4f}"
    accuracy_lines = f"| {score} on the search split, which guided the search | {result.own_accuracy:.4f} |"
    if (found := result.confirmation) is not None:
        spread = f", standard deviation {found.sd:.4f}" if found.sd is not None else ""
        lost = f"; {found.num_lost} more ended without one" if found.num_lost else ""
        fp32 = ""
        if found.runtime is not None:
            fp32 = f"| {score} of the same trainings in fp32, mean | {found.fp32_mean:.4f} |\n"
        accuracy_lines = (
            f"| {in_int8(score, found.runtime)} on the search split of this architecture, mean over "
            f"{len(found.accuracies)} further trainings{lost} | {found.mean:.4f}{spread} |\n"
            f"{fp32}| {score} of these weights on the search split, for which they were selected | "
            f"{result.own_accuracy:.4f} |"
        )
    return f"""---
pipeline_tag: image-classification
tags: [cvt, neural-architecture-search]
---
# CvT {result.arch_id}

A Convolutional vision Transformer (arXiv:2103.15808), found on `{manifest["dataset"]}` by cvt-nas.

| | |
|---|---|
{accuracy_lines}
| {score} on the test split{" (in fp32)" if rows else ""} | {test_line} |{"".join(chr(10) + row for row in rows)}
| parameters | {result.cost.params:,} |
| FLOPs of one image at {size} (a multiply-add is one, by fvcore's convention) | {result.cost.flops:,} |
| epochs, seed | {result.epochs}, {result.seed} |
| made with | {", ".join(f"{name} {version}" for name, version in manifest["versions"].items())} |

    {(chr(10) + "    ").join(describe_stages(result.arch))}

## Use

{textwrap.indent(usage.format(folder=folder.name, channels=channels, height=height, width=width, opset=opset), "    ")}

Images are {resized}, scaled to [0, 1], then normalised by mean {preprocessing["mean"]} and
standard deviation {preprocessing["std"]}. Classes, in the order of the logits: {
        ", ".join(preprocessing["classes"][:20])
    }{", ..." if len(preprocessing["classes"]) > 20 else ""}.

## The file that it was found with

{textwrap.indent(manifest["space_file"], "    ")}
"""
