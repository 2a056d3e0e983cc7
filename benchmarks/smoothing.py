"""Which score of a supernet's subnets ranks networks best: accuracy, or one with less noise of the search images.

Trains one supernet (half labels, batches of 64, 14 epochs) and takes the logits of its subnets on the search split. For
each score, the script prints Kendall's tau with the accuracies of the networks' own trainings: on the whole split,
overall and within bins of FLOPs, and on random parts of it, as means of 60 draws of each number of images. `p 0.5` is
the mean probability of the right class after the logits are divided by 0.5. `smoothed` is `smoothed_accuracies`.

`noise` is the variance of an accuracy in comparisons on the same images, as a share of the binomial variance. It is
measured over images, by how a network differs from the mean of all. `--weights` names a file that keeps the supernet,
or one that is there already.

    OMP_NUM_THREADS=1 python benchmarks/smoothing.py --space strides --seed 105
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.special import log_softmax

from cvt_nas.config import SupernetConfig, load_experiment
from cvt_nas.engine import Inheritance, SharedWeights, train_supernet
from cvt_nas.engine.evaluation import answers_of
from cvt_nas.engine.inheritance import open_supernet, save_supernet
from cvt_nas.results import Inherited, judge_supernet, kendall, smoothed_accuracies
from cvt_table import gene_columns, networks_of
from supernet import BASE, SPACES, VARIANTS, data_of, file_of

EPOCHS, VARIANT, NUM_NETWORKS = 14, "batches of 64, half labels", 60
NUM_IMAGES = (125, 250, 500, 1_000, 2_000, 4_000)
Logits = Float[np.ndarray, "networks images classes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=SPACES, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--calibration-images", type=int, default=2_048, help="for the statistics of batch norms")
    parser.add_argument("--weights", type=Path, help="a file .safetensors")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST, or the file of colour_images.py")
    options = parser.parse_args()
    torch.set_num_threads(1)
    experiment = load_experiment(file_of(options.space))
    space, device = experiment.space, torch.device("cpu")
    data = data_of(experiment, options.data)
    calibration: dict[str, Any] = {"calibration_images": options.calibration_images}
    config = SupernetConfig(epochs=EPOCHS, **(BASE | VARIANTS[VARIANT] | calibration))
    shared, file = SharedWeights(space=space, config=config), options.weights
    if file is not None and file.exists():
        supernet = open_supernet(shared, file)
    else:
        *_, last = train_supernet(shared, data, device=device, seed=options.seed)
        supernet = last.supernet
        if file is not None:
            save_supernet(supernet, file)
    inheritance, genomes = Inheritance(supernet, config, data, device), networks_of(space, NUM_NETWORKS)
    answers = [
        answers_of(inheritance.model(space.decode(genome)), inheritance.search_batches(), config, data.prepared)
        for genome in genomes
    ]
    logits, labels = np.stack([found.numpy() for found, _ in answers]), answers[0][1].numpy()
    genes = gene_columns(space)
    truth = pd.read_parquet(file_of(options.space).with_suffix(".parquet")).sort_values(by="seed").groupby(genes)
    own = pd.DataFrame(genomes, columns=genes).merge(
        truth.agg({"params": "first", "flops": "first", "acc_8": list}), left_on=genes, right_index=True, how="left"
    )
    num_seeds = min(map(len, own["acc_8"]))
    alone = np.array([accuracies[:num_seeds] for accuracies in own["acc_8"]])
    rng, parts = np.random.default_rng(0), dict[str, dict[int, float]]()
    for number in NUM_IMAGES:
        if number < len(labels):
            taus = [taus_of(logits, labels, rng.choice(len(labels), number, replace=False), alone) for _ in range(60)]
            for name, tau in pd.DataFrame(taus).mean().items():
                parts.setdefault(str(name), {})[number] = float(tau)
    rows = []
    for name, score in scores_of(logits, labels).items():
        found = judge_supernet(score.tolist(), alone, own["params"].tolist(), own["flops"].tolist())
        ranked = found.rankers["inherited"]
        whole = {"score": name, "tau": ranked.overall.value, "within_bins": ranked.within_bins.value}
        rows.append(whole | {str(number): tau for number, tau in parts[name].items()})
    print(pd.DataFrame(rows).round(3).to_string(index=False))
    right = logits.argmax(axis=2) == labels
    accuracies, noise = right.mean(axis=1), (right - right.mean(axis=0)).var(axis=1).mean()
    print(
        f"standard deviation of the networks' accuracies {accuracies.std():.4f}, alone {alone.mean(axis=1).std():.4f}; "
        f"noise {noise / (accuracies * (1 - accuracies)).mean():.2f}"
    )


def taus_of(
    logits: Logits, labels: Int[np.ndarray, " images"], part: np.ndarray, alone: Float[np.ndarray, "networks seeds"]
) -> dict[str, float]:
    truth = alone.mean(axis=1)
    return {name: kendall(score, truth) for name, score in scores_of(logits[:, part], labels[part]).items()}


def scores_of(logits: Logits, labels: Int[np.ndarray, " images"]) -> dict[str, Float[np.ndarray, " networks"]]:
    """Scores of each network, more is better."""
    images = np.arange(len(labels))
    accuracies = (logits.argmax(axis=2) == labels).mean(axis=1)
    logs = log_softmax(logits, axis=2)
    probabilities, sharp = np.exp(logs), np.exp(log_softmax(logits / 0.5, axis=2))
    briers = ((probabilities - np.eye(logits.shape[2])[labels]) ** 2).sum(axis=2).mean(axis=1)
    found = [
        Inherited(accuracy=accuracy, num_images=len(labels), brier=brier)
        for accuracy, brier in zip(accuracies.tolist(), briers.tolist(), strict=True)
    ]
    return {
        "accuracy": accuracies,
        "cross-entropy": logs[:, images, labels].mean(axis=1),
        "p": probabilities[:, images, labels].mean(axis=1),
        "p 0.5": sharp[:, images, labels].mean(axis=1),
        "Brier score": -briers,
        "smoothed": np.array(smoothed_accuracies(found)),
    }


if __name__ == "__main__":
    main()
