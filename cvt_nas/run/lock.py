"""The lock of a run: one process at a time works on it, on any machine."""

import contextlib
import itertools
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cvt_nas.errors import CvtNasError, RunFolderError, StorageError
from cvt_nas.run.files import remove_partials, repair_last_line
from cvt_nas.run.store import Store

_SECONDS_BETWEEN_BEATS = 5.0  # for the holder's mark at a URL
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
        raise RunFolderError(f"{folder}: {_described(_read(holder))} is at work on it; wait for its end") from error
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        if store.url_of(folder) is not None:
            _check_holder_elsewhere(folder, store)
            if _is_another_run(folder, store):
                place = store.place_of(folder)
                raise RunFolderError(f"{place}: the run was deleted or replaced there; begin the command again")
        with _marked(holder, store):
            store.refresh(folder)
            _mend(folder)
            with _finished_elsewhere(folder, store):
                yield
    finally:
        lock.release()


@contextmanager
def _marked(holder: Path, store: Store) -> Iterator[None]:
    """Names this process as the holder of a run.

    At a URL, the mark changes every few seconds, which shows other machines that the process lives. If it was silent
    for so long that another one has taken the run, it writes nothing there any more.
    """
    mark = {"host": socket.gethostname(), "pid": os.getpid(), "id": secrets.token_hex(8)}
    has_ended = threading.Event()

    def is_own() -> bool:
        return _entry(store.read_newest(holder), "id") in (None, mark["id"])

    def beat() -> None:
        for number in itertools.count(1):
            if has_ended.wait(_SECONDS_BETWEEN_BEATS):
                return
            with contextlib.suppress(OSError):  # the next one may reach the store
                if not is_own():
                    store.give_up(f"{store.place_of(holder.parent)}: another process has taken the run")
                    return
                store.write(holder, json.dumps({**mark, "beat": number}) + "\n")

    store.write(holder, json.dumps(mark) + "\n")
    beating = threading.Thread(target=beat, daemon=True)
    if store.url_of(holder) is not None:
        beating.start()
    try:
        yield
    finally:
        has_ended.set()
        if beating.is_alive():
            beating.join()
        holder.unlink(missing_ok=True)
        with contextlib.suppress(StorageError):
            if is_own():
                store.delete(holder)


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
    an older one must not replace them. If the run was deleted or replaced at its URL, the files of the earlier one are
    set aside.
    """
    if store.url_of(folder) is not None and not is_held_here(folder):
        if _is_another_run(folder, store):
            _set_aside(folder, store)
        store.refresh(folder)


def is_held_here(folder: Path) -> bool:
    """Whether another process of this machine works on a run. The mark of its holder is never fetched."""
    try:
        tree = json.loads((folder / "holder.json").read_bytes())
        if tree["host"] != socket.gethostname() or tree["pid"] == os.getpid() or not _is_alive(int(tree["pid"])):
            return False
        with FileLock(folder / "lock", timeout=0):  # the process was killed, and another one has its number
            return False
    except Timeout:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_another_run(folder: Path, store: Store) -> bool:
    """Whether the run at a URL is not the one in this machine's folder: it was deleted there, and perhaps replaced."""
    manifest = folder / "manifest.json"
    here = _read(manifest)
    if (created := _entry(here, "created")) is None:
        return False
    there = store.read_newest(manifest)
    return there is None or (_entry(there, "created"), _entry(there, "id")) != (created, _entry(here, "id"))


def _set_aside(folder: Path, store: Store) -> None:
    with contextlib.suppress(Timeout), FileLock(folder / "lock", timeout=0):
        if not _is_another_run(folder, store):  # another process was faster
            return
        places = (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(1))
        aside = next(place for place in places if not place.exists())
        folder.rename(aside)
        folder.mkdir()
        store.forget(folder)
        logging.getLogger("cvt_nas").warning(
            "%s: the run there was deleted or replaced; this machine's copy of it is kept in %s",
            store.place_of(folder), aside,
        )  # fmt: skip


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
    """Raises RunFolderError if the mark of a run's holder at a URL changes, which shows that the holder lives."""
    holder = folder / "holder.json"
    told = store.read_newest(holder)
    if told is None or (_entry(told, "id") is not None and _entry(told, "id") == _entry(_read(holder), "id")):
        return  # the mark was written in this folder, whose lock is free
    deadline = time.monotonic() + _SECONDS_TO_SHOW_LIFE
    while time.monotonic() < deadline:
        if (now := store.read_newest(holder)) is None:
            return
        if now != told:
            raise RunFolderError(f"{store.place_of(folder)}: {_described(now)} is at work on it; wait for its end")
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


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _entry(told: bytes | None, name: str) -> object:
    """Entry of a JSON object; None if it has none, or is torn."""
    try:
        return json.loads(told or b"{}").get(name)
    except (ValueError, AttributeError):
        return None


def _described(told: bytes | None) -> str:
    host, pid = _entry(told, "host"), _entry(told, "pid")
    return "another process" if host is None or pid is None else f"process {pid} on {host}"  # it has just started
