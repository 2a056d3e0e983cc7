"""What this package uses of Ray beyond its public interface. The tests of this module say when a version changes it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import ray_constants
from ray._private.node import Node

_OF_A_CLUSTER = ("start_api_server", "start_monitor", "start_log_monitor")


@contextmanager
def on_loopback() -> Iterator[None]:
    """Ray's processes that start in the block listen on loopback alone.

    Told to use 127.0.0.1, Ray replaces it by the machine's outer address and listens on every interface, except
    where clusters are switched off, as they are by default on Windows and macOS. So they are, for the block.
    """
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    was_enabled, before = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"  # for this process, and for those of Ray
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = was_enabled
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def without_services() -> Iterator[None]:
    """A Ray that starts in the block has no dashboard, no autoscaler, and nobody who passes logs on.

    A Ray of one process alone uses none of them, and each takes about a second of CPU time to start.
    """
    kept = {name: getattr(Node, name) for name in _OF_A_CLUSTER}
    for name in kept:
        setattr(Node, name, _start_nothing)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


def _start_nothing(*_: object, **__: object) -> None: ...


def worker_niceness() -> int:
    """How nice Ray's workers are to other processes."""
    return int(os.environ.get(ray_constants.RAY_WORKER_NICENESS, 15))
