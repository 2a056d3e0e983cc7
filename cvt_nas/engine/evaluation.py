"""Measurements of a network without training: accuracy, batch norm statistics and FLOPs."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from cvt_nas.arch import Cost
from cvt_nas.config import TrainingConfig
from cvt_nas.data import Batch, ImageData, Split
from cvt_nas.engine.metrics import metric_of, score
from cvt_nas.engine.optimization import is_out_of_memory, rank_and_world_size
from cvt_nas.model import CvT, Logits

EVAL_BATCH_SIZE = 256

Given = Shaped[Tensor, "batch channels rows columns"]  # images as bytes, or as a network's inputs
Inputs = Float[Tensor, "batch channels height width"]


def _as_given(images: Inputs) -> Inputs:
    return images


@torch.inference_mode()
def evaluate(model: CvT, data: ImageData, split: Split, *, training: TrainingConfig, device: torch.device) -> float:
    """Evaluates `model` on `split` by the setting `metric`, over all ranks together. Leaves it in eval mode.

    Raises:
        DataError: The metric does not fit the labels.
        PluginError: The user's metric returns no number from 0 to 1.
    """
    rank, world_size = rank_and_world_size()
    model.eval()
    batches = data.eval_batches(
        split, batch_size=EVAL_BATCH_SIZE, device=device, rank=rank, world_size=world_size, as_bytes=True
    )
    metric = metric_of(training, data)
    if metric != "accuracy":
        answers = answers_of(model, batches, training, data.prepared)
        return score(metric, *_of_all_ranks(answers))
    num_right = torch.zeros((), device=device)
    for images, labels in batches:
        num_right += count_right(model, images, labels, training, data.prepared)
    if world_size > 1:
        dist.all_reduce(num_right)
    return num_right.item() / data.num_images(split)


@torch.inference_mode()
def answers_of(
    model: Logits,
    batches: Iterable[Batch],
    training: TrainingConfig,
    prepared: Callable[[Given], Inputs] = _as_given,
) -> tuple[Float[Tensor, "images classes"], Tensor]:
    """Returns the logits and the labels of all images, on the CPU; see `logits_of`."""
    found = [(logits_of(model, images, training, prepared).float().cpu(), labels.cpu()) for images, labels in batches]
    logits, labels = zip(*found, strict=True)
    return torch.cat(logits), torch.cat(labels)


def _of_all_ranks(answers: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    world_size = rank_and_world_size()[1]
    if world_size == 1:
        return answers
    found = [answers] * world_size
    dist.all_gather_object(found, answers)
    logits, labels = zip(*found, strict=True)
    return torch.cat(logits), torch.cat(labels)


@torch.inference_mode()
def class_accuracies(
    model: CvT, data: ImageData, split: Split, *, training: TrainingConfig, device: torch.device
) -> list[float]:
    """Accuracy of each class: the fraction of its images in `split` that are classified right; 0 without images."""
    model.eval()
    num_right, num_images = torch.zeros(2, model.arch.num_classes, device=device).unbind()
    for images, labels in data.eval_batches(split, batch_size=EVAL_BATCH_SIZE, device=device, as_bytes=True):
        is_right = are_right(logits_of(model, images, training, data.prepared), labels)
        num_right.index_add_(0, labels, is_right.float())
        num_images.index_add_(0, labels, torch.ones_like(is_right, dtype=torch.float32))
    return (num_right / num_images.clamp(min=1)).tolist()


def count_right(
    model: CvT,
    images: Given,
    labels: Int[Tensor, " batch"],
    training: TrainingConfig,
    prepared: Callable[[Given], Inputs] = _as_given,
) -> Int[Tensor, ""]:
    """Number of images of a batch that `model` classifies right; see `logits_of`."""
    return are_right(logits_of(model, images, training, prepared), labels).sum()


def are_right(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """Whether each image is classified right. NaN is wrong, although `argmax` takes it for the greatest value."""
    return (logits.argmax(dim=1) == labels) & logits.isfinite().all(dim=1)


def brier_scores(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Squared distance of the softmax of each image from its label, 0 to 2. It is 2 for logits that are not finite.

    Source: Brier 1950, Monthly Weather Review 78, 1-3.
    """
    probabilities = logits.float().softmax(dim=1)
    own = probabilities.gather(1, labels[:, None]).squeeze(1)
    return (probabilities.square().sum(dim=1) - 2 * own + 1).nan_to_num(nan=2.0)


def logits_of(
    model: Logits, images: Given, training: TrainingConfig, prepared: Callable[[Given], Inputs] = _as_given
) -> Float[Tensor, "batch classes"]:
    """Answers of `model` to `images` after `prepared`, on its device and in the precision of `training`.

    If the device runs out of memory, the halves of the batch are prepared and evaluated one after the other.
    """
    try:
        return _answers(model, prepared(images), training)
    except RuntimeError as error:
        if len(images) == 1 or not is_out_of_memory(error):
            raise
    # outside of the handler, since the exception keeps the tensors of the failed pass
    return torch.cat([logits_of(model, half, training, prepared) for half in images.chunk(2)])


def _answers(model: Logits, inputs: Inputs, training: TrainingConfig) -> Float[Tensor, "batch classes"]:
    with autocast(training, inputs.device):
        return model(inputs)


@torch.inference_mode()
def recalibrate_batch_norm(
    model: nn.Module,
    batches: Sequence[Given],
    training: TrainingConfig,
    prepared: Callable[[Given], Inputs] = _as_given,
) -> int:
    """Replaces the statistics of batch norm by their average over `batches`.

    A subnet does not inherit statistics of its own, so its accuracy means nothing before. Each image counts alike. A
    last batch of one image joins the one before, since one image has no variance on a grid of one token. If the device
    runs out of memory, the average is over halves of the batches.

    Args:
        model: Its running means and variances are changed in place, but no weights. It is left in eval mode.
        batches: Training images, on the model's device.

    Returns:
        Number of images seen.

    Raises:
        ValueError: `batches` is empty, which would leave mean 0 and variance 1.

    Source: Yu and Huang 2019, arXiv:1903.05134.
    """
    if not batches:
        raise ValueError("no images to measure the statistics of batch norm on")
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches = [*batches[:-2], torch.cat([*batches[-2:]])]
    most = max(map(len, batches))
    model.eval()  # all modules except batch norms, so that no path is dropped
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    try:
        num_seen = 0
        for images in batches:
            num_seen += len(images)
            for norm in norms:
                norm.momentum = len(images) / num_seen  # torch's own average counts batches
            _answers(model, prepared(images), training)
        return num_seen
    except RuntimeError as error:
        if most < 4 or not is_out_of_memory(error):
            raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
    halves = [part for images in batches for part in images.chunk(max(len(images) // (most // 2), 1))]  # of 2 or more
    return recalibrate_batch_norm(model, halves, training, prepared)


def autocast(training: TrainingConfig, device: torch.device) -> contextlib.AbstractContextManager[object]:
    if training.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if training.precision == "bf16" else torch.float16)


def fvcore_cost(model: CvT) -> Cost:
    """Counts params and FLOPs of the built model with fvcore, including the products of attention.

    It is slow, since it traces the network. The closed form `cvt_nas.arch.cost_of` must equal it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        images = torch.zeros(1, *model.arch.image_shape, device=model.head.weight.device)
        training = model.training
        analysis = FlopCountAnalysis(model.eval(), images)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        flops = int(analysis.total())
        model.train(training)
    return Cost(params=sum(p.numel() for p in model.parameters()), flops=flops)


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> int:  # noqa: ARG001  fvcore's signature
    """FLOPs of attention: queries x keys x width, for each of the two products."""
    (batch, heads, queries, width), (_, _, keys, _) = inputs[0].type().sizes(), inputs[1].type().sizes()
    return 2 * batch * heads * queries * keys * width
