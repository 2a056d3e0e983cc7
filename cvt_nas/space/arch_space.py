"""What any set of architectures that genomes describe can do: extremes, feasibility and draws."""

import itertools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from cvt_nas.arch import ArchConfig, Cost
from cvt_nas.errors import ArchError
from cvt_nas.space.choices import Gene, Genome, size_of

_NUM_BINS = 40  # of log-FLOPs


class ArchSpace(ABC):
    """A set of architectures, each with a genome: a space file's, or a part of that."""

    @property
    @abstractmethod
    def genes(self) -> tuple[Gene, ...]:
        """The choices, in the order of the genome. A fixed value has no gene."""

    @property
    @abstractmethod
    def cost_range(self) -> tuple[Cost, Cost]:
        """The least and the greatest of each cost over the space; rarely of one network."""

    @abstractmethod
    def _decode(self, genome: Sequence[int]) -> ArchConfig:
        """`decode` of a genome that is known to be one."""

    @abstractmethod
    def encode(self, arch: ArchConfig) -> Genome:
        """A genome of `arch`: `decode(encode(arch)) == arch`. Genes without effect are 0.

        Raises:
            ArchError: `arch` lies outside the space; the message names the first value that does.
        """

    @abstractmethod
    def cost(self, genome: Sequence[int]) -> Cost:
        """`cost_of(decode(genome))`, faster where the stages were met before; with latency, where there is a table."""

    @abstractmethod
    def canonical(self, genome: Sequence[int]) -> Genome:
        """The genome that stands for all that decode to the same network: genes without effect are 0."""

    @abstractmethod
    def costs_of(self, genomes: Int[np.ndarray, "genomes genes"]) -> dict[Genome, Cost]:
        """Of each network among `genomes` its canonical genome and its cost, in the order of the first that mean it."""

    @abstractmethod
    def violation(self, cost: Cost) -> float:
        """Sum over the bounds of how far `cost` lies outside each, as a fraction of the bound."""

    def decode(self, genome: Sequence[int]) -> ArchConfig:
        """The architecture of a genome. Raises ValueError where its length is wrong, or an index is outside its gene's
        options."""
        if len(genome) != len(self.genes):
            raise ValueError(f"genome of {len(genome)} genes, must have {len(self.genes)}")
        for index, gene in zip(genome, self.genes, strict=True):
            if not 0 <= index < len(gene.options):
                raise ValueError(f"{gene.name}: index {index}, must be 0 to {len(gene.options) - 1}")
        return self._decode(genome)

    def arch_id(self, genome: Sequence[int]) -> str:
        return self.decode(genome).id

    def all_genomes(self, limit: int) -> list[Genome] | None:
        """One genome for each network, feasible or not; None where there are more than `limit` genomes."""
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
        """A genome with every gene drawn evenly, feasible or not."""
        return tuple(rng.randrange(len(gene.options)) for gene in self.genes)

    def sample_feasible(self, rng: random.Random, tries: int = 2_000) -> Genome | None:
        """A feasible genome: an even draw, mended gene by gene where no draw in a row of 200 is feasible. None where
        `tries` evaluations of the cost found none."""
        for _ in range(min(200, tries)):
            genome = self.sample(rng)
            if self.is_feasible(self.cost(genome)):
                return genome
        spent = 200
        while spent < tries:  # descend on the violation, by one gene at a time, from a new start each time
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
        """The widest and deepest, with the least strides, feasible or not: it has every weight that any member has."""
        return self.decode(self._extreme_genome(-1))

    @property
    def smallest(self) -> ArchConfig:
        """The narrowest and shallowest, with the greatest strides, feasible or not."""
        return self.decode(self.smallest_genome)

    @property
    def smallest_genome(self) -> Genome:
        """A genome of `smallest` whose blocks that are absent would be the smallest, too."""
        return self._extreme_genome(0)

    def _extreme_genome(self, end: int) -> Genome:
        """Every gene at its greatest option (`end` is -1), or at its least (0), as network size goes."""
        genome = []
        for gene in self.genes:
            options = sorted(range(len(gene.options)), key=lambda index, gene=gene: size_of(gene, index))
            genome.append(options[end])
        return tuple(genome)

    def feasible_fraction(self, *, num_samples: int = 2_000, seed: int = 0) -> float:
        """Share of evenly drawn genomes that meet the bounds; exact where the space has few genomes."""
        num_genomes = math.prod(len(gene.options) for gene in self.genes)
        if num_genomes <= num_samples:
            genomes = list(itertools.product(*(range(len(gene.options)) for gene in self.genes)))
        else:
            rng = random.Random(seed)
            genomes = [self.sample(rng) for _ in range(num_samples)]
        return sum(self.is_feasible(self.cost(genome)) for genome in genomes) / len(genomes)


def spread_over_flops(space: ArchSpace, number: int, *, seed: int = 0) -> list[Genome]:
    """Genomes of distinct feasible networks, as many from each interval of log-FLOPs as there are; in random order.

    Fewer than `number` where the space seems to have no more.
    """
    rng = random.Random(seed)
    drawn = {space.encode(space.decode(space.sample(rng))) for _ in range(50 * number)}
    logs = {genome: math.log(cost.flops) for genome in drawn if space.is_feasible(cost := space.cost(genome))}
    for _ in range(2 * number):  # where hardly any draw is feasible, they are looked for
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
