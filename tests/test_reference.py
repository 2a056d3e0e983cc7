"""The list of all settings of the space file."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import yaml

from cvt_nas.config import load_recipe
from cvt_nas.config.reference import Setting, settings


def settings_of(section: Any, prefix: str = "") -> Iterator[str]:
    """Names of the settings in the values that the reader made of a file."""
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield from settings_of(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def named(name: str) -> Setting:
    return next(setting for setting in settings() if setting.name == name)


def test_every_setting_that_the_reader_knows_is_listed() -> None:
    listed = [setting.name for setting in settings()]
    assert len(listed) == len(set(listed))
    experiment = load_recipe("cvt-13")
    for name in ("data", "training", "da_nas", "search"):
        known = set(settings_of(getattr(experiment, name), f"{name}.")) - {"search.confirm"}
        assert known == {each for each in listed if each.startswith(f"{name}.")} - {
            "search.confirm.top",
            "search.confirm.seeds",
            "search.confirm.as",
        }
    assert {each.replace("training", "supernet") for each in listed if each.startswith("training.")} <= set(listed)


@pytest.mark.parametrize("setting", settings(), ids=lambda setting: setting.name)
def test_every_setting_has_a_type_a_meaning_and_an_example(setting: Setting) -> None:
    assert setting.type
    assert setting.meaning.endswith((".", ".)"))
    ((key, value),) = yaml.safe_load(setting.example).items()
    assert setting.name.rpartition(".")[2] == key
    assert value is not None


@pytest.mark.parametrize(
    ("name", "words", "default", "example"),
    [
        ("space.stages[].embed_dim", "a whole number from 1 to 65,536, or a list of such", None, "[64, 96, 128]"),
        ("space.image_size", "a whole number from 1 to 65,536 or a list of 2, each a whole number from 1 to 65,536",
         None, "224"),
        ("training.lr", "a number above 0", "0.001", "0.001"),
        ("training.clip_grad_norm", "a number above 0", "null", "1.0"),
        ("training.compile", "one of auto, off, graph, blocks", "auto", "off"),
        ("training.micro_batch", "auto or a whole number of at least 1", "auto", "64"),
        ("training.augment.flip", "true or false", "false", "true"),
        ("search.sampler", "one of surrogate, tpe, nsga2, gp, random or MODULE:NAME", "surrogate", "tpe"),
        ("supernet.own_norms", "a list, each one of kv_stride, kernel_size", "[]", "[kv_stride]"),
        ("da_nas.classes", "a list, each a number above 0 and at most 1", "[0.1, 0.3, 0.6, 1.0]",
         "[0.1, 0.3, 0.6, 1.0]"),
    ],
)  # fmt: skip
def test_a_type_is_told_in_words(name: str, words: str, default: str | None, example: str) -> None:
    setting = named(name)
    assert (setting.type, setting.default) == (words, default)
    assert setting.example == f"{name.rpartition('.')[2]}: {example}"


def test_a_supernet_tells_its_own_meaning_of_what_it_shares_with_a_training() -> None:
    assert named("supernet.epochs").meaning != named("training.epochs").meaning
    assert named("supernet.lr").meaning == named("training.lr").meaning
