"""What carries a training over kills and over numbers that are not finite: real processes, killed in mid-epoch."""

import dataclasses
import itertools
import math
import multiprocessing
import shutil
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from cvt_nas.config import AugmentConfig, Experiment
from cvt_nas.data import ImageData
from cvt_nas.engine import (
    Checkpoint,
    DivergedError,
    Epoch,
    SharedWeights,
    TrainingSetup,
    evaluate,
    fit,
    progress_reports,
    train_supernet,
)
from cvt_nas.engine.keeper import Keeper, Progress
from cvt_nas.engine.optimization import TrainingState
from cvt_nas.engine.training import _step
from cvt_nas.model import CvT
from cvt_nas.run import RunFolder
from killed import (
    ALWAYS,
    ARCH,
    CPU,
    FEW,
    NEVER,
    bits_of,
    killed,
    on_ranks,
    open_digits,
    spoil,
    statistics_of,
    supernet_on_ranks,
)
from test_engine import setup_for, tiny_arch, train, training, weights_of
from test_supernet_training import SPACE, Poisoned, config


@pytest.fixture(scope="module")
def data() -> ImageData:
    return open_digits(FEW)


@pytest.fixture(scope="module")
def short() -> ImageData:
    """Four batches of 16."""
    return open_digits(0.06)


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        assert same, name


def clean_processes() -> ForkServerContext:
    """Each is forked from one that has imported what it needs and nothing else: that takes it six seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cvt_nas.engine", "sklearn.datasets", "torch._dynamo"])
    return context


def run_processes(target: Any, *arguments: Any, number: int = 1) -> list[int | None]:
    """Exit codes of `number` processes, which run `target(*arguments, rank, number)`."""
    context = clean_processes()
    processes = [context.Process(target=target, args=(*arguments, rank, number)) for rank in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


@pytest.mark.parametrize("kind", ["trial", "supernet"])
def test_a_training_that_is_killed_in_mid_epoch_ends_as_if_it_was_not(
    data: ImageData, tmp_path: Path, kind: str
) -> None:
    assert run_processes(killed, kind, tmp_path) == [-signal.SIGKILL]
    checkpoint = Checkpoint(tmp_path / "checkpoints" / "0.pt")
    state = torch.load(checkpoint.path, weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 20), "by time"
    assert torch.load(checkpoint.before, weights_only=True)["step"] == 0, "the end of an epoch stays"
    assert_equal(bits_of(kind, data, checkpoint, NEVER), bits_of(kind, data, None, NEVER))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    assert run_processes(killed, "trial", folder, number=2) == [-signal.SIGKILL] * 2
    assert torch.load(folder / "checkpoints" / "0.pt", weights_only=True)["step"] == 20
    assert run_processes(on_ranks, folder, number=2) == [0, 0]
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_two_ranks_that_are_killed_in_mid_epoch_end_as_if_they_were_not(
    two_ranks: tuple[Path, list[dict[str, Any]]],
) -> None:
    for found in two_ranks[1]:
        assert_equal(found["on"], found["whole"])


def test_all_ranks_go_on_from_the_checkpoint_that_the_first_can_read(
    two_ranks: tuple[Path, list[dict[str, Any]]],
) -> None:
    for found in two_ranks[1]:
        assert found["numbers"] == [1, 2]
        assert all(torch.equal(tensor, found["whole"][name]) for name, tensor in found["damaged"].items())


def test_statistics_of_batch_norm_are_the_mean_over_ranks_of_their_own(
    data: ImageData, two_ranks: tuple[Path, list[dict[str, Any]]]
) -> None:
    folder, ranks = two_ranks
    own = []
    for rank in range(2):
        torch.manual_seed(0)
        model = CvT(ARCH)
        model.load_state_dict(torch.load(folder / "checkpoints" / "2.pt", weights_only=True)["model"])
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
        model.train()
        for images, _ in data.train_batches(
            batch_size=16, augment=AugmentConfig(), device=CPU, seed=0, epoch=0, rank=rank, world_size=2
        ):
            with torch.no_grad():
                model(images)
        own.append(statistics_of(model))
    saved = torch.load(folder / "checkpoints" / "2.pt", weights_only=True)["model"]
    assert ranks[0]["accuracy"] == ranks[1]["accuracy"]
    for name, first in own[0].items():
        mean = (first + own[1][name]) / 2
        torch.testing.assert_close(saved[name], mean, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(first, mean, rtol=1e-3), "the ranks see other images"
        for found in ranks:
            assert torch.equal(found["statistics"][name], saved[name])


def test_the_first_rank_says_whether_there_are_weights_already_and_others_get_them(tmp_path: Path) -> None:
    assert run_processes(supernet_on_ranks, tmp_path, number=2) == [0, 0]


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from(data: ImageData, tmp_path: Path) -> None:
    whole, checkpoint = train(data, training()), Checkpoint(tmp_path / "c.pt")
    cut = fit(tiny_arch(), training(), data, device=CPU, seed=0, checkpoint=checkpoint)
    next(cut)
    cut.close()
    state = torch.load(checkpoint.path, weights_only=True)
    names = ("model", "averaged", "optimizer", "scaler", "arch_id", "curve")
    torch.save({**{name: state[name] for name in names}, "train_seconds": 7.0}, checkpoint.path)
    rest = train(data, training(), checkpoint=checkpoint)
    assert rest[0].train_seconds == 7
    assert rest[-1].curve == whole[-1].curve
    assert torch.equal(weights_of(rest[-1]), weights_of(whole[-1]))


# --- not finite -----------------------------------------------------------------------------------------------------


def poisoned(data: ImageData, bad: set[tuple[int, int]]) -> ImageData:
    return cast(ImageData, Poisoned(data, bad))


def train_all(data: ImageData, checkpoint: Path, **settings: Any) -> list[Epoch]:
    return train(data, training(batch_size=16, **settings), checkpoint=Checkpoint(checkpoint))


@pytest.mark.parametrize("at", [(0, 3), (1, 3), (2, 3)], ids=["in the first epoch", "later", "at the end"])
def test_after_a_loss_that_is_not_finite_the_epoch_is_begun_again_with_other_images(
    short: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: tuple[int, int]
) -> None:
    monkeypatch.setattr("cvt_nas.engine.keeper._STEPS_BETWEEN_CHECKS", 2)  # 20 would be more than the epoch has
    epochs = train_all(poisoned(short, {at}), tmp_path / "c.pt", epochs=3)
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    assert [epoch.num_rollbacks for epoch in epochs] == [int(number >= at[0]) for number in range(3)]
    assert all(math.isfinite(epoch.loss) for epoch in epochs)
    assert torch.isfinite(weights_of(epochs[-1])).all()
    undisturbed = train_all(short, tmp_path / "undisturbed.pt", epochs=3)
    before = slice(0, at[0])
    assert epochs[-1].curve[before] == undisturbed[-1].curve[before]
    assert epochs[-1].curve != undisturbed[-1].curve
    # where it goes back to is the end of an epoch, whenever there are checkpoints
    by_time = train_all(poisoned(short, {at}), tmp_path / "by-time.pt", epochs=3, checkpoint_minutes=ALWAYS)
    assert torch.equal(weights_of(by_time[-1]), weights_of(epochs[-1]))


def test_a_training_has_three_lives_however_often_it_is_cut_off(short: ImageData, tmp_path: Path) -> None:
    bad = poisoned(short, {(epoch, 0) for epoch in range(9)})
    settings, seen = training(epochs=9, batch_size=16), list[tuple[int, int]]()

    def go_on() -> None:
        """Until the next epoch is over; before it, the last one is told again."""
        cut = fit(tiny_arch(), settings, bad, device=CPU, seed=0, checkpoint=Checkpoint(tmp_path / "c.pt"))
        for epoch in itertools.islice(cut, 2 if seen else 1):
            seen.append((epoch.number, epoch.num_rollbacks))
        cut.close()

    for _ in range(3):
        go_on()
    with pytest.raises(DivergedError, match="loss not finite in epoch 4, after it was rolled back 3 times") as error:
        go_on()
    assert seen == [(1, 1), (1, 1), (2, 2), (2, 2), (3, 3), (3, 3)]
    assert len(error.value.curve) == 3


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_training_that_cannot_work_diverges_within_its_first_epoch(
    short: ImageData, tmp_path: Path, epochs: int
) -> None:
    with pytest.raises(DivergedError, match="in epoch 1, after it was rolled back 3 times"):
        train_all(short, tmp_path / "c.pt", epochs=epochs, lr=1e9)
    settings = config(epochs=epochs, batch_size=16, lr=1e30, optimizer="sgd", ema_decay=0.0)
    shared = SharedWeights(space=SPACE, config=settings)
    with pytest.raises(DivergedError):
        list(train_supernet(shared, short, device=CPU, seed=0, checkpoint=Checkpoint(tmp_path / "supernet.pt")))


@pytest.mark.parametrize("what", ["weight", "statistic", "moment"])
def test_what_is_not_finite_behind_a_loss_that_is_takes_the_training_back_too(
    short: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    steps = itertools.count(1)

    def broken_once(state: Any, *arguments: Any) -> torch.Tensor:
        loss = _step(state, *arguments)
        if next(steps) == 8:  # the last of the second epoch
            weight = next(state.model.parameters())
            broken = {
                "weight": weight.data,
                "statistic": next(b for n, b in state.model.named_buffers() if n.endswith("running_var")),
                "moment": state.optimizer.state[weight]["exp_avg_sq"],
            }
            broken[what].view(-1)[0] = math.nan
        return loss

    monkeypatch.setattr("cvt_nas.engine.training._step", broken_once)
    epochs = train_all(short, tmp_path / "c.pt", epochs=3)
    assert [epoch.num_rollbacks for epoch in epochs] == [0, 1, 1]
    assert torch.isfinite(weights_of(epochs[-1])).all()


def test_an_answer_that_is_no_number_is_wrong(data: ImageData) -> None:
    model = CvT(tiny_arch())
    model.head.bias.data[:] = math.nan
    assert evaluate(model, data, "search", training=training(), device=CPU) == 0


def test_a_report_says_how_often_a_training_was_rolled_back(
    data: ImageData, small: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingSetup, "open_data", lambda self: poisoned(data, {(1, 0), (2, 0)}))
    reports = list(
        progress_reports(tiny_arch(), setup_for(small, tmp_path), number=0, device=CPU, seed=0, keep_model=False)
    )
    said = "rolled back {}: a loss or a weight was not finite"
    assert [r.get("reason") for r in reports] == [None, said.format("once"), said.format("2 times")]
    assert {report["status"] for report in reports} == {"running"}


def fresh_state() -> TrainingState:
    return TrainingState.of(CvT(tiny_arch()), training(), CPU, num_steps=9)


# --- who reads ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_another_process_replaces_damages_and_deletes_is_read_whole_or_not_at_all(
    data: ImageData, tmp_path: Path
) -> None:
    list(fit(tiny_arch(), training(epochs=1), data, device=CPU, seed=0, checkpoint=Checkpoint(tmp_path / "good.pt")))
    process = clean_processes().Process(target=spoil, args=(tmp_path / "c.pt", 0, 1))
    process.start()
    found = []
    while not (tmp_path / "over").exists() and process.is_alive():
        state = Checkpoint(tmp_path / "c.pt").read(CPU)
        found.append(None if state is None else state["epoch"])
    process.join()
    assert process.exitcode == 0
    assert set(found) == {None, 1}


def test_a_checkpoint_is_read_to_the_memory_of_the_cpu(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "0.pt")
    checkpoint.write(fresh_state().to_plain())
    found = checkpoint.read(torch.device("meta"))  # which stands for a device that is nearly full
    assert found is not None
    assert {tensor.device for tensor in found["model"].values()} == {CPU}


def test_the_end_of_an_epoch_is_found_by_another_machine_and_dropped_with_the_rest(tmp_path: Path) -> None:
    run, there = RunFolder.at(f"file://{tmp_path}/there"), tmp_path / "there" / "checkpoints"
    checkpoint, state = Checkpoint(run.checkpoint_path(0), run.store), fresh_state().to_plain()
    checkpoint.write({**state, "epoch": 1, "step": 0}, keep=False)
    assert [file.name for file in there.iterdir()] == ["0.pt"]
    checkpoint.write({**state, "epoch": 1, "step": 20})
    shutil.rmtree(checkpoint.path.parent)
    found = checkpoint.read(CPU, is_wanted=lambda saved: saved["step"] == 0)
    assert found is not None
    assert found["epoch"] == 1
    checkpoint.drop()
    assert list(there.iterdir()) == []


def test_a_training_does_not_go_back_to_the_end_of_an_earlier_epoch_that_was_left_behind(tmp_path: Path) -> None:
    checkpoint, state, settings = Checkpoint(tmp_path / "checkpoints" / "0.pt"), fresh_state(), training()
    bias = cast(CvT, state.model).head.bias.data
    bias[:] = 1
    checkpoint.write({**state.to_plain(), "epoch": 1, "step": 0})
    bias[:] = 2
    checkpoint.write({**state.to_plain(), "epoch": 2, "step": 20})
    bias[:] = math.nan
    progress = Progress(epoch=2, step=40, loss_sums=torch.zeros(1), counts=[0])
    Keeper(checkpoint, state, settings, CPU).check(progress, num_steps=60, begins_again=False)
    assert progress.num_rollbacks == 1
    assert bias[0] == 2


def test_how_often_checkpoints_are_written_is_no_part_of_what_is_compared(small: Experiment) -> None:
    other = small.changed(training={"checkpoint_minutes": 3})
    assert other.training.checkpoint_minutes == 3
    assert other.compares_with(small.manifest(seed=0, num_trials=1))
    assert not small.changed(training={"lr": 0.5}).compares_with(small.manifest(seed=0, num_trials=1))


def test_the_greatest_value_sees_all_that_must_be_finite(data: ImageData) -> None:
    state = fresh_state()
    assert math.isfinite(state.greatest().item())
    cast(CvT, state.model).head.bias.data[0] = -123456.0
    assert state.greatest().item() == 123456
    assert state.averaged is not None
    next(state.averaged.parameters()).data.view(-1)[0] = math.nan
    assert math.isnan(state.greatest().item())


def test_dataclasses_of_progress_travel_in_a_checkpoint(data: ImageData, tmp_path: Path) -> None:
    train(
        data,
        dataclasses.replace(training(epochs=1), checkpoint_minutes=ALWAYS),
        checkpoint=Checkpoint(tmp_path / "c.pt"),
    )
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    assert (state["epoch"], state["step"], state["num_rollbacks"], len(state["curve"])) == (1, 0, 0, 1)
    assert state["seconds"] > 0
