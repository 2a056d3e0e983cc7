"""Builds the search space that a space file describes, and checks that its constraints can be met."""

import random

from cvt_nas.config.reader import Reader
from cvt_nas.config.sections import ConstraintsSection, SpaceFile
from cvt_nas.errors import ArchError
from cvt_nas.latency import Deployment, facts_of
from cvt_nas.space import ALL_COST_METRICS, SIZE_METRICS, TIMED_METRICS, Bound, CostMetric, SearchSpace, StageSpace


def space_of(file: SpaceFile, reader: Reader) -> SearchSpace:
    last = len(file.space.stages) - 1
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
                    class_token=file.space.pool == "class_token" and index == last,
                    activation=file.space.activation,
                    pos_embed=section.pos_embed,
                )
                for index, section in enumerate(file.space.stages)
            ),
            bounds=_bounds_of(file.constraints),
            deployment=_deployment_of(file, reader),
        )
    except ArchError as error:
        reader.add(("space", "stages", *([] if error.stage is None else [error.stage, "patch"])), str(error))
        reader.stop_if_wrong()
        raise
    try:
        _ = space.as_deployed
    except ArchError as error:
        reader.add(("deploy", "image_size"), str(error))
        reader.stop_if_wrong()
    return space


def _bounds_of(constraints: ConstraintsSection) -> dict[CostMetric, Bound]:
    bounds: dict[CostMetric, Bound] = {}
    for metric in ALL_COST_METRICS:
        section = getattr(constraints, metric)
        least, greatest = getattr(section, "min", None), getattr(section, "max", None)
        if (least, greatest) != (None, None):
            bounds[metric] = Bound(min=least, max=greatest)
    return bounds


def _deployment_of(file: SpaceFile, reader: Reader) -> Deployment | None:
    """What the file's costs are of beside params and FLOPs; None where it names none of these, and no `deploy`."""
    asked = [
        metric
        for metric in (*SIZE_METRICS, "throughput")
        if getattr(file.objectives, metric) is not None or metric in _bounds_of(file.constraints)
    ]
    if not asked and ("deploy",) not in reader.lines:
        return None
    deploy = file.deploy
    precision = facts_of(deploy.runtime).precisions[0] if deploy.precision == "auto" else deploy.precision
    return Deployment(
        runtime=deploy.runtime,
        device=deploy.device,
        batch=deploy.batch,
        threads=None if deploy.threads == "auto" else deploy.threads,
        precision=precision,
        image_size=file.space.image_size if deploy.image_size is None else deploy.image_size,
    )


def check_feasible(space: SearchSpace, reader: Reader) -> None:
    least, greatest = space.cost_range
    for metric, bound in space.bounds.items():
        if metric in TIMED_METRICS:  # they are measured later
            continue
        low, high = getattr(least, metric), getattr(greatest, metric)
        if bound.max is not None and low > bound.max:
            reader.add(("constraints", metric, "max"), f"got {bound.max:_}, the space begins at {low:_}")
        elif bound.min is not None and high < bound.min:
            reader.add(("constraints", metric, "min"), f"got {bound.min:_}, the space ends at {high:_}")
    if not reader.problems and space.sample_feasible(random.Random(0), tries=20_000) is None:
        reader.add(("constraints",), "no architecture among 20,000 that were tried meets them all")
