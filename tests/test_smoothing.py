"""Inherited accuracies without the noise of the images that they were measured on, on made-up networks."""

import numpy as np
import pytest

from cvt_nas.results import Inherited, kendall, smoothed_accuracies


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def measured(
    rng: np.random.Generator, expected: np.ndarray, num_images: int, *, own: float = 0.0
) -> tuple[list[Inherited], np.ndarray]:
    """Networks with these accuracies, and what the draw of images makes of them.

    Args:
        own: Standard deviation of what accuracy does not share with the Brier score.
    """
    expected = expected + rng.normal(0, own, len(expected))
    briers = 1.6 * (1 - expected) - 0.04 + rng.normal(0, own, len(expected)) + rng.normal(0, 0.001, len(expected))
    accuracies = rng.binomial(num_images, expected) / num_images
    found = [
        Inherited(accuracy=accuracy, num_images=num_images, brier=brier)
        for accuracy, brier in zip(accuracies.tolist(), briers.tolist(), strict=True)
    ]
    return found, expected


def test_networks_that_differ_little_are_ranked_better(rng: np.random.Generator) -> None:
    for _ in range(5):
        found, expected = measured(rng, rng.normal(0.85, 0.004, 60), 6_000)
        smoothed, accuracies = smoothed_accuracies(found), np.array([each.accuracy for each in found])
        assert kendall(np.array(smoothed), expected) > kendall(accuracies, expected) + 0.1
        assert np.abs(smoothed - expected).mean() < 0.7 * np.abs(accuracies - expected).mean()
        assert np.mean(smoothed) == pytest.approx(accuracies.mean(), abs=1e-4)


def test_with_many_images_networks_that_differ_from_the_line_keep_their_accuracy(rng: np.random.Generator) -> None:
    found, expected = measured(rng, rng.normal(0.7, 0.04, 60), 1_000_000, own=0.02)
    accuracies = np.array([each.accuracy for each in found])
    assert np.abs(np.array(smoothed_accuracies(found)) - accuracies).max() < 0.0005
    few, expected = measured(rng, rng.normal(0.7, 0.04, 60), 500, own=0.02)
    errors = [np.abs(np.array(of) - expected).mean() for of in (smoothed_accuracies(few), [e.accuracy for e in few])]
    assert errors[0] < errors[1]


def test_a_network_on_fewer_images_is_smoothed_more(rng: np.random.Generator) -> None:
    found, _ = measured(rng, rng.normal(0.7, 0.04, 60), 6_000, own=0.02)
    outlier = Inherited(accuracy=0.9, num_images=6_000, brier=found[0].brier)
    half = Inherited(accuracy=0.9, num_images=500, brier=found[0].brier)
    assert smoothed_accuracies([half, *found])[0] < smoothed_accuracies([outlier, *found])[0] - 0.01 < 0.9


def test_few_networks_equal_ones_and_those_without_a_brier_score_keep_their_accuracies(
    rng: np.random.Generator,
) -> None:
    found, _ = measured(rng, rng.normal(0.85, 0.01, 12), 100)
    accuracies = [each.accuracy for each in found]
    assert smoothed_accuracies(found) != accuracies
    assert smoothed_accuracies(found[:7]) == accuracies[:7]
    assert smoothed_accuracies([*found, Inherited(accuracy=0.5, num_images=100)]) == [*accuracies, 0.5]
    assert smoothed_accuracies([found[0]] * 12) == [accuracies[0]] * 12
    assert smoothed_accuracies([]) == []
