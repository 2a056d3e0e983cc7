"""The learning curves that trials taught so far."""

from collections import Counter

import numpy as np
import pytest

from cvt_nas.propose.observations import Observation, curves_of, most_telling


def observation(*curve: float, status: str = "stopped") -> Observation:
    return Observation(genome=(0,), curve=curve, status=status)


def test_every_epoch_of_every_trial_is_an_observation() -> None:
    trials = [observation(0.5, 0.6, status="complete"), observation(0.4), observation(status="running")]
    curves = curves_of(trials, np.zeros((3, 1)), 2)
    assert curves.trials.tolist() == [0, 0, 1]
    assert curves.epochs.tolist() == [1, 2, 1]
    assert curves.values.tolist() == [0.5, 0.6, 0.4]


def test_a_failed_trial_counts_as_the_worst_that_was_trained_in_full() -> None:
    trials = [observation(0.7, status="complete"), observation(0.6, status="complete"), observation(status="failed")]
    curves = curves_of(trials, np.zeros((3, 1)), 1)
    assert curves.trials.tolist() == [0, 1, 2]
    assert curves.epochs.tolist() == [1, 1, 1]
    assert curves.values.tolist() == [0.7, 0.6, 0.6]


def test_a_trial_that_diverged_counts_as_the_worst_whatever_it_reached_before() -> None:
    trials = [
        observation(0.5, 0.7, status="complete"),
        observation(0.5, 0.6, status="complete"),
        observation(0.65, status="failed"),
        observation(0.65, 0.9, status="failed"),  # after its last epoch
    ]
    curves = curves_of(trials, np.zeros((4, 1)), 2)
    assert curves.trials.tolist() == [0, 0, 1, 1, 2, 3]
    assert curves.epochs.tolist() == [1, 2, 1, 2, 2, 2]
    assert curves.values.tolist() == [0.5, 0.7, 0.5, 0.6, 0.6, 0.6]


def test_before_one_is_trained_in_full_a_failed_trial_tells_nothing() -> None:
    curves = curves_of([observation(0.7), observation(status="failed")], np.zeros((2, 1)), 2)
    assert curves.trials.tolist() == [0]


def test_how_bad_the_worst_are_does_not_matter() -> None:
    values = (0.80, 0.82, 0.84, 0.1)  # the last one diverged
    curves = curves_of([observation(value, status="complete") for value in values], np.zeros((4, 1)), 1)
    assert curves.values[:3].tolist() == [0.80, 0.82, 0.84]
    assert curves.values[3] == pytest.approx(0.81 - 2 * 0.03)


def test_what_a_trial_inherited_is_its_epoch_0() -> None:
    untrained = Observation(genome=(0,), curve=(), status="stopped", inherited=0.3)
    trained = Observation(genome=(1,), curve=(0.5,), status="stopped", inherited=0.4)
    curves = curves_of([untrained, trained], np.zeros((2, 1)), 2)
    assert curves.trials.tolist() == [0, 1, 1]
    assert curves.epochs.tolist() == [0, 0, 1]
    assert curves.values.tolist() == [0.3, 0.4, 0.5]


@pytest.mark.parametrize(
    ("limit", "epochs"),
    [(40, {1: 10, 3: 10, 8: 20}), (70, {1: 40, 3: 10, 8: 20}), (100, {1: 40, 2: 30, 3: 10, 8: 20})],
)
def test_of_too_many_observations_the_last_of_each_trial_and_then_early_ones_are_kept(
    limit: int, epochs: dict[int, int]
) -> None:
    trials = [observation(*(0.5 + 0.01 * epoch for epoch in range(length))) for length in [8, 8, 3, 1] * 10]
    curves = curves_of(trials, np.zeros((40, 1)), 8)
    rng = np.random.default_rng(0)
    assert Counter(curves.where(most_telling(curves, limit, rng)).epochs.tolist()) == epochs
    assert most_telling(curves, 200, rng).tolist() == list(range(200))


def test_what_trained_networks_inherited_is_kept_before_that_of_others() -> None:
    """A model learns from these pairs how far inherited accuracies are to be believed."""
    candidates = [Observation(genome=(0,), curve=(), status="stopped", inherited=0.3)] * 50
    trained = [Observation(genome=(1,), curve=(0.5, 0.6), status="complete", inherited=0.4)] * 10
    curves = curves_of([*candidates, *trained], np.zeros((60, 1)), 2)
    kept = curves.where(most_telling(curves, 40, np.random.default_rng(0)))
    counts = Counter(zip((kept.trials >= 50).tolist(), kept.epochs.tolist(), strict=True))
    assert counts == {(True, 2): 10, (True, 0): 10, (False, 0): 20}
