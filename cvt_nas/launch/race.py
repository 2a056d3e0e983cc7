"""The race: Ray Tune runs the trials that the study proposes, and ASHA stops the weak ones.

Ray only executes. Its searcher and scheduler are thin adapters to `Study` and `Asha`, nothing of Ray's
own state is kept, and an interrupted race goes on by starting it again on the same run. What is trained
again after the race (`cvt_nas.pipeline.confirm`) is launched by the same code.
"""

import functools
import logging
import queue
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray import tune

from cvt_nas.config import Experiment
from cvt_nas.engine import TrainingSetup
from cvt_nas.launch.resources import Resources
from cvt_nas.launch.trial import WAITING_CPUS, run_trial
from cvt_nas.launch.tune import AskTell, RaceScheduler, SourceSearcher, StopWhenSet, Watchdog
from cvt_nas.propose.asha import Asha, accuracy_ranks, losses_of_cost, pareto_ranks
from cvt_nas.propose.spread import Spread
from cvt_nas.propose.study import PartialTrial, Proposal, Study
from cvt_nas.results import FAILURES, TrialResult
from cvt_nas.results.events import RaceEvent
from cvt_nas.run import RunFolder


class Plan:
    """Trainings that are fixed beforehand, asked for in their order; nobody learns from them.

    One that was in flight when the process ended is in the plan of the next one, and goes on from its checkpoint.
    There are no rungs, so how far it came is nobody else's business.
    """

    def __init__(self, proposals: Iterable[Proposal]) -> None:
        self._left = deque(proposals)

    def ask(self) -> Proposal | None:
        return self._left.popleft() if self._left else None

    @property
    def has_no_more(self) -> bool:
        return not self._left

    def tell(self, ended: TrialResult) -> None:
        """Nothing: the record holds it."""

    def report(self, trial: PartialTrial) -> None:
        """Nothing: the checkpoint holds it."""

    def pause(self, trial: PartialTrial) -> None:
        raise AssertionError(f"without a scheduler nothing pauses: {trial}")

    def promote(self, trial: PartialTrial) -> None:
        raise AssertionError(f"without a scheduler nothing pauses: {trial}")

    def paused(self) -> Iterator[PartialTrial]:
        return iter(())

    def interrupted(self) -> Iterator[PartialTrial]:
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
    asha = asha_of(experiment, study, run.results(), rungs=experiment.rungs_of(run.manifest))
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
    spread = None
    if experiment.search.spread_last and resources.num_gpus > 1:
        spread = Spread(
            num_gpus=lambda: min(resources.num_gpus, int(ray.cluster_resources().get("GPU", 0))),
            gpus_per_trial=resources.gpus_per_trial,
            batch_size=experiment.training.batch_size,
        )
    searcher = SourceSearcher(source, experiment, asha, run, record, events, resources.gpus_per_trial, spread)
    timeout = experiment.search.trial_timeout
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(run_trial, setup=setup, resources=resources, keep_model=keep_models),
            functools.partial(_bundle_of, resources=resources),
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=RaceScheduler(asha, searcher),
            num_samples=-1,  # the source counts
            max_concurrent_trials=resources.num_slots,
            reuse_actors=reuse_workers and spread is None,  # one that is kept for later keeps its GPU
        ),
        run_config=tune.RunConfig(
            name="race",
            **run.store.ray_storage(run.tune_path),
            stop=StopWhenSet(stop, closing),
            failure_config=tune.FailureConfig(max_failures=0),  # the searcher tries again
            callbacks=[] if timeout is None else [Watchdog(searcher, timeout)],
            verbose=0,
        ),
    )

    # which would print the traceback of each trial that fails; it is in the run folder, and its last line in the record
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

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
        run.store.delete(run.tune_path)


def _bundle_of(config: Mapping[str, Any], resources: Resources) -> tune.PlacementGroupFactory:
    """What Tune reserves for a trial: with several GPUs it only waits for its workers, which claim them one by one."""
    if config["gpus"] > 1:
        return tune.PlacementGroupFactory([{"CPU": WAITING_CPUS}])
    return tune.PlacementGroupFactory([{"CPU": resources.cpus_per_trial, "GPU": config["gpus"]}])


def asha_of(
    experiment: Experiment, study: Study, results: Sequence[TrialResult], *, rungs: Sequence[int] = ()
) -> Asha | None:
    """The rungs of the experiment's scheduler, as the trials of earlier processes left them.

    Args:
        rungs: What the run began with, where this version would place them elsewhere: trials that met different rungs
            would not compare.
    """
    settings, metrics = experiment.search, experiment.objectives
    if settings.scheduler == "none":
        return None
    asha = Asha(
        max_epochs=experiment.training.epochs,
        grace_period=settings.grace_period,
        reduction_factor=settings.reduction_factor,
        ranking=pareto_ranks if settings.scheduler == "pareto-asha" else accuracy_ranks,
        mode=settings.mode,
        rungs=rungs,
    )
    for result in results:
        if result.status in FAILURES:  # it is tried again, and must not meet itself on a rung
            continue
        costs = losses_of_cost(result.cost, metrics)
        asha.replay(result.number, result.curve, costs, is_stopped=result.status == "stopped")
    for trial in study.paused():
        costs = losses_of_cost(trial.proposal.cost, metrics)
        asha.replay(trial.proposal.number, trial.curve, costs, is_paused=True)
    return asha
