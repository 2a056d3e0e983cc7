"""The weights that a run lends to its trials, and the importance of each weight for the loss on its data."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cvt_nas.arch import ImageSize
from cvt_nas.data import Batch, ImageData
from cvt_nas.engine.criterion import Criterion, criterion_of
from cvt_nas.engine.optimization import ordered_sums, prepare_device
from cvt_nas.engine.setup import TrainingSetup
from cvt_nas.model import CvT, Lent, begin_with, magnitudes, sorted_by
from cvt_nas.run import RunFolder

_BATCH_SIZE = 32
_NUM_BATCHES = 32
NUM_TAYLOR_IMAGES = _NUM_BATCHES * _BATCH_SIZE
_FIT_STEPS = 100
_DECAY = 1e-3  # weight decay of a head that is fitted to few images


def open_lent(run: RunFolder, path: Path | None = None) -> Lent:
    """Opens the weights that `run` started from, on any machine.

    Args:
        path: Path of the unsorted weights; None for the sorted ones.

    Raises:
        ArchError: The run has no such weights.
    """
    path = run.init_path if path is None else path
    if not path.exists():
        run.store.fetch(path)
    return Lent.load(path)


def keep_lent(lent: Lent, run: RunFolder, path: Path) -> None:
    """Writes weights for `open_lent`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    run.store.write(path, lambda file: file.write(lent.to_bytes()))


def in_order(lent: Lent, importance: str) -> tuple[Lent, str, tuple[str, ...]]:
    """Sorts weights by `search.importance`, except by the loss, which `keep_in_order` does.

    Returns:
        The weights, the order that is possible for them, and notes for people if it differs from the setting.
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
    """Writes the weights of `in_order` to the run folder, in the order by which all networks are cut.

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
    """Sorts the unsorted weights of a run by `taylor_scores`, and writes them. Runs on a worker."""
    torch.set_num_threads(setup.num_threads)
    run = setup.run
    lent = open_lent(run, run.unsorted_init_path)
    with contextlib.closing(setup.open_data()) as data:  # ends the processes that read images
        scores = taylor_scores(
            lent, data, image_size=setup.image_size, device=setup.torch_device,
            criterion=criterion_of(setup.training, data, setup.torch_device),
        )  # fmt: skip
    keep_lent(sorted_by(lent, scores, importance="taylor"), run, run.init_path)


def taylor_scores(
    lent: Lent, data: ImageData, *, image_size: ImageSize, device: torch.device, criterion: Criterion | None = None
) -> dict[str, Float[Tensor, "*shape"]]:
    """Mean of `|w dL/dw|` for each weight, over 32 batches of training images without augmentation.

    It is the first-order change of the loss if the weight is set to zero. If the head does not know all classes of the
    data, a new head is first fitted to the features of these images.

    Args:
        lent: Weights of a network whose heads and strides are known.
        device: Device to compute on.
        criterion: The loss; None for cross-entropy.

    Raises:
        ArchError: The images are too small for the network.

    Source: Molchanov et al. 2019, arXiv:1906.10771, equation 8.
    """
    prepare_device(device)
    loss_of = criterion or Criterion("cross_entropy")
    arch = lent.arch.with_image_size(image_size)
    model = begin_with(CvT(arch), lent).to(device).eval()
    model.set_recomputing(True)  # there are few images, and the device may be small
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
        with ordered_sums(device):
            loss_of(model(images), labels).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                scores[name] += (parameter * parameter.grad).detach().abs()
    return {name: score.cpu() / len(batches) for name, score in scores.items() if name in lent.state}


def _fit_head(model: CvT, batches: Sequence[Batch], loss_of: Criterion) -> None:
    """Fits the head to the features of the images, with full-batch AdamW."""
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
