"""RandAugment of a batch on a device, against timm's by PIL: the same draws, and the same values."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.auto_augment import rand_augment_transform

from cvt_nas.data import seed_all
from cvt_nas.data.augment import with_every_magnitude
from cvt_nas.data.randaugment import augmented, recording

FILL = {"L": (113,), "RGB": (124, 116, 104)}


@functools.cache
def pictures(mode: str, side: int) -> list[Image.Image]:
    """Photographs, dark and bright and flat ones among them."""
    crops = [
        Image.fromarray(picture[top : top + 200, left : left + 200]).resize((side, side)).convert(mode)
        for picture in load_sample_images().images
        for top, left in ((0, 0), (150, 250), (220, 400))
    ]
    faint = [Image.fromarray((np.asarray(crop) // 4 + 90).astype(np.uint8)) for crop in crops[:2]]
    return [*crops, *faint, Image.new(mode, (side, side), FILL[mode]), Image.new(mode, (side, side))]


def as_bytes(images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(each).reshape(*each.size[::-1], -1)) for each in images]).permute(
        0, 3, 1, 2
    )


def policy_of(config: str, mode: str, **settings: Any) -> Any:
    return with_every_magnitude(rand_augment_transform(config, {"img_mean": FILL[mode], **settings}))


def both(
    config: str, mode: str, images: list[Image.Image], *, only: int | None = None, **settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a batch becomes, and what timm makes of each image; by all operations, or one alone."""
    policies = [policy_of(config, mode, **settings) for _ in range(2)]
    if only is not None:
        for each in policies:
            each.ops = [each.ops[only]]
    policy, draw = policies[0], recording(policies[1])
    changed, records = list[Image.Image](), list[torch.Tensor]()
    for number, image in enumerate(images):
        seed_all(number)
        changed.append(policy(image))
        seed_all(number)
        records.append(draw())
    found = augmented(as_bytes(images).clone(), torch.stack(records), torch.tensor(FILL[mode], dtype=torch.uint8))
    return found, as_bytes(changed)


def is_the_same(found: torch.Tensor, expected: torch.Tensor, *, exactly: bool) -> bool:
    away = (found.int() - expected.int()).abs()
    return bool(away.max() <= (0 if exactly else 1) and away.float().mean() < 0.005)


@pytest.mark.parametrize("magnitude", ["m0", "m10", "m30-mmax30"])
@pytest.mark.parametrize(("chosen", "mode"), [("inc1", "L"), ("inc0", "RGB"), ("inc1", "RGB"), ("t3a-inc1", "RGB")])
def test_each_operation_is_pil_s(chosen: str, magnitude: str, mode: str) -> None:
    config = f"rand-{magnitude}-{chosen}-n1-p1"
    images = pictures(mode, 33)
    for number, name in enumerate(operation.name for operation in policy_of(config, mode).ops):
        is_warp = name.startswith(("Rotate", "Shear", "Translate"))
        for resample in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)[: 2 if is_warp else 1]:
            found, expected = both(config, mode, images, only=number, interpolation=resample)
            assert is_the_same(found, expected, exactly=not is_warp), name
            assert torch.equal(*both(config, mode, pictures(mode, 1), only=number, interpolation=resample)), name


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    "config", ["rand-m9-mstd0.5-inc1", "rand-m10-n4-p1", "rand-m9-mstd1-tweights-inc1", "rand-m9-n3-t3aw-inc1"]
)
def test_a_seed_gives_the_image_that_timm_s_policy_gives(config: str, mode: str) -> None:
    images = pictures(mode, 40) * 3
    found, expected = both(config, mode, images)  # timm draws the interpolation of each warp, too
    away = (found.int() - expected.int()).abs().float()
    assert away.mean() < 0.02  # a value that differs by one may be on the other side of a threshold
    assert (found != as_bytes(images)).flatten(1).any(1).float().mean() > 0.5


def test_a_batch_in_which_nothing_is_drawn_stays_as_it_is() -> None:
    found, expected = both("rand-m9-p0", "RGB", pictures("RGB", 8))
    assert torch.equal(found, expected)
    assert torch.equal(found, as_bytes(pictures("RGB", 8)))


def test_a_large_batch_is_cut_and_stays_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    config, images = "rand-m9-mstd0.5-inc1-n3-p1", pictures("RGB", 40) * 3
    whole, _ = both(config, "RGB", images)
    monkeypatch.setattr("cvt_nas.data.randaugment._CHUNK_VALUES", 3 * 40 * 40 * 2)
    assert torch.equal(whole, both(config, "RGB", images)[0])
