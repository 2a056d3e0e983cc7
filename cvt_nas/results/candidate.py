"""Architectures that are ranked before the race, by what they inherit from the supernet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from cvt_nas.arch import ArchConfig, Cost, arch_from_dict, arch_to_dict
from cvt_nas.results.trial import Status, check_line, cost_from_json, cost_to_json

_MIN_SMOOTHED = 8  # architectures to which a line is fitted
# Noise of an accuracy in comparisons on the same images, as a share of the binomial variance. It is from .22 to .51 in
# benchmarks/smoothing.py. The lower end leaves more to the accuracies.
_NOISE_SHARE = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Inherited:
    """What an architecture inherits from a supernet.

    Args:
        accuracy: Fraction of `num_images` of the search split. With another setting of `metric`, its value.
        num_images: Images that were evaluated. Evaluation ends early once the front is out of reach.
        brier: Mean Brier score of these images, 0 to 2, less is better. None for other metrics than `accuracy`, and in
            records of earlier versions.
    """

    accuracy: float
    num_images: int
    brier: float | None = None


def smoothed_accuracies(found: Sequence[Inherited]) -> list[float]:
    """Accuracies of architectures of one supernet, with less of the noise of the images that they were measured on.

    An image near the border between two classes changes accuracy by a whole image, but the Brier score by little. So a
    line through accuracy and Brier score tells accuracy with less noise. It misses how an architecture differs from the
    line. The result is a mean of both, weighted by the variance of these differences and by that of the noise, which is
    a quarter of the binomial variance, since all architectures see the same images. The variance of the differences is
    what the noise does not explain of the residuals. Where architectures differ little, the line decides; with many
    images, the accuracies decide.

    These are the accuracies themselves if a Brier score is missing, or for fewer than eight architectures.

    Source: Fay and Herriot 1979, doi:10.1080/01621459.1979.10482505.
    """
    briers = [each.brier for each in found if each.brier is not None]
    accuracies = np.array([each.accuracy for each in found])
    if len(briers) < max(len(found), _MIN_SMOOTHED) or np.ptp(briers) == 0:
        return accuracies.tolist()
    inputs = np.column_stack([briers, np.ones(len(briers))])
    line = inputs @ np.linalg.lstsq(inputs, accuracies, rcond=None)[0]
    noise = _NOISE_SHARE * accuracies * (1 - accuracies) / [each.num_images for each in found]
    residual = float(((accuracies - line) ** 2).sum()) / (len(found) - inputs.shape[1])
    own = max(residual - float(noise.mean()), 0.0)
    if own == 0:
        return line.tolist()
    return (line + own / (own + noise) * (accuracies - line)).tolist()


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate(Inherited):
    """An architecture that was ranked.

    Args:
        number: Position in the order of proposals. It is not the number of a trial.
        seconds: Time of extraction, batch-norm calibration and evaluation.
    """

    number: int
    arch: ArchConfig
    cost: Cost
    seconds: float

    # The part of `TrialResult` that a study reads.

    @property
    def status(self) -> Status:
        return "complete"

    @property
    def epochs(self) -> int:
        return 0

    @property
    def curve(self) -> tuple[float, ...]:
        return (self.accuracy,)

    @property
    def reason(self) -> str | None:
        return None

    def to_json(self) -> dict[str, object]:
        return {
            "number": self.number,
            "arch_id": self.arch.id,
            "arch": arch_to_dict(self.arch),
            "accuracy": self.accuracy,
            **({} if self.brier is None else {"brier": self.brier}),
            "num_images": self.num_images,
            **cost_to_json(self.cost),
            "seconds": round(self.seconds, 3),
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        check_line(tree)
        return cls(
            number=tree["number"],
            arch=arch_from_dict(tree["arch"]),
            cost=cost_from_json(tree),
            accuracy=tree["accuracy"],
            num_images=tree["num_images"],
            brier=tree.get("brier"),
            seconds=tree["seconds"],
        )
