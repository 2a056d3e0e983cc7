"""Predictions of the surrogate when it proposed trials, against the accuracies that the trials reached.

The predictions are read from the record. No model is fitted again, so they contain nothing that was learned later.
"""

import dataclasses
import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from cvt_nas.propose.surrogate import OVERCONFIDENCE
from cvt_nas.report.figures import FRONT_COLOUR, TRIAL_COLOUR
from cvt_nas.report.fronts import with_margin
from cvt_nas.report.page import figure_html, table_html
from cvt_nas.results import ParetoFront, TrialResult, as_title, is_non_dominated, losses_of
from cvt_nas.run import RunFolder

LEVELS = {0.5: 0.674490, 0.8: 1.281552, 0.95: 1.959964}  # share inside -> half width in standard deviations
_FEWEST = 5  # complete trials with a prediction that are needed
_STOPPED_COLOUR, _LINE_COLOUR = "#c77c11", "#7a8a99"


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """How many actual accuracies lie inside the intervals of their predictions.

    Args:
        level: Share that should lie inside.
        inside: Number inside the intervals of the model as fitted.
        inside_stretched: Number inside the wider intervals that decide on proposals.
        number: Number of trials.
    """

    level: float
    inside: int
    inside_stretched: int
    number: int


def predicted_trials(run: RunFolder) -> list[TrialResult]:
    """The trials that have both a prediction and an accuracy, in the order of their numbers."""
    return [result for result in run.results() if result.predicted is not None and result.accuracy is not None]


def calibrations(results: Sequence[TrialResult]) -> list[Calibration]:
    """One calibration for each of `LEVELS`, over the complete trials of `results`.

    An interval is for the accuracy of one training. It contains the noise of a training, as the actual value does.

    Args:
        results: All have a prediction.
    """
    complete = [result for result in results if result.status == "complete"]
    errors = np.array([_error_of(result) for result in complete])
    plain, stretched = (
        np.array([result.predicted.measured_sd(stretch=stretch) for result in complete if result.predicted])
        for stretch in (1.0, OVERCONFIDENCE)
    )
    return [
        Calibration(
            level=level,
            inside=int((np.abs(errors) <= width * plain).sum()),
            inside_stretched=int((np.abs(errors) <= width * stretched).sum()),
            number=len(complete),
        )
        for level, width in LEVELS.items()
    ]


def _error_of(result: TrialResult) -> float:
    assert result.predicted is not None, "only predicted trials are judged"
    assert result.accuracy is not None, "only trials with an accuracy are judged"
    return result.accuracy - result.predicted.accuracy


def promising(stopped: Sequence[TrialResult], front: ParetoFront) -> set[int]:
    """Numbers of the stopped trials that would be on the front if they had ended as predicted."""
    found = set[int]()
    losses = losses_of(front.members, front.metrics)
    for result in stopped:
        assert result.predicted is not None, "only predicted trials are judged"
        own = [-result.predicted.accuracy, *(result.metric(metric) for metric in front.metrics[1:])]
        if is_non_dominated(np.vstack([losses, own]))[-1]:
            found.add(result.number)
    return found


def _in_fp32(front: ParetoFront) -> ParetoFront:
    """The front with accuracies in fp32, which are what is predicted."""
    members = [
        member if (found := member.confirmation) is None else dataclasses.replace(member, accuracy=found.fp32_mean)
        for member in front.members
    ]
    return ParetoFront(members=tuple(members), metrics=front.metrics)


def predictions_figure(results: Sequence[TrialResult], score: str) -> go.Figure:
    """Predicted against actual accuracy. An error bar is the interval in which the model expects 80 % of accuracies."""
    figure = go.Figure()
    kinds = (
        ("stopped, at the epoch that it reached", "stopped", _STOPPED_COLOUR, "circle-open", 0.7),
        ("complete", "complete", FRONT_COLOUR, "circle", 0.9),
    )
    complete = [result for result in results if result.status == "complete"]
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": _LINE_COLOUR, "dash": "dash", "width": 1},
        name="as predicted", hoverinfo="skip",
    )  # fmt: skip
    for name, status, colour, symbol, opacity in kinds:
        shown = [(r, r.predicted) for r in results if r.predicted is not None and r.status == status]
        if not shown:
            continue
        bars = [round(LEVELS[0.8] * predicted.measured_sd(), 5) for _, predicted in shown]
        figure.add_scatter(
            x=[predicted.accuracy for _, predicted in shown],
            y=[result.accuracy for result, _ in shown],
            mode="markers",
            marker={"size": 9, "color": colour, "symbol": symbol, "opacity": opacity},
            name=name,
            meta=status,
            visible="legendonly" if status == "stopped" and complete else True,
            customdata=[result.number for result, _ in shown],
            text=[
                f"<b>{result.arch_id}</b>, trial {result.number}, {result.status} after {result.epochs} epochs<br>"
                f"predicted {predicted.accuracy:.4f} ± {predicted.measured_sd():.4f}, reached {result.accuracy:.4f}"
                for result, predicted in shown
            ],
            hovertemplate="%{text}<extra></extra>",
            error_x=None
            if status == "stopped"
            else {"type": "data", "array": bars, "color": TRIAL_COLOUR, "thickness": 1, "width": 0},
        )
    figure.update_layout(
        template="plotly_white",
        xaxis={
            "title": f"{as_title(score)} that was predicted at the proposal",
            "tickformat": ".1%",
            "range": with_margin(
                [
                    r.predicted.accuracy + sign * LEVELS[0.8] * r.predicted.measured_sd()
                    for r in complete or results
                    for sign in (-1, 1)
                    if r.predicted
                ],
                least=0.002,
            ),
        },
        yaxis={
            "title": f"{as_title(score)} that was reached",
            "tickformat": ".1%",
            "range": with_margin([r.metric("accuracy") for r in complete or results], least=0.002),
        },
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        hoverlabel={"align": "left", "font": {"family": "monospace"}},
        autosize=True,
    )
    return figure


def prediction_lines(results: Sequence[TrialResult], front: ParetoFront, score: str) -> list[str]:
    """Lines for people: how far predictions were off, and what the model expected of the stopped trials."""
    lines = []
    complete = [result for result in results if result.status == "complete"]
    errors = np.array([_error_of(result) for result in complete])
    if len(errors) >= _FEWEST:
        lines.append(
            f"{score} of {len(errors)} complete trials was off by {np.median(np.abs(errors)):.4f} (median), and "
            f"{'above' if errors.mean() > 0 else 'below'} its prediction by {abs(errors.mean()):.4f} on average"
        )
    stopped = [result for result in results if result.status == "stopped"]
    if stopped and front.members:
        few = promising(stopped, front)
        trials = "one trial that it proposed was" if len(stopped) == 1 else f"{len(stopped)} trials it proposed were"
        lines.append(
            f"{trials} stopped; as predicted, {len(few) or 'none'} of them would stand on the present front"
            + (f": {', '.join(str(number) for number in sorted(few))}" if 0 < len(few) <= _MAX_NAMED else "")
        )
    return lines


_MAX_NAMED, _MAX_ROWS = 12, 200


def predictions_section(run: RunFolder, results: Sequence[TrialResult]) -> str:
    """HTML of the page's section on predictions. Empty if no trial has a prediction.

    Args:
        results: Result of `predicted_trials`.
    """
    if not results:
        return ""
    front, score = _in_fp32(run.front()), run.score_name
    complete = [result for result in results if result.status == "complete"]
    stopped = [result for result in results if result.status == "stopped"]
    parts = [
        '<section id="predictions"><h2>What the search expected</h2><p>The surrogate predicts the '
        f"{html.escape(score)} of each network that it proposes. These are its predictions as they were made, before "
        "the network was trained; the first trials and anchors have none. A bar holds 80 % of what it expected. "
        "Stopped trials show by the switch above the fronts, at the epoch that they reached.</p>",
        figure_html(
            "predictions", "predicted against actual accuracy of the trials; in the tables below", selects="predicted"
        ),
        "".join(f"<p>{html.escape(line)}</p>" for line in prediction_lines(results, front, score)),
    ]
    if len(complete) >= _FEWEST:
        rows = [
            (f"{each.level:.0%}", f"{each.inside / each.number:.0%} ({each.inside} of {each.number})",
             f"{each.inside_stretched / each.number:.0%} ({each.inside_stretched} of {each.number})")
            for each in calibrations(results)
        ]  # fmt: skip
        names = ("interval", "inside, model as fitted", f"inside, as proposals are decided ({OVERCONFIDENCE:g} x sd)")
        parts += [
            table_html("Calibration: actual values inside the intervals", names, rows, opened=True),
            "<p>Stopped trials have no accuracy of a full training, so they are missing here. They fell behind others, "
            "so the complete trials are on average better than what was expected of all.</p>",
        ]
    else:
        parts.append(f"<p>Calibration is told from {_FEWEST} complete trials with a prediction on.</p>")
    rows = [
        (r.number, r.arch_id, r.status, r.epochs, f"{p.accuracy:.4f}", f"{p.measured_sd():.4f}", f"{r.accuracy:.4f}")
        for r in complete
        if (p := r.predicted) is not None
    ]
    names = ("trial", "architecture", "status", "epochs", "predicted", "sd", "reached")
    parts.append(
        table_html("Complete trials and their predictions", names, rows[:_MAX_ROWS], prose=(1, 2), of_trials=True)
    )
    if stopped:
        few = promising(stopped, front) if front.members else set[int]()
        rows = [
            (r.number, r.arch_id, r.epochs, f"{p.accuracy:.4f}", f"{p.measured_sd():.4f}", f"{r.accuracy:.4f}",
             "yes" if r.number in few else "no")
            for r in stopped
            if (p := r.predicted) is not None
        ]  # fmt: skip
        rows.sort(key=lambda row: (row[6] == "no", row[0]))
        names = ("trial", "architecture", "epochs", "predicted", "sd", "when stopped", "predicted to be on the front")
        parts.append(table_html("Who was stopped", names, rows[:_MAX_ROWS], prose=(1,), of_trials=True))
    return "".join([*parts, "</section>"])
