import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings

from cvt_nas import cost_of, load_arch
from cvt_nas.arch import (
    ArchConfig,
    BlockConfig,
    StageConfig,
    arch_from_dict,
    arch_to_dict,
    attention_flops,
    cvt,
    save_arch,
    stage_costs,
)
from cvt_nas.engine import fvcore_cost
from cvt_nas.errors import ArchError
from cvt_nas.model import build_model
from strategies import archs


# Params: the official code's modules. FLOPs: fvcore 0.1.5 on the official code in eval mode, batch 1,
# attention's products counted as matmul.
@pytest.mark.parametrize(
    ("name", "image_size", "params", "flops"),
    [
        ("cvt-13", 224, 19_997_480, 4_584_569_216),
        ("cvt-13", 384, 19_997_480, 16_323_590_016),
        ("cvt-21", 224, 31_622_696, 7_206_272_384),
        ("cvt-21", 384, 31_622_696, 24_932_098_944),
        ("cvt-w24", 224, 277_196_392, 61_008_040_960),
        ("cvt-w24", 384, 277_196_392, 194_487_874_560),
    ],
)
def test_cost_equals_the_official_model(name: str, image_size: int, params: int, flops: int) -> None:
    cost = cost_of(load_arch(name).with_image_size(image_size))
    assert (cost.params, cost.flops) == (params, flops)


def test_cvt_13_with_kv_stride_1_costs_what_fvcore_counts_on_the_official_model() -> None:
    arch = cvt(embed_dims=(64, 192, 384), depths=(1, 2, 10), num_heads=(1, 3, 6), kv_stride=1)
    assert round(cost_of(arch).flops / 1e9, 3) == 6.665


def test_attention_is_what_fvcore_counts_of_it_on_the_official_model() -> None:
    assert attention_flops(load_arch("cvt-13")) == 508_365_824


def test_cvt_13_for_cifar_differs_from_cvt_13_by_its_stem_class_token_and_head() -> None:
    # the published run's 19.55 M parameters and 82 M multiply-adds are of another CvT code, in which keys and values
    # share a convolution and have no biases
    arch, published = load_arch("cvt-13-cifar"), load_arch("cvt-13")
    assert arch.grids == ((8, 8), (4, 4), (2, 2))
    stem, head = 3 * 64 * (7**2 - 3**2), (384 + 1) * (1000 - 10)
    assert cost_of(published).params - cost_of(arch).params == stem + head + 384
    assert cost_of(arch).params == pytest.approx(19.55e6, rel=0.005)
    assert cost_of(arch).flops == pytest.approx(82e6, rel=0.01)


def test_fvcore_counts_on_our_cvt_13_what_it_counts_on_the_official_one() -> None:
    cost = fvcore_cost(build_model(load_arch("cvt-13")))
    assert (cost.params, cost.flops) == (19_997_480, 4_584_569_216)


@settings(max_examples=12)
@given(archs())
def test_cost_equals_fvcore_to_the_last_unit(arch: ArchConfig) -> None:
    assert cost_of(arch) == fvcore_cost(build_model(arch))


@settings(max_examples=100)
@given(archs())
def test_one_more_block_never_makes_a_model_cheaper(arch: ArchConfig) -> None:
    first = arch.stages[0]
    deeper = dataclasses.replace(first, blocks=(*first.blocks, first.blocks[0]))
    more = dataclasses.replace(arch, stages=(deeper, *arch.stages[1:]))
    assert cost_of(more).params > cost_of(arch).params
    assert cost_of(more).flops > cost_of(arch).flops


@settings(max_examples=100)
@given(archs())
def test_an_architecture_survives_json(arch: ArchConfig) -> None:
    again = arch_from_dict(json.loads(json.dumps(arch_to_dict(arch))))
    assert again == arch
    assert again.id == arch.id


def test_ids_differ_where_networks_differ_and_not_by_the_type_of_a_number() -> None:
    whole = cvt(embed_dims=(8,), depths=(1,), num_heads=(1,))
    block = dataclasses.replace(whole.stages[0].blocks[0], mlp_ratio=4)
    stage = dataclasses.replace(whole.stages[0], blocks=(block,))
    assert dataclasses.replace(whole, stages=(stage,)).id == whole.id
    assert cvt(embed_dims=(8,), depths=(1,), num_heads=(2,)).id != whole.id


def test_a_square_is_the_same_network_however_its_size_is_written() -> None:
    square = load_arch("cvt-13").with_image_size((224, 224))
    assert (square, square.id) == (load_arch("cvt-13"), load_arch("cvt-13").id)
    wide = arch_from_dict({**arch_to_dict(square), "image_size": [224, 160]})
    assert (wide.image_size, wide.grids) == ((224, 160), ((56, 40), (28, 20), (14, 10)))
    with pytest.raises(ArchError, match=r"image_size: got \[224\], must be a whole number .* or \[height, width\]"):
        arch_from_dict({**arch_to_dict(square), "image_size": [224]})


def test_stage_costs_leave_only_the_head() -> None:
    arch = load_arch("cvt-13")
    rest = cost_of(arch).params - sum(cost.params for cost in stage_costs(arch))
    assert rest == 2 * 384 + 385 * 1000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockConfig(kernel_size=4), "kernel_size: got 4, must be odd to keep the grid of the queries"),
        (lambda: BlockConfig(kv_stride=0), "kv_stride: got 0, must be a whole number of at least 1"),
        (
            lambda: BlockConfig(projection="linear"),
            "projection 'linear' has neither kernel nor stride: got kernel_size 3 and kv_stride 2, must be 1 and 1",
        ),
        (
            lambda: cvt(embed_dims=(64,), depths=(1,), num_heads=(3,)),
            "num_heads: got 3, must divide embed_dim 64",
        ),
        (
            lambda: ArchConfig(
                image_size=4,
                num_classes=2,
                stages=(
                    StageConfig(patch_kernel=7, patch_stride=4, patch_padding=1, embed_dim=8, blocks=(BlockConfig(),)),
                ),
            ),
            "stage 0: no token is left of a grid of 4 x 4 after patch kernel 7, stride 4, padding 1",
        ),
    ],
)
def test_an_architecture_that_cannot_exist_says_why(make: object, message: str) -> None:
    with pytest.raises(ArchError) as error:
        make()  # type: ignore[operator]
    assert str(error.value) == message


def test_load_arch_reads_names_files_and_folders(tmp_path: Path) -> None:
    save_arch(load_arch("cvt-21"), tmp_path / "arch.json")
    assert load_arch(tmp_path) == load_arch(tmp_path / "arch.json") == load_arch("cvt-21")


def test_load_arch_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        ArchError, match="cvt-14: neither one of cvt-13, cvt-21, cvt-w24, cvt-13-cifar nor a file arch.json"
    ):
        load_arch("cvt-14")
    broken = tmp_path / "arch.json"
    broken.write_text('{"image_size": 8,}')
    with pytest.raises(ArchError, match=r"arch.json:1: not JSON"):
        load_arch(broken)
    broken.write_text('{"image_size": 8, "num_classes": 2}')
    with pytest.raises(ArchError, match="not an architecture: 'stages'"):
        load_arch(broken)
