import dataclasses
import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conftest import SPACES
from cvt_nas.arch import cost_of, load_arch
from cvt_nas.config import Experiment, load_experiment
from cvt_nas.errors import ArchError
from cvt_nas.space import Bound, Genome, SearchSpace, StageSpace, spread_over_flops
from strategies import spaces


def all_genomes(space: SearchSpace) -> list[Genome]:
    return list(itertools.product(*(range(len(gene.options)) for gene in space.genes)))


@settings(max_examples=100)
@given(spaces(), st.integers(0, 2**32))
def test_encode_inverts_decode_and_every_sample_is_a_member(space: SearchSpace, seed: int) -> None:
    arch = space.decode(space.sample(random.Random(seed)))
    assert arch in space
    assert space.decode(space.encode(arch)) == arch


@settings(max_examples=40)
@given(spaces())
def test_size_counts_each_architecture_once(space: SearchSpace) -> None:
    genomes = all_genomes(space)
    assume(len(genomes) <= 3000)
    assert space.size == len({space.decode(genome).id for genome in genomes})


@settings(max_examples=40)
@given(spaces())
def test_cost_range_is_what_enumeration_finds(space: SearchSpace) -> None:
    genomes = all_genomes(space)
    assume(len(genomes) <= 3000)
    costs = [cost_of(space.decode(genome)) for genome in genomes]
    least, greatest = space.cost_range
    assert (least.params, greatest.params) == (min(c.params for c in costs), max(c.params for c in costs))
    assert (least.flops, greatest.flops) == (min(c.flops for c in costs), max(c.flops for c in costs))


def test_genes_of_absent_blocks_do_not_make_another_architecture() -> None:
    space = load_experiment(SPACES / "cvt13.yaml").space
    shallow = [0] * len(space.genes)
    changed = list(shallow)
    absent = [index for index, gene in enumerate(space.genes) if gene.block is not None]
    depth = [index for index, gene in enumerate(space.genes) if gene.choice == "depth"]
    assert absent, "per-block choices"
    assert depth, "under a choice of depth"
    changed[absent[-1]] = 1
    assert space.decode(shallow).id == space.decode(changed).id


@settings(max_examples=60)
@given(spaces(), st.integers(0, 2**32))
def test_a_genome_costs_what_its_architecture_does(space: SearchSpace, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(5):
        genome = space.sample(rng)
        assert space.cost(genome) == cost_of(space.decode(genome))


@settings(max_examples=60)
@given(spaces(), st.integers(0, 2**32))
def test_many_genomes_at_once_cost_what_each_does(space: SearchSpace, seed: int) -> None:
    rng = random.Random(seed)
    genomes = [space.sample(rng) for _ in range(8)]
    rows = np.array(genomes, dtype=int).reshape(len(genomes), len(space.genes))
    assert list(space.costs_of(rows).items()) == list({space.canonical(g): space.cost(g) for g in genomes}.items())


def test_costs_that_no_machine_word_holds_are_exact() -> None:
    huge = StageSpace(
        patch_kernel=(2**16 - 1,), patch_stride=(1, 2**16), patch_padding=None, embed_dim=(2**15, 2**16), depth=(1,),
        kv_stride=(1,), kernel_size=(3,), num_heads=(1,), mlp_ratio=(1.0,), projection=("dw_bn",),
    )  # fmt: skip
    space = SearchSpace(image_size=2**16, num_channels=2**16, num_classes=2, stages=(huge, huge), bounds={})
    genome = (0, 1, 0, 1)
    assert space.cost(genome).flops > 2**64
    assert space.costs_of(np.array([genome, (1, 0, 1, 0)])) == {g: space.cost(g) for g in (genome, (1, 0, 1, 0))}


@settings(max_examples=40)
@given(spaces())
def test_one_canonical_genome_stands_for_each_architecture(space: SearchSpace) -> None:
    genomes = all_genomes(space)
    assume(len(genomes) <= 3000)
    standing = {genome: space.canonical(genome) for genome in genomes}
    assert all(space.decode(genome) == space.decode(canonical) for genome, canonical in standing.items())
    assert len(set(standing.values())) == space.size
    assert sorted(space.all_genomes(limit=3000) or []) == sorted(set(standing.values()))


@settings(max_examples=40)
@given(spaces(), st.randoms(use_true_random=False))
def test_a_gene_is_active_if_its_other_options_are_other_networks(space: SearchSpace, rng: random.Random) -> None:
    genome = space.sample(rng)
    for place, (gene, is_active) in enumerate(zip(space.genes, space.active(genome), strict=True)):
        others = {(*genome[:place], option, *genome[place + 1 :]) for option in range(len(gene.options))} - {genome}
        assert [space.decode(other) != space.decode(genome) for other in others] == [is_active] * len(others)


def test_a_feasible_sample_is_found_where_few_are(digits: Experiment) -> None:
    least, _ = digits.space.cost_range
    space = SearchSpace(
        image_size=8,
        num_channels=1,
        num_classes=10,
        stages=digits.space.stages,
        bounds={"params": Bound(max=least.params + 400), "flops": Bound(max=least.flops + 20_000)},
    )
    genome = space.sample_feasible(random.Random(0))
    assert genome is not None
    assert space.is_feasible(cost_of(space.decode(genome)))
    assert space.feasible_fraction() < 0.01


def test_encode_names_what_lies_outside(digits: Experiment) -> None:
    with pytest.raises(ArchError, match=r"stage0\.embed_dim: 64 is not one of 8, 16, 24"):
        digits.space.encode(load_arch("cvt-13"))
    assert load_arch("cvt-13") not in digits.space


def test_cvt_13_is_a_member_of_its_space() -> None:
    experiment = load_experiment(SPACES / "cvt13.yaml")
    assert load_arch("cvt-13") in experiment.space
    assert experiment.anchor_archs()["cvt-13"] == load_arch("cvt-13")


def test_networks_are_spread_over_flops_more_evenly_than_draws_are(digits: Experiment) -> None:
    space, rng = dataclasses.replace(digits.space, bounds={}), random.Random(0)
    least, greatest = (math.log(cost.flops) for cost in space.cost_range)

    def fewest_in_a_fifth(genomes: Sequence[Genome]) -> int:
        logs = [math.log(space.cost(genome).flops) for genome in genomes]
        return int(np.histogram(logs, bins=5, range=(least, greatest))[0].min())

    assert fewest_in_a_fifth(spread_over_flops(space, 100)) > 2 * fewest_in_a_fifth(
        [space.sample(rng) for _ in range(100)]
    )
    assert fewest_in_a_fifth(spread_over_flops(space, 100)) >= 10


def test_networks_are_spread_over_flops_where_hardly_any_draw_is_feasible(digits: Experiment) -> None:
    least, greatest = digits.space.cost_range
    narrow = Bound(max=least.flops + (greatest.flops - least.flops) // 200)
    space = dataclasses.replace(digits.space, bounds={"flops": narrow})
    rng = random.Random(1)
    assert sum(space.is_feasible(space.cost(space.sample(rng))) for _ in range(500)) < 5
    found = spread_over_flops(space, 10)
    assert len(set(found)) == 10
    assert all(space.is_feasible(space.cost(genome)) for genome in found)
