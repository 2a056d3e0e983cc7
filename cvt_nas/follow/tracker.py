"""The base class of experiment trackers. A tracker gets the events of a search."""

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from cvt_nas.arch import ArchConfig, BlockConfig, cost_of
from cvt_nas.results import TrialResult
from cvt_nas.results.events import EpochDone, RaceEvent, TrialPaused, TrialStarted
from cvt_nas.run import RunFolder

LOST = {"diverged", "failed", "oom"}
_IDENTITY = ("id", "created", "command", "fingerprint", "seed", "name")  # of a run: `--resume` changes none of them


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedTrial:
    """A trial for trackers.

    Args:
        id: The same in every process. It differs from the ids of other runs.
        name: Name for people.
        config: Values that are known before the training, by flat names.
    """

    id: str
    name: str
    config: dict[str, str | int | float]


class Tracker(ABC):
    """Keeps the trials that are on a worker, and calls a method for each event. The run's name groups trials."""

    def __init__(self, run: RunFolder) -> None:
        identity = {key: run.manifest.get(key) for key in _IDENTITY}
        self.run_name = name_of(run.place)
        self.run_key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
        self._live: dict[int, TrackedTrial] = {}

    def __call__(self, event: RaceEvent) -> None:
        if isinstance(event, TrialStarted):
            self._started(event.number, event.arch, event.seed)
        elif isinstance(event, EpochDone):
            self.log(self._live[event.number], event.epoch, event.accuracy)
        elif isinstance(event, TrialPaused):
            self.pause(self._live.pop(event.number))
        elif isinstance(event, TrialResult):
            trial = self._started(event.number, event.arch, event.seed)  # another process may have paused the trial
            self.end(trial, event)
            del self._live[event.number]

    def close(self) -> None:
        """Called when the search has ended. Trials that are still on a worker go on when the search is resumed."""
        for trial in self._live.values():
            self.interrupt(trial)

    @abstractmethod
    def begin(self, trial: TrackedTrial) -> None:
        """Called when a trial begins, or goes on after a pause or an interruption."""

    @abstractmethod
    def log(self, trial: TrackedTrial, epoch: int, accuracy: float) -> None:
        """Called after each epoch."""

    @abstractmethod
    def pause(self, trial: TrackedTrial) -> None:
        """Called when a trial is paused. It must free the resources of the trial, since many trials may wait."""

    def interrupt(self, trial: TrackedTrial) -> None:
        """Called when the search ended while the trial was on a worker."""
        self.pause(trial)

    @abstractmethod
    def end(self, trial: TrackedTrial, result: TrialResult) -> None:
        """Called when the trial has ended for good."""

    def _started(self, number: int, arch: ArchConfig, seed: int) -> TrackedTrial:
        if number not in self._live:  # otherwise the trial lost its worker and got another one
            trial = TrackedTrial(
                id=f"{self.run_key}-{number}", name=f"{number}-{arch.id}", config=config_of(number, arch, seed)
            )
            self.begin(trial)
            self._live[number] = trial
        return self._live[number]


def name_of(place: str | Path) -> str:
    """Name of the run at a path or URL, as trackers show it."""
    return Path(place).absolute().name


def config_of(number: int, arch: ArchConfig, seed: int) -> dict[str, str | int | float]:
    """Values of a trial that a tracker shows, by names such as `stage0.embed_dim`.

    Values that differ from block to block are joined to a text.
    """
    cost = cost_of(arch)
    config: dict[str, str | int | float] = {
        "number": number,
        "arch_id": arch.id,
        "params": cost.params,
        "flops": cost.flops,
        "seed": seed,
    }
    for index, stage in enumerate(arch.stages):
        config |= {f"stage{index}.embed_dim": stage.embed_dim, f"stage{index}.depth": len(stage.blocks)}
        for choice in dataclasses.fields(BlockConfig):
            values = [getattr(block, choice.name) for block in stage.blocks]
            same = len(set(values)) == 1
            config[f"stage{index}.{choice.name}"] = values[0] if same else ",".join(map(str, values))
    return config


def ending_of(result: TrialResult) -> dict[str, str]:
    """Status of a trial that ended, and the reason if there is one."""
    return {"status": result.status} | ({} if result.reason is None else {"reason": result.reason})


def summary_of(result: TrialResult) -> dict[str, float]:
    """Final numbers of a trial that ended."""
    values = {
        "epochs": result.epochs,
        "params": result.cost.params,
        "flops": result.cost.flops,
        "train_seconds": result.train_seconds,
    }
    return values if result.accuracy is None else values | {"final_accuracy": result.accuracy}
