"""After the race: its best architectures are trained again, with seeds that had no part in their selection."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from cvt_nas.config import ConfirmConfig, Experiment
from cvt_nas.engine import TrainingSetup
from cvt_nas.race.asha import pareto_ranks
from cvt_nas.race.executor import ConfirmationStarted, RaceEvent, launch_trials
from cvt_nas.race.resources import Resources
from cvt_nas.race.samplers import derive_seed
from cvt_nas.race.study import Paused, Proposal
from cvt_nas.results import (
    ConfirmPlan,
    Metric,
    ParetoFront,
    RunFolder,
    TrialResult,
    losses_of,
    round_and_trial,
)
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


class Confirmations:
    """The further trainings of a plan that have not ended, asked for in its order.

    Nobody learns from them: Optuna is not told, so that a race goes on later as if there had been none. One that
    was in flight when the search was interrupted is asked for again, and goes on from the checkpoint of its number.

    Args:
        numbers: Of the further trainings.
        trials: The race's, by number.
        seed: Of the run. Each training has a seed of its own, a function of this and of its number's two parts.
    """

    def __init__(self, numbers: Sequence[int], trials: dict[int, TrialResult], space: SearchSpace, seed: int) -> None:
        self._left, self._trials, self._space, self._seed = deque(numbers), trials, space, seed

    def ask(self) -> Proposal | None:
        if not self._left:
            return None
        number = self._left.popleft()
        round_, trial_number = round_and_trial(number)
        trial = self._trials[trial_number]
        return Proposal(
            number=number,
            genome=self._space.encode(trial.arch),
            cost=trial.cost,
            seed=derive_seed(self._seed, trial_number, "confirmation", round_),
        )

    def tell(self, ended: TrialResult) -> None:
        """Nothing: the record holds it."""

    def pause(self, trial: Paused) -> None:
        raise AssertionError(f"without a scheduler nothing pauses: {trial}")

    def promote(self, number: int) -> None:
        raise AssertionError(f"without a scheduler nothing pauses: {number}")

    def paused(self) -> Iterator[Paused]:
        return iter(())


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
    run.write_confirm_plan(plan)
    left, numbers = run.unconfirmed(), set(plan.numbers)
    ended = tuple(result for result in run.confirmations() if result.number in numbers)
    yield ConfirmationStarted(num_planned=len(numbers), ended=ended)
    if not left or stop.is_set():
        return
    source = Confirmations(left, {trial.number: trial for trial in trials}, experiment.space, seed)
    yield from launch_trials(
        experiment, source, run, setup, resources, asha=None, record=run.append_confirmation, stop=stop,
        keep_models=False, reuse_workers=reuse_workers,
    )  # fmt: skip
