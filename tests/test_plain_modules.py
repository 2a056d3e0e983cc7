"""A built, loaded or timm-made network under the libraries that wrap, replace, hook, count and compile modules."""

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

import cvt_nas.timm
from cvt_nas import build_model, load_model
from cvt_nas.arch import cost_of
from cvt_nas.engine import fvcore_cost
from cvt_nas.export import FORMATS
from cvt_nas.model import CvT, save_model
from cvt_nas.model.network import quick_gelu
from strategies import per_stage
from test_export import CLASSES
from test_model import randomise

# kernels larger than the map that they meet, a class token in the last stage, both places of a stride
ARCH = per_stage(
    image_size=28, dims=(8, 16), depths=(1, 1), heads=(1, 2), kernels=(3, 5), strides=(2, 1), ratios=(2.0, 4.0)
)
NUM_LINEARS, NUM_CONVS = 13, 8
IMAGES = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([1, 2, 3, 4])
PREPROCESSING = {"image_size": 28, "mean": [0.5] * 3, "std": [0.5] * 3, "classes": CLASSES}


def built(folder: Path) -> CvT:
    torch.manual_seed(0)
    model = build_model(ARCH).eval()
    randomise(model)
    return model


def loaded(folder: Path) -> CvT:
    save_model(built(folder), folder / "torch")
    return load_model(folder / "torch")


def from_timm(folder: Path) -> Any:
    FORMATS["timm"].write(built(folder), folder / "timm", PREPROCESSING)
    return timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True).eval()


@pytest.fixture(params=[built, loaded, from_timm])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    (tmp_path / "timm").mkdir()
    return request.param(tmp_path)


def logits_of(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model.eval()(IMAGES)


def train(model: nn.Module, steps: int = 2) -> list[float]:
    """Losses of a few steps on one batch; the gradients of the last stay."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()
    losses = []
    for step in range(steps):
        loss = F.cross_entropy(model(IMAGES), LABELS)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if step + 1 < steps:
            optimizer.step()
    return losses


def names_of(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def leaves_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if not list(module.children())}


@pytest.mark.parametrize("training", [True, False])
def test_each_submodule_is_called_once_with_the_tensors_that_hooks_see(model: Any, training: bool) -> None:
    calls: dict[str, Counter[str]] = {kind: Counter() for kind in ("before", "after", "backward")}
    for name, module in leaves_of(model).items():
        module.register_forward_pre_hook(lambda *_, name=name: calls["before"].update([name]))
        module.register_forward_hook(lambda *_, name=name: calls["after"].update([name]))
        module.register_full_backward_hook(lambda *_, name=name: calls["backward"].update([name]))
    model.train(training)(IMAGES.clone().requires_grad_()).sum().backward()
    assert len(names_of(model, nn.Linear)) == NUM_LINEARS
    assert len(names_of(model, nn.Conv2d)) == NUM_CONVS
    expected = Counter(dict.fromkeys(leaves_of(model), 1))
    assert calls["before"] == calls["after"] == calls["backward"] == expected


@pytest.mark.parametrize("training", [True, False])
def test_what_a_hook_keeps_of_a_linear_is_not_changed_afterwards(model: Any, training: bool) -> None:
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: kept.update({name: (output, output.detach().clone())})

    for name in names_of(model, nn.Linear):
        model.get_submodule(name).register_forward_hook(keep(name))
    model.train(training)(IMAGES)
    assert len(kept) == NUM_LINEARS
    assert all(torch.equal(output, copied) for output, copied in kept.values())


def test_a_hook_can_replace_what_a_linear_gives(model: Any) -> None:
    before = logits_of(model)
    for name in names_of(model, nn.Linear):
        handle = model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output: output + torch.linspace(0, 1, output.shape[-1])
        )
        assert not torch.allclose(logits_of(model), before) or name.endswith("proj_k"), name
        handle.remove()  # what is added to all keys alike changes no attention but that to the class token


@pytest.mark.parametrize("targets", [["fc1", "fc2"], ["proj_q", "proj_k", "proj_v"], "all-linear"])
def test_every_lora_adapter_learns_and_merges_into_the_same_network(model: Any, targets: Any) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    adapters = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert len(adapters) >= 2 * 2 * len(targets if isinstance(targets, list) else ["any"] * 6)
    losses = train(wrapped, steps=20)
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters.values())
    expected = logits_of(wrapped)
    merged: Any = wrapped.merge_and_unload()
    torch.testing.assert_close(logits_of(merged), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*quantized tensor creation")
def test_linears_quantised_by_torch_answer_nearly_the_same(model: Any) -> None:
    import torch.ao.quantization as ao

    expected = logits_of(model)
    quantised = ao.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    found = logits_of(quantised)
    assert not names_of(quantised, nn.Linear)
    assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.filterwarnings("ignore:.*PlainLayout is deprecated")  # a default of torchao 0.17
@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_linears_quantised_by_torchao_answer_nearly_the_same(model: Any, kind: str) -> None:
    import torchao.quantization as ao

    expected = logits_of(model)
    ao.quantize_(model, getattr(ao, kind)(version=2))  # not torchao 0.17's default, which warns of itself
    found = logits_of(model)
    assert sum(type(module.weight) is not nn.Parameter for module in model.modules() if isinstance(module, nn.Linear))
    assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_pruned_weights_stay_zero_in_training_and_the_others_learn(model: Any) -> None:
    pruned = [*names_of(model, nn.Linear), *names_of(model, nn.Conv2d)]
    for name in pruned:
        prune.l1_unstructured(model.get_submodule(name), "weight", amount=0.5)
    masks = {name: model.get_buffer(f"{name}.weight_mask").clone() for name in pruned}
    losses = train(model, steps=5)
    assert losses[-1] < losses[0]
    assert all(model.get_parameter(f"{name}.weight_orig").grad is not None for name in pruned)
    expected = logits_of(model)
    for name, mask in masks.items():
        prune.remove(model.get_submodule(name), "weight")
        assert not model.get_parameter(f"{name}.weight")[mask == 0].any()
    torch.testing.assert_close(logits_of(model), expected)


def test_a_weight_norm_on_each_linear_keeps_the_answer_and_learns(model: Any) -> None:
    expected = logits_of(model)
    names = names_of(model, nn.Linear)
    for name in names:
        parametrizations.weight_norm(model.get_submodule(name))
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-4, atol=1e-4)
    losses = train(model, steps=5)
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in model.parameters())
    for name in names:
        parametrize.remove_parametrizations(model.get_submodule(name), "weight")
    assert names_of(model, nn.Linear) == names


def test_a_copy_answers_the_same_and_shares_nothing(model: Any) -> None:
    expected, copied = logits_of(model), copy.deepcopy(model)
    train(copied)
    with torch.no_grad():
        copied.head.bias += 1
    assert torch.equal(logits_of(model), expected)
    assert not torch.equal(logits_of(copied), expected)


def test_fvcore_counts_what_the_closed_form_says(model: Any) -> None:
    """timm's `forward_features` normalises all tokens of the last stage, not the class token alone."""
    found, expected = fvcore_cost(model), cost_of(ARCH)
    assert found.params == expected.params
    assert found.flops - norm_flops(model) == expected.flops - norm_flops(build_model(ARCH))
    assert isinstance(model, cvt_nas.timm.TimmCvT) or found == expected


@pytest.mark.parametrize("training", [True, False])
def test_torch_s_flop_counter_sees_all_products(model: Any, training: bool) -> None:
    """It counts a multiply-add as two, and no norms. The CPU's fused attention is unknown to it, so that is off."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.train(training)(IMAGES[:2])
    assert counter.get_total_flops() == 2 * 2 * (cost_of(ARCH).flops - norm_flops(build_model(ARCH)))
    for fragment in ("mlp.fc1", "mlp.fc2", "conv_proj_q.conv", "proj_v"):
        counts = [sum(n.values()) for name, n in counter.get_flop_counts().items() if name.endswith(fragment)]
        assert counts
        assert all(counts)


def norm_flops(model: nn.Module) -> int:
    """fvcore's: five an element of a layer norm, two an element of a batch norm in eval mode, of one image."""
    elements: Counter[type] = Counter()
    clone = copy.deepcopy(model).eval()
    for module in clone.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            module.register_forward_hook(lambda m, _, output: elements.update({type(m): output.numel()}))
    with torch.inference_mode():
        clone(IMAGES[:1])
    return 5 * elements[nn.LayerNorm] + 2 * elements[nn.BatchNorm2d]


def test_torchinfo_counts_every_linear_and_convolution(model: Any) -> None:
    from torchinfo import summary

    report = summary(model, input_data=IMAGES[:1], verbose=0)
    assert report.total_params == cost_of(ARCH).params
    counted = {layer.module: layer.macs for layer in report.summary_list}
    for kind in (nn.Linear, nn.Conv2d):
        for name in names_of(model, kind):
            assert counted[model.get_submodule(name)] > 0, name


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_is_one_graph_answers_the_same_and_learns_the_same(model: Any, backend: str) -> None:
    expected, twin = logits_of(model), copy.deepcopy(model)
    compiled: Any = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(logits_of(compiled), expected, rtol=1e-4, atol=1e-4)
    assert train(compiled, steps=3) == pytest.approx(train(twin, steps=3), rel=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_exported_by_torch_with_gradients_or_without(model: Any, training: bool) -> None:
    model.train(training)
    expected = copy.deepcopy(model)(IMAGES)
    program = torch.export.export(model, (IMAGES,), strict=False)
    torch.testing.assert_close(program.module()(IMAGES), expected, rtol=1e-4, atol=1e-4)


def test_a_network_is_traced_by_torch_fx(model: Any) -> None:
    expected = logits_of(model)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(IMAGES), expected)


@pytest.mark.filterwarnings("ignore")  # torch moves its quantisation to another package
def test_torch_prepares_a_network_for_quantisation(model: Any) -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    expected = logits_of(model)
    prepared: Any = prepare_fx(model, get_default_qconfig_mapping("x86"), (IMAGES,))
    torch.testing.assert_close(prepared(IMAGES), expected)


def test_torchvision_takes_features_out_of_a_network(model: Any) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    kept: list[Tensor] = []
    with model.norm.register_forward_hook(lambda _module, _inputs, output: kept.append(output)):
        model(IMAGES)
    torch.testing.assert_close(create_feature_extractor(model, ["norm"])(IMAGES)["norm"], kept[0])


def test_a_traced_network_can_be_saved(model: Any, tmp_path: Path) -> None:
    traced: Any = torch.jit.trace(model, (IMAGES,))
    traced.save(tmp_path / "traced.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "traced.pt")(IMAGES), logits_of(model), rtol=1e-4, atol=1e-4)


def test_gradients_of_each_image_are_taken_by_torch_func(model: Any) -> None:
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss_of(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, (image[None],)), label[None])

    with sdpa_kernel(SDPBackend.MATH):  # torch has no rule for the CPU's fused attention, and warns
        found = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0, 0))(weights, IMAGES, LABELS)
    for image, label, index in zip(IMAGES, LABELS, range(4), strict=True):
        model.zero_grad()
        F.cross_entropy(model(image[None]), label[None]).backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(found[name][index], p.grad, rtol=1e-3, atol=1e-5)


def test_quick_gelu_is_its_formula_and_its_gradients_are_right() -> None:
    x = torch.linspace(-8, 8, 33, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(quick_gelu(x), x * torch.sigmoid(1.702 * x))
    assert torch.autograd.gradcheck(quick_gelu, (x,))
    assert torch.autograd.gradgradcheck(quick_gelu, (x,))
    kept = x.detach().clone()
    quick_gelu(kept)
    assert torch.equal(kept, x)
