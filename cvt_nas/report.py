"""Tables and plots of a run, all of them made from its record alone."""

import dataclasses
import html
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs, get_plotlyjs_version
from rich.table import Table

from cvt_nas.arch import describe_stages
from cvt_nas.results import (
    Metric,
    ParetoFront,
    RankCorrelation,
    RunFolder,
    SupernetQuality,
    Tau,
    TrialResult,
    rank_correlations,
    write_atomically,
)

_AXES = {"flops": "FLOPs of one image (multiply-adds)", "params": "Parameters"}
_FRONT_COLOUR, _TRIAL_COLOUR, _MARK_COLOUR = "#0b6e4f", "#7a8a99", "#d1495b"
_CONFIRMED_COLOUR = "#6fa88f"


def write_report(run: RunFolder) -> None:
    """Writes `pareto.csv`, `ranks.csv`, and a plot of accuracy against each cost that is an objective."""
    write_atomically(run.path / "pareto.csv", front_frame(run).to_csv(index=False))
    write_atomically(run.path / "ranks.csv", ranks_frame(run).to_csv(index=False))
    write_atomically(run.path / "plotly.min.js", get_plotlyjs())
    for metric in run.metrics:
        if metric != "accuracy":
            write_atomically(run.path / f"pareto_{metric}.html", _page(run, front_figure(run, metric), metric))


def front_frame(run: RunFolder) -> pd.DataFrame:
    """The front, best accuracy first: `arch_id, accuracy, params, flops, test_accuracy, number, ...`.

    Where the front is confirmed, accuracy is a mean over further trainings, and `accuracy_sd, seeds, seeds_lost,
    membership` follow; see `Confirmation`.
    """
    tested, members = run.test_accuracies(), run.front().members
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
            **_confirmation_of(member),
        }
        for member in members
    ]
    columns = ["arch_id", "accuracy", "params", "flops", "test_accuracy", "number", "epochs", "seconds", "seed", "arch"]
    return pd.DataFrame(rows, columns=[*columns, *(_confirmation_of(members[0]) if members else ())])


def _confirmation_of(result: TrialResult) -> dict[str, float | None]:
    return {} if result.confirmation is None else result.confirmation.to_json()


def ranks_frame(run: RunFolder) -> pd.DataFrame:
    """How each epoch before the last one ranked the trials, see `RankCorrelation`; `rung` where trials are stopped."""
    rungs = _rungs_of(run)
    rows = [
        {**dataclasses.asdict(found), "rung": found.epoch in rungs}
        for found in rank_correlations(run.results(), range(1, run.manifest["epochs"]))
    ]
    return pd.DataFrame(rows, columns=[*(field.name for field in dataclasses.fields(RankCorrelation)), "rung"])


def _rungs_of(run: RunFolder) -> list[int]:
    return run.manifest.get("rungs", [])  # which runs of earlier versions lack


def rank_lines(run: RunFolder) -> list[str]:
    """How well each rung ranked the trials, and a warning where it decided at random or against large networks."""
    rungs, results = _rungs_of(run), run.results()
    lines = []
    for found in rank_correlations(results, rungs):
        lines.append(
            f"rung at epoch {found.epoch}: its ranks of the {found.num_trials} complete trials have Kendall's tau "
            f"{found.tau:.2f} with those of the end (p {_p_text(found.p_value)})"
        )
        faults = []
        if found.is_random:
            faults.append("cannot be told from random ones")
        if found.curves_cross:
            faults.append(
                f"underrate large networks, which overtake small ones later (tau {found.overtaking:.2f} of FLOPs with "
                f"ranks gained, p {_p_text(found.overtaking_p_value)})"
            )
        if faults:
            lines.append(
                f"warning: the ranks after epoch {found.epoch} {' and '.join(faults)}; a scheduler that goes by them "
                f"may stop the wrong trials. Better: search.{_better_than(run, found.epoch)}"
            )
    return lines


def quality_lines(quality: SupernetQuality) -> list[str]:
    """How a supernet ranks, beside params and FLOPs as rankers, and whether it can be trusted to."""

    def text(tau: Tau) -> str:
        return f"{tau.value:.2f} ({tau.low:.2f} to {tau.high:.2f})"

    lines = [
        f"{quality.num_archs} architectures, evenly over log-FLOPs, each trained with {quality.num_seeds} seeds; "
        f"Kendall's tau-b with the mean of these, 95 % bootstrap intervals"
    ]
    for name, found in quality.rankers.items():
        regret = ", ".join(f"{value:.4f}" for value in found.regret_at.values())
        lines.append(
            f"{name:9}: overall {text(found.overall)}, within FLOPs bins {text(found.within_bins)}, top third "
            f"{text(found.top_third)}; precision at 10 % {found.precision_at_10:.2f}, regret at 1, 5, 10 {regret}"
        )
    if quality.ceiling is not None:
        lines.append(f"noise ceiling, one seed against another: {text(quality.ceiling)}")
    lines.append(
        f"mean accuracy inherited {quality.inherited:.4f}, stand-alone {quality.standalone:.4f}, gap "
        f"{quality.standalone - quality.inherited:.4f}"
    )
    faults = quality.faults
    lines.append(
        "this supernet cannot be trusted to rank: " + "; ".join(faults)
        if faults
        else "this supernet can be trusted to rank"
    )
    return lines


def _better_than(run: RunFolder, epoch: int) -> str:
    """What would be better than to decide after `epoch`."""
    later = range(epoch + 1, run.manifest["epochs"])
    for found in rank_correlations(run.results(), later):
        if not (found.is_random or found.curves_cross):
            return f"grace_period: {found.epoch}, or search.scheduler: none"
    return "scheduler: none"


def _p_text(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def summary(run: RunFolder) -> dict[str, object]:
    """What `search --json` prints: `run, trials, statuses, front, hypervolume, rungs`.

    Where there is a plan of further trainings, `confirmation` too: how many are `planned` and have `ended`, and all
    the architectures that are `confirmed`, those off the front included, which may be on it by chance alone.
    """
    results, front = run.results(), run.front()
    tested = run.test_accuracies()
    return {
        "run": run.place,
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
                **_confirmation_of(member),
            }
            for member in front.members
        ],
        "hypervolume": front.hypervolume(run.box),
        "rungs": [dataclasses.asdict(found) for found in rank_correlations(results, _rungs_of(run))],
        **_confirmation_summary(run),
    }


def _confirmation_summary(run: RunFolder) -> dict[str, object]:
    plan = run.confirm_plan()
    if plan is None:
        return {}
    confirmed = [
        {
            "arch_id": result.arch_id,
            "accuracy": result.accuracy,
            "own_accuracy": result.own_accuracy,
            **_confirmation_of(result),
        }
        for result in run.confirmed()
    ]
    num_planned = len(plan.numbers)
    ended = num_planned - len(run.unconfirmed())
    return {"confirmation": {"planned": num_planned, "ended": ended, "confirmed": confirmed}}


def confirmation_lines(run: RunFolder) -> list[str]:
    """What the accuracies of the front are, where a plan of further trainings says that they should be means."""
    plan = run.confirm_plan()
    if plan is None or not plan.numbers:
        return []
    ended = [result for result in run.confirmations() if result.number in plan.numbers]
    num_lost = sum(result.status != "complete" for result in ended)
    done = f"{len(ended)} of {len(plan.numbers)} further trainings have ended"
    lost = f", {num_lost} of them without an accuracy" if num_lost else ""
    if not run.confirmed():
        return [
            f"not confirmed: {done}{lost}; accuracy is of the race's one training, which was selected for being high"
        ]
    return [
        f"confirmed by {plan.seeds} further seeds each: {done}{lost}; accuracy is their mean ± standard deviation, "
        f"without the race's own; 'front' is the share of bootstrap resamples with the architecture on it; 'test' is "
        f"of the race's weights, which are what is exported"
    ]


def front_table(run: RunFolder) -> Table:
    """The front for a terminal, knee and best marked."""
    front, tested = run.front(), run.test_accuracies()
    table = Table(title=f"Pareto front of {run.manifest['name']}: {' / '.join(front.metrics)}", title_justify="left")
    confirmed = any(member.confirmation is not None for member in front.members)
    more = [("front", "right")] if confirmed else []  # with it, 80 characters still hold the whole table
    for name, justify in (("arch", "left"), ("accuracy", "right"), *more, ("test", "right"), ("params", "right"),
                          ("FLOPs", "right"), ("", "left")):  # fmt: skip
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    knee = front.knee()
    for member in front.members:
        marks = [name for name, marked in (("best", front.best), ("knee", knee)) if marked is member]
        if member.confirmation is not None and member.confirmation.num_lost:
            marks.append(f"{member.confirmation.num_lost} lost")
        test = tested.get(member.arch_id)
        table.add_row(
            member.arch_id,
            accuracy_text(member),
            *([_membership_text(member)] if confirmed else []),
            "-" if test is None else f"{test:.4f}",
            short(member.cost.params),
            short(member.cost.flops),
            ", ".join(marks),
        )
    return table


def accuracy_text(result: TrialResult) -> str:
    """`0.9050`, or where it is confirmed by more than one seed `0.9050 ± 0.0012`."""
    sd = None if result.confirmation is None else result.confirmation.sd
    return f"{result.metric('accuracy'):.4f}" + ("" if sd is None else f" ± {sd:.4f}")


def _membership_text(result: TrialResult) -> str:
    membership = None if result.confirmation is None else result.confirmation.membership
    return "-" if membership is None else f"{membership:.0%}"


def short(value: float) -> str:
    """`4.58G`, `20.0M`, `16.9k`."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:g}"


def front_figure(run: RunFolder, metric: Metric) -> go.Figure:
    """Accuracy against one cost: the front as steps, other complete trials, stopped ones faint.

    What is confirmed stands at its mean, with its standard deviation as error bar; what the race made of it stays.
    """
    results, confirmed = run.results(), run.confirmed()
    complete = [result for result in results if result.status == "complete"]
    stopped = [result for result in results if result.status == "stopped" and result.accuracy is not None]
    front = ParetoFront.of(confirmed or complete, ("accuracy", metric))
    steps = sorted(front.members, key=lambda member: member.metric(metric))
    figure = go.Figure()
    epochs = run.manifest["epochs"]
    _add_points(figure, stopped, metric, name=f"stopped before epoch {epochs}", colour=_TRIAL_COLOUR, opacity=0.3)
    rest = [result for result in complete if result not in front.members]
    _add_points(
        figure, rest, metric, name=f"complete, {epochs} epochs{', one training' if confirmed else ''}",
        colour=_TRIAL_COLOUR, opacity=0.5 if confirmed else 0.95,
    )  # fmt: skip
    off_front = [result for result in confirmed if result not in front.members]
    if off_front:
        _add_points(
            figure, off_front, metric, name="further trainings, off the front", colour=_CONFIRMED_COLOUR, opacity=0.95,
            error_y=_error_bars(off_front, _CONFIRMED_COLOUR),
        )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=[member.metric(metric) for member in steps],
            y=[member.accuracy for member in steps],
            mode="lines+markers",
            line={"shape": "hv", "color": _FRONT_COLOUR, "width": 2},
            marker={"size": 11, "color": _FRONT_COLOUR},
            name="Pareto front of further trainings, mean ± standard deviation" if confirmed else "Pareto front",
            text=[_hover(member) for member in steps],
            hovertemplate="%{text}<extra></extra>",
            **({"error_y": _error_bars(steps, _FRONT_COLOUR)} if confirmed else {}),
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


def _error_bars(results: Sequence[TrialResult], colour: str) -> dict[str, Any]:
    sds = [None if result.confirmation is None else result.confirmation.sd for result in results]
    return {"type": "data", "array": sds, "color": colour, "thickness": 1.5, "width": 4}


def _add_points(
    figure: go.Figure, results: Sequence[TrialResult], metric: Metric, *, name: str, colour: str, opacity: float,
    **more: Any,
) -> None:  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=[result.metric(metric) for result in results],
            y=[result.accuracy for result in results],
            mode="markers",
            marker={"size": 8, "color": colour, "opacity": opacity},
            name=name,
            text=[_hover(result) for result in results],
            hovertemplate="%{text}<extra></extra>",
            **more,
        )
    )


def _hover(result: TrialResult) -> str:
    lines = [
        f"<b>{result.arch_id}</b>, trial {result.number}, {result.status} after {result.epochs} epochs",
        f"accuracy {accuracy_text(result)}, {short(result.cost.params)} params, {short(result.cost.flops)} FLOPs",
        *_hover_confirmation(result),
        *describe_stages(result.arch),
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


def _page(run: RunFolder, figure: go.Figure, metric: Metric) -> str:
    """A page that shows `figure` by the plotly.js beside it, or by plotly's own server where that is missing."""
    title = html.escape(f"{run.manifest['name']}: accuracy against {metric}")
    spec = json.dumps(json.loads(str(figure.to_json()))).replace("<", "\\u003c")  # no text ends the script
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
