"""Events of a search, which its followers receive."""

from collections.abc import Callable
from dataclasses import dataclass

from cvt_nas.arch import ArchConfig
from cvt_nas.results import Candidate, NarrowingStep, TrialResult


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialStarted:
    """A trial was given to a worker. The event is repeated after each pause and each death of its worker."""

    number: int
    arch: ArchConfig
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochDone:
    """A trial finished an epoch. The event comes once an epoch, even if the worker dies.

    Args:
        note: How batches are cut to fit the device.
    """

    number: int
    epoch: int
    accuracy: float
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialPaused:
    """A trial waits at its rung. It may be promoted later."""

    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmationStarted:
    """The race is over, and the best architectures are trained again. The events that follow belong to these trainings.

    Args:
        num_planned: Number of further trainings.
        ended: Those that ended in earlier processes.
    """

    num_planned: int
    ended: tuple[TrialResult, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SupernetEpochDone:
    """The shared weights were trained for another epoch.

    Args:
        losses: Mean loss of each kind of subnet.
        note: How batches are cut to fit the devices.
    """

    epoch: int
    num_epochs: int
    losses: dict[str, float]
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OptionsDropped:
    """A part of the training of shared weights is over, and the worst options are dropped."""

    step: NarrowingStep


@dataclass(frozen=True, kw_only=True, slots=True)
class RankingStarted:
    """The shared weights are trained. Candidates follow until the first trial starts.

    Args:
        num_planned: Number of candidates.
        ended: Those that earlier processes ranked.
    """

    num_planned: int
    ended: tuple[Candidate, ...]


RaceEvent = (
    SupernetEpochDone
    | OptionsDropped
    | RankingStarted
    | Candidate
    | TrialStarted
    | EpochDone
    | TrialPaused
    | TrialResult
    | ConfirmationStarted
)
Follower = Callable[[RaceEvent], None]


def following(*followers: Follower) -> Follower:
    """One follower that tells all of `followers`, in this order."""

    def tell(event: RaceEvent) -> None:
        for follower in followers:
            follower(event)

    return tell
