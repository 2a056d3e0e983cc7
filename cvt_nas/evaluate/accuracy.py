"""Top-1 and top-5 accuracy: weights and images are opened, and their classes matched by name."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cvt_nas.arch import ArchConfig, ImageSize, load_arch, size_text
from cvt_nas.config import DataConfig, TrainingConfig, is_streamed
from cvt_nas.data import ImageData, Preprocessing, check_data, find_data, shape_of, trained_classes
from cvt_nas.engine import logits_of
from cvt_nas.errors import ArchError, DataError, ResourceError, first_line
from cvt_nas.evaluate.preprocessing import preprocessing_beside
from cvt_nas.model import (
    ClassNames,
    CvT,
    Told,
    are_indices,
    classes_beside,
    fitted,
    is_published,
    listed,
    load_onnx,
    load_program,
    match_classes,
    read_weights,
)

_TOP = 5
_SHOWN = 3  # classes in a message
_PROGRAMS = {"model.onnx": load_onnx, "model.pt2": load_program}
_OF_ARRAYS = ("bilinear", "bicubic")  # ways to resize images that are arrays


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How well a network does.

    Args:
        top1, top5: Share of the images whose label is its first answer, and is among its first five.
        image_size: Of the images as it saw them: the side of squares, or height and width.
        notes: What was taken of the weights' file, and what had to be assumed, a line each.
    """

    arch_id: str
    top1: float
    top5: float
    num_images: int
    image_size: ImageSize
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Network:
    """What is to be evaluated.

    Args:
        model: A `CvT`, or a program of a runtime.
        folder: Of the files.
        names: Of the classes, in the order of the logits, where anything tells them.
        is_published: Whether it is a published network, as far as can be told.
    """

    model: Any
    arch: ArchConfig
    folder: Path
    names: ClassNames
    notes: tuple[str, ...]
    is_published: bool = False

    @property
    def is_program(self) -> bool:
        return not isinstance(self.model, CvT)


@torch.inference_mode()
def evaluate_model(
    weights: str | Path,
    *,
    data: str | Path,
    arch: ArchConfig | None = None,
    image_size: ImageSize | None = None,
    batch_size: int = 256,
    device: Literal["cpu", "cuda"] | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    num_workers: int = 4,
    on_error: Literal["raise", "skip"] = "raise",
    on_note: Callable[[str], None] | None = None,
) -> Evaluation:
    """Top-1 and top-5 accuracy on a data set's test images, each looked at once and without augmentation.

    Images are prepared as the files beside the weights say; where there are none, as the published models' are: by
    ImageNet's mean and deviation, the centre of an image whose shorter side is 8/7 of `image_size`, and from 384
    pixels on the whole image, squashed.

    An answer is right if it is the class of that name, wherever the weights and the data have names of classes; the
    data may then have some of the classes alone. Without names, the order of the data's classes is taken; of classes
    that are numbers, only where it is the same as text, or a published network tells it.

    Args:
        weights: See `read_weights`; or the folder of an export as ONNX or as a program, which runs on the CPU.
        data: See `find_data`; of a folder of images, those in `val/` where it has one.
        arch: See `load_checkpoint`.
        image_size: The side of squares, or height and width; the network's own where None.
        device: None for `cuda` where there is one.
        num_workers: Processes that decode images of a folder.
        on_error: As section `data` of a space file has it; whether images that cannot be read are left out.
        on_note: Called with what there is to say of the data, and with each of the notes of the `Evaluation`.

    Raises:
        ArchError: The weights cannot be read, do not fit, or have no head; or the network's answers are not finite.
        DataError: The data set is missing, or has other classes than the network; or images cannot be prepared as the
            files beside the weights say.
        ResourceError: There is no GPU, or no runtime for the program.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("--device cuda: this machine has no GPU")
    path = Path(weights)
    network = _open_program(path, arch) or _open_weights(path, arch)
    if network.is_program:
        _check_program(network, image_size=image_size, device=device, precision=precision)
        device = "cpu"
    torch_device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    beside, source = preprocessing_beside(network.folder)
    network = _named_as_trained(network, data)
    arch = network.arch.with_image_size(image_size or beside.get("image_size", network.arch.image_size))
    images, dataset = _open_images(arch, network, data, str(path), num_workers, on_error, on_note)
    places, note = _places_of(network, images, data, str(path))
    notes = [*network.notes, *([] if note is None else [note])]
    _prepare_as(images, beside, source, dataset, num_channels=arch.num_channels, resized=image_size is not None)
    if source is None:
        notes.append(_assumed(images.preprocessing))
    if on_note is not None:
        for note in notes:
            on_note(note)
    model: Any = network.model if network.is_program else _resized(network.model, arch).to(torch_device).eval()
    settings = TrainingConfig(epochs=0, precision=precision)
    counts, places = torch.zeros(3, device=torch_device), places.to(torch_device)
    for batch, labels in images.eval_batches("test", batch_size=batch_size, device=torch_device, as_bytes=True):
        logits = logits_of(model, batch, settings, images.prepared)
        answers = places[logits.topk(min(_TOP, arch.num_classes)).indices] == labels[:, None]
        counts += torch.stack([answers[:, 0].sum(), answers.sum(), (~logits.isfinite().all(dim=1)).sum()])
    num_images = images.num_images("test")
    top1, top5, lost = (counts.double() / num_images).tolist()
    if lost:
        why = "its weights may be damaged" if precision == "fp32" else f"try --precision fp32 instead of {precision}"
        raise ArchError(
            f"{weights}: the network answers {round(lost * num_images):,} of {num_images:,} images with numbers that "
            f"are not finite; {why}"
        )
    return Evaluation(
        arch_id=arch.id, top1=top1, top5=top5, num_images=num_images, image_size=arch.image_size, notes=tuple(notes)
    )


def _open_weights(path: Path, arch: ArchConfig | None) -> _Network:
    weights = read_weights(path, arch)
    model, notes = fitted(weights, arch)
    return _Network(
        model=model,
        arch=model.arch,
        folder=weights.folder,
        names=weights.names,
        notes=notes,
        is_published=is_published(weights, model.arch),
    )


def _open_program(path: Path, arch: ArchConfig | None) -> _Network | None:
    """The network of an export that is a program, in its folder or as its file; None where it is none."""
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
        raise ResourceError(f"{folder / name}: needs {error.name}: pip install 'cvt-nas[onnx]'") from error
    except Exception as error:  # each runtime has errors of its own
        said = first_line(error)
        raise ArchError(f"{folder / name}: cannot be loaded: {said}") from error
    classes = classes_beside(folder)
    names = ClassNames(path=path, groups=() if classes is None else ((Told("preprocessing.json", classes),),))
    return _Network(model=model, arch=own, folder=folder, names=names, notes=())


def _check_program(network: _Network, *, image_size: ImageSize | None, device: str | None, precision: str) -> None:
    """Whether a program, whose size of images and device are fixed, can be evaluated so."""
    again = "; evaluate its run instead, or an export by --format torch"
    if image_size not in (None, network.arch.image_size):
        exported = size_text(network.arch.image_size)
        raise ArchError(f"--image-size: {network.folder} is exported for images of {exported} alone{again}")
    if device == "cuda":
        raise ResourceError(f"--device cuda: {network.folder} is a program, which is evaluated on the CPU{again}")
    if precision != "fp32":
        raise ArchError(f"--precision {precision}: {network.folder} is exported in fp32{again}")


def _open_images(
    arch: ArchConfig,
    network: _Network,
    data: str | Path,
    weights: str,
    num_workers: int,
    on_error: Literal["raise", "skip"],
    on_note: Callable[[str], None] | None,
) -> tuple[ImageData, str]:
    dataset, root = find_data(data)
    channels, num_classes = shape_of(dataset, root, test_only=True)
    if channels not in (None, arch.num_channels):
        raise DataError(f"--data {data}: {dataset} has {channels} channels, {weights} is for {arch.num_channels}")
    if num_classes != arch.num_classes and not any(network.names.groups):
        raise DataError(f"--data {data}: {dataset} has {num_classes} classes, {weights} is for {arch.num_classes}")
    images, _ = check_data(
        DataConfig(dataset=dataset, num_workers=num_workers, on_error=on_error),
        root=root,
        image_size=arch.image_size,
        num_channels=arch.num_channels,
        num_classes=num_classes,
        test_only=True,
        on_note=on_note,
    )
    return images, dataset


def _named_as_trained(network: _Network, data: str | Path) -> _Network:
    """The same with the classes of train/, where the weights name none and the test images have some of these alone."""
    if any(told.is_certain for group in network.names.groups for told in group):
        return network
    names = trained_classes(data) or ()
    if len(names) != network.arch.num_classes:
        return network
    told, why_none = network.names.matching(names)
    if told is not None:
        return network
    rows, note = network.names.rows_without_names(names, why_none, is_published=network.is_published)
    in_order = tuple(name for _, name in sorted(zip(rows, names, strict=True)))
    return dataclasses.replace(
        network,
        names=dataclasses.replace(network.names, groups=((Told("train/", in_order),),)),
        notes=(*network.notes, f"{note}, as train/ beside the test images has them"),
    )


def _places_of(network: _Network, images: ImageData, data: str | Path, weights: str) -> tuple[Tensor, str | None]:
    """For each of the network's classes its index in the data, -1 where that has none; and a note for people."""
    ours, kind = images.class_names, find_data(data)[0]
    num_classes = network.arch.num_classes
    told, why_none = network.names.matching(ours)
    if told is None:
        if len(ours) != num_classes:
            raise DataError(f"--data {data}: {kind} has {len(ours)} classes, {weights} is for {num_classes}")
        rows, note = network.names.rows_without_names(ours, why_none, is_published=network.is_published)
        return torch.tensor(rows).argsort(), note
    theirs = told.names
    order = match_classes(ours, theirs)
    if order == (None,) * num_classes and kind == "imagefolder" and are_indices(ours):
        places = torch.empty(num_classes, dtype=torch.int64)
        places[torch.tensor([int(name) for name in ours])] = torch.arange(num_classes)
        return places, f"the folders are named by the index of a class: these are {listed(theirs)}"
    if None in order:
        odd = [name for name, place in zip(ours, order, strict=True) if place is None]
        counts = f"has {len(ours)} classes, {weights} is for {num_classes}; " if len(ours) != num_classes else ""
        raise DataError(
            f"--data {data}: {kind} {counts or 'has other classes than the network: '}"
            f"{', '.join(map(repr, odd[:_SHOWN]))} {'are' if len(odd) > 1 else 'is'} none of its classes, such as "
            f"{', '.join(map(repr, theirs[:_SHOWN]))}, by {told.place}; name the data's classes as these"
        )
    places = torch.full((num_classes,), -1)
    places[torch.tensor(order)] = torch.arange(len(ours))
    if len(ours) < num_classes:
        return (
            places,
            f"the data has {len(ours)} of the network's {num_classes} classes; any of these can be its answer",
        )
    if order == tuple(range(num_classes)):
        return places, None
    return (
        places,
        f"the classes are matched by their names, since the orders differ: by {told.place}, the network's is "
        f"{listed(theirs)}",
    )


def _prepare_as(
    images: ImageData, beside: Mapping[str, Any], source: Path | None, dataset: str, *, num_channels: int, resized: bool
) -> None:
    """Has `images` prepared as the network's were; at another size, seen as much of as is usual there."""
    own = {name: value for name, value in beside.items() if name in Preprocessing.__slots__ and name != "image_size"}
    for name in ("mean", "std"):
        if name in own and len(own[name]) == 1:
            own[name] *= num_channels
        if name in own and len(own[name]) != num_channels:
            raise DataError(f"{source}: {name}: got {len(own[name])} values for images of {num_channels} channels")
    if not is_streamed(dataset) and own.get("interpolation", "bilinear") not in _OF_ARRAYS:
        raise DataError(
            f"{source}: interpolation: got {own['interpolation']!r}, must be {' or '.join(_OF_ARRAYS)} for {dataset}, "
            f"which is no folder of images"
        )
    if resized:
        own.pop("crop_pct", None)
    images.preprocessing = dataclasses.replace(images.preprocessing, **own)


def _assumed(preprocessing: Preprocessing) -> str:
    seen = "the whole image" if preprocessing.crop_pct == 1 else f"the centre, {preprocessing.crop_pct:g} of it,"
    return (
        f"nothing beside the weights says how images are prepared: {seen} is resized by {preprocessing.interpolation}, "
        f"mean {preprocessing.mean} and deviation {preprocessing.std}"
    )


def _resized(model: CvT, arch: ArchConfig) -> CvT:
    if arch == model.arch:
        return model
    moved = CvT(arch)
    moved.load_state_dict(model.state_dict())
    return moved
