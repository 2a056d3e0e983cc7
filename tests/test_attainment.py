"""Empirical attainment functions of runs, and where a comparison shows them."""

import re
from pathlib import Path

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvt_nas.config import Experiment
from cvt_nas.report import Comparison, compare_page
from cvt_nas.report.attainment import LEVELS, attainment_surfaces
from pages import made_up_run

_POINTS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6)


@given(st.lists(_POINTS, min_size=2, max_size=5), st.sampled_from((0.25, 0.5, 0.75, 1.0)))
def test_surfaces_are_those_of_moocore(runs: list[list[tuple[int, int]]], level: float) -> None:
    points = [np.array(found, dtype=float) for found in runs]
    (surface,) = attainment_surfaces(points, [level])
    both = np.concatenate(points) * (1, -1)  # moocore minimises
    sets = np.repeat(np.arange(len(points)), [len(found) for found in points])
    expected = moocore.eaf(both, sets, percentiles=[100 * level])
    found = list(zip(surface.costs, surface.accuracies, strict=True))
    assert found == sorted((cost, -loss) for cost, loss, _ in expected.tolist())


def test_a_run_without_a_front_attains_nothing() -> None:
    runs = [np.array([[1.0, 0.5]]), np.array([[2.0, 0.7]]), np.empty((0, 2))]
    best, middle, worst = attainment_surfaces(runs, LEVELS)
    assert (best.costs, best.accuracies) == ((1.0, 2.0), (0.5, 0.7))
    assert (middle.costs, middle.accuracies) == ((2.0,), (0.5,))
    assert worst.costs == ()


def test_three_repeats_have_surfaces_on_the_page_and_two_have_none(digits: Experiment, tmp_path: Path) -> None:
    runs = [made_up_run(tmp_path / str(seed), digits, 15, seed=seed) for seed in range(3)]
    assert 'id="attained"' not in compare_page(Comparison.of(runs[:2]))
    comparison = Comparison.of(runs)
    page = compare_page(comparison)
    fronts = [comparison.points(run, "flops") for run in runs]
    least = sorted(points[:, 0].min() for points in fronts)
    row = re.search(r">50%</td><td>([\d,]+)</td>", page[page.index("Attained over FLOPs") :])
    assert row is not None
    assert float(row[1].replace(",", "")) == pytest.approx(least[1])  # from there on, two of three runs have a network
