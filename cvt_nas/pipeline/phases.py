"""The phases of a search, in order."""

from collections.abc import Generator, Sequence

from cvt_nas.config import Experiment
from cvt_nas.launch.search import Search
from cvt_nas.launch.trial import read_test_split
from cvt_nas.launch.trials import run_trials
from cvt_nas.pipeline.confirm import confirm_front
from cvt_nas.pipeline.inherit import heirs, measured_whole, rank_candidates, record_as_trials, train_weights
from cvt_nas.pipeline.latency import measure_front
from cvt_nas.pipeline.narrowing import searched_space, train_and_narrow
from cvt_nas.propose.asked import Asked
from cvt_nas.propose.earlier import beliefs_of
from cvt_nas.propose.journal import open_journal
from cvt_nas.propose.race import race_of
from cvt_nas.propose.study import Study
from cvt_nas.results import TrialResult, smoothed_accuracies
from cvt_nas.results.events import RaceEvent
from cvt_nas.run import RunFolder
from cvt_nas.space import Genome

Phase = Generator[RaceEvent, None, bool]  # yields events; returns whether it is done, so the next can begin


def run_phases(search: Search) -> Generator[RaceEvent, None, None]:
    """Runs all phases in order, until the search is to stop. Each phase skips what is done already."""
    for phase in (train_supernet, rank_subnets, race_trials, confirm_front):
        if not (yield from phase(search)):
            return
    test_front(search)
    measure_front(search)


def train_supernet(search: Search) -> Phase:
    """Trains the supernet, if there is one. DA-NAS also narrows the space."""
    if search.setup.shared is None:
        return True
    is_da_nas = search.experiment.search.weights == "da-nas"
    return (yield from (train_and_narrow(search) if is_da_nas else train_weights(search)))


def rank_subnets(search: Search) -> Phase:
    """Ranks candidates by their inherited accuracies. Without further training, they become the trials."""
    if search.setup.shared is None:
        return True
    is_ranked = yield from rank_candidates(search, searched_space(search.experiment, search.run))
    if search.experiment.training.epochs == 0:
        record_as_trials(search)  # also if the ranking was stopped early
    return is_ranked


def race_trials(search: Search) -> Phase:
    """Trains the architectures that the study proposes, until there are no more."""
    experiment, run = search.experiment, search.run
    if experiment.training.epochs == 0:
        return True
    study = open_study(experiment, run, num_trials=search.num_trials, seed=search.seed)
    asked = Asked(study, run, experiment.space, is_fixed=bool(run.candidates()))
    race = race_of(experiment, study, run.results(), rungs=experiment.rungs_of(run.manifest), ask_first=asked)
    yield from run_trials(search, race, keep=run.append)
    return study.is_done


def open_study(experiment: Experiment, run: RunFolder, *, num_trials: int, seed: int) -> Study:
    """The study on a run's journal, which optuna-dashboard can open at the same time.

    If the run has candidates, the trials are the anchors and then candidates: the best ones by inherited accuracy and
    cost, or those that the surrogate chooses.
    """
    first, ranked, inherited = dict(experiment.anchors), dict[str, Genome](), dict[Genome, float]()
    if candidates := run.candidates():
        whole = measured_whole(candidates)
        genomes = (experiment.space.encode(found.arch) for found in whole)
        inherited = dict(zip(genomes, smoothed_accuracies(whole), strict=True))
        ranked = heirs(experiment, candidates)
        first |= ranked
        num_trials = min(num_trials, len(set(first.values())))
    return Study(
        experiment.space,
        metrics=experiment.objectives,
        sampler=experiment.search.sampler,
        storage=open_journal(run.journal_path, run.store),
        num_trials=num_trials,
        num_epochs=experiment.training.epochs,
        seed=seed,
        anchors=first,
        heirs=list(ranked),
        inherited=inherited,
        per_second=experiment.search.per == "second",
        beliefs=beliefs_of(experiment, run),
        recorded=run.results(),
    )


def test_front(search: Search) -> None:
    """Evaluates members of the front on the test split, with the weights of the race. Each member is evaluated once."""
    known = search.run.test_accuracies()
    members: Sequence[TrialResult] = [m for m in search.run.front().members if m.arch_id not in known]
    for member, (accuracy, num_images) in zip(
        members, read_test_split(members, search.setup, search.resources), strict=True
    ):
        search.run.append_test_accuracy(member.number, member.arch_id, accuracy, num_images)
