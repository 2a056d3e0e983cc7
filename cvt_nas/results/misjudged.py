"""Which choices a supernet misjudges: what each changes in accuracy, inherited and after a training of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

MAX_P = 0.05


class Choice(NamedTuple):
    """One choice of a space, as architectures made it.

    Args:
        options: In words.
        is_ordinal: Whether accuracy may be taken to rise or fall with the options in their order.
        chosen: Index of the option of each architecture.
    """

    name: str
    options: tuple[str, ...]
    is_ordinal: bool
    chosen: Int[np.ndarray, " archs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Misjudged:
    """A choice by which inherited accuracy changes otherwise than that of a training of its own.

    Args:
        option, instead_of: In words; of a choice without an order, `instead_of` is `others`.
        alone, inherited: Change of accuracy by `option`, at the same FLOPs; fractions.
        p_value: Of both being the same, corrected for the number of choices by Holm's method.
    """

    choice: str
    option: str
    instead_of: str
    alone: float
    inherited: float
    p_value: float


def misjudged_choices(
    inherited: Float[np.ndarray, " archs"],
    standalone: Float[np.ndarray, " archs"],
    flops: Sequence[int],
    choices: Sequence[Choice],
) -> tuple[Misjudged, ...]:
    """The choices that are misjudged beyond chance, the surest first.

    Each choice is looked at by itself: a linear model of the difference between both accuracies has log-FLOPs and the
    choice. So what a choice changes is what it changes among architectures that cost as much.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70, for the correction.
    """
    found = list[Misjudged]()
    for choice in choices:
        most = len(choice.options) - 1
        if choice.is_ordinal or most == 1:
            effects = {(most, choice.options[0]): choice.chosen / max(most, 1)}
        else:
            effects = {(option, "others"): (choice.chosen == option).astype(float) for option in range(most + 1)}
        for (option, instead_of), column in effects.items():
            if np.ptp(column) > 0:
                alone, _ = _slope(standalone, column, flops)
                ours, _ = _slope(inherited, column, flops)
                _, p_value = _slope(inherited - standalone, column, flops)
                found.append(Misjudged(
                    choice=choice.name, option=choice.options[option], instead_of=instead_of,
                    alone=alone, inherited=ours, p_value=p_value,
                ))  # fmt: skip
    found.sort(key=lambda each: each.p_value)
    return tuple(each for each in _corrected(found) if each.p_value < MAX_P)


def _slope(values: np.ndarray, column: np.ndarray, flops: Sequence[int]) -> tuple[float, float]:
    """Of `values` on `column` beside log-FLOPs, and the p-value of there being none."""
    from scipy.stats import t  # half a second, which workers need not wait

    inputs = np.column_stack([column, np.log(flops), np.ones(len(column))])
    weights, _, rank, _ = np.linalg.lstsq(inputs, values, rcond=None)
    num_left = len(values) - inputs.shape[1]
    if rank < inputs.shape[1] or num_left < 1:  # the choice follows from FLOPs
        return 0.0, 1.0
    variance = float(((values - inputs @ weights) ** 2).sum()) / num_left
    sd = float(np.sqrt(variance * np.linalg.inv(inputs.T @ inputs)[0, 0]))
    if sd == 0:
        return float(weights[0]), float(abs(weights[0]) < 1e-12)
    return float(weights[0]), 2 * float(t.sf(abs(weights[0]) / sd, num_left))


def _corrected(found: Sequence[Misjudged]) -> list[Misjudged]:
    """With p-values by Holm's method, of some in the order of theirs."""
    corrected, greatest = list[Misjudged](), 0.0
    for place, each in enumerate(found):
        greatest = max(greatest, min(each.p_value * (len(found) - place), 1.0))
        corrected.append(replace(each, p_value=greatest))
    return corrected
