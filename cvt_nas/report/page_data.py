"""Data for the scripts of a run's page: its trials as plain values."""

import itertools
from collections.abc import Sequence

import pandas as pd

from cvt_nas.arch import ArchConfig, StageConfig, stage_costs
from cvt_nas.latency import deployment_of
from cvt_nas.report.figures import label_of, thinned
from cvt_nas.report.int8 import int8_data, judged_runtimes
from cvt_nas.report.stopping import drawn_rungs
from cvt_nas.report.tables import costs_of
from cvt_nas.results import TrialResult, plain_name
from cvt_nas.run import RunFolder
from cvt_nas.run.folder import CLASSES_FILE
from cvt_nas.space import SIZE_METRICS


def page_data(run: RunFolder, results: Sequence[TrialResult], choices: pd.DataFrame) -> dict[str, object]:
    """The data for the scripts of the page."""
    front, tested, costs = run.front(), run.test_accuracies(), costs_of(run)
    knee, best = front.knee(), front.best
    measured, memories, known = run.latencies(), run.memories(), run.int8.by_arch()
    confirmed = {result.number: result for result in run.confirmed()}
    failed = {
        each.trial.number: f"{len(each.failed)} of {len(each.trainings)}"
        for each in run.confirmations.failed_in_int8(results)
    }
    members = {member.number for member in front.members}
    judged = {
        member.number: run.shown_images(run.model_path(member.arch_id) / CLASSES_FILE) for member in front.members
    }
    by_class = {number: found for number, found in judged.items() if found}
    trials = []
    for recorded in results:
        result = confirmed.get(recorded.number, recorded)
        tags = [name for name, marked in (("best", best), ("knee", knee)) if marked and marked.number == result.number]
        if result.number in members and not tags:
            tags = ["front"]
        trials.append({
            "number": result.number,
            "arch_id": result.arch_id,
            "status": result.status,
            "epochs": result.epochs,
            **_accuracy_of(result),
            "failed": failed.get(result.number),
            "int8": int8_data(known.get(result.arch_id, {})),
            "test": tested.get(result.arch_id),
            "params": result.cost.params,
            "flops": result.cost.flops,
            "latency_ms": result.cost.latency_ms or None,
            **{metric: result.metric(metric) for metric in costs if metric in ("throughput", *SIZE_METRICS)},
            "measured_ms": measured.get(result.arch_id),
            "measured_memory_mb": memories.get(result.arch_id),
            "seconds": round(result.seconds, 1),
            "seed": result.seed,
            "reason": result.reason,
            "front": result.number in members,
            "competes": result.status == "complete" and (not confirmed or result.number in confirmed),
            "predicted": None
            if result.predicted is None
            else [round(result.predicted.accuracy, 4), round(result.predicted.measured_sd(), 4)],
            "tags": tags,
            "curve": list(zip(*thinned(result.curve), strict=True)),  # epochs, accuracies
            "stages": _stages(result.arch),
            "choices": choices.loc[result.number].tolist() if len(choices.columns) else [],
            "mistakes": run.shown_images(run.mistakes_path(result.arch_id)) if result.number in members else None,
            "classes": [[of[name] for of in by_class.get(result.number, ())] for name in ("images", "found")]
            if result.number in by_class
            else None,
        })  # fmt: skip
    first = knee or best
    return {
        "name": run.manifest["name"],
        "score": run.score_name,
        "front_score": run.front_score_name,  # that of `judged`
        "int8": [plain_name(runtime) for runtime in judged_runtimes(run)],
        "batch": 1 if (deployment := deployment_of(run.manifest)) is None else deployment.batch,
        "place": run.place,
        "rungs": drawn_rungs(run),
        "costs": costs,
        "first": first.number if first else (results[0].number if results else None),
        "choices": {"names": list(choices.columns), "labels": [label_of(str(name)) for name in choices.columns]},
        "classes": [of["class"] for of in next(iter(by_class.values()), ())],
        "trials": trials,
    }


def _accuracy_of(result: TrialResult) -> dict[str, object]:
    """Accuracy in fp32 with its standard deviation, what the trial competes with (`judged`), and further trainings in
    int8, if there are any."""
    found = result.confirmation
    if found is None or found.runtime is None:
        sd = None if found is None else found.sd
        return {"accuracy": result.accuracy, "sd": sd, "judged": result.accuracy, "further": None}
    further = {"mean": found.mean, "sd": found.sd, "seeds": len(found.accuracies), "runtime": plain_name(found.runtime)}
    return {"accuracy": found.fp32_mean, "sd": found.fp32_sd, "judged": found.mean, "further": further}


def _stages(arch: ArchConfig) -> list[list[object]]:
    """Values of each stage in the order of `stagesOf` in trial.js. Names would be too long with 2,000 trials."""

    def blocks_of(stage: StageConfig) -> list[list[object]]:
        return [
            [len(list(alike)), block.num_heads, block.mlp_ratio, block.kernel_size, block.kv_stride, block.projection]
            for block, alike in itertools.groupby(stage.blocks)
        ]

    return [
        [
            *grid, stage.embed_dim, stage.patch_kernel, stage.patch_stride, int(stage.class_token), cost.params,
            cost.flops, blocks_of(stage),
        ]
        for stage, grid, cost in zip(arch.stages, arch.grids, stage_costs(arch), strict=True)
    ]  # fmt: skip
