"""How well the rungs of a search work: whether early accuracies rank trials as late ones do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cvt_nas.results.trial import TrialResult

MIN_TRIALS = 9  # with fewer, even a tau of a half is within chance
_SIGNIFICANT = 0.05


def rung_epochs(
    max_epochs: int, *, grace_period: int, reduction_factor: int, also_late: bool = False
) -> tuple[int, ...]:
    """Epochs after which successive halving decides: `grace_period`, then `reduction_factor` times as many each.

    Only the first may be later than `max_epochs / reduction_factor`. A later rung would save less than the trials that
    it stops have cost already.

    Args:
        also_late: Whether rungs go on up to the end, as in early versions of this tool.
    """
    if grace_period < 1 or reduction_factor < 2:
        raise ValueError(f"grace period {grace_period}, reduction factor {reduction_factor}: at least 1 and 2")
    epochs, epoch = [], grace_period
    while epoch < max_epochs and (also_late or not epochs or epoch * reduction_factor <= max_epochs):
        epochs.append(epoch)
        epoch *= reduction_factor
    return tuple(epochs)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankCorrelation:
    """How well accuracies after an early epoch rank complete trials.

    Complete trials were selected. If the epoch is a rung, they were selected by its ranks, which makes `tau` smaller
    than among all architectures. Only `scheduler: none` measures it without selection.

    Args:
        epoch: The early epoch. 0 is before any training, with inherited weights.
        num_trials: Number of complete trials.
        tau: Kendall's tau of accuracy after `epoch` with accuracy at the end.
        p_value: Probability of a `tau` this high if the two were independent.
        overtaking: Kendall's tau of FLOPs with the ranks that a trial gained after `epoch`. It is high if large
            networks learn slower, so that their curves cross those of small ones.
        overtaking_p_value: Probability of an `overtaking` this high if the two were independent.

    Source: Kendall 1938, doi:10.1093/biomet/30.1-2.81.
    """

    epoch: int
    num_trials: int
    tau: float
    p_value: float
    overtaking: float
    overtaking_p_value: float

    @property
    def is_random(self) -> bool:
        """Whether ranks after this epoch cannot be told from random ones."""
        return self.p_value >= _SIGNIFICANT

    @property
    def curves_cross(self) -> bool:
        """Whether large networks overtake small ones after this epoch, more than chance would have it."""
        return self.overtaking_p_value < _SIGNIFICANT


def rank_correlations(results: Iterable[TrialResult], epochs: Sequence[int]) -> tuple[RankCorrelation, ...]:
    """Correlations after each of `epochs`, among the complete trials of `results`.

    There is none for epoch 0 if a trial inherited nothing. There are none with fewer than `MIN_TRIALS` complete trials.
    """
    from scipy.stats import kendalltau, rankdata  # half a second, which workers need not wait

    complete = [result for result in results if result.status == "complete"]
    if len(complete) < MIN_TRIALS:
        return ()
    flops = np.array([result.cost.flops for result in complete])
    last = np.array([result.own_accuracy for result in complete], dtype=float)

    def tau(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
        """Tau with its one-sided p-value; (0, 1) if all the values of one are equal."""
        found: Any = kendalltau(ours, theirs, alternative="greater")
        return (0.0, 1.0) if np.isnan(found.statistic) else (float(found.statistic), float(found.pvalue))

    correlations = []
    for epoch in epochs:
        accuracies = [result.accuracy_after(epoch) for result in complete]
        if None in accuracies:
            continue
        early = np.array(accuracies, dtype=float)
        value, p_value = tau(early, last)
        overtaking, overtaking_p_value = tau(flops, rankdata(last) - rankdata(early))
        correlations.append(
            RankCorrelation(
                epoch=epoch,
                num_trials=len(complete),
                tau=value,
                p_value=p_value,
                overtaking=overtaking,
                overtaking_p_value=overtaking_p_value,
            )
        )
    return tuple(correlations)
