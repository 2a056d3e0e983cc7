"""Expected hypervolume improvement of candidates with known costs."""

import math

import numpy as np

from cvt_nas.results import is_non_dominated


def expected_hypervolume_improvement(
    mean: np.ndarray, sd: np.ndarray, costs: np.ndarray, *, front_costs: np.ndarray, front_levels: np.ndarray
) -> np.ndarray:
    """Expected growth of the volume between the front and the reference point, which has accuracy 0 and costs 1.

    The best accuracy at each cost so far is a step function over cells of cost space. In each cell to the right of its
    own cost, a candidate adds the area of the cell times the excess of its accuracy over the step.

    Args:
        mean, sd: Gaussian mean and standard deviation of the accuracy of each candidate, `(candidates,)`.
        costs: Exact costs of the candidates, scaled so that the reference is 1, `(candidates, 1 or 2)`.
        front_costs: Costs of the evaluated networks, `(evaluated, 1 or 2)`.
        front_levels: Accuracies of the evaluated networks, `(evaluated,)`.

    Returns:
        `(candidates,)`.
    """
    from scipy.special import ndtr

    if costs.shape[1] == 1:  # a second cost that is always 0
        costs, front_costs = (np.column_stack([c, np.zeros(len(c))]) for c in (costs, front_costs))
    keep = is_non_dominated(np.column_stack([-front_levels, front_costs])) & (front_costs < 1).all(axis=1)
    front_costs, front_levels = front_costs[keep], np.maximum(front_levels[keep], 0.0)
    edges = [np.unique(np.concatenate([[-np.inf], front_costs[:, axis]])) for axis in (0, 1)]
    reached = np.zeros((len(edges[0]), len(edges[1])))
    rows, columns = (np.searchsorted(edges[axis], front_costs[:, axis]) for axis in (0, 1))
    np.maximum.at(reached, (rows, columns), front_levels)
    reached = np.maximum.accumulate(np.maximum.accumulate(reached, axis=0), axis=1)
    levels, index = np.unique(reached, return_inverse=True)
    index = index.reshape(reached.shape)
    # arrays have a row for each level or cell, so that the sums below run along contiguous rows
    z = (mean - levels[:, None]) / sd
    gains = sd * (z * ndtr(z) + np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi))
    lengths = []
    for axis in (0, 1):
        upper = np.append(edges[axis][1:], 1.0)[:, None]
        lengths.append(np.maximum(upper - np.maximum(edges[axis][:, None], costs[:, axis]), 0.0))
    total = np.zeros(len(mean))
    for length, of_cells in zip(lengths[0], index, strict=True):
        total += length * np.einsum("jc,jc->c", lengths[1], gains[of_cells])
    return total
