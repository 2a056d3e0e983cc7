"""Decides whether a supernet ranks well enough, or whether more architectures are needed to tell.

There are two questions about a supernet. Does its tau reach a share of the noise ceiling? Does its tau within FLOPs
bins reach a bar? Each is answered by an interval that holds at every number of architectures at once. So a user may
look after each training, stop as soon as an interval is on one side of its bar, or go on later with more.

The interval is the estimate, plus and minus `CRITICAL` standard errors by the jackknife. An estimate over n
architectures moves like the mean of n draws. So its standardised error is a random walk divided by the root of its
length. 5 % of these walks exceed `CRITICAL` between `MIN_TOLD` and 500 steps. The quantile is taken from Student's t
with the same tail, since the standard error from few architectures is itself uncertain.

Sources: Armitage, McPherson and Rowe 1969, doi:10.2307/2343787, for repeated looks; Jennison and Turnbull 1989,
doi:10.1111/j.2517-6161.1989.tb01433.x, for repeated intervals; Arvesen 1969, doi:10.1214/aoms/1177697287, for the
jackknife of U-statistics.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from cvt_nas.results.kendall import kendall, kendall_without_each

Answer = Literal["yes", "no", "cannot tell yet"]
MIN_TOLD = 12  # least number of architectures for an answer
CRITICAL = 2.95  # the quantile of simulated walks is 2.92
MIN_IN_BIN = 6  # with fewer architectures, the jackknife of a bin's tau is useless
NUM_FLOPS_BINS = 4
MIN_WITHIN_BINS, MIN_OF_CEILING = 0.5, 0.8
_MOST_TAU = 0.999  # its artanh is finite


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A value that must reach a bar.

    Args:
        low, high: Interval of the true value, with 95 % confidence at all numbers of architectures at once; None if
            there are too few architectures.
        sd: Standard error on the scale on which the interval is symmetric; None if there are too few architectures.
    """

    name: str
    bar: float
    value: float
    low: float | None
    high: float | None
    sd: float | None

    @property
    def answer(self) -> Answer:
        if self.low is not None and self.low >= self.bar:
            return "yes"
        if self.high is not None and self.high < self.bar:
            return "no"
        return "cannot tell yet"


def answer_of(questions: Sequence[Question]) -> Answer:
    """Combined answer to all questions. With two questions at 95 % each, at most 5 % of the answers are false.

    A false `yes` needs a false `yes` to a question that is not met, with a chance of at most 2.5 %. A false `no` needs
    a false `no` to either question, with a chance of 2.5 % each.
    """
    answers = [question.answer for question in questions]
    if "no" in answers:
        return "no"
    return "yes" if answers and all(answer == "yes" for answer in answers) else "cannot tell yet"


def questions_of(
    inherited: Float[np.ndarray, " archs"],
    standalone: Float[np.ndarray, "archs seeds"],
    flops: Int[np.ndarray, " archs"],
) -> tuple[Question, ...]:
    """Both questions, answered by these architectures. With one seed, only the second, since the ceiling is unknown."""
    truth = standalone.mean(axis=1)
    asked = [within_bins(inherited, truth, flops)]
    return (of_ceiling(inherited, standalone), *asked) if standalone.shape[1] > 1 else tuple(asked)


def of_ceiling(inherited: Float[np.ndarray, " archs"], standalone: Float[np.ndarray, "archs seeds"]) -> Question:
    """Tau as a share of the noise ceiling, from two seeds or more.

    The interval is computed for artanh(tau) - artanh(bar * ceiling), and its ends are converted back to shares. Tau and
    the ceiling vary together. Without the artanh, errors would be smallest if tau happens to be high.
    """
    num_archs, num_seeds = standalone.shape
    truth, name = standalone.mean(axis=1), "share of the noise ceiling"
    ceiling = float(ceiling_of_mean(between_seeds(standalone), num_seeds))
    if ceiling == 0:  # the seeds contradict each other
        return Question(name=name, bar=MIN_OF_CEILING, value=0.0, low=None, high=None, sd=None)
    tau, at_bar = kendall(inherited, truth), _artanh(MIN_OF_CEILING * ceiling)
    pairs = [kendall_without_each(*pair) for pair in itertools.combinations(standalone.T, 2)]
    ceilings = ceiling_of_mean(np.mean(pairs, axis=0), num_seeds)
    without = _artanh(kendall_without_each(inherited, truth)) - _artanh(MIN_OF_CEILING * ceilings)
    sd, ahead = math.sqrt(_jackknifed(without)), _artanh(tau) - at_bar
    asked = _asked(name, 0.0, float(ahead), sd, num_archs)
    low, high = (None if end is None else math.tanh(at_bar + end) / ceiling for end in (asked.low, asked.high))
    return dataclasses.replace(asked, bar=MIN_OF_CEILING, value=tau / ceiling, low=low, high=high)


def within_bins(
    score: Float[np.ndarray, " archs"], truth: Float[np.ndarray, " archs"], flops: Int[np.ndarray, " archs"]
) -> Question:
    """The mean of tau over bins of FLOPs."""
    bins = [members for members in bins_of(flops) if len(members) > 1]
    value = float(np.mean([kendall(score[members], truth[members]) for members in bins]))
    variance = 0.0
    for members in bins:
        variance += _jackknifed(kendall_without_each(score[members], truth[members]) / len(bins))
    is_enough = min(map(len, bins)) >= MIN_IN_BIN
    return _asked(
        "tau within FLOPs bins", MIN_WITHIN_BINS, value, math.sqrt(variance) if is_enough else None, len(truth)
    )


def bins_of(flops: Int[np.ndarray, " archs"]) -> list[Int[np.ndarray, " members"]]:
    """Indices of the architectures of each bin. The sizes of bins differ by at most one."""
    return np.array_split(np.argsort(flops, kind="stable"), NUM_FLOPS_BINS)


def between_seeds(standalone: Float[np.ndarray, "archs seeds"]) -> float:
    """Mean tau between the accuracies of two seeds, over all pairs of seeds."""
    return float(np.mean([kendall(one, other) for one, other in itertools.combinations(standalone.T, 2)]))


def ceiling_of_mean(between: float | np.ndarray, num_seeds: int) -> np.ndarray:
    """Tau of the expected accuracies with the mean of `num_seeds` trainings.

    Greiner's relation, tau = 2 / pi arcsin(rho), turns tau into a correlation and back. In between, the reliability of
    a mean is k rho / (1 + (k - 1) rho), and its root is the correlation of the mean with the expected value. The
    relation is exact for normal accuracies and noise. With accuracies bunched as in the CvT table, the result is .003
    too high, and up to .015 if accuracies on 500 images tie (`benchmarks/ceiling.py`).

    Args:
        between: Tau of one training with another; see `between_seeds`.

    Source: Spearman 1910, doi:10.1111/j.2044-8295.1910.tb00206.x, and Brown 1910,
    doi:10.1111/j.2044-8295.1910.tb00207.x; Kruskal 1958, doi:10.1080/01621459.1958.10501481, for the relation.
    """
    rho = np.sin(math.pi / 2 * np.maximum(between, 0.0))
    reliability = num_seeds * rho / (1 + (num_seeds - 1) * rho)
    return 2 / math.pi * np.arcsin(np.minimum(np.sqrt(reliability), 1.0))


def _artanh(tau: float | np.ndarray) -> np.ndarray:
    return np.arctanh(np.clip(tau, -_MOST_TAU, _MOST_TAU))


def _jackknifed(without_each: np.ndarray) -> float:
    """Jackknife variance of a value, from the values without each architecture in turn."""
    number = len(without_each)
    return (number - 1) / number * float(((without_each - without_each.mean()) ** 2).sum())


def _asked(name: str, bar: float, value: float, sd: float | None, num_archs: int) -> Question:
    if sd is None or num_archs < MIN_TOLD:
        return Question(name=name, bar=bar, value=value, low=None, high=None, sd=None)
    reach = quantile(num_archs) * sd
    return Question(name=name, bar=bar, value=value, low=value - reach, high=value + reach, sd=sd)


def quantile(num_archs: int) -> float:
    """Number of standard errors by which an interval reaches to each side."""
    from scipy.stats import norm, t  # the import takes half a second, and workers do not need it

    return float(t.isf(norm.sf(CRITICAL), num_archs - 1))
