"""Sampling of the subnets of a step. It depends only on seed, epoch and step, so it is the same on every rank."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from cvt_nas.arch import ArchConfig
from cvt_nas.config import SupernetConfig
from cvt_nas.space import ArchSpace, Genome

Kind = Literal["largest", "smallest", "random"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_NUM_STRATA, _POOL_SIZE, _NUM_CANDIDATES = 10, 2_000, 4
_TRIES = 100  # draws before feasible genomes are sought in another way
_KEPT, _RIDGE = 0.9, 1.0  # weight of what was learned after each epoch; prior precision of each effect


@dataclass(frozen=True, kw_only=True, slots=True)
class Subnet:
    kind: Kind
    genome: Genome
    arch: ArchConfig


class SubnetSampler:
    """Draws the subnets of each step by the settings `sandwich`, `extremes`, `num_random`, `sampling` and `opening`.

    Random subnets are feasible. The largest and smallest need not be, since they span the range.
    """

    def __init__(self, space: ArchSpace, config: SupernetConfig, *, seed: int) -> None:
        self._space, self._config, self._seed = space, config, seed
        self._largest = space.encode(space.largest)
        self._smallest = space.smallest_genome  # not canonical: closed choices may bring absent blocks back
        self._strata: tuple[int | None, list[list[Genome]]] = (None, [])
        size = 1 + sum(len(gene.options) for gene in space.genes)
        self._precision, self._target = _RIDGE * np.eye(size), np.zeros(size)
        self._effects = np.zeros(size)

    @property
    def is_learning(self) -> bool:
        """Whether `learn` has an effect. It needs `sampling: front` and a largest subnet to compare losses with."""
        return self._config.sampling == "front" and self._config.sandwich

    def draw(self, epoch: int, step: int) -> list[Subnet]:
        """Draws the subnets of a step. The largest comes first, since the others learn from its answers."""
        rng = random.Random(f"{self._seed} {epoch} {step}")
        first = step * self._config.num_random
        chosen: list[tuple[Kind, Genome]] = [
            ("random", self._random(epoch, first + index, rng)) for index in range(self._config.num_random)
        ]
        if self._config.sandwich:
            largest, smallest = self._largest, self._smallest
            if self._config.extremes == "sizes":
                largest = self._opened(self._space.extreme_of_sizes("largest", rng), epoch)
                smallest = self._space.extreme_of_sizes("smallest", rng)
            chosen = [("largest", largest), *chosen, ("smallest", self._opened(smallest, epoch))]
        return [Subnet(kind=kind, genome=genome, arch=self._space.decode(genome)) for kind, genome in chosen]

    def greediest(self) -> list[Subnet]:
        """Subnets of a step with the greatest memory: the largest twice, with the answers of the first pass kept.

        With `extremes: sizes`, these are the largest with the least strides.
        """
        kinds: list[Kind] = ["largest", "random"] if self._config.sandwich else ["random"]
        arch = self._space.decode(self._largest)
        return [Subnet(kind=kind, genome=self._largest, arch=arch) for kind in kinds]

    def learn(self, genomes: Sequence[Sequence[int]], log_losses: Sequence[float]) -> None:
        """Updates the effect of each option on the loss, for `sampling: front`. Older epochs count less."""
        if not genomes:
            return
        features = np.stack([self._features(genome) for genome in genomes])
        prior = _RIDGE * np.eye(len(self._target))
        self._precision = prior + _KEPT * (self._precision - prior) + features.T @ features
        self._target = _KEPT * self._target + features.T @ np.array(log_losses)
        self._effects = np.linalg.solve(self._precision, self._target)

    def to_plain(self) -> dict[str, list]:
        return {"precision": self._precision.tolist(), "target": self._target.tolist()}

    def load_plain(self, tree: dict[str, list]) -> None:
        self._precision, self._target = np.array(tree["precision"]), np.array(tree["target"])
        self._effects = np.linalg.solve(self._precision, self._target)

    def _opened(self, genome: Genome, epoch: int) -> Genome:
        """Returns `genome` with the largest option of each choice that is not open yet."""
        opening = cast(dict[str, float], self._config.opening)
        return tuple(
            greatest if epoch < opening.get(gene.choice, 0) else option
            for gene, option, greatest in zip(self._space.genes, genome, self._largest, strict=True)
        )

    def _random(self, epoch: int, number: int, rng: random.Random) -> Genome:
        """Draws random subnet `number` of an epoch."""
        if self._config.sampling == "uniform":
            return self._feasible(epoch, rng)
        if self._config.sampling == "fair":
            genome = self._opened(self._fair(epoch, number), epoch)
            return genome if self._space.is_feasible(self._space.cost(genome)) else self._feasible(epoch, rng)
        stratum = rng.choice(self._strata_of(epoch))
        if self._config.sampling == "flops":
            return rng.choice(stratum)
        candidates = [rng.choice(stratum) for _ in range(_NUM_CANDIDATES)]
        return min(candidates, key=lambda genome: float(self._features(genome) @ self._effects))

    def _fair(self, epoch: int, number: int) -> Genome:
        """Genome `number` of an epoch, in which each gene takes each of its options once before any of them again."""
        genome = []
        for gene in self._space.genes:
            round_, place = divmod(number, len(gene.options))
            order = list(range(len(gene.options)))
            random.Random(f"{self._seed} {epoch} {gene.name} {round_}").shuffle(order)
            genome.append(order[place])
        return tuple(genome)

    def _feasible(self, epoch: int, rng: random.Random) -> Genome:
        for _ in range(_TRIES):
            genome = self._opened(self._space.sample(rng), epoch)
            if self._space.is_feasible(self._space.cost(genome)):
                return genome
        # with closed choices, there may be no feasible genome; rare ones are found in another way
        return self._opened(self._space.sample_feasible(rng) or self._smallest, epoch)

    def _strata_of(self, epoch: int) -> list[list[Genome]]:
        """Random genomes by equal intervals of log-FLOPs. Each epoch draws new ones, since pools are finite."""
        if self._strata[0] != epoch:
            rng = random.Random(f"{self._seed} {epoch} pool")
            pool = sorted({self._feasible(epoch, rng) for _ in range(_POOL_SIZE)})
            logs = [math.log(self._space.cost(genome).flops) for genome in pool]
            low, span = min(logs), max(max(logs) - min(logs), 1e-9)
            strata: list[list[Genome]] = [[] for _ in range(_NUM_STRATA)]
            for genome, value in zip(pool, logs, strict=True):
                strata[min(int((value - low) / span * _NUM_STRATA), _NUM_STRATA - 1)].append(genome)
            self._strata = epoch, [stratum for stratum in strata if stratum]
        return self._strata[1]

    def _features(self, genome: Sequence[int]) -> np.ndarray:
        """Features of a genome: a constant, and a one-hot code of each gene."""
        found = np.zeros(len(self._target))
        found[0], start = 1, 1
        for gene, option in zip(self._space.genes, genome, strict=True):
            found[start + option] = 1
            start += len(gene.options)
        return found
