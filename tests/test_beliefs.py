"""What is believed of networks before any of them is trained."""

import dataclasses
import random
from typing import Any

import numpy as np
import pytest

from cvt_nas.arch import Cost
from cvt_nas.config import Experiment
from cvt_nas.propose.beliefs import Beliefs, Believed, EarlierRun, choices_of, skill_of
from cvt_nas.propose.observations import Observation
from cvt_nas.propose.surrogate import NUM_INITIAL, Surrogate
from cvt_nas.results import hypervolume
from cvt_nas.space import Genome, SearchSpace
from test_surrogate import accuracy_of


def genomes_of(space: SearchSpace, number: int, *, seed: int = 0) -> list[Genome]:
    rng = random.Random(seed)
    return list(dict.fromkeys(space.canonical(space.sample(rng)) for _ in range(number)))


def run_of(experiment: Experiment, genomes: list[Genome], *, sign: float = 1.0) -> EarlierRun:
    """Another data set, of which accuracies are a multiple of this one's."""
    space = experiment.space
    return EarlierRun(
        name="another",
        choices=tuple(choices_of(space.decode(genome)) for genome in genomes),
        costs=tuple(space.cost(genome) for genome in genomes),
        curves=tuple((0.5 + sign * 0.4 * accuracy_of(experiment, genome),) for genome in genomes),
        num_epochs=1,
    )


def costs_of(space: SearchSpace, genomes: list[Genome]) -> list[Cost]:
    return [space.cost(genome) for genome in genomes]


def believed_of(beliefs: Beliefs, space: SearchSpace, genomes: list[Genome]) -> np.ndarray:
    table, costs = np.array(genomes), costs_of(space, genomes)
    return Believed(beliefs, space, table, costs)(table, costs)


def each_with(space: SearchSpace, **changed: Any) -> SearchSpace:
    """`space` with the same changes of every stage."""
    return dataclasses.replace(space, stages=tuple(dataclasses.replace(stage, **changed) for stage in space.stages))


def test_choices_have_the_names_and_values_of_genes(digits: Experiment) -> None:
    by_blocks = {"per_block": frozenset({"kv_stride", "projection"})}
    with_linear = {"projection": ("linear", "dw_bn")}
    for changed in ({}, by_blocks, with_linear, by_blocks | with_linear):
        space = each_with(digits.space, **changed)
        for genome in genomes_of(space, 30):
            choices = choices_of(space.decode(genome))
            for gene, index, is_active in zip(space.genes, genome, space.active(genome), strict=True):
                assert choices.get(gene.name) == (gene.options[index] if is_active else None)


def test_an_earlier_run_tells_of_networks_that_it_has_not_trained(digits: Experiment) -> None:
    genomes = genomes_of(digits.space, 90)
    beliefs = Beliefs(runs=(run_of(digits, genomes[:60]),))
    believed = believed_of(beliefs, digits.space, genomes)
    assert believed.shape == (len(genomes), 1)
    truth = [accuracy_of(digits, genome) for genome in genomes[60:]]
    assert np.corrcoef(believed[60:, 0], truth)[0, 1] > 0.9


def test_a_choice_of_an_absent_block_does_not_count_as_its_first_option(digits: Experiment) -> None:
    space = each_with(digits.space, per_block=frozenset({"kv_stride"}), kv_stride=(1, 2, 4))
    run = run_of(dataclasses.replace(digits, space=space), genomes_of(space, 60))
    later = dataclasses.replace(space.stages[-1], kv_stride=space.stages[-1].kv_stride[1:])
    narrower = dataclasses.replace(space, stages=(*space.stages[:-1], later))
    genomes = genomes_of(narrower, 60, seed=1)
    archs = [narrower.decode(genome) for genome in genomes]
    assert any(len(arch.stages[-1].blocks) < max(later.depth) for arch in archs)
    there, here = (
        believed_of(Beliefs(runs=(run,)), each, [each.encode(arch) for arch in archs]) for each in (narrower, space)
    )
    np.testing.assert_allclose(there, here)


def test_a_run_in_another_space_is_matched_by_values(digits: Experiment) -> None:
    genomes = genomes_of(digits.space, 60)
    fixed = digits.space.stages[0].kv_stride[-1:]
    first = dataclasses.replace(digits.space.stages[0], kv_stride=fixed)
    space = dataclasses.replace(digits.space, stages=(first, *digits.space.stages[1:]))
    assert len(space.genes) < len(digits.space.genes)
    within = genomes_of(space, 60, seed=1)
    truth = [accuracy_of(digits, digits.space.encode(space.decode(genome))) for genome in within]
    beliefs = Beliefs(runs=(run_of(digits, genomes),), fixed={"stage0.kv_stride": fixed[0]})
    assert np.corrcoef(believed_of(beliefs, space, within)[:, 0], truth)[0, 1] > 0.9


def test_without_a_common_choice_costs_carry_over(digits: Experiment) -> None:
    genomes = genomes_of(digits.space, 60)
    run = dataclasses.replace(run_of(digits, genomes), choices=({},) * len(genomes))
    truth = [accuracy_of(digits, genome) for genome in genomes]
    believed = believed_of(Beliefs(runs=(run,)), digits.space, genomes)[:, 0]
    assert np.corrcoef(believed, truth)[0, 1] > 0.7


def test_a_run_whose_accuracies_are_noise_is_not_believed_even_of_its_own_networks(digits: Experiment) -> None:
    genomes = genomes_of(digits.space, 90)
    run, order = run_of(digits, genomes), np.random.default_rng(0).permutation(len(genomes))
    noise = dataclasses.replace(run, curves=tuple(run.curves[index] for index in order))
    told, told_of_noise = (
        believed_of(Beliefs(runs=(each,)), digits.space, genomes)[:, 0].std() for each in (run, noise)
    )
    assert told > 0.5
    assert told_of_noise < 0.2


def test_a_run_whose_scheduler_stopped_most_trials_is_believed_as_one_without_a_scheduler(digits: Experiment) -> None:
    """Accuracies rise with the epochs, so that how far trials got would hide how good their networks are."""
    genomes, num_epochs = genomes_of(digits.space, 60), 9
    run, rng = run_of(digits, genomes), np.random.default_rng(0)
    rising = 1 - 0.7 * np.exp(-np.arange(1, num_epochs + 1) / 3)
    curves = [end * rising + rng.normal(0, 0.002, num_epochs) for (end,) in run.curves]
    lengths = np.full(len(genomes), num_epochs)
    for epoch in (1, 3):  # a third of those that are left goes on
        left = np.flatnonzero(lengths == num_epochs)
        lengths[sorted(left, key=lambda index: curves[index][epoch - 1])[: 2 * len(left) // 3]] = epoch
    whole, stopped = (
        dataclasses.replace(
            run, num_epochs=num_epochs, curves=tuple(tuple(c[:n]) for c, n in zip(curves, each, strict=True))
        )
        for each in ([num_epochs] * len(genomes), lengths)
    )
    assert skill_of(whole, digits.space, {}) > 0.8
    assert skill_of(stopped, digits.space, {}) > 0.6


def test_priors_tell_nothing_that_follows_from_costs(digits: Experiment) -> None:
    space, genomes = digits.space, genomes_of(digits.space, 90)
    depth = next(gene for gene in space.genes if gene.choice == "depth")
    priors = {depth.name: [1.0, *[3.0] * (len(depth.options) - 1)]}
    believed = believed_of(Beliefs(priors=priors), space, genomes)[:, 0]
    logs = np.log([[space.cost(genome).params, space.cost(genome).flops] for genome in genomes])
    assert np.corrcoef(believed, logs.T)[0, 1:] == pytest.approx([0, 0], abs=1e-6)
    deep = np.array([genome[space.genes.index(depth)] > 0 for genome in genomes])
    assert believed[deep].mean() > believed[~deep].mean()


def test_priors_of_a_block_count_where_there_is_such_a_block(digits: Experiment) -> None:
    space = each_with(digits.space, per_block=frozenset({"kv_stride"}))
    gene = next(gene for gene in space.genes if gene.block == 1)
    place, depth = (
        space.genes.index(gene),
        next(place for place, other in enumerate(space.genes) if (other.stage, other.choice) == (gene.stage, "depth")),
    )
    genomes = genomes_of(space, 60)
    without = [genome for genome in genomes if int(space.genes[depth].options[genome[depth]]) < 2]
    with_first = [genome for genome in genomes if genome not in without and genome[place] == 0]
    believed = believed_of(Beliefs(priors={gene.name: [5.0, 1.0]}), space, [*with_first, *without])[:, 0]
    assert believed[: len(with_first)].mean() > believed[len(with_first) :].mean() + 1


def test_priors_of_strides_and_kernels_do_not_count_for_linear_projections(digits: Experiment) -> None:
    space = each_with(digits.space, projection=("linear", "dw_bn"))
    stride = next(gene for gene in space.genes if gene.choice == "kv_stride")
    place, projection = (
        next(place for place, gene in enumerate(space.genes) if (gene.stage, gene.choice) == (stride.stage, choice))
        for choice in ("kv_stride", "projection")
    )
    linear = [
        genome for genome in genomes_of(space, 60) if space.genes[projection].options[genome[projection]] == "linear"
    ]
    others = [space.canonical((*g[:projection], 1, *g[projection + 1 :])) for g in linear]
    assert all(genome[place] == 0 for genome in (*linear, *others)), "0 stands for a choice without effect"
    believed = believed_of(Beliefs(priors={stride.name: [5.0, 1.0]}), space, [*linear, *others])[:, 0]
    assert believed[len(linear) :].mean() > believed[: len(linear)].mean() + 1


def front_after(experiment: Experiment, beliefs: Beliefs, number: int, *, seed: int) -> float:
    """Hypervolume after so many trainings, one after the other."""
    space, seen, observations, losses = experiment.space, set(), [], []
    surrogate = Surrogate(space, costs=("flops",), num_epochs=1, seed=seed, beliefs=beliefs)
    for trial in range(number):
        genome = surrogate.propose(trial, observations, seen)
        assert genome is not None
        seen.add(genome)
        accuracy = accuracy_of(experiment, genome)
        losses.append([1 - accuracy, *surrogate.scaled_costs([genome])[0]])
        observations.append(Observation(genome=genome, curve=(accuracy,), status="complete"))
    return hypervolume(np.array(losses))


def test_priors_of_options_that_no_network_has_within_the_limits_tell_nothing(digits: Experiment) -> None:
    place, width = next((p, gene) for p, gene in enumerate(digits.space.genes) if gene.name == "stage2.embed_dim")
    genomes = [genome for genome in genomes_of(digits.space, 60) if genome[place] < 2]
    table, costs = np.array(genomes), costs_of(digits.space, genomes)
    for weights, tells_apart in (([1.0, 1.0, 9.0], False), ([1.0, 9.0, 9.0], True)):
        believed = Believed(Beliefs(priors={width.name: weights}), digits.space, table, costs)
        assert believed.tells_apart == tells_apart
        assert believed(table, costs).any() == tells_apart


def test_an_earlier_run_gives_a_search_a_better_beginning(digits: Experiment) -> None:
    earlier = Beliefs(runs=(run_of(digits, genomes_of(digits.space, 40, seed=7)),))
    number = NUM_INITIAL // 2 + 1
    cold, warm = (
        np.mean([front_after(digits, beliefs, number, seed=seed) for seed in range(3)])
        for beliefs in (Beliefs(), earlier)
    )
    assert warm > cold
