"""Trials in flight, and the results they end with."""

import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cvt_nas.config import Experiment
from cvt_nas.engine import Checkpoint
from cvt_nas.errors import SearchFailedError
from cvt_nas.propose.study import PartialTrial, Proposal
from cvt_nas.results import FAILURES, Int8, TrialResult
from cvt_nas.run import RunFolder

Result = dict[str, Any]  # a `TrainingReport` with keys of Tune's, as Tune types it
_MAX_SAME_FAILURES = 3  # of the first trials, after which the search ends
_NO_REASON = "no reason was given"


@dataclass(kw_only=True, slots=True)
class Flight:
    """A trial that has begun and not ended: on a worker since `started`, paused, or about to be tried again.

    Args:
        spent: Seconds on workers before `started`.
        last: Its last `TrainingReport`, as Tune passes it on, with the `device` it ran on.
        heard: Time of its last report or its start.
        num_deaths: Number of workers that it lost.
        fate: How it lost the last worker.
        gpus: Number of GPUs that it has, or had last.
        known: Epochs that it had finished at `started`.
        is_paused: Whether it waits at a rung.
        is_to_spread: Whether it ends to restart on more GPUs.
    """

    proposal: Proposal
    started: float = 0.0
    spent: float = 0.0
    last: Result = field(default_factory=dict)
    heard: float = 0.0
    num_deaths: int = 0
    fate: str = ""
    gpus: float = 0.0
    known: int = 0
    is_paused: bool = False
    is_to_spread: bool = False

    @classmethod
    def of(cls, trial: PartialTrial) -> "Flight":
        """Makes the flight of a trial that an earlier process began."""
        last = {
            "status": "running",
            "epoch": len(trial.curve),
            "accuracy": trial.curve[-1] if trial.curve else None,
            "curve": list(trial.curve),
            "train_seconds": trial.train_seconds,
        }
        return cls(proposal=trial.proposal, spent=trial.seconds, last=last)

    def begin(self, gpus: float) -> None:
        """Marks the trial as running on a worker from now on."""
        self.gpus, self.is_paused, self.is_to_spread, self.known = gpus, False, False, self.last.get("epoch", 0)
        self.started = self.heard = time.monotonic()

    def land(self, result: Result | None) -> None:
        """Marks the trial as no longer on a worker."""
        self.last = result or self.last
        self.spent, self.started = self.seconds, 0.0

    @property
    def seconds(self) -> float:
        """Seconds on workers so far."""
        return self.spent + (time.monotonic() - self.started if self.started else 0.0)

    def partial(self) -> PartialTrial:
        return PartialTrial(
            proposal=self.proposal,
            curve=tuple(self.last.get("curve", ())),
            seconds=self.seconds,
            train_seconds=self.last.get("train_seconds", 0.0),
        )


class Recorder:
    """Makes and keeps the results of trials that end, and ends a search in which all trials fail alike."""

    def __init__(self, experiment: Experiment, run: RunFolder, keep: Callable[[TrialResult], None]) -> None:
        self._space, self._max_epochs, self._run, self._keep = experiment.space, experiment.training.epochs, run, keep
        self._inherited = {candidate.arch.id: candidate.accuracy for candidate in run.candidates()}
        has_worked = any(result.status not in FAILURES for result in run.results())
        self._failures: list[str] | None = None if has_worked else []

    def record(self, flight: Flight, *, failed: bool = False) -> TrialResult:
        """Records the result of a trial, which is on disk when this returns."""
        proposal, last = flight.proposal, flight.last
        epochs, status, reason = last.get("epoch", 0), last.get("status", "running"), last.get("reason")
        if failed:
            status, reason = "failed", self._why_failed(flight)
        elif status == "running":
            status = "complete" if epochs == self._max_epochs else "stopped"
        if status in FAILURES and not (reason or "").strip():
            reason = _NO_REASON
        arch = self._space.decode(proposal.genome)
        result = TrialResult(
            number=proposal.number,
            arch=arch,
            status=status,
            epochs=epochs,
            accuracy=last["accuracy"] if last.get("curve") else None,
            cost=proposal.cost,
            curve=tuple(last.get("curve", ())),
            seconds=flight.spent,
            train_seconds=last.get("train_seconds", 0.0),
            seed=proposal.seed,
            device=last.get("device", "cpu"),
            reason=reason,
            inherited=self._inherited.get(arch.id),
            spent=self._run.seconds_spent,
            micro_batch=last.get("micro_batch"),
            activation_checkpointing=last.get("activation_checkpointing", False),
            predicted=proposal.predicted,
            int8=Int8.from_json(json.loads(last["int8"])) if "int8" in last else None,
        )
        self._keep(result)
        with contextlib.suppress(OSError):  # a leftover checkpoint is no reason to end the search
            Checkpoint(self._run.checkpoint_path(proposal.number), self._run.store).drop()
        return result

    def why_to_end(self, result: TrialResult) -> SearchFailedError | None:
        """The error that ends a search, if no trial has worked yet and the first trials failed alike."""
        if self._failures is None:
            return None
        if result.status not in FAILURES:
            self._failures = None
            return None
        self._failures.append(kind_of_failure(result))
        if len(self._failures) != _MAX_SAME_FAILURES or len(set(self._failures)) > 1:
            return None
        log = self._run.error_path(result.number)
        where = f"; {log} has the traceback" if log.exists() else ""
        return SearchFailedError(f"the first {_MAX_SAME_FAILURES} trials all failed: {result.reason}{where}")

    def _why_failed(self, flight: Flight) -> str:
        log = self._run.error_path(flight.proposal.number)
        if self._run.store.exists(log):
            self._run.store.fetch(log)
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            # some messages end in empty lines, or in indented ones
            return next((line for line in reversed(lines) if line.strip() and not line[0].isspace()), _NO_REASON)
        times = "" if flight.num_deaths == 1 else f", {flight.num_deaths} times"
        return (flight.fate or "the worker process died") + times


def kind_of_failure(result: TrialResult) -> str:
    """Kind of a failure: its reason without numbers, addresses and paths. Trials that fail alike have the same kind."""
    if result.status == "oom":
        return "oom"  # the amounts of memory in messages differ between architectures
    return re.sub(r"\S*/\S*|\b(?:0x)?[0-9a-f]*\d[0-9a-f]*\b", "#", result.reason or "")
