"""Networks from files: weights or programs, their classes, and the preprocessing of their images."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cvt_nas.arch import ArchConfig, ImageSize, load_arch, size_text
from cvt_nas.data import Preprocessing
from cvt_nas.data.images import usual_preprocessing
from cvt_nas.data.preprocessing import Found, preprocessing_beside
from cvt_nas.errors import ArchError, DataError, ResourceError, first_line
from cvt_nas.model import (
    ClassNames,
    CvT,
    Logits,
    Told,
    classes_beside,
    fitted,
    is_published,
    load_onnx,
    load_openvino,
    load_program,
    read_weights,
)

_PROGRAMS = {"model.onnx": load_onnx, "model.pt2": load_program, "model.xml": load_openvino}
_EXTRAS = {"model.onnx": "onnx", "model.xml": "openvino"}  # what installs their runtimes


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A network from files.

    Args:
        model: A `CvT`, or a program of a runtime.
        folder: Folder of the files.
        names: Class names in the order of the logits, if known.
        is_published: Whether it seems to be a published network.
    """

    model: CvT | Logits
    arch: ArchConfig
    folder: Path
    names: ClassNames
    notes: tuple[str, ...]
    is_published: bool = False

    @property
    def is_program(self) -> bool:
        return not isinstance(self.model, CvT)

    @property
    def is_multi_label(self) -> bool:
        """Whether each label has a separate probability, according to the files beside the weights."""
        signs = {
            "preprocessing.json": ("multi_label", True),
            "config.json": ("problem_type", "multi_label_classification"),
        }
        for name, (key, value) in signs.items():
            path = self.folder / name
            if path.is_file() and json.loads(path.read_text(encoding="utf-8-sig")).get(key) == value:
                return True
        return False

    def preprocessing(self, image_size: ImageSize | None = None) -> tuple[Preprocessing, str | None]:
        """Returns how images are prepared, and a note if no file beside the weights says it.

        Args:
            image_size: Replaces the network's own size.

        Raises:
            DataError: A file beside the weights cannot be read, or has an unsupported setting.
        """
        return preprocessing_in(
            self.folder, image_size, usual_size=self.arch.image_size, channels=self.arch.num_channels
        )

    def at(self, image_size: ImageSize, device: torch.device) -> Logits:
        """The model on `device`, for images of `image_size`. A program is returned unchanged."""
        if not isinstance(self.model, CvT):
            return self.model
        return at_size(self.model, self.arch.with_image_size(image_size)).to(device).eval()


def open_network(path: Path, arch: ArchConfig | None = None) -> Network:
    """Opens the network at `path`: an export as ONNX, OpenVINO or a program, or weights; see `read_weights`.

    Raises:
        ArchError: The network cannot be read, does not fit `arch`, or has no head.
        ResourceError: There is no runtime for the program.
    """
    return _open_program(path, arch) or _open_weights(path, arch)


def _open_weights(path: Path, arch: ArchConfig | None) -> Network:
    weights = read_weights(path, arch)
    model, notes = fitted(weights, arch)
    return Network(
        model=model,
        arch=model.arch,
        folder=weights.folder,
        names=weights.names,
        notes=notes,
        is_published=is_published(weights, model.arch),
    )


def _open_program(path: Path, arch: ArchConfig | None) -> Network | None:
    """Opens an export that is a program, given its folder or file. None if it is no program."""
    folder = path if path.is_dir() else path.parent
    name = next((name for name in _PROGRAMS if (path / name).is_file() or (path.name == name and path.is_file())), None)
    if name is None or (path.is_dir() and (path / "model.safetensors").is_file()):
        return None
    if not (folder / "arch.json").is_file():
        raise ArchError(f"{folder / name}: has no arch.json beside it, as an export has, which says what it is of")
    own = load_arch(folder / "arch.json")
    if arch is not None and arch.with_image_size(own.image_size) != own:
        raise ArchError(f"--arch: {arch.id} is not the architecture of {folder}/arch.json, {own.id}; leave it out")
    try:
        model = _PROGRAMS[name](folder)
    except ImportError as error:
        extra = _EXTRAS.get(name, "onnx")
        raise ResourceError(f"{folder / name}: needs {error.name}: pip install 'cvt-nas[{extra}]'") from error
    except Exception as error:  # runtimes raise various errors
        said = first_line(error)
        raise ArchError(f"{folder / name}: cannot be loaded: {said}") from error
    classes = classes_beside(folder)
    names = ClassNames(path=path, groups=() if classes is None else ((Told("preprocessing.json", classes),),))
    return Network(model=model, arch=own, folder=folder, names=names, notes=())


def check_program(network: Network, *, image_size: ImageSize | None, device: str | None, precision: str) -> None:
    """Raises an error if a program cannot be evaluated so, since its image size and device are fixed."""
    again = "; evaluate its run instead, or an export by --format torch"
    if image_size not in (None, network.arch.image_size):
        exported = size_text(network.arch.image_size)
        raise ArchError(f"--image-size: {network.folder} is exported for images of {exported} alone{again}")
    if device == "cuda":
        raise ResourceError(f"--device cuda: {network.folder} is a program, which is evaluated on the CPU{again}")
    if precision != "fp32":
        raise ArchError(f"--precision {precision}: {network.folder} is a program, whose precision is fixed{again}")


def prepared_as(preprocessing: Preprocessing, beside: Found, source: Path | None, *, resized: bool) -> Preprocessing:
    """Returns the preprocessing of `beside`. Values that it lacks come from `preprocessing`.

    Args:
        beside, source: See `preprocessing_beside`.
        resized: Whether images have another size than the network's own. The usual part of them is then seen.

    Raises:
        DataError: `beside` is for another number of channels.
    """
    num_channels = len(preprocessing.mean)

    def for_each_channel(name: str, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(values) not in (1, num_channels):
            raise DataError(f"{source}: {name}: got {len(values)} values for images of {num_channels} channels")
        return values * num_channels if len(values) == 1 else values

    return replace(
        preprocessing,
        mean=for_each_channel("mean", beside.get("mean", preprocessing.mean)),
        std=for_each_channel("std", beside.get("std", preprocessing.std)),
        interpolation=beside.get("interpolation", preprocessing.interpolation),
        crop_pct=preprocessing.crop_pct if resized else beside.get("crop_pct", preprocessing.crop_pct),
    )


def preprocessing_in(
    folder: Path, image_size: ImageSize | None = None, *, usual_size: ImageSize, channels: int
) -> tuple[Preprocessing, str | None]:
    """See `Network.preprocessing`. `usual_size` is the size if no file in `folder` gives one."""
    beside, source = preprocessing_beside(folder)
    size = beside.get("image_size", usual_size) if image_size is None else image_size
    usual = usual_preprocessing(size, beside.get("mean"), beside.get("std"), channels=channels)
    found = prepared_as(usual, beside, source, resized=image_size is not None)
    return found, assumed(found) if source is None else None


def assumed(preprocessing: Preprocessing) -> str:
    seen = "the whole image" if preprocessing.crop_pct == 1 else f"the centre, {preprocessing.crop_pct:g} of it,"
    return (
        f"nothing beside the weights says how images are prepared: {seen} is resized by {preprocessing.interpolation}, "
        f"mean {preprocessing.mean} and deviation {preprocessing.std}"
    )


def at_size(model: CvT, arch: ArchConfig) -> CvT:
    if arch == model.arch:
        return model
    moved = CvT(arch)
    moved.load_state_dict(model.state_dict())
    return moved
