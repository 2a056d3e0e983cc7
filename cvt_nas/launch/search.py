"""The state that all phases of a search share, as one value."""

import threading
from dataclasses import dataclass

from cvt_nas.config import Experiment
from cvt_nas.engine import TrainingSetup
from cvt_nas.launch.resources import Resources
from cvt_nas.run import RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """A search that was checked and has begun. Each of its phases is a function of this value.

    Args:
        setup: Setup of workers, on the device of `resources`.
        stop: Ends the search in order once it is set. Phases never set it.
        reuse_workers: Whether worker processes outlive their trials. Turned off only to measure the difference.
    """

    experiment: Experiment
    run: RunFolder
    setup: TrainingSetup
    resources: Resources
    seed: int
    num_trials: int
    stop: threading.Event
    reuse_workers: bool = True
