"""The lock of a run: one process at a time works on it, on any machine."""

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
    """Locks a run for the block, and repairs torn files of a killed process.

    The system releases the lock when the process ends.

    Raises:
        RunFolderError: Another process works on the run.
    """
    lock = FileLock(folder / "lock", timeout=0)
    holder = folder / "holder.json"
    try:
        lock.acquire()
    except Timeout as error:
        raise RunFolderError(f"{folder}: {_described(holder)} is at work on it; wait for its end") from error
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        _check_holder_elsewhere(folder, store)  # outside of the block that deletes the holder's mark
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
    """Whether a process works on a run. A process that died on another machine counts as at work."""
    told = store.read_newest(folder / "holder.json")
    if told is None:
        return False
    try:
        tree = json.loads(told)
        return tree["host"] != socket.gethostname() or _is_alive(int(tree["pid"]))
    except (ValueError, KeyError, TypeError):  # it has just started
        return True


def refresh(folder: Path, store: Store) -> None:
    """Fetches the files of a folder, unless another process of this machine works on it.

    That process writes each file here before it sends it. So its files are at least as new as those of the store, and
    an older one must not replace them.
    """
    if store.url_of(folder) is not None and not _is_held_here(folder / "holder.json"):
        store.refresh(folder)


def _is_held_here(holder: Path) -> bool:
    """Whether another process of this machine works on a run. The mark of its holder is never fetched."""
    try:
        tree = json.loads(holder.read_bytes())
        if tree["host"] != socket.gethostname() or tree["pid"] == os.getpid() or not _is_alive(int(tree["pid"])):
            return False
        with FileLock(holder.with_name("lock"), timeout=0):  # the process was killed, and another one has its number
            return False
    except Timeout:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def _finished_elsewhere(folder: Path, store: Store) -> Iterator[None]:
    """Leaves whole records at the URL of a run when the block ends, except after a hurried end."""
    try:
        yield
    except CvtNasError:
        with contextlib.suppress(StorageError):
            store.finish(folder)
        raise
    store.finish(folder)


def _check_holder_elsewhere(folder: Path, store: Store) -> None:
    """Raises RunFolderError if the clock of a run at a URL moves, which shows that another machine works on it."""
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
    for lock in folder.glob("*.journal.lock"):  # Optuna would wait half a minute for its lock
        lock.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        pass
    return True


def _host_of(told: bytes) -> str | None:
    """Host in the mark of a holder; None if the mark is torn."""
    try:
        return json.loads(told)["host"]
    except (ValueError, KeyError, TypeError):
        return None


def _described(holder: Path) -> str:
    try:
        tree = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {tree['pid']} on {tree['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has just started
        return "another process"
