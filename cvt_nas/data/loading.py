"""Batches of bytes that processes read from files, a few of them ahead, through the end of an epoch."""

import itertools
import math
import shutil
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvt_nas.data.images import seed_all
from cvt_nas.data.records import Files, Images, Opener
from cvt_nas.data.sources import Picture
from cvt_nas.data.sources import Source as Original
from cvt_nas.errors import DataError

_AHEAD = 2  # batches of each process
_SHARED = Path("/dev/shm")
Transform = Callable[[Picture], tuple[Tensor, ...]]
_Request = tuple[str, np.ndarray, tuple[int, ...] | None]  # name of a source, rows, seeds
_Read = tuple[Tensor, Sequence[tuple[Tensor, ...]]] | DataError  # labels, and what was made of each image
_Collated = tuple[Tensor, tuple[Tensor, ...]] | tuple[np.ndarray, tuple[np.ndarray, ...]] | DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where the images of a batch come from.

    Args:
        images: Their names and labels.
        transform: From a decoded image to bytes, `(height, width, channels)`, and whatever else there is of it.
    """

    images: Images
    transform: Transform
    opener: Opener = field(default_factory=Files)


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


def num_on_their_way(num_workers: int) -> int:
    """Batches that processes have ready or in hand, and one that is in use."""
    return num_workers * _AHEAD + 1


def free_shared_memory() -> float:
    """Bytes; in a container, 64 MiB by default. Infinite where the system has no such folder."""
    return shutil.disk_usage(_SHARED).free if _SHARED.is_dir() else math.inf


class Stream:
    """The batches of several portions, one after the other, read by processes that live as long as it does.

    Those of the next portion are asked for as soon as a process has nothing else to do. An image that cannot be read is
    a `DataError`, raised when its batch is due.

    Args:
        first, then: The portions; the latter are taken as far as batches are asked for.
        num_workers: Processes; 0 where this one reads, and then nothing is ahead.
        shares_memory: Whether they hand over batches in shared memory; else through pipes, which takes the process that
            reads those a copy more.
    """

    def __init__(
        self,
        reader: "Reader",
        first: Portion,
        then: Iterable[Portion] = (),
        *,
        num_workers: int,
        pin_memory: bool,
        shares_memory: bool = True,
    ) -> None:
        from torch.utils.data import DataLoader

        # of no batch size, torch passes each item by itself; its types say a list
        collate: Any = collated if shares_memory or not num_workers else _collated_as_arrays
        self._asked, self._pins = deque([first]), pin_memory and not shares_memory
        batches = DataLoader(
            reader,
            sampler=self._requests(first, then if num_workers else ()),
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=_AHEAD if num_workers else None,
            pin_memory=pin_memory,
            collate_fn=collate,
            generator=torch.Generator(),  # of its own, so that the global one is left as it is
        )
        self._batches: Iterator[_Collated] | None = iter(batches)

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
            labels, made = batch
            yield rows, self._as_tensor(labels), tuple(map(self._as_tensor, made))
        self._asked.popleft()

    def _as_tensor(self, values: Tensor | np.ndarray) -> Tensor:
        if isinstance(values, Tensor):
            return values
        tensor = torch.from_numpy(values)
        return tensor.pin_memory() if self._pins else tensor  # torch's loader pins tensors alone

    def close(self) -> None:
        """Ends the processes."""
        self._batches = None
        self._asked.clear()


class Reader(torch.utils.data.Dataset):
    """What a process does: from rows to labels and images.

    An image that cannot be read is the error that says so: raised in a worker, it would arrive with the worker's
    traceback in its message.

    Args:
        read: The decoded image of what an opener gives.
    """

    def __init__(self, sources: Mapping[str, Source], read: Callable[[Original], Picture]) -> None:
        self._sources, self._read = sources, read

    def __getitem__(self, request: _Request) -> _Read:
        name, rows, seeds = request
        source, found = self._sources[name], []
        for row in rows.tolist():
            if seeds is not None:
                seed_all(*seeds, row, on_devices=False)
            try:
                image = self._read(source.opener.source(source.images, row))
            except DataError as error:
                return DataError(str(error))  # without what caused it, which need not be pickled
            found.append(source.transform(image))
        return torch.from_numpy(source.images.labels[rows]), found


def collated(read: _Read) -> tuple[Tensor, tuple[Tensor, ...]] | DataError:
    """A batch, by torch's own function, which in a loader's process writes it into shared memory."""
    from torch.utils.data import default_collate

    if isinstance(read, DataError):
        return read
    labels, found = read
    return labels, tuple(default_collate(list(parts)) for parts in zip(*found, strict=True))


def _collated_as_arrays(read: _Read) -> tuple[np.ndarray, tuple[np.ndarray, ...]] | DataError:
    """The same in what travels through a pipe."""
    if isinstance(read, DataError):
        return read
    labels, found = read
    return labels.numpy(), tuple(torch.stack(parts).numpy() for parts in zip(*found, strict=True))
