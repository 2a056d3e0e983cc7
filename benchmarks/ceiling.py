"""How near the estimated noise ceiling of a supernet is to what a perfect ranker reaches.

The perfect ranker knows the expected accuracy of each architecture, and is scored against the mean of some noisy seeds.
Noise and expected accuracies are drawn like those of the networks of the CvT table that have three seeds: normal ones
of their standard deviations, or their own residuals and their own means, shrunk by what of their spread is noise.

    OMP_NUM_THREADS=1 python benchmarks/ceiling.py
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from cvt_nas.results import ceiling_of_mean

TABLE, NUM_IMAGES = Path(__file__).parent / "tables" / "cvt-bench.parquet", 12_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=500)
    options = parser.parse_args()
    accuracies, rng = seeds_of_the_table(), np.random.default_rng(0)
    pairs = between_seeds(accuracies)
    print(f"CvT table: {accuracies.shape}, one seed with another {pairs:.4f}, ceiling {ceiling_of_mean(pairs, 3):.4f}")
    means = accuracies.mean(axis=1)
    residuals = (accuracies - means[:, None]).ravel() * np.sqrt(3 / 2)
    noise, spread = residuals.std(), means.var(ddof=1)
    expected = means.mean() + np.sqrt(1 - noise**2 / 3 / spread) * (means - means.mean())
    rows = []
    for truth, kind, images, num_archs, num_seeds in itertools.product(
        ("normal", "table"), ("normal", "table"), (NUM_IMAGES, NUM_IMAGES // 24), (100, 40), (2, 3)
    ):
        found = []
        for _ in range(options.repeats):
            true = (
                rng.normal(means.mean(), expected.std(), num_archs)
                if truth == "normal"
                else rng.choice(expected, num_archs, replace=False)
            )
            drawn = rng.normal(0, noise, (num_archs, num_seeds)) if kind == "normal" else rng.choice(
                residuals, (num_archs, num_seeds)
            )  # fmt: skip
            seen = np.round((true[:, None] + drawn) * images) / images
            one = between_seeds(seen)
            found.append((tau(true, seen.mean(axis=1)), ceiling_of_mean(one, num_seeds), one))
        reached, estimated, one = np.mean(found, axis=0)
        rows.append({
            "true accuracies": truth, "noise": kind, "images": images, "archs": num_archs, "seeds": num_seeds,
            "perfect ranker": reached, "estimate": estimated, "off": estimated - reached, "one with another": one,
        })  # fmt: skip
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format))


def seeds_of_the_table() -> np.ndarray:
    """Accuracies after 8 epochs of the networks with three seeds, `(archs, 3)`."""
    table = pd.read_parquet(TABLE)
    genes = [name for name in table.columns if name.startswith("g")]
    found = table.sort_values(by="seed").groupby(genes)["acc_8"].apply(list)
    return np.array([seeds for seeds in found if len(seeds) == 3])


def between_seeds(accuracies: np.ndarray) -> float:
    """Mean tau over the pairs of seeds."""
    pairs = itertools.combinations(accuracies.T, 2)
    return float(np.mean([tau(one, other) for one, other in pairs]))


def tau(ours: np.ndarray, theirs: np.ndarray) -> float:
    found: Any = kendalltau(ours, theirs)
    return float(found.statistic)


if __name__ == "__main__":
    main()
