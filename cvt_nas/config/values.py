"""Types of the values in a space file, with their bounds and their JSON schema."""

import itertools
import re
from functools import partial
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, WithJsonSchema

from cvt_nas.arch import ImageSize, Projection, checked_size
from cvt_nas.config.reader import did_you_mean, show

STRICT = ConfigDict(extra="forbid", strict=True)
MAX_SEED = 2**32 - 1  # numpy's, scikit-learn's and Optuna's

T = TypeVar("T", int, float, str)


def _as_options(value: object) -> object:
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


def _word_or_count(word: str, least: int, value: object) -> object:
    if value == word or (type(value) is int and value >= least):
        return value
    raise ValueError(f"got {show(value)}, must be {word}, or a whole number of at least {least}")


def _name_or_plugin(options: tuple[str, ...], value: str) -> str:
    if value in options or re.fullmatch(_PLUGIN, value):
        return value
    near = did_you_mean(value, list(options))
    raise ValueError(f"got {show(value)}, must be one of {', '.join(options)}, or MODULE:NAME{near}")


def _image_size(value: object) -> ImageSize:
    try:
        return checked_size(value, _MAX_SIZE)
    except ValueError as error:
        raise ValueError(f"got {show(value)}, {error}") from error


def _on_or_off(value: object) -> object:
    """Restores `on` and `off`, which YAML reads as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _randaugment(value: str) -> str:
    """Checks a policy for timm's `rand_augment_transform`. Each part of it must have an effect."""
    first, *parts = value.split("-")
    wrong = [first] if first != "rand" else [f"-{part}" for part in parts if not re.fullmatch(_RAND_PART, part)]
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


_PLUGIN = r"[A-Za-z_][\w.]*:[A-Za-z_][\w./-]*"
_RAND_PART = r"(m|n|mmax|inc)[0-9]{1,4}|(p|mstd)[0-9]{1,4}(\.[0-9]+)?|t(weights|3a|3aw)"
_MOST_LAYERS = {"tweights": 15, "t3aw": 14}  # number of operations: timm draws each at most once for an image

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
# no network comes near these limits; they keep a space file from exhausting the machine
_MAX_SIZE = 2**16
Size = Annotated[int, Field(ge=1, le=_MAX_SIZE)]
Depth = Annotated[int, Field(ge=1, le=2**8)]
Ratio = Annotated[float, Field(gt=0, le=2**6)]
FEW = Field(min_length=1, max_length=2**4)


def _fixed_or_choice(option: Any, *, rule: str) -> BeforeValidator:
    """Accepts a scalar as a list of one. The schema tells them apart, so that editors can explain both."""
    note = Field(description=f"A choice of these options, which must {rule}.", json_schema_extra={"uniqueItems": True})
    fixed: Any = Annotated[option, Field(description="Fixed.")]
    choice: Any = Annotated[list[option], FEW, note]
    return BeforeValidator(_as_options, json_schema_input_type=fixed | choice)


_Square: Any = Annotated[Size, Field(description="Side of square images.")]
_Rectangle: Any = Annotated[list[Size], Field(min_length=2, max_length=2, description="Height and width, no choice.")]
Sides = Annotated[ImageSize, BeforeValidator(_image_size, json_schema_input_type=_Square | _Rectangle)]

IntOptions = Annotated[list[Size], FEW, _fixed_or_choice(Size, rule="rise"), AfterValidator(_rising)]
DepthOptions = Annotated[list[Depth], FEW, _fixed_or_choice(Depth, rule="rise"), AfterValidator(_rising)]
FloatOptions = Annotated[list[Ratio], FEW, _fixed_or_choice(Ratio, rule="rise"), AfterValidator(_rising)]
ProjectionOptions = Annotated[
    list[Projection], Field(min_length=1), _fixed_or_choice(Projection, rule="be distinct"), AfterValidator(_distinct)
]

RisingEpochs = Annotated[list[PositiveInt], Field(json_schema_extra={"uniqueItems": True}), AfterValidator(_rising)]
Shares = Annotated[
    list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2**4), AfterValidator(_never_falling)
]
RandAugment = Annotated[
    str, Field(json_schema_extra={"pattern": f"^rand(-({_RAND_PART}))*$"}), AfterValidator(_randaugment)
]
FrontOrCount = Annotated[
    Literal["front"] | int,
    BeforeValidator(partial(_word_or_count, "front", 1), json_schema_input_type=Literal["front"] | PositiveInt),
]
AutoOrCount = Annotated[
    Literal["auto"] | int,
    BeforeValidator(partial(_word_or_count, "auto", 1), json_schema_input_type=Literal["auto"] | PositiveInt),
]
AutoOrWorkers = Annotated[
    Literal["auto"] | int,
    BeforeValidator(
        partial(_word_or_count, "auto", 0), json_schema_input_type=Literal["auto"] | Annotated[int, Field(ge=0)]
    ),
]
_Plugin = Annotated[str, Field(pattern=f"^{_PLUGIN}$", description="MODULE:NAME, of your own.")]
_Loss = Literal["auto", "cross_entropy", "binary_cross_entropy"]
LossName = Annotated[
    str,
    WithJsonSchema(TypeAdapter(_Loss | _Plugin).json_schema()),
    AfterValidator(partial(_name_or_plugin, get_args(_Loss))),
]
_Metric = Literal["auto", "accuracy", "balanced_accuracy", "macro_f1", "mean_average_precision", "auroc"]
MetricName = Annotated[
    str,
    WithJsonSchema(TypeAdapter(_Metric | _Plugin).json_schema()),
    AfterValidator(partial(_name_or_plugin, get_args(_Metric))),
]
_Sampler = Literal["surrogate", "tpe", "nsga2", "gp", "random"]
SamplerName = Annotated[
    str,
    WithJsonSchema(TypeAdapter(_Sampler | _Plugin).json_schema()),
    AfterValidator(partial(_name_or_plugin, get_args(_Sampler))),
]
Checkpointing = Annotated[
    Literal["auto", "off", "on"],
    BeforeValidator(_on_or_off, json_schema_input_type=Literal["auto", "off", "on", False, True]),
]
Compiling = Annotated[
    Literal["auto", "off", "graph", "blocks"],
    BeforeValidator(_on_or_off, json_schema_input_type=Literal["auto", "off", "graph", "blocks", False]),
]
