"""A space without some of its options."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int

from cvt_nas.arch import ArchConfig, Cost
from cvt_nas.errors import ArchError
from cvt_nas.space.arch_space import ArchSpace
from cvt_nas.space.choices import Gene, Genome, Option
from cvt_nas.space.search_space import SearchSpace


class NarrowedSpace(ArchSpace):
    """The architectures of `whole` that only use some options of each gene.

    A gene with one option left is fixed. Genes of blocks deeper than all architectures are dropped. Costs, bounds and
    the range of costs are those of `whole`.

    Args:
        kept: Indices of the options that are left, by the name of the gene. Other genes keep all of theirs.

    Raises:
        ValueError: A gene has no option left, or an index is out of range.
    """

    def __init__(self, whole: SearchSpace, kept: Mapping[str, Sequence[int]]) -> None:
        self.whole = whole
        self._kept: list[list[int]] = []
        for gene in whole.genes:
            options = sorted(set(kept.get(gene.name, range(len(gene.options)))))
            if not options or not 0 <= options[0] <= options[-1] < len(gene.options):
                raise ValueError(f"{gene.name}: {options} of {len(gene.options)} options")
            self._kept.append(options)
        depths = [max(stage.depth) for stage in whole.stages]
        for gene, options in zip(whole.genes, self._kept, strict=True):
            if gene.choice == "depth":
                depths[gene.stage] = max(whole.stages[gene.stage].depth[index] for index in options)
        self._places = [
            place
            for place, (gene, options) in enumerate(zip(whole.genes, self._kept, strict=True))
            if len(options) > 1 and (gene.block is None or gene.block < depths[gene.stage])
        ]
        self._genes = tuple(
            replace(whole.genes[place], options=tuple(whole.genes[place].options[i] for i in self._kept[place]))
            for place in self._places
        )

    @property
    def genes(self) -> tuple[Gene, ...]:
        return self._genes

    @property
    def cost_range(self) -> tuple[Cost, Cost]:
        return self.whole.cost_range

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """Indices of the options that are left, by the name of every gene of the whole space."""
        return {gene.name: tuple(options) for gene, options in zip(self.whole.genes, self._kept, strict=True)}

    def without(self, name: str, option: Option) -> "NarrowedSpace":
        """The same space without one option of the gene `name`."""
        (gene,) = [gene for gene in self.whole.genes if gene.name == name]
        left = set(self.kept[name]) - {gene.options.index(option)}
        return NarrowedSpace(self.whole, {**self.kept, name: tuple(left)})

    def widened(self, genome: Sequence[int]) -> Genome:
        """The genome of the same network in the whole space."""
        found = [options[0] for options in self._kept]
        for place, index in zip(self._places, genome, strict=True):
            found[place] = self._kept[place][index]
        return tuple(found)

    def _narrowed(self, canonical: Sequence[int]) -> Genome:
        """The canonical genome here, from the canonical genome in the whole space.

        A gene at 0 whose option 0 was dropped has no effect, so it is 0 here, too.
        """
        return tuple(
            self._kept[place].index(canonical[place]) if canonical[place] in self._kept[place] else 0
            for place in self._places
        )

    def _decode(self, genome: Sequence[int]) -> ArchConfig:
        return self.whole.decode(self.widened(genome))

    def encode(self, arch: ArchConfig) -> Genome:
        genome = self._narrowed(self.whole.encode(arch))
        if self.whole.decode(self.widened(genome)) != arch:
            raise ArchError("it has an option that was dropped")
        return genome

    def cost(self, genome: Sequence[int]) -> Cost:
        return self.whole.cost(self.widened(genome))

    def active(self, genome: Sequence[int]) -> tuple[bool, ...]:
        found = self.whole.active(self.widened(genome))
        return tuple(found[place] for place in self._places)

    def canonical(self, genome: Sequence[int]) -> Genome:
        return self._narrowed(self.whole.canonical(self.widened(genome)))

    def active_rows(self, genomes: Int[np.ndarray, "genomes genes"]) -> Bool[np.ndarray, "genomes genes"]:
        return self.whole.active_rows(self._widened_rows(genomes))[:, self._places]

    def costs_of(self, genomes: Int[np.ndarray, "genomes genes"]) -> dict[Genome, Cost]:
        costs = self.whole.costs_of(self._widened_rows(genomes))
        return {self._narrowed(genome): cost for genome, cost in costs.items()}

    def _widened_rows(self, genomes: Int[np.ndarray, "genomes genes"]) -> Int[np.ndarray, "genomes whole"]:
        widened = np.tile([options[0] for options in self._kept], (len(genomes), 1))
        for column, place in enumerate(self._places):
            widened[:, place] = np.array(self._kept[place])[genomes[:, column]]
        return widened

    def violation(self, cost: Cost) -> float:
        return self.whole.violation(cost)
