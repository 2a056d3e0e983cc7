"""The front again, by trainings with further seeds: which are planned, and what their means say."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cvt_nas.results.pareto import is_non_dominated, losses_of
from cvt_nas.results.trial import DIGITS, Confirmation, Metric, TrialResult, further_number


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmPlan:
    """Which architectures are trained again.

    Args:
        top: The setting of the space file.
        seeds: Number of rounds. Each round trains every member once.
        members: Numbers of the trials, in the order of training.
    """

    top: Literal["front"] | int
    seeds: int
    members: tuple[int, ...]

    @property
    def numbers(self) -> list[int]:
        """Numbers of all further trainings, round by round. If the search ends early, all members have as many seeds,
        up to one."""
        return [further_number(member, index + 1) for index in range(self.seeds) for member in self.members]


def confirm(trials: Iterable[TrialResult], further: Iterable[TrialResult]) -> list[TrialResult]:
    """The trials whose architectures were trained again, each with its `Confirmation` and its mean as accuracy.

    The trial's own accuracy is not part of the mean. It was selected for being high, so it is biased upwards. The
    further seeds had no part in the selection. A front of means selects once more, among few networks, so its means are
    still a little optimistic.

    Args:
        further: Trainings of their architectures, of any status.

    Returns:
        In the order of `trials`. A trial is left out if none of its further trainings reached the last epoch.
    """
    by_arch: dict[str, list[TrialResult]] = {}
    for result in further:
        by_arch.setdefault(result.arch_id, []).append(result)
    confirmed = []
    for trial in trials:
        trainings = by_arch.get(trial.arch_id, [])
        accuracies = sorted(result.metric("accuracy") for result in trainings if result.status == "complete")
        if trial.status == "complete" and accuracies:
            confirmation = Confirmation(accuracies=tuple(accuracies), num_lost=len(trainings) - len(accuracies))
            confirmed.append(dataclasses.replace(trial, accuracy=confirmation.mean, confirmation=confirmation))
    return confirmed


def with_memberships(
    confirmed: Sequence[TrialResult], metrics: Sequence[Metric], *, num_resamples: int = 1_000, seed: int = 0
) -> tuple[TrialResult, ...]:
    """`confirmed`, each with the share of bootstrap resamples in which it is on the front of means.

    A resample draws the seeds of every architecture with replacement. With few seeds, the share is overconfident: the
    standard deviation of n seeds is too small by a factor of sqrt(1 - 1/n). In simulated races with three seeds, one in
    nine to one in six of the architectures with a share of 0 was truly on the front. With five seeds, it was one in
    fourteen or fewer (benchmarks/confirmation.py, which also compares other ways to resample).

    Args:
        confirmed: Result of `confirm`. Its order does not change the shares.

    Returns:
        In the order of `confirmed`. The share is None for an architecture with one seed, since resampling says nothing
        about it. The others still compete with its accuracy.

    Source: Efron 1979, doi:10.1214/aos/1176344552, for the bootstrap.
    """
    rng = np.random.default_rng(seed)
    ordered = sorted(confirmed, key=lambda result: result.arch_id)
    losses, on_front = losses_of(ordered, metrics), np.zeros(len(ordered), dtype=int)
    column = list(metrics).index("accuracy")
    draws = np.zeros((num_resamples, len(ordered)))
    for index, result in enumerate(ordered):
        assert result.confirmation is not None, "only what was trained again has seeds to resample"
        accuracies = np.array(result.confirmation.accuracies)
        chosen = rng.integers(len(accuracies), size=(num_resamples, len(accuracies)))
        draws[:, index] = accuracies[chosen].mean(axis=1)
    draws = draws.round(DIGITS)
    for draw in draws:
        losses[:, column] = -draw
        on_front += is_non_dominated(losses)
    shares = {result.arch_id: int(count) / num_resamples for result, count in zip(ordered, on_front, strict=True)}
    return tuple(_with_membership(result, shares[result.arch_id]) for result in confirmed)


def _with_membership(result: TrialResult, share: float) -> TrialResult:
    found = result.confirmation
    assert found is not None
    membership = None if found.sd is None else share
    return dataclasses.replace(result, confirmation=dataclasses.replace(found, membership=membership))
