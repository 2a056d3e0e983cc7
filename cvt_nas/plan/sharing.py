"""Measures on one GPU how many trials share a GPU best, for `--gpus-per-trial auto`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from cvt_nas.arch import ArchConfig
from cvt_nas.config import Experiment
from cvt_nas.engine import TrainingSetup
from cvt_nas.engine.memory import LEAST_USEFUL, Room
from cvt_nas.engine.speed import Speed, Timing, measure_training
from cvt_nas.errors import CvtNasError, first_line
from cvt_nas.launch.devices import WorkersFailedError
from cvt_nas.launch.resources import GpusPerTrial, Resources
from cvt_nas.launch.tasks import SharedGpu
from cvt_nas.plan.machine import three_networks
from cvt_nas.run import RunFolder

# If more trials run at once, fewer have ended when the sampler proposes the next one, and each has less memory. A gain
# below this is not worth that. It is also hard to distinguish from noise in two seconds.
GAIN = 0.1
_MOST = 16  # processes on a GPU, since CUDA alone takes some hundred MiB of its memory for each
_SECONDS, _SECONDS_OF_LARGEST = 2.0, 0.4
_TRIES = 3  # to train at the same time, as a new process takes seconds to load what others have loaded


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharing:
    """The number of trials that share a GPU, and the reason for it.

    Args:
        trials_per_gpu: Number of trials on a GPU, a power of 2.
        rates: Images per second of all processes together, by the number of processes.
        reason: Reason why no more trials share a GPU.
    """

    trials_per_gpu: int
    rates: Mapping[int, float]
    reason: str

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Self | None:
        """The sharing that a run began with. None if it was not measured."""
        found = manifest.get("sharing")
        if found is None:
            return None
        rates = {int(number): rate for number, rate in found["images_per_second"].items()}
        return cls(trials_per_gpu=found["trials_per_gpu"], rates=rates, reason=found["reason"])

    def to_json(self) -> dict[str, object]:
        rates = {str(number): rate for number, rate in self.rates.items()}
        return {"trials_per_gpu": self.trials_per_gpu, "images_per_second": rates, "reason": self.reason}

    def divide(self, resources: Resources) -> Resources:
        """`resources` with `trials_per_gpu` trials on each GPU. Unchanged without GPUs."""
        return resources.shared(1 / self.trials_per_gpu) if resources.num_gpus else resources

    def describe(self, num_gpus: int) -> str:
        """One line of text. One of `num_gpus` GPUs was measured."""
        of = ", ".join(f"{number}: {rate:,.0f}" for number, rate in self.rates.items())
        measured = f"images/s by the number of processes on {'it' if num_gpus == 1 else f'one of {num_gpus}'}: {of}; "
        return f"{self.outcome}; {measured if of else ''}{self.reason}"

    @property
    def outcome(self) -> str:
        number = self.trials_per_gpu
        return "each trial has a GPU of its own" if number == 1 else f"{number} trials share a GPU"


def choose_sharing(rate_of: Callable[[int], float | str], *, most: int, reason: str) -> Sharing:
    """Doubles the number of processes on a GPU, up to `most`, as long as the total rate grows by at least `GAIN`.

    Args:
        rate_of: Images per second of a number of processes together, or the reason why they cannot train.
        reason: Reason why there may be no more than `most`.
    """
    number, rates = 1, dict[int, float]()
    for tried in (2**power for power in range(most.bit_length())):
        found = rate_of(tried)
        if isinstance(found, str):
            reason = found
            break
        rates[tried] = found
        if tried > 1 and found < (1 + GAIN) * rates[number]:
            reason = f"{tried} gain less than {GAIN:.0%} over {number}"
            break
        number = tried
    return Sharing(trials_per_gpu=number, rates=rates, reason=reason)


def most_on_a_gpu(resources: Resources, *, num_trials: int) -> tuple[int, str]:
    """Largest number of processes on a GPU, and the reason for this limit.

    Each process needs at least one CPU, which launches the work of the GPU. With less, small networks would wait for
    launches.
    """
    num_gpus = resources.num_gpus
    trials = f"{num_trials} trial{'' if num_trials == 1 else 's'}"
    bounds = [
        (_MOST, f"no more than {_MOST} are tried"),
        (int(resources.cpus_per_gpu), f"each needs a CPU, and there are {resources.cpus_per_gpu:g} for a GPU"),
        (
            math.ceil(num_trials / num_gpus),
            f"there are {num_gpus} GPUs for {trials}" if num_gpus > 1 else f"{trials} in all",
        ),
    ]
    most, reason = min(bounds, key=lambda bound: bound[0])
    return max(most, 1), reason


def find_sharing(experiment: Experiment, setup: TrainingSetup, resources: Resources, *, num_trials: int) -> Sharing:
    """Trains the median network of the space in 1, 2, 4, ... processes on one GPU, and compares their total rates.

    The processes are Ray workers. Each has its share of the GPU's memory. The largest network must still train in that
    share as it does alone; see `is_starved`. Other GPUs are assumed to be the same.

    Raises:
        WorkersFailedError: A network cannot be trained in one process.
    """
    most, reason = most_on_a_gpu(resources, num_trials=num_trials)
    if most == 1:
        return Sharing(trials_per_gpu=1, rates={}, reason=reason)
    with SharedGpu(_Process, num_cpus=resources.cpus_per_gpu, most=most) as gpu:
        return choose_sharing(_Probe(experiment, setup, resources, gpu).rate, most=most, reason=reason)


def divide_as_asked(
    experiment: Experiment,
    setup: TrainingSetup,
    resources: Resources,
    *,
    asked: GpusPerTrial | None,
    num_trials: int,
    run: RunFolder | None,
    on_note: Callable[[str], None] | None,
) -> tuple[Resources, Sharing | None]:
    """Divides the GPUs of a search among trials in the best way, if `asked` is `auto` or `run` did so before.

    A resumed `run` keeps the number that was found for it, unless another number is asked for.

    Returns:
        The divided resources, and the sharing for the manifest. The sharing is None if it was not asked for or could
        not be measured. If networks cannot be trained, the trials record why.
    """
    known = None if run is None else Sharing.of(run.manifest)
    if asked not in (None, "auto") or (asked is None and known is None):
        return resources, None
    say = on_note or _ignore
    if known is not None:
        say(f"{known.outcome}, as was found when the run began")
        return known.divide(resources), known
    try:
        found = find_sharing(experiment, setup, resources, num_trials=num_trials)
    except (CvtNasError, WorkersFailedError) as error:
        say(f"how many trials share a GPU best cannot be told, so each has one of its own: {first_line(error)}")
        return resources, None
    say(found.describe(resources.num_gpus))
    if run is not None:
        run.amend_manifest(sharing=found.to_json())
    return found.divide(resources), found


def rate_together(processes: Sequence[Sequence[Timing]]) -> float | None:
    """Images per second of all processes together, in the time in which all of them trained.

    None if that time is less than half of the longest training time of a process.

    Args:
        processes: Batches of each process. They must follow each other without a gap.
    """
    start, end = max(batches[0].began for batches in processes), min(batches[-1].ended for batches in processes)
    longest = max(batches[-1].ended - batches[0].began for batches in processes)
    if end - start < longest / 2:
        return None
    images = 0.0
    for batch in (batch for batches in processes for batch in batches):
        within = min(batch.ended, end) - max(batch.began, start)
        images += batch.num_images * max(within, 0.0) / (batch.ended - batch.began)
    return images / (end - start)


def delay_between(processes: Sequence[Sequence[Timing]]) -> float:
    """Seconds from the first batch of the first process to the first batch of the last."""
    begins = [batches[0].began for batches in processes]
    return max(begins) - min(begins)


class _Process:
    """One of the processes that share a GPU."""

    def open(self, setup: TrainingSetup) -> None:
        setup.open_data()

    def train(self, setup: TrainingSetup, arch: ArchConfig, num_processes: int, seconds: float) -> Speed | None:
        torch.set_num_threads(setup.num_threads)
        setup = setup.fitting_shared_memory(num_processes=num_processes)
        return measure_training(
            arch, setup.training, setup.open_data(),
            device=setup.torch_device, seconds=seconds, memory_share=setup.memory_share, repeats=True,
        )  # fmt: skip


class _Probe:
    """Measures a growing number of processes on a GPU. Each trial of `resources` has one GPU."""

    def __init__(self, experiment: Experiment, setup: TrainingSetup, resources: Resources, gpu: SharedGpu) -> None:
        space, genomes = experiment.space, three_networks(experiment)
        self._median, self._largest = (space.decode(genomes[name]) for name in ("median", "largest"))
        self._setup, self._resources, self._gpu = setup, resources, gpu
        self._alone: Room | None = None

    def rate(self, number: int) -> float | str:
        """Images per second of `number` processes together, or the reason why they cannot train."""
        self._gpu.add_up_to(number)
        shared = self._resources.shared(1 / number)
        setup = self._setup.on(shared.device, num_threads=shared.num_threads, gpus=shared.gpus_per_trial)
        try:
            self._gpu.together("open", setup)  # all have started, so the next call begins at the same time
            largest = self._gpu.together("train", setup, self._largest, number, _SECONDS_OF_LARGEST)
            rooms = [speed.room for speed in largest if speed is not None and speed.room is not None]
            if number == 1:
                self._alone = next(iter(rooms), None)
            if None in largest or any(is_starved(room, self._alone) for room in rooms):
                return f"{number} leave too little memory for the largest network"
            delay = 0.0
            for _ in range(_TRIES):
                median = self._gpu.together("train", setup, self._median, number, _SECONDS + 2 * delay)
                if None in median:
                    return f"{number} leave too little memory for the median network"
                processes = [speed.batches for speed in median]
                if (rate := rate_together(processes)) is not None:
                    return rate
                delay = delay_between(processes)
        except WorkersFailedError as error:
            if number == 1:
                raise
            return f"{number} processes failed: {error}"
        return f"{number} did not train at the same time"


def is_starved(room: Room, alone: Room | None) -> bool:
    """Whether a network lacks memory in its share, but not alone: it has fewer images at once than batch norm needs, or
    must compute blocks again."""
    if alone is None:
        return False
    return room.micro_batch < min(alone.micro_batch, LEAST_USEFUL) or (
        room.activation_checkpointing and not alone.activation_checkpointing
    )


def _ignore(note: str) -> None:
    del note
