"""The acquisition of the surrogate, against its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvt_nas.propose.improvement import expected_hypervolume_improvement
from cvt_nas.results import hypervolume


def by_simulation(
    mean: float, sd: float, cost: np.ndarray, front_costs: np.ndarray, front_levels: np.ndarray, num_draws: int = 4000
) -> float:
    """The definition: growth of the hypervolume, averaged over draws of the candidate's accuracy."""
    front = np.column_stack([1 - front_levels, front_costs])
    before = hypervolume(front)
    quantiles = (np.arange(num_draws) + 0.5) / num_draws
    draws = mean + sd * np.array([_normal_quantile(q) for q in quantiles])
    return float(np.mean([hypervolume(np.vstack([front, [1 - draw, *cost]])) - before for draw in draws]))


def _normal_quantile(q: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(q))


@pytest.mark.parametrize("num_costs", [1, 2])
def test_the_acquisition_is_the_mean_growth_of_the_hypervolume(num_costs: int) -> None:
    rng = np.random.default_rng(num_costs)
    front_costs, front_levels = rng.random((6, num_costs)), rng.uniform(0.3, 0.9, 6)
    costs, mean, sd = rng.random((5, num_costs)), rng.uniform(0.4, 0.9, 5), rng.uniform(0.01, 0.1, 5)
    found = expected_hypervolume_improvement(mean, sd, costs, front_costs=front_costs, front_levels=front_levels)
    for index in range(5):
        wanted = by_simulation(mean[index], sd[index], costs[index], front_costs, front_levels, num_draws=400)
        assert found[index] == pytest.approx(wanted, rel=0.02, abs=2e-5)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 0.99)), min_size=1, max_size=12))
def test_a_certain_candidate_gains_exactly_what_it_adds(points: list[tuple[float, float, float]]) -> None:
    table = np.array(points)
    front_costs, front_levels = table[:, :2], table[:, 2]
    candidate = np.array([[0.3, 0.4]])
    found = expected_hypervolume_improvement(
        np.array([0.6]), np.array([1e-12]), candidate, front_costs=front_costs, front_levels=front_levels
    )
    front = np.column_stack([1 - front_levels, front_costs])
    wanted = hypervolume(np.vstack([front, [0.4, 0.3, 0.4]])) - hypervolume(front)
    assert found[0] == pytest.approx(wanted, abs=1e-9)


def test_nothing_is_gained_at_the_reference_cost_or_beyond() -> None:
    found = expected_hypervolume_improvement(
        np.array([0.9, 0.9]), np.array([0.1, 0.1]), np.array([[1.0], [1.2]]),
        front_costs=np.array([[0.5]]), front_levels=np.array([0.5]),
    )  # fmt: skip
    assert found.tolist() == [0.0, 0.0]
