"""Writes parts and whole networks as files that are timed without torch and cvt-nas; see `latency.measuring`."""

import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from cvt_nas.arch import ArchConfig, Grid
from cvt_nas.engine.latency_parts import Input, Timed, memory_size, place, plan_of
from cvt_nas.engine.quantised import RECIPES
from cvt_nas.errors import ExportError
from cvt_nas.export.formats import FORMATS
from cvt_nas.latency import Deployment, Int8Runtime, measuring
from cvt_nas.model import Block, CvT
from cvt_nas.model.onnx_files import OPSET
from cvt_nas.model.pooling import WholeWindows
from cvt_nas.model.quantising import INPUT
from cvt_nas.space import SearchSpace

_NUM_CALIBRATED = 8  # batches
_README = """The networks of {name}, to be timed in {runtime} on the machine where they will run:

    pip install numpy {package}
    python measure.py --to table.json

It needs neither torch nor cvt-nas. Then, where the search runs:

    cvt-nas search --space FILE --latency-table table.json
"""


def write_kit(
    folder: Path,
    space: SearchSpace,
    deployment: Deployment,
    *,
    name: str,
    num_judged: int = 12,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Writes all parts of a space and some whole networks to a new folder, with a script that times them.

    Whole networks are written as `export --format onnx` does. Parts are written by torch's older exporter, which takes
    a twentieth of the time.

    Args:
        space: Its images must have the size of the deployment.
        deployment: Must have a definite device and number of threads, and a runtime that runs graphs.
        name: Name of the space for the README.
        num_judged: Number of whole networks that judge the table.
        seed: Seed of the random choice of whole networks.
        on_progress: Called with the number of files that are written, and the number of all files.

    Raises:
        ResourceError: The space has too many parts.
        ExportError: The folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ExportError(f"{folder}: holds files already; name a new folder")
    parts, networks, settings = plan_of(space, deployment, num_judged=num_judged, seed=seed)
    total = len(parts) + len(networks)
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    files = [folder / "parts" / f"{index:04}.onnx" for index in range(len(parts))]
    memory = made_up_weights(max(memory_size(timed.module) for timed in parts.values()))
    for index, (file, timed) in enumerate(zip(files, parts.values(), strict=True)):
        files[index] = write_part(timed, file, deployment, memory=memory)
        on_progress(index + 1, total)
    whole_files = [folder / "networks" / f"{index:02}-{arch.id}" / "model.onnx" for index, arch in enumerate(networks)]
    for index, (file, arch) in enumerate(zip(whole_files, networks, strict=True)):
        whole_files[index] = write_network(arch, file.parent, deployment)
        on_progress(len(parts) + index + 1, total)
    described = settings["networks"]
    assert isinstance(described, list)
    plan = {
        **settings,
        "files": [file.relative_to(folder).as_posix() for file in files],
        "networks": [
            {**network, "file": file.relative_to(folder).as_posix()}
            for network, file in zip(described, whole_files, strict=True)
        ],
    }
    (folder / "plan.json").write_text(json.dumps(plan) + "\n", encoding="utf-8")
    shutil.copyfile(str(measuring.__file__), folder / "measure.py")
    package = "openvino" if deployment.runtime.startswith("openvino") else "onnxruntime"
    text = _README.format(name=name, runtime=deployment.runtime, package=package)
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_network(arch: ArchConfig, folder: Path, deployment: Deployment) -> Path:
    """Writes a network with random weights to a new folder, as `--format onnx` and the formats in int8 do. Returns the
    file."""
    folder.mkdir(parents=True)
    FORMATS["onnx"].write(CvT(arch).eval(), folder, {})
    return _in_its_precision(folder / "model.onnx", arch.image_shape, deployment)


def _in_its_precision(file: Path, shape: Sequence[int], deployment: Deployment) -> Path:
    """Replaces a file in fp32 by one in int8, if the deployment is in int8. Returns the file to run.

    Noise calibrates it, since latency does not depend on accuracy.
    """
    if deployment.precision != "int8":
        return file
    recipe = RECIPES[cast(Int8Runtime, deployment.runtime)]  # only these runtimes have that precision
    to = file.with_name(f"{file.stem}-int8{Path(recipe.file).suffix}")
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((deployment.batch, *shape), dtype=np.float32) for _ in range(_NUM_CALIBRATED)]
    recipe.quantise(file, to, batches)
    file.unlink()
    return to


def made_up_weights(size: int) -> Tensor:
    """Random values that are small and positive, so that they are valid as variances too."""
    return torch.rand(size).mul_(0.02).add_(0.01)


class _Part(nn.Module):
    """A part with one tensor as input and one as output, since exporters do not support grids as inputs."""

    def __init__(self, module: nn.Module, rest: tuple[Input | Grid, ...]) -> None:
        super().__init__()
        self.module, self._rest = module, rest

    def forward(self, values: Tensor) -> Tensor:
        found = self.module(values, *self._rest)
        return found[0] if isinstance(found, tuple) else found


def write_part(timed: Timed, file: Path, deployment: Deployment, *, memory: Tensor) -> Path:
    """Writes a part for batches of one size, with weights from `memory`. Returns the file."""
    module, (first, *rest) = timed.module, timed.inputs
    place(module, memory)
    assert isinstance(first, Input)
    if isinstance(module, Block) and module.attn.projection == "avg":  # as in exports of whole networks
        (grid,) = rest
        assert not isinstance(grid, Input)
        module.attn.add_module("pool_kv", WholeWindows(module.attn.pool_kv, grid))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that this exporter is the older one
        torch.onnx.export(
            _Part(module, tuple(rest)).eval(), (torch.zeros(deployment.batch, *first.shape),), str(file),
            dynamo=False, opset_version=OPSET, input_names=[INPUT], output_names=["found"],
        )  # fmt: skip
    return _in_its_precision(file, first.shape, deployment)
