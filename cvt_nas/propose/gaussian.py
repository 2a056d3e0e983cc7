"""A Gaussian process of accuracy over architectures.

SciPy and scikit-learn are imported where they are used: that takes seconds, which the workers of a search need not
wait, and only its driver proposes.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cvt_nas.space import GenomeSpace

# Medians of log-normal priors: length scales of features in [0, 1], of standardised logarithms of costs, and the noise
# as a share of the variance; then standard deviations of their logarithms.
_ORDINAL_LENGTH, _OPTION_LENGTH, _COST_LENGTH, _NOISE = 0.7, 2.2, 2.2, 1e-2
_LENGTH_SD, _NOISE_SD = 0.5, 1.0


def prior_of(space: GenomeSpace) -> np.ndarray:
    """Logarithms of the medians, before anything is seen, of each feature's length scale and of the noise.

    Each option of a categorical gene has a length scale of its own: one of them may stand far from all the others.
    """
    lengths = []
    for gene in space.genes:
        lengths += [_ORDINAL_LENGTH] if gene.is_ordinal else [_OPTION_LENGTH] * len(gene.options)
    return np.log([*lengths, _COST_LENGTH, _COST_LENGTH, _NOISE])


def fit_hyperparameters(
    features: np.ndarray, values: np.ndarray, noises: np.ndarray, *, prior: np.ndarray
) -> np.ndarray:
    """Logarithms of the length scales and of the noise, at the maximum of the posterior."""
    from scipy.optimize import minimize
    from sklearn.gaussian_process.kernels import WhiteKernel

    y, scale = _standardised(values)
    sds = np.array([*[_LENGTH_SD] * (len(prior) - 1), _NOISE_SD])

    def most_probable(negative_log_likelihood: Any, theta: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, float]:
        def negative_log_posterior(theta: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = negative_log_likelihood(theta)
            away = (theta - prior) / sds
            return value + 0.5 * away @ away, slope + away / sds

        found = minimize(
            negative_log_posterior, theta, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 40}
        )
        return found.x, found.fun

    kernel = _rbf(prior[:-1]) + WhiteKernel(_NOISE, (1e-5, 1.0))
    return _regressor(kernel, alpha=noises / scale**2, optimizer=most_probable).fit(features, y).kernel_.theta


def _rbf(log_lengths: np.ndarray) -> Any:
    from sklearn.gaussian_process.kernels import RBF

    lengths: Any = np.exp(log_lengths)  # which the stubs take for one number
    return RBF(lengths, (1e-2, 1e2))


def _regressor(kernel: Any, *, alpha: Any, optimizer: Any) -> Any:
    from sklearn.gaussian_process import GaussianProcessRegressor

    return GaussianProcessRegressor(kernel, alpha=alpha, optimizer=optimizer)


def _standardised(values: np.ndarray) -> tuple[np.ndarray, float]:
    scale = max(float(values.std()), 1e-6)
    return (values - values.mean()) / scale, scale


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """The Gaussian process given its observations; accuracies in their own unit outside, standardised inside."""

    regressor: Any
    features: np.ndarray
    y: np.ndarray
    noises: np.ndarray
    mean: float
    scale: float
    theta: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, features: np.ndarray, values: np.ndarray, noises: np.ndarray, theta: np.ndarray) -> "Posterior":
        y, scale = _standardised(values)
        return cls._given(features, y, noises / scale**2 + math.exp(theta[-1]), float(values.mean()), scale, theta)

    @classmethod
    def _given(
        cls, features: np.ndarray, y: np.ndarray, noises: np.ndarray, mean: float, scale: float, theta: np.ndarray
    ) -> "Posterior":
        regressor = _regressor(_rbf(theta[:-1]), alpha=noises, optimizer=None).fit(features, y)
        return cls(regressor=regressor, features=features, y=y, noises=noises, mean=mean, scale=scale, theta=theta)

    def conditioned_on(self, features: np.ndarray, values: np.ndarray) -> "Posterior":
        noise = np.full(len(values), math.exp(self.theta[-1]))
        return self._given(
            np.vstack([self.features, features]),
            np.append(self.y, (values - self.mean) / self.scale),
            np.append(self.noises, noise),
            self.mean,
            self.scale,
            self.theta,
        )

    def expect(self, features: np.ndarray) -> np.ndarray:
        """Mean of the accuracy."""
        return self.mean + self.scale * self.regressor.predict(features)

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the accuracy itself, without the noise of measuring it."""
        mean, sd = self.regressor.predict(features, return_std=True)
        return self.mean + self.scale * mean, self.scale * np.maximum(sd, 1e-9)
