"""Searches through real Ray: early stopping, divergence, interruption and resumption."""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

from conftest import Watch, small_digits
from cvt_nas import search
from cvt_nas.cli import main
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.engine import TrainingSetup
from cvt_nas.errors import CvtNasError, DataError, RunFolderError
from cvt_nas.launch.resources import claim_resources
from cvt_nas.launch.trial import read_test_split
from cvt_nas.pipeline.phases import race_trials
from cvt_nas.results import TrialResult
from cvt_nas.results.events import EpochDone, TrialPaused, TrialStarted
from cvt_nas.run import RunFolder
from test_study import optuna_trials, study_of


def test_a_race_of_a_run_that_recorded_no_rungs_has_those_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = small_digits(**{"  epochs:": "  epochs: 8", "search:": "search: {sampler: random, reduction_factor: 3}"})
    experiment, found = parse_experiment(text, "old.yaml"), list[Any]()
    _, run = study_of(experiment, tmp_path / "run", 5)
    manifest = {name: value for name, value in run.manifest.items() if name != "rungs"}
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr("cvt_nas.pipeline.phases.run_trials", lambda search, race, keep: iter([found.append(race)]))
    search: Any = SimpleNamespace(experiment=experiment, run=run, num_trials=5, seed=0)
    assert next(race_trials(search)) is None
    assert list(found[0]._scheduler.asha.rungs) == [1, 3]


def test_a_missing_data_set_costs_no_run_folder(tmp_path: Path) -> None:
    text = small_digits(**{"data:": "data: {dataset: cifar10}"})
    with pytest.raises(DataError):
        search(parse_experiment(text, "cifar.yaml"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("two_cpus")
class TestOnTwoCpus:
    def test_a_search_ends_with_every_trial_recorded_as_what_it_was(self, finished_run: RunFolder) -> None:
        results, trials = finished_run.results(), optuna_trials(finished_run)
        assert [result.number for result in results] == list(range(8))
        assert {result.status for result in results} == {"complete", "stopped"}
        expected = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED}
        for result, trial in zip(results, trials, strict=True):
            assert trial.state == expected[result.status]
            assert trial.user_attrs["arch_id"] == result.arch_id
            assert trial.user_attrs["curve"] == list(result.curve)
            assert len(result.curve) == result.epochs
            assert result.epochs == 3 if result.status == "complete" else result.epochs < 3
            if result.status == "complete":
                assert trial.values == [result.accuracy, result.cost.params, result.cost.flops]
        assert len({result.arch_id for result in results}) == 8

    def test_only_complete_trials_leave_weights_and_none_leaves_a_checkpoint(self, finished_run: RunFolder) -> None:
        complete = {result.arch_id for result in finished_run.results() if result.status == "complete"}
        assert {path.name for path in (finished_run.path / "models").iterdir()} == complete
        assert not list((finished_run.path / "checkpoints").iterdir())
        assert not finished_run.tune_path.exists()

    def test_the_test_split_is_read_once_for_each_member_of_the_front(self, finished_run: RunFolder) -> None:
        lines = (finished_run.path / "test.jsonl").read_text().splitlines()
        assert sorted(json.loads(line)["arch_id"] for line in lines) == sorted(
            member.arch_id for member in finished_run.front().members
        )
        assert {json.loads(line)["num_images"] for line in lines} == {360}

    def test_weights_that_a_worker_cannot_read_are_an_error_of_one_line(
        self, small: Experiment, finished_run: RunFolder, tmp_path: Path
    ) -> None:
        run = RunFolder(shutil.copytree(finished_run.path, tmp_path / "run"))
        members = run.front().members
        shutil.rmtree(run.model_path(members[-1].arch_id))
        with claim_resources(gpus=0, cpus=2) as resources, pytest.raises(CvtNasError) as error:
            read_test_split(members, TrainingSetup.of(small, run=run, data=None), resources)
        assert members[-1].arch_id in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_run_with_the_same_seed_and_one_worker_is_the_same(
        self, finished_run: RunFolder, small: Experiment, tmp_path: Path
    ) -> None:
        stop, timed = threading.Event(), {"seconds": 0, "train_seconds": 0, "spent": None}
        until_two = Watch(lambda event: stop.set() if isinstance(event, TrialResult) and event.number == 1 else None)
        again = search(small, out=tmp_path / "run", cpus=1, gpus=0, stop=stop, progress=until_two)
        for one, two in zip(finished_run.results()[:2], again.results()[:2], strict=True):
            assert dataclasses.replace(one, **timed) == dataclasses.replace(two, **timed)

    def test_a_search_in_which_every_trial_diverges_goes_on_to_its_end_and_exits_with_1_and_the_reason(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        space = tmp_path / "diverging.yaml"
        space.write_text(small_digits(**{"  lr:": "  lr: 1.0e+9\n  optimizer: sgd"}))
        arguments = ["search", "--space", str(space), "--out", str(tmp_path / "run"), "--cpus", "1", "--trials", "2"]
        assert main([*arguments, "--json"]) == 1
        printed, run = capsys.readouterr(), RunFolder.open(tmp_path / "run")
        assert re.fullmatch(
            r"cvt-nas: 2 trials, none complete: 2 diverged "
            r"\((most often: )?loss not finite in epoch \d, after it was rolled back 3 times\)",
            printed.err.splitlines()[-1],
        )
        assert json.loads(printed.out)["statuses"] == {"diverged": 2}
        assert re.match(r"expected: .*; first front after .*\nbottleneck: network; more cores", printed.err)
        assert run.manifest["plan"]["hours"] > 0
        assert [result.status for result in run.results()] == ["diverged"] * 2
        assert all("loss not finite in epoch" in str(result.reason) for result in run.results())
        assert [trial.state for trial in optuna_trials(run)] == [TrialState.FAIL] * 2
        assert not run.front().members
        assert main([*arguments, "--resume"]) == 1
        assert len(run.ended()) == 2, "what diverged would do so again"
        assert "expected: " not in capsys.readouterr().err, "how much of it is over is not known"

    def test_a_trial_that_raises_ends_as_failed_with_its_traceback(self, tmp_path: Path, small: Experiment) -> None:
        run_path = tmp_path / "run"
        blocked = run_path / "checkpoints"
        run_path.mkdir()
        blocked.write_text("a file where the checkpoints' folder should be")
        run = search(small, out=run_path, cpus=1, trials=1)
        assert [result.status for result in run.results()] == ["failed"]
        assert "FileExistsError" in str(run.results()[0].reason)
        assert "Traceback" in run.error_path(0).read_text()

    @pytest.mark.slow
    @pytest.mark.parametrize("full", ["trials.jsonl", "study.journal"])
    def test_a_disk_that_fills_up_ends_the_search_with_its_name_and_nothing_is_lost(
        self, small: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
    ) -> None:
        path, is_full, sync = tmp_path / "run", threading.Event(), os.fsync

        def sync_or_fail(file: int) -> None:
            if is_full.is_set() and Path(f"/proc/self/fd/{file}").readlink() == path / full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(file)

        def fill(event: Any) -> None:
            if isinstance(event, TrialResult):
                is_full.set()

        monkeypatch.setattr(os, "fsync", sync_or_fail)
        with pytest.raises(
            RunFolderError, match=r"nothing can be written any more: .*No space left on device.*--resume"
        ):
            search(small, out=path, cpus=2, trials=4, progress=Watch(fill))
        known = RunFolder(path).results()
        is_full.clear()
        assert known
        results = search(small, out=path, cpus=2, trials=4, resume=True).results()
        assert [result.number for result in results] == list(range(4))
        assert set(known) <= set(results)

    def test_a_time_budget_ends_the_search_in_order(self, small: Experiment, tmp_path: Path) -> None:
        started = time.monotonic()
        run = search(small, out=tmp_path / "run", cpus=1, trials=500, time_budget=6)
        assert time.monotonic() - started < 90
        assert len(run.results()) < 500
        assert not run.test_accuracies(), "the test split is for the front of a finished search"
        states = [trial.state for trial in optuna_trials(run)]
        assert TrialState.RUNNING in states, "trials in flight stay open for --resume"
        planned, stop = list[int](), threading.Event()
        stop.set()

        def noting(*about: Any) -> Watch:
            planned.append(about[2])
            return Watch(lambda event: None)

        nine = parse_experiment(small_digits().replace("trials: 8", "trials: 9"), "nine.yaml")
        turns: list[tuple[Experiment, dict[str, Any]]] = [
            (small, {"time_budget": 900}), (nine, {}), (nine, {}), (nine, {"trials": 20}), (nine, {}),
        ]  # fmt: skip
        for experiment, asked in turns:
            search(experiment, out=run.path, cpus=1, **asked, resume=True, stop=stop, progress=noting)
        assert planned == [500, 9, 9, 20, 20], "as the last command said, or the file where it has changed"

    def test_paused_trials_are_promoted_from_their_checkpoints_across_an_interruption(self, tmp_path: Path) -> None:
        line = "search: {trials: 10, sampler: random, mode: promote, grace_period: 1, reduction_factor: 2, seed: 1}"
        experiment = parse_experiment(small_digits(**{"search:": line}), "promote.yaml")
        stop, paused, promoted, epochs = threading.Event(), set[int](), set[int](), Counter[tuple[int, int]]()

        def follow(event: Any) -> None:
            if isinstance(event, TrialPaused):
                paused.add(event.number)
                if len(paused) == 3:
                    stop.set()
            if isinstance(event, TrialStarted) and event.number in paused:
                promoted.add(event.number)
            if isinstance(event, EpochDone):
                epochs[event.number, event.epoch] += 1

        run = search(experiment, out=tmp_path / "run", cpus=2, stop=stop, progress=Watch(follow))
        ended = {result.number for result in run.results()}
        in_flight = {trial.number for trial in optuna_trials(run) if trial.state == TrialState.RUNNING}
        assert paused - ended <= in_flight, "what is paused stays open"
        assert run.rungs == (1,)
        manifest = json.loads((run.path / "manifest.json").read_text())
        (run.path / "manifest.json").write_text(json.dumps({**manifest, "rungs": [1, 2]}))  # of an earlier version
        run = search(experiment, out=run.path, cpus=2, resume=True, progress=Watch(follow))
        results = run.results()
        assert [result.number for result in results] == list(range(10))
        assert {result.status for result in results} == {"complete", "stopped"}
        assert promoted, "one of ten went on after a pause"
        assert {result.epochs for result in results} == {1, 2, 3}, "it goes on with the rungs that it began with"
        assert all(results[number].epochs > 1 for number in promoted)
        trained_once = {number for number in range(10) if number not in in_flight or number in paused}
        assert all(count == 1 for (number, _), count in epochs.items() if number in trained_once)
        assert all(result.train_seconds > 0 for result in results)
        assert not list((run.path / "checkpoints").iterdir())
        assert run.test_accuracies().keys() == {member.arch_id for member in run.front().members}

    def test_resume_refuses_another_experiment_or_seed(self, finished_run: RunFolder, small: Experiment) -> None:
        other = parse_experiment(small_digits(**{"  epochs:": "  epochs: 4"}), "other.yaml")
        with pytest.raises(RunFolderError, match="was started from another version of the space file"):
            search(other, out=finished_run.path, resume=True)
        with pytest.raises(RunFolderError, match="--seed 5: .* was started with seed 0; leave it out"):
            search(small, out=finished_run.path, resume=True, seed=5)
        with pytest.raises(RunFolderError, match="holds a run already, with 8 of its trials done"):
            search(small, out=finished_run.path, cpus=2)


def start_search(space: Path, out: Path, *more: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    limits = [] if "--address" in more else ["--cpus", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "cvt_nas.cli", "search", "--space", str(space), "--out", str(out), *limits, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a signal to it is not one to us
        env={**(os.environ if env is None else env), "PYTHONWARNINGS": "ignore"},
    )


def wait_for_results(
    run: Path, num_results: int, process: subprocess.Popen[str], end: Callable[[], object] | None = None
) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        record = run / "trials.jsonl"
        if record.exists() and len(record.read_text().splitlines()) >= num_results:
            return
        time.sleep(0.1)
    pytest.fail(f"no {num_results} results: {process.communicate(timeout=60) if end is None else end()}")


@pytest.mark.slow  # a drill does more of it
def test_a_search_that_is_interrupted_again_and_again_keeps_its_results_and_goes_on(tmp_path: Path) -> None:
    space, out = tmp_path / "small.yaml", tmp_path / "run"
    space.write_text(small_digits(**{"search:": "search: {trials: 10, sampler: random, scheduler: none}"}))
    kept: tuple[TrialResult, ...] = ()
    for how in (signal.SIGINT, signal.SIGTERM):
        process = start_search(space, out, *(["--resume"] if kept else []))
        wait_for_results(out, len(kept) + 2, process)
        process.send_signal(how)
        _, error = process.communicate(timeout=120)
        if how != signal.SIGKILL:
            assert process.returncode == 130
            again = f"cvt-nas search --space {space} --out {out} --resume"
            assert f"of 10 trials are done and kept. Go on with: {again}" in error
        before, kept = kept, RunFolder.open(out).results()
        assert set(before) < set(kept)
    process = start_search(space, out, "--resume", "--json")
    output, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    results = RunFolder.open(out).results()
    assert set(kept) <= set(results)
    assert [result.number for result in results] == list(range(10))
    assert json.loads(output)["trials"] == 10
    assert {trial.state for trial in optuna_trials(RunFolder.open(out))} <= {TrialState.COMPLETE, TrialState.PRUNED}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_freezing_and_thawing_decides_alike_where_the_search_is_killed_again_and_again(tmp_path: Path) -> None:
    space = tmp_path / "small.yaml"
    line = "search: {trials: 16, sampler: surrogate, scheduler: freeze-thaw}"
    space.write_text(small_digits(**{"  epochs:": "  epochs: 4", "search:": line}))
    process = start_search(space, tmp_path / "whole", "--cpus", "1")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    whole = RunFolder.open(tmp_path / "whole").results()
    assert {result.status for result in whole} == {"complete", "stopped"}
    out = tmp_path / "killed"
    for number in (3, 9, 12):
        process = start_search(space, out, "--cpus", "1", *(["--resume"] if number > 3 else []))
        wait_for_results(out, number, process)
        time.sleep(0.5 + 0.3 * (number % 3))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    process = start_search(space, out, "--cpus", "1", "--resume")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error

    def told(results: Sequence[TrialResult]) -> dict[int, tuple[object, ...]]:
        return {result.number: (result.arch_id, result.status, result.curve) for result in results}

    assert told(RunFolder.open(out).results()) == told(whole)
