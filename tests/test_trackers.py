"""Experiment tracking: what TensorBoard, MLflow and Weights & Biases hold of a search in the end."""

import dataclasses
import json
import os
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[attr-defined]
from wandb.proto import wandb_internal_pb2

from conftest import small_digits
from cvt_nas import search
from cvt_nas.arch import ArchConfig, cost_of
from cvt_nas.cli import main
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.errors import CvtNasError
from cvt_nas.follow import trackers as module
from cvt_nas.follow.tensorboard import TensorBoard
from cvt_nas.follow.tracker import config_of
from cvt_nas.follow.trackers import check_trackers, trackers
from cvt_nas.results import Status, TrialResult, further_number
from cvt_nas.results.events import EpochDone, RaceEvent, TrialPaused, TrialStarted
from cvt_nas.run import RunFolder
from test_engine import tiny_arch

if TYPE_CHECKING:  # processes of pytest-xdist that do not run these tests would read MLflow for seconds
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # MLflow's use of SQLAlchemy
]
ARCH = tiny_arch()
AGAIN = further_number(0, 1)


@pytest.fixture
def run(small: Experiment, tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "my-run", small.manifest(seed=0, num_trials=4))


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def warned() -> list[str]:
    return []


# --- what happens in a race


def started(number: int) -> TrialStarted:
    return TrialStarted(number=number, arch=ARCH, seed=number + 10)


def epoch(number: int, done: int) -> EpochDone:
    return EpochDone(number=number, epoch=done, accuracy=accuracy(number, done))


def accuracy(number: int, done: int) -> float:
    return round(0.1 * done + 0.001 * (number % 100), 3)


def ended(number: int, epochs: int, status: Status = "complete", reason: str | None = None) -> TrialResult:
    curve = tuple(accuracy(number, done) for done in range(1, epochs + 1))
    return TrialResult(
        number=number, arch=ARCH, status=status, epochs=epochs, accuracy=curve[-1] if curve else None,
        cost=cost_of(ARCH), curve=curve, seconds=9.0, train_seconds=7.5, seed=number + 10, reason=reason,
    )  # fmt: skip


FIRST: list[RaceEvent] = [
    *(started(0), epoch(0, 1), TrialPaused(number=0)),
    *(started(1), epoch(1, 1), TrialPaused(number=1)),
    *(started(2), epoch(2, 1), started(2), epoch(2, 2)),  # it lost its worker in between
    *(started(3), ended(3, 0, "oom", "CUDA out of memory")),
    *(started(0), epoch(0, 2), epoch(0, 3), started(0), ended(0, 3)),  # promoted, and lost after the end
    ended(2, 2, "failed", "the worker process died, 2 times"),
    *(started(4), epoch(4, 1)),
]
SECOND: list[RaceEvent] = [  # after an interruption, with 1 paused and 4 in flight
    *(started(4), epoch(4, 2), epoch(4, 3), ended(4, 3)),
    ended(1, 1, "stopped"),
    *(started(AGAIN), epoch(AGAIN, 1), epoch(AGAIN, 2), epoch(AGAIN, 3), ended(AGAIN, 3)),
]
STATUSES = {0: "complete", 1: "stopped", 2: "failed", 3: "oom", 4: "complete", AGAIN: "complete"}
EPOCHS = {0: 3, 1: 1, 2: 2, 3: 0, 4: 3, AGAIN: 3}


def curve_of(number: int) -> list[tuple[int, Any]]:
    return [(done, pytest.approx(accuracy(number, done))) for done in range(1, EPOCHS[number] + 1)]


def tell(run: RunFolder, events: Sequence[RaceEvent], warned: list[str], **asked: Any) -> None:
    with trackers(run, warn=warned.append, **asked) as follow:
        for event in events:
            follow(event)


# --- what is read back


def tensorboard_curve(folder: Path) -> list[tuple[int, float]]:
    read = EventAccumulator(str(folder)).Reload()
    if "accuracy" not in read.Tags()["scalars"]:
        return []
    return [(point.step, point.value) for point in read.Scalars("accuracy")]


def hparams(folder: Path) -> dict[str, Any]:
    found = EventAccumulator(str(folder)).Reload().summary_metadata["_hparams_/session_start_info"]
    values = HParamsPluginData.FromString(found.plugin_data.content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def mlflow_client(store: str) -> "MlflowClient":
    from mlflow.tracking import MlflowClient

    return MlflowClient(store)


def mlflow_runs(store: str, experiment: str = "my-run") -> "dict[int, Run]":
    client = mlflow_client(store)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    assert len({run.data.params["number"] for run in runs}) == len(runs)
    return {int(run.data.params["number"]): run for run in runs}


def mlflow_curve(store: str, run: "Run") -> list[tuple[int, float]]:
    points = mlflow_client(store).get_metric_history(run.info.run_id, "accuracy")
    return [(point.step, point.value) for point in points]


def wandb_records(path: Path) -> Iterator[Any]:
    """A file of W&B's, which is a log in LevelDB's format after a header of seven bytes."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or a last part
            yield wandb_internal_pb2.Record.FromString(whole)  # type: ignore[attr-defined]
            whole = b""


@dataclasses.dataclass
class WandbRun:
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    exit_code: int | None = None


def wandb_run(path: Path) -> WandbRun:
    told = WandbRun()
    for record in wandb_records(path):
        for item in (*record.run.config.update, *record.config.update):
            told.config[item.key] = json.loads(item.value_json)
        for item in record.summary.update:
            told.summary[item.key] = json.loads(item.value_json)
        if record.history.item:
            told.history.append({item.nested_key[-1]: json.loads(item.value_json) for item in record.history.item})
        if record.HasField("exit"):
            told.exit_code = record.exit.exit_code
    return told


# --- each tracker


def test_a_config_lists_values_that_differ_from_block_to_block() -> None:
    last = ARCH.stages[-1]
    blocks = (last.blocks[0], dataclasses.replace(last.blocks[0], mlp_ratio=1.5))
    arch = dataclasses.replace(ARCH, stages=(*ARCH.stages[:-1], dataclasses.replace(last, blocks=blocks)))
    config, index = config_of(7, arch, 3), len(ARCH.stages) - 1
    assert (config["number"], config["arch_id"], config["seed"]) == (7, arch.id, 3)
    assert (config["params"], config["flops"]) == (cost_of(arch).params, cost_of(arch).flops)
    assert (config[f"stage{index}.embed_dim"], config[f"stage{index}.depth"]) == (last.embed_dim, 2)
    assert config[f"stage{index}.mlp_ratio"] == f"{last.blocks[0].mlp_ratio},1.5"
    assert config[f"stage{index}.num_heads"] == last.blocks[0].num_heads


def test_tensorboard_holds_one_run_for_each_trial_across_pauses_deaths_and_interruptions(
    run: RunFolder, warned: list[str]
) -> None:
    for events in (FIRST, SECOND):
        tell(run, events, warned, tensorboard=True)
    assert not warned
    folders = {int(path.name.partition("-")[0]): path for path in run.tensorboard_path.iterdir()}
    assert {folder.name for folder in folders.values()} == {f"{number}-{ARCH.id}" for number in STATUSES}
    for number, status in STATUSES.items():
        folder = folders[number]
        assert tensorboard_curve(folder) == curve_of(number)
        values = hparams(folder)
        assert (values["status"], values["number"], values["arch_id"]) == (status, number, ARCH.id)
        assert values["flops"] == cost_of(ARCH).flops
        assert values["stage0.embed_dim"] == ARCH.stages[0].embed_dim
        (last,) = EventAccumulator(str(folder)).Reload().Scalars("train_seconds")
        assert (last.step, last.value) == (EPOCHS[number], 7.5)


def test_mlflow_holds_one_run_for_each_trial_across_pauses_deaths_and_interruptions(
    run: RunFolder, store: str, warned: list[str]
) -> None:
    tell(run, FIRST, warned, mlflow=store)
    states = {number: found.info.status for number, found in mlflow_runs(store).items()}
    assert states == {0: "FINISHED", 1: "KILLED", 2: "FAILED", 3: "FAILED", 4: "KILLED"}
    tell(run, SECOND, warned, mlflow=store)
    assert not warned
    runs = mlflow_runs(store)
    assert {number: found.data.tags["status"] for number, found in runs.items()} == STATUSES
    for number, found in runs.items():
        assert found.info.run_name == f"{number}-{ARCH.id}"
        assert found.info.status == ("FAILED" if number in (2, 3) else "FINISHED")
        assert mlflow_curve(store, found) == curve_of(number)
        assert found.data.metrics["flops"] == cost_of(ARCH).flops
        assert found.data.metrics.get("final_accuracy") == dict(curve_of(number)).get(EPOCHS[number])
        assert found.data.params["stage1.num_heads"] == str(ARCH.stages[1].blocks[0].num_heads)
    assert runs[2].data.tags["reason"] == "the worker process died, 2 times"


def test_two_runs_with_the_same_name_share_an_mlflow_experiment_and_no_trial(
    run: RunFolder, small: Experiment, store: str, warned: list[str], tmp_path: Path
) -> None:
    other = RunFolder.create(tmp_path / "elsewhere" / "my-run", small.manifest(seed=1, num_trials=4))
    tell(run, [started(0)], warned, mlflow=store)
    tell(other, [started(0)], warned, mlflow=store)
    client = mlflow_client(store)
    found = client.get_experiment_by_name("my-run")
    assert found is not None
    assert len(client.search_runs([found.experiment_id])) == 2


def test_a_trial_in_flight_keeps_its_run_if_a_resume_changes_the_trials_and_the_budget(
    run: RunFolder, store: str, warned: list[str]
) -> None:
    tell(run, [started(4), epoch(4, 1)], warned, mlflow=store)
    run.amend_manifest(trials=8, trials_of_file=4, time_budget=120.0)
    tell(RunFolder.open(run.path), [started(4), epoch(4, 2), epoch(4, 3), ended(4, 3)], warned, mlflow=store)
    assert not warned
    (found,) = mlflow_runs(store).values()
    assert mlflow_curve(store, found) == curve_of(4)


def test_a_deleted_mlflow_experiment_of_the_same_name_is_refused_before_a_search_begins(
    run: RunFolder, store: str, warned: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(run, [started(0)], warned, mlflow=store)
    client = mlflow_client(store)
    found = client.get_experiment_by_name("my-run")
    assert found is not None
    client.delete_experiment(found.experiment_id)
    message = (
        f"--mlflow {store}: its experiment my-run is deleted; restore it by mlflow experiments restore "
        f"--experiment-id {found.experiment_id}, or give the run another name by --out"
    )
    with pytest.raises(CvtNasError) as raised, trackers(run, mlflow=store, warn=warned.append):
        pass
    assert str(raised.value) == message
    (tmp_path / "small.yaml").write_text(small_digits(), encoding="utf-8")
    out = tmp_path / "new" / "my-run"
    assert main(["search", "--space", str(tmp_path / "small.yaml"), "--out", str(out), "--mlflow", store]) == 2
    assert capsys.readouterr().err.endswith(f"cvt-nas: {message}\n")
    assert not out.exists()
    client.restore_experiment(found.experiment_id)
    tell(run, [ended(0, 1)], warned, mlflow=store)
    assert not warned


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield
    wandb.teardown()  # its process, which would serve the next run


@pytest.mark.usefixtures("offline")
def test_wandb_offline_holds_one_whole_run_for_each_trial_in_the_run_folder(
    run: RunFolder, warned: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    events = [event for event in FIRST if event.number in (1, 2)]  # type: ignore[union-attr]
    tell(run, events, warned, wandb="my-project")
    tell(run, [event for event in SECOND if event.number == 1], warned, wandb="my-project")  # type: ignore[union-attr]
    assert not warned
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my-run"]
    found = {}
    for path in (run.path / "wandb").glob("offline-run-*/*.wandb"):
        told = wandb_run(path)
        found[told.config["number"]] = told
    assert len(list((run.path / "wandb").glob("offline-run-*"))) == len(found) == 2
    for number, told in found.items():
        assert (told.config["status"], told.config["arch_id"]) == (STATUSES[number], ARCH.id)
        assert told.config["stage0.depth"] == len(ARCH.stages[0].blocks)
        assert [(row["_step"], row["accuracy"]) for row in told.history] == curve_of(number)
        assert told.summary["final_accuracy"] == accuracy(number, EPOCHS[number])
        assert told.summary["train_seconds"] == 7.5
        assert told.exit_code == (number == 2)
    assert found[2].config["reason"] == "the worker process died, 2 times"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is told to a stand-in for W&B's client, as no server of W&B's is here."""
    told: list[tuple[Any, ...]] = []

    class NotedRun:
        def __init__(self, **settings: Any) -> None:
            if settings["project"] == "refused":
                raise PermissionError("no such project\nat all")
            self._id, self.config, self.summary = settings["id"], self, self
            told.append(("init", self._id, settings["resume"]))

        def log(self, values: dict[str, float], step: int) -> None:
            told.append(("log", self._id, step, values["accuracy"]))

        def update(self, values: dict[str, Any], **options: Any) -> None:
            told.append(("update", self._id, *values))

        def finish(self, exit_code: int = 0) -> None:
            told.append(("finish", self._id, exit_code))

    monkeypatch.setattr(wandb, "init", NotedRun)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    return told


def test_wandb_goes_on_with_a_trial_s_run_after_a_pause_and_after_an_interruption(
    run: RunFolder, warned: list[str], online: list[tuple[Any, ...]]
) -> None:
    for events in ([*FIRST[:3], started(0), epoch(0, 2)], [started(0), epoch(0, 3), ended(0, 3)]):
        tell(run, events, warned, wandb="my-project")
    assert not warned
    (name,) = {line[1] for line in online}
    parts = [[("init", name, "allow"), ("log", name, done, accuracy(0, done))] for done in (1, 2, 3)]
    summary = ("epochs", "params", "flops", "train_seconds", "final_accuracy")
    parts[-1] += [("update", name, "status"), ("update", name, *summary)]
    assert online == [line for part in parts for line in [*part, ("finish", name, 0)]]


def test_what_wandb_refuses_is_one_warning_and_the_search_goes_on(
    run: RunFolder, warned: list[str], online: list[tuple[Any, ...]]
) -> None:
    tell(run, FIRST[:1], warned, wandb="refused")
    assert warned == ["--wandb refused: no such project; the search goes on without it"]
    assert online == []


# --- what goes wrong


def test_a_tracker_that_fails_is_left_out_after_one_warning_and_the_others_go_on(
    run: RunFolder, store: str, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: Any, **more: Any) -> None:
        from mlflow.exceptions import MlflowException

        raise MlflowException("the server is gone\nsince today")

    with trackers(run, mlflow=store, tensorboard=True, warn=warned.append) as follow:
        for event in FIRST[:2]:
            follow(event)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any_metric(store):
            time.sleep(0.05)
        monkeypatch.setattr("mlflow.tracking.MlflowClient.log_metric", gone)
        for event in FIRST[2:]:
            follow(event)
    assert warned == [f"--mlflow {store}: the server is gone; the search goes on without it"]
    assert tensorboard_curve(run.tensorboard_path / f"0-{ARCH.id}") == curve_of(0)
    assert mlflow_curve(store, mlflow_runs(store)[0]) == curve_of(0)[:1]


def any_metric(store: str) -> bool:
    client = mlflow_client(store)
    found = client.get_experiment_by_name("my-run")
    runs = [] if found is None else client.search_runs([found.experiment_id])
    return any("accuracy" in run.data.metrics for run in runs)


def test_a_tracker_that_hangs_holds_up_neither_the_search_nor_its_end(
    run: RunFolder, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    awake = threading.Event()
    monkeypatch.setattr(TensorBoard, "begin", lambda *_: awake.wait(60))
    monkeypatch.setattr(module, "_SECONDS_OF_SILENCE", 0.2)
    tell(run, FIRST, warned, tensorboard=True)
    awake.set()
    assert warned == ["--tensorboard: has taken nothing for 0.2 s; the rest is lost"]


def test_what_a_tracker_lacks_is_one_line_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: RunFolder
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    before = dict(os.environ)
    with pytest.raises(CvtNasError, match=r"^--wandb p: no key: run wandb login, or set WANDB_API_KEY, or WANDB_MODE="):
        check_trackers(run.place, wandb="p")
    with pytest.raises(CvtNasError, match=r"^--mlflow http://127.0.0.1:1: .*[Cc]onnection.*$"):
        check_trackers(run.place, mlflow="http://127.0.0.1:1", wandb=None, tensorboard=True)
    with (
        pytest.raises(CvtNasError, match=r"^--mlflow nonsense://x: .*nonsense.*$"),
        trackers(run, mlflow="nonsense://x"),
    ):
        pass
    assert {**os.environ, "MLFLOW_DISABLE_TELEMETRY": ""} == {**before, "MLFLOW_DISABLE_TELEMETRY": ""}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CvtNasError, match=r"^--mlflow x: needs pip install 'cvt-nas\[mlflow\]'$"):
        check_trackers(run.place, mlflow="x")
    with pytest.raises(CvtNasError, match=r"^--wandb x: needs pip install 'cvt-nas\[wandb\]'$"):
        check_trackers(run.place, wandb="x")


# --- a search


@pytest.mark.usefixtures("two_cpus")
def test_a_search_calls_back_and_its_curves_in_tensorboard_are_those_of_its_record(tmp_path: Path) -> None:
    told: list[RaceEvent] = []
    experiment = parse_experiment(small_digits(**{"  epochs:": "  epochs: 2"}), "small.yaml")
    run = search(
        experiment, out=tmp_path / "run", cpus=1, trials=3, callbacks=[told.append],
        progress=lambda run, *about: trackers(run, tensorboard=True),
    )  # fmt: skip
    results = run.results()
    begun: dict[int, ArchConfig] = {event.number: event.arch for event in told if isinstance(event, TrialStarted)}
    assert begun == {result.number: result.arch for result in results}
    over = [event for event in told if isinstance(event, TrialResult)]
    assert {(event.number, event.status, event.curve) for event in over} == {
        (result.number, result.status, result.curve) for result in results
    }
    assert len(over) == len(results)
    assert {result.status for result in results} == {"complete", "stopped"}
    epochs = [(event.number, event.epoch, event.accuracy) for event in told if isinstance(event, EpochDone)]
    assert sorted(epochs) == [
        (result.number, done, value) for result in results for done, value in enumerate(result.curve, start=1)
    ]
    assert len(list(run.tensorboard_path.iterdir())) == len(results)
    for result in results:
        folder = run.tensorboard_path / f"{result.number}-{result.arch_id}"
        assert tensorboard_curve(folder) == [(done, pytest.approx(a)) for done, a in enumerate(result.curve, start=1)]
        assert hparams(folder)["status"] == result.status
