"""Whole searches at equal time on the same cores: this tool, its first version's settings, and the script of today.

Each of them trains for so many seconds, by the same code, on as many workers; `defaults` is the space file as it is,
`tpe+asha` the same file with Optuna's TPE, ASHA on accuracy alone and a cosine schedule, `glue` is glue.py, `supernet`
trains a supernet first, and `da-nas` one whose space is narrowed meanwhile, for as many images as that one sees; these
two have a share of the time (`--share`). `freeze-thaw`, `pareto-asha` and `no-stopping` are the file with that
scheduler. What is trained in full by then makes the front; its members are judged on the
test split, which no search reads. What is in the tables already is not run again, and an interrupted search goes on
for what is left of its seconds, so that this can be stopped and continued. Nothing else should run beside it.

    OMP_NUM_THREADS=1 python benchmarks/searches.py --space search_spaces/fashion_mnist.yaml \\
        --to results/fashion_mnist_compared
    OMP_NUM_THREADS=1 python benchmarks/searches.py --space benchmarks/tables/cvt-bench.yaml --seconds 450 \\
        --methods defaults,supernet,da-nas --share 1 --supernet-epochs 13 --heir-lr 1e-3 --to results/sharing_compared
    OMP_NUM_THREADS=1 python benchmarks/searches.py --space benchmarks/schedulers.yaml --seconds 400 --cpus 1 \\
        --methods freeze-thaw,pareto-asha,no-stopping --to results/schedulers_compared
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import yaml

from cvt_nas.config import DaNasConfig, Experiment, load_experiment
from cvt_nas.engine import evaluate
from cvt_nas.model import load_model
from cvt_nas.results import hypervolume, is_non_dominated
from cvt_nas.run import RunFolder
from supernet import data_of

METHODS = {  # the colours are told apart by the colour-blind, too
    "defaults": ("this tool", "#0072B2"),
    "tpe+asha": ("TPE, ASHA on accuracy", "#E69F00"),
    "glue": ("Ray Tune, OptunaSearch, ASHA", "#D55E00"),
    "supernet": ("this tool, supernet first", "#009E73"),
    "da-nas": ("this tool, DA-NAS-style", "#CC79A7"),
    "freeze-thaw": ("freeze-thaw", "#009E73"),
    "pareto-asha": ("pareto-asha", "#0072B2"),
    "no-stopping": ("no stopping", "#E69F00"),
}
SHARING = ("supernet", "da-nas")
COMPARED = ("defaults", "tpe+asha", "glue")
FIRST_VERSION: dict[str, dict[str, Any]] = {
    "search": {"sampler": "tpe", "scheduler": "asha", "mode": "stop"},
    "training": {"schedule": "cosine", "ema_decay": 0.0},
}
SUPERNET: dict[str, dict[str, Any]] = {
    "supernet": {
        "lr": 2.0e-3, "warmup_epochs": 0.5, "num_random": 2, "distillation": "kl", "distillation_weight": 0.5,
        "augment": {"flip": True},
    },
    "da_nas": {"probes": 60},
    "search": {"scheduler": "none"},  # so many small trainings as there is time for
}  # fmt: skip

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "tpe+asha": FIRST_VERSION,
    **dict.fromkeys(SHARING, SUPERNET),
    "freeze-thaw": {"search": {"scheduler": "freeze-thaw"}},
    "pareto-asha": {"search": {"scheduler": "pareto-asha"}},
    "no-stopping": {"search": {"scheduler": "none"}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST, or the file of colour_images.py")
    parser.add_argument("--seconds", type=int, default=900, help="of each search")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(COMPARED))
    parser.add_argument("--share", type=float, default=0.25, help="of the seconds, for supernet and da-nas")
    parser.add_argument("--supernet-epochs", type=int, default=2)
    parser.add_argument("--supernet-batch-size", type=int, default=128)
    parser.add_argument("--candidates", type=int, default=80, help="that a supernet ranks")
    parser.add_argument("--heirs", type=int, default=36, help="candidates that are trained on, at most")
    parser.add_argument("--heir-epochs", type=int, default=2, help="of each of these")
    parser.add_argument("--heir-lr", type=float, help="of each of these, without warm-up; absent: as in the file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("results/searches"), help="where the searches' runs go")
    parser.add_argument("--to", type=Path, required=True, help="folder of the tables and the figure")
    options = parser.parse_args()
    experiment = load_experiment(options.space)
    for folder in (options.runs, options.to):
        folder.mkdir(parents=True, exist_ok=True)
    runs_path, fronts_path = options.to / "runs.csv", options.to / "fronts.csv"
    runs = pd.read_csv(runs_path) if runs_path.exists() else pd.DataFrame(columns=["method", "seed"])
    fronts = pd.read_csv(fronts_path) if fronts_path.exists() else pd.DataFrame()
    done = set(zip(runs["method"], runs["seed"], strict=True))
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for method in options.methods:
            if (method, seed) in done:
                continue
            seconds = round(options.seconds * (options.share if method in SHARING else 1))
            folder = options.runs / f"{experiment.name}-{seconds}s" / f"{method}-{seed}"  # one for each kind of search
            print(f"{folder.name}: {seconds} s", flush=True)
            if method == "glue":
                shutil.rmtree(folder, ignore_errors=True)  # what an interruption left: its time cannot be made up
            command = _command(method, folder, seconds, seed, options)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            front, run = _read(method, seed, folder, experiment, options.data)
            fronts = pd.concat([fronts, front], ignore_index=True)
            runs = pd.concat([runs, pd.DataFrame([{**run, "seconds": seconds}])], ignore_index=True)
            fronts.to_csv(fronts_path, index=False)
            runs.to_csv(runs_path, index=False)
    _figure(fronts, experiment.name).write_html(options.to / "fronts.html", include_plotlyjs="cdn")
    print(runs.sort_values(by=["method", "seed"]).to_string(index=False))


def _command(method: str, folder: Path, seconds: int, seed: int, options: argparse.Namespace) -> list[str]:
    limits, space = ["--seed", str(seed), "--cpus", str(options.cpus), "--out", str(folder)], options.space
    limits += [] if options.data is None else ["--data", str(options.data)]
    if method == "glue":
        glue = Path(__file__).parent / "glue.py"
        return [sys.executable, str(glue), "--space", str(space), "--seconds", str(seconds), *limits]
    if method != "defaults":
        tree = yaml.safe_load(space.read_text())
        for section, settings in SETTINGS[method].items():
            tree[section] = tree.get(section, {}) | settings
        if method in SHARING:
            tree["search"] |= {"weights": method, "candidates": options.candidates, "trials": options.heirs}
            tree["training"]["epochs"] = options.heir_epochs
            if options.heir_lr is not None:
                tree["training"] |= {"lr": options.heir_lr, "warmup_epochs": 0}
            epochs = _num_epochs(method, options.supernet_epochs, tree["space"]["num_classes"])
            tree["supernet"] |= {"epochs": epochs, "batch_size": options.supernet_batch_size}
        space = options.runs / f"{method}.yaml"
        space.write_text(yaml.safe_dump(tree))
    program = [sys.executable, "-m", "cvt_nas.cli", "search", "--space", str(space)]
    trials = [] if method in SHARING else ["--trials", "1000"]
    resume = ["--resume"] if (folder / "manifest.json").exists() else []  # its budget is of all its processes
    return [*program, "--time-budget", f"{seconds}s", *trials, *limits, *resume]


def _num_epochs(method: str, of_supernet: int, num_classes: int) -> int:
    """Those in which a supernet sees as many images as in `of_supernet` epochs with all the classes."""
    if method == "supernet":
        return of_supernet
    config = DaNasConfig()
    seen = np.dot(config.lengths, config.class_counts(num_classes)) / num_classes
    return round(of_supernet * sum(config.lengths) / seen)


def _read(
    method: str, seed: int, folder: Path, experiment: Experiment, data_path: Path | None
) -> tuple[pd.DataFrame, dict[str, object]]:
    """The front by accuracy on the search split, each member with its accuracy on the test split; and the run."""
    if method == "glue":
        trials = json.loads((folder / "trials.json").read_text())
        complete = [trial for trial in trials if trial["training_iteration"] == experiment.training.epochs]
    else:
        trials = RunFolder.open(folder).results()
        complete = [result.to_json() for result in trials if result.status == "complete"]
    every = pd.DataFrame(complete, columns=["arch_id", "accuracy", "params", "flops"])
    front = every.loc[is_non_dominated(_losses(every, "accuracy", experiment))].sort_values(by="flops")
    data, device = data_of(experiment, data_path), torch.device("cpu")
    front["test_accuracy"] = [
        evaluate(load_model(folder / "models" / arch_id), data, "test", training=experiment.training, device=device)
        for arch_id in front["arch_id"]
    ]
    front.insert(0, "method", method)
    front.insert(1, "seed", seed)
    return front, {
        "method": method, "seed": seed, "trials": len(trials), "complete": len(every), "front": len(front),
        "best": front["test_accuracy"].max(),
        "hypervolume": hypervolume(_losses(front, "test_accuracy", experiment)),
    }  # fmt: skip


def _losses(frame: pd.DataFrame, accuracy: str, experiment: Experiment) -> np.ndarray:
    """Scaled as the tool's own hypervolume is: costs from the space's least, 0, to its greatest, 1."""
    least, greatest = experiment.space.cost_range
    costs = [
        (frame[name] - getattr(least, name)) / (getattr(greatest, name) - getattr(least, name))
        for name in ("params", "flops")
    ]
    return np.stack([1 - frame[accuracy], *costs], axis=1).astype(float)


def _figure(front: pd.DataFrame, name: str) -> go.Figure:
    figure = go.Figure()
    for method, (label, color) in METHODS.items():
        for seed, members in front.loc[front["method"] == method].groupby("seed"):
            # of the members, only what no cheaper one beats on the test split belongs on this plane's line
            accuracies = members["test_accuracy"].to_numpy()
            line = members.loc[accuracies == np.maximum.accumulate(accuracies)]
            figure.add_scatter(
                x=line["flops"] / 1e6, y=line["test_accuracy"], mode="lines+markers", name=label,
                legendgroup=method, showlegend=bool(seed == front["seed"].min()), text=line["arch_id"],
                line={"color": color, "shape": "hv", "width": 1.5},
                marker={"size": 9, "symbol": ("circle", "square", "diamond")[int(seed) % 3]},
            )  # fmt: skip
    figure.update_layout(
        template="plotly_white",
        title=f"{name}: fronts of searches with {front['seed'].nunique()} seeds, a symbol each",
        xaxis={"title": "FLOPs, millions (log scale)", "type": "log", "tickvals": [0.3, 0.5, 1, 2, 3, 5]},
        yaxis={"title": "accuracy on the test split", "tickformat": ".3f"},
        legend={"x": 0.99, "xanchor": "right", "y": 0.02, "yanchor": "bottom"},
        margin={"l": 80, "r": 30, "t": 60, "b": 60},
    )
    return figure


if __name__ == "__main__":
    main()
