"""The experiment that a run was started with."""

from functools import lru_cache

from cvt_nas.config.experiment import Experiment, parse_experiment
from cvt_nas.latency import LatencyTable
from cvt_nas.run import RunFolder


def experiment_of(run: RunFolder) -> Experiment:
    """The experiment that `run` was started with: its space file, and its latency table if it has one."""
    return with_table_of(run, space_file_of(run))


def space_file_of(run: RunFolder) -> Experiment:
    """The experiment of the space file that `run` keeps, without a latency table. Raises SpaceFileError if another
    version wrote it."""
    return _parsed(run.manifest.get("space_file", ""), f"{run.path}/manifest.json")


_parsed = lru_cache(maxsize=16)(parse_experiment)  # a page of many epochs asks for its run's file seventy times


def with_table_of(run: RunFolder, experiment: Experiment) -> Experiment:
    """`experiment` with the latency table of `run`, if it has one."""
    table = run.manifest.get("latency_table")
    return experiment if table is None else experiment.with_latency(LatencyTable.from_json(table))
