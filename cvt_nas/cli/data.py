"""The verbs for data sets: `check`, `init`, which writes a space file for one, and `pack`."""

import argparse
import dataclasses
import json
import re
from pathlib import Path

from cvt_nas.cli.output import command, operand, print_note, write
from cvt_nas.errors import SpaceFileError


def check(options: argparse.Namespace) -> int:
    from cvt_nas.data.report import check_set

    report = check_set(options.data, decode=options.decode, on_note=print_note)
    if options.json:
        write(json.dumps(report.to_json()))
    else:
        write(*report.lines())
    return 0 if report.is_usable else 1


def init(options: argparse.Namespace) -> int:
    from cvt_nas.init import begin
    from cvt_nas.run import check_target

    name = options.name or _name_of(options.data)
    to = Path(options.to or f"{name}.yaml")
    if to.exists():
        raise SpaceFileError([f"{to}: is there already; write elsewhere by --to FILE"])
    check_target(to)
    found = begin(
        options.data, name=name, hours=options.hours, like=options.like, init=options.init,
        measure=not options.no_measure, on_note=print_note,
    )  # fmt: skip
    try:
        with to.open("x", encoding="utf-8") as file:
            file.write(found.text)
    except OSError as error:
        raise SpaceFileError([f"{to}: cannot be written: {error.strerror}"]) from error
    words = ["cvt-nas", "search", "--space", operand(str(to))]
    if found.look.root is not None:
        words += ["--data", operand(str(options.data))]
    if options.init is not None:
        words += ["--init", operand(options.init)]
    if options.json:
        write(json.dumps({"to": str(to), **found.to_json(), "next": command(*words)}))
        return 0
    write(*found.lines(), f"wrote {to}", f"next: {command(*words)}")
    return 0


def _name_of(data: str) -> str:
    """A name for an experiment, made from the last part of a path, or from a name."""
    place = Path(data).resolve()
    stem = place.name if place.is_dir() else place.stem if place.exists() else data
    words = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")
    return words or "search"


def pack(options: argparse.Namespace) -> int:
    from cvt_nas.data.pack import QUALITY
    from cvt_nas.data.pack import pack as pack_folder

    found = pack_folder(
        Path(options.data), options.to, short_side=options.short_side, on_error=options.on_error, on_note=print_note
    )
    if options.json:
        write(json.dumps(dataclasses.asdict(found)))
        return 0
    mib = [size / 2**20 for size in (found.bytes_before, found.bytes_after)]
    write(
        f"{found.encoded:,} images encoded as JPEG of quality {QUALITY}, at most {options.short_side} pixels on the "
        f"shorter side, turned as their EXIF says, without metadata: a network sees slightly other pixels",
        f"{found.copied:,} that were small JPEG files keep their pixels, without metadata; {found.there:,} were there "
        f"already",
        *([f"{len(found.damaged):,} that cannot be read are left out:"] if found.damaged else []),
        *(f"  {path}: {why}" for path, why in found.damaged.items()),
        f"{mib[0]:,.1f} MiB before, {mib[1]:,.1f} after: {options.to}",
    )
    return 0
