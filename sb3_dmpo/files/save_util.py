"""Random states as plain data, and files that are either old or new but never half."""

import base64
import contextlib
import errno
import io
import os
import pathlib
import random
import stat
import tempfile
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

import cloudpickle
import numpy as np
import torch as th

from sb3_dmpo.files.temporary import new_temporary

#: Bytes of the state of a generator that is not on the CPU; CUDA's has 16.
_MAX_DEVICE_STATE = 256


def encode_generator(generator: th.Generator) -> str:
    """
    State of a generator as base64 text.

    :param generator: a generator of any device
    """
    return base64.b64encode(generator.get_state().numpy().tobytes()).decode("ascii")


def decode_state(state: str) -> th.Tensor:
    """
    The byte tensor behind :func:`encode_generator`.

    :param state: base64 text
    """
    return th.frombuffer(bytearray(base64.b64decode(state)), dtype=th.uint8)


def get_random_state() -> dict[str, Any]:
    """State of the global generators of Python, NumPy and PyTorch (CPU and CUDA) as JSON-serialisable data."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": encode_generator(th.default_generator),
    }
    if th.cuda.is_available() and th.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = [encode_generator(generator) for generator in th.cuda.default_generators]
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """
    Restore what :func:`get_random_state` returned.

    :param state: its return value, possibly after a round trip through JSON
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    th.default_generator.set_state(decode_state(state["torch"]))
    if "cuda" in state and th.cuda.is_available():
        for generator, saved in zip(th.cuda.default_generators, state["cuda"], strict=False):
            generator.set_state(decode_state(saved))


def check_random_state(state: Any) -> None:
    """
    Whether :func:`set_random_state` would take it, tried on generators of nobody.

    :param state: what :func:`get_random_state` returned, possibly with states of further generators; or anything else
    :raises Exception: depends on what is wrong with it
    """
    version, internal, gauss = state["python"]
    random.Random().setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    if type(position) is not int or not 0 <= position <= len(keys):
        # NumPy would read behind its array.
        raise ValueError(f"the state of NumPy's generator is at {position!r}")
    np.random.RandomState(0).set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    th.Generator().set_state(decode_state(state["torch"]))
    further = [("cuda", one) for one in state.get("cuda", [])]
    if "noise" in state:
        further.append((state["device"], state["noise"]))
    if "buffer" in state:
        further.append((state.get("buffer_device", state["device"]), state["buffer"]))
    for device, encoded in further:
        tensor = decode_state(encoded)
        if device == "cpu":
            th.Generator().set_state(tensor)
        elif type(device) is not str or len(tensor) > _MAX_DEVICE_STATE:
            raise ValueError(f"the state of a generator of {device!r} has {len(tensor)} bytes")


def unpicklable_attribute(attributes: dict[str, Any], excluded: Collection[str]) -> str | None:
    """
    Name of the first attribute that cannot be pickled, None if all can.

    :param attributes: values by name
    :param excluded: names that do not count
    """
    for name, value in attributes.items():
        if name not in excluded:
            try:
                cloudpickle.dumps(value)
            except Exception:  # anything can happen in __reduce__
                return name
    return None


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leave the global random generators as they were before the block."""
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)


def _refuse_empty(path: str | os.PathLike[str]) -> None:
    # To pathlib it is the current folder, and so is Path().
    if pathlib.Path(path) == pathlib.Path():
        raise ValueError("The path is empty: pass the name of a file.")


def path_to_write(path: str | os.PathLike[str], suffix: str) -> pathlib.Path:
    """
    Where SB3 would write: a name without suffix gets one.

    :param path: the path
    :param suffix: e.g. ``".zip"``
    :raises ValueError: it is empty
    """
    _refuse_empty(path)
    return pathlib.Path(path if pathlib.Path(path).suffix else f"{os.fspath(path)}{suffix}")


def path_to_read(path: str | os.PathLike[str], suffix: str) -> pathlib.Path:
    """
    Where SB3 would read: a path as it is, else with the suffix appended, also to a name with dots.

    :param path: the path
    :param suffix: e.g. ``".zip"``
    :raises FileNotFoundError: there is neither file
    :raises ValueError: the path is empty
    """
    _refuse_empty(path)
    for found in (pathlib.Path(path), pathlib.Path(f"{os.fspath(path)}{suffix}")):
        if found.exists():
            return found
    raise FileNotFoundError(errno.ENOENT, f"There is no such file, nor one with {suffix} appended", os.fspath(path))


def read_stream(stream: Any) -> bytes:
    """
    The content of a stream from its beginning, wherever it stands: SB3 loads from the stream that it has just saved to.

    :param stream: a file object
    :raises TypeError: it is none, or one of text
    """
    if not hasattr(stream, "read"):
        raise TypeError(f"A {type(stream).__name__} is no file: pass a path, or a file opened for reading in binary mode.")
    if getattr(stream, "seekable", bool)():
        stream.seek(0)
    content = stream.read()
    if not isinstance(content, bytes):
        raise TypeError("The file was opened in text mode: open it in binary mode, 'rb'.")
    return content


def check_writable(path: str | os.PathLike[str]) -> None:
    """
    Find out whether a new file can be made, whose folder may be missing too. Nothing is left of the attempt.

    :param path: the file
    :raises OSError: it cannot (the message names the file)
    """
    try:
        folder = next(folder for folder in pathlib.Path(path).absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """
    A binary file that appears under ``path`` when the block ends, complete and synchronised to disk. If the block
    fails or the process dies, what was there before is untouched. What is replaced keeps its permissions, and a symbolic
    link stays one: the file that it names is replaced. A device or a pipe is written to as it is.

    :param path: the final path; its folder is created if necessary
    :raises OSError: the folder cannot be written (the message names the path)
    """
    target = pathlib.Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if target.exists() and not target.is_file():
        with io.BytesIO() as memory:
            yield memory
            target.write_bytes(memory.getvalue())
        return
    temporary, descriptor = new_temporary(target)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if target.exists():
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
            if os.name != "posix":
                file.close()  # Windows moves no open files; elsewhere it is locked until it is in its place
            os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
