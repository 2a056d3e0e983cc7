"""Compares how each choice changes inherited accuracy with how it changes accuracy after training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

MAX_P = 0.05


class Choice(NamedTuple):
    """A choice of a space, and its option in each architecture.

    Args:
        options: Options in words.
        is_ordinal: Whether accuracy is assumed to rise or fall with the order of the options.
        chosen: Index of the option of each architecture.
        active: Whether the choice has an effect on each architecture. A choice of a block has none without the block.
    """

    name: str
    options: tuple[str, ...]
    is_ordinal: bool
    chosen: Int[np.ndarray, " archs"]
    active: Bool[np.ndarray, " archs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceEffect:
    """How a choice changes inherited accuracy, and accuracy after a training of its own.

    Args:
        option, instead_of: Options in words. For a choice without an order, `instead_of` is `others`.
        alone, inherited: Change of each accuracy by `option`, at the same FLOPs, as a fraction.
        p_value: P-value of the hypothesis that both changes are the same, corrected for the number of choices by Holm's
            method.
        alone_sd, inherited_sd: Standard errors of the changes. None in files of earlier versions.
    """

    choice: str
    option: str
    instead_of: str
    alone: float
    inherited: float
    p_value: float
    alone_sd: float | None = None
    inherited_sd: float | None = None

    @property
    def is_misjudged(self) -> bool:
        """Whether the two changes differ beyond chance."""
        return self.p_value < MAX_P


def choice_effects(
    inherited: Float[np.ndarray, " archs"],
    standalone: Float[np.ndarray, " archs"],
    flops: Sequence[int],
    choices: Sequence[Choice],
) -> tuple[ChoiceEffect, ...]:
    """The effects of all choices, the lowest p-value first.

    Each choice is tested alone, by a linear model of the difference of both accuracies with log-FLOPs and the choice as
    inputs. So the effect of a choice is its effect among architectures with the same FLOPs. Architectures on which the
    choice has no effect are left out; there it would stand for depth. Choices that all architectures share, or that
    follow from FLOPs, are left out.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70, for the correction.
    """
    found, costs = list[ChoiceEffect](), np.array(flops)
    for choice in choices:
        most, active = len(choice.options) - 1, choice.active
        chosen = choice.chosen[active]
        if choice.is_ordinal or most == 1:
            columns = {(most, choice.options[0]): chosen / max(most, 1)}
        else:
            columns = {(option, "others"): (chosen == option).astype(float) for option in range(most + 1)}
        for (option, instead_of), column in columns.items():
            alone, ours, difference = (
                _slope(values[active], column, costs[active])
                for values in (standalone, inherited, inherited - standalone)
            )
            if alone is None or ours is None or difference is None:
                continue
            found.append(ChoiceEffect(
                choice=choice.name, option=choice.options[option], instead_of=instead_of,
                alone=alone.value, alone_sd=alone.sd, inherited=ours.value, inherited_sd=ours.sd,
                p_value=difference.p_value,
            ))  # fmt: skip
    found.sort(key=lambda each: each.p_value)
    return tuple(_corrected(found))


class _Slope(NamedTuple):
    value: float
    sd: float
    p_value: float


def _slope(values: np.ndarray, column: np.ndarray, flops: np.ndarray) -> _Slope | None:
    """Slope of `values` over `column`, with log-FLOPs as another input. None if it follows from the other inputs."""
    from scipy.stats import t  # the import takes half a second, and workers do not need it

    inputs = np.column_stack([column, np.log(flops), np.ones(len(column))])
    weights, _, rank, _ = np.linalg.lstsq(inputs, values, rcond=None)
    num_left = len(values) - inputs.shape[1]
    if rank < inputs.shape[1] or num_left < 1:
        return None
    variance = float(((values - inputs @ weights) ** 2).sum()) / num_left
    slope, sd = float(weights[0]), float(np.sqrt(variance * np.linalg.inv(inputs.T @ inputs)[0, 0]))
    if sd == 0:
        return _Slope(slope, sd, float(abs(slope) < 1e-12))
    return _Slope(slope, sd, 2 * float(t.sf(abs(slope) / sd, num_left)))


def _corrected(found: Sequence[ChoiceEffect]) -> list[ChoiceEffect]:
    """Corrects p-values by Holm's method. `found` is sorted by p-value."""
    corrected, greatest = list[ChoiceEffect](), 0.0
    for place, each in enumerate(found):
        greatest = max(greatest, min(each.p_value * (len(found) - place), 1.0))
        corrected.append(replace(each, p_value=greatest))
    return corrected
