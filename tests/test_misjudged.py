"""Choices that a supernet misjudges, on made-up accuracies."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cvt_nas.config import Experiment
from cvt_nas.report import write_report
from cvt_nas.report.ranking import misjudged_lines
from cvt_nas.results import Choice, ChoiceEffect, JudgedArch, SupernetQuality, choice_effects, judge_supernet
from pages import made_up_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

NUM_ARCHS = 60
ALL = np.ones(NUM_ARCHS, dtype=bool)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def drawn(rng: np.random.Generator) -> list[Choice]:
    return [
        Choice("stage0.kv_stride", ("1", "2"), True, rng.integers(0, 2, NUM_ARCHS), ALL),
        Choice("stage1.depth", ("1", "2", "3"), True, rng.integers(0, 3, NUM_ARCHS), ALL),
        Choice("stage1.projection", ("dw_bn", "avg", "linear"), False, rng.integers(0, 3, NUM_ARCHS), ALL),
    ]


def accuracies(choices: list[Choice], flops: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    stride, depth, projection = (choice.chosen for choice in choices)
    truth = 0.8 + 0.02 * np.log(flops / 1e6) - 0.010 * stride + 0.006 * depth + 0.005 * (projection == 0)
    return truth + rng.normal(0, 0.002, NUM_ARCHS)


def misjudged(
    inherited: np.ndarray, truth: np.ndarray, flops: Sequence[int], choices: list[Choice]
) -> tuple[ChoiceEffect, ...]:
    return tuple(effect for effect in choice_effects(inherited, truth, flops, choices) if effect.is_misjudged)


def test_a_choice_that_is_worth_more_alone_is_named_with_its_direction(rng: np.random.Generator) -> None:
    choices = drawn(rng)
    flops = np.exp(rng.normal(14, 0.5, NUM_ARCHS))
    truth = accuracies(choices, flops, rng)
    inherited = truth - 0.05 + 0.014 * choices[0].chosen - 0.008 * (choices[2].chosen == 0)
    found = misjudged(inherited + rng.normal(0, 0.002, NUM_ARCHS), truth, flops.tolist(), choices)
    assert [(each.choice, each.option, each.instead_of) for each in found[:2]] == [
        ("stage0.kv_stride", "2", "1"), ("stage1.projection", "dw_bn", "others"),
    ]  # fmt: skip
    assert found[0].alone == pytest.approx(-0.010, abs=0.002)
    assert found[0].alone_sd is not None
    assert abs(found[0].alone + 0.010) < 3 * found[0].alone_sd < 0.006
    assert found[0].inherited == pytest.approx(0.004, abs=0.003)
    assert "stage1.depth" not in {each.choice for each in found}
    assert all(each.p_value < 0.05 for each in found)


def test_noise_alone_names_a_choice_in_no_more_than_a_twentieth_of_the_cases(rng: np.random.Generator) -> None:
    named = 0
    for _ in range(200):
        choices = drawn(rng)
        flops = np.exp(rng.normal(14, 0.5, NUM_ARCHS))
        truth = accuracies(choices, flops, rng)
        named += bool(misjudged(truth + rng.normal(0, 0.004, NUM_ARCHS), truth, flops.tolist(), choices))
    assert named <= 18, "5 % of 200, and two standard deviations"


def test_what_grows_with_flops_alone_is_no_fault_of_a_choice(rng: np.random.Generator) -> None:
    choices = drawn(rng)
    flops = 1e6 * np.exp(0.5 * choices[1].chosen + rng.normal(0, 0.1, NUM_ARCHS))
    truth = accuracies(choices, flops, rng)
    inherited = truth + 0.03 * np.log(flops / 1e6) + rng.normal(0, 0.002, NUM_ARCHS)
    assert "stage1.depth" not in {each.choice for each in misjudged(inherited, truth, flops.tolist(), choices)}


def test_a_choice_that_follows_from_flops_or_was_never_made_is_left_out(rng: np.random.Generator) -> None:
    chosen = rng.integers(0, 2, NUM_ARCHS)
    never = np.zeros(NUM_ARCHS, dtype=int)
    choices = [Choice("same", ("1", "2"), True, chosen, ALL), Choice("one", ("3",), True, never, ALL)]
    truth = rng.normal(0.8, 0.01, NUM_ARCHS)
    assert choice_effects(truth + 0.1 * chosen, truth, np.exp(chosen).tolist(), choices) == ()


def test_a_choice_of_a_block_does_not_stand_for_depth(rng: np.random.Generator) -> None:
    named, true = 0, 0
    for _ in range(40):
        depth, ratio = rng.integers(1, 4, NUM_ARCHS), rng.integers(0, 2, NUM_ARCHS)
        has_it = depth > 1
        chosen = np.where(has_it, ratio, 0)  # as in a canonical genome
        flops = np.exp(rng.normal(14, 0.5, NUM_ARCHS)).tolist()
        truth = 0.5 + 0.03 * (depth - 1) + rng.normal(0, 0.005, NUM_ARCHS)
        inherited = 0.5 + rng.normal(0, 0.005, NUM_ARCHS)
        choice = Choice("stage0.block1.mlp_ratio", ("1", "2"), True, chosen, has_it)
        named += bool(misjudged(inherited, truth, flops, [choice]))
        true += bool(misjudged(inherited, truth + 0.05 * chosen, flops, [choice]))
    assert named <= 5, "5 % of 40, and two standard deviations; 38 by the zeros of absent blocks"
    assert true == 40


def test_the_verdict_keeps_and_tells_them(rng: np.random.Generator) -> None:
    choices = drawn(rng)
    flops = np.exp(rng.normal(14, 0.5, NUM_ARCHS))
    truth = accuracies(choices, flops, rng)
    inherited = truth + 0.014 * choices[0].chosen
    quality = judge_supernet(
        inherited.tolist(), truth[:, None], flops.astype(int).tolist(), flops.astype(int).tolist(), choices=choices
    )
    assert SupernetQuality.from_json(json.dumps(quality.to_json()), "quality.json") == quality
    former = {name: value for name, value in quality.to_json().items() if name != "effects"}
    assert SupernetQuality.from_json(json.dumps(former), "quality.json").effects == quality.misjudged
    del former["misjudged"]
    assert SupernetQuality.from_json(json.dumps(former), "quality.json").misjudged == ()
    effect = ChoiceEffect(choice="a", option="2", instead_of="1", alone=-0.01, inherited=0.004, p_value=0.0001)
    told = dataclasses.replace(quality, effects=(effect, dataclasses.replace(effect, choice="b", p_value=0.06)))
    assert misjudged_lines(told) == [
        "it misjudges a: at the same FLOPs, 2 instead of 1 changes accuracy by -0.0100 in a training of its own, and "
        "by +0.0040 as inherited (p < 0.001)"
    ]
    assert quality.misjudged[0].choice == "stage0.kv_stride"


def test_the_page_draws_inherited_accuracies_against_those_alone_and_the_effects_of_choices(
    rng: np.random.Generator, digits: Experiment, tmp_path: Path, page: "Page", complaints: list[str]
) -> None:
    run, choices = made_up_run(tmp_path / "run", digits, 12), drawn(rng)
    flops = np.exp(rng.normal(14, 0.5, NUM_ARCHS)).astype(int).tolist()
    truth = accuracies(choices, np.array(flops), rng)
    inherited = truth - 0.05 + 0.014 * choices[0].chosen
    archs = [
        JudgedArch(
            id=f"arch{index}", options={each.name: each.options[each.chosen[index]] for each in choices},
            params=flops[index], flops=flops[index], inherited=early, standalone=own,
        )
        for index, (early, own) in enumerate(zip(inherited.tolist(), truth.tolist(), strict=True))
    ]  # fmt: skip
    write_report(run)
    assert 'id="supernet"' not in (run.path / "report.html").read_text()
    run.supernet.path.mkdir(exist_ok=True)
    run.supernet.write_quality(
        judge_supernet(inherited.tolist(), truth[:, None], flops, flops, choices=choices, archs=archs)
    )
    assert (quality := run.supernet.quality()) is not None
    assert quality.archs == tuple(archs)
    write_report(run)
    page.goto((run.path / "report.html").as_uri())
    page.get_by_role("link", name="Supernet").click()
    drawn_figures = "['inherited', 'effects'].map(name => document.querySelector(`[data-figure=${name}]`))"
    page.wait_for_function(f"{drawn_figures}.every(figure => figure.data)")
    dots, alone, early = page.evaluate(
        f"(() => {{ const [dots, effects] = {drawn_figures}; return [dots.data[1], ...effects.data]; }})()"
    )
    assert list(zip(dots["x"], dots["y"], strict=True)) == [(arch.inherited, arch.standalone) for arch in archs]
    assert "stage 0: kv stride" in dots["text"][0]
    assert alone["y"][-1] == early["y"][-1] == "stage 0: kv stride 2 instead of 1 (misjudged)"
    assert (alone["x"][-1], early["x"][-1]) == (
        pytest.approx(100 * quality.effects[0].alone, abs=1e-3),
        pytest.approx(100 * quality.effects[0].inherited, abs=1e-3),
    )
    assert not any("misjudged" in label for label in alone["y"][:-1])
    page.locator("#supernet summary").first.click()
    assert page.locator("#supernet table").first.inner_text().count("instead of") == len(quality.effects)
    assert complaints == []
