"""Non-dominated sets, hypervolume, and the front of a search."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import moocore
import numpy as np

from cvt_nas.arch import Cost
from cvt_nas.results.trial import Metric, TrialResult


@dataclass(frozen=True, kw_only=True, slots=True)
class HypervolumeBox:
    """The box in which hypervolume is measured. It is fixed for a space, so its runs can be compared.

    The reference point is accuracy 0 at the greatest costs of the space. The ideal point is accuracy 1 at its least
    costs. Each axis is scaled linearly to [0, 1] between them. The ideal throughput is the greatest.
    """

    least: Cost
    greatest: Cost

    def to_json(self) -> dict[str, dict[str, int]]:
        return {"least": self.least.to_json(), "greatest": self.greatest.to_json()}

    def normalise(self, results: Sequence[TrialResult], metrics: Sequence[Metric]) -> np.ndarray:
        """Losses in [0, 1], `(results, metrics)`, smaller is better. The reference point is all ones."""
        columns = []
        for metric in metrics:
            values = np.array([result.metric(metric) for result in results], dtype=float)
            if metric == "accuracy":
                columns.append(1 - values)
            else:
                low, high = getattr(self.least, metric), getattr(self.greatest, metric)
                columns.append((values - low) / ((high - low) or 1))
        return np.stack(columns, axis=1) if results else np.empty((0, len(metrics)))


def is_non_dominated(losses: np.ndarray) -> np.ndarray:
    """Which rows no other row dominates. A row dominates another if it is nowhere greater and somewhere smaller.

    Args:
        losses: `(points, objectives)`, smaller is better.

    Returns:
        Booleans, `(points,)`. Equal rows do not dominate each other.
    """
    return moocore.is_nondominated(losses, keep_weakly=True)


def hypervolume(losses: np.ndarray) -> float:
    """Volume that the points dominate, up to the reference point (1, ..., 1). It is exact.

    Args:
        losses: `(points, objectives)`, smaller is better. Points beyond the reference point add nothing.
    """
    return float(moocore.hypervolume(losses, ref=np.ones(losses.shape[1])))


def distances_to_front(losses: np.ndarray) -> np.ndarray:
    """By how much each point must improve in all objectives so that no other dominates it. 0 on the front.

    Args:
        losses: `(points, objectives)`, smaller is better, all objectives on one scale.

    Returns:
        `(points,)`.

    Source: the additive epsilon indicator of Zitzler et al. 2003, doi:10.1109/TEVC.2003.810758, for one point.
    """
    front = losses[is_non_dominated(losses)]
    return np.array([(point - front).min(axis=1).max() for point in losses]).clip(min=0.0)


def losses_of(results: Sequence[TrialResult], metrics: Sequence[Metric]) -> np.ndarray:
    """Losses, `(results, metrics)`; smaller is better. See `TrialResult.loss`."""
    rows = [[result.loss(metric) for metric in metrics] for result in results]
    return np.array(rows, dtype=float).reshape(len(results), len(metrics))


@dataclass(frozen=True)
class ParetoFront:
    """The complete trials that no other complete trial dominates, most accurate first.

    Args:
        members: One result for each architecture.
        metrics: The objectives. Accuracy and throughput are maximised, other costs are minimised.
    """

    members: tuple[TrialResult, ...]
    metrics: tuple[Metric, ...]

    @classmethod
    def of(cls, results: Iterable[TrialResult], metrics: Sequence[Metric]) -> Self:
        """The front of `results`. Stopped trials do not compete, since they were not trained in full."""
        complete = [result for result in results if result.status == "complete"]
        keeps = is_non_dominated(losses_of(complete, metrics))
        on_front = [result for result, keep in zip(complete, keeps, strict=True) if keep]
        on_front.sort(key=lambda result: (-result.metric("accuracy"), result.cost.flops, result.number))
        return cls(members=tuple(on_front), metrics=tuple(metrics))

    def hypervolume(self, box: HypervolumeBox) -> float:
        """In [0, 1]; see `HypervolumeBox` for the reference point."""
        return hypervolume(box.normalise(self.members, self.metrics))

    @property
    def best(self) -> TrialResult | None:
        """The most accurate member; of several, the cheapest."""
        return self.members[0] if self.members else None

    def knee(self) -> TrialResult | None:
        """The member farthest above the straight line between the cheapest and the most accurate one.

        Distances are in accuracy over the logarithm of FLOPs, both scaled to [0, 1]. If FLOPs are not an objective,
        the first one of params, latency, seconds an image, memory and size is used.

        Source: the chord criterion of Das 1999, doi:10.1007/BF01195985, in two dimensions.
        """
        order = ("flops", "params", "latency_ms", "throughput", "peak_memory_mb", "model_mb")
        costs: list[Metric] = [metric for metric in order if metric in self.metrics]
        cost = costs[0]
        front = ParetoFront.of(self.members, ("accuracy", cost)).members
        if len(front) < 3:
            return front[0] if front else None
        x = np.log([result.loss(cost) for result in front])
        y = np.array([result.metric("accuracy") for result in front])
        if np.ptp(x) == 0 or np.ptp(y) == 0:  # all are equal in both
            return front[0]
        x, y = (x - x.min()) / np.ptp(x), (y - y.min()) / np.ptp(y)
        return front[int(np.argmax(y - x))]
