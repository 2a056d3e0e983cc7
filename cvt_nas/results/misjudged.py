"""Finds choices that a supernet misjudges: they change inherited accuracy differently from accuracy after training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

MAX_P = 0.05


class Choice(NamedTuple):
    """A choice of a space, and its option in each architecture.

    Args:
        options: Options in words.
        is_ordinal: Whether accuracy is assumed to rise or fall with the order of the options.
        chosen: Index of the option of each architecture.
    """

    name: str
    options: tuple[str, ...]
    is_ordinal: bool
    chosen: Int[np.ndarray, " archs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Misjudged:
    """A choice that changes inherited accuracy differently from accuracy after a training of its own.

    Args:
        option, instead_of: Options in words. For a choice without an order, `instead_of` is `others`.
        alone, inherited: Change of each accuracy by `option`, at the same FLOPs, as a fraction.
        p_value: P-value of the hypothesis that both changes are the same, corrected for the number of choices by Holm's
            method.
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
    """The choices that are misjudged beyond chance, the lowest p-value first.

    Each choice is tested alone, by a linear model of the difference of both accuracies with log-FLOPs and the choice as
    inputs. So the effect of a choice is its effect among architectures with the same FLOPs.

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
    """Slope of `values` over `column`, with log-FLOPs as another input, and the p-value of no slope."""
    from scipy.stats import t  # the import takes half a second, and workers do not need it

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
    """Corrects p-values by Holm's method. `found` is sorted by p-value."""
    corrected, greatest = list[Misjudged](), 0.0
    for place, each in enumerate(found):
        greatest = max(greatest, min(each.p_value * (len(found) - place), 1.0))
        corrected.append(replace(each, p_value=greatest))
    return corrected
