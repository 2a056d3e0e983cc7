"""Lines and a table with which the command line describes a run."""

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from cvt_nas.config import space_file_of
from cvt_nas.errors import SpaceFileError
from cvt_nas.escaping import printable
from cvt_nas.latency import LatencyTable
from cvt_nas.report.stopping import freeze_thaw_for, has_rungs
from cvt_nas.report.tables import deciding_epochs
from cvt_nas.results import Metric, TrialResult, plain_name, rank_correlations
from cvt_nas.run import RunFolder
from cvt_nas.space import SIZE_METRICS

_HEADERS = {"throughput": "images/s", "peak_memory_mb": "memory MB", "model_mb": "model MB"}
_MOST_DRIFT = 0.05  # a greater drift, as a share of the latency, is reported


def front_table(run: RunFolder) -> Table:
    """The front as a table for a terminal. The knee and the best member are marked."""
    front, tested = run.front(), run.test_accuracies()
    metrics = [run.front_score_name if metric == "accuracy" else metric for metric in front.metrics]
    title = Text(printable(f"Pareto front of {run.manifest['name']}: {' / '.join(metrics)}"))  # no markup in it
    table = Table(title=title, title_justify="left")
    confirmed = any(member.confirmation is not None for member in front.members)
    in_int8 = run.front_score_name != run.score_name
    score = f"{run.score_name}, int8" if in_int8 else run.score_name
    more = [("front", "right")] if confirmed else []  # the whole table still fits in 80 characters
    has_latency, measured = "latency_table" in run.manifest, run.latencies()
    timed = [("ms", "right")] if has_latency else []
    others: list[Metric] = [metric for metric in run.metrics if metric in ("throughput", *SIZE_METRICS)]
    timed += [(_HEADERS[metric], "right") for metric in others]
    for name, justify in (("arch", "left"), (score, "right"), *more, ("test", "right"), ("params", "right"),
                          ("FLOPs", "right"), *timed, ("", "left")):  # fmt: skip
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    knee = front.knee()
    for member in front.members:
        marks = [name for name, marked in (("best", front.best), ("knee", knee)) if marked is member]
        if member.confirmation is not None and member.confirmation.num_lost:
            marks.append(f"{member.confirmation.num_lost} lost")
        test = tested.get(member.arch_id)
        table.add_row(
            member.arch_id,
            accuracy_text(member),
            *([_membership_text(member)] if confirmed else []),
            "-" if test is None else f"{test:.4f}",
            short(member.cost.params),
            short(member.cost.flops),
            *([latency_text(member, measured)] if has_latency else []),
            *(f"{member.metric(metric):.3g}" for metric in others),
            ", ".join(marks),
        )
    return table


def rank_lines(run: RunFolder) -> list[str]:
    """How well accuracy at each rung ranked the trials, with a warning if ranks are random or against large networks.

    Inherited accuracy counts as a rung too, if there is any.
    """
    lines = []
    for found in rank_correlations(run.results(), deciding_epochs(run)):
        judged = f"accuracy after epoch {found.epoch}" if found.epoch else "inherited accuracy"
        lines.append(
            f"{judged}: its ranks of the {found.num_trials} complete trials have Kendall's tau {found.tau:.2f} with "
            f"those of the end (p {p_text(found.p_value)})"
        )
        faults = []
        if found.is_random:
            faults.append("cannot be told from random ones")
        if found.curves_cross:
            faults.append(
                f"underrate large networks, which overtake small ones later (tau {found.overtaking:.2f} of FLOPs with "
                f"ranks gained, p {p_text(found.overtaking_p_value)})"
            )
        if faults and found.epoch == 0:
            lines.append(
                f"warning: the ranks by inherited accuracy {' and '.join(faults)}; the supernet may have chosen the "
                f"wrong candidates: cvt-nas supernet evaluate tells whether it can be trusted"
            )
        elif faults:
            lines.append(_of_misleading(run, found.epoch, " and ".join(faults)))
    return lines


def _of_misleading(run: RunFolder, epoch: int, faults: str) -> str:
    """A line on ranks that mislead after `epoch`: a warning if trials were stopped by them."""
    told = f"the ranks after epoch {epoch} {faults}; a scheduler that goes by them may stop the wrong trials"
    try:
        search = space_file_of(run).search
    except SpaceFileError:  # the file of another version
        return f"warning: {told}. Better: search.{_better_than(run, epoch, 'scheduler: freeze-thaw')}"
    if has_rungs(search):
        return f"warning: {told}. Better: search.{_better_than(run, epoch, freeze_thaw_for(search))}"
    return f"{told}. This search had search.scheduler: {search.scheduler}, which does not"


def _better_than(run: RunFolder, epoch: int, no_rungs: str) -> str:
    """The settings that would be better than a decision after `epoch`. `no_rungs` are those of a search without."""
    later = range(epoch + 1, run.manifest["epochs"])
    for found in rank_correlations(run.results(), later):
        if not (found.is_random or found.curves_cross):
            return f"grace_period: {found.epoch}, or search.{no_rungs}"
    return no_rungs


def p_text(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def confirmation_lines(run: RunFolder) -> list[str]:
    """Lines on the meaning of the front's accuracies, and on what int8 leaves out. Empty if no further trainings are
    planned."""
    plan = run.confirmations.plan()
    if plan is None or not plan.numbers:
        return []
    ended = [result for result in run.confirmations.results() if result.number in plan.numbers]
    num_lost = sum(result.status != "complete" for result in ended)
    done = f"{len(ended)} of {len(plan.numbers)} further trainings have ended"
    lost = f", {num_lost} of them without an accuracy" if num_lost else ""
    failed = run.confirmations.failed_in_int8(run.results())
    left_out = [each.describe() for each in failed]
    if not run.confirmed():
        why = f", and int8 failed for {len(failed)} architectures" if failed else ""
        kind = "in fp32, " if plan.runtime else ""
        return [
            f"not confirmed: {done}{lost}{why}; accuracy is {kind}of the race's one training, which was selected for "
            f"being high",
            *left_out,
        ]
    int8 = fp32 = ""
    if plan.runtime is not None:
        int8 = f" in int8, {plain_name(plan.runtime)}, on {_judged_on(run)}"
        fp32 = "; the page and pareto.csv have the mean of the same trainings in fp32 beside it"
    return [
        f"confirmed by {plan.seeds} further seeds each: {done}{lost}; accuracy is their mean ± standard "
        f"deviation{int8}, without the race's own{fp32}; 'front' is the share of bootstrap resamples with the "
        f"architecture on it; 'test' is of the race's weights{' in fp32' if int8 else ''}, which are what is exported",
        *left_out,
    ]


def _judged_on(run: RunFolder) -> str:
    """The images that further trainings were judged on in int8."""
    numbers = {found.int8.judgement.num_images for found in run.confirmations.results() if found.int8 is not None}
    return f"{max(numbers, default=0):,} images of the search split"


def accuracy_text(result: TrialResult) -> str:
    """The accuracy as `0.9050`, or as `0.9050 ± 0.0012` if more than one further seed confirms it."""
    sd = None if result.confirmation is None else result.confirmation.sd
    return f"{result.metric('accuracy'):.4f}" + ("" if sd is None else f" ± {sd:.4f}")


def fp32_text(result: TrialResult) -> str:
    """Accuracy in fp32 of a confirmed architecture. `-` if it is not confirmed."""
    return "-" if result.confirmation is None else f"{result.confirmation.fp32_mean:.4f}"


def _membership_text(result: TrialResult) -> str:
    membership = None if result.confirmation is None else result.confirmation.membership
    return "-" if membership is None else f"{membership:.0%}"


def narrowing_lines(run: RunFolder) -> list[str]:
    """One line for each narrowing of a DA-NAS-style search: the dropped options, and the part of training before it."""
    narrowing = run.supernet.narrowing()
    if narrowing is None:
        return []
    return [
        step.describe() + "".join(f"; {option.gene} {option.option}" for option in step.dropped)
        for step in narrowing.steps
    ]


def latency_lines(run: RunFolder) -> list[str]:
    """Lines on the meaning of the latencies of a run. Empty if it has no latency table."""
    if "latency_table" not in run.manifest:
        return []
    table = LatencyTable.from_json(run.manifest["latency_table"])
    batch = 1 if table.deployment is None else table.deployment.batch
    images = "one image at a time" if batch == 1 else f"{batch} images at a time"
    told = f"latency: the front's members are timed whole in the end, {images}, where the table is of such a machine"
    return [*judged_lines(table), told]


def judged_lines(table: LatencyTable) -> list[str]:
    """Lines on what a latency table was measured on, and how far it can be trusted."""
    lines = [
        f"latency: predicted from {len(table.parts)} parts that were timed on {table.device}; whole networks were off "
        f"by {table.error:.0%} (median)"
    ]
    judged = table.judged
    if judged is not None:
        lines.append(
            f"latency of {judged.number} networks that had no part in the table: {judged.within_5:.0%} within 5 %, "
            f"{judged.within_10:.0%} within 10 %, bias {judged.bias:+.1%}, Spearman {judged.spearman:.2f}; two halves "
            f"of a measurement differ by {judged.noise:.1%}"
        )
        if abs(judged.drift) > _MOST_DRIFT:
            change = "slower" if judged.drift > 0 else "faster"
            lines.append(f"latency: the machine was {abs(judged.drift):.0%} {change} at the end of that than at first")
    return lines


def latency_text(result: TrialResult, measured: Mapping[str, float]) -> str:
    """Measured latency in milliseconds. If there is none, the predicted one with a mark: `~1.25`."""
    found = measured.get(result.arch_id)
    return f"~{result.cost.latency_ms:.3g}" if found is None else f"{found:.3g}"


def short(value: float) -> str:
    """A number with three digits and a suffix: `4.58G`, `20.0M`, `16.9k`."""
    for factor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:g}"
