"""Optuna without changes, as a baseline for `Study`."""

import functools
from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler

from cvt_nas.propose.race import Source
from cvt_nas.propose.samplers import derive_seed, distributions_of, genome_of
from cvt_nas.propose.study import Ended, Proposal
from cvt_nas.results import Metric
from cvt_nas.space import GenomeSpace

PLAIN_SAMPLERS: Mapping[str, Callable[..., BaseSampler]] = {
    "optuna-random": RandomSampler,
    "optuna-tpe": TPESampler,
    "optuna-tpe-multivariate": functools.partial(TPESampler, multivariate=True),
    "optuna-nsga2": NSGAIISampler,
    "optuna-nsga3": NSGAIIISampler,
    "optuna-gp": GPSampler,
}


class PlainStudy(Source):
    """A study that may propose the same architecture again."""

    def __init__(self, space: GenomeSpace, *, metrics: Sequence[Metric], sampler: str, seed: int) -> None:
        self._space, self._metrics, self._seed = space, metrics, seed
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(
            directions=["maximize" if metric == "accuracy" else "minimize" for metric in metrics],
            sampler=PLAIN_SAMPLERS[sampler](seed=seed),
        )

    def ask(self) -> Proposal | None:
        trial = self._study.ask(distributions_of(self._space))
        genome = genome_of(self._space, trial.params)
        seed = derive_seed(self._seed, trial.number, "training")
        return Proposal(number=trial.number, genome=genome, cost=self._space.cost(genome), seed=seed)

    def tell(self, ended: Ended, /) -> None:
        if ended.status == "complete":
            values = {"accuracy": ended.curve[-1], "params": ended.cost.params, "flops": ended.cost.flops}
            self._study.tell(ended.number, [values[metric] for metric in self._metrics])
        else:
            self._study.tell(ended.number, state=optuna.trial.TrialState.PRUNED)
