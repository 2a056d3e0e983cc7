"""What a search works with, as one value."""

import threading
from dataclasses import dataclass

from cvt_nas.config import Experiment
from cvt_nas.engine import TrainingSetup
from cvt_nas.launch.resources import Resources
from cvt_nas.run import RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """A search that has been checked and begun; every phase of it is a function of this.

    Args:
        setup: What workers know, on the device of `resources`.
        stop: Ends the search in order once it is set; never set by a phase.
        reuse_workers: Whether a worker process outlives its trial; off only to measure what that saves.
    """

    experiment: Experiment
    run: RunFolder
    setup: TrainingSetup
    resources: Resources
    seed: int
    num_trials: int
    stop: threading.Event
    reuse_workers: bool = True
