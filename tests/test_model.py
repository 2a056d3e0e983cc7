import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from cvt_nas import build_model, load_arch, load_model
from cvt_nas.arch import ArchConfig, BlockConfig, StageConfig
from cvt_nas.errors import ArchError
from cvt_nas.export.hugging_face import config_of
from cvt_nas.model import (
    drop_path_scales,
    hugging_face_name,
    initialise,
    probe_error,
    read_weights,
    resized_positions,
    save_model,
)
from strategies import archs, per_stage

NON_STANDARD = {
    "mixed kernels and strides": per_stage(
        image_size=64, dims=(16, 32, 48), depths=(1, 2, 3), heads=(1, 2, 3), kernels=(5, 3, 3), strides=(4, 2, 1),
        ratios=(2.0, 3.0, 4.0),
    ),
    "small stem, grey, odd grids": per_stage(
        image_size=27, dims=(8, 24, 40), depths=(2, 2, 3), heads=(2, 3, 5), kernels=(3, 5, 7), strides=(2, 1, 2),
        ratios=(1.0, 2.0, 1.5), stem=(3, 2, 1), num_channels=1,
    ),
    "three strides of three": per_stage(
        image_size=48, dims=(12, 24, 36), depths=(1, 2, 3), heads=(3, 4, 6), kernels=(7, 5, 3), strides=(3, 3, 3),
        ratios=(4.0, 1.0, 2.0),
    ),
    "wide images, odd grids": per_stage(
        image_size=(27, 46), dims=(8, 16, 24), depths=(1, 2, 3), heads=(1, 2, 3), kernels=(3, 5, 3), strides=(2, 3, 2),
        ratios=(2.0, 1.0, 4.0), stem=(3, 2, 1),
    ),
}  # fmt: skip


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


def hugging_face_twin(arch: ArchConfig, *, quick_gelu: bool = True) -> nn.Module:
    """transformers' CvT of the same architecture, its GELU swapped for the official QuickGELU unless told not to."""
    from transformers import CvtConfig, CvtForImageClassification

    model = CvtForImageClassification(CvtConfig(num_labels=arch.num_classes, **config_of(arch)))  # type: ignore[call-arg]
    for module in list(model.modules()):
        for name, child in module.named_children():
            if quick_gelu and isinstance(child, nn.GELU):
                setattr(module, name, QuickGELU())
    return model.eval()


def randomise(model: nn.Module) -> None:
    """Norms and their statistics too: at their initial values they would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))


@pytest.mark.parametrize("name", ["cvt-13", *NON_STANDARD])
@torch.inference_mode()
def test_logits_equal_those_of_transformers_on_the_same_weights(name: str) -> None:
    arch = load_arch(name) if name == "cvt-13" else NON_STANDARD[name]
    model = build_model(arch).eval()
    if name != "cvt-13":
        randomise(model)
    twin = hugging_face_twin(arch)
    twin.load_state_dict({hugging_face_name(key): value for key, value in model.state_dict().items()}, strict=True)
    images = torch.randn(2, *arch.image_shape)
    logits = model(images)
    assert logits.std() > 1e-3
    torch.testing.assert_close(logits, twin(images).logits, atol=1e-5, rtol=0)


def test_the_state_dict_of_cvt_13_has_the_official_names() -> None:
    # The layout of CvT-13-224x224-IN-1k.pth: 459 tensors.
    names = set(build_model(load_arch("cvt-13")).state_dict())
    expected = {"stage2.cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    for stage, depth in enumerate((1, 2, 10)):
        expected |= {f"stage{stage}.patch_embed.{part}.{kind}" for part in ("proj", "norm") for kind in
                     ("weight", "bias")}  # fmt: skip
        for block in range(depth):
            prefix = f"stage{stage}.blocks.{block}"
            for part in (
                "norm1",
                "norm2",
                "attn.proj_q",
                "attn.proj_k",
                "attn.proj_v",
                "attn.proj",
                "mlp.fc1",
                "mlp.fc2",
            ):
                expected |= {f"{prefix}.{part}.weight", f"{prefix}.{part}.bias"}
            for projection in "qkv":
                conv = f"{prefix}.attn.conv_proj_{projection}"
                expected |= {f"{conv}.conv.weight", f"{conv}.bn.weight", f"{conv}.bn.bias"}
                expected |= {f"{conv}.bn.{kind}" for kind in ("running_mean", "running_var", "num_batches_tracked")}
    assert names == expected
    assert len(names) == 459


@settings(max_examples=40)
@given(archs())
def test_every_architecture_builds_and_keeps_a_batch_of_one(arch: ArchConfig) -> None:
    model = build_model(arch).eval()
    images = torch.randn(3, *arch.image_shape)
    with torch.inference_mode():
        logits = model(images)
        alone = model(images[:1])
    assert logits.shape == (3, arch.num_classes)
    assert alone.shape == (1, arch.num_classes)
    torch.testing.assert_close(alone, logits[:1], atol=1e-5, rtol=1e-4)


def test_weights_fit_images_of_another_size_and_shape() -> None:
    model = build_model(NON_STANDARD["mixed kernels and strides"]).eval()
    assert model(torch.randn(2, 3, 96, 80)).shape == (2, 10)


def with_positions(arch: ArchConfig, *stages: int) -> ArchConfig:
    return dataclasses.replace(
        arch,
        stages=tuple(dataclasses.replace(stage, pos_embed=index in stages) for index, stage in enumerate(arch.stages)),
    )


def test_a_position_embedding_tells_equal_tokens_apart() -> None:
    torch.manual_seed(0)
    arch = with_positions(NON_STANDARD["mixed kernels and strides"], 1)
    embedding = build_model(arch).get_submodule("stage1.patch_embed")
    tokens, _ = embedding(torch.zeros(1, arch.stages[0].embed_dim, *arch.grids[0]))
    positions = embedding.get_parameter("pos_embed")
    assert positions.std().item() == pytest.approx(0.02, rel=0.2)
    assert len(tokens.unique(dim=1)[0]) == tokens.shape[1] == math.prod(arch.grids[1])


def test_a_position_embedding_is_interpolated_to_other_images_and_to_other_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    arch = with_positions(NON_STANDARD["mixed kernels and strides"], 0, 2)
    larger = arch.with_image_size((96, 160))
    images = torch.randn(2, *larger.image_shape)
    model = build_model(arch).eval()
    moved = build_model(larger).eval()
    moved.load_state_dict(model.state_dict())
    assert moved.get_parameter("stage0.patch_embed.pos_embed").shape[2:] == larger.grids[0] == (24, 40)
    torch.testing.assert_close(moved(images), model(images))
    assert model(torch.randn(2, 3, 96, 80)).shape == (2, 10)

    save_model(model, tmp_path / "small")
    notes = initialise(fresh := build_model(larger).eval(), tmp_path / "small")
    assert "stage2.patch_embed.pos_embed: interpolated from a grid of 4 x 4 to 6 x 10" in notes
    torch.testing.assert_close(fresh(images), model(images))


def test_the_number_of_heads_changes_the_answer_but_no_weight() -> None:
    one = per_stage(image_size=32, dims=(16,), depths=(1,), heads=(1,), kernels=(3,), strides=(2,), ratios=(2.0,))
    four = per_stage(image_size=32, dims=(16,), depths=(1,), heads=(4,), kernels=(3,), strides=(2,), ratios=(2.0,))
    models = [build_model(arch).eval() for arch in (one, four)]
    randomise(models[0])
    models[1].load_state_dict(models[0].state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert (models[0](images) - models[1](images)).abs().max() > 1e-4


def test_average_pooling_keeps_a_last_window_as_the_official_code_does() -> None:
    block = BlockConfig(projection="avg", kernel_size=3, kv_stride=2)
    stage = StageConfig(patch_kernel=1, patch_stride=1, patch_padding=0, embed_dim=4, blocks=(block,))
    model = build_model(ArchConfig(image_size=14, num_classes=2, stages=(stage,)))
    pool = model.get_submodule("stage0.blocks.0.attn.pool_kv")
    assert pool(torch.zeros(1, 4, 14, 14)).shape[-1] == 8  # 7 without ceil_mode


def test_drop_path_keeps_the_mean_and_drops_whole_samples() -> None:
    torch.manual_seed(0)
    x = torch.ones(20_000, 2, 3)
    x = x * drop_path_scales(x, 0.25)
    assert set(x.flatten(1).std(dim=1).tolist()) == {0.0}
    assert x.mean().item() == pytest.approx(1, abs=0.02)
    assert (x[:, 0, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_drop_path_rises_within_each_stage() -> None:
    model = build_model(load_arch("cvt-13"), drop_path=(0.0, 0.2, 0.1))
    rates = [
        [block.drop_path_rate for block in model.get_submodule(f"stage{index}").blocks]  # type: ignore[union-attr]
        for index in range(3)
    ]
    assert rates[0] == [0.0]
    assert rates[1] == [0.0, 0.2]
    assert rates[2] == pytest.approx([0.1 * index / 9 for index in range(10)])
    with pytest.raises(ValueError, match="drop_path: got 2 rates, must be one for each of 3 stages"):
        build_model(load_arch("cvt-13"), drop_path=(0.0, 0.1))


def test_initialisation_is_the_official_one() -> None:
    torch.manual_seed(0)
    model = build_model(load_arch("cvt-13"))
    weight, bias = (model.get_parameter(f"stage2.blocks.3.mlp.fc1.{name}") for name in ("weight", "bias"))
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not bias.any()
    assert model.get_parameter("stage2.cls_token").std().item() == pytest.approx(0.02, rel=0.2)


def test_a_saved_model_loads_and_answers_the_same(tmp_path: Path) -> None:
    model = build_model(NON_STANDARD["small stem, grey, odd grids"])
    randomise(model)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert not loaded.training
    assert loaded.arch == model.arch
    assert probe_error(loaded, tmp_path) == 0
    loaded.head.bias.data[0] += 0.5
    assert probe_error(loaded, tmp_path) == pytest.approx(0.5)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    arch = NON_STANDARD["small stem, grey, odd grids"]
    save_model(build_model(arch), tmp_path)
    wider = tmp_path / "wider"
    save_model(build_model(dataclasses.replace(arch, num_classes=12)), wider)
    (wider / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    with pytest.raises(ArchError, match=r"model.safetensors: Error\(s\) in loading state_dict"):
        load_model(wider)
    (wider / "model.safetensors").unlink()
    with pytest.raises(ArchError, match="No such file"):
        load_model(wider)


@pytest.mark.parametrize("wrapped", ["plain", "model", "safetensors", "folder"])
def test_weights_are_read_from_whatever_holds_them(tmp_path: Path, wrapped: str) -> None:
    from safetensors.torch import save_file

    arch = NON_STANDARD["mixed kernels and strides"]
    model = build_model(arch)
    state, path = model.state_dict(), tmp_path / "weights.pth"
    if wrapped == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    elif wrapped == "folder":
        save_model(model, path)
    else:
        torch.save(state if wrapped == "plain" else {"model": state, "epoch": 3}, path)
    found = read_weights(path)
    assert found.state.keys() == state.keys()
    assert all(torch.equal(tensor, found.state[name]) for name, tensor in state.items())
    assert found.arch == (arch if wrapped == "folder" else None)


def test_what_is_no_cvt_lends_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(ArchError, match="cannot be read: No such file|cannot be read: .*No such file"):
        read_weights(path)
    path.write_text("hello")
    with pytest.raises(ArchError, match="cannot be read"):
        read_weights(path)
    torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ArchError, match="is no state dict of a CvT"):
        read_weights(path)


@pytest.mark.parametrize("sides", [(9, 5), (3, 4), (5, 7), (1, 14)])
def test_positions_are_resized_as_torch_interpolates_them_also_under_autocast(sides: tuple[int, int]) -> None:
    positions = torch.randn(1, 6, 5, 7, requires_grad=True)
    expected = nn.functional.interpolate(positions, sides, mode="bicubic", align_corners=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = resized_positions(positions, sides)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(expected.shape)
    (of_found,), (of_expected,) = (torch.autograd.grad((out * weights).sum(), positions) for out in (found, expected))
    torch.testing.assert_close(of_found, of_expected)
