"""Weights that networks of other sizes begin with: units in their order, and cuts of them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cvt_nas.arch import ArchConfig
from cvt_nas.errors import ArchError
from cvt_nas.model import CvT, Lent, begin_with, cut_state, lend, magnitudes, read_weights, save_model, sorted_by
from strategies import archs, per_stage
from test_model import randomise

SHAPE: dict[str, Any] = {
    "image_size": 32, "dims": (16, 32, 48), "depths": (1, 2, 3), "heads": (1, 2, 3), "kernels": (3, 5, 3),
    "strides": (2, 1, 2), "ratios": (2.0, 1.0, 3.0),
}  # fmt: skip
ARCH = per_stage(**SHAPE)


def trained(arch: ArchConfig) -> CvT:
    torch.manual_seed(0)
    model = CvT(arch)
    randomise(model)
    return model.eval()


def lent_of(model: CvT, **changes: Any) -> Lent:
    arch = model.arch
    whole: dict[str, Any] = {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "arch": arch,
        "knows_heads": True,
        "classes": tuple(range(arch.num_classes)),
        "blocks": tuple(tuple(range(len(stage.blocks))) for stage in arch.stages),
    }
    return Lent(**{**whole, **changes})


def images_for(arch: ArchConfig) -> torch.Tensor:
    return torch.randn(2, *arch.image_shape, generator=torch.Generator().manual_seed(1))


@given(arch=archs(), knows_heads=st.booleans())
@settings(max_examples=30)
@torch.inference_mode()
def test_sorting_changes_no_answer(arch: ArchConfig, knows_heads: bool) -> None:
    model = trained(arch)
    lent = lent_of(model, knows_heads=knows_heads)
    found = sorted_by(lent, magnitudes(lent), importance="magnitude")
    assert found.state.keys() == lent.state.keys()
    twin = begin_with(CvT(arch), dataclasses.replace(found, blocks=lent.blocks)).eval()
    images = images_for(arch)
    torch.testing.assert_close(twin(images), model(images), atol=1e-4, rtol=1e-4)


@given(arch=archs())
@settings(max_examples=30)
def test_a_cut_to_its_own_shape_is_the_whole(arch: ArchConfig) -> None:
    lent = lent_of(trained(arch))
    begun = cut_state(lent, arch, CvT(arch).state_dict())
    assert all(torch.equal(begun[name], tensor) for name, tensor in lent.state.items())


@given(small=archs(), large=archs())
@settings(max_examples=30)
def test_any_network_can_begin_with_any_other_of_as_many_stages(small: ArchConfig, large: ArchConfig) -> None:
    lent = lent_of(trained(large))
    if len(small.stages) != len(large.stages):
        with pytest.raises(ArchError, match="stages"):
            begin_with(CvT(small), lent)
        return
    shape = {"num_channels": large.num_channels, "num_classes": large.num_classes}
    small = dataclasses.replace(small, **shape)
    assert begin_with(CvT(small), lent).eval()(images_for(small)).isfinite().all()


@torch.inference_mode()
def test_hidden_units_blocks_and_kernels_beyond_those_that_are_lent_change_no_answer() -> None:
    model = trained(ARCH)
    larger = per_stage(**{**SHAPE, "depths": (2, 2, 4), "kernels": (5, 5, 7), "ratios": (2.5, 2.0, 3.0)})
    twin = begin_with(CvT(larger), lent_of(model)).eval()
    torch.testing.assert_close(twin(images_for(ARCH)), model(images_for(ARCH)), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_whole_heads_that_are_cut_out_attend_as_before() -> None:
    """Where what the other heads add is zero, and so are the channels that are cut off, since a norm sees them."""
    arch = per_stage(
        **{**SHAPE, "dims": (32,), "depths": (1,), "heads": (4,), "kernels": (3,), "strides": (1,), "ratios": (1.0,)}
    )
    small = per_stage(
        **{**SHAPE, "dims": (16,), "depths": (1,), "heads": (2,), "kernels": (3,), "strides": (1,), "ratios": (1.0,)}
    )
    attention: Any = trained(arch).get_submodule("stage0.blocks.0.attn")
    lent = lent_of(trained(arch))
    cut: Any = begin_with(CvT(small), lent).eval().get_submodule("stage0.blocks.0.attn")
    tokens = torch.zeros(2, 1 + 64, 32)
    tokens[..., :16] = torch.randn(2, 65, 16)
    for name in ("proj_q", "proj_k", "proj_v"):  # which read of the first channels alone
        attention.get_submodule(name).weight[:, 16:] = 0
    attention.proj.weight[:, 16:] = 0
    found = cut(tokens[..., :16], (8, 8))
    torch.testing.assert_close(found, attention(tokens, (8, 8))[..., :16], atol=1e-4, rtol=1e-4)


def test_the_first_units_are_those_with_most_weight_and_blocks_are_ranked() -> None:
    model = trained(ARCH)
    state = model.state_dict()
    with torch.no_grad():
        state["stage1.blocks.1.mlp.fc2.weight"][:, 5] += 50  # a hidden unit
        state["stage2.blocks.0.attn.proj_v.weight"][2 * 16 + 3] += 50  # the third head's fourth channel
        for number, scale in enumerate((1.0, 9.0, 3.0)):
            state[f"stage2.blocks.{number}.mlp.fc2.weight"].mul_(scale)
    lent = lent_of(model)
    found = sorted_by(lent, magnitudes(lent), importance="magnitude")
    hidden = found.state["stage1.blocks.1.mlp.fc1.bias"]
    assert hidden[0] == state["stage1.blocks.1.mlp.fc1.bias"][5]
    assert found.state["stage2.blocks.0.attn.proj_v.bias"][0] == state["stage2.blocks.0.attn.proj_v.bias"][35]
    heads = found.state["stage2.blocks.0.attn.proj_q.bias"].reshape(3, 16)
    assert set(heads[0].tolist()) == set(state["stage2.blocks.0.attn.proj_q.bias"][32:].tolist())
    assert found.blocks[2] == (1, 2, 0)
    shallow = per_stage(**{**SHAPE, "depths": (1, 1, 2)})
    begun = cut_state(dataclasses.replace(found, state=lent.state), shallow, CvT(shallow).state_dict())
    for ours, theirs in ((0, 1), (1, 2)):  # in the order in which they were
        name = "stage2.blocks.{}.mlp.fc2.weight"
        assert torch.equal(begun[name.format(ours)], state[name.format(theirs)])


def test_what_is_lent_comes_back_from_its_file(tmp_path: Path) -> None:
    lent = dataclasses.replace(lent_of(trained(ARCH)), blocks=((0,), (1, 0), (2, 0, 1)), importance="taylor")
    (tmp_path / "init.safetensors").write_bytes(lent.to_bytes())
    found = Lent.load(tmp_path / "init.safetensors")
    assert all(torch.equal(found.state[name], tensor) for name, tensor in lent.state.items())
    assert dataclasses.replace(found, state={}) == dataclasses.replace(lent, state={})
    (tmp_path / "init.safetensors").write_bytes(lent.to_bytes()[:-100])
    with pytest.raises(ArchError, match=r"init\.safetensors: "):
        Lent.load(tmp_path / "init.safetensors")


def test_images_of_other_channels_are_seen_as_by_timm(tmp_path: Path) -> None:
    from timm.models import adapt_input_conv

    model = trained(ARCH)
    save_model(model, tmp_path)
    name = "stage0.patch_embed.proj.weight"
    for channels in (1, 4, 6):
        lent, notes = lend(read_weights(tmp_path), num_channels=channels, num_classes=10)
        expected = adapt_input_conv(channels, model.state_dict()[name])
        torch.testing.assert_close(lent.state[name], expected)
        assert notes[-1] == f"the first convolution takes {channels} channels instead of 3"
    grey = trained(per_stage(**SHAPE, num_channels=1))
    save_model(grey, tmp_path)
    lent, _ = lend(read_weights(tmp_path), num_channels=3, num_classes=10)
    torch.testing.assert_close(lent.state[name].sum(1, keepdim=True), grey.state_dict()[name])


@pytest.mark.parametrize(("classes", "known"), [(("a", "x", "c"), (0, 2)), (("x", "y"), ())])
def test_classes_of_equal_name_keep_their_rows(
    classes: tuple[str, ...], known: tuple[int, ...], tmp_path: Path
) -> None:
    model = trained(dataclasses.replace(ARCH, num_classes=3))
    torch.save({"model": model.state_dict(), "classes": ["c", "b", "a"]}, tmp_path / "w.pth")
    lent, notes = lend(read_weights(tmp_path / "w.pth"), num_channels=3, num_classes=len(classes), classes=classes)
    assert lent.classes == known
    arch = dataclasses.replace(ARCH, num_classes=len(classes))
    fresh = CvT(arch).state_dict()
    head, theirs = cut_state(lent, arch, fresh)["head.weight"], model.state_dict()["head.weight"]
    for index in range(len(classes)):
        row = {"a": 2, "c": 0}.get(classes[index])
        assert torch.equal(head[index], fresh["head.weight"][index] if row is None else theirs[row])
    assert "afresh" in notes[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["norm.weight"].fill_(torch.nan), r"norm\.weight: holds values that are not finite"),
        (lambda state: state.pop("stage1.blocks.0.norm1.weight"), r"missing: stage1\.blocks\.0\.norm1\.weight"),
        (lambda state: state.update({"stage0.patch_embed.proj.weight": torch.zeros(16)}), "is no state dict of a CvT"),
    ],
)
def test_weights_that_cannot_be_lent_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    state = trained(ARCH).state_dict()
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ArchError, match=message):
        lend(read_weights(tmp_path / "w.safetensors"), num_channels=3, num_classes=10)


def test_what_a_norm_counts_is_counted_for_each_channel() -> None:
    lent = lent_of(trained(ARCH))
    scores = {name: torch.zeros_like(score) for name, score in magnitudes(lent).items()}
    name = "stage1.patch_embed.norm.weight"
    found = sorted_by(lent, {**scores, name: torch.arange(32.0)}, importance="magnitude")
    assert torch.equal(found.state[name], lent.state[name].flip(0))
