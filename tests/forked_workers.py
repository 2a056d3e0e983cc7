"""Ray's workers, forked from a process that has imported what they need.

A worker spends about five seconds of CPU time on importing torch and more, and the tests start some sixty. Where Ray
would run its own `setup_worker.py`, it runs this file, which asks a server for a fork that goes on as the worker. The
server is this file, too, and imports when it is first asked. It does not import Ray, which reads the environment of its
process when it is imported. A worker that brings code of its own starts as Ray would start it.
"""

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ADDRESS = "CVT_NAS_FORKED_WORKERS"  # the server's, in the environment of Ray's processes
OF_SETUP = ("--language", "--serialized-runtime-env-context")  # what `setup_worker.py` keeps for itself


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """Forks the workers of each Ray that this process starts in the block."""
    from ray._private import ray_constants

    name, threads = ray_constants.SETUP_WORKER_FILENAME, {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        # one thread, as a fork has no others; but for jemalloc's, which knows of forks
        server = subprocess.Popen([sys.executable, __file__, path], stdin=subprocess.PIPE, env=os.environ | threads)
        os.environ[ADDRESS], ray_constants.SETUP_WORKER_FILENAME = path, __file__
        try:
            yield
        finally:
            del os.environ[ADDRESS]
            ray_constants.SETUP_WORKER_FILENAME = name
            server.communicate()  # closes its input, which ends it


def serve(path: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that nobody has to wait for the workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            import sklearn.datasets  # noqa: F401
            import torch._dynamo  # noqa: F401, with the first optimizer

            import cvt_nas.engine  # noqa: F401

            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as asked:
                _, files, *_ = socket.recv_fds(connection, 1, 3)
                told = json.load(asked)
                if os.fork() == 0:
                    listener.close()
                    work(files, **told)
                    sys.exit()
                for file in files:
                    os.close(file)


def work(files: list[int], *, arguments: list[str], environment: dict[str, str], folder: str, niceness: int) -> None:
    """Goes on as the worker that Ray asked for."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setpgrp()  # Ray ends a worker's whole group
    os.nice(niceness - os.nice(0))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name="__main__")


def ask(arguments: list[str], environment: dict[str, str]) -> None:
    """Has a worker forked, and waits for its end."""
    told = {"arguments": arguments, "environment": environment, "folder": os.getcwd(), "niceness": os.nice(0)}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ[ADDRESS])
        socket.send_fds(server, [b"1"], [0, 1, 2])
        server.sendall(json.dumps(told).encode())
        server.shutdown(socket.SHUT_WR)
        server.recv(1)  # nothing is sent: the worker closes it with its end


def start_worker(words: list[str]) -> None:
    """`setup_worker.py`, but for the fork."""
    of_setup = {name: value for name, _, value in (word.partition("=") for word in words) if name in OF_SETUP}
    context = json.loads(of_setup.get("--serialized-runtime-env-context", "{}"))
    variables = context.get("env_vars", {})
    if context.get("command_prefix") or "PYTHONPATH" in variables:  # code of its own
        os.execv(sys.executable, [sys.executable, str(Path(words[0]).with_name("setup_worker.py")), *words])
    arguments = [word for word in words if word.partition("=")[0] not in OF_SETUP]
    ask(arguments, {**os.environ, **variables})


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        start_worker(sys.argv[1:])
