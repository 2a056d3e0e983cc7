"""How long functions take beside each other: all take turns, so that what slows the machine down slows them alike.

One after the other, each for a while, they would be compared across times at which the machine did other work. In
turns, in another order in each round, a low quantile of the rounds is what a machine that does nothing else takes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

_QUANTILE = 0.1
_MIN_ROUNDS, _MAX_ROUNDS = 6, 40
_TURN_SECONDS, _MIN_PASSES, _MAX_PASSES = 2e-3, 3, 20  # of a turn, whose median call counts
_MOST_WAITING = 3  # wall seconds to one of `max_seconds`, where other processes have the rest


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """Seconds of each function in each round, the median of its calls."""

    seconds: Float[np.ndarray, "rounds functions"]

    @property
    def low(self) -> Float[np.ndarray, " functions"]:
        """The tenth percentile of the rounds."""
        return np.quantile(self.seconds, _QUANTILE, axis=0)

    @property
    def noise(self) -> Float[np.ndarray, " functions"]:
        """How far `low` of the even rounds is from that of the odd ones, as a fraction."""
        even, odd = (np.quantile(self.seconds[first::2], _QUANTILE, axis=0) for first in (0, 1))
        return np.abs(even / odd - 1)

    @property
    def drift(self) -> float:
        """How much slower the last third of the rounds was than the first, as a fraction; the median function."""
        third = len(self.seconds) // 3
        first, last = (np.median(rounds, axis=0) for rounds in (self.seconds[:third], self.seconds[-third:]))
        return float(np.median(last / first)) - 1


def time_in_turns(
    functions: Sequence[Callable[[], object]], *, device: torch.device, max_seconds: float, seed: int = 0
) -> Turns:
    """Times each function once a round, for 6 rounds at least, and 40 at most.

    A call that is not timed comes before each that is: another function's data are in the caches. On a CPU and one
    thread, time is that of the thread, of which other processes take nothing; else it is the wall clock's.

    Args:
        functions: Whose work is done when they return, on a GPU as well.
        max_seconds: After which no further round begins; by the wall clock, three times as many at most.
        seed: Of the order in each round.
    """
    clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    rng = np.random.default_rng(seed)

    def seconds_of(function: Callable[[], object], num_passes: int) -> float:
        function()
        times = [clock()]
        for _ in range(num_passes):
            function()
            times.append(clock())
        return float(np.median(np.diff(times)))

    ends, last_end = clock() + max_seconds, time.perf_counter() + _MOST_WAITING * max_seconds
    first = [seconds_of(function, 1) for function in functions]
    passes = [int(np.clip(_TURN_SECONDS / max(took, 1e-9), _MIN_PASSES, _MAX_PASSES)) for took in first]
    rounds = list[np.ndarray]()
    while len(rounds) < _MIN_ROUNDS or (
        len(rounds) < _MAX_ROUNDS and clock() < ends and time.perf_counter() < last_end
    ):
        took = np.empty(len(functions))
        for index in rng.permutation(len(functions)):
            took[index] = seconds_of(functions[index], passes[index])
        rounds.append(took)
    return Turns(seconds=np.stack(rounds))
