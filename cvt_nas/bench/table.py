"""A table of trained architectures, as a space that samplers can search.

A table has one row for each architecture and seed. Its columns are:

- one for each gene, with option indices: `g0`, `g1`, ... for ordinal and `c0`, ... for categorical genes
- `params` and `flops`
- `acc_1` to `acc_E`: accuracy on the search split after each epoch
- `seed` and `seconds_per_epoch`, which are optional. Where an architecture has no seconds, they are interpolated over
  FLOPs.

All rows of an architecture have the same params and FLOPs. Other columns are not read.

A search sees one seed of an architecture, drawn at random. It is judged by the mean over the seeds.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from cvt_nas.arch import Cost
from cvt_nas.errors import TableError
from cvt_nas.ready import ready_tables
from cvt_nas.results import Metric, hypervolume
from cvt_nas.space import COST_METRICS, Gene, Genome

_REFERENCE = 1.02  # as a multiple of the greatest cost in the table
_MOST_OPTIONS = 1_000  # of a gene; a column with more holds no indices, but values such as widths
_MOST_WHOLE = 2**53  # whole numbers up to here are exact as floats


@dataclass(frozen=True)
class Table:
    """A table as a space that samplers can search. The members of the space are the rows of the table.

    Args:
        rows: Row of each genome. Architectures with several seeds have one row.
        costs: Cost of each row.
        curves: Curves of the seeds of each row, `(seeds, epochs)`.
        seconds_per_epoch: Seconds per epoch of each row.
    """

    genes: tuple[Gene, ...]
    rows: dict[Genome, int]
    costs: tuple[Cost, ...]
    curves: tuple[np.ndarray, ...]
    seconds_per_epoch: np.ndarray
    _nearest: dict[Genome, Genome] = field(default_factory=dict, repr=False)

    @cached_property
    def genomes(self) -> list[Genome]:
        return list(self.rows)

    @cached_property
    def _genome_array(self) -> np.ndarray:
        return np.array(self.genomes)

    @property
    def num_epochs(self) -> int:
        return self.curves[0].shape[1]

    @property
    def cost_range(self) -> tuple[Cost, Cost]:
        """Cost 0, and the cost of the reference point."""
        params, flops = (max(getattr(cost, name) for cost in self.costs) for name in ("params", "flops"))
        return Cost(params=0, flops=0), Cost(params=_beyond(params), flops=_beyond(flops))

    def cost(self, genome: Sequence[int]) -> Cost:
        return self.costs[self.rows[self.canonical(genome)]]

    def active_rows(self, genomes: Int[np.ndarray, "genomes genes"]) -> Bool[np.ndarray, "genomes genes"]:
        """True throughout: a table does not tell which choices have no effect."""
        return np.ones(genomes.shape, dtype=bool)

    def costs_of(self, genomes: np.ndarray) -> dict[Genome, Cost]:
        """Costs of the rows nearest to `genomes`, each row once."""
        nearest = dict.fromkeys(self.canonical(genome) for genome in genomes.tolist())
        return {genome: self.cost(genome) for genome in nearest}

    def canonical(self, genome: Sequence[int]) -> Genome:
        """The genome of the row nearest to `genome`. Samplers may propose genomes that are not in the table."""
        genome = tuple(genome)
        if genome in self.rows:
            return genome
        if genome not in self._nearest:
            spans = np.array([max(len(gene.options) - 1, 1) if gene.is_ordinal else 0 for gene in self.genes])
            away = np.abs(self._genome_array - np.array(genome))
            distances = np.where(spans > 0, away / np.maximum(spans, 1), away != 0).sum(axis=1)
            self._nearest[genome] = self.genomes[int(np.argmin(distances))]
        return self._nearest[genome]

    def arch_id(self, genome: Sequence[int]) -> str:
        return str(self.rows[self.canonical(genome)])

    def is_feasible(self, cost: Cost) -> bool:
        del cost
        return True

    def sample_feasible(self, rng: random.Random) -> Genome | None:
        return rng.choice(self.genomes)

    def all_genomes(self, limit: int) -> list[Genome] | None:
        return self.genomes if len(self.rows) <= limit else None

    def true_accuracies(self) -> np.ndarray:
        """Accuracy of each row after the last epoch, as a mean over seeds."""
        return np.array([curves[:, -1].mean() for curves in self.curves])

    def losses(self, metrics: Sequence[Metric]) -> np.ndarray:
        """True losses of each row, scaled so that the reference point is all ones."""
        _, greatest = self.cost_range
        columns = [
            1 - self.true_accuracies()
            if metric == "accuracy"
            else np.array([getattr(cost, metric) for cost in self.costs]) / getattr(greatest, metric)
            for metric in metrics
        ]
        return np.stack(columns, axis=1)

    def hypervolume(self, metrics: Sequence[Metric]) -> float:
        """True hypervolume of all rows."""
        return hypervolume(self.losses(metrics))


def load_table(path: str | Path) -> Table:
    """Reads a table from CSV or parquet, or a table of this package by its name, such as `cvt-bench`.

    Raises:
        TableError: The table cannot be read, lacks columns, or has invalid values.
    """
    ready, path = ready_tables(), Path(path)
    if str(path) in ready and not path.is_file():
        path = ready[str(path)]
    elif not path.exists():
        raise TableError(f"{path}: cannot be read: there is no such file, and the ready tables are {', '.join(ready)}")
    try:
        frame = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise TableError(f"{path}: cannot be read: {error}") from error
    columns = [str(name) for name in frame.columns]
    genes = sorted((name for name in columns if re.fullmatch(r"[gc]\d+", name)), key=lambda name: int(name[1:]))
    epochs = sorted((name for name in columns if re.fullmatch(r"acc_\d+", name)), key=lambda name: int(name[4:]))
    if missing := [name for name in COST_METRICS if name not in columns]:
        raise TableError(f"{path}: lacks the columns {', '.join(missing)}")
    if not genes or not epochs:
        raise TableError(f"{path}: needs a column for each gene (g0, g1, ... or c0, c1, ...), and acc_1 to acc_E")
    if twice := [name for name in columns if re.fullmatch(r"(?:[gc]|acc_)\d+\.\d+", name)]:  # so pandas calls them
        raise TableError(f"{path}: has the column {twice[0].partition('.')[0]} more than once")
    if [int(name[1:]) for name in genes] != list(range(len(genes))):
        raise TableError(f"{path}: got the genes {', '.join(genes)}, must be numbered from 0 to {len(genes) - 1}")
    if [int(name[4:]) for name in epochs] != list(range(1, len(epochs) + 1)):
        raise TableError(f"{path}: got {', '.join(epochs)}, must be acc_1 to acc_{len(epochs)}")
    if frame.empty:
        raise TableError(f"{path}: has no rows")
    try:
        options, costs = _whole(frame, genes), _whole(frame, COST_METRICS)
        curves = frame[epochs].to_numpy(dtype=float)
        seconds = frame["seconds_per_epoch"].to_numpy(dtype=float) if "seconds_per_epoch" in columns else None
    except (TypeError, ValueError) as error:
        raise TableError(f"{path}: {error}") from error
    if not ((curves >= 0) & (curves <= 1)).all():  # an empty cell fails, too
        raise TableError(f"{path}: accuracies must be fractions in [0, 1]")
    if not curves[:, -1].any():
        raise TableError(f"{path}: got 0 for every accuracy in {epochs[-1]}, must be above 0 somewhere")
    if seconds is not None and not (np.isnan(seconds) | (np.isfinite(seconds) & (seconds > 0))).all():
        raise TableError(f"{path}: seconds_per_epoch must be numbers above 0, or empty")
    if (options < 0).any() or (costs <= 0).any():
        raise TableError(f"{path}: genes must be option indices from 0, params and flops above 0")
    if options.max() >= _MOST_OPTIONS:
        name = genes[int(np.argmax(options.max(axis=0)))]
        raise TableError(
            f"{path}: {name}: got {options.max()}, must be an option index from 0, below {_MOST_OPTIONS:,}"
        )
    members: dict[Genome, list[int]] = {}
    for index, genome in enumerate(map(tuple, options.tolist())):
        members.setdefault(genome, []).append(index)
    _check_rows(path, frame, genes, members, costs)
    members = dict(sorted(members.items()))
    firsts = [indices[0] for indices in members.values()]
    return Table(
        genes=tuple(
            Gene(
                name=name, stage=0, block=None, choice="projection" if name[0] == "c" else "depth",
                options=tuple(range(int(options[:, position].max()) + 1)),
            )
            for position, name in enumerate(genes)
        ),
        rows={genome: row for row, genome in enumerate(members)},
        costs=tuple(Cost(params=int(costs[first, 0]), flops=int(costs[first, 1])) for first in firsts),
        curves=tuple(curves[indices] for indices in members.values()),
        seconds_per_epoch=_seconds_of(list(members.values()), seconds, costs[:, 1]),
    )  # fmt: skip


def _whole(frame: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """Whole numbers in the columns `names`, `(rows, names)`. Raises ValueError if a cell is empty or has another value.

    A conversion to integers alone would cut 1.8 million params, written as 1.8, to 1.
    """
    values = frame[list(names)].to_numpy(dtype=float)
    wrong = ~((np.abs(values) <= _MOST_WHOLE) & (values == np.floor(values)))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(f"row {row + 1}: {names[column]}: got {values[row, column]:g}, must be a whole number")
    return values.astype(int)


def _check_rows(
    path: Path, frame: pd.DataFrame, genes: Sequence[str], members: Mapping[Genome, Sequence[int]], costs: np.ndarray
) -> None:
    """Raises TableError if rows of an architecture differ in their costs, or if a seed of it is there twice."""
    for rows in members.values():
        if (costs[rows] != costs[rows[0]]).any():
            told = ", ".join(str(row + 1) for row in rows)
            raise TableError(f"{path}: rows {told} have the same genes, but not the same params and flops")
    if "seed" not in frame.columns:
        return
    is_again = (frame["seed"].notna() & frame.duplicated([*genes, "seed"])).to_numpy()
    if is_again.any():
        row = int(np.argmax(is_again))
        raise TableError(f"{path}: row {row + 1} has the genes and the seed of an earlier row; leave one of them out")


def _beyond(cost: int) -> int:
    """The cost of the reference point, which lies beyond the greatest cost even where that is a small number."""
    return max(int(_REFERENCE * cost), cost + 1)


def _seconds_of(
    members: Sequence[Sequence[int]], seconds: np.ndarray | None, flops: np.ndarray
) -> Float[np.ndarray, " architectures"]:
    """Mean seconds of an epoch of each architecture, whose rows are `members`; 1 if the table has none at all."""
    if seconds is None or np.isnan(seconds).all():
        return np.ones(len(members))
    known = np.array([np.nan if np.isnan(seconds[rows]).all() else np.nanmean(seconds[rows]) for rows in members])
    at, is_known = np.array([flops[rows[0]] for rows in members], dtype=float), ~np.isnan(known)
    order = np.argsort(at[is_known])
    known[~is_known] = np.interp(at[~is_known], at[is_known][order], known[is_known][order])
    return known
