"""Thousands of trials that train nothing, on many logical slots: what the search itself costs as it grows.

A trial sleeps through its epochs and reports a made-up accuracy. The searcher, the scheduler, the journal, the record
and Ray Tune are those of a real search. How busy the slots are is told for three parts of it: until each has had a
trial, while there are new trials to begin, and while only those go on that a rung promotes. Then the run is resumed and
reported on, and both are timed.

    python benchmarks/scale.py --trials 2000 --slots 64 --seconds-per-epoch 4
"""

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import yaml
from ray import tune

from cvt_nas.arch import cost_of
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.launch import trials as launcher
from cvt_nas.launch.cluster import local_ray
from cvt_nas.launch.search import Search
from cvt_nas.pipeline import open_study
from cvt_nas.propose.race import race_of
from cvt_nas.report import write_report
from cvt_nas.results import TrialResult
from cvt_nas.results.events import EpochDone, TrialStarted
from cvt_nas.run import RunFolder

SPACES = Path(__file__).parent.parent / "search_spaces"


def sleep_through(config: Mapping[str, Any], setup: float, resources: object, keep_model: bool = True) -> None:
    """In the place of `run_trial`; `setup` is the seconds of an epoch. Needs no torch, of which 64 would not fit."""
    del resources, keep_model
    rng = random.Random(config["seed"])
    curve: list[float] = []
    for epoch in range(1, 4):
        time.sleep(setup)
        curve.append(round(0.5 + 0.1 * epoch + 0.1 * rng.random(), 4))
        if epoch > config["num_known"]:
            tune.report({
                "epoch": epoch, "accuracy": curve[-1], "curve": list(curve), "train_seconds": setup * epoch,
                "status": "running", "device": "none",
            })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--seconds-per-epoch", type=float, default=4.0)
    parser.add_argument("--sampler", default="surrogate")
    parser.add_argument("--scheduler", default="pareto-asha")
    options = parser.parse_args()
    experiment = _experiment(options.trials, options.sampler, options.scheduler)
    with tempfile.TemporaryDirectory(prefix="scale") as folder:
        run = RunFolder.create(Path(folder) / "run", experiment.manifest(seed=0, num_trials=options.trials))
        for rows in _search(experiment, run, options.slots, options.seconds_per_epoch, options.trials):
            print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format))
        started = time.perf_counter()
        study = open_study(experiment, RunFolder.open(run.path), num_trials=options.trials + 1, seed=0)
        race_of(experiment, study, run.results())
        study.ask()
        print(f"resume, until the first proposal: {time.perf_counter() - started:.1f} s")
        started = time.perf_counter()
        write_report(run)
        print(f"report: {time.perf_counter() - started:.1f} s")
        sizes = {path.name: path.stat().st_size / 2**20 for path in (run.journal_path, run.path / "trials.jsonl")}
        print(", ".join(f"{name} {size:.1f} MiB" for name, size in sizes.items()))


def _experiment(num_trials: int, sampler: str, scheduler: str) -> Experiment:
    tree = yaml.safe_load((SPACES / "cvt13.yaml").read_text())
    tree["training"] |= {"epochs": 3, "warmup_epochs": 0}
    tree["search"] = {"trials": num_trials, "sampler": sampler, "scheduler": scheduler, "grace_period": 1}
    return parse_experiment(yaml.safe_dump(tree), "scale.yaml")


def _search(
    experiment: Experiment, run: RunFolder, num_slots: int, seconds_per_epoch: float, num_trials: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    launcher.run_trial = sleep_through  # the only part that is not real
    slots: Any = SimpleNamespace(cpus_per_trial=1, gpus_per_trial=0, num_workers=1, num_slots=num_slots)
    rows, ended, epochs = [], list[TrialResult](), list[float]()
    asked, heard = dict[int, float](), dict[int, float]()  # when a trial was begun first, and first reported
    marks = sorted({max(num_trials // 10, 1), num_trials // 2, num_trials})
    with local_ray(num_cpus=num_slots, num_gpus=0):
        study = open_study(experiment, run, num_trials=num_trials, seed=0)
        setup: Any = seconds_per_epoch
        begun = time.perf_counter()
        search = Search(
            experiment=experiment, run=run, setup=setup, resources=slots, seed=0, num_trials=num_trials,
            stop=threading.Event(),
        )  # fmt: skip
        for event in launcher.run_trials(search, race_of(experiment, study, ()), keep=run.append):
            now = time.perf_counter() - begun
            if isinstance(event, TrialStarted):
                asked.setdefault(event.number, now)
            elif isinstance(event, EpochDone):
                epochs.append(now)
                heard.setdefault(event.number, now)
            elif isinstance(event, TrialResult):
                ended.append(event)
                if len(ended) in marks:
                    rows.append({"trials ended": len(ended), "seconds": now, "driver MiB": _resident_mib()})
        over = time.perf_counter() - begun
    assert len(ended) == num_trials
    assert all(result.cost == cost_of(result.arch) for result in ended)
    full, last = sorted(heard.values())[min(num_slots, num_trials) - 1], max(asked.values())
    parts = (
        ("until all slots have had a trial", 0.0, full),
        ("new trials to begin", full, last),
        ("the end", last, over),
    )
    busy = [
        {"part": part, "seconds": end - start, "trials begun": sum(start < at <= end for at in asked.values()),
         "slots busy": _busy(epochs, start, end, seconds_per_epoch) / num_slots}
        for part, start, end in parts
    ]  # fmt: skip
    return rows, busy


def _busy(epochs: list[float], start: float, end: float, seconds_per_epoch: float) -> float:
    """Slots that are in an epoch at a time between `start` and `end`, on average; an epoch is known by its end."""
    inside = (min(at, end) - max(at - seconds_per_epoch, start) for at in epochs)
    return sum(max(seconds, 0.0) for seconds in inside) / (end - start)


def _resident_mib() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
