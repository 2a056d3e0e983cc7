"""Which data a run is of, so that results on other data are never taken for its own."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from cvt_nas.errors import RunFolderError
from cvt_nas.results.parsing import parse_json


@dataclass(frozen=True, kw_only=True, slots=True)
class DataIdentity:
    """What a manifest keeps of a data set, under `data`. The same set at another place has the same identity.

    Args:
        classes_sha256: Hash of the names of the classes.
        files_sha256: Hash of the names and sizes of the images of each split, before any are skipped. For a set in
            memory, hash of its labels and shapes.
        images: Number of images of each folder, before any are skipped. The keys are `train, validation, test`.
        splits: Number of images that are trained on, that guide the search, and that are tested on.
        held_out: Splits that this tool holds out of the training images.
        skipped: Images that cannot be read (`data.on_error: skip`), as paths below the data set.
        notes: Images that were left out of the set, and why. One line each.
    """

    num_classes: int
    classes_sha256: str
    files_sha256: str
    images: Mapping[str, int]
    splits: Mapping[str, int]
    held_out: Sequence[str] = ()
    skipped: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def fingerprint(self) -> str:
        told = [self.classes_sha256, self.files_sha256]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return hash((self.fingerprint, *self.skipped))

    def to_json(self) -> dict[str, object]:
        return {"fingerprint": self.fingerprint, **asdict(self)}

    @classmethod
    def of(cls, manifest: Mapping[str, object]) -> "DataIdentity | None":
        """The identity in a manifest, or None in one of an earlier version. Raises RunFolderError if it is damaged."""
        if (tree := manifest.get("data")) is None:
            return None
        return parse_json(_IDENTITY, json.dumps(tree), "manifest.json: data", strict=True)

    def difference(self, now: "DataIdentity") -> str | None:
        """How the set of `now` differs from this one, in a few words. None if it is the same."""
        if self.fingerprint == now.fingerprint:
            return None
        if self.num_classes != now.num_classes:
            return f"{self.num_classes:,} classes, now {now.num_classes:,}"
        if self.classes_sha256 != now.classes_sha256:
            return "the classes have other names"
        if set(self.images) != set(now.images):
            return f"images for {' and '.join(self.images)}, now for {' and '.join(now.images)}"
        changed = [
            f"{abs(more):,} {name} image{'s' if abs(more) > 1 else ''} {'more' if more > 0 else 'fewer'}"
            for name in self.images
            if (more := now.images[name] - self.images[name])
        ]
        return ", ".join(changed) or "as many images, but some files have another name or size"

    def check_same(self, now: "DataIdentity", place: str) -> None:
        """Raises RunFolderError if `now` is another data set than that of the run at `place`, which is this one."""
        if (difference := self.difference(now)) is not None:
            raise RunFolderError(
                f"{place}: was begun with other data: {difference}. Results would not compare: name the same data by "
                f"--data, or write elsewhere by --out"
            )

    def describe(self) -> str:
        """One line for people."""
        counts = ", ".join(f"{number:,} {name}" for name, number in self.splits.items())
        held = f"; {' and '.join(self.held_out)} held out of the training images" if self.held_out else ""
        num_skipped = len(self.skipped)
        skipped = f"; {num_skipped:,} damaged image{'s' if num_skipped > 1 else ''} skipped" if num_skipped else ""
        return f"{self.num_classes:,} class{'es' if self.num_classes != 1 else ''}; {counts} images{held}{skipped}"


_IDENTITY = TypeAdapter(DataIdentity)
