"""Starts Ray on this machine, or joins a cluster."""

import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

import cvt_nas
from cvt_nas.errors import ResourceError, first_line
from cvt_nas.escaping import why_no_text
from cvt_nas.launch.private import on_loopback, without_services
from cvt_nas.run import can_write_to

HEAD = {"node:__internal_head__": 0.001}  # the head node, which outlives the others
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_MOST_BYTES = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")


def start_local_ray(*, num_cpus: int, num_gpus: int) -> None:
    """Starts Ray for this process only, on loopback."""
    folder = temporary_folder_of_ray()
    _bring_own_token()
    with on_loopback(), without_services():
        connect_ray(
            address="local", num_cpus=num_cpus, num_gpus=num_gpus, include_dashboard=False,
            _node_ip_address="127.0.0.1", _temp_dir=folder,
        )  # fmt: skip


def temporary_folder_of_ray() -> str:
    """A writable folder for Ray's session whose path is short enough for the sockets in it. Ray's default comes first.

    Raises:
        ResourceError: There is no such folder.
    """
    told = os.environ.get("RAY_TMPDIR")
    for place in [told] if told else [tempfile.gettempdir(), *_SHORT_FOLDERS]:
        if len(os.fsencode(place)) <= _MOST_BYTES and can_write_to(Path(place)):
            return str(Path(place) / "ray")
    raise ResourceError(
        f"{told or tempfile.gettempdir()}: cannot be written, or too long for Ray, whose sockets' paths may have 107 "
        f"bytes; set RAY_TMPDIR to a folder with at most {_MOST_BYTES}, as /tmp"
    )


def _bring_own_token() -> None:
    """Sets a token for Ray's processes if the home directory, where Ray would keep it, cannot be written."""
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    home = Path(os.path.expanduser("~"))
    if not any(name in os.environ for name in names) and not (home.is_absolute() and can_write_to(home / ".ray")):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def connect_ray(**options: Any) -> None:
    """Calls `ray.init` quietly, and keeps the caller's handler of SIGTERM, which Ray would replace."""
    for word in sys.orig_argv:
        if why := why_no_text(word):  # Ray keeps the command as UTF-8, and would fail with a traceback
            raise ResourceError(f"{word}: {why}")
    handler = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        # an older Ray warns about RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO even if it is set
        warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def join_cluster(address: str) -> None:
    """Joins a cluster and sends it the code of this version. Raises ResourceError if no cluster answers."""
    try:
        _check_answers(address)
        connect_ray(address=address, runtime_env={"py_modules": [str(Path(cvt_nas.__file__).parent)]})
    except OSError as error:  # includes Ray's ConnectionError
        raise ResourceError(
            f"--address {address}: no Ray cluster answers ({first_line(error)}); "
            f"where it asks for a token, set RAY_AUTH_MODE=token here"
        ) from error
    except ImportError as error:
        raise ResourceError(f"--address {address}: Ray's client needs pip install 'cvt-nas[client]'") from error


def _check_answers(address: str) -> None:
    """Raises OSError if nothing listens at `host:port`. Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def local_ray(*, num_cpus: int, num_gpus: int) -> Iterator[None]:
    """Uses Ray if the caller has initialised it. Otherwise, starts Ray for the block."""
    if ray.is_initialized():
        yield
        return
    start_local_ray(num_cpus=num_cpus, num_gpus=num_gpus)
    try:
        yield
    finally:
        ray.shutdown()


def is_this_machine_alone() -> bool:
    """Whether the cluster has no other node."""
    alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    return alive == [ray.get_runtime_context().get_node_id()]
