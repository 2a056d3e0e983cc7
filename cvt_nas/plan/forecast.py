"""Forecasts a search before it begins: its time, its disk space, and its bottleneck.

The study and the rungs of the real search run on a simulated clock (`cvt_nas.propose.simulation`). Learning curves are
made up. Speeds are those of a `Machine`, which are measured or stated (`cvt_nas.plan.measuring`).
"""

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cvt_nas.arch import sides_of
from cvt_nas.config import Experiment
from cvt_nas.data import Split
from cvt_nas.engine import shared_memory_needed
from cvt_nas.engine.importance import NUM_TAYLOR_IMAGES
from cvt_nas.engine.int8 import MOST_IMAGES, NUM_CALIBRATED
from cvt_nas.engine.quantised import RUNS
from cvt_nas.errors import CvtNasError
from cvt_nas.latency import Int8Runtime
from cvt_nas.launch.judges import NUM_SCREENING_IMAGES
from cvt_nas.plan.disk import bytes_needed, nearest_folder
from cvt_nas.plan.machine import Machine
from cvt_nas.plan.option_steps import option_steps
from cvt_nas.plan.values import NOTHING_BEGUN, NUM_OF_FIRST_FRONT, Begun, Fit, Plan, SimulatedRace, size
from cvt_nas.propose.asha import pareto_ranks
from cvt_nas.propose.race import Race, race_of
from cvt_nas.propose.simulation import Asked, MadeUpCurves, run_clock
from cvt_nas.propose.spread import Spread
from cvt_nas.propose.study import Proposal, Study
from cvt_nas.results import Metric, is_non_dominated
from cvt_nas.space import TIMED_METRICS

MAX_QUICK_TRIALS = 50  # the real sampler proposes these in a few seconds
MAX_SIMULATED_TRIALS = 1_000  # the time of a simulation grows faster than the number of trials
_SHARE_LOOKED_AT = 0.5  # of search images after the screening, since weak candidates are given up
_QUANTISE_SECONDS, _TIMING_SECONDS = 8.0, 5.0  # to write a network of 3 to 6 blocks as ONNX and in int8; to time it
_CHECK_SECONDS, _REPORT_SECONDS = 0.5, 2.0  # to count a member of the front by fvcore; to write the page and plots
_LAUNCH_RATIO = 0.8  # a network with far fewer FLOPs, but above this ratio of seconds per image, is bound by launches
_SAMPLER_SHARE = 0.25  # of the time between two proposals; if the sampler takes more, it is the bottleneck
_FEW_TRIALS, _FEW_EPOCHS = 20, 0.25  # least values of `fit_to_hours`: trials, and share of the file's epochs
_EPOCH_STEP = 0.8


def simulate_race(
    experiment: Experiment,
    machine: Machine,
    num_images: Mapping[Split, int],
    *,
    num_trials: int,
    seed: int,
    sampler: str | None = None,
    known: Sequence[Proposal] = (),
) -> SimulatedRace:
    """Simulates the race of `experiment` with its own study and rungs.

    - Latency is not an objective here, since it is not known yet.
    - With `freeze-thaw`, all trials are trained in full, since its decisions after each epoch would take too long here.
    - If trials inherit weights, the real race trains the best candidates. The proposals of the sampler stand in for
      them.
    - Beyond `MAX_SIMULATED_TRIALS`, time and epochs grow in proportion.

    Args:
        sampler: Overrides the sampler of `experiment`.
        known: Proposals of an earlier simulation, which come first again.
    """
    simulated = min(num_trials, MAX_SIMULATED_TRIALS)
    space = dataclasses.replace(
        experiment.space, bounds={name: at for name, at in experiment.space.bounds.items() if name not in TIMED_METRICS}
    )
    metrics: tuple[Metric, ...] = tuple(metric for metric in experiment.objectives if metric not in TIMED_METRICS)
    metrics = metrics if len(metrics) > 1 else ("accuracy", "flops")
    experiment = dataclasses.replace(experiment, space=space, objectives=metrics)
    study = Study(
        space, metrics=metrics, sampler=sampler or experiment.search.sampler,
        num_trials=simulated, num_epochs=experiment.training.epochs, seed=seed,
        per_second=experiment.search.per == "second",
        anchors={str(proposal.number): proposal.genome for proposal in known} or experiment.anchors,
    )  # fmt: skip
    num_epochs = experiment.training.epochs
    asked, complete, ends, seconds, spent = list[Asked](), list[Proposal](), list[float](), 0.0, 0
    for event in run_clock(
        Race(study) if experiment.search.scheduler == "freeze-thaw" else race_of(experiment, study, ()),
        num_slots=machine.num_slots,
        num_epochs=num_epochs,
        curve_of=MadeUpCurves(space, num_epochs=num_epochs, seed=seed),
        epoch_seconds=lambda proposal: machine.epoch(proposal.cost.flops, num_images),
        begin_seconds=machine.begin,
        spread=Spread(
            num_gpus=lambda: machine.num_gpus,
            gpus_per_trial=machine.num_gpus / machine.num_slots,
            batch_size=experiment.training.batch_size,
        )
        if experiment.search.spread_last and machine.num_gpus > 1
        else None,
        has_no_more=lambda: study.has_no_more,
    ):
        if isinstance(event, Asked):
            asked += [event] if event.is_new else []
            continue
        seconds, spent = event.now, spent + 1
        if event.is_complete:
            complete.append(event.proposal)
            ends.append(event.now)
    ask_seconds = sum(each.seconds for each in asked) / max(len(asked), 1)
    waiting = ask_seconds * len(asked) / machine.num_slots
    first = ends[min(NUM_OF_FIRST_FRONT, len(ends)) - 1] if ends else seconds
    whole = num_trials / simulated
    return SimulatedRace(
        seconds=(seconds + waiting) * whole,
        first_front=first + waiting * first / max(seconds, 1e-9),
        num_trials=round(len(asked) * whole),
        num_complete=round(len(complete) * whole),
        proposals=tuple(each.proposal for each in asked),
        complete=tuple(complete),
        num_epochs=round(spent * whole),
        ask_seconds=ask_seconds,
    )


def plan_search(
    experiment: Experiment,
    machine: Machine,
    num_images: Mapping[Split, int],
    *,
    num_trials: int,
    seed: int,
    out: Path | None,
    is_quick: bool = False,
    begun: Begun = NOTHING_BEGUN,
) -> Plan:
    """Forecasts the search of `experiment` on `machine`.

    Args:
        out: Folder that the search writes to. None for a search on another machine.
        is_quick: Whether more than `MAX_QUICK_TRIALS` trials are drawn at random, instead of by the file's sampler.
    """
    notes = list(machine.notes)
    sampler: str | None = None
    if is_quick and num_trials > MAX_QUICK_TRIALS and experiment.search.sampler != "random":
        sampler = "random"
        notes.append(f"{num_trials} architectures were drawn at random for this; cvt-nas plan asks the sampler")
    if experiment.goes_by_latency:
        notes.append("latency is not known before, so that neither its table nor its bounds are counted")
    if num_trials > MAX_SIMULATED_TRIALS:
        notes.append(f"{MAX_SIMULATED_TRIALS} of the {num_trials} trials were simulated; the others are counted alike")
    confirm = experiment.search.confirm
    if confirm is not None and confirm.as_ is not None and machine.num_gpus and machine.judging is None:
        notes.append("judging in int8 is counted without its passes, whose speed on the CPUs is not known")
    race = None
    if experiment.search.scheduler == "freeze-thaw":
        notes.append("freeze-thaw is counted as if every trial were trained in full; it takes less than that")
    if experiment.training.epochs > 0:
        race = simulate_race(experiment, machine, num_images, num_trials=num_trials, seed=seed, sampler=sampler)
    parts = _parts(experiment, machine, num_images, race, begun)
    disk_bytes = begun.num_bytes + bytes_needed(experiment, num_trials=num_trials, num_slots=machine.num_slots)
    shared_memory_bytes = shared_memory_needed(
        experiment.training,
        num_values=experiment.space.num_channels * math.prod(sides_of(experiment.space.image_size)),
        num_loaders=machine.num_loaders,
        num_processes=machine.num_slots,
    )
    bottleneck, advice = _bottleneck(experiment, machine, race, disk_bytes, shared_memory_bytes, out)
    return Plan(
        name=experiment.name,
        num_trials=num_trials,
        num_images=num_images,
        machine=machine,
        race=race,
        parts=parts,
        first_front=_first_front(parts, machine, race),
        disk_bytes=disk_bytes,
        shared_memory_bytes=shared_memory_bytes,
        bottleneck=bottleneck,
        advice=advice,
        notes=tuple(notes),
        supernet=option_steps(experiment, num_images),
    )


def _parts(
    experiment: Experiment,
    machine: Machine,
    num_images: Mapping[Split, int],
    race: SimulatedRace | None,
    begun: Begun = NOTHING_BEGUN,
) -> dict[str, float]:
    """Seconds of each part of a search, in order."""
    median = machine.networks[1].cost.flops
    flops = median if race is None else race.mean_flops
    supernet, ranking = _supernet(experiment, machine, num_images, flops)
    members = [] if race is None else _front(race.complete, experiment.objectives)
    num_members = max(len(members), 1)
    testing = num_members * (num_images["test"] * machine.evaluation(flops) + _CHECK_SECONDS) / machine.num_slots
    sorting = 0.0
    if begun.is_sorted_by_taylor:
        sorting = min(NUM_TAYLOR_IMAGES, num_images["train"]) * machine.training(machine.networks[-1].cost.flops)
    parts = {
        "init": sorting,
        "teacher": num_images["train"] * (machine.teacher or 0.0),
        "supernet": supernet,
        "ranking": ranking,
        "race": 0.0 if race is None else race.seconds,
        "confirm": 0.0 if race is None else _confirming(experiment, machine, num_images, race, members),
        "test": testing + _REPORT_SECONDS,
    }
    own = {"supernet": len(experiment.da_nas.classes) if experiment.search.weights == "da-nas" else 1}
    starts = {name: machine.worker_start * own.get(name, 1) for name, seconds in parts.items() if seconds}
    return {"start": machine.start, **{name: seconds + starts.get(name, 0.0) for name, seconds in parts.items()}}


def _first_front(parts: Mapping[str, float], machine: Machine, race: SimulatedRace | None) -> float:
    """Seconds from the start of the search to its first front."""
    before = sum(parts[name] for name in ("start", "init", "teacher", "supernet", "ranking"))
    return before + (parts["test"] if race is None else machine.worker_start + race.first_front)


def _supernet(
    experiment: Experiment, machine: Machine, num_images: Mapping[Split, int], flops: float
) -> tuple[float, float]:
    """Seconds to train the supernet, and seconds to rank the candidates.

    Args:
        flops: Approximate FLOPs of a candidate.
    """
    search, config = experiment.search, experiment.supernet
    if config is None or not search.has_supernet:
        return 0.0, 0.0
    assert machine.supernet_step is not None, "it is measured or stated where there is a supernet"

    def judging(number: int, num_judged_on: float) -> float:
        images = min(config.calibration_images, num_images["train"]) + num_judged_on
        return number * images * machine.evaluation(flops) / machine.num_judges

    screened = min(NUM_SCREENING_IMAGES, num_images["search"])
    looked_at = screened + _SHARE_LOOKED_AT * (num_images["search"] - screened)
    ranking = judging(search.candidates, looked_at)
    if search.weights != "da-nas":
        return config.epochs * num_images["train"] * machine.supernet_step, ranking
    narrowing, before, trained = experiment.da_nas, 0, 0.0
    for last, share in zip(narrowing.last_epochs(config.epochs), narrowing.classes, strict=True):
        trained += (last - before) * share
        before = last
    smallest = machine.networks[0].cost.flops
    ordering = narrowing.ordering_epochs * machine.epoch(smallest, num_images)
    probing = (len(narrowing.classes) - 1) * judging(narrowing.probes, screened)
    return ordering + trained * num_images["train"] * machine.supernet_step + probing, ranking


def _front(complete: Sequence[Proposal], metrics: Sequence[Metric]) -> list[Proposal]:
    """A guess of the front. It assumes that accuracy grows with FLOPs, and ignores the made-up accuracies."""
    costs = [metric for metric in metrics if metric in ("params", "flops")] or ["flops"]
    losses = np.array([[-p.cost.flops, *(getattr(p.cost, cost) for cost in costs)] for p in complete])
    return [p for p, is_member in zip(complete, is_non_dominated(losses), strict=True) if is_member] if complete else []


def _confirming(
    experiment: Experiment,
    machine: Machine,
    num_images: Mapping[Split, int],
    race: SimulatedRace,
    members: Sequence[Proposal],
) -> float:
    settings = experiment.search.confirm
    if settings is None:
        return 0.0
    chosen = list(members)
    if settings.top != "front":
        losses = np.array([[-proposal.cost.flops, proposal.cost.flops] for proposal in race.complete], dtype=float)
        chosen = [race.complete[index] for index in np.argsort(pareto_ranks(losses))[: int(settings.top)]]
    judging = [_judging(settings.as_, machine, num_images, p.cost.flops) for p in chosen]
    each = [
        experiment.training.epochs * machine.epoch(p.cost.flops, num_images) + machine.begin + judged
        for p, judged in zip(chosen, judging, strict=True)
    ]
    rounds = math.ceil(settings.seeds * len(each) / machine.num_slots) if each else 0
    of_race = sum(judged + _TIMING_SECONDS for judged in judging if judged) / machine.num_slots
    return max(settings.seeds * sum(each) / machine.num_slots, rounds * min(each, default=0.0)) + of_race


def _judging(runtime: Int8Runtime | None, machine: Machine, num_images: Mapping[Split, int], flops: float) -> float:
    """Seconds to quantise a network and to judge it in fp32 and int8. An image is counted alike in both."""
    if runtime is None:
        return 0.0
    num_runs = 1 + RUNS[runtime]
    judged = min(NUM_CALIBRATED, num_images["train"]) + num_runs * min(MOST_IMAGES, num_images["search"])
    return _QUANTISE_SECONDS + judged * machine.evaluation_on_cpu(flops)


def _bottleneck(
    experiment: Experiment,
    machine: Machine,
    race: SimulatedRace | None,
    disk_bytes: int,
    shared_memory_bytes: int,
    out: Path | None,
) -> tuple[str, str]:
    """The bottleneck of the search, and advice on what to change. Reasons that make the search impossible come
    first."""
    smallest, median, largest = machine.networks
    if machine.num_gpus and (largest.micro_batch == 0 or largest.activation_checkpointing):
        return "memory", "a smaller space.image_size, fewer trials a GPU (--gpus-per-trial), or a GPU with more memory"
    folder = None if out is None else nearest_folder(out)
    if folder is not None and disk_bytes > shutil.disk_usage(folder).free:
        return "disk", f"make room in {folder}, or write elsewhere by --out DIR; mode: stop keeps no paused trials"
    flops = median.cost.flops if race is None else race.mean_flops
    if race is not None and race.ask_seconds > _SAMPLER_SHARE * race.seconds / max(race.num_trials, 1):
        return "sampler", "search.sampler: random, or fewer search.trials"
    if machine.load > machine.step(flops):
        at_most = f"up to {size(shared_memory_bytes)} of /dev/shm" if shared_memory_bytes else "one process of its own"
        return "loader", f"a greater data.num_workers, or more CPU cores for each trial; it has {at_most}"
    is_far = smallest.cost.flops < _LAUNCH_RATIO * median.cost.flops
    if machine.num_gpus and is_far and smallest.step > _LAUNCH_RATIO * median.step:
        are_shared = machine.num_slots > machine.num_gpus
        return "launches", (
            "" if are_shared else "several trials on a GPU (--gpus-per-trial auto), or "
        ) + "a greater training.batch_size"
    if experiment.training.precision == "fp32" and machine.num_gpus:
        return "network", "training.precision: bf16, more GPUs, or fewer epochs and trials (--hours H)"
    return "network", f"more {'GPUs' if machine.num_gpus else 'cores'}, or fewer epochs and trials (--hours H)"


def fit_to_hours(
    experiment: Experiment,
    machine: Machine,
    num_images: Mapping[Split, int],
    *,
    hours: float,
    seed: int,
    known: Sequence[Proposal],
) -> Fit:
    """Finds the number of trials, the epochs and the grace period with which the search ends in `hours`.

    It fits as many trials as there is time for, up to the file's number, with the file's epochs. If not even 20 trials
    fit (or the file's number, if that is less), it reduces the epochs by a fifth at a time, down to a quarter of the
    file's. The grace period shrinks in proportion.

    Args:
        known: Proposals for the file's settings. They stand in for the proposals for other settings.

    Raises:
        CvtNasError: No such settings exist.
    """
    most, num_epochs = experiment.search.trials, experiment.training.epochs
    if num_epochs == 0:
        raise CvtNasError("--hours: training.epochs is 0, so that there are neither trials nor epochs to choose")
    least, epochs = min(_FEW_TRIALS, most), num_epochs
    while True:
        changed = _lasting(experiment, epochs)

        def hours_of(trials: int, changed: Experiment = changed) -> tuple[float, float]:
            race = simulate_race(
                changed, machine, num_images, num_trials=trials, seed=seed, sampler="random", known=known[:trials]
            )
            parts = _parts(changed, machine, num_images, race)
            return sum(parts.values()) / 3600, _first_front(parts, machine, race) / 3600

        needed = hours_of(least)
        if needed[0] <= hours:
            fitting, above = least, most + 1
            while above - fitting > 1:
                middle = (fitting + above) // 2
                found = hours_of(middle)
                if found[0] <= hours:
                    fitting, needed = middle, found
                else:
                    above = middle
            return Fit(
                trials=fitting, epochs=epochs, grace_period=changed.search.grace_period, hours=needed[0],
                first_front_hours=needed[1],
            )  # fmt: skip
        fewer = max(math.floor(_EPOCH_STEP * epochs), math.ceil(_FEW_EPOCHS * num_epochs), 1)
        if fewer == epochs:
            raise CvtNasError(
                f"--hours {hours:g}: {least} trials of {epochs} epochs take {needed[0]:.3g} hours; give more time or "
                f"GPUs, or make the space smaller"
            )
        epochs = fewer


def _lasting(experiment: Experiment, epochs: int) -> Experiment:
    """`experiment` with another number of epochs. Warm-up, restarts and grace period change in proportion."""
    training = experiment.training
    if epochs == training.epochs:
        return experiment
    lasting = training.lasting(epochs)
    changes = {name: getattr(lasting, name) for name in ("epochs", "warmup_epochs", "restarts")}
    grace = max(round(experiment.search.grace_period * epochs / training.epochs), 1)
    return experiment.changed(
        training={name: to for name, to in changes.items() if to != getattr(training, name)},
        search={"grace_period": grace},
    )
