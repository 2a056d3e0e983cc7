"""Lines of the command line about a supernet: the effort to judge it, and how well it ranks."""

from cvt_nas.report.text import p_text
from cvt_nas.results import Question, SupernetQuality, Tau
from cvt_nas.results.effort import MOST_ARCHS, EvaluationPlan, archs_to_tell


def evaluation_plan_lines(plan: EvaluationPlan) -> list[str]:
    """Lines on the effort that is needed to tell whether a supernet ranks well enough."""
    lines = [
        f"to judge the supernet, at most {plan.archs} architectures of its space are trained from scratch, with "
        f"{_seeds_text(plan.seeds)} each: {plan.trainings} trainings, of which {plan.done} are done"
        f"{_minutes_text(plan.minutes, '; the others take')}"
    ]
    if plan.reused:
        lines.append(f"{plan.reused} of the architectures were trained by other runs; those trainings are not repeated")
    for question in dict.fromkeys(effort.question for effort in plan.efforts):
        told = [
            f"{effort.value:g}: " + (f"more than {MOST_ARCHS}" if effort.archs is None else f"about {effort.archs}")
            + _minutes_text(effort.minutes, ",")
            for effort in plan.efforts
            if effort.question == question
        ]  # fmt: skip
        lines.append(f"architectures until there is an answer, for each {question} that it may have: {'; '.join(told)}")
    return lines


def _minutes_text(minutes: float | None, before: str) -> str:
    if minutes is None:
        return ""
    return f"{before} about {minutes:.0f} min" if minutes >= 1 else f"{before} less than a minute"


def _seeds_text(number: int) -> str:
    return "one seed" if number == 1 else f"{number} seeds"


def quality_lines(quality: SupernetQuality) -> list[str]:
    """Lines on how well a supernet ranks: what was trained, how scores agree with it, and the verdict."""
    return [
        *agreement_lines(quality), *misjudged_lines(quality), *question_lines(quality), quality_verdict(quality),
    ]  # fmt: skip


def agreement_lines(quality: SupernetQuality) -> list[str]:
    """Lines on what was trained, and how scores agree with it."""
    seeds = _seeds_text(quality.num_seeds)
    lines = [
        f"{quality.num_archs} architectures, evenly over log-FLOPs, were each trained from scratch with {seeds}"
        f"{_origin(quality)}",
        "Kendall's tau-b of these scores with the mean accuracy of these trainings, and 95 % bootstrap intervals:",
    ]
    for name, found in quality.rankers.items():
        regret = ", ".join(f"{value:.4f}" for value in found.regret_at.values())
        lines.append(
            f"{name + ':':10} overall {_tau(found.overall)}, within FLOPs bins {_tau(found.within_bins)}, top third "
            f"{_tau(found.top_third)}; precision at 10 % {found.precision_at_10:.2f}, regret at 1, 5, 10 {regret}"
        )
    if quality.ceiling is not None and quality.between_seeds is not None:
        lines.append(
            f"noise ceiling, the tau of a perfect ranker with the mean of {quality.num_seeds} seeds: "
            f"{_tau(quality.ceiling)}; tau of one seed with another {_tau(quality.between_seeds)}"
        )
    lines.append(
        f"mean accuracy: inherited {quality.inherited:.4f}, after these trainings {quality.standalone:.4f}, "
        f"difference {quality.standalone - quality.inherited:.4f}"
    )
    return lines + _more_lines(quality)


def misjudged_lines(quality: SupernetQuality) -> list[str]:
    """One line for each choice that a supernet misjudges, with the direction."""
    return [
        f"it misjudges {found.choice}: at the same FLOPs, {found.option} instead of {found.instead_of} changes "
        f"accuracy by {found.alone:+.4f} in a training of its own, and by {found.inherited:+.4f} as inherited "
        f"(p {p_text(found.p_value)})"
        for found in quality.misjudged
    ]


def question_lines(quality: SupernetQuality) -> list[str]:
    """The confidence intervals that decide the verdict. They are valid at every number of architectures."""
    return [
        f"{question.name}: {question.value:.2f}, {_interval(question)}; at least {question.bar}? {question.answer}"
        f"{_further(question, quality.num_archs)}"
        for question in quality.questions
    ]


def _further(question: Question, num_archs: int) -> str:
    """An estimate of how many architectures would answer the question. Empty if it is answered."""
    if question.sd is None or question.answer != "cannot tell yet":
        return ""
    needed = archs_to_tell(question, num_archs)
    return (
        f"; more than {MOST_ARCHS} would tell" if needed is None else f"; about {needed} would tell (--archs {needed})"
    )


def _interval(question: Question) -> str:
    if question.low is None or question.high is None:
        return "too few architectures for an interval"
    return f"{question.low:.2f} to {question.high:.2f} with 95 % confidence at every look"


def _more_lines(quality: SupernetQuality) -> list[str]:
    """Lines on the trainings that were reused from other runs, and on the correction by a model."""
    lines, reused, found = [], quality.reused, quality.correction
    if reused is not None:
        lines.append(
            f"reused from other runs: {reused.sample} architectures that were drawn at random, as part of the sample; "
            f"{reused.others} that a search chose, for the correction and the misjudged choices only"
        )
    if found is not None:
        lines.append(
            f"corrected by {found.num_trainings} trainings: tau {found.corrected:.2f} instead of {found.inherited:.2f} "
            f"among architectures that were left out, the mean of {found.num_splits} splits"
        )
    return lines


def next_lines(quality: SupernetQuality, run: str) -> list[str]:
    """What a user can do after a verdict.

    Args:
        run: The run folder, as a word of a command line.
    """
    kept = "these trainings are kept: the same command with a larger --archs adds to them"
    query = (
        f"cvt-nas query {run} finds architectures under other limits. It corrects what they inherit by these trainings"
    )
    if quality.verdict == "ranks well enough":
        trusted = "its ranks can be trusted, except for the choices that it misjudges" if quality.misjudged else ""
        return [*([trusted] if trusted else []), f"next: {query}"]
    if quality.verdict == "cannot tell yet":
        return [f"next: {kept}", query]
    return [
        "next: do not choose by inherited accuracies alone. Let the race train more of its candidates (search.trials), "
        "fix the choices that the supernet misjudges, or search with search.weights: scratch. A longer training brings "
        "subnets closer to what they reach alone, but need not rank them better",
        query,
    ]


def quality_verdict(quality: SupernetQuality) -> str:
    """One line that tells whether a supernet ranks well enough, why not, and on which figures that rests."""
    ours = quality.rankers["inherited"]
    ceiling = "unknown with one seed" if quality.ceiling is None else _tau(quality.ceiling)
    found = (
        f"tau {_tau(ours.overall)}, within FLOPs bins {_tau(ours.within_bins)}, noise ceiling {ceiling}, by "
        f"{quality.num_archs} architectures{_origin(quality)}"
    )
    if quality.verdict == "ranks well enough":
        return f"this supernet ranks well enough: {found}"
    why = "; ".join(quality.faults)
    if quality.verdict == "cannot tell yet":
        return f"cannot tell yet whether this supernet ranks well enough: {why} ({found})"
    return f"this supernet does not rank well enough: {why} ({found})"


def _tau(tau: Tau) -> str:
    return f"{tau.value:.2f} ({tau.low:.2f} to {tau.high:.2f})"


def _origin(quality: SupernetQuality) -> str:
    if quality.origin is None:
        return ""
    of = quality.origin
    return f" for {of.epochs} epochs, on {of.num_images:,} search images of {of.dataset}, seed {of.seed}"
