"""Reads files of weights without running code in them."""

import argparse
import datetime
import decimal
import json
import pathlib
import pickle
import pickletools
import uuid
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from cvt_nas.errors import ArchError, first_line

_SAVE_ALONE = "save its weights alone: torch.save(model.state_dict(), 'weights.pth')"
_UNKNOWN = "which may run code as it is read"
_KNOWN_ALONE = "; only types that are known to be harmless are read"
_HEAD = 64  # bytes by which a file is recognised
_CHUNK = 2**24  # bytes
_MAX_NAMED = 3  # types in a message


class _Dict(dict):
    """Replaces dicts of other packages in a pickle. The packages need not be installed."""

    def __new__(cls, *_: object) -> OrderedDict:
        return OrderedDict()  # torch's reader can add entries and attributes to it


def _plain_dict(*_: object) -> dict:
    return {}


def _plain_list(*_: object) -> list:
    return []  # torch's reader appends to it


# types of settings that are allowed in addition to torch's; none of them runs code when it is made
_HARMLESS: list[Callable | tuple[Callable, str]] = [
    argparse.Namespace,
    datetime.date,
    datetime.datetime,
    datetime.timedelta,
    datetime.timezone,
    decimal.Decimal,
    uuid.UUID,
    *((kind, f"{module}.{kind.__name__}")
      for kind in (bool, complex, dict, float, frozenset, int, list, range, set, slice, str, tuple)
      for module in ("builtins", "__builtin__")),
    (_plain_dict, "collections.defaultdict"),
    (_plain_list, "collections.deque"),
    *((pathlib.PurePosixPath, f"{module}.{name}") for name in ("PosixPath", "PurePosixPath", "Path", "PurePath")
      for module in ("pathlib", "pathlib._local")),
    *((pathlib.PureWindowsPath, f"{module}.{name}") for name in ("WindowsPath", "PureWindowsPath")
      for module in ("pathlib", "pathlib._local")),
    *((np.ndarray, f"{module}.ndarray") for module in ("numpy", "numpy._core.multiarray", "numpy.core.multiarray")),
    *((getattr(np._core.multiarray, name), f"numpy.{module}.multiarray.{name}")  # pyright: ignore
      for name in ("scalar", "_reconstruct") for module in ("_core", "core")),
    np.dtype,
    *(getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType") and name != "ObjectDType"),
    *((_Dict, name) for name in (
        "addict.addict.Dict",
        "easydict.EasyDict",
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning.pytorch.utilities.parsing.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "mmengine.config.config.ConfigDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "yacs.config.CfgNode",
    )),
]  # fmt: skip


def read_content(path: Path) -> Any:
    """Reads a file of `torch.save` or safetensors, on the CPU. The content decides which of them it is.

    Raises:
        ArchError: It is no such file, or holds a type that is not known to be harmless. The message names the type.
    """
    try:
        if path.exists() and not path.is_file():
            raise ArchError(f"{path}: cannot be read: is no regular file, such as a pipe, which could be read but once")
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise ArchError(f"{path}: cannot be read: {error}") from error
    if kind := _other_kind(path, head):
        raise ArchError(f"{path}: cannot be read: {kind}")
    try:
        if head[8:9] == b"{" or path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol, which is reported below
            if head[:4] == b"PK\x03\x04":
                _check_types(path)
            return torch.load(path, "cpu", weights_only=True)
    except ArchError:
        raise
    except (OSError, RuntimeError, LookupError, EOFError, ValueError, TypeError, AttributeError, ArithmeticError,
            MemoryError, pickle.UnpicklingError, SafetensorError) as error:  # fmt: skip
        # torch's reader raises various errors for other files
        raise ArchError(f"{path}: cannot be read: {_reason(error)}") from error


def metadata_of(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file; empty for other files."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def _other_kind(path: Path, head: bytes) -> str:
    """Says what a file is, if it is known to hold something else than weights; empty otherwise."""
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS; fetch the file itself: git lfs pull"
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "is a web page; download the file itself"
    if head.startswith(b"\x1f\x8b"):
        return "is compressed by gzip; unpack it"
    if head.lstrip()[:1] == b"{":
        return "is JSON; give the file or the folder of the weights"
    if path.suffix == ".onnx":
        return "is an ONNX model; give its export's folder to `eval`, or weights: cvt-nas export --format torch"
    if head[:4] != b"PK\x03\x04":
        known = head[:1] == b"\x80" or head[8:9] == b"{" or path.suffix == ".safetensors"
        return "" if known else "is neither a file of torch.save nor of safetensors"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = _damaged_part(archive)
    except (zipfile.BadZipFile, OSError) as error:
        return f"is cut off or damaged: {error}"
    if any(name.endswith("/constants.pkl") for name in names):
        return f"is a TorchScript archive (torch.jit.save); {_SAVE_ALONE}"
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        return "is a program of torch.export; give its folder to `eval`, or weights: cvt-nas export --format torch"
    if not any(name.endswith("data.pkl") for name in names):
        return "is a zip archive that torch.save did not write"
    return f"is damaged: {damaged} is not as it was saved; fetch or save it again" if damaged else ""


def _damaged_part(archive: zipfile.ZipFile) -> str | None:
    """The first file in an archive with a wrong CRC, which torch's reader does not check."""
    for part in archive.infolist():
        if not part.CRC:  # torch.save writes 0 if set_crc32_options is off
            continue
        try:
            with archive.open(part) as file:
                while file.read(_CHUNK):
                    pass
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
            return part.filename
    return None


def _check_types(path: Path) -> None:
    """Raises ArchError with the types that torch would refuse in a long message."""
    try:
        types = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError, pickle.UnpicklingError, EOFError, LookupError):
        return  # torch.load reports it
    if not types:
        return
    if any(name.startswith("torch.nn.modules.") for name in types):
        raise ArchError(f"{path}: cannot be read: holds a whole pickled module, {_first_type(path) or types[0]}, whose "
                        f"code would have to run; {_SAVE_ALONE}")  # fmt: skip
    more = f" and {len(types) - _MAX_NAMED} more" if len(types) > _MAX_NAMED else ""
    raise ArchError(f"{path}: cannot be read: holds {', '.join(types[:_MAX_NAMED])}{more}, {_UNKNOWN}; {_SAVE_ALONE}"
                    f"{_KNOWN_ALONE}")  # fmt: skip


def _first_type(path: Path) -> str:
    """The first type that a pickle names. If the pickle is an object, it is the object's type."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        found = (str(told) for op, told, _ in pickletools.genops(archive.read(name)) if op.name == "GLOBAL")
        return next(found, "").replace(" ", ".")


def _reason(error: BaseException) -> str:
    """The first useful line of torch's message, without its advice."""
    said = str(error).replace("\x1b[1m", "").replace("\x1b[0m", "")
    if "Unsupported global: GLOBAL " in said:
        named = said.partition("Unsupported global: GLOBAL ")[2].split()[0]
        return f"holds {named}, {_UNKNOWN}; {_SAVE_ALONE}{_KNOWN_ALONE}"
    if "whose module" in said and "is blocked" in said:
        named = said.partition("unsupported GLOBAL ")[2].split()[0]
        return f"holds {named}, {_UNKNOWN}; {_SAVE_ALONE}{_KNOWN_ALONE}"
    if "ObjectDType" in said:
        return f"holds an array of objects, {_UNKNOWN}; {_SAVE_ALONE}{_KNOWN_ALONE}"
    if "Unsupported operand" in said:
        return f"is pickled by another protocol than torch.save's own, which is 2; {_SAVE_ALONE}"
    if "WeightsUnpickler error:" in said:
        said = "holds more than tensors and settings: " + said.partition("WeightsUnpickler error:")[2].strip()
        return f"{said.splitlines()[0]}; {_SAVE_ALONE}"
    return next((line.strip() for line in said.splitlines() if line.strip()), repr(error))


def read_json(path: Path) -> Any:
    """Reads a JSON file. Raises ArchError if that fails."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # some editors on Windows write a BOM
    except (OSError, ValueError, RecursionError) as error:
        raise ArchError(f"{path}: cannot be read: {first_line(error)}") from error
