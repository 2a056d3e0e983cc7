"""Chooses how training steps run on the GPUs of a search. It is measured once, and is the same for all trials."""

import dataclasses
from collections.abc import Callable

import torch

from cvt_nas.arch import ArchConfig
from cvt_nas.config import Experiment
from cvt_nas.config.values import Compiling
from cvt_nas.engine import TrainingSetup
from cvt_nas.engine.speed import FastestWay, fastest_way
from cvt_nas.launch.resources import Resources
from cvt_nas.launch.tasks import on_device
from cvt_nas.plan.machine import three_networks
from cvt_nas.run import RunFolder


def with_fastest_way(
    experiment: Experiment,
    run: RunFolder | None,
    setup: TrainingSetup,
    resources: Resources,
    *,
    on_note: Callable[[str], None] | None = None,
) -> tuple[TrainingSetup, dict[str, object]]:
    """Replaces `training.compile: auto` by the fastest way, if trials train on a GPU.

    The fastest way is measured for the median network of the space, on one worker with a trial's share of a GPU. A
    resumed `run` keeps the way that it began with.

    Returns:
        The new setup, and entries for the manifest.
    """
    if setup.device != "cuda" or setup.training.compile != "auto" or experiment.training.epochs == 0:
        return setup, {}
    if run is not None:
        known = run.manifest.get("compile", {"fastest": "auto"})
        return _by(setup, known["fastest"]), {}
    arch = experiment.space.decode(three_networks(experiment)["median"])
    found = on_device(resources, _measure, setup, arch, resources.num_workers)
    if found is None:
        return setup, {}
    if on_note is not None:
        on_note(f"training.compile: {found.describe()}")
    return _by(setup, found.fastest), {"compile": found.to_json()}


def _by(setup: TrainingSetup, way: Compiling) -> TrainingSetup:
    return dataclasses.replace(setup, training=dataclasses.replace(setup.training, compile=way))


def _measure(setup: TrainingSetup, arch: ArchConfig, num_devices: int) -> FastestWay | None:
    torch.set_num_threads(setup.num_threads)
    return fastest_way(
        arch, setup.training, setup.open_data(),
        device=setup.torch_device, num_devices=num_devices, memory_share=setup.memory_share,
    )  # fmt: skip
