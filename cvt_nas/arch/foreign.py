"""Architectures as other tools write them: the `config.json` of transformers' CvT, and of timm."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvt_nas.arch.network import ArchConfig, BlockConfig, StageConfig, arch_from_dict
from cvt_nas.arch.published import NAMED_ARCHS
from cvt_nas.errors import ArchError

# Defaults of transformers' `CvtConfig`, release 5.24, for keys that a `config.json` lacks.
_DEFAULTS: dict[str, Any] = {
    "num_channels": 3,
    "patch_sizes": [7, 3, 3],
    "patch_stride": [4, 2, 2],
    "patch_padding": [2, 1, 1],
    "embed_dim": [64, 192, 384],
    "num_heads": [1, 3, 6],
    "depth": [1, 2, 10],
    "mlp_ratio": [4.0, 4.0, 4.0],
    "qkv_bias": [True, True, True],
    "cls_token": [False, False, True],
    "qkv_projection_method": ["dw_bn", "dw_bn", "dw_bn"],
    "kernel_qkv": [3, 3, 3],
    "padding_kv": [1, 1, 1],
    "stride_kv": [2, 2, 2],
    "padding_q": [1, 1, 1],
    "stride_q": [1, 1, 1],
}
_TIMM_NAMES = {name.replace("-", "_"): name for name in NAMED_ARCHS}
_IMAGE_SIZE = 224  # of the published models; transformers' settings have no size
_NUM_CLASSES = 2  # transformers' default without labels


def is_config(tree: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a `config.json` of transformers or of timm, for any network."""
    return "model_type" in tree or ("architecture" in tree and ("pretrained_cfg" in tree or "model_args" in tree))


def is_of_transformers(tree: Mapping[str, Any]) -> bool:
    return tree.get("model_type") == "cvt"


def arch_of_config(tree: Mapping[str, Any], path: Path) -> ArchConfig:
    """The architecture that the `config.json` at `path` describes.

    transformers uses GELU in every CvT, even for weights that were trained with QuickGELU. Its settings have no image
    size, so that of the published models is taken. Raises ArchError if this package does not have the network.
    """
    try:
        if "architecture" in tree and "model_type" not in tree:
            return _of_timm(tree)
        if not is_of_transformers(tree):
            raise ArchError(f"model_type: got {tree.get('model_type')!r}, must be 'cvt'")
        return _of_transformers(tree)
    except ArchError as error:
        raise ArchError(f"{path}: {error}") from error


def class_names_of_config(tree: Mapping[str, Any], path: Path) -> tuple[str, ...] | None:
    """Names of the classes in a `config.json`, in the order of the logits.

    None if there are none, or only transformers' placeholders `LABEL_0`, `LABEL_1`. Raises ArchError if the indices are
    not 0, 1, 2, ... with one name each.
    """
    facts = tree.get("pretrained_cfg")
    told = {
        "id2label": tree.get("id2label"),
        "label_names": tree.get("label_names"),
        "pretrained_cfg.label_names": facts.get("label_names") if isinstance(facts, Mapping) else None,
        "label2id": tree.get("label2id"),
    }
    for key, value in told.items():
        names = _named(key, value, path) if value else None
        if names is not None and any(name != f"LABEL_{index}" for index, name in enumerate(names)):
            return names
    return None


def _named(key: str, told: Any, path: Path) -> tuple[str, ...]:
    """Names in the order of their indices, from a list, a dict by index, or a dict by name such as `label2id`."""
    try:
        pairs = [(index, name) for name, index in told.items()] if key == "label2id" else (
            told.items() if isinstance(told, Mapping) else enumerate(told))  # fmt: skip
        named = {int(index): name for index, name in pairs}
        names = tuple(named[index] for index in range(len(told)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArchError(f"{path}: {key}: must have one name for each class, by its index from 0") from error
    if any(not isinstance(name, str) for name in names):
        raise ArchError(f"{path}: {key}: got {next(n for n in names if not isinstance(n, str))!r}, must be names")
    return names


def _of_transformers(tree: Mapping[str, Any]) -> ArchConfig:
    told = {name: tree.get(name, default) for name, default in _DEFAULTS.items()}
    if not isinstance(told["depth"], list):
        raise ArchError(f"depth: got {told['depth']!r}, must be a list of one value for each stage")
    num_stages = len(told["depth"])
    for name, values in told.items():
        if name != "num_channels" and (not isinstance(values, list) or len(values) != num_stages):
            raise ArchError(f"{name}: got {values!r}, must be a list of one value for each of {num_stages} stages")
    stages = []
    for index in range(num_stages):
        own = {name: values[index] for name, values in told.items() if name != "num_channels"}
        _check_possible(own, index)
        block = BlockConfig(
            kv_stride=own["stride_kv"],
            kernel_size=own["kernel_qkv"],
            num_heads=own["num_heads"],
            mlp_ratio=float(own["mlp_ratio"]),
            activation="gelu",
        )
        stages.append(
            StageConfig(
                patch_kernel=own["patch_sizes"],
                patch_stride=own["patch_stride"],
                patch_padding=own["patch_padding"],
                embed_dim=own["embed_dim"],
                blocks=(block,) * own["depth"],
                class_token=own["cls_token"],
            )
        )
    labels = tree.get("id2label") or tree.get("label2id")
    num_classes = len(labels) if isinstance(labels, Mapping) else tree.get("num_labels", _NUM_CLASSES)
    return ArchConfig(
        image_size=_IMAGE_SIZE, num_channels=told["num_channels"], num_classes=num_classes, stages=tuple(stages)
    )


def _check_possible(own: Mapping[str, Any], index: int) -> None:
    """Raises ArchError if this package has no stage with these settings."""
    kernel, ratio, depth = own["kernel_qkv"], own["mlp_ratio"], own["depth"]
    if type(kernel) is not int:
        raise ArchError(f"kernel_qkv: got {kernel!r} in stage {index}, must be a whole number")
    if type(ratio) not in (int, float):
        raise ArchError(f"mlp_ratio: got {ratio!r} in stage {index}, must be a number")
    if type(depth) is not int or not 1 <= depth <= 10_000:
        raise ArchError(f"depth: got {depth!r} in stage {index}, must be a whole number of at least 1")
    needed = {"stride_q": 1, "padding_q": kernel // 2, "padding_kv": kernel // 2, "qkv_bias": True,
              "qkv_projection_method": "dw_bn"}  # fmt: skip
    for name, value in needed.items():
        if own[name] != value:
            raise ArchError(f"{name}: got {own[name]!r} in stage {index}, must be {value}")


def _of_timm(tree: Mapping[str, Any]) -> ArchConfig:
    name, given = tree["architecture"], tree.get("model_args")
    given = given if isinstance(given, Mapping) else {}
    if name in _TIMM_NAMES:
        arch = NAMED_ARCHS[_TIMM_NAMES[name]]
    elif name == "cvt_nas" and isinstance(given.get("arch"), Mapping):
        arch = arch_from_dict(given["arch"])
    elif name == "cvt_nas" and given.get("arch") in NAMED_ARCHS:
        arch = NAMED_ARCHS[given["arch"]]
    else:
        raise ArchError(
            f"architecture: got {name!r}, must be cvt_nas with its arch, or one of {', '.join(_TIMM_NAMES)}"
        )
    facts = tree.get("pretrained_cfg")
    size = facts.get("input_size") if isinstance(facts, Mapping) else None
    changes: dict[str, Any] = {}
    if isinstance(size, list) and len(size) == 3:
        changes = {"num_channels": size[0], "image_size": size[1:]}
    if tree.get("num_classes"):
        changes["num_classes"] = tree["num_classes"]
    return dataclasses.replace(arch, **changes)
