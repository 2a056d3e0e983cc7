"""What a trained network is worth in int8, beside what it is worth in fp32."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cvt_nas.latency import Int8Runtime
from cvt_nas.results.parsing import first_problem


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """Results of an int8 file in one runtime. `score`, `error` and `loss` are None if the runtime cannot open the file.

    Args:
        runtime: Name of the runtime, and its level of optimisation.
        score: The run's metric.
        error: Root mean square difference of logits between int8 and fp32, divided by the standard deviation of the
            logits in fp32.
        loss: Score in fp32 minus `score`.
        loss_sd: Standard deviation of `loss` over images, by bootstrap. It is 0 if there is no loss.
        why: Error message of the runtime if it cannot open the file.
    """

    runtime: str
    score: float | None = None
    error: float | None = None
    loss: float | None = None
    loss_sd: float = 0.0
    why: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """Results of a network in fp32, and of its int8 file in each runtime.

    Args:
        metric: Name of the metric.
        score: Score of fp32 in torch.
        num_images: Number of images of the search split that both are judged on.
        judged: Results of int8, one per runtime.
    """

    metric: str
    score: float
    num_images: int
    judged: tuple[Judged, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8:
    """Facts of one network in int8. In each pair, fp32 is first and int8 is second.

    Args:
        runtime: Runtime that it was quantised for, as in `deploy.runtime`.
        num_calibrated: Number of training images that the ranges of activations were measured on.
        num_bytes: Sizes of the programs. None if the network could not be quantised.
        ms: Milliseconds of a forward pass of one image on the CPU with `num_threads`. They are the tenth percentile of
            shuffled rounds. None if it was not timed.
        software: Library that ran it, with its version.
        faults: Reasons why its answers are not to be trusted; see `engine.int8.complaints`. Empty if they are sound.
    """

    runtime: Int8Runtime
    judgement: Judgement
    num_calibrated: int
    num_bytes: tuple[int, int] | None
    ms: tuple[float, float] | None
    software: str
    num_threads: int
    faults: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float | None:
        """The run's metric in the runtime, with all that the runtime optimises by default. None if it has none."""
        own = [judged for judged in self.judgement.judged if judged.runtime.startswith(plain_name(self.runtime))]
        return own[-1].score if own else None

    def to_json(self) -> dict[str, object]:
        """Plain values, in the names that scripts rely on. An infinite error becomes None."""
        judged = [
            {**asdict(each), "error": None if each.error is None or math.isinf(each.error) else each.error}
            for each in self.judgement.judged
        ]
        return {
            "for": self.runtime,
            **asdict(self.judgement),
            "judged": judged,
            "num_calibrated": self.num_calibrated,
            "num_bytes": None if self.num_bytes is None else list(self.num_bytes),
            "ms": None if self.ms is None else list(self.ms),
            "runtime": self.software,
            "num_threads": self.num_threads,
            **({"faults": list(self.faults)} if self.faults else {}),
        }

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> "Int8":
        """Raises KeyError or ValueError if the tree is no such line."""
        judgement = {name: tree[name] for name in ("metric", "score", "num_images", "judged")}
        rest = {name: tree[name] for name in ("num_calibrated", "num_bytes", "ms", "num_threads")}
        rest |= {"runtime": tree["for"], "software": tree["runtime"], "faults": tree.get("faults", ())}
        try:
            return _INT8.validate_json(json.dumps({**rest, "judgement": judgement}), strict=True)
        except ValidationError as error:
            raise ValueError(first_problem(error)) from error


_INT8 = TypeAdapter(Int8)


def plain_name(runtime: Int8Runtime) -> str:
    """Name of a runtime without its precision, such as `onnxruntime`."""
    return runtime.removesuffix("-int8")


def in_int8(score: str, runtime: Int8Runtime | None) -> str:
    """Name of a metric that is measured in int8, such as `accuracy in int8, onnxruntime`. None stands for fp32."""
    return score if runtime is None else f"{score} in int8, {plain_name(runtime)}"
