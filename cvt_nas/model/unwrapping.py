"""Finds the network in a checkpoint by structure, independent of the tool that wrote it.

A checkpoint is a tree of dicts. A tensor with the name of a CvT's first convolution shows a network. The part before
that name wraps the network: keys of the tree, from training scripts, and prefixes of names, from modules around it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvt_nas.errors import ArchError
from cvt_nas.model.port import official_name

_MAX_DEPTH = 4  # of dicts in dicts
_MAX_NAMED = 6  # keys in a note
# modules that wrap others in place, anywhere within a name
_WRAPPERS = frozenset(("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
_FIRST = {  # of official names, and of transformers'
    False: ("stage0", "patch_embed", "proj", "weight"),
    True: ("encoder", "stages", "0", "embedding", "convolution_embeddings", "projection", "weight"),
}
# counters of thop, and of torch's AveragedModel
_COUNTERS = frozenset(("total_ops", "total_params", "n_averaged"))
# names of an average of a network, but not of other averages
_AVERAGED = re.compile(r"(ema|avg|averaged?|shadow|swa|polyak)\d*")
_OF_NETWORKS = re.compile(
    r"(moving|exponential|model|net|network|module|state|dict|weights?|params?|parameters|encoder|backbone|"
    r"student|teacher|generator|checkpoint|callbacks?)?\d*"
)
# names of an optimizer's state, whose tensors have the names of weights, too
_OF_OPTIMIZER = re.compile(
    r"(^|_)(optim(izer)?s?|opt|exp_avg|grads?|gradients?|sq|squares?|moments?|"
    r"momentum(?!_(encoder|backbone|model|net|network|teacher)))(_|\d*$)"
)
# names of the scales and other facts of quantisers: torch, bitsandbytes and GPTQ
_QUANTISED = frozenset(("_packed_params", "zero_point", "SCB", "absmax", "quant_map", "qweight", "qzeros"))
_WORD_ENDS = re.compile(
    r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[-\s]"
)  # of `modelEMA`, `EMAModel`, `model-ema`
# keys of the plain weights in checkpoints whose `state_dict` is the average
_RAW_OF_LIGHTNING = "current_model_state"  # of its WeightAveraging
_RAW_OF_MMENGINE = "ema_state_dict"  # its EMAHook swaps the two when it saves
_HEADS = frozenset(("head", "heads", "cls_head", "classifier", "fc", "linear"))  # names of classifiers in other code
_BATCHES = "num_batches_tracked"
ADAPTER = (
    "is an adapter of peft without the network that it changes; save the whole network: "
    "torch.save(model.merge_and_unload().state_dict(), 'weights.pth')"
)

_Key = tuple[tuple[str, ...], str]  # the keys of the dict that a tensor is in, and its name there
_Tensors = Mapping[_Key, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unwrapped:
    """A network's tensors by their official names.

    Args:
        is_port: Whether names were those of transformers' port.
        head_like: Names of tensors that look like a head, if the network has no usable head; or beside the network, if
            they fit its features or answers.
        note: What was taken, left and changed, in one line; empty if the file holds only the network.
    """

    state: dict[str, Tensor]
    is_port: bool
    head_like: tuple[str, ...]
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Place of a network: the dict at `keys`, and in it all names that begin with `prefix`."""

    keys: tuple[str, ...]
    prefix: str
    is_port: bool

    @property
    def shown(self) -> str:
        return ".".join((*self.keys, self.prefix.rstrip("."))).strip(".")

    @property
    def is_averaged(self) -> bool:
        for words in (_snake(part).split("_") for part in (*self.keys, *self.prefix.split("."))):
            rest = [word for word in words if not _AVERAGED.fullmatch(word)]
            if len(rest) < len(words) and all(map(_OF_NETWORKS.fullmatch, rest)):
                return True
        return False

    @property
    def is_network(self) -> bool:
        return not any(map(is_of_optimizer, (*self.keys, *self.prefix.split("."))))


def is_of_optimizer(key: str) -> bool:
    """Whether a key's name means the state of an optimizer, gradients, or averages of these."""
    return _OF_OPTIMIZER.search(_snake(key)) is not None


def _snake(name: str) -> str:
    return _WORD_ENDS.sub("_", name).lower()


def unwrap(content: object, path: Path) -> Unwrapped:
    """Finds the network in the content of the file at `path`. Averaged weights are preferred, as in timm's evaluation.

    Args:
        content: Result of `read_content`.

    Raises:
        ArchError: There is no network, there are several without a preference, or tensors are quantised.
    """
    tensors = dict(_tensors(content))
    if not tensors:
        raise ArchError(
            f"{path}: is no state dict of a CvT: it holds other things than tensors with names: {_kinds(content)}"
        )
    place, others = _choose(_places(tensors), tensors, path, raw_key=_raw_key(content))
    parts: list[str] = []
    inside = {name: tensors[keys, name] for keys, name in _members(place, tensors)}
    if packed := next((name for name in inside if _QUANTISED.intersection(name.split("."))), None):
        raise ArchError(f"{path}: holds {packed}: quantised weights cannot be read, give those before")
    state, changes = _state_of(inside, place, path)
    if place.keys:
        parts.append(f"took {'.'.join(place.keys)!r}" + (", the averaged weights" if place.is_averaged else ""))
    elif place.is_averaged:
        parts.append("took the averaged weights")
    if place.prefix:
        parts.append(f"took {place.prefix!r} off the names")
    head_like = _head_like(place, others, tensors)
    if "head.weight" in state:
        widths = {(size,) for size in state["head.weight"].shape}  # of the answers, and of the features
        head_like = [
            name
            for name in head_like
            if not name.startswith(place.prefix) and tensors[place.keys, name].shape[1:] in widths
        ]
        root = None
    elif root := _head_root(head_like, place, tensors, state):
        parts.append(f"took {root!r} for the head")
        for part in ("weight", "bias"):
            _check_readable(tensor := tensors[place.keys, f"{root}.{part}"], f"{root}.{part}", path)
            state.pop(f"{root.removeprefix(place.prefix)}.{part}", None)
            state[f"head.{part}"] = tensor.detach().float()
    if left := _left(content, place, others, root):
        parts.append("left " + ", ".join(left[:_MAX_NAMED]) + (f" and {len(left) - _MAX_NAMED} more"
                                                              if len(left) > _MAX_NAMED else ""))  # fmt: skip
    return Unwrapped(
        state=state, is_port=place.is_port, head_like=() if root else tuple(head_like), note="; ".join(parts + changes)
    )


def _tensors(tree: object, keys: tuple[str, ...] = ()) -> Iterator[tuple[_Key, Tensor]]:
    """Yields all tensors that have names."""
    if not isinstance(tree, Mapping) or len(keys) > _MAX_DEPTH:
        return
    for name, value in tree.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, Tensor):
            yield (keys, name), value
        else:
            yield from _tensors(value, (*keys, name))


def _kinds(content: object) -> str:
    """Describes the content of a file without tensors."""
    if not isinstance(content, Mapping):
        inner = f" of {type(content[0]).__name__}" if isinstance(content, list | tuple) and content else ""
        return f"a {type(content).__name__}{inner}"
    return ", ".join(f"{name} ({type(value).__name__})" for name, value in [*content.items()][:3]) or "nothing"


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _places(tensors: _Tensors) -> list[_Place]:
    found = []
    for keys, name in tensors:
        parts = name.split(".")
        kept = [(index, part) for index, part in enumerate(parts) if part not in _WRAPPERS]
        for is_port, first in _FIRST.items():
            if tuple(part for _, part in kept[-len(first) :]) != first:
                continue
            start = kept[-len(first)][0]
            if is_port and start and parts[start - 1] == "cvt":  # the norm and the classifier lie beside it
                beside = ".".join(parts[: start - 1])
                around = tuple(f"{beside}.{part}".lstrip(".") for part in ("layernorm.", "classifier."))
                if any(where == keys and other.startswith(around) for where, other in tensors):
                    start -= 1
            found.append(_Place(keys=keys, prefix="".join(f"{part}." for part in parts[:start]), is_port=is_port))
    return found


def _members(place: _Place, tensors: _Tensors) -> list[_Key]:
    """Tensors of a network: those under its prefix, except under a longer prefix of another network."""
    nested = [other.prefix for other in _places(tensors) if other.keys == place.keys
              and other.prefix != place.prefix and other.prefix.startswith(place.prefix)]  # fmt: skip
    return [
        (keys, name)
        for keys, name in tensors
        if keys == place.keys and name.startswith(place.prefix) and not name.startswith(tuple(nested))
    ]


def _raw_key(content: object) -> str:
    """Key of the plain weights in a checkpoint whose `state_dict` is an average."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    return _RAW_OF_MMENGINE if isinstance(meta, Mapping) and "mmengine_version" in meta else _RAW_OF_LIGHTNING


def _choose(places: list[_Place], tensors: _Tensors, path: Path, *, raw_key: str) -> tuple[_Place, list[_Place]]:
    """Chooses a network, and returns it and the others."""
    if not places and all(".lora_" in name for _, name in tensors):
        raise ArchError(f"{path}: {ADAPTER}")
    if not places:
        some = ", ".join(sorted(".".join((*keys, name)) for keys, name in tensors)[:3])
        raise ArchError(
            f"{path}: is no state dict of a CvT: no name ends in {'.'.join(_FIRST[False])}, nor as transformers' do; "
            f"it holds {some}"
        )
    networks = [place for place in places if place.is_network]
    if not networks:
        shown = ", ".join(place.shown for place in places)
        raise ArchError(f"{path}: holds no network: by its name, {shown} is what an optimizer keeps")
    averages = [place for place in networks if place.keys[-1:] != (raw_key,)] or networks
    chosen = [place for place in averages if place.is_averaged] or averages
    first = chosen[0]
    for other in chosen[1:]:
        if not _are_equal(first, other, tensors):
            names = ", ".join(place.shown or "names without a prefix" for place in chosen)
            raise ArchError(
                f"{path}: holds several networks: {names}; save the one that is meant alone: "
                f"torch.save({_alone(chosen)}, 'weights.pth')"
            )
    return first, [place for place in places if place != first]


def _alone(places: list[_Place]) -> str:
    """Python expression for one of the networks in `checkpoint`, for messages."""
    place = next((place for place in places if place.prefix), places[0])
    tree = "checkpoint" + "".join(f"[{key!r}]" for key in place.keys)
    if sum(other.keys == place.keys for other in places) == 1:
        return tree
    return f"{{k: v for k, v in {tree}.items() if k.startswith({place.prefix!r})}}"


def _are_equal(one: _Place, other: _Place, tensors: _Tensors) -> bool:
    ours, theirs = (
        {_without_wrappers(key[1].removeprefix(place.prefix)): tensors[key] for key in _members(place, tensors)}
        for place in (one, other)
    )
    return ours.keys() == theirs.keys() and all(
        _is_plain(tensor)
        and _is_plain(theirs[name])
        and tensor.dtype == theirs[name].dtype
        and torch.equal(tensor, theirs[name])
        for name, tensor in ours.items()
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has torch's own type. Types of other packages are quantised, or parts of other tensors."""
    return type(tensor) in (Tensor, nn.Parameter)


def _state_of(inside: Mapping[str, Tensor], place: _Place, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Returns tensors by official names, with floats in fp32, and the changes that were needed, for the note."""
    state: dict[str, Tensor] = {}
    counters, kinds, wrappers, changes = set(), set(), set(), []
    for full, tensor in inside.items():
        name = _without_wrappers(own := full.removeprefix(place.prefix))
        wrappers |= _WRAPPERS.intersection(own.split("."))
        if (last := name.rpartition(".")[2]) in _COUNTERS:
            counters.add(last)
            continue
        if place.is_port:
            name = official_name(f"cvt.{name}" if name.startswith("encoder.") else name)
        if name in state:
            raise ArchError(f"{path}: {full}: stands for {name}, which is there already")
        if last == _BATCHES and tensor.numel() == 1:
            tensor = tensor.detach().reshape(()).to(torch.int64)
        _check_readable(tensor, full, path)
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kinds.add(str(tensor.dtype).removeprefix("torch."))
            tensor = tensor.float()
        state[name] = tensor.detach()
    if wrappers:
        changes.append(f"took {', '.join(map(repr, sorted(wrappers)))} out of the names")
    if counters:
        changes.append(f"left out counters: {', '.join(sorted(counters))}")
    if kinds:
        changes.append(f"read {', '.join(sorted(kinds))} as float32")
    missing = [f"{name.removesuffix('running_mean')}{_BATCHES}" for name in state if name.endswith(".bn.running_mean")]
    missing = [name for name in missing if name not in state]
    if missing:
        state |= {name: torch.zeros((), dtype=torch.int64) for name in missing}
        changes.append(f"set {_BATCHES}, which is missing and decides nothing here, to 0")
    return state, changes


def _head_like(place: _Place, others: list[_Place], tensors: _Tensors) -> list[str]:
    """Names of tensors, in a network or beside it, that look like heads of other code."""
    strange = tuple(other.prefix for other in others if other.keys == place.keys)
    return [
        name
        for keys, name in tensors
        if keys == place.keys
        and not name.startswith(strange)
        and _HEADS.intersection(name.removeprefix(place.prefix).split(".")[:-1])
        and name.rpartition(".")[2] not in _COUNTERS
    ]


def _head_root(names: list[str], place: _Place, tensors: _Tensors, state: Mapping[str, Tensor]) -> str | None:
    """Common prefix of `names` before `.weight` and `.bias`, if they are a linear layer that fits the network."""
    root = names[0].rpartition(".")[0] if names else ""
    if sorted(names) != [f"{root}.bias", f"{root}.weight"]:
        return None
    last = max((name for name in state if name.endswith(".patch_embed.proj.weight")), default=None)
    weight, bias = (tensors[place.keys, f"{root}.{part}"] for part in ("weight", "bias"))
    fits = last is not None and bias.ndim == 1 and weight.shape == (len(bias), state[last].shape[0])
    return root if fits and weight.is_floating_point() and bias.is_floating_point() else None


def _check_readable(tensor: Tensor, name: str, path: Path) -> None:
    """Raises ArchError if a tensor has no readable values, such as a quantised or an empty one."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if not _is_plain(tensor):
        raise ArchError(
            f"{path}: {name}: is a {type(tensor).__name__}, must be a plain tensor; quantised weights cannot be read, "
            f"give those before"
        )
    if tensor.is_quantized or kind.startswith(("float8", "float4")):
        raise ArchError(f"{path}: {name}: is of {kind}; quantised weights cannot be read, give those before")
    if tensor.is_meta or tensor.layout != torch.strided:
        what = "has no values" if tensor.is_meta else f"is laid out as {tensor.layout}"
        raise ArchError(f"{path}: {name}: {what}, must be a plain tensor")
    if not tensor.numel():
        raise ArchError(
            f"{path}: {name}: is empty, as where DeepSpeed's ZeRO-3 split the weights; join them by its zero_to_fp32.py"
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ArchError(f"{path}: {name}: holds values that are not finite")


def _left(content: object, place: _Place, others: list[_Place], head: str | None) -> list[str]:
    """Parts of the checkpoint that were not taken: other networks, other keys, and other modules."""
    told_of = [other for other in others if other.is_network or other.keys == place.keys]
    found = [
        f"{other.shown or 'names without a prefix'} ({'another network' if other.is_network else 'of an optimizer'})"
        for other in told_of
    ]
    told = {other.keys for other in told_of}
    tree: Any = content
    for depth, key in enumerate(place.keys):
        found += [".".join((*place.keys[:depth], str(name))) for name in tree
                  if name != key and (*place.keys[:depth], name) not in told]  # fmt: skip
        tree = tree[key]
    inside = [other.prefix for other in (place, *others) if other.keys == place.keys]
    inside += [] if head is None else [f"{head}."]
    beside: dict[str, int] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and (*place.keys, name) in told:
            continue
        if not isinstance(value, Tensor) or not str(name).startswith(tuple(inside)):
            key = str(name).split(".")[0] if isinstance(value, Tensor) else str(name)
            beside[key] = beside.get(key, 0) + 1
    found += [f"{key} ({count} tensors)" if count > 1 else key for key, count in beside.items()]
    return found
