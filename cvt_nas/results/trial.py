"""One trial as it ended, and what further trainings of its architecture reached."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from cvt_nas.arch import ArchConfig, Cost, arch_from_dict, arch_to_dict
from cvt_nas.latency import Int8Runtime
from cvt_nas.results.int8 import Int8
from cvt_nas.results.parsing import first_problem
from cvt_nas.results.prediction import Prediction

Metric = Literal["accuracy", "params", "flops", "latency_ms", "throughput", "peak_memory_mb", "model_mb"]
MAXIMISED: frozenset[Metric] = frozenset({"accuracy", "throughput"})
Status = Literal["complete", "stopped", "diverged", "failed", "oom"]

# No run has a million trials, and both parts can be read in decimals.
_ROUND = 1_000_000


# A resumed search tries these again. The cause, such as a full device or a damaged image, may be gone.
FAILURES: frozenset[Status] = frozenset({"failed", "oom"})

# Fields that say how batches were cut to fit a device.
ROOM = ("micro_batch", "activation_checkpointing")

# Means are rounded, so that they are equal whatever the order of their sums.
DIGITS = 12


class _Predicted(TypedDict):
    accuracy: float
    sd: float
    noise_sd: float


class _Line(TypedDict, total=False):
    """The plain values of a line of a record."""

    number: int
    params: int
    flops: int
    latency_ms: float
    throughput: float
    peak_memory_mb: float
    model_mb: float
    status: Status
    epochs: int
    accuracy: float | None
    num_images: int
    brier: float
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
    batch: int
    test_accuracy: float
    measured_memory_mb: float | None
    p10_ms: float
    predicted: _Predicted


_LINE = TypeAdapter(_Line)


def check_line(tree: Mapping[str, object]) -> None:
    """Raises ValueError if a value of a line has the wrong type."""
    try:
        _LINE.validate_python(tree, strict=True)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error


def cost_from_json(tree: Mapping[str, Any]) -> Cost:
    """Cost in a line of a record."""
    latency_us, model_bytes = round(1000 * tree.get("latency_ms", 0)), round(1e6 * tree.get("model_mb", 0))
    return Cost(
        params=tree["params"],
        flops=tree["flops"],
        latency_us=latency_us,
        model_bytes=model_bytes,
        value_bytes=round(1e6 * tree.get("peak_memory_mb", 0)) - model_bytes,
        batch=tree.get("batch", 0),
    )


def cost_to_json(cost: Cost) -> dict[str, int | float]:
    """Entries of a cost in a line of a record: params, FLOPs, and what else is known."""
    names: list[str] = ["params", "flops"]
    names += ["latency_ms"] if cost.latency_us else []
    names += ["throughput"] if cost.latency_us and cost.batch else []
    names += ["peak_memory_mb", "model_mb", "batch"] if cost.batch else []
    return {name: getattr(cost, name) for name in names}


def further_number(trial: int, round_: int) -> int:
    """Number of the further training of `trial` in round 1, 2, ...: 2_000_037 is the second one of trial 37.

    It depends on the two alone, so more trials or more rounds do not change records on disk.
    """
    assert 0 <= trial < _ROUND
    assert round_ >= 1
    return round_ * _ROUND + trial


def round_and_trial(number: int) -> tuple[int, int]:
    """The two parts of `further_number`; round 0 is the race itself."""
    return divmod(number, _ROUND)


def without_retried(ended: "Iterable[TrialResult]") -> "list[TrialResult]":
    """`ended` without failed trials whose architecture was trained again later in the same round.

    A retry in the race has a number of its own. A retry of a further training has the same number.
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
        accuracies: Accuracies of those that reached the last epoch, in rising order; at least one. They are in int8 if
            there is a `runtime`.
        num_lost: Number of further trainings that diverged, failed or ran out of memory. The mean leaves them out.
        membership: Share of bootstrap resamples in which the architecture is on the front. None with one seed, since
            its resamples are all the same.
        runtime: Runtime in whose int8 they were judged. None for fp32.
        in_fp32: If there is a `runtime`, accuracies of the same trainings in fp32, in rising order.
    """

    accuracies: tuple[float, ...]
    num_lost: int = 0
    membership: float | None = None
    runtime: Int8Runtime | None = None
    in_fp32: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        return round(statistics.fmean(self.accuracies), DIGITS)

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds, with n - 1 degrees of freedom. None with one seed."""
        return _sd(self.accuracies)

    @property
    def fp32_mean(self) -> float:
        return round(statistics.fmean(self.in_fp32 or self.accuracies), DIGITS)

    @property
    def fp32_sd(self) -> float | None:
        return _sd(self.in_fp32 or self.accuracies)

    def to_json(self) -> dict[str, float | str | None]:
        """Plain values, in the names that scripts rely on."""
        in_int8 = {"accuracy_as": self.runtime, "fp32_accuracy": self.fp32_mean, "fp32_accuracy_sd": self.fp32_sd}
        return {
            "accuracy_sd": self.sd,
            "seeds": len(self.accuracies),
            "seeds_lost": self.num_lost,
            "membership": self.membership,
            **({} if self.runtime is None else in_int8),
        }


def _sd(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """One trial as it ended.

    Args:
        number: Number of the trial in the run and in Optuna's study, from 0. For further trainings, see
            `further_number`.
        status: `complete` reached the full number of epochs, `stopped` was ended by the scheduler, `diverged` had a
            loss that is not finite, `oom` ran out of device memory, `failed` raised an error.
        accuracy: Fraction of the search split after the last epoch, or None without an epoch. With a `confirmation`,
            its mean; the accuracy of the trial itself is `own_accuracy`.
        cost: Exact params and FLOPs, and the predicted latency, throughput and memory if the search used them.
        curve: Accuracy on the search split after each epoch.
        seconds: Time from the proposal to the result, with the start of the worker and the loading of data.
        train_seconds: The part of `seconds` in epochs, with their evaluation.
        device: `cpu`, or the index of the GPU on its node.
        reason: Why it did not end well, or what had to be changed so that it did.
        inherited: Accuracy with the weights inherited from a supernet, before any training of its own. None if weights
            were initialised at random.
        spent: Seconds that all processes had spent on the run when the trial ended, to within a few. None in records of
            earlier versions.
        micro_batch: Greatest number of images that went through the network at once on each device. None in records of
            earlier versions, and if nothing was trained.
        activation_checkpointing: Whether activations inside blocks were computed again in the backward pass.
        predicted: What the surrogate expected of the trial when it proposed it. None if it did not choose the trial,
            and in records of earlier versions.
        int8: What its network was worth in int8, if it was judged right after the training.
        confirmation: Confirmation of its architecture, if `RunFolder.confirmed` made this. It is never in the record.
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
    predicted: Prediction | None = None
    int8: Int8 | None = None
    confirmation: Confirmation | None = None

    @property
    def arch_id(self) -> str:
        return self.arch.id

    @property
    def own_accuracy(self) -> float | None:
        """Accuracy of this one training, which is that of its weights."""
        return self.accuracy if self.confirmation is None else self.curve[-1]

    def accuracy_after(self, epoch: int) -> float | None:
        """Accuracy after `epoch` epochs. After 0 epochs, the inherited one, or None."""
        return self.inherited if epoch == 0 else self.curve[epoch - 1]

    def metric(self, name: Metric) -> float:
        value = self.accuracy if name == "accuracy" else getattr(self.cost, name)
        assert value is not None, "only finished trials have an accuracy"
        return value

    def loss(self, name: Metric) -> float:
        """What is to become small: accuracy negated, and `Cost.loss` of all others."""
        return -self.metric("accuracy") if name == "accuracy" else self.cost.loss(name)

    def to_json(self) -> dict[str, object]:
        """Plain values, in the names that scripts rely on."""
        return {
            "number": self.number,
            "arch_id": self.arch_id,
            "arch": arch_to_dict(self.arch),
            "status": self.status,
            "epochs": self.epochs,
            "accuracy": self.accuracy,
            **cost_to_json(self.cost),
            "curve": list(self.curve),
            "seconds": round(self.seconds, 3),
            "train_seconds": round(self.train_seconds, 3),
            "seed": self.seed,
            "device": self.device,
            "reason": self.reason,
            **({} if self.inherited is None else {"inherited": self.inherited}),
            **({} if self.spent is None else {"spent": round(self.spent, 1)}),
            **({} if self.micro_batch is None else {name: getattr(self, name) for name in ROOM}),
            **({} if self.predicted is None else {"predicted": self.predicted.to_json()}),
            **({} if self.int8 is None else {"int8": self.int8.to_json()}),
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        check_line(tree)
        values = {field.name: tree[field.name] for field in dataclasses.fields(cls) if field.name in tree}
        if tree["status"] == "complete" and (tree["accuracy"] is None or len(tree["curve"]) != tree["epochs"]):
            raise ValueError(f"a complete trial has an accuracy, and one after each of its {tree['epochs']} epochs")
        return cls(
            **{
                **values,
                "arch": arch_from_dict(tree["arch"]),
                "cost": cost_from_json(tree),
                "curve": tuple(tree["curve"]),
                "predicted": Prediction.from_json(tree["predicted"]) if "predicted" in tree else None,
                "int8": Int8.from_json(tree["int8"]) if "int8" in tree else None,
            }
        )
