"""Chooses a search for a data set and a machine: image size, space, training and metric, with reasons."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cvt_nas.arch import ArchConfig, ImageSize, sides_of
from cvt_nas.init.looking import DataLook, Host

_SIDES = (16, 24, 32, 48, 64, 96, 128, 160, 192, 224)
_MOST_ON_CPU = 64
_LEAST = 8  # pixels of a side
_LONG = 1.4  # images with at least this ratio of sides become rectangles
_UNIT = 16  # pixels; the longer side of rectangles is a multiple
_MUCH = 20_000  # training images
_FEW = 5_000
_UNBALANCED = 5.0
_MOST_SEARCH_IMAGES = 10_000
_PATCHES = {1: (3, None), 2: (3, None), 4: (7, 2)}  # stride of the stem: kernel and padding


Section = dict[str, Any]  # as YAML has it: scalars, lists and further dictionaries


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A draft of a space file.

    Args:
        sections: Sections of the file: nested dictionaries and lists.
        reasons: Reasons of settings, by their names within their sections, one line each.
        basis: Basis of the space, one line.
    """

    sections: Section
    reasons: dict[str, str]
    basis: str


def draft_for(look: DataLook, host: Host, *, name: str) -> Draft:
    """Drafts a file that suits the data and the device, before its time is known."""
    image_size, why_side = _image_size_for(look, host)
    side = min(sides_of(image_size))
    size_name, why_size = _size_for(look, host, side)
    reasons = {"image_size": why_side, "stages": why_size}
    stages = _stages_for(side, size_name)
    training = _training_for(look, host, side, reasons)
    sections: Section = {
        "format": 1,
        "name": name,
        "space": {
            "image_size": image_size if isinstance(image_size, int) else list(image_size),
            "num_channels": look.num_channels,
            "num_classes": look.num_classes,
            "stages": stages,
        },
        "anchors": {"middle": _middle_of(stages)},
        "objectives": {"accuracy": "maximize", "params": "minimize", "flops": "minimize"},
        "data": _data_for(look, reasons),
        "training": training,
        "search": {
            "trials": 100,
            "sampler": "surrogate",
            "scheduler": "pareto-asha",
            "grace_period": max(training["epochs"] // 9, 1),
            "reduction_factor": 3,
            "seed": 0,
        },
    }
    return Draft(sections=sections, reasons=reasons, basis=why_size)


def draft_like(ready: Section, look: DataLook, *, name: str, of: str) -> Draft:
    """Drafts the search of a ready file for other images.

    Args:
        ready: Content of the ready file.
        of: Its name.
    """
    sections, reasons = copy.deepcopy(ready), dict[str, str]()
    space = sections["space"]
    sections["name"] = name
    space["num_channels"], space["num_classes"] = look.num_channels, look.num_classes
    sections["data"] = _data_for(look, reasons)
    if look.is_multi_label:
        sections["training"]["metric"] = "mean_average_precision"
    augment = sections["training"].get("augment", {})
    for idle in ("crop_scale", "color_jitter") if look.is_in_memory else ("crop_padding",):
        augment.pop(idle, None)
    reasons["image_size"] = f"as {of} has it; half of the images are at least {min(look.median_size)} pixels"
    return Draft(sections=sections, reasons=reasons, basis=f"the space and the training of {of}")


def draft_around(arch: ArchConfig, draft: Draft) -> Draft:
    """Returns the draft with a space around the network of weights, whose sizes are the greatest options.

    Args:
        arch: Architecture of the weights.
    """
    stages = []
    for stage in arch.stages:
        first = stage.blocks[0]
        heads = max(block.num_heads for block in stage.blocks)
        fewer = [heads // 2, heads] if heads % 2 == 0 else [heads]
        unit = 2 * heads if heads % 2 == 0 else heads
        narrower = max(round(stage.embed_dim * 0.75 / unit), 1) * unit
        depth, ratio = len(stage.blocks), max(block.mlp_ratio for block in stage.blocks)
        strides = (
            sorted({first.kv_stride, 2 * first.kv_stride})
            if stage is arch.stages[0] and first.projection != "linear"
            else [first.kv_stride]
        )
        stages.append({
            "patch": {"kernel": stage.patch_kernel, "stride": stage.patch_stride, "padding": stage.patch_padding},
            "embed_dim": sorted({narrower, stage.embed_dim}),
            "depth": sorted({max(depth // 2, 1), max(3 * depth // 4, 1), depth}),
            "num_heads": fewer,
            "mlp_ratio": [ratio / 2, ratio],
            "kernel_size": first.kernel_size,
            "kv_stride": strides,
            "projection": first.projection,
        })  # fmt: skip
    names = ("embed_dim", "depth", "num_heads", "mlp_ratio")
    whole = {name: [stage[name][-1] for stage in stages] for name in names}
    whole["kv_stride"] = [stage.blocks[0].kv_stride for stage in arch.stages]
    for stage in stages:
        stage.update({name: _plain(value) for name, value in stage.items() if isinstance(value, list)})
    sections = copy.deepcopy(draft.sections)
    sections["space"] |= {
        "activation": arch.stages[0].blocks[0].activation,
        "pool": "class_token" if arch.stages[-1].class_token else "mean",
        "stages": stages,
    }
    sections["anchors"] = {"whole": whole}
    reasons = {**draft.reasons, "stages": "options up to the sizes of the network that the weights are of"}
    return Draft(sections=sections, reasons=reasons, basis=reasons["stages"])


def _data_for(look: DataLook, reasons: dict[str, str]) -> Section:
    data: Section = {"dataset": look.dataset}
    if "search" in look.held_out:
        pool = look.num_images["train"] + look.num_images["search"]
        data["search_fraction"] = round(max(min(0.2, _MOST_SEARCH_IMAGES / pool), 0.02), 3)
        reasons["search_fraction"] = "the search is guided by these images, which no training sees"
    return data


def _image_size_for(look: DataLook, host: Host) -> tuple[ImageSize, str]:
    """Chooses the side of squares, or height and width if nearly all images are long in the same direction."""
    height, width = look.median_size
    shorter = min(height, width)
    most = 224 if host.gpu_names else _MOST_ON_CPU
    if look.is_in_memory and max(height, width) <= most:
        size = max(height, _LEAST), max(width, _LEAST)
        return (size[0] if height == width else size), "the images' own size"
    ratio = look.ratio
    is_long = max(ratio, 1 / ratio) >= _LONG
    most_short = most / math.sqrt(max(ratio, 1 / ratio)) if is_long else most
    fitting = [side for side in _SIDES if side <= min(shorter, most_short)]
    side = fitting[-1] if fitting else max(shorter, _LEAST)
    why = f"half of the images are at least {shorter} pixels on their shorter side"
    if shorter > most and not host.gpu_names:
        why = f"the images are larger, but CPUs train networks of more than {most} pixels too slowly for an afternoon"
    if not is_long:
        return side, why
    longer = max(round(side * max(ratio, 1 / ratio) / _UNIT), 1) * _UNIT
    shape = "tall" if ratio > 1 else "wide"
    return (longer, side) if ratio > 1 else (side, longer), f"height and width, since the images are {shape}; {why}"


def _size_for(look: DataLook, host: Host, side: int) -> tuple[str, str]:
    num_train = look.num_images["train"]
    if not host.gpu_names:
        return "tiny", "widths and depths that a CPU trains in minutes"
    if num_train < _MUCH or side < 96:
        return "small", f"about half of CvT-13's widths: there are {num_train:,} training images of {side} pixels"
    return "base", "around CvT-13 (arXiv:2103.15808, table 2), which is the anchor's middle"


def _stages_for(side: int, size_name: str) -> list[Section]:
    strides: list[int] = [1] if side <= 16 else [1, 2] if side <= 40 else [2, 4] if side <= 96 else [4]
    if size_name == "tiny" and len(strides) > 1:
        strides = strides[1:]
    widths, depths, heads = {
        "tiny": ([[16, 32], [32, 64], [64, 128]], [[1], [1, 2], [1, 2, 3]], [[1, 2], [1, 2], [2, 4]]),
        "small": ([[32, 64], [96, 128], [192, 256]], [[1, 2], [1, 2, 3], [2, 4, 6]], [[1, 2], [2, 4], [4, 8]]),
        "base": ([[64], [144, 192], [336, 384]], [[1, 2], [1, 2, 3], [6, 8, 10]], [[1, 2], [3, 6], [6, 12]]),
    }[size_name]
    stages, grid = [], side // max(strides)
    for index in range(3):
        patch: Section = {"kernel": 3, "stride": 2}
        if index == 0:
            kernel, padding = _PATCHES[max(strides)] if len(strides) == 1 else (3, None)
            patch = {"kernel": kernel, "stride": _plain(strides)}
            if padding is not None:
                patch["padding"] = padding
        else:
            grid = math.ceil(grid / 2)
        stages.append({
            "patch": patch,
            "embed_dim": _plain(widths[index]),
            "depth": _plain(depths[index]),
            "num_heads": heads[index],
            "mlp_ratio": [2.0, 4.0],
            "kernel_size": [3, 5] if grid >= 7 else 3,
            "kv_stride": [1, 2, 4] if grid >= 28 else [1, 2] if grid >= 4 else 1,
        })  # fmt: skip
    return stages


def _plain(options: Sequence[int]) -> int | list[int]:
    return options[0] if len(options) == 1 else list(options)


def _middle_of(stages: Sequence[Section]) -> Section:
    """The anchor with the middle option of each open choice."""

    def middle(value: object) -> object:
        return value[(len(value) - 1) // 2] if isinstance(value, list) else value

    anchor: Section = {}
    strides = [stage["patch"]["stride"] for stage in stages]
    if any(isinstance(stride, list) for stride in strides):
        anchor["patch_stride"] = [middle(stride) for stride in strides]
    for choice in ("embed_dim", "depth", "num_heads", "mlp_ratio", "kernel_size", "kv_stride"):
        if any(isinstance(stage[choice], list) for stage in stages):
            anchor[choice] = [middle(stage[choice]) for stage in stages]
    return anchor


def _training_for(look: DataLook, host: Host, side: int, reasons: dict[str, str]) -> Section:
    num_train, has_gpu = look.num_images["train"], bool(host.gpu_names)
    epochs = (100 if num_train < _FEW else 60) if has_gpu else 30
    batch_size = 32 if num_train < 2_000 else 64 if num_train < _MUCH or not has_gpu else 256
    training: Section = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": 2e-3 if batch_size == 256 else 1e-3,
        "warmup_epochs": max(round(epochs / 20), 1),
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
    }
    if has_gpu:
        training["precision"] = "bf16"
    if look.is_multi_label:
        reasons["metric"] = "images can have several classes: the mean over classes of the average precision"
        training["metric"] = "mean_average_precision"
    elif look.imbalance > _UNBALANCED:
        reasons["metric"] = (
            f"the commonest class has {look.imbalance:.0f} times the images of the rarest: each class counts alike"
        )
        training["metric"] = "balanced_accuracy"
    if look.imbalance > _UNBALANCED:
        training["class_weights"] = "balanced"
    augment: Section = {} if look.dataset == "digits" else {"flip": True}
    if augment:
        reasons["augment"] = "take flip away where left and right are not alike, as in writing"
    if look.is_in_memory:
        augment["crop_padding"] = max(side // 8, 1)
    else:
        augment["crop_scale"] = 0.08 if num_train >= 10 * _MUCH else 0.35
    if look.num_channels in (1, 3) and side >= 32 and num_train >= 2_000:
        augment["randaugment"] = "rand-m9-mstd0.5-inc1"
    if side >= 32:
        augment["random_erasing"] = 0.25
    if num_train >= _MUCH:
        augment |= {"mixup": 0.8, "cutmix": 1.0}
    return {**training, "augment": augment}
