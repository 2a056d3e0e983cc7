"""Measures the latency and memory of networks as they will run: in torch, or as ONNX graphs in another runtime."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cvt_nas.arch import ArchConfig, arch_to_dict
from cvt_nas.engine.latency import Latency, check_device, device_name, latency_of
from cvt_nas.engine.latency_table import described, measure_latencies, measure_memory, measure_table, on_device
from cvt_nas.errors import ResourceError
from cvt_nas.export.kit import write_kit, write_network
from cvt_nas.latency import Deployment, LatencyTable, measuring
from cvt_nas.space import SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Measured latency and memory of one network.

    Args:
        memory_mb: Memory in MB, see `measuring.memory_growth`. None if the system does not report it.
    """

    latency: Latency
    memory_mb: float | None

    def to_json(self) -> dict[str, object]:
        return {**self.latency.to_json(), "measured_memory_mb": self.memory_mb}


def description_of(deployment: Deployment, device: torch.device) -> str:
    """Name that a table measured here gives its device.

    Args:
        deployment: With a definite device and number of threads; see `on_device`.
    """
    if deployment.facts.is_graph:
        return measuring.described(deployment.to_json())
    return described(deployment, _place_of(deployment, device))


def deployed_table(
    space: SearchSpace,
    deployment: Deployment,
    *,
    device: torch.device,
    num_judged: int = 12,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> LatencyTable:
    """Measures a table of latencies for `deployment` on this machine; see `measure_table`.

    Args:
        device: Device of a trial. It is used if `deployment.device` is `auto`.
        on_progress: See `write_kit`.

    Raises:
        ResourceError: The runtime is not installed or cannot use the device, or the space has too many parts.
    """
    deployment.check_installed()
    space, deployment = space.as_deployed, on_device(deployment, device)
    if not deployment.facts.is_graph:
        place = _place_of(deployment, device)
        return measure_table(space, device=place, num_judged=num_judged, seed=seed, deployment=deployment)
    with tempfile.TemporaryDirectory() as folder:
        kit = Path(folder) / "kit"
        write_kit(kit, space, deployment, name="the space", num_judged=num_judged, seed=seed, on_progress=on_progress)
        try:
            return LatencyTable.from_json(measuring.measure_kit(kit))
        except RuntimeError as error:
            raise ResourceError(f"deploy.runtime: {error}") from error


def measure_deployed(archs: Sequence[ArchConfig], deployment: Deployment, *, device: torch.device) -> list[Measured]:
    """Times whole networks in turns, and measures the memory of each in a new process. On a GPU, torch measures memory
    in this process.

    Args:
        archs: Their image size does not matter. They are timed with the image size of the deployment.
        device: See `deployed_table`.

    Raises:
        ResourceError: See `deployed_table`.
    """
    deployment.check_installed()
    deployment = on_device(deployment, device)
    archs = [replace(arch, image_size=deployment.image_size) for arch in archs]
    if not deployment.facts.is_graph:
        place = _place_of(deployment, device)
        latencies = measure_latencies(archs, device=place, deployment=deployment)
        memories = [_torch_memory(arch, deployment, place) for arch in archs]
    else:
        latencies, memories = _measure_graphs(archs, deployment)
    return [Measured(latency=one, memory_mb=memory) for one, memory in zip(latencies, memories, strict=True)]


def _measure_graphs(archs: Sequence[ArchConfig], deployment: Deployment) -> tuple[list[Latency], list[float | None]]:
    settings, threads = deployment.to_json(), deployment.threads or 1
    with tempfile.TemporaryDirectory() as folder:
        files = [write_network(arch, Path(folder) / f"{index}", deployment) for index, arch in enumerate(archs)]
        try:
            runs = [measuring.run_of(file, settings) for file in files]
            turns = measuring.time_in_turns(
                runs,
                clock=measuring.clock_of_deployment(settings),
                max_seconds=measuring.WHOLE_SECONDS * len(archs),
            )
            memories = [measuring.measured_memory(file, settings) for file in files]
        except RuntimeError as error:
            raise ResourceError(f"deploy.runtime: {error}") from error
    device = torch.device(deployment.device)
    latencies = [
        replace(
            latency_of(seconds, batch_size=deployment.batch, device=device, runtime=measuring.version_of(settings)),
            device=device_name(device),
            num_threads=threads,
            precision=deployment.precision,
        )
        for seconds in turns.seconds.T.tolist()
    ]
    return latencies, memories


def _place_of(deployment: Deployment, device: torch.device) -> torch.device:
    """The device of a trial if it is of the deployment's kind, else a device of that kind."""
    place = device if device.type == deployment.device else torch.device(deployment.device)
    check_device(place)
    return place


def _torch_memory(arch: ArchConfig, deployment: Deployment, device: torch.device) -> float | None:
    if device.type == "cuda":
        return measure_memory(arch, deployment, device)
    asked = {"arch": arch_to_dict(arch), "deployment": deployment.to_json()}
    done = subprocess.run(
        [sys.executable, "-m", "cvt_nas.export.memory"], input=json.dumps(asked), capture_output=True, text=True,
        check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    return None if done.returncode else json.loads(done.stdout)
