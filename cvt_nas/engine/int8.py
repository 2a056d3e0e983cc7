"""Checks that a network in int8 gives the same answers as the trained network, in each runtime that may run it.

Quantisation causes errors. For 15 networks on Fashion-MNIST, logits were off by 1 to 3 % of their standard deviation,
and accuracy dropped by .0 +- .1 points. Libraries also make errors, without a warning. At ENABLE_EXTENDED and above,
onnxruntime 1.32 fuses a quantised average pooling into an operator that divides by the wrong number. NNCF 3.4 has made
networks that answer almost at random. So three figures are checked in every runtime; see `complaints`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cvt_nas.config import TrainingConfig
from cvt_nas.data import ImageData, Split
from cvt_nas.engine.evaluation import answers_of
from cvt_nas.engine.metrics import metric_of, score
from cvt_nas.errors import first_line
from cvt_nas.model import CvT, Logits
from cvt_nas.results import Judged, Judgement

NUM_CALIBRATED = 256
MAX_LOSS = 0.01  # drop of the metric
MAX_ERROR = 0.2  # in standard deviations of the logits
MAX_RATIO = 1.25  # between the errors of two runtimes
_FLOOR = 0.002  # errors below this are rounding
MOST_IMAGES = 10_000  # of the search split; more would reduce the noise only slowly
_BATCH_SIZE = 64
_NUM_RESAMPLES = 100
_NUM_DEVIATIONS = 2.0

Answers = Float[Tensor, "images classes"]


def calibration_batches(data: ImageData, num_images: int = NUM_CALIBRATED) -> list[Float[np.ndarray, "batch c h w"]]:
    """Training images, prepared as for evaluation: resized and normalised, without augmentation.

    They are the first ones in a random order that is the same each time.
    """
    return [images.numpy() for images, _ in _first_batches(data, "train", num_images)]


def judge(
    model: CvT,
    file: Path,
    runtimes: Mapping[str, Callable[[Path], Logits]],
    data: ImageData,
    training: TrainingConfig,
    *,
    on_note: Callable[[str], None] | None = None,
) -> Judgement:
    """Compares the answers of `file` in each runtime with those of `model` in fp32, on the search split.

    At most 10,000 images are used: the first ones in a random order that is the same each time.

    Args:
        model: Network on the CPU, in eval mode.
        runtimes: See `runtimes_for`.
        training: Settings that define the metric.
        on_note: Called before each runtime, since this can take minutes.
    """
    metric, plain = metric_of(training, data), TrainingConfig(epochs=0)
    say = on_note or (lambda _: None)
    num_images = min(data.num_images("search"), MOST_IMAGES)

    def answers(network: Logits) -> tuple[Answers, Tensor]:
        return answers_of(network, _first_batches(data, "search", num_images), plain)

    say(f"fp32 answers {num_images:,} images of the search split")
    expected, labels = answers(model)
    judged = []
    for name, opened in runtimes.items():
        say(f"int8 answers them in {name}")
        try:
            program = opened(file)
        except Exception as error:  # runtimes raise various errors
            judged.append(Judged(runtime=name, why=last_line(error)))
            continue
        judged.append(_judged(name, metric, expected, answers(program)[0], labels))
    return Judgement(metric=metric, score=score(metric, expected, labels), num_images=num_images, judged=tuple(judged))


def _first_batches(data: ImageData, split: Split, num_images: int) -> Iterator[tuple[Tensor, Tensor]]:
    left = num_images
    for images, labels in data.eval_batches(split, batch_size=_BATCH_SIZE, device=torch.device("cpu"), shuffled=True):
        yield images[:left], labels[:left]
        left -= len(images)
        if left <= 0:
            return


def _judged(name: str, metric: str, expected: Answers, found: Answers, labels: Tensor) -> Judged:
    fp32, int8 = score(metric, expected, labels), score(metric, found, labels)
    loss = fp32 - int8
    return Judged(
        runtime=name,
        score=int8,
        error=logits_error(found, expected),
        loss=loss,
        loss_sd=_deviation(metric, expected, found, labels) if loss > 0 else 0.0,
    )


def logits_error(found: Answers, expected: Answers) -> float:
    """Root mean square of the difference, divided by the standard deviation of `expected`. NaN becomes infinity."""
    spread = expected.double().std().clamp(min=1e-12)
    error = ((found.double() - expected.double()).square().mean().sqrt() / spread).item()
    return error if np.isfinite(error) else float("inf")


def _deviation(metric: str, expected: Answers, found: Answers, labels: Tensor) -> float:
    """Standard deviation of the loss over bootstrap resamples of the images.

    Source: Efron 1979, doi:10.1214/aos/1176344552.
    """
    rng, losses = np.random.default_rng(0), []
    for _ in range(_NUM_RESAMPLES):
        drawn = torch.from_numpy(rng.integers(len(labels), size=len(labels)))
        losses.append(score(metric, expected[drawn], labels[drawn]) - score(metric, found[drawn], labels[drawn]))
    return float(np.std(losses, ddof=1))


def complaints(judgement: Judgement, max_loss: float = MAX_LOSS) -> list[str]:
    """Reasons, one line each, why the file is not to be trusted. Empty if there are none.

    - Loss: the metric is lower by more than `max_loss`, and by more than two standard deviations of that difference, so
      a few images of a small split do not decide.
    - Error: logits differ from fp32 by more than a fifth of their standard deviation. If the network is right only by
      chance, as before it has learned, this check alone finds the fault. Sound files had errors of up to .07, broken
      ones of .17 and more.
    - Runtimes: the error in one is more than 1.25 times the error in another. All compute the same int8 network. They
      may round in other places, which changes single answers, but does not move them further from fp32. In sound files,
      the errors agreed within 4 %. A greater difference is a fault of a library, not of quantisation.

    Args:
        judgement: Result of `judge`.
        max_loss: Fraction; .01 is one point.
    """
    opened = [found for found in judgement.judged if found.error is not None]
    lines = []
    for found in opened:
        assert found.loss is not None
        assert found.error is not None
        if found.loss > max_loss and found.loss > _NUM_DEVIATIONS * found.loss_sd:
            lines.append(
                f"{found.runtime}: {judgement.metric} {found.score:.4f}, fp32 has {judgement.score:.4f}: loses "
                f"{100 * found.loss:.2f} points (standard deviation {100 * found.loss_sd:.2f}), more than "
                f"{100 * max_loss:g}"
            )
        if not found.error <= MAX_ERROR:
            lines.append(
                f"{found.runtime}: its logits differ from those in fp32 by {found.error:.3g} standard deviations, more "
                f"than {MAX_ERROR:g}"
            )
    lines += _disagreement(opened)
    if not opened:
        lines += [f"{found.runtime}: cannot open it: {found.why}" for found in judgement.judged]
    return lines


def _disagreement(opened: Sequence[Judged]) -> list[str]:
    errors = [(found.error, found.runtime) for found in opened if found.error is not None]
    if len(errors) < 2 or (worst := max(errors))[0] <= MAX_RATIO * (best := min(errors))[0] + _FLOOR:
        return []
    return [
        f"the runtimes disagree: logits differ from those in fp32 by {worst[0]:.3g} standard deviations in {worst[1]} "
        f"and by {best[0]:.3g} in {best[1]}; a library computes the file wrongly"
    ]


def last_line(error: Exception) -> str:
    """Last line of an error message. OpenVINO states the reason there."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [first_line(error)])[-1]
