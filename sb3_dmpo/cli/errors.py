"""Faults of what was typed: one line on stderr, never a traceback."""

import argparse
import difflib
import importlib
import io
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

import gymnasium as gym

from sb3_dmpo.cli.terminal import plain_streams
from sb3_dmpo.data import DatasetError
from sb3_dmpo.files.plain_text import FileError

#: Exit codes of the command line. 130 is the shell's for Ctrl-C.
EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class UsageError(Exception):
    """What was asked for is not there or makes no sense. The message says what, and how to mend it."""


def suggest(name: str, known: Iterable[str]) -> str:
    """
    A sentence with the names nearest to one that is not known, or with all of them if none is near.

    :param name: what was typed
    :param known: the names that would have been right
    """
    names = sorted(known)
    by_lower_case = {known_name.lower(): known_name for known_name in names}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(by_lower_case[match] for match in near)}?"
    return f"Known: {', '.join(names)}."


def check_env_id(env_id: str) -> None:
    """
    Refuse an environment that gymnasium does not know.

    :param env_id: id
    :raises UsageError: unknown; the nearest ones are named
    """
    if env_id not in gym.registry:
        raise UsageError(f"There is no environment {env_id!r} (--gym-packages imports more). {suggest(env_id, gym.registry)}")


def import_packages(packages: Iterable[str]) -> None:
    """
    Import packages that register environments.

    :param packages: what was typed after ``--gym-packages``
    :raises UsageError: one of them cannot be imported
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UsageError(f"--gym-packages {package}: {error}.") from error


class Parser(argparse.ArgumentParser):
    """A parser whose faults are single lines."""

    def error(self, message: str) -> NoReturn:
        """
        :param message: what is wrong
        :raises UsageError: always
        """
        raise UsageError(message)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def exit_code(program: Callable[[], int | None], name: str) -> int:
    """
    Run a program; the faults that it can foresee become one line on stderr and an exit code. Nothing that is printed moves the
    cursor of a terminal: see :mod:`sb3_dmpo.cli.terminal`.

    :param program: the program; what it returns is its exit code, None is 0
    :param name: how it calls itself, e.g. ``sb3_dmpo train``
    :return: 0, 1 (training or the disk failed), 2 (what was asked for cannot be done) or 130 (Ctrl-C)
    """
    for stream in (sys.stdout, sys.stderr):
        # Of what a terminal or a log cannot show (cp1252, ASCII) a question mark is left, and not an end of the training.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    with plain_streams():
        return _exit_code(program, name)


def _exit_code(program: Callable[[], int | None], name: str) -> int:
    try:
        return program() or 0
    except (UsageError, DatasetError, FileError, gym.error.Error) as error:
        code, message = EXIT_USAGE, _one_line(getattr(error, "shell_message", None) or error)
    except ImportError as error:
        code = EXIT_USAGE
        message = f"{_one_line(error)}. The command line needs more than the package itself: pip install 'sb3_dmpo[zoo]'."
    except (FloatingPointError, OSError) as error:
        code, message = EXIT_FAILURE, _one_line(error)
    except KeyboardInterrupt:
        code, message = EXIT_INTERRUPTED, "interrupted"
    sys.stderr.write(f"{name}: {'error: ' if code != EXIT_INTERRUPTED else ''}{message}\n")
    return code
