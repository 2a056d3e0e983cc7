"""Experiment tracking of a search, by Ray's own loggers: TensorBoard, MLflow, Weights & Biases.

Tune is not given these loggers. What is one trial to us is a new one to it after each pause and each death of a worker,
and the folders that it makes for them are deleted. So the events of the race drive them, with stand-ins for trials.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.air.constants import TRAINING_ITERATION
from ray.exceptions import RayActorError
from ray.tune.logger.tensorboardx import TBXLoggerCallback

from cvt_nas.arch import ArchConfig, BlockConfig, cost_of
from cvt_nas.errors import CvtNasError
from cvt_nas.results import TrialResult
from cvt_nas.results.events import EpochDone, Follower, RaceEvent, TrialPaused, TrialStarted, following
from cvt_nas.run import RunFolder

_SECONDS_TO_UPLOAD = 60.0  # what Weights & Biases has, when a trial goes on and when the search ends
_SECONDS_OF_SILENCE = 90.0  # after which a tracker that is to take the rest, when the search ends, is given up
_LOST = {"diverged", "failed", "oom"}


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
            each trial when it has ended, since several files of one trial would replace each other when uploaded.
            Ray has to be running.
        warn: Is told of a tracker that failed, in one line, from its thread.

    Raises:
        CvtNasError: See `check_trackers`.
    """
    check_trackers(mlflow=mlflow, wandb=wandb)
    makers: list[tuple[str, Callable[[], _Tracker]]] = []
    if tensorboard:
        makers.append(("--tensorboard", lambda: _TensorBoard(run, TBXLoggerCallback())))
    if mlflow is not None:
        makers.append((f"--mlflow {mlflow}", lambda: _MLflow(run, mlflow)))
    if wandb is not None:
        makers.append((f"--wandb {wandb}", lambda: _Wandb(run, wandb)))
    with ExitStack() as stack:
        yield following(*[stack.enter_context(_in_thread(name, make, warn)) for name, make in makers])


def check_trackers(*, tensorboard: bool = False, mlflow: str | None = None, wandb: str | None = None) -> None:
    """Before any compute is spent: whether `trackers` can do with these what it is asked for.

    Raises:
        CvtNasError: A package is missing, no MLflow server answers, or there is no key for Weights & Biases.
    """
    del tensorboard  # Ray Tune brings what it needs
    for package, option in {"mlflow": mlflow, "wandb": wandb}.items():
        if option is not None and importlib.util.find_spec(package) is None:
            raise CvtNasError(f"--{package} {option}: needs pip install 'cvt-nas[{package}]'")
    if mlflow is not None:
        _check_mlflow(mlflow)
    if wandb is not None:
        from ray.air.integrations.wandb import WandbLoggerCallback

        try:
            WandbLoggerCallback(wandb).setup()
        except ValueError as error:
            raise CvtNasError(
                f"--wandb {wandb}: no key: run wandb login, or set WANDB_API_KEY, or WANDB_MODE=offline"
            ) from error
        except Exception as error:  # a version of wandb that Ray cannot use, for one
            raise CvtNasError(f"--wandb {wandb}: {_line_of(error)}") from error


def _check_mlflow(uri: str) -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # as Ray's usage statistics are
    import mlflow

    # it would try for minutes
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
    limits = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(limits)
    try:
        mlflow.MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:
        raise CvtNasError(f"--mlflow {uri}: {_line_of(error)}") from error
    finally:
        for name in limits:
            del os.environ[name]


@contextmanager
def _in_thread(name: str, make: "Callable[[], _Tracker]", warn: Callable[[str], object]) -> Iterator[Follower]:
    events: queue.SimpleQueue[RaceEvent | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            tracker = make()
            while (event := events.get()) is not None:
                tracker(event)
            tracker.close()
        except Exception as error:
            warn(f"{name}: {_line_of(error)}; the search goes on without it")

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


def _line_of(error: Exception) -> str:
    """What `error` says, or what another process of Ray's raised."""
    lines = str(getattr(error, "cause", None) or error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if isinstance(error, RayActorError) else 0]  # that a process died comes before why


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedTrial:
    """A trial of ours with what Ray's loggers read of one of Tune's; the same one where the id is the same.

    Args:
        trial_id: As no trial of another run has it.
        config: What is known of it beforehand, by flat names.
        local_path: Folder for the logger's files.
        experiment_dir_name: Of its run.
        evaluated_params: `config` and the status, once it has ended; TensorBoard's HParams, which are written then.
    """

    trial_id: str
    trial_name: str = field(compare=False)
    config: dict[str, Any] = field(compare=False)
    local_path: str = field(compare=False)
    experiment_dir_name: str = field(compare=False)
    evaluated_params: dict[str, Any] = field(compare=False, default_factory=dict)

    def __str__(self) -> str:
        return self.trial_name

    def init_local_path(self) -> None:
        Path(self.local_path).mkdir(parents=True, exist_ok=True)


def config_of(number: int, arch: ArchConfig, seed: int) -> dict[str, Any]:
    """What a tracker shows of a trial, as `stage0.embed_dim`; a value that differs from block to block is a list of
    them as text."""
    cost = cost_of(arch)
    config = {"number": number, "arch_id": arch.id, "params": cost.params, "flops": cost.flops, "seed": seed}
    for index, stage in enumerate(arch.stages):
        config |= {f"stage{index}.embed_dim": stage.embed_dim, f"stage{index}.depth": len(stage.blocks)}
        for choice in dataclasses.fields(BlockConfig):
            values = [getattr(block, choice.name) for block in stage.blocks]
            same = len(set(values)) == 1
            config[f"stage{index}.{choice.name}"] = values[0] if same else ",".join(map(str, values))
    return config


class _Tracker:
    """One of Ray's loggers, told of our trials by the events of their race."""

    def __init__(self, run: RunFolder, logger: Any) -> None:
        self._run, self._logger = run, logger
        self._name = Path(run.place).name
        self._key = hashlib.sha256(json.dumps(run.manifest, sort_keys=True).encode()).hexdigest()[:8]
        self._live: dict[int, TrackedTrial] = {}

    def __call__(self, event: RaceEvent) -> None:
        if isinstance(event, TrialStarted):
            self._started(event.number, event.arch, event.seed)
        elif isinstance(event, EpochDone):
            self.log(self._live[event.number], event.epoch, {"accuracy": event.accuracy})
        elif isinstance(event, TrialPaused):
            self.pause(self._live.pop(event.number))
        elif isinstance(event, TrialResult):
            trial = self._started(event.number, event.arch, event.seed)  # if it was paused, maybe by another process
            ending = {"status": event.status} | ({} if event.reason is None else {"reason": event.reason})
            trial = dataclasses.replace(trial, evaluated_params=trial.config | {"status": event.status})
            self.log(trial, event.epochs, {**_summary(event), "config": ending})  # text is for W&B's config alone
            self.end(trial, ending, failed=event.status in _LOST)
            del self._live[event.number]

    def _started(self, number: int, arch: ArchConfig, seed: int) -> TrackedTrial:
        if number not in self._live:  # another worker may have died
            name = f"{number}-{arch.id}"
            trial = TrackedTrial(
                trial_id=f"{self._key}-{number}",
                trial_name=name,
                config=config_of(number, arch, seed),
                local_path=str(self.place(name)),
                experiment_dir_name=self._name,
            )
            self.begin(trial)
            self._live[number] = trial
        return self._live[number]

    def place(self, name: str) -> Path:
        del name
        return self._run.path

    def begin(self, trial: TrackedTrial) -> None:
        """Of one that has not begun, or was paused."""
        self._logger.log_trial_start(trial)

    def log(self, trial: TrackedTrial, epoch: int, values: dict[str, Any]) -> None:
        self._logger.log_trial_result(epoch, trial, {TRAINING_ITERATION: epoch, **values})

    def pause(self, trial: TrackedTrial) -> None:
        """Gives back what it holds: there may be many that wait."""
        self._logger.log_trial_end(trial)

    def end(self, trial: TrackedTrial, ending: dict[str, str], *, failed: bool) -> None:
        del ending
        self._logger.log_trial_end(trial, failed=failed)

    def close(self) -> None:
        for trial in self._live.values():
            self.pause(trial)


def _summary(result: TrialResult) -> dict[str, float]:
    values = {
        "epochs": result.epochs,
        "params": result.cost.params,
        "flops": result.cost.flops,
        "train_seconds": result.train_seconds,
    }
    return values if result.accuracy is None else values | {"final_accuracy": result.accuracy}


class _TensorBoard(_Tracker):
    """A folder for each trial, and in it a file for each time that it was on a worker."""

    def place(self, name: str) -> Path:
        return self._run.tensorboard_path / name

    def begin(self, trial: TrackedTrial) -> None:
        # tensorboardX names a file by the second, and overwrites the one that is there
        while any(Path(trial.local_path).glob(f"*.tfevents.{int(time.time())}.*")):
            time.sleep(0.05)
        super().begin(trial)


class _MLflow(_Tracker):
    """A run for each trial, by two tags the same one in whatever process."""

    def __init__(self, run: RunFolder, uri: str) -> None:
        import mlflow
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        super().__init__(run, MLflowLoggerCallback(tracking_uri=uri))
        self._client = mlflow.MlflowClient(uri)
        self._logger.experiment_name, self._logger.tags = self._name, {"search": self._key}
        self._logger.setup()

    def begin(self, trial: TrackedTrial) -> None:
        runs = self._logger._trial_runs
        if trial in runs:  # it was paused, and never left
            return
        tags = f"tags.search = '{self._key}' and tags.trial_name = '{trial}'"
        found = self._client.search_runs([self._logger.mlflow_util.experiment_id], tags, max_results=1)
        if found:
            runs[trial] = found[0].info.run_id
            self._client.update_run(runs[trial], status="RUNNING")
        else:
            self._logger.log_trial_start(trial)

    def pause(self, trial: TrackedTrial) -> None:
        """Nothing: a run holds nothing here."""

    def end(self, trial: TrackedTrial, ending: dict[str, str], *, failed: bool) -> None:
        for name, value in ending.items():
            self._client.set_tag(self._logger._trial_runs[trial], name, value)
        self._logger.log_trial_end(trial, failed=failed)
        del self._logger._trial_runs[trial]

    def close(self) -> None:
        for run_id in self._logger._trial_runs.values():
            self._client.set_terminated(run_id, status="KILLED")


def _writer(base: type) -> type:
    """Ray's process that talks to W&B; it ends when W&B has written everything, as Ray kills both at once."""

    class Writer(base):
        def run(self) -> None:
            import wandb

            super().run()  # type: ignore[misc]
            wandb.teardown()

    return Writer


class _Wandb(_Tracker):
    """A run for each trial, and two processes for each run while its trial is on a worker.

    Offline, it hears of a trial when that has ended, since W&B resumes no run there.
    """

    def __init__(self, run: RunFolder, project: str) -> None:
        import ray
        from ray.air.integrations.wandb import WandbLoggerCallback
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        logger = WandbLoggerCallback(project, dir=str(run.path), resume="allow", upload_timeout=1)
        super().__init__(run, logger)
        # Ray's would pass on no setting but the key, and begin again and again what fails
        here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        settings = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
        remote = ray.remote(num_cpus=0, scheduling_strategy=here, runtime_env={"env_vars": settings})
        logger._remote_logger_class = remote(_writer(logger._logger_actor_cls))
        logger.setup()
        self._ray, self._is_offline = ray, os.environ.get("WANDB_MODE") == "offline"
        self._at_work: list[Any] = []

    def __call__(self, event: RaceEvent) -> None:
        if not self._is_offline:
            super().__call__(event)
        elif isinstance(event, TrialResult):
            super().__call__(TrialStarted(number=event.number, arch=event.arch, seed=event.seed))
            for epoch, accuracy in enumerate(event.curve, start=1):
                super().__call__(EpochDone(number=event.number, epoch=epoch, accuracy=accuracy))
            super().__call__(event)

    def begin(self, trial: TrackedTrial) -> None:
        if (before := self._logger._trial_logging_futures.get(trial)) is not None:  # a run has one writer at a time
            self._ray.get(before, timeout=_SECONDS_TO_UPLOAD)
            self._logger._cleanup_logging_actors()
        super().begin(trial)
        self._at_work.append(self._logger._trial_logging_futures[trial])

    def log(self, trial: TrackedTrial, epoch: int, values: dict[str, Any]) -> None:
        self._raise_lost()
        super().log(trial, epoch, values)

    def close(self) -> None:
        super().close()
        self._raise_lost(_SECONDS_TO_UPLOAD)
        num_left = len(self._at_work)
        self._logger.on_experiment_end([])
        if num_left:
            raise TimeoutError(f"{num_left} trials were not uploaded within {_SECONDS_TO_UPLOAD:g} s")

    def _raise_lost(self, timeout: float = 0) -> None:
        """Raises what any of the processes raised, which the logger drops."""
        done, self._at_work = self._ray.wait(self._at_work, num_returns=len(self._at_work), timeout=timeout)
        self._ray.get(done)
