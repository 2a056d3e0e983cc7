"""The page that is served: who may see it, how it changes under its reader, and a real search that hears from it."""

import contextlib
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, Page

from conftest import small_digits
from cvt_nas.arch import ArchConfig, arch_to_dict
from cvt_nas.cli import main
from cvt_nas.config import Experiment
from cvt_nas.errors import CvtNasError
from cvt_nas.follow.asking import text_of
from cvt_nas.follow.beside import page_beside
from cvt_nas.follow.serving import serving
from cvt_nas.propose.progress import BegunTrials
from cvt_nas.run import RunFolder
from pages import made_up_run

_SECONDS = 240.0  # in which a busy machine does anything of this file


def wait_until(is_so: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        if found := is_so():
            return found
        time.sleep(0.05)
    pytest.fail(f"not within {_SECONDS:g} s: {what}")


def requested(
    url: str, below: str = "", *, method: str = "GET", fields: dict[str, str] | None = None, **headers: str
) -> tuple[int, str]:
    """Status and body of a request to the page at `url`; a POST comes from the page itself unless `headers` differ."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
    sent = {"Host": place.netloc, "Accept": "application/json"}
    if method == "POST":
        sent |= {"Origin": f"http://{place.netloc}", "Content-Type": "application/x-www-form-urlencoded"}
    sent |= {name.title(): value for name, value in headers.items()}
    with contextlib.closing(connection):
        connection.request(method, place.path + below, urlencode(fields or {}), {k: v for k, v in sent.items() if v})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def post(url: str, **fields: str) -> tuple[int, str]:
    status, body = requested(url, "ask", method="POST", fields=fields)
    return status, json.loads(body)["said"]


class Events:
    """What the server sends, read by a thread as it arrives."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=_SECONDS)
        self._connection.request("GET", f"{place.path}events")
        self._answer = self._connection.getresponse()
        assert self._answer.headers["content-type"].startswith("text/event-stream")
        self.pages: list[dict[str, Any]] = []
        self.fragments: list[dict[str, str]] = []
        self.has_ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        kind = ""
        for line in self._answer:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "data" and kind == "page":
                self.pages.append(json.loads(value))
            elif name == "data" and kind == "live":
                self.fragments.append(json.loads(value))
            elif name == "data" and kind == "end":
                self.has_ended = True

    def close(self) -> None:
        self._thread.join(_SECONDS)
        self._answer.close()
        self._connection.close()


# --- who may see it


@pytest.fixture(scope="module")
def source(digits: Experiment, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return made_up_run(tmp_path_factory.mktemp("source") / "run", digits, 12)


@dataclass
class Growing:
    """A run that is served, to which trials of `lines` are added."""

    run: RunFolder
    url: str
    lines: list[str]

    def add(self, number: int) -> None:
        with (self.run.path / "trials.jsonl").open("a") as file:
            file.write("".join(self.lines[:number]))
        del self.lines[:number]


@pytest.fixture
def growing(source: RunFolder, tmp_path: Path) -> Iterator[Growing]:
    run = RunFolder.create(tmp_path / "run", {**source.manifest, "trials": 20})
    stop = threading.Event()
    lines = (source.path / "trials.jsonl").read_text().splitlines(keepends=True)
    with serving(run, stop=stop) as url:
        yield Growing(run, url, lines)


def test_whoever_lacks_the_token_or_comes_from_elsewhere_is_refused(growing: Growing) -> None:
    url, place = growing.url, urlsplit(growing.url)
    assert place.hostname == "127.0.0.1"
    assert requested(url)[0] == 200
    assert requested(url, host="localhost:8080")[0] == 200, "as through a tunnel of ssh"
    origin = f"{place.scheme}://{place.netloc}"
    wrong = f"{origin}/{'x' * len(place.path.strip('/'))}/"
    for other in (f"{origin}/", wrong, f"{url[:-2]}/"):
        for below in ("", "events", "choices/abc", "favicon.ico", "../", "%2e%2e/"):
            assert requested(other, below)[0] == 403, (other, below)
        assert requested(other, "ask", method="POST", fields={"ask": "trials", "trials": "30"})[0] == 403
    for host in ("evil.example", f"evil.example:{place.port}", "127.0.0.1.evil.example", "", "[::1", "192.168.0.7"):
        assert requested(url, host=host or "?")[0] == 403, host
        assert requested(url, "events", host=host or "?")[0] == 403, host
    for elsewhere in ("http://evil.example", "null", "", f"https://{place.netloc}", "http://127.0.0.1:1"):
        status, _ = requested(url, "ask", method="POST", fields={"ask": "trials", "trials": "30"}, origin=elsewhere)
        assert status == 403, elsewhere
    assert growing.run.requests.all() == ()
    assert requested(url, "ask")[0] == 405
    assert requested(url, "ask", method="POST", fields={"arch": "x" * 100_000})[0] == 413
    assert requested(url, "../manifest.json")[0] == 404


def test_a_port_that_is_taken_is_told_in_one_line(growing: Growing) -> None:
    port = urlsplit(growing.url).port
    assert port is not None
    with (
        pytest.raises(CvtNasError, match=rf"--port {port}: cannot be used: Address already in use"),
        serving(growing.run, port=port, stop=threading.Event()),
    ):
        pass


def test_requests_of_forms_are_checked_and_kept(growing: Growing, digits: Experiment) -> None:
    url, run = growing.url, growing.run
    assert post(url, ask="trials", trials="-3") == (400, "'-3' trials: must be a whole number")
    assert post(url, ask="delete") == (400, "'delete': must be stop, trials or try")
    assert post(url, ask="stop")[0] == 400, "no search is at work"
    status, said = post(url, ask="try", arch="cvt-13")
    assert (status, "is not in the space: " in said) == (400, True)
    genome = digits.space.sample_feasible(random.Random(99))
    assert genome is not None
    arch = digits.space.decode(genome)
    assert post(url, ask="try", arch=text_of(arch, run)) == (200, f"Asked: try {arch.id}. The answer stands above.")
    assert post(url, ask="trials", trials="30") == (200, "Asked: 30 trials in all. The answer stands above.")
    assert [request.arch for request in run.requests.all()] == [arch, None]
    assert run.num_planned == 30


# --- how it changes under its reader


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def page(browser: Browser, complaints: list[str], growing: Growing) -> Iterator[Page]:
    with contextlib.closing(browser.new_context(viewport={"width": 1280, "height": 900})) as context:
        opened = context.new_page()
        opened.set_default_timeout(1000 * _SECONDS)
        opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("request", lambda request: complaints.append(request.url)
                  if not request.url.startswith((growing.url, "blob:", "data:")) else None)  # fmt: skip
        yield opened


def test_new_results_arrive_without_taking_the_reader_from_the_place(
    growing: Growing, page: Page, complaints: list[str]
) -> None:
    growing.add(3)
    page.goto(growing.url)
    page.wait_for_function("document.querySelectorAll('#rows tr').length === 3")
    page.click("summary:has-text('Pareto front, as a table')")
    page.fill("#filter-text", "1")  # a filter that is typed stays
    page.fill("#filter-text", "")
    page.wait_for_selector("[data-figure=front-flops] .main-svg")
    page.wait_for_selector("[data-figure=front-params] .main-svg")
    ranges = "JSON.stringify(document.querySelector('[data-figure=front-flops]')._fullLayout.xaxis.range)"
    whole = page.evaluate(ranges)
    area = page.locator("[data-figure=front-flops] .nsewdrag")
    area.hover(position={"x": 100, "y": 100})  # waits until the plot stands still
    page.mouse.down()
    box = area.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 300, box["y"] + 250, steps=5)
    page.mouse.up()
    page.wait_for_function(f"{ranges} !== {json.dumps(whole)}")
    first = page.evaluate(
        "JSON.stringify(document.querySelector('[data-figure=front-params]')._fullLayout.xaxis.range)"
    )
    before = page.evaluate(ranges)
    page.focus("#rows tr:nth-child(3) button")
    number = page.evaluate("document.activeElement.closest('tr').dataset.number")
    page.evaluate("document.querySelector('#trials h2').scrollIntoView({ behavior: 'instant' })")
    top = "document.querySelector('#trials h2').getBoundingClientRect().top"
    at = page.evaluate(top)
    growing.add(9)
    page.wait_for_function("document.querySelectorAll('#rows tr').length === 12")
    assert page.locator("#rows tr").count() == 12
    assert page.locator("details:has(summary:has-text('Pareto front, as a table'))").get_attribute("open") is not None
    assert page.evaluate("document.activeElement.closest('tr').dataset.number") == number
    assert abs(page.evaluate(top) - at) <= 1
    assert page.evaluate(ranges) == before, "the zoom is kept"
    assert (
        page.evaluate("JSON.stringify(document.querySelector('[data-figure=front-params]')._fullLayout.xaxis.range)")
        != first
    ), "a plot that nobody zoomed shows the new points"
    assert "12 have ended" in page.locator("#live-told").inner_text()
    assert page.locator("#live-told").get_attribute("aria-live") == "polite"
    assert "12 of 20 trials have ended" in page.locator("#live-state").inner_text()
    assert page.locator(".cards dd").first.inner_text().startswith("12")
    points = (
        "document.querySelector('[data-figure=front-flops]').data.flatMap((trace) => trace.customdata || []).length"
    )
    assert page.evaluate(points) >= 12
    assert complaints == []


def test_results_that_come_before_the_page_is_ready_are_shown(
    growing: Growing, page: Page, complaints: list[str]
) -> None:
    growing.add(3)
    wait_until(lambda: "3 of 20 trials" in requested(growing.url)[1], "the trials are shown")
    _, stale = requested(growing.url)
    growing.add(9)
    wait_until(lambda: "12 of 20 trials" in requested(growing.url)[1], "the trials are shown")
    page.route(growing.url, lambda route: route.fulfill(body=stale, content_type="text/html; charset=utf-8"))
    page.goto(growing.url)
    page.wait_for_function("document.querySelectorAll('#rows tr').length === 12")
    assert complaints == []


def test_a_page_without_results_becomes_one_with_results(growing: Growing, page: Page, complaints: list[str]) -> None:
    page.goto(growing.url)
    page.wait_for_selector("#live-state:has-text('0 of 20 trials have ended')")
    assert page.locator("#rows tr").count() == 0
    growing.add(12)
    page.wait_for_function("document.querySelectorAll('#rows tr').length === 12")
    page.wait_for_selector("#arch h3")
    page.locator("[data-figure=choices]").scroll_into_view_if_needed()
    page.wait_for_selector("[data-figure=choices] .main-svg")
    page.check("#show-choices")
    assert page.locator("#heads th").count() > 12, "choices are columns"
    assert complaints == []


def test_the_selected_trial_is_a_start_for_what_is_tried_next_and_answers_are_shown(
    growing: Growing, page: Page, complaints: list[str], digits: Experiment
) -> None:
    growing.add(3)
    page.goto(growing.url)
    page.wait_for_selector("#rows tr")
    page.click("summary:has-text('Ask something of the search')")
    page.click("#live-fill")
    page.wait_for_function("document.getElementById('live-arch').value !== ''")
    form = page.locator("form:has(#live-arch)")
    form.locator("button:has-text('Try it next')").click()
    page.wait_for_selector("output.refused:has-text('has this architecture')")
    text = page.input_value("#live-arch")
    changed = re.sub(r"stage0.kv_stride: (\d)", lambda found: f"stage0.kv_stride: {3 - int(found[1])}", text)
    page.fill("#live-arch", changed)
    form.locator("button:has-text('Try it next')").click()
    page.wait_for_selector("#live-requests td:has-text('waits until the search is resumed')")
    (request,) = growing.run.requests.all()
    growing.run.requests.answer(request, trial=17)
    page.wait_for_selector("#live-requests td:has-text('taken by trial 17')")
    assert page.input_value("#live-arch") == changed, "what is typed stays"
    assert page.locator("#live-asks").get_attribute("open") is not None
    complaints[:] = [told for told in complaints if "400 (Bad Request)" not in told]
    assert complaints == []


def test_without_javascript_the_page_is_read_and_a_form_works(growing: Growing, browser: Browser) -> None:
    growing.add(6)
    wait_until(lambda: "6 of 20 trials" in requested(growing.url)[1], "the trials are shown")
    with contextlib.closing(browser.new_context(java_script_enabled=False)) as context:
        page = context.new_page()
        page.goto(growing.url)
        assert "6 of 20 trials have ended" in page.locator("#live-state").inner_text()
        assert "Load the page again" in page.locator("noscript").inner_text()
        page.click("summary:has-text('Ask something of the search')")
        page.fill("input[name=trials]", "33")
        page.click("button:has-text('Raise')")
        assert page.url == f"{growing.url}#live"
        assert growing.run.num_planned == 33


# --- a real search


@dataclass
class Story:
    """A search that is watched, asked, killed, asked, resumed and stopped."""

    run: RunFolder
    events: Events
    taken: ArchConfig
    waiting: ArchConfig
    answers: list[tuple[int, str]] = field(default_factory=list)
    status: int | None = None
    log: str = ""
    page_beside: tuple[int, str] = (0, "")
    address_beside: str = ""


@contextlib.contextmanager
def started(*words: str, log: IO[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "cvt_nas.cli", *words], stdout=log, stderr=log, text=True,
        start_new_session=True, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, small: Experiment) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("story")
    space, out, log = folder / "small.yaml", folder / "run", (folder / "log").open("w+")
    line = "search: {trials: 3, sampler: random, scheduler: none, seed: 0}"
    space.write_text(small_digits(**{"  epochs:": "  epochs: 2", "search:": line}))
    rng = random.Random(5)
    genomes = [small.space.sample_feasible(rng) for _ in range(2)]
    taken, waiting = (small.space.decode(genome) for genome in genomes if genome is not None)
    search = ["search", "--space", str(space), "--out", str(out), "--cpus", "1", "--gpus", "0"]

    def said(pattern: str) -> str | None:
        found = re.search(pattern, (folder / "log").read_text(), re.MULTILINE)
        return None if found is None else found[1]

    with contextlib.ExitStack() as stack:
        stack.enter_context(log)
        first = stack.enter_context(started(*search, log=log))
        wait_until((out / "manifest.json").exists, "the search begins")
        watching = stack.enter_context(started("watch", str(out), log=log))
        url = wait_until(lambda: said(r"^(http://127\S+)$"), "the page is served")
        run, events = RunFolder.open(out), Events(url)
        told = Story(run=run, events=events, taken=taken, waiting=waiting)
        wait_until(lambda: events.pages and events.pages[-1]["data"]["trials"], "a result arrives")
        told.answers.append(post(url, ask="try", arch=text_of(taken, run)))
        wait_until(lambda: run.requests.answers(), "the search takes the request")
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        wait_until(lambda: "No search is at work" in events.fragments[-1]["live-state"], "the end is told")
        told.answers.append(post(url, ask="stop"))
        told.answers.append(post(url, ask="try", arch=text_of(waiting, run)))
        told.answers.append(post(url, ask="trials", trials="40"))
        second = stack.enter_context(started(*search, "--resume", "--ui", log=log))
        told.address_beside = wait_until(lambda: said(r"live page: (\S+)$"), "the page beside the search")
        told.page_beside = requested(told.address_beside)
        wait_until(lambda: len(run.results()) >= 4, "both are trained, and another")
        told.answers.append(post(url, ask="stop"))
        second.wait(_SECONDS)
        told.status, told.log = second.returncode, (folder / "log").read_text()
        wait_until(lambda: "No search is at work" in events.fragments[-1]["live-state"], "the end is told")
        watching.send_signal(signal.SIGTERM)
        assert watching.wait(_SECONDS) == 0
        events.close()
        yield told


def test_results_and_epochs_of_a_search_arrive_as_they_come(story: Story) -> None:
    counts = [len(page["data"]["trials"]) for page in story.events.pages]
    assert counts == sorted(counts)
    assert counts[-1] == len(story.run.results())
    assert len(set(counts)) >= 3
    assert any("1 of 2" in fragments["live-begun"] for fragments in story.events.fragments), "an epoch of a trial"
    assert story.events.has_ended


def test_each_network_that_was_asked_for_is_trained_once_although_the_search_was_killed(story: Story) -> None:
    run = story.run
    asked = {request.arch.id: request for request in run.requests.all() if request.arch is not None}
    assert asked.keys() == {story.taken.id, story.waiting.id}
    for arch_id, request in asked.items():
        trials = [result for result in run.ended() if result.arch_id == arch_id]
        assert [(trial.status, trial.epochs) for trial in trials] == [("complete", 2)]
        assert run.requests.answers()[request.id].trial == trials[0].number
        shown = f"taken by trial {trials[0].number}"
        assert shown in story.events.fragments[-1]["live-requests"]
    numbers = [result.number for result in run.ended()]
    assert len(set(numbers)) == len(numbers)


def test_more_trials_than_the_file_has_are_trained_when_they_are_asked_for(story: Story) -> None:
    assert story.answers[3] == (200, "Asked: 40 trials in all. The answer stands above.")
    assert story.run.num_planned == 40
    assert len(story.run.results()) > 3
    assert f"{len(story.run.results())} of 40 trials are done and kept" in story.log


def test_a_search_that_is_asked_to_stop_ends_as_by_ctrl_c(story: Story) -> None:
    assert [status for status, _ in story.answers] == [200, 400, 200, 200, 200]
    assert story.status == 130
    assert "somebody asked for it: stopping in order" in story.log
    assert f"Go on with: cvt-nas search --space {story.run.path.parent / 'small.yaml'}" in story.log
    stops = [request for request in story.run.requests.all() if request.ask == "stop"]
    assert [story.run.requests.answers()[request.id].describe() for request in stops] == ["done"]
    assert BegunTrials(story.run)(), "what was in training goes on when the search does"


def test_the_page_beside_a_search_ends_with_it(story: Story) -> None:
    assert story.page_beside[0] == 200
    assert 'id="live-state"' in story.page_beside[1]
    with pytest.raises(ConnectionRefusedError):
        requested(story.address_beside)


def test_the_page_of_a_run_at_a_url_shows_what_another_machine_adds(
    digits: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    place = f"file://{tmp_path}/there"
    run = made_up_run(place, digits, 2)
    record = run.path / "trials.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text(lines[0])
    run.store.push(record)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    with (tmp_path / "log").open("w+") as log, started("watch", place, log=log) as watching:
        url = wait_until(lambda: re.search(r"^(http://127\S+)$", (tmp_path / "log").read_text(), re.M), "the page")[1]
        events = Events(url)
        with record.open("a") as file:
            file.write(lines[1])
        run.store.push(record)
        wait_until(lambda: events.pages and len(events.pages[-1]["data"]["trials"]) == 2, "the second trial arrives")
        assert post(url, ask="trials", trials="30")[0] == 200
        assert [request.trials for request in run.requests.all()] == [30]
        run.requests.answer(run.requests.all()[0])
        wait_until(lambda: '<td class="prose">done</td>' in events.fragments[-1]["live-requests"], "the answer")
        watching.send_signal(signal.SIGTERM)
        assert watching.wait(_SECONDS) == 0
        events.close()


# --- the verbs


def test_the_verb_asks_and_tells_what_became_of_it(
    source: RunFolder, digits: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_up_run(tmp_path / "run", digits, 2)
    assert main(["ask", str(run.path), "--trials", "9"]) == 0
    arch = next(result.arch for result in source.results() if result.arch_id not in
                [known.arch_id for known in run.results()])  # fmt: skip
    assert main(["ask", str(run.path), "--try", f"{source.path}:{arch.id}"]) == 0
    assert main(["ask", str(run.path), "--stop"]) == 2
    asked = capsys.readouterr()
    assert "no search is at work, so there is nothing to stop" in asked.err
    run.requests.answer(run.requests.all()[1], refused="for a test")
    assert main(["ask", str(run.path)]) == 0
    trials, tried = capsys.readouterr().out.splitlines()
    assert trials.endswith("9 trials in all: waiting")
    assert tried.endswith(f"try {arch.id}: refused: for a test")


def test_the_verb_takes_an_id_or_a_number_of_this_run_or_of_another(
    source: RunFolder, digits: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_up_run(tmp_path / "run", digits, 2, seed=1)
    known = [result.arch_id for result in run.results()]
    one, two, three = [result for result in source.results() if result.arch_id not in known][:3]

    def ask(*words: str) -> str:
        assert main(["ask", str(run.path), *words]) == 2
        return capsys.readouterr().err

    assert main(["ask", str(run.path), "--try", one.arch_id[:8], "--from", str(source.path)]) == 0
    assert main(["ask", str(run.path), "--try", str(two.number), "--from", str(source.path)]) == 0
    assert main(["ask", str(run.path), "--try", json.dumps(arch_to_dict(three.arch))]) == 0
    assert [request.arch for request in run.requests.all()] == [one.arch, two.arch, three.arch]
    capsys.readouterr()
    assert f"{known[0]}: trial 0 has this architecture, " in ask("--try", known[0][:8])
    assert f"{known[1]}: trial 1 has this architecture, " in ask("--try", "1")
    assert "an id that begins with 'abcdef'; the nearest of its 2 are " in ask("--try", "abcdef")
    assert f"{source.path}: no architecture with an id" in ask("--try", "abcdef", "--from", str(source.path))
    assert "--from" in ask("--from", str(source.path))
    assert "neither one of cvt-13" in ask("--try", "missing.json")
    assert len(run.requests.all()) == 3, "nothing that was refused was asked"


def test_a_page_beside_that_cannot_be_served_is_told_and_no_error(growing: Growing) -> None:
    port, told = urlsplit(growing.url).port, list[str]()
    assert port is not None
    with page_beside(growing.run, port=port, warn=told.append) as url:
        assert url is None
    (line,) = told
    assert line.startswith(f"no live page: --port {port}: cannot be used")
