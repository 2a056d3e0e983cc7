"""CvT as timm creates it, trains it and takes features from it."""

import copy
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data.config import resolve_data_config
from timm.models import group_parameters, save_for_hf
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from torch.nn import functional as F

import cvt_nas.timm
from cvt_nas.arch import ArchConfig, arch_to_dict, cost_of, load_arch, save_arch
from cvt_nas.errors import ArchError
from cvt_nas.export import FORMATS
from cvt_nas.model import CvT, load_model
from strategies import per_stage
from test_export import CLASSES
from test_model import NON_STANDARD, randomise

ARCH = per_stage(
    image_size=32, num_channels=1, dims=(16, 32, 48), depths=(1, 2, 3), heads=(1, 2, 3), kernels=(3, 5, 3),
    strides=(2, 1, 2), ratios=(2.0, 1.0, 3.0),
)  # fmt: skip
PREPROCESSING = {"image_size": 32, "mean": [0.3], "std": [0.4], "classes": CLASSES}
IMAGES = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def without_class_token(arch: ArchConfig) -> ArchConfig:
    return dataclasses.replace(
        arch, stages=(*arch.stages[:-1], dataclasses.replace(arch.stages[-1], class_token=False))
    )


def create(arch: Any = ARCH, **kwargs: Any) -> Any:
    return timm.create_model("cvt_nas", arch=arch, **kwargs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `--format timm` writes of a network with random weights."""
    model = CvT(ARCH).eval()
    randomise(model)
    FORMATS["timm"].write(model, tmp_path / "model", PREPROCESSING)
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["cvt-13", "cvt-21", "cvt-w24"])
def test_the_published_networks_are_known_by_name_and_have_their_parameters(name: str) -> None:
    arch = load_arch(name)
    with torch.device("meta"):
        model, plain = timm.create_model(name.replace("-", "_")), CvT(arch)
    assert sum(parameter.numel() for parameter in model.parameters()) == cost_of(arch).params
    assert model.state_dict().keys() == plain.state_dict().keys()
    size = arch.image_size
    config = resolve_data_config(model=model)
    assert config["input_size"] == (3, size, size)
    assert (config["crop_pct"], config["crop_mode"]) == ((0.875, "center") if size == 224 else (1.0, "squash"))


def test_every_name_is_in_the_registry() -> None:
    assert timm.list_models("cvt*") == ["cvt_13", "cvt_21", "cvt_nas", "cvt_w24"]
    assert not timm.list_pretrained("cvt*")


@pytest.mark.parametrize("arch", [ARCH, without_class_token(ARCH), *NON_STANDARD.values()], ids=lambda arch: arch.id)
@torch.inference_mode()
def test_logits_equal_those_of_the_plain_network(arch: ArchConfig) -> None:
    plain = CvT(arch).eval()
    randomise(plain)
    model = create(arch).eval()
    model.load_state_dict(plain.state_dict(), strict=True)
    images = torch.randn(2, *arch.image_shape)
    torch.testing.assert_close(model(images), plain(images), rtol=0, atol=1e-6)


def test_an_architecture_comes_as_itself_as_a_dict_or_from_a_file(tmp_path: Path) -> None:
    save_arch(ARCH, tmp_path / "arch.json")
    for given in (ARCH, arch_to_dict(ARCH), tmp_path, str(tmp_path / "arch.json")):
        model = create(given)
        assert (model.arch, model.num_classes, model.in_chans) == (ARCH, 10, 1)
        assert model.pretrained_cfg["input_size"] == (1, 32, 32)


@pytest.mark.parametrize("num_classes", [0, 7])
def test_a_head_can_be_replaced_or_left_out(num_classes: int) -> None:
    made, reset = create(num_classes=num_classes), create()
    reset.reset_classifier(num_classes)
    for model in (made, reset):
        assert model.num_classes == num_classes
        assert model(IMAGES).shape == (2, num_classes or model.num_features)
    assert reset.get_classifier() is reset.head
    assert made.state_dict().keys() == reset.state_dict().keys()
    if num_classes:
        assert reset.arch == made.arch == dataclasses.replace(ARCH, num_classes=7)
        assert 0.01 < reset.head.weight.std() < 0.03


def test_features_are_tokens_and_the_head_pools_them() -> None:
    model = create().eval()
    features = model.forward_features(IMAGES)
    assert features.shape == (2, 1 + 2 * 2, 48)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(features), model.head(features[:, 0]))
    model.reset_classifier(5, "avg")
    torch.testing.assert_close(model.forward_head(features), model.head(features[:, 1:].mean(1)))
    assert create(global_pool="", num_classes=0)(IMAGES).shape == features.shape


@pytest.mark.parametrize("indices", [None, (1,), (0, -1), 2])
def test_maps_of_the_stages_have_the_channels_and_strides_that_are_told(indices: Any) -> None:
    model = create().eval()
    backbone: Any = create(features_only=True, **({} if indices is None else {"out_indices": indices})).eval()
    stages = {None: [0, 1, 2], (1,): [1], (0, -1): [0, 2], 2: [1, 2]}[indices]
    assert backbone.feature_info.channels() == [(16, 32, 48)[index] for index in stages]
    assert backbone.feature_info.reduction() == [(4, 8, 16)[index] for index in stages]
    weights = {name.removeprefix("model."): value for name, value in backbone.state_dict().items()}
    assert set(weights) < set(model.state_dict()), "pruned of what no map needs"
    model.load_state_dict(weights, strict=False)
    maps = backbone(IMAGES)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (channels, 32 // reduction, 32 // reduction)
        for channels, reduction in zip(backbone.feature_info.channels(), backbone.feature_info.reduction(), strict=True)
    ]
    for found, expected in zip(maps, model.forward_intermediates(IMAGES, stages, intermediates_only=True), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("arch", [ARCH, without_class_token(ARCH)], ids=["class token", "mean"])
def test_the_last_map_when_normalised_is_what_the_head_pools(arch: ArchConfig) -> None:
    model = create(arch).eval()
    features, (_, last) = model.forward_intermediates(IMAGES, (0, 2), norm=True)
    torch.testing.assert_close(features, model.forward_features(IMAGES))
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), features[:, model.num_prefix_tokens :])


def test_steps_of_an_optimizer_of_timm_lower_the_loss_and_the_class_token_does_not_decay() -> None:
    torch.manual_seed(0)
    model = create(drop_rate=0.1, drop_path_rate=0.1).train()
    assert [block.drop_path_rate for block in model.stage2.blocks] == [0.0, 0.05, 0.1]
    assert model.no_weight_decay() == {"stage2.cls_token"}
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    (group,) = [g for g in optimizer.param_groups if any(p is model.stage2.cls_token for p in g["params"])]
    assert group["weight_decay"] == 0
    assert len({g["lr_scale"] for g in optimizer.param_groups}) == 10, "stem, 2 other embeddings, 6 blocks, head"
    images, losses = torch.randn(8, 1, 32, 32), []
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), torch.arange(8))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_layers_are_told_apart_from_the_stem_to_the_head() -> None:
    model = create()
    fine: Any = group_parameters(model, model.group_matcher(), reverse=True)
    coarse: Any = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    first = [fine[f"stage2.{part}"] for part in ("cls_token", "patch_embed.proj.weight", "blocks.0.norm1.weight")]
    assert first == [5, 5, 6]
    assert fine["stage0.patch_embed.proj.weight"] == coarse["stage0.patch_embed.proj.weight"] == 0
    assert fine["norm.weight"] == fine["stage2.blocks.2.norm1.weight"] == fine["head.weight"] - 1
    assert len(set(coarse.values())) == 5


def test_gradient_checkpointing_changes_no_gradient_and_no_statistic() -> None:
    plain = create(drop_path_rate=0.2).train()
    frugal = copy.deepcopy(plain)
    frugal.set_grad_checkpointing()
    passes = Counter[str]()
    for name, model in (("plain", plain), ("frugal", frugal)):
        model.stage2.blocks[0].register_forward_pre_hook(lambda *_, name=name: passes.update([name]))
    for model in (plain, frugal):
        torch.manual_seed(0)
        model(IMAGES).square().sum().backward()
    assert passes == {"plain": 1, "frugal": 2}
    for kept, recomputed in zip(plain.parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(recomputed.grad, kept.grad)
    assert all(map(torch.equal, plain.state_dict().values(), frugal.state_dict().values()))


def test_what_is_written_for_timm_is_loaded_with_its_labels_and_preprocessing(folder: Path) -> None:
    plain, model = load_model(folder), timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(IMAGES), plain(IMAGES), rtol=0, atol=1e-6)
    config: Any = model.pretrained_cfg
    assert config["label_names"] == CLASSES
    found = resolve_data_config(pretrained_cfg=config)
    assert (found["input_size"], found["crop_pct"], found["crop_mode"]) == ([1, 32, 32], 1.0, "squash")
    assert (found["mean"], found["std"], found["interpolation"]) == ([0.3], [0.4], "bilinear")


def test_trained_weights_take_another_head_other_channels_and_another_size(folder: Path) -> None:
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3, in_chans=3, img_size=48)
    assert model.arch == dataclasses.replace(ARCH, num_classes=3, num_channels=3, image_size=48)
    plain = load_model(folder)
    torch.testing.assert_close(
        model.stage0.patch_embed.proj.weight.sum(1, keepdim=True), plain.get_parameter("stage0.patch_embed.proj.weight")
    )
    assert torch.equal(model.stage2.cls_token, plain.get_parameter("stage2.cls_token"))
    assert model(torch.zeros(1, 3, 48, 48)).shape == (1, 3)


def test_a_fine_tuned_network_is_written_by_timm_and_loaded_again(folder: Path, tmp_path: Path) -> None:
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    model.reset_classifier(6, "avg")
    save_for_hf(model, str(tmp_path / "tuned"), safe_serialization=True)
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["num_classes"] == 6
    again = timm.create_model(f"local-dir:{tmp_path / 'tuned'}", pretrained=True).eval()
    torch.testing.assert_close(again(IMAGES), model(IMAGES))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"global_pool": "max"}, ValueError, r"global_pool: got 'max', must be one of 'token', 'avg', ''"),
        ({"img_size": (32, 48, 3)}, ValueError, r"image_size: got \(32, 48, 3\), must be"),
        ({"img_size": 1}, ArchError, "no token is left"),
        ({"drop_path_rate": [0.1, 0.2]}, ValueError, "drop_path: got 2 rates"),
        ({"features_only": True, "feature_cls": "list"}, ValueError, "feature_cls: got 'list', must be 'getter'"),
        ({"attn_drop_rate": 0.1}, TypeError, "unexpected keyword argument 'attn_drop_rate'"),
        ({"pretrained": True}, RuntimeError, "No pretrained weights exist for cvt_nas"),
        ({"arch": {"stages": []}}, ArchError, "not an architecture|must be at least one"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_network_cannot_be_is_refused(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        create(**kwargs)


def test_the_module_is_a_plain_cvt_to_the_rest_of_the_package(tmp_path: Path) -> None:
    from cvt_nas.model import save_model

    model = create(num_classes=4).eval()
    save_model(model, tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(load_model(tmp_path)(IMAGES), model(IMAGES))
    assert isinstance(model, cvt_nas.timm.TimmCvT)
