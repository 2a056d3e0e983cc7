"""Observations: what a model learns from the trials of a search."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cvt_nas.propose.curves import Curves
from cvt_nas.space import Genome

MAX_FITTED = 220  # greatest number of accuracies to which hyperparameters are fitted


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What a model learns from a trial.

    Args:
        curve: Accuracy after each epoch. It is empty for a trial in flight without a report, and for a failed trial.
        status: `complete`, `stopped`, `running`, or `failed` for a trial that ended without an accuracy.
        epoch_seconds: Mean seconds of an epoch; None if it is not known.
        inherited: Accuracy with weights of a supernet, before any training of its own.
    """

    genome: Genome
    curve: tuple[float, ...]
    status: str
    epoch_seconds: float | None = None
    inherited: float | None = None


def curves_of(
    observations: Sequence[Observation], features: np.ndarray, num_epochs: int, *, num_beliefs: int = 0
) -> Curves:
    """Accuracies of all trials after each of their epochs. Inherited accuracies count as accuracies after epoch 0.

    A failed trial counts as the worst trial that was trained in full, whatever it reached before. Very low accuracies
    are raised to a limit, since a search need not know how bad the worst trials are. The limit lies below the median of
    the epoch, by twice the distance from the median to the best, in this epoch or after full trainings, whichever
    distance is greater.

    Args:
        features: Features of the trials, one row for each.
    """
    known = [
        (trial, epoch, accuracy)
        for trial, o in enumerate(observations)
        for epoch, accuracy in enumerate((o.inherited, *o.curve[:num_epochs]))
        if accuracy is not None and (o.status != "failed" or epoch == 0)
    ]
    trials, epochs = (np.array([each[place] for each in known], dtype=int) for place in (0, 1))
    values = np.array([accuracy for *_, accuracy in known], dtype=float)
    finals = values[epochs == num_epochs]
    failed = np.array([index for index, o in enumerate(observations) if o.status == "failed"], dtype=int)
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
    """Chooses the `limit` most informative observations, and returns their indices.

    The last observation of each trial comes first. Then come early epochs at growing distances. So the inherited
    accuracies of trained networks come before those of the others. Trials that went equally far are in random order.
    """
    num_known = len(curves.values)
    if num_known <= limit:
        return np.arange(num_known)
    last = np.zeros(len(curves.features), dtype=int)
    np.maximum.at(last, curves.trials, curves.epochs)
    turn = rng.permutation(len(last))[curves.trials]
    steps = _fibonacci(curves.num_epochs)
    rank = np.searchsorted(steps, curves.epochs).astype(float)
    rank[~np.isin(curves.epochs, steps)] += len(steps)
    rank[(curves.epochs == last[curves.trials]) & (curves.epochs > 0)] = -1
    order = np.lexsort((turn, -last[curves.trials], rank))
    return np.sort(order[:limit])


def _fibonacci(last: int) -> np.ndarray:
    """The numbers 0, 1, 2, 3, 5, 8 and so on, up to `last`."""
    numbers = [0, 1, 2]
    while numbers[-1] < last:
        numbers.append(numbers[-1] + numbers[-2])
    return np.array([number for number in numbers if number <= last])
