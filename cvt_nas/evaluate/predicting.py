"""Predictions of a trained network for images without labels."""

import csv
import glob
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from joblib import cpu_count
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cvt_nas.arch import ArchConfig, ImageSize
from cvt_nas.config import TrainingConfig
from cvt_nas.data.images import Preprocessing
from cvt_nas.data.kinds.table import is_table, paths_in, read_table
from cvt_nas.data.reading import read_pixels
from cvt_nas.data.sources import Mode, mode_of
from cvt_nas.data.transforms import EvalTransform
from cvt_nas.data.tree import is_image, itself_and_above, mark_of, walk
from cvt_nas.engine import logits_of
from cvt_nas.engine.network import Network, check_program, open_network
from cvt_nas.errors import DataError, ResourceError
from cvt_nas.model import imagenet_classes
from cvt_nas.run import check_target, write_atomically

_COLUMN = ("path", "image", "filename", "file", "filepath", "image_path", "name")  # names of a column of paths
_SECONDS_BETWEEN = 5.0
_NUM_CHECKED = 16  # images that are answered once more before a prediction goes on
_TOLERANCE = 0.02  # of their probabilities, since precisions and devices differ


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """Numbers of images that were answered.

    Args:
        damaged: Paths of images that cannot be read, with the reason. Their rows have the reason instead of an answer.
        num_known: Number of images whose rows were in the file already.
    """

    num_images: int
    num_known: int
    damaged: dict[str, str]


@torch.inference_mode()
def predict(
    weights: str | Path,
    images: str | Path,
    *,
    to: Path,
    top: int = 5,
    arch: ArchConfig | None = None,
    image_size: ImageSize | None = None,
    batch_size: int = 64,
    device: Literal["cpu", "cuda"] | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    num_workers: int = 4,
    resume: bool = False,
    on_note: Callable[[str], None] | None = None,
) -> Predictions:
    """Writes a CSV file with a row for each image: its path, and the likeliest classes with their probabilities.

    The columns are `path, error, class_1, probability_1, class_2, ...`. If an image can have several labels, the
    probability of each label is independent of the others. Rows are written batch by batch, so that an interrupted
    prediction can go on.

    Args:
        weights: See `evaluate_model`.
        images: A folder, including all folders below it, or a file, or a pattern such as `photos/*.jpg`, or a CSV, TSV
            or Parquet file with a column of paths. These paths are relative to that file.
        to: The CSV file to write.
        top: Number of classes in a row.
        arch, image_size, device, precision: See `evaluate_model`.
        num_workers: Number of processes that decode images.
        resume: Whether to keep the answers in `to` and go on after them. Images that could not be read are tried again.
            Some images are answered once more, to tell whether the network is still the same.
        on_note: Called with notes on what had to be assumed, and with the progress.

    Raises:
        ArchError, ResourceError: See `evaluate_model`.
        DataError: If there are no images, or if `to` exists already, has other columns, or answers of another network.
        StorageError: If `to` cannot be written; see `check_target`.
    """
    check_target(to)
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("--device cuda: this machine has no GPU")
    say = on_note or (lambda _: None)
    network = open_network(Path(weights), arch)
    if network.is_program:
        check_program(network, image_size=image_size, device=device, precision=precision)
        device = "cpu"
    torch_device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    preprocessing, note = network.preprocessing(image_size)
    if note is not None:
        say(note)
    arch = network.arch.with_image_size(preprocessing.image_size)
    names, note = _class_names(network)
    if note is not None:
        say(note)
    paths = _paths(images, say)
    top = min(top, len(names))
    header = ["path", "error", *(f"{what}_{rank + 1}" for rank in range(top) for what in ("class", "probability"))]
    known = _known(to, header, resume=resume)
    left = [path for path in paths if path not in known]
    model = network.at(arch.image_size, torch_device)
    is_multi_label = network.is_multi_label
    settings, damaged, done, said = TrainingConfig(epochs=0, precision=precision), dict[str, str](), 0, time.monotonic()

    def answered(asked: Sequence[str]) -> Iterator[list[tuple[str, str | None, Tensor | None]]]:
        """Batches of paths, each with the reason why it has no answer, or with the probabilities of all classes."""
        for found, pixels in _batches(asked, preprocessing, batch_size, num_workers):
            answers: Iterator[Tensor] = iter(())
            if pixels is not None:
                inputs = _normalised(pixels.to(torch_device), preprocessing)
                logits = logits_of(model, inputs, settings).float()
                answers = iter((logits.sigmoid() if is_multi_label else logits.softmax(dim=1)).cpu())
            yield [(path, error, next(answers) if error is None else None) for path, error in found]

    some = list(known)[:: max(len(known) // _NUM_CHECKED, 1)]
    for path, _, shares in (each for batch in answered(some) for each in batch):
        if shares is not None and not _is_same(known[path], shares, names):
            raise DataError(f"{to}: {path} has the answer of another network there; write elsewhere by --to")
    with to.open("a" if known else "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.writer(file)
        if not known:
            rows.writerow(header)
        for batch in answered(left):
            for path, error, shares in batch:
                if shares is None:
                    damaged[path] = error or ""
                    rows.writerow([path, error])
                    continue
                values, classes = shares.topk(top)
                pairs = zip(classes.tolist(), values.tolist(), strict=True)
                rows.writerow([path, "", *(cell for at, value in pairs for cell in (names[at], f"{value:.6g}"))])
            file.flush()
            done += len(batch)
            if time.monotonic() - said >= _SECONDS_BETWEEN:
                said = time.monotonic()
                say(f"{done:,} of {len(left):,} images")
    return Predictions(num_images=len(paths), num_known=len(paths) - len(left), damaged=damaged)


def _class_names(network: Network) -> tuple[tuple[str, ...], str | None]:
    """The class names in the order of the logits, from the files beside the weights. A note if these name none."""
    for told in (told for group in network.names.groups for told in group):
        if len(told.names) == network.arch.num_classes:
            return tuple(told.names), None
    if network.is_published:
        return imagenet_classes(), "nothing beside the weights names their classes; they are taken for ImageNet's"
    return (
        tuple(map(str, range(network.arch.num_classes))),
        f"{network.names.why_none}: they are numbered, in the order of the logits; list their names in a file "
        f"classes.txt beside the weights, one a line",
    )


def _paths(images: str | Path, say: Callable[[str], None]) -> list[str]:
    """The paths of a folder, a file, a pattern or a table. They are sorted by name, or in the order of the table."""
    place = Path(images)
    if place.is_dir():
        odd, above = list[str](), itself_and_above(place) - {mark_of(place)}
        found = sorted(
            str(Path(folder) / name) for folder, names in walk(place, above, odd) for name in names if is_image(name)
        )
        for line in odd:
            say(line)
    elif is_table(place.name):
        found = _of_table(place)
    else:
        found = [str(place)] if place.is_file() else sorted(filter(is_image, glob.glob(str(images), recursive=True)))
    if not found:
        raise DataError(f"{images}: no images: name a folder, a file, a pattern such as 'photos/*.jpg', or a CSV file")
    return list(dict.fromkeys(found))


def _of_table(table: Path) -> list[str]:
    frame = read_table(table)
    by_name = {str(name).strip().lower(): name for name in frame.columns}
    column = next((by_name[name] for name in _COLUMN if name in by_name), None)
    if column is None:
        raise DataError(f"{table}: has no column of paths: name it {_COLUMN[0]}; it has {', '.join(by_name.values())}")
    return [str(table.parent / path) for path in paths_in(frame[column], table)]


def _known(to: Path, header: Sequence[str], *, resume: bool) -> dict[str, dict[str, float]]:
    """The answers in the file `to`: for each path, the probabilities of the classes in its row.

    A last row that was cut off is removed from the file, and so are the rows of images that could not be read.
    """
    if not to.exists():
        return {}
    if not resume:
        raise DataError(f"{to}: is there already; go on with it by --resume, or write elsewhere by --to")
    text = to.read_text(encoding="utf-8", errors="surrogateescape")
    whole = text[: text.rfind("\n") + 1]
    rows = list(csv.reader(io.StringIO(whole, newline="")))  # splitlines would split at more than a writer quotes
    if not rows:
        to.unlink()
        return {}
    if rows[0] != list(header):
        raise DataError(f"{to}: has other columns than {', '.join(header[:4])}, ...; write elsewhere by --to")
    answers = [row for row in rows if len(row) == len(header)]  # the row of an image that could not be read is shorter
    try:
        known = {row[0]: dict(zip(row[2::2], map(float, row[3::2]), strict=True)) for row in answers[1:]}
    except ValueError as error:
        raise DataError(f"{to}: was changed since: {error}; write elsewhere by --to") from error
    if whole != text or len(answers) < len(rows):
        kept = io.StringIO(newline="")
        csv.writer(kept).writerows(answers)
        write_atomically(to, lambda file: file.write(kept.getvalue().encode(errors="surrogateescape")))
    return known


def _is_same(known: Mapping[str, float], shares: Tensor, names: Sequence[str]) -> bool:
    """Whether probabilities that were written before are those of the same network. Classes may share a name."""
    now: dict[str, list[float]] = {}
    for name, share in zip(names, shares.tolist(), strict=True):
        now.setdefault(name, []).append(share)
    return all(
        min((abs(share - before) for share in now.get(name, ())), default=1.0) <= _TOLERANCE
        for name, before in known.items()
    )


class _Images(Dataset):
    """Images by path. An item has the pixels of an image, or the reason why it cannot be read."""

    def __init__(self, paths: Sequence[str], preprocessing: Preprocessing) -> None:
        self._paths, self._transform = paths, EvalTransform(preprocessing)
        self._mode: Mode = mode_of(len(preprocessing.mean))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[str, str | None, Tensor | None]:
        path = self._paths[index]
        try:
            return path, None, self._transform(read_pixels(path, self._mode))[0]
        except DataError as error:
            return path, str(error).removeprefix(f"{path}: "), None


_Read = tuple[str, str | None, Tensor | None]


def _collated(items: Sequence[_Read]) -> tuple[list[tuple[str, str | None]], Tensor | None]:
    pixels = [found for _, _, found in items if found is not None]
    return [(path, error) for path, error, _ in items], torch.stack(pixels) if pixels else None


def _batches(
    paths: Sequence[str], preprocessing: Preprocessing, batch_size: int, num_workers: int
) -> Iterator[tuple[list[tuple[str, str | None]], Tensor | None]]:
    """Batches of paths with errors, and pixels `(images, height, width, channels)` of the images that can be read."""
    few = len(paths) <= batch_size  # so few are read before a process has started
    loader = DataLoader(
        _Images(paths, preprocessing),
        batch_size=batch_size,
        num_workers=0 if few else min(num_workers, cpu_count()),
        collate_fn=_collated,
    )
    yield from loader


def _normalised(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    mean, std = (torch.tensor(each, device=pixels.device) for each in (preprocessing.mean, preprocessing.std))
    return pixels.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2).contiguous()
