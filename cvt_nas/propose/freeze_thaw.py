"""Freezing and thawing: after each epoch, whoever promises the most for the epochs that are left to it gets the worker.

A new network is worth what it is expected to add to the front's hypervolume, divided by the epochs of a full training;
a paused or running one, what it is expected to add, divided by the epochs that are left to it. A running trial keeps
its worker unless another one is worth more by a margin, which is wide as long as little is known. The trials of the
initial design are trained in full: from them, the model learns how curves go on.

Source: Swersky et al. 2014, arXiv:1406.3896, for freezing and thawing of curves with one objective.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from cvt_nas.propose.asha import Decision
from cvt_nas.propose.observations import Observation
from cvt_nas.propose.study import PartialTrial, Study

_MARGIN = 40.0  # times the epochs of a full training, over the epochs spent so far
_WORTH = 1e-4  # of the hypervolume; what promises less is not trained on once no new trial begins


class FreezeThaw:
    """Who goes on, as the study's own model expects.

    Args:
        num_epochs: Of a full training.
    """

    def __init__(self, study: Study, *, num_epochs: int) -> None:
        self._study, self._num_epochs = study, num_epochs
        self._paused: set[int] = set()

    def take_over(self, trial: PartialTrial, *, is_paused: bool) -> Decision:
        """What becomes of a trial that an earlier process paused, or had in flight: a process can end between an
        epoch's report and the decision, so it is taken again."""
        if is_paused:
            self._paused.add(trial.proposal.number)
            return "pause"
        is_between = 0 < len(trial.curve) < self._num_epochs
        return self._decide(trial.proposal.number) if is_between else "go"

    def decide(self, trial: PartialTrial) -> Decision:
        """Keeps how far a trial has come, and says whether it goes on."""
        self._study.report(trial)
        return self._decide(trial.proposal.number)

    def _decide(self, number: int) -> Decision:
        observed = self._study.observed()
        if self._study.is_initial(number, observed):
            return "go"
        observed[number] = replace(observed[number], status="stopped")  # it competes for its worker as if it had none
        new, rates = self._rates(observed, [number, *sorted(self._paused)])
        margin = _MARGIN * self._num_epochs / sum(len(o.curve) for o in observed.values())
        if rates[0] * (1 + margin) >= max(new, *rates[1:], 0.0):
            return "go"
        self._paused.add(number)
        return "pause"

    def promote(self) -> int | None:
        """The paused trial that is worth the most, where it is worth more than a new one; it counts as gone on."""
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
        """Paused trials that go on as soon as a worker is free, once no new trial begins."""
        waiting = sorted(self._paused)
        if not waiting:
            return 0
        _, rates = self._rates(self._study.observed(), waiting)
        return int((rates >= _WORTH / self._num_epochs).sum())

    def _rates(self, observed: Mapping[int, Observation], numbers: Sequence[int]) -> tuple[float, np.ndarray]:
        """What the next new trial and each of these are expected to add to the hypervolume, for each epoch of their
        own; less than nothing where there is no new one."""
        new, gains = self._study.gains(observed, numbers)
        left = self._num_epochs - np.array([len(observed[number].curve) for number in numbers])
        return new / self._num_epochs, gains / left
