"""`RunFolder`: the records of a run, and the names of its files."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from cvt_nas.arch import Cost
from cvt_nas.errors import RunFolderError, StorageError
from cvt_nas.results.candidate import Candidate
from cvt_nas.results.int8 import in_int8
from cvt_nas.results.pareto import HypervolumeBox, ParetoFront
from cvt_nas.results.parsing import parse_json
from cvt_nas.results.score import score_name
from cvt_nas.results.trial import Metric, TrialResult, without_retried
from cvt_nas.run.confirmations import Confirmations
from cvt_nas.run.int8 import Int8Figures
from cvt_nas.run.lock import is_at_work, locked, refresh
from cvt_nas.run.manifest import manifest_text, read_manifest
from cvt_nas.run.origin import origin
from cvt_nas.run.picking import find, pick
from cvt_nas.run.records import Record, figure, measured_of
from cvt_nas.run.requests import Requests
from cvt_nas.run.store import Store, path_and_store
from cvt_nas.run.supernet import SupernetFolder

CLASSES_FILE = "classes.json"  # accuracy on each class of the test split, in the folder of a model of the front
_MODEL_FILES = ("arch.json", "model.safetensors", "probe.safetensors", "preprocessing.json")


class RunFolder:
    """One run on disk: its records, and files that are made from them.

    manifest.json      space file, data, versions, devices, seeds, command line
    trials.jsonl       one `TrialResult` a line, append-only, flushed: the record
    confirm.json       architectures that are trained again after the race; see `ConfirmPlan`
    confirm.jsonl      one `TrialResult` a line for each further training, append-only, flushed
    test.jsonl         accuracy on the test split of the front's members, read once at the end
    latency.jsonl      measured latency and memory of the front's members, if the search used them
    int8.jsonl         what networks of models/ are worth in int8
    study.journal      Optuna's storage
    report.html        the self-contained page of the run; also pareto.csv, ranks.csv, pareto_flops.html, ...
    earlier/           trials of the runs that the search learns from, in <number>.jsonl for each run
    teacher/           answers of a teacher to the training images, float16; `.begun` while they are incomplete
    init/              weights.safetensors that trials or the supernet start from, sorted by importance
    models/<arch id>/  arch.json, model.safetensors, probe.safetensors of each complete trial
    supernet/          checkpoint.pt, then weights.safetensors; `stop` while its training is asked to end; quality.json;
                       inherited.jsonl, one `Candidate` a line, of architectures that judge it; narrowing.json
    standalone/        a run of its own: trainings that judge the supernet
    candidates.jsonl   one `Candidate` a line, append-only, flushed; candidates.journal is Optuna's storage of them
    checkpoints/       checkpoints of trials in flight; errors/ has tracebacks of trials that failed
    tune/              Ray Tune's own files, not needed after the run; tensorboard/ and wandb/ belong to these trackers
    requests/          requests of users to the search, one file each; answers.jsonl holds the answers
    lock, holder.json  the process that works on the run; clock.json holds the seconds spent on it

    A run at a URL that is pickled and loaded on another machine becomes an empty folder of that machine.

    Args:
        store: Writes and reads the run's files. None for this machine's disk only.
    """

    def __init__(self, path: Path, store: Store | None = None) -> None:
        self.path = path
        self.store = Store() if store is None else store
        self.supernet = SupernetFolder(path / "supernet", self.store)
        self.confirmations, self.requests = Confirmations(path, self.store), Requests(path, self.store)
        self.int8 = Int8Figures(path, self.store)
        self.journal_path, self.candidates_journal_path = path / "study.journal", path / "candidates.journal"
        self.tune_path, self.tensorboard_path = path / "tune", path / "tensorboard"
        self.init_path = path / "init" / "weights.safetensors"
        self.unsorted_init_path = self.init_path.with_stem("unsorted")  # weights before sorting
        self.samples_path = path / "samples.json"  # some images of each split
        self.listing_path = path / "images.npz"  # names of the images of a folder; see `TrainingSetup.save_listing`
        self._manifest_path = path / "manifest.json"
        self._trials = Record(path / "trials.jsonl", self.store, TrialResult.from_json)
        self._sorted: tuple[list[TrialResult], tuple[TrialResult, ...]] = [], ()
        self._candidates = Record(path / "candidates.jsonl", self.store, Candidate.from_json)
        self._tests = Record(path / "test.jsonl", self.store, partial(figure, name="test_accuracy"))
        self._latencies = Record(path / "latency.jsonl", self.store, measured_of)

    def __reduce__(self) -> tuple[object, ...]:
        return _folder_at, (self.place,)

    @classmethod
    def at(cls, place: str | Path) -> Self:
        """The folder at a path; for a URL, this machine's folder with the records of the URL, which it mirrors.

        Raises StorageError if there is no such store, or it does not answer.
        """
        path, store = path_and_store(place)
        refresh(path, store)
        return cls(path, store)

    @property
    def url(self) -> str | None:
        """URL of the run; None for a run at a path."""
        return self.store.url_of(self.path)

    @property
    def place(self) -> str:
        """Name of the run for users: its URL, or else its path."""
        return self.store.place_of(self.path)

    @classmethod
    def create(cls, place: str | Path, manifest: Mapping[str, object]) -> Self:
        """Creates a run at a path or URL; see `begin`."""
        try:
            run = cls.at(place)
        except StorageError as error:
            raise RunFolderError(f"{place}: cannot be written: {error.strerror or error}") from error
        run.begin(manifest)
        return run

    def begin(self, manifest: Mapping[str, object]) -> None:
        """Writes the first file of a new run: the manifest, with the run's `origin`.

        Raises:
            RunFolderError: The folder already holds a run, or cannot be written.
        """
        self.check_new()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.store.write(self._manifest_path, manifest_text({**origin(), **manifest}))
        except OSError as error:
            raise RunFolderError(f"{self.place}: cannot be written: {error.strerror or error}") from error

    @property
    def has_begun(self) -> bool:
        """Whether this machine's folder holds a run."""
        return self._manifest_path.is_file()

    def check_begun(self, place: str | Path | None = None) -> None:
        """Raises RunFolderError if the folder holds no run. `place` is the user's name for it."""
        if not self.has_begun:
            raise RunFolderError(f"{place or self.place} holds no run: no manifest.json in it")

    def check_new(self) -> None:
        """Raises RunFolderError if the folder already holds a run."""
        if self.has_begun:
            raise RunFolderError(
                f"{self.place} holds a run already, with {len(self.results())} of its trials done; "
                f"go on with it by --resume, or write elsewhere by --out DIR"
            )

    @classmethod
    def open(cls, place: str | Path) -> Self:
        """Opens the run at a path or URL.

        Raises:
            RunFolderError: There is no run.
        """
        try:
            run = cls.at(place)
        except StorageError as error:
            raise RunFolderError(f"{place}: cannot be read: {error.strerror or error}") from error
        run.check_begun(place)
        return run

    def locked(self) -> AbstractContextManager[None]:
        """Locks the run for the block; see `lock.locked`."""
        return locked(self.path, self.store)

    def is_at_work(self) -> bool:
        """Whether a process works on the run; see `lock.is_at_work`."""
        return is_at_work(self.path, self.store)

    def refresh(self) -> None:
        """Fetches what other machines have added to the files of the folder, if the run is at a URL.

        Files in folders below it, such as checkpoints, are fetched when they are needed. `standalone` is refreshed
        separately.
        """
        refresh(self.path, self.store)

    @property
    def seconds_spent(self) -> float:
        """Seconds that all processes have spent on the run, to within a few seconds."""
        path = self.path / "clock.json"
        return parse_json(_CLOCK, path.read_bytes(), str(path))["seconds"] if path.exists() else 0.0

    def write_seconds_spent(self, seconds: float) -> None:
        self.store.write(self.path / "clock.json", json.dumps({"seconds": round(seconds, 1)}) + "\n")

    @property
    def manifest(self) -> dict[str, Any]:
        """See `read_manifest`."""
        return read_manifest(self._manifest_path)

    def amend_manifest(self, **entries: object) -> None:
        """Adds entries to the manifest, or replaces them."""
        self.store.write(self._manifest_path, manifest_text({**self.manifest, **entries}))

    def seed_again(self, asked: int | None) -> int:
        """The seed that the run was started with. Raises RunFolderError if a user asks for another one."""
        seed = int(self.manifest["seed"])
        if asked not in (None, seed):
            raise RunFolderError(f"--seed {asked}: {self.path} was started with seed {seed}; leave it out")
        return seed

    @property
    def has_trained(self) -> bool:
        """Whether any network was trained or is in training, on any machine. It fetches no checkpoint.

        Raises:
            StorageError: The store does not answer.
        """
        return (
            self.store.holds_files(self.path / "checkpoints")
            or self.supernet.has_begun
            or any(result.epochs for result in self.results())
        )

    @property
    def lends_weights(self) -> bool:
        """Whether trials or the supernet start from the weights at `init_path`, which any machine may have written."""
        return self.store.exists(self.init_path)

    def answers_path(self, name: str) -> Path:
        """Path of a teacher's logits for the training images. `name` identifies the teacher and the images."""
        return self.path / "teacher" / f"{name}.npy"

    def earlier_path(self, number: int) -> Path:
        """Path of the trials of one of the runs that the search learns from."""
        return self.path / "earlier" / f"{number}.jsonl"

    @property
    def num_planned(self) -> int | None:
        """Number of trials that the search will have; None if the manifest does not say. It fetches nothing."""
        return None if (told := self.manifest.get("trials")) is None else self.requests.num_trials(told)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(self.manifest["objectives"])

    @property
    def score_name(self) -> str:
        """See `results.score_name`."""
        return score_name(self.manifest)

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs after which the scheduler decided. Old versions recorded none; see `Experiment.rungs_of`."""
        return tuple(self.manifest.get("rungs", ()))

    @property
    def box(self) -> HypervolumeBox:
        tree = self.manifest["hypervolume_box"]
        return HypervolumeBox(least=Cost(**tree["least"]), greatest=Cost(**tree["greatest"]))

    @property
    def standalone(self) -> "RunFolder":
        """The run inside this one. It may not have begun."""
        return RunFolder(self.path / "standalone", self.store)

    def append_candidate(self, candidate: Candidate) -> None:
        """Appends a line to the record of candidates. It is on disk when this returns."""
        self._candidates.append(candidate.to_json())

    def candidates(self) -> tuple[Candidate, ...]:
        """All ranked candidates in the order in which they ended, once each."""
        found = {}
        for candidate in self._candidates.read():
            found.setdefault(candidate.number, candidate)
        return tuple(found.values())

    def model_path(self, arch_id: str) -> Path:
        """Path of a trained network. Use `fetched_model` if another machine may have trained it."""
        return self.path / "models" / arch_id

    def fetched_model(self, arch_id: str) -> Path:
        """Fetches the files of a trained network, and returns its `model_path`."""
        folder = self.model_path(arch_id)
        if not all((folder / name).exists() for name in _MODEL_FILES):
            self.store.fetch(folder)
        return folder

    def push_model(self, arch_id: str) -> None:
        """Copies the local files of a trained network to the URL; see `has_model`."""
        for name in _MODEL_FILES:
            self.store.push(self.model_path(arch_id) / name)

    def has_model(self, arch_id: str) -> bool:
        """Whether any machine has written all files of a trained network. The preprocessing is written last."""
        return self.store.exists(self.model_path(arch_id) / _MODEL_FILES[-1])

    def checkpoint_path(self, number: int) -> Path:
        return self.path / "checkpoints" / f"{number}.pt"

    def checkpoint_bytes(self) -> int:
        """Bytes of checkpoints of unfinished trials on this machine's disk."""
        return sum(path.stat().st_size for path in (self.path / "checkpoints").rglob("*") if path.is_file())

    def error_path(self, number: int) -> Path:
        """Path of the traceback of a failed trial."""
        return self.path / "errors" / f"{number}.txt"

    def append(self, result: TrialResult) -> None:
        """Appends a line to the record of trials. It is on disk when this returns."""
        self._trials.append(result.to_json())

    def results(self) -> tuple[TrialResult, ...]:
        """The record in order of trial number, without failed trials that were tried again later.

        Raises:
            RunFolderError: A line is damaged other than by a crash.
        """
        lines = self._trials.read()
        if lines is not self._sorted[0]:  # the record has changed
            self._sorted = lines, tuple(sorted(without_retried(lines), key=lambda result: result.number))
        return self._sorted[1]

    def ended(self) -> tuple[TrialResult, ...]:
        """All lines of the record, in the order in which trials ended."""
        return tuple(self._trials.read())

    def confirmed(self) -> tuple[TrialResult, ...]:
        """The trials whose architectures were trained again; see `confirm`.

        It is empty until the first round is over, since the first few alone would give a wrong front.
        """
        return self.confirmations.confirmed(self.results(), self.metrics)

    @property
    def front_score_name(self) -> str:
        """What the front goes by: `score_name`, or that in int8 if the front is confirmed so."""
        return in_int8(self.score_name, self.confirmations.runtime_of_front(self.results()))

    def front(self) -> ParetoFront:
        """The front of the confirmed trials, by means over their further trainings; of all trials if there are none.

        Unconfirmed trials do not compete with means, since a single training may be the luckiest of many.
        """
        return ParetoFront.of(self.confirmed() or self.results(), self.metrics)

    def find(self, arch_id: str) -> TrialResult:
        """The result of the only architecture whose id begins with `arch_id`, with its confirmation if there is one.

        Raises:
            RunFolderError: No architecture or several have such an id.
        """
        results = {result.number: result for result in (*self.results(), *self.confirmed())}
        return find(results.values(), arch_id, self.path)

    def pick(self, what: str) -> TrialResult:
        """A trial of the front: `knee`, `best`, or the most accurate one under a limit; or any trial by its arch id.

        Args:
            what: `knee`, `best`, the beginning of an arch id, or a limit such as `flops<4e9` or `params<20e6`. Searches
                with latency also know `latency_ms<2`.

        Raises:
            RunFolderError: There is no such trial.
        """
        return pick(self.front(), what, self.path) or self.find(what)

    def append_test_accuracy(self, number: int, arch_id: str, accuracy: float, num_images: int) -> None:
        """Records the test accuracy of a member of the front. The test split is read once."""
        self._tests.append({"number": number, "arch_id": arch_id, "test_accuracy": accuracy, "num_images": num_images})

    def test_accuracies(self) -> dict[str, float]:
        """Accuracy on the test split by arch id."""
        return dict(self._tests.read())

    def mistakes_path(self, arch_id: str) -> Path:
        """Path of test images that a network of the front gets wrong; see `engine.shown`."""
        return self.model_path(arch_id) / "mistakes.json"

    def shown_images(self, path: Path) -> Any:
        """Content of `samples_path`, of a `mistakes_path` or `CLASSES_FILE`; None if there is no such file."""
        self.store.fetch(path)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def append_latency(self, arch_id: str, latency: Mapping[str, object]) -> None:
        """Records the measurements of a member of the front; see `export.deployed.Measured`."""
        self._latencies.append({"arch_id": arch_id, **latency})

    def latencies(self) -> dict[str, float]:
        """Measured milliseconds of a forward pass by arch id. The last of several measurements counts."""
        return {arch_id: milliseconds for arch_id, milliseconds, _ in self._latencies.read()}

    def memories(self) -> dict[str, float]:
        """Measured megabytes of memory by arch id, where they are known."""
        return {arch_id: memory for arch_id, _, memory in self._latencies.read() if memory is not None}


class _Clock(TypedDict):
    seconds: float


_CLOCK = TypeAdapter(_Clock)


def _folder_at(place: str) -> RunFolder:
    """Like `RunFolder.at`, but fetches no records, since workers do not read them."""
    return RunFolder(*path_and_store(place))
