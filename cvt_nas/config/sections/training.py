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
        randaugment: A policy in timm's notation: `rand`, followed by any of `-m9` (magnitude), `-n2` (operations an
            image), `-p0.5` (probability of each), `-mstd0.5` (deviation of the magnitude), `-mmax10` (its maximum),
            `-inc1` (whether all operations grow stronger with it), and the set of operations, `-tweights`, `-t3a` or
            `-t3aw`. timm's defaults apply to parts that are left out.
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
        epochs: Epochs of the full training. Only trials that reach the last one compete for the front. With 0, nothing
            is trained, and only the accuracy inherited from a supernet counts.
        batch_size: Images of a step, over all devices of a trial together.
        optimizer: The optimizer.
        lr: Peak learning rate.
        min_lr: Final learning rate.
        schedule: Schedule of the learning rate. `wsd` (warm-up, stable, decay) keeps the peak until the last epochs, so
            a trial that is stopped early has not partly decayed. `cosine` decays from the peak over the whole training.
        restarts: Epochs after which the schedule `cosine` restarts at the peak.
        decay_fraction: Share of the epochs in which the schedule `wsd` decays, as 1 - sqrt(progress).
        warmup_epochs: Epochs of a linear warm-up before the peak.
        warmup_lr: Learning rate at which the warm-up starts.
        weight_decay: Weight decay. It is not applied to norms, biases, the class token, position embeddings and the
            matrices by which subnets share kernels.
        momentum: Momentum of SGD.
        loss: The loss. `cross_entropy` is for images with one class each. `binary_cross_entropy` treats each class
            separately, is averaged over classes as in torch and timm, and allows several classes an image. `auto` is
            `binary_cross_entropy` if images can have several classes, and otherwise `cross_entropy`. `MODULE:NAME` is a
            function of your own.
        class_weights: Whether rare classes count more. `balanced` weights the loss of an image by the inverse frequency
            of its class, as in scikit-learn. In `binary_cross_entropy`, it weights the positive labels of a class by
            the ratio of its negative to its positive labels.
        metric: The metric to maximise, which files and pages call accuracy. It is measured on the search split after
            each epoch, and on the test split at the end. `accuracy` is the share of images whose first answer is right;
            `balanced_accuracy` is its mean over classes; `macro_f1`, `mean_average_precision` and `auroc` are means
            over classes, each class against all others. Images that can have several classes need one of the last
            three. `auto` is `mean_average_precision` if images can have several classes, and otherwise `accuracy`.
            `MODULE:NAME` is a function of your own with values from 0 to 1.
        label_smoothing: Share of each label that is spread evenly over all classes.
        teacher: A trained network to learn from, in addition to the labels (Hinton et al. 2015, arXiv:1503.02531):
            `init` for the weights of `--init`; anything else that `--init` takes, such as `results/digits:best`; an
            image classifier of transformers, as a folder or a name on the Hub; or `timm:NAME`. Before the training, it
            answers each training image once, without augmentation. If images are mixed, its probabilities are mixed
            like labels.
        teacher_weight: Share of the teacher in the loss. The rest is the loss of the labels, and only this part uses
            `label_smoothing` and `class_weights`.
        teacher_temperature: Divisor of the logits of both networks before they are compared. The teacher's part of the
            loss is multiplied by its square, which keeps the size of the gradients.
        drop_path: Rate of stochastic depth in a stage's last block. It rises from 0 within the stage. One rate for all
            stages, or one for each.
        clip_grad_norm: Greatest norm of the gradient. No clipping where absent.
        ema_decay: Decay a step of the averaged weights, which are evaluated and kept. The decay is smaller in the first
            steps, so that the initialisation is soon forgotten. The default averages over about an epoch; 0 turns
            averaging off.
        precision: Number format of a training. `bf16` and `fp16` use autocast; `fp16` scales the loss.
        micro_batch: Greatest number of images that go through the network at once on each device. A larger batch is cut
            into equal parts. Their gradients are added, weighted by their shares of the images, so a step still has
            `batch_size` images. `auto` is the number that fits into the device's memory, measured by two small passes,
            less a tenth; on a CPU it is the whole batch. If memory still runs out, the number is halved. Batch norm
            normalises each part by its own statistics, so networks with batch norm learn slightly differently; the
            running statistics move once a batch, by the mean over its parts. Mixing and erasing apply to the whole
            batch.
        activation_checkpointing: Whether the backward pass recomputes the inside of each block. This takes less memory
            and about a third more time, and does not change results. `auto` turns it on if the device otherwise has
            memory for fewer than 16 images, where batch norm suffers (Wu and He 2018, arXiv:1803.08494, table 2), and
            for fewer than the batch.
        compile: How training steps run on a GPU; it has no effect on a CPU. `graph` launches the whole forward and
            backward pass at once as a CUDA graph, with the same kernels. The batch must fit into half of the memory of
            one GPU, and the graph must first give the same results as the pass itself. `blocks` compiles each kind of
            block, which takes a minute for a network and changes results by rounding. `auto` measures at the start of a
            search or training which one is fastest, and records it in the manifest; it tries `blocks` if a training
            lasts longer than ten minutes. For a supernet, `auto` and `graph` launch the largest and the smallest subnet
            at once.
        checkpoint_minutes: Minutes after which a checkpoint is written within an epoch, at the next multiple of 20
            steps, so that a kill loses no more than that. With 0, checkpoints are written only at the end of each
            epoch. It does not change results: a training that is killed and resumed ends with the same weights, bit for
            bit. (With three or more devices for one trial, the order in which DDP adds gradients may change their last
            bit.)
        augment: Augmentation of the training images.
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
        """Returns the settings for another number of epochs. With fewer epochs, warm-up and restarts come sooner."""
        share = min(epochs / max(self.epochs, 1), 1)
        restarts = sorted({round(epoch * share) for epoch in self.restarts} - {0, epochs})
        return replace(self, epochs=epochs, warmup_epochs=self.warmup_epochs * share, restarts=restarts)
