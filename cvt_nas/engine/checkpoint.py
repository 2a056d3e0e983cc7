"""The checkpoint that a training resumes from, and the previous one."""

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
        path: Path of the file. Its folder is created if it is missing; the parent of the folder must exist.
        store: Store of the run.
    """

    path: Path
    store: Store = field(default_factory=Store)

    @property
    def before(self) -> Path:
        """Path of the previous checkpoint."""
        return self.path.with_name(f"{self.path.stem}.before{self.path.suffix}")

    @property
    def is_here(self) -> bool:
        """Whether this machine has a checkpoint."""
        return self.path.exists() or self.before.exists()

    def write(self, state: State, *, keep: bool = True) -> None:
        """Writes a new checkpoint, whole or not at all.

        Args:
            keep: Whether to keep the old one as the previous checkpoint. It is also mirrored if the new one was
                written within an epoch, that is, if `state` has a `step` other than 0.
        """
        patiently(self.path.parent.parent.stat)  # waits for a disk that is not mounted
        self.path.parent.mkdir(exist_ok=True)

        def write(file: BinaryIO) -> None:
            torch.save(state, file)
            if keep and self.path.exists():
                self.path.replace(self.before)

        self.store.write(self.path, write)
        if keep and state.get("step") and self.before.exists():  # another machine may have to go back to it
            self.store.push(self.before)

    def read(self, device: torch.device, *, is_wanted: Callable[[State], bool] = lambda _: True) -> State | None:
        """Reads the last checkpoint, or else the previous one. None if neither is whole and wanted.

        Only the first rank reads, and deletes damaged files. The others get the same content, so all ranks start
        alike. Tensors are in the CPU's memory, since the device already holds the training.
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
            found = None  # otherwise, it would be in memory twice
        content = from_first_rank(content, device)
        return None if content is None else _state_of(content)

    def drop(self) -> None:
        """Deletes both checkpoints if they exist."""
        self.store.delete(self.path)
        self.store.delete(self.before)


def _read_whole(path: Path) -> tuple[bytes, State] | None:
    """Returns the content of a file and its state; None if it is missing or damaged.

    The file is read once, since another process may replace or delete it.
    """
    try:
        with path.open("rb") as file:
            content, number = file.read(), os.fstat(file.fileno()).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch.load checks no checksums
            damaged = archive.testzip()
        if damaged is None:
            return content, _state_of(content)
    except (zipfile.BadZipFile, EOFError, RuntimeError, pickle.UnpicklingError):
        pass
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == number:  # unless another file has replaced it
            path.unlink()
    return None


def _state_of(content: bytes) -> State:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
