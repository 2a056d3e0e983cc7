"""How a space was narrowed while its supernet was trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from pydantic import TypeAdapter

from cvt_nas.results.parsing import parse_json


@dataclass(frozen=True, kw_only=True, slots=True)
class DroppedOption:
    """An option of a choice that is proposed no more: it was behind the best one by `contribution` in accuracy, at
    equal cost."""

    gene: str
    option: int | float | str
    contribution: float


@dataclass(frozen=True, kw_only=True, slots=True)
class NarrowingStep:
    """What came of one part of the training, until `last_epoch` on these classes: what was `dropped` after it, the
    least contribution first, nothing after a warm-up; and how many architectures are left, as genomes."""

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
    """The record of it, as far as it has come.

    Args:
        class_order: Indices, the easiest first.
        class_curves: Accuracy of each class after each epoch of the training that they were put in order by.
        kept: Of every gene's name, the indices of the options that are left.
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
        """Inverse of `to_json`. Raises RunFolderError where `text` is no such record; `where` names it."""
        return parse_json(_NARROWING, text, where)


_NARROWING = TypeAdapter(Narrowing)
