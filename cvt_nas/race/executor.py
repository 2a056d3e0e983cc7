"""The race: Ray Tune runs the trials that the study proposes, and ASHA stops the weak ones.

Ray only executes. Its searcher and scheduler are thin adapters to `Study` and `Asha`, nothing of Ray's
own state is kept, and an interrupted race goes on by starting it again on the same run. What is trained
again after the race (`cvt_nas.race.confirm`) is launched by the same code.
"""

import contextlib
import queue
import shutil
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cvt_nas.arch import arch_from_dict, arch_to_dict, cost_of
from cvt_nas.config import Experiment
from cvt_nas.engine import TrainingSetup
from cvt_nas.race.asha import Asha, accuracy_ranks, losses_of_cost, pareto_ranks
from cvt_nas.race.events import EpochDone, RaceEvent, TrialPaused, TrialStarted
from cvt_nas.race.resources import Resources
from cvt_nas.race.study import Paused, Proposal, Study
from cvt_nas.race.trial import WAITING_CPUS, run_trial
from cvt_nas.results import Metric, RunFolder, TrialResult


class AskTell(Protocol):
    """Who says what is trained next, and hears how it ended: `Study`, or a `Plan`."""

    def ask(self) -> Proposal | None:
        """What to train next; None where nothing is left."""
        ...

    def tell(self, ended: TrialResult, /) -> None: ...

    def pause(self, trial: Paused, /) -> None: ...

    def promote(self, number: int) -> None: ...

    def paused(self) -> Iterator[Paused]:
        """What an earlier process paused."""
        ...


class Plan:
    """Trainings that are fixed beforehand, asked for in their order; nobody learns from them.

    One that was in flight when the process ended is in the plan of the next one, and goes on from its checkpoint.
    """

    def __init__(self, proposals: Iterable[Proposal]) -> None:
        self._left = deque(proposals)

    def ask(self) -> Proposal | None:
        return self._left.popleft() if self._left else None

    def tell(self, ended: TrialResult) -> None:
        """Nothing: the record holds it."""

    def pause(self, trial: Paused) -> None:
        raise AssertionError(f"without a scheduler nothing pauses: {trial}")

    def promote(self, number: int) -> None:
        raise AssertionError(f"without a scheduler nothing pauses: {number}")

    def paused(self) -> Iterator[Paused]:
        return iter(())


def race(
    experiment: Experiment,
    study: Study,
    run: RunFolder,
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
        reuse_workers: Whether a worker process outlives its trial; off only to measure what that saves.

    Raises:
        ray.exceptions.RayError: Ray itself failed; the record is whole all the same.
    """
    asha = asha_of(experiment, study, run.results())
    return launch_trials(
        experiment, study, run, setup, resources, asha=asha, record=run.append, stop=stop, reuse_workers=reuse_workers
    )


def launch_trials(
    experiment: Experiment,
    source: AskTell,
    run: RunFolder,
    setup: TrainingSetup,
    resources: Resources,
    *,
    asha: Asha | None,
    record: Callable[[TrialResult], None],
    stop: threading.Event,
    keep_models: bool = True,
    reuse_workers: bool = True,
) -> Iterator[RaceEvent]:
    """`race`, of whatever `source` asks for.

    Args:
        asha: Stops or pauses trials; None trains each of them in full.
        record: Keeps a result, before `source` is told of it.
        stop: Ends the trials in order once it is set; never set by this.
        keep_models: Whether the weights of a trial that ends complete are kept as its architecture's.
    """
    events: queue.Queue[RaceEvent | BaseException | None] = queue.Queue()
    closing = threading.Event()  # where the reader goes away before the end
    searcher = _SourceSearcher(source, experiment, asha, run, record, events)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(run_trial, setup=setup, resources=resources, keep_model=keep_models),
            # with several GPUs the trial itself only waits for its workers, which claim them one by one
            {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}
            if resources.num_workers == 1
            else {"cpu": WAITING_CPUS},
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=FIFOScheduler() if asha is None else _AshaScheduler(asha, experiment.objectives),
            num_samples=-1,  # the source counts
            max_concurrent_trials=resources.num_slots,
            reuse_actors=reuse_workers,
        ),
        run_config=tune.RunConfig(
            name="race",
            storage_path=str(run.tune_path),
            stop=_StopWhenSet(stop, closing),
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
        closing.set()
        thread.join(timeout=30)
        shutil.rmtree(run.tune_path, ignore_errors=True)


class _StopWhenSet(tune.Stopper):
    def __init__(self, *events: threading.Event) -> None:
        self._events = events

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        return any(event.is_set() for event in self._events)

    def __reduce__(self) -> Any:  # Tune pickles what it is given, for a restore that is never made
        return (_StopWhenSet, ())


@dataclass(kw_only=True, slots=True)
class _InFlight:
    """A trial that has begun and not ended: on a worker since `started`, or paused.

    Args:
        spent: Seconds on workers before `started`.
        last: Its last report.
    """

    proposal: Proposal
    started: float
    spent: float = 0.0
    last: dict[str, Any] = field(default_factory=dict)


class _SourceSearcher(Searcher):
    """Tune's view of the source and the rungs: `suggest` promotes or asks, `on_trial_complete` tells."""

    def __init__(self, source: AskTell, experiment: Experiment, asha: Asha | None, run: RunFolder,
                 record: Callable[[TrialResult], None], events: queue.Queue[Any]) -> None:  # fmt: skip
        super().__init__()  # with no metric: Tune would end the whole search over one report without it
        self._source, self._asha, self._run, self._record, self._events = source, asha, run, record, events
        self._space, self._max_epochs = experiment.space, experiment.training.epochs
        self._running: dict[str, _InFlight] = {}
        self._paused: dict[int, _InFlight] = {}
        self._inherited = {candidate.arch.id: candidate.accuracy for candidate in run.candidates()}
        for trial in source.paused():
            last = {
                "status": "running",
                "epoch": len(trial.curve),
                "accuracy": trial.curve[-1],
                "curve": list(trial.curve),
                "train_seconds": trial.train_seconds,
            }
            proposal = trial.proposal
            self._paused[proposal.number] = _InFlight(proposal=proposal, started=0.0, spent=trial.seconds, last=last)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state is the source's."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the state is the source's."""

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        del metric, mode, config, spec
        return True

    def suggest(self, trial_id: str) -> Any:
        promoted = None if self._asha is None else self._asha.promote()
        if promoted is not None:
            self._source.promote(promoted)
            trial = self._paused.pop(promoted)
            trial.started = time.monotonic()
        else:
            proposal = self._source.ask()
            if proposal is None:
                if self._running:
                    return None  # what they report may promote a paused trial
                for number in sorted(self._paused):
                    self._finish(self._paused.pop(number))
                return Searcher.FINISHED
            trial = _InFlight(proposal=proposal, started=time.monotonic())
        self._running[trial_id] = trial
        proposal = trial.proposal
        self._events.put(TrialStarted(number=proposal.number))
        arch = self._space.decode(proposal.genome)
        return {"number": proposal.number, "arch": arch_to_dict(arch), "seed": proposal.seed}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        trial = self._running[trial_id]
        trial.last = result
        if result["status"] == "running":
            self._events.put(
                EpochDone(number=trial.proposal.number, epoch=result["epoch"], accuracy=result["accuracy"])
            )

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._running.pop(trial_id)
        trial.last = result or trial.last
        trial.spent += time.monotonic() - trial.started
        number = trial.proposal.number
        if not error and self._asha is not None and self._asha.is_paused(number):
            self._source.pause(
                Paused(
                    proposal=trial.proposal,
                    curve=tuple(trial.last["curve"]),
                    seconds=trial.spent,
                    train_seconds=trial.last["train_seconds"],
                )
            )
            self._paused[number] = trial
            self._events.put(TrialPaused(number=number))
        else:
            self._finish(trial, failed=error)

    def _finish(self, trial: _InFlight, *, failed: bool = False) -> None:
        """Records how a trial ended: on disk, then by telling the source."""
        proposal, last = trial.proposal, trial.last
        epochs, status, reason = last.get("epoch", 0), last.get("status", "running"), last.get("reason")
        if failed:
            log = self._run.error_path(proposal.number)
            status, reason = "failed", log.read_text().splitlines()[-1] if log.exists() else "the worker process died"
        elif status == "running":
            status = "complete" if epochs == self._max_epochs else "stopped"
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
        )
        self._record(result)
        self._source.tell(result)
        with contextlib.suppress(OSError):  # a checkpoint too many is no reason to end the search
            self._run.checkpoint_path(proposal.number).unlink()
        self._events.put(result)


class _AshaScheduler(FIFOScheduler):
    """Tune's view of the rungs. To Tune, a paused trial has ended; promoted, it is a new one on the old checkpoint."""

    def __init__(self, asha: Asha, metrics: Sequence[Metric]) -> None:
        super().__init__()
        self._asha, self._metrics = asha, metrics

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        del tune_controller
        if result["status"] != "running":
            return TrialScheduler.CONTINUE  # it is about to end by itself
        arch = arch_from_dict(trial.config["arch"])
        losses = (1 - result["accuracy"], *losses_of_cost(cost_of(arch), self._metrics))
        decision = self._asha.decide(trial.config["number"], result["epoch"], losses)
        return TrialScheduler.CONTINUE if decision == "go" else TrialScheduler.STOP


def asha_of(experiment: Experiment, study: Study, results: Sequence[TrialResult]) -> Asha | None:
    """The rungs of the experiment's scheduler, as the trials of earlier processes left them."""
    settings, metrics = experiment.search, experiment.objectives
    if settings.scheduler == "none":
        return None
    asha = Asha(
        max_epochs=experiment.training.epochs,
        grace_period=settings.grace_period,
        reduction_factor=settings.reduction_factor,
        ranking=pareto_ranks if settings.scheduler == "pareto-asha" else accuracy_ranks,
        mode=settings.mode,
    )
    for result in results:
        asha.replay(result.number, result.curve, losses_of_cost(result.cost, metrics))
    for trial in study.paused():
        costs = losses_of_cost(trial.proposal.cost, metrics)
        asha.replay(trial.proposal.number, trial.curve, costs, is_paused=True)
    return asha
