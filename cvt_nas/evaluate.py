"""Accuracy of a trained network, whatever trained it, on the test images of a data set."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from cvt_nas.arch import ArchConfig
from cvt_nas.config import DataConfig, TrainingConfig
from cvt_nas.data import ImageData, Preprocessing, check_data, find_data, shape_of
from cvt_nas.engine import logits_of
from cvt_nas.errors import DataError, ResourceError
from cvt_nas.model import CvT, load_checkpoint

_TOP = 5
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # of Pillow


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How well a network does.

    Args:
        top1, top5: Share of the images whose label is its first answer, and is among its first five.
        image_size: Side of the images as it saw them.
    """

    arch_id: str
    top1: float
    top5: float
    num_images: int
    image_size: int


@torch.inference_mode()
def evaluate_model(
    weights: str | Path,
    *,
    data: str | Path,
    arch: ArchConfig | None = None,
    image_size: int | None = None,
    batch_size: int = 256,
    device: Literal["cpu", "cuda"] | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    num_workers: int = 4,
    on_note: Callable[[str], None] | None = None,
) -> Evaluation:
    """Top-1 and top-5 accuracy on a data set's test images, each looked at once and without augmentation.

    Images are prepared as the files beside the weights say; where there are none, as the published models' are: by
    ImageNet's mean and deviation, the centre of an image whose shorter side is 8/7 of `image_size`, and from 384
    pixels on the whole image, squashed.

    Args:
        weights: A model's folder, one of transformers' CvT, or a state dict such as the official `.pth`.
        data: See `find_data`; of a folder of images, those in `val/` where it has one.
        arch: See `load_checkpoint`.
        image_size: The network's own where None.
        device: None for `cuda` where there is one.
        num_workers: Processes that decode images of a folder.
        on_note: Called with what there is to say of the data.

    Raises:
        ArchError: The weights cannot be read or do not fit.
        DataError: The data set is missing, or has other classes than the network.
        ResourceError: There is no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("--device cuda: this machine has no GPU")
    folder, torch_device = Path(weights), torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = load_checkpoint(folder, arch)
    beside = _preprocessing_beside(folder)
    arch = model.arch.with_image_size(image_size or beside.get("image_size", model.arch.image_size))
    images = _open_images(arch, data, str(folder), num_workers, on_note)
    _prepare_as(images, beside, str(folder), resized=image_size is not None)
    model = _resized(model, arch).to(torch_device).eval()
    settings = TrainingConfig(epochs=0, precision=precision)
    right = torch.zeros(2, device=torch_device)
    for batch, labels in images.eval_batches("test", batch_size=batch_size, device=torch_device):
        answers = logits_of(model, batch, settings).topk(min(_TOP, arch.num_classes)).indices == labels[:, None]
        right += torch.stack([answers[:, 0].sum(), answers.sum()])
    top1, top5 = (right.double() / images.num_images("test")).tolist()
    return Evaluation(
        arch_id=arch.id, top1=top1, top5=top5, num_images=images.num_images("test"), image_size=arch.image_size
    )


def _open_images(
    arch: ArchConfig, data: str | Path, weights: str, num_workers: int, on_note: Callable[[str], None] | None
) -> ImageData:
    dataset, root = find_data(data)
    channels, num_classes = shape_of(dataset, root, test_only=True)
    for name, found, needed in (
        ("channels", channels, arch.num_channels),
        ("classes", num_classes, arch.num_classes),
    ):
        if found not in (None, needed):
            raise DataError(f"--data {data}: {dataset} has {found} {name}, {weights} is for {needed}")
    images, _ = check_data(
        DataConfig(dataset=dataset, num_workers=num_workers),
        root=root,
        on_note=on_note,
        image_size=arch.image_size,
        num_channels=arch.num_channels,
        num_classes=arch.num_classes,
        test_only=True,
    )
    return images


def _prepare_as(images: ImageData, beside: Mapping[str, Any], weights: str, *, resized: bool) -> None:
    """Has `images` prepared as the network's were; at another size, seen as much of as is usual there."""
    classes = beside.get("classes")
    if classes is not None and tuple(classes) != images.class_names:
        ours, theirs = next((a, b) for a, b in zip(classes, images.class_names, strict=True) if a != b)
        raise DataError(f"{weights}: its class {ours} stands where the data set has {theirs}; the orders differ")
    own = {name: value for name, value in beside.items() if name in Preprocessing.__slots__ and name != "image_size"}
    if resized:
        own.pop("crop_pct", None)
    images.preprocessing = dataclasses.replace(images.preprocessing, **own)


def _resized(model: CvT, arch: ArchConfig) -> CvT:
    if arch == model.arch:
        return model
    moved = CvT(arch)
    moved.load_state_dict(model.state_dict())
    return moved


def _preprocessing_beside(folder: Path) -> dict[str, Any]:
    """What files beside the weights say of how images are prepared, as `Preprocessing` has it; and the classes."""
    for name, read in (("preprocessing.json", _own), ("preprocessor_config.json", _of_transformers)):
        if (folder / name).is_file():
            try:
                return read(json.loads((folder / name).read_text()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise DataError(f"{folder / name}: cannot be read: {str(error).splitlines()[0]}") from error
    return {}


def _own(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {**tree, "mean": tuple(tree["mean"]), "std": tuple(tree["std"])}


def _of_transformers(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Of ConvNeXt's processor, which microsoft's CvTs have, and of ViT's."""
    size = tree["size"]
    sides = set(size.values()) if isinstance(size, Mapping) else {size}
    crops = "ConvNext" in str(tree.get("image_processor_type", tree.get("feature_extractor_type")))
    (side,) = sides
    return {
        "image_size": int(side),
        "mean": tuple(tree["image_mean"]),
        "std": tuple(tree["image_std"]),
        "interpolation": _INTERPOLATION[tree.get("resample", 3)],
        "crop_pct": float(tree.get("crop_pct", 0.875)) if crops and side < 384 else 1.0,
    }
