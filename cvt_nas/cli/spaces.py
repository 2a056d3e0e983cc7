"""The verb that describes a space."""

import argparse
import json
import sys

from cvt_nas.cli.output import write
from cvt_nas.errors import SpaceFileError


def space(options: argparse.Namespace) -> int:
    if options.schema:
        from cvt_nas.config.schema import schema

        write(*json.dumps(schema(), indent=2).splitlines())
        return 0
    if options.file is None:
        raise SpaceFileError(["FILE: name a space file, or ask for the schema of all by --schema"])

    from cvt_nas.arch import attention_flops, cost_of
    from cvt_nas.config import load_experiment
    from cvt_nas.report import short

    experiment = load_experiment(options.file)
    space = experiment.space
    least, greatest = space.cost_range
    without_attention = {
        name: cost_of(arch).flops - attention_flops(arch)
        for name, arch in (("smallest", space.smallest), ("largest", space.largest))
    }
    result = {
        "name": experiment.name,
        "size": space.size,
        "params": {"min": least.params, "max": greatest.params},
        "flops": {"min": least.flops, "max": greatest.flops},
        "flops_without_attention": without_attention,
        "feasible_fraction": space.feasible_fraction(),
    }
    if options.json:
        write(json.dumps(result))
        return 0
    for warning in experiment.warnings:
        write(f"warning: {warning}", file=sys.stderr)
    write(f"{experiment.name}: {space.size:,} architectures, {len(space.genes)} choices")
    write(f"params {short(least.params)} to {short(greatest.params)}, FLOPs {short(least.flops)} to "
          f"{short(greatest.flops)}")  # fmt: skip
    counts = ", ".join(f"{short(flops)} in the {name}" for name, flops in without_attention.items())
    write(f"FLOPs without attention's two products, which some papers leave out: {counts}")
    write(f"{result['feasible_fraction']:.1%} of evenly drawn architectures meet the constraints")
    return 0
