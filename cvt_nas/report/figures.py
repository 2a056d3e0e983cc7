"""Plotly figures of a run, for its page and for `--static`.

The colours can be told apart on white and on black, also by colour-blind people. No figure tells anything by colour
alone.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from cvt_nas.report.stopping import drawn_rungs
from cvt_nas.report.text import short
from cvt_nas.results import TrialResult, as_title
from cvt_nas.run import RunFolder
from cvt_nas.space import CostMetric

_AXES: dict[CostMetric, str] = {
    "flops": "FLOPs of one image (multiply-adds)",
    "params": "Parameters",
    "latency_ms": "Latency of a pass, as predicted (ms)",
    "throughput": "Images a second, as predicted",
    "peak_memory_mb": "Parameters and values alive at once (MB)",
    "model_mb": "Parameters (MB)",
}
NAMES: dict[CostMetric, str] = {
    "flops": "FLOPs",
    "params": "parameters",
    "latency_ms": "latency",
    "throughput": "throughput",
    "peak_memory_mb": "memory",
    "model_mb": "size",
}
FRONT_COLOUR, TRIAL_COLOUR, MARK_COLOUR, _OTHER_COLOUR = "#0f8a63", "#7a8a99", "#d1495b", "#c77c11"


def cost_axis(metric: CostMetric, values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis of one cost that shows `values`.

    Its ticks are at 1, 2 and 5 times powers of ten. A short axis has more. There are ticks beyond the values too, for a
    reader who zooms out.
    """
    axis: dict[str, Any] = {"title": _AXES[metric], "type": "log"}
    if not values:
        return axis
    low, high = math.log10(min(values)), math.log10(max(values))
    steps = (1, 2, 5) if high - low > 0.7 else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    ticks = [step * 10.0**power for power in range(math.floor(low) - 1, math.ceil(high) + 1) for step in steps]
    return axis | {"tickvals": ticks, "ticktext": [short(tick) for tick in ticks]}


GROWTH_AXES = {
    "ended": "Trials that ended",
    "train_seconds": "{} of training, all workers together",
    "spent": "{} since the search began",
}


def growth_figure(growth: pd.DataFrame, over: str) -> go.Figure:
    """Missing share of the final hypervolume, over one of `GROWTH_AXES`; see `growth_frame`.

    The y axis is logarithmic, since a few trials find most of the volume. Its lowest tick means that none is missing.
    """
    changes = growth["hypervolume"].diff().fillna(1) != 0
    growth = growth.loc[changes | (growth.index == len(growth) - 1)]  # the line is drawn in steps
    missing = missing_of(growth["hypervolume"].to_numpy())
    floor = float(missing[missing >= _LEAST_MISSING].min()) / 3
    powers = [10.0**power for power in range(math.ceil(math.log10(2 * floor)), 1)]
    greatest = float(growth[over].to_numpy().max())
    unit, name = (1.0, "") if over == "ended" else (3600.0, "Hours") if greatest >= 3600 else (60.0, "Minutes")
    figure = go.Figure(
        go.Scatter(
            x=(growth[over] / unit).round(4).tolist(),
            y=np.maximum(missing, floor).tolist(),
            text=[
                f"{share:.2%} missing, hypervolume {volume:.4f}"
                for share, volume in zip(missing, growth["hypervolume"], strict=True)
            ],
            mode="lines",
            line={"shape": "hv", "color": FRONT_COLOUR, "width": 2},
            hovertemplate="%{x}: %{text}<extra></extra>",
        )
    )
    figure.update_layout(
        template="plotly_white",
        xaxis={"title": GROWTH_AXES[over].format(name), "rangemode": "tozero"},
        yaxis={
            "title": "Missing hypervolume",
            "type": "log",
            "range": [math.log10(floor) - 0.1, 0.1],
            "tickvals": [floor, *powers],
            "ticktext": ["none", *(f"{100 * power:g}%" for power in powers)],
        },
        margin={"t": 20},
        autosize=True,
    )
    return figure


_LEAST_MISSING = 1e-4  # a smaller share is drawn as nothing


def missing_of(volumes: np.ndarray) -> np.ndarray:
    """The share of the last volume that each of the growing `volumes` lacks. All shares are 1 if the last is 0."""
    return 1 - volumes / volumes[-1] if volumes[-1] > 0 else np.ones(len(volumes))


def curves_figure(run: RunFolder) -> go.Figure:
    """Accuracy after each epoch of the front, of other complete trials and of other trials, and the rungs."""
    results = run.results()
    on_front = {member.number for member in run.front().members}
    kinds = (
        ("stopped", [r for r in results if r.status != "complete"], _OTHER_COLOUR, 0.35, "dot"),
        ("complete", [r for r in results if r.status == "complete" and r.number not in on_front], TRIAL_COLOUR, 0.5,
         "solid"),
        ("on the front", [r for r in results if r.number in on_front], FRONT_COLOUR, 1.0, "solid"),
    )  # fmt: skip
    figure = go.Figure()
    for name, members, colour, opacity, dash in kinds:
        x: list[int | None] = []
        y: list[float | None] = []
        numbers: list[int | None] = []
        for member in members:
            points = thinned(member.curve)
            x += [*(epoch for epoch, _ in points), None]
            y += [*(accuracy for _, accuracy in points), None]
            numbers += [member.number] * (len(points) + 1)
        if x:
            figure.add_scatter(
                x=x,
                y=y,
                customdata=numbers,
                name=name,
                mode="lines+markers" if len(members) <= 60 else "lines",
                line={"color": colour, "width": 1.5, "dash": dash},
                marker={"size": 4},
                opacity=opacity,
                hovertemplate="trial %{customdata}, epoch %{x}: %{y:.4f}<extra></extra>",
            )
    for epoch in drawn_rungs(run):
        figure.add_vline(
            x=epoch, line={"color": MARK_COLOUR, "width": 1, "dash": "dash"}, annotation_text=f"rung {epoch}",
            annotation_position="top", annotation_font={"color": MARK_COLOUR},
        )  # fmt: skip
    figure.update_layout(
        template="plotly_white",
        xaxis={"title": "Epochs", "rangemode": "tozero"},
        yaxis={"title": f"{as_title(run.score_name)} on the search split", "tickformat": ".0%"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.06, "x": 0},
        margin={"t": 60},
        autosize=True,
    )
    return figure


_MAX_POINTS = 40  # of a curve: a reader sees no more, and 300 epochs of 2,000 trials would be most of the page


def thinned(curve: Sequence[float]) -> list[tuple[int, float]]:
    """Pairs of epoch, from 1, and accuracy. A long curve is thinned evenly. The last epoch is always kept."""
    step = max(math.ceil(len(curve) / _MAX_POINTS), 1)
    return [(epoch, round(curve[epoch - 1], 4)) for epoch in range(len(curve), 0, -step)][::-1]


def option_text(option: object) -> str:
    return f"{option:g}" if isinstance(option, float) else str(option)


def choices_figure(choices: pd.DataFrame, results: Sequence[TrialResult], score: str) -> go.Figure:
    """Parallel coordinates of the choices that vary, the costs and the accuracy, with a line for each trial.

    Args:
        choices: Has a row for each of the `results`; see `choices_frame`.
        results: All have an accuracy.
        score: Name of the accuracy.
    """
    accuracies = [result.metric("accuracy") for result in results]
    dimensions: list[dict[str, Any]] = []
    for name in choices.columns:
        chosen = choices[name].tolist()
        options = sorted(set(chosen), key=lambda value: (value is None, isinstance(value, str), value))
        place = {option: index for index, option in enumerate(options)}
        dimensions.append({
            "label": label_of(str(name)),
            "values": [place[value] for value in chosen],
            "tickvals": list(range(len(options))),
            "ticktext": ["none" if option is None else option_text(option) for option in options],
        })  # fmt: skip
    metrics: list[CostMetric] = ["params", "flops", *_deployed_costs(results[0])]
    for metric in metrics:
        values = np.log10([result.metric(metric) for result in results])
        ticks = np.linspace(values.min(), values.max(), 5)
        dimensions.append({
            "label": NAMES[metric], "values": values.round(4).tolist(),
            "tickvals": ticks.tolist(), "ticktext": [short(10**tick) for tick in ticks],
        })  # fmt: skip
    dimensions.append({"label": score, "values": [round(value, 4) for value in accuracies]})
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            line={
                "color": [round(value, 4) for value in accuracies],
                "colorscale": "Viridis",
                "showscale": True,
                "colorbar": {"title": score, "thickness": 12},
            },
            labelangle=-25,
        )
    )
    figure.update_layout(template="plotly_white", margin={"t": 110, "l": 60, "r": 20, "b": 30}, autosize=True)
    return figure


def _deployed_costs(result: TrialResult) -> list[CostMetric]:
    """The costs of a deployment that the trial has."""
    found: list[CostMetric] = ["latency_ms"] if result.cost.latency_us else []
    if result.cost.value_bytes:
        found.append("peak_memory_mb")
    return found


def importance_figure(importances: pd.DataFrame, score: str) -> go.Figure:
    """The shares of accuracy and of distance to the front that each choice explains; see `importance_frame`."""
    ordered = importances.iloc[::-1]
    figure = go.Figure()
    for name, label, colour, pattern in (
        ("distance", "distance to the front", _OTHER_COLOUR, "/"),
        ("accuracy", score, FRONT_COLOUR, ""),
    ):
        figure.add_bar(
            x=ordered[name].round(4).tolist(),
            y=[label_of(str(choice)) for choice in ordered["choice"]],
            orientation="h",
            name=label,
            marker={"color": colour, "pattern": {"shape": pattern}},
            hovertemplate="%{y}: %{x:.1%}<extra>" + label + "</extra>",
        )
    figure.update_layout(
        template="plotly_white",
        xaxis={"title": "Share of what all choices explain", "tickformat": ".0%"},
        yaxis={"automargin": True},
        barmode="group",
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "traceorder": "reversed"},
        height=max(260, 60 + 34 * len(ordered)),
        margin={"t": 50},
        autosize=True,
    )
    return figure


def label_of(gene: str) -> str:
    """The name of a gene for people: `stage 1 block 4: kv stride` for `stage1.block4.kv_stride`."""
    *places, choice = gene.split(".")
    named = " ".join(place.replace("stage", "stage ").replace("block", "block ") for place in places)
    return f"{named}: {choice.replace('_', ' ')}"
