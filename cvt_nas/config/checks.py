"""Checks that the settings of a space file fit each other, which pydantic cannot check."""

import math

from cvt_nas.config.reader import Key, Reader
from cvt_nas.config.sections import SpaceFile, SpaceSection, SupernetConfig, TrainingConfig
from cvt_nas.latency import facts_of
from cvt_nas.space import BLOCK_CHOICES

_MAX_COMBINATIONS = 2**11  # within a stage: all of them are enumerated for exact costs


def check_stages(space: SpaceSection, reader: Reader) -> None:
    for index, section in enumerate(space.stages):
        key: Key = ("space", "stages", index)
        for heads in section.num_heads:
            if odd := [str(dim) for dim in section.embed_dim if dim % heads]:
                reader.add(
                    (*key, "num_heads"),
                    f"got {heads}, must divide every embed_dim of the stage, does not divide {', '.join(odd)}",
                )
        for kernel in section.kernel_size:
            if kernel % 2 == 0:
                reader.add((*key, "kernel_size"), f"got {kernel}, must be odd")
        for choices in (BLOCK_CHOICES, ("embed_dim", "depth")):
            number = math.prod(len(getattr(section, choice)) for choice in choices)
            if number > _MAX_COMBINATIONS:
                reader.add(key, f"{number:,} combinations of {', '.join(choices)}, must be at most {_MAX_COMBINATIONS}")
        for name in section.per_block:
            if len(getattr(section, name)) == 1:
                reader.add((*key, "per_block"), f"got {name}, which is fixed in this stage; give it a list")


def check_training(training: TrainingConfig, section: str, space: SpaceSection, reader: Reader) -> None:
    rates, num_stages = training.drop_path, len(space.stages)
    for name in ("randaugment", "color_jitter"):
        if getattr(training.augment, name) and space.num_channels not in (1, 3):
            reader.add(
                (section, "augment", name),
                f"needs grey or colour images, and space.num_channels is {space.num_channels}",
            )
    if isinstance(rates, list) and len(rates) != num_stages:
        reader.add(
            (section, "drop_path"), f"got {len(rates)} rates, must be one, or one for each of {num_stages} stages"
        )
    if (training.augment.mixup or training.augment.cutmix) and training.batch_size % 2:
        reader.add((section, "batch_size"), f"got {training.batch_size}, must be even for mixup and cutmix")
    if training.epochs == 0:
        return
    for name in ("min_lr", "warmup_lr") if training.warmup_epochs > 0 else ("min_lr",):
        if (rate := getattr(training, name)) > training.lr:
            reader.add((section, name), f"got {rate:g}, must not be above lr, {training.lr:g}")
    if training.warmup_epochs >= training.epochs:
        reader.add(
            (section, "warmup_epochs"), f"got {training.warmup_epochs:g}, must be below epochs, {training.epochs}"
        )
    elif training.restarts and not (
        training.warmup_epochs < training.restarts[0] <= training.restarts[-1] < training.epochs
    ):
        reader.add(
            (section, "restarts"),
            f"got {training.restarts}, must lie between warmup_epochs, {training.warmup_epochs:g}, and epochs, "
            f"{training.epochs}",
        )
    elif training.schedule == "wsd" and training.warmup_epochs > training.epochs * (1 - training.decay_fraction):
        reader.add(
            (section, "warmup_epochs"),
            f"got {training.warmup_epochs:g}, must end before decay_fraction begins the decay, at "
            f"{training.epochs * (1 - training.decay_fraction):g}",
        )


def check_search(file: SpaceFile, reader: Reader) -> None:
    if file.search.scheduler == "freeze-thaw" and file.search.sampler != "surrogate":
        reader.add(
            ("search", "scheduler"),
            f"got freeze-thaw, goes by what the sampler surrogate expects, not by {file.search.sampler}",
        )


def check_deploy(file: SpaceFile, reader: Reader) -> None:
    deploy, facts = file.deploy, facts_of(file.deploy.runtime)
    if deploy.precision not in ("auto", *facts.precisions):
        reader.add(
            ("deploy", "precision"), f"got {deploy.precision}, {deploy.runtime} runs in {' or '.join(facts.precisions)}"
        )
    if deploy.device not in ("auto", *facts.devices):
        reader.add(("deploy", "device"), f"got {deploy.device}, {deploy.runtime} runs on {' or '.join(facts.devices)}")
    if deploy.device == "cpu" and deploy.precision == "fp16":
        reader.add(("deploy", "precision"), "got fp16 with device cpu, must be fp32 or bf16: CPUs compute in these")
    if deploy.device == "cuda" and deploy.threads != "auto":
        reader.add(("deploy", "threads"), f"got {deploy.threads} with device cuda: threads are of a CPU; leave it out")


def check_same_twice(file: SpaceFile, reader: Reader) -> None:
    """Two costs that order networks alike are no trade-off."""
    for one, other in (("latency_ms", "throughput"), ("params", "model_mb")):
        if getattr(file.objectives, one) is not None and getattr(file.objectives, other) is not None:
            reader.add(("objectives", other), f"orders networks as {one} does, which is an objective too; keep one")


def check_supernet(file: SpaceFile, reader: Reader) -> None:
    supernet = file.supernet
    if file.training.epochs == 0 and file.search.weights == "scratch":
        reader.add(("training", "epochs"), "got 0, must be at least 1 where search.weights is scratch")
    if file.training.epochs == 0 and file.search.confirm is not None:
        reader.add(("search", "confirm"), "trains the best again, which training.epochs 0 leaves nothing of")
    if supernet is None:
        if file.search.has_supernet:
            reader.add(
                ("search", "weights"),
                f"got {file.search.weights}, needs a section supernet, which says how it is trained",
            )
        return
    check_training(supernet, "supernet", file.space, reader)
    if not supernet.sandwich and supernet.num_random == 0:
        reader.add(("supernet", "num_random"), "got 0 without sandwich, which leaves a step no subnet")
    if not supernet.sandwich and supernet.distillation != "none":
        reader.add(("supernet", "distillation"), f"got {supernet.distillation}, needs the largest subnet of sandwich")
    if supernet.distil_from == "averaged" and supernet.distillation != "none" and supernet.ema_decay == 0:
        reader.add(("supernet", "distil_from"), "got averaged, needs averaged weights, but ema_decay is 0")
    for name in ("metric", "teacher"):
        own, told = getattr(supernet, name), getattr(file.training, name)
        if own != told:
            told = f"that of training, {told}" if told is not None else "told in section training"
            reader.add(("supernet", name), f"got {own}, must be {told}")
    for choice, epoch in supernet.opening.items():
        if epoch >= supernet.epochs:
            reader.add(("supernet", "opening", choice), f"got {epoch:g}, must be below epochs, {supernet.epochs}")
    if file.search.has_supernet and file.search.candidates < file.search.trials:
        reader.add(
            ("search", "candidates"), f"got {file.search.candidates}, must be at least trials, {file.search.trials}"
        )
    if file.search.weights == "da-nas":
        _check_da_nas(file, supernet, reader)


def _check_da_nas(file: SpaceFile, supernet: SupernetConfig, reader: Reader) -> None:
    config, ends = file.da_nas, [0, *file.da_nas.last_epochs(supernet.epochs)]
    if len(config.lengths) != len(config.classes):
        reader.add(
            ("da_nas", "lengths"),
            f"got {len(config.lengths)} numbers, must be one for each of the {len(config.classes)} of classes",
        )
    elif config.classes[-1] != 1:
        reader.add(("da_nas", "classes"), f"got {config.classes[-1]:g} at the end, must be 1: candidates see all")
    elif len(set(ends)) < len(ends):
        reader.add(
            ("supernet", "epochs"), f"got {supernet.epochs}, too few: each part of da_nas.lengths must have an epoch"
        )
    if supernet.sampling == "front":
        reader.add(
            ("supernet", "sampling"), "got front, must be uniform, fair or flops: da-nas drops what it learns of"
        )
