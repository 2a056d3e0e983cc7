"""Ray Tune's searcher, scheduler and callbacks for a race, as thin adapters to `Race`.

They keep none of Ray's own state.
"""

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cvt_nas.arch import arch_to_dict
from cvt_nas.config import Experiment
from cvt_nas.errors import StorageError
from cvt_nas.launch.flight import Flight, Recorder, Result
from cvt_nas.launch.trial import TrialConfig
from cvt_nas.propose.asha import losses_of_cost
from cvt_nas.propose.race import Race
from cvt_nas.propose.spread import Spread
from cvt_nas.results import TrialResult
from cvt_nas.results.events import EpochDone, RaceEvent, TrialPaused, TrialStarted
from cvt_nas.run import RunFolder


class StopWhenSet(tune.Stopper):
    def __init__(self, *events: threading.Event) -> None:
        self._events = events

    def __call__(self, trial_id: str, result: Result) -> bool:
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        return any(event.is_set() for event in self._events)

    def __reduce__(self) -> tuple[object, ...]:  # Tune pickles its arguments for a restore, which is never done
        return (StopWhenSet, ())


class Watchdog(tune.Callback):
    """Kills the worker of a trial that has not reported for `timeout` seconds. The searcher tries the trial again."""

    def __init__(self, searcher: "RaceSearcher", timeout: float) -> None:
        self._searcher, self._timeout = searcher, timeout

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: object) -> None:
        del iteration, info
        for trial in trials:
            actor = trial.temporary_state.ray_actor
            if self._searcher.is_silent(trial.trial_id, self._timeout, is_waiting=actor is None) and actor is not None:
                ray.kill(actor)

    def __reduce__(self) -> tuple[object, ...]:  # as for StopWhenSet
        return (tune.Callback, ())


class RaceSearcher(Searcher):
    """Tune's searcher: `suggest` asks the race for a trial, and `on_trial_complete` tells it the result.

    To Tune, a paused trial has ended, and a promoted one is a new trial on the old checkpoint. The same holds for a
    trial whose worker or node died, and for one that restarts on more GPUs. A trial that raises is not tried again,
    since it would raise again.

    Args:
        gpus_per_trial: GPUs of a trial as long as all slots are busy.
        spread: Divides idle GPUs among the last trials of a search.
    """

    def __init__(
        self,
        race: Race,
        experiment: Experiment,
        run: RunFolder,
        keep: Callable[[TrialResult], None],
        events: queue.Queue[RaceEvent | BaseException | None],
        *,
        gpus_per_trial: float = 0.0,
        spread: Spread | None = None,
    ) -> None:
        super().__init__()  # without a metric, since Tune would end the search over a report that lacks it
        self._race, self._run, self._events = race, run, events
        self._gpus_per_trial, self._spread = gpus_per_trial, spread
        self._space, self._metrics = experiment.space, experiment.objectives
        self._max_epochs, self._max_failures = experiment.training.epochs, experiment.search.max_failures
        self._recorder = Recorder(experiment, run, keep)
        self._running: dict[str, Flight] = {}
        self._waiting = {number: Flight.of(trial) for number, trial in race.begun.items()}
        self._has_failed = False

    def is_silent(self, trial_id: str, timeout: float, *, is_waiting: bool) -> bool:
        """Whether a trial that is not waiting for a worker has not reported for `timeout` seconds. Records it."""
        flight, now = self._running.get(trial_id), time.monotonic()
        if flight is None:
            return False
        is_silent = not is_waiting and now - flight.heard > timeout
        if is_silent:
            flight.fate = f"no report within {timeout:g} s"
        if is_silent or is_waiting:
            flight.heard = now
        return is_silent

    def __getstate__(self) -> dict[str, object]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Does nothing, since the race has the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, since the race has the state."""

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: object) -> bool:
        del metric, mode, config, spec
        return True

    @contextlib.contextmanager
    def _while_writable(self) -> Iterator[None]:
        """Passes a full disk to the reader of the race, which ends it. Tune would blame a trial, or fail itself.

        Trials that could not be recorded stay in flight.
        """
        try:
            yield
        except StorageError as error:
            self._events.put(error)

    def suggest(self, trial_id: str) -> Any:  # Tune's types do not know `Searcher.FINISHED`
        if self._has_failed:
            return None  # the race is about to end; a trial that began now would be the first one of the next race
        with self._while_writable():
            return self._suggest(trial_id)
        return None

    def _suggest(self, trial_id: str) -> TrialConfig | str | None:
        proposal = self._race.ask()
        if proposal is None:
            if self._running:
                return None  # their reports may promote a paused trial
            for paused in self._race.end_paused():
                self._end(self._waiting.pop(paused.number))
            return Searcher.FINISHED
        flight = self._waiting.pop(proposal.number, None) or Flight(proposal=proposal)
        flight.begin(self._gpus_for(flight))
        self._running[trial_id] = flight
        self._run.store.delete(self._run.error_path(proposal.number))
        arch = self._space.decode(proposal.genome)
        self._events.put(TrialStarted(number=proposal.number, arch=arch, seed=proposal.seed))
        return TrialConfig(
            number=proposal.number,
            arch=json.dumps(arch_to_dict(arch)),
            seed=proposal.seed,
            num_known=flight.known,
            costs=losses_of_cost(proposal.cost, self._metrics),
            gpus=flight.gpus,
        )

    def _gpus_for(self, flight: Flight) -> float:
        """GPUs of a trial: more than `gpus_per_trial` if the remaining trials do not fill the slots."""
        if self._spread is None or not self._race.has_no_more:
            return self._gpus_per_trial
        others = [other.gpus for other in self._running.values() if other is not flight]
        return self._spread.gpus_for(others, self._race.num_waiting)

    def goes_on(self, trial_id: str, result: Result) -> bool:
        """Whether a trial stays on its worker after an epoch. Tune asks before it passes the report to the searcher."""
        flight = self._running[trial_id]
        decision = "go"
        with self._while_writable():
            decision = self._race.decide(
                flight.proposal,
                tuple(result["curve"]),
                seconds=flight.seconds,
                train_seconds=result.get("train_seconds", 0.0),
            )
        flight.is_paused = decision == "pause"
        return decision == "go" and not self._is_to_spread(flight, result)

    def _is_to_spread(self, flight: Flight, result: Result) -> bool:
        """Whether a trial that would continue ends here, to restart at once on idle GPUs."""
        if self._spread is None or flight.is_to_spread:
            return flight.is_to_spread
        seconds_an_epoch = (time.monotonic() - flight.started) / max(result["epoch"] - flight.known, 1)
        seconds_left = seconds_an_epoch * (self._max_epochs - result["epoch"])
        flight.is_to_spread = self._spread.is_worth_it(flight.gpus, self._gpus_for(flight), seconds_left=seconds_left)
        return flight.is_to_spread

    def waits_in_vain(self, trial_id: str) -> bool:
        """Whether a trial needs more GPUs than are left, for example after a node died. It restarts with fewer."""
        flight = self._running.get(trial_id)
        if flight is None or self._spread is None or flight.gpus <= max(self._gpus_per_trial, 1):
            return False
        flight.is_to_spread = flight.gpus > self._spread.num_gpus()
        return flight.is_to_spread

    def on_trial_result(self, trial_id: str, result: Result) -> None:
        flight = self._running[trial_id]
        self._tell_epoch(flight, result)
        flight.last, flight.heard = result, time.monotonic()
        if result["status"] == "running":
            with self._while_writable():
                self._race.report(flight.partial())

    def _tell_epoch(self, flight: Flight, result: Result) -> None:
        if result.get("status") == "running" and result["epoch"] > flight.last.get("epoch", 0):
            self._events.put(
                EpochDone(
                    number=flight.proposal.number,
                    epoch=result["epoch"],
                    accuracy=result["accuracy"],
                    note=result.get("note"),
                )
            )

    def on_trial_complete(self, trial_id: str, result: Result | None = None, error: bool = False) -> None:
        flight = self._running.pop(trial_id)
        self._tell_epoch(flight, result or {})  # Tune does not report a trial that ends at a rung
        flight.land(result)
        number = flight.proposal.number
        if flight.last.get("status") == "storage":  # it stays in flight, and continues once the disk has space
            self._events.put(StorageError(flight.last["reason"]))
            return
        if error and not self._run.store.exists(self._run.error_path(number)):
            flight.num_deaths += 1
            if flight.num_deaths <= self._max_failures:
                self._try_again(flight)
                return
        with self._while_writable():
            if not error and flight.is_to_spread:
                self._race.report(flight.partial())
                self._try_again(flight)
            elif not error and flight.is_paused:
                self._waiting[number] = flight
                self._events.put(TrialPaused(number=number))
            else:
                self._end(flight, failed=error)

    def _try_again(self, flight: Flight) -> None:
        self._waiting[flight.proposal.number] = flight
        self._race.try_again(flight.proposal)

    def _end(self, flight: Flight, *, failed: bool = False) -> None:
        """Records the end of a trial: first on disk, then in the race."""
        result = self._recorder.record(flight, failed=failed)
        self._race.tell(result)
        self._events.put(result)
        if (error := self._recorder.why_to_end(result)) is not None:
            self._has_failed = True
            self._events.put(error)


class RaceScheduler(FIFOScheduler):
    """Tune's scheduler, which asks the searcher which trials continue."""

    def __init__(self, searcher: RaceSearcher) -> None:
        super().__init__()
        self._searcher = searcher

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        for trial in list(tune_controller.get_live_trials()):
            if trial.status == "PENDING" and self._searcher.waits_in_vain(trial.trial_id):
                tune_controller.stop_trial(trial)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: Result) -> str:
        del tune_controller
        if result["status"] != "running":
            return TrialScheduler.CONTINUE  # it is about to end by itself
        goes_on = self._searcher.goes_on(trial.trial_id, result)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP
