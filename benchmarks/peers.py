"""What people search with today, on the tables, the simulated clock and the budgets of `cvt-nas bench`.

The peers' own searchers and schedulers, called as their controllers call them; no cluster, no backend, no waiting.
A proposal that is no row of the table stands for the nearest; what was proposed before is trained again, and counted.

- `ray-optuna+asha`, `ray-optuna+fifo`: Ray Tune's `OptunaSearch` with a list of metrics and its default sampler,
  and `ASHAScheduler` on accuracy, or none. A trial that the scheduler stops is told to Optuna as complete, with the
  values of its last epoch: so does Tune.
- `optunahub-tpe`, `optunahub-gp`: OptunaHub's `MultiMetricPruner` around a `MedianPruner`, with Optuna's TPE or GP. It
  prunes by the non-domination rank of all objectives. `load_module` downloads it, or `OPTUNAHUB_REGISTRY` names a copy
  of the registry's folder `package`.
- `syne-tune-moasha`: `MOASHA`, which proposes at random. In 0.16.0 its rungs take the indices of the sorted trials
  for their ranks, so that whom they stop depends on more than the losses; `random+pareto-asha` is near to what it
  means.
- `syne-tune-morea`: `MultiObjectiveRegularizedEvolution`, random until its population of 100 is full, which takes
  the same indices for scores; `syne-tune-morea:20` has a population of 20, since searches here are short.
- `syne-tune-ehvi`: expected hypervolume improvement by Gaussian processes on all objectives. It negates losses and
  then takes 2 as the reference point, which nothing exceeds; `syne-tune-ehvi:shifted` is told losses less 3, so that
  its reference point is the one by which searches are judged. Either takes seconds a proposal, and has to be named.

- `pymoo-nsga2`, `smac-parego`, `ax`, `neps-moasha`, `neps-primo`: see `ask_tell_peers.py`. They have to be named, and
  installed: NePS and Ax need different versions of botorch, so each has an environment of its own.

Searchers and schedulers of `cvt-nas bench` can be named as well, and are then compared with the peers, pair by pair.
With `--keep FILE` each search is kept when it has ended, and is not run again. Peers of different environments can so
be compared: run them one after the other, and name all of them in the last call, which runs nothing. `--attainment
FILE` draws the fronts that one, half and all of the searches of each method attain, beside those of the first method.

    pip install syne-tune "botorch<0.18"  # or pymoo smac neural-pipeline-search; or ax-platform
    python benchmarks/peers.py --table benchmarks/tables/nas_bench_201_cifar100.parquet --budget 200 --workers 1 \\
        --searcher surrogate --scheduler none --keep cifar100.jsonl --json
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna

import ask_tell_peers
from attained import PICTURES, write_attained
from cvt_nas import bench
from cvt_nas.arch import Cost
from cvt_nas.bench import SearchMethod, Settings, Table
from cvt_nas.errors import CvtNasError, TableError
from cvt_nas.propose.asha import Decision
from cvt_nas.propose.samplers import derive_seed, distributions_of
from cvt_nas.propose.simulation import Outcome, Search
from cvt_nas.propose.study import Proposal
from cvt_nas.results import Metric
from traces import keep_trace, read_traces

FAST_PEERS = ("ray-optuna+asha", "ray-optuna+fifo", "syne-tune-moasha", "syne-tune-morea", "syne-tune-morea:20")
SLOW_PEERS = ("optunahub-tpe", "optunahub-gp", "syne-tune-ehvi", "syne-tune-ehvi:shifted")  # or not installed
PEERS = (*FAST_PEERS, *SLOW_PEERS, *ask_tell_peers.NAMES)
TIME_ATTR = "training_iteration"
EHVI_SHIFT = 3.0  # losses in [0, 1] become rewards in [2, 3]


@dataclass(frozen=True, slots=True)
class Peer:
    """One of `PEERS`."""

    name: str

    def __str__(self) -> str:
        return self.name

    def start(self, table: Table, settings: Settings, *, seed: int) -> Search:
        kind, _, variant = self.name.partition(":")
        if self.name in ask_tell_peers.NAMES:
            return ask_tell_peers.start(self.name, table, settings, seed=seed)
        if kind.startswith("ray-optuna"):
            return _ray_tune(table, settings, kind.partition("+")[2], seed)
        if kind.startswith("optunahub"):
            return MultiMetric(table, settings, kind.removeprefix("optunahub-"), seed)
        return _syne_tune(table, settings, kind, variant, seed)


@dataclass(slots=True)
class Trial:
    """What the peers' schedulers read of a trial."""

    trial_id: Any
    config: dict[str, Any]
    last_result: dict[str, Any] = field(default_factory=dict)


def _proposal(table: Table, number: int, config: Mapping[str, Any], seed: int) -> Proposal:
    genome = tuple(int(config.get(gene.name, 0)) for gene in table.genes)  # a gene without a choice may be left out
    training_seed = derive_seed(seed, number, "training")
    return Proposal(number=number, genome=genome, cost=table.cost(genome), seed=training_seed)


def _values(metrics: Sequence[Metric], curve: Sequence[float], cost: Cost) -> dict[str, float]:
    """What a trial has reached, by metric."""
    values = {"accuracy": curve[-1], "params": cost.params, "flops": cost.flops}
    return {metric: values[metric] for metric in metrics}


class RayTune:
    """A searcher and a scheduler of Ray Tune, called as its controller calls them.

    Args:
        searcher: Proposes, and is told only `metrics`.
    """

    def __init__(self, table: Table, metrics: Sequence[Metric], searcher: Any, scheduler: Any, seed: int) -> None:
        self._table, self._metrics, self._seed = table, metrics, seed
        self.searcher, self.scheduler = searcher, scheduler
        self._trials: list[Trial] = []

    def ask(self) -> Proposal | None:
        number = len(self._trials)
        trial = Trial(trial_id=f"{number:05d}", config=self.searcher.suggest(f"{number:05d}"))
        self._trials.append(trial)
        self.scheduler.on_trial_add(None, trial)
        return _proposal(self._table, number, trial.config, self._seed)

    def decide(self, proposal: Proposal, curve: tuple[float, ...], *, train_seconds: float) -> Decision:
        del train_seconds
        return "stop" if self._report(self._trials[proposal.number], curve, proposal.cost) == "STOP" else "go"

    def tell(self, ended: Outcome) -> None:
        trial = self._trials[ended.number]
        if ended.status == "complete":  # the last epoch is reported as any other; a stopped trial has reported it
            self._report(trial, ended.curve, ended.cost)
        self.scheduler.on_trial_complete(None, trial, trial.last_result)
        self.searcher.on_trial_complete(trial.trial_id, result=trial.last_result)

    def _report(self, trial: Trial, curve: Sequence[float], cost: Cost) -> str:
        trial.last_result = {TIME_ATTR: len(curve), **_values(self._metrics, curve, cost)}
        decision = self.scheduler.on_trial_result(None, trial, trial.last_result)
        if decision != "STOP":
            self.searcher.on_trial_result(trial.trial_id, trial.last_result)
        return decision


def _ray_tune(table: Table, settings: Settings, scheduler: str, seed: int) -> RayTune:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    searcher = OptunaSearch(
        distributions_of(table),
        metric=list(settings.metrics),
        mode=["max" if metric == "accuracy" else "min" for metric in settings.metrics],
        seed=seed,
    )
    if scheduler == "fifo":
        return RayTune(table, settings.metrics, searcher, FIFOScheduler(), seed)
    asha = ASHAScheduler(
        time_attr=TIME_ATTR,
        metric="accuracy",
        mode="max",
        max_t=table.num_epochs,
        grace_period=settings.grace_period,
        reduction_factor=settings.reduction_factor,
    )
    return RayTune(table, settings.metrics, searcher, asha, seed)


class MultiMetric:
    """A sampler of Optuna with OptunaHub's pruner for several objectives."""

    def __init__(self, table: Table, settings: Settings, sampler: str, seed: int) -> None:
        import optunahub

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        name, root = "pruners/multi_metric_pruner", os.environ.get("OPTUNAHUB_REGISTRY")
        hub = optunahub.load_module(name) if root is None else optunahub.load_local_module(name, registry_root=root)
        samplers = {"tpe": optuna.samplers.TPESampler, "gp": optuna.samplers.GPSampler}
        maximize, minimize = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        directions = [maximize if metric == "accuracy" else minimize for metric in settings.metrics]
        pruner = hub.MultiMetricPruner(
            optuna.pruners.MedianPruner(),
            metric_directions=dict(zip(settings.metrics, directions, strict=True)),
            joint=True,
        )
        self._study = optuna.create_study(directions=directions, sampler=samplers[sampler](seed=seed), pruner=pruner)
        self._table, self._metrics, self._seed = table, settings.metrics, seed
        self._wrapped, self._trials = hub.MultiMetricPrunerTrial, list[Any]()

    def ask(self) -> Proposal | None:
        trial = self._study.ask(distributions_of(self._table))
        self._trials.append(self._wrapped(trial))
        return _proposal(self._table, trial.number, trial.params, self._seed)

    def decide(self, proposal: Proposal, curve: tuple[float, ...], *, train_seconds: float) -> Decision:
        del train_seconds
        trial = self._trials[proposal.number]
        trial.report(_values(self._metrics, curve, proposal.cost), step=len(curve))
        return "stop" if trial.should_prune() else "go"

    def tell(self, ended: Outcome) -> None:
        if ended.status == "complete":
            self._study.tell(ended.number, list(_values(self._metrics, ended.curve, ended.cost).values()))
        else:
            self._study.tell(ended.number, state=optuna.trial.TrialState.PRUNED)


class SyneTune:
    """A scheduler of syne-tune, called as its tuner calls it.

    It minimises every objective, and compares them as they are, so they are told on the scale of the hypervolume:
    1 - accuracy, and costs as shares of the reference point.

    Args:
        shift: Taken off every loss.
    """

    def __init__(self, table: Table, metrics: Sequence[Metric], scheduler: Any, seed: int, shift: float = 0.0) -> None:
        self._table, self._metrics, self._seed, self._shift = table, metrics, seed, shift
        self.scheduler = scheduler
        self._trials: list[Trial] = []

    def ask(self) -> Proposal | None:
        suggestion = self.scheduler.suggest()
        if suggestion is None:
            return None
        number = len(self._trials)
        trial = Trial(trial_id=number, config=suggestion.config)
        self._trials.append(trial)
        self.scheduler.on_trial_add(trial)
        return _proposal(self._table, number, trial.config, self._seed)

    def decide(self, proposal: Proposal, curve: tuple[float, ...], *, train_seconds: float) -> Decision:
        del train_seconds
        return "stop" if self._report(self._trials[proposal.number], curve, proposal.cost) == "STOP" else "go"

    def tell(self, ended: Outcome) -> None:
        trial = self._trials[ended.number]
        if ended.status == "complete" and self._report(trial, ended.curve, ended.cost) != "STOP":
            self.scheduler.on_trial_complete(trial, trial.last_result)
        else:  # what the scheduler itself stops, if only because it is at the last epoch, is not told as complete
            self.scheduler.on_trial_remove(trial)

    def _report(self, trial: Trial, curve: Sequence[float], cost: Cost) -> str:
        _, greatest = self._table.cost_range
        losses = {
            metric: 1 - curve[-1] if metric == "accuracy" else getattr(cost, metric) / getattr(greatest, metric)
            for metric in self._metrics
        }
        shifted = {metric: loss - self._shift for metric, loss in losses.items()}
        trial.last_result = {TIME_ATTR: len(curve), **shifted}
        return self.scheduler.on_trial_result(trial, trial.last_result)


def _syne_tune(table: Table, settings: Settings, kind: str, variant: str, seed: int) -> SyneTune:
    from syne_tune.config_space import choice, randint  # pyright: ignore[reportMissingImports]

    np.random.seed(seed)  # what is drawn at random is drawn from the global generator, whatever `random_seed` says
    space = {
        gene.name: randint(0, len(gene.options) - 1) if gene.is_ordinal else choice(list(range(len(gene.options))))
        for gene in table.genes
        if len(gene.options) > 1
    }
    metrics = list(settings.metrics)
    shift = 0.0
    if kind == "syne-tune-moasha":
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA  # pyright: ignore[reportMissingImports]

        scheduler = MOASHA(
            space,
            metrics=metrics,
            time_attr=TIME_ATTR,
            max_t=table.num_epochs,
            grace_period=settings.grace_period,
            reduction_factor=settings.reduction_factor,
            random_seed=seed,
        )
    elif kind == "syne-tune-ehvi":
        # imported here since syne-tune, which does without where it can, would fail only at the first fit
        import botorch  # noqa: F401 # pyright: ignore[reportMissingImports]
        import torch
        from syne_tune.optimizer.baselines import EHVI  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(1)  # the matrices are small: more threads only wait for each other
        warnings.filterwarnings("ignore", module=r"(botorch|gpytorch|linear_operator)\.")  # some at every fit
        scheduler, shift = EHVI(space, metrics=metrics, random_seed=seed), EHVI_SHIFT if variant else 0.0
    else:
        from syne_tune.optimizer.schedulers.multiobjective import (  # pyright: ignore[reportMissingImports]
            MultiObjectiveRegularizedEvolution,
        )
        from syne_tune.optimizer.schedulers.single_fidelity_scheduler import (  # pyright: ignore[reportMissingImports]
            SingleFidelityScheduler,
        )

        population = {"population_size": int(variant)} if variant else {}
        searcher = MultiObjectiveRegularizedEvolution(space, random_seed=seed, **population)
        scheduler = SingleFidelityScheduler(space, metrics=metrics, searcher=searcher, random_seed=seed)
    return SyneTune(table, settings.metrics, scheduler, seed, shift)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--peers", type=_list, default=list(FAST_PEERS), help="of those above; '' for none")
    parser.add_argument("--searcher", type=_list, default=[], help="as in cvt-nas bench")
    parser.add_argument("--scheduler", type=_list, default=["none"], help="as in cvt-nas bench")
    parser.add_argument("--objectives", type=_list, default=["accuracy", "flops"])
    parser.add_argument("--budget", type=int, required=True, help="epochs of each search")
    parser.add_argument("--workers", type=int, default=4, help="trials side by side; simulated")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--grace-period", type=int, default=1)
    parser.add_argument("--reduction-factor", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="searches at the same time")
    parser.add_argument("--keep", type=Path, help="where searches are kept line by line, and found again")
    parser.add_argument("--attainment", type=Path, help="where to draw the fronts that are attained: .html, .png")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.peers if name not in PEERS]:
        parser.error(f"--peers: got {', '.join(unknown)}, must be of {', '.join(PEERS)}")
    if options.attainment is not None and options.attainment.suffix not in PICTURES:
        parser.error(f"--attainment: got {options.attainment}, must end in {', '.join(PICTURES)}")
    try:
        summary = _compare(options)
    except CvtNasError as error:
        parser.error(str(error))
    if options.json:
        print(json.dumps({"table": str(options.table), **summary}))
        return
    for name, found in summary["methods"].items():
        means = {share: np.mean(values) for share, values in found["hypervolume"].items()}
        print(f"{name:32}" + "  ".join(f"{float(share):.0%} {mean:.4f}" for share, mean in means.items()))


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    metrics = bench.metrics_of(options.objectives)
    methods: list[SearchMethod] = [*bench.methods_of(options.searcher, options.scheduler), *map(Peer, options.peers)]
    if options.attainment is not None and len(methods) < 2:
        raise TableError(f"--attainment: compares two methods or more, got {len(methods)}")
    table = bench.load_table(options.table)
    settings = Settings(
        metrics=metrics,
        budget=options.budget,
        num_workers=options.workers,
        grace_period=options.grace_period,
        reduction_factor=options.reduction_factor,
    )
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    runs = _runs_of(table, [(method, seed) for seed in seeds for method in methods], settings, options)
    if options.attainment is not None:
        title = f"{options.table.stem}, {options.budget} epochs"
        traces = {str(one): [trace for method, _, _, trace in runs if method == one] for one in methods}
        write_attained(table, settings, traces, options.attainment, title=title)
    return {"objectives": list(metrics), **bench.summarise(runs, settings)}


def _runs_of(
    table: Table, tasks: Sequence[tuple[SearchMethod, int]], settings: Settings, options: argparse.Namespace
) -> list[bench.Run]:
    """Runs what is not kept yet. All are returned, in the order of `tasks`."""
    traces = {} if options.keep is None else read_traces(options.keep, table, settings)
    missing = [(method, seed) for method, seed in tasks if (str(method), seed) not in traces]
    found = bench.run_all(table, missing, settings, processes=options.processes)
    for number, (method, seed, values, trace) in enumerate(found, start=1):
        key = (str(method), seed)
        traces[key] = trace
        if options.keep is not None:
            keep_trace(options.keep, table, settings, key, trace)
        print(f"seed {seed}, {method}: {values[-1]:.4f}, {number}/{len(missing)}", file=sys.stderr)
    kept = [(method, seed, traces[str(method), seed]) for method, seed in tasks]
    return [(method, seed, bench.anytime_hypervolume(table, trace, settings), trace) for method, seed, trace in kept]


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    main()
