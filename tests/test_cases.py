"""Files and settings that people bring: one row a case, what an earlier version made of it, and the right answer.

Most rows run the command line on real files. `before` is what version 0.1.0 of November 2026 did.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cvt_nas
from cvt_nas.arch import ArchConfig, BlockConfig, StageConfig, save_arch
from cvt_nas.cli import main
from cvt_nas.config import DataConfig
from cvt_nas.data import load_data
from cvt_nas.data.images import IMAGENET_MEAN, IMAGENET_STD
from cvt_nas.export.hugging_face import write_hugging_face
from cvt_nas.model import CvT, load_checkpoint

CLASSES = ("cat", "dog", "fish")
SPACE = """
format: 1
name: tiny
space:
  image_size: 16
  num_classes: 3
  stages:
    - {patch: {kernel: 3, stride: 2, padding: 1}, embed_dim: [8, 16], depth: 1, num_heads: [1, 2], mlp_ratio: 1.0}
    - {patch: {kernel: 3, stride: 2, padding: 1}, embed_dim: [16, 32], depth: 1, num_heads: 2, mlp_ratio: 1.0}
data: {dataset: imagefolder, search_fraction: 0.25, num_workers: 0}
training: {epochs: 2, batch_size: 8, lr: 3.0e-3}
search: {trials: 2, grace_period: 1}
"""


def stage(dim: int, heads: int, depth: int) -> StageConfig:
    block = BlockConfig(kv_stride=2, kernel_size=3, num_heads=heads, mlp_ratio=1.0, activation="gelu")
    return StageConfig(
        patch_kernel=3, patch_stride=2, patch_padding=1, embed_dim=dim, blocks=(block,) * depth, class_token=depth > 1
    )


# one that transformers can be, too; no weight shows its heads
ARCH = ArchConfig(image_size=16, num_classes=3, stages=(stage(8, 2, 1), stage(16, 4, 2)))


def picture(name: str, number: int, *, names: tuple[str, ...] = CLASSES) -> np.ndarray:
    """Colour noise, with a channel that is brighter for each class: `(20, 24, 3)`, uint8."""
    index = names.index(name)
    pixels = np.random.default_rng((index, number)).integers(0, 90, (20, 24, 3))
    pixels[..., index % 3] += 120
    return pixels.astype(np.uint8)


def write_images(
    root: Path, *splits: str, names: tuple[str, ...] = CLASSES, num_images: int = 8, suffix: str = ".png"
) -> Path:
    """A folder a class in each of `splits`; `.` is `root` itself."""
    for split in splits:
        for name in names:
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(num_images):
                Image.fromarray(picture(name, number, names=names)).save(folder / f"{number}{suffix}")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> CvT:
    """A network that tells the three classes apart without a mistake, and never by chance."""
    root = write_images(tmp_path_factory.mktemp("colours"), "train", "val")
    data = load_data(
        DataConfig(dataset="imagefolder", num_workers=0, search_fraction=0.25),
        root=root, image_size=16, num_channels=3, num_classes=3,
    )  # fmt: skip
    (images, labels), *_ = data.eval_batches("train", batch_size=64, device=torch.device("cpu"))
    torch.manual_seed(0)
    model = CvT(ARCH)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.eval()
    (images, labels), *_ = data.eval_batches("test", batch_size=64, device=torch.device("cpu"))
    assert (model(images).argmax(dim=1) == labels).all()
    return model


class Desk:
    """A folder of its own for one case, with the usual files in it, and the command line."""

    def __init__(self, folder: Path, model: CvT, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.model, self._capsys = folder, model, capsys

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def images(self, *splits: str, **how: Any) -> Path:
        return write_images(self.folder / "data", *(splits or ("train", "val")), **how)

    def space(self, *changes: tuple[str, str]) -> Path:
        text = SPACE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (self / "space.yaml").write_text(text)
        return self / "space.yaml"

    def arch(self) -> Path:
        save_arch(self.model.arch, self / "arch.json")
        return self / "arch.json"

    def saved(self, wrapped: Any, name: str = "weights.pth") -> Path:
        torch.save(wrapped, self / name)
        return self / name

    def run(self, *words: str | Path) -> str:
        """Exit status, what went to stdout, and what went to stderr, as one text."""
        status = main([str(word) for word in words])
        printed = self._capsys.readouterr()
        return f"exit {status}\n{printed.out}{printed.err}"

    def eval(self, weights: Path, *words: str | Path, data: Path | None = None) -> str:
        return self.run("eval", weights, "--data", data or self.images(), "--device", "cpu", *words)

    def eval_state(self, wrapped: Any, *words: str) -> str:
        return self.eval(self.saved(wrapped), "--arch", self.arch(), *words)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row.

    Args:
        before: What an earlier version did; for people.
        after: Regular expressions that the outcome holds, each of them.
        is_slow: Whether the row starts Ray, though a test of the search has the same outcome.
    """

    name: str
    before: str
    after: tuple[str, ...]
    outcome: Callable[[Desk], str]
    is_slow: bool = False


CASES: list[Case] = []


def case(
    name: str, *, before: str, after: str | tuple[str, ...], is_slow: bool = False
) -> Callable[[Callable[[Desk], str]], None]:
    def add(outcome: Callable[[Desk], str]) -> None:
        patterns = (after,) if isinstance(after, str) else after
        CASES.append(Case(name=name, before=before, after=patterns, outcome=outcome, is_slow=is_slow))

    return add


RIGHT = (r"exit 0", r"top-1 1\.0000")


# Weights: whose class is index 0?


def reordered(model: CvT, names: tuple[str, ...]) -> CvT:
    """The same network with its classes in the order of `names`, of which those that it does not know come first."""
    twin = CvT(ARCH)
    twin.load_state_dict(model.state_dict())
    rows = [CLASSES.index(name) for name in names]
    with torch.no_grad():
        twin.head.weight.copy_(model.head.weight[rows])
        twin.head.bias.copy_(model.head.bias[rows])
    return twin.eval()


def port(desk: Desk, names: tuple[str, ...] = CLASSES, *, called: tuple[str, ...] | None = None) -> Path:
    """A folder of transformers' with its classes in the order of `names`; `called` are other names for them."""
    (desk / "port").mkdir()
    facts = {"classes": called or names, "image_size": 16, "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
             "interpolation": "bicubic", "crop_pct": 0.875}  # fmt: skip
    write_hugging_face(reordered(desk.model, names), desk / "port", facts)
    return desk / "port"


def saved_by_transformers(desk: Desk, **how: Any) -> Path:
    from transformers import CvtForImageClassification

    model: Any = CvtForImageClassification.from_pretrained(port(desk))
    model.save_pretrained(desk / "again", **how)
    return desk / "again"


@case("transformers with its classes in another order", before="top-1 0.0000, exit 0", after=RIGHT)
def _(desk: Desk) -> str:
    return desk.eval(port(desk, ("fish", "cat", "dog")))


@case("transformers with class names in another case", before="top-1 0.0000, exit 0", after=RIGHT)
def _(desk: Desk) -> str:
    return desk.eval(port(desk, ("fish", "cat", "dog"), called=("Fish", "CAT", "Dog")))


@case("transformers without class names", before="no word", after=(*RIGHT, "note: .*order"))
def _(desk: Desk) -> str:
    return desk.eval(port(desk, called=("LABEL_0", "LABEL_1", "LABEL_2")))


@case("class names that match in part", before="an accuracy, exit 0", after=("exit 2", "wolf"))
def _(desk: Desk) -> str:
    return desk.eval(port(desk, ("fish", "cat", "dog"), called=("fish", "cat", "wolf")))


@case("a training that begins with classes in another order", before="rows of other classes", after="accuracy 1.0000")
def _(desk: Desk) -> str:
    space = desk.space(("lr: 3.0e-3", "lr: 1.0e-9, warmup_lr: 0.0, ema_decay: 0.0"), ("epochs: 2", "epochs: 1"))
    weights = port(desk, ("fish", "cat", "dog"))
    return desk.run("train", desk.arch(), "--space", space, "--data", desk.images(), "--init", weights,
                    "--gpus", "0", "--out", desk / "run")  # fmt: skip


ROTATED = ("fish", "cat", "dog")


def add_named(what: str, beside: Callable[[tuple[str, ...]], dict[str, Any]], after: tuple[str, ...] = RIGHT) -> None:
    @case(f"classes in another order, named by {what}", before="top-1 0.0000, exit 0", after=after)
    def _(desk: Desk) -> str:
        return desk.eval_state({"model": reordered(desk.model, ROTATED).state_dict(), **beside(ROTATED)})


add_named("a dict from indices", lambda names: {"idx2label": dict(enumerate(names))})
add_named("a dict to indices", lambda names: {"meta": {"label_to_id": {name: i for i, name in enumerate(names)}}})
add_named("a list of any key", lambda names: {"vocab": list(names)})
add_named("a text", lambda names: {"settings": {"classes": ",".join(names)}})
add_named("two lists", lambda names: {"a": list(names), "b": list(CLASSES)}, ("exit 2", "a .*fish.* and b .*cat"))
add_named("other words", lambda _: {"idx2label": {0: "Fisch", 1: "Katze", 2: "Hund"}}, ("exit 2", "Fisch.*idx2label"))


@case("a file of class names beside the weights", before="top-1 0.0000, exit 0", after=RIGHT)
def _(desk: Desk) -> str:
    (desk / "classes.txt").write_text("\n".join(ROTATED))
    return desk.eval_state(reordered(desk.model, ROTATED).state_dict())


TWELVE = tuple(sorted(map(str, range(12))))


def eval_twelve(desk: Desk, names: tuple[str, ...] | None) -> str:
    """On folders 0 to 11, a network that is right with every image where its rows are in the order of numbers."""
    wide = CvT(dataclasses.replace(ARCH, num_classes=12))
    wide.load_state_dict({name: value for name, value in desk.model.state_dict().items() if "head" not in name},
                         strict=False)  # fmt: skip
    with torch.no_grad():
        wide.head.weight.zero_()
        wide.head.bias.fill_(-9)
        for row, ours in zip((2, 5, 11), range(3), strict=True):
            wide.head.weight[row], wide.head.bias[row] = desk.model.head.weight[ours], desk.model.head.bias[ours]
    save_arch(wide.arch, desk / "arch.json")
    data = desk.folder / "data" / "val"
    for name in TWELVE:
        (data / name).mkdir(parents=True)
        colour = {"2": "cat", "5": "dog", "11": "fish"}.get(name, "cat")
        for number in range(8 if name in ("2", "5", "11") else 1):
            Image.fromarray(picture(colour, number)).save(data / name / f"{number}.png")
    (desk / "weights").mkdir()
    if names is not None:
        (desk / "weights" / "classes.txt").write_text("\n".join(names))
    torch.save(wide.state_dict(), desk / "weights" / "w.pth")
    return desk.run("eval", desk / "weights" / "w.pth", "--arch", desk / "arch.json", "--data", data, "--device", "cpu")


@case("numbered folders", before="the order of text, exit 0", after=("exit 2", "2 10", "2 2", "classes.txt"))
def _(desk: Desk) -> str:
    return eval_twelve(desk, None)


@case(
    "numbered folders, and the names", before="the order of text, exit 0", after=("exit 0", r"top-1 0\.7273")
)  # 24/33
def _(desk: Desk) -> str:
    return eval_twelve(desk, tuple(map(str, range(12))))


# Weights: the file instead of the folder


def difference(desk: Desk, weights: Path) -> str:
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = (load_checkpoint(weights).eval()(images) - desk.model(images)).abs().max()
    return "equal" if found < 1e-5 else f"other by {found:.3f}"


@case("the file in transformers' folder", before="other heads and paddings, exit 0", after="^equal$")
def _(desk: Desk) -> str:
    return difference(desk, port(desk) / "model.safetensors")


@case("transformers' shards", before="refused", after="^equal$")
def _(desk: Desk) -> str:
    folder = saved_by_transformers(desk, max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return difference(desk, folder)


@case("transformers' file away from its folder", before="other heads, exit 0", after=("exit 2", "heads", "--arch"))
def _(desk: Desk) -> str:
    (port(desk) / "model.safetensors").rename(desk / "alone.safetensors")
    return desk.eval(desk / "alone.safetensors")


@case("transformers' backbone", before="refused", after=("exit 2", "no head"))
def _(desk: Desk) -> str:
    from transformers import CvtForImageClassification

    model: Any = CvtForImageClassification.from_pretrained(port(desk))
    model.cvt.save_pretrained(desk / "backbone")
    return desk.eval(desk / "backbone")


# Weights: wrappers and prefixes


@case("the official training's own checkpoint", before="refused", after=RIGHT)
def _(desk: Desk) -> str:
    return desk.eval_state({"epoch": 1, "model": "cls_cvt", "state_dict": desk.model.state_dict(), "perf": 81.6})


@case("timm's checkpoint with its settings", before="refused, with an escape code", after=RIGHT)
def _(desk: Desk) -> str:
    settings = argparse.Namespace(lr=0.1, data_dir=Path("somewhere"))
    return desk.eval_state({"epoch": 1, "arch": "x", "state_dict": desk.model.state_dict(), "args": settings})


@case("a checkpoint with averaged weights", before="which was taken is not said", after=(*RIGHT, "note: .*ema"))
def _(desk: Desk) -> str:
    return desk.eval_state({"model": CvT(ARCH).state_dict(), "model_ema": desk.model.state_dict()})


@case("an optimizer's averages", before="top-1 0.3333, exit 0", after=(*RIGHT, "note: .*took 'model'; left optimizer"))
def _(desk: Desk) -> str:
    return desk.eval_state({"model": desk.model.state_dict(), "optimizer": {"exp_avg": CvT(ARCH).state_dict()}})


PREFIXES = {
    "compiled": "_orig_mod.",
    "parallel and compiled": "module._orig_mod.",
    "Lightning": "model.",
    "a wrapper of one's own": "student.backbone.",
}


def add_prefixed(name: str, prefix: str) -> None:
    @case(f"names that begin with those of {name}", before="refused", after=(*RIGHT, "note: .*" + re.escape(prefix)))
    def _(desk: Desk) -> str:
        return desk.eval_state({prefix + key: value for key, value in desk.model.state_dict().items()})


for _name, _prefix in PREFIXES.items():
    add_prefixed(_name, _prefix)


def add_wrapped(key: str) -> None:
    @case(f"weights in {key!r}", before="refused", after=(*RIGHT, f"note: .*{key}"))
    def _(desk: Desk) -> str:
        return desk.eval_state({key: desk.model.state_dict(), "acc": 0.5, "epoch": 3})


for _key in ("net", "model_ema", "module"):
    add_wrapped(_key)


@case("weights with a counter's totals", before="refused", after=RIGHT)
def _(desk: Desk) -> str:
    totals = {f"{name}.total_ops": torch.zeros(1) for name, _ in desk.model.named_modules() if name}
    return desk.eval_state({**desk.model.state_dict(), **totals})


@case("weights from before batch norm counted", before="refused", after=RIGHT)
def _(desk: Desk) -> str:
    state = desk.model.state_dict()
    return desk.eval_state({name: value for name, value in state.items() if "num_batches" not in name})


class Trainer:
    """Of somebody's own, in somebody's checkpoint."""


@case("a checkpoint with an object of somebody's own", before="a cut-off text", after=("exit 2", "Trainer"))
def _(desk: Desk) -> str:
    found = desk.eval_state({"state_dict": desk.model.state_dict(), "trainer": Trainer()})
    assert "\x1b" not in found
    return found


@case("statistics of batch norm that cannot be", before="exit 0, an accuracy of answers that are no numbers",
      after=("exit 2", "answers 24 of 24 images with numbers that are not finite; its weights may be"))  # fmt: skip
def _(desk: Desk) -> str:
    state = desk.model.state_dict()
    return desk.eval_state(
        {name: -tensor if name.endswith("running_var") else tensor for name, tensor in state.items()}
    )


@case("a checkpoint with a few bytes changed", before="exit 0, another accuracy",
      after=("exit 2", r"weights.pth: cannot be read: is damaged: weights/data/\d+ is not as it was"))  # fmt: skip
def _(desk: Desk) -> str:
    path = desk.saved(desk.model.state_dict())
    content, part = path.read_bytes(), desk.model.head.weight.detach().numpy().tobytes()
    assert content.count(part) == 1
    path.write_bytes(content.replace(part, part[::-1]))
    return desk.eval(path, "--arch", desk.arch())


@case("weights that come through a pipe", before="hangs, or a message of torch's", after=("exit 2", "no regular file"))
def _(desk: Desk) -> str:
    os.mkfifo(desk / "weights.pth")
    return desk.eval(desk / "weights.pth")


@case("a config with a byte order mark", before="refused", after=RIGHT)
def _(desk: Desk) -> str:
    for name in ("config.json", "preprocessor_config.json"):
        path = (desk / "port" if (desk / "port").exists() else port(desk)) / name
        path.write_text(path.read_text(), encoding="utf-8-sig")
    return desk.eval(desk / "port")


# Weights: what an architecture may be called, and how images are prepared


def add_misspelled(name: str) -> None:
    @case(f"{name} as an architecture", before="no hint", after="did you mean.*cvt-13|19,997,480")
    def _(desk: Desk) -> str:
        return desk.run("profile", name)


for _name in ("CvT-13", "cvt_13", "microsoft/cvt-13"):
    add_misspelled(_name)


@case("transformers' folder as an architecture", before="no hint", after=("exit 0", "heads 4, mlp 1, kernel 3"))
def _(desk: Desk) -> str:
    return desk.run("profile", port(desk))


def processor_changed(desk: Desk, **changes: Any) -> Path:
    path = port(desk) / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path.parent


@case("a processor with an unusual filter", before="cannot be read: 1", after=r"exit 0|resample.*(1|lanczos)")
def _(desk: Desk) -> str:
    return desk.eval(processor_changed(desk, resample=1))


@case("a processor of images that are not square", before="a traceback", after=("exit 0", "at 16 x 24"))
def _(desk: Desk) -> str:
    return desk.eval(processor_changed(desk, size={"height": 16, "width": 24}))


# Images: bits, orientation, folders, layouts


def brightness(number: int) -> np.ndarray:
    """Grey noise of one of three brightnesses, 16 bits."""
    index, which = divmod(number, 100)
    noise = np.random.default_rng((index, which)).integers(0, 12_000, (20, 24))
    return (noise + 20_000 * index).astype(np.uint16)


def grey_space(desk: Desk) -> Path:
    return desk.space(("  num_classes: 3", "  num_classes: 3\n  num_channels: 1"), ("epochs: 2", "epochs: 25"),
                      ("batch_size: 8", "batch_size: 4"))  # fmt: skip


def train_in(desk: Desk, space: Path, data: Path, arch: ArchConfig = ARCH, *words: str) -> str:
    save_arch(arch, desk / "arch.json")
    return desk.run("train", desk / "arch.json", "--space", space, "--data", data, "--gpus", "0",
                    "--out", desk / "run", *words)  # fmt: skip


def write_grey(desk: Desk, write: Callable[[np.ndarray, Path], None]) -> Path:
    for split, first in (("train", 0), ("val", 50)):
        for index, name in enumerate(CLASSES):
            (desk / "grey" / split / name).mkdir(parents=True)
            for number in range(first, first + 8):
                write(brightness(100 * index + number), desk / "grey" / split / name / f"{number}")
    return desk / "grey"


GREY_ARCH = ArchConfig(image_size=16, num_channels=1, num_classes=3, stages=ARCH.stages)
GREY_FILES: dict[str, Callable[[np.ndarray, Path], None]] = {
    "16-bit PNG": lambda pixels, path: Image.fromarray(pixels).save(f"{path}.png"),
    "16-bit TIFF": lambda pixels, path: Image.fromarray(pixels).save(f"{path}.tif"),
    "TIFF of fractions": lambda pixels, path: Image.fromarray((pixels / 65535).astype(np.float32)).save(f"{path}.tif"),
}


def add_grey(name: str, write: Callable[[np.ndarray, Path], None]) -> None:
    @case(f"grey {name}", before="white images, accuracy 0.3333", after=("exit 0", r"1\.0000 on the test split"))
    def _(desk: Desk) -> str:
        return train_in(desk, grey_space(desk), write_grey(desk, write), GREY_ARCH)


for _name, _write in GREY_FILES.items():
    add_grey(_name, _write)


DIM_FILES: dict[str, Callable[[np.ndarray, Path], None]] = {
    "12 bits in a 16-bit PNG": lambda pixels, path: Image.fromarray(pixels // 16).save(f"{path}.png"),
    "8 bits in a 16-bit TIFF": lambda pixels, path: Image.fromarray(pixels // 256).save(f"{path}.tif"),
    "floats up to 1/255": lambda pixels, path: Image.fromarray((pixels / 2**24).astype(np.float32)).save(f"{path}.tif"),
}


def add_dim(name: str, write: Callable[[np.ndarray, Path], None]) -> None:
    @case(name, before="black images, accuracy 0.3333, no word of it",
          after="note: 48 images with more than 8 bits, .* is above 1?[0-9] of 255, .*scale them")  # fmt: skip
    def _(desk: Desk) -> str:
        return desk.run("check", write_grey(desk, write))


for _name, _write in DIM_FILES.items():
    add_dim(_name, _write)


@case("a test image of 1 x 60,000 pixels", before="MemoryError at 224 pixels",
      after=("exit 2", "cat/thread.png: 60,000 x 1 pixels, more than 2,000 times as long as wide"))  # fmt: skip
def _(desk: Desk) -> str:
    data = desk.images()
    Image.new("RGB", (60_000, 1)).save(data / "val" / "cat" / "thread.png")
    return desk.eval(desk.saved(desk.model.state_dict()), "--arch", desk.arch(), data=data)


@case("32-bit whole numbers", before="white images", after=("exit 2", r"cat/0\.tif: integers of 32 bits"))
def _(desk: Desk) -> str:
    data = write_grey(desk, lambda pixels, path: Image.fromarray(pixels.astype(np.int32)).save(f"{path}.tif"))
    return train_in(desk, grey_space(desk), data, GREY_ARCH)


@case("floats of another range", before="white images", after=("exit 2", r"\.tif", "range|0 to 1|between"))
def _(desk: Desk) -> str:
    data = write_grey(desk, lambda pixels, path: Image.fromarray(pixels.astype(np.float32)).save(f"{path}.tif"))
    return train_in(desk, grey_space(desk), data, GREY_ARCH)


@case("a folder of a notebook's copies", before="four classes", after=RIGHT)
def _(desk: Desk) -> str:
    data = desk.images()
    for split in ("train", "val"):
        for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
            (data / split / name).mkdir()
            Image.fromarray(picture("cat", 0)).save(data / split / name / "0-checkpoint.png")
    return desk.eval(desk.saved(desk.model.state_dict()), "--arch", desk.arch(), data=data)


@case("macOS's companions of files", before="a traceback", after=RIGHT)
def _(desk: Desk) -> str:
    data = desk.images()
    for image in list(data.rglob("*.png")):
        image.with_name(f"._{image.name}").write_bytes(b"\0\5\26\7")
    return desk.eval(desk.saved(desk.model.state_dict()), "--arch", desk.arch(), data=data)


@case("folders of a network drive's own", before="a fourth class", after=(*RIGHT, "val: @web/ begins with @"))
def _(desk: Desk) -> str:
    data = desk.images()
    for split in ("train", "val"):
        for name in ("@Recycle", "@tmp", "@SynoResource", "@SynoFinder-log", "RECYCLER", "#snapshot", "@web"):
            shutil.copytree(data / split / "cat", data / split / name)
    return desk.eval(desk.saved(desk.model.state_dict()), "--arch", desk.arch(), data=data)


@case("test images of some classes, and weights without names", before="refused",
      after=(*RIGHT, "order, 0 cat, 1 dog, 2 fish, as train/ beside the test images has them"))  # fmt: skip
def _(desk: Desk) -> str:
    data = desk.images()
    shutil.rmtree(data / "val" / "dog")
    return desk.eval(desk.saved(desk.model.state_dict()), "--arch", desk.arch(), data=data)


@case("a folder val/ beside train/, and weights without names", before="refused", after=RIGHT)
def _(desk: Desk) -> str:
    data = desk.images()
    shutil.rmtree(data / "val" / "cat")
    return desk.eval(desk.saved(desk.model.state_dict()), "--arch", desk.arch(), data=data / "val")


@case("test images of another class, and weights without names", before="exit 0, top-1 0.3333",
      after=("exit 2", "classes that train/ beside them lacks: ant;"))  # fmt: skip
def _(desk: Desk) -> str:
    data = desk.images()
    (data / "val" / "fish").rename(data / "val" / "ant")
    return desk.eval(desk.saved(desk.model.state_dict()), "--arch", desk.arch(), data=data)


def add_layout(split: str) -> None:
    @case(f"train/ and {split}/", before="the two folders as classes, or refused", after=RIGHT)
    def _(desk: Desk) -> str:
        data = desk.images("train", split)
        return desk.eval(desk.saved(desk.model.state_dict()), "--arch", desk.arch(), data=data)


for _split in ("test", "valid", "validation", "Val"):
    add_layout(_split)


@case("test images that are the training images, by a link", before="exit 0, accuracy on training images",
      after=("exit 2", "data: train and val are one folder, by a link"))  # fmt: skip
def _(desk: Desk) -> str:
    data = desk.images("train")
    (data / "val").symlink_to("train")
    return train_in(desk, desk.space(), data)


@case("test images that are training images, by links of files", before="exit 0, no word",
      after=("exit 0", "note: 9 images of other splits that links also make training images"))  # fmt: skip
def _(desk: Desk) -> str:
    data = desk.images()
    for number in range(8):
        (data / "val" / "cat" / f"{number}.png").unlink()
        (data / "val" / "cat" / f"{number}.png").symlink_to(data / "train" / "cat" / f"{number}.png")
    os.link(data / "train" / "dog" / "0.png", data / "val" / "dog" / "again.png")
    return desk.run("check", data)


@case("a run folder among the class folders", before="exit 0, and --resume is refused: a class without an image",
      after=("exit 2", "--out .*/data/run: would be read as a class of .*/data; write elsewhere by"))  # fmt: skip
def _(desk: Desk) -> str:
    data = desk.images(".")
    out = data / "run"
    found = desk.run("train", desk.arch(), "--space", desk.space(), "--data", data, "--gpus", "0", "--out", out)
    assert not out.exists()
    return found


@case("a class whose test images are training images, by a link", before="exit 0, no word",
      after=("exit 1", "problem: .*data: train/cat and val/cat are one folder, by a link",
             "problem: .*data: train/fish and train/ray are one folder"))  # fmt: skip
def _(desk: Desk) -> str:
    data = desk.images()
    shutil.rmtree(data / "val" / "cat")
    (data / "val" / "cat").symlink_to(data / "train" / "cat")
    (data / "train" / "ray").symlink_to("fish")
    return desk.run("check", data)


@case("train/ alone", before="refused", after=("exit 0", "note: .*held out"))
def _(desk: Desk) -> str:
    return train_in(desk, desk.space(), desk.images("train"))


@case("files that are no images", before="no word", after=(*RIGHT, r"note: .*\.csv|note: .*\.heic"))
def _(desk: Desk) -> str:
    data = desk.images()
    (data / "val" / "cat" / "labels.csv").write_text("0.png,cat\n")
    (data / "val" / "dog" / "1.heic").write_bytes(b"\0\0\0\x18ftypheic")
    return desk.eval(desk.saved(desk.model.state_dict()), "--arch", desk.arch(), data=data)


# Images: one bad thing


def damage(path: Path) -> Path:
    Image.open(path).convert("RGB").save(path.with_suffix(".jpg"), quality=95)
    path.unlink()
    path = path.with_suffix(".jpg")
    path.write_bytes(path.read_bytes()[:-200])
    return path


@case("a damaged image", before="a traceback that does not name it", after=("exit 2", r"cat/3\.jpg"))
def _(desk: Desk) -> str:
    data = desk.images()
    damage(data / "train" / "cat" / "3.png")
    return train_in(desk, desk.space(), data)


@case("a damaged image that is to be skipped", before="no setting", after=("exit 0", r"note: .*1 .*skip|skip.* 1 "))
def _(desk: Desk) -> str:
    data = desk.images()
    damage(data / "val" / "cat" / "3.png")
    return train_in(desk, desk.space(("num_workers: 0", "num_workers: 0, on_error: skip")), data)


@case("a gigantic image", before="a traceback", after=("exit 2", r"dog/big\.png"))
def _(desk: Desk) -> str:
    data = desk.images()
    Image.new("1", (20_000, 20_000)).save(data / "train" / "dog" / "big.png")
    return train_in(desk, desk.space(), data)


@case("a damaged image, before a search", before="three trials with an empty reason", after=("exit 2", r"cat/3\.jpg"))
def _(desk: Desk) -> str:
    data = desk.images()
    damage(data / "val" / "cat" / "3.png")
    return desk.run("search", "--space", desk.space(), "--data", data, "--cpus", "1", "--out", desk / "run")


@case("a data set, checked by itself", before="no such verb", after=("exit 1", r"cat/3\.jpg", r"fish/0\.png"))
def _(desk: Desk) -> str:
    data = desk.images()
    damage(data / "train" / "cat" / "3.png")
    (data / "val" / "fish" / "0.png").write_text("not an image")
    return desk.run("check", data)


@case("a class of one image", before="an index instead of its name", after=("exit 2", "fish"))
def _(desk: Desk) -> str:
    data = desk.images()
    for number in range(1, 8):
        (data / "train" / "fish" / f"{number}.png").unlink()
    return train_in(desk, desk.space(), data)


@case("classes too small for their share", before="refused", after="exit 0")
def _(desk: Desk) -> str:
    return train_in(desk, desk.space(("0.25", "0.02")), desk.images())


@case("a batch of more images than there are", before="no word", after=("exit 0", r"note: .*18 training images.*lr"))
def _(desk: Desk) -> str:
    return train_in(desk, desk.space(("batch_size: 8", "batch_size: 512")), desk.images())


# Data that are not the same any more


@case("a resumed training on a folder with more files", before="mixed", after=("exit 2", "other data|differ|files"))
def _(desk: Desk) -> str:
    data, space = desk.images(), desk.space()
    assert "exit 0" in train_in(desk, space, data)
    Image.fromarray(picture("cat", 77)).save(data / "train" / "cat" / "77.png")
    return train_in(desk, space, data, ARCH, "--resume")


# Models that behave as plain modules


def quick_gelu_model() -> CvT:
    stages = tuple(
        dataclasses.replace(stage, blocks=tuple(dataclasses.replace(b, activation="quick_gelu") for b in stage.blocks))
        for stage in ARCH.stages
    )
    return cvt_nas.build_model(dataclasses.replace(ARCH, stages=stages))


@case("LoRA on the MLP", before="adapters without a gradient", after="^2 of 2 adapters learn$")
def _(desk: Desk) -> str:
    import peft

    model = quick_gelu_model()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["stage0.blocks.0.mlp.fc1",
                                                                         "stage0.blocks.0.mlp.fc2"]))  # fmt: skip
    adapted(torch.randn(2, 3, 16, 16)).square().sum().backward()
    gradients = [p.grad for name, p in adapted.named_parameters() if "lora_B" in name]
    return f"{sum(g is not None and bool(g.abs().sum() > 0) for g in gradients)} of {len(gradients)} adapters learn"


@case("hooks on the linears", before="9 of 13 called", after="^0 of 19 linears are not called$")
def _(desk: Desk) -> str:
    called, model = [], quick_gelu_model()
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    handles = [module.register_forward_hook(lambda module, *_: called.append(module)) for module in linears]
    model(torch.randn(1, 3, 16, 16))
    assert len(handles) == len(linears)
    return f"{len(set(linears) - set(called))} of {len(linears)} linears are not called"


# Searches that find nothing, and trials that failed


@case("a search that finds nothing", before="exit 0, no reason", after=("exit 1", "2 diverged|diverged: 2", "finite"),
      is_slow=True)  # fmt: skip
def _(desk: Desk) -> str:
    space = desk.space(("lr: 3.0e-3", "lr: 1.0e+9"))
    return desk.run("search", "--space", space, "--data", desk.images(), "--cpus", "1", "--out", desk / "run")


@case("a path with a space", before="a line that cannot be pasted", after=r"next: cvt-nas export '.*my run'")
def _(desk: Desk) -> str:
    (desk / "my folder").mkdir()
    return desk.run("train", desk.arch(), "--space", desk.space(), "--data", desk.images(), "--gpus", "0",
                    "--out", desk / "my folder" / "my run")  # fmt: skip


# Machines


def on_machine(desk: Desk, *words: str | Path, **variables: str) -> str:
    """The command in a process of its own, with an environment of its own."""
    command = [sys.executable, "-m", "cvt_nas.cli", *map(str, words)]
    run = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, cwd=desk.folder, check=False)
    return f"exit {run.returncode}\n{(run.stdout + run.stderr).decode(errors='replace')}"


@case("a long TMPDIR", before="a traceback about AF_UNIX", after="exit 0|TMPDIR", is_slow=True)
def _(desk: Desk) -> str:
    long = desk / ("x" * 90) / ("y" * 90)
    long.mkdir(parents=True)
    found = on_machine(desk, "search", "--space", desk.space(), "--data", desk.images(), "--cpus", "1",
                       "--out", desk / "run", TMPDIR=str(long))  # fmt: skip
    assert "Traceback" not in found
    return found


@case("a locale without UTF-8", before="a traceback", after="exit 0")
def _(desk: Desk) -> str:
    found = on_machine(desk, "check", desk.images(names=("chat", "naïve", "鳥")), LC_ALL="C", PYTHONUTF8="0",
                       PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii")  # fmt: skip
    assert "Traceback" not in found
    return found


@case("a run folder that is not UTF-8", before="exit 2 after the whole training",
      after=(r"exit 2\ncvt-nas: --out .*: is not UTF-8; take another name",))  # fmt: skip
def _(desk: Desk) -> str:
    out = desk / os.fsdecode(b"t_\xff")
    found = desk.run("train", desk.arch(), "--space", desk.space(), "--data", desk.images(), "--out", out)
    assert not out.exists()
    return found


@case("a training that diverges", before="exit 2, and a search exit 1", after=("exit 1", "loss not finite"))
def _(desk: Desk) -> str:
    return train_in(desk, desk.space(), desk.images(), ARCH, "--lr", "1e9")


@case("a home that cannot be written", before="a traceback", after=("exit 0", "1,797 images|digits"))
def _(desk: Desk) -> str:
    found = on_machine(desk, "check", "digits", HOME="/proc/nowhere", XDG_CACHE_HOME="/proc/nowhere")
    assert "Traceback" not in found
    return found


ROWS = [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.is_slow else []) for row in CASES]


@pytest.mark.parametrize("row", ROWS)
def test_every_case_has_the_right_outcome(
    row: Case, trained: CvT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = row.outcome(Desk(tmp_path, trained, capsys))
    for pattern in row.after:
        assert re.search(pattern, found), f"{pattern!r} is not in what came of it; before: {row.before}\n{found}"
