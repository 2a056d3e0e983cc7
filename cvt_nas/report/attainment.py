"""The accuracy that a quarter, half and three quarters of several runs attain at each cost.

With two objectives, sorting yields the empirical attainment function. At each cost, the best accuracies of the runs are
sorted, and the surface is the highest one that enough runs reach.

Source: Grunert da Fonseca et al. 2001, doi:10.1007/3-540-44719-9_15.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

LEVELS = (0.25, 0.5, 0.75)
MIN_RUNS = 3  # quarters of fewer runs say nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Surface:
    """Corners of a staircase that rises with cost. At least `level` of the runs attain each corner.

    Args:
        costs, accuracies: Strictly rising.
    """

    level: float
    costs: tuple[float, ...]
    accuracies: tuple[float, ...]


def attainment_surfaces(
    runs: Sequence[Float[np.ndarray, "points 2"]], levels: Sequence[float] = LEVELS
) -> list[Surface]:
    """One surface for each of the `levels`.

    Args:
        runs: Costs and accuracies of the networks of each run. Points may be dominated. At least one run is needed.
        levels: Shares of the runs, above 0 and at most 1. The number of runs that a share stands for is rounded up.
    """
    costs = np.unique(np.concatenate([points[:, 0] for points in runs]))
    best = np.full((len(runs), len(costs)), -np.inf)
    for row, points in zip(best, runs, strict=True):
        np.maximum.at(row, np.searchsorted(costs, points[:, 0]), points[:, 1])
    best = np.sort(np.maximum.accumulate(best, axis=1), axis=0)[::-1]  # at each cost, the best run first
    surfaces = []
    for level in levels:
        reached = best[math.ceil(level * len(runs) - 1e-9) - 1]
        corners = np.flatnonzero(reached > np.concatenate([[-np.inf], reached[:-1]]))
        surfaces.append(
            Surface(
                level=level, costs=tuple(costs[corners].tolist()), accuracies=tuple(reached[corners].tolist())
            )
        )  # fmt: skip
    return surfaces


def add_surfaces(
    figure: go.Figure,
    surfaces: Sequence[Surface],
    *,
    name: str,
    colour: str,
    band: str,
    end: float,
    panel: tuple[int, int] | None = None,
) -> None:
    """Draws three surfaces, the highest first, such as those of `LEVELS`: the middle one as a line, the others as the
    edges of a band.

    Args:
        band: Colour between the edges.
        end: Greatest cost of the plot. The surfaces are drawn up to it.
        panel: Row and column in a figure of several plots, from 1.
    """
    best, middle, worst = surfaces
    row, column = panel or (None, None)
    same = {"mode": "lines", "legendgroup": name, "row": row, "col": column}
    if worst.costs:  # it is empty if three quarters of the runs have no point at any cost
        for edge, fill in ((best, None), (worst, "tonexty")):
            x, y = _corners(edge, worst.costs[0], end)
            line = {"width": 0, "shape": "hv"}
            figure.add_scatter(
                x=x, y=y, line=line, fill=fill, fillcolor=band, hoverinfo="skip", showlegend=False, **same
            )  # fmt: skip
    for edge in (best, worst):
        x, y = _corners(edge, 0.0, end)
        figure.add_scatter(
            x=x, y=y, line={"width": 1, "shape": "hv", "color": colour, "dash": "dot"}, showlegend=False, **same,
            hovertemplate=f"{name}: {edge.level:.0%} of the runs attain %{{y:.4f}} at %{{x}}<extra></extra>",
        )  # fmt: skip
    x, y = _corners(middle, 0.0, end)
    figure.add_scatter(
        x=x, y=y, line={"width": 2, "shape": "hv", "color": colour}, name=name, **same,
        hovertemplate=f"{name}: half of the runs attain %{{y:.4f}} at %{{x}}<extra></extra>",
    )  # fmt: skip


def _corners(surface: Surface, begin: float, end: float) -> tuple[list[float], list[float]]:
    """Corners of `surface` between the costs `begin` and `end`. It starts at its first corner if that is later."""
    if not surface.costs:
        return [], []
    first = max(begin, surface.costs[0])
    kept = [pair for pair in zip(surface.costs, surface.accuracies, strict=True) if pair[0] > first]
    there = max(a for c, a in zip(surface.costs, surface.accuracies, strict=True) if c <= first)
    x, y = [first, *(cost for cost, _ in kept)], [there, *(accuracy for _, accuracy in kept)]
    return [*x, end], [*y, y[-1]]
