"""Searches a trained supernet again under new limits. This takes seconds, since nothing is trained."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cvt_nas.arch import ArchConfig, Cost, cost_of
from cvt_nas.config import experiment_of
from cvt_nas.data import save_preprocessing
from cvt_nas.engine import TrainingSetup, open_inheritance
from cvt_nas.engine.latency import measure_latency
from cvt_nas.errors import RunFolderError
from cvt_nas.escaping import told, why_no_text
from cvt_nas.model import CvT, save_model
from cvt_nas.pipeline.correcting import correction_of
from cvt_nas.pipeline.narrowing import searched_space
from cvt_nas.propose.observations import Observation
from cvt_nas.propose.surrogate import Surrogate
from cvt_nas.results import Inherited, smoothed_accuracies
from cvt_nas.run import RunFolder, check_target
from cvt_nas.space import Bound, CostMetric, SearchSpace

_MAX_PROMISING = 2_000  # architectures to choose from by latency
_NUM_TIMED, _MAX_TIMED = 24, 50  # to fit a model of latency; to try among those that are likely fast
_MAX_RUNS, _MAX_SECONDS = 15, 0.5  # limits per timed network; at least five runs


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An architecture within the limits.

    Args:
        inherited: What it inherits. Its `accuracy` is that on the search split.
        smoothed: Accuracy with less noise of the search split; see `smoothed_accuracies`.
        corrected: Expected accuracy after a training of its own, by the trainings of the run; None without a
            correction.
        latency_ms: Median time of a batch of one on the device of the query. None if there is no limit of latency.
    """

    arch: ArchConfig
    cost: Cost
    inherited: Inherited
    smoothed: float
    corrected: float | None
    latency_ms: float | None


def query(
    run: RunFolder,
    *,
    max_params: int | None = None,
    max_flops: int | None = None,
    max_latency_ms: float | None = None,
    number: int = 5,
    data: str | Path | None = None,
    device: torch.device | None = None,
    to: str | Path | None = None,
    reuse: Sequence[str | Path] = (),
    is_corrected: bool = True,
    on_note: Callable[[str], None] | None = None,
) -> list[Answer]:
    """Finds the most accurate architectures within the limits, by what they inherit, or corrected by trainings.

    A model that is fitted to the candidates chooses from thousands of architectures. The chosen ones are then measured
    on the search split. If the run has six trainings or more, the accuracies that are expected after them decide; see
    `propose.correction`.

    Args:
        run: A run with a trained supernet, and candidates that were ranked by it.
        number: Number of architectures to find.
        data: Folder of the data set, if it needs one.
        device: Device to measure on. By default a GPU if there is one, else the CPU.
        to: A new folder for the weights of the first architecture.
        reuse: Folders or URLs of other runs on the same data, whose trainings count; see `trained_alone`.
        is_corrected: Whether trainings correct the inherited accuracies.
        on_note: Called with notes about the data, and about the correction.

    Returns:
        Architectures, the most accurate first.

    Raises:
        RunFolderError: The run has no trained supernet or too few candidates, or nothing was found within the limits.
            Or the trainings to reuse do not compare.
        CvtNasError: The data are missing or not valid.
        StorageError: `to` is a URL.
    """
    if to is not None:
        check_target(to, called=f"--to {to}", makes_folders=True)
        to = Path(to)
    if to is not None and (why := why_no_text(to)):
        raise RunFolderError(f"--to {told(str(to))}: {why}")
    if to is not None and to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RunFolderError(f"--to {to}: is not empty; name a new folder")
    if device is None:
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    experiment = experiment_of(run)
    candidates = run.candidates()
    if experiment.supernet is None or not run.supernet.is_trained or len(candidates) < 3:
        raise RunFolderError(f"{run.path}: has no trained supernet with ranked candidates to search again")
    whole = _limited(experiment.space, {"params": max_params, "flops": max_flops})
    space = searched_space(dataclasses.replace(experiment, space=whole), run)
    setup = TrainingSetup.of(experiment, run=run, data=data).identified(run, on_note=on_note)
    setup = setup.on(device.type, num_threads=torch.get_num_threads(), gpus=1)
    inheritance, answers = open_inheritance(setup, device), list[Answer]()
    correction = None
    if is_corrected:
        sources = [RunFolder.open(place) for place in reuse]
        correction = correction_of(
            run, experiment, sources,
            setup=setup, limits=space, inherited=inheritance.measure, on_note=on_note,
        )  # fmt: skip
    observations = [
        Observation(genome=space.encode(candidate.arch), curve=(accuracy,), status=candidate.status)
        for candidate, accuracy in zip(candidates, smoothed_accuracies(candidates), strict=True)
    ]
    promising: list[ArchConfig] = []
    if (found := space.sample_feasible(random.Random(0), tries=20_000)) is not None:
        surrogate = Surrogate(space, costs=["params", "flops"], num_epochs=1, seed=int(run.manifest["seed"]))
        has_all = max_latency_ms is not None or correction is not None
        genomes = surrogate.most_accurate(observations, _MAX_PROMISING if has_all else number) or [found]
        if correction is not None:
            genomes = correction.most_accurate(genomes)
            genomes = genomes if max_latency_ms is not None else genomes[:number]
        promising = [space.decode(genome) for genome in genomes]
    if max_latency_ms is not None and promising:
        promising = _likely_fast(promising, max_latency_ms, device)
    for arch in promising:
        latency = None if max_latency_ms is None else latency_ms(arch, device)
        if latency is not None and max_latency_ms is not None and latency > max_latency_ms:
            continue
        inherited, cost = inheritance.measure(arch), space.cost(space.encode(arch))
        smoothed = smoothed_accuracies([inherited, *candidates])[0]
        answers.append(Answer(
            arch=arch, cost=cost, inherited=inherited, smoothed=smoothed, corrected=None, latency_ms=latency
        ))  # fmt: skip
        if len(answers) == number:
            break
    if not answers:
        limits = {"params": max_params, "flops": max_flops, "latency_ms": max_latency_ms}
        said = ", ".join(f"{name} up to {limit:g}" for name, limit in limits.items() if limit is not None)
        raise RunFolderError(f"{run.path}: nothing in the space was found with {said or 'any cost'}")
    if correction is not None:
        expected = correction.expect({space.encode(answer.arch): answer.inherited for answer in answers})
        answers = [
            dataclasses.replace(answer, corrected=float(value)) for answer, value in zip(answers, expected, strict=True)
        ]
    answers.sort(key=lambda answer: -(answer.smoothed if answer.corrected is None else answer.corrected))
    if to is not None:
        save_model(inheritance.model(answers[0].arch), to)
        save_preprocessing(setup.open_data(), to)
    return answers


def latency_ms(arch: ArchConfig, device: torch.device) -> float:
    """Median time of a forward pass of one image, in milliseconds."""
    return measure_latency(CvT(arch), device=device, max_seconds=_MAX_SECONDS, max_runs=_MAX_RUNS).median_ms


def _likely_fast(archs: Sequence[ArchConfig], limit: float, device: torch.device) -> list[ArchConfig]:
    """Architectures whose latency is likely within `limit`, in the order of `archs`. A linear model predicts it from
    some that are timed."""
    features = np.array(
        [[1, cost.flops, cost.params, sum(len(stage.blocks) for stage in arch.stages)]
         for arch in archs for cost in [cost_of(arch)]], dtype=float
    )  # fmt: skip
    features /= features.max(axis=0)
    by_flops = np.argsort(features[:, 1], kind="stable")
    timed = by_flops[np.unique(np.linspace(0, len(archs) - 1, _NUM_TIMED).astype(int))]
    times = np.array([latency_ms(archs[index], device) for index in timed])
    line, *_ = np.linalg.lstsq(features[timed], times, rcond=None)
    margin = np.abs(features[timed] @ line - times).mean()
    likely = np.flatnonzero(features @ line <= limit + margin)
    return [archs[index] for index in likely[:_MAX_TIMED]]


def _limited(space: SearchSpace, limits: dict[CostMetric, int | None]) -> SearchSpace:
    """`space` with its own bounds tightened to `limits`. Raises RunFolderError if nothing is within a limit."""
    bounds, (least, _) = dict(space.bounds), space.cost_range
    for metric, limit in limits.items():
        if limit is not None:
            if limit < getattr(least, metric):
                raise RunFolderError(
                    f"--max-{metric} {limit:g}: the space has nothing below {getattr(least, metric):g}"
                )
            own = bounds.get(metric, Bound())
            bounds[metric] = Bound(min=own.min, max=limit if own.max is None else min(limit, own.max))
    return dataclasses.replace(space, bounds=bounds)
