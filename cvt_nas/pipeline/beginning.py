"""Prepares what a search takes from other networks before it trains: initial weights, and the answers of a teacher."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cvt_nas.config import Experiment
from cvt_nas.engine import Teacher, TrainingSetup, answer_images, has_answered, in_order
from cvt_nas.errors import ArchError, RunFolderError, SearchFailedError
from cvt_nas.launch.devices import ending_in
from cvt_nas.launch.resources import Resources
from cvt_nas.launch.tasks import yielded_on_device
from cvt_nas.model import Lent, digest_of, locate, means, read_weights
from cvt_nas.run import RunFolder
from cvt_nas.supernet import lend_to


def lent_weights(
    init: str | Path | None, run: RunFolder | None, experiment: Experiment, setup: TrainingSetup
) -> tuple[Lent | None, dict[str, Any] | None]:
    """Reads and checks the initial weights of trials or the supernet.

    Args:
        init: Weights; see `locate`. None for a fresh initialisation.
        run: A run that is resumed, or None. If it has not kept its initial weights yet, they are read from where it
            found them.

    Returns:
        The weights and their entry in the manifest. Both are None for a fresh initialisation. The weights are also None
        if `run` has them already.

    Raises:
        ArchError: The weights cannot be found or read, or do not belong to a CvT with this number of stages. Or
            `supernet.epochs` is 0, and there are no weights or their head lacks classes of the data.
        RunFolderError: They are not the weights that `run` began with.
    """
    begins = None if run is None else begun_with(run)
    if run is not None and (begins is None or run.lends_weights or run.supernet.has_begun):
        return None, begins
    if begins is not None:
        init = begins["path"]
    is_untrained = setup.shared is not None and setup.shared.config.epochs == 0
    if init is None:
        if is_untrained:
            raise ArchError("supernet.epochs: got 0, which needs weights to begin with: give --init WEIGHTS")
        return None, None
    path = locate(init)
    weights, sha256 = read_weights(path), digest_of(path)
    if begins is not None and sha256 != begins.get("sha256", sha256):
        raise RunFolderError(f"{path}: is not what {run.place if run else ''} began with any more; name another --out")
    lent, notes = lend_to(experiment.space, weights, classes=setup.open_data().class_names)
    if is_untrained and len(lent.classes) < experiment.space.num_classes:
        raise ArchError(
            f"supernet.epochs: got 0, which needs a head of all {experiment.space.num_classes} classes, and that of "
            f"{path} knows {len(lent.classes)}"
        )
    lent, importance, more = in_order(lent, experiment.search.importance)
    return lent, {"path": str(path), "sha256": sha256, "importance": importance, "notes": [*notes, *more]}


def begun_with(run: RunFolder) -> dict[str, Any] | None:
    """Entry of the manifest about the initial weights of a run. Earlier versions called it `warm_start`."""
    manifest = run.manifest
    path = manifest.get("warm_start")
    return manifest.get("init") or (None if path is None else {"path": path, "importance": "none"})


def check_same_init(run: RunFolder, init: str | Path | None) -> None:
    """Raises RunFolderError if a resumed run is given other initial weights than it began with."""
    began = begun_with(run)
    if init is not None and (began is None or not means(init, began["path"])):
        raise RunFolderError(
            f"--init {init}: {run.path} began with {began['path'] if began else 'a fresh initialisation'}; leave it out"
        )


def learn_of(
    teacher: Teacher,
    setup: TrainingSetup,
    resources: Resources,
    *,
    stop: threading.Event,
    on_note: Callable[[str], None] | None,
) -> TrainingSetup | None:
    """`setup` with the answers of `teacher`, which are kept in the run folder. None if `stop` is set before they are
    complete.

    Raises:
        SearchFailedError: The workers that compute the answers fail.
    """
    if not has_answered(teacher, setup.run):
        with (
            ending_in(SearchFailedError, "the teacher does not answer"),
            contextlib.closing(yielded_on_device(resources, answer_images, setup, teacher)) as notes,
        ):
            for note in notes:
                if on_note is not None:
                    on_note(note)
                if stop.is_set():
                    break
        if not has_answered(teacher, setup.run):
            return None
    return dataclasses.replace(setup, answers=teacher.answers)
