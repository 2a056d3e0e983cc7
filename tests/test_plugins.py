"""Parts of a user's own, by the names that a space file and the command line have for them."""

import shutil
from pathlib import Path

import pytest
import torch

from conftest import small_digits
from cvt_nas.cli import main
from cvt_nas.config import load_experiment, parse_experiment
from cvt_nas.engine import TrainingSetup, fit
from cvt_nas.errors import PluginError
from cvt_nas.plugins import load_plugin
from cvt_nas.propose.samplers import load_sampler
from cvt_nas.propose.study import Study
from cvt_nas.run import RunFolder

EXAMPLE = Path(__file__).parent.parent / "examples" / "my_parts.py"


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user's own with the example's file in it, under a name that no test has imported."""
    name = f"parts_{abs(hash(tmp_path))}.py"
    shutil.copy(EXAMPLE, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "nowhere"))  # so that what is appended is taken away again
    return tmp_path / name


@pytest.mark.usefixtures("two_cpus")
def test_a_search_runs_with_a_loss_a_metric_a_sampler_and_a_callback_of_the_users(
    working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = working_folder.stem
    space = working_folder.with_name("my.yaml")
    settings = f"  epochs: 1\n  loss: {name}:focal\n  metric: {name}:kappa"
    search = f'search: {{trials: 3, sampler: "{name}:halton", scheduler: none}}'
    space.write_text(
        small_digits(**{"  epochs:": settings, "  warmup_epochs:": "  warmup_epochs: 0", "search:": search})
    )
    assert main(["search", "--space", "my.yaml", "--out", "run", "--cpus", "2", "--callback", f"{name}:show"]) == 0
    said = capsys.readouterr().out
    assert "kappa" in said
    assert said.count("EpochDone") == said.count("TrialResult") == 3
    run = RunFolder.open("run")
    assert run.manifest["metric"] == f"{name}:kappa"
    assert all(0 <= result.metric("accuracy") <= 1 for result in run.results())
    assert f"{name}:kappa" in (run.path / "report.html").read_text()


def test_a_data_set_of_the_users_is_looked_at_and_searched_on(
    working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{working_folder.stem}:shapes"
    assert main(["check", name]) == 0
    assert "classes: columns 100, rows 100" in capsys.readouterr().out
    assert main(["init", name, "--to", "mine.yaml", "--no-measure"]) == 0
    experiment = load_experiment("mine.yaml")
    assert (experiment.data.dataset, experiment.space.num_classes, experiment.space.num_channels) == (name, 2, 1)
    setup = TrainingSetup.of(experiment, run=RunFolder(working_folder.parent / "run"), data=None).checked()
    data = setup.open_data()
    assert data.class_names == ("columns", "rows")
    assert (data.num_images("train"), data.num_images("search"), data.num_images("test")) == (160, 40, 60)
    arch = experiment.space.smallest
    training = experiment.training.lasting(3)
    (*_, last) = fit(arch, training, data, device=torch.device("cpu"), seed=0)
    assert last.accuracy > 0.9


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("return 3", "must give a data set with len"),
        ("return {'training set': []}", "by train, val and test; got training set: list"),
        ("raise OSError('no disk')", "no disk"),
    ],
)
def test_what_is_no_data_set_is_refused(
    body: str, why: str, working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = working_folder.with_name(f"odd_{abs(hash(body))}.py")
    module.write_text(f"def cells(root):\n    {body}\n")
    assert main(["check", f"{module.stem}:cells"]) == 2
    assert why in capsys.readouterr().err


def test_a_sampler_of_the_users_proposes_what_is_feasible_and_new(working_folder: Path) -> None:
    experiment = parse_experiment(small_digits(), "small.yaml")
    study = Study(
        experiment.space,
        metrics=("accuracy", "flops"),
        sampler=f"{working_folder.stem}:halton",
        num_trials=20,
        num_epochs=2,
        seed=0,
    )
    genomes = [proposal.genome for proposal in iter(study.ask, None)]
    assert len(set(genomes)) == len(genomes) == 20


def test_a_sampler_of_optunahub_is_found_by_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTUNAHUB_CACHE_HOME", str(tmp_path))
    package = tmp_path / "github.com" / "optuna" / "optunahub-registry" / "main" / "package" / "samplers" / "mine"
    package.mkdir(parents=True)
    own = "import optuna\n\nclass Mine(optuna.samplers.RandomSampler):\n    pass\n"
    (package / "__init__.py").write_text(own)
    found = load_sampler("optunahub:mine")
    assert found.__name__ == "Mine"
    (package / "__init__.py").write_text(own + "\nclass Other(Mine):\n    pass\n")
    with pytest.raises(PluginError, match="optunahub:mine: must have one sampler, has Mine, Other"):
        load_sampler("optunahub:mine")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_module:sampler", "cannot be imported: No module named"),
        ("json:nothing", "cannot be imported: module 'json' has no attribute"),
        ("math:pi", "is no function or class, but float"),
        ("json:dumps", "cannot be made with seed=0"),
        ("builtins:dict", "gives no sampler of Optuna's, but dict"),
    ],
)
def test_what_is_no_sampler_is_refused(name: str, why: str) -> None:
    with pytest.raises(PluginError, match=f"search.sampler: {name}: {why}"):
        load_sampler(name)


def test_an_error_in_a_module_of_the_users_is_told_in_one_line(working_folder: Path) -> None:
    broken = working_folder.with_name("broken_parts.py")
    broken.write_text("1 / 0\n")
    with pytest.raises(PluginError, match="--callback: broken_parts:show: cannot be imported: division by zero"):
        load_plugin("broken_parts:show", "--callback")


def test_a_search_with_a_part_that_is_not_there_ends_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "my.yaml"
    space.write_text(small_digits(**{"  epochs:": "  epochs: 2\n  metric: nothing_here:kappa"}))
    assert main(["search", "--space", str(space), "--out", str(tmp_path / "run")]) == 2
    assert "training.metric: nothing_here:kappa: cannot be imported" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
