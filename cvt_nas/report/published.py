"""Published ImageNet models for comparison with the front of a run."""

import csv
from dataclasses import dataclass
from importlib import resources

from cvt_nas.arch import NAMED_ARCHS, ArchConfig
from cvt_nas.run import RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedModel:
    """One row of `published_models.csv`.

    Args:
        pretraining: `ImageNet-1k`, or `ImageNet-22k` if the model was then fine-tuned on ImageNet-1k.
        image_size: Image size in pixels. The figures hold for it.
        params, flops: Published values, which are rounded. `flops` is None if it was not published. A multiply-add is
            one FLOP.
        accuracy: Top-1 accuracy on ImageNet's validation images, as a fraction.
        source: Paper and table of the figures.
    """

    name: str
    family: str
    pretraining: str
    image_size: int
    params: float
    flops: float | None
    accuracy: float
    source: str

    @property
    def line(self) -> str:
        flops = "" if self.flops is None else f", {self.flops / 1e9:g} G FLOPs"
        accuracy = f"{100 * self.accuracy:.1f} % top-1 on ImageNet"
        return f"{self.params / 1e6:g} M params{flops}, {accuracy} ({self.pretraining}, {self.source})"


def published_beside(run: RunFolder) -> tuple[PublishedModel, ...]:
    """The models to compare with a run. Empty if the run is not on ImageNet."""
    return published_models() if run.manifest.get("dataset") == "imagenet" else ()


def published_as(arch: ArchConfig) -> tuple[PublishedModel, ...]:
    """The published models with the architecture `arch` and its image size."""
    names = {name for name, named in NAMED_ARCHS.items() if named.with_image_size(arch.image_size) == arch}
    return tuple(
        model for model in published_models() if model.name.lower() in names and model.image_size == arch.image_size
    )


def published_models() -> tuple[PublishedModel, ...]:
    text = resources.files("cvt_nas.report").joinpath("published_models.csv").read_text(encoding="utf-8")
    return tuple(
        PublishedModel(
            name=row["model"],
            family=row["family"],
            pretraining=row["pretraining"],
            image_size=int(row["image_size"]),
            params=float(row["params_m"]) * 1e6,
            flops=float(row["flops_g"]) * 1e9 if row["flops_g"] else None,
            accuracy=float(row["imagenet_top1"]) / 100,
            source=row["source"],
        )
        for row in csv.DictReader(text.splitlines())
    )
