"""The weights that a run lends to its trials, and how important each is to the loss on the images of its data."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cvt_nas.arch import ImageSize
from cvt_nas.data import Batch, ImageData
from cvt_nas.engine.criterion import Criterion, criterion_of
from cvt_nas.engine.setup import TrainingSetup
from cvt_nas.model import CvT, Lent, begin_with, magnitudes, sorted_by
from cvt_nas.run import RunFolder

_BATCH_SIZE = 32
_NUM_BATCHES = 32
NUM_TAYLOR_IMAGES = _NUM_BATCHES * _BATCH_SIZE
_FIT_STEPS = 100
_DECAY = 1e-3  # of a head that is fitted to few images


def open_lent(run: RunFolder, path: Path | None = None) -> Lent:
    """What `run` keeps of the weights that it began with, on whatever machine; at `path`, where they are unsorted.

    Raises:
        ArchError: It keeps none.
    """
    path = run.init_path if path is None else path
    if not path.exists():
        run.store.fetch(path)
    return Lent.load(path)


def keep_lent(lent: Lent, run: RunFolder, path: Path) -> None:
    """Writes what `open_lent` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    run.store.write(path, lambda file: file.write(lent.to_bytes()))


def in_order(lent: Lent, importance: str) -> tuple[Lent, str, tuple[str, ...]]:
    """`lent` in the order of `search.importance`, which the loss gives only where `keep_in_order` keeps it.

    Returns:
        With it the order that it can have, and why that is another one, for people.
    """
    notes = ()
    if importance == "taylor" and not lent.knows_heads:
        importance = "magnitude"
        notes = ("units are in the order of their magnitude: nothing tells the heads, so no loss can be measured",)
    if importance == "magnitude":
        lent = sorted_by(lent, magnitudes(lent), importance=importance)
    return lent, importance, notes


def keep_in_order(
    lent: Lent, importance: str, setup: TrainingSetup, run_on: Callable[[Callable[..., None], TrainingSetup], None]
) -> None:
    """Puts what `in_order` gave into the run folder, in the order that all cuts are made by.

    Args:
        run_on: Calls a function of the setup on a device of the run.
    """
    run = setup.run
    if importance != "taylor":
        keep_lent(lent, run, run.init_path)
        return
    keep_lent(lent, run, run.unsorted_init_path)
    run_on(sort_by_taylor, setup)
    run.store.delete(run.unsorted_init_path)


def sort_by_taylor(setup: TrainingSetup) -> None:
    """Puts the unsorted weights of a run into the order of `taylor_scores`, and keeps them; on a worker."""
    torch.set_num_threads(setup.num_threads)
    run = setup.run
    lent = open_lent(run, run.unsorted_init_path)
    with contextlib.closing(setup.open_data()) as data:  # the processes that read images end with it
        scores = taylor_scores(
            lent, data, image_size=setup.image_size, device=setup.torch_device,
            criterion=criterion_of(setup.training, data, setup.torch_device),
        )  # fmt: skip
    keep_lent(sorted_by(lent, scores, importance="taylor"), run, run.init_path)


def taylor_scores(
    lent: Lent, data: ImageData, *, image_size: ImageSize, device: torch.device, criterion: Criterion | None = None
) -> dict[str, Float[Tensor, "*shape"]]:
    """`|w dL/dw|` of each weight, the mean over 32 batches of training images without augmentation.

    It is how much the loss changes, to first order, where the weight is set to zero. Where the head knows none of the
    classes of the data, or some of them alone, one is fitted to the features of these images first.

    Args:
        lent: Of a network whose heads and strides are known.
        device: Where to compute.
        criterion: Whose loss it is; cross-entropy where None.

    Raises:
        ArchError: The images are too small for the network.

    Source: Molchanov et al. 2019, arXiv:1906.10771, equation 8.
    """
    loss_of = criterion or Criterion("cross_entropy")
    arch = lent.arch.with_image_size(image_size)
    model = begin_with(CvT(arch), lent).to(device).eval()
    model.set_recomputing(True)  # it is one pass over few images, on a device that may be small
    batches: list[Batch] = []
    for images, labels in data.eval_batches(
        "train", batch_size=_BATCH_SIZE, device=device, shuffled=True, as_bytes=True
    ):
        batches.append((data.prepared(images), labels))
        if len(batches) == _NUM_BATCHES:
            break
    if len(lent.classes) < arch.num_classes:
        _fit_head(model, batches, loss_of)
    scores = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for images, labels in batches:
        model.zero_grad(set_to_none=True)
        loss_of(model(images), labels).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                scores[name] += (parameter * parameter.grad).detach().abs()
    return {name: score.cpu() / len(batches) for name, score in scores.items() if name in lent.state}


def _fit_head(model: CvT, batches: Sequence[Batch], loss_of: Criterion) -> None:
    """Fits the head to what the rest of the network makes of the images, by full-batch AdamW."""
    head, features = model.head, list[Tensor]()
    handle = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.no_grad():
        for images, _ in batches:
            model(images)
    handle.remove()
    inputs, labels = torch.cat(features), torch.cat([labels for _, labels in batches])
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=_DECAY)
    with torch.enable_grad():
        for _ in range(_FIT_STEPS):
            optimizer.zero_grad()
            loss_of(head(inputs), labels).backward()
            optimizer.step()
