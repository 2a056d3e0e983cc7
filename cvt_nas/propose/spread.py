"""How many GPUs each trial gets at the end of a race, when fewer trials are left than there are slots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_LEAST_SHARE = 16  # images of a batch on each GPU, which batch norm needs; see `training.activation_checkpointing`
_WORTH_SECONDS = 60.0  # to begin again on other workers takes half a minute


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Divides GPUs among the trials that are left.

    Args:
        num_gpus: How many there are; called each time, since a cluster may lose some.
        gpus_per_trial: What a trial has as long as all slots are busy; a fraction shares one.
        batch_size: Images of a step, which a trial's GPUs share equally.
    """

    num_gpus: Callable[[], int]
    gpus_per_trial: float
    batch_size: int

    def gpus_for(self, others: Sequence[float], num_waiting: int = 0) -> float:
        """GPUs of a trial that begins now: its fair share of all, as far as they are idle beside those of the `others`
        that run. `num_waiting` more are about to begin."""
        num_gpus = self.num_gpus()
        # two that have a fraction each may be on different GPUs
        idle = num_gpus - sum(max(gpus, 1) for gpus in others)
        share = min(int(idle) // (1 + num_waiting), num_gpus // (1 + num_waiting + len(others)))
        most = min(share, self.batch_size // _LEAST_SHARE)
        divisors = (number for number in range(most, 1, -1) if self.batch_size % number == 0)
        return max(next(divisors, 0), self.gpus_per_trial)

    def is_worth_it(self, gpus: float, more: float, *, seconds_left: float) -> bool:
        """Whether a trial with `gpus` that would train for `seconds_left` is to begin again with `more`."""
        return more > gpus and seconds_left * (1 - gpus / more) > _WORTH_SECONDS
