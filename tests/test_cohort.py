"""Several seeds of one architecture, trained at once: they are what each of them is by itself."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import torch

import cohort
from cohort import Cohort, fit_cohort
from cvt_nas.config import DataConfig, TrainingConfig, load_experiment
from cvt_nas.data import ImageData, load_data
from cvt_nas.engine import fit
from cvt_table import networks_of
from shared import networks
from test_fast import CallsAgain

CPU, SPACES = torch.device("cpu"), Path(__file__).parent.parent / "benchmarks" / "tables"
TRAINING = TrainingConfig(epochs=3, batch_size=8, lr=3e-3, warmup_epochs=0.5, weight_decay=0.05, ema_decay=0.5)


def digits(size: int = 28) -> ImageData:
    config = DataConfig(dataset="digits", train_fraction=0.05)
    return load_data(config, root=None, image_size=size, num_channels=1, num_classes=10)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd", "ema_decay": 0.0, "label_smoothing": 0.1}])
def test_seeds_of_a_cohort_have_the_curves_that_fit_gives_them(changes: dict[str, object]) -> None:
    space, data = load_experiment(SPACES / "cvt-bench.yaml").space, digits()
    arch, training = space.smallest, dataclasses.replace(TRAINING, **changes)
    together = list(fit_cohort(arch, training, data, device=CPU, seeds=[3, 1]))
    for place, seed in enumerate([3, 1]):
        *_, alone = fit(arch, training, data, device=CPU, seed=seed)
        # the order of sums differs, which may turn an answer
        assert [found[place] for found in together] == pytest.approx(alone.curve, abs=1.5 / data.num_images("search"))
    assert max(together[-1]) > 0.2, "chance would agree, too"
    assert together[-1][0] != together[-1][1]


def test_a_cohort_whose_passes_are_replayed_ends_as_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    space, data = load_experiment(SPACES / "cvt-bench.yaml").space, digits()

    def curves() -> list[list[float]]:
        return list(fit_cohort(space.smallest, TRAINING, data, device=CPU, seeds=[0, 1]))

    expected = curves()
    graphs = CallsAgain(monkeypatch)
    monkeypatch.setattr(cohort, "recorder_of", lambda device: graphs.record)
    monkeypatch.setattr(cohort, "Cohort", lambda models: graphs.watch(Cohort(models)))
    assert curves() == expected
    assert (graphs.num_recorded, graphs.num_replayed > 10) == (1, True)


def test_a_class_token_and_mean_projections_can_be_stacked() -> None:
    space, data = load_experiment(SPACES / "cvt-bench-colour.yaml").space, digits(32)
    arch = next(a for a in map(space.decode, networks_of(space, 40)) if a.stages[1].blocks[0].projection == "avg")
    arch, training = dataclasses.replace(arch, num_channels=1), dataclasses.replace(TRAINING, epochs=2)
    *_, together = fit_cohort(arch, training, data, device=CPU, seeds=[0, 1])
    *_, alone = fit(arch, training, data, device=CPU, seed=1)
    assert together[1] == pytest.approx(alone.accuracy, abs=1.5 / data.num_images("search"))


@pytest.mark.parametrize("changes", [{"drop_path": 0.1}, {"clip_grad_norm": 1.0}, {"precision": "fp16"}])
def test_what_a_cohort_would_train_otherwise_than_fit_is_refused(changes: dict[str, object]) -> None:
    (name,) = changes
    training = dataclasses.replace(TRAINING, **changes)
    with pytest.raises(ValueError, match=f"training.{name}"):
        next(fit_cohort(networks()["small, 28 px, stem stride 4"][0], training, digits(), device=CPU, seeds=[0]))


def test_more_networks_of_a_table_come_after_those_that_it_has() -> None:
    space = load_experiment(SPACES / "cvt-bench.yaml").space
    few, many = networks_of(space, 40), networks_of(space, 420)
    assert many[:40] == few
    assert len(set(many)) == 420
    known = pd.read_parquet(SPACES / "cvt-bench.parquet").filter(regex=r"^g\d+$").drop_duplicates()
    assert set(many[:300]) == set(known.itertuples(index=False, name=None))
