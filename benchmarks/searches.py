"""Whole searches at equal time on the same cores: this tool, its first version's settings, and the script of today.

Each of them trains for so many seconds, by the same code, on as many workers; `defaults` is the space file as it is,
`tpe+asha` the same file with Optuna's TPE, ASHA on accuracy alone and a cosine schedule, `glue` is glue.py. What is
trained in full by then makes the front; its members are judged on the test split, which no search reads. Runs that are
there already are not run again, so that this can be stopped and continued; nothing else should run beside it.

    OMP_NUM_THREADS=1 python benchmarks/searches.py --space search_spaces/fashion_mnist.yaml --seconds 600 \\
        --to results/fashion_mnist_compared
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import yaml

from cvt_nas.config import Experiment, load_experiment
from cvt_nas.data import ImageData, load_data
from cvt_nas.engine import evaluate
from cvt_nas.model import load_model
from cvt_nas.results import RunFolder, hypervolume, is_non_dominated

METHODS = {"defaults": "#0072B2", "tpe+asha": "#E69F00", "glue": "#D55E00"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One search of a method: where its models lie, and its complete trials."""

    method: str
    seed: int
    num_trials: int
    models: Path
    complete: pd.DataFrame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=600, help="of each search")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("results/searches"), help="where the runs are kept")
    parser.add_argument("--to", type=Path, required=True, help="folder of the fronts, as a table and as a figure")
    options = parser.parse_args()
    experiment = load_experiment(options.space)
    options.runs.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for method in METHODS:
            folder = options.runs / f"{method}-{seed}"
            if not (folder / "done").exists():
                print(f"{folder.name}: {options.seconds} s", flush=True)
                command = _command(method, options.space, folder, options.runs, options.seconds, seed, options.cpus)
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                (folder / "done").touch()
            runs.append(_read(method, seed, folder, experiment))
    front = pd.concat([_judged(run, experiment) for run in runs], ignore_index=True)
    options.to.mkdir(parents=True, exist_ok=True)
    front.to_csv(options.to / "fronts.csv", index=False)
    _figure(front).write_html(options.to / "fronts.html", include_plotlyjs="cdn")
    print(_summary(runs, front, experiment).to_string(index=False))


def _command(method: str, space: Path, folder: Path, runs: Path, seconds: int, seed: int, cpus: int) -> list[str]:
    limits = ["--seed", str(seed), "--cpus", str(cpus), "--out", str(folder)]
    if method == "glue":
        glue = Path(__file__).parent / "glue.py"
        return [sys.executable, str(glue), "--space", str(space), "--seconds", str(seconds), *limits]
    if method == "tpe+asha":
        tree = yaml.safe_load(space.read_text())
        tree["search"] |= {"sampler": "tpe", "scheduler": "asha", "mode": "stop"}
        tree["training"] |= {"schedule": "cosine", "ema_decay": None}
        space = runs / "tpe+asha.yaml"
        space.write_text(yaml.safe_dump(tree))
    program = [sys.executable, "-m", "cvt_nas.cli", "search", "--space", str(space)]
    return [*program, "--time-budget", f"{seconds}s", "--trials", "10000", *limits]


def _read(method: str, seed: int, folder: Path, experiment: Experiment) -> Run:
    if method == "glue":
        trials = json.loads((folder / "trials.json").read_text())
        num_trials = len(trials)
        complete = [trial for trial in trials if trial["training_iteration"] == experiment.training.epochs]
    else:
        results = RunFolder.open(folder).results()
        num_trials = len(results)
        complete = [result.to_json() for result in results if result.status == "complete"]
    columns = ["arch_id", "accuracy", "params", "flops"]
    frame = pd.DataFrame(complete, columns=columns)
    return Run(method=method, seed=seed, num_trials=num_trials, models=folder / "models", complete=frame)


def _losses(frame: pd.DataFrame, accuracy: str, experiment: Experiment) -> np.ndarray:
    """Scaled as the tool's own hypervolume is: costs from the space's least, 0, to its greatest, 1."""
    least, greatest = experiment.space.cost_range
    costs = [
        (frame[name] - getattr(least, name)) / (getattr(greatest, name) - getattr(least, name))
        for name in ("params", "flops")
    ]
    return np.stack([1 - frame[accuracy], *costs], axis=1).astype(float)


def _judged(run: Run, experiment: Experiment) -> pd.DataFrame:
    """The front by accuracy on the search split, with the accuracy of each member on the test split."""
    kept = run.complete.loc[is_non_dominated(_losses(run.complete, "accuracy", experiment))].copy()
    data, device = _data_of(experiment), torch.device("cpu")
    kept["test_accuracy"] = [
        evaluate(load_model(run.models / arch_id), data, "test", training=experiment.training, device=device)
        for arch_id in kept["arch_id"]
    ]
    kept.insert(0, "method", run.method)
    kept.insert(1, "seed", run.seed)
    return kept.sort_values(by="flops")


def _data_of(experiment: Experiment) -> ImageData:
    inside = experiment.space
    return load_data(
        experiment.data, root=None, image_size=inside.image_size, num_channels=inside.num_channels,
        num_classes=inside.num_classes,
    )  # fmt: skip


def _summary(runs: list[Run], front: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    rows = []
    for run in runs:
        members = front.loc[(front["method"] == run.method) & (front["seed"] == run.seed)]
        rows.append(
            {
                "method": run.method, "seed": run.seed, "trials": run.num_trials, "complete": len(run.complete),
                "front": len(members), "best": members["test_accuracy"].max(),
                "hypervolume": hypervolume(_losses(members, "test_accuracy", experiment)),
            }
        )  # fmt: skip
    return pd.DataFrame(rows).sort_values(["method", "seed"])


def _figure(front: pd.DataFrame) -> go.Figure:
    figure = go.Figure()
    for method, color in METHODS.items():
        for seed, members in front.loc[front["method"] == method].groupby("seed"):
            # of the members, only what no cheaper one beats on the test split belongs on this plane's line
            accuracies = members["test_accuracy"].to_numpy()
            line = members.loc[accuracies == np.maximum.accumulate(accuracies)]
            figure.add_scatter(
                x=line["flops"] / 1e6, y=line["test_accuracy"], mode="lines+markers", name=method,
                legendgroup=method, showlegend=bool(seed == front["seed"].min()),
                line={"color": color, "shape": "hv"}, text=line["arch_id"],
            )  # fmt: skip
    figure.update_layout(
        template="plotly_white", xaxis={"title": "M FLOPs", "type": "log"}, yaxis={"title": "accuracy, test split"},
        title=f"Fronts of {front['seed'].nunique()} seeds each",
    )  # fmt: skip
    return figure


if __name__ == "__main__":
    main()
