"""Architectures that are ranked before the race, by the accuracy that they inherit from the supernet."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from cvt_nas.arch import ArchConfig, Cost, arch_from_dict, arch_to_dict
from cvt_nas.results.trial import Status, check_line, cost_from_json, cost_to_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An architecture that was ranked.

    Args:
        number: Position in the order of proposals. It is not the number of a trial.
        accuracy: Fraction of `num_images` of the search split, with inherited weights.
        num_images: Images that were evaluated. Evaluation ends early once the front is out of reach.
        seconds: Time of extraction, batch-norm calibration and evaluation.
    """

    number: int
    arch: ArchConfig
    cost: Cost
    accuracy: float
    num_images: int
    seconds: float

    # The part of `TrialResult` that a study reads.

    @property
    def status(self) -> Status:
        return "complete"

    @property
    def epochs(self) -> int:
        return 0

    @property
    def curve(self) -> tuple[float, ...]:
        return (self.accuracy,)

    @property
    def reason(self) -> str | None:
        return None

    def to_json(self) -> dict[str, object]:
        return {
            "number": self.number,
            "arch_id": self.arch.id,
            "arch": arch_to_dict(self.arch),
            "accuracy": self.accuracy,
            "num_images": self.num_images,
            **cost_to_json(self.cost),
            "seconds": round(self.seconds, 3),
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        check_line(tree)
        return cls(
            number=tree["number"],
            arch=arch_from_dict(tree["arch"]),
            cost=cost_from_json(tree),
            accuracy=tree["accuracy"],
            num_images=tree["num_images"],
            seconds=tree["seconds"],
        )
