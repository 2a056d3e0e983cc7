"""Figures of a run, by plotly: those of its page, and those of `--static`.

Colours are told apart on white and on black, and by the colour-blind; no figure tells anything by colour alone.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from cvt_nas.arch import describe_stages
from cvt_nas.report.published import PublishedModel
from cvt_nas.report.text import accuracy_text, short
from cvt_nas.results import Metric, ParetoFront, TrialResult, as_title
from cvt_nas.run import RunFolder
from cvt_nas.space import CostMetric

AXES: dict[CostMetric, str] = {
    "flops": "FLOPs of one image (multiply-adds)",
    "params": "Parameters",
    "latency_ms": "Latency of one image, as predicted (ms)",
}
NAMES: dict[CostMetric, str] = {"flops": "FLOPs", "params": "parameters", "latency_ms": "latency"}
_FRONT_COLOUR, _TRIAL_COLOUR, _MARK_COLOUR = "#0f8a63", "#7a8a99", "#d1495b"
_CONFIRMED_COLOUR, _PUBLISHED_COLOUR, _OTHER_COLOUR = "#6fa88f", "#9467bd", "#c77c11"


def front_figure(
    run: RunFolder, metric: CostMetric, *, published: Sequence[PublishedModel] = (), describes: bool = True
) -> go.Figure:
    """Accuracy against one cost: the front as steps, other complete trials, stopped ones faint.

    What is confirmed stands at its mean, with its standard deviation as error bar; what the race made of it stays.
    Each point of a trial has its number as `customdata`.

    Args:
        published: Models to draw beside them, a trace of their own.
        describes: Whether what shows at the pointer holds the whole architecture.
    """
    results, confirmed = run.results(), run.confirmed()
    complete = [result for result in results if result.status == "complete"]
    stopped = [result for result in results if result.status == "stopped" and result.accuracy is not None]
    front = ParetoFront.of(confirmed or complete, ("accuracy", metric))
    steps = sorted(front.members, key=lambda member: member.metric(metric))
    figure = go.Figure()
    epochs = run.manifest["epochs"]
    points: dict[str, Any] = {"metric": metric, "describes": describes}
    _add_published(figure, published, metric)
    _add_points(figure, stopped, name=f"stopped before epoch {epochs}", colour=_TRIAL_COLOUR, opacity=0.3, **points)
    rest = [result for result in complete if result not in front.members]
    _add_points(
        figure, rest, name=f"complete, {epochs} epochs{', one training' if confirmed else ''}", colour=_TRIAL_COLOUR,
        opacity=0.5 if confirmed else 0.95, **points,
    )  # fmt: skip
    off_front = [result for result in confirmed if result not in front.members]
    if off_front:
        _add_points(
            figure, off_front, name="further trainings, off the front", colour=_CONFIRMED_COLOUR, opacity=0.95,
            error_y=_error_bars(off_front, _CONFIRMED_COLOUR), **points,
        )  # fmt: skip
    figure.add_scatter(
        x=[member.metric(metric) for member in steps],
        y=[member.accuracy for member in steps],
        mode="lines+markers",
        line={"shape": "hv", "color": _FRONT_COLOUR, "width": 2},
        marker={"size": 11, "color": _FRONT_COLOUR},
        name="Pareto front of further trainings, mean ± standard deviation" if confirmed else "Pareto front",
        customdata=[member.number for member in steps],
        text=[_hover(member, describes) for member in steps],
        hovertemplate="%{text}<extra></extra>",
        **({"error_y": _error_bars(steps, _FRONT_COLOUR)} if confirmed else {}),
    )
    for names, member in _marked(front).items():
        figure.add_scatter(
            x=[member.metric(metric)],
            y=[member.accuracy],
            mode="markers+text",
            marker={"size": 20, "symbol": "diamond-open", "color": _MARK_COLOUR, "line": {"width": 2}},
            text=[names],
            textposition="bottom center",
            textfont={"color": _MARK_COLOUR, "size": 14},
            cliponaxis=False,
            name=names,
            hoverinfo="skip",
            showlegend=False,
        )
    figure.update_layout(
        title=f"{run.manifest['name']}: {run.score_name} against {NAMES[metric]}",
        xaxis={"title": AXES[metric], "type": "log", **log_ticks(figure)},
        yaxis={"title": f"{as_title(run.score_name)} on the search split", "tickformat": ".1%"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        template="plotly_white",
        hoverlabel={"align": "left", "font": {"family": "monospace"}},
        autosize=True,  # the page's whole height
    )
    return figure


def _marked(front: ParetoFront) -> dict[str, TrialResult]:
    """Knee and best by what is written at them; `best, knee` where they are one."""
    best, knee = front.best, front.knee()
    if best is None or knee is None:
        return {}
    return {"best, knee": best} if best is knee else {"best": best, "knee": knee}


def log_ticks(figure: go.Figure) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 times powers of ten; at more of them where that would be few."""
    traces: Any = figure.data
    values = [value for trace in traces for value in trace.x]
    if not values:
        return {}
    low, high = math.log10(min(values)), math.log10(max(values))
    steps = (1, 2, 5) if high - low > 0.7 else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    ticks = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    shown = [tick for tick in ticks if low - 0.1 <= math.log10(tick) <= high + 0.1]
    return {"tickvals": shown, "ticktext": [short(tick) for tick in shown]}


def _error_bars(results: Sequence[TrialResult], colour: str) -> dict[str, Any]:
    sds = [None if result.confirmation is None else result.confirmation.sd for result in results]
    return {"type": "data", "array": sds, "color": colour, "thickness": 1.5, "width": 4}


def _add_points(
    figure: go.Figure, results: Sequence[TrialResult], *, metric: Metric, describes: bool, name: str, colour: str,
    opacity: float, **more: Any,
) -> None:  # fmt: skip
    figure.add_scatter(
        x=[result.metric(metric) for result in results],
        y=[result.accuracy for result in results],
        mode="markers",
        marker={"size": 8, "color": colour, "opacity": opacity},
        name=name,
        customdata=[result.number for result in results],
        text=[_hover(result, describes) for result in results],
        hovertemplate="%{text}<extra></extra>",
        **more,
    )


def _add_published(figure: go.Figure, published: Sequence[PublishedModel], metric: CostMetric) -> None:
    shown = [(model, cost) for model in published if (cost := getattr(model, metric, None)) is not None]
    if shown:
        figure.add_scatter(
            x=[cost for _, cost in shown],
            y=[model.accuracy for model, _ in shown],
            mode="markers",
            marker={
                "size": 9,
                "color": _PUBLISHED_COLOUR,
                "symbol": ["x" if model.pretraining == "ImageNet-1k" else "cross" for model, _ in shown],
            },
            name="published models, ImageNet validation",
            text=[
                f"<b>{model.name}</b>, {model.pretraining}, {model.image_size} pixels<br>{model.accuracy:.1%}, "
                f"{short(model.params)} params, {short(cost)} {metric}<br>{model.source}"
                for model, cost in shown
            ],
            hovertemplate="%{text}<extra></extra>",
            meta="published",
        )


def _hover(result: TrialResult, describes: bool) -> str:
    lines = [
        f"<b>{result.arch_id}</b>, trial {result.number}, {result.status} after {result.epochs} epochs",
        f"accuracy {accuracy_text(result)}, {short(result.cost.params)} params, {short(result.cost.flops)} FLOPs",
        *_hover_confirmation(result),
        *(describe_stages(result.arch) if describes else ()),
    ]
    return "<br>".join(lines)


def _hover_confirmation(result: TrialResult) -> list[str]:
    found = result.confirmation
    if found is None:
        return []
    lost = f", {found.num_lost} lost" if found.num_lost else ""
    lines = [f"further trainings: {len(found.accuracies)}{lost}; {result.own_accuracy:.4f} in the race"]
    if found.membership is not None:
        lines.append(f"on the front of {found.membership:.0%} of resamples, over all objectives")
    return lines


GROWTH_AXES = {
    "ended": "Trials that ended",
    "train_seconds": "{} of training, all workers together",
    "spent": "{} since the search began",
}


def growth_figure(growth: pd.DataFrame, over: str) -> go.Figure:
    """Hypervolume over one of `GROWTH_AXES`; see `growth_frame`."""
    changes = growth["hypervolume"].diff().fillna(1) != 0
    growth = growth.loc[changes | (growth.index == len(growth) - 1)]  # the line is one of steps
    greatest = float(growth[over].to_numpy().max())
    unit, name = (1.0, "") if over == "ended" else (3600.0, "Hours") if greatest >= 3600 else (60.0, "Minutes")
    figure = go.Figure(
        go.Scatter(
            x=(growth[over] / unit).round(4).tolist(),
            y=growth["hypervolume"].round(6).tolist(),
            mode="lines",
            line={"shape": "hv", "color": _FRONT_COLOUR, "width": 2},
            hovertemplate="%{x}: %{y:.4f}<extra></extra>",
        )
    )
    figure.update_layout(
        template="plotly_white",
        xaxis={"title": GROWTH_AXES[over].format(name), "rangemode": "tozero"},
        yaxis={"title": "Hypervolume"},
        margin={"t": 20},
        autosize=True,
    )
    return figure


def curves_figure(run: RunFolder) -> go.Figure:
    """Accuracy after each epoch: of the front, of other complete trials, of stopped ones; and where rungs decide."""
    results = run.results()
    on_front = {member.number for member in run.front().members}
    kinds = (
        ("stopped", [r for r in results if r.status != "complete"], _OTHER_COLOUR, 0.35, "dot"),
        ("complete", [r for r in results if r.status == "complete" and r.number not in on_front], _TRIAL_COLOUR, 0.5,
         "solid"),
        ("on the front", [r for r in results if r.number in on_front], _FRONT_COLOUR, 1.0, "solid"),
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
    for epoch in run.rungs:
        figure.add_vline(
            x=epoch, line={"color": _MARK_COLOUR, "width": 1, "dash": "dash"}, annotation_text=f"rung {epoch}",
            annotation_position="top", annotation_font={"color": _MARK_COLOUR},
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


_MAX_POINTS = 40  # of a curve: more are not seen, and 300 epochs of 2,000 trials would be most of the page


def thinned(curve: Sequence[float]) -> list[tuple[int, float]]:
    """Epoch, from 1, and accuracy, at every so many epochs where there are too many, the last always among them."""
    step = max(math.ceil(len(curve) / _MAX_POINTS), 1)
    return [(epoch, round(curve[epoch - 1], 4)) for epoch in range(len(curve), 0, -step)][::-1]


def choices_figure(choices: pd.DataFrame, results: Sequence[TrialResult], score: str) -> go.Figure:
    """Parallel coordinates: each choice that varies, the costs and the accuracy, a line for each trial.

    `choices` has a row for each of the `results`, all of which have an accuracy, called `score`; see `choices_frame`.
    """
    accuracies = [result.metric("accuracy") for result in results]
    dimensions: list[dict[str, Any]] = []
    for name in choices.columns:
        options = sorted(set(choices[name]), key=lambda value: (isinstance(value, str), value))
        place = {option: index for index, option in enumerate(options)}
        dimensions.append({
            "label": label_of(str(name)),
            "values": [place[value] for value in choices[name]],
            "tickvals": list(range(len(options))),
            "ticktext": [f"{option:g}" if isinstance(option, float) else str(option) for option in options],
        })  # fmt: skip
    metrics: list[CostMetric] = ["params", "flops", *(["latency_ms"] if results[0].cost.latency_us else [])]
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


def importance_figure(importances: pd.DataFrame, score: str) -> go.Figure:
    """How much of accuracy, and of the distance to the front, each choice explains; see `importance_frame`."""
    ordered = importances.iloc[::-1]
    figure = go.Figure()
    for name, label, colour, pattern in (
        ("distance", "distance to the front", _OTHER_COLOUR, "/"),
        ("accuracy", score, _FRONT_COLOUR, ""),
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
    """`stage 1 block 4: kv stride` of `stage1.block4.kv_stride`."""
    *places, choice = gene.split(".")
    named = " ".join(place.replace("stage", "stage ").replace("block", "block ") for place in places)
    return f"{named}: {choice.replace('_', ' ')}"
