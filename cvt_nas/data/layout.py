"""Layout of a folder of images: which folder is which split, and the class names."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cvt_nas.data.records import SPELLINGS, Role, role_for_test
from cvt_nas.data.tree import (
    class_names_in,
    entries_of,
    few,
    folders_in,
    in_byte_order,
    is_hidden,
    is_image,
    itself_and_above,
    leads_nowhere,
    mark_of,
)
from cvt_nas.errors import DataError
from cvt_nas.escaping import told

_WORDS = "|".join(spelling for spellings in SPELLINGS.values() for spelling in spellings)
_LIKE_SPLIT = re.compile(rf"^({_WORDS})(set|val|images|imgs|data)?(?![a-z])|(?<![a-z])({_WORDS})(set)?$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The folders of a data set.

    Args:
        root: Folder of the data set.
        places: Folder of each split that has class folders. If the root itself holds class folders, it is `train`.
        class_names: Sorted class names of the training images, or of the other images if there are none.
        notes: What is left out, one line each.
    """

    root: Path
    places: dict[Role, Path]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def is_flat(self) -> bool:
        """Whether class folders lie in the root itself, so that there are no named splits."""
        return self.places.get("train") == self.root

    def for_test(self) -> "Layout":
        """Returns the same layout with only the test images; see `role_for_test`. Raises DataError if it has none."""
        role = role_for_test(self.places, is_marked=not self.is_flat)
        if role is None:
            own = self.places["train"].name
            raise DataError(
                f"--data {self.root}: holds {own}/ only, and no test images in val/ or test/; to measure on images "
                f"that may have been trained on, name {self.places['train']}"
            )
        place = self.places[role]
        return replace(self, places={role: place}, class_names=class_names_in(place))

    def trained_classes(self) -> tuple[str, ...] | None:
        """Class names of the training images, which lie in the root, or beside it if it is the folder of a split.

        None if there are no training images.
        """
        if not self.is_flat:
            place = self.places.get("train")
        else:
            root = self.root.resolve()
            is_tested = any(root.name.lower() in SPELLINGS[role] for role in ("validation", "test"))
            beside = os.listdir(root.parent) if is_tested and os.access(root.parent, os.R_OK) else []
            named = (root.parent / name for name in beside if name.lower() in SPELLINGS["train"])
            place = next((folder for folder in named if folder.is_dir()), None)
        return None if place is None else class_names_in(place) or None

    def check_trainable(self) -> None:
        """Raises DataError if there are no training images."""
        if "train" not in self.places:
            raise DataError(f"{self.root} must hold train/ and val/, one folder a class; it has no train/")


def find_layout(root: Path) -> Layout:
    """Tells what the folders below `root` are by their names. It does not look for files.

    Raises:
        DataError: There are no class folders, or two folders could be the same split.
    """
    if not root.is_dir():
        raise DataError(f"--data {root}: no such folder")
    places: dict[Role, Path] = {}
    notes, folders = [], folders_in(root)
    for entry in entries_of(root):
        if _is_like_split(entry.name) and leads_nowhere(entry):
            raise DataError(f"--data {root}: {entry.name} is a link that leads nowhere")
    for role, spellings in SPELLINGS.items():
        named = [folder for folder in folders if folder.lower() in spellings]
        full = [folder for folder in named if folders_in(root / folder)]
        if len(full) > 1:
            named_both = " and ".join(f"{folder}/" for folder in full)
            raise DataError(f"--data {root}: {named_both} could each hold the {role} images; keep one of them")
        if full:
            places[role] = root / full[0]
            if mark_of(places[role]) in itself_and_above(root):
                raise DataError(f"--data {root}: {full[0]} is a link that leads up to {places[role].resolve()}")
        elif named and role == "train":
            raise DataError(f"--data {root}: {root / named[0]} must hold one folder a class")
        else:
            notes += [f"{folder}/ has no class folders and is ignored" for folder in named]
    _drop_unlabelled(places, notes)
    if not places:
        if notes:
            raise DataError(
                f"--data {root}: must hold one folder a class, in train/ and val/; {'; '.join(notes)}: the name is "
                f"reserved for a split; if it is a class, put all class folders into train/"
            )
        if not folders:
            raise DataError(f"--data {root}: must hold train/ and val/, one folder a class, or one folder a class")
        _check_flat(root, folders)
        places = {"train": root}
    elif beside := [folder for folder in folders if not any(folder.lower() in named for named in SPELLINGS.values())]:
        notes.append(f"ignored beside {_slashed(places.values())}: {few([f'{told(folder)}/' for folder in beside])}")
    for place in places.values():
        if dropped := set(folders_in(place, all_of_them=True)) - set(folders_in(place)):
            named = few([f"{told(name)}/" for name in in_byte_order(dropped)])
            notes.append(f"{place}: {named} begins with @, like a network drive's own folders, and is no class")
    first = next(iter(places.values()))
    return Layout(root=root, places=places, class_names=class_names_in(first), notes=tuple(notes))


def _drop_unlabelled(places: dict[Role, Path], notes: list[str]) -> None:
    """Drops test images without labels: those in a single folder that is no class, as in Kaggle's data sets."""
    if "train" not in places or "test" not in places:
        return
    classes, found = folders_in(places["train"]), folders_in(places["test"])
    if len(found) == 1 and len(classes) > 1 and found[0] not in classes:
        notes.append(f"{places['test'].name}/ holds {found[0]}/ only, which is no class, and is ignored")
        del places["test"]


def _is_like_split(name: str) -> bool:
    return _LIKE_SPLIT.search(name.strip().lower()) is not None


def _check_flat(root: Path, folders: Sequence[str]) -> None:
    """Refuses folders that would be read as classes but are more likely splits, or folders that hold splits.

    Raises:
        DataError: There are such folders. The message says what to rename.
    """
    like = [folder for folder in folders if _is_like_split(folder)]
    if like and root.resolve().name.lower() not in _WORDS.split("|"):  # a folder of a split holds only classes
        raise DataError(
            f"--data {root}: {few([told(folder) for folder in like])} would be read as a class, and seems to be a "
            f"split: rename splits to train/ and val/; if it is a class, put all class folders into train/"
        )
    for folder in folders:
        if splits := [inner for inner in folders_in(root / folder) if _is_like_split(inner)]:
            also = "" if len(folders) == 1 else "; or, if it is a class, put the classes below train/ and val/"
            raise DataError(
                f"--data {root}: {folder}/ would be read as a class, and holds {few([told(name) for name in splits])}"
                f": name {root / folder}{also}"
            )
    if len(folders) == 1:
        only = root / folders[0]
        inner = [entry for entry in entries_of(only) if not is_hidden(entry.name)]
        if sum(entry.is_dir() for entry in inner) and not any(is_image(entry.name) for entry in inner):
            raise DataError(f"--data {root}: {folders[0]}/ would be the only class, but holds folders: name {only}")


def _slashed(places: Iterable[Path]) -> str:
    return ", ".join(f"{place.name}/" for place in places)
