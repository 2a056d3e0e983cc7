"""Summary of a comparison, in numbers and as a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from cvt_nas.bench.methods import Settings
from cvt_nas.bench.simulation import Run, Trace

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.125, 0.2, 0.25, 0.5, 1.0)
LEVELS = (0.9, 0.95, 0.99)


def summarise(runs: Sequence[Run], settings: Settings) -> dict[str, Any]:
    """Hypervolume at shares of the budget, epochs to reach levels, area, duplicates and time to ask of each method."""
    budget = settings.budget
    by_method: dict[str, list[tuple[np.ndarray, Trace]]] = {}
    for method, _, values, trace in runs:
        by_method.setdefault(str(method), []).append((values, trace))
    areas = {name: [_log_area(values) for values, _ in found] for name, found in by_method.items()}
    summary: dict[str, Any] = {}
    for name, found in by_method.items():
        asks = np.concatenate([trace.ask_seconds for _, trace in found])
        summary[name] = {
            "hypervolume": {
                f"{fraction:g}": [round(float(v[max(int(fraction * budget), 1) - 1]), 6) for v, _ in found]
                for fraction in FRACTIONS
            },
            "epochs_to": {f"{level:g}": [_epochs_to(values, level) for values, _ in found] for level in LEVELS},
            "log_area": [round(area, 6) for area in areas[name]],
            "duplicates": [trace.num_duplicates for _, trace in found],
            "trials": [trace.num_trials for _, trace in found],
            "ask_ms": {"median": round(1e3 * float(np.median(asks)), 3), "max": round(1e3 * float(asks.max()), 3)},
            "p_value_against": {
                other: _p_value(areas[name], areas[other])
                for other in by_method
                if other != name and len(areas[other]) == len(areas[name])
            },
        }
    return {"budget": budget, "methods": summary}


def _log_area(values: np.ndarray) -> float:
    """Mean of the hypervolume over the logarithm of the epochs spent."""
    epochs = np.arange(1, len(values) + 1)
    weights = np.diff(np.log(np.append(epochs, len(values) + 1)))
    return float((values * weights).sum() / weights.sum())


def _epochs_to(values: np.ndarray, level: float) -> int | None:
    reached = np.flatnonzero(values >= level)
    return int(reached[0]) + 1 if len(reached) else None


def _p_value(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """P-value of the two-sided paired Wilcoxon test; None if the pairs do not differ."""
    if np.allclose(ours, theirs):
        return None
    result: Any = wilcoxon(ours, theirs)
    return float(result.pvalue)


def plot(runs: Sequence[Run], settings: Settings, path: Path) -> None:
    """Plots the median hypervolume of each method over the epochs spent, with its quartiles."""
    import plotly.graph_objects as go

    by_method: dict[str, list[np.ndarray]] = {}
    for method, _, values, _ in runs:
        by_method.setdefault(str(method), []).append(values)
    epochs = np.arange(1, settings.budget + 1)
    figure = go.Figure()
    for index, (name, found) in enumerate(by_method.items()):
        low, middle, high = np.percentile(np.stack(found), [25, 50, 75], axis=0)
        color = _COLORS[index % len(_COLORS)]
        figure.add_scatter(
            x=np.concatenate([epochs, epochs[::-1]]), y=np.concatenate([high, low[::-1]]), fill="toself",
            fillcolor=color, opacity=0.15, line={"width": 0}, hoverinfo="skip", legendgroup=name, showlegend=False,
        )  # fmt: skip
        figure.add_scatter(x=epochs, y=middle, name=name, legendgroup=name, line={"color": color, "shape": "hv"})
    figure.update_layout(
        template="plotly_white",
        xaxis={"type": "log", "title": "epochs spent"},
        yaxis={"title": "hypervolume, share of the table's"},
        title=f"{', '.join(settings.metrics)}; median and quartiles of {len(next(iter(by_method.values())))} seeds",
    )
    figure.write_html(path, include_plotlyjs=True)


# the colours of Okabe and Ito, which the colour-blind can distinguish
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
