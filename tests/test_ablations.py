"""The networks of the paper's ablations cost what it says of them: Wu et al. 2021, arXiv:2103.15808, tables 5 to 8."""

import pytest

from ablations import PAPER, variants
from cvt_nas.arch import cost_of, load_arch
from cvt_nas.engine import fvcore_cost
from cvt_nas.model import build_model

CVT_13 = variants(load_arch("cvt-13"))


# Table 6. The paper's own CvT-13 is between 19.88 (section 4.2) and 19.98 M (table 2); its figures are rounded down.
@pytest.mark.parametrize(
    ("name", "params_m"),
    [
        ("patches", 19.5),
        ("patches, positions in every stage", 19.9),
        ("positions in every stage", 20.3),
        ("CvT", 20.0),
    ],
)
def test_parameters_are_those_of_table_6(name: str, params_m: float) -> None:
    assert cost_of(CVT_13[name]).params / 1e6 == pytest.approx(params_m, abs=0.13)


# Table 7. fvcore also counts norms, which are 0.4 %, and where a stride of 2 meets an odd grid, one more row than the
# paper's own counter.
@pytest.mark.parametrize(("name", "flops_g"), [("kv stride 1", 6.55), ("CvT", 4.53)])
def test_flops_are_those_of_table_7(name: str, flops_g: float) -> None:
    assert cost_of(CVT_13[name]).flops / 1e9 == pytest.approx(flops_g, rel=0.02)
    assert cost_of(CVT_13[name]).params == 19_997_480


def test_every_row_is_a_network_of_its_own_with_the_same_grids() -> None:
    assert {name for rows in PAPER.values() for name in rows} == set(CVT_13)
    assert len({arch.id for arch in CVT_13.values()}) == len(CVT_13)
    assert {arch.grids for arch in CVT_13.values()} == {((56, 56), (28, 28), (14, 14))}


def test_a_network_without_any_of_the_parts_costs_what_fvcore_counts() -> None:
    bare = variants(CVT_13["patches, positions in every stage"])["linear in every stage"]
    assert cost_of(bare) == fvcore_cost(build_model(bare))


def test_a_grid_that_patches_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(27, 27\), \(13, 13\)\) instead of .*\(28, 28\), \(14, 14\)\)"):
        variants(load_arch("cvt-13").with_image_size(222))
