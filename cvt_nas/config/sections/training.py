"""Section `training`: how one architecture is trained."""

from dataclasses import field, replace
from typing import Annotated, Literal, Self

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from cvt_nas.config.values import (
    STRICT,
    AutoOrCount,
    Checkpointing,
    Compiling,
    Fraction,
    LossName,
    MetricName,
    PositiveFloat,
    PositiveInt,
    RandAugment,
    RisingEpochs,
)


@validated(config=STRICT, frozen=True, kw_only=True)
class AugmentConfig:
    """Section `training.augment`: everything is off unless it is set.

    Args:
        crop_padding: Pixels of zero padding before a random crop back to size. For in-memory sets.
        crop_scale: Least area of a random resized crop, as a fraction of the image. For folders of images.
        flip: Whether half of the images are mirrored.
        randaugment: A policy in timm's notation: `rand`, and after it `-m9` (magnitude), `-n2` (operations an image),
            `-p0.5` (probability of each), `-mstd0.5` (deviation of the magnitude), `-mmax10` (its greatest), `-inc1`
            (whether all operations grow stronger with it), and the set of operations, `-tweights`, `-t3a` or `-t3aw`,
            as far as they are not timm's defaults.
        color_jitter: Strength of the jitter of colours, as in timm. For folders of images.
        random_erasing: Probability that a rectangle of an image is replaced by noise, pixel by pixel.
        mixup: Alpha of mixup. Where `cutmix` is set too, each batch takes one of them.
        cutmix: Alpha of CutMix. Where `mixup` is set too, each batch takes one of them.
    """

    crop_padding: Annotated[int, Field(ge=0, examples=[4])] = 0
    crop_scale: Annotated[float, Field(gt=0, le=1, examples=[0.08])] = 1.0
    flip: bool = False
    randaugment: Annotated[RandAugment, Field(examples=["rand-m9-mstd0.5-inc1"])] | None = None
    color_jitter: Annotated[float, Field(ge=0, examples=[0.4])] = 0.0
    random_erasing: Annotated[float, Field(ge=0, le=1, examples=[0.25])] = 0.0
    mixup: Annotated[float, Field(ge=0, examples=[0.8])] = 0.0
    cutmix: Annotated[float, Field(ge=0, examples=[1.0])] = 0.0


@validated(config=STRICT, frozen=True, kw_only=True)
class TrainingConfig:
    """Section `training`: how one architecture is trained.

    Args:
        epochs: Epochs of the full training. Only trials that reach the last one compete for the front. 0 where the
            accuracy that is inherited from a supernet is all that is asked for.
        batch_size: Images of a step, over all the devices of a trial together.
        optimizer: The optimizer.
        lr: Peak learning rate.
        min_lr: Final learning rate.
        schedule: `wsd` (warm-up, stable, decay) keeps the peak until the last epochs, so that a training that is
            stopped early was never half cooled down; `cosine` falls from the peak over the whole length.
        restarts: Epochs after which the schedule `cosine` begins at the peak again.
        decay_fraction: Share of the epochs over which the rate of the schedule `wsd` falls, as 1 - sqrt(progress).
        warmup_epochs: Epochs of a linear warm-up before the peak.
        warmup_lr: Learning rate at which the warm-up starts.
        weight_decay: Weight decay. It is not applied to norms, biases and the class token.
        momentum: Momentum of SGD.
        loss: What is minimised. `cross_entropy` is for images of one class each. `binary_cross_entropy` takes each
            class for itself, also where images can have several, and is the mean over classes, as in torch and timm.
            `auto` is the former, or the latter where images can have several classes. `MODULE:NAME` is a function
            of your own.
        class_weights: Whether rare classes count more. `balanced` weighs the loss of an image by the inverse frequency
            of its class, as in scikit-learn. In `binary_cross_entropy` it weighs the positive labels of a class by the
            number of its negative ones over that of its positive ones.
        metric: What is measured on the search split after each epoch, and on the test split in the end, and what is
            maximised under the name of accuracy. `accuracy` is the share of images whose class is the first answer;
            `balanced_accuracy` the mean of that over classes; `macro_f1`, `mean_average_precision` and `auroc` are
            means over classes, each class against all others. Images that can have several classes need one of these
            last three. `auto` is `accuracy`, or `mean_average_precision` where images can have several classes.
            `MODULE:NAME` is a function of your own, whose values lie between 0 and 1.
        label_smoothing: Share of each label that is spread evenly over all classes.
        teacher: A trained network whose answers are learned, too (Hinton et al. 2015, arXiv:1503.02531): `init`, the
            weights of `--init`; whatever else `--init` takes, as `results/digits:best`; any image classifier of
            transformers, as a folder or a name on the Hub; or `timm:NAME`. It answers each training image once, without
            augmentation, before anything is trained. Where images are mixed, its probabilities are mixed as labels are.
        teacher_weight: Share of the teacher in the loss; the rest is of the labels, which alone `label_smoothing` and
            `class_weights` are of.
        teacher_temperature: By which the logits of both are divided before they are compared. The teacher's part of the
            loss is multiplied by its square, so that its gradients stay as large.
        drop_path: Rate of stochastic depth in a stage's last block, rising from 0 within the stage; one for all stages
            or one for each.
        clip_grad_norm: Greatest norm of the gradient. It is not clipped where absent.
        ema_decay: Decay a step of averaged weights, which are then what is evaluated and kept; less over the first
            steps, so that the initialisation is soon forgotten. Averaged over about an epoch where absent; 0 is off.
        precision: Number format of a training. `bf16` and `fp16` are autocast; fp16 scales its loss.
        micro_batch: Images that go through the network at once, at most, on each device. A larger batch is cut into
            equal parts, whose gradients are added up, each part by its share of the images, so that a step is of
            `batch_size` images on every device. `auto` is what the device's memory has room for, as two small passes
            tell, with a tenth to spare; on a CPU it is the whole batch. Where memory runs out all the same, it is
            halved. Each part is normalised by its own statistics in batch norm, so a network that has one learns
            slightly otherwise than with the whole batch; the running statistics move once a batch, by the mean over its
            parts. Mixing and erasing are of the whole batch.
        activation_checkpointing: Whether the backward pass computes what is inside each block again, which takes less
            memory and about a third more time, and changes no result. `auto` does where the device has otherwise room
            for fewer than 16 images, below which batch norm suffers (Wu and He 2018, arXiv:1803.08494, table 2), and
            for fewer than are asked for.
        compile: How the steps of a training run on a GPU; on a CPU, as they are. `graph` launches the whole forward and
            backward pass at once, as a CUDA graph, by the same kernels. It needs a batch that one GPU has whole in half
            of its memory, and it is used once it has given what the pass itself gives. `blocks` compiles each kind of
            block, which takes a minute for a network, and changes results by rounding. `auto` measures at the start of
            a search or a training which is fastest for its networks on its GPU, and leaves that in the manifest.
            `blocks` is tried where a training lasts longer than ten minutes. Of a supernet, `auto` and `graph` launch
            the largest and the smallest subnet at once.
        checkpoint_minutes: Minutes after which a checkpoint is written within an epoch, at the next multiple of 20
            steps, so that a kill loses no more. 0 writes them at the end of each epoch only. It changes no result: a
            training that is killed and resumed ends with the same weights, to the bit. (With three devices or more for
            one trial, the order in which DDP adds up gradients may change their last bit.)
        augment: How the training images are varied.
    """

    epochs: Annotated[int, Field(ge=0, examples=[300])]
    batch_size: PositiveInt = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat = 1e-3
    min_lr: Annotated[float, Field(ge=0, examples=[1e-5])] = 0.0
    schedule: Literal["wsd", "cosine"] = "wsd"
    restarts: Annotated[RisingEpochs, Field(examples=[[30, 90]])] = field(default_factory=list)
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.25
    warmup_epochs: Annotated[float, Field(ge=0, examples=[5])] = 0.0
    warmup_lr: Annotated[float, Field(ge=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    momentum: Fraction = 0.9
    loss: Annotated[LossName, Field(examples=["binary_cross_entropy"])] = "auto"
    class_weights: Literal["none", "balanced"] = "none"
    metric: Annotated[MetricName, Field(examples=["macro_f1"])] = "auto"
    label_smoothing: Annotated[Fraction, Field(examples=[0.1])] = 0.0
    teacher: Annotated[str, Field(min_length=1, examples=["init"])] | None = None
    teacher_weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    teacher_temperature: Annotated[PositiveFloat, Field(examples=[1.0])] = 4.0
    drop_path: Annotated[Fraction | list[Fraction], Field(examples=[[0.0, 0.0, 0.1]])] = 0.0
    clip_grad_norm: Annotated[PositiveFloat, Field(examples=[1.0])] | None = None
    ema_decay: Annotated[Fraction, Field(examples=[0.9999])] | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    micro_batch: Annotated[AutoOrCount, Field(examples=[64])] = "auto"
    activation_checkpointing: Checkpointing = "auto"
    compile: Compiling = "auto"
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def lasting(self, epochs: int) -> Self:
        """The same for another number of epochs; where it is smaller, warm-up and restarts come sooner."""
        share = min(epochs / max(self.epochs, 1), 1)
        restarts = sorted({round(epoch * share) for epoch in self.restarts} - {0, epochs})
        return replace(self, epochs=epochs, warmup_epochs=self.warmup_epochs * share, restarts=restarts)
