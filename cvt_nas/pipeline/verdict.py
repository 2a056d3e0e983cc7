"""The quality gate of a supernet: trains architectures standalone until their ranks tell how good the supernet is."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

from cvt_nas.config import Experiment, experiment_of
from cvt_nas.engine import TrainingSetup, find_teacher, keep_lent, open_lent, share_answers
from cvt_nas.errors import RunFolderError
from cvt_nas.launch.resources import Resources, claim_resources
from cvt_nas.launch.search import Search
from cvt_nas.launch.trials import run_trials
from cvt_nas.pipeline.inherit import measured_whole
from cvt_nas.pipeline.judging import MIN_JUDGED, Judged, inherited_of, look
from cvt_nas.pipeline.narrowing import searched_space
from cvt_nas.pipeline.reuse import trained_alone
from cvt_nas.pipeline.sample import Member, ended_members, is_over, planned, trainings
from cvt_nas.pipeline.searching import ProgressFactory
from cvt_nas.propose.race import FixedPlan, Race
from cvt_nas.propose.samplers import derive_seed
from cvt_nas.results import DataIdentity, Origin, SupernetQuality, TrialResult
from cvt_nas.results.effort import MOST_ARCHS, Effort, EvaluationPlan, efforts, seconds_of
from cvt_nas.results.events import following
from cvt_nas.run import RunFolder
from cvt_nas.space import spread_over_flops


def evaluate_supernet(
    run: RunFolder,
    *,
    num_archs: int = 40,
    num_seeds: int = 2,
    epochs: int | None = None,
    reuse: Sequence[str | Path] = (),
    until_told: bool = True,
    data: str | Path | None = None,
    gpus: int | None = None,
    gpus_per_trial: float | None = None,
    cpus: int | None = None,
    address: str | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    stop: threading.Event | None = None,
    progress: ProgressFactory | None = None,
    on_plan: Callable[[EvaluationPlan], bool] | None = None,
    on_look: Callable[[str], None] | None = None,
) -> SupernetQuality | None:
    """Judges the supernet of `run` by architectures spread over log-FLOPs, each trained with `num_seeds` seeds.

    The trainings follow the run's `training` section, without a scheduler, in a separate run inside its folder.
    Trainings that are there already are not repeated, so the evaluation can be stopped, resumed, and extended to more
    architectures. After each architecture, it checks whether there are enough for an answer (`results.telling`), and
    ends if there are.

    Args:
        num_archs: Largest number of architectures.
        epochs: Epochs of each training. It overrides the file.
        reuse: Folders or URLs of other runs on the same data, whose trainings are not repeated; see `trained_alone`.
        until_told: Whether to end as soon as there is an answer. Otherwise, all `num_archs` are trained.
        data: Folder of the data set, if it needs one.
        gpus, gpus_per_trial, cpus, address, device: See `claim_resources`.
        stop: Ends the trainings in an orderly way once it is set.
        progress: See `search`.
        on_plan: Called with a forecast of the effort. Nothing is trained if it returns False.
        on_look: Called with a line whenever further architectures are complete.

    Returns:
        The judgement, which is also written to the folder. None if `on_plan` returned False, or if it was stopped
        before there was an answer or before every architecture was trained.

    Raises:
        RunFolderError: The run has no trained supernet, or its file has no epochs to train for. The folder has
            trainings of another length. Fewer than 8 or more than 500 architectures are asked for. Fewer than 8 were
            trained in full, since others diverged. Or the trainings to reuse do not compare.
        CvtNasError: Data or resources are missing or not valid.
    """
    stop = threading.Event() if stop is None else stop
    experiment = _standalone(experiment_of(run), run, epochs)
    seed = int(run.manifest["seed"])
    if not MIN_JUDGED <= num_archs <= MOST_ARCHS:
        raise RunFolderError(f"{num_archs} architectures: must be {MIN_JUDGED} to {MOST_ARCHS}")
    # the first of a fixed number of draws, so that a larger num_archs only adds architectures
    space = searched_space(experiment, run)
    drawn = spread_over_flops(space, MOST_ARCHS, seed=derive_seed(seed, 0, "quality"))[:num_archs]
    if len(drawn) < MIN_JUDGED:
        raise RunFolderError(
            f"{run.path}: its space has {len(drawn)} architectures, too few to judge by: must be {MIN_JUDGED} or more"
        )
    genomes = [experiment.space.encode(space.decode(genome)) for genome in drawn]
    of_supernet = TrainingSetup.of(experiment, run=run, data=data).checked(run)
    assert of_supernet.identity is not None, "it was just looked at"
    others = trained_alone(
        [RunFolder.open(place) for place in reuse], experiment, run,
        identity=of_supernet.identity, metric=of_supernet.metric,
    )  # fmt: skip
    alone = _open_standalone(run, experiment, of_supernet.identity, seed=seed, num_trainings=len(genomes) * num_seeds)
    answers, teacher = None, find_teacher(of_supernet, init=None, run=run) if "teacher" in run.manifest else None
    if teacher is not None:
        share_answers(run, alone, answers := teacher.answers)
    setup = dataclasses.replace(of_supernet, run=alone, shared=None, answers=answers)
    with (
        alone.locked(),
        claim_resources(
            gpus=gpus, gpus_per_trial=gpus_per_trial, cpus=cpus, address=address, device=device
        ) as resources,
    ):
        members = planned(genomes, experiment.space, others, ended=alone.results())
        done = {result.number for result in alone.results() if is_over(result)}
        every = trainings(members, seed=seed, num_seeds=num_seeds)
        left = [proposal for proposal in every if proposal.number not in done]
        if on_plan is not None:
            plan = _plan_of(
                members, run, alone, resources, num_seeds=num_seeds, num_trainings=len(every), num_left=len(left)
            )
            if not on_plan(plan):
                return None
        setup, of_supernet = (
            dataclasses.replace(each, device=resources.device, num_threads=resources.num_threads)
            for each in (setup, of_supernet)
        )
        inherited = inherited_of(
            [*(member.arch for member in members), *(each.arch for each in others)],
            experiment, run, of_supernet, resources, stop=stop,
        )  # fmt: skip
        if inherited is None:
            return None
        told = _Told(stop)

        def look_now() -> Judged | None:
            whole = ended_members(members, alone.results(), num_seeds=num_seeds)
            return look(whole, inherited, until_told=until_told)

        def is_enough(seen: Judged | None) -> bool:
            return until_told and seen is not None and seen.is_told

        follow = nullcontext(following()) if progress is None else progress(alone, resources, len(every), None)
        with follow as on_event:
            found = look_now()
            if left and not is_enough(found):
                search = Search(
                    experiment=experiment, run=alone, setup=setup, resources=resources, seed=seed,
                    num_trials=len(left), stop=told,
                )  # fmt: skip
                for event in run_trials(search, Race(FixedPlan(left)), keep=alone.append, keep_models=False):
                    on_event(event)
                    if not isinstance(event, TrialResult):
                        continue
                    before = 0 if found is None else len(found.members)
                    found = look_now()
                    if found is not None and len(found.members) > before and on_look is not None:
                        on_look(found.line())
                    if is_enough(found):
                        told.set()
        if not is_enough(found) and stop.is_set():
            return None
        if found is None:
            whole = ended_members(members, alone.results(), num_seeds=num_seeds)
            raise RunFolderError(f"{alone.path}: {len(whole)} architectures were trained in full, too few to judge by")
    quality = found.quality(
        experiment.space,
        others=others,
        candidates=measured_whole(run.candidates()),
        origin=Origin(
            dataset=experiment.data.dataset,
            num_images=setup.open_data().num_images("search"),
            epochs=experiment.training.epochs,
            seed=seed,
        ),
        seed=seed,
        is_reusing=bool(reuse),
    )
    run.supernet.write_quality(quality)
    return quality


class _Told(threading.Event):
    """An event that is set when there is an answer, or when the user stops."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop

    def is_set(self) -> bool:
        return super().is_set() or self._stop.is_set()


def _plan_of(
    members: Sequence[Member],
    run: RunFolder,
    alone: RunFolder,
    resources: Resources,
    *,
    num_seeds: int,
    num_trainings: int,
    num_left: int,
) -> EvaluationPlan:
    num_epochs = alone.manifest["epochs"]
    timed = [
        (result.cost.flops, result.train_seconds / len(result.curve) * num_epochs)
        for result in (*alone.results(), *run.results())
        if result.curve and result.train_seconds > 0
    ]
    seconds = seconds_of(timed, [member.cost.flops for member in members])
    minutes = None if seconds is None else seconds / 60 / resources.num_slots
    return EvaluationPlan(
        archs=len(members),
        seeds=num_seeds,
        trainings=num_trainings,
        done=num_trainings - num_left,
        reused=sum(bool(member.reused) for member in members),
        minutes=None if minutes is None else minutes * num_left,
        efforts=tuple(
            Effort(
                question=question, value=value, archs=archs,
                minutes=None if minutes is None or archs is None else minutes * archs * num_seeds,
            )
            for question, value, archs in efforts(num_seeds)
        ),
    )  # fmt: skip


def _standalone(experiment: Experiment, run: RunFolder, epochs: int | None) -> Experiment:
    if not run.supernet.is_trained:
        raise RunFolderError(f"{run.path}: has no trained supernet; it needs search.weights: supernet")
    num_epochs = experiment.training.epochs if epochs is None else epochs
    if num_epochs == 0:
        raise RunFolderError(f"{run.path}: its training.epochs are 0; say how long to train each by --epochs N")
    return dataclasses.replace(experiment, training=experiment.training.lasting(num_epochs))


def _open_standalone(
    run: RunFolder, experiment: Experiment, identity: DataIdentity, *, seed: int, num_trainings: int
) -> RunFolder:
    alone = run.standalone
    alone.refresh()
    if not alone.has_begun:
        if run.lends_weights:  # first, since a folder with a manifest is taken to have them
            keep_lent(open_lent(run), alone, alone.init_path)
        alone.begin({**experiment.manifest(seed=seed, num_trials=num_trainings), "data": identity.to_json()})
        return alone
    if (known := DataIdentity.of(alone.manifest)) is not None:
        known.check_same(identity, str(alone.path))
    if alone.manifest["epochs"] != experiment.training.epochs:
        raise RunFolderError(
            f"{alone.path} holds trainings of {alone.manifest['epochs']} epochs; go on with --epochs "
            f"{alone.manifest['epochs']}, or move it away"
        )
    return alone
