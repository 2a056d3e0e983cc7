"""What a teacher gains where images are few: CvTs on 300 images of Fashion-MNIST, with the answers of one of all.

The teacher is the largest network of the space, trained on 58,800 images, the 300 among them. A network of its own,
the anchor, is trained on the 300 by each setting, and told is its accuracy on the 10,000 test images. A supernet is
trained on the 300 by its own largest subnet, by the teacher, or by both, and told is the mean accuracy that twelve
random networks inherit, on 1,200 validation images.

A line of `teacher.jsonl` beside this file is a training; what is there is not run again.

    OMP_NUM_THREADS=1 python benchmarks/teacher.py --data /usr/share/datasets/fashion-mnist

With the defaults it takes about 25 minutes of one core. Expected: the teacher gains two to four points with 300 images;
a temperature of 4 gains more than one of 1, since the teacher knows the 300 images by heart; without labels it is as
good as with them; with mixup, where it cannot know the images, it gains more. A supernet gains as much, and its largest
subnet in between gains nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from cvt_nas import search, train_model
from cvt_nas.config import Experiment, load_experiment
from cvt_nas.data import DEBIAN_FASHION_MNIST
from cvt_nas.run import RunFolder

ROWS = Path(__file__).with_suffix(".jsonl")
NUM_ALL, NUM_FEW, SEARCH_FRACTION, NUM_CANDIDATES = 58_800, 300, 0.02, 12
FEW = {"batch_size": 32, "lr": 1.0e-3, "warmup_epochs": 2}
MIXED = {"augment": {"flip": True, "mixup": 0.8, "cutmix": 1.0}}


def taught(weight: float, temperature: float, **settings: Any) -> dict[str, Any]:
    return {"teacher_weight": weight, "teacher_temperature": temperature, **settings}


NETWORKS: dict[str, dict[str, Any]] = {
    "labels": {},
    "half, T = 1": taught(0.5, 1.0),
    "half, T = 4": taught(0.5, 4.0),
    "teacher alone, T = 1": taught(1.0, 1.0),
    "teacher alone, T = 4": taught(1.0, 4.0),
    "labels, mixed": MIXED,
    "half, T = 4, mixed": taught(0.5, 4.0, **MIXED),
    "teacher alone, T = 4, mixed": taught(1.0, 4.0, **MIXED),
}
SUPERNETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "supernet: its largest": ({}, {}),
    "supernet: teacher, half, T = 4": (taught(0.5, 4.0), {}),
    "supernet: teacher, then its largest": (taught(0.5, 4.0), {"distillation": "kl"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEBIAN_FASHION_MNIST, help="folder of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=40, help="on 300 images")
    parser.add_argument("--teacher-epochs", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("results/teacher"))
    parser.add_argument("--to", type=Path, default=ROWS, help="the lines that are kept")
    options = parser.parse_args()
    teacher = trained_teacher(options)
    rows = [json.loads(line) for line in options.to.read_text().splitlines()] if options.to.exists() else []
    done = {(row["epochs"], row["seed"], row["setting"]) for row in rows}
    for seed in range(options.seeds):
        for setting in (*NETWORKS, *SUPERNETS):
            if (options.epochs, seed, setting) in done:
                continue
            measure = network if setting in NETWORKS else supernet
            accuracy = measure(setting, teacher, seed, options)
            rows.append({"epochs": options.epochs, "seed": seed, "setting": setting, "accuracy": accuracy})
            print(rows[-1], flush=True)
            with options.to.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(table(pd.DataFrame(rows)))


def trained_teacher(options: argparse.Namespace) -> str:
    """The space's largest network, trained on all images, by the name of its weights."""
    out = options.runs / f"teacher-{options.teacher_epochs}"
    if not out.exists() or not RunFolder.open(out).results():
        experiment = experiment_of(NUM_ALL, {"epochs": options.teacher_epochs})
        train_model(
            experiment.space.largest, experiment,
            out=out, data=options.data, device="cpu", num_workers=1, resume=out.exists(),
        )  # fmt: skip
    print(f"teacher: {next(iter(RunFolder.open(out).test_accuracies().values())):.4f} on the test images", flush=True)
    return f"{out}:best"


def experiment_of(num_images: int, training: dict[str, Any], **sections: dict[str, Any]) -> Experiment:
    data = {"search_fraction": SEARCH_FRACTION, "train_fraction": num_images / NUM_ALL}
    return load_experiment("fashion_mnist").changed(data=data, training=training, **sections)


def settings_of(setting: dict[str, Any], teacher: str) -> dict[str, Any]:
    return {**FEW, **setting, **({"teacher": teacher} if "teacher_weight" in setting else {})}


def network(setting: str, teacher: str, seed: int, options: argparse.Namespace) -> float:
    """Accuracy on the test images of the anchor, trained by itself."""
    training = {"epochs": options.epochs, **settings_of(NETWORKS[setting], teacher)}
    experiment, out = experiment_of(NUM_FEW, training), place_of(setting, seed, options)
    (arch,) = experiment.anchor_archs().values()
    train_model(
        arch, experiment, out=out, data=options.data, device="cpu", num_workers=1, seed=seed, resume=out.exists()
    )
    return RunFolder.open(out).test_accuracies()[arch.id]


def supernet(setting: str, teacher: str, seed: int, options: argparse.Namespace) -> float:
    """Mean accuracy of random networks on the validation images, as they inherit it."""
    taught, own = SUPERNETS[setting]
    experiment = experiment_of(
        NUM_FEW,
        {"epochs": 0, "warmup_epochs": 0, **{k: v for k, v in settings_of(taught, teacher).items() if k not in FEW}},
        supernet={"epochs": options.epochs, **FEW, "augment": {"flip": True}, "calibration_images": 256, **own},
        search={"weights": "supernet", "sampler": "random", "candidates": NUM_CANDIDATES, "trials": 1},
    )  # fmt: skip
    out = place_of(setting, seed, options)
    run = search(
        experiment, out=out, data=options.data, cpus=1, gpus=0, seed=seed, resume=(out / "manifest.json").exists()
    )
    found = [candidate.accuracy for candidate in run.candidates()]
    return sum(found) / len(found)


def place_of(setting: str, seed: int, options: argparse.Namespace) -> Path:
    name = "".join(letter if letter.isalnum() else "-" for letter in setting)
    return options.runs / f"{name}-{options.epochs}-{seed}"


def table(frame: pd.DataFrame) -> str:
    lines = ["| learned from | " + " | ".join(f"seed {seed}" for seed in sorted(frame["seed"].unique())) + " | mean |"]
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    for setting, found in frame.groupby("setting", sort=False):
        values = [*found.sort_values("seed")["accuracy"], found["accuracy"].mean()]
        lines.append(f"| {setting} | " + " | ".join(f"{value:.4f}" for value in values) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
