"""Latency as a cost of the search: a table of parts before it, whole networks at its end, on a trial's own device."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import ray
import torch

from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.engine import TrainingSetup
from cvt_nas.engine.latency import Latency, measure_latency, measure_table
from cvt_nas.latency import LatencyTable
from cvt_nas.launch.ranks import get_from_workers
from cvt_nas.launch.resources import Resources
from cvt_nas.launch.search import Search
from cvt_nas.model import load_model
from cvt_nas.run import RunFolder
from cvt_nas.space import SearchSpace

T = TypeVar("T")


def experiment_of(run: RunFolder) -> Experiment:
    """What `run` was begun with: its space file, and its table of latencies where it goes by them."""
    experiment = parse_experiment(run.manifest["space_file"], f"{run.path}/manifest.json")
    return _with_table_of(run, experiment)


def with_latency(
    experiment: Experiment, run: RunFolder | None, setup: TrainingSetup, resources: Resources, *, seed: int
) -> Experiment:
    """`experiment` with the table that its run was begun with, or else with one that a worker measures now.

    Raises:
        CvtNasError: Nothing is as fast as the constraints ask, or there is too much to measure.
    """
    if run is not None and "latency_table" in run.manifest:
        return _with_table_of(run, experiment)
    return experiment.with_latency(_on_worker(resources, _measure_table, experiment.space, setup, seed))


def _with_table_of(run: RunFolder, experiment: Experiment) -> Experiment:
    table = run.manifest.get("latency_table")
    return experiment if table is None else experiment.with_latency(LatencyTable.from_json(table))


def measure_front(search: Search) -> None:
    """Times each member of the front that was not yet, one after the other, and records it.

    Only of a run that goes by latency.
    """
    run, known = search.run, search.run.latencies()
    if "latency_table" not in run.manifest:
        return
    for member in run.front().members:
        if member.arch_id not in known:
            found = _on_worker(search.resources, _measure_model, member.arch_id, search.setup)
            run.append_latency(member.arch_id, found.to_json())


def _on_worker(resources: Resources, measure: Callable[..., T], *arguments: Any) -> T:
    """On one of the trials' devices, with nothing beside it on one that a trial would have for itself."""
    remote: Any = ray.remote(cast(Any, measure))
    limits = {"num_cpus": min(resources.cpus_per_trial, 1), "num_gpus": min(resources.gpus_per_trial, 1)}
    return get_from_workers(remote.options(**limits).remote(*arguments))


def _measure_table(space: SearchSpace, setup: TrainingSetup, seed: int) -> LatencyTable:
    torch.set_num_threads(setup.num_threads)
    return measure_table(space, device=setup.torch_device, seed=seed)


def _measure_model(arch_id: str, setup: TrainingSetup) -> Latency:
    torch.set_num_threads(setup.num_threads)
    return measure_latency(load_model(setup.run.fetched_model(arch_id)), device=setup.torch_device)
