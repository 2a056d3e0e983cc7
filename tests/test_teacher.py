"""Teachers: what they answer, once for each training image, and what networks learn of it."""

import dataclasses
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from conftest import small_digits
from cvt_nas import search
from cvt_nas.config import AugmentConfig, DataConfig, Experiment, parse_experiment
from cvt_nas.data import ImageData, Preprocessing, load_data
from cvt_nas.engine import TrainingSetup, answer_images, find_teacher, progress_reports, supernet_reports
from cvt_nas.engine.criterion import Criterion
from cvt_nas.errors import CvtNasError, DataError, RunFolderError, SpaceFileError
from cvt_nas.model import CvT, load_model, save_model
from cvt_nas.pipeline.verdict import evaluate_supernet
from cvt_nas.plan.disk import bytes_needed
from cvt_nas.plan.planning import plan
from cvt_nas.run import RunFolder
from cvt_nas.train import train
from image_folders import NAMES, SPACE, open_folder, write_images
from test_multi_label import arrays_of

CPU = torch.device("cpu")


def digits_with(teacher: str, **settings: Any) -> Experiment:
    return parse_experiment(small_digits(), "small.yaml").changed(training={"teacher": teacher, **settings})


def tiny_with(teacher: str) -> Experiment:
    return parse_experiment(SPACE, "tiny.yaml").changed(training={"teacher": teacher})


def saved(model: CvT, folder: Path, *names: str, **facts: Any) -> str:
    """The place of a network with classes of these names."""
    save_model(model, folder)
    channels = model.arch.num_channels
    beside = {"image_size": model.arch.image_size, "mean": [0.5] * channels, "std": [0.25] * channels}
    beside |= {"crop_pct": 1.0, "interpolation": "bilinear"}
    (folder / "preprocessing.json").write_text(json.dumps({**beside, **facts, "classes": list(names)}))
    return str(folder)


def seen_at(side: int, *, channels: int = 3) -> Preprocessing:
    """As the networks of `saved` see images."""
    return Preprocessing(image_size=side, mean=(0.5,) * channels, std=(0.25,) * channels)


@pytest.fixture(scope="module")
def scholar(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network of digits that begins afresh, by which it is as sure of its answers as any."""
    torch.manual_seed(0)
    model = CvT(parse_experiment(small_digits(), "small.yaml").space.largest)
    return saved(model, tmp_path_factory.mktemp("scholar"), *map(str, range(10)))


def answered(experiment: Experiment, run: Path, data: Path | None = None) -> tuple[TrainingSetup, np.ndarray]:
    setup = TrainingSetup.of(experiment, run=RunFolder(run), data=data).checked()
    teacher = find_teacher(setup, init=None, run=None)
    assert teacher is not None
    list(answer_images(setup, teacher))
    return dataclasses.replace(setup, answers=teacher.answers), np.load(setup.run.answers_path(teacher.answers))


def batches_of(data: ImageData, size: int, **options: Any) -> list[tuple[Tensor, Tensor]]:
    augment = options.pop("augment", AugmentConfig())
    return list(data.train_batches(batch_size=size, augment=augment, device=CPU, seed=0, epoch=1, **options))


@pytest.mark.parametrize("kind", ["arrays", "folder", "several labels"])
def test_each_image_of_a_batch_comes_with_what_the_teacher_said_of_it(kind: str, tmp_path: Path) -> None:
    if kind == "folder":
        for number in range(24):  # of one colour each, which no crop changes
            path = tmp_path / "train" / NAMES[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 24), (10 * number, 0, 0)).save(path)
        data: ImageData = open_folder(tmp_path)
    else:
        config = DataConfig(dataset="digits", train_fraction=0.1)
        digits = load_data(config, root=None, image_size=8, num_channels=1, num_classes=10)
        data = digits if kind == "arrays" else arrays_of()
    number, classes = data.num_images("train"), len(data.class_names)
    logits = np.random.default_rng(0).normal(size=(number, classes)).astype(np.float16)
    given = {image.numpy().tobytes(): row for image, row in zip(rows_of(data), logits, strict=True)}
    for rank in range(2):
        plain, taught = (batches_of(each, 4, rank=rank, world_size=2) for each in (data, data.taught(logits)))
        hot = batches_of(data.taught(logits), 4, rank=rank, world_size=2, temperature=4.0)
        for (images, labels), (same, targets), (_, cooled) in zip(plain, taught, hot, strict=True):
            assert torch.equal(images, same)
            ours, theirs = targets.chunk(2, dim=1)
            assert torch.equal(ours, F.one_hot(labels, classes).float() if labels.ndim == 1 else labels)
            said = torch.tensor(np.stack([given[image.numpy().tobytes()] for image in images])).float()
            link = torch.sigmoid if data.is_multi_label else lambda x: x.softmax(dim=1)
            torch.testing.assert_close(theirs, link(said))
            torch.testing.assert_close(cooled.chunk(2, dim=1)[1], link(said / 4))


def rows_of(data: ImageData) -> list[Tensor]:
    return [image for images, _ in data.eval_batches("train", batch_size=7, device=CPU) for image in images]


@pytest.mark.parametrize("kinds", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_a_teachers_probabilities_are_mixed_as_labels_are(kinds: dict[str, Any]) -> None:
    config = DataConfig(dataset="digits", train_fraction=0.1)
    data = load_data(config, root=None, image_size=8, num_channels=1, num_classes=10)
    data = data.taught(np.random.default_rng(0).normal(size=(data.num_images("train"), 10)).astype(np.float16))
    (_, plain), (_, mixed) = (
        batches_of(data, 32, augment=augment)[0] for augment in (AugmentConfig(), AugmentConfig(**kinds))
    )
    share = mixed[:, :10][(plain[:, :10] == 1) & (plain[:, :10].flip(0) == 0)].unique()
    assert len(share) == 1
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * plain + (1 - share) * plain.flip(0))


def test_classes_that_are_left_out_leave_the_answers_of_the_others() -> None:
    config = DataConfig(dataset="digits", train_fraction=0.2)
    data = load_data(config, root=None, image_size=8, num_channels=1, num_classes=10)
    labels = data.labels("train")
    some = data.taught(F.one_hot(torch.tensor(labels), 10).numpy().astype(np.float16)).of_classes([2, 5])
    for _, targets in batches_of(some, 4):
        ours, theirs = targets.chunk(2, dim=1)
        assert torch.equal(ours.argmax(1), theirs.argmax(1))


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_the_loss_is_that_of_the_labels_and_the_divergence_from_the_teacher(is_multi_label: bool) -> None:
    torch.manual_seed(0)
    logits, said = torch.randn(2, 6, 4, dtype=torch.float64)
    labels = (torch.rand(6, 4) < 0.4).double() if is_multi_label else F.one_hot(torch.arange(6) % 4, 4).double()
    kind = "binary_cross_entropy" if is_multi_label else "cross_entropy"

    def loss(weight: float, answers: Tensor, found: Tensor = logits) -> float:
        link = (answers / 3).sigmoid() if is_multi_label else (answers / 3).softmax(1)
        criterion = Criterion(kind, is_multi_label=is_multi_label, teacher_weight=weight, temperature=3.0)
        return float(criterion(found, torch.cat([labels, link], 1)))

    if is_multi_label:
        p, q = (said / 3).sigmoid(), (logits / 3).sigmoid()
        taught = 9 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
        plain = F.binary_cross_entropy_with_logits(logits, labels)
    else:
        p, q = (said / 3).softmax(1), (logits / 3).softmax(1)
        taught, plain = 9 * (p * (p / q).log()).sum(1).mean(), F.cross_entropy(logits, labels)
    assert loss(1.0, said) == pytest.approx(float(taught))
    assert loss(0.25, said) == pytest.approx(float(0.25 * taught + 0.75 * plain))
    assert loss(1.0, logits) == pytest.approx(0, abs=1e-9)


def test_a_training_keeps_what_its_teacher_answers_and_goes_on_without_it(scholar: str, tmp_path: Path) -> None:
    teacher, notes = Path(shutil.copytree(scholar, tmp_path / "teacher")), list[str]()
    experiment = digits_with(str(teacher), teacher_weight=1.0)
    arch = experiment.space.smallest
    whole = train(arch, experiment, out=tmp_path / "out", device="cpu", on_note=notes.append)
    assert notes[-2:] == [
        "the teacher answers 1,077 training images, once",
        "the teacher has answered all 1,077 training images",
    ]
    run = RunFolder.open(tmp_path / "out")
    told = run.manifest["teacher"]
    setup = TrainingSetup.of(experiment, run=run, data=None).checked(run)
    images = torch.stack(rows_of(setup.data_prepared_as(seen_at(8, channels=1))))
    with torch.inference_mode():
        logits = load_model(teacher)(images)
    found = torch.tensor(np.load(run.answers_path(told["answers"]))).float()
    torch.testing.assert_close(found, logits, atol=2e-3, rtol=2e-3)
    shutil.rmtree(teacher)
    teacher = find_teacher(setup, init=None, run=run)  # which is not opened again
    assert teacher is not None
    taught = dataclasses.replace(setup, run=RunFolder(tmp_path / "again"), answers=told["answers"])
    shutil.copytree(tmp_path / "out" / "teacher", tmp_path / "again" / "teacher")
    first = progress_reports(arch, taught, number=0, device=CPU, seed=0)
    assert [next(first)["epoch"], next(first)["epoch"]] == [1, 2]
    first.close()  # type: ignore[attr-defined]
    *_, last = progress_reports(arch, taught, number=0, device=CPU, seed=0)
    assert tuple(last["curve"]) == whole.curve
    for name, tensor in load_model(run.model_path(arch.id)).state_dict().items():
        assert torch.equal(tensor, load_model(taught.run.model_path(arch.id)).state_dict()[name])


def test_answers_that_were_cut_off_are_gone_on_with(scholar: str, tmp_path: Path) -> None:
    experiment = digits_with(scholar)
    setup, whole = answered(experiment, tmp_path / "whole")
    assert setup.answers is not None
    path, header = setup.run.answers_path(setup.answers), 128
    for kept in (0, 50, header + 3, header + 100 * 20 + 7, header + 900 * 20):
        begun = RunFolder(tmp_path / str(kept)).answers_path(setup.answers).with_suffix(".begun")
        begun.parent.mkdir(parents=True)
        begun.write_bytes(path.read_bytes()[:kept])
        _, found = answered(experiment, tmp_path / str(kept))
        assert np.array_equal(found, whole)
        assert not begun.exists()


def test_a_search_that_is_stopped_while_the_teacher_answers_goes_on(
    scholar: str, two_cpus: None, tmp_path: Path
) -> None:
    teacher, stop, notes = Path(shutil.copytree(scholar, tmp_path / "teacher")), threading.Event(), list[str]()
    experiment = digits_with("init").changed(search={"trials": 2, "scheduler": "none"})
    stop.set()
    run = search(experiment, out=tmp_path / "run", init=teacher, gpus=0, stop=stop, on_note=notes.append)
    assert not run.results()
    assert not list((run.path / "teacher").glob("*.npy"))
    weights = teacher / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-4] + b"\0\0\0\0")
    with pytest.raises(
        RunFolderError, match=r"training.teacher: \S+ is not what \S+ began with any more; name another"
    ):
        search(experiment, out=run.path, resume=True, gpus=0)
    weights.write_bytes(before)
    search(experiment, out=run.path, resume=True, gpus=0, on_note=notes.append)
    assert [trial.status for trial in run.results()] == ["complete"] * 2
    assert notes[-1] == "the teacher has answered all 1,077 training images"
    (answers,) = (run.path / "teacher").iterdir()
    assert answers.name == f"{run.manifest['teacher']['answers']}.npy"


def test_a_supernet_and_the_networks_that_judge_it_learn_of_the_same_teacher(
    scholar: str, two_cpus: None, tmp_path: Path
) -> None:
    text = small_digits(**{
        "search:": "supernet: {epochs: 1, batch_size: 64}\n"
        "search: {weights: supernet, candidates: 2, trials: 1, sampler: random, seed: 0}",
        "  label_smoothing:": f"  teacher: {scholar}", "data:": "data: {dataset: digits, train_fraction: 0.2}",
    })  # fmt: skip
    experiment, stop = parse_experiment(text, "supernet.yaml"), threading.Event()
    assert experiment.supernet is not None
    assert (experiment.supernet.teacher, experiment.supernet.distillation) == (scholar, "none")
    setup = TrainingSetup.of(experiment, run=RunFolder(tmp_path / "run"), data=None).checked()
    teacher = find_teacher(setup, init=None, run=None)
    assert teacher is not None
    assert setup.identity is not None
    run = RunFolder.create(
        tmp_path / "run",
        {
            **experiment.manifest(seed=0, num_trials=1),
            "data": setup.identity.to_json(),
            "teacher": teacher.to_json(),
        },
    )
    list(answer_images(setup, teacher))
    losses = []
    for answers in (None, teacher.answers):
        *_, last = supernet_reports(dataclasses.replace(setup, answers=answers), device=CPU, seed=0)
        losses.append(last["losses"])
        run.supernet.weights_path.rename(tmp_path / str(answers))
    assert losses[0] != losses[1]
    (tmp_path / teacher.answers).rename(run.supernet.weights_path)
    stop.set()
    assert evaluate_supernet(run, num_archs=8, num_seeds=1, gpus=0, stop=stop) is None
    there = run.standalone.answers_path(teacher.answers)
    assert there.read_bytes() == run.answers_path(teacher.answers).read_bytes()


def test_a_worker_elsewhere_has_the_answers_that_a_run_keeps_at_its_url(scholar: str, tmp_path: Path) -> None:
    setup = TrainingSetup.of(digits_with(scholar), run=RunFolder.at(f"file://{tmp_path}/there"), data=None).checked()
    teacher = find_teacher(setup, init=None, run=None)
    assert teacher is not None
    list(answer_images(setup, teacher))
    path = setup.run.answers_path(teacher.answers)
    path.unlink()  # as on another machine
    assert dataclasses.replace(setup, answers=teacher.answers).open_data().is_taught
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RunFolderError, match=r"cannot be read: .*; delete it and go on by --resume"):
        dataclasses.replace(setup, answers=teacher.answers).open_data()


def test_classes_are_matched_by_their_names(tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "train")
    model = CvT(dataclasses.replace(parse_experiment(SPACE, "tiny.yaml").space.smallest, num_classes=4))
    there = saved(model, tmp_path / "other", "fish", "bird", "Dog", "cat")
    setup, found = answered(tiny_with(there), tmp_path / "run", tmp_path / "images")
    rows = torch.stack(rows_of(setup.data_prepared_as(seen_at(16))))
    with torch.inference_mode():
        expected = model.eval()(rows)[:, [3, 2, 0]]
    torch.testing.assert_close(torch.tensor(found).float(), expected, atol=2e-3, rtol=2e-3)


def refused(teacher: str, tmp_path: Path) -> str:
    setup = TrainingSetup.of(tiny_with(teacher), run=RunFolder(tmp_path / "run"), data=tmp_path / "images").checked()
    with pytest.raises(CvtNasError) as error:
        find_teacher(setup, init=None, run=None)
    assert not (tmp_path / "run").exists()
    return str(error.value)


def test_teachers_that_do_not_fit_are_refused_before_anything_is_spent(tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "train")
    arch = parse_experiment(SPACE, "tiny.yaml").space.smallest
    model = CvT(arch)
    there = saved(model, tmp_path / "strange", "cat", "dog", "cow")
    assert refused(there, tmp_path) == (
        f"training.teacher: {there} does not know 1 of the 3 classes of the data: 'fish' is none of its 3, such as "
        f"'cat', by preprocessing.json"
    )
    save_model(CvT(dataclasses.replace(arch, num_classes=4)), tmp_path / "nameless")
    assert "nameless has 4 classes, the data has 3; nothing beside" in refused(str(tmp_path / "nameless"), tmp_path)
    there = saved(model, tmp_path / "several", *NAMES, multi_label=True)
    assert refused(there, tmp_path).endswith(
        "several is for several labels an image, and the data has one class an image"
    )
    there = saved(CvT(dataclasses.replace(arch, num_channels=5)), tmp_path / "five", *NAMES)
    assert refused(there, tmp_path).endswith("five takes images of 5 channels, and the data has 3")
    assert (
        refused("init", tmp_path)
        == "training.teacher: got init, which needs weights to begin with: give --init WEIGHTS"
    )
    assert "timm:no_such_network: cannot be loaded: " in refused("timm:no_such_network", tmp_path)
    assert "nowhere: no such file or folder, no network of a run" in refused("nowhere", tmp_path)


def test_one_class_an_image_is_no_answer_where_images_have_several(scholar: str, tmp_path: Path) -> None:
    write_images(tmp_path, num=6)
    rows = [f"{name}/{number}.png,{name}{'|dog' if number == 1 else ''}" for name in NAMES for number in range(6)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    there = saved(CvT(parse_experiment(SPACE, "tiny.yaml").space.smallest), tmp_path / "model", *NAMES)
    experiment = tiny_with(there).changed(data={"dataset": "table"})
    setup = TrainingSetup.of(experiment, run=RunFolder(tmp_path / "run"), data=tmp_path / "labels.csv").checked()
    with pytest.raises(DataError, match="is for one class an image, and the data has several labels an image"):
        find_teacher(setup, init=None, run=None)


def vit(folder: Path, names: tuple[str, ...]) -> Any:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=24, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    model = ViTForImageClassification(config)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(folder)
    return model.eval()


def test_any_classifier_of_transformers_sees_images_as_its_processor_prepares_them(tmp_path: Path) -> None:
    from transformers import ViTImageProcessor

    write_images(tmp_path / "images" / "train")
    model = vit(tmp_path / "vit", ("dog", "fish", "cat"))
    setup, found = answered(tiny_with(str(tmp_path / "vit")), tmp_path / "run", tmp_path / "images")
    data, processor = setup.open_data(), ViTImageProcessor.from_pretrained(tmp_path / "vit")
    expected = {}
    for path in (tmp_path / "images" / "train").rglob("*.png"):
        with torch.inference_mode():
            logits = model(**processor(Image.open(path), return_tensors="pt")).logits[0]
        expected[path.parent.name, tuple(logits[[2, 0, 1]].half().tolist())] = logits
    for label, row in zip(data.labels("train"), found, strict=True):
        of_class = torch.tensor([said for name, said in expected if name == data.class_names[label]])
        assert float((of_class - torch.tensor(row).float()).abs().max(1).values.min()) < 0.02


def test_a_backbone_without_a_head_that_was_trained_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "train")
    vit(tmp_path / "vit", NAMES).vit.save_pretrained(tmp_path / "vit")
    why = refused(str(tmp_path / "vit"), tmp_path)
    assert why.endswith("vit: has no weights for classifier.bias; a teacher needs a head that was trained")


def test_a_classifier_of_timm_for_colours_answers_grey_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "img_size": 32,
        "patch_size": 8,
        "num_classes": 10,
    }
    model: Any = timm.create_model("vit_tiny_patch16_224", **settings)
    told = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_mode": "squash", "crop_pct": 1.0,
            "interpolation": "bilinear", "label_names": [str(9 - index) for index in range(10)]}  # fmt: skip
    (tmp_path / "vit").mkdir()
    torch.save(model.state_dict(), tmp_path / "vit" / "pytorch_model.bin")
    (tmp_path / "vit" / "config.json").write_text(
        json.dumps({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": told, "model_args": settings})
    )
    experiment = digits_with(f"timm:local-dir:{tmp_path / 'vit'}")
    setup, found = answered(experiment, tmp_path / "run")
    data = setup.data_prepared_as(seen_at(32))
    images, _ = next(data.eval_batches("train", batch_size=50, device=CPU, as_bytes=True))
    with torch.inference_mode():
        expected = model.eval()(data.prepared(images.expand(-1, 3, -1, -1))).flip(1)
    torch.testing.assert_close(torch.tensor(found[:50]).float(), expected, atol=2e-3, rtol=2e-3)


def test_what_contradicts_a_teacher_is_said_with_its_line(scholar: str) -> None:
    with pytest.raises(SpaceFileError, match=r"supernet.teacher: got other, must be that of training, mine"):
        digits_with("mine").changed(supernet={"epochs": 2, "teacher": "other"}, search={"weights": "supernet"})
    (warning,) = parse_experiment(small_digits(), "s").changed(training={"teacher_weight": 0.5}).warnings
    assert warning.endswith("training.teacher_weight: has no effect: training.teacher is absent")
    assert (
        digits_with(scholar, teacher_weight=1.0)
        .warnings[0]
        .endswith("training.label_smoothing: has no effect: teacher_weight is 1, so the labels do not count")
    )
    idle = digits_with("mine").changed(
        training={"epochs": 0, "warmup_epochs": 0}, supernet={"epochs": 0}, search={"weights": "supernet"}
    )
    assert any(warning.endswith("training.teacher: has no effect: nothing is trained") for warning in idle.warnings)
    chosen = digits_with("mine").changed(
        supernet={"epochs": 2, "distillation": "alpha"}, search={"weights": "supernet"}
    )
    assert chosen.supernet is not None
    assert (chosen.supernet.distillation, chosen.supernet.teacher) == ("alpha", "mine")


def test_a_plan_measures_the_teacher_and_counts_its_answers(scholar: str, tmp_path: Path) -> None:
    found = plan(digits_with(scholar), gpus=0, cpus=1, out=tmp_path)
    assert found.machine.teacher is not None
    answering = 1077 * found.machine.teacher
    assert found.parts["teacher"] == pytest.approx(answering + found.machine.worker_start)
    assert found.first_front > found.parts["start"] + found.parts["teacher"]
    of_trials = bytes_needed(digits_with(scholar), num_trials=found.num_trials, num_slots=1)
    assert found.disk_bytes == of_trials + 1077 * 10 * 2


def test_a_plan_says_that_it_does_not_count_a_teacher_that_only_the_search_names() -> None:
    found = plan(digits_with("init"), gpus=0, cpus=1)
    assert found.parts["teacher"] == 0.0
    assert any("what the weights of search --init take as a teacher is not counted" in n for n in found.notes)


@pytest.mark.parametrize("teacher", ["mine", "init"])
def test_a_plan_of_a_search_that_trains_nothing_does_not_mention_its_teacher(teacher: str) -> None:
    idle = digits_with(teacher).changed(
        training={"epochs": 0, "warmup_epochs": 0}, supernet={"epochs": 0}, search={"weights": "supernet"}
    )
    found = plan(idle, gpus=0, cpus=1, is_quick=True)
    assert found.parts["teacher"] == 0.0
    assert not any("teach" in note for note in found.notes), found.notes
