"""Ray on this machine, and one training on several workers by Ray Train: DDP over NCCL, or gloo on CPUs."""

import contextlib
import logging
import os
import queue
import secrets
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

# Read by Ray when it is imported or started; whoever runs the tool can still override each.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0, the only way to silence Tune
    "RAY_memory_monitor_refresh_ms": "0",  # a kill by Ray's memory monitor would abort the whole search
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a GPU must not see every GPU
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's snapshots are of no use: the journal is the record
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",  # a controller that waits for devices hears no `abort` meanwhile
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",  # an orderly stop does not wait for a long epoch: its checkpoint is enough
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402  after its settings
from ray._private import ray_constants, state  # noqa: E402
from ray.actor import ActorHandle  # noqa: E402
from ray.core.generated import gcs_pb2  # noqa: E402
from ray.exceptions import (  # noqa: E402
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.train import (  # noqa: E402
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
    get_context,
)
from ray.train.v2._internal.execution.callback import ControllerCallback  # noqa: E402
from ray.util.placement_group import PlacementGroup, remove_placement_group  # noqa: E402
from ray.util.queue import Empty, Queue  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from cvt_nas.arch import ArchConfig, arch_from_dict, arch_to_dict  # noqa: E402
from cvt_nas.engine import TrainingSetup, progress_reports, supernet_reports  # noqa: E402
from cvt_nas.errors import CvtNasError, ResourceError, StorageError, first_line  # noqa: E402
from cvt_nas.escaping import why_no_text  # noqa: E402
from cvt_nas.run import can_write_to  # noqa: E402

HEAD = {"node:__internal_head__": 0.001}  # the node that outlives the others
_SECONDS_TO_END = 30.0
_DONE = "done"
T = TypeVar("T")


def start_local_ray(*, num_cpus: int, num_gpus: int) -> None:
    """Starts Ray for this process alone, on loopback.

    Told to use 127.0.0.1, Ray replaces it by the machine's outer address and listens on every interface, except
    where clusters are switched off, as they are by default on Windows and macOS. So they are, for the start.
    """
    settings = {"_temp_dir": temporary_folder_of_ray()}
    _bring_own_token()
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    was_enabled, before = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"  # for this process, and for those of Ray
    try:
        connect_ray(
            address="local", num_cpus=num_cpus, num_gpus=num_gpus, include_dashboard=False,
            _node_ip_address="127.0.0.1", **settings,
        )  # fmt: skip
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = was_enabled
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def temporary_folder_of_ray() -> str:
    """A folder for Ray's session whose path is short enough for the sockets in it: as Ray has it by default, if it is.

    Raises:
        ResourceError: There is none that can be written.
    """
    told = os.environ.get("RAY_TMPDIR")
    for place in [told] if told else [tempfile.gettempdir(), *_SHORT_FOLDERS]:
        if len(os.fsencode(place)) <= _MOST_BYTES and can_write_to(Path(place)):
            return str(Path(place) / "ray")
    raise ResourceError(
        f"{told or tempfile.gettempdir()}: cannot be written, or too long for Ray, whose sockets' paths may have 107 "
        f"bytes; set RAY_TMPDIR to a folder with at most {_MOST_BYTES}, as /tmp"
    )


_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_MOST_BYTES = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")


def _bring_own_token() -> None:
    """A token for Ray's processes, which Ray would keep in the home directory, where that cannot be written."""
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    home = Path(os.path.expanduser("~"))
    if not any(name in os.environ for name in names) and not (home.is_absolute() and can_write_to(home / ".ray")):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def get_from_workers(work: Any) -> Any:
    """`ray.get`, with the errors that are one line to the user as the worker raised them, without Ray's traceback."""
    try:
        return ray.get(work)
    except RayTaskError as error:
        if isinstance(error.cause, CvtNasError | StorageError):
            raise error.cause from None
        raise


def connect_ray(**options: Any) -> None:
    """`ray.init`, quiet, and without its handler of SIGTERM, which would take the place of the caller's."""
    for word in sys.orig_argv:
        if why := why_no_text(word):  # Ray keeps the command as UTF-8, and would end in a traceback
            raise ResourceError(f"{word}: {why}")
    handler = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        # an older Ray warns of what RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO says, though it is said
        warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def local_ray(*, num_cpus: int, num_gpus: int) -> Iterator[None]:
    """Ray as the caller has it, or else one of its own that ends with the block."""
    if ray.is_initialized():
        yield
        return
    start_local_ray(num_cpus=num_cpus, num_gpus=num_gpus)
    try:
        yield
    finally:
        ray.shutdown()


def fit_on_workers(
    arch: ArchConfig,
    setup: TrainingSetup,
    *,
    number: int,
    seed: int,
    num_workers: int,
    cpus_per_worker: float,
    use_gpus: bool,
    keep_model: bool = True,
    num_known: int = 0,
    may_move: bool = False,
) -> Generator[dict[str, Any], None, None]:
    """Trains `arch` as `engine.fit` does, on `num_workers` workers that share each batch.

    A worker that dies is replaced, and all of them go on from the last checkpoint; and so, with half as many images at
    once, where a device's memory runs out. Closed before its end, this ends them at once: they hold no devices when it
    returns, and write nothing any more.

    Args:
        number: Of the trial; names its checkpoint in the run folder.
        use_gpus: Whether each worker takes a GPU. Where `setup.device` is `cpu`, the GPU is only a slot.
        keep_model: Whether the trained weights go to the run folder, as the architecture's.
        num_known: See `engine.progress_reports`.
        may_move: Whether a worker that dies, or finds no device, ends the training by `WorkerLostError`: it can go on
            with another number of workers.

    Yields:
        The reports of `engine.progress_reports`, by the first worker.

    Raises:
        WorkerLostError: What the workers are heard by died, or their last report did not arrive; see also `may_move`.
        CvtNasError: A worker raised it, as for an image that cannot be read.
        StorageError: Likewise, where it is not the `status` of a report.
        ray.train.TrainingFailedError: A worker died more than three times, or the code raised.
    """
    return _reports_of_workers(
        _train_on_worker,
        {
            "arch": arch_to_dict(arch),
            "setup": setup,
            "number": number,
            "seed": seed,
            "keep_model": keep_model,
            "num_known": num_known,
        },
        name=f"train-{number}",
        setup=setup,
        num_workers=num_workers,
        cpus_per_worker=cpus_per_worker,
        use_gpus=use_gpus,
        may_move=may_move,
    )


def train_supernet_on_workers(
    setup: TrainingSetup,
    *,
    seed: int,
    num_workers: int,
    cpus_per_worker: float,
    use_gpus: bool,
    initial: Path | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Trains the supernet of `setup.shared` as `engine.train_supernet` does, on workers that share each batch.

    A worker that dies is replaced, and all of them go on from the last checkpoint in the run folder; and so, with half
    as many images at once, where a device's memory runs out. Where that holds a
    request to stop (`SupernetFolder.ask_to_stop`), they write a checkpoint and end.

    Args:
        initial: Weights to begin with; see `model.read_weights`.
        use_gpus: As in `fit_on_workers`.

    Yields:
        The reports of `engine.supernet_reports`, by the first worker.

    Raises:
        WorkerLostError: What the workers are heard by died, or their last report did not arrive.
        CvtNasError: A worker raised it, as for an image that cannot be read.
        StorageError: Likewise, where it is not the `status` of a report.
        ray.train.TrainingFailedError: A worker died more than three times, or the code raised.
    """
    return _reports_of_workers(
        _train_supernet_on_worker,
        {"setup": setup, "seed": seed, "initial": initial},
        name="supernet",
        setup=setup,
        num_workers=num_workers,
        cpus_per_worker=cpus_per_worker,
        use_gpus=use_gpus,
    )


class WorkerLostError(Exception):
    """The workers of a training, or what its launcher hears them by, died with their node."""


@contextmanager
def ending_in(kind: type[CvtNasError], what: str) -> Iterator[None]:
    """Workers that die, or raise what no user can fix, end the block with an error of `kind`: `what`, and the reason.

    That is one line; the traceback is in its `__cause__`.
    """
    try:
        yield
    except (WorkerLostError, TrainingFailedError) as error:
        failures = list(getattr(error, "worker_failures", {}).values())  # the errors themselves, of each rank
        reason = f"{type(failures[0]).__name__}: {first_line(failures[0])}" if failures else first_line(error)
        raise kind(f"{what}: {reason}") from error


def _reports_of_workers(
    train: Callable[[dict[str, Any]], None], config: dict[str, Any], **options: Any
) -> Generator[dict[str, Any], None, None]:
    """`_reports_of_attempt`; and again with half as many images at once, as long as a device's memory runs out."""
    is_over = False
    while not is_over:
        is_over = True
        with contextlib.closing(_reports_of_attempt(train, config, **options)) as reports:
            for report in reports:
                at_once = report.get("micro_batch") or 1
                if report["status"] == "oom" and at_once > 1:
                    config, is_over = {**config, "at_most": at_once // 2}, False
                    break
                config = {**config, "num_known": report["epoch"]}
                yield report


def _reports_of_attempt(
    train: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    name: str,
    setup: TrainingSetup,
    num_workers: int,
    cpus_per_worker: float,
    use_gpus: bool,
    max_failures: int = 3,
    may_move: bool = False,
) -> Generator[dict[str, Any], None, None]:
    """What the first of the workers that run `train` puts into the queue `reports` of its config, up to `_DONE`.

    Where the reader goes away before the end, the workers end at once, and write nothing any more.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    janitor = (
        cast(Any, ray.remote(_Janitor))
        # by default outside the placement group of a trial that launches it
        .options(num_cpus=0, max_concurrency=2, lifetime="detached", resources=HEAD, scheduling_strategy="DEFAULT")
        .remote(reports)
    )
    janitor.watch.remote()
    from ray.train.torch import TorchConfig, TorchTrainer  # half a second, which trials on one device need not wait

    trainer = TorchTrainer(
        train,
        train_loop_config={**config, "reports": reports},
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=use_gpus,
            resources_per_worker={"CPU": cpus_per_worker, **({"GPU": 1} if use_gpus else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if setup.device == "cuda" else "gloo"),
        run_config=RunConfig(
            name=name,
            **setup.run.store.ray_storage(setup.run.tune_path),
            failure_config=FailureConfig(
                max_failures=0 if may_move else max_failures,
                controller_failure_limit=2 if may_move else -1,  # three times 20 s to find devices, or without end
            ),
            callbacks=[cast(Any, _Introduction(reports, janitor))],  # as Ray's own are, not only a user's
        ),
    )
    outcome: list[BaseException] = []

    def execute() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # handed to the reader below, which raises it
            outcome.append(error)

    thread, controller, is_done = threading.Thread(target=execute, name=name, daemon=True), None, False
    thread.start()
    try:
        while thread.is_alive() or not reports.empty():
            try:
                report = reports.get(timeout=0.5)
            except (Empty, queue.Empty):
                continue
            if isinstance(report, CvtNasError | StorageError):
                raise report  # no other attempt would go better
            if report == _DONE:
                is_done = True
                continue
            if isinstance(report, ActorHandle):
                controller = report
                continue
            yield report
            if report["status"] != "running":
                return  # Ray Train may not know yet: a worker still waits, or is started again, see `_is_heard`
        if outcome and may_move and _is_loss(outcome[0]):
            raise WorkerLostError(first_line(outcome[0])) from outcome[0]
        if outcome:
            raise outcome[0]
        if not is_done:
            raise WorkerLostError("the workers ended before their last report arrived")
    except RayActorError as error:
        raise WorkerLostError(first_line(error)) from error
    finally:
        _end(controller, reports, thread)


def _is_loss(error: BaseException) -> bool:
    """Whether a training ended since a worker died, or since there was no device for one."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else []
    return isinstance(error, ControllerError) or any(
        isinstance(getattr(failure, "health_check_failure", failure), RayActorError) for failure in failures
    )


def _end(controller: Any, reports: Queue, thread: threading.Thread) -> None:
    """Ends a training before its time: its workers at once, then all that Ray Train does about them."""
    if not thread.is_alive():
        reports.shutdown(force=True)
        return
    deadline = time.monotonic() + _SECONDS_TO_END
    with contextlib.suppress(RayActorError):
        while controller is None and thread.is_alive() and time.monotonic() < deadline:  # it is about to start
            with contextlib.suppress(Empty, queue.Empty):
                report = reports.get(timeout=0.5)
                controller = report if isinstance(report, ActorHandle) else None
    ended: Any = None if controller is None else controller.abort.remote()
    reports.shutdown(force=True)  # from now on, no worker puts a file in its place
    if controller is None:
        return
    try:
        ray.get(ended, timeout=_SECONDS_TO_END)
    except GetTimeoutError:
        ray.kill(controller)  # its workers die with it, and the janitor frees what they held, or waited for
    except RayError:
        pass  # it has ended
    thread.join(_SECONDS_TO_END)


class _Introduction(ControllerCallback):
    """Makes the controller of a training known to its launcher: Ray Train has no other way to end it from outside.

    And to the janitor, before it asks for any devices.
    """

    def __init__(self, reports: Queue, janitor: Any) -> None:
        self._reports, self._janitor = reports, janitor

    def after_controller_start(self, train_run_context: Any) -> None:
        del train_run_context
        context = ray.get_runtime_context()
        ray.get(self._janitor.follow.remote(context.get_actor_id()))  # it may have to outlive this process
        self._reports.put(context.current_actor)


class _Janitor:
    """Frees what a training holds, or waits for, once nobody hears it: after a crash of the launcher, too.

    Ray itself keeps a placement group for a controller that died until the whole job ends. Ray Train registers only
    those that have their devices already.
    """

    def __init__(self, reports: Queue) -> None:
        self._reports = reports
        self._controller: str | None = None

    def follow(self, controller: str) -> None:
        self._controller = controller

    def watch(self) -> None:
        while self._is_heard():
            time.sleep(0.5)
        while self._controller is not None:
            is_dead = state.actors(self._controller).get("State", "DEAD") == "DEAD"
            for group in _groups_of(self._controller):
                remove_placement_group(group)
            if is_dead:  # as long as it is not, it may ask for others
                break
            time.sleep(0.5)
        ray.kill(ray.get_runtime_context().current_actor)

    def _is_heard(self) -> bool:
        try:
            return _is_heard(self._reports)
        except ActorUnavailableError:
            return True


def _groups_of(actor: str) -> list[PlacementGroup]:
    """The placement groups that an actor asked for, with or without devices; Ray's own table does not say whose."""
    table_of: Any = cast(Any, gcs_pb2).PlacementGroupTableData
    tables = map(table_of.FromString, state.state._connect_and_get_accessor().get_placement_group_table())
    return [
        PlacementGroup(ray.PlacementGroupID(table.placement_group_id))
        for table in tables
        if table.creator_actor_id.hex() == actor and table.state != table_of.REMOVED
    ]


def _patiently(action: Callable[[], T]) -> T:
    """`action` on the queue, again and again for half a minute while it cannot be reached, though it may be alive."""
    deadline = time.monotonic() + _SECONDS_TO_END
    while True:
        try:
            return action()
        except ActorUnavailableError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def _is_heard(reports: Queue) -> bool:
    """Whether anybody still waits for reports.

    Raises:
        ActorUnavailableError: That cannot be told.
    """
    try:
        _patiently(reports.empty)
    except ActorUnavailableError:
        raise
    except RayActorError:
        return False
    return True


class _UnheardError(Exception):
    """Nobody waits for reports any more."""


def _check_heard(reports: Queue) -> None:
    """What may take this training's place must find its files as they are."""
    if not _is_heard(reports):
        raise _UnheardError


def _put(reports: Queue, report: Any) -> None:
    """A report may arrive twice, as that of an epoch may after a restart."""
    try:
        _patiently(lambda: reports.put(report))
    except ActorUnavailableError:
        raise
    except RayActorError as error:
        raise _UnheardError from error


def _run_on_worker(config: dict[str, Any], reports_of: Callable[..., Iterator[dict[str, Any]]], **options: Any) -> None:
    """Puts what the first rank reports into the queue, then `_DONE`; ends where it is known that nobody hears it.

    Where the queue cannot be reached, but may be alive, it raises, and Ray Train starts all workers again, which go on
    from the last checkpoint.
    """
    from ray.train.torch import get_device

    setup, reports = config["setup"], config["reports"]
    is_first = get_context().get_world_rank() == 0
    try:
        _check_heard(reports)
        try:
            for report in reports_of(
                setup=setup,
                device=get_device() if setup.device == "cuda" else setup.torch_device,
                seed=config["seed"],
                before_writing=lambda: _check_heard(reports),
                **options,
            ):
                if is_first or report["status"] == "oom":  # which need not happen to the first
                    _put(reports, report)
        except (CvtNasError, StorageError) as error:
            _put(reports, error)
            raise
        if is_first:
            _put(reports, _DONE)
    except _UnheardError:
        return


def _train_on_worker(config: dict[str, Any]) -> None:
    _run_on_worker(
        config,
        progress_reports,
        arch=arch_from_dict(config["arch"]),
        number=config["number"],
        keep_model=config["keep_model"],
        num_known=config["num_known"],
        at_most=config.get("at_most"),
    )


def _train_supernet_on_worker(config: dict[str, Any]) -> None:
    _run_on_worker(config, supernet_reports, initial=config["initial"], at_most=config.get("at_most"))
