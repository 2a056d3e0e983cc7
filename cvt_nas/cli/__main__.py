"""Entry point of `python -m cvt_nas.cli`."""

import sys

from cvt_nas.cli import main

sys.exit(main())
