"""What the trials of a search taught so far, and the accuracy that each would end at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cvt_nas.space import Genome


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What a trial taught so far.

    Args:
        curve: Accuracy after each epoch; empty for a trial in flight that reported none, and for one that failed.
        status: `complete`, `stopped`, `running`, or `failed` for whatever ended without an accuracy.
    """

    genome: Genome
    curve: tuple[float, ...]
    status: str


def final_accuracies(evaluated: Sequence[Observation]) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy at the full number of epochs, measured or guessed, and the variance of the guess.

    Where a trial was stopped, its last accuracy is carried on by a line fitted to the complete trials between
    that epoch and the end. That those were chosen by the same accuracy does not bias the line. A failed trial
    counts as the worst of the others.
    """
    complete = [o.curve for o in evaluated if o.status == "complete"]
    finals = np.array([curve[-1] for curve in complete])
    scale = max(float(finals.std()), 1e-3)
    lines: dict[int, tuple[float, float, float, float]] = {}
    values, noises = np.full(len(evaluated), np.nan), np.zeros(len(evaluated))
    for index, observation in enumerate(evaluated):
        if observation.status == "complete":
            values[index] = observation.curve[-1]
        elif observation.status == "stopped" and observation.curve:
            epoch = len(observation.curve)
            if epoch not in lines:
                lines[epoch] = _line(np.array([curve[epoch - 1] for curve in complete]), finals, scale)
            slope, x_mean, y_mean, variance = lines[epoch]
            values[index] = y_mean + slope * (observation.curve[-1] - x_mean)
            noises[index] = variance
    failed = np.isnan(values)
    values[failed] = np.min(values[~failed])
    return values, noises


def _line(x: np.ndarray, y: np.ndarray, scale: float) -> tuple[float, float, float, float]:
    """Slope, means and residual variance of a line whose slope is drawn towards 1/2 where there is little to go by."""
    x_mean, y_mean = float(x.mean()), float(y.mean())
    prior, strength = 0.5, scale**2
    slope = (((x - x_mean) * (y - y_mean)).sum() + prior * strength) / (((x - x_mean) ** 2).sum() + strength)
    residuals = y - y_mean - slope * (x - x_mean)
    return slope, x_mean, y_mean, float(((residuals**2).sum() + scale**2) / (len(x) + 1))
