"""Workers that measure the accuracy that subnets inherit from a supernet.

Ranking takes only seconds an architecture, so a trial for each would be too slow. A worker keeps the supernet and the
images as long as there are candidates, and has the next candidate before it finishes the last one.
"""

import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Generic, Self, TypeVar

import ray
import torch

from cvt_nas.arch import ArchConfig
from cvt_nas.engine import TrainingSetup, keep_trained, open_inheritance, prepare_device
from cvt_nas.launch.resources import Resources
from cvt_nas.launch.tasks import get_from_workers
from cvt_nas.results import Inherited

Token = TypeVar("Token")
NUM_SCREENING_IMAGES = 2_048
_IN_HAND = 2  # candidates of a worker, so that it never waits for a proposal
_IN_HAND_OF_SEVERAL = 3  # of each of several workers, so that it seldom waits for the answer of another one
_MAX_RESTARTS = 3  # of a worker
_LEAST_SHARE = 32  # images of a batch, which are enough for batch norm


def supernet_workers(resources: Resources, *, batch_size: int) -> tuple[int, float]:
    """Number of workers that train a supernet, and CPUs of each.

    There is one worker for each GPU. On CPUs, the batch size limits their number.
    """
    if resources.num_gpus > 0:
        return resources.num_gpus, resources.cpus_per_gpu
    num_cpus = resources.num_slots * resources.cpus_per_trial
    num_workers = min(resources.num_slots, max(batch_size // _LEAST_SHARE, 1))
    # with several nodes, a node may not have more CPUs than a trial's
    return num_workers, num_cpus / num_workers if resources.num_nodes == 1 else resources.cpus_per_trial


class _Judge:
    """A worker that measures inherited accuracies."""

    def __init__(self, setup: TrainingSetup) -> None:
        torch.set_num_threads(setup.num_threads)
        prepare_device(setup.torch_device)
        self._inheritance, self._data = open_inheritance(setup, setup.torch_device), setup.open_data()
        self._run = setup.run

    def judge(self, arch: ArchConfig, bar: float | None) -> tuple[Inherited, float]:
        """Returns what `arch` inherits, and seconds; see `Inheritance.measure`."""
        started = time.perf_counter()
        found = self._inheritance.measure(arch, bar=bar, num_screening_images=NUM_SCREENING_IMAGES)
        return found, time.perf_counter() - started

    def save(self, arch: ArchConfig) -> None:
        """Keeps the weights of a subnet as the trained weights of its architecture."""
        keep_trained(self._inheritance.model(arch), self._data, self._run)


def num_judges(resources: Resources) -> int:
    """Number of workers that measure inherited accuracies."""
    return resources.num_gpus if resources.gpus_per_trial >= 1 else resources.num_slots


class Judges(Generic[Token]):
    """Workers that measure inherited accuracies: one for each GPU, for each trial that shares one, or for each CPU.

    Ray restarts a worker that dies, and runs its tasks again in any order. Results still come in the order of `submit`,
    so what is decided by them depends neither on that nor on which worker is faster.
    """

    def __init__(self, setup: TrainingSetup, resources: Resources) -> None:
        self._in_hand: dict[ray.ObjectRef, tuple[int, Token]] = {}  # in the order of `submit`
        num_workers = num_judges(resources)
        if resources.gpus_per_trial >= 1:
            num_cpus, num_gpus = resources.cpus_per_gpu, 1.0
        else:
            num_cpus, num_gpus = resources.cpus_per_trial, resources.gpus_per_trial
        worker: Any = ray.remote(_Judge).options(
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=_MAX_RESTARTS, max_task_retries=_MAX_RESTARTS
        )
        self._workers: list[Any] = [worker.remote(setup) for _ in range(num_workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for worker in self._workers:  # trials wait for their devices
            ray.kill(worker)

    @property
    def num_in_hand_at_most(self) -> int:
        return (_IN_HAND if len(self._workers) == 1 else _IN_HAND_OF_SEVERAL) * len(self._workers)

    @property
    def num_free(self) -> int:
        """Number of further candidates that can be submitted. It depends on calls alone, not on workers."""
        return self.num_in_hand_at_most - len(self._in_hand)

    def submit(self, token: Token, arch: ArchConfig, bar: float | None = None) -> None:
        """Gives `arch` to the worker with the fewest tasks left. `next` returns `token` with the result."""
        submitted = list(self._in_hand)
        left = ray.wait(submitted, num_returns=len(submitted), timeout=0)[1] if submitted else []
        load = Counter(self._in_hand[task][0] for task in left)
        index = min(range(len(self._workers)), key=lambda index: load[index])
        self._in_hand[self._workers[index].judge.remote(arch, bar)] = index, token

    def next(self) -> tuple[Token, Inherited, float] | None:
        """Waits for the result of the oldest task: its token, what is inherited, and seconds. None without tasks."""
        if not self._in_hand:
            return None
        _, token = self._in_hand.pop(oldest := next(iter(self._in_hand)))
        return token, *get_from_workers(oldest)

    def save(self, archs: Sequence[ArchConfig]) -> None:
        """Keeps the weights of these subnets as the trained weights of their architectures."""
        turns = zip(itertools.cycle(self._workers), archs, strict=False)
        get_from_workers([worker.save.remote(arch) for worker, arch in turns])


def measure_inherited(
    archs: Sequence[ArchConfig],
    setup: TrainingSetup,
    resources: Resources,
    *,
    stop: threading.Event,
    is_screening: bool = False,
) -> list[Inherited] | None:
    """Measures what each architecture inherits. Returns None if `stop` is set before the end.

    Args:
        is_screening: Whether to measure only on a part of the search split.
    """
    bar = math.inf if is_screening else None  # out of reach, so each measurement ends after that part
    found, left = dict[int, Inherited](), iter(enumerate(archs))
    with Judges[int](setup, resources) as judges:
        while not stop.is_set():
            for index, arch in itertools.islice(left, judges.num_free):
                judges.submit(index, arch, bar)
            judged = judges.next()
            if judged is None:
                return [found[index] for index in range(len(archs))]
            index, found[index], _ = judged
    return None
