"""Beliefs about the networks of a space before any of them is trained: from earlier runs, and from the user.

A belief gives each network a number. It is a feature of the Gaussian process of `curves`, which learns its weight from
the trials. The belief from an earlier run is the accuracy that a process over its curves expects. The belief of the
user is higher for networks with the options that the user prefers, after the effect of costs is removed.

Sources: Golovin et al. 2017 ("Vizier"), for stacking the processes of earlier studies; Hvarfner et al. 2022,
arXiv:2204.11051, for beliefs of users that fade.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from cvt_nas.arch import ArchConfig, Cost
from cvt_nas.propose.curves import CurvePosterior, Curves, fit_hyperparameters, prior_of
from cvt_nas.propose.observations import MAX_FITTED, Observation, curves_of, most_telling
from cvt_nas.space import BLOCK_CHOICES, LINEAR_IGNORES, STAGE_CHOICES, Gene, GenomeSpace, Option

PRIORS = "priors"  # name of the user's belief
FEWEST_TRIALS = 5  # of an earlier run that can be believed: each fifth of its trials is left out in turn
_ROUNDING = 1e-9  # scores of networks that differ by less are equal
_NO_EFFECT = -1  # in the place of an option: the last row of a column's features
_LEAST_SD = 0.1  # least standard deviation by which logarithms of costs are divided


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlierRun:
    """Networks that another search trained.

    Args:
        choices: Values of each network's choices, by the names of genes; see `choices_of`.
        costs: Cost of each network for the images and classes of this search.
        curves: Accuracy of each network after each epoch, of one epoch at least.
        num_epochs: Number of epochs of a full training.
    """

    name: str
    choices: tuple[Mapping[str, Option], ...]
    costs: tuple[Cost, ...]
    curves: tuple[tuple[float, ...], ...]
    num_epochs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Beliefs:
    """All beliefs about a space.

    Args:
        fixed: Values of the choices that the space fixes, by the names that genes would have. Earlier runs may have
            varied them.
        priors: Weight of each option of a gene, by the name of the gene: how many times as often as by chance it is in
            good networks. Weights are above 0. Genes may be absent.
    """

    runs: tuple[EarlierRun, ...] = ()
    fixed: Mapping[str, Option] = field(default_factory=dict)
    priors: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return (*(run.name for run in self.runs), *([PRIORS] if self.priors else []))


NO_BELIEFS = Beliefs()


def choices_of(arch: ArchConfig) -> dict[str, Option]:
    """Values of a network's choices by the names that genes would have, both of stages and of blocks.

    Where the blocks of a stage differ, the value of the stage is their mean. Words have no mean, so the name is absent.
    So are those of kernels and strides that linear projections ignore.
    """
    values: dict[str, Option] = {}
    for index, stage in enumerate(arch.stages):
        for choice in STAGE_CHOICES:
            values[f"stage{index}.{choice}"] = len(stage.blocks) if choice == "depth" else getattr(stage, choice)
        for choice in BLOCK_CHOICES:
            of_blocks = {
                f"stage{index}.block{place}.{choice}": getattr(block, choice)
                for place, block in enumerate(stage.blocks)
                if not (block.projection == "linear" and choice in LINEAR_IGNORES)
            }
            values |= of_blocks
            if len(different := set(of_blocks.values())) == 1:
                (values[f"stage{index}.{choice}"],) = different
            elif different and choice != "projection":
                values[f"stage{index}.{choice}"] = statistics.fmean(of_blocks.values())
    return values


@dataclass(frozen=True, kw_only=True, slots=True)
class Trust:
    """How far the trials confirm a belief.

    Args:
        weight, sd: Mean and standard deviation of its weight in the process.
        agreement: Correlation of the belief with the expected accuracy, over networks of the space. For the user's
            belief, the effect of costs is removed from the expected accuracy. None if the belief is the same for all
            networks.
    """

    weight: float
    sd: float
    agreement: float | None


class Believed:
    """Beliefs as features, `(genomes, beliefs)`. Each has mean 0 and standard deviation 1 over the space.

    A belief that does not tell networks apart is 0. An earlier run leads to one if it does not predict its own trials,
    and priors do if no weight is left of them within the constraints, or none that costs do not explain.

    Attributes:
        number: Number of beliefs.
        tells_apart: Whether any belief tells networks apart.

    Args:
        sample: Sample of the genomes of the space, `(sample, genes)`.
        costs: Cost of each genome in the sample.
    """

    def __init__(
        self, beliefs: Beliefs, space: GenomeSpace, sample: Int[np.ndarray, "sample genes"], costs: Sequence[Cost]
    ) -> None:
        self._priors = _Priors(beliefs.priors, space, sample, costs) if beliefs.priors else None
        self._runs = [_Expected(run, space, beliefs.fixed, sample, costs) for run in beliefs.runs]
        self.number = len(beliefs.names)
        self._are_flat = [belief.is_flat for belief in self._all]
        self.tells_apart = not all(self._are_flat)

    @property
    def _all(self) -> "list[_Expected | _Priors]":
        return [*self._runs, *([] if self._priors is None else [self._priors])]

    def __call__(
        self, genomes: Int[np.ndarray, "genomes genes"], costs: Sequence[Cost]
    ) -> Float[np.ndarray, "genomes beliefs"]:
        return np.array([belief(genomes, costs) for belief in self._all]).T.reshape(len(genomes), self.number)

    def judge(
        self, number: int, genomes: Int[np.ndarray, "genomes genes"], costs: Sequence[Cost]
    ) -> Float[np.ndarray, " genomes"]:
        """A score by which trial `number` of the initial design is chosen among networks of about the same cost.

        The user can be wrong about many genes at once, so every second trial ignores the user's belief.
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
        """How far a process confirms each belief.

        Args:
            weights: Mean and standard deviation of the weight of each belief in the process.
            expected: Accuracies that the process expects.
            costs: Standardised logarithms of params and FLOPs.
        """
        means, sds = weights
        line = np.column_stack([np.ones(len(costs)), costs])
        beyond = expected - line @ np.linalg.lstsq(line, expected, rcond=None)[0]
        against = [expected] * len(self._runs) + [beyond]
        return [
            Trust(weight=float(mean), sd=float(sd), agreement=None if is_flat else _correlation(column, other))
            for mean, sd, column, other, is_flat in zip(means, sds, believed.T, against, self._are_flat, strict=False)
        ]


class _Process:
    """The process of the curves of an earlier run, over the choices that its networks have in common with a space.

    Attributes:
        skill: See `_skill`.
        scale: Standard deviation of its accuracies after a full training.
    """

    def __init__(self, run: EarlierRun, space: GenomeSpace, fixed: Mapping[str, Option]) -> None:
        columns = [_Column(gene, [of.get(gene.name) for of in run.choices]) for gene in space.genes]
        for name, value in fixed.items():
            theirs = [of.get(name) for of in run.choices]
            if len({*theirs, None}) > 2:  # a value that all of their networks share teaches nothing
                gene = Gene(name=name, stage=0, block=None, choice=name.rpartition(".")[2], options=(value,))
                columns.append(_Column(gene, theirs))
        self._space, self._columns = space, [column for column in columns if column.is_theirs]
        self._places = [place for place, column in enumerate(columns[: len(space.genes)]) if column.is_theirs]
        self._num_fixed = len(self._columns) - len(self._places)
        logs = log_costs(run.costs)
        self._middle, self._spread = logs.mean(axis=0), np.maximum(logs.std(axis=0), _LEAST_SD)
        features = np.hstack([*(column.theirs for column in self._columns), self._scaled(run.costs)])
        observations = [Observation(genome=(), curve=curve, status="complete") for curve in run.curves]
        curves = curves_of(observations, features, run.num_epochs)
        curves = curves.where(most_telling(curves, MAX_FITTED, np.random.default_rng(0)))
        prior = prior_of([column.num_options for column in self._columns], run.num_epochs)
        theta = fit_hyperparameters(curves, prior=prior)
        self._posterior, self.skill = CurvePosterior(curves, theta), _skill(curves, theta)
        self.scale = curves.scale[1]

    def _scaled(self, costs: Sequence[Cost]) -> np.ndarray:
        return (log_costs(costs) - self._middle) / self._spread

    def expect(self, genomes: np.ndarray, costs: Sequence[Cost]) -> np.ndarray:
        chosen = np.where(self._space.active_rows(genomes), genomes, _NO_EFFECT)[:, self._places]
        chosen = np.pad(chosen, ((0, 0), (0, self._num_fixed)))  # choices that are fixed have one option
        features = [column.ours[options] for column, options in zip(self._columns, chosen.T, strict=True)]
        return self._posterior.expect(np.hstack([*features, self._scaled(costs)]))


def skill_of(run: EarlierRun, space: GenomeSpace, fixed: Mapping[str, Option]) -> float:
    """How well the trials of an earlier run predict each other, by the choices of this space.

    It is the correlation that `_skill` computes. With 0, the run tells nothing. It takes one fit of hyperparameters.
    """
    return _Process(run, space, fixed).skill


class _Expected:
    """The accuracy that the process of an earlier run expects of networks of this space."""

    def __init__(
        self,
        run: EarlierRun,
        space: GenomeSpace,
        fixed: Mapping[str, Option],
        sample: np.ndarray,
        costs: Sequence[Cost],
    ) -> None:
        self._process = _Process(run, space, fixed)
        self.is_flat = self._process.skill == 0
        expected = self._process.expect(sample, costs)
        # a process that expects almost no differences must not have them scaled up
        self._mean, self._sd = expected.mean(), max(expected.std(), self._process.scale)

    def __call__(self, genomes: np.ndarray, costs: Sequence[Cost]) -> np.ndarray:
        return self._process.skill * (self._process.expect(genomes, costs) - self._mean) / self._sd


def _skill(curves: Curves, theta: np.ndarray) -> float:
    """Cross-validated skill of a process: the correlation of the latest accuracies of trials that are left out with
    what it expects of them. Each fifth of the trials is left out in turn. Negative correlations count as 0.

    Trials are compared with those that went equally far, since accuracies rise with the epochs. A process also
    remembers random accuracies. Without this factor, a search of the same networks would believe them.
    """
    latest = {trial: place for place, trial in enumerate(curves.trials.tolist())}
    trials = np.random.default_rng(0).permutation(list(latest))
    if len(trials) < FEWEST_TRIALS:
        return 0.0
    expected = np.zeros(len(trials))
    for fold in range(FEWEST_TRIALS):
        left_out = trials[fold::FEWEST_TRIALS]
        posterior = CurvePosterior(curves.where(~np.isin(curves.trials, left_out)), theta)
        expected[fold::FEWEST_TRIALS] = posterior.expect(curves.features[left_out])
    places = np.array([latest[trial] for trial in trials])
    expected, values = (_centred(each, curves.epochs[places]) for each in (expected, curves.values[places]))
    return max(_correlation(expected, values), 0.0)


class _Column:
    """A choice as features, over the values that it has in either space: its rank in [0, 1], or one-hot.

    A network in which the choice has no effect is in the middle. So is the last row of `ours`.
    """

    def __init__(self, gene: Gene, theirs: Sequence[Option | None]) -> None:
        known = {value for value in theirs if value is not None}
        self.is_theirs, self._is_ordinal = bool(known), gene.is_ordinal
        self._options = sorted({*gene.options, *known})
        self.num_options = 0 if gene.is_ordinal else len(self._options)
        self.ours = np.array([self._features_of(option) for option in (*gene.options, None)])
        self.theirs = np.array([self._features_of(value) for value in theirs])

    def _features_of(self, value: Option | None) -> list[float]:
        if self._is_ordinal:
            return [0.5 if value is None else self._options.index(value) / max(len(self._options) - 1, 1)]
        return [float(option == value) / math.sqrt(2) for option in self._options]


class _Priors:
    """How good the user believes the options of networks to be, after the effect of costs is removed.

    Good networks often have cheap options, which the costs already tell.
    """

    def __init__(
        self, priors: Mapping[str, Sequence[float]], space: GenomeSpace, sample: np.ndarray, costs: Sequence[Cost]
    ) -> None:
        self._space = space
        places = {gene.name: place for place, gene in enumerate(space.genes)}
        self._weights = {places[name]: np.log(weights) for name, weights in priors.items()}
        score, logs = self._score(sample), np.column_stack([np.ones(len(sample)), log_costs(costs)])
        self._line = np.linalg.lstsq(logs, score, rcond=None)[0]
        self._sd = float((score - logs @ self._line).std())
        self.is_flat = self._sd < _ROUNDING

    def _score(self, genomes: np.ndarray) -> np.ndarray:
        total, active = np.zeros(len(genomes)), self._space.active_rows(genomes)
        for place, weights in self._weights.items():
            total += np.where(active[:, place], weights[genomes[:, place]], 0.0)
        return total

    def __call__(self, genomes: np.ndarray, costs: Sequence[Cost]) -> np.ndarray:
        if self.is_flat:
            return np.zeros(len(genomes))
        logs = np.column_stack([np.ones(len(genomes)), log_costs(costs)])
        return (self._score(genomes) - logs @ self._line) / self._sd


def log_costs(costs: Sequence[Cost]) -> np.ndarray:
    return np.log([[cost.params, cost.flops] for cost in costs]).reshape(-1, 2)


def _centred(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """`values` minus the mean of their group."""
    _, members = np.unique(groups, return_inverse=True)
    return values - (np.bincount(members, weights=values) / np.bincount(members))[members]


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two arrays. It is 0 if one of them is constant."""
    one, other = one - one.mean(), other - other.mean()
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size > 0 else 0.0
