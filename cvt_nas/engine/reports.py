"""Reports of trainings as plain values, which travel between processes."""

import contextlib
import functools
import json
from collections.abc import Callable, Generator
from typing import Literal, NotRequired, TypedDict

import torch

from cvt_nas.arch import ArchConfig
from cvt_nas.data import ImageData, save_preprocessing, seed_all
from cvt_nas.engine.checkpoint import Checkpoint
from cvt_nas.engine.evaluation import class_accuracies
from cvt_nas.engine.importance import open_lent
from cvt_nas.engine.inheritance import open_inheritance, save_supernet
from cvt_nas.engine.memory import Room, meter_of
from cvt_nas.engine.optimization import DivergedError, from_first_rank, is_out_of_memory, rank_and_world_size, times_of
from cvt_nas.engine.quantised import judged_in_int8
from cvt_nas.engine.setup import TrainingSetup
from cvt_nas.engine.supernet import supernet_of, train_supernet
from cvt_nas.engine.training import fit
from cvt_nas.errors import StorageError, first_line
from cvt_nas.latency import Int8Runtime
from cvt_nas.model import CvT, begin_with, initialise, save_model
from cvt_nas.run import RunFolder, patiently
from cvt_nas.supernet import begin_supernet


class _Ending(TypedDict):
    status: Literal["running", "diverged", "oom", "storage"]
    reason: NotRequired[str]


class Report(_Ending):
    """A worker's report of a training, after each epoch and when it cannot continue.

    The training continues while `status` is `running`. A last report with another status has a `reason`. The cut of
    batches and the `note` on it are those of `Room`.
    """

    epoch: int
    micro_batch: NotRequired[int]
    activation_checkpointing: NotRequired[bool]
    note: NotRequired[str | None]


class TrainingReport(Report):
    """Report of one architecture's training; see `Epoch`. It has a `reason` if it went back or on with less memory.

    If the network is judged in int8, a further report of the last epoch has `int8`, an `Int8` as JSON.
    """

    accuracy: float
    curve: list[float]
    train_seconds: float
    int8: NotRequired[str]


class SupernetReport(Report):
    """Report of the training of shared weights; see `SupernetEpoch`."""

    losses: dict[str, float]
    num_rollbacks: int
    seconds: float


def progress_reports(
    arch: ArchConfig,
    setup: TrainingSetup,
    *,
    number: int,
    device: torch.device,
    seed: int,
    keep_model: bool = True,
    judge_as: Int8Runtime | None = None,
    num_known: int = 0,
    at_most: int | None = None,
) -> Generator[TrainingReport, None, None]:
    """Runs `fit`, and yields plain values.

    Args:
        keep_model: Whether to write the trained network to the run folder before the last report.
        judge_as: Runtime in whose int8 the trained network is judged after its last epoch; see `judged_in_int8`. If the
            process dies meanwhile, the next one begins with that, since the checkpoint is of the last epoch.
        num_known: Number of epochs that the reader knows from before an interruption. They are not reported again.
    """
    torch.set_num_threads(setup.num_threads)
    report: TrainingReport = {
        "epoch": 0, "accuracy": 0.0, "curve": [], "train_seconds": 0.0, "status": "running"
    }  # fmt: skip
    reasons: dict[str, str] = {}

    def told(room: Room) -> None:
        _add_room(report, room)
        if room.ran_out and room.note is not None:
            reasons["memory"] = room.note

    trained: CvT | None = None
    try:
        data = setup.open_data()
        for epoch in fit(
            arch,
            setup.training,
            data,
            device=device,
            seed=seed,
            checkpoint=Checkpoint(setup.run.checkpoint_path(number), setup.run.store),
            initial=_initial(arch, setup, device),
            meter=meter_of(device, setup.memory_share),
            at_most=at_most,
            on_room=told,
        ):
            is_last = epoch.number == setup.training.epochs
            if is_last and keep_model and rank_and_world_size()[0] == 0:
                keep_trained(epoch.model, data, setup.run)
            if epoch.number <= num_known < setup.training.epochs:
                continue
            report["epoch"], report["accuracy"], report["curve"] = epoch.number, epoch.accuracy, list(epoch.curve)
            report["train_seconds"] = epoch.train_seconds
            if epoch.num_rollbacks:
                times = times_of(epoch.num_rollbacks)
                reasons["rollbacks"] = f"rolled back {times}: a loss or a weight was not finite"
            if reasons:
                report["reason"] = "; ".join(reasons.values())
            yield report.copy()
            trained = epoch.model if is_last else None
        if judge_as is not None and trained is not None and rank_and_world_size()[0] == 0:
            with contextlib.closing(data):
                found = judged_in_int8(trained, judge_as, data, setup.training)
            yield {**report, "int8": json.dumps(found.to_json())}
    except DivergedError as error:
        report["accuracy"] = error.curve[-1] if error.curve else 0.0
        report["epoch"], report["curve"] = error.epoch, list(error.curve)
        yield {**report, "status": "diverged", "reason": str(error)}
    except (RuntimeError, StorageError) as error:
        yield {**report, **_end_by(error)}
        if rank_and_world_size()[1] > 1:
            raise  # the other ranks wait for this one, until it dies
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def supernet_reports(
    setup: TrainingSetup, *, device: torch.device, seed: int, at_most: int | None = None
) -> Generator[SupernetReport, None, None]:
    """Trains the supernet of `setup.shared`, and yields plain values.

    Before the last report, the weights are written to the run folder, and the checkpoint is deleted if nothing is left
    to train. If the weights exist already, that report is the only one.
    """
    shared = setup.shared
    assert shared is not None, "the caller knows that there is a supernet"
    torch.set_num_threads(setup.num_threads)
    run = setup.run
    rank, world_size = rank_and_world_size()
    checkpoint = Checkpoint(run.supernet.checkpoint_path, run.store)
    report: SupernetReport = {"epoch": 0, "losses": {}, "num_rollbacks": 0, "seconds": 0.0, "status": "running"}
    is_whole = shared.last_epoch == shared.config.epochs
    is_there = rank == 0 and run.store.exists(setup.weights_path)
    if from_first_rank(is_there, device):  # a worker died between that and its last report
        if rank == 0 and setup.weights_path.exists():  # it may have died before they were mirrored
            run.store.push(setup.weights_path)
        if is_whole and rank == 0:
            checkpoint.drop()
        yield {**report, "epoch": shared.last_epoch}
        return
    if shared.last_epoch == 0:  # the initial weights stay
        if rank == 0:
            seed_all(seed)
            begin_supernet(supernet := supernet_of(shared), open_lent(run))
            save_supernet(supernet, setup.weights_path)
            run.store.push(setup.weights_path)
        yield report
        return
    data = setup.open_data()

    try:
        for epoch in train_supernet(
            shared,
            data,
            device=device,
            seed=seed,
            checkpoint=checkpoint,
            initial=functools.partial(begin_supernet, lent=open_lent(run)) if run.lends_weights else None,
            stop=run.supernet.is_stopped,
            meter=meter_of(device, setup.memory_share),
            at_most=at_most,
            on_room=lambda room: _add_room(report, room),
        ):
            report["epoch"], report["losses"] = epoch.number, epoch.losses
            report["num_rollbacks"], report["seconds"] = epoch.num_rollbacks, epoch.seconds
            if epoch.number == shared.last_epoch and rank == 0:
                save_supernet(epoch.supernet, setup.weights_path)
                run.store.push(setup.weights_path)
                if is_whole:
                    checkpoint.drop()
            yield report.copy()
    except DivergedError as error:
        yield {**report, "status": "diverged", "reason": str(error)}
    except (RuntimeError, StorageError) as error:
        yield {**report, **_end_by(error)}
        if world_size > 1:
            raise


def _add_room(report: Report, room: Room) -> None:
    report["micro_batch"], report["activation_checkpointing"] = room.micro_batch, room.activation_checkpointing
    report["note"] = room.note


def _end_by(error: RuntimeError | StorageError) -> _Ending:
    """Status and reason of a training that ended with `error`. Raises errors of other kinds again."""
    if isinstance(error, StorageError):
        return {"status": "storage", "reason": f"{error.strerror}: {error.filename}"}
    if not is_out_of_memory(error):
        raise error
    return {"status": "oom", "reason": first_line(error)}


def class_curves(arch: ArchConfig, setup: TrainingSetup, epochs: int, seed: int) -> list[list[float]]:
    """Accuracy of each class on the search split, after each epoch of a short training with supernet settings."""
    assert setup.shared is not None, "the caller knows that there is a supernet"
    torch.set_num_threads(setup.num_threads)
    training, data, device = setup.shared.config.lasting(epochs), setup.open_data(), setup.torch_device
    return [
        class_accuracies(epoch.model, data, "search", training=training, device=device)
        for epoch in fit(arch, training, data, device=device, seed=seed, meter=meter_of(device, setup.memory_share))
    ]


def _initial(arch: ArchConfig, setup: TrainingSetup, device: torch.device) -> Callable[[], CvT] | None:
    """Makes the model whose weights a training starts from; None for a fresh initialisation."""
    if (init := setup.init) is not None:

        def initialised() -> CvT:
            initialise(model := CvT(arch), init, classes=setup.open_data().class_names)
            return model

        return initialised
    if setup.shared is not None:
        return lambda: open_inheritance(setup, device).model(arch)
    return (lambda: begin_with(CvT(arch), open_lent(setup.run))) if setup.run.lends_weights else None


def keep_trained(model: CvT, data: ImageData, run: RunFolder) -> None:
    """Writes a trained network to the run folder, as the one of its architecture."""
    patiently(run.path.stat)  # waits for a disk that is not mounted
    folder = run.model_path(model.arch.id)
    save_model(model, folder)
    save_preprocessing(data, folder)
    run.push_model(model.arch.id)
