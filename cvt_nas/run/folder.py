"""`RunFolder`, the only code that knows file names under `results/`."""

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
from cvt_nas.results.confirmation import confirm, with_memberships
from cvt_nas.results.pareto import HypervolumeBox, ParetoFront
from cvt_nas.results.parsing import parse_json
from cvt_nas.results.score import score_name
from cvt_nas.results.trial import Metric, TrialResult, check_line, round_and_trial, without_retried
from cvt_nas.run.confirmations import Confirmations
from cvt_nas.run.lock import is_at_work, locked
from cvt_nas.run.manifest import manifest_text, read_manifest
from cvt_nas.run.mirror import Mirror
from cvt_nas.run.origin import origin
from cvt_nas.run.picking import find, pick
from cvt_nas.run.places import is_url, local_folder
from cvt_nas.run.records import Record
from cvt_nas.run.store import Store
from cvt_nas.run.supernet import SupernetFolder

_MODEL_FILES = ("arch.json", "model.safetensors", "probe.safetensors", "preprocessing.json")


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
    earlier/           trials of the runs that the search learns from, <number>.jsonl of each, as in their trials.jsonl
    teacher/           answers of a teacher to the training images, float16; `.begun` while they are not complete
    init/              weights.safetensors from elsewhere that trials or the supernet begin with, sorted by importance
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

    A run at a URL that is pickled and loaded on another machine becomes that machine's own folder, which is empty.

    Args:
        store: By which its files are written and read; None for this machine's disk alone.
    """

    def __init__(self, path: Path, store: Store | None = None) -> None:
        self.path = path
        self.store = Store() if store is None else store
        self.supernet = SupernetFolder(path / "supernet", self.store)
        self.confirmations = Confirmations(path, self.store)
        self.journal_path, self.candidates_journal_path = path / "study.journal", path / "candidates.journal"
        self.tune_path, self.tensorboard_path = path / "tune", path / "tensorboard"
        self.init_path = path / "init" / "weights.safetensors"
        self.unsorted_init_path = path / "init" / "unsorted.safetensors"  # until they are sorted
        self.samples_path = path / "samples.json"  # some images of each split
        self.listing_path = path / "images.npz"  # names of the images of a folder; see `TrainingSetup.save_listing`
        self._manifest_path = path / "manifest.json"
        self._trials = Record(path / "trials.jsonl", self.store, TrialResult.from_json)
        self._candidates = Record(path / "candidates.jsonl", self.store, Candidate.from_json)
        self._tests = Record(path / "test.jsonl", self.store, partial(_figure, name="test_accuracy"))
        self._latencies = Record(path / "latency.jsonl", self.store, partial(_figure, name="median_ms"))

    def __reduce__(self) -> tuple[object, ...]:
        return _folder_at, (self.place,)

    @classmethod
    def at(cls, place: str | Path) -> Self:
        """The folder at a path; or this machine's own for a URL, with the records that are there, and mirrored there.

        Raises:
            StorageError: There is no such store, or it does not answer.
        """
        path, store = _path_and_store(place)
        store.refresh(path)
        return cls(path, store)

    @property
    def url(self) -> str | None:
        """Where it is mirrored to."""
        return self.store.url_of(self.path)

    @property
    def place(self) -> str:
        """What a user knows it by: its URL, or else its path."""
        return self.store.place_of(self.path)

    @classmethod
    def create(cls, place: str | Path, manifest: Mapping[str, object]) -> Self:
        """A new run at a path or URL; see `begin`."""
        try:
            run = cls.at(place)
        except StorageError as error:
            raise RunFolderError(f"{place}: cannot be written: {error.strerror or error}") from error
        run.begin(manifest)
        return run

    def begin(self, manifest: Mapping[str, object]) -> None:
        """Writes the first file of a new run: the manifest, which tells its `origin`, too.

        Raises:
            RunFolderError: There is a run in the folder already, or it cannot be written.
        """
        self.check_new()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.store.write(self._manifest_path, manifest_text({**origin(), **manifest}))
        except OSError as error:
            raise RunFolderError(f"{self.place}: cannot be written: {error.strerror or error}") from error

    @property
    def has_begun(self) -> bool:
        """Whether there is a run in the folder, as this machine has it."""
        return self._manifest_path.is_file()

    def check_begun(self, place: str | Path | None = None) -> None:
        """Raises RunFolderError where there is no run in the folder; `place` is what the user called it."""
        if not self.has_begun:
            raise RunFolderError(f"{place or self.place} holds no run: no manifest.json in it")

    def check_new(self) -> None:
        """Raises RunFolderError where there is a run in the folder already."""
        if self.has_begun:
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
        run.check_begun(place)
        return run

    def locked(self) -> AbstractContextManager[None]:
        """Keeps all others from working on the run; see `lock.locked`."""
        return locked(self.path, self.store)

    def is_at_work(self) -> bool:
        """Whether a process works on the run, as far as it can be told from here: one that died elsewhere seems to."""
        return is_at_work(self.path, self.store)

    def refresh(self) -> None:
        """Fetches what other machines have added since, where there is a URL: the files of the folder itself.

        Those in folders below it, such as checkpoints, are fetched when they are needed. `standalone` has its own.
        """
        self.store.refresh(self.path)

    @property
    def seconds_spent(self) -> float:
        """By all the processes that worked on the run so far, to within a few seconds."""
        path = self.path / "clock.json"
        return parse_json(_CLOCK, path.read_bytes(), str(path))["seconds"] if path.exists() else 0.0

    def write_seconds_spent(self, seconds: float) -> None:
        self.store.write(self.path / "clock.json", json.dumps({"seconds": round(seconds, 1)}) + "\n")

    @property
    def manifest(self) -> dict[str, Any]:
        """See `read_manifest`."""
        return read_manifest(self._manifest_path)

    def amend_manifest(self, **entries: object) -> None:
        """Adds entries to the manifest, or replaces those that are told before anything is trained."""
        self.store.write(self._manifest_path, manifest_text({**self.manifest, **entries}))

    @property
    def has_trained(self) -> bool:
        """Whether any network was trained, or is in training, on whatever machine; no checkpoint is fetched for that.

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
        """Whether trials, or the supernet, begin with what is at `init_path`, on whatever machine."""
        return self.store.exists(self.init_path)

    def answers_path(self, name: str) -> Path:
        """Of the logits of a teacher, for the training images of a data set; `name` tells it and these from others."""
        return self.path / "teacher" / f"{name}.npy"

    def earlier_path(self, number: int) -> Path:
        """Of the trials of one of the runs that the search learns from."""
        return self.path / "earlier" / f"{number}.jsonl"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(self.manifest["objectives"])

    @property
    def score_name(self) -> str:
        """See `results.score_name`."""
        return score_name(self.manifest)

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs after which the scheduler decided; none of a version that recorded none, see `Experiment.rungs_of`."""
        return tuple(self.manifest.get("rungs", ()))

    @property
    def box(self) -> HypervolumeBox:
        tree = self.manifest["hypervolume_box"]
        return HypervolumeBox(least=Cost(**tree["least"]), greatest=Cost(**tree["greatest"]))

    @property
    def standalone(self) -> "RunFolder":
        """The run inside this one, which need not have begun."""
        return RunFolder(self.path / "standalone", self.store)

    def append_candidate(self, candidate: Candidate) -> None:
        """Adds a line to the record of candidates, on disk when this returns."""
        self._candidates.append(candidate.to_json())

    def candidates(self) -> tuple[Candidate, ...]:
        """Every one that was ranked, in the order in which they ended; once each."""
        found = {}
        for candidate in self._candidates.read():
            found.setdefault(candidate.number, candidate)
        return tuple(found.values())

    def model_path(self, arch_id: str) -> Path:
        """Where a trained network is; `fetched_model` of one that another machine may have trained."""
        return self.path / "models" / arch_id

    def fetched_model(self, arch_id: str) -> Path:
        """`model_path`, with its files brought here, where any machine has written them."""
        folder = self.model_path(arch_id)
        if not (folder / "model.safetensors").exists():
            self.store.fetch(folder)
        return folder

    def push_model(self, arch_id: str) -> None:
        """Copies the files of a trained network, which were written here, to the URL; see `has_model`."""
        for name in _MODEL_FILES:
            self.store.push(self.model_path(arch_id) / name)

    def has_model(self, arch_id: str) -> bool:
        """Whether a trained network was written whole, on whatever machine: its preprocessing is written last."""
        return self.store.exists(self.model_path(arch_id) / _MODEL_FILES[-1])

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
        self._trials.append(result.to_json())

    def results(self) -> tuple[TrialResult, ...]:
        """The record, in order of trial number, without the trials that failed and were tried again since.

        Raises:
            RunFolderError: A line is damaged that no crash has torn.
        """
        return tuple(sorted(without_retried(self.ended()), key=lambda result: result.number))

    def ended(self) -> tuple[TrialResult, ...]:
        """Every line of the record, in the order in which the trials ended."""
        return tuple(self._trials.read())

    def confirmed(self) -> tuple[TrialResult, ...]:
        """The trials whose architectures were trained again; see `confirm`.

        Empty until the first round is over: a front of those that happened to be first would be none of the search.
        """
        plan, further = self.confirmations.plan(), self.confirmations.results()
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
        return find(results.values(), arch_id, self.path)

    def pick(self, what: str) -> TrialResult:
        """A trial of the front: `knee`, `best`, or the most accurate under a limit; any by the begin of its arch id.

        Args:
            what: Limits are written `flops<4e9`, `params<20e6`, or where the search went by latency `latency_ms<2`.

        Raises:
            RunFolderError: Nothing of the run is meant by it.
        """
        return pick(self.front(), what, self.path) or self.find(what)

    def append_test_accuracy(self, number: int, arch_id: str, accuracy: float, num_images: int) -> None:
        """Records the one reading of the test split for one member of the front."""
        self._tests.append({"number": number, "arch_id": arch_id, "test_accuracy": accuracy, "num_images": num_images})

    def test_accuracies(self) -> dict[str, float]:
        """Accuracy on the test split by arch id."""
        return dict(self._tests.read())

    def mistakes_path(self, arch_id: str) -> Path:
        """Test images that a network of the front gets wrong, as `engine.shown` tells them."""
        return self.model_path(arch_id) / "mistakes.json"

    def shown_images(self, path: Path) -> Any:
        """What `samples_path` or a `mistakes_path` holds; None where there is none."""
        self.store.fetch(path)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def append_latency(self, arch_id: str, latency: Mapping[str, object]) -> None:
        """Records what was measured of one member of the front; see `engine.Latency`."""
        self._latencies.append({"arch_id": arch_id, **latency})

    def latencies(self) -> dict[str, float]:
        """Milliseconds of one image's forward pass, measured, by arch id; the last of several measurements."""
        return dict(self._latencies.read())


class _Clock(TypedDict):
    seconds: float


_CLOCK = TypeAdapter(_Clock)


def _folder_at(place: str) -> RunFolder:
    """As `RunFolder.at`, without its records, which the workers of a run do not read."""
    return RunFolder(*_path_and_store(place))


def _path_and_store(place: str | Path) -> tuple[Path, Store]:
    if not is_url(place):
        return Path(place).absolute(), Store()
    folder = local_folder(str(place))
    folder.mkdir(parents=True, exist_ok=True)
    return folder, Store(Mirror(folder, str(place)))


def _figure(tree: Mapping[str, Any], *, name: str) -> tuple[str, float]:
    """A figure of an architecture, by its id."""
    check_line(tree)
    return str(tree["arch_id"]), float(tree[name])
