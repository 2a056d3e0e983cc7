"""The loss of a training."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cvt_nas.config import TrainingConfig
from cvt_nas.data import ImageData
from cvt_nas.errors import DataError, PluginError
from cvt_nas.plugins import is_plugin, load_plugin


class Criterion:
    """The mean loss of a batch, from logits and targets.

    Targets are class indices `(batch,)`, or probabilities `(batch, classes)` if images are mixed. If images can have
    several classes, targets are `(batch, classes)` with values from 0 to 1. With a teacher, targets are probabilities
    from the labels, then those of the teacher, `(batch, 2 * classes)`.

    Args:
        loss: Name of a loss except `auto`, or a function of logits and targets.
        label_smoothing: Share of each label that is spread evenly over its possible values.
        weights: Weight of each class in cross-entropy, or of its positive labels in binary cross-entropy.
        is_multi_label: Whether images can have several classes.
        teacher_weight: Share of the teacher in the loss; 0 without a teacher.
        temperature: Number by which the logits of the teacher were divided.
    """

    def __init__(
        self,
        loss: str | Callable[..., Tensor],
        *,
        label_smoothing: float = 0.0,
        weights: Float[Tensor, " classes"] | None = None,
        is_multi_label: bool = False,
        teacher_weight: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        self._loss, self._smoothing, self._weights = loss, label_smoothing, weights
        self._teacher_weight, self._temperature = teacher_weight, temperature
        self.is_multi_label = is_multi_label

    def __call__(
        self, logits: Float[Tensor, "batch classes"], targets: Tensor, *, label_smoothing: float | None = None
    ) -> Float[Tensor, ""]:
        """
        Args:
            label_smoothing: Replaces the usual one.

        Raises:
            PluginError: The user's function returns neither one loss nor one for each image.
        """
        smoothing = self._smoothing if label_smoothing is None else label_smoothing
        share = self._teacher_weight
        if share == 0:
            return self._by_labels(logits, targets, smoothing)
        labels, answers = targets.chunk(2, dim=1)
        taught = share * self._temperature**2 * divergence(
            logits / self._temperature, answers, is_multi_label=self.is_multi_label
        )  # fmt: skip
        return taught if share == 1 else taught + (1 - share) * self._by_labels(logits, labels, smoothing)

    def _by_labels(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        if self._loss == "binary_cross_entropy":
            return self._binary(logits, targets, smoothing)
        if self._loss == "cross_entropy":
            if self._weights is None:
                return F.cross_entropy(logits, targets, label_smoothing=smoothing)
            # the mean over images; for class indices, torch would divide by the sum of weights
            total = F.cross_entropy(
                logits, targets, weight=self._weights, label_smoothing=smoothing, reduction="sum"
            )  # fmt: skip
            return total / len(logits)
        assert callable(self._loss), "auto is resolved, and other names are refused"
        loss: object = self._loss(logits, targets)
        if not isinstance(loss, Tensor) or loss.shape not in ((), logits.shape[:1]):
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise PluginError(f"training.loss: got {shape}, must be a tensor (batch,) or ()")
        return loss.mean()

    def _binary(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        if targets.ndim == 1:
            targets = F.one_hot(targets, logits.shape[1])
        targets = targets.to(logits.dtype)
        if smoothing:
            spread = 1 / 2 if self.is_multi_label else 1 / logits.shape[1]
            targets = targets * (1 - smoothing) + smoothing * spread
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self._weights)


def divergence(
    logits: Float[Tensor, "batch classes"], answers: Float[Tensor, "batch classes"], *, is_multi_label: bool
) -> Float[Tensor, ""]:
    """Kullback-Leibler divergence of the network's probabilities from the teacher's `answers`, averaged over images.

    If images can have several classes, each class is treated separately, and the result is averaged over them, too.
    """
    if not is_multi_label:
        return F.kl_div(logits.log_softmax(dim=1), answers, reduction="batchmean")
    entropy = F.binary_cross_entropy(answers, answers)  # so that the loss of equal answers is 0
    return F.binary_cross_entropy_with_logits(logits, answers) - entropy


def criterion_of(training: TrainingConfig, data: ImageData, device: torch.device) -> Criterion:
    """Makes the criterion from the settings `loss`, `class_weights` and `label_smoothing`, and those of a teacher.

    Raises:
        DataError: Images can have several classes, and the loss is for one class each.
        PluginError: See `load_plugin`.
    """
    loss = training.loss
    if loss == "auto":
        loss = "binary_cross_entropy" if data.is_multi_label else "cross_entropy"
    if loss == "cross_entropy" and data.is_multi_label:
        raise DataError("training.loss: cross_entropy is for images of one class each, and these can have several")
    weights = None
    if training.class_weights == "balanced" and not is_plugin(loss):
        found = balanced_weights(data.labels("train"), len(data.class_names), is_binary=loss == "binary_cross_entropy")
        weights = torch.from_numpy(found).to(device)
    return Criterion(
        load_plugin(loss, "training.loss") if is_plugin(loss) else loss,
        label_smoothing=training.label_smoothing,
        weights=weights,
        is_multi_label=data.is_multi_label,
        teacher_weight=training.teacher_weight if data.is_taught else 0.0,
        temperature=training.teacher_temperature,
    )


def balanced_weights(labels: np.ndarray, num_classes: int, *, is_binary: bool) -> np.ndarray:
    """Weight of each class, float32: like scikit-learn's `balanced`, or the ratio of negative to positive labels.

    The weight of a class without images has no effect.

    Args:
        labels: Class indices `(images,)`, or zeros and ones `(images, classes)`.
        is_binary: Whether to weight positive labels.
    """
    counts = labels.sum(axis=0, dtype=np.int64) if labels.ndim == 2 else np.bincount(labels, minlength=num_classes)
    num_present, counts = np.count_nonzero(counts), np.maximum(counts, 1)
    weights = (len(labels) - counts) / counts if is_binary else len(labels) / (num_present * counts)
    return weights.astype(np.float32)
