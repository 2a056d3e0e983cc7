"""Section `search`: who proposes architectures, who stops their training, and what is trained again."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema
from pydantic.dataclasses import dataclass as validated

from cvt_nas.config.values import STRICT, FrontOrCount, PositiveFloat, PositiveInt, SamplerName, Seed
from cvt_nas.space import BLOCK_CHOICES, STAGE_CHOICES

_WEIGHTS = {"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0}}
_WEIGHTS_OF_STAGES = {"anyOf": [_WEIGHTS, {"type": "array", "items": _WEIGHTS}]}
_PRIORS = {
    "type": "object",
    "properties": dict.fromkeys((*STAGE_CHOICES, *BLOCK_CHOICES), _WEIGHTS_OF_STAGES),
    "additionalProperties": False,
    "examples": [{"kv_stride": {2: 3, 1: 0.5}}],
}


@validated(config=STRICT, frozen=True, kw_only=True)
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

    top: Annotated[FrontOrCount, Field(examples=[8])] = "front"
    seeds: PositiveInt = 3


@validated(config=STRICT, frozen=True, kw_only=True)
class SearchConfig:
    """Section `search`: who proposes architectures, who stops their training, and what is trained again.

    Args:
        trials: Architectures to train, anchors included.
        sampler: Who proposes them. `surrogate` models accuracy by a Gaussian process and knows the costs;
            `tpe`, `nsga2` and `gp` are Optuna's; `random` draws evenly. `MODULE:NAME` is a sampler of your own, and
            `optunahub:NAME` one of OptunaHub's.
        scheduler: `pareto-asha` stops trials that are weak for what they cost, `asha` the least accurate at
            each rung; `freeze-thaw` decides after every epoch which trial promises the most for the epochs that are
            left to it, by the model of `surrogate`, and needs no rungs; `none` trains every trial in full.
        per: What an expected gain of hypervolume is divided by where the surrogate compares architectures and trials:
            their epochs, or the `second`s that these are expected to take, by the trials so far.
        mode: At a rung of `pareto-asha` or `asha`, `promote` lets a trial pause, and go on once it is among the best;
            `stop` decides for good.
        grace_period: Epochs of the first rung.
        reduction_factor: One in so many goes on past a rung; rungs are so many times farther apart, and none but the
            first stands beyond `training.epochs` divided by it.
        weights: `scratch`, every trial by itself, from a fresh initialisation or from `--init`; `supernet`, from the
            weights that it inherits; `da-nas`, the same, of a supernet whose space was narrowed while it was trained.
        importance: By what the channels, heads, hidden units and blocks of weights to begin with (`--init`) are put in
            order, so that smaller networks get the first of them: `taylor`, how much the loss changes without them, on
            1,024 training images (Molchanov et al. 2019, arXiv:1906.10771); `magnitude`, the size of their weights;
            `none`, as they are.
        candidates: Architectures ranked by the accuracy that they inherit, where trials inherit weights. The best
            `trials` of them are then trained on, in their order.
        priors: What you believe of the options of choices, before anything is trained: how many times as often as by
            chance each is in good networks, as 3, or 0.5 for less often. For each choice a section with such a weight
            for each option, 1 for those that it lacks, or a list of one for each stage. `surrogate` begins with it,
            beyond what follows from costs, and believes it as far as the trials confirm it.
        seed: Seed of proposals and trainings.
        confirm: Further trainings of the best, after the race. There are none where it is absent.
        max_failures: Times that a trial whose worker died, with its node or alone, begins again on its checkpoint.
        trial_timeout: Seconds without a report after which a trial counts as hung, and its worker is killed; none
            where absent. A report comes once an epoch.
        spread_last: Whether the trials that are left at the end, fewer than there are slots, train on several GPUs
            each, so that none stands idle. They share the batch, and each GPU has batch norm statistics of its own
            images, whose mean is kept; their accuracy may differ a little from that on one GPU.
    """

    trials: PositiveInt = 50
    sampler: Annotated[SamplerName, Field(examples=["tpe"])] = "surrogate"
    scheduler: Literal["freeze-thaw", "pareto-asha", "asha", "none"] = "pareto-asha"
    per: Literal["epoch", "second"] = "epoch"
    mode: Literal["stop", "promote"] = "promote"
    grace_period: PositiveInt = 1
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    weights: Literal["scratch", "supernet", "da-nas"] = "scratch"
    importance: Literal["taylor", "magnitude", "none"] = "taylor"
    candidates: PositiveInt = 1000
    priors: Annotated[dict[str, Any], WithJsonSchema(_PRIORS)] = field(default_factory=dict)
    seed: Seed = 0
    confirm: ConfirmConfig | None = None
    max_failures: Annotated[int, Field(ge=0)] = 3
    trial_timeout: Annotated[PositiveFloat, Field(examples=[3600.0])] | None = None
    spread_last: bool = False

    @property
    def has_supernet(self) -> bool:
        return self.weights != "scratch"
