"""The verb that compares search methods on a table."""

import argparse
import json
import sys
from collections.abc import Sequence

from cvt_nas.cli.output import print_note, write


def bench(options: argparse.Namespace) -> int:
    from cvt_nas import bench
    from cvt_nas.run import check_target

    metrics = bench.metrics_of(options.objectives)
    methods = bench.methods_of(options.searcher, options.scheduler)
    table = bench.load_table(options.table)
    rungs = {name: given for name in ("grace_period", "reduction_factor") if (given := getattr(options, name))}
    settings = bench.Settings(metrics=metrics, budget=options.budget, num_workers=options.workers, **rungs)
    if why := _why_idle(options.scheduler, table.num_epochs, settings.grace_period):
        for name in rungs:
            print_note(f"--{name.replace('_', '-')}: has no effect: {why}")
    if options.plot is not None:  # it is written after hours
        check_target(options.plot, called=f"--plot {options.plot}")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    runs = []
    for run in bench.compare(table, methods, settings, seeds=seeds, processes=options.processes):
        runs.append(run)
        method, seed, values, _ = run
        write(f"seed {seed}, {method}: {values[-1]:.4f}, {len(runs)}/{len(methods) * len(seeds)}", file=sys.stderr)
    if options.plot is not None:
        bench.plot(runs, settings, options.plot)
    summary = bench.summarise(runs, settings)
    if options.json:
        write(json.dumps({"table": str(options.table), "objectives": list(metrics), **summary}))
        return 0
    write(f"{'hypervolume after a share of the budget, mean of the seeds':40}")
    write(
        f"{'':32}" + "".join(f"{100 * float(f):>8g}%" for f in next(iter(summary["methods"].values()))["hypervolume"])
    )
    for name, found in summary["methods"].items():
        means = [sum(values) / len(values) for values in found["hypervolume"].values()]
        write(f"{name:32}" + "".join(f"{mean:9.4f}" for mean in means))
    return 0


def _why_idle(schedulers: Sequence[str], num_epochs: int, grace_period: int) -> str | None:
    """Why the settings of rungs have no effect. None if they have."""
    if not any(name.partition(":")[0] in ("pareto-asha", "asha") for name in schedulers):
        return f"the scheduler is {', '.join(schedulers)}"
    if num_epochs <= grace_period:
        return f"a training of {num_epochs} epochs ends before the first rung"
    return None
