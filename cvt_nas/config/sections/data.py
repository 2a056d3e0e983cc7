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
    """Whether images of a data set are read one by one. If not, they are all in memory."""
    return dataset not in _IN_MEMORY


def is_by_name(dataset: str) -> bool:
    """Whether a library or a module of the user finds the data set by the name after a colon."""
    return re.fullmatch(_BY_NAME, dataset) is not None


def can_be_named(dataset: str) -> bool:
    """Whether the data set has a default place."""
    return dataset in _KNOWN or is_by_name(dataset)


def has_columns(dataset: str) -> bool:
    """Whether images and labels of the data set are in columns."""
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
        dataset: The data set. `imagefolder` and `imagenet` read one folder a class: in `train/`, `val/` and `test/`, or
            at the root. `table` is
            a CSV, TSV or Parquet file with a path and a label in each row. `npz` is a file like MedMNIST's, and `npy` a
            folder of `train_images.npy`, `train_labels.npy` and so on. `huggingface` is a folder that Hugging Face's
            library has saved or can read, and `hf:NAME` or `hf:NAME:CONFIG` is a set on its hub. `webdataset` is a
            folder of tar files, or a pattern such as `train-{000..099}.tar`. `torchvision:NAME` is a set of
            torchvision by class name, in `data/` unless `--data` names a folder. `MODULE:NAME` is a function of your
            own.
        search_fraction: Share of the training images held out to guide the search. It has no effect if there are
            both validation and test images, since the validation images then guide the search.
        test_fraction: Share of the training images held out as the test split. It applies if there are neither
            validation nor test images, as in a folder of class folders.
        train_fraction: Share of the remaining training images to train on, stratified by class. A smaller share is a
            cheaper and weaker proxy.
        split_seed: Seed of these splits.
        show_images: Whether the run folder keeps a few small copies of images for its page: some of each split, and
            some that networks of the front get wrong.
        num_workers: Processes that decode images of a folder, for each training process (each device of a trial). The
            number of CPUs of the machine is the limit. In-memory sets need none. `auto` is the number of CPUs of the
            training process minus one, and at least one for a GPU.
        on_error: Handling of images of a folder that cannot be read. `raise` ends the run before it starts. `skip`
            leaves them out of all splits; each image is then decoded once at the start.
        download: Whether torchvision may download a missing data set.
        image_column: Column of a table with the paths of images, absolute or below the table's folder; or column of a
            Hugging Face set with the images. By default, the only column that fits.
        label_column: Column with the class or the labels of each image. A table can have several columns of 0 and 1,
            one for each label. By default, the column that holds classes, or the one with a usual name such as `label`
            or `class`. In a table, the default can also be the only column left, or all columns left if they hold
            only 0 and 1. For a WebDataset, it is a key in the `.json` of an image without a `.cls`.
        label_separator: Text between the labels of an image in one column. By default, `|` if any row contains it.
            `none` means that each row is one label.
        split_column: Column of a table with the split of each image: `train`, `val` or `test`, in the spellings of
            folders. By default, a column named `split` or similar. `none` means that no column names splits.
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
