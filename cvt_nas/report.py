"""Tables and plots of a run, all of them made from its record alone."""

import html
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs, get_plotlyjs_version
from rich.table import Table

from cvt_nas.arch import describe_stages
from cvt_nas.results import Metric, ParetoFront, RunFolder, TrialResult, write_atomically

_AXES = {"flops": "FLOPs of one image (multiply-adds)", "params": "Parameters"}
_FRONT_COLOUR, _TRIAL_COLOUR, _MARK_COLOUR = "#0b6e4f", "#7a8a99", "#d1495b"


def write_report(run: RunFolder) -> None:
    """Writes `pareto.csv`, and a plot of accuracy against each cost that is an objective."""
    write_atomically(run.path / "pareto.csv", front_frame(run).to_csv(index=False))
    write_atomically(run.path / "plotly.min.js", get_plotlyjs())
    for metric in run.metrics:
        if metric != "accuracy":
            write_atomically(run.path / f"pareto_{metric}.html", _page(run, front_figure(run, metric), metric))


def front_frame(run: RunFolder) -> pd.DataFrame:
    """The front, best accuracy first: `arch_id, accuracy, params, flops, test_accuracy, number, ...`."""
    tested = run.test_accuracies()
    rows = [
        {
            "arch_id": member.arch_id,
            "accuracy": member.accuracy,
            "params": member.cost.params,
            "flops": member.cost.flops,
            "test_accuracy": tested.get(member.arch_id),
            "number": member.number,
            "epochs": member.epochs,
            "seconds": round(member.seconds, 1),
            "seed": member.seed,
            "arch": " | ".join(describe_stages(member.arch)),
        }
        for member in run.front().members
    ]
    columns = ["arch_id", "accuracy", "params", "flops", "test_accuracy", "number", "epochs", "seconds", "seed", "arch"]
    return pd.DataFrame(rows, columns=columns)


def summary(run: RunFolder) -> dict[str, object]:
    """What `search --json` prints: `run, trials, statuses, front, hypervolume`."""
    results, front = run.results(), run.front()
    tested = run.test_accuracies()
    return {
        "run": str(run.path),
        "trials": len(results),
        "statuses": dict(Counter(result.status for result in results)),
        "front": [
            {
                "arch_id": member.arch_id,
                "number": member.number,
                "accuracy": member.accuracy,
                "test_accuracy": tested.get(member.arch_id),
                "params": member.cost.params,
                "flops": member.cost.flops,
            }
            for member in front.members
        ],
        "hypervolume": front.hypervolume(run.box),
    }


def front_table(run: RunFolder) -> Table:
    """The front for a terminal, knee and best marked."""
    front, tested = run.front(), run.test_accuracies()
    table = Table(title=f"Pareto front of {run.manifest['name']}: {' / '.join(front.metrics)}", title_justify="left")
    for name, justify in (("arch", "left"), ("accuracy", "right"), ("test", "right"), ("params", "right"),
                          ("FLOPs", "right"), ("", "left")):  # fmt: skip
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    knee = front.knee()
    for member in front.members:
        marks = [name for name, marked in (("best", front.best), ("knee", knee)) if marked is member]
        test = tested.get(member.arch_id)
        table.add_row(
            member.arch_id,
            f"{member.metric('accuracy'):.4f}",
            "-" if test is None else f"{test:.4f}",
            short(member.cost.params),
            short(member.cost.flops),
            ", ".join(marks),
        )
    return table


def short(value: float) -> str:
    """`4.58G`, `20.0M`, `16.9k`."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:g}"


def front_figure(run: RunFolder, metric: Metric) -> go.Figure:
    """Accuracy against one cost: the front as steps, other complete trials, stopped ones faint."""
    results = run.results()
    complete = [result for result in results if result.status == "complete"]
    stopped = [result for result in results if result.status == "stopped" and result.accuracy is not None]
    front = ParetoFront.of(complete, ("accuracy", metric))
    steps = sorted(front.members, key=lambda member: member.metric(metric))
    figure = go.Figure()
    epochs = run.manifest["epochs"]
    _add_points(figure, stopped, metric, name=f"stopped before epoch {epochs}", colour=_TRIAL_COLOUR, opacity=0.3)
    rest = [result for result in complete if result not in front.members]
    _add_points(figure, rest, metric, name=f"complete, {epochs} epochs", colour=_TRIAL_COLOUR, opacity=0.95)
    figure.add_trace(
        go.Scatter(
            x=[member.metric(metric) for member in steps],
            y=[member.accuracy for member in steps],
            mode="lines+markers",
            line={"shape": "hv", "color": _FRONT_COLOUR, "width": 2},
            marker={"size": 11, "color": _FRONT_COLOUR},
            name="Pareto front",
            text=[_hover(member) for member in steps],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    for name, member, symbol in (("knee", front.knee(), "diamond-open"), ("best", front.best, "circle-open")):
        if member is not None:
            figure.add_trace(
                go.Scatter(
                    x=[member.metric(metric)],
                    y=[member.accuracy],
                    mode="markers+text",
                    marker={"size": 20, "symbol": symbol, "color": _MARK_COLOUR, "line": {"width": 2}},
                    text=[name],
                    textposition="top center" if name == "knee" else "bottom center",
                    textfont={"color": _MARK_COLOUR, "size": 14},
                    name=name,
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
    figure.update_layout(
        title=f"{run.manifest['name']}: accuracy against {'FLOPs' if metric == 'flops' else 'parameters'}",
        xaxis={"title": _AXES[metric], "type": "log", "exponentformat": "SI", "minor": {"showgrid": True}},
        yaxis={"title": "Accuracy on the search split", "tickformat": ".1%"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        template="plotly_white",
        hoverlabel={"align": "left", "font": {"family": "monospace"}},
        margin={"t": 90},
        autosize=True,  # the page's whole height
    )
    return figure


def _add_points(
    figure: go.Figure, results: Sequence[TrialResult], metric: Metric, *, name: str, colour: str, opacity: float
) -> None:
    figure.add_trace(
        go.Scatter(
            x=[result.metric(metric) for result in results],
            y=[result.accuracy for result in results],
            mode="markers",
            marker={"size": 8, "color": colour, "opacity": opacity},
            name=name,
            text=[_hover(result) for result in results],
            hovertemplate="%{text}<extra></extra>",
        )
    )


def _hover(result: TrialResult) -> str:
    lines = [
        f"<b>{result.arch_id}</b>, trial {result.number}, {result.status} after {result.epochs} epochs",
        f"accuracy {result.metric('accuracy'):.4f}, "
        f"{short(result.cost.params)} params, {short(result.cost.flops)} FLOPs",
        *describe_stages(result.arch),
    ]
    return "<br>".join(lines)


def _page(run: RunFolder, figure: go.Figure, metric: Metric) -> str:
    """A page that shows `figure` by the plotly.js beside it, or by plotly's own server where that is missing."""
    title = html.escape(f"{run.manifest['name']}: accuracy against {metric}")
    spec = json.dumps(json.loads(str(figure.to_json()))).replace("</", "<\\/")
    online = f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>html, body, #plot {{ height: 100%; margin: 0 }}</style>
<script src="plotly.min.js"></script>
<script>window.Plotly || document.write('<script src="{online}"><\\/script>')</script>
</head>
<body>
<div id="plot" role="img" aria-label="{title}; the same figures stand in pareto.csv"></div>
<script>
const figure = {spec};
Plotly.newPlot("plot", figure.data, figure.layout, {{responsive: true}});
</script>
</body>
</html>
"""


def report_paths(run: RunFolder) -> list[Path]:
    """The files that `write_report` made, for whoever tells the reader where to look."""
    return [run.path / "pareto.csv", *(run.path / f"pareto_{m}.html" for m in run.metrics if m != "accuracy")]
