"""Inherited accuracies without the noise of the images that they were measured on, on made-up networks."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from cvt_nas.config import Experiment
from cvt_nas.pipeline.judging import look
from cvt_nas.pipeline.sample import Member
from cvt_nas.results import Candidate, Inherited, Origin, kendall, smoothed_accuracies
from cvt_nas.space import spread_over_flops


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def measured(rng: np.random.Generator, expected: np.ndarray, num_images: int, *, own: float = 0.0) -> list[Inherited]:
    """Networks with these expected accuracies on two classes, measured on the same images, most of which all get right.

    Args:
        own: Standard deviation of how sure networks are, which has nothing to do with accuracy.
    """
    skills, margins = 2.0 * norm.ppf(expected), rng.normal(0, np.sqrt(3), num_images)
    logits = skills[:, None] + margins + rng.normal(0, 1, (len(expected), num_images))
    sure = np.exp(rng.normal(0, own, (len(expected), 1)))
    briers = 2 * (1 - expit(sure * logits)) ** 2
    return [
        Inherited(accuracy=float(accuracy), num_images=num_images, brier=float(brier))
        for accuracy, brier in zip((logits > 0).mean(axis=1), briers.mean(axis=1), strict=True)
    ]


def accuracies_of(found: list[Inherited]) -> np.ndarray:
    return np.array([each.accuracy for each in found])


@pytest.mark.parametrize(("num_images", "spread"), [(500, 0.01), (5_000, 0.003)])
def test_networks_that_differ_by_no_more_than_the_noise_are_ranked_better(
    rng: np.random.Generator, num_images: int, spread: float
) -> None:
    gains = []
    for _ in range(8):
        expected = rng.normal(0.85, spread, 60)
        found = measured(rng, expected, num_images)
        smoothed = np.array(smoothed_accuracies(found))
        gains.append(kendall(smoothed, expected) - kendall(accuracies_of(found), expected))
        assert smoothed.mean() == pytest.approx(accuracies_of(found).mean(), abs=1e-3)
    assert np.mean(gains) > 0.04
    assert min(gains) > -0.03


def test_where_the_brier_score_misleads_and_images_are_many_accuracies_hardly_change(rng: np.random.Generator) -> None:
    expected = rng.normal(0.7, 0.04, 60)
    found = measured(rng, expected, 20_000, own=0.5)
    smoothed, accuracies = np.array(smoothed_accuracies(found)), accuracies_of(found)
    assert np.abs(smoothed - accuracies).max() < 0.005
    briers = -np.array([each.brier for each in found])
    assert kendall(briers, expected) + 0.1 < kendall(smoothed, expected) > kendall(accuracies, expected) - 0.01


def test_a_network_on_fewer_images_is_smoothed_more(rng: np.random.Generator) -> None:
    found = measured(rng, rng.normal(0.7, 0.04, 60), 2_000, own=0.5)
    whole, part = (Inherited(accuracy=0.9, num_images=number, brier=found[0].brier) for number in (2_000, 100))
    assert smoothed_accuracies([part, *found])[0] < smoothed_accuracies([whole, *found])[0] - 0.01 < 0.9


def test_few_networks_equal_ones_and_those_without_a_brier_score_keep_their_accuracies(
    rng: np.random.Generator,
) -> None:
    found = measured(rng, rng.normal(0.85, 0.01, 12), 100)
    accuracies = accuracies_of(found).tolist()
    assert smoothed_accuracies(found) != accuracies
    assert smoothed_accuracies(found[:7]) == accuracies[:7]
    assert smoothed_accuracies([*found, Inherited(accuracy=0.5, num_images=100)]) == [*accuracies, 0.5]
    assert smoothed_accuracies([found[0]] * 12) == [accuracies[0]] * 12
    assert smoothed_accuracies([]) == []


def test_the_verdict_has_the_answers_by_which_the_evaluation_stopped(
    rng: np.random.Generator, digits: Experiment
) -> None:
    space, expected = digits.space, rng.normal(0.85, 0.01, 60)
    found, own = measured(rng, expected, 500), np.column_stack([expected, expected]) + rng.normal(0, 0.002, (60, 2))
    members = [
        Member(index=index, genome=genome, arch=space.decode(genome), cost=space.cost(genome))
        for index, genome in enumerate(spread_over_flops(space, 60))
    ]
    whole = [(member, tuple(accuracies)) for member, accuracies in zip(members[:40], own.tolist(), strict=False)]
    inherited = {member.arch.id: each for member, each in zip(members[:40], found, strict=False)}
    judged = look(whole, inherited, until_told=False)
    assert judged is not None
    candidates = [  # of a ranking by an earlier version, which had no Brier scores
        Candidate(number=index, arch=member.arch, cost=member.cost, accuracy=0.7, num_images=500, seconds=1.0)
        for index, member in enumerate(members[40:])
    ]
    origin = Origin(dataset="digits", num_images=500, epochs=1, seed=0)
    quality = judged.quality(space, others=[], candidates=candidates, origin=origin, seed=0, is_reusing=False)
    assert quality.questions == judged.questions
    assert quality.rankers["inherited"].overall.value > quality.rankers["accuracy"].overall.value
