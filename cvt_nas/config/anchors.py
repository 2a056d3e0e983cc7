"""The anchors of a space file: architectures that are evaluated first."""

from collections.abc import Mapping
from typing import Any

from cvt_nas.config.reader import Key, Reader, did_you_mean, one_of, show
from cvt_nas.space import BLOCK_CHOICES, STAGE_CHOICES, TIMED_METRICS, Genome, SearchSpace


def anchors_of(sections: Mapping[str, Mapping[str, object]], space: SearchSpace, reader: Reader) -> dict[str, Genome]:
    """Returns the genomes of the anchors.

    A scalar holds for all stages. A list has one value for each stage, which may be a list with one value a block.
    """
    anchors = {}
    for name, section in sections.items():
        num_problems = len(reader.problems)
        values = {
            choice: _by_stage(choice, value, ("anchors", name, choice), space, reader)
            for choice, value in section.items()
        }
        _check_blocks(section, values, ("anchors", name), space, reader)
        missing = sorted({gene.choice for gene in space.genes} - values.keys())
        if missing:
            reader.add(("anchors", name), f"lacks {', '.join(missing)}")
        if len(reader.problems) > num_problems:
            continue
        genome = []
        for gene in space.genes:
            blocks = values[gene.choice][gene.stage]
            # genes of absent blocks have no effect, so any value will do
            value = blocks[min(gene.block or 0, len(blocks) - 1)]
            genome.append(gene.options.index(value))
        cost = space.cost(genome)
        for metric, bound in space.bounds.items():
            if metric not in TIMED_METRICS and bound.violation(found := getattr(cost, metric)):
                reader.add(("anchors", name), f"has {found:_} {metric}, outside constraints.{metric}")
        anchors[name] = tuple(genome)
    return anchors


def _by_stage(choice: str, value: object, key: Key, space: SearchSpace, reader: Reader) -> list[list[Any]]:
    """Returns the values of one choice of an anchor: for each stage, one value a block or one for all blocks."""
    if choice not in (*STAGE_CHOICES, *BLOCK_CHOICES):
        reader.add(key, f"unknown key{did_you_mean(choice, (*STAGE_CHOICES, *BLOCK_CHOICES))}")
        return []
    stages = value if isinstance(value, list) else [value] * len(space.stages)
    if len(stages) != len(space.stages):
        reader.add(key, f"got {len(stages)} values, must be one, or one for each of {len(space.stages)} stages")
        return []
    by_stage = []
    for index, (stage, given) in enumerate(zip(space.stages, stages, strict=True)):
        blocks = given if isinstance(given, list) else [given]
        options = getattr(stage, choice)
        if not blocks or (isinstance(given, list) and choice not in stage.per_block):
            reader.add(key, f"got a list for stage {index}, must be one value: {choice} is not in its per_block")
        for block in blocks:
            if block not in options or isinstance(block, bool):
                reader.add(key, f"got {show(block)} for stage {index}, must be {one_of([str(o) for o in options])}")
        by_stage.append(blocks)
    return by_stage


def _check_blocks(
    section: Mapping[str, object],
    values: Mapping[str, list[list[Any]]],
    key: Key,
    space: SearchSpace,
    reader: Reader,
) -> None:
    """Checks that an anchor's lists of blocks have one value for each block of the anchor, or of the deepest stage."""
    depths = values.get("depth") or [list(stage.depth) for stage in space.stages]
    for choice, stages in section.items():
        for index, given in enumerate(stages if isinstance(stages, list) and values[choice] else []):
            most = max(space.stages[index].depth)
            if isinstance(given, list) and given and len(given) not in {*depths[index][:1], most}:
                wanted = " or ".join(str(number) for number in sorted({*depths[index][:1], most}))
                reader.add((*key, choice), f"got {len(given)} values for stage {index}, must be one, or {wanted}")
