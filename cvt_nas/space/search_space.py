"""The architectures of a space file and their costs."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from cvt_nas.arch import (
    ArchConfig,
    BlockConfig,
    Cost,
    Grid,
    ImageSize,
    StageConfig,
    block_cost,
    block_values,
    embedding_cost,
    embedding_values,
    head_cost,
    head_values,
    sides_of,
    size_text,
)
from cvt_nas.errors import ArchError
from cvt_nas.latency import Deployment, LatencyTable, Parts
from cvt_nas.space.arch_space import ArchSpace
from cvt_nas.space.choices import (
    BLOCK_CHOICES,
    STAGE_CHOICES,
    TIMED_METRICS,
    Bound,
    CostMetric,
    Gene,
    Genome,
    Option,
    StageReader,
    StageSpace,
    count_block_sequences,
)
from cvt_nas.space.totals import COLUMNS, as_at, deployed, distinct, joined, sums

_MEMO_SIZE = 100_000


@dataclass(frozen=True)
class SearchSpace(ArchSpace):
    """All architectures of a space file.

    Args:
        image_size, num_channels, num_classes: As in `ArchConfig`.
        bounds: Limits of the costs of feasible members. Those of latency count once there is a table.
        latency: Latencies of the parts of networks on some device.
        deployment: Deployment that latency, throughput and memory are of. Without one, costs have no memory.

    Raises:
        ArchError: A combination of choices leaves a stage without tokens, or has heads that do not divide the width.
    """

    image_size: ImageSize
    num_channels: int
    num_classes: int
    stages: tuple[StageSpace, ...]
    bounds: Mapping[CostMetric, Bound]
    latency: LatencyTable | None = None
    deployment: Deployment | None = None

    def __post_init__(self) -> None:
        for index, stage in enumerate(self.stages):
            for dim, heads in itertools.product(stage.embed_dim, stage.num_heads):
                if dim % heads:
                    raise ArchError(f"stage {index}: num_heads {heads} does not divide embed_dim {dim}")
        self._grids()

    def _grids(self) -> tuple[frozenset[Grid], ...]:
        """Possible token grids of each stage."""
        grids, before = [], frozenset([sides_of(self.image_size)])
        for index, stage in enumerate(self.stages):
            after = set()
            for grid, kernel, stride in itertools.product(before, stage.patch_kernel, stage.patch_stride):
                some = stage.embedding(patch_kernel=kernel, patch_stride=stride, embed_dim=stage.embed_dim[0])
                if min(left := some.grid_after(grid)) < 1:
                    raise ArchError(
                        f"kernel {kernel}, stride {stride}, padding {some.patch_padding} leave no token of a grid of "
                        f"{size_text(grid)} in stage {index}",
                        stage=index,
                    )
                after.add(left)
            before = frozenset(after)
            grids.append(before)
        return tuple(grids)

    @property
    def genes(self) -> tuple[Gene, ...]:
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
    def _readers(self) -> tuple["StageReader", ...]:
        return tuple(
            StageReader(stage, tuple(gene for gene in self.genes if gene.stage == index))
            for index, stage in enumerate(self.stages)
        )

    @cached_property
    def _slices(self) -> tuple[slice, ...]:
        ends = list(itertools.accumulate(len(reader.genes) for reader in self._readers))
        return tuple(itertools.starmap(slice, zip([0, *ends], ends, strict=False)))

    def _parts(self, genome: Sequence[int]) -> list[Genome]:
        """The parts of the genome, one for each stage."""
        genome = tuple(genome)
        return [genome[part] for part in self._slices]

    @cached_property
    def _memo(self) -> dict[Any, Any]:
        """Stages and their costs. A search asks for thousands of genomes that share stages."""
        return {}

    def _remember(self, key: Any, value: Any) -> Any:
        if len(self._memo) >= _MEMO_SIZE:
            self._memo.clear()
        self._memo[key] = value
        return value

    def _stage_of(self, index: int, part: Genome) -> StageConfig:
        """Stage `index` of all genomes that have `part` for it."""
        key = (index, part)
        return self._memo.get(key) or self._remember(key, self._readers[index].stage_of(part))

    def _decode(self, genome: Sequence[int]) -> ArchConfig:
        return ArchConfig(
            image_size=self.image_size,
            num_channels=self.num_channels,
            num_classes=self.num_classes,
            stages=tuple(self._stage_of(index, part) for index, part in enumerate(self._parts(genome))),
        )

    @cached_property
    def as_deployed(self) -> "SearchSpace":
        """The space of the same networks for images of the size that the deployment has. Raises ArchError where these
        leave a stage without tokens."""
        if self.deployment is None or self.deployment.image_size == self.image_size:
            return self
        return replace(self, image_size=self.deployment.image_size)

    def cost(self, genome: Sequence[int]) -> Cost:
        cost = self._cost(genome)
        return cost if self.as_deployed is self else as_at(cost, self.as_deployed.cost(genome))

    def _cost(self, genome: Sequence[int]) -> Cost:
        cost: Cost | None = None
        channels, grid = self.num_channels, sides_of(self.image_size)
        for index, part in enumerate(self._parts(genome)):
            key = (index, part, channels, grid)
            stage, channels, grid = self._memo.get(key) or self._remember(key, self._enter_stage(*key))
            cost = stage if cost is None else cost + stage
        key = ("head", channels, grid)
        head = self._memo.get(key) or self._remember(key, self._head_cost(channels, grid))
        return head if cost is None else cost + head

    def _embedding_cost(self, stage: StageConfig, in_channels: int, grid: Grid) -> Cost:
        cost = embedding_cost(stage, in_channels=in_channels, grid=grid)
        latency = self._table and self._table.embedding(stage, in_channels=in_channels, grid=grid)
        return self._deployed(cost, latency, lambda: embedding_values(stage, in_channels=in_channels, grid=grid))

    def _block_cost(self, block: BlockConfig, embed_dim: int, grid: Grid, class_token: bool) -> Cost:
        cost = block_cost(block, embed_dim=embed_dim, grid=grid, class_token=class_token)
        latency = self._table and self._table.block(block, embed_dim=embed_dim, grid=grid, class_token=class_token)
        return self._deployed(
            cost, latency, lambda: block_values(block, embed_dim=embed_dim, grid=grid, class_token=class_token)
        )

    def _head_cost(self, dim: int, grid: Grid) -> Cost:
        head = partial(head_cost, dim=dim, grid=grid, class_token=self.stages[-1].class_token)
        values = partial(head_values, dim=dim, grid=grid, class_token=self.stages[-1].class_token)
        latency = self._table and self._table.head(dim=dim, grid=grid)
        return self._deployed(head(num_classes=self.num_classes), latency, lambda: values(num_classes=self.num_classes))

    @property
    def _table(self) -> LatencyTable | None:
        """None where the table is of images of another size."""
        return self.latency if self.as_deployed is self else None

    def _deployed(self, cost: Cost, latency: int | None, num_values: Callable[[], int]) -> Cost:
        return deployed(cost, self.deployment, latency=latency, num_values=num_values)

    def _enter_stage(self, index: int, part: Genome, channels: int, before: Grid) -> tuple[Cost, int, Grid]:
        """Cost of a stage on a map of `channels`, with the channels and grid of its output."""
        stage = self._stage_of(index, part)
        dim, grid = stage.embed_dim, stage.grid_after(before)
        blocks = (self._block_cost(block, dim, grid, stage.class_token) for block in stage.blocks)
        return sum(blocks, start=self._embedding_cost(stage, channels, grid)), dim, grid

    def active(self, genome: Sequence[int]) -> tuple[bool, ...]:
        parts = enumerate(self._parts(genome))
        return tuple([is_active for index, part in parts for is_active in self._active(index, part)])

    def _active(self, index: int, part: Genome) -> tuple[bool, ...]:
        key = ("active", index, part)
        found = self._memo.get(key)
        if found is None:
            (row,) = self._readers[index].active_rows(np.array([part], dtype=int)).tolist()
            found = self._remember(key, tuple(row))
        return found

    def active_rows(self, genomes: Int[np.ndarray, "genomes genes"]) -> Bool[np.ndarray, "genomes genes"]:
        readers = zip(self._readers, self._slices, strict=True)
        return np.hstack([reader.active_rows(genomes[:, part]) for reader, part in readers])

    def canonical(self, genome: Sequence[int]) -> Genome:
        return tuple([index if is_active else 0 for index, is_active in zip(genome, self.active(genome), strict=True)])

    def costs_of(self, genomes: Int[np.ndarray, "genomes genes"]) -> dict[Genome, Cost]:
        canonical = np.where(self.active_rows(genomes), genomes, 0)
        unique = list(dict.fromkeys(map(tuple, canonical.tolist())))
        costs = self._costs_of_rows(np.array(unique, dtype=int).reshape(len(unique), len(self.genes)))
        batch = 0 if self.deployment is None else self.deployment.batch
        found = {
            genome: Cost(**dict(zip(COLUMNS, row, strict=True)), batch=batch)
            for genome, row in zip(unique, costs.tolist(), strict=True)
        }
        if self.as_deployed is self:
            return found
        there = self.as_deployed.costs_of(np.array(unique, dtype=int).reshape(costs.shape[0], len(self.genes)))
        return {genome: as_at(cost, there[genome]) for genome, cost in found.items()}

    def _costs_of_rows(self, rows: Int[np.ndarray, "genomes genes"]) -> Int[np.ndarray, "genomes 5"]:
        """`COLUMNS` of the costs of genomes. Each distinct part is computed once."""
        greatest = self.cost_range[1]
        whole: Any = (
            np.int64 if max(getattr(greatest, name) for name in COLUMNS) < 2**62 else object
        )  # of Python's integers

        def each(keys: np.ndarray, cost: Callable[..., Cost]) -> np.ndarray:
            unique, which = distinct(keys)
            found = [cost(*key) for key in unique]
            values = [tuple(getattr(c, name) for name in COLUMNS) for c in found]
            return np.array(values, dtype=whole).reshape(-1, len(COLUMNS))[which]

        def embedding(
            stage: StageSpace, channels: int, height: int, width: int, kernel: int, stride: int, dim: int
        ) -> Cost:
            some = stage.embedding(patch_kernel=kernel, patch_stride=stride, embed_dim=dim)
            return self._embedding_cost(some, channels, (height, width))

        def block(stage: StageSpace, reader: StageReader, dim: int, height: int, width: int, *options: int) -> Cost:
            return self._block_cost(reader.block_with(options), dim, (height, width), stage.class_token)

        def head(dim: int, height: int, width: int) -> Cost:
            return self._head_cost(dim, (height, width))

        totals = np.zeros((len(rows), len(COLUMNS)), dtype=whole)
        channels, grids = np.full(len(rows), self.num_channels), np.tile(sides_of(self.image_size), (len(rows), 1))
        for reader, part, stage in zip(self._readers, self._slices, self.stages, strict=True):
            parts = rows[:, part]
            kernels, strides, dims = (reader.values(c, parts) for c in ("patch_kernel", "patch_stride", "embed_dim"))
            padding = kernels // 2 if stage.patch_padding is None else stage.patch_padding
            grids = (grids + np.reshape(2 * padding - kernels, (-1, 1))) // strides[:, None] + 1
            embeddings = np.column_stack([channels, grids, kernels, strides, dims])
            totals = joined(totals, each(embeddings, partial(embedding, stage)))
            options, channels = reader.block_options(parts), dims
            num_blocks = options.shape[1]
            places = np.repeat(np.column_stack([dims, grids]), num_blocks, axis=0)
            blocks = each(np.hstack([places, options.reshape(len(places), -1)]), partial(block, stage, reader))
            is_present = np.arange(num_blocks) < reader.values("depth", parts)[:, None]
            blocks = blocks.reshape(len(rows), num_blocks, len(COLUMNS)) * is_present[:, :, None]
            summed, greatest_values = blocks[:, :, :-1].sum(axis=1), blocks[:, :, -1].max(axis=1)
            totals = joined(totals, np.column_stack([summed, greatest_values]))
        return joined(totals, each(np.column_stack([channels, grids]), head))

    def encode(self, arch: ArchConfig) -> Genome:
        if len(arch.stages) != len(self.stages):
            raise ArchError(f"{len(arch.stages)} stages, the space has {len(self.stages)}")
        genome = []
        for gene in self.genes:
            stage = arch.stages[gene.stage]
            if gene.choice == "depth":
                wanted: Option = len(stage.blocks)
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

    def violation(self, cost: Cost) -> float:
        return sum(
            bound.violation(getattr(cost, metric))
            for metric, bound in self.bounds.items()
            if metric not in TIMED_METRICS or self.latency is not None
        )

    @cached_property
    def size(self) -> int:
        """Number of distinct architectures, feasible or not."""
        total = 1
        for stage in self.stages:
            widths = len(stage.patch_kernel) * len(stage.patch_stride) * len(stage.embed_dim)
            total *= widths * sum(count_block_sequences(stage, depth) for depth in stage.depth)
        return total

    @property
    def cost_range(self) -> tuple[Cost, Cost]:
        return self._cost_range

    @cached_property
    def _cost_range(self) -> tuple[Cost, Cost]:
        least, greatest = zip(*(self._extremes().values()), strict=True)
        batch = 0 if self.deployment is None else self.deployment.batch
        low, high = (
            Cost(**dict(zip(COLUMNS, map(pick, zip(*costs, strict=True)), strict=True)), batch=batch)
            for costs, pick in ((least, min), (greatest, max))
        )
        if self.as_deployed is self:
            return low, high
        return as_at(low, self.as_deployed.cost_range[0]), as_at(high, self.as_deployed.cost_range[1])

    @property
    def greatest_grids(self) -> tuple[Grid, ...]:
        """Greatest height and width of token grids in each stage. They are not always those of the largest network."""
        return tuple((max(height for height, _ in grids), max(width for _, width in grids)) for grids in self._grids())

    def _embeddings(self, stage: StageSpace) -> Iterator[StageConfig]:
        """Each possible embedding of a stage, with a default block."""
        for kernel, stride, dim in itertools.product(stage.patch_kernel, stage.patch_stride, stage.embed_dim):
            yield stage.embedding(patch_kernel=kernel, patch_stride=stride, embed_dim=dim)

    def parts(self) -> Parts:
        """All parts of its networks."""
        embeddings, blocks = dict[Any, None](), dict[Any, None]()
        states = {(self.num_channels, sides_of(self.image_size)): None}
        for stage in self.stages:
            after: dict[tuple[int, Grid], None] = {}
            choices = {block: None for blocks in stage.block_sets() for block in sorted(blocks, key=repr)}
            for (channels, before), some in itertools.product(states, self._embeddings(stage)):
                grid = some.grid_after(before)
                embeddings[some, channels, before] = None
                blocks |= dict.fromkeys((block, some.embed_dim, grid, stage.class_token) for block in choices)
                after[some.embed_dim, grid] = None
            states = after
        return Parts(
            embeddings=tuple(embeddings), blocks=tuple(blocks), heads=tuple(states), num_classes=self.num_classes
        )

    def _extremes(self) -> dict[tuple[int, Grid], tuple[list[int], list[int]]]:
        """The least and the greatest `COLUMNS` of whole networks, by width and grid in front of the head.

        Computed by dynamic programming over the width and the grid after each stage.
        """

        def of(cost: Cost) -> list[int]:
            return [getattr(cost, name) for name in COLUMNS]

        zero = [0] * len(COLUMNS)
        states = {(self.num_channels, sides_of(self.image_size)): (zero, zero)}
        for stage in self.stages:
            after: dict[tuple[int, Grid], tuple[list[int], list[int]]] = {}
            choices = {block for blocks in stage.block_sets() for block in blocks}
            of_blocks = dict[tuple[int, Grid], tuple[list[int], list[int]]]()
            for (channels, before), (low, high) in states.items():
                for some in self._embeddings(stage):
                    key = dim, grid = some.embed_dim, some.grid_after(before)
                    if key not in of_blocks:
                        costs = [of(self._block_cost(block, dim, grid, stage.class_token)) for block in choices]
                        low_of_one, high_of_one = ([pick(e) for e in zip(*costs, strict=True)] for pick in (min, max))
                        of_blocks[key] = (
                            [*(min(stage.depth) * cost for cost in low_of_one[:-1]), low_of_one[-1]],
                            [*(max(stage.depth) * cost for cost in high_of_one[:-1]), high_of_one[-1]],
                        )
                    embedding = of(self._embedding_cost(some, channels, grid))
                    lower, higher = of_blocks[key]
                    lows, highs = (sums(low, embedding, lower), sums(high, embedding, higher))
                    if key in after:
                        lows, highs = list(map(min, lows, after[key][0])), list(map(max, highs, after[key][1]))
                    after[key] = lows, highs
            states = after
        heads = {(dim, grid): of(self._head_cost(dim, grid)) for dim, grid in states}
        return {key: (sums(low, heads[key]), sums(high, heads[key])) for key, (low, high) in states.items()}
