"""The fronts that searches of `peers.py` attain: one plot for each method, beside the first method."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cvt_nas.bench import Settings, Table, Trace
from cvt_nas.report.attainment import add_surfaces, attainment_surfaces
from cvt_nas.report.pictures import draw
from cvt_nas.results import is_non_dominated

PICTURES = (".html", ".png", ".svg", ".pdf")
NUM_COLUMNS, PANEL_HEIGHT = 3, 300
FIRST, OTHER, TRUE = ("#0072B2", "rgba(0,114,178,0.15)"), ("#D55E00", "rgba(213,94,0,0.15)"), "#777777"


def write_attained(
    table: Table, settings: Settings, traces: Mapping[str, Sequence[Trace]], path: Path, *, title: str
) -> None:
    """Draws the fronts that one search, half of them and all of them attain within the budget, over the first cost.

    Args:
        traces: Of each method, one for each seed. The first method is drawn in every plot.
        path: An HTML file, or a picture (`.png`, `.svg`, `.pdf`), which needs kaleido and Chromium.
    """
    figure = attained_figure(table, settings, traces, title=title)
    if path.suffix == ".html":
        figure.write_html(path)
    else:
        draw({path: figure})


def attained_figure(
    table: Table, settings: Settings, traces: Mapping[str, Sequence[Trace]], *, title: str
) -> go.Figure:
    cost = next(metric for metric in settings.metrics if metric != "accuracy")
    points = np.column_stack([[getattr(found, cost) for found in table.costs], table.true_accuracies()])
    front = points[is_non_dominated(points * (1, -1))]
    front = front[np.argsort(front[:, 0])]
    first, *others = traces
    num_columns = min(NUM_COLUMNS, len(others))
    num_rows = -(-len(others) // num_columns)
    figure = make_subplots(
        rows=num_rows, cols=num_columns, subplot_titles=others, shared_yaxes=True,
        horizontal_spacing=0.05, vertical_spacing=0.25 / num_rows,
    )  # fmt: skip
    end = float(points[:, 0].max())
    for index, other in enumerate(others):
        panel = (index // num_columns + 1, index % num_columns + 1)
        figure.add_scatter(
            x=[*front[:, 0], end], y=[*front[:, 1], front[-1, 1]], mode="lines", name="the table's front",
            line={"shape": "hv", "width": 1, "color": TRUE}, row=panel[0], col=panel[1],
        )  # fmt: skip
        for name, (colour, band) in ((first, FIRST), (other, OTHER)):
            searches = [points[[row for _, row in trace.trained]] for trace in traces[name]]
            surfaces = attainment_surfaces(searches, (1 / len(searches), 0.5, 1.0))
            add_surfaces(figure, surfaces, name=name, colour=colour, band=band, end=end, panel=panel)
    figure.update_layout(
        template="plotly_white", showlegend=False, height=PANEL_HEIGHT * num_rows + 110,
        margin={"t": 110, "r": 20}, font={"size": 11},
        title={"text": f"{title}<br><sub>{first} in blue, the peer in orange: attained by one, half and all of "
                       f"{len(traces[first])} searches; the table's front in grey</sub>"},
    )  # fmt: skip
    figure.update_annotations(font={"size": 12})
    figure.update_xaxes(type="log", tickformat=".2s", nticks=3, matches="x")  # more would overlap in narrow plots
    figure.update_xaxes(title={"text": cost if cost == "params" else "FLOPs"}, row=num_rows)
    figure.update_yaxes(tickformat=".0%", matches="y")
    figure.update_yaxes(title={"text": "accuracy"}, col=1)
    return figure
