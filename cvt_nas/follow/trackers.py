"""Experiment tracking of a search by TensorBoard, MLflow and Weights & Biases, each in a separate thread."""

import importlib.util
import queue
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cvt_nas.errors import CvtNasError, first_line
from cvt_nas.follow.mlflow import MLflow, check_mlflow
from cvt_nas.follow.tensorboard import TensorBoard
from cvt_nas.follow.tracker import Tracker, name_of
from cvt_nas.follow.wandb import Wandb, check_wandb
from cvt_nas.results.events import Follower, RaceEvent, following
from cvt_nas.run import RunFolder

_SECONDS_OF_SILENCE = 90.0  # at the end of a search, a tracker that takes no event for so long is given up


@contextmanager
def trackers(
    run: RunFolder,
    *,
    tensorboard: bool = False,
    mlflow: str | None = None,
    wandb: str | None = None,
    warn: Callable[[str], object] = warnings.warn,
) -> Iterator[Follower]:
    """Follows a search. Each trial becomes one trial of each tracker, even if it pauses or loses its worker.

    The config of a tracked trial contains the choices, params and FLOPs of its architecture. A tracked trial has
    `accuracy` after each epoch. At the end, it gets its status and `final_accuracy`, `epochs`, `params`, `flops` and
    `train_seconds`. Further trainings are tracked as separate trials. Candidates are not tracked, even if they become
    the search's trials at the end. Each tracker has a separate thread, so that none delays the search. A tracker that
    fails is left out from then on, with a warning.

    If a run is resumed, only what is trained from then on is tracked. A trial that was in flight goes on. In
    TensorBoard, it gets another file in its folder. In MLflow and W&B, it keeps its run.

    Args:
        tensorboard: Whether to write to `RunFolder.tensorboard_path`. The files of a run at a URL stay on this machine.
        mlflow: Tracking URI. The experiment has the name of the run folder. Trials that are in flight when the search
            is stopped are marked as killed until it is resumed.
        wandb: Project. The group is the name of the run folder. With `WANDB_MODE=offline`, each trial is written to
            `wandb/` in the run folder when it has ended.
        warn: Called from the thread of a tracker that failed, with one line.

    Raises:
        CvtNasError: See `check_trackers`.
    """
    check_trackers(run.place, mlflow=mlflow, wandb=wandb)
    makers: list[tuple[str, Callable[[], Tracker]]] = []
    if tensorboard:
        makers.append(("--tensorboard", lambda: TensorBoard(run)))
    if mlflow is not None:
        makers.append((f"--mlflow {mlflow}", lambda: MLflow(run, mlflow)))
    if wandb is not None:
        makers.append((f"--wandb {wandb}", lambda: Wandb(run, wandb)))
    with ExitStack() as stack:
        yield following(*[stack.enter_context(_in_thread(name, make, warn)) for name, make in makers])


def check_trackers(
    place: str | Path, *, tensorboard: bool = False, mlflow: str | None = None, wandb: str | None = None
) -> None:
    """Checks the trackers of the run at a path or URL before any compute is spent.

    Raises CvtNasError if a package is missing, no MLflow server answers, MLflow's experiment of the run is deleted, or
    there is no key for Weights & Biases.
    """
    del tensorboard  # its package is always installed
    for package, option in {"mlflow": mlflow, "wandb": wandb}.items():
        if option is not None and importlib.util.find_spec(package) is None:
            raise CvtNasError(f"--{package} {option}: needs pip install 'cvt-nas[{package}]'")
    if mlflow is not None:
        check_mlflow(mlflow, name_of(place))
    if wandb is not None:
        check_wandb(wandb)


@contextmanager
def _in_thread(name: str, make: Callable[[], Tracker], warn: Callable[[str], object]) -> Iterator[Follower]:
    events: queue.SimpleQueue[RaceEvent | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            tracker = make()
            while (event := events.get()) is not None:
                tracker(event)
            tracker.close()
        except Exception as error:
            warn(f"{name}: {first_line(error)}; the search goes on without it")

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    is_hurried = False
    try:
        yield events.put
    except KeyboardInterrupt:
        is_hurried = True  # the user wants to end at once
        raise
    finally:
        events.put(None)
        if not is_hurried and not _join(thread, events.qsize):
            warn(f"{name}: has taken nothing for {_SECONDS_OF_SILENCE:g} s; the rest is lost")


def _join(thread: threading.Thread, num_left: Callable[[], int]) -> bool:
    """Waits for a thread as long as `num_left` falls. Returns whether the thread has ended."""
    before = None
    while thread.is_alive() and (now := num_left()) != before:
        thread.join(_SECONDS_OF_SILENCE)
        before = now
    return not thread.is_alive()
