"""
Files and folders that are written beside their place before they take it.

They have a name of their own kind and are locked while somebody writes them, so that those of killed processes are known
for what they are: whoever writes beside them next removes them.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".sb3_dmpo.tmp"
#: File systems allow 255 bytes
_MAX_NAME = 180


def _lock(descriptor: int) -> bool | None:
    """Whether a file or folder is now locked by this descriptor; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # network file systems without locks
        return None
    return True


def new_temporary(target: Path, is_folder: bool = False) -> tuple[Path, int]:
    """
    A new file (or folder) beside its later place, with the permissions that the umask gives, and a descriptor that keeps it
    from being taken for abandoned until it is closed.

    :param target: its later place
    :param is_folder: whether to make a folder
    :raises OSError: it cannot be made (the message names the target)
    """
    remove_abandoned(target.parent)
    name = os.fsencode(target.name)[:_MAX_NAME].decode(errors="ignore")
    while True:
        path = target.with_name(f".{name}.{secrets.token_hex(4)}{SUFFIX}")
        try:
            if is_folder:
                path.mkdir()
                descriptor = os.open(path if fcntl is not None else os.devnull, os.O_RDONLY)
            else:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        except FileExistsError:
            continue
        except OSError as error:
            if target.parent.is_dir() and isinstance(error, FileNotFoundError):
                continue  # removed by somebody who came before the lock
            # The temporary file's name would say nothing.
            raise OSError(error.errno, error.strerror, str(target)) from error
        # Between its making and its locking somebody may have taken it for abandoned.
        if _lock(descriptor) is not False and path.exists():
            return path, descriptor
        os.close(descriptor)


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """
    A folder as of :func:`new_temporary`, gone at the end of the block unless it has been moved.

    :param target: its later place
    :raises OSError: it cannot be made (the message names the target)
    """
    folder, descriptor = new_temporary(target, is_folder=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """
    Remove the temporary files and folders that killed processes have left in a folder.

    :param folder: the folder
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX) and not entry.is_symlink():
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(Path(entry.path))


def _remove_if_abandoned(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        if _lock(descriptor):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
    finally:
        os.close(descriptor)
