"""Number of GPUs for each trial at the end of a race, when fewer trials are left than there are slots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_LEAST_SHARE = 16  # least images of a batch on each GPU, for batch norm; see `training.activation_checkpointing`
_WORTH_SECONDS = 60.0  # least gain of a restart on other workers, which takes half a minute


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Divides GPUs among the trials that are left.

    Args:
        num_gpus: Returns the number of GPUs. It is called each time, since a cluster may lose some.
        gpus_per_trial: GPUs of a trial while all slots are busy. With a fraction, trials share a GPU.
        batch_size: Images of a step, which are divided equally among the GPUs of a trial.
    """

    num_gpus: Callable[[], int]
    gpus_per_trial: float
    batch_size: int

    def gpus_for(self, others: Sequence[float], num_waiting: int = 0) -> float:
        """GPUs of a trial that begins now: its fair share of all GPUs, but no more than are idle.

        Args:
            others: GPUs of each other running trial.
            num_waiting: Number of further trials that are about to begin.
        """
        num_gpus = self.num_gpus()
        # two trials with a fraction of a GPU each may be on different GPUs
        idle = num_gpus - sum(max(gpus, 1) for gpus in others)
        share = min(int(idle) // (1 + num_waiting), num_gpus // (1 + num_waiting + len(others)))
        most = min(share, self.batch_size // _LEAST_SHARE)
        divisors = (number for number in range(most, 1, -1) if self.batch_size % number == 0)
        return max(next(divisors, 0), self.gpus_per_trial)

    def is_worth_it(self, gpus: float, more: float, *, seconds_left: float) -> bool:
        """Whether a trial with `gpus` GPUs and `seconds_left` seconds to train should restart with `more` GPUs."""
        return more > gpus and seconds_left * (1 - gpus / more) > _WORTH_SECONDS
