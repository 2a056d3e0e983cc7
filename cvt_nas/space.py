"""The set of architectures that a space file spans, its genome, and its exact cost bounds.

A genome is a fixed-length tuple of option indices, one gene for each choice of the file. No gene is
conditional: where the depth varies, the genes of absent blocks are ignored by `decode`; and two
genomes that decode to the same `ArchConfig.id` are one architecture.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol

from cvt_nas.arch import (
    Activation,
    ArchConfig,
    BlockConfig,
    Cost,
    Projection,
    StageConfig,
    block_cost,
    embedding_cost,
    head_cost,
)
from cvt_nas.errors import ArchError
from cvt_nas.latency import LatencyTable, Parts

Genome = tuple[int, ...]
CostMetric = Literal["params", "flops", "latency_ms"]
COST_METRICS: tuple[CostMetric, ...] = ("params", "flops")  # which are exact, and always known
ALL_COST_METRICS: tuple[CostMetric, ...] = (*COST_METRICS, "latency_ms")

BLOCK_CHOICES = ("kv_stride", "kernel_size", "num_heads", "mlp_ratio", "projection")
STAGE_CHOICES = ("patch_kernel", "patch_stride", "embed_dim", "depth")
_MEMO_SIZE = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpace:
    """Options of one stage; a tuple of one is fixed, a longer one is a choice.

    Args:
        patch_padding: Padding of the embedding, or None for half of whatever kernel is chosen.
        per_block: Names of the block choices that each block makes for itself.
        class_token: Whether the stage ends in a class token.
        activation: Of its MLPs.
        pos_embed: Whether it has a position embedding.
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

    def block_of(self, **values: Any) -> BlockConfig:
        """The block of these values; a linear projection has neither kernel nor stride, so drops them."""
        if values["projection"] == "linear":
            values = {**values, "kv_stride": 1, "kernel_size": 1}
        return BlockConfig(**values, activation=self.activation)

    @property
    def shared(self) -> tuple[str, ...]:
        """Block choices that the stage makes once for all of its blocks."""
        return tuple(name for name in BLOCK_CHOICES if name not in self.per_block)

    def block_sets(self) -> Iterator[frozenset[BlockConfig]]:
        """For each combination of the shared choices, the blocks that can stand at any one position."""
        own = tuple(name for name in BLOCK_CHOICES if name in self.per_block)
        for shared in itertools.product(*(getattr(self, name) for name in self.shared)):
            yield frozenset(
                self.block_of(**dict(zip(self.shared, shared, strict=True)), **dict(zip(own, values, strict=True)))
                for values in itertools.product(*(getattr(self, name) for name in own))
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Gene:
    """One choice: `name` is `stage0.kv_stride`, or `stage2.block4.kv_stride` where each block chooses."""

    name: str
    stage: int
    block: int | None
    choice: str
    options: tuple[Any, ...]

    @property
    def is_ordinal(self) -> bool:
        return self.choice != "projection"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """An inclusive window for one metric; None leaves that side open."""

    min: float | None = None
    max: float | None = None

    def violation(self, value: float) -> float:
        """How far `value` lies outside, as a fraction of the bound that it breaks; 0 inside."""
        if self.max is not None and value > self.max:
            return value / self.max - 1
        if self.min is not None and value < self.min:
            return 1 - value / self.min
        return 0.0


class _StageReader:
    """Reads a stage's part of a genome; where each value stands is looked up once, blocks are built once.

    Args:
        genes: The stage's own.
    """

    def __init__(self, stage: StageSpace, genes: tuple[Gene, ...]) -> None:
        self.genes, self._stage = genes, stage
        places = {(gene.block, gene.choice): place for place, gene in enumerate(genes)}
        self._places = {choice: places.get((None, choice)) for choice in STAGE_CHOICES}
        self._block_places = [
            [places.get((block, choice), places.get((None, choice))) for choice in BLOCK_CHOICES]
            for block in range(max(stage.depth))
        ]
        self._blocks: dict[Genome, BlockConfig] = {}
        self._has_linear = "linear" in stage.projection
        self._present = {
            depth: tuple(gene.block is None or gene.block < depth for gene in genes) for depth in stage.depth
        }

    def _value(self, choice: str, part: Genome) -> Any:
        place = self._places[choice]
        return getattr(self._stage, choice)[0 if place is None else part[place]]

    def _block_of(self, block: int, part: Genome) -> BlockConfig:
        options = tuple([0 if place is None else part[place] for place in self._block_places[block]])
        if options not in self._blocks:
            values = zip(BLOCK_CHOICES, options, strict=True)
            self._blocks[options] = self._stage.block_of(**{name: getattr(self._stage, name)[i] for name, i in values})
        return self._blocks[options]

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

    def canonical(self, part: Genome) -> Genome:
        """`part` with 0 for the genes that have no effect: of blocks that are absent, and of what linear ignores."""
        depth = self._value("depth", part)
        effects = self._present[depth]
        if self._has_linear:
            is_linear = [self._block_of(block, part).projection == "linear" for block in range(depth)]
            effects = tuple(
                present and not (gene.choice in ("kv_stride", "kernel_size") and self._is_ignored(gene, is_linear))
                for gene, present in zip(self.genes, effects, strict=True)
            )
        return tuple([option if effect else 0 for option, effect in zip(part, effects, strict=True)])

    def _is_ignored(self, gene: Gene, is_linear: Sequence[bool]) -> bool:
        return all(is_linear if gene.block is None else is_linear[gene.block : gene.block + 1])


class GenomeSpace(Protocol):
    """What a sampler needs of a space: a file's, or the rows of a table."""

    @property
    def genes(self) -> tuple[Gene, ...]: ...

    @property
    def cost_range(self) -> tuple[Cost, Cost]: ...

    def cost(self, genome: Sequence[int]) -> Cost: ...

    def canonical(self, genome: Sequence[int]) -> Genome:
        """The genome that stands for the network that `genome` means."""
        ...

    def arch_id(self, genome: Sequence[int]) -> str: ...

    def is_feasible(self, cost: Cost) -> bool: ...

    def sample_feasible(self, rng: random.Random) -> Genome | None: ...

    def all_genomes(self, limit: int) -> list[Genome] | None:
        """One genome for each network, feasible or not; None where there are more than `limit` genomes."""
        ...


@dataclass(frozen=True)
class SearchSpace:
    """All the architectures of a space file.

    Args:
        image_size, num_channels, num_classes: As in `ArchConfig`.
        stages: First to last.
        bounds: Windows that a member's cost must lie in to be feasible; that of latency holds once there is a table.
        latency: What its parts take on some device.

    Raises:
        ArchError: Some combination of choices leaves a stage without tokens, or heads that do not
            divide the width.
    """

    image_size: int
    num_channels: int
    num_classes: int
    stages: tuple[StageSpace, ...]
    bounds: Mapping[CostMetric, Bound]
    latency: LatencyTable | None = None

    def __post_init__(self) -> None:
        for index, stage in enumerate(self.stages):
            for dim, heads in itertools.product(stage.embed_dim, stage.num_heads):
                if dim % heads:
                    raise ArchError(f"stage {index}: num_heads {heads} does not divide embed_dim {dim}")
        self._grids()

    def _grids(self) -> tuple[frozenset[int], ...]:
        """The sides of the token grid that can come out of each stage."""
        grids, sides = [], frozenset([self.image_size])
        for index, stage in enumerate(self.stages):
            after = set()
            for side, kernel, stride in itertools.product(sides, stage.patch_kernel, stage.patch_stride):
                grid = (side + 2 * stage.padding_of(kernel) - kernel) // stride + 1
                if grid < 1:
                    raise ArchError(
                        f"kernel {kernel}, stride {stride}, padding {stage.padding_of(kernel)} leave no token of a "
                        f"grid of {side} x {side} in stage {index}",
                        stage=index,
                    )
                after.add(grid)
            sides = frozenset(after)
            grids.append(sides)
        return tuple(grids)

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The choices, in the order of the genome. A fixed value has no gene."""
        return self._genes

    @cached_property
    def _genes(self) -> tuple[Gene, ...]:
        genes = []
        for index, stage in enumerate(self.stages):
            for choice in (*STAGE_CHOICES, *BLOCK_CHOICES):
                options = getattr(stage, choice)
                if len(options) == 1:
                    continue
                blocks = range(max(stage.depth)) if choice in stage.per_block else (None,)
                for block in blocks:
                    place = f"stage{index}" if block is None else f"stage{index}.block{block}"
                    genes.append(
                        Gene(name=f"{place}.{choice}", stage=index, block=block, choice=choice, options=options)
                    )
        return tuple(genes)

    @cached_property
    def _readers(self) -> tuple["_StageReader", ...]:
        return tuple(
            _StageReader(stage, tuple(gene for gene in self.genes if gene.stage == index))
            for index, stage in enumerate(self.stages)
        )

    @cached_property
    def _slices(self) -> tuple[slice, ...]:
        ends = list(itertools.accumulate(len(reader.genes) for reader in self._readers))
        return tuple(itertools.starmap(slice, zip([0, *ends], ends, strict=False)))

    def _parts(self, genome: Sequence[int]) -> list[Genome]:
        """The genome, cut into one part a stage."""
        genome = tuple(genome)
        return [genome[part] for part in self._slices]

    @cached_property
    def _memo(self) -> dict[Any, Any]:
        """Stages, and their costs: a search asks for those of thousands of genomes that share stages."""
        return {}

    def _remember(self, key: Any, value: Any) -> Any:
        if len(self._memo) >= _MEMO_SIZE:
            self._memo.clear()
        self._memo[key] = value
        return value

    def _stage_of(self, index: int, part: Genome) -> StageConfig:
        """Stage `index` of every genome whose genes for it are `part`."""
        key = (index, part)
        return self._memo.get(key) or self._remember(key, self._readers[index].stage_of(part))

    def decode(self, genome: Sequence[int]) -> ArchConfig:
        """The architecture of a genome.

        Raises:
            ValueError: Wrong length, or an index outside its gene's options.
        """
        if len(genome) != len(self.genes):
            raise ValueError(f"genome of {len(genome)} genes, must have {len(self.genes)}")
        for index, gene in zip(genome, self.genes, strict=True):
            if not 0 <= index < len(gene.options):
                raise ValueError(f"{gene.name}: index {index}, must be 0 to {len(gene.options) - 1}")

        return ArchConfig(
            image_size=self.image_size,
            num_channels=self.num_channels,
            num_classes=self.num_classes,
            stages=tuple(self._stage_of(index, part) for index, part in enumerate(self._parts(genome))),
        )

    def cost(self, genome: Sequence[int]) -> Cost:
        """`cost_of(decode(genome))`, faster where the stages were met before; with latency, where there is a table."""
        params = flops = latency = 0
        channels, side = self.num_channels, self.image_size
        for index, part in enumerate(self._parts(genome)):
            key = (index, part, channels, side)
            cost, channels, side = self._memo.get(key) or self._remember(key, self._enter_stage(*key))
            params, flops, latency = params + cost.params, flops + cost.flops, latency + cost.latency_us
        key = (channels, side)
        head = self._memo.get(key) or self._remember(key, self._head_cost(channels, side))
        return Cost(params=params + head.params, flops=flops + head.flops, latency_us=latency + head.latency_us)

    def _embedding_cost(self, stage: StageConfig, in_channels: int, grid: int) -> Cost:
        cost = embedding_cost(stage, in_channels=in_channels, grid=grid)
        if self.latency is None:
            return cost
        return replace(cost, latency_us=self.latency.embedding(stage, in_channels=in_channels, grid=grid))

    def _block_cost(self, block: BlockConfig, embed_dim: int, grid: int, class_token: bool) -> Cost:
        cost = block_cost(block, embed_dim=embed_dim, grid=grid, class_token=class_token)
        if self.latency is None:
            return cost
        time = self.latency.block(block, embed_dim=embed_dim, grid=grid, class_token=class_token)
        return replace(cost, latency_us=time)

    def _head_cost(self, dim: int, grid: int) -> Cost:
        token = self.stages[-1].class_token
        cost = head_cost(dim=dim, grid=grid, class_token=token, num_classes=self.num_classes)
        return cost if self.latency is None else replace(cost, latency_us=self.latency.head(dim=dim, grid=grid))

    def _enter_stage(self, index: int, part: Genome, channels: int, side: int) -> tuple[Cost, int, int]:
        """Cost of a stage on `channels` x `side` x `side`, and the channels and side of what it puts out."""
        stage = self._stage_of(index, part)
        dim, grid = stage.embed_dim, stage.grid_after(side)
        blocks = (self._block_cost(block, dim, grid, stage.class_token) for block in stage.blocks)
        return sum(blocks, start=self._embedding_cost(stage, channels, grid)), dim, grid

    def canonical(self, genome: Sequence[int]) -> Genome:
        """The genome that stands for all that decode to the same network: genes without effect are 0."""
        return tuple(
            option
            for reader, part in zip(self._readers, self._parts(genome), strict=True)
            for option in reader.canonical(part)
        )

    def arch_id(self, genome: Sequence[int]) -> str:
        return self.decode(genome).id

    def all_genomes(self, limit: int) -> list[Genome] | None:
        """One genome for each network, feasible or not; None where there are more than `limit` genomes."""
        if math.prod(len(gene.options) for gene in self.genes) > limit:
            return None
        every = itertools.product(*(range(len(gene.options)) for gene in self.genes))
        return list(dict.fromkeys(self.canonical(genome) for genome in every))

    def encode(self, arch: ArchConfig) -> Genome:
        """A genome of `arch`: `decode(encode(arch)) == arch`. Genes without effect are 0.

        Raises:
            ArchError: `arch` lies outside the space; the message names the first value that does.
        """
        if len(arch.stages) != len(self.stages):
            raise ArchError(f"{len(arch.stages)} stages, the space has {len(self.stages)}")
        genome = []
        for gene in self.genes:
            stage = arch.stages[gene.stage]
            if gene.choice == "depth":
                wanted: Any = len(stage.blocks)
            elif gene.choice in STAGE_CHOICES:
                wanted = getattr(stage, gene.choice)
            else:
                blocks = stage.blocks if gene.block is None else stage.blocks[gene.block : gene.block + 1]
                if gene.choice in ("kv_stride", "kernel_size"):
                    blocks = tuple(block for block in blocks if block.projection != "linear")
                wanted = getattr(blocks[0], gene.choice) if blocks else gene.options[0]
            if wanted not in gene.options:
                raise ArchError(f"{gene.name}: {wanted} is not one of {', '.join(map(str, gene.options))}")
            genome.append(gene.options.index(wanted))
        if self.decode(genome) != arch:
            raise ArchError("it differs from the space in a value that the space fixes, or sets per stage")
        return tuple(genome)

    def __contains__(self, arch: ArchConfig) -> bool:
        try:
            self.encode(arch)
        except ArchError:
            return False
        return True

    def is_feasible(self, cost: Cost) -> bool:
        return self.violation(cost) == 0

    def violation(self, cost: Cost) -> float:
        """Sum over the bounds of how far `cost` lies outside each, as a fraction of the bound."""
        return sum(
            bound.violation(getattr(cost, metric))
            for metric, bound in self.bounds.items()
            if metric != "latency_ms" or self.latency is not None
        )

    def sample(self, rng: random.Random) -> Genome:
        """A genome with every gene drawn evenly, feasible or not."""
        return tuple(rng.randrange(len(gene.options)) for gene in self.genes)

    def sample_feasible(self, rng: random.Random, tries: int = 2_000) -> Genome | None:
        """A feasible genome: an even draw, mended gene by gene where no draw in a row of 200 is feasible.

        Returns:
            None where `tries` evaluations of the cost found none.
        """
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
        return self.decode(self._extreme_genome(0))

    def _extreme_genome(self, end: int) -> Genome:
        """Every gene at its greatest option (`end` is -1), or at its least (0), as network size goes."""
        genome = []
        for gene in self.genes:
            options = sorted(range(len(gene.options)), key=lambda index, gene=gene: _size_of(gene, index))
            genome.append(options[end])
        return tuple(genome)

    @cached_property
    def size(self) -> int:
        """Number of distinct architectures, feasible or not."""
        total = 1
        for stage in self.stages:
            widths = len(stage.patch_kernel) * len(stage.patch_stride) * len(stage.embed_dim)
            total *= widths * sum(_count_block_sequences(stage, depth) for depth in stage.depth)
        return total

    @property
    def cost_range(self) -> tuple[Cost, Cost]:
        """The least and the greatest of each cost over the space, exactly; rarely of one network."""
        return self._cost_range

    @cached_property
    def _cost_range(self) -> tuple[Cost, Cost]:
        least, greatest = {}, {}
        for name in (*COST_METRICS, *(["latency_us"] if self.latency is not None else [])):
            least[name], greatest[name] = self._extreme(name, min), self._extreme(name, max)
        return Cost(**least), Cost(**greatest)

    @property
    def greatest_grids(self) -> tuple[int, ...]:
        """Side of the greatest token grid that a member has in each stage; not always that of the largest one."""
        greatest, sides = [], {self.image_size}
        for stage in self.stages:
            sides = {some.grid_after(side) for side in sides for some in self._embeddings(stage)}
            greatest.append(max(sides))
        return tuple(greatest)

    def _embeddings(self, stage: StageSpace) -> Iterator[StageConfig]:
        """Each embedding that a stage may have, with some block."""
        for kernel, stride, dim in itertools.product(stage.patch_kernel, stage.patch_stride, stage.embed_dim):
            yield StageConfig(
                patch_kernel=kernel,
                patch_stride=stride,
                patch_padding=stage.padding_of(kernel),
                embed_dim=dim,
                blocks=(BlockConfig(),),
                class_token=stage.class_token,
                pos_embed=stage.pos_embed,
            )

    def parts(self) -> Parts:
        """All that its networks are made of."""
        embeddings, blocks = dict[Any, None](), dict[Any, None]()
        states = {(self.num_channels, self.image_size): None}
        for stage in self.stages:
            after: dict[tuple[int, int], None] = {}
            choices = {block: None for blocks in stage.block_sets() for block in sorted(blocks, key=repr)}
            for (channels, side), some in itertools.product(states, self._embeddings(stage)):
                grid = some.grid_after(side)
                embeddings[some, channels, side] = None
                blocks |= dict.fromkeys((block, some.embed_dim, grid, stage.class_token) for block in choices)
                after[some.embed_dim, grid] = None
            states = after
        return Parts(embeddings=tuple(embeddings), blocks=tuple(blocks), heads=tuple(states))

    def _extreme(self, name: str, pick: Any) -> int:
        """`pick` of the cost `name` over the space, by dynamic programming over (width, grid) after each stage."""
        states = {(self.num_channels, self.image_size): 0}
        for stage in self.stages:
            after: dict[tuple[int, int], int] = {}
            choices = {block for blocks in stage.block_sets() for block in blocks}
            depth, of_blocks = pick(stage.depth), dict[tuple[int, int], int]()
            for (channels, side), spent in states.items():
                for some in self._embeddings(stage):
                    dim, grid = some.embed_dim, some.grid_after(side)
                    embedding = getattr(self._embedding_cost(some, channels, grid), name)
                    if (dim, grid) not in of_blocks:
                        of_blocks[dim, grid] = depth * pick(
                            getattr(self._block_cost(block, dim, grid, stage.class_token), name) for block in choices
                        )
                    total = spent + embedding + of_blocks[dim, grid]
                    after[dim, grid] = pick(after.get((dim, grid), total), total)
            states = after
        return pick(spent + getattr(self._head_cost(dim, grid), name) for (dim, grid), spent in states.items())

    def feasible_fraction(self, *, num_samples: int = 2_000, seed: int = 0) -> float:
        """Share of evenly drawn genomes that meet the bounds; exact where the space has few genomes."""
        num_genomes = math.prod(len(gene.options) for gene in self.genes)
        genomes: Iterator[Genome] | list[Genome]
        if num_genomes <= num_samples:
            genomes = list(itertools.product(*(range(len(gene.options)) for gene in self.genes)))
        else:
            rng = random.Random(seed)
            genomes = [self.sample(rng) for _ in range(num_samples)]
        return sum(self.is_feasible(self.cost(genome)) for genome in genomes) / len(genomes)


def spread_over_flops(space: SearchSpace, number: int, *, seed: int = 0, num_bins: int = 40) -> list[Genome]:
    """Genomes of distinct feasible networks, as many from each interval of log-FLOPs as there are; in random order.

    Fewer than `number` where the space seems to have no more.
    """
    rng = random.Random(seed)
    drawn = {space.encode(space.decode(space.sample(rng))) for _ in range(50 * number)}
    logs = {genome: math.log(cost.flops) for genome in drawn if space.is_feasible(cost := space.cost(genome))}
    low, high = min(logs.values()), max(logs.values())
    bins: dict[int, list[Genome]] = {}
    for genome in sorted(logs):
        at = min(int((logs[genome] - low) / max(high - low, 1e-9) * num_bins), num_bins - 1)
        bins.setdefault(at, []).append(genome)
    for members in bins.values():
        rng.shuffle(members)
    chosen: list[Genome] = []
    while len(chosen) < number and any(bins.values()):
        turn = [members.pop() for _, members in sorted(bins.items()) if members]
        rng.shuffle(turn)
        chosen += turn
    return chosen[:number]


def _size_of(gene: Gene, index: int) -> float:
    """Grows with what option `index` of a gene adds to a network."""
    if gene.choice == "projection":
        return ("linear", "avg", "dw_bn").index(gene.options[index])  # only dw_bn has weights
    return -index if gene.choice in ("kv_stride", "patch_stride") else index


def _count_block_sequences(stage: StageSpace, depth: int) -> int:
    """Number of distinct sequences of `depth` blocks.

    Sequences with a convolution or pooling somewhere show every shared choice, so the combinations of
    shared choices do not overlap in them. All-linear sequences hide kernel and stride: counted once.
    """
    total, all_linear = 0, set()
    for blocks in stage.block_sets():
        linear = frozenset(block for block in blocks if block.projection == "linear")
        total += len(blocks) ** depth - len(linear) ** depth
        all_linear.add(linear)
    return total + sum(len(linear) ** depth for linear in all_linear)
