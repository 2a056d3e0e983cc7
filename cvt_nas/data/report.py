"""The report of `cvt-nas check`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cvt_nas.config import DataConfig, is_streamed
from cvt_nas.data import SPLITS, ImageData, Split, find_data, load_data, shape_of
from cvt_nas.data.arrays import ArrayData
from cvt_nas.data.checking import ImageCheck, check_images
from cvt_nas.data.folders import records_of
from cvt_nas.data.kinds import find_records
from cvt_nas.data.layout import find_layout
from cvt_nas.data.listing import list_images, problems_of
from cvt_nas.data.records import Records, counts_of
from cvt_nas.data.sources import mode_of
from cvt_nas.data.streams import StreamedData
from cvt_nas.errors import DataError
from cvt_nas.escaping import told
from cvt_nas.results import DataIdentity

_NUM_SHOWN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class SetReport:
    """Result of the check of a data set.

    Args:
        class_counts: Number of training images of each class or label; of other images if there are none.
        split_counts: Number of images of each class or label, in each split of a training.
        is_multi_label: Whether an image can have several labels.
        identity: None if the images cannot be split for a training.
        images: None for a set in memory, which is read as a whole.
        problems: Reasons, besides unreadable images, why the data set cannot be used as it is.
    """

    data: str
    dataset: str
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    split_counts: Mapping[Split, tuple[int, ...]]
    is_multi_label: bool
    identity: DataIdentity | None
    images: ImageCheck | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def is_usable(self) -> bool:
        return not self.problems and not (self.images and self.images.damaged)

    def to_json(self) -> dict[str, object]:
        found = self.images
        return {
            "data": self.data,
            "dataset": self.dataset,
            "usable": self.is_usable,
            "classes": list(self.class_names),
            "counts": {split: list(counts) for split, counts in self.split_counts.items()},
            "multi_label": self.is_multi_label,
            "identity": None if self.identity is None else self.identity.to_json(),
            "images": None if found is None else found.num_images,
            "damaged": {} if found is None else dict(found.damaged),
            "problems": list(self.problems),
            "notes": list(self.notes),
            "formats": {} if found is None else dict(found.formats.most_common()),
            "modes": {} if found is None else dict(found.modes.most_common()),
            "least": None if found is None else found.least,
            "most": None if found is None else found.most,
        }

    def lines(self) -> list[str]:
        """Lines for people: findings first, then a summary."""
        found, lines = self.images, [f"problem: {problem}" for problem in self.problems]
        if found is not None:
            lines += [f"cannot be read: {path}: {why}" for path, why in found.damaged.items()]
        lines += [f"note: {note}" for note in self.notes]
        if self.identity is not None:
            lines.append(f"{self.data}: {self.dataset}, {self.identity.describe()}")
        if self.class_counts:
            named = zip(self.class_names[:_NUM_SHOWN], self.class_counts, strict=False)
            more = len(self.class_names) - _NUM_SHOWN
            lines.append(
                ("labels: " if self.is_multi_label else "classes: ")
                + ", ".join(f"{name} {count:,}" for name, count in named)
                + (f" and {more:,} more" if more > 0 else "")
            )
        if found is not None and found.least is not None and found.most is not None:
            least, most = ("{} x {}".format(*size) for size in (found.least, found.most))
            kinds = ", ".join(
                f"{n:,} {kind}" for each in (found.formats, found.modes) for kind, n in each.most_common()
            )
            lines.append(f"{found.num_images:,} images, {least} to {most} pixels: {kinds}")
        if found is not None and found.damaged:
            lines.append(f"{len(found.damaged):,} of {found.num_images:,} images cannot be read")
        lines.append("usable as it is" if self.is_usable else "not usable as it is")
        return lines


def check_set(data: str | Path, *, decode: bool = False, on_note: Callable[[str], None] | None = None) -> SetReport:
    """Checks a data set as a training with default settings would read it.

    Args:
        decode: Whether to decode each image of a folder.
        on_note: Called with progress notes.

    Raises:
        DataError: It is no data set, or is incomplete.
    """
    dataset, root = find_data(data)
    config, problems, notes, test_only = DataConfig(dataset=dataset), list[str](), tuple[str, ...](), False
    records: Records | None = None
    if dataset == "imagefolder":
        assert root is not None, "a folder of images has a place"
        layout = find_layout(root)
        records = records_of(layout, {role: list_images(layout, role) for role in layout.places})
        problems, test_only = problems_of(layout, records.files), "train" not in layout.places
    elif is_streamed(dataset):
        records = find_records(config, root)
    channels: int | None = None
    found: ImageData | None = None
    try:
        if records is not None and dataset != "imagefolder":
            found = StreamedData(config, records, 32, 3)
        else:
            channels, num_classes = shape_of(dataset, root, test_only=test_only)
            found = load_data(
                config, root=root, image_size=32, num_channels=channels or 3, num_classes=num_classes,
                test_only=test_only,
            )  # fmt: skip
    except DataError as error:
        if records is None:  # nothing else is known about a set in memory
            raise
        problems = problems or [str(error)]
    images: ImageCheck | None = None
    if records is None:
        notes = found.notes if isinstance(found, ArrayData) else ()
    else:
        measured = found.measured() if isinstance(found, StreamedData) else ()
        images = check_images(records, mode_of(channels or 3), decode_all=decode, measured=measured, on_note=on_note)
        notes = (*(found.notes if isinstance(found, StreamedData) else records.notes), *images.notes)
        if "train" in records.files and not decode:
            notes = (*notes, "training images: only headers and ends were read; --decode reads whole files")
    class_names = found.class_names if found is not None else () if records is None else records.class_names
    identity = None if found is None else found.identity()
    counts: np.ndarray | None = None
    if isinstance(found, ArrayData):
        counts = found.counts
    elif records is not None:
        counts = next(iter(records.files.values())).counts
    return SetReport(
        data=told(str(data)),
        dataset=dataset,
        class_names=class_names,
        class_counts=() if counts is None else tuple(counts.tolist()),
        split_counts={} if found is None or identity is None else _split_counts(found, identity),
        is_multi_label=found is not None and found.is_multi_label,
        identity=identity,
        images=images,
        problems=tuple(problems),
        notes=notes,
    )


def _split_counts(data: ImageData, identity: DataIdentity) -> dict[Split, tuple[int, ...]]:
    splits: list[Split] = [split for split in SPLITS if identity.splits.get(split) is not None]
    return {split: tuple(counts_of(data.labels(split), len(data.class_names)).tolist()) for split in splits}
