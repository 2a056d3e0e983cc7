"""The library: what it offers, and the example that goes through it."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import cvt_nas
from cvt_nas.report import front_frame, trials_frame
from cvt_nas.run import RunFolder

SURFACE = """
    ArchConfig Comparison Cost CvtNasError Experiment ParetoFront RunFolder SearchSpace TrialResult build_model cost_of
    evaluate_model evaluate_supernet export_model front_frame load_arch load_checkpoint load_experiment load_model
    load_recipe measure_latency query search train_model trials_frame write_report
""".split()
EXAMPLE = Path(__file__).parent.parent / "examples" / "digits.py"


def test_all_is_the_whole_public_surface() -> None:
    assert [*cvt_nas.__all__] == SURFACE
    for name in cvt_nas.__all__:
        assert inspect.getdoc(getattr(cvt_nas, name)), name
    assert set(cvt_nas.__all__) <= set(dir(cvt_nas))
    named = {name: getattr(cvt_nas, name) for name in dir(cvt_nas) if not name.startswith("_")}
    public = {name for name, value in named.items() if not inspect.ismodule(value)}
    assert public - {"Any", "TYPE_CHECKING"} == set(cvt_nas.__all__)


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'cvt_nas' has no attribute 'find'"):
        _ = cvt_nas.find  # pyright: ignore[reportAttributeAccessIssue]


def test_every_trial_is_a_row_with_its_choices(finished_run: RunFolder) -> None:
    frame, results = trials_frame(finished_run), finished_run.results()
    assert isinstance(frame, pd.DataFrame)
    assert frame.index.tolist() == [result.number for result in results]
    assert frame["flops"].tolist() == [result.cost.flops for result in results]
    assert set(frame.loc[frame["on_front"], "arch_id"]) == set(front_frame(finished_run)["arch_id"])
    widths = [result.arch.stages[0].embed_dim for result in results]
    assert len(set(widths)) > 1
    assert frame["stage0.embed_dim"].tolist() == widths


@pytest.mark.slow
def test_the_example_ends_with_a_front_a_page_and_a_model(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(tmp_path)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\ntrial ") == 8
    assert (tmp_path / "run" / "report.html").exists()
    assert cvt_nas.load_model(tmp_path / "model").arch.num_classes == 10
