"""Which ingredients of a supernet rank better: a Latin square of variants, spaces and seeds.

Each of four variants of `supernet.py` is trained once on each of its four spaces, and once with each of four seeds. So
no variant is judged on one space, or by one seed. Printed is, for each figure, the mean of each variant over the spaces
less the mean of all, with a 95 % interval from the residuals of the additive model, which have 6 degrees of freedom
(Fisher 1935, The Design of Experiments). Cells are in the order of seeds, so that each quarter of them has all variants
and all spaces. Supernets are kept where `supernet.py` keeps them, so that this can be stopped and continued.

    OMP_NUM_THREADS=1 python benchmarks/latin_square.py --colour /tmp/colour.npz --first-seed 100
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t

from supernet import SPACES, VARIANTS, inherited_of

DEFAULT = (
    "batches of 64", "batches of 64, half labels", "batches of 64, half labels, 2,600 steps",
    "batches of 64, half labels, fair sampling",
)  # fmt: skip
FIGURES = {"of ceiling": "tau over the noise ceiling", "within_bins": "tau within FLOPs bins", "gap": "points behind"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="four times")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--archs", type=int, default=60)
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST, where it is not where Debian puts it")
    parser.add_argument("--colour", type=Path, required=True, help="what colour_images.py makes")
    options = parser.parse_args()
    variants = options.variant or list(DEFAULT)
    if len(set(variants)) != len(SPACES):
        parser.error(f"--variant: got {len(set(variants))} variants, must be {len(SPACES)}")
    cells = square(variants, options.first_seed)
    for variant, space, seed in cells:
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
        print(f"\n{meaning}, mean of all {rows[name].mean():.3f}:")
        for variant, effect, half in effects_of(rows, name):
            print(f"  {variant}: {effect:+.3f} (95 %: {effect - half:+.3f} to {effect + half:+.3f})")


def square(variants: Sequence[str], first_seed: int) -> list[tuple[str, str, int]]:
    """The cells: variant, space and seed."""
    size = len(variants)
    return [
        (variants[(row + column) % size], SPACES[row], first_seed + column)
        for column in range(size)
        for row in range(size)
    ]


def figures_of(variant: str, space: str, seed: int, epochs: int) -> dict[str, object]:
    judged = pd.read_csv(inherited_of(space).with_suffix(".csv"))
    is_it = (judged["variant"] == variant) & (judged["seed"] == seed) & (judged["epochs"] == epochs)
    (found,) = judged.loc[is_it].to_dict("records")
    return {
        "variant": variant, "space": space, "seed": seed, "tau": found["tau"], "ceiling": found["ceiling"],
        "of ceiling": found["tau"] / found["ceiling"], "within_bins": found["within_bins"], "gap": 100 * found["gap"],
    }  # fmt: skip


def effects_of(rows: pd.DataFrame, name: str) -> list[tuple[str, float, float]]:
    """Of each variant, how far its mean is from that of all, and half of the width of the 95 % interval."""
    size, values = rows["variant"].nunique(), rows[name]
    parts = [rows.groupby(by)[name].transform("mean") - values.mean() for by in ("variant", "space", "seed")]
    left = values - values.mean() - sum(parts)
    num_left = len(rows) - 1 - 3 * (size - 1)
    half = t.ppf(0.975, num_left) * np.sqrt((left**2).sum() / num_left * (1 / size - 1 / len(rows)))
    means: dict[str, float] = (rows.groupby("variant", sort=False)[name].mean() - values.mean()).to_dict()
    return [(variant, effect, float(half)) for variant, effect in means.items()]


if __name__ == "__main__":
    main()
