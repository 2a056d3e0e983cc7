"""Ray's workers and what loads exports again, forked from a process that has imported what they need.

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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ADDRESS = "CVT_NAS_FORKED_WORKERS"  # the server's, in the environment of Ray's processes
OF_SETUP = ("--language", "--serialized-runtime-env-context")  # what `setup_worker.py` keeps for itself


@contextlib.contextmanager
def forking_server() -> Iterator[None]:
    """Serves this process and those that it starts in the block. What it forks is its child, and so of this process."""
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        # one thread, as a fork has no others; but for jemalloc's, which knows of forks
        server = subprocess.Popen([sys.executable, __file__, path], stdin=subprocess.PIPE, env=os.environ | threads)
        os.environ[ADDRESS] = path
        try:
            yield
        finally:
            del os.environ[ADDRESS]
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
                    sys.stdout.flush()
                    with contextlib.suppress(OSError):  # nobody waits any more
                        connection.send(b"1")
                    sys.exit()
                for file in files:
                    os.close(file)


def work(files: list[int], *, arguments: list[str], environment: dict[str, str], folder: str, niceness: int) -> None:
    """Goes on as the process that was asked for: a script, or `-m` and a module, with its arguments."""
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
    if arguments[0] == "-m":
        sys.argv, sys.path[0] = arguments[1:], folder
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")


def ask(arguments: list[str], environment: Mapping[str, str], files: Sequence[int] = (0, 1, 2)) -> bool:
    """Has a process forked with these files as its own, waits for its end, and says whether that was in order."""
    told = {"arguments": arguments, "environment": dict(environment), "folder": os.getcwd(), "niceness": os.nice(0)}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ[ADDRESS])
        socket.send_fds(server, [b"1"], list(files))
        server.sendall(json.dumps(told).encode())
        server.shutdown(socket.SHUT_WR)
        return server.recv(1) == b"1"


def run_forked(command: Sequence[Any], *, env: Mapping[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of this Python and a module, whose output is captured as text."""
    with open(os.devnull) as nothing, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        words = [os.fspath(word) for word in command[1:]]
        ended = ask(words, env, [file.fileno() for file in (nothing, out, err)])
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, 0 if ended else 1, out.read(), err.read())


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
