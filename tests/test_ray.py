"""What the package relies on in Ray beyond its public interface; see cvt_nas/launch/private.py."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private import ray_constants
from ray._private.node import Node

from conftest import own_processes
from cvt_nas.launch.cluster import local_ray
from cvt_nas.launch.private import on_loopback, without_services, worker_niceness


@pytest.mark.parametrize(
    ("name", "kind"), [("ENABLE_RAY_CLUSTER", bool), ("ENABLE_RAY_CLUSTERS_ENV_VAR", str), ("RAY_WORKER_NICENESS", str)]
)
def test_ray_still_has_the_constants_that_are_used(name: str, kind: type) -> None:
    found = getattr(ray_constants, name, None)
    assert isinstance(found, kind), f"Ray {ray.__version__} has no ray_constants.{name}; see cvt_nas/launch/private.py"


def test_the_switch_of_clusters_is_as_it_was_after_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    monkeypatch.delenv(name, raising=False)
    was_enabled = ray_constants.ENABLE_RAY_CLUSTER
    with on_loopback():
        assert (ray_constants.ENABLE_RAY_CLUSTER, os.environ[name]) == (False, "0")
    assert was_enabled == ray_constants.ENABLE_RAY_CLUSTER
    assert name not in os.environ


def test_ray_starts_its_services_after_the_block_as_before() -> None:
    names = ("start_api_server", "start_monitor", "start_log_monitor")
    before = [getattr(Node, name, None) for name in names]
    assert all(map(callable, before)), f"Ray {ray.__version__} starts others; see cvt_nas/launch/private.py"
    with without_services():
        assert not {getattr(Node, name) for name in names} & set(before)
    assert [getattr(Node, name) for name in names] == before


def test_the_niceness_of_workers_is_as_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_niceness() == 0
    monkeypatch.delenv("RAY_worker_niceness")
    assert worker_niceness() == 15


def test_workers_are_as_nice_as_told_and_a_ray_of_its_own_is_lean_and_listens_on_loopback_alone() -> None:
    with local_ray(num_cpus=1, num_gpus=0):
        assert not own_processes("dashboard.py") + own_processes("monitor.py")
        assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0) + worker_niceness()
        inodes = {inode for pid in (os.getpid(), *own_processes("ray")) for inode in sockets_of(pid)}
        listening = [
            fields[1].split(":")[0]
            for table in ("tcp", "tcp6")
            for fields in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:])
            if fields[3] == "0A" and fields[9] in inodes
        ]
    assert listening
    outside = {address for address in listening if not address.endswith("0100007F")}
    assert not outside, f"Ray {ray.__version__} listens elsewhere, too: {outside}; see cvt_nas/launch/private.py"


def sockets_of(pid: int) -> Iterator[str]:
    """Their inodes."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # it has been closed meanwhile
            kind, _, inode = os.readlink(link).partition(":")
            if kind == "socket":
                yield inode.strip("[]")
