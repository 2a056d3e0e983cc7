"""The script that people write today: Ray Tune with OptunaSearch and ASHAScheduler, as their documentation shows.

Only the network and its training are cvt-nas's, so that a comparison is of the searches alone. The training is the
space file's with a cosine schedule and no averaged weights; the scheduler has the file's `grace_period` and
`reduction_factor`.

    python benchmarks/glue.py --space search_spaces/fashion_mnist.yaml --seconds 600 --seed 0 --out results/glue
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from cvt_nas.arch import arch_to_dict, cost_of
from cvt_nas.config import load_experiment
from cvt_nas.data import load_data, save_preprocessing
from cvt_nas.engine import fit
from cvt_nas.launch.cluster import local_ray
from cvt_nas.model import save_model


def train(config: dict[str, int], space: Path, models: Path) -> None:
    torch.set_num_threads(1)
    experiment = load_experiment(space)
    inside = experiment.space
    training = dataclasses.replace(experiment.training, schedule="cosine", ema_decay=0.0)
    data = load_data(
        experiment.data, root=None, image_size=inside.image_size, num_channels=inside.num_channels,
        num_classes=inside.num_classes,
    )  # fmt: skip
    arch = inside.decode(tuple(config[gene.name] for gene in inside.genes))
    cost = cost_of(arch)
    for epoch in fit(arch, training, data, device=torch.device("cpu"), seed=0):
        if epoch.number == training.epochs:
            save_model(epoch.model, models / arch.id)
            save_preprocessing(data, models / arch.id)
        tune.report({"accuracy": epoch.accuracy, "params": cost.params, "flops": cost.flops})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    experiment = load_experiment(options.space)
    out = options.out.absolute()
    with local_ray(num_cpus=options.cpus, num_gpus=0):
        tuner = tune.Tuner(
            tune.with_parameters(train, space=options.space.absolute(), models=out / "models"),
            param_space={gene.name: tune.randint(0, len(gene.options)) for gene in experiment.space.genes},
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(
                    metric=["accuracy", "params", "flops"], mode=["max", "min", "min"], seed=options.seed
                ),
                scheduler=ASHAScheduler(
                    metric="accuracy",
                    mode="max",
                    max_t=experiment.training.epochs,
                    grace_period=experiment.search.grace_period,
                    reduction_factor=experiment.search.reduction_factor,
                ),
                num_samples=-1,
                time_budget_s=options.seconds,  # from here, Ray being started, as the tool counts its own
            ),
            run_config=tune.RunConfig(storage_path=str(out), name="tune"),
        )
        results = tuner.fit()
    trials: list[dict[str, Any]] = []
    for result in results:
        if not result.metrics or "accuracy" not in result.metrics or result.config is None:
            continue  # it had not reported yet when the time was over
        arch = experiment.space.decode(tuple(result.config[gene.name] for gene in experiment.space.genes))
        values = {name: result.metrics[name] for name in ("accuracy", "params", "flops", "training_iteration")}
        trials.append({"arch_id": arch.id, **values, "arch": arch_to_dict(arch)})
    (out / "trials.json").write_text(json.dumps(trials))


if __name__ == "__main__":
    main()
