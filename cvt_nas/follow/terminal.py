"""Shows the progress of a search: a live panel in a terminal, or plain lines."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from cvt_nas.escaping import printable
from cvt_nas.results import (
    FAILURES,
    Candidate,
    HypervolumeBox,
    Metric,
    ParetoFront,
    TrialResult,
    events,
    round_and_trial,
    without_retried,
)
from cvt_nas.run import RunFolder

_LINE_EVERY_SECONDS = 10.0


class ConsoleProgress:
    """Shows the phases of a search:

    - epochs of the supernet, and ranked candidates, if there is a supernet
    - trials that are done, running and stopped, with best accuracy, front, hypervolume and time left
    - further trainings that are done

    Args:
        results: Results of earlier processes if the run is resumed. Failed trials are left out, since they are tried
            again.
        deadline: End of the time budget, on the clock of `time.monotonic`.
        num_planned: Takes `num_trials`, and returns the number of trials with those that were asked for during the
            search. None if nothing can be asked for.
    """

    def __init__(
        self,
        console: Console,
        *,
        results: Sequence[TrialResult],
        metrics: Sequence[Metric],
        box: HypervolumeBox,
        num_trials: int,
        num_epochs: int,
        deadline: float | None,
        num_planned: Callable[[int], int] | None = None,
    ) -> None:
        self._console, self._metrics, self._box = console, metrics, box
        self._results, self._num_trials, self._num_epochs = list(results), num_trials, num_epochs
        self._num_planned = num_planned
        self._further: list[TrialResult] | None = None
        self._supernet: events.SupernetEpochDone | None = None
        self._candidates: list[Candidate] | None = None
        self._num_before = len(self._results)
        self._running: dict[int, tuple[int, float]] = {}
        self._paused: set[int] = set()
        self._noted: set[type] = set()
        self._started, self._deadline, self._last_line = time.monotonic(), deadline, 0.0
        self._phase_started = self._started
        self._front = ParetoFront.of(self._results, metrics)
        self._live: Live | None = None

    @classmethod
    def of(cls, run: RunFolder, console: Console, *, num_trials: int, deadline: float | None) -> Self:
        """Shows the progress of the trials of `run`."""
        results = [result for result in run.results() if result.status not in FAILURES]
        return cls(
            console, results=results, metrics=run.metrics, box=run.box, num_trials=num_trials,
            num_epochs=run.manifest["epochs"], deadline=deadline, num_planned=run.requests.num_trials,
        )  # fmt: skip

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._panel, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self._print_line()

    def __call__(self, event: events.RaceEvent) -> None:
        if isinstance(event, TrialResult) and event.status in FAILURES:
            said = f"trial {round_and_trial(event.number)[1]} failed: {event.reason}"
            self._console.print(printable(said), markup=False, emoji=False, highlight=False)
        if (
            isinstance(event, events.SupernetEpochDone | events.EpochDone)
            and event.note
            and type(event) not in self._noted
        ):
            self._noted.add(type(event))
            whose = f"trial {round_and_trial(event.number)[1]}" if isinstance(event, events.EpochDone) else "supernet"
            self._console.print(f"note: {whose}: {event.note}", markup=False, emoji=False, highlight=False)
        if isinstance(event, events.SupernetEpochDone):
            self._supernet = event
        elif isinstance(event, events.OptionsDropped):
            self._console.print(event.step.describe(), highlight=False)
        elif isinstance(event, events.RankingStarted):
            self._supernet, self._candidates = None, list(event.ended)
            self._num_candidates, self._num_before = event.num_planned, len(event.ended)
            self._phase_started = time.monotonic()
        elif isinstance(event, Candidate):
            assert self._candidates is not None, "the ranking was announced"
            self._candidates.append(event)
        elif isinstance(event, events.TrialStarted):
            if self._candidates is not None:
                self._candidates, self._num_before = None, len(self._results)
                self._phase_started = time.monotonic()
            if self._num_planned is not None and self._further is None:
                self._num_trials = self._num_planned(self._num_trials)
            self._running[event.number] = (0, 0.0)
            self._paused.discard(event.number)
        elif isinstance(event, events.EpochDone):
            self._running[event.number] = (event.epoch, event.accuracy)
        elif isinstance(event, events.TrialPaused):
            self._running.pop(event.number, None)
            self._paused.add(event.number)
        elif isinstance(event, events.ConfirmationStarted):
            self._running.clear()  # trials that were in flight when a signal came
            self._further, self._num_trials = list(event.ended), event.num_planned
            self._num_before, self._phase_started = len(event.ended), time.monotonic()
        elif self._further is not None:
            self._running.pop(event.number, None)
            self._further.append(event)
        else:
            self._running.pop(event.number, None)
            self._paused.discard(event.number)
            self._results = without_retried([*self._results, event])
            self._front = ParetoFront.of(self._results, self._metrics)
        if self._live is None and time.monotonic() - self._last_line > _LINE_EVERY_SECONDS:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        self._console.print(", ".join(f"{name} {value}" for name, value in self._figures()), highlight=False)

    def _figures(self) -> list[tuple[str, str]]:
        ended = self._results if self._further is None else self._further
        statuses = Counter(result.status for result in ended)
        lost = statuses["diverged"] + statuses["failed"] + statuses["oom"]
        best = self._front.best
        if self._supernet is not None:
            done, planned = self._supernet.epoch, self._supernet.num_epochs
            return [
                ("supernet, epochs", f"{done}/{planned}"),
                *((f"loss of the {kind}", f"{loss:.4f}") for kind, loss in self._supernet.losses.items()),
                ("elapsed", clock(time.monotonic() - self._started)),
                ("left", self._time_left(done, planned)),
            ]
        if self._candidates is not None:
            whole = max((candidate.accuracy for candidate in self._candidates), default=None)
            return [
                ("candidates", f"{len(self._candidates)}/{self._num_candidates}"),
                ("best inherited", "-" if whole is None else f"{whole:.4f}"),
                ("elapsed", clock(time.monotonic() - self._started)),
                ("left", self._time_left(len(self._candidates), self._num_candidates)),
            ]
        if self._further is not None:
            return [
                ("trials", str(len(self._results))),
                ("further trainings of the best", f"{len(ended)}/{self._num_trials}"),
                ("running", str(len(self._running))),
                *([("lost", str(lost))] if lost else []),
                ("elapsed", clock(time.monotonic() - self._started)),
                ("left", self._time_left(len(ended), self._num_trials)),
            ]
        return [
            ("trials", f"{len(self._results)}/{self._num_trials}"),
            ("running", str(len(self._running))),
            *([("paused", str(len(self._paused)))] if self._paused else []),
            ("stopped", str(statuses["stopped"])),
            *([("lost", str(lost))] if lost else []),
            ("best", "-" if best is None else f"{best.metric('accuracy'):.4f}"),
            ("front", str(len(self._front.members))),
            ("hypervolume", f"{self._front.hypervolume(self._box):.4f}"),
            ("elapsed", clock(time.monotonic() - self._started)),
            ("left", self._time_left(len(ended) + len(self._paused), self._num_trials)),  # few paused ones go on
        ]

    def _time_left(self, num_ended: int, num_planned: int) -> str:
        now, num_done = time.monotonic(), num_ended - self._num_before
        estimates = [] if self._deadline is None else [self._deadline - now]
        if num_done:
            estimates.append((now - self._phase_started) / num_done * (num_planned - num_ended))
        return clock(max(min(estimates), 0)) if estimates else "-"

    def _panel(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row(*(f"[dim]{name}[/] [bold]{value}[/]" for name, value in self._figures()))
        for number, (epoch, accuracy) in sorted(self._running.items())[:12]:
            round_, trial = round_and_trial(number)
            name = f"trial {trial} again, {round_}" if round_ else f"trial {trial}"
            table.add_row(f"[dim]{name}[/]", f"epoch {epoch}/{self._num_epochs}", f"{accuracy:.4f}")
        return table


def clock(seconds: float) -> str:
    """A duration as `1:02:03`, or as `2:03` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
