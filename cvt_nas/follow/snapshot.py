"""Snapshots of a run for the page that is served, and the detection of changes."""

import dataclasses
import hashlib
import html
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cvt_nas.errors import first_line
from cvt_nas.follow.asking import is_search
from cvt_nas.propose.progress import BegunTrial, BegunTrials
from cvt_nas.report.page import PageParts, figure_trees
from cvt_nas.report.run_page import run_parts
from cvt_nas.run import RunFolder

_RECORDS = (
    "trials.jsonl", "confirm.jsonl", "test.jsonl", "latency.jsonl", "int8.jsonl", "candidates.jsonl", "manifest.json",
    "confirm.json", "samples.json", "supernet/quality.json", "supernet/narrowing.json",
)  # fmt: skip
_SHARE_OF_TIME = 2.0  # a page that took a second to make is made again after two seconds at the earliest
_SECONDS_BETWEEN_REFRESHES = 5.0  # for a run at a URL
_MAX_BEGUN = 100  # trials in the table
_MAX_REQUESTS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The contents of the page at one moment.

    Args:
        version: Identifies the content of `parts`.
        told: Text on the change since the last version, for a screen reader. Empty at first.
        fragments: HTML of the elements of the live section that change, by their ids.
    """

    version: str
    parts: PageParts
    told: str
    fragments: Mapping[str, str]

    def page_message(self) -> str:
        """The JSON that updates an open page to this version."""
        parts = self.parts
        return json.dumps(
            {
                "head": parts.head,
                "body": parts.body,
                "data": parts.data,
                "figures": figure_trees(parts.figures),
                "told": self.told,
            },
            allow_nan=False,
        )


class Snapshots:
    """Makes snapshots of a run. A call of `look` is cheap if nothing has changed."""

    def __init__(self, run: RunFolder) -> None:
        self._run, self._begun = run, BegunTrials(run)
        self._refreshed = self._ready = self._asked = 0.0
        self._is_at_work = False
        self._marks = self._marks_of_records()
        parts = run_parts(run)
        self._num_ended = len(run.ended())
        fragments = {"live-state": "", "live-begun": "", "live-requests": ""}
        self.latest = Snapshot(version=_version_of(parts), parts=parts, told="", fragments=fragments)
        self.look()

    def look(self, *, is_last: bool = False) -> Snapshot:
        """A snapshot of the current state of the run.

        Args:
            is_last: Whether changes are shown even if the page was made a moment ago.
        """
        now, problem = time.monotonic(), None
        try:
            if self._run.url is not None and now - self._refreshed >= _SECONDS_BETWEEN_REFRESHES:
                self._run.refresh()
                self._refreshed = time.monotonic()
            marks = self._marks_of_records()
            if marks != self._marks and (is_last or now >= self._ready):
                self._make_page()
                self._marks = marks
                self._ready = time.monotonic() + _SHARE_OF_TIME * (time.monotonic() - now)
        except Exception as error:  # the page shows it, and the next look comes soon
            problem = first_line(error)
        fragments = self._fragments(problem)
        if fragments != self.latest.fragments:
            self.latest = dataclasses.replace(self.latest, fragments=fragments)
        return self.latest

    def _make_page(self) -> None:
        parts = run_parts(self._run)
        ended = self._run.ended()
        told = self.latest.told
        if len(ended) > self._num_ended:
            last, num_new = ended[-1], len(ended) - self._num_ended
            accuracy = "" if last.accuracy is None else f", {self._run.score_name} {last.accuracy:.4f}"
            others = "" if num_new == 1 else f" and {num_new - 1} more"
            told = (
                f"New: trial {last.number} is {last.status}{accuracy}{others}. {len(self._run.results())} have ended."
            )
        self._num_ended = len(ended)
        self.latest = dataclasses.replace(self.latest, version=_version_of(parts), parts=parts, told=told)

    def _marks_of_records(self) -> list[tuple[int, int] | None]:
        """Size and modification time of each file that the page is made from."""
        marks = []
        for name in _RECORDS:
            try:
                status = (self._run.path / name).stat()
            except OSError:
                marks.append(None)
            else:
                marks.append((status.st_size, status.st_mtime_ns))
        return marks

    def _fragments(self, problem: str | None = None) -> dict[str, str]:
        try:
            is_at_work = self._looked_at_work()
            begun = self._begun()
            return {
                "live-state": html.escape(self._state(begun, is_at_work) if problem is None else problem),
                "live-begun": _begun_table(begun, is_at_work, self._run.score_name, self._run.manifest["epochs"]),
                "live-requests": self._requests_table(is_at_work),
            }
        except Exception as error:
            return {**self.latest.fragments, "live-state": html.escape(first_line(error))}

    def _looked_at_work(self) -> bool:
        """Whether a search is at work. A store is asked only now and then, since each question is a request to it."""
        now = time.monotonic()
        if self._run.url is None or now - self._asked >= _SECONDS_BETWEEN_REFRESHES:
            self._is_at_work, self._asked = self._run.is_at_work(), now
        return self._is_at_work

    def _state(self, begun: Sequence[BegunTrial], is_at_work: bool) -> str:
        run = self._run
        num_ended, planned = len(run.results()), run.num_planned
        told = f"{num_ended} of {planned} trials have ended" if planned else f"{num_ended} trials have ended"
        if (candidates := run.candidates()) and not begun:
            told = f"{len(candidates)} candidates are ranked, {told}"
        if (plan := run.confirmations.plan()) is not None:
            num_left = len(run.confirmations.missing())
            told += f", {len(plan.numbers) - num_left} of {len(plan.numbers)} further trainings too"
        if not is_at_work:
            return f"No search is at work on this run. {told}."
        num_paused = sum(trial.is_paused for trial in begun)
        training = f", {len(begun) - num_paused} in training" if len(begun) > num_paused else ""
        paused = f", {num_paused} paused" if num_paused else ""
        return f"The search is at work: {told}{training}{paused}."

    def _requests_table(self, is_at_work: bool) -> str:
        answers, rows = self._run.requests.answers(), []
        for request in reversed(self._run.requests.all()[-_MAX_REQUESTS:]):
            answer = answers.get(request.id)
            waits = "waiting" if is_at_work else "waits until the search is resumed"
            rows.append((request.created, request.describe(), waits if answer is None else answer.describe()))
        return _table("What was asked", ("when", "request", "answer"), rows)


def live_html(snapshot: Snapshot, run: RunFolder) -> str:
    """HTML of the live section of the page. Its forms send requests to the search."""
    fragments = snapshot.fragments
    return f"""<section id="live" aria-labelledby="live-title" data-version="{snapshot.version}">
<h2 id="live-title">Live: {html.escape(str(run.manifest["name"]))}</h2>
<p id="live-state">{fragments["live-state"]}</p>
<noscript><p>Load the page again to see new results.</p></noscript>
<p id="live-connection" role="status"></p>
<p id="live-told" class="heard" role="status" aria-live="polite"></p>
<div id="live-begun">{fragments["live-begun"]}</div>
<div id="live-requests">{fragments["live-requests"]}</div>
{_forms(run)}</section>
"""


def _forms(run: RunFolder) -> str:
    if not is_search(run):
        return ""
    forms = _STOP + (_TRIALS if run.manifest["epochs"] > 0 else "")
    return f'<details id="live-asks"><summary>Ask something of the search</summary>{forms}</details>'


_STOP = """
<form method="post" action="ask"><input type="hidden" name="ask" value="stop">
<p><button>Stop in order</button> The trials in training keep their checkpoints; <code>--resume</code> goes on.</p>
<output role="status"></output></form>
"""
_TRIALS = """<form method="post" action="ask"><input type="hidden" name="ask" value="trials">
<p><label>Trials in all <input type="number" name="trials" min="1" step="1" required></label>
<button>Raise</button></p>
<output role="status"></output></form>
<form method="post" action="ask"><input type="hidden" name="ask" value="try">
<p><label for="live-arch">An architecture to try next: a choice a line such as <code>stage0.depth: 2</code>, the content
of an <code>arch.json</code>, or a name such as <code>cvt-13</code></label></p>
<p><textarea id="live-arch" name="arch" rows="8" spellcheck="false" required></textarea></p>
<p><button>Try it next</button> <button type="button" id="live-fill" hidden>Fill in the selected trial</button></p>
<output role="status"></output></form>
"""


def _begun_table(begun: Sequence[BegunTrial], is_at_work: bool, score: str, num_epochs: int) -> str:
    rows = [
        (
            trial.number,
            trial.arch_id,
            f"{len(trial.curve)} of {num_epochs}",
            f"{trial.curve[-1]:.4f}" if trial.curve else "-",
            ("paused" if trial.is_paused else "in training") if is_at_work else "waits until the search is resumed",
        )
        for trial in begun[:_MAX_BEGUN]
    ]
    return _table("Trials that have begun", ("trial", "architecture", "epochs", score, "now"), rows)


def _table(caption: str, names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col" class="text">{html.escape(name)}</th>' for name in names)
    body = "".join(
        "<tr>" + "".join(f'<td class="prose">{html.escape(str(value))}</td>' for value in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _version_of(parts: PageParts) -> str:
    told = json.dumps([parts.head, parts.body, parts.data], allow_nan=False)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:16]
