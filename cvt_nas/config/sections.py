"""The sections of the space file: what each setting means, its values and its default."""

import itertools
import re
from dataclasses import field, replace
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from cvt_nas.arch import Projection
from cvt_nas.config.reader import show

_STRICT = ConfigDict(extra="forbid", strict=True)
MAX_SEED = 2**32 - 1  # numpy's, scikit-learn's and Optuna's
_MIN_CLASSES = 2  # of a part of a training: one is no task

T = TypeVar("T", int, float, str)


def _as_options(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _distinct(options: list[T]) -> list[T]:
    if len(set(options)) < len(options):
        raise ValueError(f"got {options}, must be distinct")
    return options


def _rising(options: list[T]) -> list[T]:
    if any(a >= b for a, b in itertools.pairwise(options)):
        raise ValueError(f"got {options}, must rise: {sorted(set(options))}")
    return options


def _never_falling(options: list[T]) -> list[T]:
    if sorted(options) != options:
        raise ValueError(f"got {options}, must not fall: {sorted(options)}")
    return options


def _front_or_count(value: Any) -> Any:
    if value == "front" or (type(value) is int and value >= 1):
        return value
    raise ValueError(f"got {show(value)}, must be front, or a whole number of at least 1")


def _auto_or_count(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError(f"got {show(value)}, must be auto, or a whole number of at least 1")


def _auto_or_workers(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value >= 0):
        return value
    raise ValueError(f"got {show(value)}, must be auto, or a whole number of at least 0")


def _on_or_off(value: Any) -> Any:
    """`on` and `off`, which YAML reads as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _randaugment(value: str) -> str:
    """A policy that timm's `rand_augment_transform` takes, every part of which has an effect."""
    first, *parts = value.split("-")
    wrong = [first] if first != "rand" else [f"-{part}" for part in parts if not _RAND_PART.fullmatch(part)]
    if wrong:
        raise ValueError(
            f"got {show(value)}, must be rand, and after it any of -m9, -n2, -p0.5, -mstd0.5, -mmax10, -inc1 with "
            f"numbers of your own, -tweights, -t3a, -t3aw; {wrong[0]} is none of these"
        )
    layers = [int(part[1:]) for part in parts if part.startswith("n")][-1:]
    sets = [part for part in parts if part in _MOST_LAYERS][:1]
    if layers and sets and layers[0] > _MOST_LAYERS[sets[0]]:
        raise ValueError(f"got {show(value)}, must have at most -n{_MOST_LAYERS[sets[0]]} with -{sets[0]}")
    return value


_RAND_PART = re.compile(r"(m|n|mmax|inc)[0-9]{1,4}|(p|mstd)[0-9]{1,4}(\.[0-9]+)?|t(weights|3a|3aw)")
_MOST_LAYERS = {"tweights": 15, "t3aw": 14}  # their operations, of which timm draws each once at most for an image

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
# limits that no network comes near, so that a space file cannot ask for more than a machine has
Size = Annotated[int, Field(ge=1, le=2**16)]
Depth = Annotated[int, Field(ge=1, le=2**8)]
Ratio = Annotated[float, Field(gt=0, le=2**6)]
_FEW = Field(min_length=1, max_length=2**4)
IntOptions = Annotated[list[Size], _FEW, BeforeValidator(_as_options), AfterValidator(_rising)]
DepthOptions = Annotated[list[Depth], _FEW, BeforeValidator(_as_options), AfterValidator(_rising)]
FloatOptions = Annotated[list[Ratio], _FEW, BeforeValidator(_as_options), AfterValidator(_rising)]
ProjectionOptions = Annotated[
    list[Projection], Field(min_length=1), BeforeValidator(_as_options), AfterValidator(_distinct)
]


@validated(config=_STRICT, frozen=True, kw_only=True)
class PatchSection:
    kernel: IntOptions
    stride: IntOptions
    padding: Annotated[int, Field(ge=0, le=2**16)] | None = None


@validated(config=_STRICT, frozen=True, kw_only=True)
class StageSection:
    patch: PatchSection
    embed_dim: IntOptions
    depth: DepthOptions
    num_heads: IntOptions
    mlp_ratio: FloatOptions = field(default_factory=lambda: [4.0])
    kernel_size: IntOptions = field(default_factory=lambda: [3])
    kv_stride: IntOptions = field(default_factory=lambda: [2])
    projection: ProjectionOptions = field(default_factory=lambda: ["dw_bn"])
    per_block: list[Literal["kv_stride", "kernel_size", "num_heads", "mlp_ratio", "projection"]] = field(
        default_factory=list
    )
    pos_embed: bool = False


@validated(config=_STRICT, frozen=True, kw_only=True)
class SpaceSection:
    """Section `space`.

    Args:
        image_size: Side of the images, in pixels.
        num_channels: 1 for grey images, 3 for colour.
        activation: Of all MLPs: `quick_gelu` as in the official CvT, or `gelu` as in transformers' port, so that what
            is found can be exported to it.
        pool: What the head sees: `class_token`, which the last stage then has, or the `mean` of its tokens.
        stages: First to last; a scalar is fixed, a list is a choice.
    """

    image_size: Size
    num_channels: Size = 3
    num_classes: Annotated[int, Field(ge=1, le=2**20)]
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    pool: Literal["class_token", "mean"] = "class_token"
    stages: Annotated[list[StageSection], _FEW]


@validated(config=_STRICT, frozen=True, kw_only=True)
class BoundSection:
    min: PositiveInt | None = None
    max: PositiveInt | None = None


@validated(config=_STRICT, frozen=True, kw_only=True)
class LatencyBoundSection:
    max: Annotated[float, Field(gt=0)] | None = None


@validated(config=_STRICT, frozen=True, kw_only=True)
class ConstraintsSection:
    params: BoundSection = field(default_factory=BoundSection)
    flops: BoundSection = field(default_factory=BoundSection)
    latency_ms: LatencyBoundSection = field(default_factory=LatencyBoundSection)


@validated(config=_STRICT, frozen=True, kw_only=True)
class ObjectivesSection:
    accuracy: Literal["maximize"]
    params: Literal["minimize"] | None = None
    flops: Literal["minimize"] | None = None
    latency_ms: Literal["minimize"] | None = None


Dataset = Literal["digits", "fashion-mnist", "cifar10", "cifar100", "imagefolder", "imagenet"]


@validated(config=_STRICT, frozen=True, kw_only=True)
class DataConfig:
    """Section `data`.

    Args:
        dataset: `imagefolder` and `imagenet` read `train/` and `val/`, one folder a class.
        search_fraction: Share of the training data held out to guide the search; of no effect on a folder that has
            validation and test images both, of which the former then guide it.
        test_fraction: Share of the training images of a folder held out as the test split, where it has neither
            validation nor test images.
        train_fraction: Share of what is left of it that is trained on, stratified: a cheaper, weaker proxy.
        split_seed: Seed of these splits.
        num_workers: Processes that decode images of a folder, for each process that trains (each device of a trial),
            but no more than the machine has CPUs; in-memory sets need none. `auto`: as many as the process that trains
            has CPUs, less one for itself; where it trains on a GPU, at least one.
        on_error: Where images of a folder cannot be read: `raise` ends the run before it begins; `skip` leaves them
            out of every split, for which each image is decoded once beforehand.
    """

    dataset: Dataset
    search_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    split_seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    num_workers: Annotated[Literal["auto"] | int, BeforeValidator(_auto_or_workers)] = "auto"
    on_error: Literal["raise", "skip"] = "raise"


@validated(config=_STRICT, frozen=True, kw_only=True)
class AugmentConfig:
    """Section `training.augment`: everything is off unless it is set.

    Args:
        crop_padding: Pixels of zero padding before a random crop back to size; in-memory sets.
        crop_scale: Least area of a random resized crop, as a fraction; folders of images.
        flip: Mirror half of the images.
        randaugment: timm's notation: `rand`, and after it `-m9` (magnitude), `-n2` (operations an image), `-p0.5`
            (probability of each), `-mstd0.5` (deviation of the magnitude), `-mmax10` (its greatest), `-inc1` (whether
            all operations grow stronger with it), and the set of operations, `-tweights`, `-t3a` or `-t3aw`, as far
            as they are not timm's defaults. For example `rand-m9-mstd0.5-inc1`.
        color_jitter: Strength, as in timm; folders of images.
        random_erasing: Probability of replacing a rectangle by noise, pixel by pixel.
        mixup, cutmix: The alpha of each; where both are set, each batch takes one of them.
    """

    crop_padding: Annotated[int, Field(ge=0)] = 0
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    flip: bool = False
    randaugment: Annotated[str, AfterValidator(_randaugment)] | None = None
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    random_erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    mixup: Annotated[float, Field(ge=0)] = 0.0
    cutmix: Annotated[float, Field(ge=0)] = 0.0


@validated(config=_STRICT, frozen=True, kw_only=True)
class TrainingConfig:
    """Section `training`: how one architecture is trained.

    Args:
        epochs: Of the full training; only trials that reach it compete for the front. 0 where the accuracy that is
            inherited from a supernet is all that is asked for.
        batch_size: Images a step, over all the devices of a trial together.
        lr, min_lr: Peak and final learning rate.
        schedule: `wsd` (warm-up, stable, decay) keeps the peak until the last epochs, so that a training that is
            stopped early was never half cooled down; `cosine` falls from the peak over the whole length.
        restarts: Of `cosine`: epochs after which it begins at the peak again.
        decay_fraction: Of `wsd`: share of the epochs over which the rate falls, as 1 - sqrt(progress).
        warmup_epochs, warmup_lr: Linear warm-up before the peak, and where it starts.
        weight_decay: Not applied to norms, biases and the class token.
        momentum: Of SGD.
        drop_path: Rate of a stage's last block, rising from 0 within the stage; one for all stages
            or one for each.
        clip_grad_norm: Greatest norm of the gradient; none where absent.
        ema_decay: Decay a step of averaged weights, which are then what is evaluated and kept; less over the first
            steps, so that the initialisation is soon forgotten. Averaged over about an epoch where absent; 0 is off.
        precision: `bf16` and `fp16` are autocast; fp16 scales its loss.
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
    """

    epochs: Annotated[int, Field(ge=0)]
    batch_size: PositiveInt = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat = 1e-3
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["wsd", "cosine"] = "wsd"
    restarts: Annotated[list[PositiveInt], AfterValidator(_rising)] = field(default_factory=list)
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.25
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    warmup_lr: Annotated[float, Field(ge=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    momentum: Fraction = 0.9
    label_smoothing: Fraction = 0.0
    drop_path: Fraction | list[Fraction] = 0.0
    clip_grad_norm: PositiveFloat | None = None
    ema_decay: Fraction | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    micro_batch: Annotated[Literal["auto"] | int, BeforeValidator(_auto_or_count)] = "auto"
    activation_checkpointing: Annotated[Literal["auto", "off", "on"], BeforeValidator(_on_or_off)] = "auto"
    compile: Annotated[Literal["auto", "off", "graph", "blocks"], BeforeValidator(_on_or_off)] = "auto"
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def lasting(self, epochs: int) -> Self:
        """The same for another number of epochs; where it is smaller, warm-up and restarts come sooner."""
        share = min(epochs / max(self.epochs, 1), 1)
        restarts = sorted({round(epoch * share) for epoch in self.restarts} - {0, epochs})
        return replace(self, epochs=epochs, warmup_epochs=self.warmup_epochs * share, restarts=restarts)


@validated(config=_STRICT, frozen=True, kw_only=True)
class SupernetConfig(TrainingConfig):
    """Section `supernet`: how the shared weights are trained. All the settings of `training`, and these.

    A step trains several subnets on the same images. With the sandwich rule (Yu and Huang 2019, arXiv:1903.05134)
    these are the largest, the smallest and some at random, and `label_smoothing` is of the largest alone.

    Args:
        sandwich: Whether each step has the largest and the smallest. Without it, `label_smoothing` is of all.
        num_random: Random subnets a step.
        sampling: Random subnets are drawn evenly over the choices by `uniform`, over log-FLOPs by `flops`, and over
            log-FLOPs but the most promising of several each time by `front` (Wang et al. 2021, arXiv:2011.09011).
        distillation: What the others learn: from the labels where `none`, else from the largest's answers to the same
            images, by `kl`, or by `alpha`, of two alpha-divergences the greater (Wang et al. 2021, arXiv:2102.07954).
        distillation_weight: Share of that in their loss; the rest is of the labels.
        project_gradients: Whether the largest's gradient gives way, tensor by tensor, where it is against that of the
            others (Gong et al. 2022, NASViT).
        drop_path_on_all: Whether `drop_path` is for all; else for the largest alone.
        kernel_maps, own_norms: See `Supernet`.
        opening: Epoch at which a choice is opened; until then, every subnet has its largest option.
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
    own_norms: list[Literal["kv_stride", "kernel_size"]] = field(default_factory=list)
    opening: dict[
        Literal["patch_kernel", "patch_stride", "embed_dim", "depth", "kv_stride", "kernel_size", "num_heads",
                "mlp_ratio", "projection"],
        Annotated[float, Field(ge=0)],
    ] = field(default_factory=dict)  # fmt: skip
    sync_batch_norm: bool = False
    calibration_images: PositiveInt = 2048


@validated(config=_STRICT, frozen=True, kw_only=True)
class DaNasConfig:
    """Section `da_nas`: how a space is narrowed while its supernet is trained, on more and more classes.

    In the style of DA-NAS (Dai et al. 2020, arXiv:2003.12563), whose code is not public. After a warm-up there are
    steps; after each, the options that contributed least are dropped.

    Args:
        ordering_epochs: Of a short training of the space's smallest network on all classes, by whose accuracies these
            are put in order, the easiest first.
        classes: Shares of the classes that the warm-up and each step have, the easiest; two classes at least.
        lengths: Of the warm-up and of each step, as parts of `supernet.epochs`.
        drop_ratio: Share that is dropped after each step, of the options that could be: all but one of each choice.
        probes: Subnets by whose inherited accuracies, on up to 2,048 images of the search split, options are judged.
    """

    ordering_epochs: PositiveInt = 2
    classes: Annotated[
        list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2**4), AfterValidator(_never_falling)
    ] = field(default_factory=lambda: [0.1, 0.3, 0.6, 1.0])
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


@validated(config=_STRICT, frozen=True, kw_only=True)
class ConfirmConfig:
    """Section `search.confirm`: after the race, its best architectures are trained again, with further seeds.

    What won the race was partly lucky, and its accuracy is too high for that. The further trainings had no part
    in the selection: their mean is unbiased, and the front is drawn by it.

    Args:
        top: Which architectures: `front`, the members of the race's front, or the first so many trials by
            non-dominated sorting. Only they compete from then on; a number above the front's size gives those
            a chance that were unlucky.
        seeds: Further trainings of each. With one there is no standard deviation, and no probability of membership.
    """

    top: Annotated[Literal["front"] | int, BeforeValidator(_front_or_count)] = "front"
    seeds: PositiveInt = 3


@validated(config=_STRICT, frozen=True, kw_only=True)
class SearchConfig:
    """Section `search`.

    Args:
        trials: Architectures to train, anchors included.
        sampler: Who proposes them. `surrogate` models accuracy by a Gaussian process and knows the costs;
            `tpe`, `nsga2` and `gp` are Optuna's; `random` draws evenly.
        scheduler: `pareto-asha` stops trials that are weak for what they cost, `asha` the least accurate at
            each rung; `none` trains every trial in full.
        mode: At a rung, `promote` lets a trial pause, and go on once it is among the best; `stop` decides for good.
        grace_period: Epochs of the first rung.
        reduction_factor: One in so many goes on past a rung; rungs are so many times farther apart, and none but the
            first stands beyond `training.epochs` divided by it.
        weights: `scratch`, every trial from a fresh initialisation; `supernet`, from the weights that it inherits;
            `da-nas`, the same, of a supernet whose space was narrowed while it was trained.
        candidates: Architectures ranked by the accuracy that they inherit, where trials inherit weights. The best
            `trials` of them are then trained on, in their order.
        seed: Of proposals and trainings.
        confirm: Further trainings of the best, after the race; none where absent.
        max_failures: Times that a trial whose worker died, with its node or alone, begins again on its checkpoint.
        trial_timeout: Seconds without a report after which a trial counts as hung, and its worker is killed; none
            where absent. A report comes once an epoch.
        spread_last: Whether the trials that are left at the end, fewer than there are slots, train on several GPUs
            each, so that none stands idle. They share the batch, and each GPU has batch norm statistics of its own
            images, whose mean is kept; their accuracy may differ a little from that on one GPU.
    """

    trials: PositiveInt = 50
    sampler: Literal["surrogate", "tpe", "nsga2", "gp", "random"] = "surrogate"
    scheduler: Literal["pareto-asha", "asha", "none"] = "pareto-asha"
    mode: Literal["stop", "promote"] = "promote"
    grace_period: PositiveInt = 1
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    weights: Literal["scratch", "supernet", "da-nas"] = "scratch"
    candidates: PositiveInt = 1000
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    confirm: ConfirmConfig | None = None
    max_failures: Annotated[int, Field(ge=0)] = 3
    trial_timeout: PositiveFloat | None = None
    spread_last: bool = False

    @property
    def has_supernet(self) -> bool:
        return self.weights != "scratch"


@validated(config=_STRICT, frozen=True, kw_only=True)
class SpaceFile:
    format: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    space: SpaceSection
    data: DataConfig
    training: TrainingConfig
    supernet: SupernetConfig | None = None
    da_nas: DaNasConfig = field(default_factory=DaNasConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    objectives: ObjectivesSection = field(
        default_factory=lambda: ObjectivesSection(accuracy="maximize", params="minimize", flops="minimize")
    )
    constraints: ConstraintsSection = field(default_factory=ConstraintsSection)
    anchors: dict[str, dict[str, Any]] = field(default_factory=dict)
