"""The space file: one YAML file, one experiment, as frozen values.

A scalar is fixed, a list is a choice. All the problems of a file are reported at once, each as
`file:line: key: what came, what would be right`.
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import random
import shlex
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import TypeAdapter, ValidationError

from cvt_nas.arch import NAMED_ARCHS, ArchConfig, cost_of
from cvt_nas.config.reader import MAX_LENGTH, Key, Reader, did_you_mean, dotted, explain, one_of, show
from cvt_nas.config.sections import (
    AugmentConfig,
    BoundSection,
    ConfirmConfig,
    ConstraintsSection,
    DaNasConfig,
    DataConfig,
    Dataset,
    SearchConfig,
    SpaceFile,
    SpaceSection,
    SupernetConfig,
    TrainingConfig,
)
from cvt_nas.errors import ArchError, SpaceFileError
from cvt_nas.latency import LatencyTable
from cvt_nas.results import HypervolumeBox, Metric, rung_epochs
from cvt_nas.space import (
    ALL_COST_METRICS,
    BLOCK_CHOICES,
    COST_METRICS,
    STAGE_CHOICES,
    Bound,
    CostMetric,
    Genome,
    SearchSpace,
    StageSpace,
)

__all__ = [
    "AugmentConfig",
    "ConfirmConfig",
    "DaNasConfig",
    "DataConfig",
    "Dataset",
    "Experiment",
    "SearchConfig",
    "SupernetConfig",
    "TrainingConfig",
    "load_experiment",
    "load_recipe",
    "parse_experiment",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """A space file, read and checked.

    Args:
        anchors: Architectures evaluated first, by name; all of them inside the space and its bounds.
        objectives: Accuracy is maximised, costs are minimised.
        text: The file itself.
        warnings: Settings of the file that have no effect, one line each.
    """

    name: str
    space: SearchSpace
    anchors: Mapping[str, Genome]
    objectives: tuple[Metric, ...]
    data: DataConfig
    training: TrainingConfig
    supernet: SupernetConfig | None
    da_nas: DaNasConfig
    search: SearchConfig
    text: str
    warnings: tuple[str, ...] = ()

    @property
    def box(self) -> HypervolumeBox:
        least, greatest = self.space.cost_range
        return HypervolumeBox(least=least, greatest=greatest)

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs after which the scheduler decides, or would if there were one."""
        return self._rungs()

    def rungs_of(self, manifest: Mapping[str, Any]) -> tuple[int, ...]:
        """Those of a run that began already: of its manifest, or where that lacks them, by the rule of its time."""
        recorded = manifest.get("rungs")
        return self._rungs(also_late=True) if recorded is None else tuple(recorded)

    def _rungs(self, **rule: bool) -> tuple[int, ...]:
        search = self.search
        return rung_epochs(
            self.training.epochs, grace_period=search.grace_period, reduction_factor=search.reduction_factor, **rule
        )

    @property
    def goes_by_latency(self) -> bool:
        """Whether a search needs a `LatencyTable`."""
        return "latency_ms" in self.objectives or "latency_ms" in self.space.bounds

    def with_latency(self, table: LatencyTable) -> Self:
        """The same, with latency among the costs. Anchors that it puts outside the constraints are left out.

        Raises:
            SpaceFileError: Nothing is as fast as the constraints ask.
        """
        space = dataclasses.replace(self.space, latency=table)
        if space.sample_feasible(random.Random(0), tries=20_000) is None:
            least, bound = space.cost_range[0].latency_ms, space.bounds["latency_ms"].max
            raise SpaceFileError([
                f"constraints.latency_ms.max: got {bound:g}, no architecture meets it and the other constraints; the "
                f"space begins at {least:.3g} on {table.device}"
            ])  # fmt: skip
        anchors = {name: genome for name, genome in self.anchors.items() if space.is_feasible(space.cost(genome))}
        return dataclasses.replace(self, space=space, anchors=anchors)

    def changed(self, **sections: Mapping[str, Any]) -> "Experiment":
        """The same with other values in some sections of its file, for example `training={"lr": 1e-3}`.

        Raises:
            SpaceFileError: The values are wrong, or do not fit the rest.
        """
        if not any(sections.values()):
            return self
        tree = yaml.safe_load(self.text)
        for name, values in sections.items():
            tree[name] = {**tree.get(name, {}), **values}
        return parse_experiment(yaml.safe_dump(tree, sort_keys=False), f"{self.name}, changed")

    def anchor_archs(self) -> dict[str, ArchConfig]:
        return {name: self.space.decode(genome) for name, genome in self.anchors.items()}

    def manifest(self, *, seed: int, num_trials: int) -> dict[str, Any]:
        """What a run folder keeps of how it was made: plain JSON values."""
        packages = ("cvt-nas", "torch", "torchvision", "timm", "ray", "optuna", "fvcore", "numpy")
        return {
            "format": 1,
            "name": self.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": os.fsencode(_command()).decode("utf-8", "backslashreplace"),
            "trials": num_trials,
            "seed": seed,
            "objectives": list(self.objectives),
            "hypervolume_box": self.box.to_json(),
            "epochs": self.training.epochs,
            "rungs": list(self.rungs),
            "dataset": self.data.dataset,
            "versions": {"python": platform.python_version(), **{name: _version_of(name) for name in packages}},
            "platform": platform.platform(),
            "fingerprint": self.fingerprint,
            "space_file_sha256": hashlib.sha256(self.text.encode()).hexdigest(),
            "space_file": self.text,
            **({} if self.space.latency is None else {"latency_table": self.space.latency.to_json()}),
        }

    @property
    def fingerprint(self) -> str:
        """Hash of all that makes two results comparable: the file without its name, its number of trials, what is
        trained again when they are over, how faults are met, and what is cut to fit a device's memory."""
        return _fingerprint_of(self.text)

    def compares_with(self, manifest: Mapping[str, Any]) -> bool:
        """Whether the run of `manifest` is of this experiment, so that it can go on with this file.

        By the file that the manifest holds, not by its fingerprint, which an earlier version of this tool may have
        made in another way.
        """
        return self.fingerprint == _fingerprint_of(manifest["space_file"])


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _fingerprint_of(text: str) -> str:
    tree = yaml.safe_load(text)
    tree.pop("name")
    search = tree.setdefault("search", {})  # a section that only holds what is left out is as good as none
    for name in ("trials", "candidates", "confirm", "max_failures", "trial_timeout", "spread_last"):
        search.pop(name, None)
    for name in ("training", "supernet"):
        for setting in ("micro_batch", "activation_checkpointing", "compile", "checkpoint_minutes"):
            (tree.get(name) or {}).pop(setting, None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def load_experiment(path: str | Path) -> Experiment:
    """Reads and checks a space file.

    Raises:
        SpaceFileError: The file is missing, not YAML, or wrong; holds every problem found.
    """
    path = Path(path)
    try:
        if path.stat().st_size > 4 * MAX_LENGTH:  # a character has four bytes at most
            raise SpaceFileError([f"{path}: too long for a space file: {path.stat().st_size:,} bytes"])
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise SpaceFileError([f"{path}: cannot be read: {reason}"]) from error
    return parse_experiment(text, str(path))


def load_recipe(name: str) -> Experiment:
    """How a published network was trained, as a space file whose space is that network alone.

    Raises:
        ArchError: There is none of this name.
    """
    file = resources.files("cvt_nas") / "recipes" / f"{name}.yaml"
    if name not in NAMED_ARCHS or not file.is_file():
        raise ArchError(f"{name}: no recipe has this name, but {', '.join(NAMED_ARCHS)} have")
    return parse_experiment(file.read_text(encoding="utf-8"), f"recipe {name}")


def parse_experiment(text: str, where: str) -> Experiment:
    """`load_experiment` of a text; `where` names it in messages."""
    reader = Reader(text, where)
    tree = reader.read()
    if not isinstance(tree, dict):
        reader.stop_if_wrong()
    try:
        file = _FILE.validate_json(json.dumps(tree))
    except ValidationError as error:
        for details in error.errors():
            reader.add(*explain(details, tree, SpaceFile))
        reader.stop_if_wrong()
        raise AssertionError("a failed validation has errors") from error
    reader.stop_if_wrong()
    return _build(file, reader)


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # ourselves, on a cluster to which the code went with the search
        return "not installed"


_FILE = TypeAdapter(SpaceFile)
_MAX_COMBINATIONS = 2**11  # within a stage: costs are exact, so all of them are gone through


def _build(file: SpaceFile, reader: Reader) -> Experiment:
    """What pydantic cannot check, that the parts fit each other, and the experiment that they make."""
    objectives: tuple[Metric, ...] = (
        "accuracy",
        *(metric for metric in ALL_COST_METRICS if getattr(file.objectives, metric) is not None),
    )
    if not 2 <= len(objectives) <= 3:
        told = "accuracy alone" if len(objectives) == 1 else "three costs"
        reader.add(("objectives",), f"got {told}, must hold one or two of params, flops, latency_ms beside accuracy")
    _check_stages(file.space, reader)
    _check_training(file.training, "training", len(file.space.stages), reader)
    _check_supernet(file, reader)
    for metric in COST_METRICS:
        bound = getattr(file.constraints, metric)
        if bound.min is not None and bound.max is not None and bound.min > bound.max:
            reader.add(("constraints", metric), f"got min {bound.min} above max {bound.max}")
    reader.stop_if_wrong()
    space = _space_of(file, reader)
    _check_feasible(space, reader)
    anchors = _anchors_of(file.anchors, space, reader)
    reader.stop_if_wrong()
    return Experiment(
        name=file.name,
        space=space,
        anchors=anchors,
        objectives=objectives,
        data=file.data,
        training=file.training,
        supernet=file.supernet,
        da_nas=file.da_nas,
        search=file.search,
        text=reader.text,
        warnings=_without_effect(file, reader, chosen={gene.choice for gene in space.genes}),
    )


def _check_stages(space: SpaceSection, reader: Reader) -> None:
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


def _check_training(training: TrainingConfig, section: str, num_stages: int, reader: Reader) -> None:
    rates = training.drop_path
    if isinstance(rates, list) and len(rates) != num_stages:
        reader.add(
            (section, "drop_path"), f"got {len(rates)} rates, must be one, or one for each of {num_stages} stages"
        )
    if (training.augment.mixup or training.augment.cutmix) and training.batch_size % 2:
        reader.add((section, "batch_size"), f"got {training.batch_size}, must be even for mixup and cutmix")
    if training.epochs == 0:
        return
    if training.warmup_epochs >= training.epochs:
        reader.add(
            (section, "warmup_epochs"),
            f"got {training.warmup_epochs:g}, must be below epochs, {training.epochs}",
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


def _check_supernet(file: SpaceFile, reader: Reader) -> None:
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
    _check_training(supernet, "supernet", len(file.space.stages), reader)
    if supernet.epochs == 0:
        reader.add(("supernet", "epochs"), "got 0, must be at least 1")
    if not supernet.sandwich and supernet.num_random == 0:
        reader.add(("supernet", "num_random"), "got 0 without sandwich, which leaves a step no subnet")
    if not supernet.sandwich and supernet.distillation != "none":
        reader.add(("supernet", "distillation"), f"got {supernet.distillation}, needs the largest subnet of sandwich")
    for choice, epoch in supernet.opening.items():
        if epoch >= supernet.epochs:
            reader.add(("supernet", "opening", choice), f"got {epoch:g}, must be below epochs, {supernet.epochs}")
    if file.search.has_supernet and file.search.candidates < file.search.trials:
        reader.add(
            ("search", "candidates"),
            f"got {file.search.candidates}, must be at least trials, {file.search.trials}",
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
            ("supernet", "epochs"),
            f"got {supernet.epochs}, too few: each part of da_nas.lengths must have an epoch",
        )
    if supernet.sampling == "front":
        reader.add(("supernet", "sampling"), "got front, must be uniform or flops: da-nas drops what it learns of")


def _space_of(file: SpaceFile, reader: Reader) -> SearchSpace:
    last = len(file.space.stages) - 1
    try:
        return SearchSpace(
            image_size=file.space.image_size,
            num_channels=file.space.num_channels,
            num_classes=file.space.num_classes,
            stages=tuple(
                StageSpace(
                    patch_kernel=tuple(section.patch.kernel),
                    patch_stride=tuple(section.patch.stride),
                    patch_padding=section.patch.padding,
                    embed_dim=tuple(section.embed_dim),
                    depth=tuple(section.depth),
                    kv_stride=tuple(section.kv_stride),
                    kernel_size=tuple(section.kernel_size),
                    num_heads=tuple(section.num_heads),
                    mlp_ratio=tuple(section.mlp_ratio),
                    projection=tuple(section.projection),
                    per_block=frozenset(section.per_block),
                    class_token=file.space.pool == "class_token" and index == last,
                    activation=file.space.activation,
                    pos_embed=section.pos_embed,
                )
                for index, section in enumerate(file.space.stages)
            ),
            bounds=_bounds_of(file.constraints),
        )
    except ArchError as error:
        reader.add(("space", "stages", *([] if error.stage is None else [error.stage, "patch"])), str(error))
        reader.stop_if_wrong()
        raise


def _bounds_of(constraints: ConstraintsSection) -> dict[CostMetric, Bound]:
    bounds: dict[CostMetric, Bound] = {}
    for metric in COST_METRICS:
        section: BoundSection = getattr(constraints, metric)
        if (section.min, section.max) != (None, None):
            bounds[metric] = Bound(min=section.min, max=section.max)
    if constraints.latency_ms.max is not None:
        bounds["latency_ms"] = Bound(max=constraints.latency_ms.max)
    return bounds


def _check_feasible(space: SearchSpace, reader: Reader) -> None:
    least, greatest = space.cost_range
    for metric, bound in space.bounds.items():
        if metric == "latency_ms":  # nothing is known of it yet
            continue
        low, high = getattr(least, metric), getattr(greatest, metric)
        if bound.max is not None and low > bound.max:
            reader.add(("constraints", metric, "max"), f"got {bound.max:_}, the space begins at {low:_}")
        elif bound.min is not None and high < bound.min:
            reader.add(("constraints", metric, "min"), f"got {bound.min:_}, the space ends at {high:_}")
    if not reader.problems and space.sample_feasible(random.Random(0), tries=20_000) is None:
        reader.add(("constraints",), "no architecture among 20,000 that were tried meets them all")


def _anchors_of(sections: Mapping[str, Mapping[str, Any]], space: SearchSpace, reader: Reader) -> dict[str, Genome]:
    """Genomes of the anchors: a scalar for all stages, a list for one value a stage, a list in it for one a block."""
    anchors = {}
    for name, section in sections.items():
        num_problems = len(reader.problems)
        values = {
            choice: _by_stage(choice, value, ("anchors", name, choice), space, reader)
            for choice, value in section.items()
        }
        _check_blocks(section, values, ("anchors", name), space, reader)
        missing = sorted({gene.choice for gene in space.genes} - values.keys())
        if missing:
            reader.add(("anchors", name), f"lacks {', '.join(missing)}")
        if len(reader.problems) > num_problems:
            continue
        genome = []
        for gene in space.genes:
            blocks = values[gene.choice][gene.stage]
            # the genes of absent blocks have no effect, so any value will do for them
            value = blocks[min(gene.block or 0, len(blocks) - 1)]
            genome.append(gene.options.index(value))
        cost = cost_of(space.decode(genome))
        for metric, bound in space.bounds.items():
            if bound.violation(found := getattr(cost, metric)):
                reader.add(("anchors", name), f"has {found:_} {metric}, outside constraints.{metric}")
        anchors[name] = tuple(genome)
    return anchors


def _by_stage(choice: str, value: Any, key: Key, space: SearchSpace, reader: Reader) -> list[list[Any]]:
    """The values of one choice of an anchor: for each stage, one for each block or one for all."""
    if choice not in (*STAGE_CHOICES, *BLOCK_CHOICES):
        reader.add(key, f"unknown key{did_you_mean(choice, (*STAGE_CHOICES, *BLOCK_CHOICES))}")
        return []
    stages = value if isinstance(value, list) else [value] * len(space.stages)
    if len(stages) != len(space.stages):
        reader.add(key, f"got {len(stages)} values, must be one, or one for each of {len(space.stages)} stages")
        return []
    by_stage = []
    for index, (stage, given) in enumerate(zip(space.stages, stages, strict=True)):
        blocks = given if isinstance(given, list) else [given]
        options = getattr(stage, choice)
        if not blocks or (isinstance(given, list) and choice not in stage.per_block):
            reader.add(key, f"got a list for stage {index}, must be one value: {choice} is not in its per_block")
        for block in blocks:
            if block not in options or isinstance(block, bool):
                reader.add(key, f"got {show(block)} for stage {index}, must be {one_of([str(o) for o in options])}")
        by_stage.append(blocks)
    return by_stage


def _check_blocks(
    section: Mapping[str, Any], values: Mapping[str, list[list[Any]]], key: Key, space: SearchSpace, reader: Reader
) -> None:
    """Whether an anchor's list of values of blocks has one for each, of all that there can be or of its own."""
    depths = values.get("depth") or [list(stage.depth) for stage in space.stages]
    for choice, stages in section.items():
        for index, given in enumerate(stages if isinstance(stages, list) and values[choice] else []):
            most = max(space.stages[index].depth)
            if isinstance(given, list) and given and len(given) not in {*depths[index][:1], most}:
                wanted = " or ".join(str(number) for number in sorted({*depths[index][:1], most}))
                reader.add((*key, choice), f"got {len(given)} values for stage {index}, must be one, or {wanted}")


def _without_effect(file: SpaceFile, reader: Reader, *, chosen: Collection[str]) -> tuple[str, ...]:
    """Settings that are written in the file and change nothing; `chosen` is what the space leaves open."""
    written = set(reader.lines)
    from_folder = file.data.dataset in ("imagefolder", "imagenet")
    found: list[tuple[Key, str]] = []

    def check(key: Key, idle: bool, why: str) -> None:
        if idle and key in written:
            found.append((key, why))

    for name, section in (("training", file.training), ("supernet", file.supernet)):
        if section is None:
            continue
        check((name, "momentum"), section.optimizer == "adamw", "AdamW has none")
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
    check(("data", "num_workers"), not from_folder, "an in-memory set needs no workers")
    check(("data", "test_fraction"), not from_folder, f"{file.data.dataset} has test images of its own")
    check(("data", "on_error"), not from_folder, "only images of a folder can be left out")
    if not file.search.has_supernet:
        check(("supernet",), True, "search.weights is scratch")
        check(("search", "candidates"), True, "search.weights is scratch")
    check(("da_nas",), file.search.weights != "da-nas", f"search.weights is {file.search.weights}")
    if file.supernet is not None:
        idle = file.supernet
        check(("supernet", "compile"), idle.compile == "blocks", "its subnets change from step to step; graph has one")
        check(("supernet", "drop_path_on_all"), idle.drop_path == 0, "drop_path is 0")
        no_largest = "without sandwich there is no largest subnet"
        check(("supernet", "project_gradients"), not idle.sandwich, no_largest)
        check(("supernet", "drop_path"), not (idle.sandwich or idle.drop_path_on_all), no_largest)
        blind = idle.sampling == "front" and not idle.sandwich
        check(("supernet", "sampling"), blind, "without sandwich no losses are compared, and front is as flops")
        check(("supernet", "distillation_weight"), idle.distillation == "none", "distillation is none")
        check(("supernet", "sampling"), idle.num_random == 0, "num_random is 0")
        check(("supernet", "kernel_maps"), "kernel_size" not in chosen, "the space has no choice of kernel_size")
        for name in ("own_norms", "opening"):
            fixed = ", ".join(choice for choice in getattr(idle, name) if choice not in chosen)
            check(("supernet", name), bool(fixed), f"the space has no choice of {fixed}")
    for name in ("mode", "grace_period", "reduction_factor"):
        check(("search", name), file.search.scheduler == "none", "the scheduler is none")
    return tuple(f"{reader.where}:{reader.lines[key]}: {dotted(key)}: has no effect: {why}" for key, why in found)
