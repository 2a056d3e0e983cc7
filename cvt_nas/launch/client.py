"""Client mode: a search runs on a remote cluster, and this machine follows it."""

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import ray
from ray.util.queue import Empty, Queue

from cvt_nas.config import Experiment
from cvt_nas.errors import RunFolderError
from cvt_nas.launch.cluster import HEAD, join_cluster
from cvt_nas.launch.resources import Resources
from cvt_nas.results.events import Follower, following
from cvt_nas.run import RunFolder, is_url

_SECONDS_TO_APPEAR = 10.0


def search_through_client(
    search: Callable[..., RunFolder],
    experiment: Experiment,
    *,
    address: str,
    out: str | Path,
    stop: threading.Event,
    progress: Callable[..., AbstractContextManager[Follower]] | None,
    callbacks: Sequence[Follower],
    on_note: Callable[[str], None] | None,
    **options: object,
) -> RunFolder:
    """Runs `search` as a task on a cluster, and follows it.

    `stop` is also set if the search ends early for another reason, and the returned run tells whether a request did it.

    Args:
        search: A function of an experiment.
        address: Address of the cluster's Ray client, such as `ray://host:10001`.
        out: A URL, or a path of a folder that the cluster and this machine share.
        options: Options of `search`. Paths are those of the cluster.

    Raises:
        RunFolderError: The cluster sees another folder at `out`, or it cannot be written here. Nothing has begun.
        StorageError: There is no such store, or it does not answer. Nothing has begun.
    """
    out = str(out) if is_url(out) else str(Path(out).absolute())
    if is_url(out):
        RunFolder.at(out)
    join_cluster(address)
    try:
        if not is_url(out):
            _check_shared(Path(out))
        events, actor = Queue(actor_options={"num_cpus": 0, "resources": HEAD}), cast(Any, ray.remote(_Flag))
        flag = actor.options(num_cpus=0, resources=HEAD).remote()
        task: Any = ray.remote(_search).options(num_cpus=0, max_retries=0, resources=HEAD)
        done = task.remote(search, experiment, {**options, "out": out}, events, flag)
        with ExitStack() as stack:
            on_event = following(*callbacks)
            while True:
                if stop.is_set():
                    ray.get(flag.set.remote())
                try:
                    event = events.get(timeout=0.5)
                except (Empty, queue.Empty):
                    if ray.wait([done], timeout=0)[0]:
                        break
                    continue
                if isinstance(event, str):
                    if on_note is not None:
                        on_note(event)
                elif not isinstance(event, tuple):
                    on_event(event)
                elif progress is not None:
                    resources, num_trials, left = event
                    deadline = None if left is None else time.monotonic() + left
                    follower = stack.enter_context(progress(RunFolder.open(out), resources, num_trials, deadline))
                    on_event = following(follower, *callbacks)
            is_stopped, was_asked = ray.get(done)
    finally:
        ray.shutdown()
    if is_stopped:
        stop.set()
    run = RunFolder.open(out)
    run.requests.has_stopped = was_asked
    return run


def _check_shared(folder: Path) -> None:
    """Raises RunFolderError unless a file that is written to `folder` here is seen on the cluster."""
    begins, mark = not folder.exists(), folder / f".{secrets.token_hex(8)}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be written: {error.strerror or error}") from error
    try:
        look: Any = ray.remote(_sees).options(num_cpus=0, resources=HEAD)
        if not ray.get(look.remote(str(mark))):
            raise RunFolderError(
                f"--out {folder}: is not the same folder here and on the cluster, so the search could not be followed; "
                f"give a folder that they share, or a URL such as s3://bucket/run"
            )
    finally:
        mark.unlink(missing_ok=True)
        if begins:
            with suppress(OSError):  # something else was written into it
                folder.rmdir()


def _sees(path: str) -> bool:
    """Whether a file appears at `path` within some seconds. A shared disk may need them."""
    deadline = time.monotonic() + _SECONDS_TO_APPEAR
    while not Path(path).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


class _Flag:
    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set


def _search(
    search: Callable[..., RunFolder], experiment: Experiment, options: Mapping[str, object], events: Queue, flag: Any
) -> tuple[bool, bool]:
    """Returns whether the search ended early, and whether a request in the run folder was the reason."""
    stop, is_over = threading.Event(), threading.Event()

    def watch() -> None:
        while not is_over.wait(1.0):
            if ray.get(flag.is_set.remote()):
                stop.set()
                return

    @contextmanager
    def forward(run: RunFolder, resources: Resources, num_trials: int, deadline: float | None) -> Iterator[Follower]:
        del run
        events.put((resources, num_trials, None if deadline is None else deadline - time.monotonic()))
        yield events.put

    threading.Thread(target=watch, daemon=True).start()
    try:
        run = search(experiment, stop=stop, progress=forward, on_note=events.put, **options)
    finally:
        is_over.set()
    return stop.is_set(), run.requests.has_stopped
