"""Bayesian optimisation of architectures, whose accuracy is unknown and whose costs are exact.

A Gaussian process models only accuracy, over architectures and epochs. Since costs are known, the expected hypervolume
improvement of a candidate has a closed form. It is a sum of ordinary expected improvements over the cells of cost space
to the right of the candidate, weighted by the area of each cell.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cvt_nas.arch import Cost
from cvt_nas.propose.beliefs import NO_BELIEFS, Beliefs, Believed, Trust, log_costs
from cvt_nas.propose.curves import CurvePosterior, Curves, fit_hyperparameters, one_thread, prior_of
from cvt_nas.propose.improvement import expected_hypervolume_improvement
from cvt_nas.propose.observations import MAX_FITTED, Observation, curves_of, most_telling
from cvt_nas.results import Prediction, is_non_dominated
from cvt_nas.space import CostMetric, Genome, GenomeSpace

NUM_INITIAL = 10
REFIT_AFTER = 1.15  # growth of the number of observations after which hyperparameters are fitted again
MAX_CONDITIONED = 500
NUM_CANDIDATES = 1_500
# Factor on standard deviations. They are too small, because the process treats its estimated length scales as exact.
# On NAS-Bench-201, unseen networks lay up to 2.1 of its standard deviations away, and one search in ten never tried the
# operation that the process had judged bad.
OVERCONFIDENCE = 1.5
ENUMERABLE = 4_000
_JUDGED_AFTER = 2  # complete trials after which the initial design uses the weights of beliefs
_INTERVALS = (0, 9, 5, 2, 7, 1, 3, 4, 6, 8)  # order of intervals of log-FLOPs: each is far from those before


class Surrogate:
    """Proposes the genome with the largest expected front.

    A proposal depends only on the seed, the number of the trial, the observations and `fitted`. All else that is kept
    between calls can be computed again.

    Attributes:
        fitted: Hyperparameters by the number of accuracies to which they were fitted. A resumed search needs them.

    Args:
        num_epochs: Number of epochs of a full training.
        seed: Seed of the initial design and of the candidates.
        per_second: Whether the expected improvement of a candidate is divided by the expected seconds of its epochs.
        beliefs: Beliefs about the space before the search.
    """

    def __init__(
        self,
        space: GenomeSpace,
        *,
        costs: Sequence[CostMetric],
        num_epochs: int,
        seed: int,
        per_second: bool = False,
        beliefs: Beliefs = NO_BELIEFS,
    ) -> None:
        self._space, self._costs, self._num_epochs, self._seed = space, tuple(costs), num_epochs, seed
        self._per_second = per_second
        least, greatest = space.cost_range
        self._low = np.array([getattr(least, metric) for metric in costs], dtype=float)
        span = np.array([getattr(greatest, metric) for metric in costs], dtype=float) - self._low
        self._span = np.where(span == 0, 1, span)  # params do not vary if only heads or strides are open
        every = space.all_genomes(ENUMERABLE)
        self._every = None if every is None else [g for g in every if space.is_feasible(space.cost(g))]
        rng = random.Random(f"{seed} sample")
        sample = self._every or [g for _ in range(500) if (g := space.sample_feasible(rng)) is not None]
        self._sample = sorted(sample, key=lambda genome: space.cost(genome).flops)
        costs_of_sample = [space.cost(genome) for genome in self._sample]
        logs = log_costs(costs_of_sample)
        self._log_mean, self._log_sd = logs.mean(axis=0), np.maximum(logs.std(axis=0), 1e-9)
        with one_thread():
            table = np.array(self._sample, dtype=int).reshape(len(self._sample), len(space.genes))
            self._believed = Believed(beliefs, space, table, costs_of_sample)
        self._num_initial = NUM_INITIAL // 2 if self._believed.tells_apart else NUM_INITIAL
        self._prior = prior_of([0 if gene.is_ordinal else len(gene.options) for gene in space.genes], num_epochs)
        self.fitted: dict[int, np.ndarray] = {}
        self._table = None if self._every is None else self._described(self._every)
        self._places: dict[Genome, int] = {}  # of the genomes that were asked for, in `_asked_for`
        self._asked_for = self._described([])
        # the last questions and their answers, since `freeze-thaw` asks the same up to three times in a row
        self._posterior: tuple[tuple[Observation, ...], CurvePosterior] | None = None
        self._best_new: tuple[object, tuple[Genome | None, float]] = None, (None, 0.0)
        self._drawn: tuple[object, _Candidates | None] = None, None

    def propose(self, number: int, observations: Sequence[Observation], seen: set[Genome]) -> Genome | None:
        """A feasible genome for trial `number`; None if none was found.

        Args:
            observations: Observations of the trials before it, in the order of their numbers.
            seen: Canonical genomes that must not be proposed.
        """
        if self.begins(number, observations):
            return self._initial(number, observations, seen)
        genome, _, _ = self.weigh(number, observations, seen)
        return genome

    def begins(self, number: int, observations: Sequence[Observation]) -> bool:
        """Whether trial `number` belongs to the initial design. Until it ends, too little is known for a model."""
        return number < self._num_initial or sum(o.status == "complete" for o in observations) < 3

    def weigh(
        self, number: int, observations: Sequence[Observation], seen: set[Genome], *, others: Sequence[Genome] = ()
    ) -> tuple[Genome | None, float, np.ndarray]:
        """Chooses the genome for trial `number` with the largest expected addition to the hypervolume of the front.

        Returns:
            The genome, its expected addition, and the expected addition of each of the `others`, `(others,)`.
        """
        with one_thread():
            asked = number, tuple(observations), frozenset(seen)
            if asked != self._best_new[0]:
                self._best_new = asked, self._weigh_new(number, observations, seen)
            return *self._best_new[1], self._gains(observations, self._of(others))

    def _weigh_new(
        self, number: int, observations: Sequence[Observation], seen: set[Genome]
    ) -> tuple[Genome | None, float]:
        candidates = self._candidates(observations, (self._seed, number), seen)
        if candidates is None:
            return None, 0.0
        gains = self._gains(observations, candidates)
        best = int(np.argmax(gains))
        return candidates.genomes[best], float(gains[best])

    def gains(self, observations: Sequence[Observation], genomes: Sequence[Genome]) -> np.ndarray:
        """Expected addition of each genome to the hypervolume of the front, `(genomes,)`."""
        with one_thread():
            return self._gains(observations, self._of(genomes))

    def predict(self, observations: Sequence[Observation], genomes: Sequence[Genome]) -> list[Prediction]:
        """Predicts the accuracy of each genome after a full training, without the factor `OVERCONFIDENCE`."""
        with one_thread():
            model = self._model(observations)
            mean, sd = model.predict(self._of(genomes).features)
        return [
            Prediction(accuracy=round(float(m), 6), sd=round(float(s), 6), noise_sd=round(model.noise_sd, 6))
            for m, s in zip(mean, sd, strict=True)
        ]

    def trust(self, observations: Sequence[Observation]) -> list[Trust]:
        """How far the observations confirm each belief, in the order of `Beliefs.names`."""
        with one_thread():
            model, features = self._model(observations), self._described(self._sample).features
            end = features.shape[1] - self._believed.number
            return self._believed.trust(
                features[:, end:], model.trust, expected=model.expect(features), costs=features[:, end - 2 : end]
            )

    def _gains(self, observations: Sequence[Observation], candidates: "_Candidates") -> np.ndarray:
        """See `gains`. Trials in flight count as if they had ended at their expected accuracy."""
        if not candidates.genomes:
            return np.zeros(0)
        model = self._model(observations)
        mean, sd = model.predict(candidates.features)
        standing = self._of([o.genome for o in observations if o.status in ("complete", "running")])
        gains = expected_hypervolume_improvement(
            mean,
            OVERCONFIDENCE * sd,
            candidates.costs,
            front_costs=standing.costs,
            front_levels=model.expect(standing.features),
        )
        return gains / self._pace(observations, candidates.features) if self._per_second else gains

    def expect(self, observations: Sequence[Observation], genomes: Sequence[Genome]) -> np.ndarray:
        """Expected accuracy of each genome after a full training, `(genomes,)`."""
        with one_thread():
            return self._model(observations).expect(self._of(genomes).features)

    def _pace(self, observations: Sequence[Observation], features: np.ndarray) -> np.ndarray:
        """Expected time of an epoch of each candidate, `(candidates,)`, as a multiple of the mean of the trials so far.

        It is a linear fit of the logarithm of seconds to the logarithms of costs. With few trials, the slopes are
        shrunk towards 0.
        """
        timed = {o.genome: o.epoch_seconds for o in observations if o.epoch_seconds is not None}
        if not timed:
            return np.ones(len(features))
        logs, costs = np.log(list(timed.values())), self._costs_in(self._of(list(timed)).features)
        middle = costs.mean(axis=0)
        inside = (costs - middle).T @ (costs - middle) + 0.1 * np.eye(2)
        slopes = np.linalg.solve(inside, (costs - middle).T @ (logs - logs.mean()))
        return np.exp((self._costs_in(features) - middle) @ slopes)

    def most_accurate(self, observations: Sequence[Observation], number: int) -> list[Genome]:
        """The `number` feasible genomes with the highest expected accuracy, best first, evaluated or not.

        There are fewer if the space has fewer.
        """
        with one_thread():
            drawn = self._candidates(observations, (self._seed,), set())
            known = {self._space.canonical(o.genome): self._space.cost(o.genome) for o in observations}
            known = {genome: cost for genome, cost in known.items() if self._space.is_feasible(cost)}
            costs = {**({} if drawn is None else {g: self._space.cost(g) for g in drawn.genomes}), **known}
            if not costs:
                return []
            candidates = self._described(list(costs), list(costs.values()))
            expected = self._model(observations).expect(candidates.features)
            return [candidates.genomes[index] for index in np.argsort(-expected, kind="stable")[:number]]

    def _initial(self, number: int, observations: Sequence[Observation], seen: set[Genome]) -> Genome | None:
        """The next genome of the initial design: the cheapest first, then one from each interval of log-FLOPs.

        Each interval is far from those before it. The network is drawn at random from the interval, or is its most
        promising network if there are beliefs.

        No other network can take the cheap end of the front, whatever the accuracies are. So the cheapest network is
        worth the most before anything is known.
        """
        if self._cheapest not in seen:
            return self._cheapest
        logs = np.log([self._space.cost(genome).flops for genome in self._sample])
        low, high = logs[0], logs[-1]
        within = random.Random(f"{self._seed} {number}").random()
        wanted = low + (high - low) * (_INTERVALS[number % NUM_INITIAL] + within) / NUM_INITIAL
        order = np.argsort(np.abs(logs - wanted), kind="stable")
        if self._believed.tells_apart:
            near, rest = np.split(order, [max(len(order) // NUM_INITIAL, 1)])
            genomes = [self._sample[index] for index in near]
            if sum(o.status == "complete" for o in observations) < _JUDGED_AFTER:
                costs = [self._space.cost(genome) for genome in genomes]
                judged = self._believed.judge(number, np.array(genomes, dtype=int), costs)
            else:
                judged = self._model(observations).expect(self._described(genomes).features)
            order = np.concatenate([near[np.argsort(-judged, kind="stable")], rest])
        for index in order:
            if (genome := self._space.canonical(self._sample[index])) not in seen:
                return genome
        return None

    @cached_property
    def _cheapest(self) -> Genome:
        """The feasible genome with the largest share of cost space to its right, found by coordinate descent."""

        def share(genome: Genome) -> float:
            cost = self._space.cost(genome)
            return float(np.prod(1 - self._scaled([cost]))) if self._space.is_feasible(cost) else -1.0

        best = max((self._space.canonical(genome) for genome in self._sample), key=share)
        while True:
            neighbours = {
                self._space.canonical((*best[:position], option, *best[position + 1 :]))
                for position, gene in enumerate(self._space.genes)
                for option in range(len(gene.options))
            }
            better = max([best, *sorted(neighbours)], key=share)
            if share(better) <= share(best):
                return best
            best = better

    def _candidates(
        self, observations: Sequence[Observation], seed: tuple[int, ...], seen: set[Genome]
    ) -> "_Candidates | None":
        """Feasible genomes that are not in `seen`. None if there is none."""
        if self._table is not None:
            kept = [place for place, genome in enumerate(self._table.genomes) if genome not in seen]
            return self._table.at(kept) if kept else None
        known = [o for o in observations if o.curve]
        losses = np.column_stack([[-o.curve[-1] for o in known], self.scaled_costs([o.genome for o in known])])
        parents = tuple(o.genome for o, keep in zip(known, is_non_dominated(losses), strict=True) if keep)
        asked = parents, seed, frozenset(seen)
        if asked != self._drawn[0]:  # most epochs of a search change neither the front nor what was seen
            self._drawn = asked, self._draw(parents, seed, seen)
        return self._drawn[1]

    def _draw(self, parents: Sequence[Genome], seed: tuple[int, ...], seen: set[Genome]) -> "_Candidates | None":
        space, rng = self._space, np.random.default_rng(seed)
        drawn = _draw_candidates(np.array(parents), np.array([len(gene.options) for gene in space.genes]), rng)
        costs = {g: cost for g, cost in space.costs_of(drawn).items() if g not in seen and space.is_feasible(cost)}
        return self._described(list(costs), list(costs.values())) if costs else None

    def _of(self, genomes: Sequence[Genome]) -> "_Candidates":
        """Genomes with their features and costs. They are kept, since each proposal needs those of all trials."""
        if new := [genome for genome in dict.fromkeys(genomes) if genome not in self._places]:
            self._places |= {genome: place for place, genome in enumerate(new, len(self._places))}
            self._asked_for = self._asked_for.joined(self._described(new))
        return self._asked_for.at([self._places[genome] for genome in genomes])

    def _model(self, observations: Sequence[Observation]) -> CurvePosterior:
        given = tuple(observations)
        if self._posterior is None or self._posterior[0] != given:
            self._posterior = given, self._model_of(given)
        return self._posterior[1]

    def _model_of(self, observations: Sequence[Observation]) -> CurvePosterior:
        known = [o for o in observations if o.curve or o.inherited is not None or o.status in ("running", "failed")]
        features = self._of([o.genome for o in known]).features
        curves = curves_of(known, features, self._num_epochs, num_beliefs=self._believed.number)
        num_known = len(curves.values)
        latest = max((number for number in self.fitted if number <= num_known), default=None)
        if latest is None or num_known >= REFIT_AFTER * latest:
            latest = num_known
            self.fitted[latest] = fit_hyperparameters(self._thinned(curves, MAX_FITTED), prior=self._prior)
        pending = [index for index, o in enumerate(known) if o.status == "running"]
        return CurvePosterior(self._thinned(curves, MAX_CONDITIONED), self.fitted[latest], pending=pending)

    def _thinned(self, curves: Curves, limit: int) -> Curves:
        rng = np.random.default_rng((self._seed, len(curves.values)))
        return curves.where(most_telling(curves, limit, rng))

    def _costs_in(self, features: np.ndarray) -> np.ndarray:
        """The columns of `features` for params and FLOPs."""
        end = features.shape[1] - self._believed.number
        return features[:, end - 2 : end]

    def scaled_costs(self, genomes: Sequence[Genome]) -> np.ndarray:
        """Scaled costs, `(genomes, costs)`: 0 at the least cost of the space and 1 at the greatest."""
        return self._of(genomes).costs

    def _scaled(self, costs: Sequence[Cost]) -> np.ndarray:
        values = np.array([[getattr(cost, metric) for metric in self._costs] for cost in costs], dtype=float)
        return (values.reshape(-1, len(self._costs)) - self._low) / self._span

    def _described(self, genomes: Sequence[Genome], costs: Sequence[Cost] | None = None) -> "_Candidates":
        """Genomes with their features and costs.

        Features are the options in [0, 1], or one-hot if they have no order, then the standardised logarithms of params
        and FLOPs, then the beliefs.

        Args:
            costs: Costs of the genomes, if they are known already.
        """
        costs = [self._space.cost(genome) for genome in genomes] if costs is None else costs
        table = np.array(genomes, dtype=int).reshape(len(genomes), len(self._space.genes))
        columns, logs = [], (log_costs(costs) - self._log_mean) / self._log_sd
        for position, gene in enumerate(self._space.genes):
            if gene.is_ordinal:
                columns.append(table[:, [position]] / max(len(gene.options) - 1, 1))  # a table may have one option
            else:  # scaled so that the squared distance of two different options is 1
                columns.append((table[:, [position]] == np.arange(len(gene.options))) / math.sqrt(2))
        features = np.hstack([*columns, logs, self._believed(table, costs)])
        return _Candidates(genomes=list(genomes), features=features, costs=self._scaled(costs))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidates:
    genomes: list[Genome]
    features: np.ndarray
    costs: np.ndarray

    def at(self, places: Sequence[int]) -> "_Candidates":
        rows = np.array(places, dtype=int)
        genomes = [self.genomes[place] for place in places]
        return _Candidates(genomes=genomes, features=self.features[rows], costs=self.costs[rows])

    def joined(self, more: "_Candidates") -> "_Candidates":
        features, costs = (np.vstack([getattr(of, name) for of in (self, more)]) for name in ("features", "costs"))
        return _Candidates(genomes=self.genomes + more.genomes, features=features, costs=costs)


def _draw_candidates(parents: np.ndarray, num_options: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws genomes, `(NUM_CANDIDATES + 2, genes)`.

    Half of them are parents with one to three genes drawn anew, a fifth are crossovers of two parents, and the rest are
    random. The last two have the first option of every gene, and the last option of every gene.

    Args:
        parents: Genomes of the front, `(parents, genes)`.
        num_options: Number of options of each gene, `(genes,)`.
    """
    num_genes = len(num_options)
    shape = (NUM_CANDIDATES, num_genes)
    drawn = rng.integers(num_options, size=shape)
    one, other = (parents[rng.integers(len(parents), size=NUM_CANDIDATES)] for _ in range(2))
    num_mutations = rng.choice((1, 1, 2, 3), size=(NUM_CANDIDATES, 1))
    mutated = np.where(rng.random(shape).argsort(axis=1).argsort(axis=1) < num_mutations, drawn, one)
    crossed = np.where(rng.random(shape) < 0.5, one, other)
    kind = rng.random((NUM_CANDIDATES, 1))
    children = np.where(kind < 0.5, mutated, np.where(kind < 0.7, crossed, drawn))
    return np.vstack([children, np.zeros((1, num_genes), dtype=int), num_options - 1])
