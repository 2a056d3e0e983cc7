"""The command line: verbs, nothing else.

Exit status: 0 done, 1 failed, as a search that found nothing or a training that diverged, 2 a mistake of the user's,
with its message and no traceback; 130 after Ctrl-C. Where what reads the output has ended, the status is 1 in silence.
"""

from cvt_nas.cli.entry import main
