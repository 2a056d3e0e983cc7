"""Asynchronous successive halving, without Ray.

The first rung is at `grace_period` epochs, and each further rung is `reduction_factor` times as far. A trial that
reaches a rung is ranked among the trials that reached it before. The best 1 / `reduction_factor` of them, rounded up,
go on. No more than this number ever go on. The original rule differs: a trial goes on if it is among the best at that
moment, so 40 % and more pass if trials get better during the search.

There is one exception. In mode `stop`, a decision is final, so the first `reduction_factor` - 1 trials that reach a
rung all pass. The ranking decides which trials are the best: by accuracy alone, or by accuracy and cost together.

Sources: Li et al. 2020, arXiv:1810.05934, for the rungs; Li et al. 2022, arXiv:2201.06834, for promotions that wait
until enough trials have reached the rung; Schmucker et al. 2021, arXiv:2106.12639, and Salinas et al. 2021,
arXiv:2106.05680, for ranking by several objectives.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from cvt_nas.arch import Cost
from cvt_nas.results import Metric, is_non_dominated, rung_epochs

Decision = Literal["go", "stop", "pause"]
Ranking = Callable[[np.ndarray, int], np.ndarray]


class Asha:
    """The rungs, and the trials that reached them.

    Args:
        max_epochs: Epochs of a full training. No decision is needed there.
        grace_period: Epochs of the first rung.
        reduction_factor: One in this many trials goes on, rounded up.
        ranking: Computes ranks from losses, `(trials, objectives)`. The first loss is 1 - accuracy, and rank 0 is the
            best. The second argument is the number of best trials that need ranks of their own.
        mode: `stop` ends a trial that cannot go on when it arrives. `promote` pauses it, so that it can go on later.
        rungs: Epochs of the rungs, in place of those that follow from the first three arguments. A search that began
            with other rungs needs this.
    """

    def __init__(
        self,
        *,
        max_epochs: int,
        grace_period: int,
        reduction_factor: int,
        ranking: Ranking,
        mode: Literal["stop", "promote"] = "stop",
        rungs: Sequence[int] = (),
    ) -> None:
        self.reduction_factor, self.ranking, self.mode = reduction_factor, ranking, mode
        milestones = rungs or rung_epochs(max_epochs, grace_period=grace_period, reduction_factor=reduction_factor)
        self.rungs: dict[int, dict[int, tuple[float, ...]]] = {milestone: {} for milestone in milestones}
        self._passed: dict[int, set[int]] = {milestone: set() for milestone in milestones}
        self._waiting: dict[int, set[int]] = {milestone: set() for milestone in milestones}
        self._ranked: dict[int, list[int]] = {}  # results of `_best`, until another trial reaches the rung

    def decide(self, number: int, epoch: int, losses: Sequence[float]) -> Decision:
        """Records trial `number` if `epoch` is a rung, and decides. The decision between rungs is `go`."""
        if epoch not in self.rungs or number in self._passed[epoch]:
            return "go"
        self.rungs[epoch][number] = tuple(losses)
        self._ranked.pop(epoch, None)
        self._waiting[epoch].add(number)
        if number in self._may_pass(epoch):  # its worker is free, so it goes on without a pause
            self._pass(epoch, number)
            return "go"
        if self.mode == "promote":
            return "pause"
        if len(self.rungs[epoch]) < self.reduction_factor:  # too few for a final decision
            self._pass(epoch, number)
            return "go"
        self._waiting[epoch].remove(number)
        return "stop"

    def promote(self) -> int | None:
        """A paused trial that may go on now, from the highest rung possible. It is recorded as gone on."""
        for milestone in sorted(self.rungs, reverse=True):
            for number in self._may_pass(milestone):
                self._pass(milestone, number)
                return number
        return None

    @property
    def num_promotable(self) -> int:
        """Number of paused trials that may go on now."""
        return len({number for milestone in self.rungs for number in self._may_pass(milestone)})

    def is_paused(self, number: int) -> bool:
        return any(number in waiting for waiting in self._waiting.values())

    def _pass(self, milestone: int, number: int) -> None:
        self._waiting[milestone].remove(number)
        self._passed[milestone].add(number)

    def _may_pass(self, milestone: int) -> list[int]:
        """Waiting trials of a rung that have a place beyond it, best first.

        Trials that went on early keep their places, even if better trials arrive later.
        """
        if (room := self._num_places(milestone) - len(self._passed[milestone])) <= 0:
            return []
        return [number for number in self._best(milestone) if number in self._waiting[milestone]][:room]

    def _num_places(self, milestone: int) -> int:
        # rounded up so that the first to arrive goes on: a search needs full trainings for its front and its model
        return math.ceil(len(self.rungs[milestone]) / self.reduction_factor)

    def _best(self, milestone: int) -> list[int]:
        """The best trials of a rung, best first, as many as there are places beyond it."""
        rung = self.rungs[milestone]
        if not rung:
            return []
        if milestone in self._ranked:
            return self._ranked[milestone]
        numbers, num_best = sorted(rung), self._num_places(milestone)
        ranks = self.ranking(np.array([rung[number] for number in numbers], dtype=float), num_best)
        best = [numbers[index] for index in np.argsort(ranks, kind="stable") if ranks[index] < num_best]
        self._ranked[milestone] = best
        return best

    def replay(
        self,
        number: int,
        curve: Sequence[float],
        costs: Sequence[float],
        *,
        is_paused: bool = False,
        is_stopped: bool = False,
    ) -> None:
        """Puts a trial of an earlier process on the rungs that it reached.

        It has passed them all. The exception is a rung at the end of its curve if it `is_paused` or `is_stopped` there.
        """
        for milestone in self.rungs:
            if len(curve) < milestone:
                continue
            self.rungs[milestone][number] = (1 - curve[milestone - 1], *costs)
            self._ranked.pop(milestone, None)
            if len(curve) > milestone or not (is_paused or is_stopped):
                self._passed[milestone].add(number)
            elif is_paused:
                self._waiting[milestone].add(number)


def losses_of_cost(cost: Cost, metrics: Sequence[Metric]) -> tuple[float, ...]:
    """The losses that follow the first one. They are the costs among the objectives."""
    return tuple(cost.loss(metric) for metric in metrics if metric != "accuracy")


def accuracy_ranks(losses: np.ndarray, num_best: int | None = None) -> np.ndarray:
    """Ranks by the first loss alone. Trials with equal losses share the better rank."""
    del num_best  # to rank all takes no longer
    first = losses[:, 0]
    return (first[None, :] < first[:, None]).sum(axis=1)


def pareto_ranks(losses: np.ndarray, num_best: int | None = None) -> np.ndarray:
    """Ranks by non-dominated sorting. Within a front, an epsilon-net ranks them, so that each part of it survives.

    The net begins with the most accurate trial of the front. Then it repeatedly adds the trial that is farthest from
    all that it holds, on objectives scaled to [0, 1] over the front. All ranks differ. They do not depend on the order
    in which trials arrived, except between trials with the same losses.

    Args:
        losses: `(trials, objectives)`, smaller is better.
        num_best: Ranking ends with the front that completes this many trials. All others share the last rank. None
            ranks all trials.
    """
    ranks = np.full(len(losses), len(losses))
    left, rank = np.arange(len(losses)), 0
    while len(left) and (num_best is None or rank < num_best):
        on_front = is_non_dominated(losses[left])
        for index in left[on_front][_epsilon_net(losses[left][on_front])]:
            ranks[index] = rank
            rank += 1
        left = left[~on_front]
    return ranks


def _epsilon_net(losses: np.ndarray) -> np.ndarray:
    order = np.lexsort(losses.T[::-1])  # by the first objective, then by the others
    spread = np.ptp(losses, axis=0)
    scaled = ((losses - losses.min(axis=0)) / np.where(spread > 0, spread, 1))[order]
    chosen, distances = [0], np.linalg.norm(scaled - scaled[0], axis=1)
    distances[0] = -1
    while len(chosen) < len(losses):
        farthest = int(np.argmax(distances))
        chosen.append(farthest)
        distances = np.minimum(distances, np.linalg.norm(scaled - scaled[farthest], axis=1))
        distances[chosen] = -1
    return order[chosen]


RANKINGS: dict[str, Ranking] = {"pareto-asha": pareto_ranks, "asha": accuracy_ranks}  # by scheduler with rungs
