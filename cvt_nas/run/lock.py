"""Who works on a run: one process at a time, on whatever machine."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cvt_nas.errors import CvtNasError, RunFolderError, StorageError
from cvt_nas.run.files import remove_partials, repair_last_line
from cvt_nas.run.store import Store

_SECONDS_TO_SHOW_LIFE = 15.0


@contextmanager
def locked(folder: Path, store: Store) -> Iterator[None]:
    """Keeps all others from working on a run, and mends what a process that was killed left torn. The system gives the
    lock back when a process ends. Raises RunFolderError where somebody is at work on it."""
    lock = FileLock(folder / "lock", timeout=0)
    holder = folder / "holder.json"
    try:
        lock.acquire()
    except Timeout as error:
        raise RunFolderError(f"{folder}: {_described(holder)} is at work on it; wait for its end") from error
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        _check_holder_elsewhere(folder, store)  # whose mark stays
        try:
            store.write(holder, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
            store.refresh(folder)
            _mend(folder)
            with _finished_elsewhere(folder, store):
                yield
        finally:
            with contextlib.suppress(StorageError):
                store.delete(holder)
    finally:
        lock.release()


def is_at_work(folder: Path, store: Store) -> bool:
    """Whether a process works on a run, as far as it can be told from here: one that died elsewhere seems to."""
    told = store.read_newest(folder / "holder.json")
    if told is None:
        return False
    try:
        tree = json.loads(told)
        return tree["host"] != socket.gethostname() or _is_alive(int(tree["pid"]))
    except (ValueError, KeyError, TypeError):  # it is only just beginning
        return True


@contextmanager
def _finished_elsewhere(folder: Path, store: Store) -> Iterator[None]:
    """Leaves whole records at the URL, where there is one, however the block ends; but not before a hurried end."""
    try:
        yield
    except CvtNasError:
        with contextlib.suppress(StorageError):
            store.finish(folder)
        raise
    store.finish(folder)


def _check_holder_elsewhere(folder: Path, store: Store) -> None:
    """Raises RunFolderError if the clock of a run at a URL moves: then a holder on another machine is alive."""
    if store.url_of(folder) is None:
        return
    holder, clock = folder / "holder.json", folder / "clock.json"
    told = store.read_newest(holder)
    if told is None or _host_of(told) == socket.gethostname():
        return
    deadline = time.monotonic() + _SECONDS_TO_SHOW_LIFE
    before = store.read_newest(clock)
    while time.monotonic() < deadline:
        if store.read_newest(clock) != before:
            holder.write_bytes(told)
            raise RunFolderError(f"{store.place_of(folder)}: {_described(holder)} is at work on it; wait for its end")
        time.sleep(1)


def _mend(folder: Path) -> None:
    remove_partials(folder)
    for path in (*folder.glob("*.jsonl"), *folder.glob("*.journal")):
        repair_last_line(path)
    for lock in folder.glob("*.journal.lock"):  # Optuna's own, which it would wait half a minute for
        lock.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        pass
    return True


def _host_of(told: bytes) -> str | None:
    """Of a mark of who is at work; None where it is torn."""
    try:
        return json.loads(told)["host"]
    except (ValueError, KeyError, TypeError):
        return None


def _described(holder: Path) -> str:
    try:
        tree = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {tree['pid']} on {tree['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is only just beginning
        return "another process"
