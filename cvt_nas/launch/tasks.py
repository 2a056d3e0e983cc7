"""Functions and actors on the workers of a search."""

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
    """`ray.get`. Raises CvtNasError or StorageError where a worker raised it, else WorkersFailedError."""
    try:
        return ray.get(work)
    except RayError as error:
        failure = failure_of(error)
        raise failure from error if isinstance(failure, WorkersFailedError) else None


def failure_of(error: RayError) -> CvtNasError | StorageError | WorkersFailedError:
    """What to raise instead: what a user can fix as the worker raised it, and anything else in one line."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, CvtNasError | StorageError):
        return cause
    return WorkersFailedError(f"{type(cause).__name__}: {first_line(cause)}")


def on_devices(resources: Resources, function: Callable[..., T], calls: Sequence[Sequence[object]]) -> list[T]:
    """`function(*arguments)` of each call, side by side, each on one of the trials' devices, with nothing else on a
    device that a trial would have for itself. Raises what `get_from_workers` does."""
    remote: Any = ray.remote(cast(Any, function)).options(
        num_cpus=min(resources.cpus_per_trial, 1), num_gpus=min(resources.gpus_per_trial, 1)
    )
    return get_from_workers([remote.remote(*arguments) for arguments in calls])


def on_device(resources: Resources, function: Callable[..., T], *arguments: object) -> T:
    """`on_devices` of one call."""
    return on_devices(resources, function, [arguments])[0]


def yielded_on_device(
    resources: Resources, generator: Callable[..., Iterator[T]], *arguments: object
) -> Generator[T, None, None]:
    """What `generator(*arguments)` yields on one of the trials' devices, as soon as it does; closing this ends it.

    A generator whose process dies begins again, on whatever node. Raises what `get_from_workers` does.
    """
    remote: Any = ray.remote(cast(Any, generator)).options(
        num_cpus=min(resources.cpus_per_trial, 1), num_gpus=min(resources.gpus_per_trial, 1), num_returns="streaming"
    )
    yielded = remote.remote(*arguments)
    try:
        for found in yielded:
            yield get_from_workers(found)
    finally:
        ray.cancel(yielded)  # of one that has ended, nothing


def on_worker(resources: Resources, function: Callable[..., T], *arguments: object, stop: threading.Event) -> T | None:
    """`function(*arguments)` with what one process of a trial has; None where `stop` is set before it is done. Raises
    what `get_from_workers` does."""
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
    """A GPU, and up to `most` processes of a `kind` that share it, and `num_cpus` together; they end with the block."""

    def __init__(self, kind: type, *, num_cpus: float, most: int) -> None:
        # one bundle, so that whoever is in it shares the same GPU
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
        for process in self._processes:  # whatever starts next imports torch first: until then, the memory is free
            ray.kill(process)
        remove_placement_group(self._group)

    def add_up_to(self, number: int) -> None:
        self._processes += [self._actor.remote() for _ in range(number - len(self._processes))]

    def together(self, method: str, *arguments: object) -> list[Any]:
        """What each of them returns. Raises what `get_from_workers` does."""
        return get_from_workers([getattr(process, method).remote(*arguments) for process in self._processes])
