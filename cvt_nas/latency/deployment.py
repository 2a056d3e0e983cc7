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
RuntimeDevice = Literal["auto", "cpu", "cuda"]
DeployPrecision = Literal["fp32", "fp16", "bf16", "int8"]

_WEIGHT_BYTES: dict[DeployPrecision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_VALUE_BYTES: dict[DeployPrecision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 4}  # int8 stays inside of products


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a runtime can do.

    Args:
        packages: Which it needs, and the extra that installs them; none for torch alone.
        precisions: Of these the first is the default.
        devices: On which it runs.
        is_graph: Whether it runs an ONNX graph, so that neither torch nor cvt-nas is needed where it runs.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """Where and how networks will run. Tables, predictions and measurements of latency are of it.

    Args:
        device: `auto` is the device of a trial.
        batch: Images of a pass.
        threads: Of the runtime, on a CPU; None for as many as a trial has.
        image_size: Of the images that the network gets there.
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
        """Bytes of a parameter."""
        return _WEIGHT_BYTES[self.precision]

    @property
    def value_bytes(self) -> int:
        """Bytes of a value that one operation leaves to the next."""
        return _VALUE_BYTES[self.precision]

    def device_of(self, trial_device: str) -> Literal["cpu", "cuda"]:
        """Raises ResourceError where the runtime cannot use that of a trial, which `auto` is."""
        device = trial_device.partition(":")[0] if self.device == "auto" else self.device
        for known in self.facts.devices:
            if known == device:
                return known
        raise ResourceError(
            f"deploy.device: auto is {device} here, and {self.runtime} runs on {self.facts.devices[0]}; "
            f"write deploy.device: {self.facts.devices[0]}"
        )

    def check_installed(self) -> None:
        """Raises ResourceError where a package that the runtime needs is missing, with what installs it."""
        missing = [name for name in self.facts.packages if importlib.util.find_spec(name) is None]
        if missing:
            how = f"cvt-nas[{self.facts.extra}]" if self.facts.extra else " ".join(missing)
            raise ResourceError(f"deploy.runtime: {self.runtime} needs {', '.join(missing)}: pip install '{how}'")

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, object]) -> Self:
        """Raises RunFolderError where the tree is no deployment."""
        try:
            return TypeAdapter(cls).validate_python(tree)
        except ValidationError as error:
            raise RunFolderError(f"deploy: {error.errors()[0]['msg']}") from error

    def differences(self, other: "Deployment") -> list[str]:
        """What another one has otherwise, as `batch 8 instead of 1`; device and threads that are left open differ from
        none."""
        mine, theirs = self.to_json(), other.to_json()
        open_values = {"device": "auto", "threads": None}
        return [
            f"{name} {_text(theirs[name])} instead of {_text(mine[name])}"
            for name in mine
            if mine[name] != theirs[name] and open_values.get(name, ...) not in (mine[name], theirs[name])
        ]


def deployment_of(manifest: Mapping[str, object]) -> Deployment | None:
    """The deployment of a run, where its space file has one."""
    tree = manifest.get("deploy")
    return Deployment.from_json(tree) if isinstance(tree, dict) else None


def _text(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
