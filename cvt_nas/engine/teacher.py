"""A teacher: a trained network that answers each training image once, before other networks learn from its answers.

It answers images without augmentation. A teacher that sees each image as its student does teaches better (Beyer et al.
2022, arXiv:2106.05237), but would have to answer in each epoch of each trial. TinyViT (Wu et al. 2022,
arXiv:2207.10666) keeps answers for augmented images with their seeds, for a single training. Here, hundreds of trials
with different draws share the same answers.
"""

import contextlib
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib import format as npy
from torch import Tensor

from cvt_nas.data import ImageData
from cvt_nas.engine.classifiers import Classifier, is_of_timm, open_classifier
from cvt_nas.engine.evaluation import logits_of
from cvt_nas.engine.setup import TrainingSetup
from cvt_nas.errors import ArchError, DataError, RunFolderError, StorageError
from cvt_nas.model import listed, locate, match_classes
from cvt_nas.run import RunFolder

INIT = "init"  # setting for the network whose weights a search starts from
_BATCH_SIZE, _MEASURED_AT_ONCE = 64, 8
_BYTES = 2  # of a logit
_GREATEST = 6e4  # logit; float16 ends at 65,504
_SECONDS_BETWEEN = 5.0
_KEY = "training.teacher"


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """A teacher, and the part of its answers that is used.

    Args:
        place: See `open_classifier`.
        sha256: Hash of its weights, its preprocessing and `rows`.
        rows: Indices of the data's classes among its classes, in the order of the data.
        answers: See `TrainingSetup.answers`.
        num_bytes: Bytes of the answers; 0 if they exist already.
        notes: Notes for people.
    """

    place: str
    sha256: str
    rows: tuple[int, ...]
    answers: str
    num_bytes: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Entry of a manifest about the teacher."""
        return {"path": self.place, "sha256": self.sha256, "answers": self.answers, "notes": list(self.notes)}


def has_answered(teacher: Teacher, run: RunFolder) -> bool:
    """Whether `run` has all answers of a teacher, from any machine."""
    return run.store.exists(run.answers_path(teacher.answers))


def trains_anything(setup: TrainingSetup) -> bool:
    """Whether a network or a supernet is trained, so that a teacher has somebody to teach."""
    return setup.training.epochs > 0 or (setup.shared is not None and setup.shared.config.epochs > 0)


def find_teacher(setup: TrainingSetup, *, init: str | Path | None, run: RunFolder | None) -> Teacher | None:
    """Finds the teacher of the setting `teacher`, and opens and checks it unless `run` has its answers already.

    Returns None without the setting, or if nothing is trained.

    Args:
        setup: Setup after its data were checked.
        init: Weights that networks start from.
        run: A run to resume, which must have the same teacher.

    Raises:
        ArchError: The teacher is missing, cannot be read, or does not know the classes of the data.
        DataError: The teacher does not fit the images or labels of the data.
        ResourceError: The teacher needs a library that is not installed.
        RunFolderError: `run` began with another teacher.
    """
    named = setup.training.teacher
    if named is None or not trains_anything(setup):
        return None
    began = None if run is None else run.manifest.get("teacher")
    if run is not None and began is not None:
        known = Teacher(
            place=began["path"],
            sha256=began["sha256"],
            rows=(),
            answers=_name_of_answers(began["sha256"], setup),
            num_bytes=0,
            notes=tuple(began["notes"]),
        )
        if has_answered(known, run):
            return known
    place = _place_of(named, init) if began is None else began["path"]
    classifier = open_classifier(place)
    rows, notes = _checked(classifier, place, setup)
    sha256 = _digest_of(classifier, rows)
    if run is not None and began is not None and sha256 != began["sha256"]:
        raise RunFolderError(f"{_KEY}: {place} is not what {run.place} began with any more; name another --out")
    return Teacher(
        place=place,
        sha256=sha256,
        rows=rows,
        answers=_name_of_answers(sha256, setup),
        num_bytes=_BYTES * len(rows) * setup.open_data().num_images("train"),
        notes=tuple(f"teacher: {note}" for note in (*classifier.notes, *notes)),
    )


def answer_images(setup: TrainingSetup, teacher: Teacher) -> Iterator[str]:
    """Lets `teacher` answer the training images, and writes its answers to the run folder. Resumes after a stop.

    Yields:
        Progress notes for people: at the start, every few seconds, and at the end.

    Raises:
        ArchError: An answer is not finite.
        RunFolderError: The teacher on this machine is another network.
        StorageError: Files cannot be written.
    """
    torch.set_num_threads(setup.num_threads)
    classifier = open_classifier(teacher.place)
    if _digest_of(classifier, teacher.rows) != teacher.sha256:
        raise RunFolderError(f"{_KEY}: {teacher.place} is another network on this machine than on the one that began")
    device, path = setup.torch_device, setup.run.answers_path(teacher.answers)
    with _answering(classifier, teacher, setup) as (data, answer):
        num_images = data.num_images("train")
        with _Answers(path, num_images, len(teacher.rows)) as file:
            yield f"the teacher answers {num_images:,} training images, once"
            said = time.monotonic()
            for images, _ in data.eval_batches(
                "train", batch_size=_BATCH_SIZE, device=device, first=file.num_rows // _BATCH_SIZE, as_bytes=True
            ):
                logits = answer(images)
                if not bool(logits.isfinite().all()):
                    raise ArchError(f"{_KEY}: {teacher.place} answers images with numbers that are not finite")
                file.add(logits.clamp(-_GREATEST, _GREATEST).half().cpu().numpy())
                if time.monotonic() - said >= _SECONDS_BETWEEN:
                    said = time.monotonic()
                    yield f"the teacher has answered {file.num_rows:,} of {num_images:,} training images"
    setup.run.store.push(path)
    yield f"the teacher has answered all {num_images:,} training images"


def measure_teacher(setup: TrainingSetup, teacher: Teacher, *, seconds: float) -> float:
    """Measures the seconds of an image for `teacher`, including its loading, for about `seconds`.

    The first batch warms up. On a CPU, batches are small, since the time of an image is the same.
    """
    device = setup.torch_device
    batch_size = _BATCH_SIZE if device.type == "cuda" else _MEASURED_AT_ONCE
    with _answering(open_classifier(teacher.place), teacher, setup) as (data, answer):
        num_images, began = 0, time.perf_counter()
        for number, (images, _) in enumerate(
            data.eval_batches("train", batch_size=batch_size, device=device, as_bytes=True)
        ):
            if number == 1:
                num_images, began = 0, time.perf_counter()
            answer(images).cpu()
            num_images += len(images)
            if number > 0 and time.perf_counter() - began >= seconds:
                break
        return (time.perf_counter() - began) / num_images


@contextlib.contextmanager
def _answering(
    classifier: Classifier, teacher: Teacher, setup: TrainingSetup
) -> Iterator[tuple[ImageData, Callable[[Tensor], Float[Tensor, "batch classes"]]]]:
    """Gives the images as `teacher` sees them, and a function that returns its logits for a batch."""
    device, channels = setup.torch_device, len(classifier.preprocessing.mean)
    model = classifier.model.to(device)
    rows = torch.tensor(teacher.rows, device=device)
    with contextlib.closing(setup.data_prepared_as(classifier.preprocessing)) as data:

        def prepared(images: Tensor) -> Tensor:
            return data.prepared(images.expand(-1, channels, -1, -1))  # a teacher for colour may answer grey images

        def answer(images: Tensor) -> Tensor:
            with torch.inference_mode():
                return logits_of(model, images, setup.training, prepared).float()[:, rows]

        yield data, answer
    if device.type == "cuda":
        model.cpu()
        torch.cuda.empty_cache()  # for trials, which may run in this process


class _Answers:
    """A file of answers that grows row by row. It gets its name once it is complete.

    Args:
        num_images, num_classes: Shape of the complete file. Whole batches of existing rows are kept.
    """

    def __init__(self, path: Path, num_images: int, num_classes: int) -> None:
        header = io.BytesIO()
        shape = {"descr": "<f2", "fortran_order": False, "shape": (num_images, num_classes)}
        npy.write_array_header_1_0(header, shape)
        self._path, self._begun = path, path.with_suffix(".begun")
        self._num_images, self._header, self._row_bytes = num_images, header.getvalue(), _BYTES * num_classes
        self.num_rows = 0

    def __enter__(self) -> "_Answers":
        with self._telling():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            size = self._begun.stat().st_size if self._begun.exists() else 0
            whole = max(size - len(self._header), 0) // (self._row_bytes * _BATCH_SIZE)
            self.num_rows = whole * _BATCH_SIZE
            self._file = self._begun.open("ab")
            self._file.truncate(len(self._header) + self.num_rows * self._row_bytes if size > len(self._header) else 0)
            if size <= len(self._header):
                self._file.write(self._header)
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._telling():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            if self.num_rows == self._num_images:
                self._begun.replace(self._path)

    def add(self, rows: np.ndarray) -> None:
        with self._telling():
            self._file.write(rows.tobytes())
        self.num_rows += len(rows)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(error.errno, error.strerror, str(self._path)) from error


def _place_of(named: str, init: str | Path | None) -> str:
    if is_of_timm(named):
        return named
    if named != INIT:
        return str(locate(named))
    if init is None:
        raise ArchError(f"{_KEY}: got {INIT}, which needs weights to begin with: give --init WEIGHTS")
    return str(locate(init))


def _checked(classifier: Classifier, place: str, setup: TrainingSetup) -> tuple[tuple[int, ...], list[str]]:
    """Returns the indices of the data's classes in the answers, and notes for people."""
    data, channels = setup.open_data(), len(classifier.preprocessing.mean)
    if channels != setup.num_channels and setup.num_channels != 1:
        raise DataError(f"{_KEY}: {place} takes images of {channels} channels, and the data has {setup.num_channels}")
    if data.is_multi_label != classifier.is_multi_label:
        several, one = "several labels an image", "one class an image"
        theirs, ours = (several, one) if classifier.is_multi_label else (one, several)
        raise DataError(f"{_KEY}: {place} is for {theirs}, and the data has {ours}")
    prepare = setup.data_prepared_as(classifier.preprocessing)
    prepare.close()
    rows, note = _rows_of(classifier, place, data.class_names)
    notes = [] if note is None else [note]
    if channels != setup.num_channels:
        notes.append(f"{place} takes images of {channels} channels: the grey ones of the data are repeated")
    return rows, notes


def _rows_of(classifier: Classifier, place: str, ours: Sequence[str]) -> tuple[tuple[int, ...], str | None]:
    told, why_none = classifier.names.matching(ours)
    number = classifier.num_classes
    if told is None:
        if number != len(ours):
            raise ArchError(f"{_KEY}: {place} has {number} classes, the data has {len(ours)}; {why_none}")
        return classifier.names.rows_without_names(ours, why_none, is_published=classifier.is_published)
    rows = match_classes(ours, told.names)
    known = tuple(row for row in rows if row is not None)
    if len(known) < len(rows):
        odd = ours[rows.index(None)]
        raise ArchError(
            f"{_KEY}: {place} does not know {len(rows) - len(known)} of the {len(rows)} classes of the data: {odd!r} "
            f"is none of its {number}, such as {told.names[0]!r}, by {told.place}"
        )
    if len(rows) < number:
        return known, f"its answers count for the {len(rows)} classes of the data, of the {number} that it knows"
    if known != tuple(range(number)):
        return known, f"its classes are put into the data's order, by their names: it has {listed(told.names)}"
    return known, None


def _digest_of(classifier: Classifier, rows: Sequence[int]) -> str:
    digest = hashlib.sha256(repr((classifier.preprocessing, tuple(rows))).encode())
    for name, tensor in classifier.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _name_of_answers(sha256: str, setup: TrainingSetup) -> str:
    """Name of answers, which differs between teachers and between training images.

    The training images follow from the data and the space file.
    """
    assert setup.identity is not None, "the data were looked at"
    identity = {name: value for name, value in setup.identity.to_json().items() if name != "notes"}
    return hashlib.sha256(json.dumps([sha256, identity], sort_keys=True).encode()).hexdigest()[:16]


def share_answers(run: RunFolder, other: RunFolder, name: str) -> None:
    """Copies a teacher's answers from `run` to `other`. Raises RunFolderError if `run` no longer has them."""
    if not run.store.exists(run.answers_path(name)):
        raise RunFolderError(
            f"{run.answers_path(name)}: is missing; the teacher answers again where the search goes on"
        )
    if not other.store.exists(other.answers_path(name)):
        run.store.fetch(run.answers_path(name))
        other.answers_path(name).parent.mkdir(parents=True, exist_ok=True)
        other.store.write(other.answers_path(name), lambda file: file.write(run.answers_path(name).read_bytes()))
