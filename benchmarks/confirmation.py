"""What an accuracy is worth that won a race, and what a share of bootstrap resamples: on made-up races.

    python benchmarks/confirmation.py --races 1000

A race trains 40 architectures once each; its front is trained again. The noise of a training is Gaussian, with a
standard deviation of 0.004 that is the same for all (`equal`), or varies between architectures by a factor of e^0.5
(`unequal`); with `outliers`, one training in 33 besides ends 0.05 lower. Biases are in units of those 0.004. The true
front is of the architectures that were trained again, by what they reach in the mean.

Three ways to resample are compared: an architecture's own seeds, which is what `cvt_nas.results.with_memberships` does;
these with their deviations stretched by sqrt(n / (n - 1)); and all architectures' stretched deviations in one pool.
"""

import argparse
from collections.abc import Callable

import numpy as np

from cvt_nas.results import is_non_dominated

NUM_ARCHS, SD, NUM_RESAMPLES = 40, 0.004, 400
BINS = (0.0, 0.02, 0.1, 0.3, 0.7, 0.9, 0.99, 1.0)
Resampler = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def own_seeds(accuracies: np.ndarray, rng: np.random.Generator, stretch: float = 1.0) -> np.ndarray:
    """Means `(resamples, architectures)` of draws from `(architectures, seeds)`, each from its own row."""
    means = accuracies.mean(axis=1, keepdims=True)
    chosen = rng.integers(accuracies.shape[1], size=(NUM_RESAMPLES, *accuracies.shape))
    deviations = np.take_along_axis((accuracies - means)[None], chosen, axis=2)
    return means[:, 0] + stretch * deviations.mean(axis=2)


def stretched_seeds(accuracies: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    num_seeds = accuracies.shape[1]
    return own_seeds(accuracies, rng, stretch=np.sqrt(num_seeds / (num_seeds - 1)))


def pooled_seeds(accuracies: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    num_seeds, means = accuracies.shape[1], accuracies.mean(axis=1)
    pool = (accuracies - means[:, None]).ravel() * np.sqrt(num_seeds / (num_seeds - 1))
    return means + rng.choice(pool, size=(NUM_RESAMPLES, *accuracies.shape)).mean(axis=2)


RESAMPLERS: dict[str, Resampler] = {"own": own_seeds, "stretched": stretched_seeds, "pooled": pooled_seeds}


def on_front(accuracies: np.ndarray, costs: np.ndarray) -> np.ndarray:
    return is_non_dominated(np.column_stack([-accuracies, costs]))


def simulate(num_races: int, num_seeds: int, noise: str, seed: int) -> None:
    """Prints biases, and how often what has a share of resamples is on the true front."""
    rng = np.random.default_rng(seed)
    errors: dict[str, list[np.ndarray]] = {}
    shares: dict[str, list[np.ndarray]] = {name: [] for name in RESAMPLERS}
    truths, num_members = [], 0
    for _ in range(num_races):
        costs = np.exp(rng.normal(0, 0.7, size=(NUM_ARCHS, 1)) + rng.normal(0, 0.05, size=(NUM_ARCHS, 2)))
        truth = 0.9 - 0.05 * np.exp(-np.log(costs).mean(axis=1)) + rng.normal(0, 0.012, size=NUM_ARCHS)
        sds = SD * np.exp(rng.normal(0, 0.5, size=NUM_ARCHS) * (noise == "unequal"))

        def train(truth: np.ndarray, sds: np.ndarray, count: int) -> np.ndarray:
            lower = 0.05 * ((rng.random((len(truth), count)) < 0.03) - 0.03) * (noise == "outliers")
            return truth[:, None] + rng.normal(0, 1, size=(len(truth), count)) * sds[:, None] - lower

        race = train(truth, sds, 1)[:, 0]
        kept = on_front(race, costs)
        race, truth, costs = race[kept], truth[kept], costs[kept]
        further = train(truth, sds[kept], num_seeds)
        means, with_own = further.mean(axis=1), np.column_stack([race, further]).mean(axis=1)
        again, num_members = on_front(means, costs), num_members + len(race)
        for name, values in {
            "own accuracy in the race": race - truth,
            "mean, the race's included": with_own - truth,
            "mean of further seeds": means - truth,
            "the same, on their front": (means - truth)[again],
        }.items():
            errors.setdefault(name, []).append(values / SD)
        truths.append(on_front(truth, costs))
        for name, resample in RESAMPLERS.items():
            draws = resample(further, rng).round(12)
            shares[name].append(np.mean([on_front(draw, costs) for draw in draws], axis=0))
    print(f"\n{num_seeds} seeds, {noise} noise, {num_races} races, {num_members / num_races:.1f} members each")
    for name, parts in errors.items():
        values = np.concatenate(parts)
        print(f"  bias of {name:27} {values.mean():+.3f} ± {values.std() / np.sqrt(len(values)):.3f}")
    truth = np.concatenate(truths)
    for name, parts in shares.items():
        share = np.concatenate(parts)
        sure = np.clip(share, 0.5 / NUM_RESAMPLES, 1 - 0.5 / NUM_RESAMPLES)
        log_loss = -np.where(truth, np.log(sure), np.log(1 - sure)).mean()
        found = np.digitize(share, BINS[1:-1])
        table = ", ".join(f"{share[found == b].mean():.2f}: {truth[found == b].mean():.2f}" for b in np.unique(found))
        print(f"  {name:10} Brier {((share - truth) ** 2).mean():.4f}, log loss {log_loss:.4f}; share: truth {table}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 5])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for num_seeds in options.seeds:
        for noise in ("equal", "unequal", "outliers"):
            simulate(options.races, num_seeds, noise, options.seed)


if __name__ == "__main__":
    main()
