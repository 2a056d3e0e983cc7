"""The command line: verbs, nothing else.

Exit status: 0 done, 1 failed, 2 a mistake of the user's, with its message and no traceback; 130 after Ctrl-C.
"""

import sys
from collections.abc import Sequence

from cvt_nas.cli.arguments import build_parser
from cvt_nas.errors import CvtNasError, StorageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `cvt-nas`; returns the exit status."""
    options = build_parser().parse_args(arguments)
    try:
        return options.verb(options)
    except (CvtNasError, StorageError) as error:
        print(f"cvt-nas: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cvt-nas: interrupted", file=sys.stderr)
        return 130
