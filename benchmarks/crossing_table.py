"""Makes a table of made-up networks whose learning curves cross: the larger, the better in the end, the slower.

For `cvt-nas bench`, to see what stopping early costs where early ranks mislead. Six ordinal choices of four options,
16 epochs. Accuracy at the end grows with the logarithm of FLOPs, and by each choice's own preference; the time
constant of the curve grows with the square root of FLOPs, times `--slowness`, so that after one epoch the smallest
networks are the best. Two seeds, Gaussian noise of 0.3 points. Figures are rounded to six digits, so that the table is
the same on every CPU.

    python benchmarks/crossing_table.py --slowness 1.0
    cvt-nas bench --table benchmarks/tables/crossing.parquet --searcher surrogate,random \\
        --scheduler pareto-asha,pareto-asha:stop,asha:stop,none --budget 960 --seeds 10
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

NUM_GENES, NUM_OPTIONS, NUM_EPOCHS, NUM_SEEDS, NOISE = 6, 4, 16, 2, 0.003
NUM_DIGITS = 6  # the last bits of sums and exponentials differ between CPUs


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slowness", type=float, default=1.0, help="0: curves do not cross")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent / "tables" / "crossing.parquet")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    genomes = np.array(list(itertools.product(range(NUM_OPTIONS), repeat=NUM_GENES)))
    flops = np.exp(0.3 * genomes @ np.linspace(0.5, 1.5, NUM_GENES))  # from 1 to 220
    params = np.exp(0.3 * genomes @ np.linspace(1.5, 0.5, NUM_GENES))
    preferences = rng.normal(0, 0.008, size=(NUM_GENES, NUM_OPTIONS))
    final = 0.7 + 0.04 * np.log(flops) + sum(preferences[gene, genomes[:, gene]] for gene in range(NUM_GENES))
    time_constant = 0.6 + options.slowness * 0.35 * np.sqrt(flops)
    epochs = np.arange(1, NUM_EPOCHS + 1)
    share = 1 - np.exp(-epochs / time_constant[:, None])
    curves = 0.1 + (final[:, None] - 0.1) * share / share[:, -1:]
    frames = [
        pd.DataFrame(
            {
                **{f"g{gene}": genomes[:, gene] for gene in range(NUM_GENES)},
                "seed": seed,
                "params": (1e5 * params).astype(int),
                "flops": (1e6 * flops).astype(int),
                **{
                    f"acc_{epoch}": np.clip(curves[:, epoch - 1] + rng.normal(0, NOISE, len(genomes)), 0, 1)
                    for epoch in epochs
                },
                "seconds_per_epoch": flops / flops.mean(),
            }
        )
        for seed in range(NUM_SEEDS)
    ]
    pd.concat(frames).round(NUM_DIGITS).to_parquet(options.to)
    taus = [pd.Series(curves[:, epoch - 1]).corr(pd.Series(final), method="kendall") for epoch in (1, 3, 9)]
    print(f"{options.to}: {len(genomes)} networks; Kendall's tau with the end after 1, 3, 9 epochs: "
          + ", ".join(f"{tau:.2f}" for tau in taus))  # fmt: skip


if __name__ == "__main__":
    main()
