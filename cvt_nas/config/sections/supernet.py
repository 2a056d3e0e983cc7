"""Sections `supernet` and `da_nas`: how weights are shared, and how a space is narrowed meanwhile."""

import itertools
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from cvt_nas.config.sections.training import TrainingConfig
from cvt_nas.config.values import STRICT, PositiveInt, Shares

_MIN_CLASSES = 2  # of a part of a training: one is no task


@validated(config=STRICT, frozen=True, kw_only=True)
class SupernetConfig(TrainingConfig):
    """Section `supernet`: how the shared weights are trained. All the settings of `training`, and these.

    `loss`, `class_weights`, `metric` and what is told of a teacher are those of `training` where they are absent here.

    A step trains several subnets on the same images. With the sandwich rule (Yu and Huang 2019, arXiv:1903.05134)
    these are the largest, the smallest and some at random, and `label_smoothing` is of the largest alone.

    Args:
        epochs: Epochs of the training of the supernet. 0 where candidates are judged by what they have of the weights
            that the supernet begins with (`--init`).
        sandwich: Whether each step has the largest and the smallest subnet. Without it, `label_smoothing` is of all.
        num_random: Random subnets of a step.
        sampling: Random subnets are drawn evenly over the choices by `uniform`, over log-FLOPs by `flops`, and over
            log-FLOPs but the most promising of several each time by `front` (Wang et al. 2021, arXiv:2011.09011).
        distillation: What the others learn: as the largest does, from the labels and a `teacher`, where `none`; else
            from the largest's answers to the same images, by `kl`, or by `alpha`, of two alpha-divergences the greater
            (Wang et al. 2021, arXiv:2102.07954). Where absent, it is `kl`, or `none` where there is a `teacher`.
        distillation_weight: Share of the distillation in their loss; the rest is of the labels.
        project_gradients: Whether the largest's gradient gives way, tensor by tensor, where it is against that of the
            others (Gong et al. 2022, NASViT).
        drop_path_on_all: Whether `drop_path` is for all; else for the largest alone.
        kernel_maps: Whether the centre of a depth-wise kernel passes a learned linear map, one for each convolution
            and size, at first the identity (Cai et al. 2020, arXiv:1908.09791, section 3.3).
        own_norms: Choices of a block whose options have batch norms of their own, as widths have in Yu et al. 2019,
            arXiv:1812.08928.
        opening: Epoch at which each choice is opened; until then, every subnet has its largest option.
        sync_batch_norm: Whether the statistics of a batch are those of all its ranks together.
        calibration_images: Training images on which the batch norms of a subnet are measured before it is judged.
    """

    sandwich: bool = True
    num_random: Annotated[int, Field(ge=0)] = 2
    sampling: Literal["uniform", "flops", "front"] = "uniform"
    distillation: Literal["none", "kl", "alpha"] = "kl"
    distillation_weight: Annotated[float, Field(gt=0, le=1)] = 1.0
    project_gradients: bool = False
    drop_path_on_all: bool = False
    kernel_maps: bool = False
    own_norms: Annotated[list[Literal["kv_stride", "kernel_size"]], Field(examples=[["kv_stride"]])] = field(
        default_factory=list
    )
    opening: Annotated[
        dict[
            Literal["patch_kernel", "patch_stride", "embed_dim", "depth", "kv_stride", "kernel_size", "num_heads",
                    "mlp_ratio", "projection"],
            Annotated[float, Field(ge=0)],
        ],
        Field(examples=[{"kernel_size": 10, "depth": 20}]),
    ] = field(default_factory=dict)  # fmt: skip
    sync_batch_norm: bool = False
    calibration_images: PositiveInt = 2048


@validated(config=STRICT, frozen=True, kw_only=True)
class DaNasConfig:
    """Section `da_nas`: how a space is narrowed while its supernet is trained, on more and more classes.

    In the style of DA-NAS (Dai et al. 2020, arXiv:2003.12563), whose code is not public. After a warm-up there are
    steps; after each, the options that contributed least are dropped.

    Args:
        ordering_epochs: Epochs of a short training of the space's smallest network on all classes, by whose accuracies
            these are put in order, the easiest first.
        classes: Shares of the classes that the warm-up and each step have, the easiest; two classes at least.
        lengths: Lengths of the warm-up and of each step, as parts of `supernet.epochs`.
        drop_ratio: Share that is dropped after each step, of the options that could be: all but one of each choice.
        probes: Subnets by whose inherited accuracies, on up to 2,048 images of the search split, options are judged.
    """

    ordering_epochs: PositiveInt = 2
    classes: Shares = field(default_factory=lambda: [0.1, 0.3, 0.6, 1.0])
    lengths: list[PositiveInt] = field(default_factory=lambda: [1, 2, 2, 2])
    drop_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.4
    probes: Annotated[int, Field(ge=8)] = 200

    def last_epochs(self, num_epochs: int) -> list[int]:
        """Of `num_epochs`, after which the warm-up and each step end."""
        total = sum(self.lengths)
        return [round(num_epochs * so_far / total) for so_far in itertools.accumulate(self.lengths)]

    def class_counts(self, num_classes: int) -> list[int]:
        """Of `num_classes`, how many the warm-up and each step have."""
        return [min(max(round(share * num_classes), _MIN_CLASSES), num_classes) for share in self.classes]
