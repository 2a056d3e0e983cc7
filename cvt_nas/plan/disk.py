"""Checks before a search that it fits on the disk that it writes to."""

import math
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from cvt_nas.config import Experiment, TrainingConfig
from cvt_nas.errors import ResourceError, RunFolderError
from cvt_nas.run import RunFolder

_BYTES = 4  # per parameter
_NUM_DRAWN = 64
_KEPT, _WRITTEN = 2, 1  # checkpoints of a trial: the last two, and one that is being written


def bytes_needed(experiment: Experiment, *, num_trials: int, num_slots: int, rungs: Sequence[int] | None = None) -> int:
    """Estimates the most bytes that the trials that have not ended need on the disk at once.

    At each rung, one in `reduction_factor` of the trials that reach it continues, rounded up. In mode `promote`, the
    others are paused there. With `freeze-thaw`, all trials may be paused. The estimate is for the moment when the last
    trials that pass all rungs are in flight. It counts:

    - the weights of the trials that passed before
    - two checkpoints of each paused trial, or one if it was paused after its first epoch
    - three checkpoints of each trial in flight. If more trials are in flight than pass, the others are not paused yet.
    - the weights of the supernet, if there is one
    - the training of the supernet instead of all this, if it takes more

    One trial in flight is assumed to be the largest of as many random networks of the space as there are trials. All
    others are assumed to have the average size of random networks. Records, reports and data sets are small in
    comparison and not counted.

    Args:
        num_trials: Number of trials that have not ended, including the paused ones of a resumed run.
        rungs: Rungs of a run that has begun. None for the rungs of `experiment`.
    """
    search, training, space = experiment.search, experiment.training, experiment.space
    rng = random.Random(0)
    drawn = [genome for _ in range(_NUM_DRAWN) if (genome := space.sample_feasible(rng)) is not None]
    sizes = [space.cost(genome).params for genome in drawn] or [space.cost_range[1].params]
    middle, most = sum(sizes) / len(sizes), max(sizes[: max(num_trials, 1)])
    rungs = experiment.rungs if rungs is None else rungs
    num_whole, paused = num_trials, list[int]()  # the files of each paused trial
    if search.scheduler == "freeze-thaw":  # any trial may be paused
        num_whole, paused = 0, [_KEPT] * num_trials
    for rung in rungs if search.scheduler in ("pareto-asha", "asha") else ():
        num_further = math.ceil(num_whole / search.reduction_factor)
        if search.mode == "promote":
            paused += [min(_KEPT, rung)] * (num_whole - num_further)
        num_whole = num_further
    race = num_whole * middle
    if training.epochs > 0:
        num_in_flight = min(num_slots, num_trials)
        num_passing = min(num_in_flight, num_whole)
        num_files = sum(paused[num_in_flight - num_passing :]) + num_in_flight * (_KEPT + _WRITTEN)
        largest = (_KEPT + _WRITTEN) * (most - middle) if num_in_flight else 0
        race += _copies(training) * (num_files * middle + largest) - num_passing * middle
    greatest = space.cost_range[1]
    supernet = 0
    if experiment.supernet is not None and search.has_supernet:
        race += greatest.params  # its weights stay, its checkpoints do not
        supernet = greatest.params * (1 + _copies(experiment.supernet) * (_KEPT + _WRITTEN))
    return round(_BYTES * max(race, supernet))


def _copies(training: TrainingConfig) -> int:
    """Number of copies of the weights in a checkpoint: the weights, their average, and the moments of the optimizer."""
    return 1 + (training.ema_decay != 0) + (2 if training.optimizer == "adamw" else 1)


def check_disk(
    experiment: Experiment,
    out: Path,
    *,
    num_trials: int,
    num_slots: int,
    to_keep: int = 0,
    run: RunFolder | None = None,
) -> None:
    """Raises ResourceError if a search needs more room than the disk of `out` has. `out` need not exist yet.

    Args:
        to_keep: `Begun.num_bytes`.
        run: A resumed run. The checkpoints that it has already need no further room.
    """
    folder = nearest_folder(out)
    free = shutil.disk_usage(folder).free
    rungs = None if run is None else experiment.rungs_of(run.manifest)
    needed = to_keep + bytes_needed(experiment, num_trials=num_trials, num_slots=num_slots, rungs=rungs)
    needed -= 0 if run is None else run.checkpoint_bytes()
    if needed > free:
        raise ResourceError(
            f"{out}: the search needs about {needed / 2**30:.2g} GiB for weights and checkpoints, and {folder} has "
            f"{free / 2**30:.2g} GiB left; make room, or write elsewhere by --out DIR"
        )


def nearest_folder(out: Path) -> Path:
    """The nearest folder that exists: `out` itself, or one above it."""
    out = out.absolute()
    return next(parent for parent in (out, *out.parents) if parent.exists())


def check_writable(out: Path) -> None:
    """Raises RunFolderError if `out`, which need not exist yet, cannot be written."""
    folder = nearest_folder(out)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise RunFolderError(f"{out}: cannot be written, since {folder} cannot; name another place by --out DIR")
