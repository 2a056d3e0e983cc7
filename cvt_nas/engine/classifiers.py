"""Image classifiers of timm, transformers and this package, which can be teachers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cvt_nas.data import Preprocessing
from cvt_nas.data.preprocessing import preprocessing_of_timm
from cvt_nas.engine.network import at_size, open_network, preprocessing_in
from cvt_nas.errors import ArchError, ResourceError, first_line
from cvt_nas.model import ClassNames, CvT, Told

_TIMM = "timm:"
_USUAL_SIZE = 224  # for a folder of transformers without a size


@dataclass(frozen=True, kw_only=True, slots=True)
class Classifier:
    """A trained network of any library.

    Args:
        model: Maps normalised images `(batch, channels, height, width)` to logits. It is in eval mode, on the CPU.
        names: Class names in the order of the logits, if known.
        is_multi_label: Whether each class has a separate probability, as far as its files say.
        is_published: Whether it seems to be a published CvT.
        notes: Assumptions, for people.
    """

    model: nn.Module
    num_classes: int
    names: ClassNames
    preprocessing: Preprocessing
    is_multi_label: bool
    is_published: bool
    notes: tuple[str, ...]


def is_of_timm(place: str) -> bool:
    return place.startswith(_TIMM)


def open_classifier(place: str) -> Classifier:
    """Opens the network at `place`: `timm:NAME`, or a file or folder as `locate` finds it.

    Raises:
        ArchError: The network cannot be read, or has no head.
        DataError: Its preprocessing is unknown or unsupported.
        ResourceError: It needs a library that is not installed.
    """
    if is_of_timm(place):
        return _of_timm(place.removeprefix(_TIMM))
    path = Path(place)
    settings = _settings_of_transformers(path)
    if settings is not None and settings.get("model_type") != "cvt":
        return _of_transformers(path, settings)
    network = open_network(path)
    if not isinstance(network.model, CvT):
        raise ArchError(f"{place}: is a program; give its run instead, or an export by --format torch")
    preprocessing, note = network.preprocessing()
    return Classifier(
        model=at_size(network.model, network.arch.with_image_size(preprocessing.image_size)).eval(),
        num_classes=network.arch.num_classes,
        names=network.names,
        preprocessing=preprocessing,
        is_multi_label=network.is_multi_label,
        is_published=network.is_published,
        notes=(*network.notes, *([] if note is None else [note])),
    )


def _of_timm(name: str) -> Classifier:
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    try:
        model: Any = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm, the Hub's client and the network raise various errors
        raise ArchError(f"timm:{name}: cannot be loaded: {first_line(error)}") from error
    if model.num_classes == 0:
        raise ArchError(f"timm:{name}: has no head, so it answers nothing")
    names, subset = model.pretrained_cfg.get("label_names"), infer_imagenet_subset(model)
    if names is None and subset is not None:
        names = ImageNetInfo(subset).label_names()
    told = () if names is None or len(names) != model.num_classes else ((Told("timm", tuple(names)),),)
    return Classifier(
        model=model.eval(),
        num_classes=model.num_classes,
        names=ClassNames(path=Path(f"timm:{name}"), groups=told, why_none="timm does not name its classes"),
        preprocessing=preprocessing_of_timm(resolve_model_data_config(model), f"timm:{name}"),
        is_multi_label=False,
        is_published=False,
        notes=(),
    )


def _settings_of_transformers(folder: Path) -> Mapping[str, object] | None:
    """The `config.json` of a folder of transformers; None for other folders and for files."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ArchError(f"{path}: cannot be read: {first_line(error)}") from error
    return tree if isinstance(tree, dict) and "model_type" in tree else None


def _of_transformers(folder: Path, settings: Mapping[str, object]) -> Classifier:
    try:
        from transformers import AutoModelForImageClassification
    except ImportError as error:
        raise ResourceError(f"{folder}: needs transformers: pip install 'cvt-nas[hf]'") from error
    loader: Any = AutoModelForImageClassification
    try:
        model, found = loader.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except Exception as error:  # the network's own code may raise anything
        raise ArchError(f"{folder}: transformers cannot load it: {first_line(error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise ArchError(f"{folder}: has no weights for {missing[0]}; a teacher needs a head that was trained")
    names = tuple(model.config.id2label[index] for index in range(model.config.num_labels))
    is_told = any(name != f"LABEL_{index}" for index, name in enumerate(names))
    preprocessing, note = preprocessing_in(
        folder,
        usual_size=size if isinstance(size := settings.get("image_size"), int) else _USUAL_SIZE,
        channels=getattr(model.config, "num_channels", 3),
    )
    return Classifier(
        model=_Logits(model.eval()),
        num_classes=model.config.num_labels,
        names=ClassNames(path=folder, groups=((Told("config.json", names),),) if is_told else ()),
        preprocessing=preprocessing,
        is_multi_label=model.config.problem_type == "multi_label_classification",
        is_published=False,
        notes=() if note is None else (note,),
    )


class _Logits(nn.Module):
    """Returns the logits of a network of transformers, whose result is an object that holds them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits
