"""Where and how a network will run: its runtime, device, precision and batch."""

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, Self

from pydantic import TypeAdapter, ValidationError

from cvt_nas.arch import ImageSize
from cvt_nas.errors import ResourceError, RunFolderError

Runtime = Literal[
    "torch", "torch-compile", "onnxruntime", "onnxruntime-int8", "openvino", "openvino-int8", "tensorrt"
]  # fmt: skip
Int8Runtime = Literal["onnxruntime-int8", "openvino-int8"]
RuntimeDevice = Literal["auto", "cpu", "cuda"]
DeployPrecision = Literal["fp32", "fp16", "bf16", "int8"]

_WEIGHT_BYTES: dict[DeployPrecision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_VALUE_BYTES: dict[DeployPrecision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 4}  # products alone are in int8


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Needs and abilities of a runtime.

    Args:
        packages: Packages that the runtime needs. Empty if it needs torch alone.
        extra: Extra of cvt-nas that installs `packages`. None if there is no such extra.
        precisions: The first one is the default.
        devices: Devices that the runtime can use.
        is_graph: Whether the runtime runs an ONNX graph. Such a runtime needs neither torch nor cvt-nas.
    """

    packages: tuple[str, ...] = ()
    extra: str | None = None
    precisions: tuple[DeployPrecision, ...] = ("fp32",)
    devices: tuple[Literal["cpu", "cuda"], ...] = ("cpu",)
    is_graph: bool = True


_ONNX = ("onnx", "onnxscript", "onnxruntime")
_FACTS: dict[Runtime, Facts] = {
    "torch": Facts(precisions=("fp32", "fp16", "bf16"), devices=("cpu", "cuda"), is_graph=False),
    "torch-compile": Facts(precisions=("fp32", "fp16", "bf16"), devices=("cpu", "cuda"), is_graph=False),
    "onnxruntime": Facts(packages=_ONNX, extra="onnx", devices=("cpu", "cuda")),
    "onnxruntime-int8": Facts(packages=_ONNX, extra="onnx", precisions=("int8",)),
    "openvino": Facts(packages=(*_ONNX[:2], "openvino"), extra="openvino"),
    "openvino-int8": Facts(packages=(*_ONNX[:2], "openvino", "nncf"), extra="openvino", precisions=("int8",)),
    "tensorrt": Facts(packages=(*_ONNX, "tensorrt"), precisions=("fp32", "fp16"), devices=("cuda",)),
}


def facts_of(runtime: Runtime) -> Facts:
    return _FACTS[runtime]


def check_installed(runtime: Runtime, setting: str) -> None:
    """Raises ResourceError, which names the setting and tells how to install it, if a package that a runtime needs is
    missing."""
    facts = _FACTS[runtime]
    missing = [name for name in facts.packages if importlib.util.find_spec(name) is None]
    if missing:
        how = f"cvt-nas[{facts.extra}]" if facts.extra else " ".join(missing)
        raise ResourceError(f"{setting}: {runtime} needs {', '.join(missing)}: pip install '{how}'")


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """Where and how networks will run. Tables, predictions and measurements of latency refer to it.

    Args:
        device: `auto` is the device of a trial.
        batch: Number of images in a forward pass.
        threads: Threads of the runtime on a CPU. None stands for as many as a trial has.
        image_size: Size of the images that the deployed network gets.
    """

    runtime: Runtime = "torch"
    device: RuntimeDevice = "auto"
    batch: int = 1
    threads: int | None = None
    precision: DeployPrecision = "fp32"
    image_size: ImageSize

    @property
    def facts(self) -> Facts:
        return _FACTS[self.runtime]

    @property
    def weight_bytes(self) -> int:
        """Bytes per parameter."""
        return _WEIGHT_BYTES[self.precision]

    @property
    def value_bytes(self) -> int:
        """Bytes per value that one operation passes to the next."""
        return _VALUE_BYTES[self.precision]

    def device_of(self, trial_device: str) -> Literal["cpu", "cuda"]:
        """Device of this deployment; `auto` is the device of the trial. Raises ResourceError if the runtime cannot use
        it."""
        device = trial_device.partition(":")[0] if self.device == "auto" else self.device
        for known in self.facts.devices:
            if known == device:
                return known
        raise ResourceError(
            f"deploy.device: auto is {device} here, and {self.runtime} runs on {self.facts.devices[0]}; "
            f"write deploy.device: {self.facts.devices[0]}"
        )

    def check_installed(self) -> None:
        """Raises ResourceError, which tells how to install it, if a package that the runtime needs is missing."""
        check_installed(self.runtime, "deploy.runtime")

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, object]) -> Self:
        """Raises RunFolderError if the tree is not a deployment."""
        try:
            return TypeAdapter(cls).validate_python(tree)
        except ValidationError as error:
            raise RunFolderError(f"deploy: {error.errors()[0]['msg']}") from error

    def differences(self, other: "Deployment") -> list[str]:
        """Settings in which `other` differs, such as `batch 8 instead of 1`.

        A device `auto` and threads None match any value.
        """
        mine, theirs = self.to_json(), other.to_json()
        open_values = {"device": "auto", "threads": None}
        return [
            f"{name} {_text(theirs[name])} instead of {_text(mine[name])}"
            for name in mine
            if mine[name] != theirs[name] and open_values.get(name, ...) not in (mine[name], theirs[name])
        ]


def deployment_of(manifest: Mapping[str, object]) -> Deployment | None:
    """The deployment of a run. None if its space file has none."""
    tree = manifest.get("deploy")
    return Deployment.from_json(tree) if isinstance(tree, dict) else None


def _text(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
