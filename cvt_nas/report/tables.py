"""Tables of a run. Its files, the output of `--json` and its figures are made from them."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cvt_nas.arch import describe_stages
from cvt_nas.config import space_file_of
from cvt_nas.errors import ArchError, SpaceFileError
from cvt_nas.results import (
    HypervolumeBox,
    Metric,
    RankCorrelation,
    TrialResult,
    hypervolume,
    is_non_dominated,
    rank_correlations,
)
from cvt_nas.run import RunFolder
from cvt_nas.space import COST_METRICS, SIZE_METRICS, TIMED_METRICS, Bound, CostMetric


def costs_of(run: RunFolder) -> tuple[CostMetric, ...]:
    """The costs that are known for the architectures of a run.

    Latency is known only if the run has a latency table. Memory and model size are known only if the space file says
    how networks are deployed. Throughput needs both.
    """
    has_table, is_deployed = "latency_table" in run.manifest, "deploy" in run.manifest
    timed = TIMED_METRICS if is_deployed else TIMED_METRICS[:1]
    return (*COST_METRICS, *(timed if has_table else ()), *(SIZE_METRICS if is_deployed else ()))


def bounds_of(run: RunFolder) -> Mapping[CostMetric, Bound]:
    """The constraints of the space file of a run. Empty if another version wrote the file."""
    try:
        return space_file_of(run).space.bounds
    except SpaceFileError:
        return {}


def _deployed_costs_of(run: RunFolder, result: TrialResult) -> dict[str, float | None]:
    """Predicted latency, throughput and memory, and measured latency and memory. Only those that the run knows."""
    costs: list[Metric] = [metric for metric in costs_of(run) if metric not in COST_METRICS]
    measured: dict[str, float | None] = {}
    if costs:
        measured["measured_ms"] = run.latencies().get(result.arch_id)
    if "peak_memory_mb" in costs:
        measured["measured_memory_mb"] = run.memories().get(result.arch_id)
    return {**{metric: result.metric(metric) for metric in costs}, **measured}


def front_frame(run: RunFolder) -> pd.DataFrame:
    """The front, best accuracy first: `arch_id, accuracy, params, flops, test_accuracy, number, ...`.

    More columns follow in these cases:

    - networks inherited weights from a supernet: their accuracy with these weights, `inherited`
    - the run has a latency table: the predicted `latency_ms` and the measured `measured_ms`
    - the run has a deployment: `throughput, peak_memory_mb, model_mb, measured_memory_mb`
    - the front is confirmed: `accuracy_sd, seeds, seeds_lost, membership` (see `Confirmation`). Accuracy is then the
      mean over further trainings.
    - the front is confirmed in int8: `accuracy_as`, the runtime of the accuracy; `fp32_accuracy` and
      `fp32_accuracy_sd` of the same trainings
    - a network of the front was judged in int8: `int8_runtime`, `own_fp32_accuracy` and `own_int8_accuracy` of the
      weights that the run keeps, and `fp32_mb, int8_mb, fp32_ms, int8_ms`; see `Int8`
    """
    tested, members = run.test_accuracies(), run.front().members
    rows = [
        {
            "arch_id": member.arch_id,
            "accuracy": member.accuracy,
            "params": member.cost.params,
            "flops": member.cost.flops,
            "test_accuracy": tested.get(member.arch_id),
            "number": member.number,
            "epochs": member.epochs,
            "seconds": round(member.seconds, 1),
            "seed": member.seed,
            "arch": " | ".join(describe_stages(member.arch)),
            **_inherited_of(member),
            **_deployed_costs_of(run, member),
            **_confirmation_of(member),
            **own_int8_of(run, member.arch_id),
        }
        for member in members
    ]
    columns = ["arch_id", "accuracy", "params", "flops", "test_accuracy", "number", "epochs", "seconds", "seed", "arch"]
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*columns, *(name for row in rows for name in row)])))


def trials_frame(run: RunFolder) -> pd.DataFrame:
    """Every trial of the race, by number: `arch_id, status, epochs, accuracy, params, flops, on_front, ...`.

    A column follows for each choice in which trials differ.
    """
    on_front = {member.number for member in run.front().members}
    rows = [
        {
            "arch_id": result.arch_id,
            "status": result.status,
            "epochs": result.epochs,
            "accuracy": result.accuracy,
            **_inherited_of(result),
            "params": result.cost.params,
            "flops": result.cost.flops,
            **_deployed_costs_of(run, result),
            "on_front": result.number in on_front,
            "seconds": result.seconds,
            "seed": result.seed,
            "reason": result.reason,
        }
        for result in run.results()
    ]
    index = pd.Index([result.number for result in run.results()], name="number")
    return pd.DataFrame(rows, index=index).join(choices_frame(run))


def _inherited_of(result: TrialResult) -> dict[str, float]:
    return {} if result.inherited is None else {"inherited": result.inherited}


def _confirmation_of(result: TrialResult) -> dict[str, float | str | None]:
    return {} if result.confirmation is None else result.confirmation.to_json()


def own_int8_of(run: RunFolder, arch_id: str) -> dict[str, float | str | None]:
    """Figures of the kept network in int8. Those of the runtime that confirms the front come before others."""
    known, plan = run.int8.by_arch().get(arch_id, {}), run.confirmations.plan()
    if not known:
        return {}
    wanted = None if plan is None else plan.runtime
    found = known[wanted] if wanted in known else list(known.values())[-1]
    fp32_bytes, int8_bytes = found.num_bytes or (None, None)
    fp32_ms, int8_ms = found.ms or (None, None)
    return {
        "int8_runtime": found.runtime,
        "own_fp32_accuracy": found.judgement.score,
        "own_int8_accuracy": None if found.faults else found.accuracy,
        "fp32_mb": None if fp32_bytes is None else fp32_bytes / 1e6,
        "int8_mb": None if int8_bytes is None else int8_bytes / 1e6,
        "fp32_ms": fp32_ms,
        "int8_ms": int8_ms,
    }


def deciding_epochs(run: RunFolder) -> tuple[int, ...]:
    """Epochs at which trials were selected: the rungs, and 0, at which a supernet may have selected the candidates."""
    return (0, *run.rungs) if run.manifest["epochs"] else ()


def ranks_frame(run: RunFolder) -> pd.DataFrame:
    """How well each epoch before the last ranked the trials (see `RankCorrelation`). `rung` marks deciding epochs."""
    rungs = deciding_epochs(run)
    rows = [
        {**dataclasses.asdict(found), "rung": found.epoch in rungs}
        for found in rank_correlations(run.results(), range(run.manifest["epochs"]))
    ]
    return pd.DataFrame(rows, columns=[*(field.name for field in dataclasses.fields(RankCorrelation)), "rung"])


def summary(run: RunFolder) -> dict[str, object]:
    """The output of `search --json`: `run, metric, trials, statuses, front, hypervolume, rungs`.

    If further trainings are planned, there is also `confirmation`. It has the numbers of `planned` and `ended`
    trainings, and all `confirmed` architectures. These include those off the front, since chance may decide which of
    them are on it. If they are judged in int8, there are also `as`, the runtime, and `failed_in_int8`, the
    architectures that are left out for that.
    """
    results, front = run.results(), run.front()
    tested = run.test_accuracies()
    return {
        "run": run.place,
        "metric": str(run.manifest.get("metric", "accuracy")),
        "trials": len(results),
        "statuses": dict(Counter(result.status for result in results)),
        "front": [
            {
                "arch_id": member.arch_id,
                "number": member.number,
                "accuracy": member.accuracy,
                "test_accuracy": tested.get(member.arch_id),
                "params": member.cost.params,
                "flops": member.cost.flops,
                **_deployed_costs_of(run, member),
                **_confirmation_of(member),
                **own_int8_of(run, member.arch_id),
            }
            for member in front.members
        ],
        "hypervolume": front.hypervolume(run.box),
        "rungs": [dataclasses.asdict(found) for found in rank_correlations(results, deciding_epochs(run))],
        **_confirmation_summary(run),
    }


def _confirmation_summary(run: RunFolder) -> dict[str, object]:
    plan = run.confirmations.plan()
    if plan is None:
        return {}
    confirmed = [
        {
            "arch_id": result.arch_id,
            "accuracy": result.accuracy,
            "own_accuracy": result.own_accuracy,
            **_confirmation_of(result),
        }
        for result in run.confirmed()
    ]
    num_planned = len(plan.numbers)
    ended = num_planned - len(run.confirmations.missing())
    in_int8 = {}
    if plan.runtime is not None:
        failed = run.confirmations.failed_in_int8(run.results())
        in_int8 = {"as": plan.runtime, "failed_in_int8": [each.to_json() for each in failed]}
    return {"confirmation": {"planned": num_planned, "ended": ended, "confirmed": confirmed, **in_int8}}


def growth_frame(ended: Sequence[TrialResult], metrics: Sequence[Metric], box: HypervolumeBox) -> pd.DataFrame:
    """Hypervolume after each trial that ended: `ended, spent, train_seconds, hypervolume`. The first row has no trial.

    `train_seconds` is the sum over all workers, so it can be compared between machines with different numbers of
    workers. `spent` is the time by the clock. Older records lack it.

    Args:
        ended: Trials in the order in which they ended.
    """
    rows: list[tuple[int, float | None, float, float]] = [(0, 0.0, 0.0, 0.0)]
    front, volume, seconds = np.empty((0, len(metrics))), 0.0, 0.0
    for index, result in enumerate(ended, start=1):
        seconds += result.train_seconds
        if result.status == "complete":
            point = box.normalise([result], metrics)
            if not (front <= point).all(axis=1).any():
                front = np.concatenate([front, point])
                front = front[is_non_dominated(front)]
                volume = hypervolume(front)
        rows.append((index, result.spent, seconds, volume))
    return pd.DataFrame(rows, columns=["ended", "spent", "train_seconds", "hypervolume"])


def choices_frame(run: RunFolder) -> pd.DataFrame:
    """The options of each trial: a row per trial, by number, and a column per gene in which the trials differ.

    An option without an effect on the network is None, such as that of an absent block.
    There are no columns if the architectures do not come from the space of the run, as in a single training.
    """
    results = run.results()
    try:
        space = space_file_of(run).space
        genomes = [space.encode(result.arch) for result in results]
        values = [
            [
                gene.options[index] if is_active else None
                for gene, index, is_active in zip(space.genes, genome, space.active(genome), strict=True)
            ]
            for genome in genomes
        ]
    except (ArchError, SpaceFileError):  # another version's file, or an architecture from elsewhere
        return pd.DataFrame(index=[result.number for result in results])
    frame = pd.DataFrame(
        values, index=[result.number for result in results], columns=[gene.name for gene in space.genes], dtype=object
    )
    return frame.loc[:, [frame[name].nunique() > 1 for name in frame.columns]]
