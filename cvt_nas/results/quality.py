"""Judges whether a supernet ranks architectures as their own trainings do."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import AliasChoices, Field, TypeAdapter

from cvt_nas.results.choice_effects import Choice, ChoiceEffect, choice_effects
from cvt_nas.results.kendall import kendall
from cvt_nas.results.parsing import parse_json
from cvt_nas.results.telling import (
    MIN_OF_CEILING,
    MIN_WITHIN_BINS,
    Question,
    answer_of,
    between_seeds,
    bins_of,
    ceiling_of_mean,
    questions_of,
)

Verdict = Literal["ranks well enough", "does not rank well enough", "cannot tell yet"]
NUM_RESAMPLES = 1_000
_REGRETS_AT = (1, 5, 10)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tau:
    """Kendall's tau-b, and the range of the middle 95 % of its bootstrap resamples over architectures.

    Source: Kendall 1945, doi:10.1093/biomet/33.3.239, for ties.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RankingQuality:
    """How well a score ranks architectures, compared with their accuracy after a training of their own.

    Args:
        overall: Tau over all architectures. It mostly shows that large networks beat small ones, which is known anyway.
        within_bins: Mean of tau over intervals of FLOPs with equal numbers of architectures.
        top_third: Tau among architectures whose own accuracy is in the upper third.
        precision_at_10: Share of the truly best tenth among the tenth with the highest scores.
        regret_at: Accuracy of the best architecture minus that of the best among the k with the highest scores, by k.
    """

    overall: Tau
    within_bins: Tau
    top_third: Tau
    precision_at_10: float
    regret_at: Mapping[int, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Origin of accuracies: data set, number of images of the search split, epochs of training and seed of the run."""

    dataset: str
    num_images: int
    epochs: int
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Reused:
    """Trainings of other runs that need not be done again.

    Args:
        sample: Number of architectures that were not chosen for their accuracy. They are part of all taus.
        others: Number of architectures that a search chose. Taus over them would mislead, so they are used only for the
            correction and the list of misjudged choices.
    """

    sample: int
    others: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """How much a model of a few trainings improves inherited accuracies, on architectures that it has not seen.

    Args:
        num_trainings: Number of trained architectures that the model of each split knew.
        num_splits: Number of random splits. The taus are means over them.
        inherited, corrected: Tau among the architectures left out of a split, before and after the correction.
    """

    num_trainings: int
    num_splits: int
    inherited: float
    corrected: float


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedArch:
    """An architecture that judges a supernet.

    Args:
        options: Options in words, by name of the choice.
        inherited, standalone: Accuracies: smoothed, and the mean over its trainings.
    """

    id: str
    options: Mapping[str, str]
    params: int
    flops: int
    inherited: float
    standalone: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SupernetQuality:
    """How well a supernet ranks architectures.

    Args:
        num_archs: Number of architectures, evenly over log-FLOPs.
        num_seeds: Number of trainings of each architecture. Their mean counts as the truth.
        rankers: Quality of the inherited accuracy, smoothed if Brier scores are known (`inherited`) and as measured
            (`accuracy`), and of the scores that it must beat, params and FLOPs.
        ceiling: Tau, with the mean of the seeds, of a ranker that knows the expected accuracy of each architecture; see
            `ceiling_of_mean`. None for one seed.
        inherited, standalone: Mean accuracies.
        origin: Origin of the accuracies; None if it is not known.
        between_seeds: Mean tau between the accuracies of two seeds, over all pairs of seeds; None for one seed.
        effects: How each choice changes both accuracies, the lowest p-value first. Files of earlier versions have only
            the choices that are misjudged.
        questions: Questions that decide whether the supernet ranks well enough. Files of earlier versions have none.
        reused: Trainings taken from other runs; None if none were offered.
        correction: Correction of the inherited accuracies; None if there are too few architectures.
        archs: The architectures. Files of earlier versions have none.
    """

    num_archs: int
    num_seeds: int
    rankers: Mapping[str, RankingQuality]
    ceiling: Tau | None
    inherited: float
    standalone: float
    origin: Origin | None = None
    between_seeds: Tau | None = None
    effects: Annotated[tuple[ChoiceEffect, ...], Field(validation_alias=AliasChoices("effects", "misjudged"))] = ()
    questions: tuple[Question, ...] = ()
    reused: Reused | None = None
    correction: Correction | None = None
    archs: tuple[JudgedArch, ...] = ()

    @property
    def misjudged(self) -> tuple[ChoiceEffect, ...]:
        """The choices that change the two accuracies differently, beyond chance."""
        return tuple(effect for effect in self.effects if effect.is_misjudged)

    @property
    def verdict(self) -> Verdict:
        """Verdict by the questions.

        A supernet that ranks no better than params or FLOPs gets no `yes`. This comparison is too uncertain for a `no`.
        """
        if not self.questions:
            return "does not rank well enough" if self._faults_of_earlier_versions else "ranks well enough"
        answer = answer_of(self.questions)
        if answer == "no":
            return "does not rank well enough"
        return "ranks well enough" if answer == "yes" and not self._no_better else "cannot tell yet"

    @property
    def faults(self) -> list[str]:
        """Reasons why the supernet cannot be trusted to rank; empty if it can."""
        if not self.questions:
            return self._faults_of_earlier_versions
        told = [self._told(question) for question in self.questions if question.answer == "no"]
        open_ = [self._told(question) for question in self.questions if question.answer == "cannot tell yet"]
        return [*told, *open_, *self._no_better]

    def _told(self, question: Question) -> str:
        if question.low is None or question.high is None:
            return f"{self.num_archs} architectures are too few to tell its {question.name} ({question.value:.2f})"
        found = f"{question.name} is {question.value:.2f} ({question.low:.2f} to {question.high:.2f})"
        if question.answer == "no":
            return f"{found}, below {question.bar}"
        return f"{found}, which {self.num_archs} architectures cannot tell from {question.bar}"

    @property
    def _no_better(self) -> list[str]:
        ours, found = self.rankers["inherited"], []
        for name in ("params", "flops"):
            for part in ("overall", "within_bins"):
                mine, theirs = getattr(ours, part).value, getattr(self.rankers[name], part).value
                if mine <= theirs:
                    found.append(f"{part.replace('_', ' ')} it ranks no better than {name}: {mine:.2f} to {theirs:.2f}")
        return found

    @property
    def _faults_of_earlier_versions(self) -> list[str]:
        ours, found = self.rankers["inherited"], []
        if ours.within_bins.value < MIN_WITHIN_BINS:
            found.append(f"tau within FLOPs bins is {ours.within_bins.value:.2f}, below {MIN_WITHIN_BINS}")
        elif ours.within_bins.low <= 0:
            found.append(f"{self.num_archs} architectures cannot tell its ranks within FLOPs bins from random ones")
        if self.ceiling is not None and ours.overall.value < MIN_OF_CEILING * self.ceiling.value:
            found.append(
                f"tau is {ours.overall.value:.2f}, below {MIN_OF_CEILING} of the noise ceiling {self.ceiling.value:.2f}"
            )
        return found + self._no_better

    def to_json(self) -> dict[str, object]:
        return {
            **asdict(self),
            "misjudged": [asdict(effect) for effect in self.misjudged],
            "questions": [{**asdict(question), "answer": question.answer} for question in self.questions],
            "gap": self.standalone - self.inherited,
            "verdict": self.verdict,
            "trusted": self.verdict == "ranks well enough",
        }

    @classmethod
    def from_json(cls, text: str, where: str) -> "SupernetQuality":
        """Reads the output of `to_json`. In earlier versions, the ceiling was the tau between the first two seeds.

        Raises RunFolderError, which names `where`, if `text` is something else.
        """
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
    smoothed: Sequence[float] | None = None,
    choices: Sequence[Choice] = (),
    effects: tuple[ChoiceEffect, ...] | None = None,
    reused: Reused | None = None,
    correction: Correction | None = None,
    archs: Sequence[JudgedArch] = (),
) -> SupernetQuality:
    """Compares the ranking by inherited accuracies with the ranking by accuracies after own trainings.

    Args:
        inherited: Inherited accuracy of each architecture.
        standalone: Accuracies after own trainings, `(archs, seeds)`.
        smoothed: The same, smoothed, by which the supernet ranks; see `smoothed_accuracies`.
        choices: Choices whose effects are computed; see `choice_effects`.
        effects: Effects of the choices, if they are known already.
    """
    truth, costs, num_seeds = standalone.mean(axis=1), np.array(flops), standalone.shape[1]
    accuracies = np.array(inherited)
    ours = accuracies if smoothed is None else np.array(smoothed)
    measured = {} if smoothed is None else {"accuracy": accuracies}
    rankers = {"inherited": ours, **measured, "params": np.array(params), "flops": costs}
    between = _tau(_between_columns, *standalone.T) if num_seeds > 1 else None
    return SupernetQuality(
        num_archs=len(truth),
        num_seeds=num_seeds,
        rankers={name: _quality(score, truth, costs) for name, score in rankers.items()},
        ceiling=None if between is None else _ceiling_of(between, num_seeds),
        inherited=float(np.mean(inherited)),
        standalone=float(truth.mean()),
        origin=origin,
        between_seeds=between,
        effects=choice_effects(ours, truth, flops, choices) if effects is None else effects,
        questions=questions_of(ours, standalone, costs),
        reused=reused,
        correction=correction,
        archs=tuple(archs),
    )


def _ceiling_of(between: Tau, num_seeds: int) -> Tau:
    value, low, high = (float(ceiling_of_mean(tau, num_seeds)) for tau in (between.value, between.low, between.high))
    return Tau(value=value, low=low, high=high)  # the ceiling rises with tau, so quantiles map to quantiles


def _quality(score: np.ndarray, truth: np.ndarray, flops: np.ndarray) -> RankingQuality:
    best_first = np.argsort(-score, kind="stable")
    tenth = max(round(len(truth) / 10), 1)
    truly_best = set(np.argsort(-truth, kind="stable")[:tenth])
    return RankingQuality(
        overall=_tau(kendall, score, truth),
        within_bins=_tau(_within_bins, score, truth, flops),
        top_third=_tau(_top_third, score, truth),
        precision_at_10=len(truly_best & set(best_first[:tenth])) / tenth,
        regret_at={k: float(truth.max() - truth[best_first[:k]].max()) for k in _REGRETS_AT},
    )


def _within_bins(score: np.ndarray, truth: np.ndarray, flops: np.ndarray) -> float:
    return float(np.mean([kendall(score[members], truth[members]) for members in bins_of(flops)]))


def _between_columns(*accuracies: np.ndarray) -> float:
    return between_seeds(np.column_stack(accuracies))


def _top_third(score: np.ndarray, truth: np.ndarray) -> float:
    members = np.argsort(-truth, kind="stable")[: math.ceil(len(truth) / 3)]
    return kendall(score[members], truth[members])


def _tau(measure: Callable[..., float], *columns: np.ndarray) -> Tau:
    rng, num_archs = np.random.default_rng(0), len(columns[0])
    drawn = rng.integers(0, num_archs, (NUM_RESAMPLES, num_archs))
    resamples = [measure(*(column[rows] for column in columns)) for rows in drawn]
    low, high = np.percentile(resamples, [2.5, 97.5])
    return Tau(value=measure(*columns), low=float(low), high=float(high))
