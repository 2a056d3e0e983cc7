"""The search: from an experiment to a run folder with its record, its models and its front."""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import cvt_nas.distributed  # noqa: F401  sets Ray's environment before anything here imports Ray
from cvt_nas.config import Experiment
from cvt_nas.engine import SharedWeights, TrainingSetup
from cvt_nas.errors import ArchError, CvtNasError, RunFolderError
from cvt_nas.model import read_weights
from cvt_nas.race.confirm import confirm_front
from cvt_nas.race.events import RaceEvent
from cvt_nas.race.executor import race
from cvt_nas.race.inherit import heirs, rank_candidates, record_as_trials, train_shared_weights
from cvt_nas.race.resources import Resources, claim_resources
from cvt_nas.race.study import Study
from cvt_nas.race.trial import read_test_split
from cvt_nas.results import RunFolder, TrialResult
from cvt_nas.supernet import Supernet

ProgressFactory = Callable[
    [RunFolder, Resources, int, float | None], AbstractContextManager[Callable[[RaceEvent], None]]
]


def search(
    experiment: Experiment,
    *,
    out: str | Path,
    data: str | Path | None = None,
    gpus: int | None = None,
    gpus_per_trial: float | None = None,
    cpus: int | None = None,
    trials: int | None = None,
    time_budget: float | None = None,
    seed: int | None = None,
    address: str | None = None,
    warm_start: str | Path | None = None,
    resume: bool = False,
    device: Literal["cpu", "cuda"] | None = None,
    reuse_workers: bool = True,
    stop: threading.Event | None = None,
    progress: ProgressFactory | None = None,
) -> RunFolder:
    """Runs a search and returns its folder; ends early, in order, where `stop` is set or the time is over.

    Once the race is over, what `search.confirm` chooses is trained again, and once that is over, the test split is
    read for the members of the front. A resumed run may have another `search.confirm` than it began with.

    Args:
        out: The run folder, new unless `resume`.
        data: Folder of the data set, where it needs one.
        gpus, gpus_per_trial, cpus, address, device: See `claim_resources`.
        trials: Instead of the file's number.
        time_budget: Seconds from now.
        seed: Instead of the file's.
        warm_start: Weights that the supernet begins with; see `model.read_weights`.
        resume: Go on with the run in `out`; trials in flight continue from their last epoch.
        reuse_workers: See `race`.
        progress: Makes what is called with each event of the race.

    Raises:
        CvtNasError: Something that can be told before any compute is spent: data, resources, folder.
    """
    # absolute, since workers run elsewhere
    out, data_root = Path(out).absolute(), None if data is None else Path(data).absolute()
    num_trials = experiment.search.trials if trials is None else trials
    stop = threading.Event() if stop is None else stop
    setup = TrainingSetup(
        training=experiment.training,
        data=experiment.data,
        data_root=data_root,
        image_size=experiment.space.image_size,
        num_channels=experiment.space.num_channels,
        num_classes=experiment.space.num_classes,
        run_path=out,
        shared=SharedWeights(space=experiment.space, config=experiment.supernet)
        if experiment.search.weights == "supernet" and experiment.supernet is not None
        else None,
    )
    setup.open_data()
    if setup.shared is not None and num_trials > experiment.search.candidates and experiment.training.epochs > 0:
        raise CvtNasError(f"{num_trials} trials: more than the {experiment.search.candidates} of search.candidates")
    run = _resumed(experiment, out, seed) if resume else None
    seed = experiment.search.seed if seed is None else seed
    if run is not None:
        seed = int(run.manifest["seed"])
        warm_start = warm_start or run.manifest.get("warm_start")
    initial = None if warm_start is None else Path(warm_start).absolute()
    if initial is not None and (run is None or not run.supernet_weights_path.exists()):
        _check_lends_weights(initial, setup)
    with claim_resources(
        gpus=gpus, gpus_per_trial=gpus_per_trial, cpus=cpus, address=address, device=device
    ) as resources:
        setup = dataclasses.replace(setup, device=resources.device, num_threads=resources.num_threads)
        if run is None:
            manifest = experiment.manifest(seed=seed, num_trials=num_trials)
            manifest["warm_start"] = None if initial is None else str(initial)
            run = RunFolder.create(out, {**manifest, "resources": dataclasses.asdict(resources)})
        deadline = None if time_budget is None else time.monotonic() + time_budget
        timer = threading.Timer(time_budget or 0, stop.set)
        timer.daemon = True
        if time_budget is not None:
            timer.start()
        follow = nullcontext(_ignore) if progress is None else progress(run, resources, num_trials, deadline)
        with follow as on_event:
            is_done = True
            if setup.shared is not None:
                for event in train_shared_weights(run, setup, resources, seed=seed, stop=stop, initial=initial):
                    on_event(event)
                if not stop.is_set():
                    for event in rank_candidates(experiment, run, setup, resources, seed=seed, stop=stop):
                        on_event(event)
                is_done = not stop.is_set() or len(run.candidates()) == experiment.search.candidates
            if experiment.training.epochs == 0:
                record_as_trials(run, setup, resources)  # as far as the time went
            elif is_done:
                study = open_study(experiment, run, num_trials=num_trials, seed=seed)
                for event in race(experiment, study, run, setup, resources, stop=stop, reuse_workers=reuse_workers):
                    on_event(event)
                is_done = study.is_done
                if is_done and experiment.search.confirm is not None:
                    for event in confirm_front(
                        experiment, run, setup, resources, seed=seed, stop=stop, reuse_workers=reuse_workers
                    ):
                        on_event(event)
                    is_done = not run.unconfirmed()
        timer.cancel()
        if is_done:
            _test_front(run, setup, resources)
    return run


def open_study(experiment: Experiment, run: RunFolder, *, num_trials: int, seed: int) -> Study:
    """The study on a run's journal, which optuna-dashboard can open at the same time.

    Of a run with candidates, its trials are the anchors and the best of these.
    """
    first = dict(experiment.anchors)
    if candidates := run.candidates():
        first |= heirs(experiment, candidates, num_trials)
        num_trials = min(num_trials, len(set(first.values())))
    return Study(
        experiment.space,
        metrics=experiment.objectives,
        sampler=experiment.search.sampler,
        storage=JournalStorage(JournalFileBackend(str(run.journal_path))),
        num_trials=num_trials,
        seed=seed,
        anchors=first,
        recorded=run.results(),
    )


def _check_lends_weights(initial: Path, setup: TrainingSetup) -> None:
    """Before any compute is spent: whether the weights at `initial` have a place in the supernet."""
    if setup.shared is None:
        raise ArchError(f"--warm-start {initial}: is for search.weights: supernet")
    Supernet(setup.shared.space).insert(read_weights(initial))


def _ignore(event: RaceEvent) -> None:
    del event


def _test_front(run: RunFolder, setup: TrainingSetup, resources: Resources) -> None:
    """Reads the test split once for each member of the front that it was not read for yet, with the race's weights."""
    known = run.test_accuracies()
    members: Sequence[TrialResult] = [m for m in run.front().members if m.arch_id not in known]
    for member, (accuracy, num_images) in zip(members, read_test_split(members, setup, resources), strict=True):
        run.append_test_accuracy(member.number, member.arch_id, accuracy, num_images)


def _resumed(experiment: Experiment, out: Path, seed: int | None) -> RunFolder:
    """The run in `out`, if it is of the same experiment."""
    run = RunFolder.open(out)
    if not experiment.compares_with(run.manifest):
        raise RunFolderError(
            f"{out} was started from another version of the space file (kept in its manifest.json): results would "
            f"not compare; only search.trials, search.candidates and search.confirm can change. Write elsewhere by "
            f"--out DIR"
        )
    if seed is not None and seed != run.manifest["seed"]:
        raise RunFolderError(f"--seed {seed}: {out} was started with seed {run.manifest['seed']}; leave it out")
    return run
