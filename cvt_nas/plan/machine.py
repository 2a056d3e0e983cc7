"""The machine of a plan: its resources, and how fast it trains three networks of a space."""

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
    """Speed of one network of the space on a device.

    Args:
        image_bytes: Bytes of device memory per image in training.
        micro_batch: Number of images that go through at once. It is 0 if the memory is too small for one.
        step: Seconds per image in training, without loading.
        evaluation: Seconds per image in evaluation.
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
    """Resources that trials run on, and their speed.

    Args:
        num_slots: Number of trials that run at once.
        num_gpus: Number of all GPUs. It is 0 if trials run on CPUs.
        num_judges: Number of workers that rank candidates.
        num_loaders: Number of processes that load the images of a trial. It is 0 if the trial loads them itself.
        networks: Speeds from the smallest network to the largest.
        load: Seconds per image in the loader of a trial. It is 0 if it is negligible.
        start: Seconds until the search begins to train.
        worker_start: Seconds until new workers are ready. Each part of a search starts its own workers.
        begin: Seconds that a slot takes to switch to another trial.
        epoch_end: Seconds per epoch that are neither training nor evaluation.
        supernet_step: Seconds per image in the training of the supernet, on all devices together. None without a
            supernet.
        teacher: Seconds per image for the answers of a teacher. None without a teacher.
        judging: Seconds per image of the median network in fp32 on the CPUs of a trial, if trials run on GPUs and are
            judged in int8, which is done on CPUs. None if it is not measured.
        notes: Notes on the measurement, and on values that were stated or assumed instead of measured.
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
    judging: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_loaded_beside(self) -> bool:
        """Whether images are loaded while a GPU trains on others."""
        return self.num_gpus > 0 and self.num_loaders > 0

    def step(self, flops: float) -> float:
        """Seconds per image in training, without loading. It is interpolated between the three networks."""
        return self._between(flops, [network.step for network in self.networks])

    def evaluation(self, flops: float) -> float:
        """Seconds per image in evaluation, interpolated likewise."""
        return self._between(flops, [network.evaluation for network in self.networks])

    def evaluation_on_cpu(self, flops: float) -> float:
        """Seconds per image in evaluation on the CPUs of a trial, in proportion to FLOPs. 0 if it is not known."""
        if self.num_gpus == 0:
            return self.evaluation(flops)
        return 0.0 if self.judging is None else self.judging * flops / self.networks[1].cost.flops

    def training(self, flops: float) -> float:
        """Seconds per image in training, with loading."""
        step = self.step(flops)
        return max(step, self.load) if self.is_loaded_beside else step + self.load

    def _between(self, flops: float, seconds: Sequence[float]) -> float:
        return float(np.interp(flops, [network.cost.flops for network in self.networks], seconds))

    def epoch(self, flops: float, num_images: Mapping[Split, int]) -> float:
        """Seconds per epoch of a trial."""
        return (
            num_images["train"] * self.training(flops)
            + num_images["search"] * self.evaluation(flops)
            + self.epoch_end
        )  # fmt: skip


def three_networks(experiment: Experiment) -> dict[Name, Genome]:
    """The smallest, the median and the largest network by FLOPs.

    They are chosen from feasible draws, the anchors, and the smallest and the largest network of the space if feasible.
    """
    space = experiment.space
    rng = random.Random(0)
    found = {genome for _ in range(_NUM_DRAWN) if (genome := space.sample_feasible(rng)) is not None}
    ends = (space.smallest_genome, space.encode(space.largest))
    found |= {genome for genome in ends if space.is_feasible(space.cost(genome))}
    found |= set(experiment.anchors.values())
    assert found, "a space file in which nothing is feasible is refused"
    genomes = sorted(found, key=lambda genome: (space.cost(genome).flops, genome))
    return {"smallest": genomes[0], "median": genomes[len(genomes) // 2], "largest": genomes[-1]}
