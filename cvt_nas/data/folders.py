"""Folders of images: one folder for each split, with one folder for each class in it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from cvt_nas.data.layout import Layout, find_layout
from cvt_nas.data.listing import list_images, load_listing, load_normalisation, problems_of
from cvt_nas.data.records import Files, Images, Records, Role
from cvt_nas.errors import DataError


def find_folders(
    dataset: str,
    root: Path | None,
    *,
    test_only: bool = False,
    listing: Path | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Records:
    """Finds the images below `root`. See `find_layout` for which folder is which split.

    Args:
        dataset: Name of the kind of data set, for messages.
        test_only: Whether test images suffice. They may then lie in `root` itself.
        listing: File that `save_records` wrote for the same images. Without one, all folders are scanned.
        on_note: Called with progress notes if the scan takes long.

    Raises:
        DataError: Images are missing, or folders have another layout.
    """
    if root is None:
        raise DataError(f"{dataset}: give the folder that holds train/ and val/ by --data DIR")
    layout = find_layout(root)
    if test_only:
        layout = layout.for_test()
    else:
        layout.check_trainable()
        if len(layout.class_names) == 1:
            raise DataError(
                f"{layout.places['train']}: {layout.class_names[0]}/ is the only class folder; one class is no task"
            )
    files: dict[Role, Images]
    if listing is not None:
        files = load_listing(listing, layout)
    else:
        files = {role: list_images(layout, role, on_note=on_note) for role in layout.places}
        if problems := problems_of(layout, files):
            raise DataError(f"{dataset}: {'; '.join(problems)}")
    records = records_of(layout, files)
    return records if listing is None else replace(records, normalisation=load_normalisation(listing))


def records_of(layout: Layout, files: Mapping[Role, Images]) -> Records:
    return Records(
        root=layout.root,
        class_names=layout.class_names,
        files=files,
        opener=Files(),
        notes=layout.notes,
        is_marked=not layout.is_flat,
        no_test=" in val/ or test/",
    )
