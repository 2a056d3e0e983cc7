"""Files of a run with requests to its search, and answers."""

import datetime
import secrets
import threading
import time
from pathlib import Path

from cvt_nas.arch import ArchConfig
from cvt_nas.results.parsing import json_text, load_finite
from cvt_nas.results.request import Answer, Ask, Request
from cvt_nas.run.records import Record
from cvt_nas.run.store import Store

_SECONDS_BETWEEN_LOOKS = 5.0


class Requests:
    """Requests to the search of a run, and its answers.

    Any process on any machine may send a request at any time, so each request is a file of its own in `requests/`. Only
    the search answers, in `answers.jsonl`.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder, self._store = folder / "requests", store
        self._answers = Record(folder / "answers.jsonl", store, Answer.from_json)
        self._known: dict[Path, Request] = {}
        self._looked, self._answering = -_SECONDS_BETWEEN_LOOKS, threading.Lock()
        self.has_stopped = False  # whether this process was asked to stop, and stops

    def add(self, ask: Ask, *, trials: int | None = None, arch: ArchConfig | None = None) -> Request:
        """Adds a request. It is on disk when this returns."""
        now = datetime.datetime.now(datetime.UTC)
        request = Request(
            id=f"{time.time_ns():020}-{secrets.token_hex(4)}",
            created=now.isoformat(timespec="seconds"),
            ask=ask,
            trials=trials,
            arch=arch,
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        self._store.write(self._path_of(request.id), json_text(request.to_json()) + "\n")
        return request

    def all(self) -> tuple[Request, ...]:
        """All requests, oldest first. A file that is no request is left out."""
        now = time.monotonic()
        if self._store.url_of(self._folder) is not None and now - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            self._store.fetch(self._folder)
        for path in sorted(self._folder.glob("*.json")):
            if path not in self._known and (request := _read(path)) is not None:
                self._known[path] = request
        return tuple(self._known[path] for path in sorted(self._known))

    def answers(self) -> dict[str, Answer]:
        """Answers by the ids of requests. The last one counts."""
        return {answer.id: answer for answer in self._answers.read()}

    def waiting(self) -> list[Request]:
        """Requests without an answer."""
        answers = self.answers()
        return [request for request in self.all() if request.id not in answers]

    def answer(self, request: Request, *, trial: int | None = None, refused: str | None = None) -> None:
        """Records the answer to a request. It is on disk when this returns."""
        with self._answering:
            self._answers.append(Answer(id=request.id, trial=trial, refused=refused).to_json())

    def num_trials(self, at_least: int) -> int:
        """The greatest number of trials in requests that were not refused, and at least `at_least`."""
        answers = self.answers()
        asked = [
            request.trials
            for request in self.all()
            if request.trials is not None and (request.id not in answers or answers[request.id].refused is None)
        ]
        return max([at_least, *asked])

    def _path_of(self, request_id: str) -> Path:
        return self._folder / f"{request_id}.json"


def _read(path: Path) -> Request | None:
    try:
        request = Request.from_json(load_finite(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return None
    return request if request.id == path.stem else None
