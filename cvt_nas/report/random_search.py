"""Estimate of what random search would have found with the epochs of a search. The search's surrogate makes it."""

import html
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from cvt_nas.propose.observations import Observation
from cvt_nas.propose.surrogate import Surrogate
from cvt_nas.report.figures import FRONT_COLOUR, TRIAL_COLOUR
from cvt_nas.report.page import figure_html, table_html
from cvt_nas.report.stopping import Hindsight
from cvt_nas.results import hypervolume, is_non_dominated
from cvt_nas.run import RunFolder
from cvt_nas.space import Genome, GenomeSpace

_NUM_SEARCHES, _MAX_STEPS = 24, 12
_LEAST_POOL, _MAX_POOL = 1_000, 4_000  # number of networks that the simulated searches draw from


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Hypervolume of a search and of random search over the epochs, in units of full trainings.

    Accuracies are drawn from the distributions that the surrogate expects, anew for each simulated search. Those of the
    search itself are drawn too, since its measured accuracies were selected for being high and the simulated searches
    have none. Means of the distributions would make random search look too bad, since the best of many networks is
    better than the best of their means.

    Args:
        trainings: Numbers of full trainings, rising. The last is the whole budget.
        search: Median hypervolume of the networks that the search had trained in full by then.
        median, low, high: Quantiles of the simulated random searches: 50 %, 5 % and 95 %. These searches begin with the
            network of the search that has the most hypervolume alone. It is mostly the cheapest one, which can be found
            without a search.
    """

    trainings: tuple[int, ...]
    search: tuple[float, ...]
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def share_needed(self) -> float | None:
        """Share of the budget after which the search had the final hypervolume of random search. None if never."""
        reached = [
            number for number, value in zip(self.trainings, self.search, strict=True) if value >= self.median[-1]
        ]
        return reached[0] / self.trainings[-1] if reached else None


def estimate_random_search(
    surrogate: Surrogate,
    space: GenomeSpace,
    observations: Sequence[Observation],
    *,
    ended: Sequence[tuple[int, Genome | None]],
    num_epochs: int,
    seed: int = 0,
) -> Estimate | None:
    """Simulates random searches that train every network in full; see `Estimate`.

    Args:
        observations: All results of the search.
        ended: Epochs of each trial, and its genome if it was trained in full. In the order in which the trials ended.
        num_epochs: Epochs of a full training.

    Returns:
        None if the epochs suffice for fewer than two trainings, if the space has too few networks to draw from, or if
        no trial was trained in full.
    """
    spent = np.cumsum([epochs for epochs, _ in ended])
    budget = int(spent[-1]) // num_epochs if len(spent) else 0
    pool = _pool(space, min(max(_LEAST_POOL, 2 * budget), _MAX_POOL), random.Random(seed))
    if not 2 <= budget <= len(pool) or all(genome is None for _, genome in ended):
        return None
    trained = [(at, genome) for at, (_, genome) in zip(spent.tolist(), ended, strict=True) if genome is not None]
    others = _Networks.of(surrogate, observations, pool)
    own = _Networks.of(surrogate, observations, [genome for _, genome in trained])
    steps = np.unique(np.geomspace(1, budget, _MAX_STEPS).round().astype(int))
    rng = np.random.default_rng(seed)
    first = int(np.argmax([hypervolume(row[None]) for row in own.losses()]))
    by_then = np.searchsorted([at for at, _ in trained], steps * num_epochs, side="right")
    drawn, found = [], []
    for _ in range(_NUM_SEARCHES):
        of_search, order = own.losses(rng), rng.permutation(len(pool))[: budget - 1]
        drawn.append(_growth(np.vstack([of_search[[first]], others.losses(rng)[order]]), steps))
        found.append(_growth(of_search, by_then))
    low, median, high = np.quantile(drawn, (0.05, 0.5, 0.95), axis=0)
    return Estimate(
        trainings=tuple(steps.tolist()),
        search=tuple(np.median(found, axis=0).tolist()),
        median=tuple(median.tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
    )


def _pool(space: GenomeSpace, number: int, rng: random.Random) -> list[Genome]:
    drawn = (space.sample_feasible(rng) for _ in range(number))
    return list(dict.fromkeys(space.canonical(genome) for genome in drawn if genome is not None))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Networks:
    mean: Float[np.ndarray, " networks"]
    sd: Float[np.ndarray, " networks"]
    costs: Float[np.ndarray, "networks costs"]

    @classmethod
    def of(cls, surrogate: Surrogate, observations: Sequence[Observation], genomes: Sequence[Genome]) -> "_Networks":
        found = surrogate.predict(observations, genomes)
        mean, sd = np.array([each.accuracy for each in found]), np.array([each.sd for each in found])
        return cls(mean=mean, sd=sd, costs=surrogate.scaled_costs(genomes))

    def losses(self, rng: np.random.Generator | None = None) -> np.ndarray:
        """Losses with accuracies that are drawn for each network. Without `rng`, the expected accuracies are used."""
        drawn = self.mean if rng is None else rng.normal(self.mean, self.sd)
        return np.column_stack([1 - np.clip(drawn, 0.0, 1.0), self.costs])


def _growth(losses: np.ndarray, steps: np.ndarray) -> list[float]:
    """Hypervolumes of the first rows, for each number of rows in `steps`."""
    front, values, begin = np.empty((0, losses.shape[1])), [], 0
    for end in steps.tolist():
        front = np.vstack([front, losses[begin:end]])
        front = front[is_non_dominated(front)]
        values.append(hypervolume(front))
        begin = end
    return values


def estimate_of(run: RunFolder, hindsight: Hindsight | None) -> Estimate | None:
    """The estimate for a run. None without hindsight, or if networks inherited weights from a supernet.

    The surrogate knows too little about inherited weights.
    """
    if hindsight is None or any(result.inherited is not None for result in hindsight.results):
        return None
    complete = {r.number: o.genome for r, o in zip(hindsight.results, hindsight.observations, strict=True)
                if r.status == "complete"}  # fmt: skip
    ended = [(result.epochs, complete.get(result.number)) for result in run.ended()]
    return estimate_random_search(
        hindsight.surrogate, hindsight.space, hindsight.observations, ended=ended, num_epochs=run.manifest["epochs"]
    )


def random_search_figure(estimate: Estimate) -> go.Figure:
    """Hypervolume of this search and of random search, over full trainings."""
    x = list(estimate.trainings)
    figure = go.Figure()
    for edge, fill in ((estimate.low, None), (estimate.high, "tonexty")):
        figure.add_scatter(
            x=x, y=[round(value, 5) for value in edge], mode="lines", line={"width": 0}, fill=fill,
            fillcolor="rgba(122,138,153,0.25)", hoverinfo="skip", showlegend=False,
        )  # fmt: skip
    for name, values, colour, dash in (
        ("random search, median and 90 % of draws", estimate.median, TRIAL_COLOUR, "dash"),
        ("this search", estimate.search, FRONT_COLOUR, "solid"),
    ):
        figure.add_scatter(
            x=x, y=[round(value, 5) for value in values], mode="lines+markers", name=name,
            line={"color": colour, "dash": dash, "width": 2}, marker={"size": 6},
            hovertemplate="%{x} trainings: %{y:.4f}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        template="plotly_white",
        xaxis={
            "title": "Epochs, in trainings of full length",
            "type": "log",
            "tickvals": x,
            "ticktext": list(map(str, x)),
        },
        yaxis={"title": "Hypervolume, estimated"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        autosize=True,
    )
    return figure


def random_search_section(estimate: Estimate | None) -> str:
    """HTML for the section on the progress of the search. Empty if there is no estimate."""
    if estimate is None:
        return ""
    needed = estimate.share_needed
    told = (
        f"The search had what random search has at the end after {needed:.0%} of the epochs."
        if needed is not None
        else "The search never had what random search has at the end."
    )
    rows = [
        (number, f"{search:.4f}", f"{median:.4f}", f"{low:.4f} to {high:.4f}")
        for number, search, median, low, high in zip(
            estimate.trainings, estimate.search, estimate.median, estimate.low, estimate.high, strict=True
        )
    ]
    names = ("trainings", "this search", "random search, median", "90 % of draws")
    return (
        "<h3>Against random search, as the surrogate estimates it</h3><p>Nothing was trained for this. It rests on "
        "what the surrogate, which has learned from all trials, expects of random networks that are trained in full, "
        "and of those of this search. Random search is given the network of this search that has the most hypervolume "
        f"alone; mostly that is the cheapest, which needs no search to be found. {html.escape(told)}</p>"
        + figure_html(
            "random", "estimated hypervolume of the search and of random search; in the table below", style="low"
        )
        + table_html("Against random search, estimated", names, rows)
    )
