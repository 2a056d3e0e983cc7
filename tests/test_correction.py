"""What a few trainings add to inherited accuracies, on made-up networks."""

from dataclasses import replace

import numpy as np

from cvt_nas.config import Experiment
from cvt_nas.propose.correction import corrected, judge_correction
from cvt_nas.propose.observations import Observation
from cvt_nas.results import kendall
from cvt_nas.space import spread_over_flops


def made_up(digits: Experiment, number: int, *, misjudged: float) -> list[Observation]:
    """Accuracies that grow with costs, and with the first choice; what is inherited misjudges that choice."""
    space, rng = digits.space, np.random.default_rng(0)
    genomes = spread_over_flops(space, number)
    logs = np.log([space.cost(genome).flops for genome in genomes])
    first = np.array([genome[0] / (len(space.genes[0].options) - 1) for genome in genomes])
    truth = 0.8 + 0.02 * (logs - logs.mean()) + 0.03 * first + 0.001 * rng.normal(size=len(genomes))
    inherited = truth - 0.1 - misjudged * first + 0.004 * rng.normal(size=len(genomes))
    return [
        Observation(genome=genome, curve=(own,), status="complete", inherited=early)
        for genome, own, early in zip(genomes, truth.tolist(), inherited.tolist(), strict=True)
    ]


def test_a_choice_that_is_misjudged_is_put_right(digits: Experiment) -> None:
    networks = made_up(digits, 48, misjudged=0.06)
    found = judge_correction(digits.space, networks, [], seed=0)
    assert found is not None
    assert found.num_trainings == 32
    assert found.inherited < 0.7
    assert found.corrected > found.inherited + 0.1


def test_what_is_expected_of_untrained_networks_ranks_better_than_what_they_inherit(digits: Experiment) -> None:
    networks = made_up(digits, 48, misjudged=0.06)
    truth = np.array([each.curve[-1] for each in networks])
    inherited = np.array([each.inherited for each in networks])
    known = [each if index < 24 else replace(each, curve=(), status="stopped") for index, each in enumerate(networks)]
    expected = corrected(digits.space, known, [each.genome for each in networks], seed=0)
    assert kendall(expected[24:], truth[24:]) > kendall(inherited[24:], truth[24:]) + 0.1


def test_fewer_than_a_dozen_are_not_judged(digits: Experiment) -> None:
    assert judge_correction(digits.space, made_up(digits, 11, misjudged=0.0), [], seed=0) is None
