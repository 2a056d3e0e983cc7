"""Files of a run about its supernet."""

import json
import time
from pathlib import Path

from cvt_nas.results.candidate import Candidate
from cvt_nas.results.narrowing import Narrowing
from cvt_nas.results.quality import SupernetQuality
from cvt_nas.run.lock import is_held_here
from cvt_nas.run.records import Record
from cvt_nas.run.store import Store

_SECONDS_BETWEEN_LOOKS = 5.0


class SupernetFolder:
    """The folder `supernet/` of a run. `RunFolder` lists its files."""

    def __init__(self, path: Path, store: Store) -> None:
        self.path, self._store = path, store
        self.checkpoint_path, self.weights_path = path / "checkpoint.pt", path / "weights.safetensors"
        self.quality_path, self._narrowing_path = path / "quality.json", path / "narrowing.json"
        self._stop_path = path / "stop"
        self._inherited_path = path / "inherited.jsonl"
        self._inherited = Record(self._inherited_path, store, Candidate.from_json)
        self._looked = 0.0

    def phase_weights_path(self, last_epoch: int) -> Path:
        """Path of the weights after a phase of the training, except the last one."""
        return self.path / f"epoch-{last_epoch}.safetensors"

    @property
    def is_trained(self) -> bool:
        """Whether the training ended, on any machine."""
        return self._store.exists(self.weights_path)

    @property
    def has_begun(self) -> bool:
        """Whether the supernet has weights to resume from."""
        return self.is_trained or self._store.exists(self.checkpoint_path)

    def ask_to_stop(self) -> None:
        """Asks the workers that train the supernet, on any node, to write a checkpoint and end."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._store.write(self._stop_path, "")

    def take_back_stop(self) -> None:
        self._store.delete(self._stop_path)

    def is_stopped(self) -> bool:
        """Whether the training is asked to end. A URL is looked up every few seconds."""
        now = time.monotonic()
        if self._store.url_of(self.path) is None or now - self._looked < _SECONDS_BETWEEN_LOOKS:
            return self._stop_path.exists()
        self._looked = now
        return self._store.exists(self._stop_path)

    def write_narrowing(self, narrowing: Narrowing) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._store.write(self._narrowing_path, narrowing.to_json())

    def narrowing(self) -> Narrowing | None:
        """Options dropped from the space so far; None if none were. Raises RunFolderError if the file is damaged."""
        text = self._newest(path := self._narrowing_path)
        return None if text is None else Narrowing.from_json(text, str(path))

    def append_inherited(self, measured: Candidate) -> None:
        """Records the inherited accuracy of an architecture that judges the supernet."""
        self._inherited.append(measured.to_json())

    def inherited(self) -> tuple[Candidate, ...]:
        """All records of `append_inherited`, from any machine."""
        self._fetch(self._inherited_path)
        return tuple(self._inherited.read())

    def write_quality(self, quality: SupernetQuality) -> None:
        self._store.write(self.quality_path, json.dumps(quality.to_json(), indent=2) + "\n")

    def quality(self) -> SupernetQuality | None:
        """How well the supernet ranks; None if it was not judged. Raises RunFolderError if the file is damaged."""
        text = self._newest(path := self.quality_path)
        return None if text is None else SupernetQuality.from_json(text, str(path))

    def _newest(self, path: Path) -> str | None:
        """Text of a file that any machine may have written; None if there is no such file."""
        self._fetch(path)
        return path.read_text(encoding="utf-8") if path.exists() else None

    def _fetch(self, path: Path) -> None:
        """Fetches a file, unless another process of this machine works on the run; see `lock.refresh`."""
        run = self.path.parent
        if not is_held_here(run) and not is_held_here(run / "standalone"):
            self._store.fetch(path)
