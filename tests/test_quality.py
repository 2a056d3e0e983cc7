"""The noise ceiling of a supernet, against what a ranker that knows everything reaches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from cvt_nas.errors import RunFolderError
from cvt_nas.report import quality_lines, quality_verdict
from cvt_nas.results import SupernetQuality, ceiling_of_mean, judge_supernet

pytestmark = pytest.mark.usefixtures("few_resamples")
TABLES = Path(__file__).parents[1] / "benchmarks" / "tables"


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of them, which take half a second instead of five."""
    monkeypatch.setattr("cvt_nas.results.quality.NUM_RESAMPLES", 100)


@pytest.fixture(scope="module")
def seeds_of_table() -> np.ndarray:
    """Accuracies of the CvT table's networks that were trained with three seeds, `(archs, 3)`."""
    table = pd.read_parquet(TABLES / "cvt-bench.parquet")
    genes = [name for name in table.columns if name.startswith("g")]
    found = table.sort_values(by="seed").groupby(genes)["acc_8"].apply(list)
    return np.array([seeds for seeds in found if len(seeds) == 3])


def judged(inherited: np.ndarray, standalone: np.ndarray) -> SupernetQuality:
    sizes = np.random.default_rng(0).permutation(len(inherited)) + 1
    return judge_supernet(inherited.tolist(), standalone, sizes.tolist(), sizes.tolist())


def tau(ours: np.ndarray, theirs: np.ndarray) -> float:
    found: Any = kendalltau(ours, theirs)
    return float(found.statistic)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize("shape", ["normal", "bunched at the top"])
def test_the_ceiling_is_what_a_perfect_ranker_reaches(seeds_of_table: np.ndarray, shape: str, num_seeds: int) -> None:
    rng, means = np.random.default_rng(0), seeds_of_table.mean(axis=1)
    noise = np.sqrt(seeds_of_table.var(axis=1, ddof=1).mean())
    reached, estimated, between = [], [], []
    for _ in range(60):
        truth = means if shape != "normal" else rng.normal(means.mean(), means.std(), len(means))
        standalone = truth[:, None] + rng.normal(0, noise, (len(truth), num_seeds))
        reached.append(tau(truth, standalone.mean(axis=1)))
        between.append(tau(*standalone.T[:2]))
        estimated.append(ceiling_of_mean(between[-1], num_seeds))
    assert np.mean(estimated) == pytest.approx(np.mean(reached), abs=0.01)
    assert np.mean(reached) - np.mean(between) > 0.08, "one seed with another is far below"


def test_a_perfect_ranker_is_at_the_ceiling_that_a_supernet_is_judged_by(seeds_of_table: np.ndarray) -> None:
    rng, truth = np.random.default_rng(1), seeds_of_table.mean(axis=1)
    standalone = truth[:, None] + rng.normal(0, 0.0022, (len(truth), 3))
    quality = judged(truth, standalone)
    assert quality.ceiling is not None
    assert quality.between_seeds is not None
    assert quality.ceiling.low < quality.rankers["inherited"].overall.value < quality.ceiling.high
    assert quality.between_seeds.high < quality.rankers["inherited"].overall.value
    assert quality.faults == []


def test_the_ceiling_of_the_cvt_table_is_that_of_the_mean_of_three_seeds(seeds_of_table: np.ndarray) -> None:
    quality = judged(seeds_of_table[:, 0], seeds_of_table)
    assert quality.between_seeds is not None
    assert quality.ceiling is not None
    assert quality.between_seeds.value == pytest.approx(0.7625, abs=0.0005)  # by pair .762, .773, .752
    assert quality.ceiling.value == pytest.approx(0.901, abs=0.001)


def test_a_ceiling_is_never_below_what_seeds_agree_by_and_never_above_one() -> None:
    taus = np.linspace(0, 1, 21)
    for num_seeds in (1, 2, 3, 10):
        ceilings = [ceiling_of_mean(tau, num_seeds) for tau in taus]
        assert ceilings == sorted(ceilings)
        assert all(tau <= ceiling <= 1 for tau, ceiling in zip(taus, ceilings, strict=True))
    assert ceiling_of_mean(-0.1, 2) == 0
    assert ceiling_of_mean(0.6, 2) < ceiling_of_mean(0.6, 3)


def test_a_supernet_that_passes_the_former_ceiling_may_fail_the_one_of_the_mean() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1, 400)
    standalone = truth[:, None] + rng.normal(0, 0.6, (400, 4))
    quality = judged(truth + rng.normal(0, 0.75, 400), standalone)
    ours = quality.rankers["inherited"].overall.value
    assert quality.ceiling is not None
    assert quality.between_seeds is not None
    assert 0.8 * quality.between_seeds.value < ours < 0.8 * quality.ceiling.value
    assert any("of the noise ceiling" in fault for fault in quality.faults)


def test_one_seed_has_no_ceiling() -> None:
    truth = np.random.default_rng(0).normal(0, 1, 40)
    quality = judged(truth, truth[:, None])
    assert quality.ceiling is None
    assert quality.between_seeds is None
    assert not any(line.startswith("noise ceiling") for line in quality_lines(quality))
    assert "noise ceiling unknown with one seed" in quality_verdict(quality)


def test_a_file_of_an_earlier_version_has_the_ceiling_of_its_mean() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1, 40)
    quality = judged(truth, truth[:, None] + rng.normal(0, 0.3, (40, 2)))
    assert quality.between_seeds is not None
    tree = quality.to_json()
    assert SupernetQuality.from_json(json.dumps(tree), "quality.json") == quality
    former = {**tree, "ceiling": tree["between_seeds"]}  # which was the tau between the first two seeds
    del former["between_seeds"]
    assert SupernetQuality.from_json(json.dumps(former), "quality.json") == quality
    with pytest.raises(RunFolderError, match=r"quality\.json"):
        SupernetQuality.from_json(json.dumps({**tree, "ceiling": 0.7}), "quality.json")


def test_the_lines_say_what_the_ceiling_is_of(seeds_of_table: np.ndarray) -> None:
    lines = quality_lines(judged(seeds_of_table[:, 0], seeds_of_table))
    (line,) = [line for line in lines if line.startswith("noise ceiling")]
    assert line.startswith("noise ceiling, the tau of a perfect ranker with the mean of 3 seeds: 0.90 (")
    assert "; tau of one seed with another 0.76 (" in line
