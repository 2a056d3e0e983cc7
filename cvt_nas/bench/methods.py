"""Search methods that are compared. Each has a sampler and a scheduler."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cvt_nas.bench.table import Table
from cvt_nas.errors import TableError
from cvt_nas.plugins import is_plugin
from cvt_nas.propose.asha import RANKINGS, Asha
from cvt_nas.propose.freeze_thaw import FreezeThaw
from cvt_nas.propose.plain import PLAIN_SAMPLERS, PlainStudy
from cvt_nas.propose.race import OnRungs, Race, Source
from cvt_nas.propose.samplers import SAMPLERS
from cvt_nas.propose.simulation import Search
from cvt_nas.propose.study import Study
from cvt_nas.results import Metric
from cvt_nas.space import COST_METRICS

SCHEDULERS = ("freeze-thaw", "pareto-asha", "asha", "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Settings that all methods of a comparison share.

    Args:
        budget: Number of epochs that each search may spend.
        num_workers: Number of trials side by side.
    """

    metrics: tuple[Metric, ...]
    budget: int
    num_workers: int = 4
    grace_period: int = 1
    reduction_factor: int = 3


class SearchMethod(Protocol):
    """A search method. Its `str` is its name in a comparison. It is pickled if searches run in other processes."""

    def start(self, table: Table, settings: Settings, *, seed: int) -> Search: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A sampler and a scheduler, written `surrogate+pareto-asha`, or `surrogate+pareto-asha:stop`."""

    sampler: str
    scheduler: str
    mode: Literal["stop", "promote"] = "promote"

    def __str__(self) -> str:
        return f"{self.sampler}+{self.scheduler}{':stop' if self.mode == 'stop' else ''}"

    def start(self, table: Table, settings: Settings, *, seed: int) -> Race:
        study = _study_of(table, self.sampler, settings.metrics, seed)
        if self.scheduler == "none":
            return Race(study)
        if self.scheduler == "freeze-thaw":
            assert isinstance(study, Study), "methods_of has checked it"
            return Race(study, FreezeThaw(study, num_epochs=table.num_epochs))
        asha = Asha(
            max_epochs=table.num_epochs,
            grace_period=settings.grace_period,
            reduction_factor=settings.reduction_factor,
            ranking=RANKINGS[self.scheduler],
            mode=self.mode,
        )
        return Race(study, OnRungs(asha, settings.metrics))


def metrics_of(names: Sequence[str]) -> tuple[Metric, ...]:
    """The objectives, accuracy first. Raises TableError if a name is unknown, or if accuracy is missing or alone."""
    known: tuple[Metric, ...] = ("accuracy", *COST_METRICS)  # a table has no other costs
    for name in names:
        if name not in known:
            raise TableError(f"--objectives: got {name}, must be of {', '.join(known)}")
    if "accuracy" not in names or len(set(names)) < 2:
        raise TableError(f"--objectives: got {','.join(names)}, must be accuracy and params, flops or both")
    return tuple(metric for metric in known if metric in names)


def methods_of(samplers: Sequence[str], schedulers: Sequence[str]) -> list[Method]:
    """Every sampler with every scheduler, each pair once. A scheduler with `:stop` makes final decisions at rungs.

    Raises TableError if a name is unknown.
    """
    methods = []
    for sampler, scheduler in itertools.product(samplers, schedulers):
        name, _, mode = scheduler.partition(":")
        known = (*SAMPLERS, *PLAIN_SAMPLERS)
        if sampler not in known and not is_plugin(sampler):
            raise TableError(f"--searcher: got {sampler}, must be one of {', '.join(known)}, or MODULE:NAME")
        if name not in SCHEDULERS or mode not in ("", "stop", "promote") or (mode and name not in RANKINGS):
            raise TableError(f"--scheduler: got {scheduler}, must be one of {', '.join(SCHEDULERS)}, or asha:stop, "
                             f"pareto-asha:stop")  # fmt: skip
        if name == "freeze-thaw" and sampler != "surrogate":
            raise TableError(f"--scheduler freeze-thaw: goes by what the surrogate expects, not with {sampler}")
        methods.append(Method(sampler=sampler, scheduler=name, mode="stop" if mode == "stop" else "promote"))
    return list(dict.fromkeys(methods))


def _study_of(table: Table, sampler: str, metrics: Sequence[Metric], seed: int) -> Source:
    if sampler in PLAIN_SAMPLERS:
        return PlainStudy(table, metrics=metrics, sampler=sampler, seed=seed)
    return Study(table, metrics=metrics, sampler=sampler, num_trials=None, num_epochs=table.num_epochs, seed=seed)
