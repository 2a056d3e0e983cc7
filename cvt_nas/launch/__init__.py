"""Everything that Ray does: clusters and slots, trials by Tune, ranks of one training, client mode."""

import cvt_nas.launch.ranks  # noqa: F401  sets Ray's environment before anything here imports Ray
