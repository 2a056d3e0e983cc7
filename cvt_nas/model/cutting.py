"""Cuts lent weights to the size of another network, as its initial weights."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cvt_nas.arch import ArchConfig
from cvt_nas.errors import ArchError
from cvt_nas.model.lending import Lent
from cvt_nas.model.network import CvT, resized_positions
from cvt_nas.model.units import WRITERS, units_of
from cvt_nas.model.weights import HEAD


def begin_with(model: CvT, lent: Lent) -> CvT:
    """Loads initial weights into `model`, which is freshly initialised, and returns it; see `cut_state`."""
    model.load_state_dict(cut_state(lent, model.arch, model.state_dict()))
    return model


def cut_state(lent: Lent, arch: ArchConfig, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state of a network of `arch` with as much of the lent weights as fits into it.

    It takes the first channels and hidden units, the most important blocks, and the centre of each kernel. It takes the
    first heads, and the first channels of each. If the network has more or wider heads than the weights, it takes the
    first channels regardless of heads. Queries are scaled, since the scale of attention depends on the width.

    Parts that the lent network lacks stay as in `own`, without effect on the rest: weights from new units to old ones
    are zero, and a new block adds nothing. A smaller kernel is padded with zeros.

    Args:
        own: A fresh state of such a network. Its position embeddings may have any size.

    Returns:
        Tensors on the CPU, with the names and shapes of `own`.

    Raises:
        ArchError: The numbers of stages differ.
    """
    if len(arch.stages) != len(lent.arch.stages):
        raise ArchError(
            f"the weights are of a network of {len(lent.arch.stages)} stages, the space has {len(arch.stages)}"
        )
    blocks = [sorted(rank[: len(stage.blocks)]) for rank, stage in zip(lent.blocks, arch.stages, strict=True)]
    begun = {}
    for name, tensor in own.items():
        fresh = tensor.detach().cpu()
        source, is_beyond = _source_of(name, blocks)
        if is_beyond:
            begun[name] = torch.zeros_like(fresh) if any(f".{writer}." in name for writer in WRITERS) else fresh
        elif (found := lent.state.get(source)) is None:
            begun[name] = fresh
        else:
            begun[name] = _laid(name, source, found, fresh, lent, arch)
    return begun


def _source_of(name: str, blocks: Sequence[Sequence[int]]) -> tuple[str, bool]:
    """Returns a tensor's name in the lent network, and whether its block does not exist there."""
    stage, _, rest = name.partition(".blocks.")
    if not rest:
        return name, False
    number, _, part = rest.partition(".")
    kept = blocks[int(stage.removeprefix("stage"))]
    if int(number) >= len(kept):
        return name, True
    return f"{stage}.blocks.{kept[int(number)]}.{part}", False


def _laid(name: str, source: str, found: Tensor, fresh: Tensor, lent: Lent, arch: ArchConfig) -> Tensor:
    if name.endswith(".pos_embed"):
        found = resized_positions(found, fresh.shape[2:])
    places = []
    for axis, unit in enumerate(units_of(name, arch)):
        sizes = found.shape[axis], fresh.shape[axis]
        if unit is not None and unit.endswith(("queries", "values")):
            places.append(_of_heads(name, source, sizes, lent, arch))
        elif name in HEAD and axis == 0:
            places.append((torch.arange(len(lent.classes)), torch.tensor(lent.classes)))
        else:
            places.append(_overlap(*sizes, centred=unit is None))
    if ".attn.proj_q." in name:
        index = int(name.partition(".")[0].removeprefix("stage"))
        found = found * (arch.stages[index].embed_dim / lent.arch.stages[index].embed_dim) ** 0.5
    for axis, (taken, _) in enumerate(places):
        found = found.index_select(axis, taken)
    for axis, (_, laid) in reversed(list(enumerate(places))[1:]):
        around = found.new_zeros(*found.shape[:axis], fresh.shape[axis], *found.shape[axis + 1 :])
        found = around.index_copy_(axis, laid, found)
    return fresh.clone().index_copy_(0, places[0][1], found) if places else found


def _overlap(theirs: int, ours: int, *, centred: bool) -> tuple[Tensor, Tensor]:
    """Indices along an axis of the lent tensor and of ours that correspond."""
    both = torch.arange(min(theirs, ours))
    if not centred:
        return both, both
    return both + max(theirs - ours, 0) // 2, both + max(ours - theirs, 0) // 2


def _of_heads(name: str, source: str, sizes: tuple[int, int], lent: Lent, arch: ArchConfig) -> tuple[Tensor, Tensor]:
    theirs, ours = _num_heads(source, lent.arch), _num_heads(name, arch)
    width, own_width = sizes[0] // theirs, sizes[1] // ours
    if not lent.knows_heads or ours > theirs or own_width > width:
        return _overlap(*sizes, centred=False)
    heads, channels = torch.arange(ours)[:, None], torch.arange(own_width)
    return (heads * width + channels).flatten(), torch.arange(sizes[1])


def _num_heads(name: str, arch: ArchConfig) -> int:
    stage, _, number, _ = name.split(".", 3)
    return arch.stages[int(stage.removeprefix("stage"))].blocks[int(number)].num_heads
