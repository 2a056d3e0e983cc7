"""The surrogate sampler: its acquisition against its definition, its model, and what it proposes."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvt_nas.config import Experiment
from cvt_nas.propose.improvement import expected_hypervolume_improvement
from cvt_nas.propose.observations import Observation, final_accuracies
from cvt_nas.propose.surrogate import NUM_INITIAL, Surrogate
from cvt_nas.results import hypervolume
from cvt_nas.space import Genome


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


def accuracy_of(experiment: Experiment, genome: Genome) -> float:
    """Smooth in the costs, and with a choice that only costs: the largest kv stride is best."""
    cost = experiment.space.cost(genome)
    strides = [index for gene, index in zip(experiment.space.genes, genome, strict=True) if gene.choice == "kv_stride"]
    return 0.9 - 0.5 / (1 + cost.flops / 2e5) + 0.02 * sum(strides)


def test_it_proposes_nothing_twice_and_beats_its_own_initial_design(digits: Experiment) -> None:
    space, seen, observations = digits.space, set(), []
    surrogate = Surrogate(space, costs=("flops",), seed=0)
    for number in range(40):
        genome = surrogate.propose(number, observations, seen)
        assert genome is not None
        assert genome == space.canonical(genome)
        assert genome not in seen
        seen.add(genome)
        observations.append(Observation(genome=genome, curve=(accuracy_of(digits, genome),), status="complete"))
    strides = [
        np.mean([i for gene, i in zip(space.genes, o.genome, strict=True) if gene.choice == "kv_stride"])
        for o in observations
    ]
    assert np.mean(strides[NUM_INITIAL:]) > 0.75 > np.mean(strides[:NUM_INITIAL])


def test_the_initial_design_is_spread_over_the_costs(digits: Experiment) -> None:
    seen, flops = set(), []
    surrogate = Surrogate(digits.space, costs=("params", "flops"), seed=3)
    for number in range(NUM_INITIAL):
        genome = surrogate.propose(number, [], seen)
        assert genome is not None
        seen.add(genome)
        flops.append(digits.space.cost(genome).flops)
    logs = np.sort(np.log(flops))
    least, greatest = digits.space.cost_range
    assert np.diff(logs).max() < 0.35 * np.log(greatest.flops / least.flops)
    assert np.ptp(logs) > 0.5 * np.log(greatest.flops / least.flops)


def test_a_cost_that_all_networks_have_alike_decides_nothing(digits: Experiment) -> None:
    fixed = {"embed_dim": (8,), "depth": (1,), "mlp_ratio": (1.0,), "kernel_size": (3,), "kv_stride": (1,)}
    stages = tuple(dataclasses.replace(stage, **fixed, num_heads=(1, 2, 4)) for stage in digits.space.stages)
    space = dataclasses.replace(digits.space, stages=stages)
    least, greatest = space.cost_range
    assert least.params == greatest.params
    surrogate, observations, seen = Surrogate(space, costs=("params", "flops"), seed=0), [], set()
    for number in range(NUM_INITIAL + 4):
        genome = surrogate.propose(number, observations, seen)
        assert genome is not None
        seen.add(genome)
        observations.append(Observation(genome=genome, curve=(0.5 + 0.01 * sum(genome),), status="complete"))


def test_trials_in_flight_keep_others_away_from_them(digits: Experiment) -> None:
    space, seen, observations = digits.space, set(), []
    surrogate = Surrogate(space, costs=("flops",), seed=0)
    for number in range(15):
        genome = surrogate.propose(number, observations, seen)
        assert genome is not None
        seen.add(genome)
        observations.append(Observation(genome=genome, curve=(accuracy_of(digits, genome),), status="complete"))
    running = []
    for number in range(15, 19):
        genome = surrogate.propose(number, [*observations, *running], seen | {o.genome for o in running})
        assert genome is not None
        running.append(Observation(genome=genome, curve=(), status="running"))
    assert len({o.genome for o in running}) == 4
    costs = [space.cost(o.genome).flops for o in running]
    assert max(costs) / min(costs) > 1.2
