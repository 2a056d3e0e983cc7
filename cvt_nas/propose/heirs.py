"""Which candidate of a supernet is trained next.

Before anything is trained, inherited accuracies and costs order the candidates. Later, trainings correct what the model
of the search expects of the candidates that are left, since an inherited accuracy counts as one after epoch 0 of the
same Gaussian process (`curves`). The next candidate is then the one with the largest expected gain of hypervolume.

`benchmarks/heirs.py` measures what this gains on the CvT table.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from cvt_nas.propose.observations import Observation
from cvt_nas.propose.surrogate import Surrogate
from cvt_nas.space import Genome

MIN_CORRECTING = 6  # complete trainings; before that, the order of inherited accuracies was as good


def next_anchor(
    anchors: Mapping[str, Genome], heirs: Collection[str], observations: Sequence[Observation], surrogate: Surrogate
) -> tuple[str, Genome, bool]:
    """The anchor that is trained next: its name, its genome, and whether the surrogate chose it.

    Args:
        anchors: Architectures that are left, by name, in the order in which they are trained without the surrogate.
        heirs: Names of the ranked candidates among them. They come last, and the surrogate may change their order.
        observations: Observations of the trials so far, and of the inherited accuracies of `anchors`.
    """
    first, genome = next(iter(anchors.items()))
    inherited = {o.genome for o in observations if o.inherited is not None}
    ranked = [(name, genome) for name, genome in anchors.items() if name in heirs and genome in inherited]
    num_complete = sum(o.status == "complete" for o in observations)
    if first not in heirs or not ranked or num_complete < MIN_CORRECTING:
        return first, genome, False
    gains = surrogate.gains(observations, [genome for _, genome in ranked])
    return *ranked[int(np.argmax(gains))], True
