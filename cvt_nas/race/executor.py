"""The race: Ray Tune runs the trials that the study proposes, and ASHA stops the weak ones.

Ray only executes. Its searcher and scheduler are thin adapters to `Study` and `Asha`, nothing of Ray's
own state is kept, and an interrupted race goes on by starting it again on the same run.
"""

import contextlib
import queue
import shutil
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cvt_nas.arch import arch_to_dict
from cvt_nas.engine import TrainingSetup
from cvt_nas.race.asha import Asha
from cvt_nas.race.resources import Resources
from cvt_nas.race.study import Proposal, Study
from cvt_nas.race.trial import WAITING_CPUS, run_trial
from cvt_nas.results import RunFolder, Status, TrialResult


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialStarted:
    """A trial was handed to a worker."""

    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochDone:
    """A trial finished an epoch and reported it."""

    number: int
    epoch: int
    accuracy: float


RaceEvent = TrialStarted | EpochDone | TrialResult


def race(
    study: Study,
    asha: Asha | None,
    setup: TrainingSetup,
    resources: Resources,
    *,
    stop: threading.Event,
    reuse_workers: bool = True,
) -> Iterator[RaceEvent]:
    """Runs trials until the study proposes none, or `stop` is set.

    Every result is in the study's record before it is yielded. Trials in flight when `stop` is set stay
    open in the record; the next race on it begins with them.

    Args:
        asha: Who stops weak trials; None trains every trial in full.
        reuse_workers: Whether a worker process outlives its trial; off only to measure what that saves.

    Raises:
        ray.exceptions.RayError: Ray itself failed; the record is whole all the same.
    """
    events: queue.Queue[RaceEvent | BaseException | None] = queue.Queue()
    searcher = _StudySearcher(study, setup, events)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(run_trial, setup=setup, resources=resources),
            # with several GPUs the trial itself only waits for its workers, which claim them one by one
            {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}
            if resources.num_workers == 1
            else {"cpu": WAITING_CPUS},
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=FIFOScheduler() if asha is None else _AshaScheduler(asha),
            num_samples=-1,  # the study counts
            max_concurrent_trials=resources.num_slots,
            reuse_actors=reuse_workers,
        ),
        run_config=tune.RunConfig(
            name="race",
            storage_path=str(RunFolder(setup.run_path).tune_path),
            stop=_StopWhenSet(stop),
            failure_config=tune.FailureConfig(max_failures=0),
            verbose=0,
        ),
    )

    def execute() -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Tune's own, about settings of its future versions
                tuner.fit()
            events.put(None)
        except BaseException as error:  # handed to the reader of the race, which raises it
            events.put(error)

    # In a thread of its own, Tune installs no signal handlers: Ctrl-C is the caller's to decide.
    thread = threading.Thread(target=execute, name="race", daemon=True)
    thread.start()
    try:
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        stop.set()
        thread.join(timeout=30)
        shutil.rmtree(RunFolder(setup.run_path).tune_path, ignore_errors=True)


class _StopWhenSet(tune.Stopper):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        return self._event.is_set()

    def __reduce__(self) -> Any:  # Tune pickles what it is given, for a restore that is never made
        return (_StopWhenSet, (None,))


class _StudySearcher(Searcher):
    """Tune's view of the study: `suggest` asks, `on_trial_complete` tells."""

    def __init__(self, study: Study, setup: TrainingSetup, events: queue.Queue[Any]) -> None:
        super().__init__()  # with no metric: Tune would end the whole search over one report without it
        self._study, self._setup, self._events = study, setup, events
        self._running: dict[str, tuple[Proposal, float]] = {}
        self._last: dict[str, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state is the study's."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the state is the study's."""

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        del metric, mode, config, spec
        return True

    def suggest(self, trial_id: str) -> Any:
        proposal = self._study.ask()
        if proposal is None:
            return Searcher.FINISHED
        self._running[trial_id] = (proposal, time.monotonic())
        self._events.put(TrialStarted(number=proposal.number))
        return {"number": proposal.number, "arch": arch_to_dict(proposal.arch), "seed": proposal.seed}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._last[trial_id] = result
        if result["status"] == "running":
            proposal, _ = self._running[trial_id]
            self._events.put(EpochDone(number=proposal.number, epoch=result["epoch"], accuracy=result["accuracy"]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        proposal, started = self._running.pop(trial_id)
        last = result or self._last.get(trial_id) or {}
        self._last.pop(trial_id, None)
        run = RunFolder(self._setup.run_path)
        epochs = last.get("epoch", 0)
        status: Status = last.get("status", "running")
        reason = last.get("reason")
        if error:
            log = run.error_path(proposal.number)
            status, reason = "failed", log.read_text().splitlines()[-1] if log.exists() else "the worker process died"
        elif status == "running":
            status = "complete" if epochs == self._setup.training.epochs else "stopped"
        finished = TrialResult(
            number=proposal.number,
            arch=proposal.arch,
            status=status,
            epochs=epochs,
            accuracy=last["accuracy"] if last.get("curve") else None,
            cost=proposal.cost,
            curve=tuple(last.get("curve", ())),
            seconds=time.monotonic() - started,
            train_seconds=last.get("train_seconds", 0.0),
            seed=proposal.seed,
            device=last.get("device", "cpu"),
            reason=reason,
        )
        self._study.tell(finished)
        with contextlib.suppress(OSError):  # a checkpoint too many is no reason to end the search
            run.checkpoint_path(proposal.number).unlink()
        self._events.put(finished)


class _AshaScheduler(FIFOScheduler):
    """Tune's view of `Asha`."""

    def __init__(self, asha: Asha) -> None:
        super().__init__()
        self._asha = asha

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        del tune_controller
        if result["status"] != "running":
            return TrialScheduler.CONTINUE  # it is about to end by itself
        goes_on = self._asha.goes_on(trial.config["number"], result["epoch"], result["accuracy"])
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


def asha_of(results: Sequence[TrialResult], *, max_epochs: int, grace_period: int, reduction_factor: int) -> Asha:
    """The rungs as the trials of earlier processes left them."""
    asha = Asha(max_epochs=max_epochs, grace_period=grace_period, reduction_factor=reduction_factor)
    for result in results:
        asha.replay(result.number, result.curve)
    return asha
