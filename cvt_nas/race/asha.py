"""Asynchronous successive halving, the stopping variant, as a plain value with no Ray in it.

Rungs stand at `grace_period`, and `reduction_factor` times farther each; at a rung, a trial goes on when
its accuracy is among the best 1 / `reduction_factor` of those that reached the rung before it.

Source: Li et al. 2020, arXiv:1810.05934.
"""

import math
from collections.abc import Sequence


class Asha:
    """The rungs, and who stands on them.

    Args:
        max_epochs: Of the full training, where no decision is left to take.
        grace_period: Epochs of the first rung.
        reduction_factor: One in so many goes on.
    """

    def __init__(self, *, max_epochs: int, grace_period: int, reduction_factor: int) -> None:
        self.reduction_factor = reduction_factor
        self.rungs: dict[int, dict[int, float]] = {}
        milestone = grace_period
        while milestone < max_epochs:
            self.rungs[milestone] = {}
            milestone *= reduction_factor

    def goes_on(self, number: int, epoch: int, accuracy: float) -> bool:
        """Records trial `number` where `epoch` is a rung, and decides; True between rungs."""
        if epoch not in self.rungs:
            return True
        rung = self.rungs[epoch]
        rung[number] = accuracy
        if len(rung) < self.reduction_factor:
            return True  # too few to tell a weak trial from a strong one
        num_better = sum(other > accuracy for other in rung.values())
        return num_better < math.ceil(len(rung) / self.reduction_factor)

    def replay(self, number: int, curve: Sequence[float]) -> None:
        """Puts a trial of an earlier process on the rungs that it reached."""
        for milestone, rung in self.rungs.items():
            if len(curve) >= milestone:
                rung[number] = curve[milestone - 1]
