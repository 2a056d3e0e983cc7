"""Whether a supernet ranks architectures as their own training does."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from pydantic import TypeAdapter

from cvt_nas.results.parsing import parse_json

NUM_FLOPS_BINS = 4
NUM_RESAMPLES = 1_000
MIN_WITHIN_BINS, MIN_OF_CEILING = 0.5, 0.8
_REGRETS_AT = (1, 5, 10)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tau:
    """Kendall's tau-b, with the middle 95 % of its bootstrap resamples over architectures.

    Source: Kendall 1945, doi:10.1093/biomet/33.3.239, for ties.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RankingQuality:
    """How one score ranks architectures, against their accuracy after a training of their own.

    Args:
        overall: Over all of them. That large networks beat small ones is most of it, and no news.
        within_bins: The mean over intervals of FLOPs that hold as many architectures each.
        top_third: Among those whose own accuracy is in the upper third.
        precision_at_10: Of the tenth that scores best, the share that is among the truly best tenth.
        regret_at: By how much the best of the k that score best is behind the best of all, in accuracy.
    """

    overall: Tau
    within_bins: Tau
    top_third: Tau
    precision_at_10: float
    regret_at: Mapping[int, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What accuracies are of: so many images of the search split, after so many epochs, in a run with this seed."""

    dataset: str
    num_images: int
    epochs: int
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SupernetQuality:
    """A supernet, judged.

    Args:
        num_archs: Architectures, evenly over log-FLOPs.
        num_seeds: Trainings of each; the truth is their mean.
        rankers: The inherited accuracy, and what it must beat: params and FLOPs.
        ceiling: What a ranker that knew the expected accuracy of each architecture would reach against the mean of
            the seeds, see `ceiling_of_mean`; None of one seed.
        inherited, standalone: Mean accuracies.
        origin: Of the accuracies; None where nobody said.
        between_seeds: Tau of one seed's accuracies with another's, the mean over the pairs of seeds; None of one.
    """

    num_archs: int
    num_seeds: int
    rankers: Mapping[str, RankingQuality]
    ceiling: Tau | None
    inherited: float
    standalone: float
    origin: Origin | None = None
    between_seeds: Tau | None = None

    @property
    def faults(self) -> list[str]:
        """Why it cannot be trusted to rank; nothing where it can."""
        ours, found = self.rankers["inherited"], []
        if ours.within_bins.value < MIN_WITHIN_BINS:
            found.append(f"tau within FLOPs bins is {ours.within_bins.value:.2f}, below {MIN_WITHIN_BINS}")
        elif ours.within_bins.low <= 0:
            found.append(f"{self.num_archs} architectures cannot tell its ranks within FLOPs bins from random ones")
        if self.ceiling is not None and ours.overall.value < MIN_OF_CEILING * self.ceiling.value:
            found.append(
                f"tau is {ours.overall.value:.2f}, below {MIN_OF_CEILING} of the noise ceiling {self.ceiling.value:.2f}"
            )
        for name in ("params", "flops"):
            for part in ("overall", "within_bins", "top_third"):
                mine, theirs = getattr(ours, part).value, getattr(self.rankers[name], part).value
                if mine <= theirs:
                    found.append(f"{part.replace('_', ' ')} it ranks no better than {name}: {mine:.2f} to {theirs:.2f}")
        return found

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "gap": self.standalone - self.inherited, "trusted": not self.faults}

    @classmethod
    def from_json(cls, text: str, where: str) -> "SupernetQuality":
        """Reads what `to_json` gave, also of earlier versions, whose ceiling was the tau between the first two seeds.
        Raises RunFolderError where `text`, which `where` names, is something else."""
        quality: SupernetQuality = parse_json(_QUALITY, text, where)
        if quality.between_seeds is None and quality.ceiling is not None:
            between = quality.ceiling
            return replace(quality, ceiling=_ceiling_of(between, quality.num_seeds), between_seeds=between)
        return quality


_QUALITY = TypeAdapter(SupernetQuality)


def judge_supernet(
    inherited: Sequence[float],
    standalone: np.ndarray,
    params: Sequence[int],
    flops: Sequence[int],
    origin: Origin | None = None,
) -> SupernetQuality:
    """Compares rankings: of accuracies inherited by each architecture, and after its own training, `(archs, seeds)`."""
    truth, costs, num_seeds = standalone.mean(axis=1), np.array(flops), standalone.shape[1]
    scores = {"inherited": np.array(inherited), "params": np.array(params), "flops": costs}
    between = _tau(_between_seeds, *standalone.T) if num_seeds > 1 else None
    return SupernetQuality(
        num_archs=len(truth),
        num_seeds=num_seeds,
        rankers={name: _quality(score, truth, costs) for name, score in scores.items()},
        ceiling=None if between is None else _ceiling_of(between, num_seeds),
        inherited=float(np.mean(inherited)),
        standalone=float(truth.mean()),
        origin=origin,
        between_seeds=between,
    )


def ceiling_of_mean(between_seeds: float, num_seeds: int) -> float:
    """Tau of the expected accuracies with the mean of `num_seeds` trainings, from the tau of one training with another.

    By way of correlations: Greiner's relation, tau = 2 / pi arcsin(rho), there and back, and between them the
    reliability of a mean, k rho / (1 + (k - 1) rho), whose root is the correlation of a mean with what it estimates.
    The relation is exact for normal accuracies and noise. With accuracies bunched as in the CvT table the result is
    .003 too high, and up to .015 where accuracies on 500 images tie (`benchmarks/ceiling.py`).

    Source: Spearman 1910, doi:10.1111/j.2044-8295.1910.tb00206.x, and Brown 1910,
    doi:10.1111/j.2044-8295.1910.tb00207.x; Kruskal 1958, doi:10.1080/01621459.1958.10501481, for the relation.
    """
    rho = math.sin(math.pi / 2 * max(between_seeds, 0.0))
    reliability = num_seeds * rho / (1 + (num_seeds - 1) * rho)
    return 2 / math.pi * math.asin(min(math.sqrt(reliability), 1.0))


def _ceiling_of(between: Tau, num_seeds: int) -> Tau:
    value, low, high = (ceiling_of_mean(tau, num_seeds) for tau in (between.value, between.low, between.high))
    return Tau(value=value, low=low, high=high)  # it rises with tau, and so do the quantiles


def _between_seeds(*accuracies: np.ndarray) -> float:
    return float(np.mean([_kendall(one, other) for one, other in itertools.combinations(accuracies, 2)]))


def _quality(score: np.ndarray, truth: np.ndarray, flops: np.ndarray) -> RankingQuality:
    best_first = np.argsort(-score, kind="stable")
    tenth = max(round(len(truth) / 10), 1)
    truly_best = set(np.argsort(-truth, kind="stable")[:tenth])
    return RankingQuality(
        overall=_tau(_kendall, score, truth),
        within_bins=_tau(_within_bins, score, truth, flops),
        top_third=_tau(_top_third, score, truth),
        precision_at_10=len(truly_best & set(best_first[:tenth])) / tenth,
        regret_at={k: float(truth.max() - truth[best_first[:k]].max()) for k in _REGRETS_AT},
    )


def _within_bins(score: np.ndarray, truth: np.ndarray, flops: np.ndarray) -> float:
    bins = np.array_split(np.argsort(flops, kind="stable"), NUM_FLOPS_BINS)
    return float(np.mean([_kendall(score[members], truth[members]) for members in bins]))


def _top_third(score: np.ndarray, truth: np.ndarray) -> float:
    members = np.argsort(-truth, kind="stable")[: math.ceil(len(truth) / 3)]
    return _kendall(score[members], truth[members])


def _kendall(score: np.ndarray, truth: np.ndarray) -> float:
    """Tau-b, from all pairs at once, which for a hundred values takes an eighth of the time of scipy's."""
    ours, theirs = (values[:, None] > values for values in (score, truth))
    num_told_apart = math.sqrt(np.count_nonzero(ours) * np.count_nonzero(theirs))
    if num_told_apart == 0:
        return 0.0  # where all are equal
    num_alike, num_reversed = np.count_nonzero(ours & theirs), np.count_nonzero(ours & theirs.T)
    return (num_alike - num_reversed) / num_told_apart


def _tau(measure: Callable[..., float], *columns: np.ndarray) -> Tau:
    rng, num_archs = np.random.default_rng(0), len(columns[0])
    drawn = rng.integers(0, num_archs, (NUM_RESAMPLES, num_archs))
    resamples = [measure(*(column[rows] for column in columns)) for rows in drawn]
    low, high = np.percentile(resamples, [2.5, 97.5])
    return Tau(value=measure(*columns), low=float(low), high=float(high))
