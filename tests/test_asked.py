import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cvt_nas.arch import NAMED_ARCHS, ArchConfig
from cvt_nas.config import Experiment
from cvt_nas.errors import ArchError, CvtNasError, RunFolderError
from cvt_nas.follow.asking import arch_in, ask_for_trials, ask_to_stop, ask_to_try, parse_arch, text_of
from cvt_nas.propose.asked import Asked
from cvt_nas.propose.journal import open_journal
from cvt_nas.propose.proposal import Proposal
from cvt_nas.propose.race import Race
from cvt_nas.propose.study import Study
from cvt_nas.results import Candidate, Request, TrialResult
from cvt_nas.run import RunFolder

pytestmark = pytest.mark.usefixtures("fast_disk")


@pytest.fixture
def run(small: Experiment, tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", small.manifest(seed=0, num_trials=4))


@pytest.fixture
def archs(small: Experiment) -> list[ArchConfig]:
    """Networks of the space that the search below does not propose by itself."""
    rng, found = random.Random(5), []
    while len(found) < 3:
        genome = small.space.sample_feasible(rng)
        assert genome is not None
        found.append(small.space.decode(genome))
    return found


def opened(
    run: RunFolder, experiment: Experiment, *, num_trials: int = 4, sampler: str = "random"
) -> tuple[Study, Race]:
    """As another process would, after the one before was killed."""
    study = Study(
        experiment.space, metrics=experiment.objectives, sampler=sampler, num_trials=num_trials, num_epochs=3, seed=0,
        storage=open_journal(run.journal_path, run.store), recorded=run.results(),
    )  # fmt: skip
    return study, Race(study, ask_first=Asked(study, run, experiment.space, is_fixed=False))


def end(run: RunFolder, race: Race, proposal: Proposal, experiment: Experiment) -> None:
    arch = experiment.space.decode(proposal.genome)
    result = TrialResult(
        number=proposal.number, arch=arch, status="complete", epochs=3, accuracy=0.5, cost=proposal.cost,
        curve=(0.3, 0.4, 0.5), seconds=1.0, train_seconds=1.0, seed=proposal.seed,
    )  # fmt: skip
    run.append(result)
    race.tell(result)


def asked(race: Race) -> Proposal:
    proposal = race.ask()
    assert proposal is not None
    return proposal


@pytest.mark.parametrize("sampler", ["random", "tpe", "surrogate"])
def test_what_is_asked_for_is_the_next_proposal_and_counts_as_a_trial(
    run: RunFolder, small: Experiment, archs: list[ArchConfig], sampler: str
) -> None:
    _, race = opened(run, small, sampler=sampler)
    end(run, race, asked(race), small)
    request = ask_to_try(run, archs[0])
    proposal = asked(race)
    assert small.space.decode(proposal.genome) == archs[0]
    assert run.requests.answers()[request.id].trial == proposal.number == 1
    end(run, race, proposal, small)
    others = [asked(race), asked(race)]
    assert race.ask() is None, "it is one of the four"
    assert archs[0] not in [small.space.decode(other.genome) for other in others]


def test_a_network_that_is_asked_for_when_every_trial_has_begun_is_trained_beyond_their_number(
    run: RunFolder, small: Experiment, archs: list[ArchConfig]
) -> None:
    _, race = opened(run, small, num_trials=1)
    asked(race)
    assert race.ask() is None
    ask_to_try(run, archs[0])
    assert small.space.decode(asked(race).genome) == archs[0]
    assert race.ask() is None


def test_a_search_that_is_killed_goes_on_with_what_was_asked_for_as_an_undisturbed_one_does(
    small: Experiment, archs: list[ArchConfig], tmp_path: Path
) -> None:
    def proposals(path: Path, kill: Callable[[int], bool]) -> list[str]:
        run = RunFolder.create(path, small.manifest(seed=0, num_trials=5))
        found, (_, race) = [], opened(run, small, num_trials=5, sampler="surrogate")
        for step in range(5):
            if step == 2:
                ask_to_try(run, archs[0])
                if kill(step):  # it is asked for, and not taken
                    _, race = opened(run, small, num_trials=5, sampler="surrogate")
            proposal = asked(race)
            if kill(step):  # it is taken, and not trained
                _, race = opened(run, small, num_trials=5, sampler="surrogate")
                again = asked(race)
                assert again == proposal
            found.append(small.space.arch_id(proposal.genome))
            end(run, race, proposal, small)
        assert race.ask() is None
        return found

    undisturbed = proposals(tmp_path / "undisturbed", lambda step: False)
    assert undisturbed.count(archs[0].id) == 1
    assert proposals(tmp_path / "killed", lambda step: step in (2, 3)) == undisturbed


def test_a_search_that_was_killed_before_it_answered_answers_and_begins_nothing_again(
    run: RunFolder, small: Experiment, archs: list[ArchConfig]
) -> None:
    study, race = opened(run, small)
    request = ask_to_try(run, archs[0])
    taken = study.ask_for(small.space.encode(archs[0]), request=request.id)  # and killed here
    assert [waiting.id for waiting in run.requests.waiting()] == [request.id]
    study, race = opened(RunFolder.open(run.path), small)
    assert asked(race) == taken, "it was in flight"
    following = asked(race)
    assert small.space.decode(following.genome) != archs[0]
    assert run.requests.answers()[request.id].trial == taken.number
    assert study.requested == {request.id: taken.number}


def test_what_was_asked_for_goes_before_paused_trials(
    run: RunFolder, small: Experiment, archs: list[ArchConfig]
) -> None:
    class Eager:
        """Would let a paused trial go on at any time."""

        num_promotable = 1

        def take_over(self, trial: object, *, is_paused: bool) -> str:
            return "pause"

        def decide(self, trial: object) -> str:
            return "pause"

        def promote(self) -> int:
            return 0

    study, _ = opened(run, small)
    race = Race(study, Eager(), ask_first=Asked(study, run, small.space, is_fixed=False))  # type: ignore[arg-type]
    first = asked(race)
    assert race.decide(first, (0.1,)) == "pause"
    ask_to_try(run, archs[0])
    assert small.space.decode(asked(race).genome) == archs[0]
    assert asked(race) == first


def test_more_trials_are_trained_when_they_are_asked_for_also_by_a_resumed_search(
    run: RunFolder, small: Experiment
) -> None:
    _, race = opened(run, small, num_trials=1)
    end(run, race, asked(race), small)
    assert race.ask() is None
    ask_for_trials(run, 6)
    assert [asked(race).number, asked(race).number] == [1, 2]
    assert run.num_planned == run.requests.num_trials(1) == 6
    assert run.requests.num_trials(8) == 8, "as --trials 8 would ask"
    again = RunFolder.open(run.path)
    _, race = opened(again, small, num_trials=again.requests.num_trials(1))
    assert [asked(race).number for _ in range(5)] == [1, 2, 3, 4, 5]
    assert race.ask() is None


def test_trials_that_are_the_best_of_candidates_do_not_become_more(run: RunFolder, small: Experiment) -> None:
    study, _ = opened(run, small, num_trials=1)
    request = ask_for_trials(run, 6)
    assert Asked(study, run, small.space, is_fixed=True)() is None
    answer = run.requests.answers()[request.id]
    assert answer.refused is not None
    assert "resume it with --trials" in answer.refused
    assert run.num_planned == 4


def test_the_search_refuses_what_lies_outside_its_space_or_has_a_trial_whoever_wrote_it(
    run: RunFolder, small: Experiment
) -> None:
    _, race = opened(run, small)
    first = asked(race)
    outside = run.requests.add("try", arch=NAMED_ARCHS["cvt-13"])
    known = run.requests.add("try", arch=small.space.decode(first.genome))
    assert asked(race).number == 1
    answers = run.requests.answers()
    assert answers[outside.id].refused is not None
    assert answers[outside.id].describe().startswith("refused: is not in the space: ")
    assert answers[known.id].describe() == "refused: trial 0 has this architecture"


def test_a_file_that_is_no_request_disturbs_nothing(run: RunFolder, small: Experiment) -> None:
    kept = run.requests.add("trials", trials=7)
    folder = run.path / "requests"
    for name, text in {
        "torn": '{"id": "torn", "cre', "other": json.dumps({**kept.to_json(), "id": "another"}), "list": "[]",
        "kind": '{"id": "kind", "created": "", "ask": "delete"}', "bare": '{"id": "bare", "created": "", "ask": "try"}',
        "huge": '{"id": "huge", "created": "", "ask": "trials", "trials": 1e999}', "deep": "[" * 100_000,
    }.items():  # fmt: skip
        (folder / f"{name}.json").write_text(text)
    assert RunFolder.open(run.path).requests.all() == (kept,)


def test_a_request_is_read_as_it_was_written(run: RunFolder, archs: list[ArchConfig]) -> None:
    written = (run.requests.add("try", arch=archs[0]), run.requests.add("trials", trials=7), run.requests.add("stop"))
    assert RunFolder.open(run.path).requests.all() == written
    assert [Request.from_json(request.to_json()) for request in written] == list(written)


def test_an_architecture_is_read_from_choices_its_file_an_id_or_a_name(
    run: RunFolder, small: Experiment, archs: list[ArchConfig]
) -> None:
    _, race = opened(run, small)
    end(run, race, asked(race), small)
    (trained,) = run.results()
    assert parse_arch(text_of(archs[1], run), run) == archs[1]
    assert (
        parse_arch(json.dumps(Request(id="", created="", ask="try", arch=archs[1]).to_json()["arch"]), run) == archs[1]
    )
    assert parse_arch(trained.arch_id[:8], run) == trained.arch
    assert parse_arch(f"{trained.number}", run) == trained.arch
    assert parse_arch("cvt-13", run) == NAMED_ARCHS["cvt-13"]


@pytest.mark.parametrize(("text", "said"), [
    ("", "the architecture cannot be read: give choices such as"),
    ("stage0.kv_stride: 2", "is missing"),
    ("stage9.depth: 2", "stage9.depth: is no choice of the space, which has stage0.embed_dim"),
    ("stage0.depth: [1, 2]", "'stage0.depth: .1, 2.': must be as stage0.depth: 2"),
    ("stage0.depth: 2020-13-45", "stage0.depth: got 2020-13-45: month must be in 1..12"),
    ("/etc/passwd", "the architecture cannot be read"),
    ("abcdef", "no architecture with an id that begins with 'abcdef'; it has none yet"),
    ("12", "no architecture with trial number 12 or an id that begins with '12'; it has none yet"),
    ('{"stages": 3}', "not an architecture"),
    ('{"stages": [', "the architecture cannot be read: not JSON"),
    ('{"stages": ' + "[" * 30_000, "the architecture cannot be read: not JSON"),
])  # fmt: skip
def test_what_is_no_architecture_is_told_in_words(run: RunFolder, text: str, said: str) -> None:
    with pytest.raises(CvtNasError, match=said):
        parse_arch(text, run)


def test_an_id_that_the_run_lacks_is_told_with_those_that_it_has_nearest_first(
    run: RunFolder, small: Experiment
) -> None:
    _, race = opened(run, small)
    for _ in range(3):
        end(run, race, asked(race), small)
    ids = [result.arch_id for result in run.results()]
    wrong = ids[1][:5] + ("0" if ids[1][5] != "0" else "1")
    with pytest.raises(RunFolderError, match=f"begins with '{wrong}'; the nearest of its 3 are {ids[1]}, "):
        arch_in(run, wrong)
    with pytest.raises(RunFolderError, match="3 architectures with an id that begins with ''; they are "):
        arch_in(run, "")


def test_a_number_that_is_also_the_beginning_of_another_id_is_refused_and_both_are_named(
    run: RunFolder, small: Experiment
) -> None:
    _, race = opened(run, small)
    proposal = asked(race)
    end(run, race, proposal, small)
    numbered = small.space.arch_id(proposal.genome)
    rng = random.Random(7)
    while True:
        genome = small.space.sample_feasible(rng)
        assert genome is not None
        if small.space.arch_id(genome).startswith("0") and small.space.arch_id(genome) != numbered:
            break
    other, cost = small.space.decode(genome), small.space.cost(genome)
    run.append_candidate(Candidate(number=0, arch=other, cost=cost, accuracy=0.5, num_images=9, seconds=1.0))
    assert arch_in(run, other.id[:8]) == other, "a candidate that was ranked is found too"
    with pytest.raises(
        RunFolderError, match="2 architectures with trial number 0 or an id that begins with '0'"
    ) as told:
        arch_in(run, "0")
    assert numbered in str(told.value)
    assert other.id in str(told.value)


def test_what_cannot_be_done_is_refused_when_it_is_asked(
    run: RunFolder, small: Experiment, archs: list[ArchConfig], tmp_path: Path
) -> None:
    with pytest.raises(RunFolderError, match="no search is at work, so there is nothing to stop"):
        ask_to_stop(run)
    with pytest.raises(RunFolderError, match="4 trials: must be above the 4 that are planned"):
        ask_for_trials(run, 4)
    with pytest.raises(ArchError, match="is not in the space: stage0.embed_dim: 64 is not one of"):
        ask_to_try(run, NAMED_ARCHS["cvt-13"])
    ask_to_try(run, archs[0])
    with pytest.raises(RunFolderError, match="was asked for already, and waits"):
        ask_to_try(run, archs[0])
    training = RunFolder.create(tmp_path / "training", {**small.manifest(seed=0, num_trials=1), "arch_id": "x"})
    with pytest.raises(RunFolderError, match="is the training of one architecture, and no search"):
        ask_to_try(training, archs[0])


def test_what_breaks_a_constraint_is_refused_when_it_is_asked(small: Experiment, tmp_path: Path) -> None:
    least, greatest = small.space.cost_range
    limit = (least.params + greatest.params) // 2
    tight = small.changed(constraints={"params": {"max": limit}})
    run = RunFolder.create(tmp_path / "tight", tight.manifest(seed=0, num_trials=4))
    with pytest.raises(ArchError, match="is outside the constraints of the space file"):
        ask_to_try(run, small.space.largest)
