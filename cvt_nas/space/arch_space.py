"""What all sets of architectures share: extremes, feasibility and random draws."""

import itertools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from cvt_nas.arch import ArchConfig, Cost
from cvt_nas.errors import ArchError
from cvt_nas.space.choices import UNSIZED_CHOICES, Gene, Genome, size_of

_NUM_BINS = 40  # of log-FLOPs


class ArchSpace(ABC):
    """A set of architectures with genomes: a whole space, or a part of one."""

    @property
    @abstractmethod
    def genes(self) -> tuple[Gene, ...]:
        """The choices in the order of the genome. Fixed values have no gene."""

    @property
    @abstractmethod
    def cost_range(self) -> tuple[Cost, Cost]:
        """The least and the greatest value of each cost over the space. They are rarely those of one network."""

    @abstractmethod
    def _decode(self, genome: Sequence[int]) -> ArchConfig:
        """`decode` without checks."""

    @abstractmethod
    def encode(self, arch: ArchConfig) -> Genome:
        """A genome of `arch`: `decode(encode(arch)) == arch`. Genes without effect are 0.

        Raises:
            ArchError: `arch` is outside the space. The message names the first value that is.
        """

    @abstractmethod
    def cost(self, genome: Sequence[int]) -> Cost:
        """`cost_of(decode(genome))`, with latency if there is a table. Stages are cached."""

    @abstractmethod
    def active(self, genome: Sequence[int]) -> tuple[bool, ...]:
        """Whether each gene has an effect on the network. Those of absent blocks have none, nor do kernels and strides
        of linear projections."""

    @abstractmethod
    def active_rows(self, genomes: Int[np.ndarray, "genomes genes"]) -> Bool[np.ndarray, "genomes genes"]:
        """`active` of each genome."""

    @abstractmethod
    def canonical(self, genome: Sequence[int]) -> Genome:
        """The genome of the same network with all genes that have no effect at 0."""

    @abstractmethod
    def costs_of(self, genomes: Int[np.ndarray, "genomes genes"]) -> dict[Genome, Cost]:
        """Canonical genome and cost of each distinct network among `genomes`, in the order of first appearance."""

    @abstractmethod
    def violation(self, cost: Cost) -> float:
        """Sum of the violations of all bounds, each as a fraction of the bound."""

    def decode(self, genome: Sequence[int]) -> ArchConfig:
        """The architecture of a genome. Raises ValueError if the length is wrong or an index is out of range."""
        if len(genome) != len(self.genes):
            raise ValueError(f"genome of {len(genome)} genes, must have {len(self.genes)}")
        for index, gene in zip(genome, self.genes, strict=True):
            if not 0 <= index < len(gene.options):
                raise ValueError(f"{gene.name}: index {index}, must be 0 to {len(gene.options) - 1}")
        return self._decode(genome)

    def arch_id(self, genome: Sequence[int]) -> str:
        return self.decode(genome).id

    def all_genomes(self, limit: int) -> list[Genome] | None:
        """One genome for each network, feasible or not. None if there are more than `limit` genomes."""
        if math.prod(len(gene.options) for gene in self.genes) > limit:
            return None
        every = itertools.product(*(range(len(gene.options)) for gene in self.genes))
        return list(dict.fromkeys(self.canonical(genome) for genome in every))

    def __contains__(self, arch: ArchConfig) -> bool:
        try:
            self.encode(arch)
        except ArchError:
            return False
        return True

    def is_feasible(self, cost: Cost) -> bool:
        return self.violation(cost) == 0

    def sample(self, rng: random.Random) -> Genome:
        """A genome with every gene drawn uniformly, feasible or not."""
        return tuple(rng.randrange(len(gene.options)) for gene in self.genes)

    def sample_feasible(self, rng: random.Random, tries: int = 2_000) -> Genome | None:
        """A feasible genome, or None if `tries` evaluations of the cost found none.

        Genomes are drawn uniformly. If 200 draws are infeasible, draws are repaired gene by gene.
        """
        for _ in range(min(200, tries)):
            genome = self.sample(rng)
            if self.is_feasible(self.cost(genome)):
                return genome
        spent = 200
        while spent < tries:  # descent on the violation, one gene at a time, from a new start each time
            genome = self.sample(rng)
            best = self.violation(self.cost(genome))
            improved = True
            while improved and best > 0:
                improved = False
                for position in rng.sample(range(len(genome)), len(genome)):
                    for option in range(len(self.genes[position].options)):
                        neighbour = (*genome[:position], option, *genome[position + 1 :])
                        spent += 1
                        if (found := self.violation(self.cost(neighbour))) < best:
                            genome, best, improved = neighbour, found, True
            if best == 0:
                return genome
            spent += 1
        return None

    @property
    def largest(self) -> ArchConfig:
        """The widest and deepest network, with the least strides, feasible or not. It has the weights of all others."""
        return self.decode(self._extreme_genome(-1))

    @property
    def smallest(self) -> ArchConfig:
        """The narrowest and shallowest network, with the greatest strides, feasible or not."""
        return self.decode(self.smallest_genome)

    @property
    def smallest_genome(self) -> Genome:
        """A genome of `smallest` with absent blocks at their smallest, too."""
        return self._extreme_genome(0)

    def extreme_of_sizes(self, which: Literal["largest", "smallest"], rng: random.Random) -> Genome:
        """Like `largest` or `smallest_genome`, but with random strides, heads and projections."""
        extreme = self._extreme_genome(-1 if which == "largest" else 0)
        return tuple(
            rng.randrange(len(gene.options)) if gene.choice in UNSIZED_CHOICES else option
            for gene, option in zip(self.genes, extreme, strict=True)
        )

    def _extreme_genome(self, end: int) -> Genome:
        """Every gene at the option of the largest (`end` is -1) or the smallest network (0)."""
        genome = []
        for gene in self.genes:
            options = sorted(range(len(gene.options)), key=lambda index, gene=gene: size_of(gene, index))
            genome.append(options[end])
        return tuple(genome)

    def feasible_fraction(self, *, num_samples: int = 2_000, seed: int = 0) -> float:
        """Share of genomes that meet the bounds. It is exact for few genomes, and estimated for many."""
        num_genomes = math.prod(len(gene.options) for gene in self.genes)
        if num_genomes <= num_samples:
            genomes = list(itertools.product(*(range(len(gene.options)) for gene in self.genes)))
        else:
            rng = random.Random(seed)
            genomes = [self.sample(rng) for _ in range(num_samples)]
        return sum(self.is_feasible(self.cost(genome)) for genome in genomes) / len(genomes)


def spread_over_flops(space: ArchSpace, number: int, *, seed: int = 0) -> list[Genome]:
    """Genomes of distinct feasible networks, spread evenly over intervals of log-FLOPs, in random order.

    There are fewer than `number` if the space seems to have no more.
    """
    rng = random.Random(seed)
    drawn = {space.encode(space.decode(space.sample(rng))) for _ in range(50 * number)}
    logs = {genome: math.log(cost.flops) for genome in drawn if space.is_feasible(cost := space.cost(genome))}
    for _ in range(2 * number):  # a search for them, if hardly any draw is feasible
        if len(logs) >= number or (genome := space.sample_feasible(rng)) is None:
            break
        logs[space.canonical(genome)] = math.log(space.cost(genome).flops)
    low, high = min(logs.values()), max(logs.values())
    bins: dict[int, list[Genome]] = {}
    for genome in sorted(logs):
        at = min(int((logs[genome] - low) / max(high - low, 1e-9) * _NUM_BINS), _NUM_BINS - 1)
        bins.setdefault(at, []).append(genome)
    for members in bins.values():
        rng.shuffle(members)
    chosen: list[Genome] = []
    while len(chosen) < number and any(bins.values()):
        turn = [members.pop() for _, members in sorted(bins.items()) if members]
        rng.shuffle(turn)
        chosen += turn
    return chosen[:number]
