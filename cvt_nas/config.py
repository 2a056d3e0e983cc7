"""The space file: one YAML file, one experiment, as frozen values.

A scalar is fixed, a list is a choice. All the problems of a file are reported at once, each as
`file:line: key: what came, what would be right`.
"""

import dataclasses
import difflib
import hashlib
import itertools
import json
import platform
import random
import shlex
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated
from pydantic_core import ErrorDetails

from cvt_nas.arch import ArchConfig, Projection, cost_of
from cvt_nas.errors import ArchError, SpaceFileError
from cvt_nas.results import HypervolumeBox, Metric
from cvt_nas.space import (
    BLOCK_CHOICES,
    COST_METRICS,
    STAGE_CHOICES,
    Bound,
    CostMetric,
    Genome,
    SearchSpace,
    StageSpace,
)

_STRICT = ConfigDict(extra="forbid", strict=True)

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


PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
IntOptions = Annotated[list[PositiveInt], Field(min_length=1), BeforeValidator(_as_options), AfterValidator(_rising)]
FloatOptions = Annotated[
    list[PositiveFloat], Field(min_length=1), BeforeValidator(_as_options), AfterValidator(_rising)
]
ProjectionOptions = Annotated[
    list[Projection], Field(min_length=1), BeforeValidator(_as_options), AfterValidator(_distinct)
]


@validated(config=_STRICT, frozen=True, kw_only=True)
class _PatchSection:
    kernel: IntOptions
    stride: IntOptions
    padding: Annotated[int, Field(ge=0)] | None = None


@validated(config=_STRICT, frozen=True, kw_only=True)
class _StageSection:
    patch: _PatchSection
    embed_dim: IntOptions
    depth: IntOptions
    num_heads: IntOptions
    mlp_ratio: FloatOptions = field(default_factory=lambda: [4.0])
    kernel_size: IntOptions = field(default_factory=lambda: [3])
    kv_stride: IntOptions = field(default_factory=lambda: [2])
    projection: ProjectionOptions = field(default_factory=lambda: ["dw_bn"])
    per_block: list[Literal["kv_stride", "kernel_size", "num_heads", "mlp_ratio", "projection"]] = field(
        default_factory=list
    )
    class_token: bool | None = None


@validated(config=_STRICT, frozen=True, kw_only=True)
class _SpaceSection:
    image_size: PositiveInt
    num_channels: PositiveInt = 3
    num_classes: PositiveInt
    stages: Annotated[list[_StageSection], Field(min_length=1)]


@validated(config=_STRICT, frozen=True, kw_only=True)
class _BoundSection:
    min: PositiveInt | None = None
    max: PositiveInt | None = None


@validated(config=_STRICT, frozen=True, kw_only=True)
class _ConstraintsSection:
    params: _BoundSection = field(default_factory=_BoundSection)
    flops: _BoundSection = field(default_factory=_BoundSection)


@validated(config=_STRICT, frozen=True, kw_only=True)
class _ObjectivesSection:
    accuracy: Literal["maximize"]
    params: Literal["minimize"] | None = None
    flops: Literal["minimize"] | None = None


@validated(config=_STRICT, frozen=True, kw_only=True)
class DataConfig:
    """Section `data`.

    Args:
        dataset: `imagefolder` and `imagenet` read `train/` and `val/`, one folder a class.
        search_fraction: Share of the training data held out to guide the search.
        split_seed: Seed of that stratified split.
        num_workers: Processes that decode images of a folder, a trial; in-memory sets need none.
    """

    dataset: Literal["digits", "fashion-mnist", "cifar10", "cifar100", "imagefolder", "imagenet"]
    search_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    split_seed: Annotated[int, Field(ge=0)] = 0
    num_workers: Annotated[int, Field(ge=0)] = 2


@validated(config=_STRICT, frozen=True, kw_only=True)
class AugmentConfig:
    """Section `training.augment`: everything is off unless it is set.

    Args:
        crop_padding: Pixels of zero padding before a random crop back to size; in-memory sets.
        crop_scale: Least area of a random resized crop, as a fraction; folders of images.
        flip: Mirror half of the images.
        randaugment: timm's notation, for example `rand-m9-mstd0.5-inc1`.
        color_jitter: Strength, as in timm; folders of images.
        random_erasing: Probability of replacing a rectangle by noise, pixel by pixel.
        mixup, cutmix: The alpha of each; where both are set, each batch takes one of them.
    """

    crop_padding: Annotated[int, Field(ge=0)] = 0
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    flip: bool = False
    randaugment: Annotated[str, Field(pattern="^rand-")] | None = None
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    random_erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    mixup: Annotated[float, Field(ge=0)] = 0.0
    cutmix: Annotated[float, Field(ge=0)] = 0.0


@validated(config=_STRICT, frozen=True, kw_only=True)
class TrainingConfig:
    """Section `training`: how one architecture is trained.

    Args:
        epochs: Of the full training; only trials that reach it compete for the front.
        batch_size: Images a step, over all the devices of a trial together.
        lr, min_lr: Peak and final learning rate of a cosine schedule.
        warmup_epochs, warmup_lr: Linear warm-up before the peak, and where it starts.
        weight_decay: Not applied to norms, biases and the class token.
        momentum: Of SGD.
        drop_path: Rate of a stage's last block, rising from 0 within the stage; one for all stages
            or one for each.
        clip_grad_norm: Greatest norm of the gradient; none where absent.
        ema_decay: Decay a step of averaged weights, which are then what is evaluated and kept.
        precision: `bf16` and `fp16` are autocast; fp16 scales its loss.
    """

    epochs: PositiveInt
    batch_size: PositiveInt = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat = 1e-3
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    warmup_lr: Annotated[float, Field(ge=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    momentum: Fraction = 0.9
    label_smoothing: Fraction = 0.0
    drop_path: Fraction | list[Fraction] = 0.0
    clip_grad_norm: PositiveFloat | None = None
    ema_decay: Fraction | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@validated(config=_STRICT, frozen=True, kw_only=True)
class SearchConfig:
    """Section `search`.

    Args:
        trials: Architectures to train, anchors included.
        sampler: Who proposes them, all by Optuna.
        scheduler: `asha` stops the least accurate at each rung; `none` trains every trial in full.
        grace_period: Epochs of the first rung.
        reduction_factor: One in so many goes on past a rung; rungs are so many times farther apart.
        weights: `scratch`, every trial from a fresh initialisation.
        seed: Of proposals and trainings.
    """

    trials: PositiveInt = 50
    sampler: Literal["random", "tpe", "nsga2"] = "tpe"
    scheduler: Literal["asha", "none"] = "asha"
    grace_period: PositiveInt = 1
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    weights: Literal["scratch"] = "scratch"
    seed: Annotated[int, Field(ge=0)] = 0


@validated(config=_STRICT, frozen=True, kw_only=True)
class _File:
    format: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    space: _SpaceSection
    data: DataConfig
    training: TrainingConfig
    search: SearchConfig = field(default_factory=SearchConfig)
    objectives: _ObjectivesSection = field(
        default_factory=lambda: _ObjectivesSection(accuracy="maximize", params="minimize", flops="minimize")
    )
    constraints: _ConstraintsSection = field(default_factory=_ConstraintsSection)
    anchors: dict[str, dict[str, Any]] = field(default_factory=dict)


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
    search: SearchConfig
    text: str
    warnings: tuple[str, ...] = ()

    @property
    def box(self) -> HypervolumeBox:
        least, greatest = self.space.cost_range
        return HypervolumeBox(least=least, greatest=greatest)

    def anchor_archs(self) -> dict[str, ArchConfig]:
        return {name: self.space.decode(genome) for name, genome in self.anchors.items()}

    def manifest(self, *, seed: int, num_trials: int) -> dict[str, Any]:
        """What a run folder keeps of how it was made: plain JSON values."""
        packages = ("cvt-nas", "torch", "torchvision", "timm", "ray", "optuna", "fvcore", "numpy")
        return {
            "format": 1,
            "name": self.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "trials": num_trials,
            "seed": seed,
            "objectives": list(self.objectives),
            "hypervolume_box": dataclasses.asdict(self.box),
            "epochs": self.training.epochs,
            "dataset": self.data.dataset,
            "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
            "platform": platform.platform(),
            "fingerprint": self.fingerprint,
            "space_file_sha256": hashlib.sha256(self.text.encode()).hexdigest(),
            "space_file": self.text,
        }

    @property
    def fingerprint(self) -> str:
        """Hash of all that makes two results comparable: the file without its name and its number of trials."""
        tree = yaml.safe_load(self.text)
        tree.pop("name")
        tree.get("search", {}).pop("trials", None)
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def load_experiment(path: str | Path) -> Experiment:
    """Reads and checks a space file.

    Raises:
        SpaceFileError: The file is missing, not YAML, or wrong; holds every problem found.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise SpaceFileError([f"{path}: cannot be read: {reason}"]) from error
    return parse_experiment(text, str(path))


def parse_experiment(text: str, where: str) -> Experiment:
    """`load_experiment` of a text; `where` names it in messages."""
    reader = _Reader(text, where)
    tree = reader.read()
    if not isinstance(tree, dict):
        reader.stop_if_wrong()
    try:
        file = _FILE.validate_json(json.dumps(tree))
    except ValidationError as error:
        for details in error.errors():
            reader.add(*_explain(details, tree))
        reader.stop_if_wrong()
        raise AssertionError("a failed validation has errors") from error
    reader.stop_if_wrong()
    return _build(file, reader)


_FILE = TypeAdapter(_File)

Key = tuple[str | int, ...]


class _Reader:
    """YAML with the line of every key, and the problems found so far."""

    def __init__(self, text: str, where: str) -> None:
        self.text, self.where = text, where
        self.lines: dict[Key, int] = {(): 1}
        self.problems: list[tuple[int, str]] = []

    def add(self, key: Key, message: str) -> None:
        place = key
        while place not in self.lines:
            place = place[:-1]
        line, name = self.lines[place], dotted(key)
        self.problems.append((line, f"{self.where}:{line}: {name + ': ' if name else ''}{message}"))

    def stop_if_wrong(self) -> None:
        if self.problems:
            raise SpaceFileError([message for _, message in sorted(self.problems, key=lambda problem: problem[0])])

    def read(self) -> Any:
        try:
            node = yaml.compose(self.text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.lines[()] = mark.line + 1 if mark else 1
            self.add((), f"not YAML: {error.problem}")
            return None
        if not isinstance(node, yaml.MappingNode):
            self.add((), "must hold the keys format, name, space, data, training")
            return None
        return self._value(node, ())

    def _value(self, node: yaml.Node, key: Key) -> Any:
        self.lines.setdefault(key, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            tree = {}
            for name_node, value_node in node.value:
                name = name_node.value
                line = name_node.start_mark.line + 1
                if name in tree:
                    first = self.lines[(*key, name)]
                    self.problems.append(
                        (line, f"{self.where}:{line}: {dotted((*key, name))}: repeated, stands on line {first} already")
                    )
                    continue
                self.lines[(*key, name)] = line
                tree[name] = self._value(value_node, (*key, name))
            return tree
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*key, index)) for index, item in enumerate(node.value)]
        value = yaml.SafeLoader("").construct_object(node)
        if not isinstance(value, str | int | float | bool | None):
            return str(node.value)  # dates and the like: no key of ours wants one
        return value


def dotted(key: Key) -> str:
    """`space.stages[0].kv_stride`."""
    name = ""
    for part in key:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name


def _explain(error: ErrorDetails, tree: Any) -> tuple[Key, str]:
    """Key and message, in this project's words, of one of pydantic's errors."""
    key = _existing(error["loc"], tree, keep_last=error["type"] in ("missing", "unexpected_keyword_argument"))
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return key, "missing"
    if kind == "unexpected_keyword_argument":
        return key, f"unknown key{_did_you_mean(str(key[-1]), _keys_beside(key))}"
    if kind == "value_error":
        return key, str(context["error"])
    came = _value_at(tree, key) if not isinstance(error["input"], str | int | float | bool | list) else error["input"]
    shown = f"got {_show(came)}"
    if kind == "literal_error":
        allowed = [part.strip("' ") for part in context["expected"].replace(" or ", ", ").split(", ")]
        close = _did_you_mean(str(came), allowed) if len(allowed) > 1 else ""
        return key, f"{shown}, must be {_one_of(allowed)}{close if 'mean' in close else ''}"
    wanted = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "string_type": "text",
        "bool_type": "true or false",
        "list_type": "a list",
        "dict_type": "a section with keys of its own",
        "dataclass_type": "a section with keys of its own",
        "string_pattern_mismatch": f"text that matches {context.get('pattern')}",
        "too_short": "at least one",
        "greater_than": f"above {context.get('gt', 0):g}",
        "greater_than_equal": f"at least {context.get('ge', 0):g}",
        "less_than": f"below {context.get('lt', 0):g}",
        "less_than_equal": f"at most {context.get('le', 0):g}",
    }.get(kind, error["msg"])
    return key, f"{shown}, must be {wanted}{_yaml_hint(came)}"


def _existing(location: Sequence[Any], tree: Any, *, keep_last: bool) -> Key:
    """The part of pydantic's location that the file has: without union tags and indices of lone scalars."""
    key: list[str | int] = []
    for position, part in enumerate(location):
        last = position == len(location) - 1
        in_list = isinstance(tree, list) and isinstance(part, int) and part < len(tree)
        if in_list or (isinstance(tree, dict) and part in tree):
            tree = tree[part]
        elif not (last and keep_last):
            continue
        key.append(part)
    return tuple(key)


def _value_at(tree: Any, key: Key) -> Any:
    for part in key:
        tree = tree[part]
    return tree


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "a section"
    return "nothing" if value is None else json.dumps(value)


def _one_of(allowed: Sequence[str]) -> str:
    return allowed[0] if len(allowed) == 1 else f"one of {', '.join(allowed)}"


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known here: {', '.join(known)}" if known else ""


def _yaml_hint(value: Any) -> str:
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return ""
        mantissa, _, exponent = value.partition("e")
        written = f"{mantissa}.0e{exponent}" if exponent and "." not in mantissa else str(number)
        return f"; YAML reads {value} as text, write {written}"
    if isinstance(value, bool):
        return "; YAML reads yes, no, on and off as true and false"
    return ""


def _keys_beside(key: Key) -> list[str]:
    """Names of the keys that may stand where `key` does."""
    section: Any = _File
    for part in key[:-1]:
        if isinstance(part, int):
            continue
        section = typing.get_type_hints(section).get(part)
        section = _section_in(section)
        if section is None:
            return []
    return [f.name for f in dataclasses.fields(section)]


def _section_in(hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return hint
    if typing.get_origin(hint) in (list, typing.Union, types.UnionType, Annotated):
        return next((found for part in typing.get_args(hint) if (found := _section_in(part))), None)
    return None


def _build(file: _File, reader: _Reader) -> Experiment:
    """What pydantic cannot check: that the parts fit each other."""
    sections = file.space.stages
    for index, section in enumerate(sections):
        for heads in section.num_heads:
            if odd := [str(dim) for dim in section.embed_dim if dim % heads]:
                reader.add(
                    ("space", "stages", index, "num_heads"),
                    f"got {heads}, must divide every embed_dim of the stage, does not divide {', '.join(odd)}",
                )
        for kernel in section.kernel_size:
            if kernel % 2 == 0:
                reader.add(("space", "stages", index, "kernel_size"), f"got {kernel}, must be odd")
        if section.class_token and index < len(sections) - 1:
            reader.add(
                ("space", "stages", index, "class_token"), "got true, only the last stage can have a class token"
            )
        for name in section.per_block:
            if len(getattr(section, name)) == 1:
                reader.add(
                    ("space", "stages", index, "per_block"), f"got {name}, which is fixed in this stage; give it a list"
                )
    rates = file.training.drop_path
    if isinstance(rates, list) and len(rates) != len(sections):
        reader.add(
            ("training", "drop_path"), f"got {len(rates)} rates, must be one, or one for each of {len(sections)} stages"
        )
    if (file.training.augment.mixup or file.training.augment.cutmix) and file.training.batch_size % 2:
        reader.add(("training", "batch_size"), f"got {file.training.batch_size}, must be even for mixup and cutmix")
    if file.training.warmup_epochs >= file.training.epochs:
        reader.add(
            ("training", "warmup_epochs"),
            f"got {file.training.warmup_epochs:g}, must be below epochs, {file.training.epochs}",
        )
    for metric in COST_METRICS:
        bound = getattr(file.constraints, metric)
        if bound.min is not None and bound.max is not None and bound.min > bound.max:
            reader.add(("constraints", metric), f"got min {bound.min} above max {bound.max}")
    objectives: tuple[Metric, ...] = (
        "accuracy",
        *(metric for metric in COST_METRICS if getattr(file.objectives, metric) is not None),
    )
    if len(objectives) == 1:
        reader.add(("objectives",), "got accuracy alone, must hold params, flops or both beside it")
    reader.stop_if_wrong()

    try:
        space = SearchSpace(
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
                    class_token=index == len(sections) - 1 if section.class_token is None else section.class_token,
                )
                for index, section in enumerate(sections)
            ),
            bounds=_bounds_of(file.constraints),
        )
    except ArchError as error:
        reader.add(("space", "stages", *([] if error.stage is None else [error.stage, "patch"])), str(error))
        reader.stop_if_wrong()
        raise
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
        search=file.search,
        text=reader.text,
        warnings=_without_effect(file, reader),
    )


def _bounds_of(constraints: _ConstraintsSection) -> dict[CostMetric, Bound]:
    bounds: dict[CostMetric, Bound] = {}
    for metric in COST_METRICS:
        section: _BoundSection = getattr(constraints, metric)
        if (section.min, section.max) != (None, None):
            bounds[metric] = Bound(min=section.min, max=section.max)
    return bounds


def _check_feasible(space: SearchSpace, reader: _Reader) -> None:
    least, greatest = space.cost_range
    for metric, bound in space.bounds.items():
        low, high = getattr(least, metric), getattr(greatest, metric)
        if bound.max is not None and low > bound.max:
            reader.add(("constraints", metric, "max"), f"got {bound.max:_}, the space begins at {low:_}")
        elif bound.min is not None and high < bound.min:
            reader.add(("constraints", metric, "min"), f"got {bound.min:_}, the space ends at {high:_}")
    if not reader.problems and space.sample_feasible(random.Random(0), tries=20_000) is None:
        reader.add(("constraints",), "no architecture among 20,000 that were tried meets them all")


def _anchors_of(sections: Mapping[str, Mapping[str, Any]], space: SearchSpace, reader: _Reader) -> dict[str, Genome]:
    """Genomes of the anchors: a scalar for all stages, a list for one value a stage, a list in it for one a block."""
    anchors = {}
    for name, section in sections.items():
        num_problems = len(reader.problems)
        values = {
            choice: _by_stage(choice, value, ("anchors", name, choice), space, reader)
            for choice, value in section.items()
        }
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


def _by_stage(choice: str, value: Any, key: Key, space: SearchSpace, reader: _Reader) -> list[list[Any]]:
    """The values of one choice of an anchor: for each stage, one for each block or one for all."""
    if choice not in (*STAGE_CHOICES, *BLOCK_CHOICES):
        reader.add(key, f"unknown key{_did_you_mean(choice, (*STAGE_CHOICES, *BLOCK_CHOICES))}")
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
                reader.add(key, f"got {_show(block)} for stage {index}, must be {_one_of([str(o) for o in options])}")
        by_stage.append(blocks)
    return by_stage


def _without_effect(file: _File, reader: _Reader) -> tuple[str, ...]:
    """Settings that are written in the file and change nothing."""
    written = set(reader.lines)
    from_folder = file.data.dataset in ("imagefolder", "imagenet")
    found: list[tuple[Key, str]] = []

    def check(key: Key, idle: bool, why: str) -> None:
        if idle and key in written:
            found.append((key, why))

    check(("training", "momentum"), file.training.optimizer == "adamw", "AdamW has none")
    check(("training", "warmup_lr"), file.training.warmup_epochs == 0, "warmup_epochs is 0")
    check(("training", "augment", "crop_padding"), from_folder, "images of a folder are cropped by crop_scale")
    check(("training", "augment", "crop_scale"), not from_folder, "in-memory images are cropped by crop_padding")
    check(("training", "augment", "color_jitter"), not from_folder, "only images of a folder are jittered")
    check(("data", "num_workers"), not from_folder, "an in-memory set needs no workers")
    for name in ("grace_period", "reduction_factor"):
        check(("search", name), file.search.scheduler == "none", "the scheduler is none")
    return tuple(f"{reader.where}:{reader.lines[key]}: {dotted(key)}: has no effect: {why}" for key, why in found)
