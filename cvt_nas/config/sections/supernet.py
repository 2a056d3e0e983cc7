"""Sections `supernet` and `da_nas`: how shared weights are trained, and how the space is narrowed meanwhile."""

import itertools
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from cvt_nas.config.sections.training import TrainingConfig
from cvt_nas.config.values import STRICT, PositiveFloat, PositiveInt, Shares

_MIN_CLASSES = 2  # for each part of a training, since one class is no task


@validated(config=STRICT, frozen=True, kw_only=True)
class SupernetConfig(TrainingConfig):
    """Section `supernet`: how the shared weights are trained. It has all settings of `training`, and the following.

    By default, `loss`, `class_weights`, `metric` and the settings of a teacher are those of `training`.

    A step trains several subnets on the same images. With the sandwich rule (Yu and Huang 2019, arXiv:1903.05134)
    these are the largest, the smallest and some random subnets, and `label_smoothing` applies only to the largest.

    Args:
        epochs: Epochs of the training of the supernet. With 0, candidates are judged with the weights that the
            supernet starts with (`--init`).
        sandwich: Whether each step has the largest and the smallest subnet. If not, `label_smoothing` applies to all
            subnets.
        extremes: What makes a subnet the largest or the smallest of a step. With `all`, it has the largest or smallest
            option of each choice. With `sizes`, its strides, heads and projections are drawn at random in each step,
            since their options have no size. So with `all`, coarse strides are mostly trained with the smallest sizes.
            `sizes` does without the replay of these two subnets on a GPU, see `compile`.
        num_random: Random subnets of a step.
        sampling: How random subnets are drawn. `uniform` draws evenly over the choices. `fair` also takes each option
            of a choice once before any of them again (Chu et al. 2021, arXiv:1907.01845). `flops` draws evenly over
            log-FLOPs, and `front` as `flops`, but takes the most promising of several subnets (Wang et al. 2021,
            arXiv:2011.09011).
        distillation: What subnets other than the largest learn from. With `none`, they learn from the labels and a
            `teacher`, like the largest. With `kl` and `alpha`, they learn from the largest's answers to the same
            images; `alpha` takes the greater of two alpha-divergences (Wang et al. 2021, arXiv:2102.07954). The
            default is `kl`, or `none` with a `teacher`.
        distillation_weight: Share of the distillation in the loss. The rest is the loss of the labels. With 1, subnets
            stay farther behind what they reach alone.
        distillation_temperature: Divisor of the logits of both subnets before they are compared. The distillation is
            multiplied by its square, which keeps the size of the gradients (Hinton et al. 2015, arXiv:1503.02531).
        distil_from: Weights of the largest subnet whose answers the others learn from. `present` takes its answers of
            the same step. `averaged` takes the answers of its averaged weights (`ema_decay`), which needs one more
            forward pass of the largest subnet in each step (Tarvainen and Valpola 2017, arXiv:1703.01780).
        largest_weight: Weight of the largest subnet's loss in the mean over the subnets of a step. The others have
            weight 1.
        project_gradients: Whether the largest's gradient is projected, tensor by tensor, if it conflicts with the
            gradient of the others (Gong et al. 2022, NASViT).
        drop_path_on_all: Whether `drop_path` applies to all subnets. If not, it applies only to the largest.
        kernel_maps: Whether the centre of a depth-wise kernel passes through a learned linear map. There is one map for
            each convolution and size; it starts as the identity (Cai et al. 2020, arXiv:1908.09791, section 3.3).
        own_norms: Choices of a block whose options have separate batch norms, like widths in Yu et al. 2019,
            arXiv:1812.08928.
        own_convs: Choices whose options have separate convolutions: `kv_stride`, the depth-wise ones of keys and
            values, and `patch_stride`, those of the token embedding. A convolution sees another distance between
            tokens at each stride.
        opening: Epoch at which each choice is opened. Before it, every subnet has the largest option.
        sync_batch_norm: Whether the statistics of a batch are taken over all its ranks.
        calibration_images: Training images for the batch norm statistics of a subnet before it is judged.
    """

    sandwich: bool = True
    extremes: Literal["all", "sizes"] = "all"
    num_random: Annotated[int, Field(ge=0)] = 2
    sampling: Literal["uniform", "fair", "flops", "front"] = "uniform"
    distillation: Literal["none", "kl", "alpha"] = "kl"
    distillation_weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    distillation_temperature: Annotated[PositiveFloat, Field(examples=[2.0])] = 1.0
    distil_from: Literal["present", "averaged"] = "present"
    largest_weight: Annotated[PositiveFloat, Field(examples=[2.0])] = 1.0
    project_gradients: bool = False
    drop_path_on_all: bool = False
    kernel_maps: bool = False
    own_norms: Annotated[list[Literal["kv_stride", "kernel_size"]], Field(examples=[["kv_stride"]])] = field(
        default_factory=list
    )
    own_convs: Annotated[list[Literal["kv_stride", "patch_stride"]], Field(examples=[["kv_stride"]])] = field(
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
    calibration_images: Annotated[int, Field(ge=2)] = 2048


@validated(config=STRICT, frozen=True, kw_only=True)
class DaNasConfig:
    """Section `da_nas`: how the space is narrowed while its supernet is trained on more and more classes.

    It follows DA-NAS (Dai et al. 2020, arXiv:2003.12563), whose code is not public. A warm-up is followed by steps.
    After each step, the options that contributed least are dropped.

    Args:
        ordering_epochs: Epochs of a short training of the space's smallest network on all classes. Its accuracies order
            the classes from easy to hard.
        classes: Share of the classes in the warm-up and in each step. The easiest classes are taken, at least two.
        lengths: Lengths of the warm-up and of each step, relative to each other. Together they are `supernet.epochs`.
        drop_ratio: Share of the options to drop after each step. One option of each choice is always kept, and does not
            count.
        probes: Subnets whose inherited accuracies, on up to 2,048 images of the search split, judge the options.
    """

    ordering_epochs: PositiveInt = 2
    classes: Shares = field(default_factory=lambda: [0.1, 0.3, 0.6, 1.0])
    lengths: list[PositiveInt] = field(default_factory=lambda: [1, 2, 2, 2])
    drop_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.4
    probes: Annotated[int, Field(ge=8)] = 200

    def last_epochs(self, num_epochs: int) -> list[int]:
        """Last epochs of the warm-up and of each step, of `num_epochs` in total."""
        total = sum(self.lengths)
        return [round(num_epochs * so_far / total) for so_far in itertools.accumulate(self.lengths)]

    def class_counts(self, num_classes: int) -> list[int]:
        """Number of classes of the warm-up and of each step, of `num_classes` in total."""
        return [min(max(round(share * num_classes), _MIN_CLASSES), num_classes) for share in self.classes]
