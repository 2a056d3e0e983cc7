"""How a space was narrowed while its supernet was trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from pydantic import TypeAdapter

from cvt_nas.results.parsing import parse_json


@dataclass(frozen=True, kw_only=True, slots=True)
class DroppedOption:
    """An option that is no longer proposed.

    Args:
        contribution: Accuracy of this option less that of the best one, at equal cost. A fraction.
    """

    gene: str
    option: int | float | str
    contribution: float


@dataclass(frozen=True, kw_only=True, slots=True)
class NarrowingStep:
    """One part of the training.

    Args:
        last_epoch: Its last epoch.
        classes: Indices of the classes that it trained on.
        dropped: Options that were dropped after it, the least contribution first. None are dropped after a warm-up.
        num_left: Number of genomes that are left.
    """

    last_epoch: int
    classes: tuple[int, ...]
    dropped: tuple[DroppedOption, ...]
    num_left: int

    def describe(self) -> str:
        """`epoch 6, 3 classes: 12 options dropped, 2,304 architectures left`."""
        done = f"{len(self.dropped)} options dropped, " if self.dropped else ""
        return f"epoch {self.last_epoch}, {len(self.classes)} classes: {done}{self.num_left:,} architectures left"


@dataclass(frozen=True, kw_only=True, slots=True)
class Narrowing:
    """The record of a narrowing that may still go on.

    Args:
        class_order: Indices of the classes, the easiest first.
        class_curves: Accuracy of each class after each epoch of the training that gave this order.
        kept: Indices of the options that are left, by the name of the gene.
    """

    class_order: tuple[int, ...]
    class_curves: tuple[tuple[float, ...], ...]
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    steps: tuple[NarrowingStep, ...] = ()

    def after(self, step: NarrowingStep, kept: Mapping[str, tuple[int, ...]]) -> Self:
        return replace(self, kept=dict(kept), steps=(*self.steps, step))

    def to_json(self) -> str:
        return _NARROWING.dump_json(self, indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> "Narrowing":
        """Inverse of `to_json`. Raises RunFolderError, which names `where`, if `text` is not such a record."""
        return parse_json(_NARROWING, text, where)


_NARROWING = TypeAdapter(Narrowing)
