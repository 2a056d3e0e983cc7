"""Options of a stage, genes, and what the options that genes choose mean."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Int

from cvt_nas.arch import Activation, BlockConfig, Cost, Projection, StageConfig

Genome = tuple[int, ...]
Option = int | float | str  # text is the name of a projection
CostMetric = Literal["params", "flops", "latency_ms", "throughput", "peak_memory_mb", "model_mb"]
COST_METRICS: tuple[CostMetric, ...] = ("params", "flops")  # these are exact and always known
TIMED_METRICS: tuple[CostMetric, ...] = ("latency_ms", "throughput")  # these are predicted by a table of latencies
SIZE_METRICS: tuple[CostMetric, ...] = ("peak_memory_mb", "model_mb")  # these need a deployment
ALL_COST_METRICS: tuple[CostMetric, ...] = (*COST_METRICS, *TIMED_METRICS, *SIZE_METRICS)

BLOCK_CHOICES = ("kv_stride", "kernel_size", "num_heads", "mlp_ratio", "projection")
LINEAR_IGNORES = ("kv_stride", "kernel_size")  # a linear projection has neither
STAGE_CHOICES = ("patch_kernel", "patch_stride", "embed_dim", "depth")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpace:
    """Options of one stage. A tuple of one value is fixed, a longer one is a choice.

    Args:
        patch_padding: Padding of the embedding, or None for half of the chosen kernel.
        per_block: Names of the choices that each block makes for itself.
    """

    patch_kernel: tuple[int, ...]
    patch_stride: tuple[int, ...]
    patch_padding: int | None
    embed_dim: tuple[int, ...]
    depth: tuple[int, ...]
    kv_stride: tuple[int, ...]
    kernel_size: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]
    projection: tuple[Projection, ...]
    per_block: frozenset[str] = frozenset()
    class_token: bool = False
    activation: Activation = "quick_gelu"
    pos_embed: bool = False

    def padding_of(self, patch_kernel: int) -> int:
        return patch_kernel // 2 if self.patch_padding is None else self.patch_padding

    def embedding(self, *, patch_kernel: int, patch_stride: int, embed_dim: int) -> StageConfig:
        """A stage with this embedding and a default block."""
        return StageConfig(
            patch_kernel=patch_kernel,
            patch_stride=patch_stride,
            patch_padding=self.padding_of(patch_kernel),
            embed_dim=embed_dim,
            blocks=(BlockConfig(),),
            class_token=self.class_token,
            pos_embed=self.pos_embed,
        )

    def block_of(self, **values: Any) -> BlockConfig:
        """The block with these values, less those that a linear projection ignores."""
        if values["projection"] == "linear":
            values = {**values, **dict.fromkeys(LINEAR_IGNORES, 1)}
        return BlockConfig(**values, activation=self.activation)

    @property
    def shared(self) -> tuple[str, ...]:
        """Choices that the stage makes once for all of its blocks."""
        return tuple(name for name in BLOCK_CHOICES if name not in self.per_block)

    def block_sets(self) -> Iterator[frozenset[BlockConfig]]:
        """The possible blocks at one position, for each combination of the shared choices."""
        own = tuple(name for name in BLOCK_CHOICES if name in self.per_block)
        for shared in itertools.product(*(getattr(self, name) for name in self.shared)):
            yield frozenset(
                self.block_of(**dict(zip(self.shared, shared, strict=True)), **dict(zip(own, values, strict=True)))
                for values in itertools.product(*(getattr(self, name) for name in own))
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Gene:
    """One choice. Its name is like `stage0.kv_stride`, or `stage2.block4.kv_stride` if each block chooses."""

    name: str
    stage: int
    block: int | None
    choice: str
    options: tuple[Option, ...]

    @property
    def is_ordinal(self) -> bool:
        return self.choice != "projection"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """Inclusive limits of one metric. None is no limit."""

    min: float | None = None
    max: float | None = None

    def violation(self, value: float) -> float:
        """Distance of `value` to the limit that it breaks, as a fraction of the limit. 0 if it breaks none."""
        if self.max is not None and value > self.max:
            return value / self.max - 1
        if self.min is not None and value < self.min:
            return 1 - value / self.min
        return 0.0


class StageReader:
    """Reads the part of a genome that belongs to one stage. Places of genes and blocks are cached."""

    def __init__(self, stage: StageSpace, genes: tuple[Gene, ...]) -> None:
        self.genes, self._stage = genes, stage
        places = {(gene.block, gene.choice): place for place, gene in enumerate(genes)}
        self._places = {choice: places.get((None, choice)) for choice in STAGE_CHOICES}
        self._block_places = [
            [places.get((block, choice), places.get((None, choice))) for choice in BLOCK_CHOICES]
            for block in range(max(stage.depth))
        ]
        self._blocks: dict[Genome, BlockConfig] = {}
        self._gene_blocks = np.array([-1 if gene.block is None else gene.block for gene in genes], dtype=int)
        self._is_linear = np.array([projection == "linear" for projection in stage.projection])
        self._linear_ignores = np.array([gene.choice in LINEAR_IGNORES for gene in genes], dtype=bool)

    def _value(self, choice: str, part: Genome) -> Any:
        place = self._places[choice]
        return getattr(self._stage, choice)[0 if place is None else part[place]]

    def _block_of(self, block: int, part: Genome) -> BlockConfig:
        return self.block_with(tuple([0 if place is None else part[place] for place in self._block_places[block]]))

    def stage_of(self, part: Genome) -> StageConfig:
        kernel = self._value("patch_kernel", part)
        return StageConfig(
            patch_kernel=kernel,
            patch_stride=self._value("patch_stride", part),
            patch_padding=self._stage.padding_of(kernel),
            embed_dim=self._value("embed_dim", part),
            blocks=tuple([self._block_of(block, part) for block in range(self._value("depth", part))]),
            class_token=self._stage.class_token,
            pos_embed=self._stage.pos_embed,
        )

    def values(self, choice: str, parts: Int[np.ndarray, "genomes genes"]) -> Int[np.ndarray, " genomes"]:
        """Values of one of `STAGE_CHOICES` that the parts of genomes choose."""
        place, options = self._places[choice], np.array(getattr(self._stage, choice))
        return np.full(len(parts), options[0]) if place is None else options[parts[:, place]]

    def block_options(self, parts: Int[np.ndarray, "genomes genes"]) -> Int[np.ndarray, "genomes blocks choices"]:
        """Indices of the options of each block, absent ones included, in the order of `BLOCK_CHOICES`."""
        padded = np.pad(parts, ((0, 0), (0, 1)))  # choices without a gene find a 0 in the last place
        return padded[:, [[-1 if place is None else place for place in places] for places in self._block_places]]

    def block_with(self, options: Genome) -> BlockConfig:
        """The block with these `block_options`."""
        if options not in self._blocks:
            values = zip(BLOCK_CHOICES, options, strict=True)
            self._blocks[options] = self._stage.block_of(**{name: getattr(self._stage, name)[i] for name, i in values})
        return self._blocks[options]

    def active_rows(self, parts: Int[np.ndarray, "genomes genes"]) -> Bool[np.ndarray, "genomes genes"]:
        """Whether each gene has an effect. Genes of absent blocks have none, nor what a linear projection ignores."""
        depths = self.values("depth", parts)[:, None]
        present = self._gene_blocks < depths
        if not self._is_linear.any():
            return present
        projections = self.block_options(parts)[:, :, BLOCK_CHOICES.index("projection")]
        is_linear = self._is_linear[projections] | (np.arange(projections.shape[1]) >= depths)
        of_gene = np.where(self._gene_blocks < 0, is_linear.all(axis=1)[:, None], is_linear[:, self._gene_blocks])
        return present & ~(self._linear_ignores & of_gene)


class GenomeSpace(Protocol):
    """What a sampler needs of a space, which is that of a file or the rows of a table."""

    @property
    def genes(self) -> tuple[Gene, ...]: ...

    @property
    def cost_range(self) -> tuple[Cost, Cost]: ...

    def cost(self, genome: Sequence[int]) -> Cost: ...

    def canonical(self, genome: Sequence[int]) -> Genome:
        """The genome of the same network with all genes that have no effect at 0."""
        ...

    def active_rows(self, genomes: Int[np.ndarray, "genomes genes"]) -> Bool[np.ndarray, "genomes genes"]:
        """Whether each gene has an effect on each network."""
        ...

    def costs_of(self, genomes: Int[np.ndarray, "genomes genes"]) -> dict[Genome, Cost]:
        """Canonical genome and cost of each distinct network among `genomes`, in the order of first appearance."""
        ...

    def arch_id(self, genome: Sequence[int]) -> str: ...

    def is_feasible(self, cost: Cost) -> bool: ...

    def sample_feasible(self, rng: random.Random) -> Genome | None: ...

    def all_genomes(self, limit: int) -> list[Genome] | None:
        """One genome for each network, feasible or not. None if there are more than `limit` genomes."""
        ...


UNSIZED_CHOICES = frozenset({"patch_stride", "kv_stride", "num_heads", "projection"})


def size_of(gene: Gene, index: int) -> float:
    """A key that sorts the options of a gene by how much they add to a network."""
    if gene.choice == "projection":
        return ("linear", "avg", "dw_bn").index(gene.options[index])  # only dw_bn has weights
    return -index if gene.choice in ("kv_stride", "patch_stride") else index


def count_block_sequences(stage: StageSpace, depth: int) -> int:
    """Number of distinct sequences of `depth` blocks.

    A sequence with a convolution or pooling shows all shared choices, so it belongs to one combination of them. A
    sequence of linear projections alone hides kernel and stride, so it is counted once.
    """
    total, all_linear = 0, set()
    for blocks in stage.block_sets():
        linear = frozenset(block for block in blocks if block.projection == "linear")
        total += len(blocks) ** depth - len(linear) ** depth
        all_linear.add(linear)
    return total + sum(len(linear) ** depth for linear in all_linear)
