"""Which ingredients of a supernet rank better: Latin squares of variants, spaces and seeds.

Each variant of `supernet.py` is trained once on each of its four spaces, and once with each of four seeds. So no
variant is judged on one space, or by one seed. Every four variants are a square, and the last one may be a part of it;
all have the same spaces and seeds. For each figure, the script prints the mean of each variant over the spaces, and how
far it is from that of `REFERENCE`, with a 95 % interval from the residuals of the additive model of variants, spaces
and seeds (Fisher 1935, The Design of Experiments). Supernets are kept where `supernet.py` keeps them. So this can be
stopped and continued.

    OMP_NUM_THREADS=1 python benchmarks/latin_square.py --colour /tmp/colour.npz --first-seed 100
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from supernet import SPACES, VARIANTS, inherited_of

DEFAULT = (
    "batches of 64", "batches of 64, half labels", "batches of 64, half labels, 2,600 steps",
    "batches of 64, half labels, fair sampling",
    "batches of 64, half labels, convolutions a stride", "batches of 64, half labels, from averaged weights",
    "batches of 64, half labels, extremes of sizes", "batches of 64, half labels, kernel maps and norms",
    "batches of 64, half labels, temperature 2", "batches of 64, half labels, the largest twice",
    "batches of 64, half labels, warm start", "batches of 64, half labels, opened one by one",
    "batches of 64, half labels, each option once a step",
)  # fmt: skip
REFERENCE = "batches of 64, half labels"
FIGURES = {
    "tau": "tau",
    "of ceiling": "tau over the noise ceiling",
    "within_bins": "tau within FLOPs bins",
    "gap": "points behind",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="several times")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--archs", type=int, default=60)
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST, where it is not where Debian puts it")
    parser.add_argument("--colour", type=Path, required=True, help="what colour_images.py makes")
    options = parser.parse_args()
    variants = options.variant or list(DEFAULT)
    if len(set(variants)) != len(variants) or REFERENCE not in variants:
        parser.error(f"--variant: must be different variants, one of them {REFERENCE!r}")
    cells = cells_of(variants, options.first_seed)
    for variant, space, seed in cells:
        if judged(variant, space, seed, options.epochs):
            continue
        data = options.colour if space == "colour" else options.data
        subprocess.run(
            [sys.executable, str(Path(__file__).parent / "supernet.py"), "--space", space, "--variant", variant,
             "--first-seed", str(seed), "--epochs", str(options.epochs), "--archs", str(options.archs),
             *(["--data", str(data)] if data else [])],
            check=True,
        )  # fmt: skip
    rows = pd.DataFrame(figures_of(*cell, options.epochs) for cell in cells)
    print(rows.to_string(index=False))
    for name, meaning in FIGURES.items():
        print(f"\n{meaning}:")
        for variant, mean, effect, half in effects_of(rows, name):
            print(f"  {variant}: {mean:.3f}, {effect:+.3f} (95 %: {effect - half:+.3f} to {effect + half:+.3f})")


def cells_of(variants: Sequence[str], first_seed: int) -> list[tuple[str, str, int]]:
    """The cells of all squares: variant, space and seed."""
    size = len(SPACES)
    return [
        (variants[first + (row + column) % size], SPACES[row], first_seed + column)
        for first in range(0, len(variants), size)
        for column in range(size)
        for row in range(size)
        if first + (row + column) % size < len(variants)
    ]


def judged(variant: str, space: str, seed: int, epochs: int) -> list[dict[Any, Any]]:
    """The row of a supernet among those that are judged; empty if it is not."""
    path = inherited_of(space).with_suffix(".csv")
    if not path.exists():
        return []
    rows = pd.read_csv(path)
    is_it = (rows["variant"] == variant) & (rows["seed"] == seed) & (rows["epochs"] == epochs)
    return rows.loc[is_it].to_dict("records")


def figures_of(variant: str, space: str, seed: int, epochs: int) -> dict[str, object]:
    (found,) = judged(variant, space, seed, epochs)
    return {
        "variant": variant, "space": space, "seed": seed, "tau": found["tau"], "ceiling": found["ceiling"],
        "of ceiling": found["tau"] / found["ceiling"], "within_bins": found["within_bins"], "gap": 100 * found["gap"],
    }  # fmt: skip


def effects_of(rows: pd.DataFrame, name: str) -> list[tuple[str, float, float, float]]:
    """Of each variant: its mean, how far that is from the reference's, and half of the width of the interval."""
    values = rows[name].to_numpy(dtype=float)
    design = pd.get_dummies(rows[["variant", "space", "seed"]].astype(str)).to_numpy(dtype=float)
    left = values - design @ np.linalg.lstsq(design, values)[0]
    num_left = len(rows) - np.linalg.matrix_rank(design)
    half = float(t.ppf(0.975, num_left) * np.sqrt((left**2).sum() / num_left * 2 / len(SPACES)))
    means = {str(variant): float(of[name].to_numpy().mean()) for variant, of in rows.groupby("variant", sort=False)}
    return [(variant, mean, mean - means[REFERENCE], half) for variant, mean in means.items()]


if __name__ == "__main__":
    main()
