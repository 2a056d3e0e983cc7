"""The front again, by trainings with further seeds: which are planned, and what their means say."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cvt_nas.latency import Int8Runtime
from cvt_nas.results.pareto import is_non_dominated, losses_of
from cvt_nas.results.trial import DIGITS, Confirmation, Metric, TrialResult, further_number


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmPlan:
    """Which architectures are trained again.

    Args:
        top: The setting of the space file.
        seeds: Number of rounds. Each round trains every member once.
        members: Numbers of the trials, in the order of training.
        runtime: Runtime in whose int8 each further training is judged. None for fp32.
    """

    top: Literal["front"] | int
    seeds: int
    members: tuple[int, ...]
    runtime: Int8Runtime | None = None

    @property
    def numbers(self) -> list[int]:
        """Numbers of all further trainings, round by round. If the search ends early, all members have as many seeds,
        up to one."""
        return [further_number(member, index + 1) for index in range(self.seeds) for member in self.members]


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedInInt8:
    """An architecture that is left out of the front in int8, since int8 failed for a further training of it.

    The mean of its other trainings would be selected for those that int8 does not harm, so it does not compete.

    Args:
        trial: Its trial in the race.
        trainings: Its further trainings that reached the last epoch, with their figures in fp32 and int8.
    """

    trial: TrialResult
    trainings: tuple[TrialResult, ...]

    @property
    def failed(self) -> list[TrialResult]:
        """The further trainings for which int8 failed."""
        return [training for training in self.trainings if training.int8 is not None and training.int8.faults]

    def describe(self) -> str:
        """One line for people, with the figures of the first failure."""
        first = self.failed[0].int8
        assert first is not None, "it was judged"
        score = first.judgement.score
        figures = "".join(
            f"; {judged.score:.4f} in {judged.runtime}" for judged in first.judgement.judged if judged.score is not None
        )
        return (
            f"trial {self.trial.number} ({self.trial.arch_id}) failed in int8 in {len(self.failed)} of "
            f"{len(self.trainings)} further trainings, and is left out of the front: {'; '.join(first.faults)} "
            f"({score:.4f} in fp32{figures})"
        )

    def to_json(self) -> dict[str, object]:
        """Plain values, in the names that scripts rely on."""
        return {
            "number": self.trial.number,
            "arch_id": self.trial.arch_id,
            "trainings": [
                {"number": training.number, "accuracy": training.accuracy, "int8": training.int8.to_json()}
                for training in self.trainings
                if training.int8 is not None
            ],
        }


def failed_in_int8(trials: Iterable[TrialResult], further: Iterable[TrialResult]) -> list[FailedInInt8]:
    """The trials that `confirm` leaves out because of int8, in the order of `trials`. Arguments are those of
    `confirm`."""
    complete = _complete_by_arch(further)
    found = [FailedInInt8(trial=trial, trainings=tuple(complete.get(trial.arch_id, ()))) for trial in trials]
    return [each for each in found if each.trial.status == "complete" and each.failed]


def confirm(
    trials: Iterable[TrialResult], further: Iterable[TrialResult], runtime: Int8Runtime | None = None
) -> list[TrialResult]:
    """The trials whose architectures were trained again, each with its `Confirmation` and its mean as accuracy.

    The trial's own accuracy is not part of the mean. It was selected for being high, so it is biased upwards. The
    further seeds had no part in the selection. A front of means selects once more, among few networks, so its means are
    still a little optimistic.

    Args:
        further: Trainings of their architectures, of any status.
        runtime: Runtime in whose int8 the complete ones were judged; their accuracies in int8 then count. None for
            their accuracies in fp32.

    Returns:
        In the order of `trials`. A trial is left out if none of its further trainings reached the last epoch, or if
        int8 failed for one of them; see `FailedInInt8`.
    """
    further = list(further)
    numbers, complete = Counter(result.arch_id for result in further), _complete_by_arch(further)
    confirmed = []
    for trial in trials:
        trainings = complete.get(trial.arch_id, [])
        if trial.status != "complete" or not trainings:
            continue
        num_lost = numbers[trial.arch_id] - len(trainings)
        in_fp32 = tuple(sorted(result.metric("accuracy") for result in trainings))
        confirmation = Confirmation(accuracies=in_fp32, num_lost=num_lost)
        if runtime is not None:
            in_int8 = [accuracy for result in trainings if (accuracy := _sound_accuracy(result, runtime)) is not None]
            if len(in_int8) < len(trainings):
                continue
            confirmation = Confirmation(
                accuracies=tuple(sorted(in_int8)), num_lost=num_lost, runtime=runtime, in_fp32=in_fp32
            )
        confirmed.append(dataclasses.replace(trial, accuracy=confirmation.mean, confirmation=confirmation))
    return confirmed


def _complete_by_arch(further: Iterable[TrialResult]) -> dict[str, list[TrialResult]]:
    complete: dict[str, list[TrialResult]] = {}
    for result in further:
        if result.status == "complete":
            complete.setdefault(result.arch_id, []).append(result)
    return complete


def _sound_accuracy(result: TrialResult, runtime: Int8Runtime) -> float | None:
    """Accuracy of a training in int8. None if int8 failed."""
    found = result.int8
    assert found is not None, "a training that was not judged has not ended"
    assert found.runtime == runtime, "it was judged as the plan asks"
    return None if found.faults else found.accuracy


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
