"""Tables and figures on a network's answers for each class."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import plotly.graph_objects as go

_OTHER = "(another class)"
_MOST_TICKS = 60


def class_frame(labels: np.ndarray, answers: np.ndarray, class_names: tuple[str, ...]) -> pd.DataFrame:
    """A table with a row for each class of the data: `class, images, answered, precision, recall, f1`, by scikit-learn.

    Args:
        labels: Class indices `(images,)`, or zeros and ones `(images, classes)`.
        answers: Same shape as `labels`. An index of -1 is a class that the data lacks.
    """
    from sklearn.metrics import precision_recall_fscore_support

    indices = np.arange(len(class_names))
    options: dict[str, Any] = {"labels": indices, "zero_division": 0}
    found: Any = precision_recall_fscore_support(labels, answers, **options)
    precision, recall, f1, images = found
    answered = answers.sum(axis=0) if answers.ndim == 2 else np.bincount(answers[answers >= 0], minlength=len(indices))
    return pd.DataFrame(
        {
            "class": class_names,
            "images": images,
            "answered": answered,
            "precision": precision,
            "recall": recall,
            "f1": f1,
        }
    )


def confusion_frame(labels: np.ndarray, answers: np.ndarray, class_names: tuple[str, ...]) -> pd.DataFrame:
    """The confusion matrix. A row has the number of images of a class, with a column for each answer."""
    from sklearn.metrics import confusion_matrix

    names = list(class_names)
    if (answers < 0).any():
        names.append(_OTHER)
        answers = np.where(answers < 0, len(class_names), answers)
    counts = confusion_matrix(labels, answers, labels=np.arange(len(names)))[: len(class_names)]
    return pd.DataFrame(counts, index=pd.Index(class_names, name="class"), columns=pd.Index(names))


def confusion_figure(confusion: pd.DataFrame) -> "go.Figure":
    """The confusion matrix as a figure. It shows shares of each row, so that rare classes can be read too."""
    import plotly.graph_objects as go

    totals = confusion.sum(axis=1).to_numpy()[:, None]
    shares = confusion.to_numpy() / np.maximum(totals, 1)
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=[str(name) for name in confusion.columns],
            y=[str(name) for name in confusion.index],
            customdata=confusion.to_numpy(),
            zmin=0,
            zmax=1,
            colorscale="Blues",
            colorbar={"title": "share", "tickformat": ".0%"},
            hovertemplate="%{y} taken for %{x}: %{customdata} images, %{z:.1%}<extra></extra>",
        )
    )
    shown = len(confusion) <= _MOST_TICKS
    figure.update_layout(
        template="plotly_white",
        title="What images of each class are taken for",
        xaxis={"title": "answer", "type": "category", "showticklabels": shown},
        yaxis={"title": "class", "type": "category", "autorange": "reversed", "showticklabels": shown},
        width=900,
        height=850,
    )
    return figure


def write_figures(
    folder: Path, labels: np.ndarray, answers: np.ndarray, class_names: tuple[str, ...]
) -> dict[str, Path]:
    """Writes `classes.csv`. If each image has one class, also `confusion.csv` and `confusion.html`.

    The page works without a connection to the internet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"classes": folder / "classes.csv"}
    class_frame(labels, answers, class_names).to_csv(paths["classes"], index=False)
    if labels.ndim == 1:
        confusion = confusion_frame(labels, answers, class_names)
        paths |= {"confusion": folder / "confusion.csv", "picture": folder / "confusion.html"}
        confusion.to_csv(paths["confusion"])
        confusion_figure(confusion).write_html(paths["picture"], include_plotlyjs=True)
    return paths
