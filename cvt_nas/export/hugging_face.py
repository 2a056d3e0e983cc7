"""Writes a network for transformers' `CvtForImageClassification`, if that class can represent it exactly.

That port of CvT has no setting for QuickGELU or for blocks that differ within a stage. Its code for projections other
than `dw_bn` fails. It has a drop path rate for a stage only if the stage is deep enough. Networks that it cannot
represent are refused, because they would load without an error and give other logits.

Source: transformers 5.24, models/cvt.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cvt_nas.arch import ArchConfig, checked_size, sides_of
from cvt_nas.model import CvT, hugging_face_name
from cvt_nas.space import BLOCK_CHOICES

_RESAMPLING = {"bilinear": 2, "bicubic": 3}  # codes of Pillow


def misfits(model: CvT, preprocessing: Mapping[str, Any]) -> list[str]:
    """Reasons, one line each, why the port cannot represent `model` or its processors cannot prepare images for it."""
    found = []
    for index, stage in enumerate(model.arch.stages):
        first = stage.blocks[0]
        found += [
            f"stage {index}: its blocks differ in {name}"
            for name in BLOCK_CHOICES
            if len({getattr(block, name) for block in stage.blocks}) > 1
        ]
        if first.projection != "dw_bn":
            found.append(f"stage {index}: projection {first.projection}, it has dw_bn alone")
        if stage.pos_embed:
            found.append(f"stage {index}: position embedding, it has none")
        if len(stage.blocks) <= index:
            found.append(f"stage {index}: depth {len(stage.blocks)}, it needs more than {index}")
    if any(block.activation != "gelu" for stage in model.arch.stages for block in stage.blocks):
        found.append(
            "activation quick_gelu, it has gelu alone (a space file with `activation: gelu` finds such networks)"
        )
    height, width = sides_of(model.arch.image_size)
    if height != width and preprocessing.get("crop_pct", 1.0) < 1:
        found.append(f"the centre of images, {height} x {width}, is cropped, its processors crop squares alone")
    return found


def config_of(arch: ArchConfig) -> dict[str, Any]:
    """Settings of the port for a network without `misfits`."""
    stages, firsts = arch.stages, [stage.blocks[0] for stage in arch.stages]
    return {
        "num_channels": arch.num_channels,
        "patch_sizes": [stage.patch_kernel for stage in stages],
        "patch_stride": [stage.patch_stride for stage in stages],
        "patch_padding": [stage.patch_padding for stage in stages],
        "embed_dim": [stage.embed_dim for stage in stages],
        "depth": [len(stage.blocks) for stage in stages],
        "num_heads": [block.num_heads for block in firsts],
        "mlp_ratio": [float(block.mlp_ratio) for block in firsts],
        "kernel_qkv": [block.kernel_size for block in firsts],
        "padding_q": [block.kernel_size // 2 for block in firsts],
        "padding_kv": [block.kernel_size // 2 for block in firsts],
        "stride_q": [1] * len(stages),
        "stride_kv": [block.kv_stride for block in firsts],
        "qkv_projection_method": ["dw_bn"] * len(stages),
        "qkv_bias": [True] * len(stages),
        "cls_token": [stage.class_token for stage in stages],
        **{f"{kind}_rate": [0.0] * len(stages) for kind in ("attention_drop", "drop", "drop_path")},
    }


def write_hugging_face(model: CvT, folder: Path, preprocessing: Mapping[str, Any]) -> None:
    """Writes `config.json`, `model.safetensors` and `preprocessor_config.json`."""
    labels = dict(enumerate(preprocessing["classes"]))
    config = {
        "architectures": ["CvtForImageClassification"],
        "model_type": "cvt",
        "dtype": "float32",
        **config_of(model.arch),
        "id2label": labels,
        "label2id": {label: index for index, label in labels.items()},
        **({"problem_type": "multi_label_classification"} if preprocessing.get("multi_label") else {}),
    }
    write_json(folder / "config.json", config)
    state = {hugging_face_name(name): tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "preprocessor_config.json", _image_processor(preprocessing))


def _image_processor(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Content of `preprocessor_config.json`.

    ConvNeXt's processor scales images to a larger size and crops the centre. ViT's processor scales them to the size
    itself.
    """
    (height, width), crop_pct = sides_of(checked_size(preprocessing["image_size"])), preprocessing.get("crop_pct", 1.0)
    cropped = {
        "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": height}, "crop_pct": crop_pct,
    }  # fmt: skip
    whole = {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    return {
        **(whole if crop_pct == 1 else cropped),
        "do_resize": True,
        "resample": _RESAMPLING[preprocessing.get("interpolation", "bilinear")],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing["mean"]),
        "image_std": list(preprocessing["std"]),
    }


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def load_hugging_face(folder: Path) -> Any:
    """A function that gives the logits of the port, which loads the folder by itself. Raises RuntimeError if weights
    have no counterpart."""
    from transformers import CvtForImageClassification

    loaded: Any = CvtForImageClassification.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    if unused := [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in report[kind]]:
        raise RuntimeError(f"weights without a counterpart: {', '.join(map(str, unused))}")

    @torch.inference_mode()
    def logits(images: Tensor) -> Tensor:
        return model.eval()(images).logits

    return logits
