"""Runs at a URL: on another folder by file://, and in a real S3 server on this machine."""

import itertools
import json
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

import fault_drill
from conftest import Watch, small_digits
from cvt_nas import load_model, search
from cvt_nas.cli import main
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.errors import RunFolderError, StorageError
from cvt_nas.follow.asking import ask_for_trials, ask_to_try
from cvt_nas.propose.asked import Asked
from cvt_nas.propose.journal import open_journal
from cvt_nas.propose.race import Race
from cvt_nas.propose.study import Study
from cvt_nas.results import TrialResult
from cvt_nas.results.candidate import Candidate
from cvt_nas.run import RunFolder, Store
from cvt_nas.run.mirror import Mirror
from cvt_nas.run.places import local_folder


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
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives this machine another cache, so that it has nothing of any run, as another one."""
    numbers = itertools.count()

    def another() -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{next(numbers)}"))

    another()
    return another


def run_in(folder: Path, url: str) -> RunFolder:
    """A machine's own folder of the run at `url`, which nothing was fetched to yet."""
    folder.mkdir(exist_ok=True)
    return RunFolder(folder, Store(Mirror(folder, url)))


def test_what_is_written_on_one_machine_is_there_on_another(url: str, tmp_path: Path) -> None:
    one, two = run_in(tmp_path / "one", url), run_in(tmp_path / "two", url)
    one.store.write(one.path / "manifest.json", "{}")
    one.store.append(one.path / "trials.jsonl", {"number": 0})
    one.model_path("abc").mkdir(parents=True)
    one.store.write(one.model_path("abc") / "arch.json", "[]")
    one.store.write(one.model_path("abc") / "weights", lambda file: file.write(bytes(100_000)))
    two.refresh()
    assert sorted(path.name for path in two.path.iterdir()) == ["manifest.json", "trials.jsonl"]
    assert two.store.exists(two.model_path("abc") / "weights")
    assert (two.fetched_model("abc") / "weights").stat().st_size == 100_000
    two.store.append(two.path / "trials.jsonl", {"number": 1})
    with (two.path / "trials.jsonl").open("a") as file:
        file.write("{}\n" * 20)  # not copied yet
    two.refresh()
    assert len((two.path / "trials.jsonl").read_text().splitlines()) == 22
    one.refresh()
    assert (one.path / "trials.jsonl").read_text() == '{"number": 0}\n{"number": 1}\n'
    two.store.delete(two.path / "manifest.json")
    assert not two.store.exists(two.path / "manifest.json")
    two.store.fetch(two.path / "not there")
    assert not (two.path / "not there").exists()


def test_a_run_that_travels_to_another_machine_finds_its_files_by_their_url(
    url: str, tmp_path: Path, machines: Any
) -> None:
    run = RunFolder.create(url, {"name": "it"})
    run.store.write(run.path / "images.npz", "names")
    travelling = pickle.dumps((run, run.standalone, RunFolder(tmp_path)))
    machines()
    there, standalone, local = pickle.loads(travelling)
    assert (there.place, standalone.place, local.place) == (url, f"{url}/standalone", str(tmp_path))
    assert there.path != run.path
    assert not there.has_begun, "it is for who needs it to fetch it"
    there.store.fetch(there.listing_path)
    assert there.listing_path.read_text() == "names"


def test_a_journal_is_copied_now_and_then_and_before_what_depends_on_it(tmp_path: Path) -> None:
    there = tmp_path / "there"
    run = run_in(tmp_path / "one", f"file://{there}")
    journal = run.journal_path
    journal.write_text("a\n")
    run.store.push_soon(journal)
    journal.write_text("a\nb\nhalf a li")
    run.store.push_soon(journal)
    assert (there / "study.journal").read_text() == "a\n"
    run.store.append(run.path / "trials.jsonl", {})
    assert (there / "study.journal").read_text() == "a\nb\n"


class Killed(BaseException):
    """Ends what does it, as a kill would."""


def grow(run: RunFolder, lines: range) -> None:
    for number in lines:
        run.store.append(run.path / "trials.jsonl", {"number": number, "text": "x" * (number % 7)})


def lines_of(run: RunFolder) -> list[int]:
    return [json.loads(line)["number"] for line in (run.path / "trials.jsonl").read_text().splitlines()]


def test_a_record_is_sent_in_few_pieces_and_is_one_file_when_the_work_ends(url: str, tmp_path: Path) -> None:
    one, two = run_in(tmp_path / "one", url), run_in(tmp_path / "two", url)
    grow(one, range(100))
    names = pieces_at(url)
    assert 1 < len(names) < 10
    assert names[0] == "trials.jsonl"
    two.refresh()
    assert lines_of(two) == list(range(100))
    grow(two, range(100, 110))
    one.refresh()
    assert lines_of(one) == list(range(110))
    two.store.finish(two.path)
    assert pieces_at(url) == ["trials.jsonl"]
    assert one.store.read_newest(one.path / "trials.jsonl") == (two.path / "trials.jsonl").read_bytes()


def pieces_at(url: str) -> list[str]:
    """Names of what holds the record of trials there."""
    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    names = sorted(name.rpartition("/")[2] for name in fs.ls(root, detail=False))
    return [name for name in names if name.startswith("trials")]


@pytest.mark.parametrize("at", ["put", "remove"])
def test_a_record_is_whole_on_another_machine_wherever_the_first_was_killed(tmp_path: Path, at: str) -> None:
    """Before each of the requests that fourteen lines and the end of the work make."""
    for number in itertools.count():
        url = f"file://{tmp_path}/there{number}"
        left = [number]
        copy = Mirror(tmp_path / f"one{number}", url)
        copy.folder.mkdir()
        one, two = RunFolder(copy.folder, Store(copy)), run_in(tmp_path / f"two{number}", url)
        do = getattr(copy, f"_{at}")

        def count(*about: Any, do: Any = do, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            do(*about)

        setattr(copy, f"_{at}", count)
        was_killed = False
        try:
            grow(one, range(14))
            one.store.finish(one.path)
        except Killed:
            was_killed = True
        two.refresh()
        known = lines_of(two) if (two.path / "trials.jsonl").exists() else []
        told = lines_of(one)
        assert known in (told, told[:-1])  # all for which `append` returned
        grow(two, range(len(known), 18))
        two.store.finish(two.path)
        assert pieces_at(url) == ["trials.jsonl"]
        one = run_in(one.path, url)
        one.refresh()
        assert lines_of(one) == list(range(18))
        if not was_killed:
            assert number > 5
            return


def test_what_a_machine_did_alone_gives_way_to_what_another_went_on_with(url: str, tmp_path: Path) -> None:
    one, two = run_in(tmp_path / "one", url), run_in(tmp_path / "two", url)
    grow(one, range(3))
    with (one.path / "trials.jsonl").open("a") as file:
        file.write('{"number": 77}\n' * 50)  # and the machine was lost before it could send it
    two.refresh()
    grow(two, range(3, 6))
    one = run_in(one.path, url)
    one.refresh()
    assert lines_of(one) == list(range(6))


def test_a_piece_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvt_nas.run.mirror._PATIENCE", 0.3)
    one, two = (run_in(tmp_path / name, f"file://{tmp_path}/there") for name in ("one", "two"))
    one.store.append(one.path / "trials.jsonl", {"number": 0, "text": "x" * 500})
    grow(one, range(1, 4))
    (tmp_path / "there" / "trials.jsonl").unlink()
    with pytest.raises(StorageError, match=r"trials.jsonl: lacks the bytes from 0 to \d+"):
        two.refresh()


HOSTILE_NAMES = ["../owned", "models/../../owned", "models/./owned", "models//owned", "..\\owned", "C:owned", "a\0b"]


def hostile_store(kind: str, name: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a run with an object of that name."""
    if kind == "memory":
        fs = fsspec.filesystem("memory")
        fs.store.clear()
        root = f"/{tmp_path.name}"
        fs.pipe_file(f"{root}/manifest.json", b"{}")
        held = fs.open(f"{root}/manifest.json", "rb")
        fs.store[f"{root}/{name}"] = held
        fs.pseudo_dirs += [f"{root}/models"]
        return f"memory:/{root}"
    import boto3

    for key in ("manifest.json", name):
        boto3.client("s3").put_object(Bucket="runs", Key=f"{tmp_path.name}/{key}", Body=b"{}")
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


@pytest.mark.parametrize("kind", ["memory", "s3"])
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_in_a_store_that_leads_out_of_the_run_folder_is_refused_and_nothing_is_written(
    kind: str, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = hostile_store(kind, name, request, tmp_path)
    folder = tmp_path / "cache" / "runs" / "run"
    copy = Mirror(folder, url)

    def pull() -> None:
        copy.pull_records(folder)
        copy.pull(folder / "models")

    with pytest.raises(StorageError, match=r"holds an object named '.*', which could be written outside") as caught:
        pull()
    assert url in str(caught.value)
    assert not list(tmp_path.rglob("owned*"))


def test_a_store_whose_folders_are_marked_by_empty_objects_is_read(s3: str, tmp_path: Path) -> None:
    import boto3

    for key in ("", "manifest.json", "models/", "models/abc/", "models/abc/arch.json"):
        boto3.client("s3").put_object(Bucket="runs", Key=f"{tmp_path.name}/{key}", Body=b"{}" if "." in key else b"")
    copy = Mirror(tmp_path / "here", f"{s3}/{tmp_path.name}")
    copy.pull_records(copy.folder)
    copy.pull(tmp_path / "here" / "models")
    assert sorted(str(path.relative_to(copy.folder)) for path in copy.folder.rglob("*.json")) == [
        "manifest.json", "models/abc/arch.json",
    ]  # fmt: skip


@pytest.mark.usefixtures("s3")
def test_the_command_line_names_a_url_that_holds_such_a_name(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture, machines: Any
) -> None:
    url = hostile_store("s3", "../owned", request, tmp_path)
    for verb in (["report", url], ["export", url, "--to", str(tmp_path / "to")], ["profile", f"{url}:knee"]):
        machines()
        assert main(verb) == 2
        error = capsys.readouterr().err
        assert error == (
            f"cvt-nas: {url}: cannot be read: {url}: holds an object named '..', which could be written outside the "
            f"run folder\n"
        )


def test_a_link_that_leads_out_of_the_run_folder_is_not_written_through(tmp_path: Path) -> None:
    there, here, outside = tmp_path / "there", tmp_path / "here", tmp_path / "outside"
    (there / "models" / "abc").mkdir(parents=True)
    (there / "models" / "abc" / "arch.json").write_text("{}")
    (here / "models").mkdir(parents=True)
    outside.mkdir()
    (here / "models" / "abc").symlink_to(outside)
    with pytest.raises(StorageError, match="is a link that leads out of the run folder"):
        Mirror(here, f"file://{there}").pull(here / "models")
    assert not list(outside.iterdir())


def test_a_run_inside_a_run_keeps_the_lines_of_every_machine(url: str, tmp_path: Path) -> None:
    """`standalone/` is worked on by one machine, by another, and by the first again."""
    for number in range(4):
        run = run_in(tmp_path / ("one", "two")[number % 2], url)
        run.refresh()
        alone = run.standalone
        alone.refresh()
        if number == 0:
            alone.begin({"name": "it"})
        with alone.locked():
            assert number == 0 or lines_of(alone) == list(range(3 * number))
            grow(alone, range(3 * number, 3 * number + 3))
        assert lines_of(alone) == list(range(3 * number + 3))


def test_a_line_is_never_added_to_a_record_that_has_other_lines_in_the_store(url: str, tmp_path: Path) -> None:
    run = run_in(tmp_path / "one", url)
    one, two = run.standalone, run_in(tmp_path / "two", url).standalone
    one.path.mkdir()
    grow(one, range(3))
    shutil.copytree(one.path, two.path)
    grow(one, range(3, 9))
    run.store.finish(run.path)
    kept = one.store.read_newest(one.path / "trials.jsonl")
    with pytest.raises(StorageError, match="standalone/trials.jsonl there has lines that are not here"):
        grow(two, range(100, 120))
    assert one.store.read_newest(one.path / "trials.jsonl") == kept
    assert pieces_at(url) == []
    grow(run_in(run.path, url).standalone, range(9, 12))  # a new process, whose record begins as that in the store does
    two.refresh()
    assert lines_of(two) == list(range(12))


def test_a_checkpoint_of_another_machine_counts_as_training(url: str, tmp_path: Path, machines: Any) -> None:
    run = RunFolder.create(url, {"name": "it"})
    assert not run.has_trained
    run.checkpoint_path(0).parent.mkdir()
    run.store.write(run.checkpoint_path(0), "weights")
    machines()
    run = RunFolder.open(url)
    assert not run.checkpoint_path(0).exists()
    assert run.has_trained
    run.store.delete(run.checkpoint_path(0))  # after which some stores keep an empty folder
    assert not run.has_trained


def test_a_lock_in_the_store_never_replaces_the_one_that_is_held(tmp_path: Path, machines: Any) -> None:
    there = tmp_path / "there"
    run = RunFolder.create(f"file://{there}", {"name": "it"})
    for name in ("lock", "study.journal.lock", ".manifest.json.7.partial", "trials.jsonl.7.partial"):
        (there / name).write_text("")
    for name in ("lock", "holder.json"):  # as after a copy of a whole run folder, made while somebody was at work
        (there / "standalone").mkdir(exist_ok=True)
        (there / "standalone" / name).write_text("{}")
    with run.locked():
        run.refresh()
        other = RunFolder.open(f"file://{there}")
        with pytest.raises(RunFolderError, match="is at work on it"), other.locked():
            pass
    run.store.fetch(run.standalone.path)
    assert not {path.name for path in run.path.rglob("*")} & {
        "study.journal.lock", ".manifest.json.7.partial", "trials.jsonl.7.partial",
    }  # fmt: skip
    assert not list(run.standalone.path.glob("*"))


def test_a_store_that_is_none_or_does_not_answer_is_one_line(
    tmp_path: Path, small: Experiment, monkeypatch: pytest.MonkeyPatch, machines: Any
) -> None:
    monkeypatch.setattr("cvt_nas.run.mirror._PATIENCE", 0.5)
    with pytest.raises(RunFolderError, match="nonsense"):
        RunFolder.open("nonsense://bucket/run")
    machines()
    with pytest.raises(StorageError, match="nonsense"):
        search(small, out="nonsense://bucket/run", cpus=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Mirror(tmp_path, f"file://{tmp_path}/file/below").push(tmp_path / "file")


def test_a_run_that_another_process_works_on_is_refused_while_its_mark_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machines: Any
) -> None:
    monkeypatch.setattr("cvt_nas.run.lock._SECONDS_TO_SHOW_LIFE", 2.5)
    there = tmp_path / "there"
    run = RunFolder.create(f"file://{there}", {"name": "it"})
    stopped = threading.Event()

    def beat(number: int) -> None:
        (there / "holder.json").write_text(json.dumps({"host": "elsewhere", "pid": 7, "id": "8", "beat": number}))

    def live() -> None:
        for number in itertools.count(1):
            if stopped.wait(0.3):
                return
            beat(number)

    beat(0)
    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(RunFolderError, match="process 7 on elsewhere is at work on it"), run.locked():
        pass
    assert "elsewhere" in (there / "holder.json").read_text(), "it still is"
    stopped.set()
    thread.join()
    started = time.monotonic()
    with run.locked():  # it is dead, as far as one who waits can tell
        assert time.monotonic() - started > 2
        assert "elsewhere" not in (there / "holder.json").read_text()
    assert not (there / "holder.json").exists()


def test_a_holder_shows_life_by_its_lock_alone_also_to_another_cache_of_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machines: Any
) -> None:
    monkeypatch.setattr("cvt_nas.run.lock._SECONDS_BETWEEN_BEATS", 0.2)
    monkeypatch.setattr("cvt_nas.run.lock._SECONDS_TO_SHOW_LIFE", 2.5)
    url = f"file://{tmp_path}/there"
    run = RunFolder.create(url, {"name": "it"})
    with run.locked():
        machines()
        with pytest.raises(RunFolderError, match="is at work on it"), RunFolder.open(url).locked():
            pass
        run.append_test_accuracy(1, "abc", 0.5, 10)
    with RunFolder.open(url).locked():
        pass


def test_a_process_whose_run_was_taken_writes_nothing_there_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machines: Any
) -> None:
    monkeypatch.setattr("cvt_nas.run.lock._SECONDS_BETWEEN_BEATS", 0.2)
    there = tmp_path / "there"
    run = RunFolder.create(f"file://{there}", {"name": "it"})
    taken = json.dumps({"host": "elsewhere", "pid": 7, "id": "8"})

    def work() -> None:
        with run.locked():
            (there / "holder.json").write_text(taken)  # after this one was silent for long
            for _ in range(600):
                run.append_test_accuracy(1, "abc", 0.5, 10)
                time.sleep(0.1)

    with pytest.raises(StorageError, match="another process has taken the run"):
        work()
    assert (there / "holder.json").read_text() == taken


def test_a_url_with_a_slash_at_its_end_is_the_same_run(tmp_path: Path, machines: Any) -> None:
    url = f"file://{tmp_path}/there"
    run = RunFolder.create(url, {"name": "it"})
    assert RunFolder.open(f"{url}/").path == run.path


def test_a_run_that_was_deleted_at_its_url_is_set_aside_and_not_mixed_with_the_next_one(
    tmp_path: Path, machines: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url, there = f"file://{tmp_path}/there", tmp_path / "there"
    first = RunFolder.create(url, {"name": "first"})
    cache = str(first.path.parent.parent.parent)
    with first.locked():
        first.append_test_accuracy(1, "abc", 0.1, 10)
        first.model_path("abc").mkdir(parents=True)
        first.store.write(first.model_path("abc") / "model.safetensors", "first")
    shutil.rmtree(there)
    with pytest.raises(RunFolderError, match="the run was deleted or replaced there"), first.locked():
        pass
    with pytest.raises(RunFolderError, match="holds no run"):
        RunFolder.open(url)
    assert f"kept in {first.path}.1" in caplog.text
    assert (Path(f"{first.path}.1") / "test.jsonl").read_text()
    machines()
    second = RunFolder.create(url, {"name": "second"})
    with second.locked():
        second.append_test_accuracy(1, "abc", 0.2, 10)
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    again = RunFolder.open(url)
    assert (again.path, again.manifest["name"]) == (first.path, "second")
    assert again.test_accuracies() == second.test_accuracies()
    assert not again.fetched_model("abc").exists()
    shutil.rmtree(there)
    machines()
    third = RunFolder.create(url, {"name": "third"})
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    again.refresh()
    assert (again.manifest["name"], again.test_accuracies()) == ("third", third.test_accuracies())


def test_what_is_deleted_is_of_this_run_whatever_its_name_is(url: str, tmp_path: Path) -> None:
    one, two = run_in(tmp_path / "one", f"{url}/lr1"), run_in(tmp_path / "two", f"{url}/lr[1]")
    for run in (one, two):
        run.checkpoint_path(3).parent.mkdir()
        run.store.write(run.checkpoint_path(3), "weights")
        run.store.write(run.path / "holder.json", "{}")
    two.store.delete(two.checkpoint_path(3).parent)
    two.store.delete(two.path / "holder.json")
    assert one.store.exists(one.checkpoint_path(3))
    assert one.store.exists(one.path / "holder.json")
    assert not two.store.exists(two.checkpoint_path(3))
    assert not two.store.exists(two.path / "holder.json")


def test_judgements_of_a_supernet_go_on_where_another_machine_left_them(
    url: str, small: Experiment, machines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch, cost = small.space.smallest, small.space.cost_range[0]
    measured = [
        Candidate(number=number, arch=arch, cost=cost, accuracy=0.5, num_images=9, seconds=1.0) for number in range(3)
    ]
    one = RunFolder.create(url, {"name": "it"})
    one.supernet.path.mkdir()
    one.supernet.append_inherited(measured[0])
    cache = str(one.path.parent.parent.parent)
    one.store.write(one.supernet.quality_path, "one")
    machines()
    two = RunFolder.open(url)
    assert len(two.supernet.inherited()) == 1
    two.supernet.append_inherited(measured[1])
    two.store.write(two.supernet.quality_path, "two")
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    again = RunFolder.open(url)
    assert len(again.supernet.inherited()) == 2
    again.supernet.append_inherited(measured[2])
    assert again.supernet.inherited() == tuple(measured)
    with pytest.raises(RunFolderError):
        again.supernet.quality()
    assert again.supernet.quality_path.read_text() == "two"


def test_a_model_whose_fetching_was_interrupted_is_fetched_again(url: str, tmp_path: Path) -> None:
    one, two = run_in(tmp_path / "one", url), run_in(tmp_path / "two", url)
    one.model_path("abc").mkdir(parents=True)
    for name in ("arch.json", "model.safetensors", "probe.safetensors", "preprocessing.json"):
        one.store.write(one.model_path("abc") / name, name)
    for path in two.fetched_model("abc").glob("pr*"):
        path.unlink()
    assert len(list(two.fetched_model("abc").iterdir())) == 4


def test_what_is_asked_on_another_machine_is_taken_by_the_search_and_the_answer_is_read_there(
    url: str, small: Experiment, machines: Any
) -> None:
    run = RunFolder.create(url, small.manifest(seed=0, num_trials=4))
    study = Study(
        small.space, metrics=small.objectives, sampler="random", num_trials=4, num_epochs=3, seed=0,
        storage=open_journal(run.journal_path, run.store), recorded=(),
    )  # fmt: skip
    race = Race(study, ask_first=Asked(study, run, small.space, is_fixed=False))
    machines()
    there = RunFolder.open(url)
    assert there.path != run.path
    tried, raised = ask_to_try(there, small.space.smallest), ask_for_trials(there, 9)
    proposal = race.ask()
    assert proposal is not None
    assert small.space.decode(proposal.genome) == small.space.smallest
    assert race.ask() is not None, "the second request is taken, too"
    assert run.num_planned == 9
    there.refresh()
    answers = there.requests.answers()
    assert (answers[tried.id].trial, answers[raised.id].refused) == (proposal.number, None)


HOLD = """
import sys
from cvt_nas.run import RunFolder
with RunFolder.open(sys.argv[1]).locked():
    print("held", flush=True)
    input()
"""


def test_a_follower_on_the_machine_of_a_search_leaves_its_newer_files_until_it_has_ended(
    tmp_path: Path, machines: Any
) -> None:
    url = f"file://{tmp_path}/there"
    run = RunFolder.create(url, {"name": "old"})
    words = [sys.executable, "-c", HOLD, url]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        (run.path / "manifest.json").write_text('{"name": "new"}')  # which is sent a moment later
        assert RunFolder.open(url).manifest["name"] == "new"
        run.refresh()
        assert run.manifest["name"] == "new"
        assert run.is_at_work()
        holder.kill()
    run.refresh()
    assert run.manifest["name"] == "old", "what was not sent gives way to what another machine may have written"


def test_a_place_that_only_one_process_sees_is_refused_before_anything_begins(small: Experiment) -> None:
    with pytest.raises(StorageError, match="memory://runs/x: is seen by one process only; give a path, or a URL"):
        search(small, out="memory://runs/x", cpus=1)
    with pytest.raises(StorageError, match="memory://runs/x: is seen by one process only"):
        search(small, out="memory://runs/x", address="ray://127.0.0.1:1")
    with pytest.raises(RunFolderError, match="cannot be read: memory://runs/x: is seen by one process only"):
        RunFolder.open("memory://runs/x")


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
    assert run.url == url
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
