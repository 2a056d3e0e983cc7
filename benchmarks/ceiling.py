"""How near the estimated noise ceiling of a supernet is to what a perfect ranker reaches, and the ceilings of tables.

The perfect ranker knows the expected accuracy of each architecture, and is scored against the mean of some noisy seeds.
Noise and expected accuracies are drawn like those of the networks of the CvT table that have three seeds: normal ones
of their standard deviations, or their own residuals and their own means, shrunk by what of their spread is noise.
First come the ceilings of the four tables, over all networks and within bins of FLOPs, with 95 % intervals by a
bootstrap over networks.

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
from cvt_nas.results.telling import bins_of

TABLES, NUM_IMAGES = Path(__file__).parent / "tables", 12_000
NUM_SEEDS = {"cvt-bench": 3, "cvt-bench-strides": 2, "cvt-bench-blocks": 2, "cvt-bench-colour": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=500)
    options = parser.parse_args()
    for name in NUM_SEEDS:
        tell_ceiling(name)
    (accuracies, _), rng = seeds_of("cvt-bench"), np.random.default_rng(0)
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


def tell_ceiling(name: str, repeats: int = 1_000) -> None:
    accuracies, flops = seeds_of(name)
    drawn = np.random.default_rng(0).integers(len(flops), size=(repeats, len(flops)))
    for where, bins in (("", lambda costs: [np.arange(len(costs))]), (" within bins of FLOPs", bins_of)):
        pairs = [
            float(np.nanmean([
                between_seeds(accuracies[rows[members]]) for members in bins(flops[rows]) if len(members) > 1
            ]))
            for rows in (np.arange(len(flops)), *drawn)
        ]  # fmt: skip
        ceiling, *ceilings = (float(ceiling_of_mean(pair, NUM_SEEDS[name])) for pair in pairs)
        low, high = np.nanquantile(ceilings, (0.025, 0.975))
        print(
            f"{name}{where}: {accuracies.shape}, one seed with another {pairs[0]:.4f}, ceiling {ceiling:.4f} "
            f"({low:.2f} to {high:.2f})"
        )


def seeds_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Of the networks of a table with all seeds, accuracies after 8 epochs, `(archs, seeds)`, and FLOPs."""
    table = pd.read_parquet(TABLES / f"{name}.parquet")
    genes = [column for column in table.columns if column[0] in "gc" and column[1:].isdigit()]
    grouped = table.sort_values(by="seed").groupby(genes)
    found = [
        (seeds, flops)
        for seeds, flops in zip(grouped["acc_8"].apply(list), grouped["flops"].first(), strict=True)
        if len(seeds) == NUM_SEEDS[name]
    ]
    return np.array([seeds for seeds, _ in found]), np.array([flops for _, flops in found])


def between_seeds(accuracies: np.ndarray) -> float:
    """Mean tau over the pairs of seeds."""
    pairs = itertools.combinations(accuracies.T, 2)
    return float(np.mean([tau(one, other) for one, other in pairs]))


def tau(ours: np.ndarray, theirs: np.ndarray) -> float:
    found: Any = kendalltau(ours, theirs)
    return float(found.statistic)


if __name__ == "__main__":
    main()
