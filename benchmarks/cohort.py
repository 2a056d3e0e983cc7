"""Trains several seeds of one architecture at once: their weights are stacked, and each kernel runs for all of them.

Small networks do not fill a GPU, so that several trainings of one network take hardly longer than one. There, steps are
replayed, as in `fit`. The order of images, augmentations, initial weights, schedule and averages of each seed are those
of `fit`. Results differ by the order of sums alone.
"""

import copy
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.attention import SDPBackend, sdpa_kernel

from cvt_nas.arch import ArchConfig
from cvt_nas.config import TrainingConfig
from cvt_nas.data import ImageData, seed_all
from cvt_nas.engine.criterion import Criterion, criterion_of
from cvt_nas.engine.evaluation import EVAL_BATCH_SIZE, autocast
from cvt_nas.engine.keeper import num_steps_of
from cvt_nas.engine.memory import meter_of
from cvt_nas.engine.metrics import metric_of
from cvt_nas.engine.optimization import (
    DivergedError,
    averaged_model,
    optimizer_of,
    prepare_device,
    set_learning_rate,
)
from cvt_nas.engine.replay import Pass, ReplayedPass, recorder_of
from cvt_nas.model import CvT


class Cohort(nn.Module):
    """Networks of one architecture as one module, whose parameters and buffers have the networks in front.

    Args:
        models: Networks of the same architecture, without drop path.
    """

    def __init__(self, models: Sequence[CvT]) -> None:
        super().__init__()
        parameters, buffers = stack_module_state(list(models))
        for name, value in parameters.items():
            self.register_parameter(_flat(name), nn.Parameter(value.detach()))
        for name, value in buffers.items():
            self.register_buffer(_flat(name), value)
        self._names = (tuple(parameters), tuple(buffers))
        self._shape = [copy.deepcopy(models[0]).to("meta")]  # in a list, as its weights are not those of the cohort

    def forward(self, images: Float[Tensor, "networks batch channels height width"]) -> Tensor:
        """Logits, `(networks, batch, classes)`. Each network has its own images."""
        (shape,) = self._shape
        shape.train(self.training)
        parameters, buffers = ({name: getattr(self, _flat(name)) for name in names} for names in self._names)

        def answers(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
            return functional_call(shape, (parameters, buffers), (images,))

        with sdpa_kernel(SDPBackend.MATH):  # the others have no rule for stacked weights, and would run in a loop
            return torch.vmap(answers)(parameters, buffers, images)


def fit_cohort(
    arch: ArchConfig, training: TrainingConfig, data: ImageData, *, device: torch.device, seeds: Sequence[int]
) -> Iterator[list[float]]:
    """Trains `arch` once with each of `seeds`, and yields their accuracies on the search split after each epoch.

    Raises:
        ValueError: `training` has drop path, clipping, a teacher or fp16, or another metric than accuracy.
        DivergedError: A loss is not finite. Which one is not said; `fit` tells by itself.
    """
    _check(training, data)
    prepare_device(device)
    num_steps, criterion = num_steps_of(training, data), criterion_of(training, data, device)
    models = list[CvT]()
    for seed in seeds:
        seed_all(seed)
        models.append(CvT(arch).to(device))
    cohort = Cohort(models)
    optimizer = optimizer_of(models[0], training, device)
    for group in optimizer.param_groups:  # which of the weights decay is a question of the single network
        names = {id(parameter): name for name, parameter in models[0].named_parameters()}
        group["params"] = [getattr(cohort, _flat(names[id(parameter)])) for parameter in group["params"]]
    averaged = averaged_model(cohort, training, num_steps=num_steps)
    evaluated = cohort if averaged is None else averaged.module
    backward: Pass = functools.partial(_pass, cohort, criterion, training)
    if (record := recorder_of(device)) is not None:
        backward = ReplayedPass(backward, cohort, record, meter=meter_of(device))
    for epoch in range(training.epochs):
        cohort.train()
        batches = [
            data.train_batches(
                batch_size=training.batch_size, augment=training.augment, device=device, seed=seed, epoch=epoch
            )
            for seed in seeds
        ]
        worst = torch.zeros((), device=device)
        for step, of_seeds in enumerate(zip(*batches, strict=True)):
            set_learning_rate(optimizer, training, epoch + step / num_steps)
            optimizer.zero_grad(set_to_none=True)
            (loss,) = backward(*map(torch.stack, zip(*of_seeds, strict=True)))
            worst = torch.maximum(worst, loss)
            optimizer.step()
            if averaged is not None:
                averaged.update_parameters(cohort)
        if not worst.isfinite():
            raise DivergedError(epoch + 1)
        yield _accuracies(evaluated, data, training, device=device, number=len(seeds))


def _pass(
    cohort: Cohort,
    criterion: Criterion,
    training: TrainingConfig,
    images: Float[Tensor, "networks batch channels height width"],
    targets: Tensor,
) -> tuple[Float[Tensor, ""]]:
    """Adds to each network the gradient of its own loss. Returns the sum of the losses."""
    with autocast(training, images.device):
        logits = cohort(images)
    loss = torch.stack([criterion(of.float(), own) for of, own in zip(logits, targets, strict=True)]).sum()
    loss.backward()
    return (loss.detach(),)


@torch.no_grad()
def _accuracies(
    cohort: nn.Module, data: ImageData, training: TrainingConfig, *, device: torch.device, number: int
) -> list[float]:
    cohort.eval()
    num_right = torch.zeros(number, device=device)
    for images, labels in data.eval_batches("search", batch_size=EVAL_BATCH_SIZE, device=device):
        with autocast(training, device):
            logits = cohort(images.expand(number, *images.shape))
        num_right += (logits.argmax(dim=2) == labels).sum(dim=1)
    return (np.array(num_right.tolist()) / data.num_images("search")).tolist()


def _check(training: TrainingConfig, data: ImageData) -> None:
    unlike = {
        "drop_path": training.drop_path, "clip_grad_norm": training.clip_grad_norm, "teacher": training.teacher,
        "precision": training.precision == "fp16", "metric": metric_of(training, data) != "accuracy",
    }  # fmt: skip
    if found := [name for name, value in unlike.items() if value]:
        raise ValueError(f"training.{found[0]}: a cohort cannot be trained with it")


def _flat(name: str) -> str:
    """The name of an entry of a state dict, as a module's own can be called."""
    return name.replace(".", "/")
