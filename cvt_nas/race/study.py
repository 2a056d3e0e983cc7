"""The record of a search: what Optuna proposed, and how each trial ended.

Optuna's journal and `trials.jsonl` are the truth; whoever trains only reports to them. A proposal is
always feasible and new: the sampler is asked again until it is, and then replaced by an even draw.
"""

import hashlib
import itertools
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from cvt_nas.arch import ArchConfig, Cost, cost_of
from cvt_nas.config import Experiment
from cvt_nas.results import RunFolder, TrialResult
from cvt_nas.space import Genome, SearchSpace

_STUDY_NAME = "cvt-nas"
_SAMPLER_TRIES = 50
_RANDOM_TRIES = 2_000
_ENUMERABLE = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """An architecture to train, feasible and new.

    Args:
        number: Of the trial, in the run and in the study.
        seed: Of its training.
    """

    number: int
    arch: ArchConfig
    cost: Cost
    seed: int


class Study:
    """Ask and tell on a run's journal.

    Opening a run that was interrupted settles what its record already holds, and makes `ask` begin
    with the trials that were in flight.

    Args:
        seed: Of proposals and of the trials' trainings.
    """

    def __init__(self, experiment: Experiment, run: RunFolder, *, num_trials: int, seed: int) -> None:
        self._space, self._run, self._num_trials, self._seed = experiment.space, run, num_trials, seed
        self._metrics = experiment.objectives
        self._seen: set[str] = set()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._sampler = _UnseenSampler(experiment, seed, self._seen)
        self._study = optuna.create_study(
            study_name=_STUDY_NAME,
            storage=JournalStorage(JournalFileBackend(str(run.journal_path))),
            directions=["maximize" if metric == "accuracy" else "minimize" for metric in self._metrics],
            sampler=self._sampler,
            load_if_exists=True,
        )
        if hasattr(self._study, "set_metric_names"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study.set_metric_names(list(self._metrics))
        self._orphans: list[FrozenTrial] = []
        self._exhausted = False
        self._resume()
        for name, genome in experiment.anchors.items():
            self._study.enqueue_trial(
                _params_of(experiment.space, genome), user_attrs={"anchor": name}, skip_if_exists=True
            )

    def _resume(self) -> None:
        recorded = {result.number: result for result in self._run.results()}
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state == TrialState.WAITING:
                continue
            if trial.state == TrialState.RUNNING:
                if trial.number in recorded:  # recorded, then killed before Optuna was told
                    self._tell_optuna(recorded[trial.number])
                elif _is_whole(trial, self._space):
                    self._orphans.append(trial)
                else:  # killed while Optuna was writing the proposal: nothing was trained
                    self._study.tell(trial.number, state=TrialState.FAIL)
                    continue
            if _is_whole(trial, self._space):
                self._seen.add(self._space.decode(_genome_of(self._space, trial.params)).id)

    @property
    def num_asked(self) -> int:
        """Trials that were launched, in this process or an earlier one."""
        return len(self._seen)

    @property
    def is_done(self) -> bool:
        """Whether every trial that was launched has ended, and no further one would be launched."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return not running and (self._exhausted or self.num_asked >= self._num_trials)

    def ask(self) -> Proposal | None:
        """The next architecture to train: first those in flight when the run was interrupted, then anchors.

        Returns:
            None where the number of trials is reached, or the space holds nothing feasible that is new.
        """
        if self._orphans:
            return self._proposal(self._orphans.pop(0))
        if self.num_asked >= self._num_trials:
            return None
        number = len(self._study.get_trials(deepcopy=False, states=None))
        if not self._sampler.prepare(number):
            self._exhausted = True
            return None
        trial = self._study.ask(_distributions(self._space))
        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        proposal = self._proposal(frozen)
        self._seen.add(proposal.arch.id)
        trial.set_user_attr("arch_id", proposal.arch.id)
        trial.set_user_attr("choices", _choices_of(self._space, frozen.params))
        return proposal

    def _proposal(self, trial: FrozenTrial) -> Proposal:
        arch = self._space.decode(_genome_of(self._space, trial.params))
        return Proposal(
            number=trial.number, arch=arch, cost=cost_of(arch), seed=derive_seed(self._seed, trial.number, "training")
        )

    def tell(self, result: TrialResult) -> None:
        """Records a trial, on disk when this returns: in `trials.jsonl`, then in Optuna's journal."""
        self._run.append(result)
        self._tell_optuna(result)

    def _tell_optuna(self, result: TrialResult) -> None:
        """Complete trials with their values, stopped ones as pruned, all others as failed."""
        storage = self._study._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self._study._study_id, result.number)
        attributes = {"status": result.status, "epochs": result.epochs, "curve": list(result.curve)}
        for name, value in {**attributes, "params": result.cost.params, "flops": result.cost.flops}.items():
            storage.set_trial_user_attr(trial_id, name, value)
        if result.status == "complete":
            self._study.tell(result.number, [result.metric(metric) for metric in self._metrics])
        elif result.status == "stopped":
            self._study.tell(result.number, state=TrialState.PRUNED)
        else:
            storage.set_trial_user_attr(trial_id, "reason", result.reason or "")
            self._study.tell(result.number, state=TrialState.FAIL)


def derive_seed(*parts: int | str) -> int:
    """A seed of 31 bits that is a function of `parts`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little") >> 1


class _UnseenSampler(BaseSampler):
    """Optuna's own sampler, asked again until it proposes something feasible that was not trained yet.

    Each proposal comes from a sampler made for it alone, seeded by the trial's number: so it is a function
    of the seed and of the trials told so far, and a resumed search goes on as if never interrupted.

    Args:
        seen: Ids of the architectures that were proposed; the owner adds to it.
    """

    def __init__(self, experiment: Experiment, seed: int, seen: set[str]) -> None:
        self._kind, self._space, self._seed, self._seen = experiment.search.sampler, experiment.space, seed, seen
        self._distributions = _distributions(experiment.space)
        self._fallback: Genome | None = None
        self._inner = self._make(0)

    def _make(self, number: int) -> BaseSampler:
        seed = derive_seed(self._seed, number, "proposal")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if self._kind == "random":
                return RandomSampler(seed)
            if self._kind == "nsga2":
                # Optuna's population of 50 makes the first 50 trials random; searches here are short
                return NSGAIISampler(population_size=20, seed=seed)
            return TPESampler(n_startup_trials=10, multivariate=True, constant_liar=True, seed=seed)

    def prepare(self, number: int) -> bool:
        """Readies the sampler of trial `number`; False where nothing feasible and new is left."""
        self._inner = self._make(number)
        self._fallback = self._draw_unseen(random.Random(derive_seed(self._seed, number, "fallback")))
        return self._fallback is not None

    def _is_new(self, genome: Genome) -> bool:
        arch = self._space.decode(genome)
        return arch.id not in self._seen and self._space.is_feasible(cost_of(arch))

    def _draw_unseen(self, rng: random.Random) -> Genome | None:
        for _ in range(_RANDOM_TRIES):
            genome = self._space.sample_feasible(rng)
            if genome is not None and self._is_new(genome):
                return genome
            if genome is None:
                break
        if self._space.size > _ENUMERABLE:
            return None
        options = [range(len(gene.options)) for gene in self._space.genes]
        return next((genome for genome in itertools.product(*options) if self._is_new(genome)), None)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        del study, trial
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        inner_space = self._inner.infer_relative_search_space(study, trial)
        for _ in range(_SAMPLER_TRIES):
            params = dict(self._inner.sample_relative(study, trial, inner_space))
            for name, distribution in search_space.items():
                if name not in params:
                    params[name] = self._inner.sample_independent(study, trial, name, distribution)
            if self._is_new(_genome_of(self._space, params)):
                return params
        assert self._fallback is not None, "prepare() comes before ask()"
        return _params_of(self._space, self._fallback)

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


def _distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Ordinal genes as integers, so that samplers can use their order."""
    return {
        gene.name: IntDistribution(0, len(gene.options) - 1)
        if gene.is_ordinal
        else CategoricalDistribution(tuple(range(len(gene.options))))
        for gene in space.genes
    }


def _genome_of(space: SearchSpace, params: Mapping[str, Any]) -> Genome:
    return tuple(int(params[gene.name]) for gene in space.genes)


def _params_of(space: SearchSpace, genome: Genome) -> dict[str, int]:
    return {gene.name: index for gene, index in zip(space.genes, genome, strict=True)}


def _choices_of(space: SearchSpace, params: Mapping[str, Any]) -> dict[str, Any]:
    """What the indices mean, for whoever opens the journal in optuna-dashboard."""
    return {gene.name: gene.options[int(params[gene.name])] for gene in space.genes}


def _is_whole(trial: FrozenTrial, space: SearchSpace) -> bool:
    return all(gene.name in trial.params for gene in space.genes)
