"""A Gaussian process of accuracy over architectures and epochs. It learns from complete and from unfinished curves.

A trial whose architecture has features x is modelled to have this accuracy after n of N epochs:

    y(x, n) = c + w b(x) + f(x) + g(x, n) + m(n) + o + d(n) + noise,

b(x) are the beliefs about x, if there are any, with Gaussian weights w (see `beliefs`). c is a constant. All other
parts are Gaussian processes:

- f is the effect of the architecture at all epochs.
- g is the effect of the architecture at epoch n.
- m is the curve that all trials share.
- o and d(n) belong to the single trial. Another seed would give others.

Functions of the epoch have the kernel of sums of decaying exponentials, E(n, n') = (beta / (n + n' + beta)) ** alpha,
so that a curve goes on as its beginning suggests. A prediction is the accuracy of an architecture after N epochs,
without the parts that belong to the single trial.

SciPy is imported inside functions. The import takes seconds, and the workers of a search do not need it: only the
driver proposes.

Source: Swersky et al. 2014, arXiv:1406.3896, for the kernel of epochs and for freezing and thawing.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import ThreadpoolController

# Medians of the log-normal priors of length scales: for an ordinal feature in [0, 1], for an option of a categorical
# gene, and for the standardised logarithm of a cost. `_LENGTH_SD` is the standard deviation of their logarithms.
_ORDINAL_LENGTH, _OPTION_LENGTH, _COST_LENGTH = 0.7, 2.2, 2.2
_LENGTH_SD = 0.5
_CONSTANT = 9.0  # variance of c
# Prior of the weights of beliefs, in units of the standard deviation of accuracy: their mean, which is divided among
# the beliefs, and their standard deviation. It is wide so that a few trials can undo a belief: one belief in four is
# expected to be the reverse of the truth.
_TRUST, _TRUST_SD = 0.5, 0.8
_JITTER = 1e-6


class _Scalars(NamedTuple):
    """Hyperparameters of the kernel other than length scales.

    Args:
        f, g, m, own, own_curve: Standard deviations of f, g, m, o and d.
        noise: Standard deviation of the noise at every epoch.
        early: Standard deviation of more noise, at the first epoch. It falls with the square root of the epoch.
        alpha, beta: Parameters of the kernel of epochs.
    """

    f: float
    g: float
    m: float
    own: float
    own_curve: float
    noise: float
    early: float
    alpha: float
    beta: float


_MEDIANS = _Scalars(f=1.0, g=1.0, m=3.0, own=0.2, own_curve=0.3, noise=0.1, early=0.2, alpha=1.0, beta=1.0)
_SDS = _Scalars(f=0.5, g=1.0, m=1.5, own=1.0, own_curve=1.0, noise=1.0, early=1.0, alpha=0.5, beta=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """Accuracies of trials after some of their epochs.

    Args:
        features: Features of the trials, `(trials, features)`. The last `num_beliefs` columns are beliefs.
        trials: Trial of each observation, `(observations,)`, as a row of `features`.
        epochs: Number of epochs before each observation, `(observations,)`.
        values: Accuracy of each observation, `(observations,)`.
        num_epochs: Number of epochs of a full training, N.
    """

    features: Float[np.ndarray, "trials features"]
    trials: Int[np.ndarray, " observations"]
    epochs: Int[np.ndarray, " observations"]
    values: Float[np.ndarray, " observations"]
    num_epochs: int
    num_beliefs: int = 0

    def where(self, kept: np.ndarray) -> "Curves":
        return Curves(
            features=self.features, trials=self.trials[kept], epochs=self.epochs[kept], values=self.values[kept],
            num_epochs=self.num_epochs, num_beliefs=self.num_beliefs,
        )  # fmt: skip

    @property
    def scale(self) -> tuple[float, float]:
        """Mean and standard deviation of the accuracies after a full training. They are the units of the process.

        If fewer than two trials were trained in full, the latest accuracy of each trial is used.
        """
        finals = self.values[self.epochs == self.num_epochs]
        if len(finals) < 2:
            latest = dict(zip(self.trials, self.values, strict=True))
            finals = np.array(list(latest.values()))
        return float(finals.mean()), max(float(finals.std()), 1e-6)


def prior_of(num_options: Sequence[int], num_epochs: int) -> Float[np.ndarray, " hyperparameters"]:
    """Logarithms of the prior medians of the hyperparameters: the length scale of each feature, then `_Scalars`.

    Each option of a categorical gene has its own length scale, because one option may differ much from all others.

    Args:
        num_options: Number of options of each categorical gene. It is 0 for an ordinal gene, which is one feature.
    """
    lengths = []
    for number in num_options:
        lengths += [_OPTION_LENGTH] * number or [_ORDINAL_LENGTH]
    scalars = _MEDIANS._replace(beta=max(num_epochs / 10, 0.5))
    return np.log([*lengths, _COST_LENGTH, _COST_LENGTH, *scalars])


def fit_hyperparameters(
    curves: Curves, *, prior: Float[np.ndarray, " hyperparameters"]
) -> Float[np.ndarray, " hyperparameters"]:
    """Logarithms of the hyperparameters at the maximum of the posterior."""
    from scipy.optimize import minimize

    mean, scale = curves.scale
    terms = _Terms(curves, (curves.values - mean) / scale)
    sds = np.array([*[_LENGTH_SD] * (len(prior) - len(_SDS)), *_SDS])

    def negative_log_posterior(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = terms.negative_log_likelihood(theta)
        away = (theta - prior) / sds
        return value + 0.5 * float(away @ away), slope + away / sds

    bounds = np.column_stack([prior - 4 * sds, prior + 4 * sds])
    found = minimize(
        negative_log_posterior,
        prior,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 50},
    )
    return found.x


def _squared_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * one @ other.T
    return np.maximum(squares, 0.0)


def _parted(features: np.ndarray, num_beliefs: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits features into those that the kernel compares, and beliefs."""
    num_compared = features.shape[1] - num_beliefs
    return features[:, :num_compared], features[:, num_compared:]


def _trust(num_beliefs: int) -> float:
    """Prior mean of the weight of each belief."""
    return _TRUST / max(num_beliefs, 1)


def _split(theta: np.ndarray) -> tuple[np.ndarray, _Scalars]:
    values = np.exp(theta)
    return values[: -len(_SDS)], _Scalars(*values[-len(_SDS) :])


class _Terms:
    """Terms of the likelihood that do not depend on the hyperparameters."""

    def __init__(self, curves: Curves, y: np.ndarray) -> None:
        compared, beliefs = _parted(curves.features[curves.trials], curves.num_beliefs)
        self._features, self._y = compared, y - _trust(curves.num_beliefs) * beliefs.sum(axis=1)
        self._fixed = _TRUST_SD**2 * beliefs @ beliefs.T + _CONSTANT
        self._early = 1 / np.maximum(curves.epochs, 0.5)
        self._sums = curves.epochs[:, None] + curves.epochs
        self._same = (curves.trials[:, None] == curves.trials).astype(float)

    def negative_log_likelihood(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the value and its gradient."""
        lapack: Any = import_module("scipy.linalg.lapack")  # its stubs lack its routines
        lengths, of = _split(theta)
        scaled = self._features / lengths
        k = np.exp(-0.5 * _squared_distances(scaled, scaled))
        by_sum = np.arange(self._sums.max() + 1) + of.beta
        log_e = of.alpha * (math.log(of.beta) - np.log(by_sum))
        e = np.exp(log_e)[self._sums]
        inner = of.f**2 + of.g**2 * e
        covariance = k * inner + (of.m**2 + of.own_curve**2 * self._same) * e + of.own**2 * self._same + self._fixed
        covariance[np.diag_indices_from(covariance)] += of.noise**2 + of.early**2 * self._early + _JITTER
        lower, info = lapack.dpotrf(covariance, lower=True, clean=True, overwrite_a=True)
        if info:
            return 1e25, np.zeros_like(theta)
        log_determinant = 2 * np.log(np.diag(lower)).sum()
        inverse, _ = lapack.dpotri(lower, lower=True, overwrite_c=True)
        inverse += np.tril(inverse, -1).T
        weights = inverse @ self._y
        value = 0.5 * (self._y @ weights + log_determinant)
        w = inverse - np.outer(weights, weights)  # derivative of twice the value with respect to the covariance
        wk, diagonal = w * k, np.diag(w)
        # E depends only on the sum of epochs, so pairs with the same sum of epochs are added up
        cells = self._sums.ravel()
        of_all, of_k, of_same = (np.bincount(cells, weights=part.ravel()) for part in (w, wk, w * self._same))
        by_e = of.g**2 * of_k + of.m**2 * of_all + of.own_curve**2 * of_same
        e = np.exp(log_e)
        wk *= inner
        by_lengths = 2 * wk.sum(axis=1) @ scaled**2 - 2 * (scaled * (wk @ scaled)).sum(axis=0)
        by_scalars = _Scalars(
            f=2 * of.f**2 * of_k.sum(),
            g=2 * of.g**2 * of_k @ e,
            m=2 * of.m**2 * of_all @ e,
            own=2 * of.own**2 * of_same.sum(),
            own_curve=2 * of.own_curve**2 * of_same @ e,
            noise=2 * of.noise**2 * diagonal.sum(),
            early=2 * of.early**2 * float(diagonal @ self._early),
            alpha=by_e @ (e * log_e),
            beta=of.alpha * by_e @ (e * (1 - of.beta / by_sum)),
        )
        return float(value), 0.5 * np.array([*by_lengths, *by_scalars])


class CurvePosterior:
    """The process given observations. Its methods return accuracies in their own unit, not in that of `Curves.scale`.

    Attributes:
        noise_sd: Standard deviation that one full training adds to that of `predict`.

    Args:
        theta: Logarithms of the hyperparameters.
        pending: Trials that count as if they had ended at their expected accuracy. They leave the mean as it is, and
            reduce the standard deviation.
    """

    def __init__(
        self, curves: Curves, theta: Float[np.ndarray, " hyperparameters"], *, pending: Sequence[int] = ()
    ) -> None:
        from scipy.linalg import solve_triangular

        lapack: Any = import_module("scipy.linalg.lapack")  # its stubs lack its routines
        self._lengths, of = _split(theta)
        self._mean, self._scale = curves.scale
        num_epochs, self._num_beliefs = curves.num_epochs, curves.num_beliefs
        used, trials = np.unique(np.concatenate([curves.trials, np.array(pending, dtype=int)]), return_inverse=True)
        compared, beliefs = _parted(curves.features[used], curves.num_beliefs)
        self._scaled, beliefs = compared / self._lengths, beliefs[trials]
        epochs = np.concatenate([curves.epochs, np.full(len(pending), num_epochs)])
        k = np.exp(-0.5 * _squared_distances(self._scaled, self._scaled))
        by_sum = (of.beta / (np.arange(2 * num_epochs + 1) + of.beta)) ** of.alpha
        e = by_sum[epochs[:, None] + epochs]
        covariance = k[trials][:, trials] * (of.f**2 + of.g**2 * e) + of.m**2 * e + _CONSTANT
        covariance += (trials[:, None] == trials) * (of.own**2 + of.own_curve**2 * e)
        covariance += _TRUST_SD**2 * beliefs @ beliefs.T
        covariance[np.diag_indices_from(covariance)] += of.noise**2 + of.early**2 / np.maximum(epochs, 0.5) + _JITTER
        lower, info = lapack.dpotrf(covariance, lower=True, clean=False, overwrite_a=True)
        assert info == 0, "the noise keeps the matrix positive definite"
        # the covariance of a prediction with an observation is a sum: k(x, trial of the observation) times a weight, a
        # constant, and the beliefs about x times weights
        of_end = by_sum[num_epochs + epochs]
        num_known, num_used = len(curves.values), len(used)
        sides = np.zeros((len(trials), num_used + 2 + curves.num_beliefs))
        sides[np.arange(len(trials)), trials] = of.f**2 + of.g**2 * of_end
        sides[:, num_used] = of.m**2 * of_end + _CONSTANT
        sides[:, num_used + 1 : -1] = _TRUST_SD**2 * beliefs
        sides[:num_known, -1] = (curves.values - self._mean) / self._scale
        sides[:num_known, -1] -= _trust(curves.num_beliefs) * beliefs[:num_known].sum(axis=1)
        solved = solve_triangular(lower, sides, lower=True, check_finite=False, overwrite_b=True)
        parts, y = solved[:, :-1], solved[:, -1]
        y = np.where(np.arange(len(y)) < num_known, y, 0.0)  # pending trials end as expected
        self._weights, explained = parts.T @ y, parts.T @ parts
        # x @ explained @ x is x @ doubled @ x, and a product with a triangular matrix takes half the time
        self._doubled = np.asfortranarray(np.tril(explained, -1) * 2 + np.diag(np.diag(explained)))
        self._weights[num_used + 1 :] += _trust(curves.num_beliefs)
        self._prior = of.f**2 + (of.g**2 + of.m**2) * by_sum[2 * num_epochs] + _CONSTANT
        own = of.own**2 + of.own_curve**2 * by_sum[2 * num_epochs] + of.noise**2 + of.early**2 / max(num_epochs, 0.5)
        self.noise_sd = self._scale * math.sqrt(own)

    @property
    def trust(self) -> tuple[Float[np.ndarray, " beliefs"], Float[np.ndarray, " beliefs"]]:
        """Mean and standard deviation of the weight of each belief, `(beliefs,)`."""
        own = slice(len(self._weights) - self._num_beliefs, None)
        variance = _TRUST_SD**2 - np.diag(self._doubled)[own]
        return self._weights[own], np.sqrt(np.maximum(variance, 1e-12))

    def _parts(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The terms that `_weights` multiply, and the prior variance."""
        compared, beliefs = _parted(features, self._num_beliefs)
        k = np.exp(-0.5 * _squared_distances(compared / self._lengths, self._scaled))
        parts = np.hstack([k, np.ones((len(k), 1)), beliefs])
        return parts, self._prior + _TRUST_SD**2 * (beliefs**2).sum(axis=1)

    def expect(self, features: Float[np.ndarray, "candidates features"]) -> Float[np.ndarray, " candidates"]:
        """Expected accuracy after a full training."""
        return self._mean + self._scale * (self._parts(features)[0] @ self._weights)

    def predict(
        self, features: Float[np.ndarray, "candidates features"]
    ) -> tuple[Float[np.ndarray, " candidates"], Float[np.ndarray, " candidates"]]:
        """Mean and standard deviation of the accuracy after a full training.

        The standard deviation leaves out the noise and the parts that belong to the single trial.
        """
        blas: Any = import_module("scipy.linalg.blas")  # its stubs lack its routines
        parts, prior = self._parts(features)
        explained = np.einsum("ij,ij->i", parts, blas.dtrmm(1.0, self._doubled, parts.T, lower=True).T)
        sd = np.sqrt(np.maximum(prior - explained, 1e-12))
        return self._mean + self._scale * (parts @ self._weights), self._scale * sd


def one_thread() -> AbstractContextManager[object]:
    """Limits BLAS to one thread. Matrices of a few hundred rows need one, and more would take cores from trials."""
    return _blas().limit(limits=1, user_api="blas")


@cache
def _blas() -> ThreadpoolController:
    import_module("scipy.linalg")  # which brings a BLAS of its own, and only what is loaded is controlled
    return ThreadpoolController()
