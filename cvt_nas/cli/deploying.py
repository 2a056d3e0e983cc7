"""The command `measure`, which measures networks where they will run."""

import argparse
import json
from pathlib import Path

from cvt_nas.cli.output import say, write
from cvt_nas.errors import ExportError

_LOCAL = "local"


def measure(options: argparse.Namespace) -> int:
    from rich.console import Console

    from cvt_nas.config import load_experiment

    is_local, to = options.target == _LOCAL, options.to
    if is_local and to is None:
        raise ExportError("--to: name the file for the table")
    if not is_local and to is not None:
        raise ExportError(
            f"--to {to}: is for {_LOCAL}; python {options.target}/measure.py --to TABLE writes the table there"
        )
    experiment, console = load_experiment(options.space), Console(stderr=True, soft_wrap=True)

    from cvt_nas.pipeline.latency import measure_locally, told_deployment, write_kit_of
    from cvt_nas.report import judged_lines

    if experiment.deployment.threads is None:
        say(console, "note: deploy.threads is auto: one thread is measured")
    asked = {"num_judged": options.networks, "seed": options.seed}

    def progress(done: int, total: int) -> None:
        if done == total or done % 50 == 0:
            say(console, f"{done} of {total} networks and parts are written")

    if to is not None:
        table = measure_locally(experiment, to, **asked, on_progress=progress)
        if options.json:
            write(json.dumps(table.to_json()))
        else:
            write(*judged_lines(table), f"{to}: give it to cvt-nas search --latency-table")
        return 0
    folder, deployment = Path(options.target), told_deployment(experiment)
    write_kit_of(experiment, folder, **asked, on_progress=progress)
    if options.json:
        write(json.dumps({"kit": str(folder), "deploy": deployment.to_json()}))
    else:
        write(f"{folder}: copy it to the other machine, and run there: python {folder.name}/measure.py --to table.json")
    return 0
