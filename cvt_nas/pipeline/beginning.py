"""What a search has of other networks before anything is trained: weights to begin with, and a teacher's answers."""

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
    """What trials or the supernet begin with, checked, and what the manifest tells of it.

    Args:
        run: What is gone on with; with the weights that it began with, where it has not kept them yet.

    Returns:
        None for both where they begin afresh, and for the first where `run` has the weights already.

    Raises:
        ArchError: They cannot be had or read, or are of no CvT or of another number of stages; or without an epoch of
            the supernet, they do not know the classes of the data.
        RunFolderError: They are not what `run` began with.
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
    """What the manifest of a run tells of the weights that it began with; `warm_start` is of an earlier version."""
    manifest = run.manifest
    path = manifest.get("warm_start")
    return manifest.get("init") or (None if path is None else {"path": path, "importance": "none"})


def check_same_init(run: RunFolder, init: str | Path | None) -> None:
    """Whether a run that goes on is told of no other weights than those that it began with.

    Raises:
        RunFolderError: It is.
    """
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
    """`setup` with the answers of `teacher`, which are kept in the run folder; None where `stop` is set before.

    Raises:
        SearchFailedError: The workers on which it answers fail.
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
