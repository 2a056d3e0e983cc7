"""What is believed of the networks of a space before any of them is trained: by earlier runs, and by the user.

Each belief is a number for each network, and a feature of the process of `curves`, which weighs it by what the trials
show. What an earlier run teaches is the accuracy that a process over its own curves expects. What the user says is
worth a network more where it has the options that good networks are said to have, whatever it costs.

Sources: Golovin et al. 2017 ("Vizier"), for stacking the processes of earlier studies; Hvarfner et al. 2022,
arXiv:2204.11051, for beliefs of users that fade.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cvt_nas.arch import ArchConfig, Cost
from cvt_nas.propose.curves import CurvePosterior, Curves, fit_hyperparameters, prior_of
from cvt_nas.propose.observations import MAX_FITTED, Observation, curves_of, most_telling
from cvt_nas.space import BLOCK_CHOICES, STAGE_CHOICES, Gene, GenomeSpace

PRIORS = "priors"  # the name of what the user believes
_FOLDS = 5
_LEAST_SD = 0.1  # of logarithms of costs, by which they are divided


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlierRun:
    """Networks that another search trained.

    Args:
        choices: Of each network, values by the names of genes; see `choices_of`.
        costs: Of each network, as it would be for the images and classes of this search.
        curves: Of each network, accuracy after each epoch; at least one epoch.
        num_epochs: Of a full training.
    """

    name: str
    choices: tuple[Mapping[str, Any], ...]
    costs: tuple[Cost, ...]
    curves: tuple[tuple[float, ...], ...]
    num_epochs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Beliefs:
    """All that is believed of a space.

    Args:
        fixed: Values of choices that the space fixes, by names as genes have them: earlier runs may have varied them.
        priors: By the name of a gene, how much more often each of its options is in good networks than by chance;
            above 0, and 1 where nothing is believed. Genes may be absent.
    """

    runs: tuple[EarlierRun, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    priors: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return (*(run.name for run in self.runs), *([PRIORS] if self.priors else []))


NO_BELIEFS = Beliefs()


def choices_of(arch: ArchConfig) -> dict[str, Any]:
    """Values of a network by the names that genes would have, of a space in which stages choose and of one in which
    blocks do.

    The value of a stage whose blocks differ is their mean, and None where they are words.
    """
    values: dict[str, Any] = {}
    for index, stage in enumerate(arch.stages):
        for choice in STAGE_CHOICES:
            values[f"stage{index}.{choice}"] = len(stage.blocks) if choice == "depth" else getattr(stage, choice)
        for choice in BLOCK_CHOICES:
            of_blocks = [getattr(block, choice) for block in stage.blocks]
            values |= {f"stage{index}.block{place}.{choice}": value for place, value in enumerate(of_blocks)}
            if len(set(of_blocks)) == 1:
                values[f"stage{index}.{choice}"] = of_blocks[0]
            elif choice != "projection":
                values[f"stage{index}.{choice}"] = statistics.fmean(of_blocks)
    return values


@dataclass(frozen=True, kw_only=True, slots=True)
class Trust:
    """How much is left of a belief.

    Args:
        weight: By which it counts among what is expected, and the standard deviation of that.
        agreement: Correlation, over networks of the space, of the belief with what is expected of their accuracy; of
            the user's with what is expected beyond what follows from costs.
    """

    weight: float
    sd: float
    agreement: float


class Believed:
    """Beliefs as features, `(genomes, beliefs)`, each with mean 0 over the space, and one standard deviation as its
    unit.

    Args:
        sample: Of the genomes of the space, `(sample, genes)`; `costs` of each.
    """

    def __init__(
        self, beliefs: Beliefs, space: GenomeSpace, sample: Int[np.ndarray, "sample genes"], costs: Sequence[Cost]
    ) -> None:
        self._priors = _Priors(beliefs.priors, space, sample, costs) if beliefs.priors else None
        self._runs = [_Expected(run, space, beliefs.fixed, sample, costs) for run in beliefs.runs]
        self.number = len(beliefs.names)

    def __call__(
        self, genomes: Int[np.ndarray, "genomes genes"], costs: Sequence[Cost]
    ) -> Float[np.ndarray, "genomes beliefs"]:
        beliefs = [*self._runs, *([] if self._priors is None else [self._priors])]
        return np.array([belief(genomes, costs) for belief in beliefs]).T.reshape(len(genomes), self.number)

    def judge(
        self, number: int, genomes: Int[np.ndarray, "genomes genes"], costs: Sequence[Cost]
    ) -> Float[np.ndarray, " genomes"]:
        """By what trial `number` of the initial design is chosen among networks of about the same cost.

        A user can be wrong about many genes at once, so that every second trial does not go by that.
        """
        believed = self(genomes, costs)
        return believed[:, : len(self._runs) if number % 2 else self.number].sum(axis=1)

    def trust(
        self,
        believed: Float[np.ndarray, "sample beliefs"],
        weights: tuple[np.ndarray, np.ndarray],
        *,
        expected: Float[np.ndarray, " sample"],
        costs: Float[np.ndarray, "sample 2"],
    ) -> list[Trust]:
        """Of each belief, by the `weights` that a process gives them, mean and standard deviation, and the accuracies
        that it expects; `costs` are logarithms."""
        means, sds = weights
        line = np.column_stack([np.ones(len(costs)), costs])
        beyond = expected - line @ np.linalg.lstsq(line, expected, rcond=None)[0]
        against = [expected] * len(self._runs) + [beyond]
        return [
            Trust(weight=float(mean), sd=float(sd), agreement=_correlation(column, other))
            for mean, sd, column, other in zip(means, sds, believed.T, against, strict=False)
        ]


class _Expected:
    """The accuracy that the process of an earlier run expects of networks of this space."""

    def __init__(
        self, run: EarlierRun, space: GenomeSpace, fixed: Mapping[str, Any], sample: np.ndarray, costs: Sequence[Cost]
    ) -> None:
        columns = [_Column(gene, [of.get(gene.name) for of in run.choices]) for gene in space.genes]
        for name, value in fixed.items():
            theirs = [of.get(name) for of in run.choices]
            if len({*theirs, None}) > 2:  # what is the same in all of their networks teaches nothing
                gene = Gene(name=name, stage=0, block=None, choice=name.rpartition(".")[2], options=(value,))
                columns.append(_Column(gene, theirs))
        self._columns = [column for column in columns if column.is_theirs]
        self._places = [place for place, column in enumerate(columns[: len(space.genes)]) if column.is_theirs]
        self._num_fixed = len(self._columns) - len(self._places)
        logs = _logs(run.costs)
        self._middle, self._spread = logs.mean(axis=0), np.maximum(logs.std(axis=0), _LEAST_SD)
        features = np.hstack([*(column.theirs for column in self._columns), self._scaled(run.costs)])
        observations = [Observation(genome=(), curve=curve, status="complete") for curve in run.curves]
        curves = curves_of(observations, features, run.num_epochs)
        curves = curves.where(most_telling(curves, MAX_FITTED, np.random.default_rng(0)))
        prior = prior_of([column.num_options for column in self._columns], run.num_epochs)
        theta = fit_hyperparameters(curves, prior=prior)
        self._posterior, self._skill = CurvePosterior(curves, theta), _skill(curves, theta)
        expected = self._expect(sample, costs)
        # where next to nothing is expected to differ, what is left is noise and must not be made large
        self._mean, self._sd = expected.mean(), max(expected.std(), curves.scale[1])

    def _scaled(self, costs: Sequence[Cost]) -> np.ndarray:
        return (_logs(costs) - self._middle) / self._spread

    def _expect(self, genomes: np.ndarray, costs: Sequence[Cost]) -> np.ndarray:
        places = [genomes[:, place] for place in self._places] + [np.zeros(len(genomes), dtype=int)] * self._num_fixed
        features = [column.ours[options] for column, options in zip(self._columns, places, strict=True)]
        return self._posterior.expect(np.hstack([*features, self._scaled(costs)]))

    def __call__(self, genomes: np.ndarray, costs: Sequence[Cost]) -> np.ndarray:
        return self._skill * (self._expect(genomes, costs) - self._mean) / self._sd


def _skill(curves: Curves, theta: np.ndarray) -> float:
    """How well a process tells of networks that it has not seen: the correlation of their latest accuracies with what
    it expects by four fifths of the trials, each fifth left out in turn; 0 where that is less.

    Accuracies without order are remembered as well as others, and would be believed where a search meets the same
    networks again.
    """
    latest = dict(zip(curves.trials.tolist(), curves.values.tolist(), strict=True))
    trials = np.random.default_rng(0).permutation(list(latest))
    if len(trials) < _FOLDS:
        return 0.0
    expected = np.zeros(len(trials))
    for fold in range(_FOLDS):
        left_out = trials[fold::_FOLDS]
        posterior = CurvePosterior(curves.where(~np.isin(curves.trials, left_out)), theta)
        expected[fold::_FOLDS] = posterior.expect(curves.features[left_out])
    return max(_correlation(expected, np.array([latest[trial] for trial in trials])), 0.0)


class _Column:
    """A choice as features, by the values that it has in either space: in [0, 1] by rank, or one-hot.

    A network that lacks the choice, as one without the block, stands in the middle.
    """

    def __init__(self, gene: Gene, theirs: Sequence[Any]) -> None:
        known = {value for value in theirs if value is not None}
        self.is_theirs, self._is_ordinal = bool(known), gene.is_ordinal
        self._options = sorted({*gene.options, *known})
        self.num_options = 0 if gene.is_ordinal else len(self._options)
        self.ours = np.array([self._features_of(option) for option in gene.options])
        self.theirs = np.array([self._features_of(value) for value in theirs])

    def _features_of(self, value: Any) -> list[float]:
        if self._is_ordinal:
            return [0.5 if value is None else self._options.index(value) / max(len(self._options) - 1, 1)]
        return [float(option == value) / math.sqrt(2) for option in self._options]


class _Priors:
    """How good a user believes the options of networks to be, beyond what follows from their costs.

    Options that good networks have may be cheap ones, and that is known without any belief.
    """

    def __init__(
        self, priors: Mapping[str, Sequence[float]], space: GenomeSpace, sample: np.ndarray, costs: Sequence[Cost]
    ) -> None:
        self._genes = space.genes
        places = {gene.name: place for place, gene in enumerate(space.genes)}
        self._weights = {places[name]: np.log(weights) for name, weights in priors.items()}
        self._depths = {gene.stage: place for place, gene in enumerate(space.genes) if gene.choice == "depth"}
        score, logs = self._score(sample), np.column_stack([np.ones(len(sample)), _logs(costs)])
        self._line = np.linalg.lstsq(logs, score, rcond=None)[0]
        self._sd = max(float((score - logs @ self._line).std()), 1e-9)

    def _score(self, genomes: np.ndarray) -> np.ndarray:
        total = np.zeros(len(genomes))
        for place, weights in self._weights.items():
            block, depth = self._genes[place].block, self._depths.get(self._genes[place].stage)
            has_it = np.ones(len(genomes), dtype=bool)
            if block is not None and depth is not None:
                has_it = np.array(self._genes[depth].options)[genomes[:, depth]] > block
            total += np.where(has_it, weights[genomes[:, place]], 0.0)
        return total

    def __call__(self, genomes: np.ndarray, costs: Sequence[Cost]) -> np.ndarray:
        logs = np.column_stack([np.ones(len(genomes)), _logs(costs)])
        return (self._score(genomes) - logs @ self._line) / self._sd


def _logs(costs: Sequence[Cost]) -> np.ndarray:
    return np.log([[cost.params, cost.flops] for cost in costs]).reshape(-1, 2)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """0 where one of them is the same everywhere."""
    one, other = one - one.mean(), other - other.mean()
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size > 0 else 0.0
