"""What weights to begin with gain: a CvT is trained on seven classes of Fashion-MNIST, and a search is for the others.

The search has 300 or 3,000 training images of shirts, coats and dresses, as long a time by each method, and 999
validation images. `scratch` begins afresh; the others begin with what they cut from the network of seven classes:
`unsorted`, its first units and blocks; `magnitude` and `taylor`, the most important ones; and `supernet` trains a
supernet that begins with the latter, and trains its best candidates on.

Before that, it is told what cuts of the network of seven classes answer without any training: the accuracy of sixteen
networks of the space, spread over FLOPs, on the validation images of the seven classes.

What is told of a search is the hypervolume of the front by validation accuracy, after each quarter of the time, and at
the end by accuracy on the test images, which no search reads. A line of `pretrained.jsonl` beside this file is a
search; what is there is not run again, and a search that was interrupted goes on for what is left of its time, so that
this can be stopped and continued. Nothing else should run beside it.

    OMP_NUM_THREADS=1 python benchmarks/pretrained.py --data /usr/share/datasets/fashion-mnist

With the defaults it takes 5 hours on two cores. Expected: without training, cuts that are sorted are more accurate than
unsorted ones, most where networks are small. With 300 images, all that begin with weights are ahead of `scratch` after
the first quarter and at the end; with 3,000, the distance is smaller. After training on other classes, the order of the
units should matter less than whether there are weights to begin with.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from cvt_nas import search, train_model
from cvt_nas.arch import ArchConfig, cost_of
from cvt_nas.config import Experiment, load_experiment
from cvt_nas.data import DEBIAN_FASHION_MNIST, ImageData, load_data
from cvt_nas.data.arrays import open_arrays
from cvt_nas.engine import evaluate
from cvt_nas.engine.importance import taylor_scores
from cvt_nas.model import CvT, begin_with, load_model, locate, magnitudes, read_weights, sorted_by
from cvt_nas.report.tables import growth_frame
from cvt_nas.results import ParetoFront
from cvt_nas.run import RunFolder
from cvt_nas.space import spread_over_flops
from cvt_nas.supernet import lend_to

ROWS = Path(__file__).with_suffix(".jsonl")
NEW = (3, 4, 6)  # dress, coat and shirt; among the rest are a T-shirt and a pullover
OLD = tuple(label for label in range(10) if label not in NEW)
NUM_VALIDATION, NUM_CUTS = 999, 16
SUPERNET = {
    "batch_size": 32, "lr": 1.0e-3, "warmup_epochs": 0.5, "augment": {"flip": True}, "calibration_images": 256,
}  # fmt: skip
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "scratch": {},
    "unsorted": {"search": {"importance": "none"}},
    "magnitude": {"search": {"importance": "magnitude"}},
    "taylor": {"search": {"importance": "taylor"}},
    "supernet": {"search": {"importance": "taylor", "weights": "supernet", "candidates": 60, "trials": 60}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEBIAN_FASHION_MNIST, help="folder of Fashion-MNIST")
    parser.add_argument("--images", type=lambda text: [int(n) for n in text.split(",")], default=[300, 3000])
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=600, help="of each search")
    parser.add_argument("--epochs", type=int, default=10, help="of the training on seven classes")
    parser.add_argument("--trial-epochs", type=int, default=12)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("results/pretrained"), help="images and runs")
    parser.add_argument("--to", type=Path, default=ROWS, help="the lines that are kept")
    options = parser.parse_args()
    init = pretrained(options.data, options.runs, epochs=options.epochs, cpus=options.cpus)
    print(cuts(init, options.runs / "seven"))
    rows = [json.loads(line) for line in options.to.read_text().splitlines()] if options.to.exists() else []
    done = {(row["images"], row["seconds"], row["seed"], row["method"]) for row in rows}
    for num_images in options.images:
        write_images(options.data, options.runs / f"three-{num_images}", NEW, num_train=num_images)
        for seed in range(options.seeds):
            for method in options.methods:
                if (num_images, options.seconds, seed, method) in done:
                    continue
                row = searched(method, num_images, init, seed, options)
                rows.append({"images": num_images, "seconds": options.seconds, "seed": seed, "method": method, **row})
                with options.to.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(table(pd.DataFrame(rows)))


def pretrained(data: Path, runs: Path, *, epochs: int, cpus: int) -> str:
    """The space's largest network, trained on seven classes, by the name of its weights."""
    folder, out = runs / "seven", runs / f"pretrained-{epochs}"
    write_images(data, folder, OLD)
    if not out.exists() or not RunFolder.open(out).results():
        experiment = experiment_of(len(OLD), {"epochs": epochs, "batch_size": 128, "lr": 2.0e-3})
        train_model(
            experiment.space.largest, experiment,
            out=out, data=folder, device="cpu", num_workers=cpus, resume=out.exists(),
        )  # fmt: skip
    run = RunFolder.open(out)
    print(f"seven classes: accuracy {next(iter(run.test_accuracies().values())):.4f} on their test images", flush=True)
    return f"{out}:best"


def cuts(init: str, data: Path) -> str:
    """Accuracies of cuts of the network of seven classes, without training, by the order of its units."""
    experiment, cpu = experiment_of(len(OLD), {}), torch.device("cpu")
    space, images = experiment.space, images_of(experiment, data)
    lent, _ = lend_to(space, read_weights(locate(init)), classes=images.class_names)
    taylor = taylor_scores(lent, images, image_size=space.image_size, device=cpu)
    orders = {"unsorted": lent} | {
        name: sorted_by(lent, scores, importance=name)
        for name, scores in (("magnitude", magnitudes(lent)), ("taylor", taylor))
    }
    lines = ["| FLOPs | " + " | ".join(orders) + " |", "|---|" + "---|" * len(orders)]
    archs = map(with_trained_strides, map(space.decode, spread_over_flops(space, NUM_CUTS, seed=0)))
    for arch in sorted(archs, key=lambda arch: cost_of(arch).flops):
        shown = []
        for order in orders.values():
            torch.manual_seed(0)  # of what begins afresh, if anything
            model = begin_with(CvT(arch), order)
            shown.append(f"{evaluate(model, images, 'search', training=experiment.training, device=cpu):.3f}")
        lines.append(f"| {cost_of(arch).flops / 1e6:.2f} M | {' | '.join(shown)} |")
    return "\n".join(lines)


def with_trained_strides(arch: ArchConfig) -> ArchConfig:
    """With the strides of the space's largest network, as without training nothing answers by others."""
    stages = (
        dataclasses.replace(stage, blocks=tuple(dataclasses.replace(block, kv_stride=1) for block in stage.blocks))
        for stage in arch.stages
    )
    return dataclasses.replace(arch, stages=tuple(stages))


def images_of(experiment: Experiment, data: Path) -> ImageData:
    space = experiment.space
    return load_data(
        experiment.data, root=data, image_size=space.image_size, num_channels=space.num_channels,
        num_classes=space.num_classes,
    )  # fmt: skip


def write_images(data: Path, folder: Path, labels: tuple[int, ...], *, num_train: int | None = None) -> None:
    """`train/`, `val/` and `test/` with the images of these classes, a folder each."""
    if folder.exists():
        return
    arrays, partial = open_arrays("fashion-mnist", data), folder.with_name(f".{folder.name}")
    for label in labels:
        rows = np.random.default_rng(0).permutation(np.flatnonzero(arrays.labels["train"] == label))
        num_val = NUM_VALIDATION // len(labels)
        last = None if num_train is None else num_val + num_train // len(labels)
        parts = {
            "val": (arrays.images["train"], rows[:num_val]),
            "train": (arrays.images["train"], rows[num_val:last]),
            "test": (arrays.images["test"], np.flatnonzero(arrays.labels["test"] == label)),
        }
        for split, (images, chosen) in parts.items():
            place = partial / split / arrays.class_names[label].replace("/", "-")
            place.mkdir(parents=True, exist_ok=True)
            for row in chosen:
                Image.fromarray(images[row, 0]).save(place / f"{row}.png")
    partial.rename(folder)


def experiment_of(num_classes: int, training: dict[str, Any], **sections: dict[str, Any]) -> Experiment:
    data = {"dataset": "imagefolder", "num_workers": 0}
    return load_experiment("fashion_mnist").changed(
        space={"num_classes": num_classes}, data=data, training=training, **sections
    )


def searched(method: str, num_images: int, init: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What is kept of a search by `method`, which goes on where it was interrupted."""
    data = options.runs / f"three-{num_images}"
    training = {"epochs": options.trial_epochs, "batch_size": 32, "lr": 1.0e-3}
    sections = METHODS[method]
    if method == "supernet":  # about a quarter of the time, whatever the number of images
        sections = {**sections, "supernet": {**SUPERNET, "epochs": max(3600 // num_images, 1)}}
    experiment = experiment_of(len(NEW), training, **sections)
    out = options.runs / f"{data.name}-{options.seconds}s-{method}-{seed}"
    print(out.name, flush=True)
    run = search(
        experiment, out=out, data=data, cpus=options.cpus, gpus=0, seed=seed, resume=(out / "manifest.json").exists(),
        trials=None if method == "supernet" else 2_000, time_budget=options.seconds,
        init=None if method == "scratch" else init,
    )  # fmt: skip
    results, images = run.results(), images_of(experiment, data)
    tested = []
    for member in run.front().members:
        model = load_model(run.model_path(member.arch_id))
        accuracy = evaluate(model, images, "test", training=experiment.training, device=torch.device("cpu"))
        tested.append(dataclasses.replace(member, accuracy=accuracy))
    growth = growth_frame(run.ended(), run.metrics, run.box)
    quarters = [options.seconds * share for share in (0.25, 0.5, 0.75, 1.0)]
    return {
        "trials": len(results),
        "complete": sum(result.status == "complete" for result in results),
        "hypervolume": [float(growth.loc[growth["spent"] <= end, "hypervolume"].max()) for end in quarters],
        "test_hypervolume": ParetoFront.of(tested, run.metrics).hypervolume(run.box),
        "best": max((member.accuracy for member in tested), default=0.0),
    }


def table(rows: pd.DataFrame) -> str:
    """Means and standard deviations over the seeds, a line for each number of images and method."""
    lines = [
        "| images | method | trials | hypervolume after 1/4, 1/2, 3/4, 4/4 of the time | on test images | best there |",
        "|---|---|---|---|---|---|",
    ]
    for _, found in rows.groupby(["images", "seconds", "method"], sort=False):
        images, method = found["images"].iloc[0], found["method"].iloc[0]
        quarters = np.array(found["hypervolume"].tolist())
        shown = ", ".join(f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(quarters.mean(0), quarters.std(0), strict=True))
        ends = [f"{found[name].mean():.3f} ± {found[name].std(ddof=0):.3f}" for name in ("test_hypervolume", "best")]
        lines.append(f"| {images} | {method} | {found['trials'].mean():.0f} | {shown} | {' | '.join(ends)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
