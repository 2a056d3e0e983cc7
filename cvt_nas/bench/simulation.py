"""Runs searches on a table, on a simulated clock, and measures the quality of their results."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np

from cvt_nas.bench.methods import SearchMethod, Settings
from cvt_nas.bench.table import Table
from cvt_nas.errors import TableError
from cvt_nas.processes import end_with_parent
from cvt_nas.propose.simulation import Asked, run_clock
from cvt_nas.propose.study import Proposal
from cvt_nas.results import hypervolume, is_non_dominated


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """Trace of a simulated search.

    Args:
        trained: Epochs spent so far and row in the table, for each architecture that was trained in full.
        num_trials: Number of trials.
        num_duplicates: Number of trials whose architecture an earlier trial had.
        ask_seconds: Seconds of each proposal of a new trial.
    """

    trained: tuple[tuple[int, int], ...]
    num_trials: int
    num_duplicates: int
    ask_seconds: tuple[float, ...]


def simulate(table: Table, method: SearchMethod, settings: Settings, *, seed: int) -> Trace:
    """Runs one search on the table, until its budget of epochs is spent.

    Workers are asynchronous. A trial takes its epochs times its seconds per epoch.
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


def anytime_hypervolume(table: Table, trace: Trace, settings: Settings) -> np.ndarray:
    """True hypervolume of the fully trained architectures after each epoch, `(budget,)`, as a share of the table's."""
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
    """Runs every method with every seed, seed by seed, so that a comparison that is stopped early is still paired."""
    return run_all(table, [(method, seed) for seed in seeds for method in methods], settings, processes=processes)


def run_all(
    table: Table, tasks: Sequence[tuple[SearchMethod, int]], settings: Settings, *, processes: int = 1
) -> Iterator[Run]:
    """Runs each method with its seed, in the order of `tasks`; in this process if `processes` is 1.

    Raises TableError if the budget is too small for a single full training.
    """
    if settings.budget < table.num_epochs:
        raise TableError(f"--budget {settings.budget}: a full training takes {table.num_epochs} epochs")
    if processes == 1:
        yield from (_run_one(table, settings, method, seed) for method, seed in tasks)
        return
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_hold, initargs=(table, settings, os.getpid())
    ) as pool:
        yield from pool.map(_run, tasks)


_held: list[Any] = []


def _hold(table: Table, settings: Settings, parent: int) -> None:
    end_with_parent(parent)
    _held[:] = [table, settings]


def _run(task: tuple[SearchMethod, int]) -> Run:
    (method, seed), (table, settings) = task, _held
    return _run_one(table, settings, method, seed)


def _run_one(table: Table, settings: Settings, method: SearchMethod, seed: int) -> Run:
    trace = simulate(table, method, settings, seed=seed)
    return method, seed, anytime_hypervolume(table, trace, settings), trace
