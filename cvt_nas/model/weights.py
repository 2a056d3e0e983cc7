"""Weights from elsewhere: official state dicts, and folders of transformers' port or of this tool."""

import dataclasses
import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cvt_nas.arch import NAMED_ARCHS, ArchConfig, BlockConfig, StageConfig, load_arch, mlp_width
from cvt_nas.errors import ArchError
from cvt_nas.model.files import load_model
from cvt_nas.model.network import CvT, resized_positions

_MAX_MISFITS = 8  # lines
_PORT_ACTIVATION = (
    "transformers computes gelu whatever the weights were trained with: microsoft's own with quick_gelu, as here; for "
    "others a space file says `activation: gelu`"
)
_PORT_BEGINNINGS = (("stage", "cvt.encoder.stages."), ("norm.", "layernorm."), ("head.", "classifier."))
_PORT_PARTS = (
    (".patch_embed.proj.", ".embedding.convolution_embeddings.projection."),
    (".patch_embed.norm.", ".embedding.convolution_embeddings.normalization."),
    (".blocks.", ".layers."),
    *(
        (f".attn.conv_proj_{short}.{part}.", f".attention.attention.convolution_projection_{long}."
         f"convolution_projection.{whole}.")
        for short, long in (("q", "query"), ("k", "key"), ("v", "value"))
        for part, whole in (("conv", "convolution"), ("bn", "normalization"))
    ),
    *(
        (f".attn.proj_{short}.", f".attention.attention.projection_{long}.")
        for short, long in (("q", "query"), ("k", "key"), ("v", "value"))
    ),
    (".attn.proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),  # after the longer name that ends in it
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
)  # fmt: skip


def hugging_face_name(name: str) -> str:
    """The name in transformers' `CvtForImageClassification` of a tensor of the official state dict."""
    for ours, theirs in _PORT_PARTS:
        name = name.replace(ours, theirs)
    for ours, theirs in _PORT_BEGINNINGS:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def official_name(name: str) -> str:
    """Inverse of `hugging_face_name`; a name that it never gives stays as it is."""
    for ours, theirs in _PORT_BEGINNINGS:
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            for our_part, their_part in _PORT_PARTS:
                name = name.replace(their_part, our_part)
            return name
    return name


def read_weights(path: str | Path) -> CvT:
    """A network with the weights at `path`: a folder of this tool or of transformers' CvT, or a state dict.

    Of a state dict alone, the strides and the numbers of heads, which no weight tells, are those of CvT-13's stages or
    1: what is read is meant to lend its weights, not to run.

    Args:
        path: A folder, or a file of `torch.save`, as the official ones are, or of safetensors; with the official names
            or those of transformers.

    Raises:
        ArchError: It cannot be read, or is no CvT.
    """
    path = Path(path)
    if path.is_dir() and not (path / "config.json").is_file():
        return load_model(path)
    checkpoint = _read_checkpoint(path)
    try:
        model = CvT(checkpoint.source(_arch_of_state(checkpoint.state)))
        model.load_state_dict(checkpoint.state)
    except (KeyError, RuntimeError, ValueError, ArithmeticError) as error:
        raise ArchError(f"{path}: is no state dict of a CvT: {str(error).splitlines()[0]}") from error
    return model


def load_checkpoint(path: str | Path, arch: ArchConfig | None = None) -> CvT:
    """The network whose weights are at `path`, every one of them, to run as it is.

    Args:
        path: As in `read_weights`.
        arch: Of the network, where no file beside the weights tells; None for the published one that they fit.

    Raises:
        ArchError: It cannot be read, or the weights do not fit; it lists which.
    """
    path = Path(path)
    if (path / "arch.json").is_file():
        return load_model(path)
    checkpoint = _read_checkpoint(path)
    state = checkpoint.state
    if checkpoint.config is not None:
        return read_weights(path)
    if arch is None and (arch := _published_with(state)) is None:
        raise ArchError(f"{path}: fits none of {', '.join(NAMED_ARCHS)}; name its architecture by --arch")
    model = CvT(arch)
    if misfits := _misfits(state, model.state_dict()):
        raise ArchError("\n    ".join([f"{path}: does not fit the architecture {model.arch.id}:", *misfits]))
    model.load_state_dict(state)
    return model


def initialise(model: CvT, path: str | Path) -> tuple[str, ...]:
    """Gives `model` the weights at `path`, each of which must fit by its name and shape.

    The head alone stays as it is where it is of another number of classes. What no weight shows, such as a stride or
    the activation, may differ from the network that the weights are of, since training adapts to it; but it is said.

    Args:
        model: Changed in place, unless this raises.
        path: See `read_weights`.

    Returns:
        What is not as in the network that the weights are of, a line each, for people.

    Raises:
        ArchError: The weights cannot be read, or do not fit; it lists which.
    """
    path = Path(path)
    checkpoint = _read_checkpoint(path)
    state, own, notes = checkpoint.state, model.state_dict(), []
    if _is_of_other_classes(state, own):
        notes.append(f"the head begins afresh: {model.arch.num_classes} classes instead of {len(state['head.bias'])}")
        state = {**state, **{name: own[name] for name in ("head.weight", "head.bias")}}
    for name in (name for name in own if name.endswith(".pos_embed") and name in state):
        ours, theirs = own[name].shape, state[name].shape
        if len(theirs) == 4 and theirs[:2] == ours[:2] and theirs != ours:
            notes.append(f"{name}: interpolated from a grid of {theirs[2]} x {theirs[3]} to {ours[2]} x {ours[3]}")
            state = {**state, name: resized_positions(state[name], ours[2:])}
    if misfits := _misfits(state, own):
        raise ArchError("\n    ".join([f"{path}: does not fit the architecture {model.arch.id}:", *misfits]))
    try:
        notes += _differences(model.arch, checkpoint.source(model.arch))
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise ArchError(f"{path}: {str(error).splitlines()[0]}") from error
    if checkpoint.config is not None and any(note.startswith("activation: ") for note in notes):
        notes.append(_PORT_ACTIVATION)
    return tuple(notes)


def weights_file(path: str | Path) -> Path:
    """The file that holds the weights at `path`: itself, or one in it.

    Raises:
        ArchError: It is a folder without one.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return path / name
    raise ArchError(f"{path}: holds neither model.safetensors nor pytorch_model.bin")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Checkpoint:
    """Weights from elsewhere, by their official names.

    Args:
        arch: The network that they are of, where a file beside them holds it.
        config: Where they are of transformers' port: its settings, as far as they are known.
    """

    state: dict[str, Tensor]
    arch: ArchConfig | None
    config: Mapping[str, Any] | None

    def source(self, arch: ArchConfig) -> ArchConfig:
        """The network that the weights are of: `arch`, which they fit, but for what is known to be otherwise.

        Raises:
            ArchError: It cannot exist, or the weights are not of it.
        """
        if self.arch is not None:
            return self.arch
        if self.config is None:
            return arch
        stages = [_stage_of_port(stage, index, self.config) for index, stage in enumerate(arch.stages)]
        return dataclasses.replace(arch, stages=tuple(stages))


def _read_checkpoint(path: Path) -> _Checkpoint:
    file, arch, config = weights_file(path), None, None
    if (path / "arch.json").is_file():
        arch = load_arch(path)
    elif (path / "config.json").is_file():
        config = _read_config(path / "config.json")
    try:
        state: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except (OSError, RuntimeError, LookupError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        # of what is no file of weights, torch's reader says whatever comes first
        raise ArchError(f"{path}: cannot be read: {str(error).splitlines()[0] if str(error) else error!r}") from error
    for name in ("model", "state_dict"):  # in which training scripts wrap it
        state = state.get(name, state) if isinstance(state, dict) else {}
    if not state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise ArchError(f"{path}: is no state dict of a CvT: it holds other things than tensors with names")
    if all(name.startswith("module.") for name in state):  # as DDP names them
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if any(name.startswith("cvt.encoder.") for name in state):
        state, config = {official_name(name): tensor for name, tensor in state.items()}, config or {}
    return _Checkpoint(state=state, arch=arch, config=config)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ArchError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != "cvt":
        raise ArchError(f"{path}: model_type: got {found!r}, must be 'cvt'")
    return config


def _stage_of_port(stage: StageConfig, index: int, config: Mapping[str, Any]) -> StageConfig:
    """`stage` with what no weight shows of it as transformers' port has it, by its settings."""
    padding = stage.blocks[0].kernel_size // 2
    needed = {"stride_q": 1, "padding_q": padding, "padding_kv": padding}
    names = {"patch_stride", "patch_padding", "num_heads", "stride_kv", *needed}
    try:
        told = {name: config[name][index] for name in names if name in config}
    except (IndexError, KeyError, TypeError) as error:
        raise ArchError(f"config.json: has no stage {index}, which its weights have") from error
    for name, value in needed.items():
        if told.get(name, value) != value:
            raise ArchError(f"config.json: {name}: got {told[name]!r} in stage {index}, must be {value}")
    blocks = tuple(
        dataclasses.replace(
            block,
            num_heads=told.get("num_heads", block.num_heads),
            kv_stride=told.get("stride_kv", block.kv_stride),
            activation="gelu",  # it has no other, whatever the weights were trained with
        )
        for block in stage.blocks
    )
    return dataclasses.replace(
        stage,
        patch_stride=told.get("patch_stride", stage.patch_stride),
        patch_padding=told.get("patch_padding", stage.patch_padding),
        blocks=blocks,
    )


def _arch_of_state(state: Mapping[str, Tensor]) -> ArchConfig:
    """The architecture of a state dict, as far as the shapes of weights show it."""
    stages = []
    while f"stage{len(stages)}.patch_embed.proj.weight" in state:
        name = f"stage{len(stages)}"
        width, _, side, _ = state[f"{name}.patch_embed.proj.weight"].shape
        blocks = []
        while (mlp := f"{name}.blocks.{len(blocks)}.mlp.fc1.weight") in state:
            kernel = state.get(f"{name}.blocks.{len(blocks)}.attn.conv_proj_q.conv.weight")
            ratio = (hidden := state[mlp].shape[0]) / width
            if mlp_width(width, ratio) != hidden:  # by rounding
                ratio = math.nextafter(ratio, math.inf)
            blocks.append(
                BlockConfig(projection="linear", kernel_size=1, kv_stride=1, mlp_ratio=ratio)
                if kernel is None
                else BlockConfig(kernel_size=kernel.shape[-1], mlp_ratio=ratio)
            )
        stages.append(
            StageConfig(
                patch_kernel=side,
                patch_stride=2 if stages else 4,
                patch_padding=side // 2,
                embed_dim=width,
                blocks=tuple(blocks),
                class_token=f"{name}.cls_token" in state,
                pos_embed=f"{name}.patch_embed.pos_embed" in state,
            )
        )
    channels, classes = state["stage0.patch_embed.proj.weight"].shape[1], len(state["head.weight"])
    return ArchConfig(image_size=224, num_channels=channels, num_classes=classes, stages=tuple(stages))


def _published_with(state: Mapping[str, Tensor]) -> ArchConfig | None:
    """The published architecture, with as many classes as its head has, that `state` fits."""
    num_classes = max(len(state.get("head.bias", ())), 1)
    for named in NAMED_ARCHS.values():
        arch = dataclasses.replace(named, num_classes=num_classes)
        with torch.device("meta"):
            own = CvT(arch).state_dict()
        if not _misfits(state, own):
            return arch
    return None


def _is_of_other_classes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether the heads differ, and in the number of their classes alone."""
    if not {"head.weight", "head.bias"} <= state.keys():
        return False
    weight, bias = state["head.weight"], state["head.bias"]
    num_classes, width = own["head.weight"].shape
    return bias.ndim == 1 and weight.shape == (len(bias), width) and len(bias) != num_classes


def _misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Why `state` cannot take the place of `own`, a line each, some of every kind; empty where it can."""
    got, needed = ({name: _shown(tensor) for name, tensor in of.items()} for of in (state, own))
    kinds = [
        [f"{name}: {got[name]} instead of {size}" for name, size in needed.items() if got.get(name, size) != size],
        [f"missing: {name}" for name in own if name not in state],
        [f"unexpected: {name}" for name in state if name not in own],
    ]
    kinds = [kind for kind in kinds if kind]
    shown = [line for kind in kinds for line in kind[: _MAX_MISFITS // len(kinds)]]
    num_more = sum(map(len, kinds)) - len(shown)
    return [*shown, f"and {num_more} more"] if num_more else shown


def _shown(tensor: Tensor) -> str:
    shape = " x ".join(map(str, tensor.shape))
    return shape if tensor.is_floating_point() else f"{shape} {tensor.dtype}".strip()


def _differences(arch: ArchConfig, source: ArchConfig) -> list[str]:
    """In what no weight shows, how `arch` differs from `source`, whose weights fit it; a line each."""
    if [len(stage.blocks) for stage in arch.stages] != [len(stage.blocks) for stage in source.stages]:
        raise ArchError("arch.json: is of another network than the weights")
    stages: dict[str, list[str]] = {}
    names = [field.name for field in dataclasses.fields(BlockConfig) if field.name != "mlp_ratio"]  # which shows
    for index, (ours, theirs) in enumerate(zip(arch.stages, source.stages, strict=True)):
        pairs = [(name, [ours], [theirs]) for name in ("patch_stride", "patch_padding")]
        for name, own, others in [*pairs, *((name, ours.blocks, theirs.blocks) for name in names)]:
            found, told = ([getattr(part, name) for part in parts] for parts in (own, others))
            if found != told:
                stages.setdefault(f"{name}: {_listed(found)} instead of {_listed(told)}", []).append(str(index))
    return [f"{line} in stage {', '.join(where)}" for line, where in stages.items()]


def _listed(values: list[Any]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "[" + " ".join(map(str, values)) + "]"
