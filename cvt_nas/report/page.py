"""One self-contained page of HTML: plotly, the figures, the data and the style are in it, and it asks for nothing."""

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

_SCRIPTS = ("page.js", "limits.js", "trial.js", "table.js", "pair.js")  # one script, in this order


class PageParts(NamedTuple):
    """What one page says; see `html_page`."""

    title: str
    head: str
    body: str
    figures: Mapping[str, go.Figure]
    data: Mapping[str, object]


class Live(NamedTuple):
    """What a page has more while it is served, all of it from this package.

    Args:
        html: In front of the main part.
        script: May send requests to where the page came from.
    """

    html: str
    style: str
    script: str


def html_page(
    *,
    title: str,
    head: str,
    body: str,
    figures: Mapping[str, go.Figure],
    data: Mapping[str, object],
    refresh: int | None,
    live: Live | None = None,
) -> str:
    """The page.

    No script but those below is run, whatever the text of a file became: their hashes are in the page's policy, which
    forbids all requests too, but those of a page that is served.

    Args:
        head, body: HTML of the header and of the main part; whatever came from a file is escaped in it. A figure goes
            where an element has its name as `data-figure`.
        data: What the scripts read: `{}`, or `trials` and what belongs to them.
        refresh: Seconds after which the page loads itself again; None for never.
        live: Of a page that is served.
    """
    scripts = [_plotly_script(), "\n".join(map(_text, _SCRIPTS)), *([] if live is None else [live.script])]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src {hashes} 'unsafe-eval'"  # for plotly, which is unpacked, and compiles parallel coordinates
    ) + ("" if live is None else "; connect-src 'self'; form-action 'self'; base-uri 'none'")
    again = "" if refresh is None else f'<meta http-equiv="refresh" content="{refresh}">\n'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
{again}<title>{html.escape(title)}</title>
<style>
{_text("page.css")}{"" if live is None else live.style}</style>
</head>
<body>
<a class="skip" href="#main">to the content</a>
<header>
<div class="bar"><h1>{html.escape(title)}</h1><button type="button" id="theme">light / dark</button></div>
{head}
</header>
{"" if live is None else live.html}<main id="main">
{body}
</main>
<script type="application/gzip" id="data">{packed(data)}</script>
<script type="application/gzip" id="figures">{packed(figure_trees(figures))}</script>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def figure_trees(figures: Mapping[str, go.Figure]) -> dict[str, Any]:
    """The figures as plotly.js takes them."""
    trees = {name: json.loads(str(figure.to_json())) for name, figure in figures.items()}
    for tree in trees.values():
        tree["layout"].pop("template", None)  # a style of white paper, 7 kB each
    return trees


@cache
def _plotly_script() -> str:
    """Unpacks plotly.js, which is two fifths as large so. It stands in the script, whose hash covers it then."""
    packed_js = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    return _text("unpack.js").replace("PACKED", packed_js)


def _text(name: str) -> str:
    return resources.files("cvt_nas.report").joinpath(name).read_text(encoding="utf-8")


def packed(tree: object) -> str:
    """JSON, compressed to about a quarter, in letters none of which ends a script."""
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def figure_html(name: str, label: str, *, selects: str | None = None, style: str = "") -> str:
    """Where a figure goes. `label` says what it shows, for a screen reader; a click on a point of a figure that
    `selects` by a cost, on its x axis, selects a trial."""
    chosen = "" if selects is None else f' data-selects="{selects}"'
    return (
        f'<figure><div class="plot {style}" data-figure="{name}"{chosen} role="img" aria-label="{html.escape(label)}">'
        f"</div></figure>"
    )


def table_html(
    caption: str,
    names: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    prose: Sequence[int] = (),
    opened: bool = False,
    of_trials: bool = False,
) -> str:
    """A table that opens on demand.

    Args:
        prose: Columns of words.
        opened: Whether it is open at first.
        of_trials: Whether the first column is the number of a trial, whose row scripts may mark.
    """
    kinds = ["prose" if index in prose else "" for index in range(len(names))]
    head = "".join(
        f'<th scope="col"{_class(k, "text")}>{html.escape(n)}</th>' for n, k in zip(names, kinds, strict=True)
    )
    body = "".join(
        (f'<tr data-number="{row[0]}">' if of_trials else "<tr>")
        + "".join(f"<td{_class(k, 'prose')}>{html.escape(str(v))}</td>" for v, k in zip(row, kinds, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f"<details{' open' * opened}><summary>{html.escape(caption)}, as a table</summary>"
        f'<div class="scroll"><table><caption>'
        f"{html.escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _class(kind: str, name: str) -> str:
    return f' class="{name}"' if kind else ""
