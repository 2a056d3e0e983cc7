"""Latency as a cost of the search: a table of parts before it, whole networks at its end, on a trial's own device."""

from collections.abc import Sequence

import torch

from cvt_nas.arch import ArchConfig
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.engine import TrainingSetup
from cvt_nas.engine.latency import Latency
from cvt_nas.engine.latency_table import measure_latencies, measure_table
from cvt_nas.latency import LatencyTable
from cvt_nas.launch.resources import Resources
from cvt_nas.launch.search import Search
from cvt_nas.launch.tasks import on_device
from cvt_nas.run import RunFolder
from cvt_nas.space import SearchSpace


def experiment_of(run: RunFolder) -> Experiment:
    """What `run` was begun with: its space file, and its table of latencies where it goes by them."""
    experiment = parse_experiment(run.manifest["space_file"], f"{run.path}/manifest.json")
    return _with_table_of(run, experiment)


def with_latency(
    experiment: Experiment, run: RunFolder | None, setup: TrainingSetup, resources: Resources, *, seed: int
) -> Experiment:
    """`experiment` with the table that its run was begun with, or else with one that a worker measures now. Raises
    CvtNasError where nothing is as fast as the constraints ask, or there is too much to measure."""
    if run is not None and "latency_table" in run.manifest:
        return _with_table_of(run, experiment)
    return experiment.with_latency(on_device(resources, _measure_table, experiment.space, setup, seed))


def _with_table_of(run: RunFolder, experiment: Experiment) -> Experiment:
    table = run.manifest.get("latency_table")
    return experiment if table is None else experiment.with_latency(LatencyTable.from_json(table))


def measure_front(search: Search) -> None:
    """Times the members of the front that were not yet, all in turns, and records them.

    Only of a run that goes by latency.
    """
    run, known = search.run, search.run.latencies()
    if "latency_table" not in run.manifest:
        return
    new = {member.arch_id: member.arch for member in run.front().members if member.arch_id not in known}
    if new:
        found = on_device(search.resources, _measure_archs, list(new.values()), search.setup)
        for arch_id, latency in zip(new, found, strict=True):
            run.append_latency(arch_id, latency.to_json())


def _measure_table(space: SearchSpace, setup: TrainingSetup, seed: int) -> LatencyTable:
    torch.set_num_threads(setup.num_threads)
    return measure_table(space, device=setup.torch_device, seed=seed)


def _measure_archs(archs: Sequence[ArchConfig], setup: TrainingSetup) -> list[Latency]:
    torch.set_num_threads(setup.num_threads)
    return measure_latencies(archs, device=setup.torch_device)
