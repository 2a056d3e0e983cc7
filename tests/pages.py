"""Made-up runs, and their pages in a browser."""

import json
import math
import random
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from cvt_nas.config import Experiment
from cvt_nas.results import TrialResult
from cvt_nas.run import RunFolder


def made_up_run(
    path: str | Path,
    experiment: Experiment,
    num_trials: int,
    *,
    seed: int = 0,
    share_complete: float = 0.5,
    **manifest: Any,
) -> RunFolder:
    """A record such as a search leaves, of accuracies by a formula: more FLOPs help, and stage 0's kv stride 1 does."""
    rng = random.Random(seed)
    run = RunFolder.create(path, experiment.manifest(seed=seed, num_trials=num_trials) | manifest)
    epochs, rung = experiment.training.epochs, experiment.rungs[0]
    _, greatest = experiment.space.cost_range
    lines = []
    for number in range(num_trials):
        genome = experiment.space.sample_feasible(rng)
        assert genome is not None
        arch, cost = experiment.space.decode(genome), experiment.space.cost(genome)
        top = 0.8 + 0.05 * cost.flops / greatest.flops + 0.05 * (arch.stages[0].blocks[0].kv_stride == 1)
        is_complete = rng.random() < share_complete
        curve = tuple(
            round(top * (1 - math.exp(-3 * (epoch + 1) / epochs)) + rng.gauss(0, 0.001), 4)
            for epoch in range(epochs if is_complete else rung)
        )
        result = TrialResult(
            number=number, arch=arch, status="complete" if is_complete else "stopped", epochs=len(curve),
            accuracy=curve[-1], cost=cost, curve=curve, seconds=len(curve) + 1.0, train_seconds=float(len(curve)),
            seed=number, spent=10.0 * number,
        )  # fmt: skip
        lines.append(json.dumps(result.to_json()) + "\n")
    (run.path / "trials.jsonl").write_text("".join(lines))
    return run


def open_page(page: Page, path: Path, ready: str = "#rows tr") -> None:
    page.goto(path.as_uri())
    page.wait_for_selector(ready)


def see_everything(page: Page) -> None:
    """Scrolls to each figure, and waits until it is drawn."""
    for plot in page.query_selector_all("[data-figure]"):
        plot.scroll_into_view_if_needed()
        page.wait_for_function("plot => plot.querySelector('.main-svg') !== null", arg=plot)
    page.evaluate("scrollTo(0, 0)")
