"""Finds the speeds for a plan: measured on the slots of this machine, or stated for another machine."""

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import torch

from cvt_nas.arch import ArchConfig
from cvt_nas.config import Experiment, is_streamed
from cvt_nas.data import SPLITS, Split
from cvt_nas.engine import Teacher, TrainingSetup, measure_teacher
from cvt_nas.engine.footprint import Footprint, footprint
from cvt_nas.engine.latency import measure_latency
from cvt_nas.engine.speed import Speed, measure_loader, measure_supernet, measure_training
from cvt_nas.engine.subnets import SubnetSampler
from cvt_nas.errors import ResourceError
from cvt_nas.launch.judges import num_judges, supernet_workers
from cvt_nas.launch.private import worker_niceness
from cvt_nas.launch.resources import Resources, check_gpus_per_trial, slots_of
from cvt_nas.launch.tasks import on_devices
from cvt_nas.model import CvT
from cvt_nas.plan.machine import Machine, Name, NetworkSpeed, three_networks
from cvt_nas.processes import end_with_parent
from cvt_nas.space import Genome

SECONDS = 2.0  # per measurement
QUICK_SECONDS = 0.4  # at the beginning of a search
_MOST_SECONDS = 300.0  # of a whole measurement on CPUs; under load it takes 30 s
_MOST_SLOTS = 16  # slots that are measured at once
_FORWARD_SHARE = 1 / 3  # of a training step, forward and backward; Kaplan et al. 2020, arXiv:2001.08361, section 2.1
_CPUS_OF_GPU = 16  # CPUs per GPU of machines that are for rent
_LOADED_BY_CORE = 345  # images of 500 x 375 per second, if RandAugment runs on the GPU; benchmarks/README.md
_STATED_GIB = 80
_CPU_BATCH = 8  # a pass of a larger one takes long
_MOST_WAITING = 1.3  # see `Measured`; if it is greater, a note says so
_BUSY = "other processes kept the CPUs busy while this was measured; times are of a search beside them"
_BEGIN = 0.2  # seconds, for Ray and initial weights; "What of a trial is not training" in benchmarks/README.md
RAY_CPU_SECONDS, _WORKER_CPU_SECONDS = 4.0, 7.0  # to start Ray, and a worker that imports torch
_STEPS_DRAWN = 32  # of a supernet, for their mean FLOPs
_STATED_BEGIN, _STATED_START = 2.0, 20.0  # seconds, with GPUs; the start is that of Ray, and of workers
_SIZES: Mapping[str, tuple[int, int]] = {"imagenet": (1_281_167, 50_000)}  # training and test images, as published


@dataclass(frozen=True, kw_only=True, slots=True)
class _OfSlot:
    """Measurements of one slot.

    Args:
        speeds: Speed of each network. None if the memory of the device is too small for it.
        loader: Images per second of the loader.
        supernet: Seconds per image of the supernet's training on one device. None without a supernet, or if the memory
            is too small.
        teacher: Seconds per image of the teacher. Only the first slot measures it.
        judging: See `Machine`.
        begun: Start of the measurement, by `time.time`.
        waiting: Wall seconds per CPU second. If it is above 1, other processes used the CPU.
    """

    speeds: dict[Name, Speed | None]
    loader: float
    supernet: float | None
    teacher: float | None
    judging: float | None
    begun: float
    waiting: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Measurements of slots that ran at once.

    Args:
        genomes: The three networks that were measured.
        worker_start: Seconds until a worker had begun, or would have begun if no workers were used.
    """

    genomes: Mapping[Name, Genome]
    slots: Sequence[_OfSlot]
    worker_start: float

    @property
    def waiting(self) -> float:
        """Mean of `waiting` over the slots; see `_OfSlot`."""
        return _mean([slot.waiting for slot in self.slots])


def measure_cpus(
    experiment: Experiment,
    setup: TrainingSetup,
    resources: Resources,
    *,
    seconds: float,
    teacher: Teacher | None = None,
) -> Measured:
    """Trains the three networks of the space for some seconds each, in as many processes at once as there are slots.

    The processes are forked, so that they need not import torch. In a Ray worker, that import takes longer than the
    measurement. They have the same niceness as Ray workers.

    Raises:
        ResourceError: A process was killed, or took more than `_MOST_SECONDS`.
    """
    number, genomes = min(resources.num_slots, _MOST_SLOTS), three_networks(experiment)
    tasks = _tasks(experiment, genomes, setup, resources, seconds, teacher, number)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    begin = {"initializer": _begin, "initargs": (worker_niceness(), os.getpid(), _MOST_SECONDS)}
    with warnings.catch_warnings(), ProcessPoolExecutor(number, mp_context=context, **begin) as pool:
        warnings.simplefilter("ignore", DeprecationWarning)  # about a fork beside threads, whose locks it does not hold
        running = [pool.submit(_measure, *task) for task in tasks]
        try:
            slots = [each.result() for each in running]
        except BrokenProcessPool as error:
            raise ResourceError(
                f"the speed of this machine was not measured: a process was killed, or took more than "
                f"{_MOST_SECONDS:g} s because the CPUs are busy"
            ) from error
    start = _WORKER_CPU_SECONDS * _mean([slot.waiting for slot in slots])
    return Measured(genomes=genomes, slots=slots, worker_start=start)


def _begin(niceness: int, parent: int, most_seconds: float) -> None:
    """Lowers the priority of a process, which ends with its parent or after `most_seconds`."""
    os.nice(niceness)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has the handlers of a search
    end_with_parent(parent, most_seconds=most_seconds)


def measure_workers(
    experiment: Experiment,
    setup: TrainingSetup,
    resources: Resources,
    *,
    seconds: float,
    teacher: Teacher | None = None,
) -> Measured:
    """Like `measure_cpus`, but on Ray workers, each with a trial's share of the GPUs.

    If the GPUs of a trial share a batch, one of them is measured. The speed is assumed to grow in proportion to their
    number.
    """
    number, genomes = min(resources.num_slots, _MOST_SLOTS), three_networks(experiment)
    tasks = _tasks(experiment, genomes, setup, resources, seconds, teacher, number)
    started = time.time()
    slots = on_devices(resources, _measure, tasks)
    return Measured(genomes=genomes, slots=slots, worker_start=_mean([slot.begun for slot in slots]) - started)


_Task = tuple[TrainingSetup, dict[Name, ArchConfig], float, int, int, Teacher | None, bool]


def _tasks(
    experiment: Experiment,
    genomes: Mapping[Name, Genome],
    setup: TrainingSetup,
    resources: Resources,
    seconds: float,
    teacher: Teacher | None,
    number: int,
) -> list[_Task]:
    """Arguments of `_measure` for each slot."""
    archs: dict[Name, ArchConfig] = {name: experiment.space.decode(genome) for name, genome in genomes.items()}
    devices = resources.num_workers, _supernet_devices(setup, resources)
    confirm = experiment.search.confirm
    is_judged = confirm is not None and confirm.as_ is not None and setup.device != "cpu"
    return [(setup, archs, seconds, *devices, teacher if slot == 0 else None, is_judged) for slot in range(number)]


def _supernet_devices(setup: TrainingSetup, resources: Resources) -> int:
    if setup.shared is None:
        return 1
    return supernet_workers(resources, batch_size=setup.shared.config.batch_size)[0]


def machine_of(
    measured: Measured,
    experiment: Experiment,
    setup: TrainingSetup,
    resources: Resources,
    *,
    scale: float = 1.0,
    start: float = 0.0,
) -> Machine:
    """The machine that was measured.

    Args:
        scale: GPUs of the search as a multiple of the GPUs here.
        start: Seconds until the search begins to train.

    Raises:
        ResourceError: The memory of the device is too small for a network or the supernet.
    """
    space, training = experiment.space, setup.training
    networks = []
    for name, genome in measured.genomes.items():
        arch = space.decode(genome)
        known = [speed for slot in measured.slots if (speed := slot.speeds[name]) is not None]
        if not known:
            raise ResourceError(f"the {name} network: the device has no memory for one image; make the space smaller")
        rooms = [speed.room for speed in known if speed.room is not None]
        networks.append(NetworkSpeed(
            name=name, arch_id=arch.id, cost=space.cost(genome),
            image_bytes=footprint(arch, training).image_bytes,
            micro_batch=min(
                (room.micro_batch for room in rooms), default=training.batch_size // resources.num_workers
            ),
            activation_checkpointing=any(room.activation_checkpointing for room in rooms),
            step=_mean([speed.step for speed in known]) / resources.num_workers,
            evaluation=_mean([speed.evaluation for speed in known]),
        ))  # fmt: skip
    supernet = None
    if setup.shared is not None:
        seconds = [slot.supernet for slot in measured.slots if slot.supernet is not None]
        if not seconds:
            raise ResourceError("the supernet: the device has no memory for one image; make the space smaller")
        supernet = _mean(seconds) / _supernet_devices(setup, resources) / scale
    speeds = [speed for name in measured.genomes for slot in measured.slots if (speed := slot.speeds[name]) is not None]
    num_workers = setup.num_loaders
    load = _mean([1 / slot.loader for slot in measured.slots] if num_workers else [speed.load for speed in speeds])
    return Machine(
        num_slots=round(resources.num_slots * scale),
        num_gpus=round(resources.num_gpus * scale),
        num_judges=round(num_judges(resources) * scale),
        num_loaders=num_workers,
        networks=tuple(networks),
        load=load / resources.num_workers,
        start=start,
        worker_start=measured.worker_start,
        begin=_BEGIN + min(speed.begin for speed in speeds),
        epoch_end=_mean([speed.epoch_end for speed in speeds]),
        supernet_step=supernet,
        teacher=next((slot.teacher for slot in measured.slots if slot.teacher is not None), None),
        judging=_mean(judging) if (judging := [s.judging for s in measured.slots if s.judging is not None]) else None,
        notes=(_BUSY,) if resources.device == "cpu" and measured.waiting > _MOST_WAITING else (),
    )


def _measure(
    setup: TrainingSetup,
    archs: Mapping[Name, ArchConfig],
    seconds: float,
    num_devices: int,
    supernet_devices: int,
    teacher: Teacher | None,
    is_judged: bool,
) -> _OfSlot:
    """Measures one slot. It runs in a process of its own."""
    begun = time.time()
    torch.set_num_threads(setup.num_threads)
    data, device = setup.open_data(), setup.torch_device
    started, cpu_started = time.perf_counter(), time.process_time()
    speeds: dict[Name, Speed | None] = {
        name: measure_training(
            arch, setup.training, data,
            device=device, seconds=seconds, num_devices=num_devices, memory_share=setup.memory_share,
        )
        for name, arch in archs.items()
    }  # fmt: skip
    waiting = (time.perf_counter() - started) / max(time.process_time() - cpu_started, 1e-9)
    supernet = None
    if setup.shared is not None:
        supernet = measure_supernet(setup.shared, data, device=device, seconds=seconds, num_devices=supernet_devices)
    loader = measure_loader(data, setup.training, device=device, seconds=seconds)
    answering = None if teacher is None else measure_teacher(setup, teacher, seconds=seconds)
    return _OfSlot(
        speeds=speeds, loader=loader, supernet=supernet, teacher=answering,
        judging=_seconds_on_cpu(archs["median"], seconds) if is_judged else None,
        begun=begun, waiting=max(waiting, 1.0),
    )  # fmt: skip


def _seconds_on_cpu(arch: ArchConfig, seconds: float) -> float:
    """Seconds per image of a network on the CPUs of this process, measured for about `seconds`."""
    found = measure_latency(CvT(arch), device=torch.device("cpu"), batch_size=_CPU_BATCH, max_seconds=seconds)
    return found.median_ms / 1e3 / _CPU_BATCH


def state_machine(
    experiment: Experiment,
    *,
    num_gpus: int,
    gpus_per_trial: float,
    images_per_second: float,
    loader_images_per_second: float | None,
    gpu_memory: float | None,
) -> Machine:
    """Describes another machine with GPUs, from stated values.

    Args:
        gpus_per_trial: See `claim_resources`.
        images_per_second: Training speed of one GPU, with the batch and precision of `training`. It refers to the first
            anchor of the space, or to the median network if there are no anchors. Seconds per image of other networks
            are in proportion to their FLOPs.
        loader_images_per_second: Speed of the loader for one GPU. If None, it is estimated from `data.num_workers`.
        gpu_memory: GiB per GPU. If None, it is 80.

    Raises:
        ResourceError: A trial needs more GPUs than there are.
    """
    space, training, notes = experiment.space, experiment.training, list[str]()
    archs: dict[Name, ArchConfig] = {name: space.decode(genome) for name, genome in three_networks(experiment).items()}
    named = next(iter(experiment.anchors.items()), None)
    reference, flops = "the median network", space.cost(space.encode(archs["median"])).flops
    if named is not None:
        reference, flops = named[0], space.cost(named[1]).flops
    notes.append(f"stated: {images_per_second:,.0f} images/s of {reference} on a GPU; others by their FLOPs")
    if gpu_memory is None:
        notes.append(f"taken to be: {_STATED_GIB} GiB a GPU (--gpu-memory)")
    is_of_files = is_streamed(experiment.data.dataset)
    said = experiment.data.num_workers
    num_workers = _CPUS_OF_GPU - 1 if said == "auto" else min(int(said), _CPUS_OF_GPU)
    num_workers = num_workers if is_of_files else 0
    if loader_images_per_second is None and is_of_files:
        loader_images_per_second = _LOADED_BY_CORE * max(num_workers, 1)
        notes.append(
            f"taken to be: a loader of {loader_images_per_second:,} images/s, {_LOADED_BY_CORE} by each of "
            f"{num_workers} processes (--loader-images-per-second)"
        )
    share, num_devices = min(gpus_per_trial, 1.0), max(int(gpus_per_trial), 1)
    check_gpus_per_trial(gpus_per_trial)
    num_slots = slots_of(num_gpus, gpus_per_trial)
    if num_slots == 0:
        raise ResourceError(f"--gpus-per-trial {gpus_per_trial:g}: more than the {num_gpus} of --gpus")
    memory_bytes = int(share * (gpu_memory or _STATED_GIB) * 2**30)

    def step(of: float) -> float:
        return of / flops / images_per_second

    networks = []
    for name, arch in archs.items():
        cost, taken = space.cost(space.encode(arch)), footprint(arch, training)
        micro_batch, recomputes = _room(taken, experiment, num_devices, memory_bytes)
        seconds = step(cost.flops) / share
        networks.append(NetworkSpeed(
            name=name, arch_id=arch.id, cost=cost, image_bytes=taken.image_bytes, micro_batch=micro_batch,
            activation_checkpointing=recomputes, step=seconds / num_devices, evaluation=_FORWARD_SHARE * seconds,
        ))  # fmt: skip
    supernet = None
    if experiment.supernet is not None and experiment.search.has_supernet:
        supernet = step(_flops_of_step(experiment)) / num_gpus
    return Machine(
        num_slots=num_slots,
        num_gpus=num_gpus,
        num_judges=max(num_slots, num_gpus),
        num_loaders=num_workers,
        networks=tuple(networks),
        load=0.0 if loader_images_per_second is None else 1 / (loader_images_per_second * gpus_per_trial),
        start=_STATED_START,
        worker_start=_STATED_START,
        begin=_STATED_BEGIN,
        supernet_step=supernet,
        notes=tuple(notes),
    )


def _room(taken: Footprint, experiment: Experiment, num_devices: int, memory_bytes: int) -> tuple[int, bool]:
    training = experiment.training
    return taken.room(training, batch_size=training.batch_size // num_devices, memory_bytes=memory_bytes)


def _flops_of_step(experiment: Experiment) -> float:
    """Mean FLOPs of all subnets of one step of the supernet, over steps that are drawn as the training does."""
    space, config = experiment.space, experiment.supernet
    assert config is not None, "the caller knows that there is a supernet"
    sampler = SubnetSampler(space, config, seed=experiment.search.seed)
    drawn = [sampler.draw(max(config.epochs - 1, 0), step) for step in range(_STEPS_DRAWN)]
    return sum(space.cost(subnet.genome).flops for subnets in drawn for subnet in subnets) / _STEPS_DRAWN


def sizes_of(experiment: Experiment, setup: TrainingSetup) -> dict[Split, int]:
    """Number of images of each split. For ImageNet without a folder, these are the published numbers. Raises DataError
    if there are no data."""
    config = experiment.data
    if config.dataset in _SIZES and setup.data_root is None:
        train, test = _SIZES[config.dataset]
        search = round(config.search_fraction * train)
        return {"train": round(config.train_fraction * (train - search)), "search": search, "test": test}
    data = setup.open_data()
    return {split: data.num_images(split) for split in SPLITS}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
