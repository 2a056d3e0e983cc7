"""Estimates in how many steps the training of a supernet trains each option of a choice.

A supernet ranks by what its options have learned. So how long it is trained is told by steps with an option rather than
by epochs: epochs of a small data set have few steps, and an option among many is in few of them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from cvt_nas.config import Experiment
from cvt_nas.data import Split
from cvt_nas.engine.subnets import SubnetSampler

# Steps with the rarest option in the supernets of the CvT space whose ranks were measured with three seeds. They were
# trained for 14 epochs of 12,000 images in batches of 64. See "How long to train a supernet" in docs/method.md.
ENOUGH_STEPS = 1_400
_NUM_DRAWN = 2_000  # steps; the standard error of a share of them is at most 0.011
_MAX_POOLS = 8  # epochs of `sampling: flops` and `front`, which draw thousands of networks for each


@dataclass(frozen=True, kw_only=True, slots=True)
class RarestOption:
    """The option of a choice that is in the fewest steps.

    Args:
        gene: Choice and stage, or block.
        steps: Expected number of steps in which a subnet has the option.
    """

    gene: str
    option: str
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OptionSteps:
    """Steps of the training of a supernet, and how many of them train the rarest option of each choice.

    Args:
        subnets: Subnets of a step.
        rarest: By the name of the choice. Choices are in the order of the space.
        enough_epochs: Epochs after which the rarest option is in `ENOUGH_STEPS` steps.
    """

    epochs: int
    steps: int
    subnets: int
    rarest: Mapping[str, RarestOption]
    enough_epochs: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Lines of text for the user."""
        yield (
            f"supernet: {self.epochs} epochs are {self.steps:,} steps of {self.subnets} subnets; steps that train the "
            f"rarest option: "
            + ", ".join(f"{found.gene} {found.option} {found.steps:,}" for found in self.rarest.values())
        )
        yield f"note: {self.advice()}"

    def advice(self) -> str:
        """How these steps compare with those of the supernets whose ranks were measured."""
        least = min(self.rarest.values(), key=lambda found: found.steps)
        measured = (
            f"the {ENOUGH_STEPS:,} of the supernets whose ranks were measured with three seeds, on one small space"
        )
        if least.steps >= ENOUGH_STEPS:
            return f"no option of the supernet is in fewer steps than {measured}"
        return (
            f"{least.gene} {least.option} is in fewer steps of the supernet than {measured}; {self.enough_epochs} "
            f"epochs would give as many, and so would smaller batches"
        )


def option_steps(experiment: Experiment, num_images: Mapping[Split, int]) -> OptionSteps | None:
    """Estimates the steps with each option by drawing steps as the training does.

    None if no supernet is trained, if the space has no choices, and for `da-nas`, which drops options on the way.
    Options without an effect on a subnet do not count, such as those of absent blocks. `sampling: front` is drawn as
    before it has learned anything.
    """
    config = experiment.supernet
    if config is None or experiment.search.weights != "supernet" or config.epochs == 0 or not experiment.space.genes:
        return None
    space, steps_an_epoch = experiment.space, max(num_images["train"] // config.batch_size, 1)
    total, genes = config.epochs * steps_an_epoch, space.genes
    sampler = SubnetSampler(space, config, seed=experiment.search.seed)
    num_epochs = min(config.epochs, _MAX_POOLS) if config.sampling in ("flops", "front") else config.epochs
    found = [np.zeros(len(gene.options)) for gene in genes]
    for place in (np.arange(_NUM_DRAWN) + 0.5) / _NUM_DRAWN:
        # the middle one of equal groups of epochs
        epoch = int((math.floor(place * num_epochs) + 0.5) / num_epochs * config.epochs)
        subnets = sampler.draw(epoch, int(place * total) % steps_an_epoch)
        drawn = [(subnet.genome, space.active(subnet.genome)) for subnet in subnets]
        for index in range(len(genes)):
            found[index][list({genome[index] for genome, active in drawn if active[index]})] += 1
    rarest: dict[str, RarestOption] = {}
    for gene, counts in zip(genes, found, strict=True):
        option = int(np.argmin(counts))
        steps = round(float(counts[option]) / _NUM_DRAWN * total)
        if gene.choice not in rarest or steps < rarest[gene.choice].steps:
            rarest[gene.choice] = RarestOption(gene=gene.name, option=str(gene.options[option]), steps=steps)
    opening = cast(dict[str, float], config.opening)
    opened = {choice: math.ceil(opening.get(choice, 0)) for choice in rarest}
    enough_epochs = max(
        opened[choice] + math.ceil(ENOUGH_STEPS / max(each.steps, 1) * max(config.epochs - opened[choice], 1))
        for choice, each in rarest.items()
    )
    return OptionSteps(
        epochs=config.epochs,
        steps=total,
        subnets=config.num_random + (2 if config.sandwich else 0),
        rarest=rarest,
        enough_epochs=enough_epochs,
    )
