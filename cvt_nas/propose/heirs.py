"""Which candidate of a supernet is trained next.

The cheapest of the best candidates come first: they take little time, and no other network can take their end of the
front. Their trainings correct what the model of the search expects of the candidates that are left, since an inherited
accuracy counts as one after epoch 0 of the same Gaussian process (`curves`). The next candidate is then the one with
the largest expected gain of hypervolume.

`benchmarks/heirs.py` measures what this gains on four tables.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from cvt_nas.propose.observations import Observation
from cvt_nas.propose.surrogate import Surrogate
from cvt_nas.space import Genome

MIN_COMPLETE = 3  # trials, before the model chooses
NUM_BEST = 12  # candidates, of which the cheapest are trained until then


def next_anchor(
    anchors: Mapping[str, Genome], heirs: Sequence[str], observations: Sequence[Observation], surrogate: Surrogate
) -> tuple[str, Genome, bool]:
    """The anchor that is trained next: its name, its genome, and whether the surrogate chose it.

    Args:
        anchors: Architectures that are left, by name, in the order in which they are trained without the surrogate.
        heirs: Names of all ranked candidates, best first. Those that are left are the last of `anchors`.
        observations: Observations of the trials so far, and of the inherited accuracies of `anchors`.
    """
    first, genome = next(iter(anchors.items()))
    inherited = {o.genome for o in observations if o.inherited is not None}
    ranked = {name: anchors[name] for name in heirs if name in anchors and anchors[name] in inherited}
    if first not in heirs or not ranked:
        return first, genome, False
    if sum(o.status == "complete" for o in observations) < MIN_COMPLETE:
        best = [name for name in heirs[:NUM_BEST] if name in ranked] or list(ranked)[:1]
        costs = surrogate.scaled_costs([ranked[name] for name in best]).sum(axis=1)
        cheapest = best[int(np.argmin(costs))]
        return cheapest, ranked[cheapest], False
    names = list(ranked)
    chosen = names[int(np.argmax(surrogate.gains(observations, list(ranked.values()))))]
    return chosen, ranked[chosen], True
