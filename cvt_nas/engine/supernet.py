"""The shared weights of a space, trained at every size at once, and what a subnet inherits of them.

Where a process group is initialised, all ranks train the same subnets, each on its share of the batch. The gradients
are averaged once a step, after all its subnets, which DDP cannot do where each pass uses other weights.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_of
from torch import Tensor, nn
from torch.nn import functional as F

from cvt_nas.arch import ArchConfig
from cvt_nas.config import SupernetConfig
from cvt_nas.data import Batch, ImageData, Split, seed_all
from cvt_nas.engine.evaluation import EVAL_BATCH_SIZE, autocast, count_right, recalibrate_batch_norm
from cvt_nas.engine.keeper import Keeper, Progress, batches_from, micro_batches_for, num_steps_of
from cvt_nas.engine.memory import Meter, MicroBatches, Part, Room, meter_of
from cvt_nas.engine.optimization import (
    DivergedError,
    TrainingState,
    average_over_ranks,
    averaged_model,
    drop_checkpoints,
    from_first_rank,
    is_out_of_memory,
    optimizer_of,
    prepare_device,
    rank_and_world_size,
    set_learning_rate,
)
from cvt_nas.engine.replay import Recorder, ReplayedPass, recorder_of
from cvt_nas.engine.setup import SharedWeights, TrainingSetup
from cvt_nas.engine.subnets import KINDS, Kind, Subnet, SubnetSampler
from cvt_nas.errors import ArchError, StorageError, first_line
from cvt_nas.model import CvT
from cvt_nas.run import exists, fetch, push, write_atomically
from cvt_nas.supernet import Supernet, extract, lent_weights

_MAX_RATIO = 5.0  # of probabilities, q over p, in an alpha-divergence: what the paper clips at
_LEAST_RATIO = 1e-6
_MAX_KEPT_BYTES = 2**31  # of a CPU's memory: 14,000 images, in colour at 224 pixels
_KEPT_SHARE = 4  # of a GPU's free memory, one part in so many: trials that share one open it one after the other


@dataclass(frozen=True, kw_only=True, slots=True)
class SupernetEpoch:
    """State after one epoch.

    Args:
        number: From 1.
        losses: Means over the epoch, of the `largest`, the `smallest` and the `random` subnets of each step; without
            those that a step has none of.
        num_rollbacks: Times that the training went back to a checkpoint, since a loss or a weight was not finite.
        seconds: Of all epochs so far.
        supernet: The averaged weights where EMA is on. Valid until the next epoch.
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
    checkpoint: Path | None = None,
    initial: Callable[[], Mapping[str, Tensor]] | None = None,
    stop: Callable[[], bool] = bool,
    meter: Meter | None = None,
    at_most: int | None = None,
    on_room: Callable[[Room], None] | None = None,
) -> Generator[SupernetEpoch, None, None]:
    """Trains shared weights from a fresh initialisation, or on from `checkpoint`, an epoch at a time.

    The same seed gives the same weights on as many devices of the same kind, also across a restart, at whichever step.
    A loss or a weight that is not finite takes the weights back to the end of the epoch before, from where they go on
    with later images. Where the last epoch has none left, it is begun again with other images.

    Args:
        data: Of the classes that `shared` is trained on now.
        device: Where to train; the current rank's, where there are several.
        seed: Of initialisation, images, augmentation, drop path and subnets.
        checkpoint: File that is read if it is there, and replaced after each epoch and every
            `supernet.checkpoint_minutes`.
        initial: Tensors to begin with, where there is no checkpoint; see `Supernet.insert_state`.
        stop: Asked after each step, or every 20 where there are several ranks; where it says so, the checkpoint is
            written, and the training ends there.
        meter, at_most, on_room: See `fit`. The largest subnet decides how many images go through at
            once, for all of them.

    Yields:
        One `SupernetEpoch` after each; the last one again where the checkpoint is complete already.

    Raises:
        ArchError: `initial` has a weight that the supernet has not.
        DivergedError: There is no checkpoint to go back to, or it went back three times already.
    """
    config = shared.config
    prepare_device(device)
    seed_all(seed)
    supernet = _supernet_of(shared).to(device)
    num_steps = num_steps_of(config, data)
    averaged = averaged_model(supernet, config, num_steps=num_steps)
    state = TrainingState(
        model=supernet,
        averaged=averaged,
        optimizer=optimizer_of(supernet, config, device),
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16" and device.type == "cuda"),
    )
    sampler = SubnetSampler(shared.drawn_from, config, seed=seed)
    greediest = sampler.greediest()
    keeper = Keeper(checkpoint, state, config, device)
    saved = keeper.load()
    if saved is None and initial is not None:
        supernet.insert_state(initial())  # the first step gives them to the average, too
    progress = _Progress.of(saved, sampler, device)
    evaluated = supernet if averaged is None else cast(Supernet, averaged.module)

    micro_batches = micro_batches_for(
        config, state, data, progress, device, meter=meter, at_most=at_most, on_room=on_room
    )
    record = recorder_of(device) if config.compile in ("auto", "graph") else None
    fixed = None
    if record is not None:
        fixed = _FixedSubnets(state, config, record, part=micro_batches.whole_part, meter=meter or meter_of(device))
    if progress.epoch >= shared.last_epoch:
        yield progress.epoch_done(evaluated)
        return
    keeper.start_clock(progress)
    if saved is None:
        keeper.save(progress)
    with contextlib.closing(data):  # the processes that read images ahead end with the training
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
    """One step of the optimizer on the mean loss of `subnets`; their losses, detached, on the images of all ranks.

    Args:
        greediest: Subnets of a step that takes as much memory as any can.
        fixed: Replays some of them; None where nothing is replayed.
    """
    supernet = cast(Supernet, state.model)

    def probe(parts: Sequence[Part]) -> None:
        with supernet.without_other_ranks():
            _backward(state, greediest, images, targets, config, parts)

    losses, of_largest = micro_batches.run(
        lambda parts: _backward(state, subnets, images, targets, config, parts, fixed), probe, len(images)
    )
    gradients = [*of_largest.values(), *(p.grad for p in supernet.parameters() if p.grad is not None)]
    means = torch.stack(losses)
    average_over_ranks([*gradients, means])
    for parameter, gradient in of_largest.items():  # of all ranks' images, so that two ranks are one with both batches
        give_way(gradient, parameter.grad)
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    if config.clip_grad_norm is not None:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(supernet.parameters(), config.clip_grad_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.averaged is not None:
        state.averaged.update_parameters(supernet)
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
    """Leaves the gradient of the mean loss of `subnets` over the images of `parts`.

    Returns:
        The loss of each, detached; and where it has to give way to the others, the largest's part of the gradient,
        which is then not in what is left.
    """
    state.optimizer.zero_grad(set_to_none=True)
    losses, teacher = [], list[Tensor]()
    of_largest: dict[nn.Parameter, Tensor] = {}
    for subnet in subnets:
        if fixed is not None and subnet.kind != "random" and len(parts) == 1 and parts[0].weight == 1:
            total, *answers = fixed(subnet, len(subnets), images, targets, *teacher)
        else:
            total, *answers = _pass(state, subnet, len(subnets), images, targets, teacher, config, parts)
        losses.append(total)
        if subnet.kind == "largest":
            teacher = answers
            if config.project_gradients:
                of_largest = {p: p.grad for p in state.model.parameters() if p.grad is not None}
                state.optimizer.zero_grad(set_to_none=True)
    return losses, of_largest


def _pass(
    state: TrainingState,
    subnet: Subnet,
    num_subnets: int,
    images: Float[Tensor, "batch channels height width"],
    targets: Tensor,
    teacher: Sequence[Float[Tensor, "part classes"]],
    config: SupernetConfig,
    parts: Sequence[Part],
) -> tuple[Tensor, ...]:
    """Adds the gradient of one of the `num_subnets` of a step.

    Args:
        teacher: The largest's answers to each part; none where there are none yet.

    Returns:
        Its loss, and its answers to each part, detached.
    """
    total, answers = torch.zeros((), device=images.device), []
    for number, part in enumerate(parts):
        with autocast(config, images.device):
            logits = state.model(images[part.rows], subnet.arch)
        logits = logits.float()
        loss = _loss_of(logits, targets[part.rows], teacher[number] if teacher else None, config)
        loss = loss * part.weight
        state.scaler.scale(loss / num_subnets).backward()
        total += loss.detach()
        answers.append(logits.detach())
    return total, *answers


class _FixedSubnets:
    """Replays the passes of the subnets that each step has again: the largest and the smallest.

    Args:
        part: A whole batch.
        record, meter: See `ReplayedPass`.
    """

    def __init__(
        self, state: TrainingState, config: SupernetConfig, record: Recorder, *, part: Part, meter: Meter | None
    ) -> None:
        self._state, self._config, self._part, self._record, self._meter = state, config, part, record, meter
        self._passes: dict[Kind, tuple[ArchConfig, ReplayedPass]] = {}

    def __call__(
        self, subnet: Subnet, num_subnets: int, images: Tensor, targets: Tensor, *teacher: Tensor
    ) -> tuple[Tensor, ...]:
        """What `_pass` returns, valid until the next step."""
        arch, replayed = self._passes.get(subnet.kind, (None, None))
        if replayed is None or arch != subnet.arch:  # the smallest is another once a choice is opened

            def run(images: Tensor, targets: Tensor, *teacher: Tensor) -> tuple[Tensor, ...]:
                return _pass(
                    self._state, subnet, num_subnets, images, targets, teacher, self._config, [self._part]
                )  # fmt: skip

            replayed = ReplayedPass(run, self._state.model, self._record, meter=self._meter)
            self._passes[subnet.kind] = subnet.arch, replayed
        return replayed(images, targets, *teacher)


def _loss_of(
    logits: Float[Tensor, "batch classes"],
    targets: Tensor,
    teacher: Float[Tensor, "batch classes"] | None,
    config: SupernetConfig,
) -> Float[Tensor, ""]:
    """Of the subnet whose `logits` these are; it is the largest, or there is none, where `teacher` is None."""
    weight = 0.0 if teacher is None or config.distillation == "none" else config.distillation_weight
    loss = logits.new_zeros(())
    if weight < 1:
        smoothing = config.label_smoothing if teacher is None else 0.0  # small subnets underfit as they are
        loss = (1 - weight) * F.cross_entropy(logits, targets, label_smoothing=smoothing)
    if teacher is None or weight == 0:
        return loss
    if config.distillation == "alpha":
        return loss + weight * alpha_divergence(logits, teacher)
    return loss + weight * F.kl_div(logits.log_softmax(dim=1), teacher.softmax(dim=1), reduction="batchmean")


def alpha_divergence(
    logits: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """For each image the greater of two divergences of the teacher's p from q: alpha = -1 and alpha = 1.

    `E_q[(p / q) ** alpha - 1] / (alpha (alpha - 1))`, which punishes a q that covers too much where alpha is -1, and
    one that covers too little where it is 1, then being the Kullback-Leibler divergence. Its gradient is
    `-E_q[(p / q) ** alpha / alpha * grad log q]`; at -1 the power is clipped, since it knows no bounds.

    Source: Wang et al. 2021, arXiv:2102.07954, section 4.
    """
    log_q, log_p = logits.log_softmax(dim=1), teacher.log_softmax(dim=1)
    p, q = log_p.exp(), log_q.detach().exp()
    inverse = (log_q.detach() - log_p).exp().clamp(max=_MAX_RATIO)
    values = torch.stack([(p * (log_p - log_q.detach())).sum(dim=1), (q * (inverse - 1)).sum(dim=1) / 2])
    gradients = torch.stack([-(p * log_q).sum(dim=1), (q * inverse * log_q).sum(dim=1)])
    chosen = values.argmax(dim=0, keepdim=True)
    value, gradient = (found.gather(0, chosen).mean() for found in (values, gradients))
    return value + gradient - gradient.detach()


def give_way(gradient: Tensor, other: Tensor | None) -> None:
    """Takes from `gradient`, in place, what is against `other`; nothing where they agree.

    Source: Gong et al. 2022, "NASViT", openreview.net/forum?id=Qaw16njk6L.
    """
    if other is None:
        return
    along, norm = (gradient * other).sum(), other.square().sum()
    gradient.sub_(other * torch.where(along < 0, along / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0))


@dataclass(kw_only=True)
class _Progress(Progress):
    """Where a training is.

    Args:
        loss_sums, counts: Of each of `KINDS`.
        genomes, log_losses: Random subnets of the epoch, each with the log of its loss over the largest's, where the
            sampler learns from them.
        losses: Of the last epoch, the mean of each kind.
    """

    sampler: SubnetSampler
    genomes: list[list[int]] = field(default_factory=list)
    log_losses: list[Tensor] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, saved: dict[str, Any] | None, sampler: SubnetSampler, device: torch.device) -> "_Progress":
        if saved is None:
            return cls(loss_sums=torch.zeros(len(KINDS), device=device), counts=[0] * len(KINDS), sampler=sampler)
        sampler.load_plain(saved["sampler"])
        return cls(**{**saved, "sampler": sampler, "log_losses": list(saved["log_losses"].unbind())})

    def to_plain(self) -> dict[str, Any]:
        log_losses = torch.stack(self.log_losses) if self.log_losses else torch.zeros(0)
        return {**Progress.to_plain(self), "log_losses": log_losses, "sampler": self.sampler.to_plain()}

    def add(self, subnets: Sequence[Subnet], losses: Sequence[Tensor]) -> None:
        for subnet, loss in zip(subnets, losses, strict=True):
            kind = KINDS.index(subnet.kind)
            self.loss_sums[kind] += loss
            self.counts[kind] += 1
            if self.sampler.is_learning and subnet.kind == "random":
                self.genomes.append(list(subnet.genome))
                # clamped: a subnet that happens to be the largest loses nothing
                self.log_losses.append((loss / losses[0]).clamp(min=_LEAST_RATIO).log())

    def forget_losses(self) -> None:
        Progress.forget_losses(self)
        self.genomes, self.log_losses = [], []

    def learn(self) -> None:
        """At the end of an epoch: what its losses were, and what the sampler makes of them."""
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


def supernet_reports(
    setup: TrainingSetup,
    *,
    device: torch.device,
    seed: int,
    initial: Path | None = None,
    at_most: int | None = None,
) -> Generator[dict[str, Any], None, None]:
    """`train_supernet` of `setup.shared`, as plain values that travel between processes.

    Its weights are in the folder before the last report is yielded, and its checkpoint, where nothing is left to train,
    is not any more. Where the weights are there already, there is only that report.

    Args:
        initial: Weights to begin with; see `model.read_weights`.
        at_most: See `MicroBatches`.

    Yields:
        After each epoch `epoch, losses, num_rollbacks, seconds, status`, and what `Room` has; status is `running`, or
        in a last report `diverged`, `oom` or, where nothing more can be written, `storage`, then with a `reason`.
    """
    shared = setup.shared
    assert shared is not None, "the caller knows that there is a supernet"
    torch.set_num_threads(setup.num_threads)
    run = setup.run
    rank, world_size = rank_and_world_size()
    checkpoint = run.supernet_checkpoint_path
    report: dict[str, Any] = {"epoch": 0, "losses": {}, "num_rollbacks": 0, "seconds": 0.0, "status": "running"}
    is_whole = shared.last_epoch == shared.config.epochs
    is_there = rank == 0 and exists(setup.weights_path)
    if from_first_rank(is_there, device):  # a worker died between that and its last report
        if rank == 0 and setup.weights_path.exists():  # it may have died before they were mirrored
            push(setup.weights_path)
        if is_whole and rank == 0:
            drop_checkpoints(checkpoint)
        yield {**report, "epoch": shared.last_epoch}
        return
    data = setup.open_data()

    def told(room: Room) -> None:
        report.update(room.to_plain(), note=room.note)

    try:
        for epoch in train_supernet(
            shared,
            data,
            device=device,
            seed=seed,
            checkpoint=checkpoint,
            initial=None
            if initial is None
            else lambda: lent_weights(shared.space, initial, classes=data.class_names)[0],
            stop=run.is_supernet_stopped,
            meter=meter_of(device, setup.memory_share),
            at_most=at_most,
            on_room=told,
        ):
            report |= {"epoch": epoch.number, "losses": epoch.losses, "num_rollbacks": epoch.num_rollbacks}
            report["seconds"] = epoch.seconds
            if epoch.number == shared.last_epoch and rank == 0:
                save_supernet(epoch.supernet, setup.weights_path)
                if is_whole:
                    drop_checkpoints(checkpoint)
            yield dict(report)
    except DivergedError as error:
        yield {**report, "status": "diverged", "reason": str(error)}
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        yield {**report, "status": "oom", "reason": first_line(error)}
        if world_size > 1:
            raise  # the other ranks wait for this one, until it dies
    except StorageError as error:
        yield {**report, "status": "storage", "reason": f"{error.strerror}: {error.filename}"}
        if world_size > 1:
            raise


def open_supernet(shared: SharedWeights, path: Path) -> Supernet:
    """The supernet whose weights `save_supernet` wrote, on the CPU.

    Raises:
        ArchError: The file is missing, or of another space.
    """
    supernet = _supernet_of(shared)
    try:
        supernet.load_state_dict(load_file(path))
    except (OSError, RuntimeError) as error:
        raise ArchError(f"{path}: {first_line(error)}") from error
    return supernet.eval()


def save_supernet(supernet: Supernet, path: Path) -> None:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in supernet.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(safetensors_of(state)))


def _supernet_of(shared: SharedWeights) -> Supernet:
    config = shared.config
    return Supernet(
        shared.space,
        drop_path=config.drop_path,
        drop_path_on_all=config.drop_path_on_all,
        kernel_maps=config.kernel_maps,
        own_norms=config.own_norms,
        sync_batch_norm=config.sync_batch_norm,
        regularised=shared.drawn_from.largest,
    )


class Inheritance:
    """Accuracies of subnets on the search split, with the weights that they inherit.

    Args:
        supernet: On `device`; not changed.
        config: Section `supernet` of the space file.
    """

    def __init__(self, supernet: Supernet, config: SupernetConfig, data: ImageData, device: torch.device) -> None:
        self._supernet, self._config, self._data, self._device = supernet, config, data, device
        num_batches = math.ceil(config.calibration_images / EVAL_BATCH_SIZE)
        batches = itertools.islice(self._batches("train"), num_batches)
        self._calibration = [images for images, _ in batches]  # of 2,048 in colour at 224 pixels, 294 MiB
        self._search: list[Batch] = []
        free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
        self._max_kept_bytes = _MAX_KEPT_BYTES if free_bytes is None else free_bytes // _KEPT_SHARE

    def _batches(self, split: Split, first: int = 0) -> Iterator[Batch]:
        """As bytes, without augmentation."""
        return self._data.eval_batches(
            split, batch_size=EVAL_BATCH_SIZE, device=self._device, shuffled=True, first=first, as_bytes=True
        )

    def _search_batches(self) -> Iterator[Batch]:
        """The first of them, as many as memory is for, are kept for all subnets."""
        yield from self._search
        first = len(self._search)
        if first * EVAL_BATCH_SIZE >= self._data.num_images("search"):
            return
        kept_bytes = sum(images.nbytes for images, _ in self._search)
        for number, batch in enumerate(self._batches("search", first), start=first):
            kept_bytes += batch[0].nbytes
            if number == len(self._search) and kept_bytes <= self._max_kept_bytes:
                self._search.append(batch)
            yield batch

    def model(self, arch: ArchConfig) -> CvT:
        """The subnet as a plain model, its batch norms measured on training images, in eval mode."""
        model = extract(self._supernet, arch)
        recalibrate_batch_norm(model, self._calibration, self._config, self._data.prepared)
        return model

    @torch.inference_mode()
    def accuracy(
        self, arch: ArchConfig, *, bar: float | None = None, num_screening_images: int = 0
    ) -> tuple[float, int]:
        """Fraction that is right of the images that were looked at, and their number.

        Args:
            bar: Where it cannot be reached any more, by three standard errors, the rest is not looked at.
            num_screening_images: Before so many, the same for all subnets, nothing is concluded.
        """
        model = self.model(arch)
        num_right, num_images = torch.zeros((), device=self._device), 0
        for images, labels in self._search_batches():
            num_right += count_right(model, images, labels, self._config, self._data.prepared)
            num_images += len(images)
            if bar is not None and num_images >= num_screening_images:
                share = num_right.item() / num_images
                if share + 3 * math.sqrt(max(share * (1 - share), 1 / num_images) / num_images) < bar:
                    break
        return num_right.item() / num_images, num_images


def open_inheritance(setup: TrainingSetup, device: torch.device) -> Inheritance:
    """What the trials of `setup` inherit, on `device`. A worker that goes from trial to trial opens it once.

    Raises:
        ArchError: The run folder has no weights of a supernet, or those of another space.
    """
    assert setup.shared is not None, "the caller knows that there is a supernet"
    path = setup.weights_path
    if not path.exists():
        fetch(path)
    written = path.stat().st_mtime_ns if path.exists() else None  # another run may take the place of one
    key = (path, written, setup.data, setup.data_root, device)
    if key not in _OPEN:
        supernet = open_supernet(setup.shared, path).to(device)
        _OPEN.clear()
        _OPEN[key] = Inheritance(supernet, setup.shared.config, setup.open_data(), device)
    return _OPEN[key]


_OPEN: dict[Any, Inheritance] = {}
