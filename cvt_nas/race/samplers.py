"""Who proposes the next architecture: always one that is feasible and new.

Optuna's own samplers are asked again until they propose such a one; `surrogate` proposes nothing else.
Each proposal is a function of the seed and of the trials told so far, so that a resumed search goes on as
if it had never been interrupted.
"""

import hashlib
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from cvt_nas.race.surrogate import Observation, Surrogate
from cvt_nas.results import Metric
from cvt_nas.space import COST_METRICS, Genome, GenomeSpace

SamplerName = Literal["surrogate", "tpe", "nsga2", "gp", "random"]
SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)

_SAMPLER_TRIES = 50
_GP_TRIES = 3  # each fits the process again, and most find the same maximum
_RANDOM_TRIES = 2_000
_ENUMERABLE = 20_000


class UnseenSampler(BaseSampler):
    """A sampler for Optuna's study, whose proposals are feasible and new.

    Args:
        seen: Canonical genomes that were proposed; the owner adds to it.
    """

    def __init__(
        self, kind: SamplerName, space: GenomeSpace, *, metrics: Sequence[Metric], seed: int, seen: set[Genome]
    ) -> None:
        self._kind, self._space, self._seed, self._seen = kind, space, seed, seen
        self._distributions = distributions_of(space)
        self._fallback: Genome | None = None
        self._inner: BaseSampler = RandomSampler(seed)
        self._surrogate = None
        if kind == "surrogate":
            self._surrogate = Surrogate(space, costs=[m for m in COST_METRICS if m in metrics], seed=seed)

    def _make(self, number: int) -> BaseSampler:
        seed = derive_seed(self._seed, number, "proposal")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if self._kind == "tpe":
                return TPESampler(n_startup_trials=10, multivariate=True, constant_liar=True, seed=seed)
            if self._kind == "nsga2":
                # Optuna's population of 50 makes the first 50 trials random; searches here are short
                return NSGAIISampler(population_size=20, seed=seed)
            if self._kind == "gp":
                return GPSampler(seed=seed, n_startup_trials=10, deterministic_objective=False)
            return RandomSampler(seed)

    def prepare(self, number: int) -> bool:
        """Readies the proposal of trial `number`; False where nothing feasible and new is left."""
        if self._surrogate is None:
            self._inner = self._make(number)
        self._fallback = self._draw_unseen(random.Random(derive_seed(self._seed, number, "fallback")))
        return self._fallback is not None

    def _is_new(self, genome: Genome) -> bool:
        return self._space.canonical(genome) not in self._seen and self._space.is_feasible(self._space.cost(genome))

    def _draw_unseen(self, rng: random.Random) -> Genome | None:
        for _ in range(_RANDOM_TRIES):
            genome = self._space.sample_feasible(rng)
            if genome is None:
                break
            if self._is_new(genome):
                return self._space.canonical(genome)
        return next((genome for genome in self._space.all_genomes(_ENUMERABLE) or () if self._is_new(genome)), None)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        del study, trial
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        assert self._fallback is not None, "prepare() comes before ask()"
        genome = None
        if self._surrogate is not None:
            observations = observations_of(study.get_trials(deepcopy=False), self._space, before=trial.number)
            genome = self._surrogate.propose(trial.number, observations, self._seen)
        else:
            inner_space = self._inner.infer_relative_search_space(study, trial)
            for _ in range(_GP_TRIES if self._kind == "gp" else _SAMPLER_TRIES):
                params = dict(self._inner.sample_relative(study, trial, inner_space))
                for name, distribution in search_space.items():
                    if name not in params:
                        params[name] = self._inner.sample_independent(study, trial, name, distribution)
                if self._is_new(drawn := genome_of(self._space, params)):
                    genome = self._space.canonical(drawn)
                    break
        return params_of(self._space, self._fallback if genome is None else genome)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._inner.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._inner.after_trial(study, trial, state, values)


def observations_of(trials: Sequence[FrozenTrial], space: GenomeSpace, *, before: int) -> list[Observation]:
    """What Optuna's trials teach a surrogate, in the order of their numbers."""
    status = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "stopped", TrialState.RUNNING: "running"}
    return [
        Observation(
            genome=genome_of(space, trial.params),
            curve=tuple(trial.user_attrs.get("curve", ())),
            status=status.get(trial.state, "failed"),
        )
        for trial in trials[:before]
        if trial.state != TrialState.WAITING and is_whole(trial, space)
    ]


def derive_seed(*parts: int | str) -> int:
    """A seed of 31 bits that is a function of `parts`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little") >> 1


def distributions_of(space: GenomeSpace) -> dict[str, BaseDistribution]:
    """Ordinal genes as integers, so that samplers can use their order."""
    return {
        gene.name: IntDistribution(0, len(gene.options) - 1)
        if gene.is_ordinal
        else CategoricalDistribution(tuple(range(len(gene.options))))
        for gene in space.genes
    }


def genome_of(space: GenomeSpace, params: Mapping[str, Any]) -> Genome:
    return tuple(int(params[gene.name]) for gene in space.genes)


def params_of(space: GenomeSpace, genome: Genome) -> dict[str, int]:
    return {gene.name: index for gene, index in zip(space.genes, genome, strict=True)}


def is_whole(trial: FrozenTrial, space: GenomeSpace) -> bool:
    """Whether every gene was written before a crash could tear the proposal."""
    return all(gene.name in trial.params for gene in space.genes)
