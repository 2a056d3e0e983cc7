"""Check of every image of a data set before a training starts."""

import time
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cvt_nas.data.reading import Header, decode, read_header
from cvt_nas.data.records import Images, Records, Role
from cvt_nas.data.sources import Mode, Source
from cvt_nas.data.stacks import DIM
from cvt_nas.errors import DataError
from cvt_nas.escaping import told

OnNote = Callable[[str], None]
_PART = 200  # images that a thread takes at a time
_SECONDS_UNTIL_SAID, _SECONDS_BETWEEN = 1.0, 2.0
_NUM_NAMED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageCheck:
    """Result of the check of a data set's images.

    Args:
        damaged: Path below the data set of each unreadable image, and what is wrong with it.
        formats, modes: Number of images of each of Pillow's formats and modes.
        brightest: Greatest value, once read as 8 bits, of the decoded images with more than 8 bits. None if there are
            none.
        shared: Images of other splits that links also place among the training images.
        least, most: Size of the images with the fewest and the most pixels, (width, height). None if all are
            unreadable.
        turned, animated, transparent, deep, large: Number of images that EXIF turns, that have several frames, that
            have transparency, that have more than 8 bits, and that are large enough for a warning of Pillow's.
    """

    num_images: int
    damaged: Mapping[str, str]
    formats: Counter[str]
    modes: Counter[str]
    brightest: int | None
    shared: int
    least: tuple[int, int] | None
    most: tuple[int, int] | None
    turned: int
    animated: int
    transparent: int
    deep: int
    large: int

    @property
    def notes(self) -> list[str]:
        """How images are read that could be read in several ways."""
        told = [
            (self.turned, "turned as their EXIF says"),
            (self.animated, "with several frames, of which only the first is read"),
            (self.transparent, "with transparency, which is dropped"),
            (self.deep, f"with more than 8 bits, read as 8{self._dimness}"),
            (self.shared, "of other splits that links also make training images: their accuracy means nothing"),
            (self.large, "so large that decoding them takes long"),
        ]
        return [f"{number:,} image{'s' if number > 1 else ''} {how}" for number, how in told if number]

    @property
    def _dimness(self) -> str:
        """A warning if all images are so dark that classes may look the same, such as 12 bits in files of 16."""
        if self.brightest is None or self.brightest >= DIM:
            return ""
        return (
            f": no pixel that was looked at is above {self.brightest} of 255, so that most detail may be "
            f"lost; scale them so that white is 65,535, or 1 in floats"
        )

    def check_readable(self, *, is_resumed: bool = False) -> None:
        """Raises DataError if images cannot be read. It tells their number and names the first ones.

        Args:
            is_resumed: Whether a run has trained on the images, so that it can no longer leave any out.
        """
        if self.damaged:
            named = "; ".join(f"{path}: {why}" for path, why in list(self.damaged.items())[:_NUM_NAMED])
            more = len(self.damaged) - _NUM_NAMED
            raise DataError(
                f"{len(self.damaged):,} of {self.num_images:,} images cannot be read: {named}"
                + (f"; and {more:,} more, see cvt-nas check" if more > 0 else "")
                + (
                    "; repair them, or begin another run"
                    if is_resumed
                    else "; repair or delete them, or set data.on_error: skip in a space file"
                )
            )


def check_images(
    records: Records,
    mode: Mode,
    *,
    decode_all: bool = False,
    measured: Collection[tuple[Role, str]] = (),
    on_note: OnNote | None = None,
) -> ImageCheck:
    """Reads the header of each image, and decodes images whose files have a wrong end.

    Images of the validation and test splits are always decoded. There are few of them, and damage in the middle of a
    file would otherwise show up only after the training.

    Threads are fast enough: headers wait for the disk, and Pillow decodes without Python's lock.

    Args:
        mode: Mode in which images will be read.
        decode_all: Whether to decode all images, which also finds damage in the middle of files.
        measured: More images to decode, by split and name: those held out of the training images.
        on_note: Called with progress notes if the check takes longer than a second.
    """
    from joblib import cpu_count
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS or float("inf")
    formats, modes = Counter[str](), Counter[str]()
    numbers: Counter[str] = Counter()
    damaged: dict[str, str] = {}
    least, most, brightest = None, None, None
    files, opener = records.files, records.opener
    marks = {role: array("q") for role in files}

    held_out = frozenset(measured)

    def look(part: tuple[Role, Images, int, bool]) -> list[tuple[Header, int | None] | str]:
        role, images, start, whole = part
        found: list[tuple[Header, int | None] | str] = []
        for row in range(start, min(start + _PART, len(images.names))):
            name = images.names[row]
            source: Source = f"{images.root}/{name}"
            try:
                source = opener.source(images, row)
                found.append(_look_at(source, mode, whole or (role, name) in held_out))
            except DataError as error:
                found.append(str(error).removeprefix(f"{source}: "))
        return found

    parts = [
        (role, images, start, decode_all or role != "train")
        for role, images in files.items()
        for start in range(0, len(images.names), _PART)
    ]
    total = sum(len(images.names) for images in files.values())
    say = _progress(total, on_note)
    with warnings.catch_warnings(), ThreadPoolExecutor(2 * cpu_count() + 2) as threads:
        warnings.simplefilter("ignore")  # `large` and `damaged` replace Pillow's warnings
        for (role, images, start, _), found in zip(parts, threads.map(look, parts), strict=True):
            for row, seen in enumerate(found, start=start):
                if isinstance(seen, str):
                    damaged[told(images.below(records.root) + images.names[row])] = seen
                    continue
                header, brightness = seen
                brightest = brightness if brightest is None else max(brightest, brightness or 0)
                marks[role].append(header.mark)
                formats[header.format] += 1
                modes[header.mode] += 1
                area = header.size[0] * header.size[1]
                least = header.size if least is None or area < least[0] * least[1] else least
                most = header.size if most is None or area > most[0] * most[1] else most
                numbers.update(
                    turned=header.turned, animated=header.num_frames > 1, transparent=header.transparent,
                    deep=header.deep, large=area > limit,
                )  # fmt: skip
            say(len(found))
    trained = np.asarray(marks.pop("train", ()))
    shared = sum(np.count_nonzero(np.isin(own, trained) & (np.asarray(own) != 0)) for own in marks.values())
    return ImageCheck(
        num_images=total,
        damaged=damaged,
        formats=formats,
        modes=modes,
        brightest=brightest,
        shared=int(shared),
        least=least,
        most=most,
        **{name: numbers[name] for name in ("turned", "animated", "transparent", "deep", "large")},
    )


def _look_at(source: Source, mode: Mode, decode_all: bool) -> tuple[Header, int | None]:
    """Returns the header, and the greatest value if the image was decoded and has more than 8 bits."""
    header = read_header(source, mode)
    if not (decode_all or not header.whole):
        return header, None
    image = decode(source, mode)
    if not header.deep:
        return header, None
    return header, int(np.asarray(image if isinstance(image, np.ndarray) else image.convert("L")).max())


def _progress(total: int, on_note: OnNote | None) -> Callable[[int], None]:
    started = time.monotonic()
    done, said = 0, started + _SECONDS_UNTIL_SAID - _SECONDS_BETWEEN

    def say(number: int) -> None:
        nonlocal done, said
        done += number
        now = time.monotonic()
        if on_note is not None and done < total and now - said >= _SECONDS_BETWEEN:
            said = now
            on_note(f"checking images: {done:,} of {total:,}, {done / (now - started):,.0f} a second")

    return say
