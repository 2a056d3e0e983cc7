"""When so many architectures are enough to tell how a supernet ranks, by simulated supernets."""

import math

import numpy as np
import pytest

from cvt_nas.report.ranking import evaluation_plan_lines, next_lines, quality_lines
from cvt_nas.results import Question, answer_of, ceiling_of_mean, judge_supernet, kendall, questions_of
from cvt_nas.results.effort import MOST_ARCHS, Effort, EvaluationPlan, archs_to_tell, efforts, seconds_of
from cvt_nas.results.kendall import kendall_without_each
from cvt_nas.results.telling import CRITICAL, MIN_TOLD, of_ceiling, within_bins

BETWEEN = 0.76  # tau of one seed with another, as in the CvT table


def drawn(rng: np.random.Generator, share: float, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Inherited accuracies of a supernet whose tau is this share of the ceiling, and accuracies alone of two seeds."""
    ceiling = float(ceiling_of_mean(BETWEEN, 2))
    rho = math.sin(math.pi / 2 * share * ceiling) / math.sin(math.pi / 2 * ceiling)
    truth, other = rng.normal(size=(2, number))
    noise = math.sqrt(1 / math.sin(math.pi / 2 * BETWEEN) - 1)
    standalone = truth[:, None] + noise * rng.normal(size=(number, 2))
    return rho * truth + math.sqrt(1 - rho**2) * other, standalone


def first_answer(ours: np.ndarray, standalone: np.ndarray, *, step: int) -> tuple[str, int]:
    for number in range(MIN_TOLD, len(ours) + 1, step):
        answer = of_ceiling(ours[:number], standalone[:number]).answer
        if answer != "cannot tell yet":
            return answer, number
    return "cannot tell yet", len(ours)


def test_looking_again_and_again_gives_a_false_verdict_in_no_more_than_a_twentieth_of_the_cases() -> None:
    rng, wrong, naive = np.random.default_rng(0), 0, 0
    for _ in range(200):
        ours, standalone = drawn(rng, 0.8, 60)  # on the bar, where either answer is one too many
        seen = [of_ceiling(ours[:number], standalone[:number]) for number in range(MIN_TOLD, 61, 4)]
        wrong += any(found.answer != "cannot tell yet" for found in seen)
        naive += any(is_beyond(found, 1.96 / CRITICAL) for found in seen)
    assert wrong <= 0.05 * 200
    assert naive > 0.1 * 200, "an interval for one look is a false verdict too often, so this test can fail"


def is_beyond(found: Question, part: float) -> bool:
    """Whether a part of the interval is on one side of the bar already."""
    assert found.low is not None
    assert found.high is not None
    end = found.low if found.value > found.bar else found.high
    return abs(found.value - found.bar) > part * abs(found.value - end)


def test_a_walk_stays_within_the_critical_value_in_nineteen_of_twenty_cases() -> None:
    steps = np.random.default_rng(0).normal(size=(2_000, MOST_ARCHS)).cumsum(axis=1)
    furthest = np.abs(steps / np.sqrt(np.arange(1, MOST_ARCHS + 1)))[:, MIN_TOLD - 1 :].max(axis=1)
    assert 0.035 < (furthest > CRITICAL).mean() < 0.055


@pytest.mark.parametrize(("share", "answer"), [(1.0, "yes"), (0.3, "no")])
def test_a_supernet_that_is_far_from_the_bar_is_told_by_few_architectures(share: float, answer: str) -> None:
    rng = np.random.default_rng(1)
    told = [first_answer(*drawn(rng, share, 60), step=3) for _ in range(12)]
    assert sum(found == answer for found, _ in told) >= 11
    assert np.median([number for _, number in told]) < 40


def test_within_bins_a_false_verdict_is_rare_too() -> None:
    rng, rho, wrong = np.random.default_rng(2), math.sin(math.pi / 4), 0
    for _ in range(100):
        truth, other = rng.normal(size=(2, 60))
        ours, flops = rho * truth + math.sqrt(1 - rho**2) * other, rng.permutation(60)
        wrong += any(
            within_bins(ours[:number], truth[:number], flops[:number]).answer != "cannot tell yet"
            for number in range(24, 61, 4)
        )
    assert wrong <= 0.05 * 100


def test_tau_without_each_is_that_of_the_others() -> None:
    rng = np.random.default_rng(3)
    score, truth = rng.integers(0, 5, (2, 12)).astype(float)  # with ties
    without = [kendall(np.delete(score, index), np.delete(truth, index)) for index in range(12)]
    assert kendall_without_each(score, truth) == pytest.approx(without)
    assert kendall(np.ones(5), truth[:5]) == 0
    assert kendall_without_each(np.ones(5), truth[:5]).tolist() == [0] * 5


def test_seeds_that_contradict_each_other_tell_nothing() -> None:
    truth = np.arange(20.0)
    found = of_ceiling(truth, np.column_stack([truth, -truth]))
    assert (found.answer, found.low) == ("cannot tell yet", None)


def test_all_questions_must_be_met_and_one_that_is_not_is_enough() -> None:
    yes, no, open_ = (
        Question(name="q", bar=0.5, value=(low + high) / 2, low=low, high=high, sd=0.1)
        for low, high in ((0.6, 0.8), (0.1, 0.3), (0.4, 0.7))
    )
    assert answer_of([yes, yes]) == "yes"
    assert answer_of([yes, open_]) == "cannot tell yet"
    assert answer_of([open_, no]) == "no"
    assert answer_of([]) == "cannot tell yet"


def test_one_seed_is_asked_within_bins_alone() -> None:
    ours, standalone = drawn(np.random.default_rng(0), 0.9, 30)
    names = [question.name for question in questions_of(ours, standalone[:, :1], np.arange(30))]
    assert names == ["tau within FLOPs bins"]


def test_the_effort_is_about_what_it_takes() -> None:
    expected = {value: archs or MOST_ARCHS for name, value, archs in efforts(2) if name == "share of the noise ceiling"}
    rng = np.random.default_rng(4)
    taken = np.median([first_answer(*drawn(rng, 0.4, 80), step=2)[1] for _ in range(12)])
    assert 0.5 < taken / expected[0.4] < 2
    assert expected[0.7] > 2 * expected[0.4], "the nearer the bar, the more"


def test_more_architectures_are_asked_for_where_an_interval_must_halve() -> None:
    wide = Question(name="q", bar=0.5, value=0.6, low=0.4, high=0.8, sd=0.2 / 3.2)
    needed = archs_to_tell(wide, 40)
    assert needed is not None
    assert 120 < needed < 170, "four times as many, less what the quantile gains"
    assert archs_to_tell(Question(name="q", bar=0.5, value=0.5, low=0.3, high=0.7, sd=0.2 / 3.2), 40) is None


def test_minutes_grow_with_flops_as_the_timed_trainings_do() -> None:
    timed = [(flops, flops / 1e6) for flops in (1_000_000, 2_000_000, 4_000_000, 8_000_000, 16_000_000)]
    assert seconds_of(timed, [32_000_000]) == pytest.approx(32)
    assert seconds_of(timed[:2], [32_000_000]) == pytest.approx(1.5), "two are no line"
    assert seconds_of([], [1]) is None


def test_the_plan_says_how_many_and_how_long() -> None:
    plan = EvaluationPlan(
        archs=40, seeds=2, trainings=79, done=10, reused=1, minutes=12.4,
        efforts=(Effort(question="share", value=0.9, archs=65, minutes=20.2),
                 Effort(question="share", value=0.81, archs=None, minutes=None)),
    )  # fmt: skip
    assert evaluation_plan_lines(plan) == [
        "to judge the supernet, at most 40 architectures of its space are trained from scratch, with 2 seeds each: "
        "79 trainings, of which 10 are done; the others take about 12 min",
        "1 of the architectures were trained by other runs; those trainings are not repeated",
        "architectures until there is an answer, for each share that it may have: "
        "0.9: about 65, about 20 min; 0.81: more than 500",
    ]


def test_the_verdict_has_three_values_with_their_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvt_nas.results.quality.NUM_RESAMPLES", 50)
    rng = np.random.default_rng(5)
    for share, number, verdict in (
        (1.0, 60, "ranks well enough"), (0.2, 60, "does not rank well enough"), (0.8, 30, "cannot tell yet"),
    ):  # fmt: skip
        ours, standalone = drawn(rng, share, number)
        sizes = rng.permutation(number).tolist()
        quality = judge_supernet(ours.tolist(), standalone, sizes, sizes)
        tree = quality.to_json()
        assert tree["verdict"] == verdict
        assert tree["trusted"] == (verdict == "ranks well enough")
        assert bool(quality.faults) == (verdict != "ranks well enough")
        lines = quality_lines(quality)
        assert verdict.removeprefix("cannot tell yet") in lines[-1]
        assert any(line.startswith("share of the noise ceiling: ") and "at every look" in line for line in lines)
        told = next_lines(quality, "results/mine")
        assert any("cvt-nas query results/mine" in line for line in told)
        assert any("--archs" in line for line in told) == (verdict == "cannot tell yet")
        assert any("search.weights: scratch" in line for line in told) == (verdict == "does not rank well enough")
