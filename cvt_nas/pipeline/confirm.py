"""Trains the best architectures of a race again, with seeds that played no part in their selection."""

from collections.abc import Generator, Sequence

import numpy as np

from cvt_nas.config import ConfirmConfig, Experiment
from cvt_nas.latency import Int8Runtime, check_installed
from cvt_nas.launch.search import Search
from cvt_nas.launch.trial import judge_kept
from cvt_nas.launch.trials import run_trials
from cvt_nas.propose.asha import pareto_ranks
from cvt_nas.propose.race import FixedPlan, Race
from cvt_nas.propose.samplers import derive_seed
from cvt_nas.propose.study import Proposal
from cvt_nas.results import FAILURES, ConfirmPlan, Metric, ParetoFront, TrialResult, losses_of, round_and_trial
from cvt_nas.results.events import ConfirmationStarted, RaceEvent
from cvt_nas.space import SearchSpace


def plan_of(results: Sequence[TrialResult], metrics: Sequence[Metric], settings: ConfirmConfig) -> ConfirmPlan:
    """Further trainings that `settings` choose from the complete trials of a finished race."""
    if settings.top == "front":
        chosen: Sequence[TrialResult] = ParetoFront.of(results, metrics).members
    else:
        complete = [result for result in results if result.status == "complete"]
        order = np.argsort(pareto_ranks(losses_of(complete, metrics)))
        chosen = [complete[index] for index in order[: settings.top]]
    return ConfirmPlan(
        top=settings.top, seeds=settings.seeds, members=tuple(result.number for result in chosen), runtime=settings.as_
    )


def further_training(trial: TrialResult, number: int, space: SearchSpace, *, seed: int) -> Proposal:
    """Proposal of the further training `number` of `trial`. Its seed depends on the seed of the run, the round and the
    trial."""
    round_, _ = round_and_trial(number)
    return Proposal(
        number=number,
        genome=space.encode(trial.arch),
        cost=trial.cost,
        seed=derive_seed(seed, trial.number, "confirmation", round_),
    )


def confirm_front(search: Search) -> Generator[RaceEvent, None, bool]:
    """Trains again the architectures that `search.confirm` chooses. Returns whether every seed has ended.

    The plan is computed from the results of the race each time. It changes only if the race or the settings grew.
    Trainings that ended before are kept. These trainings keep no weights, since exports use the weights of the race.

    With `search.confirm.as`, each network is judged in int8 by the worker that trained it, before its weights are lost.
    The networks of the race are judged afterwards. Their figures have no part in the front.
    """
    experiment, run = search.experiment, search.run
    settings = experiment.search.confirm
    if settings is None or experiment.training.epochs == 0:
        return True
    trials = run.results()
    plan = plan_of(trials, experiment.objectives, settings)
    run.confirmations.write_plan(plan)
    of_plan = [result for result in run.confirmations.results() if result.number in set(plan.numbers)]
    ended = tuple(result for result in of_plan if result.status not in FAILURES)  # failed ones run again
    numbers, known = plan.numbers, {result.number for result in ended}
    left = [number for number in numbers if number not in known]
    yield ConfirmationStarted(num_planned=len(numbers), ended=ended)
    if left and not search.stop.is_set():
        by_number = {trial.number: trial for trial in trials}
        source = FixedPlan(
            further_training(by_number[round_and_trial(number)[1]], number, experiment.space, seed=search.seed)
            for number in left
        )
        race = Race(source)
        yield from run_trials(search, race, keep=run.confirmations.append, keep_models=False, judge_as=settings.as_)
    if run.confirmations.missing():
        return False
    return settings.as_ is None or judge_race_in_int8(search, plan, settings.as_)


def judge_race_in_int8(search: Search, plan: ConfirmPlan, runtime: Int8Runtime) -> bool:
    """Judges and times the kept networks of the plan's members in int8, except those that were judged before. Returns
    whether all are judged."""
    run, members = search.run, set(plan.members)
    known = run.int8.by_arch()
    arch_ids = [
        trial.arch_id
        for trial in run.results()
        if trial.number in members and runtime not in known.get(trial.arch_id, {}) and run.has_model(trial.arch_id)
    ]
    num_judged = 0
    for arch_id, found in judge_kept(arch_ids, runtime, search.setup, search.resources, stop=search.stop):
        run.int8.append(arch_id, found)
        num_judged += 1
    return num_judged == len(arch_ids)


def check_judging(experiment: Experiment) -> None:
    """Raises ResourceError if the runtime that confirms the front is not installed."""
    settings = experiment.search.confirm
    if settings is not None and settings.as_ is not None:
        check_installed(settings.as_, "search.confirm.as")
