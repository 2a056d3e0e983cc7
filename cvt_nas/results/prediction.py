"""Predictions of the model of a search for the trials that it proposes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Gaussian prediction of the accuracy after a full training, made before the trial began.

    Args:
        accuracy: Mean of the accuracy.
        sd: Standard deviation of the expected accuracy of the architecture.
        noise_sd: Standard deviation of a single training around that, from its seed and from measurement noise.
    """

    accuracy: float
    sd: float
    noise_sd: float

    def measured_sd(self, *, stretch: float = 1.0) -> float:
        """Standard deviation of the accuracy of a single training. `stretch` multiplies only `sd`."""
        return math.hypot(stretch * self.sd, self.noise_sd)

    def to_json(self) -> dict[str, float]:
        return {"accuracy": self.accuracy, "sd": self.sd, "noise_sd": self.noise_sd}

    @classmethod
    def from_json(cls, tree: Mapping[str, float]) -> Self:
        return cls(accuracy=tree["accuracy"], sd=tree["sd"], noise_sd=tree["noise_sd"])
