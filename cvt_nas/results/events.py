"""What happens in a search, as it is told to whoever follows it."""

from collections.abc import Callable
from dataclasses import dataclass

from cvt_nas.arch import ArchConfig
from cvt_nas.results import Candidate, NarrowingStep, TrialResult


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialStarted:
    """A trial was handed to a worker; again after each pause, and each death of its worker."""

    number: int
    arch: ArchConfig
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochDone:
    """A trial finished an epoch and reported it; told once, whatever becomes of its worker. A `note` says how batches
    are cut to fit its device."""

    number: int
    epoch: int
    accuracy: float
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialPaused:
    """A trial waits at its rung, and may be promoted later."""

    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmationStarted:
    """The race is over, and the best of it is trained again: what follows is of `num_planned` further trainings, of
    which `ended` did so in earlier processes."""

    num_planned: int
    ended: tuple[TrialResult, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SupernetEpochDone:
    """The shared weights were trained for another epoch, with these `losses` of each kind of subnet. A `note` says how
    batches are cut to fit the devices."""

    epoch: int
    num_epochs: int
    losses: dict[str, float]
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OptionsDropped:
    """A part of the training of shared weights is over, and what it spoke against is dropped."""

    step: NarrowingStep


@dataclass(frozen=True, kw_only=True, slots=True)
class RankingStarted:
    """The shared weights are trained; what follows, until a trial starts, are `num_planned` candidates, of which
    earlier processes ranked `ended`."""

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
    """All of them as one, told in this order."""

    def tell(event: RaceEvent) -> None:
        for follower in followers:
            follower(event)

    return tell
