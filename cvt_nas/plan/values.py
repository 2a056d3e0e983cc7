"""The forecast of a search, as values and as text."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cvt_nas.data import Split
from cvt_nas.engine import Teacher
from cvt_nas.plan.machine import Machine
from cvt_nas.plan.option_steps import OptionSteps
from cvt_nas.propose.study import Proposal

NUM_OF_FIRST_FRONT = 3  # number of complete trials that is enough to choose from


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedRace:
    """A race on the simulated clock.

    Args:
        seconds: Seconds until the race is over.
        first_front: Seconds until `NUM_OF_FIRST_FRONT` trials are complete, or all that will be.
        num_trials: Number of all trials.
        num_complete: Number of trials that are trained in full.
        proposals: Simulated trials, in order.
        complete: Simulated trials that are trained in full, in order.
        num_epochs: Epochs of all trials together.
        ask_seconds: Mean seconds that the sampler takes for a proposal.
    """

    seconds: float
    first_front: float
    num_trials: int
    num_complete: int
    proposals: tuple[Proposal, ...]
    complete: tuple[Proposal, ...]
    num_epochs: int
    ask_seconds: float

    @property
    def mean_flops(self) -> float:
        return float(np.mean([proposal.cost.flops for proposal in self.proposals]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """What a search takes from other networks before it trains.

    Args:
        is_sorted_by_taylor: Whether initial weights are sorted by the loss on training images.
        num_bytes: Bytes of the initial weights, which take twice their size while they are sorted, and of the answers
            of a teacher.
    """

    teacher: Teacher | None = None
    is_sorted_by_taylor: bool = False
    num_bytes: int = 0


NOTHING_BEGUN = Begun()


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Settings of a search that ends in time."""

    trials: int
    epochs: int
    grace_period: int
    hours: float
    first_front_hours: float

    def lines(self) -> Iterator[str]:
        """Lines for the space file."""
        yield f"training: epochs: {self.epochs}"
        yield f"search: trials: {self.trials}, grace_period: {self.grace_period}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Forecast of a search.

    Args:
        race: The simulated race. None if trials are not trained.
        parts: Seconds of each part, in order.
        first_front: Seconds from the start of the search to the first front.
        disk_bytes, shared_memory_bytes: Largest amount in use at once.
        bottleneck: What slows the search down most, or makes it impossible.
        advice: What to change about the bottleneck.
        fit: Settings that end in a given time, if they were asked for.
        supernet: Steps of the supernet's training; see `option_steps`.
    """

    name: str
    num_trials: int
    num_images: Mapping[Split, int]
    machine: Machine
    race: SimulatedRace | None
    parts: Mapping[str, float]
    first_front: float
    disk_bytes: int
    shared_memory_bytes: int
    bottleneck: str
    advice: str
    notes: tuple[str, ...]
    fit: Fit | None = None
    supernet: OptionSteps | None = None

    @property
    def hours(self) -> float:
        return sum(self.parts.values()) / 3600

    @property
    def gpu_hours(self) -> float:
        """GPU hours of the search. It holds all its GPUs all the time."""
        return self.hours * self.machine.num_gpus

    def to_json(self) -> dict[str, Any]:
        race = self.race
        return {
            "name": self.name,
            "gpus": self.machine.num_gpus,
            "slots": self.machine.num_slots,
            "trials": self.num_trials,
            "images": dict(self.num_images),
            "networks": [network.to_json() for network in self.machine.networks],
            "loader_images_per_second": 1 / self.machine.load if self.machine.load else None,
            "epochs": 0 if race is None else race.num_epochs,
            "trained_in_full": 0 if race is None else race.num_complete,
            "sampler_seconds": 0.0 if race is None else race.ask_seconds,
            "parts": {name: seconds / 3600 for name, seconds in self.parts.items()},
            "hours": self.hours,
            "gpu_hours": self.gpu_hours,
            "first_front_hours": self.first_front / 3600,
            "disk_bytes": self.disk_bytes,
            "shared_memory_bytes": self.shared_memory_bytes,
            "bottleneck": self.bottleneck,
            "advice": self.advice,
            "notes": list(self.notes),
            "fit": None if self.fit is None else dataclasses.asdict(self.fit),
            "supernet": None if self.supernet is None else self.supernet.to_json(),
        }

    def lines(self) -> Iterator[str]:
        """Lines of text for the user."""
        machine = self.machine
        for network in machine.networks:
            again = ", blocks computed again" if network.activation_checkpointing else ""
            yield (
                f"{network.name:>8}: {network.cost.flops / 1e9:.3g} GFLOPs, {network.cost.params / 1e6:.3g} M params: "
                f"{network.image_bytes / 2**20:.3g} MiB an image, {network.micro_batch:,} at once{again}; "
                f"{_rate(network.step)} images/s"
            )
        beside = f" by {machine.num_loaders} processes" if machine.num_loaders else ""
        if machine.load:
            yield f"  loader: {_rate(machine.load)} images/s a trial{beside}"
        if self.race is not None:
            yield (
                f"    race: {self.race.num_trials} trials, {machine.num_slots} at a time; "
                f"{self.race.num_epochs:,} epochs in all, {self.race.num_complete} trials trained in full"
            )
        yield f"   parts: {', '.join(f'{name} {duration(seconds)}' for name, seconds in self.parts.items() if seconds)}"
        yield from self.short_lines()
        if self.fit is not None:
            fit = self.fit
            yield f"in {duration(3600 * fit.hours)}, with a first front after {duration(3600 * fit.first_front_hours)}:"
            yield from (f"    {line}" for line in fit.lines())

    def short_lines(self) -> Iterator[str]:
        """The most important lines, for the beginning of a search."""
        gpus = f", {self.gpu_hours:.3g} GPU hours" if self.machine.num_gpus else ""
        yield (
            f"expected: {duration(3600 * self.hours)}{gpus}; first front after {duration(self.first_front)}; "
            f"disk {size(self.disk_bytes)}, /dev/shm {size(self.shared_memory_bytes)}"
        )
        yield f"bottleneck: {self.bottleneck}; {self.advice}"
        if self.supernet is not None:
            yield from self.supernet.lines()
        yield from (f"note: {note}" for note in self.notes)


def duration(seconds: float) -> str:
    """Seconds as text, in a unit that is easy to read."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.0f} s"


def size(num_bytes: float) -> str:
    for unit, length in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= length:
            return f"{num_bytes / length:.3g} {unit}"
    return f"{num_bytes:,.0f} bytes"


def _rate(seconds: float) -> str:
    return f"{1 / seconds:,.0f}" if seconds < 0.1 else f"{1 / seconds:.2g}"
