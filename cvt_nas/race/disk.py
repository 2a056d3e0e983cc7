"""Whether a search fits on the disk that it writes to, asked before it begins."""

import shutil
from pathlib import Path

from cvt_nas.config import Experiment
from cvt_nas.errors import ResourceError

_BYTES = 4  # of a parameter
_KEPT = 2  # checkpoints of a trial in flight


def bytes_needed(experiment: Experiment, *, num_trials: int, num_slots: int) -> int:
    """An estimate: weights of the trials that are trained in full, and checkpoints of those in flight or paused.

    Of networks midway between the smallest and the largest of the space, but for those in flight.
    """
    search, training = experiment.search, experiment.training
    least, greatest = experiment.space.cost_range
    bound = experiment.space.bounds.get("params")
    most = greatest.params if bound is None or bound.max is None else min(greatest.params, bound.max)
    middle = (least.params + most) / 2
    copies = 1 + (2 if training.optimizer == "adamw" else 1) + (training.ema_decay != 0)  # in a checkpoint
    share = 1.0 if search.scheduler == "none" else 1 / search.reduction_factor
    num_paused = num_trials * (1 - share) if search.scheduler != "none" and search.mode == "promote" else 0
    in_flight = _KEPT * num_slots * most * copies
    return round(_BYTES * (num_trials * share * middle + num_paused * middle * copies + in_flight))


def check_disk(experiment: Experiment, out: Path, *, num_trials: int, num_slots: int) -> None:
    """Raises ResourceError where `out` has less room than `bytes_needed`; `out` need not be there yet."""
    folder = next(parent for parent in (out, *out.parents) if parent.exists())
    free, needed = shutil.disk_usage(folder).free, bytes_needed(experiment, num_trials=num_trials, num_slots=num_slots)
    if needed > free:
        raise ResourceError(
            f"{out}: the search needs about {needed / 2**30:.2g} GiB for weights and checkpoints, and {folder} has "
            f"{free / 2**30:.2g} GiB left; make room, or write elsewhere by --out DIR"
        )
