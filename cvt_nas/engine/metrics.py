"""Metrics that a search can maximise: the quality of a network's answers on a split, from 0 to 1."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from cvt_nas.config import TrainingConfig
from cvt_nas.data import ImageData
from cvt_nas.errors import DataError, PluginError
from cvt_nas.plugins import is_plugin, load_plugin

Answers = Float[np.ndarray, "images classes"]
Labels = Shaped[np.ndarray, "images ..."]  # class indices, or (images, classes) of zeros and ones

_OF_MANY = ("macro_f1", "mean_average_precision", "auroc")  # metrics for images with several classes


def metric_of(training: TrainingConfig, data: ImageData) -> str:
    """The setting `metric`, with `auto` resolved.

    Raises:
        DataError: Images can have several classes, and the metric is for one class each.
        PluginError: See `load_plugin`.
    """
    name = training.metric
    if name == "auto":
        name = "mean_average_precision" if data.is_multi_label else "accuracy"
    if is_plugin(name):
        load_plugin(name, "training.metric")
    elif data.is_multi_label and name not in _OF_MANY:
        raise DataError(
            f"training.metric: {name} is for images of one class each, and these can have several; use one of "
            f"{', '.join(_OF_MANY)}"
        )
    return name


def score(name: str, logits: Float[Tensor, "images classes"], labels: Tensor) -> float:
    """Computes the metric `name` from all answers to a split.

    Means over classes include the classes of the labels, and in `macro_f1` also those of the answers. An answer that is
    not finite counts as completely wrong.

    Args:
        name: A metric except `auto`.
        logits, labels: On the CPU. Labels are indices `(images,)`, or zeros and ones `(images, classes)`.

    Raises:
        PluginError: The user's function returns no number from 0 to 1.
    """
    if is_plugin(name):
        value = float(load_plugin(name, "training.metric")(logits, labels))
        if not 0 <= value <= 1:
            raise PluginError(f"training.metric: {name} gives {value}, must be from 0 to 1")
        return value
    return _METRICS[name](_as_finite(logits, labels).numpy(), labels.numpy())


def _as_finite(logits: Tensor, labels: Tensor) -> Tensor:
    """Replaces answers that are not finite by ones that contradict all labels of the image."""
    is_lost = ~logits.isfinite().all(dim=1)
    if not is_lost.any():
        return logits
    kept = logits[~is_lost]
    least, most = (kept.min() - 1, kept.max() + 1) if len(kept) else (torch.tensor(-1.0), torch.tensor(1.0))
    is_label = _as_columns(labels.numpy(), logits.shape[1])[is_lost.numpy()] > 0
    mended = logits.clone()
    mended[is_lost] = torch.where(torch.from_numpy(is_label), least, most)
    return mended


def _accuracy(logits: Answers, labels: Labels) -> float:
    return float(np.mean(logits.argmax(axis=1) == labels))


def _balanced_accuracy(logits: Answers, labels: Labels) -> float:
    from sklearn.metrics import recall_score

    answers = logits.argmax(axis=1)
    return float(recall_score(labels, answers, labels=np.unique(labels), average="macro", zero_division=_ZERO))


def _macro_f1(logits: Answers, labels: Labels) -> float:
    from sklearn.metrics import f1_score

    answers = logits > 0 if labels.ndim == 2 else logits.argmax(axis=1)
    if labels.ndim == 2:
        known = np.flatnonzero(labels.any(axis=0) | answers.any(axis=0))
        labels, answers = labels[:, known], answers[:, known].astype(labels.dtype)
    return float(f1_score(labels, answers, average="macro", zero_division=_ZERO))


def _mean_average_precision(logits: Answers, labels: Labels) -> float:
    from sklearn.metrics import average_precision_score

    scores, is_label = _one_against_all(logits, labels)
    known = is_label.any(axis=0)
    return float(average_precision_score(is_label[:, known], scores[:, known], average="macro"))


def _auroc(logits: Answers, labels: Labels) -> float:
    from sklearn.metrics import roc_auc_score

    scores, is_label = _one_against_all(logits, labels)
    known = is_label.any(axis=0) & ~is_label.all(axis=0)
    if not known.any():
        raise DataError("auroc needs a class that some images have and others have not")
    return float(roc_auc_score(is_label[:, known], scores[:, known], average="macro"))


def _one_against_all(logits: Answers, labels: Labels) -> tuple[Answers, np.ndarray]:
    """Returns a score of each class for each image, comparable over images, and whether the image has the class.

    With one class an image, scores are log-odds, since probabilities near 1 would become equal.
    """
    if labels.ndim == 2:
        return logits, labels > 0
    values = torch.from_numpy(logits).double()
    first = values.argmax(dim=1, keepdim=True)
    others = values.logsumexp(dim=1, keepdim=True) + (-values.softmax(dim=1)).log1p()
    others.scatter_(1, first, values.scatter(1, first, -torch.inf).logsumexp(dim=1, keepdim=True))
    return (values - others).numpy(), _as_columns(labels, logits.shape[1]) > 0


def _as_columns(labels: Labels, num_classes: int) -> np.ndarray:
    return labels if labels.ndim == 2 else np.eye(num_classes, dtype=np.uint8)[labels]


_ZERO: Any = 0  # for `zero_division`, whose default is text, so type checkers expect text
_METRICS: dict[str, Callable[[Answers, Labels], float]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "mean_average_precision": _mean_average_precision,
    "auroc": _auroc,
}
