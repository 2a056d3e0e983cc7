"""Runs the search of an experiment, and writes its record, its models and its front to a run folder."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Literal

from cvt_nas.config import MAY_CHANGE, Experiment, space_file_of
from cvt_nas.engine import TrainingSetup, find_teacher, keep_in_order
from cvt_nas.engine.shown import sample_images
from cvt_nas.errors import CvtNasError, DataError, RunFolderError, StorageError
from cvt_nas.latency import LatencyTable
from cvt_nas.launch.client import search_through_client
from cvt_nas.launch.resources import GpusPerTrial, Resources, claim_resources
from cvt_nas.launch.search import Search
from cvt_nas.launch.tasks import on_device
from cvt_nas.pipeline.asked import refuse_old_stops, stopping_when_asked
from cvt_nas.pipeline.beginning import check_same_init, learn_of, lent_weights
from cvt_nas.pipeline.confirm import check_judging
from cvt_nas.pipeline.latency import check_deployment, check_same_table, read_table, with_latency
from cvt_nas.pipeline.phases import run_phases
from cvt_nas.plan.compiling import with_fastest_way
from cvt_nas.plan.disk import check_disk, check_writable
from cvt_nas.plan.planning import plan_of_search
from cvt_nas.plan.sharing import divide_as_asked
from cvt_nas.plan.values import Begun, Plan
from cvt_nas.plugins import is_plugin
from cvt_nas.propose.earlier import check_same_sources, entries_of, keep_sources, read_sources
from cvt_nas.propose.samplers import load_sampler
from cvt_nas.results import FAILURES
from cvt_nas.results.events import Follower, following
from cvt_nas.run import RunFolder
from cvt_nas.run.budget import TimeBudget

ProgressFactory = Callable[[RunFolder, Resources, int, float | None], AbstractContextManager[Follower]]


def search(
    experiment: Experiment,
    *,
    out: str | Path,
    data: str | Path | None = None,
    gpus: int | None = None,
    gpus_per_trial: GpusPerTrial | None = None,
    cpus: int | None = None,
    trials: int | None = None,
    time_budget: float | None = None,
    seed: int | None = None,
    address: str | None = None,
    init: str | Path | None = None,
    warm_start: str | Path | None = None,
    learn_from: Sequence[str | Path] = (),
    latency_table: str | Path | LatencyTable | None = None,
    resume: bool = False,
    device: Literal["cpu", "cuda"] | None = None,
    reuse_workers: bool = True,
    stop: threading.Event | None = None,
    progress: ProgressFactory | None = None,
    callbacks: Sequence[Follower] = (),
    on_note: Callable[[str], None] | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> RunFolder:
    """Runs a search and returns its folder. It ends early and in an orderly way if `stop` is set or the time is over.

    After the race, the architectures that `search.confirm` chooses are trained again. After that, the members of the
    front are evaluated on the test split. A resumed run may have another `search.confirm` than it began with. Requests
    of users (`cvt-nas watch`, `cvt-nas ask`) are read from the run folder while the search runs.

    Args:
        out: The run folder, as a path or a URL that fsspec supports. It must be new unless `resume` is set.
        data: Folder of the data set, if it needs one.
        gpus, gpus_per_trial, cpus, address, device: See `claim_resources`. If `gpus_per_trial` is `auto`, the search
            first measures how many trials share a GPU best. A resumed run keeps that number, unless another one is
            given here.
        trials: Number of trials. It overrides the file. A resumed run keeps its number unless another one is given, or
            the file has another one than before.
        time_budget: Seconds in total, over all processes that work on the run. A resumed run keeps its budget
            unless another one is given.
        seed: Seed of the search. It overrides the file.
        init: Initial weights of the supernet or of the trials. Each trial takes the part that its architecture has room
            for; see `model.locate` and `model.cut_state`. The manifest describes the weights in `init`, and a teacher
            in `teacher`.
        warm_start: Another name of `init`.
        learn_from: Folders or URLs of earlier runs. The surrogate starts from their trials, as far as the new trials
            confirm them. Their spaces, data and epochs may differ. The run folder keeps a copy of their trials.
        latency_table: A table that `cvt-nas measure` wrote, or its file, to search for another machine.
        resume: Continue the run in `out`. Trials in flight continue from their last epoch. Trials that failed or ran
            out of memory are tried again, anchors first, as new trials of the same architectures.
        reuse_workers: Whether a worker process outlives its trial. Set it to False only to measure what reuse saves.
        progress: Called with the run, the resources, the number of trials and the deadline. It returns a context
            manager of a function, which is called with each event of the race (`cvt_nas.results.events`).
        callbacks: Functions that are also called with each event, one after the other. They run in this process, even
            if the search runs on another machine. An exception in one of them ends the search.
        on_note: Called with notes: about the data, on the progress of the check of images, and on how many trials share
            a GPU, if that was measured.
        on_plan: Called with the forecast of the search before anything else is trained. The measurement takes some
            seconds, and the manifest keeps the forecast. It is not called for a resumed run, or for a search on another
            machine.

    Raises:
        CvtNasError: Data, resources or the folder have a problem that can be found before any compute is spent. Or the
            first trials all failed, or nothing can be written any more. In these cases the record is complete.
    """
    init = warm_start if init is None else init
    stop, started = threading.Event() if stop is None else stop, time.time()
    table = read_table(latency_table) if isinstance(latency_table, str | Path) else latency_table
    if address is not None and address.startswith("ray://"):
        return search_through_client(
            search, experiment, address=address, out=out, stop=stop, progress=progress, callbacks=callbacks,
            on_note=on_note, data=data,
            gpus=gpus, gpus_per_trial=gpus_per_trial, cpus=cpus, trials=trials, time_budget=time_budget, seed=seed,
            init=init, learn_from=learn_from, latency_table=table, resume=resume, device=device,
            reuse_workers=reuse_workers,
        )  # fmt: skip
    if learn_from and (experiment.search.sampler != "surrogate" or experiment.search.has_supernet):
        raise CvtNasError(
            "--learn-from: the surrogate learns; needs search.sampler surrogate and search.weights scratch"
        )
    if is_plugin(experiment.search.sampler):
        load_sampler(experiment.search.sampler)  # fails early if it cannot be loaded
    check_deployment(experiment, table)
    check_judging(experiment)
    of_file = experiment.search.trials
    num_trials = of_file if trials is None else trials
    place = RunFolder.at(out)
    check_writable(place.path)
    setup = TrainingSetup.of(experiment, run=place, data=data)
    with ExitStack() as stack:
        run = None
        if resume:
            place.check_begun(out)
            run = place
            stack.enter_context(run.locked())
            refuse_old_stops(run)
            _check_resumes(run, experiment)
            check_same_init(run, init)
            check_same_sources(run, learn_from)
            check_same_table(run, table)
            seed = run.seed_again(seed)
            time_budget = time_budget or run.manifest.get("time_budget")
            if trials is None and of_file == run.manifest.get("trials_of_file", space_file_of(run).search.trials):
                num_trials = int(run.manifest["trials"])  # the command that began the run may have said another number
            num_trials = num_trials if setup.shared is not None else run.requests.num_trials(num_trials)
        else:
            place.check_new()
        if setup.shared is not None and num_trials > experiment.search.candidates and experiment.training.epochs > 0:
            raise CvtNasError(f"{num_trials} trials: more than the {experiment.search.candidates} of search.candidates")
        seed = experiment.search.seed if seed is None else seed
        setup = setup.checked(run, on_note=on_note)
        identity = setup.identity
        assert identity is not None, "they were just looked at"
        if experiment.search.weights == "da-nas" and setup.open_data().is_multi_label:
            raise DataError("search.weights: da-nas puts classes in order, and needs images of one class each")
        sources = [] if resume else read_sources(learn_from, metric=setup.metric)
        lent, begins = lent_weights(init, run, experiment, setup)
        if begins is None and on_note is not None and experiment.says("search", "importance"):
            on_note("search.importance has no effect: there are no weights to begin with (--init)")
        teacher = find_teacher(setup, init=init, run=run)
        budget = TimeBudget(time_budget, run)
        resources = stack.enter_context(
            claim_resources(gpus=gpus, gpus_per_trial=gpus_per_trial, cpus=cpus, address=address, device=device)
        )
        resources, sharing = divide_as_asked(
            experiment, setup, resources, asked=gpus_per_trial, num_trials=num_trials, run=run, on_note=on_note
        )
        setup = setup.on(resources.device, num_threads=resources.num_threads, gpus=resources.gpus_per_trial)
        ended = () if run is None else run.results()
        num_left = num_trials - sum(result.status not in FAILURES for result in ended)  # failed trials run again
        begun = Begun(
            teacher=teacher,
            is_sorted_by_taylor=begins is not None and begins["importance"] == "taylor",
            num_bytes=(0 if lent is None else 2 * lent.num_bytes) + (0 if teacher is None else teacher.num_bytes),
        )
        check_disk(
            experiment, place.path,
            num_trials=max(num_left, 0), num_slots=resources.num_slots, to_keep=begun.num_bytes, run=run,
        )  # fmt: skip
        if address is None:
            num_processes = resources.num_slots * resources.num_workers
            setup = setup.fitting_shared_memory(num_processes=num_processes, on_note=on_note)
        if experiment.goes_by_latency:
            experiment = with_latency(experiment, run, setup, resources, seed=seed, table=table)
            if setup.shared is not None:  # its random subnets meet the constraints, too
                setup = dataclasses.replace(setup, shared=dataclasses.replace(setup.shared, space=experiment.space))
        setup, way = with_fastest_way(experiment, run, setup, resources, on_note=on_note)
        if run is None:
            plan = None
            if on_plan is not None:
                plan = plan_of_search(
                    experiment, setup, resources,
                    num_trials=num_trials, seed=seed, out=place.path, started=started, begun=begun, on_note=on_note,
                )  # fmt: skip
            if on_plan is not None and plan is not None:
                on_plan(plan)
            manifest = {
                **experiment.manifest(seed=seed, num_trials=num_trials),
                **({} if begins is None else {"init": begins}),
                **({} if teacher is None else {"teacher": teacher.to_json()}),
                **({"learn_from": entries_of(sources, experiment)} if sources else {}),
                "time_budget": time_budget,
                "resources": dataclasses.asdict(resources),
                **({} if sharing is None else {"sharing": sharing.to_json()}),
                "data": identity.to_json(),
                "metric": setup.metric,
                **way,
                **({} if plan is None else {"plan": plan.to_json()}),
            }
            keep_sources(sources, place)  # before the manifest, which makes the folder a run
            place.begin(manifest)
            run = place
            stack.enter_context(run.locked())
        elif (num_trials, time_budget) != (run.manifest["trials"], run.manifest.get("time_budget")):
            run.amend_manifest(trials=num_trials, trials_of_file=of_file, time_budget=time_budget)
        setup.save_listing()
        if setup.data.show_images and not run.store.exists(run.samples_path):
            run.store.write(run.samples_path, json.dumps(sample_images(setup.open_data())) + "\n")
        stack.enter_context(budget.running(run, stop))
        stack.enter_context(stopping_when_asked(run, stop, on_note=on_note))
        if lent is not None and begins is not None:
            keep_in_order(lent, begins["importance"], setup, partial(on_device, resources))
        if teacher is not None:
            taught = learn_of(teacher, setup, resources, stop=stop, on_note=on_note)
            if taught is None:
                return run
            setup = taught
        on_event = following(*callbacks)
        if progress is not None:
            follower = stack.enter_context(progress(run, resources, num_trials, budget.deadline))
            on_event = following(follower, *callbacks)
        work = Search(
            experiment=experiment, run=run, setup=setup, resources=resources, seed=seed, num_trials=num_trials,
            stop=stop, reuse_workers=reuse_workers,
        )  # fmt: skip
        try:
            for event in run_phases(work):
                on_event(event)
        except StorageError as error:
            raise RunFolderError(
                f"{out}: nothing can be written any more: {error}; what was done is kept, and goes on by --resume"
            ) from error
    return run


def _check_resumes(run: RunFolder, experiment: Experiment) -> None:
    if not experiment.compares_with(run.manifest):
        may_change = [f"{section}.{setting}" for section, settings in MAY_CHANGE.items() for setting in settings]
        raise RunFolderError(
            f"{run.path} was started from another version of the space file (kept in its manifest.json): results would "
            f"not compare; only name and {', '.join(may_change)} can change. Write elsewhere by --out DIR"
        )
