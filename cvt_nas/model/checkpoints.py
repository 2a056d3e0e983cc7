"""Foreign weights: the files that hold them, and files beside them that tell their architecture and classes."""

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from cvt_nas.arch import ArchConfig, arch_of_config, class_names_of_config, is_config, is_of_transformers, load_arch
from cvt_nas.errors import ArchError
from cvt_nas.model.classes import ClassNames, Told, class_names_beside, class_names_in
from cvt_nas.model.unpickling import metadata_of, read_content, read_json
from cvt_nas.model.unwrapping import ADAPTER, unwrap

_NAMES = ("model.safetensors", "pytorch_model.bin")  # written by transformers and this package
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<number>\d{5})(?P<suffix>\.\w+)")
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".tar")  # of files of weights from other tools
_MAX_NAMED = 6  # files in a message
_MAX_NAME = 255  # characters of a file's name
_IN_PARTS = {  # files that show that weights are in another form, and how to convert them
    "*.distcp": (
        "is a checkpoint of torch.distributed; join its parts: "
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pth"
    ),
    "zero_to_fp32.py": "is a checkpoint of DeepSpeed; join its parts: python {folder}/zero_to_fp32.py {folder} joined",
    "adapter_config.json": ADAPTER,
}
_PROGRAMS = {"model.onnx": "an ONNX export", "model.pt2": "an export as a program of torch.export"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Foreign weights and everything that is known about them.

    Args:
        path: Path as the caller gave it.
        state: Tensors by official names, with floats in fp32.
        arch: Architecture of the weights, if a file beside them tells it. Files of transformers lack the image size;
            it is then that of the published models.
        source: The file that tells the architecture.
        is_port: Whether the weights are in transformers' port, which computes GELU in any case.
        names: Class names in the order of the head's rows, if known.
        head_like: Names of tensors that look like a head, if there is no head or they lie beside it.
        is_bound: Whether the name of the file binds it to the files beside it.
        foreign: Why files beside the weights are not read, if they belong to another network.
        notes: Notes for people on what was read.
    """

    path: Path
    state: Mapping[str, Tensor]
    arch: ArchConfig | None
    source: Path | None
    is_port: bool
    names: ClassNames
    notes: tuple[str, ...]
    foreign: str | None = None
    head_like: tuple[str, ...] = ()
    is_bound: bool = True

    @property
    def num_classes(self) -> int | None:
        """Rows of the head; None without one."""
        head = self.state.get("head.weight")
        return None if head is None else (*head.shape, 0)[0]

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The class names with the highest priority, independent of the data's classes."""
        return next((told.names for group in self.names.groups for told in group if told.is_certain), None)

    @property
    def folder(self) -> Path:
        """Folder of the files."""
        return self.path if self.path.is_dir() else self.path.parent


def read_weights(path: str | Path, arch: ArchConfig | None = None) -> Weights:
    """Reads the weights at `path` from any wrapper.

    Args:
        path: A folder of this package, of transformers' CvT or of timm; a file of `torch.save` or safetensors, as
            training scripts write it; or one of transformers' shards, or their index. Files beside a file are read,
            too.
        arch: Architecture, if it is known. Files of another network beside the weights are then ignored, unless the
            name of the weights, such as `model.safetensors`, binds them together.

    Raises:
        ArchError: The weights cannot be read, or are of no CvT; or files beside them belong to another network.
    """
    path = Path(path)
    files = weights_files(path)
    contents = [read_content(file) for file in files]
    content = contents[0]
    if len(contents) > 1:
        content = {}
        for file, part in zip(files, contents, strict=True):
            if twice := content.keys() & part.keys():
                raise ArchError(f"{file}: {min(twice)}: is in another shard, too")
            content |= part
    found = unwrap(content, path)
    folder = path if path.is_dir() else path.parent
    weights = Weights(
        path=path,
        state=found.state,
        arch=None,
        source=None,
        is_port=found.is_port,
        head_like=found.head_like,
        names=ClassNames(path=path),
        notes=(f"{path}: {found.note}",) if found.note else (),
    )
    is_bound = path.is_dir() or _is_bound(files[0])
    weights = _with_arch(weights, folder, is_bound=is_bound, given=arch)
    if weights.num_classes is None:
        return weights
    facts = dict(fact for file in files for fact in metadata_of(file).items())
    own, why = class_names_in(facts or content, weights.num_classes)
    beside, unusable = ((), None) if weights.foreign else _names_beside(weights)
    is_own = not is_bound and any(told.is_certain for told in own)  # files beside it may be unrelated
    if odd := next((told for told in beside if len(told.names) != weights.num_classes and not is_own), None):
        raise ArchError(f"{path}: has {weights.num_classes} classes, the files beside it name {len(odd.names)}")
    if not is_bound and not is_own and (first := next((told.names for told in beside if told.is_certain), None)):
        shown = f"{', '.join(first[:3])}{', ...' if len(first) > 3 else ''}"
        note = f"the order of the classes is that of the files beside {path.name}: {shown}"
        weights = replace(weights, notes=(*weights.notes, note))
    names = ClassNames(path=path, groups=(own, beside) if is_own else ((*beside, *own),))
    return replace(weights, names=replace(names, why_none=why or unusable or names.why_none))


def _names_beside(weights: Weights) -> tuple[tuple[Told, ...], str | None]:
    """Returns the class names in files beside the weights, and why a file that should have some has none."""
    told, classes = [told for group in weights.names.groups for told in group], classes_beside(weights.folder)
    if classes is not None:
        if told and told[0].names != classes:
            raise ArchError(
                f"{weights.source}: has other names of classes, or another order, than preprocessing.json beside it: "
                f"{', '.join(told[0].names[:3])} instead of {', '.join(classes[:3])}"
            )
        told = [Told("preprocessing.json", classes)]
    others, unusable = class_names_beside(weights.path, weights.num_classes or 0)
    return (*told, *others), unusable


def weights_files(path: str | Path) -> tuple[Path, ...]:
    """Files of the weights at `path`: the file itself, or files of the folder.

    Raises:
        ArchError: The folder has no weights, or a shard is missing.
    """
    path = Path(path)
    if path.is_dir():
        for name in _NAMES:
            if (path / name).is_file():
                return (path / name,)
            if (index := path / f"{name}.index.json").is_file():
                return _shards_of(index)
        for name, what in _PROGRAMS.items():
            if (path / name).is_file():
                raise ArchError(
                    f"{path}: is {what}, without weights to begin with: cvt-nas export --format torch has them"
                )
        _check_no_parts(path, "")
        others = sorted(file.name for file in path.iterdir() if file.suffix in _SUFFIXES)
        inner = sorted(str(file.parent) for name in _NAMES for deep in ("*", "snapshots/*")
                       for file in path.glob(f"{deep}/{name}"))  # fmt: skip
        if not others and not inner:
            _check_no_parts(path, "*/")
        kind = "files" if others else "folders"
        found = f"; give one of its {kind}: {', '.join((others or inner)[:_MAX_NAMED])}" if others or inner else ""
        raise ArchError(f"{path}: holds neither {' nor '.join(_NAMES)}{found}")
    if path.name.endswith(".index.json"):
        return _shards_of(path)
    if shard := _SHARD.fullmatch(path.name):
        index = path.with_name(f"{shard['stem']}{shard['suffix']}.index.json")
        if index.is_file():
            return _shards_of(index)
        number = int(shard["number"])
        names = [
            f"{shard['stem']}-{part + 1:05}-of-{shard['number']}{shard['suffix']}" for part in range(min(number, 9999))
        ]
        return tuple(_present(path.with_name(name), path) for name in names)
    return (path,)


def digest_of(path: str | Path) -> str:
    """SHA-256 of the content of all files of the weights at `path`.

    Raises:
        ArchError: There are no weights, or they cannot be read.
    """
    digest = hashlib.sha256()
    for file in weights_files(path):
        try:
            with file.open("rb") as opened:
                while block := opened.read(2**20):
                    digest.update(block)
        except OSError as error:
            raise ArchError(f"{file}: cannot be read: {error}") from error
    return digest.hexdigest()


def _check_no_parts(path: Path, below: str) -> None:
    for name, how in _IN_PARTS.items():
        if found := sorted(path.glob(f"{below}{name}")):
            raise ArchError(f"{found[0].parent}: {how.format(folder=shlex.quote(str(found[0].parent)))}")


def _shards_of(index: Path) -> tuple[Path, ...]:
    """Files that an index names. All must lie beside it."""
    tree = read_json(index)
    names = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ArchError(f"{index}: weight_map: must name a file for each tensor")
    files = []
    for name in sorted(set(names.values())):
        if not name or name != Path(name).name or "\\" in name or name == ".." or len(name.encode()) > _MAX_NAME:
            raise ArchError(f"{index}: weight_map: got {name[:_MAX_NAME]!r}, must be the name of a file beside it")
        files.append(_present(index.with_name(name), index))
    return tuple(files)


def _present(file: Path, path: Path) -> Path:
    if not file.is_file():
        raise ArchError(f"{path}: its shard {file.name} is missing")
    return file


def _is_bound(file: Path) -> bool:
    """Whether the file's name binds it to the settings beside it."""
    return file.name in _NAMES or _SHARD.fullmatch(file.name) is not None


def with_gelu(arch: ArchConfig) -> ArchConfig:
    """Returns the architecture with GELU, which transformers computes in every CvT."""
    stages = (
        replace(stage, blocks=tuple(replace(block, activation="gelu") for block in stage.blocks))
        for stage in arch.stages
    )
    return replace(arch, stages=tuple(stages))


def _with_arch(weights: Weights, folder: Path, *, is_bound: bool, given: ArchConfig | None) -> Weights:
    """Adds what `arch.json` or `config.json` in `folder` tells, unless it belongs to other weights."""
    source = next((folder / name for name in ("arch.json", "config.json") if (folder / name).is_file()), None)
    if source is None:
        return weights
    try:
        found = _told_by(source, weights, is_bound=is_bound)
    except ArchError as error:
        if is_bound:
            raise
        note = f"{error}; it is passed over, since {weights.path.name} may be of another network"
        return replace(weights, foreign=str(error), notes=(*weights.notes, note))
    if found is None or is_bound:
        return found or weights
    assert found.arch is not None
    if given is not None and not _is_same(given, found.arch, as_port=weights.is_port):
        note = f"{source}: is of another network than the architecture that is given, and is passed over"
        return replace(weights, foreign=note, notes=(*weights.notes, note))
    return replace(found, is_bound=False)


def _told_by(source: Path, weights: Weights, *, is_bound: bool) -> Weights | None:
    """Adds what `source` tells about `weights`. None if it holds settings of another tool.

    Raises:
        ArchError: `source` belongs to another network, or cannot be read.
    """
    if source.name == "arch.json":
        return replace(weights, arch=load_arch(source), source=source)
    try:
        tree = read_json(source)
    except ArchError:
        if is_bound:
            raise
        return None
    if not is_bound and not (isinstance(tree, dict) and is_config(tree)):
        return None
    arch = arch_of_config(tree if isinstance(tree, dict) else {}, source)
    classes = class_names_of_config(tree, source)
    if is_of_transformers(tree):  # transformers may leave out the number of classes
        arch = replace(arch, num_classes=weights.num_classes or arch.num_classes)
    names = weights.names if classes is None else replace(weights.names, groups=((Told(source.name, classes),),))
    return replace(weights, arch=arch, source=source, names=names)


def _is_same(one: ArchConfig, other: ArchConfig, *, as_port: bool) -> bool:
    """Whether two architectures differ only in image size, number of classes, and for a port in activation."""
    one, other = (with_gelu(arch) if as_port else arch for arch in (one, other))
    return replace(one, num_classes=other.num_classes).with_image_size(other.image_size) == other


def classes_beside(folder: Path) -> tuple[str, ...] | None:
    """Class names in `preprocessing.json`, which this package writes; None without names."""
    path = folder / "preprocessing.json"
    if not path.is_file():
        return None
    tree = read_json(path)
    classes = tree.get("classes") if isinstance(tree, dict) else None
    if classes is None:
        return None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ArchError(f"{path}: classes: must be a list of names")
    return tuple(classes)
