"""The full training of one architecture. Its result is an ordinary run folder."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from cvt_nas.arch import ArchConfig, cost_of
from cvt_nas.config import Experiment, load_recipe
from cvt_nas.data import ImageData, find_data, shape_of
from cvt_nas.engine import (
    Checkpoint,
    TrainingReport,
    TrainingSetup,
    answer_images,
    evaluate,
    find_teacher,
    has_answered,
    in_order,
    keep_in_order,
)
from cvt_nas.engine.speed import fastest_way
from cvt_nas.errors import ArchError, DataError, ResourceError, RunFolderError, StorageError, TrainingEndedError
from cvt_nas.escaping import told, why_no_text
from cvt_nas.launch.devices import ending_in, training_reports
from cvt_nas.model import CvT, Lent, Weights, digest_of, initialise, lend, load_model, locate, means, read_weights
from cvt_nas.results import DataIdentity, TrialResult
from cvt_nas.run import RunFolder, check_target


def train(
    arch: ArchConfig,
    experiment: Experiment,
    *,
    out: str | Path,
    data: str | Path | None = None,
    num_workers: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    seed: int | None = None,
    init: str | Path | None = None,
    resume: bool = False,
    origin: DataIdentity | None = None,
    on_report: Callable[[TrainingReport], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> TrialResult:
    """Trains `arch` by the sections `data` and `training` of `experiment`, then evaluates it once on the test split.

    Args:
        out: The run folder. It must be new unless `resume` is set.
        num_workers: Number of GPUs, or of processes if `device` is `cpu`, that share each batch by DDP. None for all
            GPUs, or one process if there is no GPU.
        device: None for `cuda` if there is a GPU, and else `cpu`.
        seed: Seed of the training; 0 if absent. A resumed training keeps its own.
        init: Weights to begin with instead of a fresh initialisation; see `model.locate` and `model.initialise`. If
            they belong to a network of other sizes, `arch` takes the part that it has room for, as a trial of a search
            does.
        resume: Whether to go on from the checkpoint in `out`. If there is none yet, the training begins again with the
            same weights.
        origin: Data of the run that found `arch`. A note tells if the images differ. Other classes are refused.
        on_report: Called with each report of `engine.progress_reports`.
        on_note: Called before the training with notes on the data, with the progress of the check of its images, and
            with each of the notes of `model.initialise`.

    Raises:
        TrainingEndedError: If the training diverged, ran out of device memory, or lost its workers again and again.
        CvtNasError: If data, devices, folder or weights are not suitable.
        StorageError: If `out` is a URL, or nothing can be written any more.
    """
    check_target(out, called=f"--out {out}", makes_folders=True)
    out = Path(out).absolute()
    if why := why_no_text(out):  # trained weights with such a path could not be loaded again
        raise RunFolderError(f"--out {told(str(out))}: {why}")
    _check_fits(arch, experiment)
    device, num_workers = _devices(device, num_workers)
    begun = _open_begun(arch, experiment, out, init) if resume else None
    seed = (seed or 0) if begun is None else begun.seed_again(seed)
    begins = None if begun is None else begun.manifest.get("init")
    weights = None
    if init is not None and begun is None:
        weights = read_weights(locate(init))
        _begins_with(arch, experiment, weights)  # raises before the data are opened
    setup = dataclasses.replace(
        TrainingSetup.of(experiment, run=RunFolder(out), data=data),
        image_size=arch.image_size,
        device=device,
        num_threads=_cpu_threads(num_workers),
        shared=None,
    )
    if begun is None:
        RunFolder.at(out).check_new()
    with ExitStack() as stack:
        if begun is not None:
            stack.enter_context(begun.locked())  # before its manifest is changed
        setup = setup.checked(begun, on_note=on_note)
        setup = setup.fitting_shared_memory(num_processes=num_workers, on_note=on_note)
        identity = setup.identity
        assert identity is not None, "it was just looked at"
        if origin is not None and (difference := origin.difference(identity)) is not None:
            if origin.classes_sha256 != identity.classes_sha256:
                raise DataError(f"--data {data}: {difference}: the architecture was found on other classes")
            if on_note is not None:
                on_note(f"{data}: other data than those that the architecture was found on: {difference}")
        teacher = find_teacher(setup, init=init, run=begun)
        images = setup.open_data()
        if begun is not None and begins is not None and "importance" in begins and not begun.lends_weights:
            weights = read_weights(begins["path"])  # the run was interrupted before it kept the cuts
        lent = None
        if weights is not None:
            lent, begins = _begins_with(arch, experiment, weights, classes=images.class_names)
        if begins is not None and "importance" not in begins:
            setup = dataclasses.replace(setup, init=Path(begins["path"]))
        found = None
        if device == "cuda" and setup.training.compile == "auto":
            found = begun.manifest.get("compile") if begun is not None else _fastest_way(arch, setup, num_workers)
            if found is not None:
                training = dataclasses.replace(setup.training, compile=found["fastest"])
                setup = dataclasses.replace(setup, training=training)
        manifest = {
            **experiment.manifest(seed=seed, num_trials=1),
            "arch_id": arch.id,
            "resources": {"num_workers": num_workers, "device": device},
            "data": identity.to_json(),
            "metric": setup.metric,
            **({} if begins is None else {"init": begins}),
            **({} if teacher is None else {"teacher": teacher.to_json()}),
            **({} if found is None else {"compile": found}),
        }
        run = begun
        if run is None:
            run = RunFolder.create(out, manifest)
            stack.enter_context(run.locked())
        if num_workers > 1:
            setup.save_listing()
        if lent is not None and begins is not None:
            keep_in_order(lent, begins["importance"], setup, lambda sort, own: sort(own))
        if on_note is not None:
            for note in (*(begins or {}).get("notes", []), *(() if teacher is None else teacher.notes)):
                on_note(note)
            batch_size, num_images = experiment.training.batch_size, images.num_images("train")
            if batch_size > num_images:
                on_note(
                    f"training.batch_size is {batch_size:,}, and there are {num_images:,} training images: a step has "
                    f"these at most, so lr may be too high"
                )
        if teacher is not None:
            if not has_answered(teacher, run):
                for note in answer_images(setup, teacher):
                    if on_note is not None:
                        on_note(note)
            setup = dataclasses.replace(setup, answers=teacher.answers)
        return _train_once(
            arch, experiment, run, setup, images, num_workers=num_workers, seed=seed, on_report=on_report
        )


def _begins_with(
    arch: ArchConfig, experiment: Experiment, weights: Weights, *, classes: Sequence[str] | None = None
) -> tuple[Lent | None, dict[str, Any]]:
    """The weights that the training takes cuts of, and the entry of `weights` in the manifest.

    Returns:
        The lent weights, or None if all of `weights` fit `arch`, so that no cuts are needed. The entry has a key
        `importance` if cuts are taken.

    Raises:
        ArchError: If the weights do not belong to a CvT, or to one with another number of stages.
    """
    about: dict[str, Any] = {"path": str(weights.path), "sha256": digest_of(weights.path)}
    try:
        return None, {**about, "notes": list(initialise(CvT(arch), weights, classes=classes))}
    except ArchError as error:
        try:
            lent, notes = lend(weights, num_channels=arch.num_channels, num_classes=arch.num_classes, classes=classes)
        except ArchError:
            raise error from None
        if len(lent.arch.stages) != len(arch.stages):
            raise
    lent, importance, more = in_order(lent, experiment.search.importance)
    taken = f"{weights.path}: is of a network of other sizes, of which this one takes what it has room for"
    return lent, {**about, "importance": importance, "notes": [taken, *notes, *more]}


def recipe_for(name: str, data: str | Path | None) -> tuple[Experiment, Path | None]:
    """The recipe of a published network for other images, and the folder of these images.

    The only architecture of the recipe is `experiment.space.largest`. It has the channels and classes of the images,
    and the image size of the published network.

    Args:
        name: See `load_recipe`.
        data: See `find_data`. None for the data set of the recipe.

    Raises:
        CvtNasError: If there is no such recipe or no such data set.
    """
    experiment = load_recipe(name)
    if data is None:
        return experiment, None
    space, (dataset, root) = experiment.space, find_data(data)
    channels, num_classes = shape_of(dataset, root)
    if dataset == "imagefolder" and num_classes == space.num_classes:
        dataset = experiment.data.dataset
    shape = {"num_channels": channels or space.num_channels, "num_classes": num_classes}
    changes = {
        "space": {key: value for key, value in shape.items() if value != getattr(space, key)},
        "data": {} if dataset == experiment.data.dataset else {"dataset": dataset},
    }
    return experiment.changed(**changes), root


def fitted(arch: ArchConfig, experiment: Experiment) -> tuple[ArchConfig, str | None]:
    """A published network with the channels and classes of a space file. A note tells if it had others."""
    shape = {name: getattr(experiment.space, name) for name in ("num_channels", "num_classes")}
    if all(getattr(arch, name) == value for name, value in shape.items()):
        return arch, None
    note = f"the network takes {shape['num_channels']} channels and {shape['num_classes']} classes of {experiment.name}"
    return dataclasses.replace(arch, **shape), note


def _train_once(
    arch: ArchConfig,
    experiment: Experiment,
    run: RunFolder,
    setup: TrainingSetup,
    images: ImageData,
    *,
    num_workers: int,
    seed: int,
    on_report: Callable[[TrainingReport], None] | None,
) -> TrialResult:
    """Trains the only trial of `run`, or returns its result if it has ended already."""
    if run.results():
        return run.results()[0]
    started, report = time.monotonic(), None
    with ending_in(TrainingEndedError, "the training ended"):
        for report in training_reports(
            arch,
            setup,
            number=0,
            seed=seed,
            num_devices=num_workers,
            cpus_per_device=setup.num_threads,
            use_gpus=setup.device == "cuda",
        ):
            if on_report is not None:
                on_report(report)
    assert report is not None, "an epoch at least"
    if report["status"] == "storage":
        raise StorageError(report.get("reason"))
    if report["status"] != "running":
        raise TrainingEndedError(f"the training ended: {report.get('reason')}")
    result = TrialResult(
        number=0,
        arch=arch,
        status="complete",
        epochs=report["epoch"],
        accuracy=report["accuracy"],
        cost=cost_of(arch),
        curve=tuple(report["curve"]),
        seconds=time.monotonic() - started,
        train_seconds=report["train_seconds"],
        seed=seed,
        device=setup.device if num_workers == 1 else f"{num_workers} x {setup.device}",
        reason=report.get("reason"),
        micro_batch=report.get("micro_batch"),
        activation_checkpointing=report.get("activation_checkpointing", False),
    )
    model = load_model(run.model_path(arch.id)).to(setup.torch_device)
    accuracy = evaluate(model, images, "test", training=experiment.training, device=setup.torch_device)
    run.append_test_accuracy(0, arch.id, accuracy, images.num_images("test"))
    run.append(result)
    Checkpoint(run.checkpoint_path(0), run.store).drop()
    return result


def _check_fits(arch: ArchConfig, experiment: Experiment) -> None:
    if experiment.training.epochs == 0:
        raise ArchError("training.epochs: got 0, which only a supernet's subnets do with; give --epochs N")
    for name in ("num_channels", "num_classes"):
        if getattr(arch, name) != getattr(experiment.space, name):
            raise ArchError(f"{name}: the architecture has {getattr(arch, name)}, the file {experiment.name} has "
                            f"{getattr(experiment.space, name)}")  # fmt: skip
    rates = experiment.training.drop_path
    if isinstance(rates, list) and len(rates) != len(arch.stages):
        raise ArchError(f"training.drop_path: {len(rates)} rates for an architecture of {len(arch.stages)} stages")


def _open_begun(arch: ArchConfig, experiment: Experiment, out: Path, init: str | Path | None) -> RunFolder:
    run = RunFolder.open(out)
    if run.manifest.get("arch_id") != arch.id or not experiment.compares_with(run.manifest):
        raise RunFolderError(f"{out} holds another run than this training; name another --out")
    kept = run.manifest.get("init")
    path = None if kept is None else kept["path"]
    if init is not None and (path is None or not means(init, path)):
        raise RunFolderError(f"--init {init}: {out} began with {path or 'a fresh initialisation'}; leave it out")
    is_trained = run.results() or Checkpoint(run.checkpoint_path(0)).is_here
    if kept is not None and not is_trained and digest_of(kept["path"]) != kept["sha256"]:
        raise RunFolderError(f"{path}: is not what {out} began with any more; name another --out")
    return run


def _devices(device: Literal["cpu", "cuda"] | None, num_workers: int | None) -> tuple[Literal["cpu", "cuda"], int]:
    import torch

    num_gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if device is None:
        device = "cuda" if num_gpus and num_workers != 0 else "cpu"
        if device == "cpu" and num_workers:
            raise ResourceError(f"--gpus {num_workers}: this machine has {num_gpus}")
    if device == "cuda" and (num_workers or 1) > num_gpus:
        raise ResourceError(f"--gpus {num_workers or 1}: this machine has {num_gpus}")
    return device, num_workers or (num_gpus if device == "cuda" else 1)


def _fastest_way(arch: ArchConfig, setup: TrainingSetup, num_workers: int) -> dict[str, Any] | None:
    """The entry of `fastest_way` in the manifest. None if the network does not fit into the GPU's memory.

    The training will report that.
    """
    found = fastest_way(arch, setup.training, setup.open_data(), device=setup.torch_device, num_devices=num_workers)
    return None if found is None else found.to_json()


def _cpu_threads(num_workers: int) -> int:
    import torch

    return max(torch.get_num_threads() // num_workers, 1)
