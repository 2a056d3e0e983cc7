"""A race on a simulated clock: it is decided as a real one, and has whatever curves instead of training."""

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
_SAMPLE = 200  # networks by whose mean FLOPs sizes are judged


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
    """What `run_clock` drives: who proposes trials and who stops them, as one. `Race` is one."""

    def ask(self) -> Proposal | None:
        """What a free worker trains next: a new trial, or a paused one, which goes on from where it stood; None for
        nothing."""
        ...

    def decide(self, proposal: Proposal, curve: tuple[float, ...], *, train_seconds: float) -> Decision:
        """After each epoch of a trial but the last: whether it goes on. The seconds are of all its epochs so far."""
        ...

    def tell(self, ended: Outcome) -> None:
        """A trial was trained in full, or was stopped by `decide`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A proposal was made in some seconds of the real clock; it is new, or one that was paused."""

    proposal: Proposal
    seconds: float
    is_new: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochEnded:
    """A trial has been trained for so many epochs, at `now` on the simulated clock, and what follows from it is
    decided."""

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
    """A race of `search` whose trials run side by side, asynchronously, until nothing is left to train.

    Args:
        epoch_seconds: Of one epoch of a trial.
        begin_seconds: Of a slot whenever it takes up a trial, a paused one included.
        spread: Of `search.spread_last`; a trial on so many times as many GPUs takes so much less time.
        has_no_more: Whether no new trial will be asked for, without which nothing is spread.

    Yields:
        What happens, in its order. Whoever has seen enough stops reading.
    """
    clock = itertools.count()
    events: list[tuple[float, int, Proposal, int]] = []  # when which proposal will have trained how many epochs
    paused: dict[int, int] = {}  # trials, with the epochs that they have trained
    gpus: dict[int, float] = {}  # of the trials that run
    num_free, now = num_slots, 0.0

    def seconds_of(proposal: Proposal, *, num_left: int) -> float:
        """Of its next epoch, on its share of the GPUs that are idle, where it begins again on more of them."""
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
    """Learning curves of a space's networks, for want of trained ones.

    A better end for larger networks, a preference for each option, a deviation of early epochs that fades until the
    end, and noise. What the curve of a network is follows from `seed` and its genome.
    """

    def __init__(self, space: GenomeSpace, *, num_epochs: int, seed: int) -> None:
        self._num_epochs, self._seed = num_epochs, seed
        rng = np.random.default_rng(seed)
        self._likes = [rng.normal(0, 0.004, len(gene.options)) for gene in space.genes]
        drawn = rng.integers([len(gene.options) for gene in space.genes], size=(_SAMPLE, len(space.genes)))
        self._mean_flops = float(np.mean([cost.flops for cost in space.costs_of(drawn).values()]))
        self._known: dict[Genome, np.ndarray] = {}

    def __call__(self, proposal: Proposal) -> Float[np.ndarray, " epochs"]:
        """Accuracy after each epoch, fractions."""
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
