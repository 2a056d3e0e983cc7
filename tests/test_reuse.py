"""Trainings of other runs that judge a supernet, without training anything."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from conftest import small_digits
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.errors import RunFolderError
from cvt_nas.pipeline.reuse import Alone, drawn_numbers, trained_alone
from cvt_nas.pipeline.sample import Member, ended_members, planned, trainings
from cvt_nas.results import DataIdentity, Status, TrialResult, further_number
from cvt_nas.run import RunFolder
from cvt_nas.space import Genome, spread_over_flops

IDENTITY = DataIdentity(
    num_classes=10, classes_sha256="c", files_sha256="f", images={"train": 100}, splits={"train": 80, "search": 20}
)
Make = Callable[..., RunFolder]


def experiment_with(**search: object) -> Experiment:
    settings = {"trials": 14, "sampler": "surrogate", "scheduler": "none", "seed": 0} | search
    more = "supernet: {epochs: 1}\n" if search.get("weights") == "supernet" else ""
    return parse_experiment(small_digits(**{"search:": f"{more}search: {json.dumps(settings)}"}), "space.yaml")


OURS = experiment_with(weights="supernet", trials=3, candidates=10)


def trial(experiment: Experiment, number: int, genome: Genome, status: Status = "complete") -> TrialResult:
    curve = (0.5, 0.6, 0.7 + number / 1_000)
    return TrialResult(
        number=number, arch=experiment.space.decode(genome), status=status, epochs=3, accuracy=curve[-1],
        cost=experiment.space.cost(genome), curve=curve, seconds=1.0, train_seconds=1.0, seed=number,
    )  # fmt: skip


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run whose race is over: trials of random networks, after the anchors; some of another status."""

    def made(
        name: str, experiment: Experiment, statuses: dict[int, Status] | None = None, **manifest: object
    ) -> RunFolder:
        run = RunFolder.create(
            tmp_path / name,
            {
                **experiment.manifest(seed=0, num_trials=14),
                "data": IDENTITY.to_json(),
                "metric": "accuracy",
                **manifest,
            },
        )
        rng = random.Random(0)
        genomes = [*experiment.anchors.values(), *(experiment.space.sample(rng) for _ in range(14))]
        for number, genome in enumerate(genomes[:14]):
            run.append(trial(experiment, number, genome, (statuses or {}).get(number, "complete")))
        return run

    return made


@pytest.fixture
def run(make: Make) -> RunFolder:
    return make("ours", OURS)


def alone_of(sources: Sequence[RunFolder], run: RunFolder) -> list[Alone]:
    return trained_alone(sources, OURS, run, identity=IDENTITY, metric="accuracy")


def test_the_draws_of_an_initial_design_are_drawn_and_what_the_race_chose_is_not(make: Make, run: RunFolder) -> None:
    source = make("scratch", experiment_with())
    num_anchors = len(OURS.anchors)
    assert num_anchors >= 1
    expected = set(range(num_anchors + 1, 10))  # without the anchors and the cheapest
    assert drawn_numbers(source, experiment_with()) == expected
    found = {each.arch.id: each.is_drawn for each in alone_of([source], run)}
    for result in source.results():
        assert found[result.arch_id] == (result.number in expected)


def test_a_race_that_stopped_one_of_its_draws_has_no_draws(make: Make, run: RunFolder) -> None:
    source = make("halved", experiment_with(), {5: "stopped"})
    assert drawn_numbers(source, experiment_with()) == set()
    found = alone_of([source], run)
    assert not any(each.is_drawn for each in found)
    assert source.results()[5].arch_id not in {each.arch.id for each in found}


def test_a_race_that_is_not_over_has_no_draws_of_a_random_sampler(make: Make, run: RunFolder) -> None:
    random_one = experiment_with(sampler="random")
    assert len(drawn_numbers(make("over", random_one), random_one)) == 14 - len(OURS.anchors)
    assert drawn_numbers(make("going", random_one, trials=20), random_one) == set()


def test_trials_that_began_with_a_supernet_never_count(make: Make, run: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="has no network of this space that was trained by itself"):
        alone_of([make("inherited", OURS)], run)


def test_standalone_trainings_of_another_run_count_with_all_their_seeds(make: Make, run: RunFolder) -> None:
    other = make("other", OURS)
    other.standalone.begin({**OURS.manifest(seed=0, num_trials=2), "data": IDENTITY.to_json()})
    genome = OURS.space.smallest
    for round_ in (1, 2):
        other.standalone.append(trial(OURS, further_number(7, round_), OURS.space.encode(genome)))
    (found,) = alone_of([other], run)
    assert found.is_drawn
    assert len(found.accuracies) == 2


@pytest.mark.parametrize(
    ("change", "manifest", "message"),
    [
        ({"  epochs:": "  epochs: 4"}, {}, "has trainings of 4 epochs, and these are of 3"),
        ({"  lr:": "  lr: 0.5"}, {}, "has another section training"),
        ({}, {"metric": "macro_f1"}, "maximised macro_f1, and this run accuracy"),
        ({}, {"init": {"path": "w", "sha256": "x", "importance": "none"}}, "has another weights to begin with"),
    ],
)
def test_what_does_not_compare_is_refused(
    make: Make, run: RunFolder, change: dict[str, str], manifest: dict[str, object], message: str
) -> None:
    text = small_digits(**{"search:": "search: {trials: 14, sampler: random, scheduler: none}", **change})
    with pytest.raises(RunFolderError, match=message):
        alone_of([make("other", parse_experiment(text, "other.yaml"), **manifest)], run)


def test_the_run_itself_is_refused(run: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="is the run itself"):
        alone_of([run], run)


def test_a_run_that_is_named_twice_is_refused(make: Make, run: RunFolder, tmp_path: Path) -> None:
    source, link, itself = make("scratch", experiment_with()), tmp_path / "link", tmp_path / "itself"
    link.symlink_to(source.path)
    itself.symlink_to(run.path)
    for again in (source.path, link):
        with pytest.raises(RunFolderError, match="is named twice, and its trainings would count twice"):
            alone_of([source, RunFolder.open(again)], run)
    with pytest.raises(RunFolderError, match="is the run itself"):
        alone_of([RunFolder.open(itself)], run)


def members_of(alone: Sequence[Alone], ended: Sequence[TrialResult] = ()) -> tuple[list[Genome], list[Member]]:
    genomes = spread_over_flops(OURS.space, 12, seed=1)
    return genomes, planned(genomes, OURS.space, alone, ended=ended)


def test_a_drawn_network_stands_for_a_planned_one_of_its_flops_and_a_chosen_one_for_none() -> None:
    spread = spread_over_flops(OURS.space, 40, seed=2)
    drawn, chosen = (
        Alone(arch=OURS.space.decode(genome), accuracies=(0.7,), is_drawn=is_drawn)
        for genome, is_drawn in ((spread[20], True), (spread[21], False))
    )
    genomes, members = members_of([drawn, chosen])
    assert len(members) == len(genomes)
    ids = [member.arch.id for member in members]
    assert drawn.arch.id in ids
    assert chosen.arch.id not in ids
    at = ids.index(drawn.arch.id)
    logs = np.log([OURS.space.cost(genome).flops for genome in genomes])
    assert abs(np.log(members[at].cost.flops) - logs[at]) <= np.ptp(logs) / 10 + 1e-9
    assert len(trainings(members, seed=0, num_seeds=2)) == 2 * 12 - 1
    assert len({proposal.number for proposal in trainings(members, seed=0, num_seeds=2)}) == 23


def test_a_planned_network_that_has_begun_is_not_replaced() -> None:
    spread = spread_over_flops(OURS.space, 40, seed=2)
    alone = [Alone(arch=OURS.space.decode(genome), accuracies=(0.7,), is_drawn=True) for genome in spread]
    genomes = spread_over_flops(OURS.space, 12, seed=1)
    begun = trial(OURS, further_number(3, 1), genomes[3])
    _, members = members_of(alone, [begun])
    assert members[3].arch.id == begun.arch_id
    assert sum(bool(member.reused) for member in members) >= 8


def test_a_network_that_stood_in_for_another_keeps_its_trainings_where_a_larger_sample_plans_it() -> None:
    spread = spread_over_flops(OURS.space, 12, seed=1)
    for genome in spread_over_flops(OURS.space, 40, seed=1)[12:]:
        alone = [Alone(arch=OURS.space.decode(genome), accuracies=(0.7,), is_drawn=True)]
        few = planned(spread, OURS.space, alone, ended=())
        begun = [each for each in trainings(few, seed=0, num_seeds=2) if each.genome == genome]
        if begun:
            break
    else:
        pytest.fail("none of them stands in for another")
    more = planned([*spread, genome], OURS.space, alone, ended=[trial(OURS, begun[0].number, genome)])
    assert [each for each in trainings(more, seed=0, num_seeds=2) if each.genome == genome] == begun


def test_small_networks_that_end_first_wait_for_those_before_them() -> None:
    genomes, members = members_of([])
    results = [
        trial(OURS, further_number(index, round_), genome) for index, genome in enumerate(genomes) for round_ in (1, 2)
    ]
    without_second = [result for result in results if result.number != further_number(4, 2)]
    assert [member.index for member, _ in ended_members(members, without_second, num_seeds=2)] == [0, 1, 2, 3]
    assert len(ended_members(members, results, num_seeds=2)) == 12
    lost = [trial(OURS, further_number(4, 2), genomes[4], "diverged"), *without_second]
    assert [member.index for member, _ in ended_members(members, lost, num_seeds=2)] == [0, 1, 2, 3, *range(5, 12)]
