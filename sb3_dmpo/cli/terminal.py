"""Where text leaves for a terminal: whatever a file, a folder or a library says, the terminal shows and does not obey."""

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from sb3_dmpo.files.plain_text import plain

#: Colours, which libraries put around their warnings. They are left out.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class PlainStream:
    """
    A stream of text through which nothing goes that moves the cursor, asks the terminal something or hides text.

    A carriage return is let through at the beginning of a text, where progress bars have it, and before a line end. What the
    encoding of the stream does not have is escaped: no training ends because a letter cannot be printed.

    :param stream: where the text goes
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """
        As the stream's.

        :param text: the text
        """
        start = "\r" if text.startswith("\r") else ""
        lines = _COLOUR.sub("", text.removeprefix("\r")).replace("\r\n", "\n").split("\t")
        shown = start + "\t".join(map(plain, lines))
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """
        As the stream's.

        :param lines: texts
        """
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def raw_output() -> Any:
    """The standard output for what this package itself draws, e.g. tables that are redrawn; never for text of others."""
    return sys.stdout.stream if isinstance(sys.stdout, PlainStream) else sys.stdout


@contextlib.contextmanager
def plain_streams() -> Iterator[None]:
    """What is written to the standard output and error in the block is shown as it is, and not obeyed."""
    # Python has None for one that is closed.
    output, errors = (stream or open(os.devnull, "w", encoding="utf-8") for stream in (sys.stdout, sys.stderr))
    if output.isatty() and importlib.util.find_spec("rich") is not None:
        # Progress bars of Stable-Baselines3 move the cursor.
        import rich

        rich.reconfigure(file=raw_output())
    with contextlib.redirect_stdout(PlainStream(output)), contextlib.redirect_stderr(PlainStream(errors)):
        yield
