"""Runs at a URL: on another folder by file://, and in a real S3 server on this machine."""

import itertools
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

import fault_drill
from conftest import Watch, small_digits
from cvt_nas import load_model, search
from cvt_nas.cli import main
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.errors import RunFolderError, StorageError
from cvt_nas.results import RunFolder, TrialResult, add_mirror, mirror_of, write_atomically
from cvt_nas.results.files import append_line, delete, exists, fetch
from cvt_nas.results.mirror import _MIRRORS, Mirror, local_folder


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URL of an empty bucket."""
    import boto3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="runs")
        yield "s3://runs"
    server.stop()


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a place that nothing is in."""
    if request.param == "file":
        return f"file://{tmp_path}/there"
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Any]:
    """Forgets what this machine has of any run, so that it is another one."""

    def another() -> None:
        for folder in list(_MIRRORS):
            shutil.rmtree(folder, ignore_errors=True)
        _MIRRORS.clear()

    another()
    yield another
    another()


def test_what_is_written_on_one_machine_is_there_on_another(url: str, tmp_path: Path, machines: Any) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    add_mirror(one, url)
    write_atomically(one / "manifest.json", "{}")
    append_line(one / "trials.jsonl", {"number": 0})
    (one / "models" / "abc").mkdir(parents=True)
    write_atomically(one / "models" / "abc" / "arch.json", "[]")
    write_atomically(one / "models" / "abc" / "weights", lambda file: file.write(bytes(100_000)))
    add_mirror(two, url).pull_records()
    assert sorted(path.name for path in two.iterdir()) == ["manifest.json", "trials.jsonl"]
    assert exists(two / "models" / "abc" / "weights")
    fetch(two / "models" / "abc")
    assert (two / "models" / "abc" / "weights").stat().st_size == 100_000
    append_line(two / "trials.jsonl", {"number": 1})
    with (one / "trials.jsonl").open("a") as file:
        file.write("{}\n" * 20)  # longer than what is there: it was not copied yet
    add_mirror(one, url).pull_records()
    assert len((one / "trials.jsonl").read_text().splitlines()) == 21
    delete(two / "manifest.json")
    assert not exists(two / "manifest.json")
    fetch(two / "not there")
    assert not (two / "not there").exists()


def test_a_journal_is_copied_now_and_then_and_before_what_depends_on_it(tmp_path: Path, machines: Any) -> None:
    there = tmp_path / "there"
    copy, journal = add_mirror(tmp_path / "one", f"file://{there}"), tmp_path / "one" / "study.journal"
    journal.write_text("a")
    copy.push_soon(journal)
    journal.write_text("ab")
    copy.push_soon(journal)
    assert (there / "study.journal").read_text() == "a"
    append_line(tmp_path / "one" / "trials.jsonl", {})
    assert (there / "study.journal").read_text() == "ab"


def test_a_store_that_is_none_or_does_not_answer_is_one_line(
    tmp_path: Path, small: Experiment, monkeypatch: pytest.MonkeyPatch, machines: Any
) -> None:
    monkeypatch.setattr("cvt_nas.results.mirror._PATIENCE", 0.5)
    with pytest.raises(RunFolderError, match="nonsense"):
        RunFolder.open("nonsense://bucket/run")
    machines()
    with pytest.raises(StorageError, match="nonsense"):
        search(small, out="nonsense://bucket/run", cpus=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Mirror(tmp_path, f"file://{tmp_path}/file/below").push(tmp_path / "file")


def test_a_run_that_another_machine_works_on_is_refused_while_it_shows_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machines: Any
) -> None:
    monkeypatch.setattr("cvt_nas.results.folder._SECONDS_TO_SHOW_LIFE", 2.5)
    there = tmp_path / "there"
    run = RunFolder.create(f"file://{there}", {"name": "it"})
    (there / "holder.json").write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    stopped, ticks = threading.Event(), itertools.count()

    def live() -> None:
        while not stopped.wait(0.3):
            (there / "clock.json").write_text(json.dumps({"seconds": next(ticks)}))

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(RunFolderError, match="process 7 on elsewhere is at work on it"), run.locked():
        pass
    assert "elsewhere" in (there / "holder.json").read_text(), "he still is"
    stopped.set()
    thread.join()
    started = time.monotonic()
    with run.locked():  # he is dead, as far as one who waits can tell
        assert time.monotonic() - started > 2
        assert "elsewhere" not in (there / "holder.json").read_text()
    assert not (there / "holder.json").exists()


@pytest.mark.slow
def test_a_search_at_a_url_goes_on_and_is_read_on_another_machine(
    s3: str, tmp_path: Path, machines: Any, capsys: pytest.CaptureFixture
) -> None:
    url = f"{s3}/{tmp_path.name}"
    text = small_digits(**{"search:": "search: {trials: 4, sampler: random, scheduler: none}"})
    experiment, stop = parse_experiment(text, "small.yaml"), threading.Event()

    def react(event: Any) -> None:
        if isinstance(event, TrialResult):
            stop.set()

    run = search(experiment, out=url, cpus=2, stop=stop, progress=Watch(react))
    first = fault_drill.record_of(run.path)
    assert len(first) < 4
    assert run.place == url
    machines()
    assert not local_folder(url).exists()
    run = search(experiment, out=url, cpus=2, resume=True)
    assert mirror_of(run.path) is not None
    record = sorted(fault_drill.record_of(run.path), key=lambda tree: tree["number"])
    alone = search(experiment, out=tmp_path / "alone", cpus=2)
    assert record == sorted(fault_drill.record_of(alone.path), key=lambda tree: tree["number"])
    machines()
    assert main(["report", url, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["trials"], summary["run"]) == (4, url)
    machines()
    assert main(["export", url, "--pick", "best", "--to", str(tmp_path / "model")]) == 0
    best = RunFolder.open(url).front().best
    assert best is not None
    assert load_model(tmp_path / "model").arch.id == best.arch_id
