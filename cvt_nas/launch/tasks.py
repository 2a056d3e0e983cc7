"""Runs functions and actors on the workers of a search."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Self, TypeVar, cast

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cvt_nas.errors import CvtNasError, StorageError, first_line
from cvt_nas.launch.devices import WorkersFailedError
from cvt_nas.launch.resources import Resources

T = TypeVar("T")


def get_from_workers(work: Any) -> Any:
    """Calls `ray.get`. Raises CvtNasError or StorageError if a worker raised it, and otherwise WorkersFailedError."""
    try:
        return ray.get(work)
    except RayError as error:
        failure = failure_of(error)
        raise failure from error if isinstance(failure, WorkersFailedError) else None


def failure_of(error: RayError) -> CvtNasError | StorageError | WorkersFailedError:
    """The error to raise instead of Ray's: errors that users can fix are unchanged, others become one line."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, CvtNasError | StorageError):
        return cause
    return WorkersFailedError(f"{type(cause).__name__}: {first_line(cause)}")


def on_devices(resources: Resources, function: Callable[..., T], calls: Sequence[Sequence[object]]) -> list[T]:
    """Runs `function(*arguments)` for each call, side by side, each on a device of a trial.

    If a trial has a whole device, so has a call. It raises the errors of `get_from_workers`.
    """
    remote: Any = ray.remote(cast(Any, function)).options(
        num_cpus=min(resources.cpus_per_trial, 1), num_gpus=min(resources.gpus_per_trial, 1)
    )
    return get_from_workers([remote.remote(*arguments) for arguments in calls])


def as_they_end(
    resources: Resources, function: Callable[..., T], calls: Sequence[Sequence[object]], *, stop: threading.Event
) -> Generator[tuple[int, T], None, None]:
    """Runs calls like `on_devices`, and yields the place of a call and its result as soon as it ends.

    It ends early if `stop` is set. Calls that have not ended then are given up, and so they are if this generator is
    closed. It raises the errors of `get_from_workers`.
    """
    remote: Any = ray.remote(cast(Any, function)).options(
        num_cpus=min(resources.cpus_per_trial, 1), num_gpus=min(resources.gpus_per_trial, 1)
    )
    left = {remote.remote(*arguments): place for place, arguments in enumerate(calls)}
    try:
        while left and not stop.is_set():
            for done in ray.wait(list(left), timeout=0.5)[0]:
                yield left.pop(done), get_from_workers(done)
    finally:
        for running in left:
            ray.cancel(running, force=True)


def on_device(resources: Resources, function: Callable[..., T], *arguments: object) -> T:
    """Runs a single call; see `on_devices`."""
    return on_devices(resources, function, [arguments])[0]


def yielded_on_device(
    resources: Resources, generator: Callable[..., Iterator[T]], *arguments: object
) -> Generator[T, None, None]:
    """Yields what `generator(*arguments)` yields on a device of a trial. Closing this generator ends the other.

    If its process dies, the generator restarts on any node. It raises the errors of `get_from_workers`.
    """
    remote: Any = ray.remote(cast(Any, generator)).options(
        num_cpus=min(resources.cpus_per_trial, 1), num_gpus=min(resources.gpus_per_trial, 1), num_returns="streaming"
    )
    yielded = remote.remote(*arguments)
    try:
        for found in yielded:
            yield get_from_workers(found)
    finally:
        ray.cancel(yielded)  # has no effect if it has ended


def on_worker(resources: Resources, function: Callable[..., T], *arguments: object, stop: threading.Event) -> T | None:
    """Runs `function(*arguments)` with the resources of one process of a trial.

    Returns None if `stop` is set before it ends. It raises the errors of `get_from_workers`.
    """
    remote: Any = ray.remote(cast(Any, function)).options(
        num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_trial / resources.num_workers
    )
    done = remote.remote(*arguments)
    while not ray.wait([done], timeout=0.5)[0]:
        if stop.is_set():
            ray.cancel(done, force=True)
            return None
    return get_from_workers(done)


class SharedGpu:
    """A GPU and `num_cpus` CPUs that up to `most` processes of a `kind` share. The processes end with the block."""

    def __init__(self, kind: type, *, num_cpus: float, most: int) -> None:
        # processes in one bundle share the same GPU
        self._group = placement_group([{"GPU": 1, "CPU": num_cpus}])
        self._actor: Any = ray.remote(kind).options(
            num_cpus=1,
            num_gpus=1 / 2 ** (most.bit_length() - 1),
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group),
        )
        self._processes: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._processes:  # a killed process frees its memory before the next one has imported torch
            ray.kill(process)
        remove_placement_group(self._group)

    def add_up_to(self, number: int) -> None:
        self._processes += [self._actor.remote() for _ in range(number - len(self._processes))]

    def together(self, method: str, *arguments: object) -> list[Any]:
        """Calls a method of all processes, and returns their results. It raises the errors of `get_from_workers`."""
        return get_from_workers([getattr(process, method).remote(*arguments) for process in self._processes])
