"""Section `data`: the images, and how they are split."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass as validated

from cvt_nas.config.reader import did_you_mean, one_of, show
from cvt_nas.config.values import STRICT, AutoOrWorkers, Seed

Columns = Annotated[list[str], Field(min_length=2, json_schema_extra={"uniqueItems": True})]
_KNOWN = ("digits", "fashion-mnist", "cifar10", "cifar100")
_IN_MEMORY = (*_KNOWN, "npz", "npy")
_STREAMED = ("imagefolder", "imagenet", "table", "huggingface", "webdataset")
_BY_NAME = r"hf:[\w./-]+(:[\w.-]+)?|torchvision:\w+|[A-Za-z_][\w.]*:[A-Za-z_]\w*"
_NAMES = (*_IN_MEMORY, *_STREAMED)


def is_streamed(dataset: str) -> bool:
    """Whether images of a data set are read one by one; else they are all in memory."""
    return dataset not in _IN_MEMORY


def is_by_name(dataset: str) -> bool:
    """Whether a library, or a module of the user's, finds a data set by the name behind a colon."""
    return re.fullmatch(_BY_NAME, dataset) is not None


def can_be_named(dataset: str) -> bool:
    """Whether it is clear where a data set lies, unless it is said otherwise."""
    return dataset in _KNOWN or is_by_name(dataset)


def has_columns(dataset: str) -> bool:
    """Whether columns hold images and labels."""
    return dataset in ("table", "huggingface", "webdataset") or dataset.startswith("hf:")


def _known(value: object) -> object:
    if value in _NAMES or (isinstance(value, str) and is_by_name(value)):
        return value
    near = did_you_mean(str(value), _NAMES)
    raise ValueError(f"got {show(value)}, must be {one_of(_NAMES)}, hf:NAME, torchvision:NAME, MODULE:NAME{near}")


_Shown: Any = Literal[*_NAMES] | Annotated[str, Field(pattern=f"^({_BY_NAME})$")]  # pyright: ignore[reportOperatorIssue]
Dataset = Annotated[str, BeforeValidator(_known, json_schema_input_type=_Shown)]


@validated(config=STRICT, frozen=True, kw_only=True)
class DataConfig:
    """Section `data`: the images, and how they are split.

    Args:
        dataset: The data set. `imagefolder` and `imagenet` read `train/` and `val/`, one folder a class. `table` is a
            CSV, TSV or Parquet file with a path and a label in each row. `npz` is a file as MedMNIST's, and `npy` a
            folder of `train_images.npy`, `train_labels.npy` and so on. `huggingface` is a folder as Hugging Face's
            library leaves it or reads it, and `hf:NAME` or `hf:NAME:CONFIG` a set on its hub. `webdataset` is a folder
            of tar files, or a pattern such as `train-{000..099}.tar`. `torchvision:NAME` is one of torchvision's sets,
            by the name of its class, in `data/` where `--data` names no folder. `MODULE:NAME` is a function of your
            own.
        search_fraction: Share of the training data held out to guide the search. It has no effect where there are
            validation and test images both: then the validation images guide the search.
        test_fraction: Share of the training images held out as the test split, where there are neither validation nor
            test images, as in a folder of class folders.
        train_fraction: Share of the remaining training images that is trained on, stratified by class: a cheaper and
            weaker proxy.
        split_seed: Seed of these splits.
        show_images: Whether the run folder keeps a few small copies of images, which its page shows: some of each
            split, and what the networks of the front get wrong.
        num_workers: Processes that decode images of a folder, for each process that trains (each device of a trial),
            but no more than the machine has CPUs; in-memory sets need none. `auto`: as many as the process that trains
            has CPUs, less one for itself; where it trains on a GPU, at least one.
        on_error: Where images of a folder cannot be read: `raise` ends the run before it begins; `skip` leaves them
            out of every split, for which each image is decoded once beforehand.
        download: Whether torchvision may download a set of its own that is not there.
        image_column: Column of a table that holds the paths of images, below the folder of the table or absolute; or of
            a set of Hugging Face's that holds the images. The one that does where absent.
        label_column: Column that holds the class of each image, or its labels. Of a table, also several columns of 0
            and 1, one for each label that an image may have. Where absent, the one that holds classes, or has a usual
            name, such as `label` or `class`; of a table also the only one that is left, or all that are left, where
            they hold 0 and 1 alone. Of a WebDataset, the key in the `.json` of an image, where there is no `.cls`.
        label_separator: What parts the labels of an image in one column, where it may have several. `|` where absent
            and any row has it; `none` where each row has one label, whatever is in it.
        split_column: Column of a table that marks the split of each image as `train`, `val` or `test`, in the spellings
            of folders. One named `split` or so where absent; `none` where no column is to be taken.
    """

    dataset: Dataset
    search_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    split_seed: Seed = 0
    show_images: bool = True
    num_workers: Annotated[AutoOrWorkers, Field(examples=[8])] = "auto"
    on_error: Literal["raise", "skip"] = "raise"
    download: bool = False
    image_column: Annotated[str, Field(min_length=1, examples=["path"])] | None = None
    label_column: Annotated[str | Columns, Field(examples=["species"])] | None = None
    label_separator: Annotated[str, Field(min_length=1, examples=[";"])] | None = None
    split_column: Annotated[str, Field(min_length=1, examples=["fold"])] | None = None
