"""Settings of a space file that have no effect."""

from collections.abc import Collection

from cvt_nas.config.reader import Key, Reader, dotted
from cvt_nas.config.sections import SpaceFile, has_columns, is_streamed
from cvt_nas.plugins import is_plugin
from cvt_nas.space import UNSIZED_CHOICES


def without_effect(
    file: SpaceFile, reader: Reader, *, chosen: Collection[str], preferred: Collection[str]
) -> tuple[str, ...]:
    """Returns one line for each setting of the file that has no effect.

    Args:
        chosen: Choices that the space leaves open.
        preferred: Choices with an option that `search.priors` prefers to another.
    """
    written = set(reader.lines)
    from_folder = is_streamed(file.data.dataset)
    found: list[tuple[Key, str]] = []

    def check(key: Key, idle: bool, why: str) -> None:
        if idle and key in written:
            found.append((key, why))

    for name, section in (("training", file.training), ("supernet", file.supernet)):
        if section is None:
            continue
        check((name, "momentum"), section.optimizer == "adamw", "AdamW has none")
        for setting in ("teacher_weight", "teacher_temperature"):
            check((name, setting), section.teacher is None, "training.teacher is absent")
        for setting in ("loss", "label_smoothing", "class_weights"):
            taught = section.teacher is not None and section.teacher_weight == 1
            check((name, setting), taught, "teacher_weight is 1, so the labels do not count")
        for setting in ("label_smoothing", "class_weights"):
            check((name, setting), is_plugin(section.loss), f"{section.loss} does without")
        check((name, "warmup_lr"), section.warmup_epochs == 0, "warmup_epochs is 0")
        check((name, "restarts"), section.schedule == "wsd", "the schedule is wsd")
        check((name, "decay_fraction"), section.schedule == "cosine", "the schedule is cosine")
        whole = section.micro_batch != "auto" and section.micro_batch >= section.batch_size
        check((name, "micro_batch"), whole, f"batch_size is {section.batch_size}, so no batch is cut")
        check((name, "augment", "crop_padding"), from_folder, "images of a folder are cropped by crop_scale")
        check((name, "augment", "crop_scale"), not from_folder, "in-memory images are cropped by crop_padding")
        check((name, "augment", "color_jitter"), not from_folder, "only images of a folder are jittered")
        replaced = from_folder and section.augment.randaugment is not None
        check((name, "augment", "color_jitter"), replaced, "randaugment changes colours in its place")
    epochs = (
        file.training.epochs,
        file.supernet.epochs if file.supernet is not None and file.search.has_supernet else 0,
    )
    check(("training", "teacher"), not any(epochs), "nothing is trained")
    check(("data", "num_workers"), not from_folder, "an in-memory set needs no workers")
    has_test = not from_folder and file.data.dataset not in ("npz", "npy")
    check(("data", "test_fraction"), has_test, f"{file.data.dataset} has test images of its own")
    check(("data", "image_column"), file.data.dataset == "webdataset", "an image of a shard is known by its suffix")
    for name in ("image_column", "label_column", "label_separator"):
        check(("data", name), not has_columns(file.data.dataset), f"{file.data.dataset} has no columns")
    check(("data", "download"), not file.data.dataset.startswith("torchvision:"), "only torchvision downloads sets")
    check(("data", "split_column"), file.data.dataset != "table", "only a table has such a column")
    check(("data", "on_error"), not from_folder, "only images of a folder can be left out")
    if not file.search.has_supernet:
        check(("supernet",), True, "search.weights is scratch")
        check(("search", "candidates"), True, "search.weights is scratch")
    check(("da_nas",), file.search.weights != "da-nas", f"search.weights is {file.search.weights}")
    if file.supernet is not None:
        idle = file.supernet
        check(("supernet", "compile"), idle.compile == "blocks", "its subnets change from step to step; graph has one")
        changes = idle.sandwich and idle.extremes == "sizes" and idle.compile == "graph"
        check(("supernet", "compile"), changes, "with extremes: sizes, all subnets change from step to step")
        check(("supernet", "drop_path_on_all"), idle.drop_path == 0, "drop_path is 0")
        no_largest = "without sandwich there is no largest subnet"
        check(("supernet", "project_gradients"), not idle.sandwich, no_largest)
        check(("supernet", "drop_path"), not (idle.sandwich or idle.drop_path_on_all), no_largest)
        blind = idle.sampling == "front" and not idle.sandwich
        check(("supernet", "sampling"), blind, "without sandwich no losses are compared, and front is as flops")
        for name in ("distillation_weight", "distillation_temperature", "distil_from"):
            check(("supernet", name), idle.distillation == "none", "distillation is none")
        check(("supernet", "largest_weight"), not idle.sandwich, no_largest)
        check(("supernet", "extremes"), not idle.sandwich, no_largest)
        is_same = idle.sandwich and idle.extremes == "sizes" and not UNSIZED_CHOICES & set(chosen)
        check(("supernet", "extremes"), is_same, "the space has no choice of strides, heads or projections")
        drawn = "extremes: sizes draws the strides of the largest subnet"
        check(
            ("supernet", "drop_path"), idle.sandwich and idle.extremes == "sizes" and not idle.drop_path_on_all, drawn
        )
        check(("supernet", "sampling"), idle.num_random == 0, "num_random is 0")
        check(("supernet", "kernel_maps"), "kernel_size" not in chosen, "the space has no choice of kernel_size")
        for name in ("own_norms", "own_convs", "opening"):
            fixed = ", ".join(choice for choice in getattr(idle, name) if choice not in chosen)
            check(("supernet", name), bool(fixed), f"the space has no choice of {fixed}")
    check(("search", "priors"), file.search.sampler != "surrogate", f"the sampler is {file.search.sampler}")
    check(("search", "priors"), file.search.has_supernet, "the trials are the best of the candidates")
    for choice in file.search.priors:
        check(("search", "priors", choice), choice not in preferred, "the options of each stage have the same weight")
    check(("search", "per"), file.search.sampler != "surrogate", f"the sampler is {file.search.sampler}")
    for name in ("mode", "grace_period", "reduction_factor"):
        has_rungs = file.search.scheduler in ("pareto-asha", "asha")
        check(("search", name), not has_rungs, f"the scheduler is {file.search.scheduler}")
        no_rung = has_rungs and 0 < file.training.epochs <= file.search.grace_period
        check(("search", name), no_rung, f"a training of {file.training.epochs} epochs ends before the first rung")
    return tuple(f"{reader.where}:{reader.lines[key]}: {dotted(key)}: has no effect: {why}" for key, why in found)
