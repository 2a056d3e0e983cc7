"""Private parts of Ray that this package uses. The tests of this module fail if a version changes them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import ray_constants
from ray._private.node import Node

_OF_A_CLUSTER = ("start_api_server", "start_monitor", "start_log_monitor")


@contextmanager
def on_loopback() -> Iterator[None]:
    """Ray's processes that start in the block listen only on loopback.

    Given 127.0.0.1, Ray uses the machine's outer address instead and listens on every interface, unless clusters are
    turned off, as by default on Windows and macOS. This function turns them off for the block.
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
    """Ray starts in the block without dashboard, autoscaler and log monitor.

    A local Ray does not need them, and each takes about a second of CPU time to start.
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
    """Niceness of Ray's workers."""
    return int(os.environ.get(ray_constants.RAY_WORKER_NICENESS, 15))
