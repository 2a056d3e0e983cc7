"""Latency as a cost of the search: a table of parts before it, whole networks at its end, as they are deployed."""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cvt_nas.arch import ArchConfig
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.engine import TrainingSetup
from cvt_nas.errors import ResourceError, RunFolderError
from cvt_nas.export.deployed import Measured, check_runtime, deployed_table, description_of, measure_deployed
from cvt_nas.export.kit import write_kit
from cvt_nas.latency import Deployment, LatencyTable
from cvt_nas.launch.resources import Resources
from cvt_nas.launch.search import Search
from cvt_nas.launch.tasks import on_device as on_worker
from cvt_nas.run import RunFolder
from cvt_nas.space import SearchSpace


def experiment_of(run: RunFolder) -> Experiment:
    """What `run` was begun with: its space file, and its table of latencies where it goes by them."""
    experiment = parse_experiment(run.manifest["space_file"], f"{run.path}/manifest.json")
    return _with_table_of(run, experiment)


def read_table(file: str | Path) -> LatencyTable:
    """A table that `cvt-nas measure` wrote. Raises RunFolderError where the file holds none."""
    try:
        return LatencyTable.from_json(json.loads(Path(file).read_text(encoding="utf-8")))
    except (OSError, ValueError, RunFolderError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunFolderError(f"--latency-table {file}: cannot be read: {reason}") from error


def check_deployment(experiment: Experiment, table: LatencyTable | None) -> None:
    """Raises, before anything is spent, what a table that was given for a search has wrong, or ResourceError where the
    search would measure in a runtime that is not here."""
    if table is None:
        if experiment.space.deployment is not None:
            check_runtime(experiment.deployment)
        return
    if not experiment.goes_by_latency:
        raise RunFolderError(
            "--latency-table: has no effect: neither latency_ms nor throughput is an objective or a constraint"
        )
    experiment.with_latency(table)


def check_same_table(run: RunFolder, table: LatencyTable | None) -> None:
    """Raises RunFolderError where a run that is resumed was begun with another table."""
    if table is not None and run.manifest.get("latency_table") != json.loads(json.dumps(table.to_json())):
        raise RunFolderError("--latency-table: is not the table that the run was begun with; leave it out")


def with_latency(
    experiment: Experiment,
    run: RunFolder | None,
    setup: TrainingSetup,
    resources: Resources,
    *,
    seed: int,
    table: LatencyTable | None = None,
) -> Experiment:
    """`experiment` with the table that its run was begun with, or with the one that is given, or else with one that a
    worker measures now. Raises CvtNasError where nothing is as fast as the constraints ask, or there is too much to
    measure."""
    if run is not None and "latency_table" in run.manifest:
        return _with_table_of(run, experiment)
    if table is None:
        table = on_worker(resources, _measure_table, experiment.space, experiment.deployment, setup, seed)
    return experiment.with_latency(table)


def _with_table_of(run: RunFolder, experiment: Experiment) -> Experiment:
    table = run.manifest.get("latency_table")
    return experiment if table is None else experiment.with_latency(LatencyTable.from_json(table))


def measure_front(search: Search) -> None:
    """Times the members of the front that were not yet, all in turns, measures their memory, and records both.

    Only of a run that goes by latency, or whose space file says how networks are deployed; and only where its table is
    of this kind of machine: measured elsewhere, the members would not compare with what was predicted of them.
    """
    run, space, known = search.run, search.experiment.space, search.run.latencies()
    if "latency_table" not in run.manifest and "deploy" not in run.manifest:
        return
    new = {member.arch_id: member.arch for member in run.front().members if member.arch_id not in known}
    if not new:
        return
    table = space.latency
    found = on_worker(
        search.resources, _measure_archs, list(new.values()), search.experiment.deployment, table, search.setup
    )
    for arch_id, measured in zip(new, found, strict=False):
        run.append_latency(arch_id, measured.to_json())


def _measure_table(space: SearchSpace, deployment: Deployment, setup: TrainingSetup, seed: int) -> LatencyTable:
    torch.set_num_threads(setup.num_threads)
    return deployed_table(space, deployment, device=setup.torch_device, seed=seed)


def _measure_archs(
    archs: Sequence[ArchConfig], deployment: Deployment, table: LatencyTable | None, setup: TrainingSetup
) -> list[Measured]:
    """Nothing where the table was measured on another kind of machine, or in another version of the runtime."""
    torch.set_num_threads(setup.num_threads)
    if table is not None and table.deployment is not None:
        deployment, here = table.deployment, None
        with contextlib.suppress(ModuleNotFoundError, ResourceError):
            here = description_of(deployment, setup.torch_device)
        if here != table.device:
            return []
    return measure_deployed(archs, deployment, device=setup.torch_device)


def measure_locally(
    experiment: Experiment, to: Path, *, num_judged: int, seed: int, on_progress: Callable[[int, int], None]
) -> LatencyTable:
    """Measures the space of a file on this machine, as its section `deploy` says, and writes the table to a file."""
    deployment = told_deployment(experiment)
    table = deployed_table(
        experiment.space, deployment, device=torch.device(deployment.device),
        num_judged=num_judged, seed=seed, on_progress=on_progress,
    )  # fmt: skip
    to.write_text(json.dumps(table.to_json(), indent=1) + "\n", encoding="utf-8")
    return table


def write_kit_of(
    experiment: Experiment, folder: Path, *, num_judged: int, seed: int, on_progress: Callable[[int, int], None]
) -> Deployment:
    """Writes what measures the space of a file on another machine; see `write_kit`. Raises ResourceError where the
    runtime is none of ONNX graphs, or the files cannot be written here."""
    deployment = told_deployment(experiment)
    if not deployment.facts.is_graph:
        raise ResourceError(
            f"deploy.runtime: {deployment.runtime} is not measured by a kit, which runs without torch; "
            f"install cvt-nas there, and run cvt-nas measure local"
        )
    check_runtime(deployment)
    write_kit(
        folder, experiment.space.as_deployed, deployment,
        name=experiment.name, num_judged=num_judged, seed=seed, on_progress=on_progress,
    )  # fmt: skip
    return deployment


def told_deployment(experiment: Experiment) -> Deployment:
    """That of the space file where no trial says what `auto` is: the runtime's first device, and one thread."""
    deployment = experiment.deployment
    device = deployment.facts.devices[0] if deployment.device == "auto" else deployment.device
    return replace(deployment, device=device, threads=deployment.threads or 1)
