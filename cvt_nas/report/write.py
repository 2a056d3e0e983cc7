"""The files that `report` writes into the run folder."""

import html
import json
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from cvt_nas.report.fronts import front_figure
from cvt_nas.report.run_page import run_page
from cvt_nas.report.tables import front_frame, ranks_frame
from cvt_nas.results import Metric
from cvt_nas.run import RunFolder


def write_report(run: RunFolder, *, refresh: int | None = None) -> None:
    """Writes `report.html`, plotly.js, `pareto.csv`, `ranks.csv`, and a plot of accuracy against each objective cost.

    Args:
        refresh: Seconds after which the page loads itself again while the search runs. None for never.
    """
    run.store.write(run.path / "pareto.csv", front_frame(run).to_csv(index=False))
    run.store.write(run.path / "ranks.csv", ranks_frame(run).to_csv(index=False))
    run.store.write(run.path / "report.html", run_page(run, refresh=refresh))
    run.store.write(run.path / "plotly.min.js", get_plotlyjs())
    for metric in run.metrics:
        if metric != "accuracy":
            run.store.write(run.path / f"pareto_{metric}.html", _page(run, front_figure(run, metric), metric))


def _page(run: RunFolder, figure: go.Figure, metric: Metric) -> str:
    """A page that shows `figure` with the plotly.js beside it, or with that of plotly's server if it is missing."""
    title = html.escape(f"{run.manifest['name']}: {run.front_score_name} against {metric}")
    spec = json.dumps(json.loads(str(figure.to_json()))).replace("<", "\\u003c")  # so that no text ends the script
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
Plotly.newPlot("plot", figure.data, figure.layout, {{
  responsive: true, modeBarButtonsToRemove: ["sendChartToCloud"],
}});
</script>
</body>
</html>
"""


def report_paths(run: RunFolder) -> list[Path]:
    """The files of `write_report` that a reader should look at."""
    return [
        run.path / "pareto.csv",
        run.path / "report.html",
        *(run.path / f"pareto_{m}.html" for m in run.metrics if m != "accuracy"),
    ]
