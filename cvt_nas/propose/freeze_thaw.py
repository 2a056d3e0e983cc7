"""Freezing and thawing: after each epoch, the network with the greatest value per remaining epoch gets the worker.

The value of a network is its expected addition to the hypervolume of the front. For a new network, it is divided by
the epochs of a full training. For a paused or running trial, it is divided by the epochs that the trial has left. A
running trial keeps its worker unless another network is worth more by a margin. The margin is wide while little is
known. The trials of the initial design are trained in full, so that the model learns from them how curves go on.

Source: Swersky et al. 2014, arXiv:1406.3896, for freezing and thawing of curves with one objective.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from cvt_nas.propose.asha import Decision
from cvt_nas.propose.observations import Observation
from cvt_nas.propose.study import PartialTrial, Study

_MARGIN = 40.0  # multiplied by the epochs of a full training, and divided by all epochs so far
# Hypervolume over the epochs of a full training. Once no new trial begins, a paused trial goes on only if it is
# expected to gain as much for each epoch that is left.
_WORTH = 1e-4


class FreezeThaw:
    """Decides which trials go on, by the model of the study.

    Args:
        num_epochs: Number of epochs of a full training.
    """

    def __init__(self, study: Study, *, num_epochs: int) -> None:
        self._study, self._num_epochs = study, num_epochs
        self._paused: set[int] = set()

    def take_over(self, trial: PartialTrial, *, is_paused: bool) -> Decision:
        """Decides about a trial that an earlier process paused, or had in flight.

        A process can end between the report of an epoch and the decision, so the decision is made again.
        """
        if is_paused:
            self._paused.add(trial.proposal.number)
            return "pause"
        is_between = 0 < len(trial.curve) < self._num_epochs
        return self._decide(trial.proposal.number) if is_between else "go"

    def decide(self, trial: PartialTrial) -> Decision:
        """Stores the progress of a trial, and decides whether it goes on."""
        self._study.report(trial)
        return self._decide(trial.proposal.number)

    def _decide(self, number: int) -> Decision:
        observed = self._study.observed()
        if self._study.is_initial(number, observed):
            return "go"
        observed[number] = replace(observed[number], status="stopped")  # it competes as if it had no worker
        new, rates = self._rates(observed, [number, *sorted(self._paused)])
        margin = _MARGIN * self._num_epochs / sum(len(o.curve) for o in observed.values())
        if rates[0] * (1 + margin) >= max(new, *rates[1:], 0.0):
            return "go"
        self._paused.add(number)
        return "pause"

    def promote(self) -> int | None:
        """The paused trial that is worth the most, recorded as gone on. None if a new trial is worth more."""
        observed, waiting = self._study.observed(), sorted(self._paused)
        if not waiting or self._study.next_is_initial(observed):
            return None
        new, rates = self._rates(observed, waiting)
        best = int(np.argmax(rates))
        if rates[best] < max(new, _WORTH / self._num_epochs):
            return None
        self._paused.remove(waiting[best])
        return waiting[best]

    @property
    def num_promotable(self) -> int:
        """Number of paused trials that go on as soon as a worker is free, once no new trial begins."""
        waiting = sorted(self._paused)
        if not waiting:
            return 0
        _, rates = self._rates(self._study.observed(), waiting)
        return int((rates >= _WORTH / self._num_epochs).sum())

    def _rates(self, observed: Mapping[int, Observation], numbers: Sequence[int]) -> tuple[float, np.ndarray]:
        """Expected addition to the hypervolume per remaining epoch.

        Returns:
            The rate of the next new trial, below 0 if there is none, and the rates of the trials in `numbers`.
        """
        new, gains = self._study.gains(observed, numbers)
        left = self._num_epochs - np.array([len(observed[number].curve) for number in numbers])
        return new / self._num_epochs, gains / left
