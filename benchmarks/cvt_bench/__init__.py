"""CvT-Bench as a problem in the manner of OptunaHub.

From a checkout: `optunahub.load_local_module("cvt_bench", registry_root="benchmarks")`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.study import StudyDirection
from optunahub.benchmarks import BaseProblem

from cvt_nas.bench import load_table, ready_tables
from cvt_nas.config import load_experiment
from cvt_nas.results import hypervolume

Objective = Literal["accuracy", "params", "flops"]


class CvTBench(BaseProblem):
    """Trained CvT networks, of which a search looks for the Pareto front.

    A parameter is the index of an option of one choice, in rising order; `options` has what each index stands for. The
    table has part of the space: what is evaluated is the row nearest to the parameters, and the costs are that row's.

    Args:
        objectives: What is returned, in this order. Accuracy is a fraction of the search split after the last epoch.
        seed: Of the training that is seen, 0 to 2; the mean of a network's trainings where it is None, or where the
            network was not trained with this seed.
        table: The name of a ready table.

    Raises:
        ValueError: An objective or the table is unknown, or the seed is below 0.
    """

    def __init__(
        self,
        objectives: Sequence[Objective] = ("accuracy", "params", "flops"),
        *,
        seed: int | None = 0,
        table: str = "cvt-bench",
    ) -> None:
        if wrong := set(objectives) - set(get_args(Objective)):
            raise ValueError(f"objectives: got {', '.join(wrong)}, must be {', '.join(get_args(Objective))}")
        if seed is not None and seed < 0:
            raise ValueError(f"seed: got {seed}, must be None or a whole number from 0")
        if table not in ready_tables():
            raise ValueError(f"table: got {table!r}, must be {', '.join(ready_tables())}")
        self.table = load_table(table)
        space = load_experiment(ready_tables()[table].with_suffix(".yaml")).space
        self.objectives, self._seed = tuple(objectives), seed
        self.options = {gene.name: gene.options for gene in space.genes}
        self._is_ordinal = {gene.name: gene.is_ordinal for gene in space.genes}

    @property
    def search_space(self) -> dict[str, BaseDistribution]:
        return {
            name: IntDistribution(0, len(options) - 1)
            if self._is_ordinal[name]
            else CategoricalDistribution(range(len(options)))
            for name, options in self.options.items()
        }

    @property
    def directions(self) -> list[StudyDirection]:
        return [StudyDirection.MAXIMIZE if name == "accuracy" else StudyDirection.MINIMIZE for name in self.objectives]

    @property
    def metric_names(self) -> list[str]:
        return list(self.objectives)

    def curve(self, params: Mapping[str, Any]) -> list[float]:
        """Accuracy after each epoch, for schedulers that stop trials early."""
        curves = self.table.curves[self._row(params)]
        is_seen = self._seed is not None and self._seed < len(curves)
        return (curves[self._seed] if is_seen else curves.mean(axis=0)).tolist()

    def evaluate(self, params: Mapping[str, Any]) -> list[float]:
        cost = self.table.costs[self._row(params)]
        return [self.curve(params)[-1] if name == "accuracy" else getattr(cost, name) for name in self.objectives]

    def share_of_hypervolume(self, evaluated: Iterable[Mapping[str, Any]]) -> float:
        """Of all that the table's true front dominates, by accuracies that are means over seeds.

        The reference point is an accuracy of 0 and 1.02 times the greatest cost.
        """
        rows = list({self._row(params) for params in evaluated})
        losses = self.table.losses(self.objectives)
        return hypervolume(losses[rows]) / self.table.hypervolume(self.objectives)

    def _row(self, params: Mapping[str, Any]) -> int:
        return self.table.rows[self.table.canonical([int(params[name]) for name in self.options])]


def main() -> None:
    """TPE against random search, 100 trainings each."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    problem = CvTBench()
    for sampler in (optuna.samplers.TPESampler(seed=0), optuna.samplers.RandomSampler(seed=0)):
        study = optuna.create_study(directions=problem.directions, sampler=sampler)
        study.optimize(problem, n_trials=100)
        share = problem.share_of_hypervolume(trial.params for trial in study.trials)
        print(f"{type(sampler).__name__}: {share:.4f} of the hypervolume")


if __name__ == "__main__":
    main()
