"""`cvt-nas plan`: forecasts a search from the speeds of this machine or another one."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

from cvt_nas.config import Experiment
from cvt_nas.engine import TrainingSetup, find_teacher
from cvt_nas.engine.teacher import INIT, trains_anything
from cvt_nas.errors import CvtNasError, ResourceError, first_line
from cvt_nas.launch.cluster import is_this_machine_alone
from cvt_nas.launch.devices import WorkersFailedError
from cvt_nas.launch.resources import (
    GpusPerTrial,
    Resources,
    check_has_no_share,
    claim_resources,
    local_cpus,
    num_local_gpus,
)
from cvt_nas.plan import measuring
from cvt_nas.plan.forecast import fit_to_hours, plan_search
from cvt_nas.plan.sharing import find_sharing
from cvt_nas.plan.values import NOTHING_BEGUN, Begun, Plan
from cvt_nas.run import RunFolder

_TEACHER_NOT_COUNTED = "what the teacher takes is not counted here; the first lines of the search tell it"
_INIT_NOT_COUNTED = "training.teacher: init: what the weights of search --init take as a teacher is not counted here"


def plan(
    experiment: Experiment,
    *,
    data: str | Path | None = None,
    gpus: int | None = None,
    gpus_per_trial: GpusPerTrial | None = None,
    cpus: int | None = None,
    trials: int | None = None,
    hours: float | None = None,
    images_per_second: float | None = None,
    loader_images_per_second: float | None = None,
    gpu_memory: float | None = None,
    out: Path = Path("results"),
    is_quick: bool = False,
    on_note: Callable[[str], None] | None = None,
) -> Plan:
    """Forecasts the search of `experiment` before it begins.

    Args:
        data: Folder of the data set, if it needs one. ImageNet's number of images is known without it.
        gpus: Number of GPUs of the search. If this machine has fewer, the others are assumed to be like them.
        gpus_per_trial, cpus: See `claim_resources`. `auto` is measured as for a search.
        trials: Number of trials. It overrides the file.
        hours: If given, also finds trials, epochs and a grace period that end in this time; see `fit_to_hours`.
        images_per_second: Speed of another machine; see `state_machine`. If given, nothing is measured.
        loader_images_per_second, gpu_memory: Further values of that machine.
        out: Folder that the search will write to.
        is_quick: Whether to save time: images are not checked, networks are measured for a shorter time, and
            architectures are drawn at random instead of proposed if there are more than a few.
        on_note: Called with notes about the data.

    Raises:
        CvtNasError: Data or resources are missing or not valid, or nothing fits into `hours`.
    """
    if trials is not None:
        experiment = experiment.changed(search={"trials": trials})
    setup, begun = TrainingSetup.of(experiment, run=RunFolder(out.absolute()), data=data), NOTHING_BEGUN
    if images_per_second is not None:
        if not gpus:
            raise ResourceError("--images-per-second: is of a machine with GPUs; say how many by --gpus N")
        if cpus is not None:
            raise ResourceError("--cpus: is of this machine; leave it out with --images-per-second")
        if gpus_per_trial == "auto":
            raise ResourceError(
                "--gpus-per-trial auto: is measured on this machine; give a number with --images-per-second"
            )
        num_images = measuring.sizes_of(experiment, setup)
        machine = measuring.state_machine(
            experiment,
            num_gpus=gpus,
            gpus_per_trial=1.0 if gpus_per_trial is None else gpus_per_trial,
            images_per_second=images_per_second,
            loader_images_per_second=loader_images_per_second,
            gpu_memory=gpu_memory,
        )
    else:
        if loader_images_per_second is not None or gpu_memory is not None:
            raise ResourceError(
                "--loader-images-per-second, --gpu-memory: are of another machine; give its --images-per-second, too"
            )
        there = num_local_gpus()
        if gpus is not None and gpus > there == 0:
            raise ResourceError(
                f"--gpus {gpus}: this machine has none to measure on; give --images-per-second of one of them"
            )
        started, seconds = time.time(), measuring.QUICK_SECONDS if is_quick else measuring.SECONDS
        if gpus == 0 or there == 0:
            check_has_no_share(gpus_per_trial, gpus=gpus)
        if not is_quick:
            setup = setup.checked(on_note=on_note)
            begun = _begun(setup)
        num_images = measuring.sizes_of(experiment, setup)
        scale = 1.0 if gpus is None or gpus <= there else gpus / there
        notes: tuple[str, ...] = ()
        if gpus == 0 or there == 0:
            resources = local_cpus(cpus)
            measured = measuring.measure_cpus(
                experiment, _on(setup, resources), resources, seconds=seconds, teacher=begun.teacher
            )
            start = measuring.RAY_CPU_SECONDS * measured.waiting
        else:
            measured_on = gpus if gpus is None else min(gpus, there)
            with claim_resources(gpus=measured_on, gpus_per_trial=gpus_per_trial, cpus=cpus) as resources:
                if gpus_per_trial == "auto":
                    num_trials = math.ceil(experiment.search.trials / scale)  # share of the GPUs here
                    sharing = find_sharing(experiment, setup, resources, num_trials=num_trials)
                    notes = (sharing.describe(resources.num_gpus),)
                    resources = sharing.divide(resources)
                start = time.time() - started
                measured = measuring.measure_workers(
                    experiment, _on(setup, resources), resources, seconds=seconds, teacher=begun.teacher
                )
        machine = measuring.machine_of(measured, experiment, _on(setup, resources), resources, scale=scale, start=start)
        machine = dataclasses.replace(machine, notes=(*notes, *machine.notes))
    seed, num_trials = experiment.search.seed, experiment.search.trials
    where = out if images_per_second is None else None
    if setup.training.teacher is not None and begun.teacher is None and trains_anything(setup):
        note = _INIT_NOT_COUNTED if setup.training.teacher == INIT else _TEACHER_NOT_COUNTED
        machine = dataclasses.replace(machine, notes=(*machine.notes, note))
    found = plan_search(
        experiment, machine, num_images,
        num_trials=num_trials, seed=seed, out=where, is_quick=is_quick, begun=begun,
    )  # fmt: skip
    if hours is None:
        return found
    known = () if found.race is None else found.race.proposals
    fit = fit_to_hours(experiment, machine, num_images, hours=hours, seed=seed, known=known)
    return dataclasses.replace(found, fit=fit)


def _begun(setup: TrainingSetup) -> Begun:
    """The teacher that the space file names. A teacher `init` is left out, since only the search gets its weights."""
    if setup.training.teacher in (None, INIT):
        return NOTHING_BEGUN
    teacher = find_teacher(setup, init=None, run=None)
    return NOTHING_BEGUN if teacher is None else Begun(teacher=teacher, num_bytes=teacher.num_bytes)


def _on(setup: TrainingSetup, resources: Resources) -> TrainingSetup:
    return setup.on(resources.device, num_threads=resources.num_threads, gpus=resources.gpus_per_trial)


def plan_of_search(
    experiment: Experiment,
    setup: TrainingSetup,
    resources: Resources,
    *,
    num_trials: int,
    seed: int,
    out: Path,
    started: float,
    begun: Begun,
    on_note: Callable[[str], None] | None = None,
) -> Plan | None:
    """Forecasts a search that is about to begin. The measurement takes a few seconds.

    Args:
        started: Start of the search, by `time.time`.

    Returns:
        None if the measurement fails, such as on damaged data. The trials will fail on them too and record why.
    """
    # trials on the CPUs of this machine can be measured without Ray workers
    is_here = resources.device == "cpu" and is_this_machine_alone()
    measure = measuring.measure_cpus if is_here else measuring.measure_workers
    try:
        measured = measure(experiment, setup, resources, seconds=measuring.QUICK_SECONDS, teacher=begun.teacher)
        machine = measuring.machine_of(measured, experiment, setup, resources, start=time.time() - started)
        return plan_search(
            experiment,
            machine,
            measuring.sizes_of(experiment, setup),
            num_trials=num_trials,
            seed=seed,
            out=out,
            is_quick=True,
            begun=begun,
        )
    except (CvtNasError, RuntimeError, WorkersFailedError) as error:
        if on_note is not None:
            on_note(f"how long the search will take cannot be told: {first_line(error)}")
        return None
