"""The verbs `search`, `plan` and `supernet evaluate`."""

import argparse
import json
import math
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cvt_nas.cli.output import command, nothing_found, print_front, say, write

if TYPE_CHECKING:
    from rich.console import Console

    from cvt_nas.launch.resources import Resources
    from cvt_nas.plan.values import Plan
    from cvt_nas.results.effort import EvaluationPlan
    from cvt_nas.results.events import Follower
    from cvt_nas.run import RunFolder


def search(options: argparse.Namespace) -> int:
    from rich.console import Console

    from cvt_nas.config import load_experiment

    experiment = load_experiment(options.space)
    console = Console(stderr=True, soft_wrap=True)
    for warning in experiment.warnings:
        say(console, f"warning: {warning}")

    from cvt_nas.follow.beside import page_beside
    from cvt_nas.follow.serving import check_watch
    from cvt_nas.follow.terminal import ConsoleProgress
    from cvt_nas.follow.trackers import check_trackers, trackers
    from cvt_nas.pipeline import search as run_search
    from cvt_nas.plugins import load_plugin
    from cvt_nas.report import beginning_lines, summary, write_report
    from cvt_nas.results import FAILURES
    from cvt_nas.results.events import following

    if options.ui is not None:
        check_watch()
    tracked = {"tensorboard": options.tensorboard, "mlflow": options.mlflow, "wandb": options.wandb}
    out = options.out or f"results/{experiment.name}"
    check_trackers(out, **tracked)
    callbacks = [load_plugin(name, "--callback") for name in options.callback]

    def warn(message: str) -> None:
        say(console, f"warning: {message}")

    def expected(plan: "Plan") -> None:
        for line in plan.short_lines():
            say(console, line)

    @contextmanager
    def progress(
        run: "RunFolder", resources: "Resources", num_trials: int, deadline: float | None
    ) -> "Iterator[Follower]":
        say(console, f"{experiment.name}: {num_trials} trials, {resources.describe()}; {run.place}")
        for what in ("init", "teacher"):
            for note in run.manifest.get(what, {}).get("notes", []):
                say(console, f"note: {note}")
        for line in beginning_lines(run.manifest):
            say(console, f"note: {line}")
        shown = ConsoleProgress.of(run, console, num_trials=num_trials, deadline=deadline)
        with ExitStack() as stack:
            if options.ui is not None:
                url = stack.enter_context(page_beside(run, port=options.ui, warn=warn))
                if url is not None:
                    say(console, f"live page: {url}")
            track = stack.enter_context(trackers(run, **tracked, warn=warn))
            yield following(stack.enter_context(shown), track)

    with SignalledStop(console) as stop:
        run = run_search(
            experiment,
            out=out,
            data=options.data,
            gpus=options.gpus,
            gpus_per_trial=options.gpus_per_trial,
            cpus=options.cpus,
            trials=options.trials,
            time_budget=options.time_budget,
            seed=options.seed,
            address=options.address,
            init=options.init,
            learn_from=options.learn_from,
            latency_table=options.latency_table,
            resume=options.resume,
            stop=stop,
            progress=progress,
            callbacks=callbacks,
            on_note=lambda note: say(console, f"note: {note}"),
            on_plan=expected,
        )
    write_report(run)
    num_trials = run.requests.num_trials(experiment.search.trials if options.trials is None else options.trials)
    is_stopped = stop.was_signalled or run.requests.has_stopped
    if experiment.training.epochs == 0:  # then the candidates are the trials
        num_trials = experiment.search.candidates
    num_done = len(run.results())
    if options.json:
        write(json.dumps(summary(run)))
    else:
        print_front(run, out)
    results, plan, num_left = run.results(), run.confirmations.plan(), len(run.confirmations.missing())
    if stop.is_set() and (num_left or num_done < num_trials or any(result.status in FAILURES for result in results)):
        done = f"{num_done} of {num_trials} trials"
        if plan is not None and num_left:  # the race is over
            done = f"{num_done} trials and {len(plan.numbers) - num_left} of {len(plan.numbers)} further trainings"
        budget = None if is_stopped else options.time_budget or run.manifest.get("time_budget")
        say(console, f"{done} are done and kept. Go on with: {resuming(options, out, time_budget=budget)}")
    if waiting := run.requests.waiting():
        say(console, f"{len(waiting)} requests wait: {', '.join(r.describe() for r in waiting)}; --resume takes them")
    if is_stopped:
        return 130
    if not run.front().members:
        write(f"cvt-nas: {nothing_found(results, is_time_over=stop.is_set())}", file=sys.stderr)
        return 1
    return 0


def plan(options: argparse.Namespace) -> int:
    from rich.console import Console

    from cvt_nas.config import load_experiment
    from cvt_nas.plan.planning import plan as plan_search
    from cvt_nas.run.places import is_url, local_folder

    experiment, console = load_experiment(options.space), Console(stderr=True, soft_wrap=True)
    found = plan_search(
        experiment,
        data=options.data,
        gpus=options.gpus,
        gpus_per_trial=options.gpus_per_trial,
        cpus=options.cpus,
        trials=options.trials,
        hours=options.hours,
        images_per_second=options.images_per_second,
        loader_images_per_second=options.loader_images_per_second,
        gpu_memory=options.gpu_memory,
        out=local_folder(options.out) if is_url(options.out) else Path(options.out),
        on_note=lambda note: say(console, f"note: {note}"),
    )
    if options.json:
        write(json.dumps(found.to_json()))
    else:
        write(*found.lines())
    return 0


def resuming(options: argparse.Namespace, out: str, *, time_budget: float | None = None) -> str:
    """The command that goes on with the search of `options`. It lacks the seed and `--init`, since the run keeps them.

    Args:
        time_budget: Time budget in seconds, if the search ended because it was spent. The command doubles it.
    """
    words = ["cvt-nas", "search", *_option("space", options.space), *_option("out", out), "--resume"]
    if time_budget is not None:
        words += _option("time-budget", f"{math.ceil(2 * time_budget)}s")
    for name in ("data", "gpus", "gpus_per_trial", "cpus", "trials", "address", "tensorboard", "mlflow", "wandb"):
        value = getattr(options, name)
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:  # 0 GPUs are a value too
            words += _option(name.replace("_", "-"), str(value))
    words += [word for name in options.callback for word in _option("callback", name)]
    return command(*words)


def _option(name: str, value: str) -> list[str]:
    """The words that set an option. The value may begin with a dash."""
    return [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]


def supernet(options: argparse.Namespace) -> int:
    from rich.console import Console

    from cvt_nas.follow.terminal import ConsoleProgress
    from cvt_nas.pipeline.verdict import evaluate_supernet
    from cvt_nas.report import evaluation_plan_lines, next_lines, quality_lines, write_report
    from cvt_nas.run import RunFolder

    run, console = RunFolder.open(options.run), Console(stderr=True, soft_wrap=True)

    def progress(alone: RunFolder, resources: "Resources", num_trials: int, deadline: float | None) -> ConsoleProgress:
        say(console, f"at most {num_trials} trainings, {resources.describe()}; they are kept in {alone.path}")
        return ConsoleProgress.of(alone, console, num_trials=num_trials, deadline=deadline)

    def planned(plan: "EvaluationPlan") -> bool:
        if not options.plan:
            for line in evaluation_plan_lines(plan):
                say(console, line)
            return True
        write(*([json.dumps(plan.to_json())] if options.json else evaluation_plan_lines(plan)))
        return False

    with SignalledStop(console) as stop:
        quality = evaluate_supernet(
            run,
            num_archs=options.archs,
            num_seeds=options.seeds,
            epochs=options.epochs,
            reuse=options.reuse,
            until_told=not options.all,
            data=options.data,
            gpus=options.gpus,
            gpus_per_trial=options.gpus_per_trial,
            cpus=options.cpus,
            address=options.address,
            stop=stop,
            progress=progress,
            on_plan=planned,
            on_look=lambda line: say(console, line),
        )
    if options.plan:
        return 0
    if quality is None:
        say(console, "there is no verdict yet; what is trained is kept, and the same command goes on")
        return 130
    write_report(run)
    if options.json:
        write(json.dumps(quality.to_json()))
    else:
        write(*quality_lines(quality), *next_lines(quality, command(options.run)))
    return 0


class SignalledStop(threading.Event):
    """An event that Ctrl-C and SIGTERM set within a `with` block. A second Ctrl-C ends the process at once."""

    def __init__(self, console: "Console") -> None:
        super().__init__()
        self._console, self.was_signalled = console, False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        del frame
        if self.was_signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.was_signalled = True
        self.set()
        say(self._console, "stopping in order; once more to stop at once")
