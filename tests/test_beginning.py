"""Searches that begin with weights from elsewhere, on digits."""

import dataclasses
import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from conftest import Watch, small_digits
from cvt_nas import search
from cvt_nas.cli.arguments import build_parser
from cvt_nas.config import Experiment, parse_experiment
from cvt_nas.data import load_data
from cvt_nas.engine import TrainingSetup, keep_lent, open_lent, progress_reports
from cvt_nas.engine.importance import taylor_scores
from cvt_nas.errors import ArchError, CvtNasError, RunFolderError
from cvt_nas.model import CvT, Lent, begin_with, lend, locate, means, read_weights, save_model, sorted_by
from cvt_nas.pipeline import verdict
from cvt_nas.report import run_page
from cvt_nas.results import Candidate
from cvt_nas.run import RunFolder

CPU = torch.device("cpu")


def experiment_with(
    search_settings: dict[str, Any], supernet: dict[str, Any] | None = None, **lines: str
) -> Experiment:
    settings = {"trials": 2, "sampler": "random", "scheduler": "none", "seed": 0} | search_settings
    text = f"search: {json.dumps(settings)}"
    if supernet is not None:
        text = f"supernet: {json.dumps({'batch_size': 64, **supernet})}\n{text}"
    return parse_experiment(small_digits(**{"search:": text, **lines}), "begin.yaml")


@pytest.fixture
def best(finished_run: RunFolder) -> str:
    return f"{finished_run.path}:best"


def first_accuracies(experiment: Experiment, run: RunFolder) -> list[float]:
    """After the first epoch of the smallest network, with two seeds."""
    setup = TrainingSetup.of(experiment, run=run, data=None)
    reports = (
        progress_reports(experiment.space.smallest, setup, number=number, device=CPU, seed=number, keep_model=False)
        for number in (0, 1)
    )
    return [next(iter(found))["accuracy"] for found in reports]


def test_trials_begin_with_what_they_cut_from_the_weights(best: str, two_cpus: None, tmp_path: Path) -> None:
    experiment = experiment_with({})
    run = search(experiment, out=tmp_path / "run", init=best, cpus=1, gpus=0)
    kept, lent = run.manifest["init"], Lent.load(run.init_path)
    assert (kept["path"], kept["importance"], lent.importance) == (str(locate(best)), "taylor", "taylor")
    assert len(kept["sha256"]) == 64
    assert lent.classes == tuple(range(10))
    assert any(note.startswith("channels beyond those of the weights begin afresh: ") for note in kept["notes"])
    assert [trial.status for trial in run.results()] == ["complete"] * 2
    assert kept["notes"][0] in run_page(run)
    begun = first_accuracies(experiment, run)
    assert min(begun) > max(first_accuracies(experiment, RunFolder(tmp_path))) + 0.05
    with pytest.raises(RunFolderError, match=rf"--init {tmp_path}: \S+ began with {kept['path']}; leave it out"):
        search(experiment, out=run.path, resume=True, init=tmp_path)
    assert search(experiment, out=run.path, resume=True, init=best, gpus=0).results() == run.results()


def test_a_search_that_was_cut_off_before_it_kept_the_weights_reads_them_again(
    best: str, two_cpus: None, tmp_path: Path
) -> None:
    experiment, stop = experiment_with({"importance": "magnitude"}), threading.Event()
    stop.set()
    run = search(experiment, out=tmp_path / "run", init=best, gpus=0, stop=stop)
    whole = run.init_path.read_bytes()
    run.init_path.unlink()
    assert not run.lends_weights
    search(experiment, out=run.path, resume=True, gpus=0, stop=stop)
    assert run.init_path.read_bytes() == whole
    run.init_path.unlink()
    run.amend_manifest(init={**run.manifest["init"], "sha256": "0"})
    with pytest.raises(RunFolderError, match=r"is not what \S+ began with any more; name another --out"):
        search(experiment, out=run.path, resume=True, gpus=0, stop=stop)


def test_an_order_of_units_is_said_to_have_no_effect_without_weights(two_cpus: None, tmp_path: Path) -> None:
    stop, notes = threading.Event(), list[str]()
    stop.set()
    search(experiment_with({"importance": "none"}), out=tmp_path / "a", gpus=0, stop=stop, on_note=notes.append)
    assert "search.importance has no effect: there are no weights to begin with (--init)" in notes
    notes.clear()
    search(experiment_with({}), out=tmp_path / "b", gpus=0, stop=stop, on_note=notes.append)
    assert not [note for note in notes if "importance" in note]


def test_candidates_of_a_supernet_that_is_not_trained_are_judged_by_what_they_cut(
    best: str, two_cpus: None, tmp_path: Path
) -> None:
    experiment = experiment_with(
        {"weights": "supernet", "candidates": 4}, {"epochs": 0},
        **{"  epochs:": "  epochs: 0", "  warmup_epochs:": "  warmup_epochs: 0"},
    )  # fmt: skip
    seen: list[Any] = []
    run = search(experiment, out=tmp_path / "run", warm_start=best, gpus=0, progress=Watch(seen.append))
    assert sum(isinstance(event, Candidate) for event in seen) == 4
    assert len(run.results()) == 4
    assert run.supernet.is_trained
    assert run.test_accuracies()


@pytest.mark.parametrize("shape", ["stages", "classes"])
def test_weights_that_do_not_fit_are_refused_before_anything_is_spent(shape: str, tmp_path: Path) -> None:
    experiment = experiment_with({"weights": "supernet"}, {"epochs": 0})
    arch = experiment.space.smallest
    other = (
        dataclasses.replace(arch, stages=arch.stages[1:])
        if shape == "stages"
        else dataclasses.replace(arch, num_classes=3)
    )
    save_model(CvT(other), tmp_path / "model")
    message = {
        "stages": r"model: is of a network of 2 stages, and the space has 3",
        "classes": r"supernet.epochs: got 0, which needs a head of all 10 classes, and that of \S+model knows 0",
    }[shape]
    with pytest.raises(ArchError, match=message):
        search(experiment, out=tmp_path / "run", init=tmp_path / "model")
    with pytest.raises(ArchError, match=r"supernet.epochs: got 0, which needs weights to begin with: give --init"):
        search(experiment, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_worker_elsewhere_cuts_from_the_weights_that_a_run_keeps_at_its_url(
    small: Experiment, tmp_path: Path
) -> None:
    model = CvT(small.space.smallest)
    save_model(model, tmp_path / "model")
    lent, _ = lend(read_weights(tmp_path / "model"), num_channels=1, num_classes=10)
    run = RunFolder.at(f"file://{tmp_path}/there")
    assert not run.lends_weights
    keep_lent(lent, run, run.init_path)
    run.init_path.unlink()  # as on another machine
    assert run.lends_weights
    setup = pickle.loads(pickle.dumps(TrainingSetup.of(small, run=run, data=None)))
    begun = begin_with(CvT(small.space.smallest), open_lent(setup.run)).state_dict()
    assert all(torch.equal(begun[name], tensor) for name, tensor in model.state_dict().items())


def test_both_names_of_the_option_mean_the_same() -> None:
    for name in ("--init", "--warm-start"):
        assert build_parser().parse_args(["search", "--space", "digits", name, "w.pth"]).init == "w.pth"


def test_what_no_loss_depends_on_is_least_important(small: Experiment, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arch = small.space.decode(small.anchors["cvt-like"])
    model = CvT(arch)
    name = "stage1.blocks.0.mlp.fc1.weight"
    with torch.no_grad():
        model.state_dict()[name].mul_(5)
        model.state_dict()["stage1.blocks.0.mlp.fc2.weight"][:, 0] = 0
    save_model(model, tmp_path)
    data = load_data(small.data, root=None, image_size=8, num_channels=1, num_classes=10)
    before = model.state_dict()[name].clone()
    for num_classes in (10, 3):  # of the weights' head: with 3, another is fitted first
        lent, _ = lend(read_weights(tmp_path), num_channels=1, num_classes=10)
        if num_classes == 3:
            state = {name: tensor for name, tensor in lent.state.items() if not name.startswith("head.")}
            lent = dataclasses.replace(lent, state=state, classes=())
        scores = taylor_scores(lent, data, image_size=8, device=CPU)
        assert scores.keys() <= lent.state.keys()
        assert scores[name].sum(1).argmin() == 0
        found = sorted_by(lent, scores, importance="taylor")
        torch.testing.assert_close(found.state[name][-1].sort()[0], before[0].sort()[0])
        images = torch.randn(4, 1, 8, 8)
        twin = begin_with(CvT(arch), dataclasses.replace(found, blocks=lent.blocks)).eval()
        if num_classes == 10:
            torch.testing.assert_close(twin(images), model.eval()(images), atol=1e-4, rtol=1e-4)


def test_names_lead_to_the_files_that_they_mean(
    best: str, finished_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = locate(best)
    assert folder.parent == finished_run.path / "models"
    assert locate(folder) == folder
    assert means(best, str(folder))
    with pytest.raises(ArchError, match=rf"{finished_run.path}: is a run; name one of its models, as \S+:best"):
        locate(finished_run.path)
    hub = tmp_path / "hub"
    snapshot = hub / "models--microsoft--cvt-13" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (hub / "models--microsoft--cvt-13" / "refs").mkdir()
    (hub / "models--microsoft--cvt-13" / "refs" / "main").write_text(snapshot.name)
    (snapshot / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("microsoft/cvt-13", "cvt-13", "cvt_13"):
        assert locate(name).resolve() == snapshot.resolve()
    with pytest.raises(ArchError, match="someone/else: no such file or folder, and not to be had from the Hub"):
        locate("someone/else")
    with pytest.raises(ArchError, match=r"nowhere\.pth: no such file or folder, no network of a run, and no name"):
        locate("nowhere.pth")


def test_a_network_that_is_registered_with_timm_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(name: str) -> Any:
        return timm.models.PretrainedCfg(file=str(tmp_path / "w.pth")) if name == "my_cvt" else None

    found: Callable[[str], bool] = {"my_cvt", "resnet18"}.__contains__
    monkeypatch.setattr(timm, "is_model", found)
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", config)
    assert locate("my_cvt") == tmp_path / "w.pth"
    with pytest.raises(CvtNasError, match="resnet18: timm knows the network, and no weights of it"):
        locate("resnet18")


def test_an_evaluation_that_is_killed_before_it_begins_still_begins_with_the_weights(
    small: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(CvT(small.space.smallest), tmp_path / "model")
    lent, _ = lend(read_weights(tmp_path / "model"), num_channels=1, num_classes=10)
    run = RunFolder.create(tmp_path / "run", small.manifest(seed=0, num_trials=2))
    keep_lent(lent, run, run.init_path)
    identity = TrainingSetup.of(small, run=run, data=None).checked(run).identity
    assert identity is not None

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for place, name in ((RunFolder, "begin"), (verdict, "keep_lent")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, killed)
            with pytest.raises(KeyboardInterrupt):
                verdict._open_standalone(run, small, identity, seed=0, num_trainings=16)
    alone = verdict._open_standalone(RunFolder.open(run.path), small, identity, seed=0, num_trainings=16)
    assert alone.lends_weights
