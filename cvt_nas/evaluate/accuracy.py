"""Top-1 and top-5 accuracy of a network. It opens weights and images, and matches their classes by name."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cvt_nas.arch import ArchConfig, ImageSize
from cvt_nas.config import DataConfig, TrainingConfig
from cvt_nas.data import ImageData, check_data, find_data, prepare_as, shape_of, trained_classes
from cvt_nas.data.preprocessing import preprocessing_beside
from cvt_nas.engine.evaluation import answers_of
from cvt_nas.engine.metrics import score
from cvt_nas.engine.network import Network, assumed, check_program, open_network, prepared_as
from cvt_nas.errors import ArchError, DataError, ResourceError
from cvt_nas.evaluate.figures import class_frame
from cvt_nas.model import Told, are_indices, listed, match_classes

_TOP = 5
_SHOWN = 3  # classes in a message
_COLUMNS = ("image_column", "label_column", "label_separator", "split_column")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Results of a network on test images.

    Args:
        top1, top5: Share of the images whose label is the first answer, and share of those whose label is among the
            first five. None if an image can have several labels.
        image_size: Size of the images that the network saw: the side of squares, or height and width.
        metrics: `balanced_accuracy` and `macro_f1`. If an image can have several labels, `macro_f1`,
            `mean_average_precision` and `auroc`.
        class_names: Class names of the data.
        labels: Labels of the images, in the form of `ImageData.labels`.
        answers: Same shape as `labels`. The class that was answered, or -1 for a class that the data lacks. If an image
            can have several labels, whether the logit of each label is above 0.
        notes: Lines on what was taken from the weights' file, and on what had to be assumed.
    """

    arch_id: str
    top1: float | None
    top5: float | None
    num_images: int
    image_size: ImageSize
    metrics: Mapping[str, float]
    class_names: tuple[str, ...]
    labels: np.ndarray = field(compare=False, repr=False)
    answers: np.ndarray = field(compare=False, repr=False)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The output of `eval --json`."""
        names = ("arch_id", "top1", "top5", "num_images", "image_size", "metrics", "notes")
        return {name: getattr(self, name) for name in names}


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
    read_as: DataConfig | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Evaluation:
    """Top-1 and top-5 accuracy on the test images of a data set. Each image is used once, without augmentation.

    Images are prepared as the files beside the weights say. Without such files, they are prepared as for the published
    models: normalised by ImageNet's mean and deviation, resized to a shorter side of 8/7 of `image_size`, and cropped
    to the centre. From 384 pixels on, the whole image is squashed instead.

    If both the weights and the data name their classes, an answer is right if it has the same name as the label. The
    data may then lack some of the classes. Without names, the classes are taken in the order of the data. If the
    classes of the data are numbers, this is done only if their order as text is the same, or if the network is a
    published one, whose order is known.

    Args:
        weights: See `read_weights`. It may also be the folder of an export as ONNX or as a program, which runs on the
            CPU.
        data: See `find_data`. Of a folder of images, those of `test/` are used, or else those of `val/`, or else all.
        arch: See `load_checkpoint`.
        image_size: The side of squares, or height and width. None for the network's own size.
        device: None for `cuda` if there is a GPU, and else `cpu`.
        num_workers: Number of processes that decode images of a folder.
        read_as: Section `data` that the network was trained by. It names the columns of data of the same kind, and
            says whether images that cannot be read are left out.
        on_note: Called with notes on the data, and with each of the notes of the `Evaluation`.

    Raises:
        ArchError: If the weights cannot be read, do not fit or have no head, or if the network's answers are not
            finite.
        DataError: If the data set is missing or has other classes than the network, or if images cannot be prepared as
            the files beside the weights say.
        ResourceError: If there is no GPU, or no runtime for the program.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("--device cuda: this machine has no GPU")
    path = Path(weights)
    network = open_network(path, arch)
    if network.is_program:
        check_program(network, image_size=image_size, device=device, precision=precision)
        device = "cpu"
    torch_device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    beside, source = preprocessing_beside(network.folder)
    network = _named_as_trained(network, data)
    arch = network.arch.with_image_size(image_size or beside.get("image_size", network.arch.image_size))
    images, dataset = _open_images(arch, network, data, str(path), num_workers, read_as, on_note)
    places, note = _places_of(network, images, data, str(path))
    notes = [*network.notes, *([] if note is None else [note])]
    preprocessing = prepared_as(images.preprocessing, beside, source, resized=image_size is not None)
    try:
        prepare_as(images, preprocessing, dataset)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    if source is None:
        notes.append(assumed(images.preprocessing))
    if on_note is not None:
        for note in notes:
            on_note(note)
    model = network.at(arch.image_size, torch_device)
    settings = TrainingConfig(epochs=0, precision=precision)
    batches = images.eval_batches("test", batch_size=batch_size, device=torch_device, as_bytes=True)
    logits, labels = answers_of(model, batches, settings, images.prepared)
    if num_lost := int((~logits.isfinite().all(dim=1)).sum()):
        why = "its weights may be damaged" if precision == "fp32" else f"try --precision fp32 instead of {precision}"
        raise ArchError(
            f"{weights}: the network answers {num_lost:,} of {len(logits):,} images with numbers that are not finite; "
            f"{why}"
        )
    return Evaluation(
        arch_id=arch.id,
        num_images=len(labels),
        image_size=arch.image_size,
        class_names=images.class_names,
        notes=tuple(notes),
        **_judged(logits, labels, places, images.class_names),
    )


def _judged(logits: Tensor, labels: Tensor, places: Tensor, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The fields of an `Evaluation` that depend on the answers. `places` maps the network's classes to the data's."""
    if labels.ndim == 2:
        ours = torch.empty(len(class_names), dtype=torch.int64)
        ours[places[places >= 0]] = torch.arange(len(places))[places >= 0]
        logits, plain = logits[:, ours], labels.to(torch.uint8)
        metrics = {name: score(name, logits, plain) for name in ("macro_f1", "mean_average_precision", "auroc")}
        answers = (logits > 0).to(torch.uint8).numpy()
        return {"top1": None, "top5": None, "metrics": metrics, "labels": plain.numpy(), "answers": answers}
    first = places[logits.topk(min(_TOP, logits.shape[1])).indices]
    is_right = first == labels[:, None]
    found = class_frame(labels.numpy(), first[:, 0].numpy(), class_names)
    is_there = found["images"] > 0
    is_told = is_there | (found["answered"] > 0)
    return {
        "top1": is_right[:, 0].double().mean().item(),
        "top5": is_right.any(dim=1).double().mean().item(),
        "metrics": {
            "balanced_accuracy": float(found.loc[is_there, "recall"].mean()),
            "macro_f1": float(found.loc[is_told, "f1"].mean()),
        },
        "labels": labels.numpy(),
        "answers": first[:, 0].numpy(),
    }


def _open_images(
    arch: ArchConfig,
    network: Network,
    data: str | Path,
    weights: str,
    num_workers: int,
    read_as: DataConfig | None,
    on_note: Callable[[str], None] | None,
) -> tuple[ImageData, str]:
    dataset, root = find_data(data)
    config = DataConfig(dataset=dataset, num_workers=num_workers)
    if read_as is not None:
        kept = ("on_error", *(_COLUMNS if dataset == read_as.dataset else ()))
        config = dataclasses.replace(config, **{setting: getattr(read_as, setting) for setting in kept})
    channels, num_classes = shape_of(dataset, root, test_only=True, config=config)
    if channels not in (None, arch.num_channels):
        raise DataError(f"--data {data}: {dataset} has {channels} channels, {weights} is for {arch.num_channels}")
    if num_classes != arch.num_classes and not any(network.names.groups):
        raise DataError(f"--data {data}: {dataset} has {num_classes} classes, {weights} is for {arch.num_classes}")
    images, _ = check_data(
        config,
        root=root,
        image_size=arch.image_size,
        num_channels=arch.num_channels,
        num_classes=num_classes,
        test_only=True,
        on_note=on_note,
    )
    return images, dataset


def _named_as_trained(network: Network, data: str | Path) -> Network:
    """The network with the class names of train/, if its weights have no names and the test images lack classes."""
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


def _places_of(network: Network, images: ImageData, data: str | Path, weights: str) -> tuple[Tensor, str | None]:
    """The index in the data of each class of the network, -1 for a class that the data lacks, and a note for people."""
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
