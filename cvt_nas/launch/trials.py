"""Runs the trials of a race with Ray Tune.

Ray only executes. None of its own state is kept; starting an interrupted race on the same run again resumes it.
"""

import functools
import logging
import queue
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray import tune

from cvt_nas.latency import Int8Runtime
from cvt_nas.launch.ranks import bundles_of_ranks
from cvt_nas.launch.resources import Resources
from cvt_nas.launch.search import Search
from cvt_nas.launch.trial import WAITING_CPUS, cpus_of_rank, run_trial
from cvt_nas.launch.tune import RaceScheduler, RaceSearcher, StopWhenSet, Watchdog
from cvt_nas.propose.race import Race
from cvt_nas.propose.spread import Spread
from cvt_nas.results import TrialResult
from cvt_nas.results.events import RaceEvent


def run_trials(
    search: Search,
    race: Race,
    *,
    keep: Callable[[TrialResult], None],
    keep_models: bool = True,
    judge_as: Int8Runtime | None = None,
) -> Iterator[RaceEvent]:
    """Runs trials until `race` has no more, or the search is stopped. Raises RayError if Ray itself fails.

    `keep` records each result before `race` learns of it and before it is yielded. Trials in flight at a stop stay
    open, and the next call starts with them. Trained networks are judged in the int8 of `judge_as`.
    """
    experiment, run, resources = search.experiment, search.run, search.resources
    events: queue.Queue[RaceEvent | BaseException | None] = queue.Queue()
    closing = threading.Event()  # set when the reader leaves before the end
    spread = _spread_of(search)
    searcher = RaceSearcher(race, experiment, run, keep, events, gpus_per_trial=resources.gpus_per_trial, spread=spread)
    timeout = experiment.search.trial_timeout
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(
                run_trial, setup=search.setup, resources=resources, keep_model=keep_models, judge_as=judge_as
            ),
            functools.partial(_bundles_of, resources=resources),
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=RaceScheduler(searcher),
            num_samples=-1,  # the race counts
            max_concurrent_trials=resources.num_slots,
            reuse_actors=search.reuse_workers and spread is None,  # a reused actor keeps its GPU
        ),
        run_config=tune.RunConfig(
            name="race",
            **run.store.ray_storage(run.tune_path),
            stop=StopWhenSet(search.stop, closing),
            failure_config=tune.FailureConfig(max_failures=0),  # the searcher tries again
            callbacks=[] if timeout is None else [Watchdog(searcher, timeout)],
            verbose=0,
        ),
    )

    # Tune would print the traceback of each failed trial; it is in the run folder, and its last line in the record
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

    def execute() -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Tune warns about settings of future versions
                tuner.fit()
            events.put(None)
        except BaseException as error:  # the reader of the race raises it
            events.put(error)

    # In a separate thread, Tune installs no signal handlers, so the caller decides about Ctrl-C.
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


def _bundles_of(config: Mapping[str, Any], resources: Resources) -> tune.PlacementGroupFactory:
    """Resources that Tune reserves for a trial. With several GPUs, there is a bundle for its process and for each rank.

    Tune frees them when the trial ends. Ray would keep resources that the trial asked for itself until the job ends.
    """
    if config["gpus"] <= 1:
        return tune.PlacementGroupFactory([{"CPU": resources.cpus_per_trial, "GPU": config["gpus"]}])
    num_ranks = int(config["gpus"])
    ranks = bundles_of_ranks(num_ranks, cpus_per_rank=cpus_of_rank(resources, num_ranks), use_gpus=True)
    return tune.PlacementGroupFactory([{"CPU": WAITING_CPUS}, *ranks])


def _spread_of(search: Search) -> Spread | None:
    num_gpus = search.resources.num_gpus
    if not search.experiment.search.spread_last or num_gpus <= 1:
        return None
    return Spread(
        num_gpus=lambda: min(num_gpus, int(ray.cluster_resources().get("GPU", 0))),
        gpus_per_trial=search.resources.gpus_per_trial,
        batch_size=search.experiment.training.batch_size,
    )
