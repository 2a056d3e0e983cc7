"""What people read where a figure is the metric that a run maximised, which its files call accuracy."""

from collections.abc import Mapping

_NAMES = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "mean_average_precision": "mean average precision",
    "auroc": "AUROC",
}


def score_name(manifest: Mapping[str, object]) -> str:
    """The metric of a run, as `macro F1`; `accuracy` of an earlier version, which knew no other."""
    name = str(manifest.get("metric", "accuracy"))
    return _NAMES.get(name, name)


def as_title(name: str) -> str:
    """The same where a sentence or an axis begins with it."""
    return name[:1].upper() + name[1:]
