import copy
import dataclasses
import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cvt_nas.arch import ArchConfig
from cvt_nas.errors import ArchError
from cvt_nas.model import CvT
from cvt_nas.space import SearchSpace, StageSpace
from cvt_nas.supernet import Supernet, extract
from strategies import spaces

STAGE = StageSpace(
    patch_kernel=(3, 5), patch_stride=(2,), patch_padding=None, embed_dim=(8, 16), depth=(1, 2), kv_stride=(1, 2),
    kernel_size=(1, 3, 5), num_heads=(1, 2), mlp_ratio=(1.0, 2.0), projection=("dw_bn", "avg"),
    per_block=frozenset({"kv_stride", "kernel_size"}),
)  # fmt: skip
SPACE = SearchSpace(
    image_size=16, num_channels=1, num_classes=3, bounds={},
    stages=(STAGE, dataclasses.replace(STAGE, class_token=True)),
)  # fmt: skip


def randomised(supernet: Supernet) -> Supernet:
    """Norms, their statistics and the kernel maps too: at their initial values they would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in supernet.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return supernet


def images_for(arch: ArchConfig, number: int = 3) -> torch.Tensor:
    return torch.randn(number, *arch.image_shape)


@settings(max_examples=15)
@given(
    spaces(), st.randoms(use_true_random=False), st.booleans(), st.sets(st.sampled_from(["kv_stride", "kernel_size"])),
    st.sets(st.sampled_from(["kv_stride", "patch_stride"])),
)  # fmt: skip
def test_a_subnet_is_its_extracted_model_to_the_last_bit(
    space: SearchSpace, rng: random.Random, kernel_maps: bool, own_norms: set, own_convs: set
) -> None:
    supernet = randomised(Supernet(space, kernel_maps=kernel_maps, own_norms=own_norms, own_convs=own_convs)).eval()
    for genome in [space.sample(rng) for _ in range(4)]:
        arch = space.decode(genome)
        images = images_for(arch)
        with torch.inference_mode():
            assert torch.equal(supernet(images, arch), extract(supernet, arch)(images))
    for arch in (space.largest, space.smallest):
        assert arch in space
        assert extract(supernet, arch).arch == arch


@pytest.mark.parametrize(
    ("own_norms", "own_convs"), [((), ()), (("kv_stride", "kernel_size"), ("kv_stride", "patch_stride"))]
)
def test_gradients_of_a_subnet_are_those_of_its_model_where_it_is_and_nothing_elsewhere(
    own_norms: tuple, own_convs: tuple
) -> None:
    supernet = randomised(Supernet(SPACE, own_norms=own_norms, own_convs=own_convs)).train()
    arch = SPACE.smallest
    model, images = extract(supernet, arch), images_for(arch, 8)
    supernet(images, arch).square().sum().backward()
    model(images).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    grads = copy.deepcopy(supernet)
    for parameter, source in zip(grads.parameters(), supernet.parameters(), strict=True):
        parameter.data = torch.zeros_like(parameter) if source.grad is None else source.grad
    cut = grads.state_of(arch)
    for name, grad in expected.items():
        assert grad is not None
        torch.testing.assert_close(cut[name], grad, atol=1e-5, rtol=1e-5)
    inside = sum(float(grad.abs().sum()) for grad in expected.values() if grad is not None)
    everywhere = sum(float(p.grad.abs().sum()) for p in supernet.parameters() if p.grad is not None)
    assert everywhere == pytest.approx(inside, rel=1e-4)


def test_a_pass_leaves_nothing_behind() -> None:
    supernet = randomised(Supernet(SPACE)).train()
    before = copy.deepcopy(supernet.state_dict())
    archs = [SPACE.decode(SPACE.sample(random.Random(seed))) for seed in range(6)]
    images = images_for(archs[0], 4)
    first = [supernet(images, arch) for arch in archs]
    assert all(torch.equal(before[name], tensor) for name, tensor in supernet.state_dict().items())
    again = [supernet(images, arch) for arch in reversed(archs)]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))


def test_subnets_share_what_they_have_in_common() -> None:
    supernet = randomised(Supernet(SPACE))
    small, large = supernet.state_of(SPACE.smallest), supernet.state_of(SPACE.largest)
    assert torch.equal(small["stage1.blocks.0.mlp.fc2.weight"], large["stage1.blocks.0.mlp.fc2.weight"][:8, :8])
    assert torch.equal(
        small["stage0.patch_embed.proj.weight"], large["stage0.patch_embed.proj.weight"][:8, :, 1:4, 1:4]
    )
    # of 5 x 5, and avg has none
    genome = {gene.name: 0 for gene in SPACE.genes} | {"stage0.block0.kernel_size": 1}
    middle = supernet.state_of(SPACE.decode(tuple(genome.values())))
    ours, theirs = (
        middle["stage0.blocks.0.attn.conv_proj_v.conv.weight"],
        large["stage0.blocks.0.attn.conv_proj_v.conv.weight"],
    )
    assert torch.equal(ours, theirs[:8, :, 1:4, 1:4])


def test_a_smaller_grid_has_the_positions_in_the_middle_of_the_largest() -> None:
    stages = (dataclasses.replace(STAGE, patch_stride=(1, 2), pos_embed=True), SPACE.stages[1])
    supernet = randomised(Supernet(dataclasses.replace(SPACE, stages=stages)))
    small = supernet.state_of(dataclasses.replace(SPACE, stages=stages).smallest)["stage0.patch_embed.pos_embed"]
    assert torch.equal(small, supernet.shared.get_parameter("stage0.patch_embed.pos_embed")[:, :8, 4:12, 4:12])


def test_kernel_maps_begin_as_the_identity_and_are_learned() -> None:
    torch.manual_seed(0)
    plain = Supernet(SPACE)
    mapped = Supernet(SPACE, kernel_maps=True)
    mapped.load_state_dict(plain.state_dict(), strict=False)
    genome = {gene.name: 0 for gene in SPACE.genes}
    arch = SPACE.decode(tuple(genome.values()))
    images = images_for(arch)
    torch.testing.assert_close(plain(images, arch), mapped(images, arch))
    mapped(images, arch).square().sum().backward()
    ours = [p.grad for name, p in mapped.kernel_maps.items() if name.endswith("k1")]
    assert len(ours) == 2 * 2 * 3
    assert any(grad is not None and grad.abs().sum() > 0 for grad in ours)


def test_norms_of_their_own_are_told_apart_by_stride_and_kernel() -> None:
    supernet = randomised(Supernet(SPACE, own_norms=("kv_stride", "kernel_size")))
    genome = {gene.name: 0 for gene in SPACE.genes}
    names = ["stage0.block0.kv_stride", "stage0.block0.kernel_size"]
    seen = {}
    for values in itertools.product((0, 1), (0, 1, 2)):
        arch = SPACE.decode(tuple((genome | dict(zip(names, values, strict=True))).values()))
        state = supernet.state_of(arch)
        seen[values] = [state[f"stage0.blocks.0.attn.conv_proj_{p}.bn.weight"] for p in "qk"]
    assert len({tuple(k.tolist()) for _, k in seen.values()}) == 6
    assert len({tuple(q.tolist()) for q, _ in seen.values()}) == 3  # queries have no stride


def test_convolutions_of_their_own_are_told_apart_by_stride() -> None:
    stages = (dataclasses.replace(STAGE, patch_stride=(1, 2)), SPACE.stages[1])
    space = dataclasses.replace(SPACE, stages=stages)
    supernet = randomised(Supernet(space, own_convs=("kv_stride", "patch_stride")))
    chosen = dict(zip([gene.name for gene in space.genes], space.encode(space.largest), strict=True))
    names = ["stage0.patch_stride", "stage0.block0.kv_stride"]
    seen = {}
    for values in itertools.product((0, 1), (0, 1)):
        arch = space.decode(tuple((chosen | dict(zip(names, values, strict=True))).values()))
        state = supernet.state_of(arch)
        seen[values] = [
            tuple(state[f"stage0.{name}.weight"].flatten().tolist())
            for name in ("patch_embed.proj", "blocks.0.attn.conv_proj_q.conv", "blocks.0.attn.conv_proj_k.conv")
        ]
    assert [len({found[place] for found in seen.values()}) for place in range(3)] == [2, 1, 2]
    assert all(len({seen[a, 0][0], seen[a, 1][0]}) == 1 for a in (0, 1)), "by the stride of the embedding alone"


def test_a_model_lends_its_convolutions_to_every_stride() -> None:
    stages = (dataclasses.replace(STAGE, patch_stride=(1, 2)), SPACE.stages[1])
    space = dataclasses.replace(SPACE, stages=stages)
    supernet = randomised(Supernet(space, own_convs=("kv_stride", "patch_stride")))
    model = CvT(space.largest)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    supernet.insert(model)
    for genome in (space.encode(space.largest), space.encode(space.smallest)):
        for name, tensor in supernet.state_of(space.decode(genome)).items():
            if name.endswith(("patch_embed.proj.weight", "conv.weight")):
                whole = model.state_dict()[name]
                cut = (whole.shape[2] - tensor.shape[2]) // 2
                end = cut + tensor.shape[2]
                assert torch.equal(tensor, whole[: len(tensor), : tensor.shape[1], cut:end, cut:end]), name


def test_drop_path_is_of_the_largest_alone_unless_told() -> None:
    torch.manual_seed(0)
    images = images_for(SPACE.largest, 64)
    for on_all in (False, True):
        supernet = randomised(Supernet(SPACE, drop_path=0.9, drop_path_on_all=on_all)).train()
        genome = tuple(len(gene.options) - 1 if gene.choice == "depth" else 0 for gene in SPACE.genes)
        for arch, is_dropped in ((SPACE.largest, True), (SPACE.decode(genome), on_all)):
            first, second = supernet(images, arch), supernet(images, arch)
            assert torch.equal(first, second) is not is_dropped


def test_drop_path_is_of_the_largest_that_is_trained() -> None:
    torch.manual_seed(0)
    genome = SPACE.encode(SPACE.largest)
    heads = [gene.name for gene in SPACE.genes].index("stage0.num_heads")
    other = SPACE.decode(tuple(1 - option if place == heads else option for place, option in enumerate(genome)))
    supernet = randomised(Supernet(SPACE, drop_path=0.9, regularised=other)).train()
    images = images_for(SPACE.largest, 64)
    for arch, is_dropped in ((SPACE.largest, False), (other, True)):
        assert torch.equal(supernet(images, arch), supernet(images, arch)) is not is_dropped


def test_a_model_lends_its_batch_norms_to_every_stride_and_kernel() -> None:
    torch.manual_seed(0)
    stage = dataclasses.replace(STAGE, kv_stride=(1, 4), class_token=True)
    space = dataclasses.replace(SPACE, stages=(stage,))
    supernet = randomised(Supernet(space, own_norms=["kv_stride", "kernel_size"]))
    blocks = tuple(dataclasses.replace(block, kv_stride=2) for block in space.largest.stages[0].blocks)
    model = CvT(
        dataclasses.replace(space.largest, stages=(dataclasses.replace(space.largest.stages[0], blocks=blocks),))
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    with pytest.raises(ArchError, match=r"conv_proj_k\.bn\.weight: the supernet of .* has no such weight"):
        supernet(images_for(model.arch), model.arch)
    supernet.insert(model)
    state = model.state_dict()
    for arch in (space.largest, space.smallest):
        for name, tensor in supernet.state_of(arch).items():
            if ".bn." in name and tensor.ndim:
                assert torch.equal(tensor, state[name][: len(tensor)]), name


def test_what_is_inserted_is_extracted_again() -> None:
    torch.manual_seed(0)
    supernet = randomised(Supernet(SPACE))
    genome = {gene.name: 0 for gene in SPACE.genes}
    arch = SPACE.decode(tuple(genome.values()))
    model = CvT(arch).eval()
    supernet.insert(model)
    extracted = extract(supernet.eval(), arch)
    images = images_for(arch)
    with torch.inference_mode():
        assert torch.equal(extracted(images), model(images))
        # the same network with larger kernels answers alike, since what surrounds the old one is zero
        wider = SPACE.decode(tuple((genome | {"stage0.block0.kernel_size": 2, "stage1.patch_kernel": 1}).values()))
        torch.testing.assert_close(supernet(images, wider), model(images), atol=1e-5, rtol=1e-5)


def test_a_model_with_other_classes_lends_all_but_its_head() -> None:
    torch.manual_seed(0)
    supernet = randomised(Supernet(SPACE))
    head = supernet.shared.head.weight.clone()
    model = CvT(dataclasses.replace(SPACE.smallest, num_classes=7))
    supernet.insert(model)
    assert torch.equal(supernet.shared.head.weight, head)
    assert torch.equal(supernet.state_of(SPACE.smallest)["norm.weight"], model.norm.weight)


def test_what_the_supernet_lacks_is_named() -> None:
    narrow = SearchSpace(
        image_size=16, num_channels=1, num_classes=3, bounds={},
        stages=(dataclasses.replace(STAGE, embed_dim=(8,)), SPACE.stages[1]),
    )  # fmt: skip
    supernet = Supernet(narrow)
    with pytest.raises(
        ArchError,
        match=r"stage0\.patch_embed\.proj\.weight: the subnet needs \(16, 1, 5, 5\), the supernet has \(8, 1, 5, 5\)",
    ):
        supernet(images_for(SPACE.largest), SPACE.largest)


def test_a_copy_cuts_from_its_own_weights() -> None:
    supernet = randomised(Supernet(SPACE))
    images = images_for(SPACE.smallest)
    before = supernet(images, SPACE.smallest)
    twin = copy.deepcopy(supernet)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(supernet(images, SPACE.smallest), before)
    assert not twin(images, SPACE.smallest).any()
    assert isinstance(twin.shared.norm, nn.LayerNorm)
