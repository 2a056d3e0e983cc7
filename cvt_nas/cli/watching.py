"""The verbs that follow a search from another process and send requests to it."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cvt_nas.cli.output import write
from cvt_nas.cli.searching import SignalledStop
from cvt_nas.errors import CvtNasError

if TYPE_CHECKING:
    from cvt_nas.arch import ArchConfig
    from cvt_nas.run import RunFolder


def watch(options: argparse.Namespace) -> int:
    from rich.console import Console

    from cvt_nas.follow.serving import serving
    from cvt_nas.run import RunFolder

    run, console = RunFolder.open(options.run), Console(stderr=True, soft_wrap=True)
    with SignalledStop(console) as stop, serving(run, port=options.port, stop=stop) as url:
        write(url, flush=True)
        write("Ctrl-C ends the page; a search goes on without it", file=sys.stderr, flush=True)
        stop.wait()
    return 0


def ask(options: argparse.Namespace) -> int:
    """Sends a request. Without an option, prints all requests and their answers."""
    from cvt_nas.follow.asking import ask_for_trials, ask_to_stop, ask_to_try
    from cvt_nas.run import RunFolder

    if options.source is not None and options.arch is None:
        raise CvtNasError(f"--from {options.source}: has no effect without --try")
    run, request = RunFolder.open(options.run), None
    if options.stop:
        request = ask_to_stop(run)
    elif options.trials is not None:
        request = ask_for_trials(run, options.trials)
    elif options.arch is not None:
        request = ask_to_try(run, _arch_to_try(options.arch, run, source=options.source))
    answers = run.requests.answers()
    requests = run.requests.all() if request is None else (request,)
    if options.json:
        write(json.dumps([
            {**each.to_json(), "answer": answers[each.id].to_json() if each.id in answers else None}
            for each in requests
        ]))  # fmt: skip
        return 0
    for each in requests:
        answer = answers.get(each.id)
        write(f"{each.created}  {each.describe()}: {'waiting' if answer is None else answer.describe()}")
    return 0


def _arch_to_try(text: str, run: "RunFolder", *, source: str | None) -> "ArchConfig":
    """The architecture that `--try` names, in the run or in the one that `--from` names."""
    from cvt_nas.cli.archs import arch_of
    from cvt_nas.follow.asking import arch_in, looks_like_id, parse_arch
    from cvt_nas.run import RunFolder

    if source is not None:
        other = RunFolder.open(source)
        return other.pick(text).arch if text in ("knee", "best") else arch_in(other, text)
    is_written_out = re.match(r"\s*(\{|[\w.]+\s*:\s)", text) is not None
    if is_written_out or (looks_like_id(text) and not Path(text).exists()):
        return parse_arch(text, run)
    return arch_of(text)[0]
