"""`RunFolder`, the only code that knows file names under `results/`."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from filelock import FileLock, Timeout
from pydantic import JsonValue, TypeAdapter
from typing_extensions import TypedDict

from cvt_nas.arch import Cost
from cvt_nas.errors import CvtNasError, RunFolderError, StorageError
from cvt_nas.results.candidate import Candidate
from cvt_nas.results.confirmation import ConfirmPlan, confirm, with_memberships
from cvt_nas.results.narrowing import Narrowing
from cvt_nas.results.pareto import HypervolumeBox, ParetoFront
from cvt_nas.results.parsing import json_text, load_finite, parse_json
from cvt_nas.results.quality import SupernetQuality
from cvt_nas.results.trial import Metric, TrialResult, check_line, round_and_trial, without_retried
from cvt_nas.run.files import (
    append_line,
    delete,
    exists,
    fetch,
    holds_files,
    read_lines,
    remove_partials,
    repair_last_line,
    write_atomically,
)
from cvt_nas.run.mirror import add_mirror, is_url, local_folder, mirror_of
from cvt_nas.run.origin import origin

T = TypeVar("T")
_SECONDS_BETWEEN_LOOKS, _SECONDS_TO_SHOW_LIFE = 5.0, 15.0


class RunFolder:
    """One run on disk: the record, and what is made from it.

    manifest.json      what was run: file, data, versions, devices, seeds, command line
    trials.jsonl       one `TrialResult` a line, append-only, flushed: the record
    confirm.json       which architectures are trained again, once the race is over; see `ConfirmPlan`
    confirm.jsonl      one `TrialResult` a line, of those further trainings, append-only, flushed
    test.jsonl         accuracy on the test split of the front's members, read once at the end
    latency.jsonl      latency of the front's members, measured, where the search went by what was predicted of it
    study.journal      Optuna's storage
    report.html        the page of the run, which needs nothing beside it; pareto.csv, ranks.csv, pareto_flops.html, ...
    models/<arch id>/  arch.json, model.safetensors, probe.safetensors of each complete trial
    supernet/          checkpoint.pt, then weights.safetensors; `stop` while its training is asked to end; quality.json;
                       narrowing.json, where choices were dropped while it was trained
    standalone/        a run of its own: trainings that the supernet is judged by
    candidates.jsonl   one `Candidate` a line, append-only, flushed; candidates.journal is Optuna's storage of them
    checkpoints/       of trials in flight
    errors/            tracebacks of trials that failed
    tune/              Ray Tune's own files, of no use after the run
    tensorboard/       <number>-<arch id>/ of each trial, where the search is tracked so; wandb/ is W&B's own
    lock, holder.json  who is at work on the run; clock.json holds the seconds that were spent on it
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._looked = 0.0
        self._records: dict[Path, tuple[tuple[int, int], list[Any]]] = {}

    @classmethod
    def at(cls, place: str | Path) -> Self:
        """The folder at a path; or this machine's own for a URL, with the records that are there, and mirrored there.

        Raises:
            StorageError: There is no such store, or it does not answer.
        """
        if not is_url(place):
            return cls(Path(place).absolute())
        run = cls(local_folder(str(place)))
        if mirror_of(run.path) is None:
            add_mirror(run.path, str(place)).pull_records()
        return run

    @property
    def url(self) -> str | None:
        """Where it is mirrored to."""
        copy = mirror_of(self.path)
        return None if copy is None else copy.url

    @property
    def place(self) -> str:
        """What a user knows it by: its URL, or else its path."""
        return self.url or str(self.path)

    @classmethod
    def create(cls, place: str | Path, manifest: Mapping[str, Any]) -> Self:
        """A new run at a path or URL. Its manifest tells its `origin`, too.

        Raises:
            RunFolderError: `place` holds a run already, or cannot be written.
        """
        try:
            run = cls.at(place)
            run.check_new()
            run.path.mkdir(parents=True, exist_ok=True)
            write_atomically(run.path / "manifest.json", json_text({**origin(), **manifest}, indent=2) + "\n")
        except OSError as error:
            raise RunFolderError(f"{place}: cannot be written: {error.strerror or error}") from error
        return run

    def check_new(self) -> None:
        """Raises:
        RunFolderError: There is a run in it already.
        """
        if (self.path / "manifest.json").exists():
            raise RunFolderError(
                f"{self.place} holds a run already, with {len(self.results())} of its trials done; "
                f"go on with it by --resume, or write elsewhere by --out DIR"
            )

    @classmethod
    def open(cls, place: str | Path) -> Self:
        """The run at a path or URL.

        Raises:
            RunFolderError: There is none.
        """
        try:
            run = cls.at(place)
        except StorageError as error:
            raise RunFolderError(f"{place}: cannot be read: {error.strerror or error}") from error
        if not (run.path / "manifest.json").is_file():
            raise RunFolderError(f"{place} holds no run: no manifest.json in it")
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps all others from working on the run, and mends what a process that was killed left torn.

        The system gives the lock back when a process ends, however it does.

        Raises:
            RunFolderError: Somebody is at work on it.
        """
        lock = FileLock(self.path / "lock", timeout=0)
        holder = self.path / "holder.json"
        try:
            lock.acquire()
        except Timeout as error:
            raise RunFolderError(f"{self.path}: {_described(holder)} is at work on it; wait for its end") from error
        except OSError as error:
            raise RunFolderError(f"{self.path}: cannot be written: {error.strerror}") from error
        try:
            self._check_holder_elsewhere(holder)  # whose mark stays
            try:
                write_atomically(holder, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
                self.refresh()
                self._mend()
                with self._finished_elsewhere():
                    yield
            finally:
                with contextlib.suppress(StorageError):
                    delete(holder)
        finally:
            lock.release()

    @contextmanager
    def _finished_elsewhere(self) -> Iterator[None]:
        """Leaves whole records at the URL, where there is one, however the block ends; but not before a hurried end."""
        copy = mirror_of(self.path)
        try:
            yield
        except CvtNasError:
            if copy is not None:
                with contextlib.suppress(StorageError):
                    copy.finish(self.path)
            raise
        if copy is not None:
            copy.finish(self.path)

    def _check_holder_elsewhere(self, holder: Path) -> None:
        """Of a run at a URL, no lock tells whether a holder on another machine is alive; his clock does."""
        copy = mirror_of(self.path)
        if copy is None or (told := copy.read(holder)) is None or _host_of(told) == socket.gethostname():
            return
        clock, deadline = self.path / "clock.json", time.monotonic() + _SECONDS_TO_SHOW_LIFE
        before = copy.read(clock)
        while time.monotonic() < deadline:
            if copy.read(clock) != before:
                holder.write_bytes(told)
                raise RunFolderError(f"{self.place}: {_described(holder)} is at work on it; wait for its end")
            time.sleep(1)

    def is_at_work(self) -> bool:
        """Whether a process works on the run, as far as it can be told from here: one that died elsewhere seems to."""
        holder, copy = self.path / "holder.json", mirror_of(self.path)
        told = copy.read(holder) if copy is not None else holder.read_bytes() if holder.exists() else None
        if told is None:
            return False
        try:
            tree = json.loads(told)
            return tree["host"] != socket.gethostname() or _is_alive(int(tree["pid"]))
        except (ValueError, KeyError, TypeError):  # it is only just beginning
            return True

    def refresh(self) -> None:
        """Fetches what other machines have added since, where there is a URL: the files of the folder itself.

        Files in folders below it, such as checkpoints and models, are fetched when they are needed. A run of its own in
        one of these (`standalone/`) has a `refresh` of its own.
        """
        if (copy := mirror_of(self.path)) is not None:
            copy.pull_records(self.path)

    def _mend(self) -> None:
        remove_partials(self.path)
        for path in (*self.path.glob("*.jsonl"), *self.path.glob("*.journal")):
            repair_last_line(path)
        for lock in self.path.glob("*.journal.lock"):  # Optuna's own, which it would wait half a minute for
            lock.unlink(missing_ok=True)

    @property
    def seconds_spent(self) -> float:
        """By all the processes that worked on the run so far, to within a few seconds."""
        path = self.path / "clock.json"
        return parse_json(_CLOCK, path.read_bytes(), str(path))["seconds"] if path.exists() else 0.0

    def write_seconds_spent(self, seconds: float) -> None:
        write_atomically(self.path / "clock.json", json.dumps({"seconds": round(seconds, 1)}) + "\n")

    @property
    def manifest(self) -> dict[str, Any]:
        path = self.path / "manifest.json"
        try:
            text = path.read_text(encoding="utf-8")
            tree = load_finite(text)
        except json.JSONDecodeError as error:
            raise RunFolderError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path}: cannot be read: {error}") from error
        if not isinstance(tree, dict):
            raise RunFolderError(f"{path}: got a {type(tree).__name__}, must be an object")
        parse_json(_FIELDS, text, str(path))
        manifest = _Manifest(tree)
        manifest.path = path
        return manifest

    def amend_manifest(self, **entries: Any) -> None:
        """Adds entries to the manifest, or replaces those that are told before anything is trained."""
        write_atomically(self.path / "manifest.json", json_text({**self.manifest, **entries}, indent=2) + "\n")

    @property
    def has_trained(self) -> bool:
        """Whether any network was trained, or is in training, on whatever machine.

        Checkpoints count where they are: here, or at the URL. They are not fetched for that.

        Raises:
            StorageError: The store does not answer.
        """
        return (
            holds_files(self.path / "checkpoints")
            or self.has_begun_supernet
            or any(result.epochs for result in self.results())
        )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(self.manifest["objectives"])

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs after which the scheduler decided, as recorded; none of a version that recorded none.

        For the rungs that such a run goes on with, see `Experiment.rungs_of`.
        """
        return tuple(self.manifest.get("rungs", ()))

    @property
    def box(self) -> HypervolumeBox:
        tree = self.manifest["hypervolume_box"]
        return HypervolumeBox(least=Cost(**tree["least"]), greatest=Cost(**tree["greatest"]))

    @property
    def journal_path(self) -> Path:
        return self.path / "study.journal"

    @property
    def listing_path(self) -> Path:
        """Names of the images of a folder, for the workers; see `TrainingSetup.save_listing`."""
        return self.path / "images.npz"

    @property
    def tune_path(self) -> Path:
        return self.path / "tune"

    @property
    def tensorboard_path(self) -> Path:
        return self.path / "tensorboard"

    @property
    def supernet_path(self) -> Path:
        return self.path / "supernet"

    def stop_supernet(self, asked: bool = True) -> None:
        """Asks the workers that train the supernet, on whatever node, to write a checkpoint and end; or no longer."""
        flag = self.supernet_path / "stop"
        if asked:
            flag.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(flag, "")
        else:
            delete(flag)

    def is_supernet_stopped(self) -> bool:
        now = time.monotonic()
        if mirror_of(self.path) is None or now - self._looked < _SECONDS_BETWEEN_LOOKS:
            return (self.supernet_path / "stop").exists()
        self._looked = now
        return exists(self.supernet_path / "stop")

    def ray_storage(self) -> dict[str, Any]:
        """Settings of Ray's `RunConfig` by which all nodes find its own files."""
        copy = mirror_of(self.path)
        return {"storage_path": str(self.tune_path)} if copy is None else copy.as_ray_storage(self.tune_path)

    def drop_ray_files(self) -> None:
        shutil.rmtree(self.tune_path, ignore_errors=True)
        if (copy := mirror_of(self.path)) is not None:
            copy.delete(self.tune_path)

    @property
    def supernet_checkpoint_path(self) -> Path:
        return self.supernet_path / "checkpoint.pt"

    @property
    def supernet_weights_path(self) -> Path:
        return self.supernet_path / "weights.safetensors"

    def phase_weights_path(self, last_epoch: int) -> Path:
        """Of a supernet, after a phase of its training that is not the last."""
        return self.supernet_path / f"epoch-{last_epoch}.safetensors"

    @property
    def has_supernet(self) -> bool:
        """Whether its supernet is trained, on whatever machine."""
        return exists(self.supernet_weights_path)

    @property
    def has_begun_supernet(self) -> bool:
        """Whether its supernet has weights of its own, to go on from."""
        return self.has_supernet or exists(self.supernet_checkpoint_path)

    @property
    def _narrowing_path(self) -> Path:
        return self.supernet_path / "narrowing.json"

    def write_narrowing(self, narrowing: Narrowing) -> None:
        self.supernet_path.mkdir(parents=True, exist_ok=True)
        write_atomically(self._narrowing_path, narrowing.to_json())

    def narrowing(self) -> Narrowing | None:
        """What was dropped of the space so far; None where nothing is, or is yet.

        Raises:
            RunFolderError: The file is damaged.
        """
        text = _text_of(path := self._narrowing_path)
        return None if text is None else Narrowing.from_json(text, str(path))

    @property
    def quality_path(self) -> Path:
        """How well the supernet ranks: `SupernetQuality.to_json`."""
        return self.supernet_path / "quality.json"

    def quality(self) -> SupernetQuality | None:
        """How well the supernet ranks; None where it was not judged.

        Raises:
            RunFolderError: The file is damaged.
        """
        text = _text_of(path := self.quality_path)
        return None if text is None else SupernetQuality.from_json(text, str(path))

    @property
    def standalone_path(self) -> Path:
        return self.path / "standalone"

    @property
    def candidates_journal_path(self) -> Path:
        return self.path / "candidates.journal"

    def append_candidate(self, candidate: Candidate) -> None:
        """Adds a line to the record of candidates, on disk when this returns."""
        append_line(self.path / "candidates.jsonl", candidate.to_json())

    def candidates(self) -> tuple[Candidate, ...]:
        """Every one that was ranked, in the order in which they ended; once each."""
        found = {}
        for candidate in self._read("candidates.jsonl", Candidate.from_json):
            found.setdefault(candidate.number, candidate)
        return tuple(found.values())

    def model_path(self, arch_id: str) -> Path:
        return self.path / "models" / arch_id

    def checkpoint_path(self, number: int) -> Path:
        return self.path / "checkpoints" / f"{number}.pt"

    def checkpoint_bytes(self) -> int:
        """What the checkpoints of trials that are not over take on this machine's disk."""
        return sum(path.stat().st_size for path in (self.path / "checkpoints").rglob("*") if path.is_file())

    def error_path(self, number: int) -> Path:
        """Traceback of a trial that failed."""
        return self.path / "errors" / f"{number}.txt"

    def append(self, result: TrialResult) -> None:
        """Adds a line to the record, on disk when this returns."""
        append_line(self.path / "trials.jsonl", result.to_json())

    def results(self) -> tuple[TrialResult, ...]:
        """The record, in order of trial number, without the trials that failed and were tried again since.

        A last line torn by a crash is left out.

        Raises:
            RunFolderError: Another line is damaged.
        """
        return tuple(sorted(without_retried(self.ended()), key=lambda result: result.number))

    def ended(self) -> tuple[TrialResult, ...]:
        """Every line of the record, in the order in which the trials ended."""
        return tuple(self._read("trials.jsonl", TrialResult.from_json))

    def append_confirmation(self, result: TrialResult) -> None:
        """Adds a further training to its record, on disk when this returns."""
        append_line(self.path / "confirm.jsonl", result.to_json())

    def confirmations(self) -> tuple[TrialResult, ...]:
        """The further trainings that ended, however they did, round by round.

        What is left out, and what is raised, is as in `results`.
        """
        further = without_retried(self._read("confirm.jsonl", TrialResult.from_json))
        return tuple(sorted(further, key=lambda result: result.number))

    def write_confirm_plan(self, plan: ConfirmPlan) -> None:
        write_atomically(self.path / "confirm.json", json.dumps(dataclasses.asdict(plan)) + "\n")

    def confirm_plan(self) -> ConfirmPlan | None:
        """None before the race is over, and where nothing is trained again."""
        path = self.path / "confirm.json"
        return parse_json(_CONFIRM_PLAN, path.read_bytes(), str(path)) if path.exists() else None

    def unconfirmed(self) -> list[int]:
        """Numbers of the planned further trainings that have not ended."""
        plan = self.confirm_plan()
        ended = {result.number for result in self.confirmations()}
        return [] if plan is None else [number for number in plan.numbers if number not in ended]

    def confirmed(self) -> tuple[TrialResult, ...]:
        """The trials whose architectures were trained again; see `confirm`.

        Empty until the first round is over: a front of those that happened to be first would be none of the search.
        """
        plan, further = self.confirm_plan(), self.confirmations()
        if plan is not None and not set(plan.members) <= {round_and_trial(result.number)[1] for result in further}:
            return ()
        return with_memberships(confirm(self.results(), further), self.metrics)

    def front(self) -> ParetoFront:
        """Of the trials that are confirmed, by means over their further trainings; of all trials where none is.

        One training of a trial that was not confirmed is no match for a mean: it may be the luckiest of many.
        """
        return ParetoFront.of(self.confirmed() or self.results(), self.metrics)

    def find(self, arch_id: str) -> TrialResult:
        """The result of the architecture whose id is, or alone begins with, `arch_id`; confirmed where it was.

        Raises:
            RunFolderError: None, or several.
        """
        results = {result.number: result for result in (*self.results(), *self.confirmed())}
        found = [result for result in results.values() if result.arch_id.startswith(arch_id)]
        if len(found) != 1:
            what = "no trial" if not found else f"{len(found)} trials"
            raise RunFolderError(f"{self.path}: {what} with an arch id that begins with {arch_id!r}")
        return found[0]

    def pick(self, what: str) -> TrialResult:
        """A trial of the front: `knee`, `best`, or the most accurate under a limit; any by the begin of its arch id.

        Args:
            what: Limits are written `flops<4e9`, `params<20e6`, or where the search went by latency `latency_ms<2`.

        Raises:
            RunFolderError: Nothing of the run is meant by it.
        """
        front = self.front()
        if not front.members:
            raise RunFolderError(f"{self.path}: no trial reached its last epoch yet")
        if what in ("knee", "best"):
            found = front.knee() if what == "knee" else front.best
            assert found is not None, "a front with members has both"
            return found
        limit = re.fullmatch(r"\s*(flops|params|latency_ms)\s*<\s*([0-9][0-9_]*\.?[0-9]*(?:[eE][0-9]+)?)\s*", what)
        if limit is None and re.search(r"\W", what):
            raise RunFolderError(
                f"{what!r}: must be knee, best, an arch id, or a limit as flops<4e9, params<20e6 or latency_ms<2"
            )
        if limit is None:
            return self.find(what)
        metric = cast(Metric, limit[1])
        if metric == "latency_ms" and metric not in self.metrics:
            raise RunFolderError(f"{self.path}: the search did not go by latency")
        under = [member for member in front.members if member.metric(metric) < float(limit[2])]
        if not under:
            least = min(member.metric(metric) for member in front.members)
            raise RunFolderError(f"{self.path}: nothing on the front has {what}; the least {metric} are {least:_.10g}")
        return under[0]

    def append_test_accuracy(self, number: int, arch_id: str, accuracy: float, num_images: int) -> None:
        """Records the one reading of the test split for one member of the front."""
        append_line(
            self.path / "test.jsonl",
            {"number": number, "arch_id": arch_id, "test_accuracy": accuracy, "num_images": num_images},
        )

    def append_latency(self, arch_id: str, latency: Mapping[str, Any]) -> None:
        """Records what was measured of one member of the front; see `engine.Latency`."""
        append_line(self.path / "latency.jsonl", {"arch_id": arch_id, **latency})

    def latencies(self) -> dict[str, float]:
        """Milliseconds of one image's forward pass, measured, by arch id; the last of several measurements."""
        return dict(self._read("latency.jsonl", partial(_figure, name="median_ms")))

    def test_accuracies(self) -> dict[str, float]:
        """Accuracy on the test split by arch id."""
        return dict(self._read("test.jsonl", partial(_figure, name="test_accuracy")))

    def _read(self, name: str, parse: Callable[[Mapping[str, Any]], T]) -> list[T]:
        """Every line of a record, which may be one that somebody sent; anew only where it has grown since."""
        path = self.path / name
        try:
            status = path.stat()
        except FileNotFoundError:
            return []
        mark = (status.st_size, status.st_mtime_ns)
        if path not in self._records or self._records[path][0] != mark:
            self._records[path] = (mark, _parsed(path, parse))
        return self._records[path][1]


class _Fields(TypedDict, total=False):
    """What of a manifest is read; others may come with a later version."""

    name: str
    trials: int
    seed: int
    epochs: int
    objectives: list[Metric]
    rungs: list[int]
    hypervolume_box: HypervolumeBox
    dataset: str
    fingerprint: str
    space_file: str
    versions: dict[str, str]
    resources: dict[str, JsonValue]
    latency_table: dict[str, JsonValue]
    warm_start: str | None
    time_budget: float | None


class _Clock(TypedDict):
    seconds: float


_FIELDS = TypeAdapter(_Fields)
_CLOCK, _CONFIRM_PLAN = TypeAdapter(_Clock), TypeAdapter(ConfirmPlan)


class _Manifest(dict[str, Any]):
    path: Path

    def __missing__(self, key: str) -> Any:
        raise RunFolderError(f"{self.path}: lacks {key}")


def _text_of(path: Path) -> str | None:
    """What a file holds, on whatever machine it was written; None where there is none."""
    if not exists(path):
        return None
    if not path.exists():
        fetch(path)
    return path.read_text(encoding="utf-8")


def _parsed(path: Path, parse: Callable[[Mapping[str, Any]], T]) -> list[T]:
    found = []
    for number, tree in enumerate(read_lines(path), start=1):
        try:
            found.append(parse(tree))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunFolderError(f"{path}:{number}: is no line of such a record: {error!r}") from error
    return found


def _figure(tree: Mapping[str, Any], *, name: str) -> tuple[str, float]:
    """A figure of an architecture, by its id."""
    check_line(tree)
    return str(tree["arch_id"]), float(tree[name])


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        pass
    return True


def _host_of(told: bytes) -> str | None:
    """Of a mark of who is at work; None where it is torn."""
    try:
        return json.loads(told)["host"]
    except (ValueError, KeyError, TypeError):
        return None


def _described(holder: Path) -> str:
    try:
        tree = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {tree['pid']} on {tree['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is only just beginning
        return "another process"
