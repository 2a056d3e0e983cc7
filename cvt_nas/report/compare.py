"""Comparison of several runs: overlaid fronts, and hypervolume over trials and over compute.

All hypervolumes have the same reference point. Runs that differ only in their seed are repeats of one another. They are
shown as one group with its spread.
"""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from cvt_nas.arch import Cost
from cvt_nas.config import Experiment, space_file_of
from cvt_nas.errors import RunFolderError, SpaceFileError
from cvt_nas.escaping import told
from cvt_nas.report.attainment import LEVELS, MIN_RUNS, add_surfaces, attainment_surfaces
from cvt_nas.report.figures import NAMES, cost_axis
from cvt_nas.report.page import figure_html, html_page, table_html
from cvt_nas.report.tables import growth_frame
from cvt_nas.results import MAXIMISED, DataIdentity, HypervolumeBox, Metric, ParetoFront, as_title, score_name
from cvt_nas.run import RunFolder
from cvt_nas.space import ALL_COST_METRICS, COST_METRICS, CostMetric

# Okabe and Ito's colours, which colour-blind people can tell apart. Grey replaces black, which a dark page hides.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888", "#999933")
_SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star", "hexagon")
_DASHES = ("solid", "dash", "dot", "dashdot")
_NUM_STEPS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Runs that are repeats of one another, in the order of their seeds.

    Args:
        name: Name in the space file. It is longer if it would not tell the groups apart.
        runs: At least one run.
    """

    name: str
    runs: tuple[RunFolder, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Runs in groups of repeats, with their common objectives.

    Args:
        metrics: Objectives that all runs have.
        box: Contains the spaces of all runs, so that their hypervolumes can be compared.
    """

    groups: tuple[Group, ...]
    metrics: tuple[Metric, ...]
    box: HypervolumeBox

    @property
    def score_name(self) -> str:
        """See `RunFolder.front_score_name`."""
        return self.groups[0].runs[0].front_score_name

    @classmethod
    def of(cls, runs: Sequence[RunFolder]) -> "Comparison":
        """Groups `runs`. A run that is named twice, or whose copy is named too, counts once.

        Raises RunFolderError if the runs are on different data, maximise different scores, have fronts in fp32 and in
        int8, have no common cost objective, or have different sections `deploy` while they share an objective that
        depends on it.
        """
        manifests = [run.manifest for run in runs]
        runs = [run for index, run in enumerate(runs) if manifests[index] not in manifests[:index]]
        if len(found := sorted({str(manifest["dataset"]) for manifest in manifests})) > 1:
            raise RunFolderError(f"runs on {' and '.join(found)} do not compare: name runs on the same data")
        if len(found := sorted(set(map(score_name, manifests)))) > 1:
            raise RunFolderError(f"runs that maximise {' and '.join(found)} do not compare")
        if len(found := sorted({run.front_score_name for run in runs})) > 1:
            raise RunFolderError(
                f"runs whose fronts go by {' and by '.join(found)} do not compare: name runs with the same "
                f"search.confirm.as"
            )
        known = [(run, data) for run in runs if (data := DataIdentity.of(run.manifest)) is not None]
        for run, data in known[1:]:
            if (difference := known[0][1].difference(data)) is not None:
                raise RunFolderError(
                    f"{known[0][0].place} and {run.place} are of other data, and do not compare: {difference}"
                )
        metrics: list[Metric] = [metric for metric in runs[0].metrics if all(metric in run.metrics for run in runs)]
        if len(metrics) < 2:
            raise RunFolderError("the runs have no cost in common among their objectives")
        deployed = [metric for metric in metrics if metric not in ("accuracy", *COST_METRICS)]
        if deployed and any(manifest.get("deploy") != manifests[0].get("deploy") for manifest in manifests):
            raise RunFolderError(f"runs with different sections deploy do not compare by {' and '.join(deployed)}")
        boxes = [run.box for run in runs]
        least, greatest = (
            Cost(
                **{field.name: pick(getattr(getattr(box, end), field.name) for box in boxes) for field in fields(Cost)}
            )
            for end, pick in (("least", min), ("greatest", max))
        )
        return cls(groups=_groups(runs), metrics=tuple(metrics), box=HypervolumeBox(least=least, greatest=greatest))

    def growth(self, run: RunFolder) -> pd.DataFrame:
        return growth_frame(run.ended(), self.metrics, self.box)

    def front(self, run: RunFolder) -> ParetoFront:
        return ParetoFront.of(run.confirmed() or run.results(), self.metrics)

    def points(self, run: RunFolder, metric: CostMetric) -> Float[np.ndarray, "points 2"]:
        """Cost and accuracy of the members of a run's front in these two objectives."""
        members = ParetoFront.of(self.front(run).members, ("accuracy", metric)).members
        return np.array([[m.metric(metric), m.metric("accuracy")] for m in members], dtype=float).reshape(-1, 2)

    @property
    def repeated(self) -> tuple[Group, ...]:
        """Groups with enough runs for `attainment_surfaces`. Only runs with a front count."""
        return tuple(group for group in self.groups if sum(bool(self.front(r).members) for r in group.runs) >= MIN_RUNS)

    def frame(self) -> pd.DataFrame:
        """A table with one row per run: `group, run, seed, trials, complete, hours, front, best, hypervolume`.

        `hours` is the training time of all workers together. The hypervolume of a confirmed front is computed from
        means. It is lower than one from accuracies that were selected for being high.
        """
        rows = [
            {
                "group": group.name,
                "run": told(run.place),
                "seed": run.manifest["seed"],
                "trials": len(run.results()),
                "complete": sum(result.status == "complete" for result in run.results()),
                "hours": sum(result.train_seconds for result in run.results()) / 3600,
                "front": len(front.members),
                "best": None if front.best is None else front.best.accuracy,
                "hypervolume": front.hypervolume(self.box),
            }
            for group in self.groups
            for run in group.runs
            for front in [self.front(run)]
        ]
        # dtype object, so that None stays None and does not become NaN
        return pd.DataFrame(rows).assign(best=pd.Series([row["best"] for row in rows], dtype=object))

    def summary(self) -> dict[str, Any]:
        """The output of `compare --json`: `metrics, box, runs, groups`. The spread of a group is over its runs."""
        frame = self.frame()
        groups = []
        for group in self.groups:
            values = frame.loc[frame["group"] == group.name, "hypervolume"]
            sd = float(values.std()) if len(values) > 1 else None
            groups.append({"group": group.name, "runs": len(values), "mean": float(values.mean()), "sd": sd})
        return {
            "metrics": list(self.metrics),
            "box": self.box.to_json(),
            "runs": frame.to_dict("records"),
            "groups": groups,
        }


def _groups(runs: Sequence[RunFolder]) -> tuple[Group, ...]:
    alike: list[tuple[Any, list[RunFolder]]] = []
    for run in runs:
        # the training of one architecture has the space file of a search, but is not a search
        settings = (_settings_of(run), run.manifest.get("arch_id"), run.manifest["epochs"], _began_with(run))
        members = next((members for known, members in alike if known == settings), None)
        if members is None:
            alike.append((settings, [run]))
        else:
            members.append(run)
    names = [members[0].manifest["name"] for _, members in alike]
    if len(set(names)) < len(names):
        names = [
            f"{name}: {_search_of(settings) if arch_id is None else f'training of {arch_id}'}{''.join(began)}"
            for name, ((settings, arch_id, _, began), _) in zip(names, alike, strict=True)
        ]
    names = [name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names, start=1)]
    return tuple(
        Group(name=name, runs=tuple(sorted(members, key=lambda run: run.manifest["seed"])))
        for name, (_, members) in zip(names, alike, strict=True)
    )


def _settings_of(run: RunFolder) -> Experiment | str:
    """All settings of a run, without its seed and number of trials. The file's hash if the file cannot be read here."""
    try:
        experiment = space_file_of(run)
    except SpaceFileError:
        return run.manifest["fingerprint"]
    search = dataclasses.replace(experiment.search, seed=0, trials=1)
    return dataclasses.replace(experiment, name="", text="", warnings=(), search=search)


def _began_with(run: RunFolder) -> tuple[str, ...]:
    """The weights and the earlier runs that a run began with, as parts of the name of its group."""
    init, earlier = run.manifest.get("init"), run.manifest.get("learn_from", ())
    weights = () if init is None else (f", from {init['path']} ({init.get('sha256', '')[:8]})",)
    return (*weights, *(f", learning from {told(entry['place'])}" for entry in earlier))


def _search_of(settings: Experiment | str) -> str:
    if isinstance(settings, str):
        return settings[:6]
    search = settings.search
    return ", ".join([search.sampler, search.scheduler, *([search.weights] if search.has_supernet else [])])


def compare_page(comparison: Comparison) -> str:
    """The comparison as a complete HTML page; see `html_page`."""
    costs: list[CostMetric] = [metric for metric in ALL_COST_METRICS if metric in comparison.metrics]
    figures = {f"front-{metric}": _fronts_figure(comparison, metric) for metric in costs}
    figures |= {
        "over-trials": _growth_figure(comparison, "ended", "Trials that ended", 1.0),
        "over-compute": _growth_figure(comparison, "train_seconds", "Hours of training, all workers", 3600.0),
    }
    if comparison.repeated:
        figures |= {f"attained-{metric}": _attainment_figure(comparison, metric) for metric in costs}
    found = comparison.summary()
    rows = [
        (row["group"], row["run"], row["seed"], row["trials"], row["complete"], f"{row['hours']:.3f}", row["front"],
         "-" if row["best"] is None else f"{row['best']:.4f}", f"{row['hypervolume']:.4f}")
        for row in found["runs"]
    ]  # fmt: skip
    groups = [
        f"<div><dt>{html.escape(group['group'])}</dt><dd>{_spread(group)}<small>hypervolume, "
        f"{group['runs']} run{'s' if group['runs'] > 1 else ''}</small></dd></div>"
        for group in found["groups"]
    ]
    fronts = "".join(
        figure_html(f"front-{m}", f"fronts of all runs, {comparison.score_name} against {NAMES[m]}") for m in costs
    )
    names = ("group", "run", "seed", "trials", "complete", "hours of training", "front", "best", "hypervolume")
    body = (
        f'<dl class="cards">{"".join(groups)}</dl>'
        f'<section id="fronts"><h2>Pareto fronts</h2><div class="pair">{fronts}</div></section>'
        f"{_attainment_section(comparison, costs)}"
        f'<section id="hypervolume"><h2>Hypervolume</h2><p>From {html.escape(comparison.score_name)} 0 at the greatest '
        f"costs of all the spaces; the mean over runs that differ in their seed alone, with the least and the greatest "
        f'of them as a band.{_growth_told(comparison)}</p><div class="pair">'
        f"{figure_html('over-trials', 'hypervolume over trials')}"
        f"{figure_html('over-compute', 'hypervolume over compute')}</div></section>"
        + table_html("Runs", names, rows, prose=(0, 1), opened=True)
    )
    return html_page(
        title="Searches compared",
        head=f'<p class="muted">{html.escape(str(comparison.groups[0].runs[0].manifest["dataset"]))}; objectives '
        f"{', '.join(comparison.metrics)}; {html.escape(comparison.score_name)} is of the search split</p>",
        body=body,
        figures=figures,
        data={},
        refresh=None,
    )


def _growth_told(comparison: Comparison) -> str:
    """A sentence on the curves of runs whose fronts are in int8. Empty for other runs."""
    first = comparison.groups[0].runs[0]
    return "" if first.front_score_name == first.score_name else " Over time, it is of the race's trainings, in fp32."


def _attainment_figure(comparison: Comparison, metric: CostMetric) -> go.Figure:
    figure = go.Figure()
    points = {group: [comparison.points(run, metric) for run in group.runs] for group in comparison.repeated}
    costs = [cost for found in points.values() for each in found for cost in each[:, 0].tolist()]
    for index, group in enumerate(comparison.groups):
        if group in points:
            colour = _COLOURS[index % len(_COLOURS)]
            surfaces = attainment_surfaces(points[group])
            add_surfaces(figure, surfaces, name=group.name, colour=colour, band=_faint(colour), end=max(costs))
    figure.update_layout(
        template="plotly_white",
        xaxis=cost_axis(metric, costs),
        yaxis={"title": f"{as_title(comparison.score_name)} on the search split", "tickformat": ".1%"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
    )
    return figure


def _attainment_section(comparison: Comparison, costs: Sequence[CostMetric]) -> str:
    if not comparison.repeated:
        return ""
    plots, tables = [], []
    for metric in costs:
        label = f"accuracy that a quarter, half and three quarters of the runs attain, over {NAMES[metric]}"
        plots.append(figure_html(f"attained-{metric}", f"{label}; in the table below"))
        rows = [
            (group.name, f"{surface.level:.0%}", f"{cost:,.10g}", f"{accuracy:.4f}")
            for group in comparison.repeated
            for surface in attainment_surfaces([comparison.points(run, metric) for run in group.runs])
            for cost, accuracy in zip(surface.costs, surface.accuracies, strict=True)
        ]
        names = ("group", "runs that attain it", NAMES[metric], comparison.score_name)
        tables.append(table_html(f"Attained over {NAMES[metric]}", names, rows, prose=(0,)))
    return (
        f'<section id="attained"><h2>What repeats attain</h2><p>At each cost: the line is what half of the runs of a '
        f"group reach or exceed, the band is from what {LEVELS[-1]:.0%} of them reach to what {LEVELS[0]:.0%} do (the "
        f"empirical attainment function). Told of groups of {MIN_RUNS} runs and more.</p>"
        f'<div class="pair">{"".join(plots)}</div>{"".join(tables)}</section>'
    )


def _spread(group: Mapping[str, Any]) -> str:
    return f"{group['mean']:.4f}" + ("" if group["sd"] is None else f" ± {group['sd']:.4f}")


def _fronts_figure(comparison: Comparison, metric: CostMetric) -> go.Figure:
    figure = go.Figure()
    for index, group in enumerate(comparison.groups):
        for run in group.runs:
            plane = ParetoFront.of(comparison.front(run).members, ("accuracy", metric)).members
            steps = sorted(plane, key=lambda member: member.metric(metric))
            figure.add_scatter(
                x=[member.metric(metric) for member in steps],
                y=[member.accuracy for member in steps],
                mode="lines+markers",
                line={
                    "shape": "vh" if metric in MAXIMISED else "hv",
                    "width": 1.5,
                    "color": _COLOURS[index % len(_COLOURS)],
                    "dash": _DASHES[index % len(_DASHES)],
                },
                marker={"size": 8, "symbol": _SYMBOLS[index % len(_SYMBOLS)]},
                name=group.name,
                legendgroup=group.name,
                showlegend=run is group.runs[0],
                text=[f"{member.arch_id}, trial {member.number}<br>{told(run.place)}" for member in steps],
                hovertemplate="%{text}<br>%{x}: %{y:.4f}<extra></extra>",
            )
    traces: Any = figure.data
    figure.update_layout(
        template="plotly_white",
        xaxis=cost_axis(metric, [value for trace in traces for value in trace.x]),
        yaxis={"title": f"{as_title(comparison.score_name)} on the search split", "tickformat": ".1%"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
    )
    return figure


def _growth_figure(comparison: Comparison, over: str, title: str, unit: float) -> go.Figure:
    """Mean hypervolume of each group. It ends with the shortest run, so that all means are over the same runs."""
    figure = go.Figure()
    for index, group in enumerate(comparison.groups):
        growths = [comparison.growth(run) for run in group.runs]
        end = min(growth[over].iloc[-1] for growth in growths)
        grid = np.unique(np.linspace(0, end, _NUM_STEPS) if over != "ended" else np.arange(end + 1))
        values = np.stack([
            growth["hypervolume"].to_numpy()[np.searchsorted(growth[over].to_numpy(), grid, side="right") - 1]
            for growth in growths
        ])  # fmt: skip
        colour, x = _COLOURS[index % len(_COLOURS)], (grid / unit).round(5).tolist()
        same: dict[str, Any] = {"mode": "lines", "legendgroup": group.name}
        if len(growths) > 1:
            for edge, fill in ((values.min(axis=0), None), (values.max(axis=0), "tonexty")):
                figure.add_scatter(
                    x=x,
                    y=edge.round(6).tolist(),
                    fill=fill,
                    fillcolor=_faint(colour),
                    hoverinfo="skip",
                    line={"width": 0, "shape": "hv"},
                    showlegend=False,
                    **same,
                )
        figure.add_scatter(
            x=x,
            y=values.mean(axis=0).round(6).tolist(),
            name=group.name,
            **same,
            line={"color": colour, "shape": "hv", "width": 2, "dash": _DASHES[index % len(_DASHES)]},
        )
    figure.update_layout(
        template="plotly_white",
        xaxis={"title": title, "rangemode": "tozero"},
        yaxis={"title": "Hypervolume"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
    )
    return figure


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"
