"""How many architectures it takes to tell whether a supernet ranks well enough, before any of them is trained."""

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
USUAL_BETWEEN_SEEDS = 0.76  # of the CvT table; see `ceiling_of_mean`
MOST_ARCHS = 500
_NUM_SIMULATED = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """What it takes to answer a question.

    Args:
        value: That the supernet is assumed to have.
        archs: After which the answer is expected; None where more than `MOST_ARCHS` are needed.
        minutes: Of all their trainings; None where that is not known.
    """

    question: str
    value: float
    archs: int | None
    minutes: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationPlan:
    """What judging a supernet will take, before anything is trained.

    Args:
        archs, seeds, trainings: At most so many; `done` of the trainings are done, and `reused` come from other runs.
        minutes: Of all the trainings that are left; None where no training was timed yet.
        efforts: How many architectures it takes for supernets of several qualities.
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
    """Architectures that are needed where value and spread stay as `num_archs` found them; None for more than
    `MOST_ARCHS`."""
    assert question.sd is not None, "there was an interval"
    assert question.low is not None, "there was an interval"
    assert question.high is not None, "there was an interval"
    half = quantile(num_archs) * question.sd
    # how far the bar is from the value, where the interval reaches by `half`; at its own end on the side of the bar
    end = question.low if question.value >= question.bar else question.high
    share = abs(question.value - question.bar) / max(abs(question.value - end), 1e-9)
    return _archs(share * half, question.sd * math.sqrt(num_archs), least=MIN_TOLD)


def efforts(num_seeds: int) -> list[tuple[str, float, int | None]]:
    """For supernets of several qualities: the question, the assumed value, and the architectures that it takes.

    The spread is that of simulated normal scores with this tau, with seeds that agree as those of the CvT table.
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
    """The first number of architectures whose interval reaches no further than `ahead`; `spread`: of one."""
    for number in range(least, MOST_ARCHS + 1):
        if quantile(number) * spread / math.sqrt(number) <= abs(ahead):
            return number
    return None


def seconds_of(timed: Sequence[tuple[int, float]], flops: Sequence[int]) -> float | None:
    """Mean seconds of trainings of architectures with these FLOPs; None where nothing was timed.

    By a line through the logarithms of FLOPs and seconds of those that were `timed`; their mean where there are few.
    """
    if not timed:
        return None
    known, seconds = np.log(np.array(timed, dtype=float)).T
    if len(timed) < 5 or np.ptp(known) < 0.1:
        return float(np.exp(seconds).mean())
    slope, level = np.polyfit(known, seconds, 1)
    return float(np.exp(level + np.clip(slope, 0, 1.5) * np.log(np.array(flops, dtype=float))).mean())
