"""Section `deploy`: where and how the networks will run."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from cvt_nas.config.values import STRICT, AutoOrCount, Sides
from cvt_nas.latency import DeployPrecision, Runtime, RuntimeDevice


@validated(config=STRICT, frozen=True, kw_only=True)
class DeployConfig:
    """Section `deploy`: where and how the networks will run. Latency, throughput and memory are of this.

    Args:
        runtime: What runs the networks. All but `torch` and `torch-compile` run the ONNX export.
        device: Device of the runtime; `auto` is the device of a trial.
        batch: Images in a pass. `latency_ms` is of a whole pass, and `throughput` is this number divided by it.
        threads: Threads of the runtime on a CPU; `auto` is as many as a trial has.
        precision: Precision of weights and arithmetic; `auto` is int8 for the runtimes of int8, and otherwise fp32.
        image_size: Side of the images, or height and width. Where absent, the image size of the space.
    """

    runtime: Annotated[Runtime, Field(examples=["onnxruntime"])] = "torch"
    device: RuntimeDevice = "auto"
    batch: Annotated[int, Field(ge=1, le=2**16, examples=[8])] = 1
    threads: Annotated[AutoOrCount, Field(examples=[1])] = "auto"
    precision: Literal["auto"] | DeployPrecision = "auto"
    image_size: Annotated[Sides, Field(examples=[224])] | None = None
