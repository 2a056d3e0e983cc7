"""After the race: its best architectures are trained again, with seeds that had no part in their selection."""

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from cvt_nas.config import ConfirmConfig, Experiment
from cvt_nas.engine import TrainingSetup
from cvt_nas.launch.race import Plan, launch_trials
from cvt_nas.launch.resources import Resources
from cvt_nas.propose.asha import pareto_ranks
from cvt_nas.propose.samplers import derive_seed
from cvt_nas.propose.study import Proposal
from cvt_nas.results import FAILURES, ConfirmPlan, Metric, ParetoFront, TrialResult, losses_of, round_and_trial
from cvt_nas.results.events import ConfirmationStarted, RaceEvent
from cvt_nas.run import RunFolder
from cvt_nas.space import SearchSpace


def plan_of(results: Sequence[TrialResult], metrics: Sequence[Metric], settings: ConfirmConfig) -> ConfirmPlan:
    """What `settings` choose from a race that is over.

    Args:
        results: Of the race. Only complete trials are chosen.
        metrics: The objectives.
    """
    if settings.top == "front":
        chosen: Sequence[TrialResult] = ParetoFront.of(results, metrics).members
    else:
        complete = [result for result in results if result.status == "complete"]
        order = np.argsort(pareto_ranks(losses_of(complete, metrics)))
        chosen = [complete[index] for index in order[: settings.top]]
    return ConfirmPlan(top=settings.top, seeds=settings.seeds, members=tuple(result.number for result in chosen))


def further_training(trial: TrialResult, number: int, space: SearchSpace, *, seed: int) -> Proposal:
    """Further training `number` of `trial`; its seed is a function of the run's and of the number's two parts."""
    round_, _ = round_and_trial(number)
    return Proposal(
        number=number,
        genome=space.encode(trial.arch),
        cost=trial.cost,
        seed=derive_seed(seed, trial.number, "confirmation", round_),
    )


def confirm_front(
    experiment: Experiment,
    run: RunFolder,
    setup: TrainingSetup,
    resources: Resources,
    *,
    seed: int,
    stop: threading.Event,
    reuse_workers: bool = True,
) -> Iterator[RaceEvent]:
    """Trains again what `search.confirm` chooses, until every seed has ended or `stop` is set.

    The plan is made anew from the race's results, which is the same plan unless the race or the settings grew.
    Whatever ended before is kept, in any case. A training keeps no weights: those of the race are what is exported.

    Args:
        seed: Of the run.

    Raises:
        ray.exceptions.RayError: Ray itself failed; the record is whole all the same.
    """
    settings = experiment.search.confirm
    assert settings is not None, "the caller knows whether there is anything to confirm"
    trials = run.results()
    plan = plan_of(trials, experiment.objectives, settings)
    run.confirmations.write_plan(plan)
    of_plan = [result for result in run.confirmations.results() if result.number in set(plan.numbers)]
    ended = tuple(result for result in of_plan if result.status not in FAILURES)  # what failed is tried again
    numbers, known = plan.numbers, {result.number for result in ended}
    left = [number for number in numbers if number not in known]
    yield ConfirmationStarted(num_planned=len(numbers), ended=ended)
    if not left or stop.is_set():
        return
    by_number = {trial.number: trial for trial in trials}
    source = Plan(
        further_training(by_number[round_and_trial(number)[1]], number, experiment.space, seed=seed) for number in left
    )
    yield from launch_trials(
        experiment, source, run, setup, resources, asha=None, record=run.confirmations.append, stop=stop,
        keep_models=False, reuse_workers=reuse_workers,
    )  # fmt: skip
