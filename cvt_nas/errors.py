"""Errors that a user can fix.

    CvtNasError                 base of everything below; the command line prints it and exits with 2
    ├── ArchError               an architecture that cannot exist, or an unknown name
    ├── SpaceFileError          a space file: every problem of the file, each with its line
    ├── DataError               a data set that is missing, incomplete or does not fit the space
    ├── PluginError             a function named in a space file that cannot be imported, or gives what it must not
    ├── ResourceError           more GPUs or CPUs asked for than there are
    ├── RunFolderError          a run folder that is missing, taken or damaged
    ├── TableError              a table of a benchmark that cannot be read, or makes no sense
    ├── ExportError             an architecture of a run that cannot be exported as asked
    ├── SearchFailedError       a search in which nothing works; the exit status is 1
    └── TrainingEndedError      a training that has no result; the exit status is 1

What only a programming mistake can cause is an `assert`, not one of these.
"""

from collections.abc import Sequence


class CvtNasError(Exception):
    """A mistake that the user can fix; the message says where, what came and what would be right."""


class ArchError(CvtNasError, ValueError):
    """An architecture that cannot exist.

    Args:
        stage: Index of the stage where that shows, if it is one.
    """

    def __init__(self, message: str, stage: int | None = None) -> None:
        super().__init__(message)
        self.stage = stage


class SpaceFileError(CvtNasError, ValueError):
    """All the problems of one space file.

    Args:
        problems: One line each, `file:line: key: what came, what would be right`.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type, tuple[tuple[str, ...]]]:
        return (type(self), (self.problems,))


class DataError(CvtNasError):
    """A data set that is missing, incomplete, or does not fit the space."""


class PluginError(CvtNasError):
    """A function that a space file names cannot be imported, or gives what it must not."""


class ResourceError(CvtNasError):
    """More was asked for than the machine or the cluster has."""


class RunFolderError(CvtNasError):
    """A run folder that is missing, taken or damaged."""


class TableError(CvtNasError):
    """A table of a benchmark that cannot be read, or makes no sense."""


class ExportError(CvtNasError):
    """An architecture of a run that cannot be exported as asked."""


class SearchFailedError(CvtNasError):
    """A search in which nothing works."""


class TrainingEndedError(CvtNasError, RuntimeError):
    """A training that has no result, as where its loss is not finite, or the device has too little memory."""


class StorageError(OSError):
    """Nothing can be written: the disk is full or read-only, or it or a store has been away for too long."""


def first_line(error: BaseException) -> str:
    """What `error` says, in one line; its name where it says nothing."""
    return (str(error).strip() or repr(error)).splitlines()[0]
