import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cvt_nas.arch import Cost, cvt
from cvt_nas.cli import main
from cvt_nas.errors import RunFolderError, StorageError
from cvt_nas.results import (
    DataIdentity,
    HypervolumeBox,
    ParetoFront,
    Status,
    TrialResult,
    hypervolume,
    is_non_dominated,
)
from cvt_nas.run import RunFolder, patiently, repair_last_line, write_atomically
from cvt_nas.run.files import append_line, read_lines

ALL = ("accuracy", "params", "flops")
MANIFEST = {
    "name": "made",
    "epochs": 3,
    "objectives": list(ALL),
    "hypervolume_box": {"least": {"params": 0, "flops": 0}, "greatest": {"params": 100, "flops": 100}},
}


def trial(
    number: int, accuracy: float | None, params: int = 50, flops: int = 50, status: Status = "complete"
) -> TrialResult:
    return TrialResult(
        number=number,
        arch=cvt(embed_dims=(8 * (number + 1),), depths=(1,), num_heads=(1,)),
        status=status,
        epochs=3,
        accuracy=accuracy,
        cost=Cost(params=params, flops=flops),
        curve=() if accuracy is None else (0.1, 0.1, accuracy),
        seconds=1.5,
        train_seconds=1.25,
        seed=7,
    )


# few values, so that ties and equal points are drawn too
losses = st.integers(1, 3).flatmap(
    lambda objectives: st.integers(0, 12).flatmap(
        lambda points: arrays(
            float, (points, objectives), elements=st.sampled_from([0.0, 0.2, 0.4, 0.5, 0.9, 1.0, 1.3])
        )
    )
)


@settings(max_examples=200)
@given(losses)
def test_non_dominated_is_what_the_definition_says(points: np.ndarray) -> None:
    def dominates(a: np.ndarray, b: np.ndarray) -> bool:
        return bool((a <= b).all() and (a < b).any())

    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert is_non_dominated(points).tolist() == expected


@settings(max_examples=200)
@given(losses)
def test_hypervolume_is_the_share_of_a_fine_grid_that_is_dominated(points: np.ndarray) -> None:
    objectives = points.shape[1]
    middles = np.stack(np.meshgrid(*[np.arange(0.05, 1, 0.1)] * objectives), axis=-1).reshape(-1, 1, objectives)
    is_dominated = (points <= middles).all(axis=-1).any(axis=-1)  # losses are multiples of a cell
    assert hypervolume(points) == pytest.approx(is_dominated.mean(), abs=1e-12)


def test_hypervolume_of_random_fronts_is_that_of_slabs() -> None:
    def of_slabs(points: np.ndarray) -> float:  # the last objective is swept
        if points.shape[1] == 1:
            return 1 - points.min()
        points = points[np.argsort(points[:, -1])]
        heights = np.diff(points[:, -1], append=1.0)
        return sum(height * of_slabs(points[: number + 1, :-1]) for number, height in enumerate(heights))

    rng = np.random.default_rng(0)
    for objectives, number in ((2, 80), (3, 40), (4, 15)):
        points = rng.random((number, objectives))
        assert hypervolume(points) == pytest.approx(of_slabs(points), rel=1e-12)


def test_only_complete_trials_compete_and_the_best_comes_first() -> None:
    results = [
        trial(0, 0.8, 30, 30),
        trial(1, 0.99, 1, 1, status="stopped"),
        trial(2, 0.9, 60, 60),
        trial(3, 0.7, 40, 40),
    ]
    front = ParetoFront.of(results, ALL)
    assert [member.number for member in front.members] == [2, 0]
    assert front.best is front.members[0]


def test_hypervolume_of_a_front_is_measured_from_the_stated_reference() -> None:
    box = HypervolumeBox(least=Cost(params=0, flops=0), greatest=Cost(params=100, flops=200))
    front = ParetoFront.of([trial(0, 0.8, 25, 100)], ALL)
    assert front.hypervolume(box) == pytest.approx(0.8 * 0.75 * 0.5)
    assert ParetoFront.of([], ALL).hypervolume(box) == 0


def test_the_knee_is_the_point_farthest_above_the_chord() -> None:
    results = [trial(0, 0.5, flops=1), trial(1, 0.85, flops=10), trial(2, 0.88, flops=50), trial(3, 0.9, flops=100)]
    front = ParetoFront.of(results, ("accuracy", "flops"))
    knee = front.knee()
    assert knee is not None
    assert knee.number == 1


def test_members_that_are_all_equal_have_the_first_as_their_knee() -> None:
    front = ParetoFront.of([trial(number, 1.0) for number in range(4)], ("accuracy", "flops"))
    assert front.knee() is front.members[0]


def test_an_empty_front_has_neither_best_nor_knee() -> None:
    front = ParetoFront.of([trial(0, None, status="diverged")], ALL)
    assert (front.best, front.knee()) == (None, None)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", MANIFEST)


def test_the_record_gives_back_what_was_appended(run: RunFolder) -> None:
    results = [trial(1, 0.5), trial(0, None, status="diverged")]
    for result in results:
        run.append(result)
    assert run.results() == (results[1], results[0])
    line = json.loads((run.path / "trials.jsonl").read_text().splitlines()[0])
    assert list(line) == (
        "number arch_id arch status epochs accuracy params flops curve seconds train_seconds seed device reason".split()
    )


def test_a_line_torn_by_a_crash_is_left_out_and_does_not_spoil_the_next(run: RunFolder) -> None:
    run.append(trial(0, 0.5))
    with (run.path / "trials.jsonl").open("a") as file:
        file.write('{"number": 1, "arch_')
    assert [result.number for result in run.results()] == [0]
    run.append(trial(2, 0.6))
    assert [result.number for result in run.results()] == [0, 2]


def test_a_damaged_line_is_named(run: RunFolder) -> None:
    run.append(trial(0, 0.5))
    (run.path / "trials.jsonl").write_text("{}}\n" + (run.path / "trials.jsonl").read_text())
    with pytest.raises(RunFolderError, match=r"trials.jsonl:1: damaged: Extra data"):
        run.results()


@pytest.mark.parametrize("change", [{"curve": []}, {"curve": [0.1, 0.5]}, {"accuracy": None}])
def test_a_complete_trial_that_lacks_accuracies_is_named(run: RunFolder, change: dict[str, object]) -> None:
    run.append(trial(0, 0.5))
    path = run.path / "trials.jsonl"
    path.write_text(path.read_text() + json.dumps(trial(1, 0.5).to_json() | change) + "\n")
    with pytest.raises(RunFolderError, match=r"trials.jsonl:2: .*a complete trial has an accuracy, and one after each"):
        run.results()


def test_a_run_is_never_overwritten(run: RunFolder) -> None:
    run.append(trial(0, 0.5))
    with pytest.raises(RunFolderError) as error:
        RunFolder.create(run.path, MANIFEST)
    assert str(error.value) == (
        f"{run.path} holds a run already, with 1 of its trials done; go on with it by --resume, or write elsewhere by "
        f"--out DIR"
    )


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run: no manifest.json in it"):
        RunFolder.open(tmp_path)


def test_picks(run: RunFolder) -> None:
    for result in (trial(0, 0.5, 1, 1), trial(1, 0.85, 10, 10), trial(2, 0.9, 100, 100), trial(3, 0.4, 200, 200)):
        run.append(result)
    assert run.pick("best").number == 2
    assert run.pick("knee").number == 1
    assert run.pick("flops<100").number == 1
    assert run.pick("params < 1e1").number == 0
    assert run.pick("params<1_000").number == 2
    assert run.pick("params<1.5e+2").number == 2
    for odd in ("params<1__0", "params<1_"):
        with pytest.raises(RunFolderError, match="or a limit as flops<4e9"):
            run.pick(odd)
    assert run.pick(trial(3, 0.4).arch_id[:6]).number == 3


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("flops<1", "nothing on the front has flops<1; the least flops are 1"),
        ("zzz", "no trial with an arch id that begins with 'zzz'"),
        ("", "4 trials with an arch id that begins with ''"),
    ],
)
def test_a_pick_that_means_nothing_says_so(run: RunFolder, what: str, message: str) -> None:
    for number in range(4):
        run.append(trial(number, 0.5 + number / 10, number + 1, number + 1))
    with pytest.raises(RunFolderError, match=message):
        run.pick(what)


def test_a_pick_of_a_run_with_no_complete_trial_says_so(run: RunFolder) -> None:
    run.append(trial(0, 0.5, status="stopped"))
    with pytest.raises(RunFolderError, match="no trial reached its last epoch yet"):
        run.pick("knee")


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        write_atomically(path, fail)
    assert path.read_text() == "old"


# --- a disk that is torn, full, away, or somebody else's


def test_a_torn_last_line_is_cut_off_wherever_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    for whole in (b"", b"{}\n", b"{}\n" * 5000):
        for torn in (b"", b"x", b"x" * 4095, b"x" * 4096, b"x" * 9000):
            path.write_bytes(whole + torn)
            repair_last_line(path)
            assert path.read_bytes() == whole
    repair_last_line(tmp_path / "not there")


def test_what_is_written_while_the_disk_is_away_waits_for_it(tmp_path: Path) -> None:
    run, away = tmp_path / "run", tmp_path / "away"
    run.mkdir()
    append_line(run / "record.jsonl", {"number": 0})
    run.rename(away)
    timer = threading.Timer(0.5, lambda: away.rename(run))
    timer.start()
    append_line(run / "record.jsonl", {"number": 1})
    timer.join()
    assert read_lines(run / "record.jsonl") == [{"number": 0}, {"number": 1}]
    with pytest.raises(StorageError):
        patiently((away / "gone").stat, seconds=0.2)


def test_a_line_that_is_tried_again_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors, sync = [OSError(errno.EIO, "no answer")], os.fsync

    def fails_once(file: int) -> None:
        if errors:
            raise errors.pop()
        sync(file)

    monkeypatch.setattr(os, "fsync", fails_once)
    append_line(tmp_path / "record.jsonl", {"number": 0})
    assert not errors
    assert read_lines(tmp_path / "record.jsonl") == [{"number": 0}]


@pytest.mark.parametrize("content", ["text", lambda file: torch.save({"a": torch.ones(9999)}, file)])
def test_a_full_disk_is_named_whoever_writes_to_it(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "file"
    (tmp_path / f".file.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left on device"):
        write_atomically(path, content)
    assert not list(tmp_path.iterdir())
    (tmp_path / "record.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left on device"):
        append_line(tmp_path / "record.jsonl", {"number": 0})


WHOLE = {
    "fingerprint": "f", "num_classes": 3, "classes_sha256": "c", "files_sha256": "d", "images": {"train": 5},
    "splits": {"train": 4}, "held_out": ["search"], "skipped": [], "notes": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        ({**WHOLE, "splits": {"train": "5"}}, "splits.train: "),
        ({**WHOLE, "splits": {"train": 5.5}}, "splits.train: "),
        ({**WHOLE, "images": None}, "images: "),
        ({**WHOLE, "num_classes": "3"}, "num_classes: "),
        ({**WHOLE, "skipped": [1]}, "skipped.0: "),
        ({**WHOLE, "held_out": "search"}, "held_out: "),
        ({"num_classes": 3}, "classes_sha256: "),
        ([], ""),
        ("digits", ""),
    ],
)
def test_a_damaged_record_of_the_data_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: Any, wrong: str
) -> None:
    run = RunFolder.create(tmp_path / "run", {**MANIFEST, "data": data})
    with pytest.raises(RunFolderError, match=rf"^manifest.json: data: {wrong}"):
        DataIdentity.of(run.manifest)
    run.append(trial(0, 0.5))
    assert main(["report", str(run.path)]) == 2
    assert f"manifest.json: data: {wrong}" in capsys.readouterr().err


def test_a_record_of_the_data_is_read_as_it_was_written() -> None:
    identity = DataIdentity.of({"data": WHOLE})
    assert identity is not None
    assert {**identity.to_json(), "fingerprint": "f"} == WHOLE


HOLD = """
import sys, time
from pathlib import Path
from cvt_nas.run import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_that_somebody_works_on_is_refused_until_he_ends_however_he_does(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, MANIFEST)
    code = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match=rf"process {holder.pid} on \S+ is at work on it"), run.locked():
            pass
        holder.kill()
    (tmp_path / "trials.jsonl").write_text('{"number": 0')
    (tmp_path / "study.journal").write_text('{"op_code": 0}\n{"op_')
    (tmp_path / "study.journal.lock").symlink_to("study.journal")
    (tmp_path / ".pareto.csv.1.partial").write_text("half")
    with run.locked():
        assert (tmp_path / "trials.jsonl").read_text() == ""
        assert (tmp_path / "study.journal").read_text() == '{"op_code": 0}\n'
        assert not {".pareto.csv.1.partial", "study.journal.lock"} & {path.name for path in tmp_path.iterdir()}
    with run.locked():  # and given back
        pass
