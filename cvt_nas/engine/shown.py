"""For the page of a run: some images of each split, some that a network gets wrong, and how it does on each class."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from cvt_nas.config import TrainingConfig
from cvt_nas.data import SPLITS, ImageData
from cvt_nas.engine.evaluation import EVAL_BATCH_SIZE, logits_of
from cvt_nas.engine.metrics import metric_of, score
from cvt_nas.model import CvT

_PER_SPLIT, _MISTAKES = 12, 12
_SIDE, _LEAST_SIDE = 96, 48  # pixels of the longer side, at most and at least
_QUALITY = 80


def sample_images(data: ImageData) -> dict[str, list[dict[str, str]]]:
    """Samples images of each split, without augmentation. Each has an `image`, which is a data URL, and a `label`."""
    found = {}
    for split in SPLITS:
        batches = data.eval_batches(
            split, batch_size=_PER_SPLIT, device=torch.device("cpu"), shuffled=True, as_bytes=True
        )  # fmt: skip
        images, labels = next(iter(batches))
        data.close()
        found[split] = [
            {"image": _data_url(image), "label": _named(label, data.class_names)}
            for image, label in zip(images, labels, strict=True)
        ]
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What a network does on the test split.

    Args:
        value: The metric.
        classes: `class`, its number of `images`, and how many of these the network finds.
        mistakes: `image`, `label` and `answer` with its probability of the images with the worst answers.
    """

    value: float
    classes: list[dict[str, str | int]]
    mistakes: list[dict[str, str]]


@torch.inference_mode()
def judge_with_mistakes(model: CvT, data: ImageData, *, training: TrainingConfig, device: torch.device) -> Judged:
    """Evaluates `model` on the test split, class by class, and finds the images with the worst answers."""
    model.eval()
    batches = data.eval_batches("test", batch_size=EVAL_BATCH_SIZE, device=device, as_bytes=True)
    worst: list[tuple[float, dict[str, str]]] = []
    answers, truths = [], []
    for images, labels in batches:
        logits = logits_of(model, images, training, data.prepared).float()
        answers.append(logits.cpu())
        truths.append(labels.cpu())
        worst = _worst([*worst, *_mistakes(images, logits, labels, data.class_names)])
    logits, labels = torch.cat(answers), torch.cat(truths)
    return Judged(
        value=score(metric_of(training, data), logits, labels),
        classes=_by_class(logits, labels, data.class_names),
        mistakes=[told for _, told in worst],
    )


def _by_class(logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> list[dict[str, str | int]]:
    number = len(class_names)
    if labels.ndim == 2:
        images, found = labels.sum(dim=0), ((logits > 0) & (labels > 0)).sum(dim=0)
    else:
        images = torch.bincount(labels, minlength=number)
        found = torch.bincount(labels[logits.argmax(dim=1) == labels], minlength=number)
    return [
        {"class": name, "images": int(num_images), "found": int(num_found)}
        for name, num_images, num_found in zip(class_names, images.tolist(), found.tolist(), strict=True)
    ]


def _mistakes(
    images: Tensor, logits: Tensor, labels: Tensor, class_names: Sequence[str]
) -> Iterable[tuple[float, dict[str, str]]]:
    """Returns how wrong the answers to the worst images of a batch are, from 0 to 1, and what the page shows."""
    if labels.ndim == 2:
        shares = logits.sigmoid()
        wrong, answers = (shares - labels).abs().amax(dim=1), (logits > 0).to(labels.dtype)
        is_wrong = (answers != labels).any(dim=1)
    else:
        top, answers = logits.softmax(dim=1).max(dim=1)
        wrong, is_wrong = top, answers != labels
    wrong = torch.where(is_wrong, wrong.nan_to_num(1.0), -1.0)
    values, rows = wrong.topk(min(_MISTAKES, len(wrong)))
    for value, row in zip(values.tolist(), rows.tolist(), strict=True):
        if value >= 0:
            told = {"label": _named(labels[row], class_names), "answer": _named(answers[row], class_names)}
            yield value, {**told, "probability": f"{value:.0%}", "image": _data_url(images[row].cpu())}


def _worst(found: list[tuple[float, dict[str, str]]]) -> list[tuple[float, dict[str, str]]]:
    return sorted(found, key=lambda mistake: -mistake[0])[:_MISTAKES]


def _named(label: Tensor, class_names: Sequence[str]) -> str:
    if label.ndim == 0:
        return class_names[int(label)]
    names = [class_names[int(index)] for index in torch.nonzero(label).flatten()]
    return ", ".join(names) or "none"


def _data_url(image: UInt8[Tensor, "channels height width"]) -> str:
    """A small JPEG. Images that are neither grey nor in colour show their first channel."""
    from PIL import Image

    pixels = image if image.shape[0] in (1, 3) else image[:1]
    longer = max(pixels.shape[1:])
    side = min(max(longer, _LEAST_SIDE), _SIDE)
    if side != longer:
        height, width = (max(round(length * side / longer), 1) for length in pixels.shape[1:])
        mode = "area" if side < longer else "nearest"
        pixels = F.interpolate(pixels[None].float(), (height, width), mode=mode)[0].round().to(torch.uint8)
    array = pixels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
