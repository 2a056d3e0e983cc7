"""Trials as values: proposed, under way, and ended."""

from dataclasses import dataclass
from typing import Protocol

from cvt_nas.arch import Cost
from cvt_nas.results import Prediction, Status
from cvt_nas.space import Genome


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """An architecture to train, feasible and new.

    Args:
        seed: Of its training.
        predicted: What the surrogate expects of it; None if the surrogate did not choose it.
    """

    number: int
    genome: Genome
    cost: Cost
    seed: int
    predicted: Prediction | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PartialTrial:
    """How far a trial came that has not ended: `seconds` were spent on it, `train_seconds` of them in epochs."""

    proposal: Proposal
    curve: tuple[float, ...]
    seconds: float
    train_seconds: float


class Ended(Protocol):
    """How a trial ended; a `TrialResult` is one."""

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
