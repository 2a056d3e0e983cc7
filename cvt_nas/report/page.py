"""One self-contained HTML page. It contains plotly, the figures, the data and the style, and sends no requests."""

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

_GZIP_LEVEL = 6  # 9 takes four times as long for the data of a page, and saves a twentieth
_SCRIPTS = ("page.js", "limits.js", "trial.js", "table.js", "pair.js")  # joined to one script in this order


class PageParts(NamedTuple):
    """Contents of one page; see `html_page`."""

    title: str
    head: str
    body: str
    figures: Mapping[str, go.Figure]
    data: Mapping[str, object]


class Live(NamedTuple):
    """Additional parts of a page while it is served. All of them come from this package.

    Args:
        html: Stands in front of the main part.
        script: May send requests to the server of the page.
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
    """The page as text.

    The page's policy contains the hashes of the scripts below. So the browser runs no other script, even if the text of
    a file gets into the page as code. The policy also forbids requests. Only a page that is served may send some, to
    its server.

    Args:
        head, body: HTML of the header and of the main part. Text from files must be escaped in it. A figure is drawn in
            the element that has its name as `data-figure`.
        data: Data for the scripts: `{}`, or `trials` and what belongs to them.
        refresh: Seconds after which the page loads itself again. None for never.
        live: Additional parts of a page that is served.
    """
    scripts = [_plotly_script(), "\n".join(map(_text, _SCRIPTS)), *([] if live is None else [live.script])]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src {hashes} 'unsafe-eval'"  # since plotly is unpacked, and compiles code for parallel coordinates
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
    """The figures as trees for plotly.js."""
    trees = {name: json.loads(str(figure.to_json())) for name, figure in figures.items()}
    for tree in trees.values():
        tree["layout"].pop("template", None)  # the style for white paper, 7 kB in each figure
    return trees


@cache
def _plotly_script() -> str:
    """A script that contains plotly.js, packed to two fifths, and unpacks it. So the script's hash covers plotly.js."""
    packed_js = base64.b64encode(gzip.compress(get_plotlyjs().encode(), _GZIP_LEVEL, mtime=0)).decode()
    return _text("unpack.js").replace("PACKED", packed_js)


def _text(name: str) -> str:
    return resources.files("cvt_nas.report").joinpath(name).read_text(encoding="utf-8")


def packed(tree: object) -> str:
    """`tree` as compressed JSON, about a quarter of its size. It is base64, which cannot end a script element."""
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), _GZIP_LEVEL, mtime=0)).decode()


def figure_html(name: str, label: str, *, selects: str | None = None, style: str = "") -> str:
    """The HTML element in which a figure is drawn.

    Args:
        label: Describes the figure for screen readers.
        selects: Quantity on the x axis, if a click on a point selects its trial.
    """
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
    """HTML of a table that the reader can open and close.

    Args:
        prose: Indices of the columns with words.
        opened: Whether the table is open at first.
        of_trials: Whether the first column contains numbers of trials. Scripts can then mark the rows of trials.
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
