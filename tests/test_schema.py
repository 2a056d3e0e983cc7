"""The JSON Schema of the space file, which editors complete and check by."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from conftest import SPACES
from cvt_nas.arch import NAMED_ARCHS
from cvt_nas.cli import main
from cvt_nas.config import load_recipe
from cvt_nas.config.schema import schema
from test_config import BASE

FILE = SPACES / "space.schema.json"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(schema())


def test_it_is_a_valid_schema() -> None:
    Draft202012Validator.check_schema(schema())


def test_every_example_is_valid() -> None:
    sections = schema()["$defs"]
    for section in sections.values():
        for shown in section["properties"].values():
            for example in shown.get("examples", ()):
                Draft202012Validator({**shown, "$defs": sections}).validate(example)


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_ready_file_names_the_schema_and_keeps_it(path: Path, validator: Draft202012Validator) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# yaml-language-server: $schema={FILE.name}\n")
    validator.validate(yaml.safe_load(text))


@pytest.mark.parametrize("name", NAMED_ARCHS)
def test_every_recipe_keeps_the_schema(name: str, validator: Draft202012Validator) -> None:
    validator.validate(yaml.safe_load(load_recipe(name).text))


def test_the_schema_beside_the_ready_files_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", "--schema"]) == 0
    is_same = capsys.readouterr().out == FILE.read_text(encoding="utf-8")
    assert is_same, f"write it again: cvt-nas space --schema > {FILE.relative_to(SPACES.parent)}"


def test_without_a_file_the_command_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space"]) == 2
    assert capsys.readouterr().err == "cvt-nas: FILE: name a space file, or ask for the schema of all by --schema\n"


def test_a_scalar_is_fixed_and_a_list_is_a_choice() -> None:
    stage = schema()["$defs"]["StageSection"]["properties"]
    for name in ("embed_dim", "depth", "num_heads", "mlp_ratio", "kernel_size", "kv_stride", "projection"):
        fixed, choice = stage[name]["anyOf"]
        assert (fixed["description"], choice["type"]) == ("Fixed.", "array")
        assert choice["description"].startswith("A choice")


# Each case: where in BASE, and a value that is wrong there; the last key may be a new one.
WRONG: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "unknown section": (("dada",), {}),
    "unknown key": (("training", "warmup_epoch"), 2),
    "another format": (("format",), 2),
    "a name with a slash": (("name",), "a/b"),
    "text for a number": (("training", "lr"), "3e-3"),
    "a number below its bound": (("training", "epochs"), -1),
    "a number at a bound that is excluded": (("data", "search_fraction"), 1.0),
    "a fraction for a whole number": (("space", "image_size"), 8.5),
    "three sides of an image": (("space", "image_size"), [8, 8, 8]),
    "truth for a number": (("space", "num_classes"), True),
    "an unknown option": (("search", "sampler"), "tpee"),
    "an unknown option of a choice": (("space", "stages", 0, "projection"), ["dw_bn", "conv"]),
    "no option": (("space", "stages", 0, "depth"), []),
    "an option twice": (("space", "stages", 0, "depth"), [1, 1]),
    "an option beyond what machines have": (("space", "stages", 0, "embed_dim"), [8, 2**17]),
    "no stage": (("space", "stages"), []),
    "a list for a section": (("training",), []),
    "a policy of randaugment that timm lacks": (("training", "augment", "randaugment"), "rand-x9"),
    "compile on, which is no way": (("training", "compile"), True),
    "no image at once": (("training", "micro_batch"), 0),
    "a word for a count": (("data", "num_workers"), "many"),
    "accuracy alone": (("objectives",), {"accuracy": "maximize"}),
    "accuracy minimised": (("objectives", "accuracy"), "minimize"),
    "a bound below one": (("constraints",), {"params": {"max": 0}}),
    "a choice to open that there is none of": (("supernet",), {"epochs": 2, "opening": {"width": 1}}),
    "a prior of an unknown choice": (("search", "priors"), {"width": {8: 2}}),
    "a prior that is no weight": (("search", "priors"), {"kv_stride": {2: 0}}),
    "an anchor with an unknown choice": (("anchors", "cvt-like", "width"), 8),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused(case: str, validator: Draft202012Validator) -> None:
    (*place, last), value = WRONG[case]
    tree = yaml.safe_load(BASE)
    validator.validate(tree)
    section = tree
    for key in place:
        section = section[key]
    section[last] = value
    assert not validator.is_valid(tree)


@pytest.mark.parametrize("key", ["format", "name", "space", "data", "training"])
def test_a_file_without_what_it_must_have_is_refused(key: str, validator: Draft202012Validator) -> None:
    tree = yaml.safe_load(BASE)
    del tree[key]
    assert not validator.is_valid(tree)
