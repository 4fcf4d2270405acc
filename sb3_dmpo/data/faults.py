"""Why a file cannot be read, and what helps: advice to delete data is for damage alone."""

import errno
import os
import struct
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from sb3_dmpo.data.transitions import Advice, DatasetError
from sb3_dmpo.files.plain_text import plain

_LOCK_HELD = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES})
#: What reading a file raises when its content is not what it should be. HDF5 raises OSError without a number.
_DAMAGE = (ArithmeticError, BadZipFile, EOFError, LookupError, RuntimeError, TypeError, ValueError, struct.error, zlib.error)
_SYSTEM = Advice(
    "Its content may be whole: mend the cause and try again", "Its content may be whole: mend the cause and try again"
)


def shown(text: object, length: int = 300) -> str:
    """
    Text out of a file or an error as one line of printable characters.

    :param text: what is to be shown
    :param length: characters to keep
    """
    return plain(" ".join(str(text).split())[:length])


def reading_fault(
    label: str, what: str, error: Exception, path: Path, damaged: str | Advice, **place: int | str
) -> DatasetError:
    """
    What to tell a user about an exception while a dataset was read.

    :param label: the dataset, as ``DatasetSource.label`` names it
    :param what: what went wrong, e.g. ``"it cannot be opened"``
    :param error: the exception
    :param path: the file, or the folder that holds it
    :param damaged: how to mend it if its content is at fault
    :param place: as in ``DatasetError.at``
    :raises MemoryError: the exception itself, if it is one: that is no fault of the dataset
    """
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, DatasetError):
        return error
    cause, how = _diagnosis(error, path, damaged)
    return DatasetError.at(label, f"{what} ({cause})", how, **place)


def _diagnosis(error: Exception, path: Path, damaged: str | Advice) -> tuple[str, str | Advice]:
    """The cause in words, and what helps."""
    text, number = shown(error), getattr(error, "errno", None)
    if isinstance(error, ImportError):
        return f"a package is missing: {text}", "Install it and try again"
    if "unable to lock file" in text:
        if number in _LOCK_HELD:
            return (
                "another process has it open for writing",
                "Wait until that has closed it, e.g. until its recording has ended",
            )
        return f"its file system knows no locks: {text}", "Set HDF5_USE_FILE_LOCKING=FALSE in the shell"
    if "already open for write" in text:
        how = "Wait until its recording has ended; if it was interrupted, `h5clear --status FILE` releases the file"
        return "it was not closed by the process that wrote it", how
    if ("filter" in text and ("not registered" in text or "not available" in text)) or "hdf5/lib/plugin" in text:
        how = "Install the filter (most are in hdf5plugin) and import it first: `pip install hdf5plugin`, `import hdf5plugin`"
        return f"HDF5 lacks the filter that it was compressed with: {text}", how
    if number in (errno.EACCES, errno.EPERM):
        return f"you may not read {_unreadable(path)}", "Ask its owner for permission to read (chmod a+rX)"
    if number == errno.ENOENT and os.path.islink(path):
        return f"{path} is a link to {os.readlink(path)}, which is not there", "Mend the link, or mount what it leads to"
    if isinstance(error, OSError) and number not in (None, errno.ENOENT, errno.EINVAL, errno.EOVERFLOW):
        return f"the system says {os.strerror(number)!r} of {path}", _SYSTEM
    if isinstance(error, (OSError, *_DAMAGE)):
        return f"{type(error).__name__}: {text}" if not isinstance(error, OSError) else text, damaged
    return f"{type(error).__name__}: {text}", _SYSTEM


def _unreadable(path: Path) -> Path:
    """The first part of a path that may not be read, the path itself if all may."""
    for part in [*reversed(path.parents), path]:
        if not os.access(part, os.R_OK | (os.X_OK if part != path or os.path.isdir(part) else 0)):
            return part
    return path


def readable_or_fault(label: str, path: Path, **place: Any) -> None:
    """
    Refuse a path that may not be looked at.

    :param label: the dataset, for the message
    :param path: file or folder
    :param place: as in ``DatasetError.at``
    :raises DatasetError: naming the part of the path that is closed
    """
    try:
        path.stat()
    except PermissionError as error:
        raise reading_fault(label, "it cannot be opened", error, path, "", **place) from None
    except OSError:
        return
