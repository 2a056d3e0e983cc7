"""Ray Tune's view of a search: its searcher, its scheduler and its callbacks, as thin adapters to `AskTell` and `Asha`.

Nothing of Ray's own state is kept.
"""

import contextlib
import json
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cvt_nas.arch import arch_to_dict
from cvt_nas.config import Experiment
from cvt_nas.engine import Checkpoint
from cvt_nas.errors import SearchFailedError, StorageError
from cvt_nas.propose.asha import Asha, losses_of_cost
from cvt_nas.propose.spread import Spread
from cvt_nas.propose.study import PartialTrial, Proposal
from cvt_nas.results import FAILURES, ROOM, TrialResult
from cvt_nas.results.events import EpochDone, TrialPaused, TrialStarted
from cvt_nas.run import RunFolder

_MAX_SAME_FAILURES = 3  # of the first trials, before the others are spared
_NO_REASON = "no reason was given"


class AskTell(Protocol):
    """Who says what is trained next, and hears how it ended: `Study`, or a `Plan`."""

    def ask(self) -> Proposal | None:
        """What to train next; None where nothing is left."""
        ...

    @property
    def has_no_more(self) -> bool:
        """Whether `ask` would give nothing, as far as that is known beforehand."""
        ...

    def tell(self, ended: TrialResult, /) -> None: ...

    def report(self, trial: PartialTrial, /) -> None: ...

    def pause(self, trial: PartialTrial, /) -> None: ...

    def promote(self, trial: PartialTrial, /) -> None: ...

    def paused(self) -> Iterator[PartialTrial]:
        """What an earlier process paused."""
        ...

    def interrupted(self) -> Iterator[PartialTrial]:
        """What was in flight when an earlier process ended, taken out of what `ask` gives."""
        ...


class StopWhenSet(tune.Stopper):
    def __init__(self, *events: threading.Event) -> None:
        self._events = events

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        return any(event.is_set() for event in self._events)

    def __reduce__(self) -> Any:  # Tune pickles what it is given, for a restore that is never made
        return (StopWhenSet, ())


class Watchdog(tune.Callback):
    """Kills the worker of a trial that has reported nothing for `timeout` seconds; the searcher tries it again."""

    def __init__(self, searcher: "SourceSearcher", timeout: float) -> None:
        self._searcher, self._timeout = searcher, timeout

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        del iteration, info
        for trial in trials:
            actor = trial.temporary_state.ray_actor
            if self._searcher.is_silent(trial.trial_id, self._timeout, is_waiting=actor is None) and actor is not None:
                ray.kill(actor)

    def __reduce__(self) -> Any:  # as for StopWhenSet
        return (tune.Callback, ())


@dataclass(kw_only=True, slots=True)
class _InFlight:
    """A trial that has begun and not ended: on a worker since `started`, paused, or about to be tried again.

    Args:
        spent: Seconds on workers before `started`.
        last: Its last report.
        heard: When it last reported, or began.
        num_deaths: Workers that it lost.
        fate: How it lost the last of them.
        gpus: That it has, or had last.
        known: Epochs that it had behind it at `started`.
        is_to_spread: Whether it ends here, to begin again on more GPUs.
    """

    proposal: Proposal
    started: float = 0.0
    spent: float = 0.0
    last: dict[str, Any] = field(default_factory=dict)
    heard: float = 0.0
    num_deaths: int = 0
    fate: str = ""
    gpus: float = 0.0
    known: int = 0
    is_to_spread: bool = False

    @classmethod
    def of(cls, trial: PartialTrial) -> "_InFlight":
        """One of an earlier process."""
        last = {
            "status": "running",
            "epoch": len(trial.curve),
            "accuracy": trial.curve[-1] if trial.curve else None,
            "curve": list(trial.curve),
            "train_seconds": trial.train_seconds,
        }
        return cls(proposal=trial.proposal, spent=trial.seconds, last=last)

    def partial(self) -> PartialTrial:
        return PartialTrial(
            proposal=self.proposal,
            curve=tuple(self.last.get("curve", ())),
            seconds=self.spent + (time.monotonic() - self.started if self.started else 0.0),
            train_seconds=self.last.get("train_seconds", 0.0),
        )


class SourceSearcher(Searcher):
    """Tune's view of the source and the rungs: `suggest` promotes or asks, `on_trial_complete` tells.

    A trial whose worker dies, with its node or alone, begins again on its checkpoint, as a new one of Tune's. One that
    raises does not: it would again.
    """

    def __init__(self, source: AskTell, experiment: Experiment, asha: Asha | None, run: RunFolder,
                 record: Callable[[TrialResult], None], events: queue.Queue[Any],
                 gpus_per_trial: float = 0.0, spread: Spread | None = None) -> None:  # fmt: skip
        super().__init__()  # with no metric: Tune would end the whole search over one report without it
        self._source, self._asha, self._run, self._record, self._events = source, asha, run, record, events
        self._gpus_per_trial, self._spread = gpus_per_trial, spread
        self._space, self._max_epochs = experiment.space, experiment.training.epochs
        self._max_failures = experiment.search.max_failures
        self._metrics = experiment.objectives
        self._running: dict[str, _InFlight] = {}
        self._again: deque[_InFlight] = deque()
        self._paused = {trial.proposal.number: _InFlight.of(trial) for trial in source.paused()}
        self._inherited = {candidate.arch.id: candidate.accuracy for candidate in run.candidates()}
        has_worked = any(result.status not in FAILURES for result in run.results())
        self._failures: list[str] | None = None if has_worked else []
        for trial in source.interrupted():
            self._take_up(trial)

    def _take_up(self, trial: PartialTrial) -> None:
        """Of a trial that was in flight: it has passed the rungs that it reached, since Tune asks the scheduler about
        a report before the searcher hears of it."""
        if self._asha is not None:
            costs = losses_of_cost(trial.proposal.cost, self._metrics)
            self._asha.replay(trial.proposal.number, trial.curve, costs)
        self._again.append(_InFlight.of(trial))

    def is_silent(self, trial_id: str, timeout: float, *, is_waiting: bool) -> bool:
        """Whether a trial that is not waiting for a worker has reported nothing for `timeout` seconds; noted then."""
        trial, now = self._running.get(trial_id), time.monotonic()
        if trial is None:
            return False
        is_silent = not is_waiting and now - trial.heard > timeout
        if is_silent:
            trial.fate = f"no report within {timeout:g} s"
        if is_silent or is_waiting:
            trial.heard = now
        return is_silent

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state is the source's."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the state is the source's."""

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        del metric, mode, config, spec
        return True

    @contextlib.contextmanager
    def _while_writable(self) -> Iterator[None]:
        """Hands a full disk to the reader of the race, who ends it: Tune would make a trial's fault of it, or its own.

        What could not be recorded stays in flight.
        """
        try:
            yield
        except StorageError as error:
            self._events.put(error)

    def suggest(self, trial_id: str) -> Any:
        with self._while_writable():
            return self._suggest(trial_id)
        return None

    def _suggest(self, trial_id: str) -> Any:
        trial = self._next()
        if trial is None:
            if self._running:
                return None  # what they report may promote a paused trial
            for number in sorted(self._paused):
                self._finish(self._paused.pop(number))
            return Searcher.FINISHED
        trial.gpus, trial.is_to_spread, trial.known = self._gpus_for(trial), False, trial.last.get("epoch", 0)
        trial.started = trial.heard = time.monotonic()
        self._running[trial_id] = trial
        proposal = trial.proposal
        self._run.store.delete(self._run.error_path(proposal.number))
        arch = self._space.decode(proposal.genome)
        self._events.put(TrialStarted(number=proposal.number, arch=arch, seed=proposal.seed))
        return {
            "number": proposal.number,
            "arch": json.dumps(
                arch_to_dict(arch)
            ),  # one string: Tune writes the settings of all trials, time and again
            "seed": proposal.seed,
            "num_known": trial.known,
            "costs": losses_of_cost(proposal.cost, self._metrics),
            "gpus": trial.gpus,
        }

    def _next(self) -> _InFlight | None:
        if self._again:
            return self._again.popleft()
        promoted = None if self._asha is None else self._asha.promote()
        if promoted is not None:
            trial = self._paused.pop(promoted)
            self._source.promote(trial.partial())
            return trial
        proposal = self._source.ask()
        return None if proposal is None else _InFlight(proposal=proposal)

    def _gpus_for(self, trial: _InFlight) -> float:
        """More than `gpus_per_trial` where the trials that are left do not fill the slots."""
        if self._spread is None or not self._source.has_no_more:
            return self._gpus_per_trial
        others = [other.gpus for other in self._running.values() if other is not trial]
        num_waiting = len(self._again) + (0 if self._asha is None else self._asha.num_promotable)
        return self._spread.gpus_for(others, num_waiting)

    def ends_to_spread(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a trial that would go on ends here, to begin again at once on GPUs that are idle."""
        trial = self._running[trial_id]
        if self._spread is None or trial.is_to_spread:
            return trial.is_to_spread
        seconds_an_epoch = (time.monotonic() - trial.started) / max(result["epoch"] - trial.known, 1)
        seconds_left = seconds_an_epoch * (self._max_epochs - result["epoch"])
        trial.is_to_spread = self._spread.is_worth_it(trial.gpus, self._gpus_for(trial), seconds_left=seconds_left)
        return trial.is_to_spread

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        trial = self._running[trial_id]
        self._tell_epoch(trial, result)
        trial.last, trial.heard = result, time.monotonic()
        if result["status"] == "running":
            with self._while_writable():
                self._source.report(trial.partial())

    def _tell_epoch(self, trial: _InFlight, result: dict[str, Any]) -> None:
        if result.get("status") == "running" and result["epoch"] > trial.last.get("epoch", 0):
            self._events.put(
                EpochDone(
                    number=trial.proposal.number,
                    epoch=result["epoch"],
                    accuracy=result["accuracy"],
                    note=result.get("note"),
                )
            )

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._running.pop(trial_id)
        self._tell_epoch(trial, result or {})  # Tune tells nothing more of one that ends at a rung
        trial.last = result or trial.last
        trial.spent += time.monotonic() - trial.started
        trial.started = 0.0
        number = trial.proposal.number
        if trial.last.get("status") == "storage":  # it stays in flight: with room, it goes on
            self._events.put(StorageError(trial.last["reason"]))
            return
        if error and not self._run.store.exists(self._run.error_path(number)):
            trial.num_deaths += 1
            if trial.num_deaths <= self._max_failures:
                self._again.append(trial)
                return
        with self._while_writable():
            if not error and trial.is_to_spread:
                self._source.report(trial.partial())
                self._again.append(trial)
            elif not error and self._asha is not None and self._asha.is_paused(number):
                self._source.pause(trial.partial())
                self._paused[number] = trial
                self._events.put(TrialPaused(number=number))
            else:
                self._finish(trial, failed=error)

    def _finish(self, trial: _InFlight, *, failed: bool = False) -> None:
        """Records how a trial ended: on disk, then by telling the source."""
        proposal, last = trial.proposal, trial.last
        epochs, status, reason = last.get("epoch", 0), last.get("status", "running"), last.get("reason")
        if failed:
            status, reason = "failed", self._why_failed(trial)
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
            seconds=trial.spent,
            train_seconds=last.get("train_seconds", 0.0),
            seed=proposal.seed,
            device=last.get("device", "cpu"),
            reason=reason,
            inherited=self._inherited.get(arch.id),
            spent=self._run.seconds_spent,
            **{name: last[name] for name in ROOM if name in last},
        )
        self._record(result)
        self._source.tell(result)
        with contextlib.suppress(OSError):  # a checkpoint too many is no reason to end the search
            Checkpoint(self._run.checkpoint_path(proposal.number), self._run.store).drop()
        self._events.put(result)
        self._count_failure(result)

    def _why_failed(self, trial: _InFlight) -> str:
        log = self._run.error_path(trial.proposal.number)
        if self._run.store.exists(log):
            self._run.store.fetch(log)
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            # some messages end in empty lines, or in indented ones
            return next((line for line in reversed(lines) if line.strip() and not line[0].isspace()), _NO_REASON)
        times = "" if trial.num_deaths == 1 else f", {trial.num_deaths} times"
        return (trial.fate or "the worker process died") + times

    def _count_failure(self, result: TrialResult) -> None:
        """Ends the search where nothing in the run has worked yet and the first trials all failed alike."""
        if self._failures is None:
            return
        if result.status not in FAILURES:
            self._failures = None
            return
        self._failures.append(kind_of_failure(result))
        if len(self._failures) == _MAX_SAME_FAILURES and len(set(self._failures)) == 1:
            log = self._run.error_path(result.number)
            where = f"; {log} has the traceback" if log.exists() else ""
            self._events.put(
                SearchFailedError(f"the first {_MAX_SAME_FAILURES} trials all failed: {result.reason}{where}")
            )


def kind_of_failure(result: TrialResult) -> str:
    """What trials that failed alike have in common: the reason without its numbers, addresses and paths."""
    if result.status == "oom":
        return "oom"  # what was asked for and what was left differs from one architecture to the next
    return re.sub(r"\S*/\S*|\b(?:0x)?[0-9a-f]*\d[0-9a-f]*\b", "#", result.reason or "")


class RaceScheduler(FIFOScheduler):
    """Tune's view of the rungs. To Tune, a paused trial has ended; promoted, it is a new one on the old checkpoint.

    So is one that begins again on more GPUs.
    """

    def __init__(self, asha: Asha | None, searcher: SourceSearcher) -> None:
        super().__init__()
        self._asha, self._searcher = asha, searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        del tune_controller
        if result["status"] != "running":
            return TrialScheduler.CONTINUE  # it is about to end by itself
        if self._asha is not None:
            losses = (1 - result["accuracy"], *trial.config["costs"])
            if self._asha.decide(trial.config["number"], result["epoch"], losses) != "go":
                return TrialScheduler.STOP
        ends = self._searcher.ends_to_spread(trial.trial_id, result)
        return TrialScheduler.STOP if ends else TrialScheduler.CONTINUE
