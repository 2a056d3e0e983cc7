"""Optuna's samplers, restricted to feasible and new proposals. They are asked again until they return one.

Each proposal depends only on the seed and the trials told so far. So a resumed search goes on as if it had never been
interrupted.
"""

import hashlib
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from cvt_nas.errors import PluginError, first_line
from cvt_nas.plugins import is_plugin, load_plugin
from cvt_nas.propose.observations import Observation
from cvt_nas.space import Genome, GenomeSpace

SamplerName = Literal["surrogate", "tpe", "nsga2", "gp", "random"]
SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)

_SAMPLER_TRIES = 50
_GP_TRIES = 3  # each try fits the process again, and most find the same maximum
_RANDOM_TRIES = 2_000
_ENUMERABLE = 20_000


class UnseenSampler(BaseSampler):
    """A sampler for a study of Optuna that proposes only feasible and new genomes.

    Args:
        kind: A sampler of Optuna by its name in section `search`, or a plug-in; see `load_sampler`.
        seen: Canonical genomes that were proposed. The owner adds to it.
    """

    def __init__(self, kind: str, space: GenomeSpace, *, seed: int, seen: set[Genome]) -> None:
        self._kind, self._space, self._seed, self._seen = kind, space, seed, seen
        self._plugin = load_sampler(kind) if is_plugin(kind) else None
        self._distributions = distributions_of(space)
        self._fallback: Genome | None = None
        self._inner: BaseSampler = self._make(0)

    def _make(self, number: int) -> BaseSampler:
        seed = derive_seed(self._seed, number, "proposal")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if self._plugin is not None:
                return self._plugin(seed=seed)
            if self._kind == "tpe":
                return TPESampler(n_startup_trials=10, multivariate=True, constant_liar=True, seed=seed)
            if self._kind == "nsga2":
                # Optuna's population of 50 would make the first 50 trials random, and searches here are short
                return NSGAIISampler(population_size=20, seed=seed)
            return GPSampler(seed=seed, n_startup_trials=10, deterministic_objective=False)

    def prepare(self, number: int) -> bool:
        """Prepares the proposal of trial `number`. Returns False if nothing feasible and new is left."""
        self._inner = self._make(number)
        self._fallback = draw_unseen(
            self._space, self._seen, random.Random(derive_seed(self._seed, number, "fallback"))
        )
        return self._fallback is not None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        del study, trial
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        assert self._fallback is not None, "prepare() comes before ask()"
        inner_space = self._inner.infer_relative_search_space(study, trial)
        for _ in range(_GP_TRIES if self._kind == "gp" else _SAMPLER_TRIES):
            params = dict(self._inner.sample_relative(study, trial, inner_space))
            for name, distribution in search_space.items():
                if name not in params:
                    params[name] = self._inner.sample_independent(study, trial, name, distribution)
            if is_new(genome := genome_of(self._space, params), self._space, self._seen):
                return params_of(self._space, self._space.canonical(genome))
        return params_of(self._space, self._fallback)

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


def load_sampler(name: str) -> Callable[..., BaseSampler]:
    """Loads a class or function that makes a sampler of Optuna. It is called with a `seed` before each proposal.

    Args:
        name: `MODULE:NAME`, see `load_plugin`; or `optunahub:NAME`, a package below `samplers/` of OptunaHub.

    Raises:
        PluginError: There is no such plug-in, or it makes no sampler.
    """
    where, _, package = name.partition(":")
    found = _sampler_of_hub(package) if where == "optunahub" else load_plugin(name, "search.sampler")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            made = found(seed=0)
    except Exception as error:
        raise PluginError(f"search.sampler: {name}: cannot be made with seed=0: {first_line(error)}") from error
    if not isinstance(made, BaseSampler):
        raise PluginError(f"search.sampler: {name}: gives no sampler of Optuna's, but {type(made).__name__}")
    return found


def _sampler_of_hub(package: str) -> Callable[..., BaseSampler]:
    try:
        import optunahub

        module = optunahub.load_module(f"samplers/{package}")
    except ImportError as error:
        needed = f"needs {error.name}: pip install {'cvt-nas[optunahub]' if error.name == 'optunahub' else error.name}"
        raise PluginError(f"search.sampler: optunahub:{package}: {needed}") from error
    except Exception as error:  # git's and GitHub's own errors
        raise PluginError(f"search.sampler: optunahub:{package}: cannot be fetched: {first_line(error)}") from error
    names = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    classes = [found for name in names if isinstance(found := getattr(module, name), type)]
    own = [
        found for found in classes if issubclass(found, BaseSampler) and found.__module__.startswith(module.__name__)
    ]
    if len(own) != 1:
        told = ", ".join(found.__name__ for found in own) or "none"
        raise PluginError(f"search.sampler: optunahub:{package}: must have one sampler, has {told}")
    return own[0]


def is_new(genome: Genome, space: GenomeSpace, seen: set[Genome]) -> bool:
    """Whether `genome` is feasible and its canonical form is not in `seen`."""
    return space.canonical(genome) not in seen and space.is_feasible(space.cost(genome))


def draw_unseen(space: GenomeSpace, seen: set[Genome], rng: random.Random) -> Genome | None:
    """A random canonical genome that `is_new`; None if none, or hardly any, is left."""
    for _ in range(_RANDOM_TRIES):
        genome = space.sample_feasible(rng)
        if genome is None:
            break
        if is_new(genome, space, seen):
            return space.canonical(genome)
    return next((genome for genome in space.all_genomes(_ENUMERABLE) or () if is_new(genome, space, seen)), None)


def observation_of(trial: FrozenTrial, space: GenomeSpace) -> Observation:
    """The observation of a trial of Optuna for a surrogate. A paused trial counts as stopped."""
    genome = genome_of(space, trial.params)
    progress = progress_of(trial)
    epoch_seconds = progress.train_seconds / len(progress.curve) if progress.curve else None
    if trial.state == TrialState.RUNNING:
        status = "stopped" if progress.is_paused else "running"
        return Observation(genome=genome, curve=progress.curve, status=status, epoch_seconds=epoch_seconds or None)
    status = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "stopped"}.get(trial.state, "failed")
    curve = tuple(trial.user_attrs.get("curve", ()))
    return Observation(genome=genome, curve=curve, status=status, epoch_seconds=epoch_seconds or None)


class Progress(NamedTuple):
    """Progress of a trial in flight, as stored by its study.

    Args:
        curve: Accuracy after each epoch.
        seconds: Seconds spent on the trial. `train_seconds` of them were in epochs.
    """

    curve: tuple[float, ...] = ()
    seconds: float = 0.0
    train_seconds: float = 0.0
    is_paused: bool = False


_EPOCHS = 16  # epochs of a curve in one attribute, so that long trainings do not add more to a journal in each epoch


def progress_to_attrs(progress: Progress, known: Mapping[str, object]) -> dict[str, object]:
    """The attributes of a trial that store `progress`, in the order in which they must be written.

    Each whole part of the curve has its own attribute, which is written once. Optuna's intermediate values are not used
    for the curve, because Optuna's TPE cannot rank stopped trials by them if there are several objectives.

    Args:
        known: Attributes that the trial already has.
    """
    begin = len(progress.curve) // _EPOCHS * _EPOCHS
    parts = {_part(at): list(progress.curve[at : at + _EPOCHS]) for at in range(0, begin, _EPOCHS)}
    rest = {**progress._asdict(), "begin": begin, "curve": list(progress.curve[begin:])}
    fresh = {name: part for name, part in parts.items() if known.get(name) != part}
    return {**fresh, "progress": rest}


def progress_of(trial: FrozenTrial) -> Progress:
    """Progress of a trial in flight, empty before its first report. Earlier versions kept the curve in one piece."""
    attrs = trial.user_attrs
    if (kept := attrs.get("progress")) is None:
        return Progress()
    curve = [accuracy for at in range(0, kept.get("begin", 0), _EPOCHS) for accuracy in attrs[_part(at)]]
    return Progress(
        curve=(*curve, *kept["curve"]),
        seconds=kept["seconds"],
        train_seconds=kept["train_seconds"],
        is_paused=bool(kept.get("is_paused")),
    )


def _part(begin: int) -> str:
    return f"accuracy, epochs {begin + 1} to {begin + _EPOCHS}"


def derive_seed(*parts: int | str) -> int:
    """A seed of 31 bits that depends only on `parts`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little") >> 1


def distributions_of(space: GenomeSpace) -> dict[str, BaseDistribution]:
    """Optuna's distributions of the genes. Ordinal genes are integers, so that samplers can use their order."""
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
    """Whether all genes of a proposal were written. A crash can leave a part of them."""
    return all(gene.name in trial.params for gene in space.genes)
