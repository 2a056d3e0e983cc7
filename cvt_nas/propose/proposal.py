"""Values for trials that are proposed, unfinished or ended."""

from dataclasses import dataclass
from typing import Protocol

from cvt_nas.arch import Cost
from cvt_nas.results import Prediction, Status
from cvt_nas.space import Genome


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """An architecture to train. It is feasible and new.

    Args:
        seed: Seed of its training.
        predicted: Prediction of the surrogate; None if the surrogate did not choose it.
    """

    number: int
    genome: Genome
    cost: Cost
    seed: int
    predicted: Prediction | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PartialTrial:
    """Progress of a trial that has not ended. `seconds` were spent on it, of which `train_seconds` were in epochs."""

    proposal: Proposal
    curve: tuple[float, ...]
    seconds: float
    train_seconds: float


class Ended(Protocol):
    """Protocol of an ended trial, such as `TrialResult`."""

    @property
    def number(self) -> int: ...
    @property
    def status(self) -> Status: ...
    @property
    def epochs(self) -> int: ...
    @property
    def curve(self) -> tuple[float, ...]: ...
    @property
    def cost(self) -> Cost: ...
    @property
    def reason(self) -> str | None: ...
