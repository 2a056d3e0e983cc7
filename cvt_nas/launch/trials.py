"""Trials by Ray Tune, as a race decides.

Ray only executes: nothing of its own state is kept, and an interrupted race goes on by starting it again on the same
run.
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
    search: Search, race: Race, *, keep: Callable[[TrialResult], None], keep_models: bool = True
) -> Iterator[RaceEvent]:
    """Runs trials until `race` asks for none, or the search is to stop. Raises RayError where Ray itself failed.

    A result is in the record, by `keep`, before `race` is told of it and before it is yielded. Trials in flight at a
    stop stay open; the next call begins with them.
    """
    experiment, run, resources = search.experiment, search.run, search.resources
    events: queue.Queue[RaceEvent | BaseException | None] = queue.Queue()
    closing = threading.Event()  # where the reader goes away before the end
    spread = _spread_of(search)
    searcher = RaceSearcher(race, experiment, run, keep, events, gpus_per_trial=resources.gpus_per_trial, spread=spread)
    timeout = experiment.search.trial_timeout
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(run_trial, setup=search.setup, resources=resources, keep_model=keep_models),
            functools.partial(_bundles_of, resources=resources),
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=RaceScheduler(searcher),
            num_samples=-1,  # the race counts
            max_concurrent_trials=resources.num_slots,
            reuse_actors=search.reuse_workers and spread is None,  # one that is kept for later keeps its GPU
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


def _bundles_of(config: Mapping[str, Any], resources: Resources) -> tune.PlacementGroupFactory:
    """What Tune reserves for a trial: with several GPUs a place for its own process, which only waits, and its ranks.

    Tune frees them however the trial ends. Ray alone would keep what a trial asked for by itself until the job is over.
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
