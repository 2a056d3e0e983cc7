"""The command line. It contains only verbs.

The exit status is 0 for success, 1 for a failure such as a search that found nothing or a training that diverged, 2 for
a mistake of the user, and 130 after Ctrl-C. Mistakes are reported by a message without a traceback. If the reader of
the output has ended, the status is 1 without a message.
"""

from cvt_nas.cli.entry import main
