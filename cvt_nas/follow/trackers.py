"""Experiment tracking of a search: TensorBoard, MLflow, Weights & Biases, each in a thread of its own."""

import importlib.util
import queue
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from cvt_nas.errors import CvtNasError, first_line
from cvt_nas.follow.mlflow import MLflow, check_mlflow
from cvt_nas.follow.tensorboard import TensorBoard
from cvt_nas.follow.tracker import Tracker
from cvt_nas.follow.wandb import Wandb, check_wandb
from cvt_nas.results.events import Follower, RaceEvent, following
from cvt_nas.run import RunFolder

_SECONDS_OF_SILENCE = 90.0  # after which a tracker that is to take the rest, when the search ends, is given up


@contextmanager
def trackers(
    run: RunFolder,
    *,
    tensorboard: bool = False,
    mlflow: str | None = None,
    wandb: str | None = None,
    warn: Callable[[str], object] = warnings.warn,
) -> Iterator[Follower]:
    """Follows a search: each of its trials becomes one of each tracker's, however often it pauses or loses its worker.

    A tracked trial has the architecture's choices, params and FLOPs as its config, `accuracy` after each epoch, and in
    the end its status and `final_accuracy`, `epochs`, `params`, `flops`, `train_seconds`. Further trainings are trials
    of their own; candidates are none, whether or not they are the search's trials in the end. Each tracker has a thread
    of its own, so that none holds up the search; one that fails is left out from then on, with a warning.

    Of a run that is resumed, only what is trained from then on is told. A trial that was in flight goes on:
    in TensorBoard by another file in its folder, in MLflow and W&B in the run that it had.

    Args:
        tensorboard: Whether to write `RunFolder.tensorboard_path`. Of a run at a URL, it stays on this machine.
        mlflow: Tracking URI; the experiment is called as the run folder is. Trials that are in flight when the search
            is stopped are marked as killed, until it is resumed.
        wandb: Project; the run folder's name is the group. `WANDB_MODE=offline` writes to `wandb/` in the run folder,
            each trial when it has ended.
        warn: Is told of a tracker that failed, in one line, from its thread.

    Raises:
        CvtNasError: See `check_trackers`.
    """
    check_trackers(mlflow=mlflow, wandb=wandb)
    makers: list[tuple[str, Callable[[], Tracker]]] = []
    if tensorboard:
        makers.append(("--tensorboard", lambda: TensorBoard(run)))
    if mlflow is not None:
        makers.append((f"--mlflow {mlflow}", lambda: MLflow(run, mlflow)))
    if wandb is not None:
        makers.append((f"--wandb {wandb}", lambda: Wandb(run, wandb)))
    with ExitStack() as stack:
        yield following(*[stack.enter_context(_in_thread(name, make, warn)) for name, make in makers])


def check_trackers(*, tensorboard: bool = False, mlflow: str | None = None, wandb: str | None = None) -> None:
    """Raises CvtNasError, before any compute is spent, where a package is missing, no MLflow server answers, or there
    is no key for Weights & Biases."""
    del tensorboard  # its package is one of ours
    for package, option in {"mlflow": mlflow, "wandb": wandb}.items():
        if option is not None and importlib.util.find_spec(package) is None:
            raise CvtNasError(f"--{package} {option}: needs pip install 'cvt-nas[{package}]'")
    if mlflow is not None:
        check_mlflow(mlflow)
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
        is_hurried = True  # whoever wants to leave at once does
        raise
    finally:
        events.put(None)
        if not is_hurried and not _join(thread, events.qsize):
            warn(f"{name}: has taken nothing for {_SECONDS_OF_SILENCE:g} s; the rest is lost")


def _join(thread: threading.Thread, num_left: Callable[[], int]) -> bool:
    """Whether it ended, for which it has time as long as there is less and less left to do."""
    before = None
    while thread.is_alive() and (now := num_left()) != before:
        thread.join(_SECONDS_OF_SILENCE)
        before = now
    return not thread.is_alive()
