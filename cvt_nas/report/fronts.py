"""Figures of the fronts of a run: accuracy against each cost."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from cvt_nas.arch import describe_stages
from cvt_nas.report.figures import FRONT_COLOUR, MARK_COLOUR, NAMES, TRIAL_COLOUR, cost_axis
from cvt_nas.report.published import PublishedModel
from cvt_nas.report.tables import bounds_of
from cvt_nas.report.text import accuracy_text, short
from cvt_nas.results import MAXIMISED, Metric, ParetoFront, TrialResult, as_title, plain_name
from cvt_nas.run import RunFolder
from cvt_nas.space import Bound, CostMetric

_CONFIRMED_COLOUR, _PUBLISHED_COLOUR, _BOUND_COLOUR = "#6fa88f", "#9467bd", "#c77c11"


def front_figure(
    run: RunFolder, metric: CostMetric, *, published: Sequence[PublishedModel] = (), describes: bool = True
) -> go.Figure:
    """Accuracy against one cost. The front is drawn as steps, and the bounds of the space file as lines.

    The axes show the complete trials at first. Trials that stopped or failed are hidden until the reader selects them
    in the legend, unless no trial is complete.

    A confirmed architecture is drawn at its mean, with its standard deviation as an error bar. Its result of the race
    is drawn too. Each point of a trial has the number of the trial as `customdata`.

    Args:
        published: Models to draw as a further trace.
        describes: Whether the text at the pointer contains the whole architecture.
    """
    results, confirmed = run.results(), run.confirmed()
    complete = [result for result in results if result.status == "complete"]
    ended_early = [result for result in results if result.status != "complete" and result.accuracy is not None]
    front = ParetoFront.of(confirmed or complete, ("accuracy", metric))
    steps = sorted(front.members, key=lambda member: member.metric(metric))
    figure = go.Figure()
    epochs, is_int8 = run.manifest["epochs"], run.front_score_name != run.score_name
    int8, fp32 = (" in int8", ", fp32") if is_int8 else ("", "")
    points: dict[str, Any] = {"metric": metric, "describes": describes}
    _add_published(figure, published, metric)
    if ended_early:
        _add_points(
            figure, ended_early, name=f"stopped or failed before epoch {epochs}{fp32}", colour=TRIAL_COLOUR,
            opacity=0.45, visible="legendonly" if complete else True, meta="stopped", **points,
        )  # fmt: skip
    rest = [result for result in complete if result not in front.members]
    once = ", one training" if confirmed else ""
    _add_points(
        figure, rest, name=f"complete, {epochs} epochs{once}{fp32}", colour=TRIAL_COLOUR,
        opacity=0.5 if confirmed else 0.95, **points,
    )  # fmt: skip
    off_front = [result for result in confirmed if result not in front.members]
    if off_front:
        _add_points(
            figure, off_front, name=f"further trainings{int8}, off the front", colour=_CONFIRMED_COLOUR, opacity=0.95,
            error_y=_error_bars(off_front, _CONFIRMED_COLOUR), **points,
        )  # fmt: skip
    figure.add_scatter(
        x=[member.metric(metric) for member in steps],
        y=[member.accuracy for member in steps],
        mode="lines+markers",
        line={"shape": "vh" if metric in MAXIMISED else "hv", "color": FRONT_COLOUR, "width": 2},
        marker={"size": 11, "color": FRONT_COLOUR},
        name=f"Pareto front of further trainings{int8}, mean ± standard deviation" if confirmed else "Pareto front",
        customdata=[member.number for member in steps],
        text=[_hover(member, describes) for member in steps],
        hovertemplate="%{text}<extra></extra>",
        **({"error_y": _error_bars(steps, FRONT_COLOUR)} if confirmed else {}),
    )
    for names, member in _marked(front).items():
        figure.add_scatter(
            x=[member.metric(metric)],
            y=[member.accuracy],
            mode="markers+text",
            marker={"size": 20, "symbol": "diamond-open", "color": MARK_COLOUR, "line": {"width": 2}},
            text=[names],
            textposition="top center",
            textfont={"color": MARK_COLOUR, "size": 14},
            cliponaxis=False,
            name=names,
            hoverinfo="skip",
            showlegend=False,
        )
    figure.update_layout(
        title=f"{run.manifest['name']}: {run.front_score_name} against {NAMES[metric]}",
        xaxis=cost_axis(metric, [result.metric(metric) for result in complete or ended_early]),
        yaxis={"title": f"{as_title(run.front_score_name)} on the search split", "tickformat": ".1%"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        modebar={"orientation": "v"},  # in the right margin, not over the legend
        template="plotly_white",
        hoverlabel={"align": "left", "font": {"family": "monospace"}},
        autosize=True,  # to the whole height of the page
    )
    bound = bounds_of(run).get(metric, Bound())
    _add_bound(figure, bound)
    if complete:
        _open_on(figure, [*complete, *confirmed], metric, bound)
    return figure


def _open_on(figure: go.Figure, results: Sequence[TrialResult], metric: CostMetric, bound: Bound) -> None:
    """Sets the axes so that they show `results` with their error bars, and a bound that is near them."""
    costs = [math.log10(result.metric(metric)) for result in results]
    near = [math.log10(limit) for limit in (bound.min, bound.max) if limit]
    costs += [limit for limit in near if min(costs) - _NEAR <= limit <= max(costs) + _NEAR]
    accuracies = [
        result.metric("accuracy") + sign * (0.0 if result.confirmation is None else result.confirmation.sd or 0.0)
        for result in results
        for sign in (-1, 1)
    ]
    figure.update_xaxes(range=with_margin(costs, least=0.02))
    figure.update_yaxes(range=with_margin(accuracies, least=0.002))


_NEAR = 0.2  # decades


def with_margin(values: Sequence[float], *, least: float) -> list[float]:
    """The two ends of an axis that shows `values`, of which there is at least one."""
    low, high = min(values), max(values)
    margin = max(0.1 * (high - low), least)
    return [low - margin, high + margin]


def _add_bound(figure: go.Figure, bound: Bound) -> None:
    for name, limit in (("at least", bound.min), ("at most", bound.max)):
        if limit is not None:
            figure.add_shape(
                type="line",
                x0=limit,
                x1=limit,
                yref="paper",
                y0=0,
                y1=1,
                line={"color": _BOUND_COLOUR, "width": 1.5, "dash": "dash"},
                label={"text": f"{name} {short(limit)}", "font": {"color": _BOUND_COLOUR}, "textposition": "start"},
            )


def _marked(front: ParetoFront) -> dict[str, TrialResult]:
    """Knee and best member, by the text beside them. The text is `best, knee` if both are the same member."""
    best, knee = front.best, front.knee()
    if best is None or knee is None:
        return {}
    return {"best, knee": best} if best is knee else {"best": best, "knee": knee}


def _error_bars(results: Sequence[TrialResult], colour: str) -> dict[str, Any]:
    sds = [None if result.confirmation is None else result.confirmation.sd for result in results]
    return {"type": "data", "array": sds, "color": colour, "thickness": 1.5, "width": 4}


def _add_points(
    figure: go.Figure, results: Sequence[TrialResult], *, metric: Metric, describes: bool, name: str, colour: str,
    opacity: float, **more: Any,
) -> None:  # fmt: skip
    figure.add_scatter(
        x=_column([result.metric(metric) for result in results]),
        y=_column([result.accuracy for result in results]),
        mode="markers",
        marker={"size": 8, "color": colour, "opacity": opacity},
        name=name,
        customdata=_column([result.number for result in results]),
        text=_column([_hover(result, describes) for result in results]),
        hovertemplate="%{text}<extra></extra>",
        **more,
    )


def _column(values: Sequence[object]) -> np.ndarray:
    """`values` for a figure with thousands of points. Plotly takes six times as long for a list, value by value."""
    return np.array(values, dtype=object)


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
        f"accuracy {accuracy_text(result)}{_kind(result)}, {short(result.cost.params)} params, "
        f"{short(result.cost.flops)} FLOPs",
        *_hover_confirmation(result),
        *(describe_stages(result.arch) if describes else ()),
    ]
    return "<br>".join(lines)


def _kind(result: TrialResult) -> str:
    found = result.confirmation
    return "" if found is None or found.runtime is None else f" in int8, {plain_name(found.runtime)}"


def _hover_confirmation(result: TrialResult) -> list[str]:
    found = result.confirmation
    if found is None:
        return []
    lost = f", {found.num_lost} lost" if found.num_lost else ""
    lines = [f"further trainings: {len(found.accuracies)}{lost}; {result.own_accuracy:.4f} in the race"]
    if found.runtime is not None:
        lines[0] += f", in fp32; their mean in fp32 is {found.fp32_mean:.4f}"
    if found.membership is not None:
        lines.append(f"on the front of {found.membership:.0%} of resamples, over all objectives")
    return lines
