"""What the trials of a search taught so far."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cvt_nas.propose.curves import Curves
from cvt_nas.space import Genome

MAX_FITTED = 220  # accuracies to which hyperparameters are fitted


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What a trial taught so far.

    Args:
        curve: Accuracy after each epoch; empty for a trial in flight that reported none, and for one that failed.
        status: `complete`, `stopped`, `running`, or `failed` for whatever ended without an accuracy.
        epoch_seconds: Mean of its epochs; None where it is not known.
        inherited: Accuracy before any training of its own, with weights of a supernet.
    """

    genome: Genome
    curve: tuple[float, ...]
    status: str
    epoch_seconds: float | None = None
    inherited: float | None = None


def curves_of(
    observations: Sequence[Observation], features: np.ndarray, num_epochs: int, *, num_beliefs: int = 0
) -> Curves:
    """The accuracies of all trials after each of their epochs, a row of `features` each; after epoch 0 what they
    inherited.

    A failed trial counts as the worst that was trained in full. Accuracies are not taken for less than twice as far
    below the median of their epoch as the best is above it: how bad the worst are is nothing that a search has to know.
    """
    known = [
        (trial, epoch, accuracy)
        for trial, o in enumerate(observations)
        for epoch, accuracy in enumerate((o.inherited, *o.curve[:num_epochs]))
        if accuracy is not None
    ]
    trials, epochs = (np.array([each[place] for each in known], dtype=int) for place in (0, 1))
    values = np.array([accuracy for *_, accuracy in known], dtype=float)
    finals = values[epochs == num_epochs]
    failed = np.array(
        [index for index, o in enumerate(observations) if o.status == "failed" and not o.curve], dtype=int
    )
    if len(finals):
        trials = np.concatenate([trials, failed])
        epochs = np.concatenate([epochs, np.full(len(failed), num_epochs)])
        values = np.concatenate([values, np.full(len(failed), finals.min())])
    spread = _spread(finals) if len(finals) else 0.0
    for epoch in np.unique(epochs):
        there = epochs == epoch
        lowest = np.median(values[there]) - 2 * max(_spread(values[there]), spread)
        values[there] = np.maximum(values[there], lowest)
    return Curves(
        features=features, trials=trials, epochs=epochs, values=values, num_epochs=num_epochs, num_beliefs=num_beliefs
    )


def _spread(values: np.ndarray) -> float:
    return float(values.max() - np.median(values))


def most_telling(curves: Curves, limit: int, rng: np.random.Generator) -> np.ndarray:
    """As many of the observations as a model can take: the last of each trial first, then the first epochs, at
    growing distances; of trials that went equally far, in random order."""
    num_known = len(curves.values)
    if num_known <= limit:
        return np.arange(num_known)
    last = np.zeros(len(curves.features), dtype=int)
    np.maximum.at(last, curves.trials, curves.epochs)
    turn = rng.permutation(len(last))[curves.trials]
    steps = _fibonacci(curves.num_epochs)
    rank = np.searchsorted(steps, curves.epochs).astype(float)
    rank[~np.isin(curves.epochs, steps)] += len(steps)
    rank[curves.epochs == last[curves.trials]] = -1
    order = np.lexsort((turn, -last[curves.trials], rank))
    return np.sort(order[:limit])


def _fibonacci(last: int) -> np.ndarray:
    """0, 1, 2, 3, 5, 8 and so on up to `last`."""
    numbers = [0, 1, 2]
    while numbers[-1] < last:
        numbers.append(numbers[-1] + numbers[-2])
    return np.array([number for number in numbers if number <= last])
