"""Estimates how many architectures are needed to tell whether a supernet ranks well enough, before any training."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np

from cvt_nas.results.telling import (
    MIN_IN_BIN,
    MIN_OF_CEILING,
    MIN_TOLD,
    NUM_FLOPS_BINS,
    Question,
    ceiling_of_mean,
    of_ceiling,
    quantile,
    within_bins,
)

SHARES, WITHIN = (0.4, 0.6, 0.7, 0.9, 0.95), (0.0, 0.2, 0.35, 0.65, 0.75)
USUAL_BETWEEN_SEEDS = 0.76  # tau in the CvT table; see `ceiling_of_mean`
MOST_ARCHS = 500
_NUM_SIMULATED = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """Effort to answer a question.

    Args:
        value: Assumed value for the supernet.
        archs: Number of architectures after which the answer is expected; None if it is above `MOST_ARCHS`.
        minutes: Minutes of all their trainings; None if not known.
    """

    question: str
    value: float
    archs: int | None
    minutes: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationPlan:
    """Plan of the trainings that judge a supernet, made before any of them.

    Args:
        archs, seeds, trainings: Greatest numbers of architectures, of seeds, and of trainings.
        done: Number of trainings that are done.
        reused: Number of trainings that come from other runs.
        minutes: Minutes of all trainings that are left; None if no training was timed yet.
        efforts: Effort for supernets of several qualities.
    """

    archs: int
    seeds: int
    trainings: int
    done: int
    reused: int
    minutes: float | None
    efforts: tuple[Effort, ...]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def archs_to_tell(question: Question, num_archs: int) -> int | None:
    """Number of architectures that are needed if value and spread stay as they are; None if it is above `MOST_ARCHS`.

    Args:
        question: The question with its interval so far.
        num_archs: Number of architectures so far.
    """
    assert question.sd is not None, "there was an interval"
    assert question.low is not None, "there was an interval"
    assert question.high is not None, "there was an interval"
    half = quantile(num_archs) * question.sd
    # on the scale on which the interval reaches by `half` to each side, the bar is `share * half` from the value
    end = question.low if question.value >= question.bar else question.high
    share = abs(question.value - question.bar) / max(abs(question.value - end), 1e-9)
    return _archs(share * half, question.sd * math.sqrt(num_archs), least=MIN_TOLD)


def efforts(num_seeds: int) -> list[tuple[str, float, int | None]]:
    """The question, the assumed value and the number of architectures needed, for supernets of several qualities.

    The spread comes from simulated normal scores with this tau. Seeds agree as in the CvT table.
    """
    found: list[tuple[str, float, int | None]] = []
    if num_seeds > 1:
        found += [("share of the noise ceiling", share, _for_share(share, num_seeds)) for share in SHARES]
    return found + [("tau within FLOPs bins", tau, _for_within(tau)) for tau in WITHIN]


@cache
def _for_share(share: float, num_seeds: int) -> int | None:
    rng, between = np.random.default_rng(0), USUAL_BETWEEN_SEEDS
    ceiling = float(ceiling_of_mean(between, num_seeds))
    rho = math.sin(math.pi / 2 * share * ceiling) / math.sin(math.pi / 2 * ceiling)
    noise = math.sqrt(1 / math.sin(math.pi / 2 * between) - 1)
    truth, ours = rng.normal(size=(2, _NUM_SIMULATED))
    ours = rho * truth + math.sqrt(1 - rho**2) * ours
    question = of_ceiling(ours, truth[:, None] + noise * rng.normal(size=(_NUM_SIMULATED, num_seeds)))
    assert question.sd is not None, "there are enough"
    ahead = math.atanh(share * ceiling) - math.atanh(MIN_OF_CEILING * ceiling)
    return _archs(ahead, question.sd * math.sqrt(_NUM_SIMULATED), least=MIN_TOLD)


@cache
def _for_within(tau: float) -> int | None:
    rng, rho = np.random.default_rng(0), math.sin(math.pi / 2 * tau)
    truth, ours = rng.normal(size=(2, _NUM_SIMULATED))
    question = within_bins(rho * truth + math.sqrt(1 - rho**2) * ours, truth, rng.permutation(_NUM_SIMULATED))
    assert question.sd is not None, "there are enough"
    spread = question.sd * math.sqrt(_NUM_SIMULATED)
    return _archs(tau - question.bar, spread, least=NUM_FLOPS_BINS * MIN_IN_BIN)


def _archs(ahead: float, spread: float, *, least: int) -> int | None:
    """The least number of architectures with an interval no wider than `ahead` to each side.

    Args:
        ahead: Distance of the value from the bar.
        spread: Standard deviation for a single architecture.
        least: Least possible number.
    """
    for number in range(least, MOST_ARCHS + 1):
        if quantile(number) * spread / math.sqrt(number) <= abs(ahead):
            return number
    return None


def seconds_of(timed: Sequence[tuple[int, float]], flops: Sequence[int]) -> float | None:
    """Mean seconds of a training of architectures with these FLOPs; None if nothing was timed.

    It is a linear fit to the logarithms of FLOPs and seconds, or the mean of the seconds if there are few.

    Args:
        timed: FLOPs and seconds of each timed training.
    """
    if not timed:
        return None
    known, seconds = np.log(np.array(timed, dtype=float)).T
    if len(timed) < 5 or np.ptp(known) < 0.1:
        return float(np.exp(seconds).mean())
    slope, level = np.polyfit(known, seconds, 1)
    return float(np.exp(level + np.clip(slope, 0, 1.5) * np.log(np.array(flops, dtype=float))).mean())
