"""A table of trained architectures, as a space that samplers can search.

A table has one row for each architecture and seed. Its columns are:

- one for each gene, with option indices: `g0`, `g1`, ... for ordinal and `c0`, ... for categorical genes
- `params` and `flops`
- `acc_1` to `acc_E`: accuracy on the search split after each epoch
- `seed` and `seconds_per_epoch`, which are optional. Where an architecture has no seconds, they are interpolated over
  FLOPs.

A search sees one seed of an architecture, drawn at random. It is judged by the mean over the seeds.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from cvt_nas.arch import Cost
from cvt_nas.errors import TableError
from cvt_nas.results import Metric, hypervolume
from cvt_nas.space import COST_METRICS, Gene, Genome

_REFERENCE = 1.02  # as a multiple of the greatest cost in the table


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
        return Cost(params=0, flops=0), Cost(params=int(_REFERENCE * params), flops=int(_REFERENCE * flops))

    def cost(self, genome: Sequence[int]) -> Cost:
        return self.costs[self.rows[self.canonical(genome)]]

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


def ready_tables() -> Mapping[str, Path]:
    """The tables of this package, by name. The space file of each lies beside it, with suffix `.yaml`."""
    package = Path(str(resources.files("cvt_nas")))
    folders = (package / "tables", package.parent / "benchmarks" / "tables")  # installed, and in a checkout
    files = (file for folder in folders for file in sorted(folder.glob("*.parquet")))
    return {file.stem: file for file in files if file.with_suffix(".yaml").is_file()}


def load_table(path: str | Path) -> Table:
    """Reads a table from CSV or parquet, or a table of this package by its name, such as `cvt-bench`.

    Raises:
        TableError: The table cannot be read, lacks columns, or has invalid values.
    """
    ready, path = ready_tables(), Path(path)
    if str(path) in ready and not path.is_file():
        path = ready[str(path)]
    elif not path.suffix and not path.exists():
        raise TableError(f"{path}: cannot be read: there is no such file, and the ready tables are {', '.join(ready)}")
    try:
        frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise TableError(f"{path}: cannot be read: {error}") from error
    columns = [str(name) for name in frame.columns]
    genes = sorted((name for name in columns if re.fullmatch(r"[gc]\d+", name)), key=lambda name: int(name[1:]))
    epochs = sorted((name for name in columns if re.fullmatch(r"acc_\d+", name)), key=lambda name: int(name[4:]))
    if missing := [name for name in COST_METRICS if name not in columns]:
        raise TableError(f"{path}: lacks the columns {', '.join(missing)}")
    if not genes or not epochs:
        raise TableError(f"{path}: needs a column for each gene (g0, g1, ... or c0, c1, ...), and acc_1 to acc_E")
    if [int(name[4:]) for name in epochs] != list(range(1, len(epochs) + 1)):
        raise TableError(f"{path}: got {', '.join(epochs)}, must be acc_1 to acc_{len(epochs)}")
    try:
        options = frame[genes].to_numpy(dtype=int)
        costs = frame[list(COST_METRICS)].to_numpy(dtype=int)
        curves = frame[epochs].to_numpy(dtype=float)
        seconds = frame["seconds_per_epoch"].to_numpy(dtype=float) if "seconds_per_epoch" in columns else None
    except ValueError as error:
        raise TableError(f"{path}: {error}") from error
    if not ((curves >= 0) & (curves <= 1)).all():  # an empty cell fails, too
        raise TableError(f"{path}: accuracies must be fractions in [0, 1]")
    if (options < 0).any() or (costs <= 0).any():
        raise TableError(f"{path}: genes must be option indices from 0, params and flops above 0")
    members: dict[Genome, list[int]] = {}
    for index, genome in enumerate(map(tuple, options.tolist())):
        members.setdefault(genome, []).append(index)
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
