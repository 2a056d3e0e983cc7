"""DA-NAS-style search: spaces that lose options, supernets trained in parts, and searches that do both."""

import dataclasses
import itertools
import json
import math
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conftest import Watch, own_processes, small_digits
from cvt_nas import search
from cvt_nas.arch import cost_of
from cvt_nas.cli import main
from cvt_nas.config import DataConfig, Experiment, SupernetConfig, parse_experiment
from cvt_nas.data import ImageData, load_data
from cvt_nas.engine import Checkpoint, Phase, SharedWeights, evaluate, train_supernet
from cvt_nas.engine.evaluation import class_accuracies
from cvt_nas.errors import ArchError, RunFolderError, SpaceFileError
from cvt_nas.launch.cluster import local_ray
from cvt_nas.model import CvT
from cvt_nas.pipeline.narrowing import contributions, easiest_first, searched_space, without_weakest
from cvt_nas.pipeline.query import query
from cvt_nas.report import run_page
from cvt_nas.results.events import OptionsDropped
from cvt_nas.run import RunFolder
from cvt_nas.space import Bound, NarrowedSpace, spread_over_flops
from strategies import spaces
from test_supernet_training import SPACE

CPU = torch.device("cpu")


@st.composite
def narrowed(draw: st.DrawFn) -> NarrowedSpace:
    whole = draw(spaces())
    kept = {
        gene.name: draw(st.sets(st.sampled_from(range(len(gene.options))), min_size=1).map(tuple))
        for gene in whole.genes
        if draw(st.booleans())
    }
    return NarrowedSpace(whole, kept)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DataConfig(dataset="digits"), root=None, image_size=8, num_channels=1, num_classes=10)


# --- the space ------------------------------------------------------------------------------------------------------


@given(space=narrowed())
@settings(max_examples=30)
def test_a_narrowed_space_holds_the_networks_of_the_whole_one_that_have_only_what_is_left(space: NarrowedSpace) -> None:
    assume((found := space.all_genomes(2_000)) is not None)
    assert found is not None
    every = itertools.product(*(space.kept[gene.name] for gene in space.whole.genes))
    archs = [space.decode(genome) for genome in found]
    assert {arch.id for arch in archs} == {space.whole.decode(genome).id for genome in every}
    assert len(archs) == len({arch.id for arch in archs})
    for genome, arch in zip(found, archs, strict=True):
        assert space.encode(arch) == genome == space.canonical(genome)
        assert space.cost(genome) == cost_of(arch)
        assert len(space.active(genome)) == len(space.genes)
        assert space.active_rows(np.array([genome], dtype=int)).tolist() == [list(space.active(genome))]
        assert not any(option for option, is_active in zip(genome, space.active(genome), strict=True) if not is_active)
    drawn = np.array([space.sample(random.Random(number)) for number in range(20)]).reshape(20, -1)
    assert space.costs_of(drawn) == {
        genome: space.cost(genome) for genome in map(space.canonical, map(tuple, drawn.tolist()))
    }
    assert {space.largest, space.smallest} <= set(archs)


def test_what_was_dropped_is_outside() -> None:
    space = NarrowedSpace(SPACE, {}).without("stage0.kv_stride", 1).without("stage1.depth", 2)
    assert [gene.name for gene in space.genes if gene.choice in ("kv_stride", "depth")] == [
        "stage0.depth", "stage1.kv_stride",
    ]  # fmt: skip
    assert SPACE.smallest in space
    assert SPACE.largest not in space
    with pytest.raises(ArchError, match="an option that was dropped"):
        space.encode(SPACE.largest)
    with pytest.raises(ValueError, match=r"genome of 2 genes"):
        space.decode((0, 0))
    with pytest.raises(ValueError, match=r"stage0.depth: \[2\] of 2 options"):
        NarrowedSpace(SPACE, {"stage0.depth": (2,)})
    with pytest.raises(ValueError, match=r"stage0.depth: \[\] of 2 options"):
        NarrowedSpace(SPACE, {"stage0.depth": ()})


def test_a_block_that_all_are_too_shallow_for_chooses_nothing() -> None:
    whole = dataclasses.replace(
        SPACE, stages=tuple(dataclasses.replace(s, per_block=frozenset({"kv_stride"})) for s in SPACE.stages)
    )
    assert {"stage0.block1.kv_stride", "stage1.block1.kv_stride"} <= {gene.name for gene in whole.genes}
    names = {gene.name for gene in NarrowedSpace(whole, {}).without("stage0.depth", 2).genes}
    assert "stage0.block1.kv_stride" not in names
    assert {"stage0.block0.kv_stride", "stage1.block1.kv_stride"} <= names


# --- what is dropped ------------------------------------------------------------------------------------------------


def planted(space: NarrowedSpace, effects: dict[str, float], seed: int) -> tuple[list[tuple[int, ...]], list[float]]:
    """Accuracies that rise with the log of FLOPs, by options that help or harm beside it, and noise."""
    rng, genomes = np.random.default_rng(seed), spread_over_flops(space, 150, seed=seed)
    accuracies = []
    for genome in genomes:
        chosen = {f"{g.name}={g.options[i]}" for g, i in zip(space.genes, genome, strict=True)}
        merit = sum(effect for name, effect in effects.items() if name in chosen)
        accuracies.append(0.3 + 0.04 * math.log(space.cost(genome).flops) + merit + rng.normal(0, 0.003))
    return genomes, accuracies


@pytest.mark.parametrize("seed", range(5))
def test_an_option_is_judged_by_what_it_gives_beyond_its_cost(seed: int) -> None:
    space = NarrowedSpace(SPACE, {})
    genomes, accuracies = planted(space, {"stage0.num_heads=2": -0.05, "stage1.kernel_size=3": 0.05}, seed)
    found = contributions(space, genomes, accuracies, ("accuracy", "params", "flops"))
    gains = {name: effects[1] - effects[0] for name, effects in found.items()}
    assert gains.pop("stage0.num_heads") == pytest.approx(-0.05, abs=0.01)
    assert gains.pop("stage1.kernel_size") == pytest.approx(0.05, abs=0.01)
    assert max(map(abs, gains.values())) < 0.02  # though wider and deeper ones are more accurate
    left, dropped = without_weakest(space, found, 2 / len(space.genes))
    assert {(option.gene, option.option) for option in dropped} == {
        ("stage0.num_heads", 2), ("stage1.kernel_size", 1),
    }  # fmt: skip
    assert len(left.genes) == len(space.genes) - 2
    assert all(option.contribution == pytest.approx(-0.05, abs=0.01) for option in dropped)


def test_a_share_of_the_options_goes_and_the_best_of_each_choice_stays() -> None:
    space = NarrowedSpace(SPACE, {})
    rng = np.random.default_rng(0)
    for expected in (7, 4, 2, 1, 1):  # of 12 choices of two options, then of 7, ...
        left, dropped = without_weakest(space, {g.name: rng.normal(size=len(g.options)) for g in space.genes}, 0.4)
        assert len(left.genes) == expected, len(space.genes)
        assert len(dropped) == len(space.genes) - expected
        space = left


def test_an_option_that_the_bounds_need_stays() -> None:
    least, _ = SPACE.cost_range
    tight = dataclasses.replace(SPACE, bounds={"flops": Bound(max=1.02 * least.flops)})
    space = NarrowedSpace(tight, {})
    effects = {gene.name: np.array([-1.0, 0.0]) for gene in space.genes}  # all small options are weak
    left, dropped = without_weakest(space, effects, 0.9)
    assert left.sample_feasible(random.Random(0)) is not None
    assert len(dropped) < round(0.9 * len(space.genes))


def test_classes_come_in_the_order_in_which_they_are_learned() -> None:
    assert easiest_first([[0.1, 0.9, 0.5], [0.7, 0.9, 0.4]]) == (1, 2, 0)


# --- the training ---------------------------------------------------------------------------------------------------


def test_a_data_set_of_some_classes_has_all_their_images_and_no_others(digits: ImageData) -> None:
    some = digits.of_classes((3, 7))
    for split in ("train", "search", "test"):
        labels = torch.cat([labels for _, labels in some.eval_batches(split, batch_size=64, device=CPU)])
        whole = torch.cat([labels for _, labels in digits.eval_batches(split, batch_size=64, device=CPU)])
        assert set(labels.tolist()) == {3, 7}
        assert len(labels) == some.num_images(split) == int(((whole == 3) | (whole == 7)).sum())
    assert digits.of_classes(range(10)).num_images("train") == digits.num_images("train")
    assert some.class_names == digits.class_names


def test_the_accuracies_of_the_classes_make_up_the_accuracy(digits: ImageData) -> None:
    torch.manual_seed(0)
    model, config = CvT(SPACE.smallest), SupernetConfig(epochs=1)
    of_classes = class_accuracies(model, digits, "search", training=config, device=CPU)
    labels = torch.cat([labels for _, labels in digits.eval_batches("search", batch_size=64, device=CPU)])
    expected = evaluate(model, digits, "search", training=config, device=CPU)
    shares = torch.bincount(labels).numpy() / len(labels)
    assert np.dot(of_classes, shares) == pytest.approx(expected)
    assert class_accuracies(model, digits.of_classes([4]), "search", training=config, device=CPU)[5] == 0


def test_a_training_in_phases_that_have_everything_is_the_training(digits: ImageData, tmp_path: Path) -> None:
    shared = SharedWeights(space=SPACE, config=SupernetConfig(epochs=2, batch_size=256, lr=3e-3, ema_decay=0.9))
    *_, whole = train_supernet(shared, digits, device=CPU, seed=0)
    expected = {name: tensor.clone() for name, tensor in whole.supernet.state_dict().items()}
    numbers, found = [], dict[str, torch.Tensor]()
    for last_epoch in (1, 2):
        phase = Phase(last_epoch=last_epoch, classes=tuple(range(10)), kept={})
        part = dataclasses.replace(shared, phase=phase)
        for epoch in train_supernet(part, digits, device=CPU, seed=0, checkpoint=Checkpoint(tmp_path / "it.pt")):
            numbers.append(epoch.number)
            found = epoch.supernet.state_dict()
    assert numbers == [1, 2]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_phase_trains_subnets_of_its_options_alone() -> None:
    kept = {gene.name: (0,) for gene in SPACE.genes if gene.choice == "embed_dim"}
    phase = Phase(last_epoch=1, classes=(0, 1), kept=kept)
    shared = SharedWeights(space=SPACE, config=SupernetConfig(epochs=2), phase=phase)
    assert {stage.embed_dim for stage in shared.drawn_from.largest.stages} == {8}
    assert shared.last_epoch == 1


# --- the file -------------------------------------------------------------------------------------------------------


SHORT = "da_nas: {ordering_epochs: 1, classes: [0.3, 1.0], lengths: [1, 3], probes: 12}"


def da_nas(epochs: int = 0, section: str = SHORT, **search_settings: Any) -> Experiment:
    settings = {"weights": "da-nas", "trials": 3, "candidates": 8, "sampler": "random", "scheduler": "none", "seed": 0}
    lines = [
        "supernet: {epochs: 4, batch_size: 64, lr: 5.0e-3, ema_decay: 0.9}",
        section,
        f"search: {json.dumps(settings | search_settings)}",
    ]
    text = small_digits(
        **{"search:": "\n".join(lines), "  epochs:": f"  epochs: {epochs}", "  warmup_epochs:": "  warmup_epochs: 0"}
    )
    return parse_experiment(text, "my.yaml")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("da_nas: {lengths: [1, 2]}", "da_nas.lengths: got 2 numbers, must be one for each of the 4 of classes"),
        ("da_nas: {classes: [0.5, 0.2, 0.6, 1.0]}", "da_nas.classes: got .* must not fall"),
        ("da_nas: {classes: [0.1, 0.2, 0.6, 0.9]}", "da_nas.classes: got 0.9 at the end, must be 1"),
        ("da_nas: {lengths: [1, 9, 9, 9]}", "supernet.epochs: got 4, too few"),
        ("da_nas: {drop_ratio: 1.0}", "da_nas.drop_ratio: got 1.0, must be below 1"),
        ("da_nas: {classes: [1.0], lengths: [1]}", "da_nas.classes: "),
        ("da_nas: {probe: 9}", "da_nas.probe: unknown key.*probes"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(section: str, message: str) -> None:
    with pytest.raises(SpaceFileError, match=message):
        da_nas(section=section)


def test_a_section_without_effect_is_warned_of() -> None:
    assert not da_nas().warnings
    (warning,) = da_nas(weights="supernet").warnings
    assert warning.endswith("da_nas: has no effect: search.weights is supernet")


# --- the search -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with local_ray(num_cpus=2, num_gpus=1):
        yield


@pytest.fixture(scope="module")
def whole(ray: None, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return search(da_nas(), out=tmp_path_factory.mktemp("da-nas") / "run", cpus=1, gpus=0)


@pytest.mark.slow
def test_choices_are_dropped_on_more_and_more_classes_and_candidates_have_what_is_left(whole: RunFolder) -> None:
    experiment, narrowing = da_nas(), whole.supernet.narrowing()
    assert narrowing is not None
    assert sorted(narrowing.class_order) == list(range(10))
    assert np.shape(narrowing.class_curves) == (1, 10)
    assert [step.last_epoch for step in narrowing.steps] == [1, 4]
    assert [step.classes for step in narrowing.steps] == [narrowing.class_order[:n] for n in (3, 10)]
    droppable = sum(len(gene.options) - 1 for gene in experiment.space.genes)
    assert [len(step.dropped) for step in narrowing.steps] == [0, round(0.4 * droppable)]
    space = searched_space(experiment, whole)
    names = {(option.gene, option.option) for step in narrowing.steps for option in step.dropped}
    for candidate in whole.candidates():
        assert candidate.arch in space
        genome = experiment.space.encode(candidate.arch)
        for gene, index in zip(experiment.space.genes, genome, strict=True):
            depth = len(candidate.arch.stages[gene.stage].blocks)
            assert (gene.name, gene.options[index]) not in names or (gene.block or 0) >= depth
    assert len(whole.candidates()) == len({candidate.arch.id for candidate in whole.candidates()}) == 8
    assert not list(whole.supernet.path.glob("epoch-*"))
    page = run_page(whole)
    assert "epoch 4, 10 classes" in page
    assert narrowing.steps[1].dropped[0].gene in page


def interrupted_at(event_type: type, count: int) -> tuple[threading.Event, Callable[[Any], None]]:
    stop, seen = threading.Event(), []

    def react(event: Any) -> None:
        if isinstance(event, event_type):
            seen.append(event)
            if len(seen) == count:
                stop.set()

    return stop, react


@pytest.mark.slow
def test_a_search_that_is_interrupted_between_its_parts_ends_as_one_that_was_not(
    whole: RunFolder, ray: None, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    for number in (1, 2):
        stop, react = interrupted_at(OptionsDropped, 1)
        run = search(da_nas(), out=path, cpus=1, gpus=0, resume=number > 1, stop=stop, progress=Watch(react))
        narrowing = run.supernet.narrowing()
        assert narrowing is not None
        assert len(narrowing.steps) == number
        assert not run.candidates()
    killed: list[int] = []

    def kill(event: Any) -> None:
        if not killed and (judges := own_processes("_Judge")):
            os.kill(judges[0], signal.SIGKILL)
            killed.append(judges[0])

    run = search(da_nas(), out=path, cpus=1, gpus=0, resume=True, progress=Watch(kill))
    assert killed
    assert run.supernet.narrowing() == whole.supernet.narrowing()
    assert [(c.arch.id, c.accuracy) for c in run.candidates()] == [(c.arch.id, c.accuracy) for c in whole.candidates()]


@pytest.mark.slow
def test_a_query_keeps_to_what_is_left(whole: RunFolder) -> None:
    space = searched_space(da_nas(), whole)
    answers = query(whole, number=3)
    assert answers
    assert all(answer.arch in space for answer in answers)


@pytest.mark.slow
def test_a_damaged_record_is_told(whole: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole.path, path)
    (path / "supernet/narrowing.json").write_text('{"class_order": [0], "class_curves": [], "kept": {"a": ["b"]}}')
    with pytest.raises(RunFolderError, match=r"narrowing.json: kept.a.0: Input should be a valid integer"):
        RunFolder(path).supernet.narrowing()
    assert main(["query", str(path), "--max-flops", "1e9"]) == 2
    assert "narrowing.json: kept.a.0" in capsys.readouterr().err


@pytest.mark.slow
def test_the_best_of_what_is_left_are_trained_on_beside_the_anchors(ray: None, tmp_path: Path) -> None:
    experiment = da_nas(epochs=1, section="da_nas: {probes: 12}")
    run = search(experiment, out=tmp_path / "run", cpus=2, gpus=0)
    narrowing = run.supernet.narrowing()
    assert narrowing is not None
    assert [step.last_epoch for step in narrowing.steps] == [1, 2, 3, 4]
    assert [step.classes for step in narrowing.steps] == [narrowing.class_order[:n] for n in (2, 3, 6, 10)]
    droppable, expected = sum(len(gene.options) - 1 for gene in experiment.space.genes), [0]
    for _ in range(3):
        expected.append(round(0.4 * (droppable - sum(expected))))
    assert [len(step.dropped) for step in narrowing.steps] == expected
    assert len(run.results()) == 3
    assert run.results()[0].arch in experiment.anchor_archs().values()
    assert all(trial.status == "complete" and trial.inherited is not None for trial in run.results()[1:])
