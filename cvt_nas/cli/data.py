"""The verbs for data sets: one looks at them, one encodes a folder of images once more."""

import argparse
import dataclasses
import json
from pathlib import Path

from cvt_nas.cli.output import print_note, write


def check(options: argparse.Namespace) -> int:
    from cvt_nas.data.report import check_set

    report = check_set(options.data, decode=options.decode, on_note=print_note)
    if options.json:
        write(json.dumps(report.to_json()))
    else:
        write(*report.lines())
    return 0 if report.is_usable else 1


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
        f"{found.copied:,} that were small JPEG files are the same bytes; {found.there:,} were there already",
        *([f"{len(found.damaged):,} that cannot be read are left out:"] if found.damaged else []),
        *(f"  {path}: {why}" for path, why in found.damaged.items()),
        f"{mib[0]:,.1f} MiB before, {mib[1]:,.1f} after: {options.to}",
    )
    return 0
