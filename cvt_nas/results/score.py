"""Names of the metric that a run maximises. Files always call it accuracy."""

from collections.abc import Mapping

_NAMES = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "mean_average_precision": "mean average precision",
    "auroc": "AUROC",
}


def score_name(manifest: Mapping[str, object]) -> str:
    """The metric of a run, such as `macro F1`. Manifests of earlier versions have none, which means `accuracy`."""
    name = str(manifest.get("metric", "accuracy"))
    return _NAMES.get(name, name)


def as_title(name: str) -> str:
    """`name` with a capital first letter, for the start of a sentence or an axis."""
    return name[:1].upper() + name[1:]
