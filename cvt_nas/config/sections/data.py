"""Section `data`: the images, and how they are split."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from cvt_nas.config.values import STRICT, AutoOrWorkers, Seed

Dataset = Literal["digits", "fashion-mnist", "cifar10", "cifar100", "imagefolder", "imagenet"]


@validated(config=STRICT, frozen=True, kw_only=True)
class DataConfig:
    """Section `data`: the images, and how they are split.

    Args:
        dataset: The data set. `imagefolder` and `imagenet` read `train/` and `val/`, one folder a class.
        search_fraction: Share of the training data held out to guide the search. It has no effect on a folder that has
            validation and test images both: then the validation images guide the search.
        test_fraction: Share of the training images of a folder held out as the test split, where the folder has
            neither validation nor test images.
        train_fraction: Share of the remaining training images that is trained on, stratified by class: a cheaper and
            weaker proxy.
        split_seed: Seed of these splits.
        num_workers: Processes that decode images of a folder, for each process that trains (each device of a trial),
            but no more than the machine has CPUs; in-memory sets need none. `auto`: as many as the process that trains
            has CPUs, less one for itself; where it trains on a GPU, at least one.
        on_error: Where images of a folder cannot be read: `raise` ends the run before it begins; `skip` leaves them
            out of every split, for which each image is decoded once beforehand.
    """

    dataset: Dataset
    search_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    split_seed: Seed = 0
    num_workers: Annotated[AutoOrWorkers, Field(examples=[8])] = "auto"
    on_error: Literal["raise", "skip"] = "raise"
