"""What a search runs on, and how fast that trains three networks of its space, for a plan."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cvt_nas.arch import Cost
from cvt_nas.config import Experiment
from cvt_nas.data import Split
from cvt_nas.space import Genome

_NUM_DRAWN = 200
Name = Literal["smallest", "median", "largest"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSpeed:
    """One network of the space on a device.

    Args:
        image_bytes: Of device memory that an image takes in training.
        micro_batch: Images that go through at once; 0 where there is no memory for one.
        step, evaluation: Seconds of an image in training, without its loading, and in evaluation.
    """

    name: Name
    arch_id: str
    cost: Cost
    image_bytes: int
    micro_batch: int
    activation_checkpointing: bool
    step: float
    evaluation: float

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "arch_id": self.arch_id,
            "params": self.cost.params,
            "flops": self.cost.flops,
            "mib_per_image": self.image_bytes / 2**20,
            "micro_batch": self.micro_batch,
            "activation_checkpointing": self.activation_checkpointing,
            "images_per_second": 1 / self.step,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What trials run on, and how fast that is.

    Args:
        num_slots: Trials side by side.
        num_gpus: All of them; 0 for CPUs.
        num_judges: Workers that rank candidates.
        num_loaders: Processes that load the images of a trial; 0 where it does so itself.
        networks: From the smallest to the largest.
        load: Seconds of an image in a trial's loader; 0 where it is not worth telling.
        start: Seconds until the search begins to train.
        worker_start: Seconds until new workers are ready; each part of a search has its own.
        begin: Seconds that a slot takes to change to another trial.
        epoch_end: Seconds of an epoch that are neither training nor evaluation.
        supernet_step: Seconds of an image in the supernet's training, on all the devices together.
        teacher: Seconds that a teacher takes for an image; None without one.
        notes: What was stated or assumed instead of measured.
    """

    num_slots: int
    num_gpus: int
    num_judges: int
    num_loaders: int
    networks: tuple[NetworkSpeed, ...]
    load: float
    start: float = 0.0
    worker_start: float = 0.0
    begin: float = 0.0
    epoch_end: float = 0.0
    supernet_step: float | None = None
    teacher: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_loaded_beside(self) -> bool:
        """Whether images are loaded while a GPU trains on others."""
        return self.num_gpus > 0 and self.num_loaders > 0

    def step(self, flops: float) -> float:
        """Seconds of an image in training, without its loading, by those of the three networks."""
        return self._between(flops, [network.step for network in self.networks])

    def evaluation(self, flops: float) -> float:
        """Seconds of an image in evaluation."""
        return self._between(flops, [network.evaluation for network in self.networks])

    def training(self, flops: float) -> float:
        """Seconds of an image in training, its loading included."""
        step = self.step(flops)
        return max(step, self.load) if self.is_loaded_beside else step + self.load

    def _between(self, flops: float, seconds: Sequence[float]) -> float:
        return float(np.interp(flops, [network.cost.flops for network in self.networks], seconds))

    def epoch(self, flops: float, num_images: Mapping[Split, int]) -> float:
        """Seconds of an epoch of a trial."""
        return (
            num_images["train"] * self.training(flops)
            + num_images["search"] * self.evaluation(flops)
            + self.epoch_end
        )  # fmt: skip


def three_networks(experiment: Experiment) -> dict[Name, Genome]:
    """The smallest, the median and the largest by FLOPs, of feasible draws, the anchors and the space's two ends."""
    space = experiment.space
    rng = random.Random(0)
    found = {genome for _ in range(_NUM_DRAWN) if (genome := space.sample_feasible(rng)) is not None}
    ends = (space.smallest_genome, space.encode(space.largest))
    found |= {genome for genome in ends if space.is_feasible(space.cost(genome))}
    found |= set(experiment.anchors.values())
    assert found, "a space file in which nothing is feasible is refused"
    genomes = sorted(found, key=lambda genome: (space.cost(genome).flops, genome))
    return {"smallest": genomes[0], "median": genomes[len(genomes) // 2], "largest": genomes[-1]}
