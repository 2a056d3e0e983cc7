"""Training of the shared weights of a space, at all sizes at once.

If a process group is initialised, all ranks train the same subnets, each on its share of the batch. Gradients are
averaged once a step, after all its subnets. DDP cannot do that, since each pass uses other weights.
"""

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cvt_nas.arch import ArchConfig
from cvt_nas.config import SupernetConfig
from cvt_nas.data import ImageData, seed_all
from cvt_nas.engine.checkpoint import Checkpoint
from cvt_nas.engine.criterion import criterion_of
from cvt_nas.engine.distillation import give_way, loss_of
from cvt_nas.engine.evaluation import autocast
from cvt_nas.engine.keeper import Keeper, Progress, batches_from, micro_batches_for, num_steps_of
from cvt_nas.engine.memory import Meter, MicroBatches, Part, Room, meter_of
from cvt_nas.engine.optimization import (
    State,
    TrainingState,
    average_over_ranks,
    ordered_sums,
    prepare_device,
    set_learning_rate,
)
from cvt_nas.engine.replay import Recorder, ReplayedPass, recorder_of
from cvt_nas.engine.setup import SharedWeights
from cvt_nas.engine.subnets import KINDS, Kind, Subnet, SubnetSampler
from cvt_nas.supernet import Supernet

_LEAST_RATIO = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class SupernetEpoch:
    """State after one epoch. See `Epoch` for other fields.

    Args:
        losses: Mean losses of the epoch for the `largest`, the `smallest` and the `random` subnets, as far as steps
            have them.
        supernet: The supernet, with averaged weights if EMA is on. Valid until the next epoch.
    """

    number: int
    losses: dict[str, float]
    num_rollbacks: int
    seconds: float
    supernet: Supernet


def train_supernet(
    shared: SharedWeights,
    data: ImageData,
    *,
    device: torch.device,
    seed: int,
    checkpoint: Checkpoint | None = None,
    initial: Callable[[Supernet], None] | None = None,
    stop: Callable[[], bool] = bool,
    meter: Meter | None = None,
    at_most: int | None = None,
    on_room: Callable[[Room], None] | None = None,
) -> Generator[SupernetEpoch, None, None]:
    """Trains shared weights from a fresh initialisation or from `checkpoint`, and yields after each epoch.

    The same seed gives the same weights on the same number of devices of the same kind, also after a restart at any
    step. If a loss or a weight is not finite, the weights go back to the end of the previous epoch, and continue with
    later images. If the last epoch has none left, it is restarted with other images.

    Args:
        data: Images of the classes that `shared` is trained on now.
        seed: Seed of initialisation, images, augmentation, drop path and subnets.
        initial: Sets the initial weights of the supernet if there is no checkpoint.
        stop: Called after each step, or every 20 steps with several ranks. If it returns True, the checkpoint is
            written and the training ends.
        device, checkpoint, meter, at_most, on_room: See `fit`. The largest subnet decides how many images go through
            all subnets at once.

    Yields:
        A `SupernetEpoch` after each epoch. If the checkpoint is complete, the last one is yielded again.

    Raises:
        DivergedError: There is no checkpoint to go back to, or the training went back three times already.
    """
    config = shared.config
    prepare_device(device)
    seed_all(seed)
    supernet = supernet_of(shared).to(device)
    num_steps = num_steps_of(config, data)
    state = TrainingState.of(
        supernet, config, device, num_steps=num_steps, criterion=criterion_of(config, data, device)
    )
    sampler = SubnetSampler(shared.drawn_from, config, seed=seed)
    greediest = sampler.greediest()
    keeper = Keeper(checkpoint, state, config, device)
    saved = keeper.load()
    if saved is None and initial is not None:
        initial(supernet)  # the first step copies them to the average
    progress = _Progress.of(saved, sampler, device)
    evaluated = _averaged(state) or supernet

    micro_batches = micro_batches_for(
        config, state, data, progress, device, meter=meter, at_most=at_most, on_room=on_room
    )
    has_fixed = config.sandwich and config.extremes == "all"
    record = recorder_of(device) if has_fixed and config.compile in ("auto", "graph") else None
    fixed = None
    if record is not None:
        fixed = _FixedSubnets(state, config, record, part=micro_batches.whole_part, meter=meter or meter_of(device))
    if progress.epoch >= shared.last_epoch:
        yield progress.epoch_done(evaluated)
        return
    keeper.start_clock(progress)
    if saved is None:
        keeper.save(progress)
    with contextlib.closing(data):  # ends processes that read images ahead
        while progress.epoch < shared.last_epoch:
            keeper.start_clock(progress)
            supernet.train()
            for images, targets in batches_from(progress, config, data, device, seed=seed, until=shared.last_epoch):
                set_learning_rate(state.optimizer, config, progress.epoch + progress.step / num_steps)
                subnets = sampler.draw(progress.epoch, progress.step)
                losses = _step(state, subnets, images, targets, config, micro_batches, greediest, fixed)
                progress.add(subnets, losses)
                progress.step += 1
                is_end = progress.step == num_steps and progress.epoch + 1 == shared.last_epoch
                if keeper.check(progress, num_steps=num_steps, begins_again=is_end, stop=stop):
                    return
            if progress.step == 0:
                continue
            progress.learn()
            progress.next_epoch()
            keeper.save(progress)
            yield progress.epoch_done(evaluated)


def _step(
    state: TrainingState,
    subnets: Sequence[Subnet],
    images: Float[Tensor, "batch channels height width"],
    targets: Tensor,
    config: SupernetConfig,
    micro_batches: MicroBatches,
    greediest: Sequence[Subnet],
    fixed: "_FixedSubnets | None" = None,
) -> list[Float[Tensor, ""]]:
    """Steps the optimizer on the mean loss of `subnets`, in which the largest has the weight `largest_weight`.

    Returns the detached loss of each subnet on the images of all ranks.

    No step takes more memory than one of the `greediest` subnets. `fixed` replays some subnets.
    """
    supernet = cast(Supernet, state.model)

    def probe(parts: Sequence[Part]) -> None:
        averaged = _averaged(state)
        with supernet.without_other_ranks(), contextlib.ExitStack() as stack:
            if averaged is not None:
                stack.enter_context(averaged.without_other_ranks())
            _backward(state, greediest, images, targets, config, parts)

    losses, of_largest = micro_batches.run(
        lambda parts: _backward(state, subnets, images, targets, config, parts, fixed), probe, len(images)
    )
    gradients = [*of_largest.values(), *(p.grad for p in supernet.parameters() if p.grad is not None)]
    means = torch.stack(losses)
    average_over_ranks([*gradients, means])
    for parameter, gradient in of_largest.items():  # over the images of all ranks
        give_way(gradient, parameter.grad)
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    state.step(config.clip_grad_norm)
    return list(means.unbind())


def _backward(
    state: TrainingState,
    subnets: Sequence[Subnet],
    images: Float[Tensor, "batch channels height width"],
    targets: Tensor,
    config: SupernetConfig,
    parts: Sequence[Part],
    fixed: "_FixedSubnets | None" = None,
) -> tuple[list[Float[Tensor, ""]], dict[nn.Parameter, Tensor]]:
    """Computes the gradient of the mean loss of `subnets`, weighted by `largest_weight`, over the images of `parts`.

    Returns:
        The detached loss of each subnet, and the largest's part of the gradient if it has to be projected. That part is
        then missing in the gradients of the parameters.
    """
    state.optimizer.zero_grad(set_to_none=True)
    losses, teacher = [], list[Tensor]()
    of_largest: dict[nn.Parameter, Tensor] = {}
    weights = [config.largest_weight if subnet.kind == "largest" else 1.0 for subnet in subnets]
    for subnet, weight in zip(subnets, weights, strict=True):
        divisor = sum(weights) / weight
        if fixed is not None and subnet.kind != "random" and len(parts) == 1 and parts[0].weight == 1:
            total, *answers = fixed(subnet, divisor, images, targets, *teacher)
        else:
            total, *answers = _pass(state, subnet, divisor, images, targets, teacher, config, parts)
        losses.append(total)
        if subnet.kind == "largest":
            teacher = _averaged_answers(state, subnet, images, config, parts) or answers
            if config.project_gradients:
                of_largest = {p: p.grad for p in state.model.parameters() if p.grad is not None}
                state.optimizer.zero_grad(set_to_none=True)
    return losses, of_largest


def _pass(
    state: TrainingState,
    subnet: Subnet,
    divisor: float,
    images: Float[Tensor, "batch channels height width"],
    targets: Tensor,
    teacher: Sequence[Float[Tensor, "part classes"]],
    config: SupernetConfig,
    parts: Sequence[Part],
) -> tuple[Tensor, ...]:
    """Adds the gradient of one of the subnets of a step. Returns its loss and its answers to parts, detached.

    Args:
        divisor: Sum of the weights of all subnets of the step, over the weight of this one.
        teacher: The largest's answers to each part; empty if there are none yet.
    """
    total, answers = torch.zeros((), device=images.device), []
    for number, part in enumerate(parts):
        with ordered_sums(images.device):
            with autocast(config, images.device):
                logits = state.model(images[part.rows], subnet.arch)
            logits = logits.float()
            loss = loss_of(logits, targets[part.rows], teacher[number] if teacher else None, config, state.criterion)
            loss = loss * part.weight
            state.scaler.scale(loss / divisor).backward()
        total += loss.detach()
        answers.append(logits.detach())
    return total, *answers


def _averaged(state: TrainingState) -> Supernet | None:
    return None if state.averaged is None else cast(Supernet, state.averaged.module)


def _averaged_answers(
    state: TrainingState,
    largest: Subnet,
    images: Float[Tensor, "batch channels height width"],
    config: SupernetConfig,
    parts: Sequence[Part],
) -> list[Float[Tensor, "part classes"]]:
    """Answers of the largest subnet with averaged weights to each part. Empty if the present weights are to answer.

    Before the first step there is no average yet, so the present weights answer. Batch norms use the images of the
    part, as in training.
    """
    averaged = _averaged(state)
    is_wanted = config.distil_from == "averaged" and config.distillation != "none"
    if not is_wanted or averaged is None or state.averaged is None or int(state.averaged.n_averaged) == 0:
        return []
    averaged.train()
    with torch.no_grad(), autocast(config, images.device):
        return [averaged(images[part.rows], largest.arch).float() for part in parts]


class _FixedSubnets:
    """Replays the passes of the subnets that every step has, the largest and the smallest, on a whole batch."""

    def __init__(
        self, state: TrainingState, config: SupernetConfig, record: Recorder, *, part: Part, meter: Meter | None
    ) -> None:
        self._state, self._config, self._part, self._record, self._meter = state, config, part, record, meter
        self._passes: dict[Kind, tuple[ArchConfig, ReplayedPass]] = {}

    def __call__(
        self, subnet: Subnet, divisor: float, images: Tensor, targets: Tensor, *teacher: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns the result of `_pass`, which is valid until the next step."""
        arch, replayed = self._passes.get(subnet.kind, (None, None))
        if replayed is None or arch != subnet.arch:  # the smallest changes when a choice is opened

            def run(images: Tensor, targets: Tensor, *teacher: Tensor) -> tuple[Tensor, ...]:
                return _pass(self._state, subnet, divisor, images, targets, teacher, self._config, [self._part])

            replayed = ReplayedPass(run, self._state.model, self._record, meter=self._meter)
            self._passes[subnet.kind] = subnet.arch, replayed
        return replayed(images, targets, *teacher)


@dataclass(kw_only=True)
class _Progress(Progress):
    """Position of the training of a supernet.

    Args:
        loss_sums, counts: Sum and count of each of `KINDS`.
        genomes, log_losses: Random subnets of the epoch, and the log of each loss over the largest's, if the sampler
            learns from them.
        losses: Mean loss of each kind in the last epoch.
    """

    sampler: SubnetSampler
    genomes: list[list[int]] = field(default_factory=list)
    log_losses: list[Tensor] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, saved: State | None, sampler: SubnetSampler, device: torch.device) -> "_Progress":
        if saved is None:
            return cls(loss_sums=torch.zeros(len(KINDS), device=device), counts=[0] * len(KINDS), sampler=sampler)
        sampler.load_plain(saved["sampler"])
        return cls(**{**saved, "sampler": sampler, "log_losses": list(saved["log_losses"].unbind())})

    def to_plain(self) -> State:
        log_losses = torch.stack(self.log_losses) if self.log_losses else torch.zeros(0)
        return {**Progress.to_plain(self), "log_losses": log_losses, "sampler": self.sampler.to_plain()}

    def add(self, subnets: Sequence[Subnet], losses: Sequence[Tensor]) -> None:
        for subnet, loss in zip(subnets, losses, strict=True):
            kind = KINDS.index(subnet.kind)
            self.loss_sums[kind] += loss
            self.counts[kind] += 1
            if self.sampler.is_learning and subnet.kind == "random":
                self.genomes.append(list(subnet.genome))
                # clamped, since a random subnet may be the largest
                self.log_losses.append((loss / losses[0]).clamp(min=_LEAST_RATIO).log())

    def forget_losses(self) -> None:
        Progress.forget_losses(self)
        self.genomes, self.log_losses = [], []

    def learn(self) -> None:
        """Ends an epoch: keeps its mean losses, and lets the sampler learn from them."""
        sums = self.loss_sums.tolist()
        self.losses = {
            kind: total / count for kind, total, count in zip(KINDS, sums, self.counts, strict=True) if count
        }
        self.sampler.learn(self.genomes, torch.stack(self.log_losses).tolist() if self.log_losses else [])

    def epoch_done(self, supernet: Supernet) -> SupernetEpoch:
        return SupernetEpoch(
            number=self.epoch,
            losses=self.losses,
            num_rollbacks=self.num_rollbacks,
            seconds=self.seconds,
            supernet=supernet,
        )


def supernet_of(shared: SharedWeights) -> Supernet:
    config = shared.config
    return Supernet(
        shared.space,
        drop_path=config.drop_path,
        drop_path_on_all=config.drop_path_on_all,
        kernel_maps=config.kernel_maps,
        own_norms=config.own_norms,
        own_convs=config.own_convs,
        sync_batch_norm=config.sync_batch_norm,
        regularised=shared.drawn_from.largest,
    )
