"""The accuracy that a trial would end at."""

import numpy as np
import pytest

from cvt_nas.propose.observations import Observation, final_accuracies


def observation(*curve: float, status: str = "complete") -> Observation:
    return Observation(genome=(0,), curve=curve, status=status)


def test_a_stopped_trial_counts_as_what_its_epoch_foretells() -> None:
    complete = [observation(x, 0.5 + 0.8 * x) for x in (0.1, 0.2, 0.3, 0.4, 0.5)]
    values, noises = final_accuracies([*complete, observation(0.25, status="stopped")])
    assert values[:5] == pytest.approx([0.58, 0.66, 0.74, 0.82, 0.9])
    assert values[5] == pytest.approx(0.7, abs=0.01)
    assert noises[:5].tolist() == [0.0] * 5
    assert noises[5] > 0


def test_an_epoch_that_foretells_nothing_leaves_a_wide_guess() -> None:
    rng = np.random.default_rng(0)
    complete = [observation(float(x), float(y)) for x, y in rng.random((40, 2))]
    values, noises = final_accuracies([*complete, observation(0.9, status="stopped")])
    finals = np.array([o.curve[-1] for o in complete])
    assert abs(values[-1] - finals.mean()) < 0.5 * finals.std()
    assert noises[-1] == pytest.approx(finals.var(), rel=0.3)


def test_a_failed_trial_counts_as_the_worst() -> None:
    values, _ = final_accuracies([observation(0.7), observation(0.4), observation(status="failed")])
    assert values.tolist() == [0.7, 0.4, 0.4]
