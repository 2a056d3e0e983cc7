"""Corrects inherited accuracies with a few trainings. The result is the accuracy of each network when trained alone.

The model is the same as in a search (`curves`). An inherited accuracy is an observation before the first epoch, and the
accuracy of a network trained alone is an observation at the end. So the inherited accuracy counts as far as the trained
networks confirm it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from cvt_nas.propose.observations import Observation
from cvt_nas.propose.surrogate import Surrogate
from cvt_nas.results import Correction, kendall
from cvt_nas.space import Genome, GenomeSpace

NUM_SPLITS = 20
_MIN_KNOWN, _MIN_LEFT_OUT = 12, 4


def corrected(
    space: GenomeSpace, observations: Sequence[Observation], genomes: Sequence[Genome], *, seed: int
) -> Float[np.ndarray, " genomes"]:
    """Expected accuracies of networks when trained like those that were.

    Args:
        observations: Networks with `inherited`. The curve of a trained one holds one accuracy.
        genomes: Networks, observed or not.
    """
    return _surrogate(space, seed).expect(observations, genomes)


def judge_correction(
    space: GenomeSpace, sample: Sequence[Observation], more: Sequence[Observation], *, seed: int
) -> Correction | None:
    """How much better the correction ranks networks whose training it has not seen, in random splits of `sample`.

    Each split leaves out the trainings of a third of the sample. All inherited accuracies are known. The result is None
    for a sample below 12 networks.

    Args:
        sample: Networks that were trained, drawn at random.
        more: Other networks, trained or not. The model may know them, but it is not judged by them.
    """
    num_left_out = max(len(sample) // 3, _MIN_LEFT_OUT)
    if len(sample) < _MIN_KNOWN:
        return None
    surrogate, rng = _surrogate(space, seed), np.random.default_rng(seed)
    truth = np.array([each.curve[-1] for each in sample])
    inherited = np.array([each.inherited for each in sample])
    taus = []
    for _ in range(NUM_SPLITS):
        left_out = rng.permutation(len(sample))[:num_left_out]
        known = [
            replace(each, curve=(), status="stopped") if index in left_out else each
            for index, each in enumerate(sample)
        ]
        expected = surrogate.expect([*known, *more], [sample[index].genome for index in left_out])
        taus.append((kendall(inherited[left_out], truth[left_out]), kendall(expected, truth[left_out])))
    ours, theirs = np.mean(taus, axis=0)
    num_more = sum(bool(each.curve) for each in more)
    return Correction(
        num_trainings=len(sample) - num_left_out + num_more, num_splits=NUM_SPLITS, inherited=float(ours),
        corrected=float(theirs),
    )  # fmt: skip


def _surrogate(space: GenomeSpace, seed: int) -> Surrogate:
    return Surrogate(space, costs=["params", "flops"], num_epochs=1, seed=seed)
