"""The verbs that read the runs of searches."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvt_nas.cli.output import print_front, print_note, say, write
from cvt_nas.cli.searching import SignalledStop
from cvt_nas.errors import ExportError, StorageError


def query(options: argparse.Namespace) -> int:
    from cvt_nas.arch import describe_stages
    from cvt_nas.pipeline.query import query
    from cvt_nas.report import short
    from cvt_nas.run import RunFolder

    answers = query(
        RunFolder.open(options.run),
        max_params=None if options.max_params is None else int(options.max_params),
        max_flops=None if options.max_flops is None else int(options.max_flops),
        max_latency_ms=options.max_latency_ms,
        number=options.top,
        data=options.data,
        to=options.to,
        reuse=options.reuse,
        is_corrected=not options.uncorrected,
        on_note=print_note,
    )
    if options.json:
        write(json.dumps([
            {"arch_id": answer.arch.id, "accuracy": answer.inherited.accuracy, "smoothed": answer.smoothed,
             "corrected": answer.corrected, "params": answer.cost.params, "flops": answer.cost.flops,
             "latency_ms": answer.latency_ms}
            for answer in answers
        ]))  # fmt: skip
        return 0
    for answer in answers:
        latency = "" if answer.latency_ms is None else f", {answer.latency_ms:.2f} ms"
        accuracy = f"{answer.inherited.accuracy:.4f} inherited ({answer.smoothed:.4f} smoothed)"
        if answer.corrected is not None:
            accuracy = f"{answer.corrected:.4f} corrected, {accuracy}"
        write(f"{answer.arch.id}  {accuracy}, {short(answer.cost.params)} params, "
              f"{short(answer.cost.flops)} FLOPs{latency}")  # fmt: skip
        write(*(f"    {line}" for line in describe_stages(answer.arch)))
    if options.to is not None:
        write(f"{answers[0].arch.id} is in {options.to}, with the weights that it inherits")
    return 0


def report(options: argparse.Namespace) -> int:
    from rich.console import Console

    from cvt_nas.follow.watch import watch
    from cvt_nas.report import summary, write_pictures, write_report
    from cvt_nas.run import RunFolder

    run, console = RunFolder.open(options.run), Console(stderr=True, soft_wrap=True)
    unwritten: StorageError | None = None
    if options.watch is None:
        try:
            write_report(run)
        except StorageError as error:  # the front of a read-only run can still be printed
            unwritten = error
    else:
        if not run.is_at_work():
            say(console, f"no search is at work on {run.place}")
        with SignalledStop(console) as stop:
            for num_trials in watch(run, seconds=options.watch, stop=stop):
                say(console, f"{num_trials} trials: {run.path / 'report.html'}")
    pictures = [] if options.static is None or unwritten is not None else write_pictures(run, options.static)
    if options.json:
        write(json.dumps(summary(run)))
    else:
        print_front(run, options.run)
    for picture in pictures:
        say(console, f"picture: {picture}")
    if unwritten is not None:
        raise unwritten
    return 0


def compare(options: argparse.Namespace) -> int:
    from cvt_nas.report import Comparison, compare_page
    from cvt_nas.run import RunFolder, check_target, write_atomically

    check_target(options.to, called=f"--to {options.to}", makes_folders=True)
    comparison = Comparison.of([RunFolder.open(place) for place in options.runs])
    options.to.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.to.absolute(), compare_page(comparison))
    found = comparison.summary()
    if (num_again := len(options.runs) - len(found["runs"])) > 0:
        print_note(f"{num_again} of the folders {'holds' if num_again == 1 else 'hold'} a run again, which counts once")
    if options.json:
        write(json.dumps(found))
        return 0
    for run in found["runs"]:
        best = "no front" if run["best"] is None else f"best {run['best']:.4f}"
        write(f"{run['run']}: hypervolume {run['hypervolume']:.4f}, {best}, {run['complete']} of {run['trials']} "
              f"trials complete, {run['hours']:.2f} hours of training")  # fmt: skip
    for group in found["groups"]:
        if group["sd"] is not None:
            write(f"{group['group']}, {group['runs']} runs: {group['mean']:.4f} ± {group['sd']:.4f}")
    write(f"page: {options.to}")
    return 0


def export(options: argparse.Namespace) -> int:
    from cvt_nas.export import check_repo_id, export, push
    from cvt_nas.report import accuracy_text
    from cvt_nas.results import in_int8
    from cvt_nas.run import RunFolder

    if options.push is not None:
        check_repo_id(options.push)
    elif options.private:
        raise ExportError("--private: is of what is uploaded; give --push USER/NAME with it")
    run, to = RunFolder.open(options.run), Path(options.to)
    result = export(
        run,
        options.pick,
        options.to,
        format=options.format,
        opset=options.opset,
        data=options.data,
        max_loss=options.max_loss,
        runtime=options.runtime,
        on_note=print_note,
    )
    int8 = json.loads((to / "int8.json").read_text(encoding="utf-8")) if (to / "int8.json").is_file() else None
    url = None if options.push is None else push(to, options.push, private=options.private)
    found = result.confirmation
    if options.json:
        more = {} if found is None else {"own_accuracy": result.own_accuracy, **found.to_json()}
        more |= {} if url is None else {"url": url}
        more |= {} if int8 is None else {"int8": int8}
        write(json.dumps({"arch_id": result.arch_id, "to": str(to), "accuracy": result.accuracy,
                          "params": result.cost.params, "flops": result.cost.flops, **more}))  # fmt: skip
        return 0
    as_ = None if found is None else found.runtime
    kind = "" if as_ is None else " in fp32"
    own = "" if found is None else f" ({result.own_accuracy:.4f} of these weights{kind})"
    equal = "; its logits equal those of the trained model" if int8 is None else ""
    score = in_int8(run.score_name, as_)
    write(f"{result.arch_id}: {score} {accuracy_text(result)}{own}, {result.cost.params:,} params, "
          f"{result.cost.flops:,} FLOPs{equal}")  # fmt: skip
    if int8 is not None:
        write(*_int8_lines(int8, run.score_name))
    if url is not None:
        write(f"uploaded: {url}")
    write(f"next: see {to / 'README.md'}, which shows how to load it")
    return 0


def _int8_lines(int8: Mapping[str, Any], score_name: str) -> list[str]:
    """Lines for people on the contents of `int8.json`."""
    (fp32_bytes, int8_bytes), (fp32_ms, int8_ms) = int8["num_bytes"], int8["ms"]
    lines = [f"{score_name} on {int8['num_images']:,} images of the search split: {int8['score']:.4f} in fp32"]
    lines += [
        f"    {judged['score']:.4f} in int8, in {judged['runtime']}"
        for judged in int8["judged"]
        if judged["score"] is not None
    ]
    return [
        *lines,
        f"{fp32_bytes / 1e6:.2f} MB in fp32, {int8_bytes / 1e6:.2f} in int8; {fp32_ms:.3g} ms and {int8_ms:.3g} for "
        f"one image, in {int8['runtime']}",
    ]
