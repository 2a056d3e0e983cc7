"""Files with the figures of a run, for papers."""

from collections.abc import Mapping
from pathlib import Path

import plotly.graph_objects as go
import plotly.io

from cvt_nas.errors import ExportError
from cvt_nas.report.choices import importance_frame
from cvt_nas.report.figures import curves_figure, growth_figure, importance_figure
from cvt_nas.report.fronts import front_figure
from cvt_nas.report.published import published_beside
from cvt_nas.report.tables import choices_frame, costs_of, growth_frame
from cvt_nas.run import RunFolder

_WIDTH, _HEIGHT, _SCALE = 900, 600, 2  # a bitmap has twice as many pixels in each direction


def write_pictures(run: RunFolder, format: str) -> list[Path]:  # noqa: A002
    """Draws the fronts, the hypervolume, the learning curves and the importances into the run folder.

    Args:
        format: `png`, `svg` or `pdf`.

    Returns:
        Paths of the files.

    Raises:
        ExportError: If kaleido or Chrome is missing, or a file cannot be written.
    """
    figures: dict[str, go.Figure] = {
        f"pareto_{metric}": front_figure(run, metric, published=published_beside(run)) for metric in costs_of(run)
    }
    for figure in figures.values():  # nobody can click on a legend on paper
        figure.data = [trace for trace in figure.data if getattr(trace, "visible", None) != "legendonly"]
    growth = growth_frame(run.ended(), run.metrics, run.box)
    figures["hypervolume"] = growth_figure(growth, "ended")
    figures["hypervolume_over_compute"] = growth_figure(growth, "train_seconds")
    figures["learning_curves"] = curves_figure(run)
    importances = importance_frame(run, choices_frame(run))
    if len(importances):
        figures["importance"] = importance_figure(importances, run.score_name)
    return draw({run.path / f"{name}.{format}": figure for name, figure in figures.items()})


def draw(figures: Mapping[Path, go.Figure]) -> list[Path]:
    """Writes each figure to its path, in the format of the path's suffix; see `write_pictures`."""
    try:
        plotly.io.write_images(
            fig=list(figures.values()), file=list(figures), width=_WIDTH,
            height=[figure.layout.height or _HEIGHT for figure in figures.values()], scale=_SCALE,
        )  # fmt: skip
    except ValueError as error:
        raise ExportError("--static: needs kaleido: pip install 'cvt-nas[pictures]'") from error
    except RuntimeError as error:
        if "Chrome" not in str(error):
            raise
        raise ExportError(
            "--static: needs Chrome or Chromium: install one, or let `plotly_get_chrome` do it; BROWSER_PATH names one "
            "that lies elsewhere"
        ) from error
    except OSError as error:
        raise ExportError(f"--static: cannot be written: {error.strerror or error}") from error
    return list(figures)
