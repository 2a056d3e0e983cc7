"""Whether a search fits on the disk that it writes to; asked before it begins."""

import math
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from cvt_nas.config import Experiment, TrainingConfig
from cvt_nas.errors import ResourceError, RunFolderError
from cvt_nas.run import RunFolder

_BYTES = 4  # of a parameter
_NUM_DRAWN = 64
_KEPT, _WRITTEN = 2, 1  # checkpoints of a trial: the last one and the one before it, and one that is being written


def bytes_needed(experiment: Experiment, *, num_trials: int, num_slots: int, rungs: Sequence[int] | None = None) -> int:
    """An estimate of the most that a search has on its disk at once, for the trials that are not over yet.

    At each rung, one in `reduction_factor` of the trials that reach it goes on, rounded up, and in mode `promote` the
    others are paused there. Counted is the moment when the last trials that pass all rungs are in flight: the weights
    of those that passed before; the checkpoints of the paused ones, two of each, but one where it is paused after its
    first epoch; and three checkpoints of each trial in flight. Where more are in flight than pass, the others are still
    to be paused. With `freeze-thaw`, all trials may be paused. One in flight is taken to be the largest of as many
    random networks of the space as there are trials, and all others to be as large as these on average. Where there is
    a supernet, its weights are counted, and its training where that takes more than the race. Records, reports and data
    sets are small beside these and not counted.

    Args:
        num_trials: That are not over yet, the paused ones of a resumed run included.
        rungs: Of a run that began already; None for those of `experiment`.
    """
    search, training, space = experiment.search, experiment.training, experiment.space
    rng = random.Random(0)
    drawn = [genome for _ in range(_NUM_DRAWN) if (genome := space.sample_feasible(rng)) is not None]
    sizes = [space.cost(genome).params for genome in drawn] or [space.cost_range[1].params]
    middle, most = sum(sizes) / len(sizes), max(sizes[: max(num_trials, 1)])
    rungs = experiment.rungs if rungs is None else rungs
    num_whole, paused = num_trials, list[int]()  # the files of each paused trial
    if search.scheduler == "freeze-thaw":  # any of the trials may wait
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
    """How often a checkpoint holds the weights: as they are, averaged, and in the optimizer's moments."""
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
    """Raises ResourceError where what a search writes does not fit where it writes it; `out` need not be there yet.

    Checkpoints that a resumed `run` has already take no further room. `to_keep` is `Begun.num_bytes`.
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
    """Raises RunFolderError where `out`, which need not be there yet, could not be written."""
    folder = nearest_folder(out)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise RunFolderError(f"{out}: cannot be written, since {folder} cannot; name another place by --out DIR")
