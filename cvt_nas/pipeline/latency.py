"""Latency of deployed networks as a cost of the search.

A table of parts is measured before the search, and whole networks are measured at its end.
"""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cvt_nas.arch import ArchConfig
from cvt_nas.config import Experiment, with_table_of
from cvt_nas.engine import TrainingSetup
from cvt_nas.errors import ResourceError, RunFolderError
from cvt_nas.export.deployed import Measured, deployed_table, description_of, measure_deployed
from cvt_nas.export.kit import write_kit
from cvt_nas.latency import Deployment, LatencyTable
from cvt_nas.launch.resources import Resources
from cvt_nas.launch.search import Search
from cvt_nas.launch.tasks import on_device as on_worker
from cvt_nas.run import RunFolder, check_target, write_atomically
from cvt_nas.space import SearchSpace


def read_table(file: str | Path) -> LatencyTable:
    """Reads a table that `cvt-nas measure` wrote. Raises RunFolderError if the file does not hold a table."""
    try:
        return LatencyTable.from_json(json.loads(Path(file).read_text(encoding="utf-8")))
    except (OSError, ValueError, RunFolderError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunFolderError(f"--latency-table {file}: cannot be read: {reason}") from error


def check_deployment(experiment: Experiment, table: LatencyTable | None) -> None:
    """Checks a table that is given to a search, or without one the runtime to measure in, before the search begins.

    Raises:
        RunFolderError: The table does not fit the search, or latency plays no part in it.
        ResourceError: The runtime is not installed.
    """
    if table is None:
        if experiment.space.deployment is not None:
            experiment.deployment.check_installed()
        return
    if not experiment.goes_by_latency:
        raise RunFolderError(
            "--latency-table: has no effect: neither latency_ms nor throughput is an objective or a constraint"
        )
    experiment.with_latency(table)


def check_same_table(run: RunFolder, table: LatencyTable | None) -> None:
    """Raises RunFolderError if a resumed run began with another table."""
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
    """`experiment` with the table that `run` began with, else with `table`, else with one that a worker measures now.

    Raises:
        CvtNasError: No network is as fast as the constraints ask, or there are too many parts to measure.
    """
    if run is not None and "latency_table" in run.manifest:
        return with_table_of(run, experiment)
    if table is None:
        table = on_worker(resources, _measure_table, experiment.space, experiment.deployment, setup, seed)
    return experiment.with_latency(table)


def measure_front(search: Search) -> None:
    """Times members of the front in turns, measures their memory, and records both. Members that were measured before
    are skipped.

    It does nothing unless the run uses a table of latencies or its space file has a section `deploy`. It also does
    nothing if the table comes from another kind of machine, since the times would not compare with the predictions.
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
    """Empty if the table was measured on another kind of machine, or in another version of the runtime."""
    torch.set_num_threads(setup.num_threads)
    if table is not None and table.deployment is not None:
        deployment, here = table.deployment, None
        with contextlib.suppress(ModuleNotFoundError, ResourceError):
            here = description_of(deployment, setup.torch_device)
        if not table.is_of(here):
            return []
    return measure_deployed(archs, deployment, device=setup.torch_device)


def measure_locally(
    experiment: Experiment, to: Path, *, num_judged: int, seed: int, on_progress: Callable[[int, int], None]
) -> LatencyTable:
    """Measures a space on this machine, as its section `deploy` says, and writes the table to a file.

    Raises:
        StorageError: The file cannot be written. What can be known before anything is measured is checked then.
    """
    check_target(to)
    deployment = told_deployment(experiment)
    table = deployed_table(
        experiment.space, deployment, device=torch.device(deployment.device),
        num_judged=num_judged, seed=seed, on_progress=on_progress,
    )  # fmt: skip
    write_atomically(to, json.dumps(table.to_json(), indent=1) + "\n")
    return table


def write_kit_of(
    experiment: Experiment, folder: Path, *, num_judged: int, seed: int, on_progress: Callable[[int, int], None]
) -> Deployment:
    """Writes a kit that measures a space on another machine; see `write_kit`. Raises ResourceError if the runtime does
    not run ONNX graphs, or a package is missing here, and StorageError if `folder` is a URL."""
    check_target(folder, makes_folders=True)
    deployment = told_deployment(experiment)
    if not deployment.facts.is_graph:
        raise ResourceError(
            f"deploy.runtime: {deployment.runtime} is not measured by a kit, which runs without torch; "
            f"install cvt-nas there, and run cvt-nas measure local"
        )
    deployment.check_installed()
    write_kit(
        folder, experiment.space.as_deployed, deployment,
        name=experiment.name, num_judged=num_judged, seed=seed, on_progress=on_progress,
    )  # fmt: skip
    return deployment


def told_deployment(experiment: Experiment) -> Deployment:
    """Deployment of the space file without `auto`, outside of a search. The defaults are the first device of the
    runtime, and one thread."""
    deployment = experiment.deployment
    device = deployment.facts.devices[0] if deployment.device == "auto" else deployment.device
    return replace(deployment, device=device, threads=deployment.threads or 1)
