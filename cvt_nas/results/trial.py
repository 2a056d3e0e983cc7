"""One trial as it ended, and what further trainings of its architecture reached."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from cvt_nas.arch import ArchConfig, Cost, arch_from_dict, arch_to_dict
from cvt_nas.results.parsing import first_problem

Metric = Literal["accuracy", "params", "flops", "latency_ms"]
Status = Literal["complete", "stopped", "diverged", "failed", "oom"]

# A million trials would take longer than anyone waits, and in decimals the two parts can be read off.
_ROUND = 1_000_000


# What a resumed search tries again: its cause may be gone, as a full device or a damaged image.
FAILURES: frozenset[Status] = frozenset({"failed", "oom"})

# What of a record says how batches were cut to fit a device.
ROOM = ("micro_batch", "activation_checkpointing")

# Of means, so that equal ones are equal, whatever they are sums of.
DIGITS = 12


class _Line(TypedDict, total=False):
    """The plain values of a line of a record."""

    number: int
    params: int
    flops: int
    latency_ms: float
    status: Status
    epochs: int
    accuracy: float | None
    num_images: int
    curve: list[float]
    seconds: float
    train_seconds: float
    seed: int
    device: str
    reason: str | None
    inherited: float | None
    spent: float | None
    micro_batch: int | None
    activation_checkpointing: bool
    test_accuracy: float
    p10_ms: float


_LINE = TypeAdapter(_Line)


def check_line(tree: Mapping[str, object]) -> None:
    """Raises ValueError where a value of a line of a record is of another type."""
    try:
        _LINE.validate_python(tree, strict=True)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error


def cost_from_json(tree: Mapping[str, Any]) -> Cost:
    """Of a line of a record."""
    latency_us = round(1000 * tree.get("latency_ms", 0))
    return Cost(params=tree["params"], flops=tree["flops"], latency_us=latency_us)


def further_number(trial: int, round_: int) -> int:
    """Number of the further training of `trial` in round 1, 2, ...: 2_000_037 is the second one of trial 37.

    A function of the two alone, so that neither more trials nor more rounds change what is on disk.
    """
    assert 0 <= trial < _ROUND
    assert round_ >= 1
    return round_ * _ROUND + trial


def round_and_trial(number: int) -> tuple[int, int]:
    """The two parts of `further_number`; round 0 is the race itself."""
    return divmod(number, _ROUND)


def without_retried(ended: "Iterable[TrialResult]") -> "list[TrialResult]":
    """`ended`, in its order, without those that failed and whose architecture was trained again later, in its round.

    Such a retry is a trial with a number of its own, or in a further training the same one once more.
    """
    kept: dict[int, TrialResult] = {}
    last: dict[tuple[int, str], int] = {}
    for index, result in enumerate(ended):
        key = (round_and_trial(result.number)[0], result.arch_id)
        if key in last and kept[last[key]].status in FAILURES:
            del kept[last[key]]
        kept[index], last[key] = result, index
    return list(kept.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """What further trainings of one architecture reached, with seeds that had no part in its selection.

    Args:
        accuracies: Of those that reached the last epoch, in rising order; at least one.
        num_lost: Further trainings that diverged, failed or ran out of memory. They have no accuracy that compares,
            so that the mean is of an architecture's trainings that end well; how many do not stands beside it.
        membership: Share of bootstrap resamples in which the architecture is on the front; None with one seed, whose
            resamples are all the same.
    """

    accuracies: tuple[float, ...]
    num_lost: int = 0
    membership: float | None = None

    @property
    def mean(self) -> float:
        return round(statistics.fmean(self.accuracies), DIGITS)

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds, with n - 1 degrees of freedom; None with one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    def to_json(self) -> dict[str, float | None]:
        """Plain values, in the names that scripts rely on."""
        return {
            "accuracy_sd": self.sd,
            "seeds": len(self.accuracies),
            "seeds_lost": self.num_lost,
            "membership": self.membership,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """One trial as it ended.

    Args:
        number: Number of the trial in the run and in Optuna's study, from 0; of a further training, see
            `further_number`.
        status: `complete` reached the full number of epochs; `stopped` was ended by the scheduler;
            `diverged` met a loss that is not finite; `oom` ran out of device memory; `failed` raised.
        accuracy: Fraction of the search split after the last of them; None where there was none. Where there is a
            `confirmation`, its mean, which is what competes; the trial's own is `own_accuracy`.
        cost: Exact params and FLOPs; latency as it was predicted, where the search went by it.
        curve: Accuracy on the search split after each epoch.
        seconds: From the proposal to the result, worker start and data included.
        train_seconds: The part of `seconds` spent in epochs, their evaluation included.
        device: Where it ran, `cpu` or the index of the GPU on its node.
        reason: Why it ended, where it did not end well; or what had to be done about it so that it did.
        inherited: Accuracy with the weights that it inherited from a supernet, before any training of its own; None
            where it began with a fresh initialisation.
        spent: Seconds that had been spent on the run when it ended, by all the processes that worked on it, to within a
            few; None in records of earlier versions.
        micro_batch: Images that went through the network at once, at most, on each device; None in records of earlier
            versions, and where nothing was trained.
        activation_checkpointing: Whether what is inside a block was computed again in the backward pass.
        confirmation: Of its architecture, where `RunFolder.confirmed` made this; never in the record.
    """

    number: int
    arch: ArchConfig
    status: Status
    epochs: int
    accuracy: float | None
    cost: Cost
    curve: tuple[float, ...]
    seconds: float
    train_seconds: float
    seed: int
    device: str = "cpu"
    reason: str | None = None
    inherited: float | None = None
    spent: float | None = None
    micro_batch: int | None = None
    activation_checkpointing: bool = False
    confirmation: Confirmation | None = None

    @property
    def arch_id(self) -> str:
        return self.arch.id

    @property
    def own_accuracy(self) -> float | None:
        """Accuracy of this one training, and so of the weights that it left."""
        return self.accuracy if self.confirmation is None else self.curve[-1]

    def accuracy_after(self, epoch: int) -> float | None:
        """After 0 epochs it is what was inherited, if anything was."""
        return self.inherited if epoch == 0 else self.curve[epoch - 1]

    def metric(self, name: Metric) -> float:
        value = self.accuracy if name == "accuracy" else getattr(self.cost, name)
        assert value is not None, "only finished trials have an accuracy"
        return value

    def to_json(self) -> dict[str, object]:
        """Plain values, in the names that scripts rely on."""
        return {
            "number": self.number,
            "arch_id": self.arch_id,
            "arch": arch_to_dict(self.arch),
            "status": self.status,
            "epochs": self.epochs,
            "accuracy": self.accuracy,
            "params": self.cost.params,
            "flops": self.cost.flops,
            **({"latency_ms": self.cost.latency_ms} if self.cost.latency_us else {}),
            "curve": list(self.curve),
            "seconds": round(self.seconds, 3),
            "train_seconds": round(self.train_seconds, 3),
            "seed": self.seed,
            "device": self.device,
            "reason": self.reason,
            **({} if self.inherited is None else {"inherited": self.inherited}),
            **({} if self.spent is None else {"spent": round(self.spent, 1)}),
            **({} if self.micro_batch is None else {name: getattr(self, name) for name in ROOM}),
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        check_line(tree)
        values = {field.name: tree[field.name] for field in dataclasses.fields(cls) if field.name in tree}
        return cls(
            **{
                **values,
                "arch": arch_from_dict(tree["arch"]),
                "cost": cost_from_json(tree),
                "curve": tuple(tree["curve"]),
            }
        )
