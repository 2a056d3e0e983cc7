"""What the terminal shows of a search."""

import dataclasses
import io
from pathlib import Path

from rich.console import Console

from cvt_nas.follow.terminal import ConsoleProgress
from test_study import lost, result_of, study_of, with_sampler


def test_progress_counts_an_architecture_that_was_tried_again_once(tmp_path: Path) -> None:
    experiment = with_sampler("random")
    study, run = study_of(experiment, tmp_path / "run", 4)
    for status in ("failed", "complete"):
        proposal = study.ask()
        assert proposal is not None
        run.append(lost(experiment, proposal, status) if status == "failed" else result_of(experiment, proposal, 0.5))
    printed = io.StringIO()
    shown = ConsoleProgress.of(run, Console(file=printed, width=200), num_trials=4, deadline=None)
    assert dict(shown._figures())["trials"] == "1/4"
    shown(dataclasses.replace(run.results()[0], number=8, reason="[it] broke"))
    assert printed.getvalue().splitlines()[0] == "trial 8 failed: [it] broke"
    shown(dataclasses.replace(run.results()[0], number=9, status="complete", accuracy=0.4, curve=(0.4,) * 3))
    assert dict(shown._figures())["trials"] == "2/4"
    assert "lost" not in dict(shown._figures())
