"""Batches of bytes that processes read from files, a few of them ahead, through the end of an epoch."""

import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvt_nas.data.images import seed_all
from cvt_nas.data.layout import Images
from cvt_nas.errors import DataError

_Request = tuple[str, np.ndarray, tuple[int, ...] | None]  # name of a source, rows, seeds


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where the images of a batch come from.

    Args:
        images: The files of a folder, and their labels.
        transform: From a decoded image to bytes, `(height, width, channels)`, and whatever else there is of it.
    """

    images: Images
    transform: Callable[[Any], tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Portion:
    """The batches of an epoch, or of an evaluation.

    Args:
        key: By which it is told from others.
        source: Name of its `Source`.
        batches: Of each batch, the rows of its images.
        seeds: With the row, of what is drawn for an image, whichever process draws; None where nothing is.
    """

    key: Hashable
    source: str
    batches: Sequence[np.ndarray]
    seeds: tuple[int, ...] | None = None


class Stream:
    """The batches of several portions, one after the other, read by processes that live as long as it does.

    Those of the next portion are asked for as soon as a process has nothing else to do. An image that cannot be read is
    a `DataError`, raised when its batch is due.

    Args:
        read: The decoded image of a path.
        first, then: The portions; the latter are taken as far as batches are asked for.
        num_workers: Processes; 0 where this one reads, and then nothing is ahead.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        read: Callable[[str], Any],
        first: Portion,
        then: Iterable[Portion] = (),
        *,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        from torch.utils.data import DataLoader

        self._asked = deque([first])
        batches = DataLoader(
            _Reader(sources, read),
            sampler=self._requests(first, then if num_workers else ()),
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # of its own, so that the global one is left as it is
        )
        self._batches: Iterator[Any] | None = iter(batches)

    def _requests(self, first: Portion, then: Iterable[Portion]) -> Iterator[_Request]:
        for portion in itertools.chain([first], then):
            if portion is not first:
                self._asked.append(portion)
            for rows in portion.batches:
                yield portion.source, rows, portion.seeds

    @property
    def next_key(self) -> Hashable:
        """Of the portion whose batches are due next; None where none was asked for."""
        return self._asked[0].key if self._asked else None

    def portion(self) -> Iterator[tuple[np.ndarray, Tensor, tuple[Tensor, ...]]]:
        """Of each batch of the portion that is due, its rows, labels, and what the transform made of its images."""
        for rows in self._asked[0].batches:
            assert self._batches is not None, "it was closed"
            batch = next(self._batches)
            if isinstance(batch, DataError):
                raise batch
            yield rows, *batch
        self._asked.popleft()

    def close(self) -> None:
        """Ends the processes."""
        self._batches = None
        self._asked.clear()


class _Reader(torch.utils.data.Dataset):
    """What a process does. An image that cannot be read is the error that says so: raised in a worker, it would arrive
    with the worker's traceback in its message."""

    def __init__(self, sources: Mapping[str, Source], read: Callable[[str], Any]) -> None:
        self._sources, self._read = sources, read

    def __getitem__(self, request: _Request) -> tuple[Tensor, tuple[Tensor, ...]] | DataError:
        from torch.utils.data import default_collate

        name, rows, seeds = request
        source, found = self._sources[name], []
        for row in rows.tolist():
            if seeds is not None:
                seed_all(*seeds, row, on_devices=False)
            try:
                image = self._read(f"{source.images.root}/{source.images.names[row]}")
            except DataError as error:
                return DataError(str(error))  # without what caused it, which need not be pickled
            found.append(source.transform(image))
        # torch's own, since it puts the images together where the main process can read them
        return torch.from_numpy(source.images.labels[rows]), tuple(
            map(default_collate, map(list, zip(*found, strict=True)))
        )


def _as_it_is(batch: Any) -> Any:
    return batch
