"""The verbs that follow a search from another process and send requests to it."""

import argparse
import json
import sys

from cvt_nas.cli.output import write
from cvt_nas.cli.searching import SignalledStop


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
    from cvt_nas.cli.archs import arch_of
    from cvt_nas.follow.asking import ask_for_trials, ask_to_stop, ask_to_try
    from cvt_nas.run import RunFolder

    run, request = RunFolder.open(options.run), None
    if options.stop:
        request = ask_to_stop(run)
    elif options.trials is not None:
        request = ask_for_trials(run, options.trials)
    elif options.arch is not None:
        request = ask_to_try(run, arch_of(options.arch)[0])
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
