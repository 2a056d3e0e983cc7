"""Searches on a table instead of training: the same study, rungs and rankings, on a simulated clock.

A table has one row for each architecture and seed: a column for each gene (`g0`, `g1`, ... ordinal, `c0`, ...
categorical; option indices), `params`, `flops`, `acc_1` to `acc_E` (accuracy on the search split after each
epoch), and optionally `seed` and `seconds_per_epoch`. What a search sees is one seed of an architecture, drawn at
random; what it is judged by is the mean over the seeds.
"""

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
import optuna
import pandas as pd
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from scipy.stats import wilcoxon

from cvt_nas.arch import Cost
from cvt_nas.errors import TableError
from cvt_nas.propose.asha import Asha, accuracy_ranks, pareto_ranks
from cvt_nas.propose.race import Race, Source
from cvt_nas.propose.samplers import SAMPLERS, SamplerName, derive_seed, distributions_of, genome_of
from cvt_nas.propose.simulation import Asked, Search, run_clock
from cvt_nas.propose.study import Ended, Proposal, Study
from cvt_nas.results import Metric, hypervolume, is_non_dominated
from cvt_nas.space import COST_METRICS, Gene, Genome

SCHEDULERS = ("pareto-asha", "asha", "none")
FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.125, 0.2, 0.25, 0.5, 1.0)
LEVELS = (0.9, 0.95, 0.99)
_REFERENCE = 1.02  # of the greatest cost in the table


@dataclass(frozen=True)
class Table:
    """A table as a space that samplers can search: its members are its rows, and nothing else.

    Args:
        genes: Ordinal and categorical choices.
        rows: Index of each genome.
        costs: Of each genome.
        curves: For each genome its seeds' curves, `(seeds, epochs)`.
        seconds_per_epoch: Of each genome.
    """

    genes: tuple[Gene, ...]
    rows: dict[Genome, int]
    costs: tuple[Cost, ...]
    curves: tuple[np.ndarray, ...]
    seconds_per_epoch: np.ndarray
    _nearest: dict[Genome, Genome] = field(default_factory=dict, repr=False)
    _hypervolumes: dict[tuple[Metric, ...], float] = field(default_factory=dict, repr=False)

    @cached_property
    def genomes(self) -> list[Genome]:
        return list(self.rows)

    @cached_property
    def _genome_array(self) -> np.ndarray:
        return np.array(self.genomes)

    @property
    def num_epochs(self) -> int:
        return self.curves[0].shape[1]

    @property
    def cost_range(self) -> tuple[Cost, Cost]:
        """From nothing to the reference point."""
        params, flops = (max(getattr(cost, name) for cost in self.costs) for name in ("params", "flops"))
        return Cost(params=0, flops=0), Cost(params=int(_REFERENCE * params), flops=int(_REFERENCE * flops))

    def cost(self, genome: Sequence[int]) -> Cost:
        return self.costs[self.rows[self.canonical(genome)]]

    def costs_of(self, genomes: np.ndarray) -> dict[Genome, Cost]:
        """Of the rows nearest to `genomes`, each once."""
        nearest = dict.fromkeys(self.canonical(genome) for genome in genomes.tolist())
        return {genome: self.cost(genome) for genome in nearest}

    def canonical(self, genome: Sequence[int]) -> Genome:
        """The row nearest to `genome`: samplers that do not know the rows propose what is not in the table."""
        genome = tuple(genome)
        if genome in self.rows:
            return genome
        if genome not in self._nearest:
            spans = np.array([max(len(gene.options) - 1, 1) if gene.is_ordinal else 0 for gene in self.genes])
            away = np.abs(self._genome_array - np.array(genome))
            distances = np.where(spans > 0, away / np.maximum(spans, 1), away != 0).sum(axis=1)
            self._nearest[genome] = self.genomes[int(np.argmin(distances))]
        return self._nearest[genome]

    def arch_id(self, genome: Sequence[int]) -> str:
        return str(self.rows[self.canonical(genome)])

    def is_feasible(self, cost: Cost) -> bool:
        del cost
        return True

    def sample_feasible(self, rng: random.Random) -> Genome | None:
        return rng.choice(self.genomes)

    def all_genomes(self, limit: int) -> list[Genome] | None:
        return self.genomes if len(self.rows) <= limit else None

    def true_accuracies(self) -> np.ndarray:
        """At the last epoch, the mean over seeds, of each row."""
        return np.array([curves[:, -1].mean() for curves in self.curves])

    def losses(self, metrics: Sequence[Metric]) -> np.ndarray:
        """True losses of each row, scaled so that the reference point is all ones."""
        _, greatest = self.cost_range
        columns = [
            1 - self.true_accuracies()
            if metric == "accuracy"
            else np.array([getattr(cost, metric) for cost in self.costs]) / getattr(greatest, metric)
            for metric in metrics
        ]
        return np.stack(columns, axis=1)

    def hypervolume(self, metrics: Sequence[Metric]) -> float:
        """True hypervolume of all the rows; measured once, since thousands of them take seconds."""
        if tuple(metrics) not in self._hypervolumes:
            self._hypervolumes[tuple(metrics)] = hypervolume(self.losses(metrics))
        return self._hypervolumes[tuple(metrics)]


def load_table(path: Path) -> Table:
    """Reads a table from CSV or parquet.

    Raises:
        TableError: It cannot be read, lacks columns, or holds values that make no sense.
    """
    try:
        frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise TableError(f"{path}: cannot be read: {error}") from error
    columns = [str(name) for name in frame.columns]
    genes = sorted((name for name in columns if re.fullmatch(r"[gc]\d+", name)), key=lambda name: int(name[1:]))
    epochs = sorted((name for name in columns if re.fullmatch(r"acc_\d+", name)), key=lambda name: int(name[4:]))
    if missing := [name for name in COST_METRICS if name not in columns]:
        raise TableError(f"{path}: lacks the columns {', '.join(missing)}")
    if not genes or not epochs:
        raise TableError(f"{path}: needs a column for each gene (g0, g1, ... or c0, c1, ...), and acc_1 to acc_E")
    if [int(name[4:]) for name in epochs] != list(range(1, len(epochs) + 1)):
        raise TableError(f"{path}: got {', '.join(epochs)}, must be acc_1 to acc_{len(epochs)}")
    try:
        options = frame[genes].to_numpy(dtype=int)
        costs = frame[list(COST_METRICS)].to_numpy(dtype=int)
        curves = frame[epochs].to_numpy(dtype=float)
        seconds = frame["seconds_per_epoch"].to_numpy(dtype=float) if "seconds_per_epoch" in columns else None
    except ValueError as error:
        raise TableError(f"{path}: {error}") from error
    if not ((curves >= 0) & (curves <= 1)).all():  # a cell that is empty fails too
        raise TableError(f"{path}: accuracies must be fractions in [0, 1]")
    if (options < 0).any() or (costs <= 0).any():
        raise TableError(f"{path}: genes must be option indices from 0, params and flops above 0")
    members: dict[Genome, list[int]] = {}
    for index, genome in enumerate(map(tuple, options.tolist())):
        members.setdefault(genome, []).append(index)
    members = dict(sorted(members.items()))
    firsts = [indices[0] for indices in members.values()]
    return Table(
        genes=tuple(
            Gene(
                name=name, stage=0, block=None, choice="projection" if name[0] == "c" else "depth",
                options=tuple(range(int(options[:, position].max()) + 1)),
            )
            for position, name in enumerate(genes)
        ),
        rows={genome: row for row, genome in enumerate(members)},
        costs=tuple(Cost(params=int(costs[first, 0]), flops=int(costs[first, 1])) for first in firsts),
        curves=tuple(curves[indices] for indices in members.values()),
        seconds_per_epoch=np.array(
            [1.0 if seconds is None else seconds[indices].mean() for indices in members.values()]
        ),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A sampler and a scheduler, written `surrogate+pareto-asha`, or `surrogate+pareto-asha:stop`."""

    sampler: str
    scheduler: str
    mode: Literal["stop", "promote"] = "promote"

    def __str__(self) -> str:
        return f"{self.sampler}+{self.scheduler}{':stop' if self.mode == 'stop' else ''}"

    def start(self, table: Table, settings: "Settings", *, seed: int) -> "Race":
        asha = None
        if self.scheduler != "none":
            asha = Asha(
                max_epochs=table.num_epochs,
                grace_period=settings.grace_period,
                reduction_factor=settings.reduction_factor,
                ranking=pareto_ranks if self.scheduler == "pareto-asha" else accuracy_ranks,
                mode=self.mode,
            )
        return Race(_study_of(table, self.sampler, settings.metrics, seed), asha, settings.metrics)


def metrics_of(names: Sequence[str]) -> tuple[Metric, ...]:
    """The objectives, accuracy first.

    Raises:
        TableError: A name is unknown, accuracy is missing, or it is alone.
    """
    for name in names:
        if name not in get_args(Metric):
            raise TableError(f"--objectives: got {name}, must be of {', '.join(get_args(Metric))}")
    if "accuracy" not in names or len(set(names)) < 2:
        raise TableError(f"--objectives: got {','.join(names)}, must be accuracy and params, flops or both")
    return tuple(metric for metric in get_args(Metric) if metric in names)


def methods_of(samplers: Sequence[str], schedulers: Sequence[str]) -> list[Method]:
    """Every sampler with every scheduler, a scheduler with `:stop` where a rung decides for good.

    Raises:
        TableError: A name is unknown.
    """
    methods = []
    for sampler, scheduler in itertools.product(samplers, schedulers):
        name, _, mode = scheduler.partition(":")
        if sampler not in (*SAMPLERS, *PLAIN_SAMPLERS):
            raise TableError(f"--searcher: got {sampler}, must be one of {', '.join((*SAMPLERS, *PLAIN_SAMPLERS))}")
        if name not in SCHEDULERS or mode not in ("", "stop", "promote") or (mode and name == "none"):
            raise TableError(f"--scheduler: got {scheduler}, must be one of {', '.join(SCHEDULERS)}, or asha:stop, "
                             f"pareto-asha:stop")  # fmt: skip
        methods.append(Method(sampler=sampler, scheduler=name, mode="stop" if mode == "stop" else "promote"))
    return methods


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """What one simulated search did.

    Args:
        trained: For each architecture that was trained in full, the epochs spent by then and its row.
        num_duplicates: Trials of an architecture that an earlier trial had.
        ask_seconds: Of each proposal.
    """

    trained: tuple[tuple[int, int], ...]
    num_trials: int
    num_duplicates: int
    ask_seconds: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What all the methods of a comparison share.

    Args:
        budget: Epochs that each search may spend.
        num_workers: Trials side by side, on the simulated clock.
        grace_period, reduction_factor: Of the schedulers that have rungs.
    """

    metrics: tuple[Metric, ...]
    budget: int
    num_workers: int = 4
    grace_period: int = 1
    reduction_factor: int = 3


class SearchMethod(Protocol):
    """A way to search, whose `str` is its name in a comparison; pickled where searches run in other processes."""

    def start(self, table: Table, settings: Settings, *, seed: int) -> Search: ...


def simulate(table: Table, method: SearchMethod, settings: Settings, *, seed: int) -> Trace:
    """One search on the table, until its budget of epochs is spent.

    Workers are asynchronous; a trial takes its epochs times its seconds per epoch.
    """
    trained, asks, seen, spent = [], [], [], 0

    def row_of(proposal: Proposal) -> int:
        return table.rows[table.canonical(proposal.genome)]

    def curve_of(proposal: Proposal) -> np.ndarray:
        curves = table.curves[row_of(proposal)]
        return curves[proposal.seed % len(curves)]

    for event in run_clock(
        method.start(table, settings, seed=seed),
        num_slots=settings.num_workers,
        num_epochs=table.num_epochs,
        curve_of=curve_of,
        epoch_seconds=lambda proposal: table.seconds_per_epoch[row_of(proposal)],
    ):
        if isinstance(event, Asked):
            if event.is_new:
                asks.append(event.seconds)
                seen.append(row_of(event.proposal))
            continue
        spent += 1
        if event.is_complete:
            trained.append((spent, row_of(event.proposal)))
        if spent >= settings.budget:
            break
    return Trace(
        trained=tuple(trained), num_trials=len(seen), num_duplicates=len(seen) - len(set(seen)),
        ask_seconds=tuple(asks),
    )  # fmt: skip


def _study_of(table: Table, sampler: str, metrics: Sequence[Metric], seed: int) -> "Study | PlainStudy":
    if sampler in SAMPLERS:
        name = cast(SamplerName, sampler)
        return Study(table, metrics=metrics, sampler=name, storage=InMemoryStorage(), num_trials=None, seed=seed)
    return PlainStudy(table, metrics=metrics, sampler=_plain_sampler(sampler, seed), seed=seed)


PLAIN_SAMPLERS = ("optuna-random", "optuna-tpe", "optuna-tpe-multivariate", "optuna-nsga2", "optuna-nsga3", "optuna-gp")


def _plain_sampler(name: str, seed: int) -> BaseSampler:
    if name == "optuna-tpe":
        return optuna.samplers.TPESampler(seed=seed)
    if name == "optuna-tpe-multivariate":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)
    if name == "optuna-nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    if name == "optuna-nsga3":
        return optuna.samplers.NSGAIIISampler(seed=seed)
    if name == "optuna-gp":
        return optuna.samplers.GPSampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


class PlainStudy(Source):
    """Optuna as it ships, which may propose what it proposed before: the baseline of `Study`."""

    def __init__(self, table: Table, *, metrics: Sequence[Metric], sampler: BaseSampler, seed: int) -> None:
        self._table, self._metrics, self._seed = table, metrics, seed
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(
            directions=["maximize" if metric == "accuracy" else "minimize" for metric in metrics], sampler=sampler
        )

    def ask(self) -> Proposal | None:
        trial = self._study.ask(distributions_of(self._table))
        genome = genome_of(self._table, trial.params)
        seed = derive_seed(self._seed, trial.number, "training")
        return Proposal(number=trial.number, genome=genome, cost=self._table.cost(genome), seed=seed)

    def tell(self, ended: Ended, /) -> None:
        if ended.status == "complete":
            values = {"accuracy": ended.curve[-1], "params": ended.cost.params, "flops": ended.cost.flops}
            self._study.tell(ended.number, [values[metric] for metric in self._metrics])
        else:
            self._study.tell(ended.number, state=optuna.trial.TrialState.PRUNED)


def anytime_hypervolume(table: Table, trace: Trace, settings: Settings) -> np.ndarray:
    """After each epoch, `(budget,)`: true hypervolume of what was trained in full, as a share of the whole table's."""
    losses, budget = table.losses(settings.metrics), settings.budget
    whole = table.hypervolume(settings.metrics)
    values, front = np.zeros(budget), np.empty((0, losses.shape[1]))
    known: set[int] = set()
    for spent, row in trace.trained:
        if spent > budget or row in known:
            continue
        known.add(row)
        front = np.vstack([front, losses[row]])
        front = front[is_non_dominated(front)]
        values[spent - 1 :] = hypervolume(front) / whole
    return values


Run = tuple[SearchMethod, int, np.ndarray, Trace]


def compare(
    table: Table, methods: Sequence[SearchMethod], settings: Settings, *, seeds: Sequence[int], processes: int = 1
) -> Iterator[Run]:
    """Every method with every seed, seed by seed, so that a comparison that is stopped early is still paired.

    Yields:
        Method, seed, hypervolume after each epoch, and what was done.
    """
    tasks = [(method, seed) for seed in seeds for method in methods]
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_hold, initargs=(table, settings)
    ) as pool:
        yield from pool.map(_run, tasks)


_held: list[Any] = []


def _hold(table: Table, settings: Settings) -> None:
    _held[:] = [table, settings]


def _run(task: tuple[SearchMethod, int]) -> Run:
    (method, seed), (table, settings) = task, _held
    trace = simulate(table, method, settings, seed=seed)
    return method, seed, anytime_hypervolume(table, trace, settings), trace


def summarise(runs: Sequence[Run], settings: Settings) -> dict[str, Any]:
    """For each method: hypervolume at shares of the budget, epochs to reach levels, area, duplicates, time to ask."""
    budget = settings.budget
    by_method: dict[str, list[tuple[np.ndarray, Trace]]] = {}
    for method, _, values, trace in runs:
        by_method.setdefault(str(method), []).append((values, trace))
    areas = {name: [_log_area(values) for values, _ in found] for name, found in by_method.items()}
    summary: dict[str, Any] = {}
    for name, found in by_method.items():
        asks = np.concatenate([trace.ask_seconds for _, trace in found])
        summary[name] = {
            "hypervolume": {
                f"{fraction:g}": [round(float(v[max(int(fraction * budget), 1) - 1]), 6) for v, _ in found]
                for fraction in FRACTIONS
            },
            "epochs_to": {f"{level:g}": [_epochs_to(values, level) for values, _ in found] for level in LEVELS},
            "log_area": [round(area, 6) for area in areas[name]],
            "duplicates": [trace.num_duplicates for _, trace in found],
            "trials": [trace.num_trials for _, trace in found],
            "ask_ms": {"median": round(1e3 * float(np.median(asks)), 3), "max": round(1e3 * float(asks.max()), 3)},
            "p_value_against": {
                other: _p_value(areas[name], areas[other])
                for other in by_method
                if other != name and len(areas[other]) == len(areas[name])
            },
        }
    return {"budget": budget, "methods": summary}


def _log_area(values: np.ndarray) -> float:
    """Mean of the hypervolume over the logarithm of the epochs spent."""
    epochs = np.arange(1, len(values) + 1)
    weights = np.diff(np.log(np.append(epochs, len(values) + 1)))
    return float((values * weights).sum() / weights.sum())


def _epochs_to(values: np.ndarray, level: float) -> int | None:
    reached = np.flatnonzero(values >= level)
    return int(reached[0]) + 1 if len(reached) else None


def _p_value(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Paired Wilcoxon, two-sided; None where the pairs do not differ."""
    if np.allclose(ours, theirs):
        return None
    result: Any = wilcoxon(ours, theirs)
    return float(result.pvalue)


def plot(runs: Sequence[Run], settings: Settings, path: Path) -> None:
    """Median hypervolume of each method over the epochs spent, with its quartiles."""
    import plotly.graph_objects as go

    by_method: dict[str, list[np.ndarray]] = {}
    for method, _, values, _ in runs:
        by_method.setdefault(str(method), []).append(values)
    epochs = np.arange(1, settings.budget + 1)
    figure = go.Figure()
    for index, (name, found) in enumerate(by_method.items()):
        low, middle, high = np.percentile(np.stack(found), [25, 50, 75], axis=0)
        color = _COLORS[index % len(_COLORS)]
        figure.add_scatter(
            x=np.concatenate([epochs, epochs[::-1]]), y=np.concatenate([high, low[::-1]]), fill="toself",
            fillcolor=color, opacity=0.15, line={"width": 0}, hoverinfo="skip", legendgroup=name, showlegend=False,
        )  # fmt: skip
        figure.add_scatter(x=epochs, y=middle, name=name, legendgroup=name, line={"color": color, "shape": "hv"})
    figure.update_layout(
        template="plotly_white",
        xaxis={"type": "log", "title": "epochs spent"},
        yaxis={"title": "hypervolume, share of the table's"},
        title=f"{', '.join(settings.metrics)}; median and quartiles of {len(next(iter(by_method.values())))} seeds",
    )
    figure.write_html(path, include_plotlyjs=True)


# Okabe and Ito's colours, told apart also by the colour-blind
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
