"""Ray itself: started on this machine, or joined where it runs."""

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

HEAD = {"node:__internal_head__": 0.001}  # the node that outlives the others
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_MOST_BYTES = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")


def start_local_ray(*, num_cpus: int, num_gpus: int) -> None:
    """Starts Ray for this process alone, on loopback."""
    folder = temporary_folder_of_ray()
    _bring_own_token()
    with on_loopback(), without_services():
        connect_ray(
            address="local", num_cpus=num_cpus, num_gpus=num_gpus, include_dashboard=False,
            _node_ip_address="127.0.0.1", _temp_dir=folder,
        )  # fmt: skip


def temporary_folder_of_ray() -> str:
    """A folder for Ray's session whose path is short enough for the sockets in it; Ray's default if that is. Raises
    ResourceError where there is none that can be written."""
    told = os.environ.get("RAY_TMPDIR")
    for place in [told] if told else [tempfile.gettempdir(), *_SHORT_FOLDERS]:
        if len(os.fsencode(place)) <= _MOST_BYTES and can_write_to(Path(place)):
            return str(Path(place) / "ray")
    raise ResourceError(
        f"{told or tempfile.gettempdir()}: cannot be written, or too long for Ray, whose sockets' paths may have 107 "
        f"bytes; set RAY_TMPDIR to a folder with at most {_MOST_BYTES}, as /tmp"
    )


def _bring_own_token() -> None:
    """A token for Ray's processes, which Ray would keep in the home directory, where that cannot be written."""
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    home = Path(os.path.expanduser("~"))
    if not any(name in os.environ for name in names) and not (home.is_absolute() and can_write_to(home / ".ray")):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def connect_ray(**options: Any) -> None:
    """`ray.init`, quiet, and without its handler of SIGTERM, which would take the place of the caller's."""
    for word in sys.orig_argv:
        if why := why_no_text(word):  # Ray keeps the command as UTF-8, and would end in a traceback
            raise ResourceError(f"{word}: {why}")
    handler = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        # an older Ray warns of what RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO says, though it is said
        warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def join_cluster(address: str) -> None:
    """Joins a cluster, to which the code of this very version goes along. Raises ResourceError where none answers."""
    try:
        _check_answers(address)
        connect_ray(address=address, runtime_env={"py_modules": [str(Path(cvt_nas.__file__).parent)]})
    except OSError as error:  # ConnectionError, which Ray raises, is one
        raise ResourceError(
            f"--address {address}: no Ray cluster answers ({first_line(error)}); "
            f"where it asks for a token, set RAY_AUTH_MODE=token here"
        ) from error
    except ImportError as error:
        raise ResourceError(f"--address {address}: Ray's client needs pip install 'ray[client]'") from error


def _check_answers(address: str) -> None:
    """Raises OSError where nothing listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def local_ray(*, num_cpus: int, num_gpus: int) -> Iterator[None]:
    """Ray as the caller has it, or else one of its own that ends with the block."""
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
