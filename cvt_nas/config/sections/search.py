"""Section `search`: who proposes architectures, who stops their training, and what is trained again."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema
from pydantic.dataclasses import dataclass as validated

from cvt_nas.config.values import STRICT, FrontOrCount, PositiveFloat, PositiveInt, SamplerName, Seed
from cvt_nas.latency import Int8Runtime
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
    """Section `search.confirm`: after the race, its best architectures are trained again with further seeds.

    Winners of a race are partly lucky, so their accuracies are too high. Further trainings had no part in the
    selection, so their mean is unbiased. The front is drawn by it.

    Args:
        top: Architectures to train again: `front` for the members of the race's front, or a number of trials by
            non-dominated sorting. Only these compete afterwards. A number above the front's size gives unlucky
            trials a chance.
        seeds: Further trainings of each architecture. With one, there is no standard deviation and no probability of
            membership.
        as: Runtime in whose int8 each further training is judged. Its worker quantises the network as exports are, and
            the front is drawn by the mean accuracy in int8. Where absent, by the mean accuracy in fp32.
    """

    top: Annotated[FrontOrCount, Field(examples=[8])] = "front"
    seeds: PositiveInt = 3
    as_: Annotated[Int8Runtime | None, Field(alias="as")] = None


@validated(config=STRICT, frozen=True, kw_only=True)
class SearchConfig:
    """Section `search`: who proposes architectures, who stops their training, and what is trained again.

    Args:
        trials: Architectures to train, anchors included.
        sampler: Algorithm that proposes architectures. `surrogate` models accuracy by a Gaussian process and knows the
            costs. `tpe`, `nsga2` and `gp` are Optuna's. `random` draws evenly. `MODULE:NAME` is a sampler of your own,
            and `optunahub:NAME` one of OptunaHub's.
        scheduler: Algorithm that stops trials. `pareto-asha` stops trials that are weak for their cost, and `asha` the
            least accurate ones at each rung. `freeze-thaw` needs no rungs: after every epoch it trains the trial that
            promises the most for its remaining epochs, by the model of `surrogate`. `none` trains every trial in full.
        per: Cost by which the surrogate divides an expected gain of hypervolume when it compares architectures and
            trials: `epoch`, their number of epochs; or `second`, the time that they should take by the trials so far.
        mode: Decision at a rung of `pareto-asha` or `asha`. `promote` pauses a trial, which continues once it is among
            the best. `stop` is final.
        grace_period: Epochs of the first rung.
        reduction_factor: One in this number of trials continues past a rung. Rungs are this factor apart. Except the
            first, all rungs are at most `training.epochs` divided by it.
        weights: Weights that a trial starts from. `scratch` is a fresh initialisation or `--init`; `supernet` is the
            weights inherited from a supernet; `da-nas` is the same with a supernet whose space was narrowed during its
            training.
        importance: Order of the channels, heads, hidden units and blocks of `--init`'s weights. Smaller networks get
            the first ones. `taylor` orders by the change of the loss without them, on 1,024 training images (Molchanov
            et al. 2019, arXiv:1906.10771); `magnitude` by the size of their weights; `none` keeps the order.
        candidates: Number of architectures that are ranked by inherited accuracy, if trials inherit weights. Then
            `trials` of them are trained, the best ones first. `sampler: surrogate` begins with the cheapest of the best
            twelve. From the third complete trial on, it chooses by what it learned from trials and inherited accuracies
            together.
        priors: Your beliefs about the options of choices, before anything is trained. The weight of an option says how
            many times as often as by chance it is in good networks, for example 3, or 0.5 for less often. For each
            choice, give a section of weights for all stages, or a list of one section for each stage. Options that it
            lacks have weight 1. `surrogate` starts from these beliefs, beyond what follows from costs, and follows them
            as far as the trials confirm them.
        seed: Seed of proposals and trainings.
        confirm: Further trainings of the best architectures after the race. By default, there are none.
        max_failures: Number of times that a trial restarts from its checkpoint after its worker or node died.
        trial_timeout: Seconds without a report after which a trial counts as hung and its worker is killed. A trial
            reports once an epoch, and once more when it was judged in int8. No limit where absent.
        spread_last: Whether the last trials, once they are fewer than the slots, train on several GPUs each, so that no
            GPU is idle. They share the batch. Each GPU has batch norm statistics of its own images, and their mean is
            kept, so accuracies may differ slightly from those on one GPU.
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
