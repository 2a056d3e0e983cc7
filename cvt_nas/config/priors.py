"""What the user of a space file believes: which options are in good networks more often than others."""

import itertools
from collections.abc import Mapping
from typing import Any

from cvt_nas.config.reader import Key, Reader, did_you_mean, one_of, show
from cvt_nas.space import BLOCK_CHOICES, STAGE_CHOICES, SearchSpace


def priors_of(section: Mapping[str, Any], space: SearchSpace, reader: Reader) -> dict[str, tuple[float, ...]]:
    """The weight of each option, by the name of its gene: a mapping for all stages, or a list of one for each.

    Genes whose options all have the same weight are left out, since nothing follows from it.
    """
    weights: dict[str, tuple[float, ...]] = {}
    for choice, given in section.items():
        key: Key = ("search", "priors", choice)
        if choice not in (*STAGE_CHOICES, *BLOCK_CHOICES):
            reader.add(key, f"unknown key{did_you_mean(choice, (*STAGE_CHOICES, *BLOCK_CHOICES))}")
            continue
        if not any(gene.choice == choice for gene in space.genes):
            reader.add(key, "is fixed in every stage, and leaves nothing to believe")
            continue
        stages = given if isinstance(given, list) else [given] * len(space.stages)
        if len(stages) != len(space.stages):
            reader.add(key, f"got {len(stages)} sections, must be one, or one for each of {len(space.stages)} stages")
            continue
        options = [[str(option) for option in getattr(stage, choice)] for stage in space.stages]
        for index, of_stage in enumerate(stages):
            known = options[index] if isinstance(given, list) else list(dict.fromkeys(itertools.chain(*options)))
            found = _weights_of(of_stage, known, (*key, index) if isinstance(given, list) else key, reader)
            genes = [gene for gene in space.genes if (gene.stage, gene.choice) == (index, choice)]
            if isinstance(given, list) and found and not genes:
                reader.add((*key, index), "is fixed in this stage, and leaves nothing to believe; write {}")
            told = tuple(found.get(option, 1.0) for option in options[index])
            if len(set(told)) > 1:
                weights |= {gene.name: told for gene in genes}
            if not isinstance(given, list) and not found:
                break  # what is wrong in all stages is told once
    return weights


def _weights_of(section: Any, options: list[str], key: Key, reader: Reader) -> dict[str, float]:
    """By the option; nothing where anything is wrong."""
    if not isinstance(section, dict):
        reader.add(key, f"got {show(section)}, must be a section with a weight for each option")
        return {}
    weights, num_problems = {}, len(reader.problems)
    for name, weight in section.items():
        option = next((option for option in options if _is_same(option, name)), None)
        if option is None:
            reader.add((*key, name), f"is no option here, must be {one_of(options)}")
        elif isinstance(weight, bool) or not isinstance(weight, int | float) or weight <= 0:
            reader.add((*key, name), f"got {show(weight)}, must be a number above 0")
        elif option in weights:
            reader.add((*key, name), f"repeated, is the option {option} too")
        else:
            weights[option] = float(weight)
    return weights if len(reader.problems) == num_problems else {}


def _is_same(option: str, name: str) -> bool:
    """Whether a key means an option: 4 is 4.0."""
    try:
        return option == name or float(option) == float(name)
    except ValueError:
        return False
