"""The file that a training goes on from, and the one before it."""

import contextlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from cvt_nas.engine.optimization import State, from_first_rank, rank_and_world_size
from cvt_nas.run import Store, patiently


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The checkpoint of one training.

    Args:
        path: Its folder is made if it is missing; the parent of that folder must exist.
        store: Of the run that it is part of.
    """

    path: Path
    store: Store = field(default_factory=Store)

    @property
    def before(self) -> Path:
        """Where the checkpoint goes that a new one takes the place of."""
        return self.path.with_name(f"{self.path.stem}.before{self.path.suffix}")

    @property
    def is_here(self) -> bool:
        """Whether this machine has one."""
        return self.path.exists() or self.before.exists()

    def write(self, state: State, *, keep: bool = True) -> None:
        """Writes a new one, at once or not at all.

        Args:
            keep: Whether the old one stays, as the checkpoint before. It is mirrored, too, if the new one was written
                within an epoch: if `state` has a `step` other than 0.
        """
        patiently(self.path.parent.parent.stat)  # where a disk is not mounted, nothing takes its place
        self.path.parent.mkdir(exist_ok=True)

        def write(file: BinaryIO) -> None:
            torch.save(state, file)
            if keep and self.path.exists():
                self.path.replace(self.before)

        self.store.write(self.path, write)
        if keep and state.get("step") and self.before.exists():  # to go back to, where another machine goes on
            self.store.push(self.before)

    def read(self, device: torch.device, *, is_wanted: Callable[[State], bool] = lambda _: True) -> State | None:
        """What `write` wrote last, or else before that; None where neither is there, whole and wanted.

        The first rank alone reads, and deletes what is damaged; the others get what it read, so that all begin alike.
        The tensors are in the CPU's memory, since a device holds the training that they are for already.
        """
        rank, world_size = rank_and_world_size()
        content: bytes | None = None
        if rank == 0:
            self.store.fetch(self.path)
            for path in (self.path, self.before):
                if path != self.path and not path.exists():
                    self.store.fetch(path)
                found = _read_whole(path)
                if found is not None and is_wanted(found[1]):
                    if world_size == 1:
                        return found[1]
                    content = found[0]
                    break
            found = None  # or it would be in memory twice
        content = from_first_rank(content, device)
        return None if content is None else _state_of(content)

    def drop(self) -> None:
        """Deletes it and the one before it, as far as they are there."""
        self.store.delete(self.path)
        self.store.delete(self.before)


def _read_whole(path: Path) -> tuple[bytes, State] | None:
    """The file's content, and the state that it is; None where it is missing or damaged.

    Read once, since another process may replace or delete it meanwhile.
    """
    try:
        with path.open("rb") as file:
            content, number = file.read(), os.fstat(file.fileno()).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch.load compares no checksum
            damaged = archive.testzip()
        if damaged is None:
            return content, _state_of(content)
    except (zipfile.BadZipFile, EOFError, RuntimeError, pickle.UnpicklingError):
        pass
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == number:  # not one that took its place
            path.unlink()
    return None


def _state_of(content: bytes) -> State:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
