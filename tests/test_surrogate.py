"""What the surrogate sampler proposes."""

import dataclasses

import numpy as np
import pytest

from cvt_nas.config import Experiment
from cvt_nas.propose.observations import Observation
from cvt_nas.propose.study import Study
from cvt_nas.propose.surrogate import ENUMERABLE, NUM_INITIAL, Surrogate
from cvt_nas.space import Genome


def accuracy_of(experiment: Experiment, genome: Genome) -> float:
    """Smooth in the costs, and with a choice that only costs: the largest kv stride is best."""
    cost = experiment.space.cost(genome)
    strides = [index for gene, index in zip(experiment.space.genes, genome, strict=True) if gene.choice == "kv_stride"]
    return 0.9 - 0.5 / (1 + cost.flops / 2e5) + 0.02 * sum(strides)


def test_it_proposes_nothing_twice_and_beats_its_own_initial_design(digits: Experiment) -> None:
    space, seen, observations = digits.space, set(), []
    surrogate = Surrogate(space, costs=("flops",), num_epochs=1, seed=0)
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


def test_what_it_keeps_between_calls_changes_no_answer(digits: Experiment) -> None:
    space, seen, observations = digits.space, set(), list[Observation]()
    kept = Surrogate(space, costs=("params", "flops"), num_epochs=2, seed=0)
    assert space.all_genomes(ENUMERABLE) is None
    for number in range(NUM_INITIAL):
        genome = kept.propose(number, observations, seen)
        assert genome is not None
        seen.add(genome)
        observations.append(Observation(genome=genome, curve=(accuracy_of(digits, genome),) * 2, status="complete"))
    for number in range(NUM_INITIAL, NUM_INITIAL + 6):
        for accuracy in (None, 0.95):  # as it was, then with a new front
            if accuracy is not None:
                observations[number - NUM_INITIAL] = dataclasses.replace(
                    observations[number - NUM_INITIAL], curve=(accuracy,) * 2
                )
            answer = kept.weigh(number, observations, seen, others=[o.genome for o in observations])
            fresh = Surrogate(space, costs=("params", "flops"), num_epochs=2, seed=0)
            fresh.fitted |= kept.fitted
            expected = fresh.weigh(number, observations, seen, others=[o.genome for o in observations])
            assert answer[:2] == expected[:2]
            np.testing.assert_array_equal(answer[2], expected[2])
        genome = answer[0]
        assert genome is not None
        seen.add(genome)
        observations.append(Observation(genome=genome, curve=(accuracy_of(digits, genome),), status="running"))


def test_the_initial_design_is_spread_over_the_costs(digits: Experiment) -> None:
    seen, flops = set(), []
    surrogate = Surrogate(digits.space, costs=("params", "flops"), num_epochs=1, seed=3)
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
    surrogate, observations, seen = Surrogate(space, costs=("params", "flops"), num_epochs=1, seed=0), [], set()
    for number in range(NUM_INITIAL + 4):
        genome = surrogate.propose(number, observations, seen)
        assert genome is not None
        seen.add(genome)
        observations.append(Observation(genome=genome, curve=(0.5 + 0.01 * sum(genome),), status="complete"))


def test_trials_in_flight_keep_others_away_from_them(digits: Experiment) -> None:
    space, seen, observations = digits.space, set(), []
    surrogate = Surrogate(space, costs=("flops",), num_epochs=1, seed=0)
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


def test_what_is_expected_of_a_second_is_less_where_epochs_are_long(digits: Experiment) -> None:
    space, seen, observations = digits.space, set(), []
    of_epoch, of_second = (
        Surrogate(space, costs=("flops",), num_epochs=1, seed=0, per_second=per_second) for per_second in (False, True)
    )
    for number in range(NUM_INITIAL + 2):
        genome = of_epoch.propose(number, observations, seen)
        assert genome is not None
        seen.add(genome)
        accuracy, seconds = accuracy_of(digits, genome), space.cost(genome).flops / 1e5
        observations.append(Observation(genome=genome, curve=(accuracy,), status="complete", epoch_seconds=seconds))
    by_flops = sorted(seen, key=lambda genome: space.cost(genome).flops)
    small, large = by_flops[1], by_flops[-2]
    ratios = of_epoch.gains(observations, [small, large]) / of_second.gains(observations, [small, large])
    assert ratios[1] / ratios[0] == pytest.approx(space.cost(large).flops / space.cost(small).flops, rel=0.2)


def test_the_only_network_of_a_space_without_choices_is_proposed_once(digits: Experiment) -> None:
    stages = tuple(
        dataclasses.replace(
            stage,
            **{field.name: values[:1] for field in dataclasses.fields(stage)
               if isinstance(values := getattr(stage, field.name), tuple)},
        )
        for stage in digits.space.stages
    )  # fmt: skip
    space = dataclasses.replace(digits.space, stages=stages)
    assert space.genes == ()
    study = Study(space, metrics=("accuracy", "flops"), sampler="surrogate", num_trials=3, num_epochs=2, seed=0)
    asked = study.ask()
    assert asked is not None
    assert asked.genome == ()
    assert study.ask() is None
