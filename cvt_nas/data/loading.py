"""Processes that read batches of bytes from files. They read a few batches ahead, also across epochs."""

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

_AHEAD = 2  # batches that each process reads ahead
_SHARED = Path("/dev/shm")
Transform = Callable[[Picture], tuple[Tensor, ...]]
_Request = tuple[str, np.ndarray, tuple[int, ...] | None]  # name of a source, rows, seeds
_Read = tuple[Tensor, Sequence[tuple[Tensor, ...]]] | DataError  # labels, and the transformed images
_Collated = tuple[Tensor, tuple[Tensor, ...]] | tuple[np.ndarray, tuple[np.ndarray, ...]] | DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Source of the images of a batch.

    Args:
        images: Names and labels of the images.
        transform: Converts a decoded image to bytes `(height, width, channels)`, and maybe further tensors.
        opener: Opens the images.
    """

    images: Images
    transform: Transform
    opener: Opener = field(default_factory=Files)


@dataclass(frozen=True, kw_only=True, slots=True)
class Portion:
    """The batches of an epoch, or of an evaluation.

    Args:
        key: Identifies the portion.
        source: Name of its `Source`.
        batches: Rows of the images of each batch.
        seeds: Seeds of random draws for an image, together with its row. So all processes draw the same. None if
            nothing is drawn.
    """

    key: Hashable
    source: str
    batches: Sequence[np.ndarray]
    seeds: tuple[int, ...] | None = None


def num_on_their_way(num_workers: int) -> int:
    """Number of batches that processes have read or are reading, plus one that is in use."""
    return num_workers * _AHEAD + 1


def free_shared_memory() -> float:
    """Free bytes of shared memory. Containers have 64 MiB by default. Infinite if the system has no `/dev/shm`."""
    return shutil.disk_usage(_SHARED).free if _SHARED.is_dir() else math.inf


class Stream:
    """Batches of several portions in order, read by processes that live as long as the stream.

    Processes start on the next portion as soon as they are idle. An unreadable image raises a `DataError` when its
    batch is due.

    Args:
        first, then: The portions. Those of `then` are used as batches are asked for.
        num_workers: Number of processes. With 0, this process reads, and nothing is read ahead.
        shares_memory: Whether processes hand over batches in shared memory. Pipes are the alternative; they cost the
            receiving process one more copy.
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

        # without a batch size, torch passes single items; its types say lists
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
            generator=torch.Generator(),  # the default would draw from the global random state
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
        """Key of the portion whose batches are due next; None if there is none."""
        return self._asked[0].key if self._asked else None

    def portion(self) -> Iterator[tuple[np.ndarray, Tensor, tuple[Tensor, ...]]]:
        """Yields rows, labels and transformed images of each batch of the portion that is due."""
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
        return tensor.pin_memory() if self._pins else tensor  # torch's loader pins only tensors

    def close(self) -> None:
        """Ends the processes."""
        self._batches = None
        self._asked.clear()


class Reader(torch.utils.data.Dataset):
    """Reads the labels and images of rows, in a process of a loader.

    An unreadable image gives a `DataError` as a value. If a worker raised it, its message would contain the worker's
    traceback.

    Args:
        read: Decodes what an opener returns.
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
                return DataError(str(error))  # without its cause, which may not be picklable
            found.append(source.transform(image))
        return torch.from_numpy(source.images.labels[rows]), found


def collated(read: _Read) -> tuple[Tensor, tuple[Tensor, ...]] | DataError:
    """Makes a batch with torch's own function, which writes into shared memory in a loader's process."""
    from torch.utils.data import default_collate

    if isinstance(read, DataError):
        return read
    labels, found = read
    return labels, tuple(default_collate(list(parts)) for parts in zip(*found, strict=True))


def _collated_as_arrays(read: _Read) -> tuple[np.ndarray, tuple[np.ndarray, ...]] | DataError:
    """Makes a batch of arrays, which travel through pipes."""
    if isinstance(read, DataError):
        return read
    labels, found = read
    return labels.numpy(), tuple(torch.stack(parts).numpy() for parts in zip(*found, strict=True))
