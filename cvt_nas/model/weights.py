"""Loads foreign weights into networks. Each weight must fit by name and shape. Other settings are not guessed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cvt_nas.arch import NAMED_ARCHS, ArchConfig, BlockConfig, size_text
from cvt_nas.errors import ArchError
from cvt_nas.model.checkpoints import Weights, read_weights, with_gelu
from cvt_nas.model.classes import match_classes
from cvt_nas.model.network import CvT, resized_positions

_MAX_MISFITS = 8  # lines
_NUM_PUBLISHED = 1000  # ImageNet's classes, which the published networks have
HEAD = ("head.weight", "head.bias")
NORM = ("norm.weight", "norm.bias")
_PORT_ACTIVATION = (
    "transformers computes gelu whatever the weights were trained with: microsoft's own with quick_gelu, as here; for "
    "others a space file says `activation: gelu`"
)


def load_checkpoint(
    path: str | Path, arch: ArchConfig | None = None, *, on_note: Callable[[str], None] | None = None
) -> CvT:
    """Loads the network whose weights are at `path`, with all weights, in eval mode.

    Args:
        path: See `read_weights`.
        arch: Architecture, if no file beside the weights tells it. None for the published one that fits.
        on_note: Called with notes for people: what was read, and for which network.

    Raises:
        ArchError: The weights cannot be read, do not fit, or have no head; or their architecture is unknown, or `arch`
            contradicts the file that tells it.
    """
    model, notes = fitted(read_weights(path, arch), arch)
    for note in notes:
        if on_note is not None:
            on_note(note)
    return model


def fitted(weights: Weights, arch: ArchConfig | None = None) -> tuple[CvT, tuple[str, ...]]:
    """Returns the network of weights that were read already, and notes; see `load_checkpoint`."""
    if weights.head_like:
        held = ", ".join(weights.head_like[:3]) + (" and more" if len(weights.head_like) > 3 else "")
        if weights.num_classes is not None:
            raise ArchError(
                f"{weights.path}: holds {held} beside the network's own head, and nothing tells which classifies; save "
                f"the network alone, with the head that is meant"
            )
        raise ArchError(
            f"{weights.path}: has no head.weight; it holds {held} instead, must be one linear layer of plain weights"
        )
    if weights.num_classes is None:
        raise ArchError(
            f"{weights.path}: has no head: it is a backbone, which classifies nothing; `train --init` takes it"
        )
    if arch is None and weights.foreign is not None:
        raise ArchError(
            f"{weights.foreign}; move {weights.path} into a folder of its own, or name its architecture by --arch"
        )
    known, notes = _arch_of(weights, arch)
    if weights.source is not None and not weights.is_bound:
        notes = [f"the network of {weights.path.name} is taken from {weights.source}", *notes]
    check_fits(weights, weights.state, shapes_of(known), known)
    model = CvT(known)
    model.load_state_dict(dict(weights.state))
    return model.eval(), (*weights.notes, *notes)


def initialise(model: CvT, weights: Weights | str | Path, *, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """Loads foreign weights into `model`. Each must fit by name and shape.

    Only the head may keep its initial weights, if the weights have none or have one for other classes. The first
    convolution is adapted to other channels. Settings that weights do not show, such as strides or the activation, may
    differ from the network of the weights, since training adapts to them. The notes list such differences.

    Args:
        model: Changed in place, unless this raises.
        weights: The weights, or their path; see `read_weights`.
        classes: Class names of the model in order. If the weights have names, too, the rows of the head are put into
            this order, and rows of classes that the weights do not know keep their initial values.

    Returns:
        Notes for people: what was taken, and what differs from the network of the weights, one line each.

    Raises:
        ArchError: The weights cannot be read, or do not fit. It lists the misfits.
    """
    weights = weights if isinstance(weights, Weights) else read_weights(weights)
    own, notes = model.state_dict(), list(weights.notes)
    state = _with_head(weights, own, classes, notes)
    notes += adapted_channels(state, model.arch.num_channels)
    for name in (name for name in own if name.endswith(".pos_embed") and name in state):
        ours, theirs = own[name].shape, state[name].shape
        if len(theirs) == 4 and theirs[:2] == ours[:2] and theirs != ours:
            notes.append(f"{name}: interpolated from a grid of {theirs[2]} x {theirs[3]} to {ours[2]} x {ours[3]}")
            state[name] = resized_positions(state[name], ours[2:])
    check_fits(weights, state, own, model.arch)
    notes += differences(model.arch, _source_of(weights, model.arch))
    model.load_state_dict(state)
    if weights.is_port and any(note.startswith("activation: ") for note in notes):
        notes.append(_PORT_ACTIVATION)
    return tuple(notes)


def head_rows(
    weights: Weights, num_classes: int, classes: Sequence[str] | None
) -> tuple[tuple[int | None, ...] | None, str | None]:
    """Returns the rows of the weights' head for the classes of the data, in order, and a note for people.

    The result is None if the head keeps its initial weights. A row is None if the weights do not know its class.

    Args:
        num_classes: Number of classes of the data.
        classes: Their names, if known.
    """
    found = weights.num_classes
    if found is None:
        return None, "the head begins afresh: the weights are of a backbone without one"
    told, why_none = (None, "") if classes is None else weights.names.matching(classes)
    if told is None or classes is None:
        if found != num_classes:
            return None, f"the head begins afresh: {num_classes} classes instead of {found}"
        if classes is None:
            return tuple(range(found)), None
        return weights.names.rows_without_names(classes, why_none, is_published=is_published(weights))
    rows = tuple(match_classes(classes, told.names))
    unknown = [name for name, row in zip(classes, rows, strict=True) if row is None]
    if len(unknown) == len(rows):
        why = f"{unknown[0]!r} is none of its classes, such as {told.names[0]!r}"
        if found != num_classes:
            why = f"{num_classes} classes instead of {found}, and {why}"
        return None, f"the head begins afresh: {why}"
    if rows == tuple(range(found)):
        return rows, None
    taken = "are put into the data's order"
    if (num_taken := len(rows) - len(unknown)) < found:
        taken = f"are {num_taken} of {found}"
    afresh = f"; {len(unknown)} begin afresh, such as that of {unknown[0]!r}" if unknown else ""
    return rows, f"the rows of the head {taken}, by the names of the classes{afresh}"


def adapted_channels(state: dict[str, Tensor], num_channels: int) -> list[str]:
    """Adapts the first convolution to `num_channels`, like timm. Returns a note if it had another number.

    For one channel, its weights are summed. For more channels, they are repeated in turn and scaled, so that the sum
    over all channels stays the same.
    """
    name = "stage0.patch_embed.proj.weight"
    weight = state.get(name)
    if weight is None or weight.ndim != 4 or (found := weight.shape[1]) == num_channels:
        return []
    if num_channels == 1:
        state[name] = weight.sum(dim=1, keepdim=True)
    else:
        state[name] = weight[:, [channel % found for channel in range(num_channels)]] * (found / num_channels)
    return [f"the first convolution takes {num_channels} channels instead of {found}"]


def is_published(weights: Weights, arch: ArchConfig | None = None) -> bool:
    """Whether weights seem to be those of a published network with ImageNet's classes, and of `arch` if it is given."""
    if weights.num_classes != _NUM_PUBLISHED or weights.source is not None:  # trainings write files beside weights
        return False
    published = [named for named in NAMED_ARCHS.values() if named.num_classes == _NUM_PUBLISHED]
    if arch is None:
        return any(not _misfits(weights.state, shapes_of(named)) for named in published)
    return any(arch.with_image_size(named.image_size) in (named, with_gelu(named)) for named in published)


def _with_head(
    weights: Weights, own: Mapping[str, Tensor], classes: Sequence[str] | None, notes: list[str]
) -> dict[str, Tensor]:
    """The state with a head for the classes of `own`, from rows of the weights' head or from `own`."""
    state = dict(weights.state)
    if not any(name in state for name in HEAD):
        notes.append("the head begins afresh: the weights are of a backbone without one")
        state |= {name: own[name] for name in HEAD}
        if not any(name in state for name in NORM):  # transformers' backbone has no norm, either
            notes.append("the last norm begins afresh, too")
            state |= {name: own[name] for name in NORM}
        return state
    if not _has_head_like(state, own):
        return state
    rows, note = head_rows(weights, len(own["head.bias"]), classes)
    notes += [] if note is None else [note]
    known = [index for index, row in enumerate(rows or ()) if row is not None]
    for name in HEAD:
        theirs, state[name] = state[name], own[name].detach().cpu().clone()
        state[name][known] = theirs[[row for row in rows or () if row is not None]]
    return state


def _has_head_like(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether the head equals that of `own` except in the number of classes."""
    if not state.keys() >= set(HEAD):
        return False
    weight, bias = state["head.weight"], state["head.bias"]
    return bias.ndim == 1 and weight.shape == (len(bias), own["head.weight"].shape[1])


def _arch_of(weights: Weights, given: ArchConfig | None) -> tuple[ArchConfig, list[str]]:
    """Architecture of the weights: from a file beside them, as given, or the published one that they fit."""
    assert weights.num_classes is not None, "the caller knows that there is a head"
    if weights.arch is not None:
        if given is None:
            return weights.arch, []
        return _agreeing(weights.arch, given, weights)
    notes = []
    if given is not None:
        arch = given
        if given.num_classes != weights.num_classes:
            notes.append(f"{weights.num_classes} classes, as the head has, instead of {given.num_classes}")
            arch = dataclasses.replace(given, num_classes=weights.num_classes)
    else:
        name, arch = _published_with(weights)
        notes.append(
            f"taken for {name}, which the weights fit, with images of {size_text(arch.image_size)}; heads, "
            f"strides and paddings show in no weight, and others are given by --arch"
        )
    source = _source_of(weights, arch)
    if source != arch:
        notes.append("activation gelu, as transformers computes it, by whose names the tensors go")
    return source, notes


def _agreeing(known: ArchConfig, given: ArchConfig, weights: Weights) -> tuple[ArchConfig, list[str]]:
    """Combines `known`, which a file tells, with the given image size. They may differ only in what the file lacks."""
    notes, as_known = [], given
    if weights.is_port:
        as_known = with_gelu(given)
        if as_known != given:
            notes.append("activation gelu, as transformers computes it, instead of quick_gelu")
    if given.num_classes != known.num_classes:
        notes.append(f"{known.num_classes} classes, as the head has, instead of {given.num_classes}")
        as_known = dataclasses.replace(as_known, num_classes=known.num_classes)
    if as_known.with_image_size(known.image_size) != known:
        same_depths = [len(stage.blocks) for stage in known.stages] == [len(stage.blocks) for stage in as_known.stages]
        found = differences(as_known, known) if same_depths else []
        what = found[0] if found else "its sizes differ"
        raise ArchError(
            f"--arch: {given.id} is not the architecture of {weights.source}, which {weights.path} is of: {what}; "
            f"leave it out"
        )
    return as_known, notes


def _source_of(weights: Weights, arch: ArchConfig) -> ArchConfig:
    """Architecture of the weights: `arch`, which they fit, with differences that are known."""
    if weights.arch is not None:
        return weights.arch
    return with_gelu(arch) if weights.is_port else arch


def _published_with(weights: Weights) -> tuple[str, ArchConfig]:
    """The published architecture that the weights fit, with the number of classes of their head.

    Raises:
        ArchError: There is none.
    """
    assert weights.num_classes is not None, "the caller knows that there is a head"
    for name, named in NAMED_ARCHS.items():
        arch = dataclasses.replace(named, num_classes=weights.num_classes)
        if not _misfits(weights.state, shapes_of(arch)):
            return name, arch
    raise ArchError(
        f"{weights.path}: fits none of {', '.join(NAMED_ARCHS)}; name its architecture by --arch: heads, strides and "
        f"paddings show in no weight, and no arch.json or config.json is beside it"
    )


def shapes_of(arch: ArchConfig) -> dict[str, Tensor]:
    """Tensors with the shapes of a network of `arch`, which take no memory."""
    with torch.device("meta"):
        return CvT(arch).state_dict()


def check_fits(weights: Weights, state: Mapping[str, Tensor], own: Mapping[str, Tensor], arch: ArchConfig) -> None:
    """Raises ArchError with a list of misfits if `state`, of `weights`, does not fit a network of `arch`.

    Args:
        own: State of such a network.
    """
    if misfits := _misfits(state, own):
        raise ArchError("\n    ".join([f"{weights.path}: does not fit the architecture {arch.id}:", *misfits]))


def _misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Reasons why `state` cannot replace `own`, one line each, with some of every kind; empty if it can."""
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


def differences(arch: ArchConfig, source: ArchConfig) -> list[str]:
    """Differences of `arch` from `source` that weights do not show, one line each.

    Raises:
        ArchError: The numbers of blocks differ.
    """
    if [len(stage.blocks) for stage in arch.stages] != [len(stage.blocks) for stage in source.stages]:
        raise ArchError("arch.json: is of another network than the weights")
    stages: dict[str, list[str]] = {}
    names = [field.name for field in dataclasses.fields(BlockConfig) if field.name != "mlp_ratio"]  # weights show it
    for index, (ours, theirs) in enumerate(zip(arch.stages, source.stages, strict=True)):
        pairs = [(name, [ours], [theirs]) for name in ("patch_stride", "patch_padding")]
        for name, own, others in [*pairs, *((name, ours.blocks, theirs.blocks) for name in names)]:
            found, told = ([getattr(part, name) for part in parts] for parts in (own, others))
            if found != told:
                stages.setdefault(f"{name}: {_listed(found)} instead of {_listed(told)}", []).append(str(index))
    return [f"{line} in stage {', '.join(where)}" for line, where in stages.items()]


def _listed(values: list) -> str:
    return str(values[0]) if len(set(values)) == 1 else "[" + " ".join(map(str, values)) + "]"
