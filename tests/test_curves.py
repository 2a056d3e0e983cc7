"""The process of accuracy over architectures and epochs."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from cvt_nas.config import Experiment
from cvt_nas.propose.curves import CurvePosterior, Curves, fit_hyperparameters, prior_of
from cvt_nas.propose.curves import _Terms as Terms

NUM_EPOCHS, NUM_FEATURES = 8, 3
PRIOR = np.log([0.7, 0.7, 2.2, 1.0, 1.0, 3.0, 0.2, 0.3, 0.1, 0.2, 1.0, 0.8])


def final_of(features: np.ndarray) -> np.ndarray:
    return 0.8 + 0.05 * features[:, 0] - 0.03 * features[:, 1] ** 2


def made_up(lengths: list[int], *, seed: int = 0, noise: float = 0.001, num_beliefs: int = 0) -> Curves:
    """Curves of random networks that were trained for so many epochs; the first feature is slow to show. Beliefs are
    random numbers."""
    rng = np.random.default_rng(seed)
    features = rng.random((len(lengths), NUM_FEATURES))
    trials = np.repeat(np.arange(len(lengths)), lengths)
    epochs = np.concatenate([np.arange(1, length + 1) for length in lengths])
    early = (0.2 + 0.1 * features[trials, 0]) * (1 / epochs - 1 / NUM_EPOCHS)
    values = final_of(features)[trials] - early + noise * rng.normal(size=len(trials))
    features = np.hstack([features, rng.normal(size=(len(lengths), num_beliefs))])
    return Curves(
        features=features, trials=trials, epochs=epochs, values=values, num_epochs=NUM_EPOCHS, num_beliefs=num_beliefs
    )


@pytest.mark.parametrize("num_beliefs", [0, 2])
def test_the_gradient_of_the_likelihood_is_that_of_finite_differences(num_beliefs: int) -> None:
    curves = made_up([8, 8, 3, 1, 5], num_beliefs=num_beliefs)
    terms = Terms(curves, (curves.values - curves.values.mean()) / curves.values.std())
    theta = PRIOR + 0.1 * np.random.default_rng(1).normal(size=len(PRIOR))
    _, slope = terms.negative_log_likelihood(theta)
    steps = 1e-5 * np.eye(len(theta))
    found = [
        (terms.negative_log_likelihood(theta + step)[0] - terms.negative_log_likelihood(theta - step)[0]) / 2e-5
        for step in steps
    ]
    assert slope == pytest.approx(found, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("num_beliefs", [0, 2])
def test_the_prediction_is_that_of_the_textbook(num_beliefs: int) -> None:
    curves = made_up([8, 4, 1], num_beliefs=num_beliefs)
    features = np.random.default_rng(2).random((4, NUM_FEATURES + num_beliefs))
    mean, sd = CurvePosterior(curves, PRIOR).predict(features)
    lengths, (f, g, m, own, own_curve, noise, early, alpha, beta) = np.exp(PRIOR[:3]), np.exp(PRIOR[3:])

    def e(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (beta / (one[:, None] + other + beta)) ** alpha

    def k(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        one, other = one[:, :NUM_FEATURES], other[:, :NUM_FEATURES]
        return np.exp(-0.5 * (((one[:, None] - other) / lengths) ** 2).sum(axis=2))

    def believed(x: np.ndarray) -> np.ndarray:
        return x[:, NUM_FEATURES:]

    x, n = curves.features[curves.trials], curves.epochs
    same = curves.trials[:, None] == curves.trials
    inside = k(x, x) * (f**2 + g**2 * e(n, n)) + m**2 * e(n, n) + 9 + same * (own**2 + own_curve**2 * e(n, n))
    inside += np.diag(noise**2 + early**2 / n + 1e-6) + 0.64 * believed(x) @ believed(x).T
    end = np.full(len(features), NUM_EPOCHS)
    across = k(features, x) * (f**2 + g**2 * e(end, n)) + m**2 * e(end, n) + 9
    across += 0.64 * believed(features) @ believed(x).T
    trust = 0.5 / max(num_beliefs, 1)
    centre, scale = curves.scale
    surprise = (curves.values - centre) / scale - trust * believed(x).sum(axis=1)
    expected = trust * believed(features).sum(axis=1) + across @ np.linalg.solve(inside, surprise)
    assert mean == pytest.approx(centre + scale * expected)
    prior = f**2 + (g**2 + m**2) * e(end[:1], end[:1])[0, 0] + 9 + 0.64 * (believed(features) ** 2).sum(axis=1)
    variance = prior - (across * np.linalg.solve(inside, across.T).T).sum(axis=1)
    assert sd == pytest.approx(scale * np.sqrt(variance), rel=1e-6)


def test_unfinished_curves_tell_where_networks_end() -> None:
    long, whole = made_up([8] * 10 + [2] * 40), made_up([8] * 10)
    unseen = np.random.default_rng(3).random((200, NUM_FEATURES))

    def error(curves: Curves) -> float:
        posterior = CurvePosterior(curves, fit_hyperparameters(curves, prior=PRIOR))
        return float(np.sqrt(np.mean((posterior.expect(unseen) - final_of(unseen)) ** 2)))

    assert error(long) < 0.7 * error(whole)
    assert error(long) < 0.005


def test_pending_trials_leave_the_mean_and_narrow_the_doubt() -> None:
    curves = made_up([8, 8, 8, 2])
    before, after = CurvePosterior(curves, PRIOR), CurvePosterior(curves, PRIOR, pending=[3])
    mean, sd = before.predict(curves.features)
    mean_then, sd_then = after.predict(curves.features)
    assert mean_then == pytest.approx(mean)
    assert sd_then[3] < 0.8 * sd[3]


def test_what_networks_inherited_tells_where_they_end() -> None:
    trained, untrained = made_up([8] * 8 + [0] * 30), np.arange(8, 38)
    unseen, ends = trained.features[untrained], final_of(trained.features)
    every = dataclasses.replace(
        trained,
        trials=np.append(trained.trials, np.arange(38)),
        epochs=np.append(trained.epochs, np.zeros(38, dtype=int)),
        values=np.append(trained.values, ends - 0.3),
    )

    def error(curves: Curves) -> float:
        return float(np.abs(CurvePosterior(curves, PRIOR).expect(unseen) - ends[untrained]).mean())

    assert error(every) < 0.7 * error(trained)


def test_one_epoch_is_a_process_over_architectures_alone() -> None:
    curves = made_up([1] * 30)
    curves = dataclasses.replace(curves, num_epochs=1)
    posterior = CurvePosterior(curves, fit_hyperparameters(curves, prior=PRIOR))
    assert posterior.expect(curves.features) == pytest.approx(curves.values, abs=0.01)


def test_a_belief_is_weighed_by_what_the_trials_show() -> None:
    right, few = made_up([8] * 20, num_beliefs=1), made_up([8] * 5, num_beliefs=1)
    for curves in (right, few):
        ends = final_of(curves.features)
        curves.features[:, -1] = (ends - ends.mean()) / ends.std()
    wrong = dataclasses.replace(right, features=right.features * np.array([1, 1, 1, -1]))

    def trust(curves: Curves) -> float:
        mean, _ = CurvePosterior(curves, fit_hyperparameters(curves, prior=PRIOR)).trust
        return float(mean[0])

    assert trust(right) > 0.8
    assert trust(wrong) < -0.3
    assert trust(few) > 0.6


def test_the_prior_has_a_length_for_each_feature(digits: Experiment) -> None:
    ordinal = sum(gene.is_ordinal for gene in digits.space.genes)
    options = sum(len(gene.options) for gene in digits.space.genes if not gene.is_ordinal)
    prior = prior_of([0 if gene.is_ordinal else len(gene.options) for gene in digits.space.genes], 300)
    assert len(prior) == ordinal + options + 2 + 9
    assert np.exp(prior[-1]) == pytest.approx(30)


def test_no_library_of_linear_algebra_has_more_than_one_thread() -> None:
    code = """
from threadpoolctl import threadpool_info
from cvt_nas.propose.curves import one_thread
with one_thread():
    import scipy.linalg
    print(*(blas["num_threads"] for blas in threadpool_info() if blas["user_api"] == "blas"))
"""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    told = subprocess.run([sys.executable, "-c", code], env={**os.environ, **threads}, text=True, capture_output=True)
    assert set(told.stdout.split()) == {"1"}, told.stderr
