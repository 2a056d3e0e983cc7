"""One training on several devices: one process for each device. They share batches by DDP over NCCL, or gloo on CPUs.

The launching process owns the others. When it ends, Ray ends them.
"""

import contextlib
import ipaddress
import math
import os
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cvt_nas.engine import Report, TrainingSetup
from cvt_nas.launch.cluster import local_ray
from cvt_nas.launch.devices import WorkerLostError, WorkersFailedError
from cvt_nas.launch.tasks import failure_of

_MAX_FAILURES = 3
_SECONDS_TO_BEGIN, _SECONDS_TO_DIE = 20.0, 5.0
_SECONDS_BETWEEN_LOOKS = 1.0
R = TypeVar("R", bound=Report)
_PATIENCE = timedelta(minutes=30)  # of ranks with each other; one may be slow to read its images


def bundles_of_ranks(num_ranks: int, *, cpus_per_rank: float, use_gpus: bool) -> list[dict[str, float]]:
    """Ray's bundle of each rank. Ranks get all or none, so that two trainings never wait for each other's devices."""
    return [{"CPU": cpus_per_rank, **({"GPU": 1} if use_gpus else {})} for _ in range(num_ranks)]


def reports_of_ranks(
    reports: Callable[..., Iterator[R]],
    *,
    setup: TrainingSetup,
    num_ranks: int,
    cpus_per_rank: float,
    use_gpus: bool,
    may_move: bool = False,
    group: PlacementGroup | None = None,
    **options: object,
) -> Generator[R, None, None]:
    """Runs `reports(setup=setup, device=device, **options)` in `num_ranks` processes that form a process group.

    If a rank dies or raises, all ranks are restarted from the last checkpoint. The same happens if a device runs out of
    memory; then half as many images are trained at once. Closing the generator ends the ranks at once: when it
    returns, they hold no devices and write nothing.

    Args:
        reports: Yields reports with a `status`. A report that is not `running` is the last one. Takes `at_most`; see
            `engine.MicroBatches`.
        cpus_per_rank: CPUs of a rank, in Ray's units.
        use_gpus: Whether each rank takes a GPU. If `setup.device` is `cpu`, the GPU is only a slot.
        may_move: Whether a rank that dies or finds no device ends the training with `WorkerLostError`, since the
            training can continue with another number of ranks.
        group: A placement group with a bundle for the caller, and then one for each rank. None for a new group.
        options: Options of `reports`. Restarted ranks get an updated `num_known`.

    Yields:
        Reports of the first rank, or the last report of any rank. An `oom`, for example, may happen to another rank.

    Raises:
        CvtNasError: A rank raised it, for example for an unreadable image.
        StorageError: A rank raised it.
        WorkerLostError: See `may_move`.
        WorkersFailedError: The ranks failed more than three times.
    """
    num_failures, is_over = 0, False
    with local_ray(num_cpus=math.ceil(num_ranks * cpus_per_rank), num_gpus=num_ranks if use_gpus else 0):
        while not is_over:
            try:
                with (
                    _placed(num_ranks, cpus_per_rank, use_gpus=use_gpus, may_move=may_move, group=group) as ranks,
                    contextlib.closing(_reports_of(ranks, reports, setup, options)) as found,
                ):
                    is_over = True
                    for report in found:
                        at_once = report.get("micro_batch") or 1
                        if report["status"] == "oom" and at_once > 1:
                            options, is_over = {**options, "at_most": at_once // 2}, False
                            break
                        if "num_known" in options:
                            options = {**options, "num_known": report["epoch"]}
                        yield report
                        if report["status"] != "running":
                            break  # other ranks may wait for the one that ended
            except RayError as error:
                failure, is_loss = failure_of(error), not isinstance(error, RayTaskError)
                num_failures, is_over = num_failures + 1, False
                if not isinstance(failure, WorkersFailedError):  # another attempt would fail, too
                    raise failure from None
                if may_move and is_loss:
                    raise WorkerLostError(str(failure)) from error
                if may_move or num_failures > _MAX_FAILURES:
                    raise failure from error


@contextmanager
def _placed(
    num_ranks: int, cpus_per_rank: float, *, use_gpus: bool, may_move: bool, group: PlacementGroup | None
) -> Iterator[list[tuple["_Place", Any]]]:
    """Starts an actor for each rank, and gives places and actors in the order of ranks. They end with the block."""
    own, actors = None, list[Any]()
    if group is None:
        bundles = bundles_of_ranks(num_ranks, cpus_per_rank=cpus_per_rank, use_gpus=use_gpus)
        group = own = placement_group(bundles, strategy="PACK")
    try:
        while own is not None and not own.wait(_SECONDS_BETWEEN_LOOKS):
            pass
        first = 0 if own is not None else 1
        for index in range(first, first + num_ranks):
            where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            actor: Any = ray.remote(_Rank).options(
                num_cpus=cpus_per_rank, num_gpus=int(use_gpus), scheduling_strategy=where
            )
            actors.append(actor.remote())
        begun = [actor.place.remote() for actor in actors]
        while ray.wait(begun, num_returns=num_ranks, timeout=_SECONDS_TO_BEGIN)[1]:
            if may_move and not group.wait(_SECONDS_BETWEEN_LOOKS):
                raise WorkerLostError("a node died before all ranks had begun")
        places = ray.get(begun)
        yield sorted(zip(places, actors, strict=True), key=lambda each: each[0])
    finally:
        for actor in actors:
            ray.kill(actor)
        if own is not None:
            remove_placement_group(own)


def _reports_of(
    ranks: Sequence[tuple["_Place", Any]],
    reports: Callable[..., Iterator[R]],
    setup: TrainingSetup,
    options: Mapping[str, object],
) -> Generator[R, None, None]:
    """Yields reports until the ranks end. They pause while the reader has a report, so they can be killed then.

    Raises:
        RayError: A rank died, or raised.
    """
    address = ray.get(ranks[0][1].open_store.remote())
    begun = [
        actor.begin.remote(reports, rank, len(ranks), address, _gpus_beside(place, ranks), setup, options)
        for rank, (place, actor) in enumerate(ranks)
    ]
    _first_that_counts(begun)
    while (report := _first_that_counts([actor.advance.remote() for _, actor in ranks])) is not None:
        yield report


def _first_that_counts(work: Sequence[ray.ObjectRef]) -> Any:
    """The first rank's report once all ranks have one; or the last report of any rank, for which others may wait."""
    first, left = None, list(work)
    while left:
        (done, *_), left = ray.wait(left, num_returns=1)
        try:
            report = ray.get(done)
        except RayTaskError as error:
            if isinstance(failure_of(error), WorkersFailedError):  # a rank also raises if another one dies
                ray.get(ray.wait(left, num_returns=len(left), timeout=_SECONDS_TO_DIE)[0])
            raise
        if report is not None and report["status"] != "running":
            return report
        if done == work[0]:
            first = report
    return first


def _gpus_beside(place: "_Place", ranks: Sequence[tuple["_Place", object]]) -> list[str]:
    """GPUs of all ranks on the same node. NCCL copies between GPUs directly if a process sees both."""
    return sorted(other.gpu for other, _ in ranks if other.node == place.node)


@dataclass(frozen=True, kw_only=True, order=True)
class _Place:
    """Place of a rank.

    Args:
        gpu: Id of the rank's GPU on the node; empty if it has none.
    """

    node: str
    gpu: str


class _Rank:
    """One of the processes of a training."""

    def place(self) -> _Place:
        context = ray.get_runtime_context()
        return _Place(node=context.get_node_id(), gpu="".join(context.get_accelerator_ids().get("GPU", [])))

    def open_store(self) -> tuple[str, int]:
        """Opens the store of the process group on this rank, the first one. Returns its address and port."""
        host = ray.util.get_node_ip_address()
        self._store = _store(host, 0, is_master=True, wait_for_workers=False)
        return host, self._store.port

    def begin(
        self,
        reports: Callable[..., Iterator[Report]],
        rank: int,
        num_ranks: int,
        address: tuple[str, int],
        gpus: Sequence[str],
        setup: TrainingSetup,
        options: Mapping[str, object],
    ) -> None:
        """Joins the process group. `gpus` are those of all ranks on this node."""
        host, port = address
        if ipaddress.ip_address(host).is_loopback:  # otherwise, gloo listens on the address of the host name
            os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
        device, backend = setup.torch_device, "gloo"
        if setup.device == "cuda":
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
            device, backend = torch.device("cuda", gpus.index(self.place().gpu)), "nccl"
            torch.cuda.set_device(device)
        store = self._store if rank == 0 else _store(host, port)
        dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks, timeout=_PATIENCE)
        self._reports = reports(setup=setup, device=device, **options)

    def advance(self) -> Report | None:
        """Trains until the next report; None if there are no more."""
        return next(self._reports, None)


def _store(host: str, port: int, **options: Any) -> Any:
    """The store through which ranks meet."""
    store: Any = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]  # documented, but not in `__all__`
    return store(host, port, timeout=_PATIENCE, **options)


def _loopback() -> str:
    """Name of the network interface: `lo`, `lo0`, `loopback_0`."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
