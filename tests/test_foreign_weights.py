"""Checkpoints as other tools write them: each answers as its source, or is refused by name."""

import argparse
import collections
import dataclasses
import datetime
import decimal
import json
import pathlib
import pickle
import sys
import types
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cvt_nas.arch import ArchConfig, BlockConfig, StageConfig, arch_to_dict, class_names_of_config, load_arch
from cvt_nas.errors import ArchError
from cvt_nas.model import CvT, build_model, hugging_face_name, initialise, load_checkpoint, match_classes, read_weights
from strategies import per_stage
from test_hostile import Pickled
from test_initialise import GELU, port_of
from test_model import randomise

State = dict[str, Tensor]
ARCH = per_stage(
    image_size=16, dims=(8, 16), depths=(1, 1), heads=(2, 4), kernels=(3, 3), strides=(2, 1), ratios=(1.0, 2.0),
    stem=(3, 2, 0),
)  # fmt: skip
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def trained() -> CvT:
    model = build_model(ARCH)
    randomise(model)
    return model.eval()


@pytest.fixture
def state(trained: CvT) -> State:
    return {name: tensor.clone() for name, tensor in trained.state_dict().items()}


def other(state: State) -> State:
    """Of another network, so that it shows where it is taken."""
    return {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def headed(state: State, prefix: str, head: str) -> State:
    """The network under `prefix`, but its head under `head`."""
    return {head + name.removeprefix("head.") if name.startswith("head.") else prefix + name: tensor
            for name, tensor in state.items()}  # fmt: skip


def pruned(state: State) -> State:
    from torch.nn.utils import prune

    def wrap(model: nn.Module) -> nn.Module:
        prune.l1_unstructured(model.get_submodule("head"), "weight", 0.1)
        return model

    return in_a_module(state, wrap)


def yacs_node() -> Any:
    from yacs.config import CfgNode

    node = CfgNode({"MODEL": {"NAME": "cvt", "DROP_PATH_RATE": 0.1}})
    node.freeze()
    return node


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> type[dict]:
    """A dict that is pickled under the name of Lightning's dict of hyperparameters, which need not be installed."""
    name = "lightning.fabric.utilities.data"
    kind = type("AttributeDict", (dict,), {"__module__": name})
    for part in ("lightning", "lightning.fabric", "lightning.fabric.utilities", name):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    sys.modules[name].AttributeDict = kind  # pyright: ignore[reportAttributeAccessIssue]
    return kind


def test_the_settings_of_lightning_need_no_lightning(
    lightning: type[dict], state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = {"state_dict": prefixed(state, "model."), "hyper_parameters": lightning(classes=list("jihgfedcba"))}
    torch.save(saved, tmp_path / "last.ckpt")
    monkeypatch.undo()
    assert "lightning" not in sys.modules
    assert read_weights(tmp_path / "last.ckpt").classes == tuple("jihgfedcba")


def quantised(state: State) -> State:
    return in_a_module(state, lambda model: torch.ao.quantization.quantize_dynamic(model, {nn.Linear}))


def averaged(state: State) -> State:
    model = build_model(ARCH)
    model.load_state_dict(state)
    return torch.optim.swa_utils.AveragedModel(model).state_dict()


def in_a_module(state: State, wrap: Callable[..., Any]) -> State:
    model = build_model(ARCH)
    model.load_state_dict(state)
    return wrap(model).state_dict()


def compiled_by_part(model: nn.Module) -> nn.Module:
    module: Any = model
    module.stage1 = torch.compile(module.stage1)
    return module


class Learner(nn.Module):
    """As trainers hold a network beside other modules."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projector = model, nn.Linear(3, 3)
        self.register_buffer("class_weights", torch.ones(3))


def timm_saver(state: State, folder: Path) -> Any:
    """What timm's training script writes, by its own saver."""
    from timm.utils.checkpoint_saver import CheckpointSaver

    model = build_model(ARCH)
    model.load_state_dict(state)
    optimizer = torch.optim.AdamW(model.parameters())
    model(IMAGES).sum().backward()
    optimizer.step()
    model.load_state_dict(state)
    args = argparse.Namespace(model="cvt_nas", lr=0.1, device=torch.device("cpu"), output=pathlib.Path("out"))
    saver = CheckpointSaver(model=model, optimizer=optimizer, args=args, checkpoint_dir=str(folder))
    saver.save_checkpoint(0, metric=81.6)
    return torch.load(folder / "last.pth.tar", weights_only=False)


FORMS: dict[str, tuple[Callable[[State], Any], str]] = {
    "alone": (lambda s: s, ""),
    "official CvT": (
        lambda s: {"epoch": 1, "model": "cls_cvt", "state_dict": s, "perf": 81.6, "optimizer": {"state": {0: s}}},
        "took 'state_dict'; left epoch, model, perf, optimizer",
    ),
    "DeiT": (
        lambda s: {"model": s, "args": argparse.Namespace(lr=0.1), "epoch": 3, "model_ema": None},
        "took 'model'; left args, epoch, model_ema",
    ),
    "DeiT with averages": (
        lambda s: {"model": other(s), "model_ema": s, "args": argparse.Namespace(lr=0.1)},
        "took 'model_ema', the averaged weights; left model (another network), args",
    ),
    "timm with averages": (
        lambda s: {"epoch": 1, "arch": "cvt_13", "state_dict": other(s), "state_dict_ema": s, "version": 2},
        "took 'state_dict_ema', the averaged weights; left state_dict (another network), epoch, arch, version",
    ),
    "Swin": (
        lambda s: {"model": s, "config": yacs_node(), "max_accuracy": np.float64(81.3)},
        "took 'model'; left config, max_accuracy",
    ),
    "Lightning": (
        lambda s: {"state_dict": prefixed(s, "model."), "hyper_parameters": {"lr": 0.1}, "loops": {"a": {"b": 1}}},
        "took 'state_dict'; took 'model.' off the names; left hyper_parameters, loops",
    ),
    "Lightning's averages": (
        lambda s: {"state_dict": prefixed(s, "model."), "current_model_state": prefixed(other(s), "model.")},
        "took 'state_dict'; took 'model.' off the names; left current_model_state.model (another network)",
    ),
    "a callback's average in Lightning": (
        lambda s: {"state_dict": {**prefixed(other(s), "net."), **prefixed(s, "ema_net.module.")}},
        "took 'state_dict', the averaged weights; took 'ema_net.module.' off the names; left state_dict.net (another "
        "network)",
    ),
    "mmengine's averages": (
        lambda s: {"meta": {"mmengine_version": "0.10.7"}, "state_dict": s,
                   "ema_state_dict": {**prefixed(other(s), "module."), "steps": torch.tensor(3)}},
        "took 'state_dict'; left ema_state_dict.module (another network), meta",
    ),
    "net": (lambda s: {"net": s, "acc": 93.2, "epoch": 5}, "took 'net'; left acc, epoch"),
    "DeepSpeed": (lambda s: {"module": s, "dp_world_size": 8}, "took 'module'; left dp_world_size"),
    "DataParallel": (lambda s: in_a_module(s, nn.DataParallel), "took 'module.' off the names"),
    "compiled": (lambda s: in_a_module(s, torch.compile), "took '_orig_mod.' off the names"),
    "compiled, then DDP's": (lambda s: prefixed(s, "module._orig_mod."), "took 'module._orig_mod.' off the names"),
    "DataParallel, then compiled": (
        lambda s: in_a_module(s, lambda m: torch.compile(nn.DataParallel(m))),
        "took '_orig_mod.module.' off the names",
    ),
    "compiled by part": (lambda s: in_a_module(s, compiled_by_part), "took '_orig_mod' out of the names"),
    **{
        f"the average as {key}": (
            lambda s, key=key: {"model": other(s), key: s},
            f"took {key!r}, the averaged weights; left model (another network)",
        )
        for key in ("modelEMA", "model-ema", "EMAModel", "avg_model", "model_avg", "shadow")
    },
    **{
        f"an average in {key}": (
            lambda s, key=key, inner=inner: {"model": s, key: {inner: other(s)} if inner else other(s)},
            f"took 'model'; left {key}",
        )
        for key, inner in (
            ("optimizer", "exp_avg"), ("optim", "ema"), ("opt", "ema"), ("exp_avg", ""), ("exp_avg_sq", ""),
            ("grad_ema", ""), ("running_avg_grad", ""), ("moving_avg_sq", ""), ("emaGradients", ""), ("square_avg", ""),
        )
    },
    "an optimizer's moments beside the weights": (
        lambda s: {**s, **prefixed(other(s), "exp_avg.")},
        "left exp_avg (of an optimizer)",
    ),
    "torch's average": (averaged, "took 'module.' off the names; left n_averaged"),
    "beside other modules": (
        lambda s: in_a_module(s, Learner),
        "took 'backbone.' off the names; left class_weights, projector (2 tensors)",
    ),
    "deep down": (lambda s: {"a": {"b": {"c": prefixed(s, "x.y.z.")}}}, "took 'a.b.c'; took 'x.y.z.' off the names"),
    "parameters": (lambda s: {name: nn.Parameter(t, requires_grad=t.is_floating_point()) for name, t in s.items()}, ""),
    "an operation counter's": (
        lambda s: {**s, "total_ops": torch.zeros(1), "stage0.blocks.0.total_params": torch.zeros(1)},
        "left out counters: total_ops, total_params",
    ),
    "before torch 0.4.1": (
        lambda s: {name: t for name, t in s.items() if not name.endswith("num_batches_tracked")},
        "set num_batches_tracked, which is missing and decides nothing here, to 0",
    ),
    "in double precision": (
        lambda s: {name: t.double() for name, t in s.items()},
        "read float64 as float32",
    ),
    "two names of the same": (lambda s: {"model": s, "net": s}, "took 'model'; left net (another network)"),
    "Lightning, the head beside the backbone": (
        lambda s: {"state_dict": headed(s, "backbone.", "head.")},
        "took 'state_dict'; took 'backbone.' off the names; took 'head' for the head",
    ),
    "mmpretrain": (
        lambda s: {"state_dict": headed(s, "backbone.", "head.fc."), "meta": {}},
        "took 'state_dict'; took 'backbone.' off the names; took 'head.fc' for the head; left meta",
    ),
    "a head after dropout": (lambda s: headed(s, "", "head.1."), "took 'head.1' for the head"),
    "a head by another name": (lambda s: headed(s, "encoder.", "fc."),
                               "took 'encoder.' off the names; took 'fc' for the head"),
    "transformers": (lambda s: {hugging_face_name(name): t for name, t in s.items()}, ""),
    "transformers in Lightning": (
        lambda s: {"state_dict": {f"model.{hugging_face_name(name)}": t for name, t in s.items()}},
        "took 'state_dict'; took 'model.' off the names",
    ),
    "transformers in DDP": (
        lambda s: {f"module.{hugging_face_name(name)}": t for name, t in s.items()},
        "took 'module.' off the names",
    ),
    "harmless types": (
        lambda s: {
            "model": s, "a": datetime.datetime(2020, 1, 1), "b": collections.defaultdict(list, x=[1]), "c": {1, 2},
            "d": np.arange(3), "e": collections.Counter("aab"), "f": np.array(["x"]), "g": pathlib.Path("x"),
            "h": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), "i": frozenset((1, 2)), "j": 1j,
            "k": collections.deque([1, 2], maxlen=5), "l": decimal.Decimal("1.5"), "m": uuid.UUID(int=7), "n": range(3),
            "o": slice(1, 2),
        },
        "took 'model'; left a, b, c, d, e, f and 9 more",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("form", "is_zip"),
    [*((form, True) for form in FORMS), ("alone", False), ("Swin", False), ("harmless types", False)],
)
@torch.inference_mode()
def test_a_checkpoint_answers_as_its_source_and_says_what_was_taken(
    trained: CvT, state: State, form: str, is_zip: bool, tmp_path: Path
) -> None:
    make, note = FORMS[form]
    path = tmp_path / "weights.pth"
    torch.save(make(state), path, _use_new_zipfile_serialization=is_zip)
    notes: list[str] = []
    model = load_checkpoint(path, ARCH, on_note=notes.append)
    expected = trained if "transformers" not in form else gelu_twin(state)
    torch.testing.assert_close(model(IMAGES), expected(IMAGES), atol=1e-6, rtol=0)
    taken = [line.removeprefix(f"{path}: ") for line in notes if line.startswith(str(path))]
    assert taken == ([note] if note else [])
    assert [initialise(build_model(ARCH), path)][0][: len(taken)] == tuple(notes[: len(taken)])


def gelu_twin(state: State) -> CvT:
    gelu = per_stage(
        image_size=16, dims=(8, 16), depths=(1, 1), heads=(2, 4), kernels=(3, 3), strides=(2, 1), ratios=(1.0, 2.0),
        stem=(3, 2, 0), activation="gelu",
    )  # fmt: skip
    model = build_model(gelu)
    model.load_state_dict(state)
    return model.eval()


@torch.inference_mode()
def test_the_checkpoint_of_timms_saver_answers_as_its_source(trained: CvT, state: State, tmp_path: Path) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        saved = timm_saver({name: t.clone() for name, t in state.items()}, tmp_path)
    assert {"epoch", "arch", "state_dict", "optimizer", "version", "args", "metric"} <= saved.keys()
    model = load_checkpoint(tmp_path / "last.pth.tar", ARCH)
    torch.testing.assert_close(model(IMAGES), trained(IMAGES), atol=1e-6, rtol=0)


def test_the_checkpoint_of_a_training_here_gives_its_average(state: State, trained: CvT, tmp_path: Path) -> None:
    torch.save({"model": other(state), "averaged": averaged(state), "optimizer": {}, "curve": [0.5]}, tmp_path / "c.pt")
    found = load_checkpoint(tmp_path / "c.pt", ARCH).state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in trained.state_dict().items())


REFUSED: dict[str, tuple[Callable[[State, Path], Any], str]] = {
    "two networks": (
        lambda s, _: {"teacher": prefixed(s, "module."), "student": prefixed(other(s), "module.")},
        r"holds several networks: teacher.module, student.module; save the one that is meant alone: torch.save\(",
    ),
    "two networks under one key": (
        lambda s, _: {"state_dict": {**prefixed(s, "teacher."), **prefixed(other(s), "student.")}},
        r"torch.save\(\{k: v for k, v in checkpoint\['state_dict'\].items\(\) if k.startswith\('teacher.'\)\}, 'w",
    ),
    "a pruned head": (lambda s, _: pruned(s), "has no head.weight; it holds head.*head.weight_orig"),
    "a head of two layers": (
        lambda s, _: {**headed(s, "", "head.2."), "head.0.weight": torch.zeros(16, 16)},
        r"has no head.weight; it holds head.2.weight, head.2.bias, head.0.weight instead, must be one linear layer",
    ),
    "a head of its own and another": (
        lambda s, _: {**prefixed(s, "backbone."), "fc.weight": torch.zeros(3, 10), "fc.bias": torch.zeros(3)},
        r"holds fc.weight beside the network's own head, and nothing tells which classifies; save the network alone",
    ),
    "a head of another width": (
        lambda s, _: {**headed(s, "", "fc."), "fc.weight": torch.zeros(10, 8)},
        r"has no head.weight; it holds fc.weight, fc.bias instead",
    ),
    "an array of objects": (
        lambda s, _: {"model": s, "a": np.array([{}], dtype=object)}, "an array of objects, which may run code",
    ),
    "what may be an average of anything": (
        lambda s, _: {"model": s, "avg_delta": other(s)},
        "holds several networks: model, avg_delta",
    ),
    "an optimizer's moments alone": (
        lambda s, _: {"optimizer": {"exp_avg": s}},
        "holds no network: by its name, optimizer.exp_avg is what an optimizer keeps",
    ),
    "quantised by torch when it runs": (
        lambda s, _: quantised(s),
        r"holds stage0\S+\.zero_point: quantised weights cannot be read",
    ),
    "split by ZeRO-3": (
        lambda s, _: {"module": {name: torch.zeros(0) for name in s}},
        "is empty, as where DeepSpeed's ZeRO-3 split the weights; join them by its zero_to_fp32.py",
    ),
    "two averages": (
        lambda s, _: {"model": s, "model_ema": other(s), "model_ema2": other(other(s))},
        "holds several networks: model_ema, model_ema2",
    ),
    "another network": (lambda _, __: {"fc.weight": torch.zeros(2)}, "no state dict of a CvT: no name ends.*fc.weight"),
    "numbers": (lambda _, __: {"epoch": 3}, r"it holds other things than tensors with names: epoch \(int\)"),
    "an optimizer": (
        lambda s, _: {"optimizer": {"state": {"0": {"exp_avg": s["norm.bias"]}}}},
        "it holds optimizer.state.0.exp_avg",
    ),
    "a list": (lambda s, _: [s], r"it holds other things than tensors with names: a list of (dict|OrderedDict)"),
    "numpy arrays": (
        lambda s, _: {name: tensor.numpy() for name, tensor in s.items()}, r"with names: stage0\S+ \(ndarray\)",
    ),
    "an adapter alone": (
        lambda s, _: {"base_model.model.head.lora_A.weight": torch.zeros(2, 8)},
        r"is an adapter of peft without .*torch.save\(model.merge_and_unload\(\).state_dict\(\), 'weights.pth'\)",
    ),
    "a tensor too many": (lambda s, _: {**s, "stage0.extra": torch.zeros(2)}, "unexpected: stage0.extra"),
    "an adapter": (
        lambda s, _: {**s, "stage0.blocks.0.mlp.fc1.lora_A.weight": torch.zeros(2, 8)}, "unexpected: .*lora_A.weight"
    ),
    "a tensor too few": (lambda s, _: {k: v for k, v in s.items() if k != "norm.bias"}, "missing: norm.bias"),
    "quantised": (
        lambda s, _: {**s, "head.weight": torch.quantize_per_tensor(s["head.weight"], 0.1, 0, torch.qint8)},
        "head.weight: is of qint8; quantised weights cannot be read",
    ),
    "int8": (lambda s, _: {**s, "head.bias": s["head.bias"].to(torch.int8)}, "head.bias: 10 torch.int8 instead of 10"),
    "float8": (
        lambda s, _: {**s, "head.bias": s["head.bias"].to(torch.float8_e4m3fn)}, "head.bias: is of float8_e4m3fn; quan"
    ),
    "sparse": (lambda s, _: {**s, "head.weight": s["head.weight"].to_sparse()}, "head.weight: is laid out as torch.sp"),
    "no values": (lambda s, _: {**s, "norm.bias": torch.zeros(16, device="meta")}, "norm.bias: has no values"),
    "not finite": (lambda s, _: {**s, "norm.bias": s["norm.bias"] / 0}, "norm.bias: holds values that are not finite"),
    "a command": (
        lambda s, folder: {"model": s, "args": Pickled(folder / "owned")},
        r"holds posix.system, which may run code as it is read; save its weights alone: torch.save\(model",
    ),
    "a function": (lambda s, _: {"model": s, "fn": sorted}, r"holds (builtins\.)?sorted, which may run code"),
    "a type of one's own": (lambda s, _: {"model": s, "cfg": Learner}, r"holds test_foreign_weights\.Learner, which"),
    "a module": (lambda _, __: build_model(ARCH), r"holds (a whole pickled module, )?cvt_nas\.model\.network\.CvT, wh"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("form", "is_zip"),
    [
        *((form, True) for form in REFUSED),
        *((form, False) for form in ("quantised", "a command", "a function", "a type of one's own", "a module")),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of torch, which makes the files
def test_what_is_no_network_to_be_read_is_refused_by_name(
    state: State, form: str, is_zip: bool, tmp_path: Path
) -> None:
    make, message = REFUSED[form]
    path = tmp_path / "weights.pth"
    torch.save(make(state, tmp_path), path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ArchError, match=message) as caught:
        load_checkpoint(path, ARCH)
    assert str(path) in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.filterwarnings("ignore")  # of torchao
def test_weights_that_torchao_quantised_are_refused(state: State, tmp_path: Path) -> None:
    import torchao.quantization as torchao  # its import warns

    model = build_model(ARCH)
    model.load_state_dict(state)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ArchError, match=r"weight: is a \w+, must be a plain tensor; quantised weights cannot be read"):
        load_checkpoint(tmp_path / "w.pth", ARCH)


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))


def program(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), str(path.with_suffix(".pt2")))
    path.with_suffix(".pt2").rename(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (torchscript, "is a TorchScript archive"),
        (program, "is a program of torch.export"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid x\n"),
            "is a pointer of Git LFS",
        ),
        (lambda path: path.write_text("<!DOCTYPE html><html>Sign in</html>"), "is a web page"),
        (lambda path: path.write_text('{"model_type": "cvt"}'), "is JSON"),
        (lambda path: path.write_bytes(b"\x1f\x8b\x08"), "is compressed by gzip"),
        (lambda path: path.write_text("hello"), "is neither a file of torch.save nor of safetensors"),
        (
            lambda path: torch.save({"a": torch.zeros(2)}, path, pickle_protocol=4),
            "another protocol than torch.save's own",
        ),
        (lambda path: path.write_bytes(pickle.dumps({"a": [1]}, protocol=4)), "cannot be read"),
    ],
    ids=["torchscript", "program", "empty", "lfs", "html", "json", "gzip", "text", "protocol", "pickle"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_file_of_another_kind_is_named(write: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    write(tmp_path / "weights.pth")
    with pytest.raises(ArchError, match=f"weights.pth: .*{message}"):
        read_weights(tmp_path / "weights.pth")


def test_a_file_is_read_by_its_content_whatever_its_name_says(state: State, trained: CvT, tmp_path: Path) -> None:
    save_file(state, tmp_path / "weights.pth")
    assert torch.equal(load_checkpoint(tmp_path / "weights.pth", ARCH).head.weight, trained.head.weight)


def test_a_file_without_checksums_is_read(state: State, trained: CvT, tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load_checkpoint(tmp_path / "w.pth", ARCH).head.weight, trained.head.weight)


def test_a_file_that_is_cut_off_is_refused(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "weights.pth")
    content = (tmp_path / "weights.pth").read_bytes()
    for size in (10, 1000, len(content) // 2, len(content) - 1):
        (tmp_path / "weights.pth").write_bytes(content[:size])
        with pytest.raises(ArchError, match="weights.pth: cannot be read"):
            read_weights(tmp_path / "weights.pth")


# --- transformers ----------------------------------------------------------------------------------------------------


def logits_there(port: Any, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return port(images).logits


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A CvT of transformers, as one file, in shards, and as before safetensors."""
    folder = tmp_path_factory.mktemp("port")
    model = port_of(GELU, folder / "whole")
    model.save_pretrained(folder / "shards", max_shard_size="20KB")
    assert len(list((folder / "shards").glob("*.safetensors"))) > 2
    (folder / "bin").mkdir()
    torch.save(model.state_dict(), folder / "bin" / "pytorch_model.bin")
    (folder / "bin" / "config.json").write_text((folder / "whole" / "config.json").read_text())
    return model, folder


def first_shard(folder: Path) -> Path:
    return min((folder / "shards").glob("*-of-*.safetensors"))


@pytest.mark.parametrize(
    "place",
    [
        lambda f: f / "whole",
        lambda f: f / "whole" / "model.safetensors",
        lambda f: f / "bin" / "pytorch_model.bin",
        lambda f: f / "shards",
        lambda f: f / "shards" / "model.safetensors.index.json",
        first_shard,
    ],
    ids=["folder", "file", "bin", "shards", "index", "a shard"],
)
def test_transformers_answers_the_same_however_it_is_named(
    port: tuple[Any, Path], place: Callable[[Path], Path]
) -> None:
    model, folder = port
    images = torch.randn(2, 3, 32, 32)
    found = load_checkpoint(place(folder))
    with torch.inference_mode():
        torch.testing.assert_close(found(images), logits_there(model, images), atol=1e-4, rtol=0)
    assert found.arch.stages == GELU.stages
    other_arch = load_arch("cvt-13")
    with pytest.raises(ArchError, match=f"--arch: {other_arch.id} is not the architecture of .*config.json"):
        load_checkpoint(place(folder), other_arch)
    other_heads = per_stage(**{**SHAPE_OF_GELU, "heads": (2, 2, 3)})
    with pytest.raises(ArchError, match=r"num_heads: 2 instead of 1 in stage 0; leave it out"):
        load_checkpoint(place(folder), other_heads)


SHAPE_OF_GELU: dict[str, Any] = {
    "image_size": 32, "dims": (16, 32, 48), "depths": (1, 2, 3), "heads": (1, 2, 3), "kernels": (3, 5, 3),
    "strides": (2, 1, 2), "ratios": (2.0, 1.0, 3.0), "activation": "gelu",
}  # fmt: skip


def test_a_file_away_from_its_config_is_taken_for_nothing_that_shapes_do_not_tell(
    port: tuple[Any, Path], tmp_path: Path
) -> None:
    model, folder = port
    alone = tmp_path / "model.safetensors"
    alone.write_bytes((folder / "whole" / "model.safetensors").read_bytes())
    with pytest.raises(
        ArchError, match="name its architecture by --arch: heads, strides and paddings show in no weight"
    ):
        load_checkpoint(alone)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        found = load_checkpoint(alone, GELU)(images)
    torch.testing.assert_close(found, logits_there(model, images), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "x" * 300]
)
def test_an_index_that_names_files_elsewhere_is_refused(port: tuple[Any, Path], name: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    (tmp_path / "config.json").write_text((port[1] / "whole" / "config.json").read_text())
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ArchError, match="weight_map: got .* must be the name of a file beside it"):
        read_weights(tmp_path)


def test_a_shard_that_is_missing_is_named(port: tuple[Any, Path], tmp_path: Path) -> None:
    for file in (port[1] / "shards").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    last = max(tmp_path.glob("*-of-*"))
    last.unlink()
    for path in (tmp_path, first_shard(port[1]).name):
        with pytest.raises(ArchError, match=f"its shard {last.name} is missing"):
            read_weights(tmp_path / path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ArchError, match=f"its shard {last.name} is missing"):
        read_weights(tmp_path / first_shard(port[1]).name)


def test_a_backbone_begins_a_training_and_classifies_nothing(tmp_path: Path) -> None:
    from transformers import CvtForImageClassification

    whole: Any = port_of(GELU, tmp_path / "whole")
    assert isinstance(whole, CvtForImageClassification)
    whole.cvt.save_pretrained(tmp_path / "backbone")
    with pytest.raises(
        ArchError, match="has no head: it is a backbone, which classifies nothing; `train --init` takes it"
    ):
        load_checkpoint(tmp_path / "backbone")
    model = build_model(GELU)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    notes = initialise(model, tmp_path / "backbone", classes=tuple("abcdefghij"))
    assert "the head begins afresh: the weights are of a backbone without one" in notes
    expected = load_checkpoint(tmp_path / "whole").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name.startswith(("head.", "norm.")) else expected[name]), name


def test_the_folder_that_timm_writes_is_read_by_its_config(tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    import cvt_nas.timm  # noqa: F401
    from cvt_nas.arch import arch_to_dict

    model: Any = timm.create_model("cvt_nas", arch=arch_to_dict(ARCH), num_classes=3).eval()
    randomise(model)
    labels, arguments = {"label_names": ["cat", "dog", "fish"]}, {"arch": arch_to_dict(ARCH)}
    save_for_hf(model, str(tmp_path), model_config=labels, model_args=arguments, safe_serialization=True)
    assert not (tmp_path / "arch.json").exists()
    found = load_checkpoint(tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(found(IMAGES), model(IMAGES), atol=1e-6, rtol=0)
    assert read_weights(tmp_path).classes == ("cat", "dog", "fish")


# --- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (("cat", "dog", "fish"), ("fish", "cat", "dog"), (1, 2, 0)),
        (("Cat", "hot_dog"), ("hot dog", "cat"), (1, 0)),
        (("a-b", "a_b"), ("a b", "c"), (None, None)),
        (("a-b", "a_b"), ("a_b", "a-b"), (1, 0)),
        (("cat", "bird"), ("cat", "dog"), (0, None)),
        (("n01440764", "n01443537"), ("goldfish, Carassius auratus", "tench, Tinca tinca"), (1, 0)),
        (("tench", "goldfish"), ("n01443537", "n01440764"), (1, 0)),
        (("n01440764-tench", "n01443537_goldfish"), ("goldfish, Carassius auratus", "n01440764 tench"), (1, 0)),
        (("n014407640", "n01440764x"), ("tench, Tinca tinca", "goldfish"), (None, None)),
        (("crane",), ("n02012849", "n03126707"), (None,)),
        (("0", "1"), ("1", "0"), (1, 0)),
        (("cat", "cat"), ("cat", "dog"), (None, None)),
        (("dog",), ("cat", "dog"), (1,)),
        (("cafe\u0301", "tea"), ("tea", "caf\u00e9"), (1, 0)),
        (("Cafe\u0301 au lait",), ("caf\u00e9_au_lait",), (0,)),
    ],
)  # fmt: skip
def test_classes_are_matched_by_what_their_names_mean(
    ours: tuple[str, ...], theirs: tuple[str, ...], expected: tuple[int | None, ...]
) -> None:
    assert match_classes(ours, theirs) == expected


def test_all_of_imagenets_classes_are_matched_by_id_and_by_words() -> None:
    from timm.data.imagenet_info import ImageNetInfo

    info: Any = ImageNetInfo()
    ids, words = info.label_names(), info.label_descriptions()
    assert match_classes(ids, words) == match_classes(words, ids) == tuple(range(1000))


@pytest.mark.parametrize(
    "beside",
    [
        {"class_names": ["b", "c", "a"]},
        {"classes": ("b", "c", "a")},
        {"class_to_idx": {"a": 2, "b": 0, "c": 1}},
        {"meta": {"CLASSES": ("b", "c", "a"), "epoch": 3}},
        {"hyper_parameters": {"id2label": {0: "b", 1: "c", 2: "a"}}},
        {"args": argparse.Namespace(classes=["b", "c", "a"])},
        {"class_to_idx": {"a": np.int64(2), "b": np.int64(0), "c": np.int64(1)}},
        {"class_to_idx": {"a": torch.tensor(2), "b": torch.tensor(0), "c": torch.tensor(1)}},
        {"classes": np.array(["b", "c", "a"])},
        {"meta": {"dataset_meta": {"classes": ["b", "c", "a"]}}},
        {"hyper_parameters": {"data": {"classes": ["b", "c", "a"]}}},
        {"categories": ["b", "c", "a"]},
        {"idx_to_class": {0.0: "b", 1.0: "c", 2.0: "a"}},
        {"idx_to_class": {"0": "b", "1": "c", "2": "a"}},
        {"id2label": {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, "label2id": {"b": 0, "c": 1, "a": 2}},
        {"class_names": ["a", "b"], "classes": ["b", "c", "a"]},
        {"idx2label": {0: "b", 1: "c", 2: "a"}},
        {"label_to_index": {"a": 2, "b": 0, "c": 1}},
        {"vocab": ["b", "c", "a"]},
        {"anything": ["b", "c", "a"], "splits": ["train", "val", "test"]},
        {"x": {"y": [{"z": {"q": ("b", "c", "a")}}]}},
        {"classes": [b"b", b"c", b"a"]},
        {"classes": "b, c, a"},
        {"classes": '{"0": "b", "1": "c", "2": "a"}'},
        {"classes": "{'b': 0, 'c': 1, 'a': 2}"},
        {"pairs": [(1, "c"), (0, "b"), (2, "a")]},
        {"categories": [{"id": 1, "name": "c", "isthing": 1}, {"id": 0, "name": "b"}, {"id": 2, "name": "a"}]},
        {"categories": [{"id": 1, "name": "b", "supercategory": "x"}, {"id": 2, "name": "c"}, {"id": 3, "name": "a"}]},
        {"idx_to_class": {1: "b", 2: "c", 3: "a"}},
        {"class_index": {"0": ["b", "bee"], "1": ["c", "sea"], "2": ["a", "ay"]}},
        {"opt": argparse.Namespace(names=["b", "c", "a"])},
        {"optimizer": {"names": ["a", "b", "c"]}, "names": ["b", "c", "a"]},
        {"class_counts": {"a": 0, "b": 1, "c": 2}, "sorted_by_acc": ["a", "b", "c"], "names": ["b", "c", "a"]},
    ],
    ids=str,
)
def test_a_head_is_put_into_the_order_of_the_data_by_the_names_that_a_checkpoint_has(
    beside: dict[str, Any], tmp_path: Path
) -> None:
    arch = dataclasses.replace(ARCH, num_classes=3)
    source, model = build_model(arch), build_model(arch)
    torch.save({"state_dict": source.state_dict(), **beside}, tmp_path / "w.pth")
    notes = initialise(model, tmp_path / "w.pth", classes=("a", "b", "c"))
    assert notes[-1] == "the rows of the head are put into the data's order, by the names of the classes"
    assert torch.equal(model.head.weight, source.head.weight[[2, 0, 1]])
    pair = build_model(dataclasses.replace(ARCH, num_classes=2))
    assert initialise(pair, tmp_path / "w.pth", classes=("a", "c"))[-1].startswith("the rows of the head are 2 of 3")
    assert torch.equal(pair.head.weight, source.head.weight[[2, 1]])
    strange, fresh = build_model(arch), None
    fresh = strange.head.weight.clone()
    notes = initialise(strange, tmp_path / "w.pth", classes=("a", "b", "zebra"))
    assert notes[-1] == (
        "the rows of the head are 2 of 3, by the names of the classes; 1 begin afresh, such as that of 'zebra'"
    )
    assert torch.equal(strange.head.weight, torch.stack([*source.head.weight[[2, 0]], fresh[2]]))
    notes = initialise(pair, tmp_path / "w.pth", classes=("ape", "bee"))
    assert notes[-1].startswith("the head begins afresh: 2 classes instead of 3")


NAMED_BESIDE = {
    "classes.txt": "b\nc\na\n",
    "labels.txt": "0 b\n1 c\n2 a\n",
    "classes.names": "b\nc\na\n",
    "label_map.txt": "1: b\n2: c\n3: a\n",
    "class_indices.json": '{"0": "b", "1": "c", "2": "a"}',
    "class_to_idx.json": '{"a": 2, "b": 0, "c": 1}',
    "imagenet_class_index.json": '{"0": ["b", "bee"], "1": ["c", "sea"], "2": ["a", "ay"]}',
    "id2label.json": '{"0": "b", "1": "c", "2": "a"}',
    "labels.json": '["b", "c", "a"]',
    "w_classes.txt": "a, 2\r\nb, 0\r\nc, 1\r\n",
    "config.json": '{"data": {"classes": ["b", "c", "a"]}}',
}


@pytest.mark.parametrize("name", NAMED_BESIDE)
def test_a_head_is_put_into_the_order_of_the_data_by_the_names_in_a_file_beside_it(name: str, tmp_path: Path) -> None:
    arch = dataclasses.replace(ARCH, num_classes=3)
    source, model = build_model(arch), build_model(arch)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    (tmp_path / name).write_text(NAMED_BESIDE[name])
    notes = initialise(model, tmp_path / "w.pth", classes=("a", "b", "c"))
    assert torch.equal(model.head.weight, source.head.weight[[2, 0, 1]])
    assert notes[0] == "the order of the classes is that of the files beside w.pth: b, c, a"


def test_names_that_end_in_numbers_are_names(tmp_path: Path) -> None:
    arch = dataclasses.replace(ARCH, num_classes=3)
    source, model = build_model(arch), build_model(arch)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    (tmp_path / "classes.txt").write_text("class 0\nclass 1\nclass 2\n")
    initialise(model, tmp_path / "w.pth", classes=("class 2", "class 0", "class 1"))
    assert torch.equal(model.head.weight, source.head.weight[[2, 0, 1]])


@pytest.mark.parametrize("metadata", [{"classes": "b,c,a"}, {"meta": '{"id2name": {"0": "b", "1": "c", "2": "a"}}'}])
def test_names_in_the_metadata_of_safetensors_are_read(metadata: dict[str, str], tmp_path: Path) -> None:
    arch = dataclasses.replace(ARCH, num_classes=3)
    save_file(build_model(arch).state_dict(), tmp_path / "w.safetensors", metadata)
    told, _ = read_weights(tmp_path / "w.safetensors").names.matching(("a", "b", "c"))
    assert told is not None
    assert told.names == ("b", "c", "a")


def test_names_in_two_orders_are_refused_and_both_named(state: State, tmp_path: Path) -> None:
    torch.save({"model": state, "one": list("abcdefghij"), "other": list("jihgfedcba")}, tmp_path / "w.pth")
    with pytest.raises(ArchError, match=r"w.pth: one \(0 a, .*\) and other \(0 j, .*\) name the same classes in diff"):
        initialise(build_model(ARCH), tmp_path / "w.pth", classes=tuple("abcdefghij"))
    save_file(state, tmp_path / "model.safetensors", {"classes": ",".join("abcdefghij")})
    (tmp_path / "labels.txt").write_text("\n".join("jihgfedcba"))
    with pytest.raises(ArchError, match=r"labels.txt \(0 j, .*\) and classes \(0 a, "):
        initialise(build_model(ARCH), tmp_path, classes=tuple("abcdefghij"))


def test_names_that_are_numbers_are_by_the_index_that_ascends(tmp_path: Path) -> None:
    ours, arch = tuple(sorted(map(str, range(12)))), dataclasses.replace(ARCH, num_classes=12)
    by_index = {str(index): name for index, name in enumerate(ours)}
    for told in (by_index, {name: index for index, name in by_index.items()}):
        torch.save({"model": build_model(arch).state_dict(), "map": told}, tmp_path / "w.pth")
        found, _ = read_weights(tmp_path / "w.pth").names.matching(ours)
        assert found is not None
        assert found.names == ours


def test_numbered_classes_without_names_are_taken_where_they_have_one_order_alone(tmp_path: Path) -> None:
    arch = dataclasses.replace(ARCH, num_classes=12)
    torch.save(build_model(arch).state_dict(), tmp_path / "w.pth")
    for ours in (sorted(map(str, range(12))), sorted(str(index + 1) for index in range(12))):
        with pytest.raises(ArchError, match=r"of text, 0 \d, 1 1\d?, .* numbers, .* in a file classes.txt beside it"):
            initialise(build_model(arch), tmp_path / "w.pth", classes=ours)
    notes = initialise(build_model(arch), tmp_path / "w.pth", classes=[f"{index:02}" for index in range(12)])
    assert "taken in the data's order, 0 00, 1 01" in notes[-1]


def test_a_published_network_has_imagenets_classes_whatever_the_folders_are_sorted_by() -> None:
    from timm.data.imagenet_info import ImageNetInfo

    from cvt_nas.model import ClassNames, is_published

    names, info = ClassNames(path=Path("w.pth")), ImageNetInfo()
    by_text: tuple[str, ...] = tuple(sorted(map(str, range(1000))))
    rows, note = names.rows_without_names(by_text, "why", is_published=True)
    assert rows == tuple(map(int, by_text))
    assert note == "why: they are taken in the published networks' order, 0 0, 1 1, 2 2, ..."
    rows, _ = names.rows_without_names(info.label_names()[::-1], "why", is_published=True)
    assert rows == tuple(reversed(range(1000)))
    words = sorted(word.split(",")[0] for word in info.label_descriptions())
    with pytest.raises(
        ArchError, match="it may be a published network: '.*' and others are none of ImageNet's classes"
    ):
        names.rows_without_names(words, "why", is_published=True)
    with pytest.raises(ArchError, match="nothing tells whether"):
        names.rows_without_names(by_text, "why", is_published=False)
    arch = load_arch("cvt-13")
    weights: Any = types.SimpleNamespace(num_classes=1000, source=None)
    assert is_published(weights, arch.with_image_size(384))
    assert not is_published(weights, dataclasses.replace(load_arch("cvt-13-cifar"), num_classes=1000))
    weights.source = Path("arch.json")  # as of a training of one's own
    assert not is_published(weights, arch)


@pytest.mark.parametrize(
    ("beside", "why"),
    [
        (
            {"splits": [f"part {index}" for index in range(10)]},
            "splits holds other names than the data, and nothing else has any",
        ),
        ({"class_names": list("abcd")}, "class_names: names 4 classes, the head has 10"),
        ({"meta": {"classes": list("aabcdefghi")}}, "meta.classes: names 'a' more than once"),
        ({"class_to_idx": {"a": 1, "b": 3}}, "class_to_idx: must have one name for each index from 0"),
        ({"labels": [3, 1, 2], "names": 3, "classes": {}}, "nothing beside the weights names their classes"),
    ],
    ids=str,
)
def test_names_that_cannot_be_used_are_said(beside: dict[str, Any], why: str, state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": state, **beside}, tmp_path / "w.pth")
    notes = initialise(build_model(ARCH), tmp_path / "w.pth", classes=tuple("abcdefghij"))
    assert notes[-1] == f"{why}: they are taken in the data's order, 0 a, 1 b, 2 c, ..."


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("labels.csv", "0,j\n", "labels.csv is not read, which .txt .json .names are"),
        ("w_classes.yaml", "names: [j]\n", "w_classes.yaml is not read, which .txt .json .names are"),
    ],
)
def test_names_beside_that_are_not_taken_are_said(
    name: str, content: str, note: str, state: State, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "w.pth")
    (tmp_path / name).write_text(content)
    assert any(note in line for line in initialise(build_model(ARCH), tmp_path / "w.pth", classes=tuple("abcdefghij")))


@pytest.mark.parametrize(
    "told",
    [
        {"model_type": "cvt", "label2id": {"fish": 0, "cat": 1, "dog": 2}},
        {"model_type": "cvt", "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
         "label2id": {"fish": 0, "cat": 1, "dog": 2}},
        {"model_type": "cvt", "id2label": ["fish", "cat", "dog"]},
        {"architecture": "cvt_13", "pretrained_cfg": {"label_names": ["fish", "cat", "dog"]}},
    ],
)  # fmt: skip
def test_the_names_in_a_config_are_read_wherever_they_are(told: dict[str, Any]) -> None:
    assert class_names_of_config(told, Path("config.json")) == ("fish", "cat", "dog")


def test_a_file_of_ones_own_beside_another_networks_config_is_said_or_passed_over(
    state: State, trained: CvT, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "mine.pth")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(
        ArchError, match=r"model_type: got 'vit'.*; move .*mine.pth into a folder of its own, or name its"
    ):
        load_checkpoint(tmp_path / "mine.pth")
    notes: list[str] = []
    model = load_checkpoint(tmp_path / "mine.pth", ARCH, on_note=notes.append)
    assert torch.equal(model.head.weight, trained.head.weight)
    assert notes == [f"{tmp_path}/config.json: model_type: got 'vit', must be 'cvt'; it is passed over, since mine.pth "
                     f"may be of another network"]  # fmt: skip
    assert initialise(build_model(ARCH), tmp_path / "mine.pth")[0] == notes[0]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ArchError, match="model_type: got 'vit', must be 'cvt'$"):
        load_checkpoint(tmp_path, ARCH)

    other_heads = {**json.loads(json.dumps(arch_to_dict(ARCH))), "num_classes": 10}
    other_heads["stages"][0]["blocks"][0]["num_heads"] = 1
    (tmp_path / "arch.json").write_text(json.dumps(other_heads))
    notes.clear()
    found = load_checkpoint(tmp_path / "mine.pth", on_note=notes.append)
    assert found.arch.stages[0].blocks[0].num_heads == 1
    assert notes == [f"the network of mine.pth is taken from {tmp_path}/arch.json"]
    notes.clear()
    assert load_checkpoint(tmp_path / "mine.pth", ARCH, on_note=notes.append).arch == ARCH
    assert notes == [
        f"{tmp_path}/arch.json: is of another network than the architecture that is given, and is passed over"
    ]


def test_a_folder_with_other_names_lists_the_files_of_weights(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "epoch3.ckpt")
    (tmp_path / "log.txt").touch()
    with pytest.raises(ArchError, match=r"nor pytorch_model.bin; give one of its files: epoch3.ckpt$"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["parts/.metadata", "parts/__0_0.distcp"], "parts: is a checkpoint of torch.distributed; join its parts: "),
        (["zero_to_fp32.py", "latest"], "is a checkpoint of DeepSpeed; join its parts: python .*zero_to_fp32.py "),
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter of peft without the network"),
        (["blobs/1f", "snapshots/c0/model.safetensors"], "give one of its folders: .*snapshots/c0"),
    ],
)
def test_a_folder_of_weights_in_another_form_says_what_makes_them_readable(
    files: list[str], message: str, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ArchError, match=message):
        read_weights(tmp_path)


def test_two_orders_of_the_classes_in_one_folder_are_refused(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "model.safetensors")
    names = list("abcdefghij")
    config = {"architecture": "cvt_nas", "model_args": {"arch": arch_to_dict(ARCH)}, "label_names": names,
              "num_classes": 10, "pretrained_cfg": {"input_size": [3, 16, 16]}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessing.json").write_text(json.dumps({"classes": names}))
    assert read_weights(tmp_path).classes == tuple(names)
    (tmp_path / "preprocessing.json").write_text(json.dumps({"classes": names[::-1]}))
    with pytest.raises(ArchError, match="config.json: has other names of classes, or another order, than preproc"):
        read_weights(tmp_path)


def test_a_checkpoints_own_names_come_before_those_beside_it(state: State, tmp_path: Path) -> None:
    beside = {"classes": list("jihgfedcba")}
    (tmp_path / "preprocessing.json").write_text(json.dumps(beside))
    torch.save({"model": state, "classes": list("abcdefghij")}, tmp_path / "own.pth")
    torch.save(state, tmp_path / "none.pth")
    assert read_weights(tmp_path / "own.pth").classes == tuple("abcdefghij")
    found = read_weights(tmp_path / "none.pth")
    assert found.classes == tuple("jihgfedcba")
    assert found.notes == ("the order of the classes is that of the files beside none.pth: j, i, h, ...",)


def test_without_names_the_order_that_was_taken_is_said(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pth")
    notes = initialise(build_model(ARCH), tmp_path / "w.pth", classes=tuple("abcdefghij"))
    assert notes == (
        "nothing beside the weights names their classes: they are taken in the data's order, 0 a, 1 b, 2 c, ...",
    )


# --- a supernet that begins with them --------------------------------------------------------------------------------


def test_a_supernet_takes_what_shapes_tell_and_says_what_they_do_not(tmp_path: Path) -> None:
    from cvt_nas.space import SearchSpace, StageSpace
    from cvt_nas.supernet import Supernet, begin_supernet, lend_to

    def stage(width: int, heads: tuple[int, ...], *, token: bool) -> StageSpace:
        return StageSpace(
            patch_kernel=(3,), patch_stride=(2,), patch_padding=1, embed_dim=(width,), depth=(1,), kv_stride=(1,),
            kernel_size=(3,), num_heads=heads, mlp_ratio=(1.0,), projection=("dw_bn",), class_token=token,
        )  # fmt: skip

    space = SearchSpace(
        image_size=16,
        num_channels=3,
        num_classes=3,
        bounds={},
        stages=(stage(8, (1, 2), token=False), stage(16, (4,), token=True)),
    )
    arch = space.largest
    source = build_model(arch)
    torch.save({"model": source.state_dict(), "classes": ["b", "c", "a"]}, tmp_path / "w.pth")
    lent, notes = lend_to(space, read_weights(tmp_path / "w.pth"), classes=("a", "b", "c"))
    supernet = Supernet(space)
    begin_supernet(supernet, lent)
    assert torch.equal(supernet.shared.head.weight, source.head.weight[[2, 0, 1]])
    assert torch.equal(supernet.shared.norm.weight, source.norm.weight)
    assert notes == (
        f"{tmp_path}/w.pth: took 'model'; left classes",
        "the rows of the head are put into the data's order, by the names of the classes",
        f"{tmp_path}/w.pth: nothing tells the heads, strides and paddings that the weights were trained with; those of "
        f"the space are used",
    )
    torch.save({k: v for k, v in source.state_dict().items() if "norm1" not in k}, tmp_path / "part.pth")
    with pytest.raises(ArchError, match=r"missing: stage0\.blocks\.0\.norm1\.weight"):
        lend_to(space, read_weights(tmp_path / "part.pth"), classes=("a", "b", "c"))


def test_an_architecture_of_another_tool_is_one_here(port: tuple[Any, Path], tmp_path: Path) -> None:
    for place in (port[1] / "whole", port[1] / "whole" / "config.json"):
        assert load_arch(place).stages == GELU.stages
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ArchError, match="config.json: model_type: got 'vit', must be 'cvt'"):
        load_arch(tmp_path)
    for name in ("CvT-13", "cvt_13", "CVT13", "microsoft/cvt-13"):
        with pytest.raises(ArchError, match="did you mean 'cvt-13'"):
            load_arch(name)


def test_no_architecture_is_suggested_for_what_is_none() -> None:
    with pytest.raises(ArchError) as caught:
        load_arch("resnet50")
    assert "did you mean" not in str(caught.value)


def test_one_stage_is_enough_for_a_network(tmp_path: Path) -> None:
    stage = StageConfig(patch_kernel=3, patch_stride=2, patch_padding=1, embed_dim=8, blocks=(BlockConfig(),))
    arch = ArchConfig(image_size=8, num_classes=2, stages=(stage,))
    source = build_model(arch)
    torch.save({"net": prefixed(source.state_dict(), "encoder.")}, tmp_path / "w.pth")
    assert torch.equal(load_checkpoint(tmp_path / "w.pth", arch).head.weight, source.head.weight)
