"""Resources of a search: Ray is started or joined, and checked before a trial could wait for it forever."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Self

import ray

from cvt_nas.errors import ResourceError
from cvt_nas.launch.cluster import join_cluster, start_local_ray

GpusPerTrial = float | Literal["auto"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """Slots for trials, and the resources of each slot.

    Args:
        num_slots: Trials that run side by side.
        cpus_per_trial, gpus_per_trial: In Ray's units. Trials with fractions share one.
        device: Device that a trial trains on.
        num_nodes: Machines of the cluster.
        num_gpus: All GPUs that may be used, including those that are left over if slots have several.
        cpus_per_gpu: CPUs that every node has for each of its GPUs.
    """

    num_slots: int
    cpus_per_trial: float
    gpus_per_trial: float
    device: Literal["cpu", "cuda"]
    num_nodes: int = 1
    num_gpus: int = 0
    cpus_per_gpu: float = 0

    @property
    def num_workers(self) -> int:
        """Processes of a trial: one for each GPU, which train by DDP."""
        return max(int(self.gpus_per_trial), 1)

    @property
    def cpus_per_worker(self) -> float:
        return self.cpus_per_trial / self.num_workers

    @property
    def num_threads(self) -> int:
        """Threads of each process of a trial, so that processes do not compete for cores."""
        return max(int(self.cpus_per_worker), 1)

    def shared(self, gpus_per_trial: float) -> Self:
        """Returns the same GPUs with a fraction of a GPU for each trial. CPUs are divided accordingly."""
        assert self.gpus_per_trial == 1, "several GPUs of a trial are not divided"
        on_each = slots_of(1, gpus_per_trial)
        return replace(
            self,
            num_slots=on_each * self.num_slots,
            cpus_per_trial=_whole_cpus(self.cpus_per_gpu / on_each),
            gpus_per_trial=gpus_per_trial,
        )

    def describe(self) -> str:
        on = "CPU" if self.gpus_per_trial == 0 else f"GPU{'' if self.gpus_per_trial == 1 else 's'}"
        each = f"{self.cpus_per_trial:g} CPU" if on == "CPU" else f"{self.gpus_per_trial:g} {on}"
        return f"{self.num_slots} trial{'s side by side' if self.num_slots > 1 else ' at a time'}, {each} each"


@contextmanager
def claim_resources(
    *,
    gpus: int | None = None,
    gpus_per_trial: GpusPerTrial | None = None,
    cpus: int | None = None,
    address: str | None = None,
    device: Literal["cpu", "cuda"] | None = None,
) -> Iterator[Resources]:
    """Starts or joins Ray, and divides its resources into slots. Ray ends with the block if it was started here.

    Args:
        gpus: GPUs to use; None for all, 0 for the CPU.
        gpus_per_trial: A fraction below 1 or a whole number; None for 1. With `auto`, each trial has one GPU until
            `cvt_nas.plan.sharing` has found how many can share it.
        cpus: CPUs to use; None for all.
        address: Address of a Ray cluster to join; None for this machine only, on loopback. If the caller has
            initialised Ray, that is used instead.
        device: Device of trials; None for `cuda` if they have a GPU. With `cpu`, GPUs may be logical.

    Raises:
        ResourceError: There are fewer resources than asked for, or no node can hold a single trial.
    """
    check_gpus_per_trial(gpus_per_trial)
    if gpus == 0:
        check_has_no_share(gpus_per_trial, gpus=gpus)
    started = not ray.is_initialized()
    if started:
        _start_ray(gpus=gpus, cpus=cpus, address=address, local_device=device)
    try:
        yield _divide(gpus=gpus, gpus_per_trial=gpus_per_trial, cpus=cpus, device=device)
    finally:
        if started:
            ray.shutdown()


def check_gpus_per_trial(number: GpusPerTrial | None) -> None:
    """Raises ResourceError if Ray would not understand the number."""
    if isinstance(number, float | int) and not (0 < number < 1 or number == int(number) >= 1):
        raise ResourceError(f"--gpus-per-trial: got {number:g}, must be a fraction below 1 or a whole number")


def check_has_no_share(gpus_per_trial: GpusPerTrial | None, *, gpus: int | None) -> None:
    """Raises ResourceError if trials on CPUs are given a number of GPUs."""
    if gpus_per_trial is None:
        return
    said = gpus_per_trial if gpus_per_trial == "auto" else f"{gpus_per_trial:g}"
    if gpus == 0:
        raise ResourceError(f"--gpus-per-trial: got {said} with --gpus 0; drop one of the two")
    raise ResourceError(f"--gpus-per-trial {said}: there is no GPU here")


def _start_ray(*, gpus: int | None, cpus: int | None, address: str | None, local_device: str | None) -> None:
    if address is not None:
        join_cluster(address)
        return
    there = 0 if local_device == "cpu" else num_local_gpus()
    if gpus is not None and gpus > there and local_device != "cpu":
        raise ResourceError(f"--gpus {gpus}: this machine has {there}")
    start_local_ray(num_cpus=_num_local_cpus(cpus), num_gpus=there if gpus is None else gpus)


def _num_local_cpus(wanted: int | None) -> int:
    from joblib import cpu_count  # in a container, counts what it may use

    there = cpu_count()
    if wanted is not None and wanted > there:
        raise ResourceError(f"--cpus {wanted}: this machine has {there}")
    return there if wanted is None else wanted


def local_cpus(cpus: int | None) -> Resources:
    """Resources that `claim_resources` would find on this machine without GPUs, or with so many `cpus`.

    Raises:
        ResourceError: There are fewer CPUs.
    """
    return _of_cpus(_num_local_cpus(cpus), num_nodes=1)


def _of_cpus(number: int, *, num_nodes: int) -> Resources:
    return Resources(num_slots=number, cpus_per_trial=1, gpus_per_trial=0, device="cpu", num_nodes=num_nodes)


def num_local_gpus() -> int:
    """Number of GPUs that torch sees on this machine."""
    import torch

    return torch.cuda.device_count()


def _divide(
    *, gpus: int | None, gpus_per_trial: GpusPerTrial | None, cpus: int | None, device: Literal["cpu", "cuda"] | None
) -> Resources:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    num_cpus = int(sum(node.get("CPU", 0) for node in nodes))
    if gpus is not None and gpus > num_gpus:
        raise ResourceError(f"--gpus {gpus}: the cluster has {num_gpus}")
    if cpus is not None and cpus > num_cpus:
        raise ResourceError(f"--cpus {cpus}: the cluster has {num_cpus}")
    use_gpus = num_gpus if gpus is None else gpus
    use_cpus = num_cpus if cpus is None else cpus
    if use_gpus == 0:
        check_has_no_share(gpus_per_trial, gpus=gpus)
        if use_cpus < 1:
            raise ResourceError("the cluster has no CPU for a trial")
        return _of_cpus(use_cpus, num_nodes=len(nodes))
    per_trial = 1.0 if gpus_per_trial is None or gpus_per_trial == "auto" else gpus_per_trial
    whole = max(per_trial, 1.0)
    by_node = [slots_of(node.get("GPU", 0), whole) for node in nodes]
    if sum(by_node) == 0:
        most = max(int(node.get("GPU", 0)) for node in nodes)
        raise ResourceError(f"--gpus-per-trial {per_trial:g}: no node has more than {most}")
    num_slots = min(sum(by_node), slots_of(use_gpus, whole))
    if num_slots == 0:
        raise ResourceError(f"--gpus-per-trial {per_trial:g}: more than the {use_gpus} of --gpus")
    # the node with the fewest CPUs for its slots decides, so that GPUs run out before CPUs
    share = min(node.get("CPU", 0) / slots for node, slots in zip(nodes, by_node, strict=True) if slots)
    if share == 0:
        raise ResourceError("a node with GPUs has no CPU for its trials")
    with_both = [(int(node.get("GPU", 0)), node.get("CPU", 0)) for node in nodes if node.get("GPU") and node.get("CPU")]
    use_gpus = min(use_gpus, sum(on_node for on_node, _ in with_both))
    share_of_gpu = min(on_node_cpus / on_node for on_node, on_node_cpus in with_both)
    found = Resources(
        num_slots=num_slots,
        cpus_per_trial=_whole_cpus(min(share, use_cpus / num_slots)),
        gpus_per_trial=whole,
        device=device or "cuda",
        num_nodes=len(nodes),
        num_gpus=use_gpus,
        cpus_per_gpu=_whole_cpus(min(share_of_gpu, use_cpus / use_gpus)),
    )
    return found if per_trial == whole else found.shared(per_trial)


def _whole_cpus(share: float) -> float:
    """Ray divides a CPU only among those that ask for less than one."""
    return int(share) if share >= 1 else share


def slots_of(gpus: float, per_trial: float) -> int:
    """Number of trials that fit. A fraction never spans two GPUs."""
    if per_trial >= 1:
        return int(gpus // per_trial)
    return int(gpus) * int(1 / per_trial + 1e-9)
