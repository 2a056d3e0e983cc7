"""A race on a simulated clock. It decides as a real race does, but takes its learning curves from a function."""

import heapq
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float

from cvt_nas.arch import Cost
from cvt_nas.propose.asha import Decision
from cvt_nas.propose.spread import Spread
from cvt_nas.propose.study import Proposal
from cvt_nas.results import Status
from cvt_nas.space import Genome, GenomeSpace

_EARLY, _NOISE = 0.008, 0.003  # standard deviations of made-up accuracies
_SAMPLE = 200  # networks whose mean FLOPs count as a normal size


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a simulated trial ended."""

    number: int
    status: Status
    epochs: int
    curve: tuple[float, ...]
    cost: Cost
    reason: str | None = None


class Search(Protocol):
    """Proposes trials and stops them. `run_clock` drives it, and `Race` is an example."""

    def ask(self) -> Proposal | None:
        """The next trial for a free worker, or None. It is new, or it was paused and goes on where it stopped."""
        ...

    def decide(self, proposal: Proposal, curve: tuple[float, ...], *, train_seconds: float) -> Decision:
        """Decides whether a trial goes on. It is called after each epoch except the last.

        Args:
            train_seconds: Seconds of all its epochs so far.
        """
        ...

    def tell(self, ended: Outcome) -> None:
        """Records a trial that was trained in full, or that `decide` has stopped."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A new or paused trial was proposed. This took `seconds` on the real clock."""

    proposal: Proposal
    seconds: float
    is_new: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochEnded:
    """A trial has ended an epoch at `now` on the simulated clock, and the decision about it is made."""

    now: float
    proposal: Proposal
    epochs: int
    is_complete: bool


def run_clock(
    search: Search,
    *,
    num_slots: int,
    num_epochs: int,
    curve_of: Callable[[Proposal], Sequence[float] | Float[np.ndarray, " epochs"]],
    epoch_seconds: Callable[[Proposal], float],
    begin_seconds: float = 0.0,
    spread: Spread | None = None,
    has_no_more: Callable[[], bool] = bool,
) -> Iterator[Asked | EpochEnded]:
    """Runs the trials of `search` side by side, asynchronously, until nothing is left to train.

    Args:
        epoch_seconds: Returns the seconds of one epoch of a trial.
        begin_seconds: Seconds that a slot needs to begin a trial or to resume a paused one.
        spread: Divides GPUs, see `search.spread_last`. The time of an epoch is inverse to the number of GPUs.
        has_no_more: Whether there will be no new trial. Before that, nothing is spread.

    Yields:
        Events in the order of the clock. The caller may stop at any time.
    """
    clock = itertools.count()
    events: list[tuple[float, int, Proposal, int]] = []  # time, tie-breaker, proposal, epochs by then
    paused: dict[int, int] = {}  # epochs of paused trials
    gpus: dict[int, float] = {}  # GPUs of running trials
    num_free, now = num_slots, 0.0

    def seconds_of(proposal: Proposal, *, num_left: int) -> float:
        """Seconds of the next epoch. The trial may restart on more GPUs first, if enough are idle."""
        if spread is None:
            return epoch_seconds(proposal)
        begins = proposal.number not in gpus
        has = gpus.setdefault(proposal.number, spread.gpus_per_trial)
        seconds = epoch_seconds(proposal) * spread.gpus_per_trial
        more = has
        if has_no_more():
            more = spread.gpus_for([of for number, of in gpus.items() if number != proposal.number])
        if begins or spread.is_worth_it(has, more, seconds_left=seconds / has * num_left):
            gpus[proposal.number] = more
        waits = begin_seconds if gpus[proposal.number] != has and not begins else 0.0
        return waits + seconds / gpus[proposal.number]

    while True:
        while num_free and (spread is None or sum(gpus.values()) < spread.num_gpus()):
            started = time.perf_counter()
            proposal = search.ask()
            seconds = time.perf_counter() - started
            if proposal is None:
                break
            epochs = paused.pop(proposal.number, 0)
            yield Asked(proposal=proposal, seconds=seconds, is_new=epochs == 0)
            done = now + begin_seconds + seconds_of(proposal, num_left=num_epochs - epochs)
            heapq.heappush(events, (done, next(clock), proposal, epochs + 1))
            num_free -= 1
        if not events:
            return
        now, _, proposal, epochs = heapq.heappop(events)
        curve = tuple(float(accuracy) for accuracy in curve_of(proposal)[:epochs])
        is_complete = epochs == num_epochs
        decision = (
            "stop" if is_complete else search.decide(proposal, curve, train_seconds=epoch_seconds(proposal) * epochs)
        )
        if decision == "go":
            done = now + seconds_of(proposal, num_left=num_epochs - epochs)
            heapq.heappush(events, (done, next(clock), proposal, epochs + 1))
        else:
            num_free += 1
            gpus.pop(proposal.number, None)
            if decision == "pause":
                paused[proposal.number] = epochs
            else:
                status: Status = "complete" if is_complete else "stopped"
                search.tell(
                    Outcome(number=proposal.number, status=status, epochs=epochs, curve=curve, cost=proposal.cost)
                )
        yield EpochEnded(now=now, proposal=proposal, epochs=epochs, is_complete=is_complete)


class MadeUpCurves:
    """Made-up learning curves for the networks of a space.

    Larger networks end better, and each option has an effect of its own. Early epochs have a deviation that fades until
    the end, and all epochs have noise. The curve of a network depends only on `seed` and its genome.
    """

    def __init__(self, space: GenomeSpace, *, num_epochs: int, seed: int) -> None:
        self._num_epochs, self._seed = num_epochs, seed
        rng = np.random.default_rng(seed)
        self._likes = [rng.normal(0, 0.004, len(gene.options)) for gene in space.genes]
        drawn = rng.integers([len(gene.options) for gene in space.genes], size=(_SAMPLE, len(space.genes)))
        self._mean_flops = float(np.mean([cost.flops for cost in space.costs_of(drawn).values()]))
        self._known: dict[Genome, np.ndarray] = {}

    def __call__(self, proposal: Proposal) -> Float[np.ndarray, " epochs"]:
        """Accuracy after each epoch, as a fraction."""
        if proposal.genome not in self._known:
            self._known[proposal.genome] = self._curve_of(proposal)
        return self._known[proposal.genome]

    def _curve_of(self, proposal: Proposal) -> Float[np.ndarray, " epochs"]:
        rng = np.random.default_rng((self._seed, *proposal.genome))
        end = 0.78 + 0.04 * np.log(proposal.cost.flops / self._mean_flops)
        end += sum(like[option] for like, option in zip(self._likes, proposal.genome, strict=True))
        epochs = np.arange(1, self._num_epochs + 1)
        left = 1 - epochs / self._num_epochs
        curve = end * (1 - 0.5 * np.exp(-20 * epochs / self._num_epochs)) + _EARLY * rng.normal() * left**2
        return np.clip(curve + rng.normal(0, _NOISE, len(epochs)), 0, 1)
