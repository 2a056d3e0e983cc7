"""The rungs: who goes on, who waits and who is promoted; and the rankings."""

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cvt_nas.propose.asha import Asha, Ranking, accuracy_ranks, pareto_ranks


def asha(
    ranking: Ranking = accuracy_ranks, *, max_epochs: int = 8, grace: int = 2, factor: int = 2, **more: Any
) -> Asha:
    return Asha(max_epochs=max_epochs, grace_period=grace, reduction_factor=factor, ranking=ranking, **more)


def test_asha_stops_the_worse_half_at_each_rung_and_decides_nowhere_else() -> None:
    rungs = asha()
    assert list(rungs.rungs) == [2, 4]
    assert rungs.decide(0, 1, [1.0]) == "go"
    assert rungs.decide(0, 2, [0.5]) == "go"  # the first on a rung has nothing to be compared with
    assert rungs.decide(1, 2, [0.6]) == "stop"
    assert rungs.decide(2, 2, [0.4]) == "go"
    assert rungs.decide(3, 2, [0.6]) == "stop"
    assert rungs.decide(4, 2, [0.45]) == "go"
    assert rungs.decide(2, 8, [1.0]) == "go"


def test_asha_keeps_about_one_in_reduction_factor() -> None:
    rungs, rng = asha(max_epochs=9, grace=1, factor=3), random.Random(0)
    num_kept = sum(rungs.decide(number, 1, [rng.random()]) == "go" for number in range(600))
    assert num_kept == pytest.approx(200, abs=46)  # four standard deviations of a binomial


def test_a_paused_trial_is_promoted_once_there_is_room_for_it() -> None:
    rungs = asha(max_epochs=9, grace=1, factor=3, mode="promote")
    assert [rungs.decide(number, 1, [loss]) for number, loss in enumerate([0.5, 0.2, 0.6])] == ["go", "pause", "pause"]
    assert rungs.promote() is None  # one of three has gone on
    assert rungs.decide(3, 1, [0.4]) == "pause", "the one that waits is better"
    assert [rungs.promote(), rungs.promote()] == [1, None]
    assert [rungs.decide(number, 1, [0.9]) for number in (4, 5, 6)] == ["pause"] * 3
    assert [rungs.promote(), rungs.promote()] == [3, None]  # the third of seven
    assert not rungs.is_paused(3)
    assert rungs.is_paused(2)


def test_a_trial_that_is_among_the_best_when_it_arrives_does_not_pause() -> None:
    rungs = asha(max_epochs=9, grace=1, factor=2, mode="promote")
    decisions = [rungs.decide(number, 1, [loss]) for number, loss in enumerate([0.5, 0.6, 0.3, 0.2, 0.1])]
    assert decisions == ["go", "pause", "go", "pause", "go"]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(2, 4), st.sampled_from(["stop", "promote"]))
@example(list(range(60, 0, -1)), 3, "promote")  # each better than all before
@example(list(range(60, 0, -1)), 3, "stop")
def test_no_more_trials_pass_a_rung_than_one_in_reduction_factor(losses: list[int], factor: int, mode: Any) -> None:
    rungs, passed = asha(max_epochs=20, grace=1, factor=factor, mode=mode), set[int]()
    for number, loss in enumerate(losses):
        while (promoted := rungs.promote()) is not None:
            passed.add(promoted)
        if rungs.decide(number, 1, [float(loss)]) == "go":
            passed.add(number)
        allowed = math.ceil((number + 1) / factor)
        assert len(passed) <= (allowed if mode == "promote" else max(allowed, factor - 1))
    while (promoted := rungs.promote()) is not None:
        passed.add(promoted)
    if mode == "promote":
        assert len(passed) == math.ceil(len(losses) / factor), "nobody waits while there is room"
        waiting = sorted(losses[number] for number in range(len(losses)) if rungs.is_paused(number))
        assert len(waiting) == len(losses) - len(passed)


@pytest.mark.parametrize("mode", ["stop", "promote"])
def test_a_trial_that_has_passed_a_rung_passes_it_again(mode: Any) -> None:
    rungs = asha(max_epochs=9, grace=1, factor=3, mode=mode)
    assert rungs.decide(0, 1, [0.9]) == "go"
    for number in range(1, 6):
        rungs.decide(number, 1, [0.1])
    assert rungs.decide(0, 1, [0.9]) == "go"  # its worker died, and an older checkpoint was found
    assert not rungs.is_paused(0)


def passing(rungs: Asha, losses: list[tuple[float, float]]) -> set[int]:
    """Trials that pass the rung at epoch 2 once all have arrived."""
    passed = {number for number, loss in enumerate(losses) if rungs.decide(number, 2, loss) == "go"}
    while (number := rungs.promote()) is not None:
        passed.add(number)
    return passed


def test_the_cheap_end_survives_a_pareto_rung_and_not_one_of_accuracy_alone() -> None:
    losses = [(0.1 + 0.05 * index, 1000.0 - 100 * index) for index in range(9)]  # each cheaper and worse than the last
    losses += [(0.9, 1000.0 + index) for index in range(9)]  # dominated by all of them
    by_accuracy, together = (
        passing(asha(ranking, factor=3, mode="promote"), losses) for ranking in (accuracy_ranks, pareto_ranks)
    )
    assert 8 in together - by_accuracy
    assert not together & set(range(9, 18))
    kept = [number for number in range(18) if pareto_ranks(np.array(losses))[number] < 6]
    assert {0, 8} <= set(kept)
    assert set(kept) < set(range(9))
    assert 8 not in {number for number in range(18) if accuracy_ranks(np.array(losses))[number] < 6}


def brute_force_fronts(losses: np.ndarray) -> list[set[int]]:
    """Fronts by the definition: what nothing left dominates, again and again."""
    left, fronts = set(range(len(losses))), []
    while left:
        front = {
            i for i in left
            if not any((losses[j] <= losses[i]).all() and (losses[j] < losses[i]).any() for j in left)
        }  # fmt: skip
        fronts.append(front)
        left -= front
    return fronts


loss_tables = st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=25)


@given(loss_tables)
def test_pareto_ranks_go_front_by_front(table: list[tuple[int, ...]]) -> None:
    losses = np.array(table, dtype=float)
    ranks, begin = pareto_ranks(losses), 0
    assert sorted(ranks) == list(range(len(losses)))
    for front in brute_force_fronts(losses):
        assert {int(rank) for rank in ranks[sorted(front)]} == set(range(begin, begin + len(front)))
        begin += len(front)


@given(loss_tables, st.randoms())
def test_the_order_of_arrival_changes_no_rank(table: list[tuple[int, ...]], rng: random.Random) -> None:
    distinct = sorted(set(table))
    shuffled = rng.sample(distinct, len(distinct))
    ranks, again = pareto_ranks(np.array(distinct, dtype=float)), pareto_ranks(np.array(shuffled, dtype=float))
    assert [int(ranks[distinct.index(row)]) for row in shuffled] == again.tolist()


@pytest.mark.parametrize("mode", ["stop", "promote"])
def test_replaying_curves_puts_trials_back_on_their_rungs(mode: Any) -> None:
    live, replayed = (asha(max_epochs=12, grace=1, mode=mode) for _ in range(2))
    rng, curves, last = random.Random(0), dict[int, list[float]](), dict[int, str]()

    def train(rungs: Asha, number: int) -> None:
        """On from where it stood, as far as the rungs let it."""
        curve = curves.setdefault(number, [])
        while len(curve) < 12 and last.get(number, "go") == "go":
            curve.append(rng.random())
            if len(curve) < 12:
                last[number] = rungs.decide(number, len(curve), [1 - curve[-1], 7.0])

    for number in range(20):
        train(live, number)
        if (promoted := live.promote()) is not None and number % 2:  # others are promoted, but have not gone on yet
            last[promoted] = "go"
            train(live, promoted)
        elif promoted is not None:
            last[promoted] = "go"
    for number, curve in curves.items():
        replayed.replay(number, curve, [7.0], is_paused=last[number] == "pause", is_stopped=last[number] == "stop")
    assert replayed.rungs == live.rungs
    assert [replayed.is_paused(number) for number in curves] == [live.is_paused(number) for number in curves]
    for number in range(20, 60):  # and they decide as if nothing had happened
        loss = [rng.random(), 7.0]
        assert replayed.decide(number, 1, loss) == live.decide(number, 1, loss)
        assert replayed.promote() == live.promote()


def test_a_trial_that_waits_where_no_rung_is_any_more_waits_nowhere() -> None:
    rungs = asha(max_epochs=8, grace=1, factor=2, mode="promote")
    rungs.replay(0, (0.5, 0.6, 0.7), [7.0], is_paused=True)  # after 3 epochs, by another placing of rungs
    assert not rungs.is_paused(0)
    assert rungs.promote() is None
