"""The whole space file: its sections, in the order in which they are documented."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema
from pydantic.dataclasses import dataclass as validated

from cvt_nas.config.sections.data import DataConfig
from cvt_nas.config.sections.deploy import DeployConfig
from cvt_nas.config.sections.search import SearchConfig
from cvt_nas.config.sections.space import ConstraintsSection, ObjectivesSection, SpaceSection
from cvt_nas.config.sections.supernet import DaNasConfig, SupernetConfig
from cvt_nas.config.sections.training import TrainingConfig
from cvt_nas.config.values import STRICT
from cvt_nas.space import BLOCK_CHOICES, STAGE_CHOICES

_OPTION = {"type": ["integer", "number", "string"]}
_OPTIONS = {"anyOf": [_OPTION, {"type": "array", "items": {"anyOf": [_OPTION, {"type": "array", "items": _OPTION}]}}]}
_ANCHORS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "properties": dict.fromkeys((*STAGE_CHOICES, *BLOCK_CHOICES), _OPTIONS),
        "additionalProperties": False,
    },
    "examples": [{"cvt-13": {"embed_dim": [64, 192, 384], "depth": [1, 2, 10], "mlp_ratio": 4.0}}],
}


@validated(config=STRICT, frozen=True, kw_only=True)
class SpaceFile:
    """A space file: one experiment of cvt-nas. A scalar is fixed, and a list is a choice.

    Args:
        format: Version of this format.
        name: Name of the experiment and of its run folder.
        anchors: Architectures that are evaluated first, by name. An anchor has a value for each choice of the space:
            one for all stages, or a list with one for each stage, which may be a list with one for each block.
    """

    format: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", examples=["cvt13"])]
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
    deploy: DeployConfig = field(default_factory=DeployConfig)
    anchors: Annotated[dict[str, dict[str, object]], WithJsonSchema(_ANCHORS)] = field(default_factory=dict)
