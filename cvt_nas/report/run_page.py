"""The page of one run."""

import datetime
import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cvt_nas.report.believing import beliefs_section
from cvt_nas.report.choices import choices_section, importance_frame
from cvt_nas.report.figures import (
    GROWTH_AXES,
    NAMES,
    choices_figure,
    curves_figure,
    growth_figure,
    importance_figure,
    missing_of,
)
from cvt_nas.report.fronts import front_figure
from cvt_nas.report.int8 import int8_cells, int8_heads, judged_runtimes
from cvt_nas.report.page import PageParts, figure_html, html_page, table_html
from cvt_nas.report.page_data import page_data
from cvt_nas.report.predictions import predicted_trials, predictions_figure, predictions_section
from cvt_nas.report.published import published_beside
from cvt_nas.report.random_search import Estimate, estimate_of, random_search_figure, random_search_section
from cvt_nas.report.ranking import misjudged_lines, quality_verdict, question_lines
from cvt_nas.report.stopping import Hindsight, hindsight_of, stopping_lines
from cvt_nas.report.supernet import supernet_figures, supernet_section
from cvt_nas.report.tables import choices_frame, costs_of, growth_frame
from cvt_nas.report.text import (
    accuracy_text,
    confirmation_lines,
    fp32_text,
    latency_lines,
    narrowing_lines,
    rank_lines,
    short,
)
from cvt_nas.results import DataIdentity, SupernetQuality, TrialResult
from cvt_nas.run import RunFolder


def run_page(run: RunFolder, *, refresh: int | None = None) -> str:
    """The whole record of a run as an HTML page; see `html_page`."""
    return html_page(**run_parts(run)._asdict(), refresh=refresh)


def run_parts(run: RunFolder) -> PageParts:
    """The parts of the page of a run."""
    results, manifest = run.results(), run.manifest
    published = published_beside(run)
    choices = choices_frame(run)
    growth = growth_frame(run.ended(), run.metrics, run.box)
    importances = importance_frame(run, choices)
    figures = {
        f"front-{metric}": front_figure(run, metric, published=published, describes=False) for metric in costs_of(run)
    }
    axes = [over for over in GROWTH_AXES if not growth[over].hasnans]  # older records do not tell when trials ended
    figures |= {f"growth-{over}": growth_figure(growth, over) for over in axes}
    figures["curves"] = curves_figure(run)
    hindsight = hindsight_of(run)
    estimate = estimate_of(run, hindsight)
    if estimate is not None:
        figures["random"] = random_search_figure(estimate)
    predicted = predicted_trials(run)
    if predicted:
        figures["predictions"] = predictions_figure(predicted, run.score_name)
    quality = run.supernet.quality()
    if quality is not None:
        figures |= supernet_figures(quality, run.score_name)
    complete = [result for result in results if result.status == "complete"]
    if len(choices.columns) and len(complete) > 1:
        figures["choices"] = choices_figure(
            choices.loc[[result.number for result in complete]], complete, run.score_name
        )
    if len(importances):
        figures["importance"] = importance_figure(importances.head(_MAX_BARS), run.score_name)
    sections = [
        _at_a_glance(run, results, quality),
        _fronts(run, bool(published)),
        choices_section(run, choices, importances, drawn="choices" in figures),
        _PAIR,
        _progress(run, growth, axes, hindsight, estimate),
        predictions_section(run, predicted),
        supernet_section(quality, run.score_name),
        _images(run),
        _trials(results, run.score_name, bool(len(choices.columns))),
        _what_was_run(run),
    ]
    head = (
        f'<p class="muted">{html.escape(str(manifest.get("dataset", "")))}, started '
        f"{html.escape(_time_text(manifest.get('created')))}; "
        f"{html.escape(run.score_name)} is of the search split, "
        f'which no training sees, unless it is called test</p>\n<nav aria-label="sections">'
        + " ".join(
            _link(name, text)
            for name, text in _SECTIONS
            if (name != "predictions" or predicted) and (name != "supernet" or quality)
        )
        + "</nav>"
    )
    return PageParts(
        title=f"{manifest['name']}: architecture search",
        head=head,
        body="\n".join(sections),
        figures=figures,
        data=page_data(run, results, choices),
    )


_MAX_BARS = 20
_SECTIONS = (
    ("fronts", "Fronts"),
    ("pair", "Side by side"),
    ("choices", "Choices"),
    ("progress", "Progress"),
    ("predictions", "Expected"),
    ("supernet", "Supernet"),
    ("images", "Images"),
    ("trials", "Trials"),
    ("about", "What was run"),
)


_SCRIPTED = ("pair",)  # sections that are empty without scripts
_PAIR = """<section id="pair" class="scripted"><h2>Two networks side by side</h2>
<div class="filters wide-lists">
<label>first <select id="pair-one" autocomplete="off" data-owned></select></label>
<label>second <select id="pair-other" autocomplete="off" data-owned></select></label>
</div>
<div id="pair-shown" data-owned></div></section>"""


def _link(name: str, text: str) -> str:
    return f'<a{" class=scripted" * (name in _SCRIPTED)} href="#{name}">{text}</a>'


def _at_a_glance(run: RunFolder, results: Sequence[TrialResult], quality: SupernetQuality | None) -> str:
    front, statuses = run.front(), Counter(result.status for result in results)
    best, knee, tested = front.best, front.knee(), run.test_accuracies()
    lost = sum(statuses[status] for status in ("diverged", "failed", "oom"))
    spent = run.seconds_spent or sum(result.train_seconds for result in results)
    cards = [
        ("Trials", str(len(results)), f"of {run.num_planned} planned" if run.num_planned else ""),
        ("Stopped early", str(statuses["stopped"]), f"{lost} lost" if lost else ""),
        ("Time", _time(spent), _expected(run) if run.seconds_spent else "of training, all workers together"),
        ("Hypervolume", f"{front.hypervolume(run.box):.4f}", f"from {run.front_score_name} 0 at the greatest costs"),
        ("On the front", str(len(front.members)), ""),
    ]
    for name, member in (("Best", best), ("Knee", knee)):
        if member is not None:
            test = tested.get(member.arch_id)
            more = f"{short(member.cost.params)} params, {short(member.cost.flops)} FLOPs"
            if run.front_score_name != run.score_name:
                more = f"{run.front_score_name}, {fp32_text(member)} in fp32; {more}"
            cards.append((name, accuracy_text(member), more + ("" if test is None else f"; test {test:.4f}")))
    parts = [f"<div><dt>{n}</dt><dd>{html.escape(v)}<small>{html.escape(m)}</small></dd></div>" for n, v, m in cards]
    data = DataIdentity.of(run.manifest)
    skipped = (
        []
        if data is None or not data.skipped
        else [f"images that cannot be read, and are skipped: {len(data.skipped):,}"]
    )
    notes = [*skipped, *confirmation_lines(run), *(line for line in rank_lines(run) if line.startswith("warning: "))]
    lines = [*latency_lines(run), *narrowing_lines(run)]
    if quality is not None:
        (notes if quality.faults else lines).append(quality_verdict(quality))
        lines += question_lines(quality)
        notes += misjudged_lines(quality)
    told = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    if not front.members:
        note = "no trial has reached its last epoch yet, so there is no front"
        candidates = run.candidates()
        notes.append(f"{note}; cvt-nas query shows the best of {len(candidates)} candidates" if candidates else note)
    warnings = "".join(f'<p class="warning">{html.escape(note)}</p>' for note in notes)
    return f'<dl class="cards">{"".join(parts)}</dl>{told}{warnings}'


def _expected(run: RunFolder) -> str:
    """The time that the plan of the search expects. Empty if there is no plan, or none that can be read."""
    plan = run.manifest.get("plan")
    hours = plan.get("hours") if isinstance(plan, dict) else None
    return f"{_time(3600 * hours)} expected" if isinstance(hours, int | float) else ""


def _time(seconds: float) -> str:
    for factor, unit in ((3600, "h"), (60, "min")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds:.0f} s"


def _fronts(run: RunFolder, is_published: bool) -> str:
    front, tested = run.front(), run.test_accuracies()
    is_int8, runtimes, known = run.front_score_name != run.score_name, judged_runtimes(run), run.int8.by_arch()
    rows = [
        (m.number, m.arch_id, accuracy_text(m), *([fp32_text(m)] if is_int8 else []),
         f"{tested[m.arch_id]:.4f}" if m.arch_id in tested else "-", f"{m.cost.params:,}", f"{m.cost.flops:,}",
         *int8_cells(known.get(m.arch_id, {}), runtimes))
        for m in front.members
    ]  # fmt: skip
    heads = ("trial", "architecture", run.front_score_name, *(["in fp32"] if is_int8 else []), "test", "params",
             "FLOPs", *int8_heads(runtimes))  # fmt: skip
    statuses = {result.status for result in run.results()}
    switches = []
    if "complete" in statuses and len(statuses) > 1:
        switches.append(_switch("stopped", "stopped and failed trials, at the epoch that they reached"))
    if is_published:
        switches.append(
            _switch(
                "published",
                "published models (their accuracy is of the validation images of ImageNet: x trained on ImageNet-1k, "
                "+ on ImageNet-22k first)",
                is_on=True,
            )
        )
    plots = "".join(
        figure_html(
            f"front-{metric}",
            f"{run.front_score_name} against {NAMES[metric]} of every trial, and the front; in the table below",
            selects=metric,
        )
        for metric in costs_of(run)
    )  # fmt: skip
    table = table_html("Pareto front", heads, rows, prose=(1,), of_trials=True)
    told = f"The front goes by {html.escape(run.front_score_name)}; all else is in fp32. " if is_int8 else ""
    return (
        f'<section id="fronts"><h2>Pareto fronts</h2><p>Only trials that reached the last epoch compete. {told}Select '
        f"a point, or a row of the trials' table, to see its architecture. The plots open on the complete trials; a "
        "double click shows everything.</p>"
        f'{"".join(switches)}<div id="limits" class="limits scripted" data-owned></div>'
        f'<div class="pair">{plots}</div>{table}'
        '<div class="arch" id="arch" aria-live="polite" data-owned></div></section>'
    )


def _switch(shows: str, label: str, *, is_on: bool = False) -> str:
    return f'<p><label><input type="checkbox" data-shows="{shows}"{" checked" * is_on}> {label}</label></p>'


def _progress(
    run: RunFolder, growth: pd.DataFrame, axes: Sequence[str], hindsight: Hindsight | None, estimate: Estimate | None
) -> str:
    steps = growth.loc[growth["hypervolume"].diff().fillna(1) > 0]
    rows = [
        (row["ended"], f"{row['train_seconds'] / 3600:.3f}", f"{row['hypervolume']:.4f}", f"{missing:.2%}")
        for row, missing in zip(steps.to_dict("records"), missing_of(steps["hypervolume"].to_numpy()), strict=True)
    ]
    plots = "".join(
        figure_html(
            f"growth-{over}", f"missing hypervolume over {over.replace('_', ' ')}; in the table below", style="low"
        )
        for over in axes
    )
    members, epochs = run.front().members, [*run.rungs, run.manifest["epochs"]]
    curves = [
        (m.number, m.arch_id, *(f"{m.curve[epoch - 1]:.4f}" if 0 < epoch <= len(m.curve) else "-" for epoch in epochs))
        for m in members
    ]
    return (
        '<section id="progress"><h2>How the search went</h2><h3>Hypervolume</h3><p>How much of '
        "the hypervolume at the end is still missing. Where the last step is near the end, more trials would probably "
        "find more.</p>"
        + f'<div class="three">{plots}</div>'
        + table_html("Growth of the hypervolume", ("trials", "hours of training", "hypervolume", "missing"), rows)
        + random_search_section(estimate)
        + "<h3>Learning curves</h3>"
        + figure_html("curves", f"{run.score_name} after each epoch of every trial; of the front in the table below")
        + table_html("Learning curves of the front", ("trial", "architecture", *(f"epoch {e}" for e in epochs)), curves,
                     prose=(1,))
        + "".join(f"<p>{html.escape(line)}</p>" for line in rank_lines(run) if not line.startswith("warning: "))
        + "".join(f"<p>{html.escape(line)}</p>" for line in stopping_lines(run, hindsight))
        + beliefs_section(run)
        + "</section>"
    )  # fmt: skip


def _images(run: RunFolder) -> str:
    samples = run.shown_images(run.samples_path)
    if not samples:
        return '<section id="images"><h2>Images</h2><p>This run keeps no images (data.show_images).</p></section>'
    rows = "".join(
        f'<h3>{html.escape(split)}</h3><ul class="shown">'
        + "".join(
            f'<li><img src="{html.escape(shown["image"])}" alt=""><span>{html.escape(shown["label"])}</span></li>'
            for shown in found
        )
        + "</ul>"
        for split, found in samples.items()
    )
    return (
        f'<section id="images"><h2>Images</h2><p>Some of each split, as the networks see them without augmentation. '
        f"What a network of the front gets wrong stands where it is selected.</p>{rows}</section>"
    )


def _trials(results: Sequence[TrialResult], score: str, has_choices: bool) -> str:
    options = "".join(
        f"<option>{html.escape(status)}</option>" for status in sorted({result.status for result in results})
    )
    more = (
        '<label class="check"><input type="checkbox" id="show-choices"> choices as columns</label>'
        if has_choices
        else ""
    )
    return f"""<section id="trials"><h2>All trials</h2>
<div class="filters">
<label>trial, id or reason <input type="text" id="filter-text" autocomplete="off"></label>
<label>status <select id="filter-status"><option value="">any</option>{options}</select></label>
<label>{html.escape(score)} from, %
<input type="text" id="filter-accuracy" inputmode="decimal" autocomplete="off"></label>
<label>params up to <input type="text" id="filter-params" placeholder="20M" autocomplete="off"></label>
<label>FLOPs up to <input type="text" id="filter-flops" placeholder="4.5G" autocomplete="off"></label>
<label class="check"><input type="checkbox" id="filter-front"> on the front</label>
{more}
<button type="button" id="download">download as CSV</button>
</div>
<div class="scroll"><table><caption>Trials; sort by the name of a column</caption>
<thead><tr id="heads" data-owned></tr></thead><tbody id="rows" data-owned></tbody></table></div>
<p class="bar"><span id="found" role="status" data-owned></span><span><button type="button" id="back">back</button>
<button type="button" id="on">on</button></span></p></section>"""


def _weights_told(init: Mapping[str, Any]) -> str:
    """The weights that networks begin with, or the teacher, with notes on them. Empty if there are none."""
    order = [f"sorted by {init['importance']}"] if init.get("importance", "none") != "none" else []
    return ". ".join([*([str(init["path"])] if init else []), *order, *init.get("notes", [])])


def _time_text(created: object) -> str:
    """A time in ISO 8601 as `2026-11-24 22:01 UTC`. Other values as they are."""
    if created is None:
        return "at an unknown time"
    try:
        return f"{datetime.datetime.fromisoformat(str(created)).astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return str(created)


def _what_was_run(run: RunFolder) -> str:
    manifest = run.manifest
    versions = manifest.get("versions", {})
    resources = manifest.get("resources", {})
    failed = [result for result in run.results() if result.reason]
    data = DataIdentity.of(manifest)
    facts = [
        ("data", None if data is None else ". ".join([data.describe(), *data.notes])),
        ("data, fingerprint", None if data is None else data.fingerprint),
        ("begins with", _weights_told(manifest.get("init") or {})),
        ("learns from", _weights_told(manifest.get("teacher") or {})),
        ("earlier runs", ", ".join(source["place"] for source in manifest.get("learn_from", ()))),
        ("command", manifest.get("command")),
        ("seed", manifest.get("seed")),
        ("objectives", ", ".join(run.metrics)),
        ("epochs", manifest.get("epochs")),
        ("devices", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in resources.items())),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("platform", manifest.get("platform")),
        ("space file, SHA-256", manifest.get("space_file_sha256")),
        ("run folder", run.place),
    ]
    rows = "".join(
        f'<tr><th scope="row" class="text">{name}</th><td class="prose">{html.escape(str(value))}</td></tr>'
        for name, value in facts
        if value not in (None, "")
    )
    ends = table_html(
        "Trials with a reason", ("trial", "status", "reason"), [(r.number, r.status, r.reason) for r in failed],
        prose=(1, 2),
    ) if failed else ""  # fmt: skip
    return (
        f'<section id="about"><h2>What was run</h2><div class="scroll"><table>{rows}</table></div>{ends}'
        f"<details><summary>The space file</summary><pre>{html.escape(str(manifest.get('space_file', '')))}</pre>"
        f"</details></section>"
    )
