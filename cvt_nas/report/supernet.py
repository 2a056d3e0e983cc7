"""The section of a run's page on its supernet: inherited accuracies against trainings of their own, also by choice."""

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from cvt_nas.report.figures import FRONT_COLOUR, MARK_COLOUR, TRIAL_COLOUR, label_of
from cvt_nas.report.fronts import with_margin
from cvt_nas.report.page import figure_html, table_html
from cvt_nas.report.ranking import agreement_lines
from cvt_nas.report.text import p_text, short
from cvt_nas.results import ChoiceEffect, JudgedArch, SupernetQuality, as_title

_MAX_EFFECTS = 30
_WIDTH_95 = 1.959964  # half width of a 95 % interval, in standard errors


def supernet_figures(quality: SupernetQuality, score: str) -> dict[str, go.Figure]:
    """The figures of the section, by name. Files of earlier versions have less to draw."""
    figures = {}
    if quality.archs:
        figures["inherited"] = inherited_figure(quality.archs, score)
    if quality.effects:
        figures["effects"] = effects_figure(quality.effects[:_MAX_EFFECTS], score)
    return figures


def inherited_figure(archs: Sequence[JudgedArch], score: str) -> go.Figure:
    """Inherited accuracy of each architecture against that of its own trainings."""
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": TRIAL_COLOUR, "dash": "dash", "width": 1},
        name="equal", hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=[arch.inherited for arch in archs],
        y=[arch.standalone for arch in archs],
        mode="markers",
        marker={"size": 9, "color": FRONT_COLOUR, "opacity": 0.8},
        name="an architecture",
        text=[
            f"<b>{arch.id}</b>, {short(arch.params)} params, {short(arch.flops)} FLOPs<br>"
            f"inherited {arch.inherited:.4f}, alone {arch.standalone:.4f}<br>"
            + "<br>".join(f"{label_of(name)} {option}" for name, option in arch.options.items())
            for arch in archs
        ],
        hovertemplate="%{text}<extra></extra>",
    )
    title = as_title(score)
    figure.update_layout(
        template="plotly_white",
        xaxis={
            "title": f"{title} as inherited", "tickformat": ".1%",
            "range": with_margin([arch.inherited for arch in archs], least=0.002),
        },
        yaxis={
            "title": f"{title} alone", "tickformat": ".1%",
            "range": with_margin([arch.standalone for arch in archs], least=0.002),
        },
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        hoverlabel={"align": "left", "font": {"family": "monospace"}},
        autosize=True,
    )  # fmt: skip
    return figure


def effects_figure(effects: Sequence[ChoiceEffect], score: str) -> go.Figure:
    """The effect of each choice alone and as inherited, with 95 % intervals. Misjudged choices are named."""
    figure, ordered = go.Figure(), effects[::-1]
    rows = [_label(effect) + (" (misjudged)" if effect.is_misjudged else "") for effect in ordered]
    for name, colour, symbol, values, sds in (
        ("alone", FRONT_COLOUR, "circle", [e.alone for e in ordered], [e.alone_sd for e in ordered]),
        ("inherited", MARK_COLOUR, "diamond-open", [e.inherited for e in ordered], [e.inherited_sd for e in ordered]),
    ):
        figure.add_scatter(
            x=[round(100 * value, 4) for value in values],
            y=rows,
            mode="markers",
            marker={"size": 9, "color": colour, "symbol": symbol},
            error_x={
                "type": "data", "array": [round(100 * _WIDTH_95 * (sd or 0.0), 4) for sd in sds], "color": colour,
                "thickness": 1, "width": 3,
            },
            name=name,
            hovertemplate="%{y}: %{x:+.2f}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_layout(
        template="plotly_white",
        xaxis={"title": f"Change of {score} at the same FLOPs, points", "zeroline": True},
        yaxis={"automargin": True},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        height=max(260, 90 + 30 * len(ordered)),
        margin={"t": 50},
        autosize=True,
    )
    return figure


def _label(effect: ChoiceEffect) -> str:
    return f"{label_of(effect.choice)} {effect.option} instead of {effect.instead_of}"


def supernet_section(quality: SupernetQuality | None, score: str) -> str:
    """HTML of the page's section on the supernet. Empty if it was not judged."""
    if quality is None:
        return ""
    parts = ['<section id="supernet"><h2>How well the supernet ranks</h2>']
    if quality.archs:
        parts += [
            f"<p>Each dot is an architecture: the inherited {html.escape(score)} that ranks it, and the one after "
            "training alone. Dots on a rising line, straight or not, are ranked alike. Dots above the dashed line gain "
            "by training alone.</p>",
            figure_html("inherited", f"{score} as inherited and alone; in the table below"),
        ]
    if quality.effects:
        parts += [
            "<h3>By choice</h3><p>How each choice changes accuracy among architectures with the same FLOPs, with 95 % "
            "intervals. The choice that is most surely misjudged comes first. "
            + ("" if len(quality.effects) <= _MAX_EFFECTS else f"The first {_MAX_EFFECTS} are drawn. ")
            + "</p>",
            figure_html("effects", "effects of the choices, alone and as inherited; in the table below"),
            table_html(
                "Effects of the choices, in points",
                ("choice", "alone", "inherited", "p of equal effects"),
                [
                    (_label(each), _points(each.alone, each.alone_sd), _points(each.inherited, each.inherited_sd),
                     p_text(each.p_value).removeprefix("= "))
                    for each in quality.effects
                ],
                prose=(0,),
            ),
        ]  # fmt: skip
    if quality.archs:
        parts.append(table_html(
            "Architectures that judge the supernet",
            ("architecture", "params", "FLOPs", "inherited", "alone"),
            [
                (arch.id, f"{arch.params:,}", f"{arch.flops:,}", f"{arch.inherited:.4f}", f"{arch.standalone:.4f}")
                for arch in quality.archs
            ],
            prose=(0,),
        ))  # fmt: skip
    parts.append("".join(f"<p>{html.escape(line)}</p>" for line in agreement_lines(quality)))
    return "".join([*parts, "</section>"])


def _points(change: float, sd: float | None) -> str:
    return f"{100 * change:+.2f}" + ("" if sd is None else f" ± {100 * _WIDTH_95 * sd:.2f}")
