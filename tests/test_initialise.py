"""Weights from elsewhere: read strictly, and what a training begins with."""

import dataclasses
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cvt_nas.arch import ArchConfig, BlockConfig, StageConfig, load_arch
from cvt_nas.config import Experiment
from cvt_nas.engine import TrainingReport, TrainingSetup, open_lent, progress_reports
from cvt_nas.errors import ArchError, RunFolderError
from cvt_nas.model import (
    CvT,
    build_model,
    hugging_face_name,
    initialise,
    lend,
    load_checkpoint,
    official_name,
    read_weights,
    save_model,
)
from cvt_nas.run import RunFolder
from cvt_nas.train import train
from strategies import per_stage
from test_hostile import Pickled
from test_model import hugging_face_twin, randomise

SHAPE: dict[str, Any] = {
    "image_size": 32, "dims": (16, 32, 48), "depths": (1, 2, 3), "heads": (1, 2, 3), "kernels": (3, 5, 3),
    "strides": (2, 1, 2), "ratios": (2.0, 1.0, 3.0),
}  # fmt: skip
QUICK, GELU = per_stage(**SHAPE), per_stage(**SHAPE, activation="gelu")


def port_of(arch: ArchConfig, folder: Path, *, name: str = "model.safetensors") -> Any:
    """transformers' own model, saved by transformers; or as it was saved before safetensors."""
    model: Any = hugging_face_twin(arch, quick_gelu=False)
    randomise(model)
    model.save_pretrained(folder)
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / name)
    return model.eval()


def changed(arch: ArchConfig, stage: int, **changes: Any) -> ArchConfig:
    """`arch` with other blocks in one of its stages, or another embedding there."""
    old = arch.stages[stage]
    blocks = {name: value for name, value in changes.items() if name in BlockConfig.__slots__}
    new = dataclasses.replace(
        old,
        blocks=tuple(dataclasses.replace(block, **blocks) for block in old.blocks),
        **{name: value for name, value in changes.items() if name not in blocks},
    )
    return dataclasses.replace(arch, stages=(*arch.stages[:stage], new, *arch.stages[stage + 1 :]))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@torch.inference_mode()
def test_a_folder_of_transformers_answers_as_there(tmp_path: Path, name: str) -> None:
    port, model = port_of(GELU, tmp_path, name=name), build_model(GELU)
    assert initialise(model, tmp_path) == ()
    images = torch.randn(3, 3, 32, 32)
    logits = model.eval()(images)
    assert logits.std() > 1e-2
    torch.testing.assert_close(logits, port(images).logits, atol=1e-4, rtol=0)
    read = load_checkpoint(tmp_path)
    assert read.arch.stages == GELU.stages
    torch.testing.assert_close(read(images), logits, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_an_activation_that_the_port_does_not_have_is_said(tmp_path: Path) -> None:
    port, model = port_of(GELU, tmp_path), build_model(QUICK)
    differing, explained = initialise(model, tmp_path)
    assert differing == "activation: quick_gelu instead of gelu in stage 0, 1, 2"
    assert "microsoft's own with quick_gelu" in explained
    images = torch.randn(3, 3, 32, 32)
    assert (model.eval()(images) - port(images).logits).abs().max() > 1e-3
    alone, notes = tmp_path / "alone.safetensors", (differing, explained)
    (tmp_path / "model.safetensors").rename(alone)
    assert initialise(model, alone) == notes, "its names show it, too"


@pytest.mark.parametrize(
    ("arch", "note"),
    [
        (changed(GELU, 1, num_heads=4), "num_heads: 4 instead of 2 in stage 1"),
        (changed(GELU, 2, kv_stride=1), "kv_stride: 1 instead of 2 in stage 2"),
        (changed(GELU, 0, patch_stride=2, patch_padding=3), "patch_stride: 2 instead of 4 in stage 0"),
        (dataclasses.replace(GELU, image_size=64), None),
    ],
    ids=["heads", "stride", "embedding", "images of another size"],
)
@pytest.mark.parametrize("place", ["port", "folder"])
def test_what_no_weight_shows_is_said_where_it_differs(
    tmp_path: Path, arch: ArchConfig, note: str | None, place: str
) -> None:
    if place == "port":
        port_of(GELU, tmp_path)
    else:
        save_model(build_model(GELU), tmp_path)
    notes = initialise(build_model(arch), tmp_path)
    assert notes[:1] == (() if note is None else (note,))


def test_blocks_that_differ_are_listed_in_their_order(tmp_path: Path) -> None:
    save_model(build_model(GELU), tmp_path)
    first, *others = GELU.stages[2].blocks
    stage = dataclasses.replace(GELU.stages[2], blocks=(dataclasses.replace(first, kv_stride=1), *others))
    notes = initialise(build_model(dataclasses.replace(GELU, stages=(*GELU.stages[:2], stage))), tmp_path)
    assert notes == ("kv_stride: [1 2 2] instead of 2 in stage 2",)


WRAPPERS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "as the official files": lambda state: state,
    "as training scripts do": lambda state: {"model": state, "epoch": 3},
    "as of DDP": lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
    "names of transformers": lambda state: {hugging_face_name(name): tensor for name, tensor in state.items()},
    "half precision": lambda state: {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()
    },
}


@pytest.mark.parametrize("wrapped", WRAPPERS)
def test_a_state_dict_initialises_a_model_whatever_wraps_it(tmp_path: Path, wrapped: str) -> None:
    trained, model, path = build_model(GELU), build_model(GELU), tmp_path / "weights.pth"
    randomise(trained)
    torch.save(WRAPPERS[wrapped](trained.state_dict()), path)
    assert len(initialise(model, path)) == (wrapped in ("as training scripts do", "as of DDP", "half precision"))
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)


def test_names_of_transformers_lead_back_to_the_official_ones() -> None:
    names = list(build_model(load_arch("cvt-13")).state_dict())
    assert [official_name(hugging_face_name(name)) for name in names] == names
    assert all(hugging_face_name(name) != name for name in names)
    assert official_name("fc.weight") == "fc.weight"


def test_a_head_of_other_classes_begins_afresh_and_the_rest_does_not(tmp_path: Path) -> None:
    trained = build_model(GELU)
    randomise(trained)
    save_model(trained, tmp_path)
    model = build_model(dataclasses.replace(GELU, num_classes=7))
    fresh = model.head.weight.clone()
    assert initialise(model, tmp_path) == ("the head begins afresh: 7 classes instead of 10",)
    assert torch.equal(model.head.weight, fresh)
    assert torch.equal(model.norm.weight, trained.norm.weight)


def misfit_of(model: CvT, path: Path) -> list[str]:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ArchError) as caught:
        initialise(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}: does not fit the architecture {model.arch.id}:"
    return [line.removeprefix("    ") for line in lines]


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    path, model = tmp_path / "weights.safetensors", build_model(QUICK)
    state = model.state_dict()
    state["stage0.patch_embed.proj.weight"] = torch.zeros(16, 3, 5, 5)
    state["stage0.blocks.0.mlp.fc1.bias"] = torch.zeros(32, dtype=torch.int8)
    del state["stage2.cls_token"]
    save_file({**state, "pos_embed": torch.zeros(2)}, path)
    assert misfit_of(model, path) == [
        "stage0.patch_embed.proj.weight: 16 x 3 x 5 x 5 instead of 16 x 3 x 7 x 7",
        "stage0.blocks.0.mlp.fc1.bias: 32 torch.int8 instead of 32",
        "missing: stage2.cls_token",
        "unexpected: pos_embed",
    ]


def test_a_long_list_is_cut_with_some_of_every_kind(tmp_path: Path) -> None:
    port_of(GELU, tmp_path)
    wider = per_stage(**{**SHAPE, "dims": (16, 32, 64), "depths": (1, 1, 4), "heads": (1, 2, 4)})
    *lines, last = misfit_of(build_model(wider), tmp_path)
    assert len(lines) <= 8
    kinds = [sum(line.startswith(kind) for line in lines) for kind in ("stage2", "missing: stage2", "unexpected: sta")]
    assert kinds == [2, 2, 2]
    assert re.fullmatch(r"and \d+ more", last)


def test_a_head_is_only_forgiven_its_classes(tmp_path: Path) -> None:
    path, model = tmp_path / "weights.safetensors", build_model(QUICK)
    save_file({**model.state_dict(), "head.weight": torch.zeros(7, 48), "head.bias": torch.zeros(6)}, path)
    assert misfit_of(model, path) == ["head.weight: 7 x 48 instead of 10 x 48", "head.bias: 6 instead of 10"]
    save_file({**model.state_dict(), "head.weight": torch.zeros(7, 40), "head.bias": torch.zeros(7)}, path)
    assert misfit_of(model, path) == ["head.weight: 7 x 40 instead of 10 x 48", "head.bias: 7 instead of 10"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "vit"}, "config.json: model_type: got 'vit', must be 'cvt'"),
        ("[]", "config.json: model_type: got None, must be 'cvt'"),
        ("{", "config.json: cannot be read: Expecting"),
        ({"stride_q": [1, 2, 1]}, "config.json: stride_q: got 2 in stage 1, must be 1"),
        ({"padding_kv": [0, 2, 1]}, "config.json: padding_kv: got 0 in stage 0, must be 1"),
        ({"num_heads": [1, 2]}, "config.json: num_heads: got [1, 2], must be a list of one value for each of 3 stages"),
        ({"num_heads": 1}, "config.json: num_heads: got 1, must be a list of one value for each of 3 stages"),
        ({"num_heads": [1, 3, 3]}, "num_heads: got 3, must divide embed_dim 32"),
        ({"num_heads": [1, "2", 3]}, "num_heads: got '2', must be a whole number"),
        ({"depth": [1, 2, 10**9]}, "depth: got 1000000000 in stage 2"),
        ({"mlp_ratio": [1, None, 1]}, "mlp_ratio: got None in stage 1, must be a number"),
        ({"qkv_projection_method": ["dw_bn", "avg", "dw_bn"]}, "got 'avg' in stage 1, must be dw_bn"),
        ({"patch_sizes": [5, 3, 3]}, "does not fit the architecture"),
        ({"id2label": {"0": "cat", "2": "dog"}}, "id2label: must have one name for each class, by its index from 0"),
        ({"id2label": {"0": "cat", "1": "dog"}}, "has 10 classes, the files beside it name 2"),
    ],
)
def test_a_folder_of_another_network_is_refused(tmp_path: Path, config: dict[str, Any] | str, message: str) -> None:
    port_of(GELU, tmp_path)
    own = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps({**own, **config}))
    for read in (lambda: load_checkpoint(tmp_path / "model.safetensors"), lambda: load_checkpoint(tmp_path)):
        with pytest.raises(ArchError, match=re.escape(message)) as caught:
            read()
        assert str(tmp_path) in str(caught.value)


def test_a_folder_without_weights_or_with_those_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchError, match="holds neither model.safetensors nor pytorch_model.bin"):
        initialise(build_model(GELU), tmp_path)
    with pytest.raises(ArchError, match="nowhere: cannot be read: .*No such file"):
        initialise(build_model(GELU), tmp_path / "nowhere")
    save_model(build_model(GELU), tmp_path)
    torch.save({"weight": 3}, tmp_path / "no_tensor.pth")
    with pytest.raises(ArchError, match="holds other things than tensors"):
        initialise(build_model(GELU), tmp_path / "no_tensor.pth")
    state = load_file(tmp_path / "model.safetensors")
    save_model(build_model(dataclasses.replace(GELU, stages=GELU.stages[:2])), tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ArchError, match="arch.json: is of another network than the weights"):
        initialise(build_model(GELU), tmp_path)


def test_a_crafted_pickle_does_not_run(tmp_path: Path) -> None:
    owned, folder = tmp_path / "owned", tmp_path / "port"
    port_of(GELU, folder, name="pytorch_model.bin")
    content = pickle.dumps(Pickled(owned), protocol=2)
    (tmp_path / "weights.pth").write_bytes(content)
    for path in (tmp_path / "weights.pth", folder):
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ArchError, match="cannot be read"):
            initialise(build_model(GELU), path)
        torch.save({"model": Pickled(owned)}, folder / "pytorch_model.bin")
        with pytest.raises(ArchError, match="cannot be read"):
            initialise(build_model(GELU), folder)
    assert not owned.exists()


def test_a_width_that_rounding_would_lose_is_read(tmp_path: Path) -> None:
    assert int(88 * (15 / 88)) == 14
    block = BlockConfig(num_heads=1, mlp_ratio=15.01 / 88)
    stage = StageConfig(patch_kernel=3, patch_stride=2, patch_padding=1, embed_dim=88, blocks=(block,))
    arch = ArchConfig(image_size=32, num_classes=10, stages=(stage,))
    path = tmp_path / "weights.pth"
    torch.save(build_model(arch).state_dict(), path)
    lent, _ = lend(read_weights(path), num_channels=3, num_classes=10)
    assert lent.arch.stages[0].blocks[0].mlp_ratio == pytest.approx(15 / 88)
    assert lent.state["stage0.blocks.0.mlp.fc1.bias"].shape == (15,)


# --- a training that begins with them --------------------------------------------------------------------------------


class StoppedError(Exception):
    """What a training is interrupted with."""


def stopped(*arguments: Any, **settings: Any) -> Any:
    """In the place of what a search does when it is stopped."""
    raise StoppedError


def stop_after(epoch: int) -> Callable[[TrainingReport], None]:
    def on_report(report: TrainingReport) -> None:
        if report["epoch"] == epoch:
            raise StoppedError

    return on_report


@pytest.fixture(scope="module")
def arch(small: Experiment) -> ArchConfig:
    return small.space.decode(small.anchors["cvt-like"])


@pytest.fixture(scope="module")
def trained(small: Experiment, arch: ArchConfig, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Ten epochs, from a fresh initialisation."""
    experiment = dataclasses.replace(small, training=small.training.lasting(10))
    out = tmp_path_factory.mktemp("trained") / "run"
    train(arch, experiment, out=out, device="cpu", num_workers=1)
    return RunFolder.open(out)


def test_a_training_begins_with_the_weights_that_it_is_given(
    small: Experiment, arch: ArchConfig, trained: RunFolder, tmp_path: Path
) -> None:
    init, out, notes = trained.model_path(arch.id), tmp_path / "run", []
    fresh = trained.results()[0]
    with pytest.raises(StoppedError):
        train(arch, small, out=out, device="cpu", num_workers=1, init=init, on_report=stop_after(1),
              on_note=notes.append)  # fmt: skip
    run = RunFolder.open(out)
    kept = run.manifest["init"]
    assert (kept["path"], kept["notes"], len(kept["sha256"])) == (str(init), notes, 64)
    assert notes == []
    first = torch.load(run.checkpoint_path(0), weights_only=True)["curve"]
    assert first[0] > fresh.curve[0] + 0.2
    assert first[0] > 0.8


def test_a_network_of_other_sizes_begins_with_what_a_trial_would_take(
    small: Experiment, trained: RunFolder, arch: ArchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = Path(shutil.copytree(trained.model_path(arch.id), tmp_path / "model"))
    narrow, out, notes = small.space.smallest, tmp_path / "run", list[str]()
    options: dict[str, Any] = {"device": "cpu", "num_workers": 1, "on_note": notes.append}

    with monkeypatch.context() as patch:
        patch.setattr("cvt_nas.train.keep_in_order", stopped)
        with pytest.raises(StoppedError):
            train(narrow, small, out=out, init=init, **options)
    run = RunFolder.open(out)
    assert not run.lends_weights
    with pytest.raises(StoppedError):
        train(narrow, small, out=out, resume=True, on_report=stop_after(1), **options)
    assert notes[0] == f"{init}: is of a network of other sizes, of which this one takes what it has room for"
    assert (run.manifest["init"]["importance"], open_lent(run).importance) == ("taylor", "taylor")
    shutil.rmtree(init)
    begun = train(narrow, small, out=out, resume=True, **options)
    fresh = train(narrow, small, out=tmp_path / "fresh", device="cpu", num_workers=1)
    assert begun.curve[0] > fresh.curve[0] + 0.1
    setup = TrainingSetup.of(small, run=run, data=None)  # as a trial's
    *_, last = progress_reports(narrow, setup, number=1, device=torch.device("cpu"), seed=0, keep_model=False)
    assert tuple(last["curve"]) == begun.curve


def test_a_training_that_goes_on_does_not_begin_again(
    small: Experiment, arch: ArchConfig, trained: RunFolder, tmp_path: Path
) -> None:
    init, options = tmp_path / "weights.pth", {"device": "cpu", "num_workers": 1}
    torch.save(load_file(trained.model_path(arch.id) / "model.safetensors"), init)
    whole = train(arch, small, out=tmp_path / "whole", init=init, seed=3, **options)
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(arch, small, out=out, init=init, seed=3, on_report=stop_after(2), **options)
    init.unlink()
    with pytest.raises(RunFolderError, match="--seed 0: .*run was started with seed 3; leave it out"):
        train(arch, small, out=out, seed=0, resume=True, **options)
    with pytest.raises(RunFolderError, match=r"--init other\.pth: .*run began with .*weights\.pth; leave it out"):
        train(arch, small, out=out, init="other.pth", resume=True, **options)
    again = train(arch, small, out=out, init=init, resume=True, **options)
    assert (again.curve, again.seed) == (whole.curve, 3)
    assert "init" not in trained.manifest


def test_a_training_that_ended_in_its_first_epoch_begins_again_with_the_same_weights(
    small: Experiment, arch: ArchConfig, trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init, out, options = tmp_path / "weights.pth", tmp_path / "run", {"device": "cpu", "num_workers": 1}
    torch.save(load_file(trained.model_path(arch.id) / "model.safetensors"), init)

    with monkeypatch.context() as patch:
        patch.setattr("cvt_nas.launch.devices.progress_reports", stopped)
        with pytest.raises(StoppedError):
            train(arch, small, out=out, init=init, **options)
    content = init.read_bytes()
    torch.save(CvT(arch).state_dict(), init)
    with pytest.raises(RunFolderError, match=r"weights\.pth: is not what .*run began with any more; name another"):
        train(arch, small, out=out, resume=True, **options)
    init.unlink()
    with pytest.raises(ArchError, match=r"weights\.pth: cannot be read"):
        train(arch, small, out=out, resume=True, **options)
    init.write_bytes(content)
    with pytest.raises(StoppedError):
        train(arch, small, out=out, resume=True, on_report=stop_after(1), **options)
    assert torch.load(RunFolder(out).checkpoint_path(0), weights_only=True)["curve"][0] > 0.8


def test_weights_that_do_not_fit_are_refused_before_anything_is_spent(
    small: Experiment, arch: ArchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spent(*arguments: Any) -> None:
        raise AssertionError("data opened")

    monkeypatch.setattr(TrainingSetup, "checked", spent)
    save_model(build_model(dataclasses.replace(GELU, stages=GELU.stages[:2])), tmp_path / "other")
    with pytest.raises(ArchError, match="does not fit the architecture"):
        train(arch, small, out=tmp_path / "run", device="cpu", num_workers=1, init=tmp_path / "other")
    assert not (tmp_path / "run").exists()


def test_a_worker_that_is_told_of_weights_begins_with_them_as_another_would(
    small: Experiment, arch: ArchConfig, trained: RunFolder, tmp_path: Path
) -> None:
    """As Ray's workers are told, where several share each batch: by a setup that travels to them."""
    run, init = RunFolder(tmp_path / "run"), trained.model_path(arch.id)
    run.path.mkdir()
    setup = dataclasses.replace(TrainingSetup.of(small, run=run, data=None), shared=None, init=init)
    setup = pickle.loads(pickle.dumps(setup))
    curves = []
    for number in range(2):
        reports = progress_reports(arch, setup, number=number, device=torch.device("cpu"), seed=3, keep_model=False)
        curves.append(next(iter(reports))["curve"])
    assert curves[0] == curves[1]
    assert curves[0][0] > 0.8
