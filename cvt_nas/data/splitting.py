"""Splits of training images, stratified by class, or by label if images have several labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cvt_nas.config import DataConfig
from cvt_nas.data.images import Split
from cvt_nas.data.records import Role, counts_of, guide_of, tested_of
from cvt_nas.errors import DataError

NO_EFFECT = "data.search_fraction has no effect"
GUIDED = f"its validation images guide the search; {NO_EFFECT}"


def rows_of_splits(
    labels: Mapping[Role, np.ndarray], config: DataConfig, class_names: Sequence[str]
) -> tuple[dict[Split, Role], dict[Split, np.ndarray]]:
    """Returns the role whose images each split takes, and the rows of these images.

    If there are validation and test images, the validation images guide the search. Otherwise, images are held out of
    `train` for it. If there are neither, test images are held out as well.

    Args:
        labels: Labels of the images of each role; see `ImageData.labels`.

    Raises:
        DataError: See `hold_out`.
    """
    tested, guide = tested_of(labels), guide_of(labels)
    source: dict[Split, Role] = {"train": "train", "search": guide or "train", "test": tested or "train"}
    left, own = np.arange(len(labels["train"])), labels["train"]
    if tested is None:
        held_out = hold_out(own, config.test_fraction, config.split_seed, class_names, setting="test_fraction")
        left, test = (np.sort(each) for each in held_out)
    else:
        test = np.arange(len(labels[tested]))
    train, search = split_off_search(own[left], config, class_names, guided=guide is not None)
    search = left[search] if guide is None else np.arange(len(labels[guide]))
    return source, {"train": left[train], "search": search, "test": test}


def split_off_search(
    labels: np.ndarray, config: DataConfig, class_names: Sequence[str] | None = None, *, guided: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of train and search, stratified, with at least one image of each class.

    Args:
        labels: See `ImageData.labels`.
        class_names: Names for messages about classes that are too small.
        guided: Whether other images guide the search, so that none are held out for it.
    """
    train, search = np.arange(len(labels)), np.arange(0)
    if not guided:
        train, search = hold_out(
            labels, config.search_fraction, config.split_seed, class_names, setting="search_fraction"
        )
    if config.train_fraction < 1:
        train = _part_of(train, labels, config)
    return np.sort(train), np.sort(search)


def hold_out(
    labels: np.ndarray, fraction: float, seed: int, class_names: Sequence[str] | None = None, *, setting: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of kept and of held-out images, stratified, with at least one image of each class in both.

    The split is scikit-learn's if that holds out an image of each class. Otherwise, each class is split on its own:
    its share is rounded, and at least 1. `_by_labels` splits images with several labels.

    Args:
        labels: See `ImageData.labels`.
        setting: Setting of section `data` that gives `fraction`, for messages.

    Returns:
        Both in scikit-learn's order, since later draws depend on the order.

    Raises:
        DataError: A class has a single image.
    """
    from sklearn.model_selection import train_test_split

    counts = counts_of(labels, 0)
    if len(small := np.flatnonzero(counts == 1)):
        names = ", ".join(str(label if class_names is None else class_names[label]) for label in small[:5])
        more = f" and {len(small) - 5} more" if len(small) > 5 else ""
        raise DataError(
            f"data.{setting}: an image of each class is held out, and at least one must stay for training; a single "
            f"image is left of {names}{more}; add images, or remove the class"
        )
    if labels.ndim > 1:
        return _by_labels(labels, fraction, seed)
    every = np.arange(len(labels))
    try:
        kept, held = map(np.asarray, train_test_split(every, test_size=fraction, random_state=seed, stratify=labels))
    except ValueError:
        kept = held = every[:0]
    present = np.flatnonzero(counts)
    if all(np.array_equal(np.unique(labels[rows]), present) for rows in (kept, held)):
        return kept, held
    random = np.random.default_rng(seed)
    held = np.concatenate([
        random.permutation(np.flatnonzero(labels == label))[: min(max(round(fraction * n), 1), n - 1)]
        for label, n in zip(present, counts[present], strict=True)
    ])  # fmt: skip
    return np.setdiff1d(every, held), held


def _part_of(train: np.ndarray, labels: np.ndarray, config: DataConfig) -> np.ndarray:
    """Draws a share of the training images, stratified, with at least one image of each class."""
    from sklearn.model_selection import train_test_split

    fraction, seed, own = config.train_fraction, config.split_seed, labels[train]
    if labels.ndim > 1:
        return train[_by_labels(own, fraction, seed, keeps_one=False)[1]]
    try:
        part = np.asarray(train_test_split(train, train_size=fraction, random_state=seed, stratify=own)[0])
    except ValueError:
        part = train[:0]
    if np.array_equal(np.unique(labels[part]), np.unique(own)):
        return part
    random = np.random.default_rng(seed)
    return np.concatenate([
        random.permutation(rows)[: max(round(fraction * len(rows)), 1)]
        for label in np.unique(own)
        for rows in [train[own == label]]
    ])  # fmt: skip


def _by_labels(
    labels: UInt8[np.ndarray, "images labels"], fraction: float, seed: int, *, keeps_one: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of kept and of taken images. About `fraction` of the images of each label are taken.

    If a label is missing on one side, an image with it is moved there, unless it is the only image of another label on
    its side.

    Args:
        keeps_one: Whether each label must be among the kept images.

    Source: Sechidis, Tsoumakas and Vlahavas 2011, iterative stratification.
    """
    from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

    share: Any = fraction  # the library's default is text, so type checkers expect text
    splitter = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=share, random_state=seed)
    try:
        _, taken = next(splitter.split(labels, labels))
    except ValueError:  # too few images
        taken = np.arange(0)
    has, is_taken = labels > 0, np.isin(np.arange(len(labels)), taken)
    for to in (True, False) if keeps_one else (True,):
        for label in np.flatnonzero(has.any(axis=0)):
            if np.any(has[:, label] & (is_taken == to)):
                continue
            last = keeps_one & (has[is_taken != to].sum(axis=0) == 1)
            if len(movable := np.flatnonzero(has[:, label] & ~has[:, last].any(axis=1))):
                is_taken[movable[0]] = to
    return np.flatnonzero(~is_taken), np.flatnonzero(is_taken)
