"""Which choices matter for accuracy and for the front, and in which direction."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cvt_nas.report.figures import label_of, option_text
from cvt_nas.report.page import figure_html, table_html
from cvt_nas.results import TrialResult, distances_to_front, losses_of
from cvt_nas.run import RunFolder

MIN_TRIALS = 10  # a forest explains nothing with fewer complete trials
_MAX_TRIALS, _NUM_TREES = 192, 16  # the forest's time grows with the square of its leaves
_TOP = 0.25  # share of best trials that PED-ANOVA compares with all trials
_MAX_LINES, _LEAST_SHARE = 5, 0.05  # limits on the choices that are told in words


def importance_frame(run: RunFolder, choices: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """How much each choice matters: `choice, accuracy, distance, accuracy_top, distance_top`, weightiest choice first.

    The values are shares of the importance of all choices. At most 192 complete trials are used, evenly spaced in their
    order. `distance` is the distance to the front in all objectives at once, with costs on a logarithmic scale (see
    `distances_to_front`). `accuracy` and `distance` are computed by fANOVA, which explains the variance over all
    trials. `accuracy_top` and `distance_top` are computed by PED-ANOVA, which compares the best quarter of the trials
    with all trials. Where a choice has no effect, such as that of an absent block, one of its options is drawn at
    random, so that the choice does not stand for depth. The table is empty if fewer than `MIN_TRIALS` trials are
    complete.

    Source: Hutter et al. 2014, An efficient approach for assessing hyperparameter importance; Watanabe et al. 2023,
    arXiv:2304.10255.
    """
    complete = _complete(run)
    complete = complete[:: math.ceil(len(complete) / _MAX_TRIALS) or 1]
    rows = choices.loc[[result.number for result in complete]]
    rows = _filled(rows.loc[:, [rows[name].nunique() > 1 for name in rows.columns]], seed)
    if len(complete) < MIN_TRIALS or rows.shape[1] == 0:
        return pd.DataFrame(columns=["choice", "accuracy", "distance", "accuracy_top", "distance_top"])
    import optuna

    evaluators = {
        "": optuna.importance.FanovaImportanceEvaluator(n_trees=_NUM_TREES, seed=seed),
        "_top": optuna.importance.PedAnovaImportanceEvaluator(target_quantile=_TOP),
    }
    shares = {
        target + suffix: found
        for target, values in _targets(run, complete).items()
        for suffix, found in _importances(rows, values, evaluators).items()
    }
    frame = pd.DataFrame({"choice": rows.columns, **{k: [v[name] for name in rows.columns] for k, v in shares.items()}})
    order = frame[["accuracy", "distance"]].max(axis=1).sort_values(ascending=False, kind="stable").index
    return frame.loc[order].reset_index(drop=True)


def _filled(choices: pd.DataFrame, seed: int) -> pd.DataFrame:
    """`choices` with a random option of the same column in the place of each None."""
    rng, filled = np.random.default_rng(seed), choices.copy()
    for name in choices.columns[choices.isna().any()]:
        known, is_missing = choices[name].dropna().to_numpy(), choices[name].isna().to_numpy()
        filled.loc[is_missing, name] = rng.choice(known, size=np.count_nonzero(is_missing))
    return filled


def _complete(run: RunFolder) -> list[TrialResult]:
    return [result for result in run.results() if result.status == "complete"]


def _targets(run: RunFolder, complete: Sequence[TrialResult]) -> dict[str, np.ndarray]:
    """Loss and distance to the front of each trial. Less is better."""
    losses = losses_of(complete, run.metrics)
    losses[:, 1:] = np.log(losses[:, 1:])
    losses = (losses - losses.min(axis=0)) / np.maximum(np.ptp(losses, axis=0), 1e-12)
    return {"accuracy": losses[:, 0], "distance": distances_to_front(losses)}


def _importances(
    choices: pd.DataFrame, values: np.ndarray, evaluators: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Importances of the columns for `values`, by each evaluator. Their sum is 1. All are 0 if all values are equal."""
    if np.ptp(values) == 0:
        return {name: dict.fromkeys(map(str, choices.columns), 0.0) for name in evaluators}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, Any] = {
        str(name): optuna.distributions.CategoricalDistribution(sorted(set(choices[name]), key=str))
        for name in choices.columns
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.add_trials([
        optuna.create_trial(params=dict(zip(distributions, row, strict=True)), distributions=distributions, value=value)
        for row, value in zip(choices.itertuples(index=False), values.tolist(), strict=True)
    ])  # fmt: skip
    return {
        name: optuna.importance.get_param_importances(study, evaluator=evaluator)
        for name, evaluator in evaluators.items()
    }


def direction_lines(run: RunFolder, choices: pd.DataFrame, importances: pd.DataFrame) -> list[str]:
    """Sentences on the weightiest choices: the options with the highest accuracy and those nearest the front.

    The means are over the complete trials in which the choice has an effect. They are not adjusted, so another choice
    that often came with an option may be the cause.
    """
    if importances.empty:
        return []
    complete = _complete(run)
    distances = _targets(run, complete)["distance"]
    accuracies = np.array([result.metric("accuracy") for result in complete])
    lines = []
    for row in importances.head(_MAX_LINES).to_dict("records"):
        chosen = choices.loc[[result.number for result in complete], row["choice"]].to_numpy()
        taken = {option_text(option): chosen == option for option in sorted(set(chosen) - {None}, key=str)}
        parts = []
        if row["accuracy"] >= _LEAST_SHARE:
            best, *_, worst = sorted(taken, key=lambda option: -accuracies[taken[option]].mean())
            parts.append(
                f"{row['accuracy']:.0%} of {run.score_name}, which is highest with {best} "
                f"({_mean(accuracies[taken[best]])}) and lowest with {worst} ({_mean(accuracies[taken[worst]])})"
            )
        if row["distance"] >= _LEAST_SHARE:
            nearest, *_, farthest = sorted(taken, key=lambda option: distances[taken[option]].mean())
            parts.append(
                f"{row['distance']:.0%} of the distance to the front, which is least with {nearest} and greatest with "
                f"{farthest}"
            )
        if parts:
            lines.append(f"{label_of(row['choice'])} explains {'; and '.join(parts)}")
    return lines


def _mean(accuracies: np.ndarray) -> str:
    trials = "one trial" if len(accuracies) == 1 else f"{len(accuracies)} trials"
    return f"mean {accuracies.mean():.2%} of {trials}"


def choices_section(run: RunFolder, choices: pd.DataFrame, importances: pd.DataFrame, *, drawn: bool) -> str:
    """HTML of the page's section on choices. `drawn` tells whether there is a figure of all choices."""
    score = run.score_name
    parts = ['<section id="choices"><h2>Choices</h2>']
    if drawn:
        width = 90 * (len(choices.columns) + 3)
        plot = figure_html(
            "choices", f"the choices, costs and {score} of every complete trial, as lines; in the table of trials below"
        )
        parts.append(
            "<p>A line is a complete trial. Drag along an axis to keep only those that pass there; the values are "
            "columns of the table of trials, too.</p>"
            f'<div class="wide"><div style="min-width: {width}px; --width: {width}">{plot}</div></div>'
        )
    parts.append("<h3>Which choices matter</h3>")
    if len(importances):
        columns = ["accuracy", "distance", "accuracy_top", "distance_top"]
        rows = [
            (label_of(row["choice"]), *(f"{row[name]:.1%}" for name in columns))
            for row in importances.to_dict("records")
        ]
        told = "".join(f"<li>{html.escape(line)}</li>" for line in direction_lines(run, choices, importances))
        names = ("choice", score, "distance to the front", f"{score}, top quarter", "distance, top quarter")
        parts += [
            f"<ul>{told}</ul>" if told else "",
            "<p>The means are over the complete trials as they are: other choices that came with an option have a part "
            "in them. The bars are by Optuna's fANOVA: how much of the variance a choice explains, as a share of what "
            "all of them do. The distance to the front is in all objectives at once. The table also has Optuna's "
            "PED-ANOVA, which asks how the best quarter of the trials differs from all.</p>",
            figure_html("importance", "importance of choices; in the table below", style="free"),
            table_html("Importance of choices", names, rows, prose=(0,)),
        ]
    else:
        parts.append(f"<p>Told from {MIN_TRIALS} complete trials of a space of choices on.</p>")
    return "".join([*parts, "</section>"])
