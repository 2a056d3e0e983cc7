"""The setup of workers: everything that they need to train."""

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from cvt_nas.arch import ImageSize, sides_of
from cvt_nas.config import DataConfig, Experiment, SupernetConfig, TrainingConfig
from cvt_nas.data import (
    SPLITS,
    ImageData,
    LoadedData,
    LoadSettings,
    Preprocessing,
    StreamedData,
    check_data,
    check_outside,
    free_shared_memory,
    load_data,
    num_on_their_way,
    open_answers,
    prepare_as,
    root_of,
    save_records,
)
from cvt_nas.engine.criterion import criterion_of
from cvt_nas.engine.evaluation import EVAL_BATCH_SIZE
from cvt_nas.engine.metrics import metric_of
from cvt_nas.errors import DataError, RunFolderError
from cvt_nas.plugins import find_modules_in, is_plugin
from cvt_nas.results import DataIdentity
from cvt_nas.run import RunFolder
from cvt_nas.space import ArchSpace, NarrowedSpace, SearchSpace

_UNTOLD = "{}: was begun by an earlier version, so whether its data are the same cannot be told"


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A part of a supernet's training, until `last_epoch`, with these classes and options. For `kept`, see
    `NarrowedSpace`."""

    last_epoch: int
    classes: tuple[int, ...]
    kept: Mapping[str, Sequence[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedWeights:
    """The supernet of a run: its space and its training.

    Args:
        phase: The current phase of the training; None for the whole training.
    """

    space: SearchSpace
    config: SupernetConfig
    phase: Phase | None = None

    @property
    def drawn_from(self) -> ArchSpace:
        """The space of the subnets that are trained."""
        return self.space if self.phase is None else NarrowedSpace(self.space, self.phase.kept)

    @property
    def last_epoch(self) -> int:
        return self.config.epochs if self.phase is None else self.phase.last_epoch


def shared_memory_needed(training: TrainingConfig, *, num_values: int, num_loaders: int, num_processes: int) -> int:
    """Greatest number of bytes of `/dev/shm` that batches take while they are read ahead.

    Args:
        num_values: Bytes of an image.
        num_loaders: Processes that read images for each training; with 0, it reads its own, and the result is 0.
        num_processes: Trainings side by side.
    """
    if num_loaders == 0:
        return 0
    largest = max(training.batch_size, EVAL_BATCH_SIZE)
    return num_processes * num_on_their_way(num_loaders) * largest * num_values


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSetup:
    """What every worker needs to train any architecture of an experiment.

    Args:
        data_root: Absolute path of the data set's folder, since workers run in other folders.
        run: The run folder, with an absolute path that every node sees, or at a URL.
        device: `cpu` or `cuda`.
        num_threads: Threads of torch in each worker, so that workers do not compete for cores.
        memory_share: Part of a GPU's memory for a training, if others share the GPU.
        shared: The supernet whose weights trials inherit, if there is one.
        init: Weights to start from, if a single architecture is trained; see `model.initialise`.
        shares_memory: Whether processes may hand over batches in `/dev/shm`.
        identity: Identity of the data after `checked`, with the images that workers skip.
        answers: Name of the teacher's answers in the run folder, see `RunFolder.answers_path`; None without a teacher.
        modules: Folder where workers look for modules of the user; None if the space file names none.
    """

    training: TrainingConfig
    data: DataConfig
    data_root: Path | None
    image_size: ImageSize
    num_channels: int
    num_classes: int
    run: RunFolder
    device: str = "cpu"
    num_threads: int = 1
    memory_share: float = 1.0
    shared: SharedWeights | None = None
    init: Path | None = None
    shares_memory: bool = True
    identity: DataIdentity | None = None
    answers: str | None = None
    modules: str | None = None

    @classmethod
    def of(cls, experiment: Experiment, *, run: RunFolder, data: str | Path | None) -> Self:
        """Makes the setup for all architectures of an experiment, with a supernet if its search uses one."""
        space, supernet = experiment.space, experiment.supernet
        shared = None
        if supernet is not None and experiment.search.has_supernet:
            shared = SharedWeights(space=space, config=supernet)
        return cls(
            training=experiment.training,
            data=experiment.data,
            data_root=None if data is None else root_of(data),
            image_size=space.image_size,
            num_channels=space.num_channels,
            num_classes=space.num_classes,
            run=run,
            shared=shared,
            modules=os.getcwd() if _names_plugins(experiment) else None,
        )

    def on(self, device: str, *, num_threads: int, gpus: float) -> Self:
        """Returns the setup for workers on `device`. A trial has `gpus`; with less than 1, trials share a GPU."""
        return replace(self, device=device, num_threads=num_threads, memory_share=min(gpus or 1.0, 1.0))

    @property
    def torch_device(self) -> torch.device:
        """Device of a worker with one device. The worker sees only its own GPU."""
        return torch.device("cuda:0" if self.device == "cuda" else "cpu")

    def checked(self, run: RunFolder | None = None, *, on_note: Callable[[str], None] | None = None) -> Self:
        """Checks all images, see `check_data`, and returns the setup with their identity. The driver calls it first.

        Args:
            run: A run to resume. Its record of the data is renewed if nothing was trained on them yet, for example
                after a damaged image was repaired.

        Raises:
            DataError: The data cannot be used, or the run folder lies among them.
            RunFolderError: The data are not those that `run` was begun with.
        """
        say = on_note or _ignore
        if run is None:
            check_outside(self.run.path, self.data.dataset, self.data_root)
        recorded = None if run is None else DataIdentity.of(run.manifest)
        known = recorded if run is not None and run.has_trained else None
        place = "" if run is None else run.place
        data, identity = check_data(
            self.data, root=self.data_root, known=known, place=place, on_note=on_note, **self._shape
        )
        if run is not None and recorded is None:
            if "search" not in identity.held_out:
                raise RunFolderError(
                    f"{place}: was begun by an earlier version, in which no validation images guided the search; "
                    f"write elsewhere by --out"
                )
            say(_UNTOLD.format(place))
        elif run is not None and recorded is not None and known is None:
            if (difference := recorded.difference(identity)) is not None:
                say(f"{place}: was begun with other data: {difference}; nothing was trained on those yet")
            run.amend_manifest(data=identity.to_json())
        found = replace(self, identity=identity)
        found._keep(data)
        found._check_task(data)
        return found

    def _check_task(self, data: ImageData) -> None:
        """Checks that loss and metric fit the labels, and that functions of the user can be imported."""
        criterion_of(self.training, data, torch.device("cpu"))
        metric_of(self.training, data)
        if self.shared is None:
            return
        criterion_of(self.shared.config, data, torch.device("cpu"))
        if data.is_multi_label and self.shared.config.distillation == "alpha":
            raise DataError("supernet.distillation: alpha is for images of one class each, and these can have several")

    @property
    def metric(self) -> str:
        """The metric that is maximised: the setting `metric` for this data; see `metric_of`."""
        return metric_of(self.training, self.open_data())

    def identified(self, run: RunFolder, *, on_note: Callable[[str], None] | None = None) -> Self:
        """Returns the setup with the data's identity from `run`. Raises RunFolderError if the data have another one."""
        known = DataIdentity.of(run.manifest)
        if known is None:
            (on_note or _ignore)(_UNTOLD.format(run.place))
            return self
        data = load_data(self.data, root=self.data_root, skipped=known.skipped, **self._shape)
        known.check_same(data.identity(), run.place)
        found = replace(self, identity=known)
        found._keep(data)
        return found

    @property
    def num_loaders(self) -> int:
        """Processes that read images for each training process; 0 if it reads them itself."""
        data = self.open_data()
        return data.num_workers(self.torch_device) if isinstance(data, StreamedData) else 0

    def fitting_shared_memory(self, *, num_processes: int, on_note: Callable[[str], None] | None = None) -> Self:
        """Returns the setup for `num_processes` side by side. Batches go through pipes if `/dev/shm` is too small.

        In a container, it has 64 MiB by default, and a process that filled it would be killed.
        """
        needed, free = (
            shared_memory_needed(
                self.training,
                num_values=self.num_channels * math.prod(sides_of(self.image_size)),
                num_loaders=self.num_loaders,
                num_processes=num_processes,
            ),
            free_shared_memory(),
        )
        if needed <= free:
            return self
        (on_note or _ignore)(
            f"/dev/shm has {free / 2**20:.3g} MiB left, and batches on their way need about {needed / 2**20:.3g} MiB: "
            f"they go through pipes, which takes a little longer; docker run --shm-size makes room"
        )
        return replace(self, shares_memory=False)

    def save_listing(self) -> None:
        """Writes the names of the images to the run folder, so that workers need not scan folders."""
        data = self._open_whole()
        if isinstance(data, StreamedData):
            self.run.store.write(self.run.listing_path, functools.partial(save_records, data.records))

    def open_data(self) -> ImageData:
        """The data set, which each process opens once. In a phase, it has only the images of the phase's classes.

        Raises:
            DataError: The data are not those that the driver checked; see also `load_data`.
        """
        data = self._open_whole()
        if self.answers is not None:
            path = self.run.answers_path(self.answers)
            if not path.exists():
                self.run.store.fetch(path)
            data = data.taught(open_answers(path, num_images=data.num_images("train")))
        phase = None if self.shared is None else self.shared.phase
        return data if phase is None else data.of_classes(phase.classes)

    def _open_whole(self) -> LoadedData:
        if self.modules is not None:
            find_modules_in(self.modules)
        if self._key not in _OPENED:
            data = self._load(self.image_size)
            now = {split: data.num_images(split) for split in SPLITS}
            if self.identity is not None and now != self.identity.splits:
                known = dict(self.identity.splits)
                raise DataError(f"{self.data_root}: has changed since the run began: {known} images, now {now}")
            self._keep(data)
        return self._with_processes(_OPENED[self._key])

    def _load(self, image_size: ImageSize) -> LoadedData:
        skipped, listing = (), None
        if self.identity is not None:
            skipped, listing = self.identity.skipped, self.run.listing_path
            self.run.store.fetch(listing)
            listing = listing if listing.is_file() else None
        return load_data(
            self.data, root=self.data_root, skipped=skipped, listing=listing,
            image_size=image_size, num_channels=self.num_channels, num_classes=self.num_classes,
        )  # fmt: skip

    def _with_processes(self, data: LoadedData) -> LoadedData:
        """Sets the number of processes that read images for a worker, and returns the data set."""
        if isinstance(data, StreamedData):
            data.num_cpus, data.shares_memory = self.num_threads, self.shares_memory
        return data

    def data_prepared_as(self, preprocessing: Preprocessing) -> ImageData:
        """Opens the data set again, with the preprocessing of another network.

        Raises:
            DataError: Images cannot be resized so; or see `load_data`.
        """
        data = self._with_processes(self._load(preprocessing.image_size))
        prepare_as(data, preprocessing, self.data.dataset)
        return data

    def _keep(self, data: LoadedData) -> None:
        _OPENED.clear()
        _OPENED[self._key] = data

    @property
    def _key(self) -> tuple[object, ...]:
        return self.data, self.data_root, self.identity, tuple(self._shape.items())

    @property
    def _shape(self) -> LoadSettings:
        return {
            "image_size": self.image_size, "num_channels": self.num_channels, "num_classes": self.num_classes,
        }  # fmt: skip

    @property
    def weights_path(self) -> Path:
        """Path of the supernet's weights after its training or phase."""
        assert self.shared is not None, "the caller knows that there is a supernet"
        if self.shared.last_epoch == self.shared.config.epochs:
            return self.run.supernet.weights_path
        return self.run.supernet.phase_weights_path(self.shared.last_epoch)


def _names_plugins(experiment: Experiment) -> bool:
    training = (experiment.training, *(() if experiment.supernet is None else (experiment.supernet,)))
    names = [experiment.data.dataset, *(name for each in training for name in (each.loss, each.metric))]
    return any(map(is_plugin, names))


_OPENED: dict[tuple[object, ...], LoadedData] = {}  # the last data set that this process opened


def _ignore(note: str) -> None:
    del note
