"""In how many steps a supernet trains each option."""

import math
from typing import Any

import pytest
import yaml

from conftest import small_digits
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.plan.option_steps import ENOUGH_STEPS, option_steps

IMAGES: Any = {"train": 6_400, "search": 100, "test": 100}  # 100 steps of an epoch


def with_supernet(constraints: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    tree = yaml.safe_load(small_digits())
    tree["supernet"] = {"epochs": 20, "batch_size": 64, **settings}
    tree["search"] = {"weights": "supernet", "trials": 2, "candidates": 10}
    tree["constraints"] = constraints or {}
    tree["anchors"] = {}
    return parse_experiment(yaml.safe_dump(tree, sort_keys=False), "supernet.yaml")


@pytest.mark.parametrize("num_random", [1, 2, 3])
def test_a_middle_option_is_in_the_steps_that_draw_it_and_the_ends_are_in_all(num_random: int) -> None:
    found = option_steps(with_supernet(num_random=num_random), IMAGES)
    assert found is not None
    assert (found.steps, found.subnets) == (2_000, num_random + 2)
    assert found.rarest["kv_stride"].steps == 2_000, "it has two options, those of the smallest and of the largest"
    assert (found.rarest["depth"].gene[7:], found.rarest["depth"].option) == ("depth", "2")
    share = 1 - (2 / 3) ** num_random
    assert found.rarest["depth"].steps == pytest.approx(2_000 * share, rel=0.08)


def test_without_the_sandwich_every_option_has_to_be_drawn() -> None:
    found = option_steps(with_supernet(sandwich=False, num_random=2, distillation="none"), IMAGES)
    assert found is not None
    assert found.subnets == 2
    assert found.rarest["kv_stride"].steps == pytest.approx(2_000 * 0.75, rel=0.08)


def test_an_option_that_is_opened_late_or_that_constraints_rule_out_is_in_fewer_steps() -> None:
    plain = option_steps(with_supernet(), IMAGES)
    late = option_steps(with_supernet(opening={"depth": 10}), IMAGES)
    assert plain is not None
    assert late is not None
    assert late.rarest["depth"].steps == pytest.approx(plain.rarest["depth"].steps / 2, rel=0.1)
    drawn: dict[str, Any] = {"sandwich": False, "num_random": 2, "distillation": "none"}
    free, bound = (option_steps(with_supernet(bounds, **drawn), IMAGES) for bounds in ({}, {"flops": {"max": 500_000}}))
    assert free is not None
    assert bound is not None
    assert bound.rarest["embed_dim"].option in ("24", "48", "96"), "the widest ones"
    assert bound.rarest["embed_dim"].steps < 0.5 * free.rarest["embed_dim"].steps


def test_the_epochs_that_are_advised_have_as_many_steps_as_were_measured() -> None:
    few = option_steps(with_supernet(epochs=4), IMAGES)
    assert few is not None
    assert few.enough_epochs > few.epochs
    assert f"{few.enough_epochs} epochs would give as many, and so would smaller batches" in few.advice()
    enough = option_steps(with_supernet(epochs=math.ceil(1.05 * few.enough_epochs)), IMAGES)
    assert enough is not None
    assert min(each.steps for each in enough.rarest.values()) >= ENOUGH_STEPS
    assert enough.advice().startswith("no option of the supernet is in fewer steps")


def test_the_epochs_that_are_advised_begin_to_count_when_a_choice_is_opened() -> None:
    late = option_steps(with_supernet(epochs=12, opening={"depth": 10}), IMAGES)
    assert late is not None
    assert late.enough_epochs < 60, "10, and some 25 to 40 for the options of depth"
    enough = option_steps(with_supernet(epochs=late.enough_epochs, opening={"depth": 10}), IMAGES)
    assert enough is not None
    assert min(each.steps for each in enough.rarest.values()) == pytest.approx(ENOUGH_STEPS, rel=0.15)


def test_there_is_nothing_to_say_where_no_supernet_is_trained() -> None:
    assert option_steps(parse_experiment(small_digits(), "scratch.yaml"), IMAGES) is None
    assert option_steps(with_supernet(epochs=0), IMAGES) is None
