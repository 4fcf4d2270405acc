"""Text of unknown origin, and the errors that quote it: what a terminal obeys is written out, e.g. as ``\\x1b``."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any


def plain(text: object) -> str:
    """
    A text that a terminal shows and does not obey: control characters, invisible ones, and those that turn the direction of
    writing are escaped. Line ends stay.

    :param text: anything
    """
    content = str(text)
    if content.isprintable():
        return content
    return "".join(
        character if character.isprintable() or character == "\n" else character.encode("unicode_escape").decode("ascii")
        for character in content
    )


class FileError(ValueError):
    """
    Something is wrong inside a file.

    :param message: what, and how to mend it
    :param source: name of the file; None: it is not known here
    """

    def __init__(self, message: str, source: str | None = None) -> None:
        super().__init__(plain(message if source is None else f"{source}: {message}"))
        self.source = source


class UnsafeFileError(FileError):
    """The file asks for something that a model file does not need."""


class DamagedFileError(FileError):
    """The file is no zip, not complete, or not of this package or algorithm."""


@contextlib.contextmanager
def named_faults(source: Any) -> Iterator[None]:
    """
    Say which file it is, in what is raised in the block.

    :param source: path of the file, or a file object, which may have a name
    :raises FileError: as in the block, with the name
    """
    try:
        yield
    except FileError as error:
        name = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
        if error.source is not None or not isinstance(name, str | os.PathLike):
            raise
        raise type(error)(str(error), os.fspath(name)) from error.__cause__
