"""Random states as plain data, and files that are either old or new but never half."""

import base64
import contextlib
import io
import os
import pathlib
import random
import secrets
from collections.abc import Collection, Iterator
from typing import Any

import cloudpickle
import numpy as np
import torch as th

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
    for device, encoded in [("cuda", one) for one in state.get("cuda", [])] + [
        (state["device"], state[name]) for name in ("noise", "buffer") if name in state
    ]:
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


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[io.BufferedWriter]:
    """
    A binary file that appears under ``path`` when the block ends, complete and synchronised to disk. If the block
    fails or the process dies, what was there before is untouched.

    :param path: the final path; its folder is created if necessary
    :raises OSError: the folder cannot be written (the message names it)
    """
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = str(target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp"))
    try:
        # With the usual permissions of a new file. (mkstemp makes private ones, and to ask for the mask is to change it.)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, 0o666)
    except OSError as error:
        # The temporary file's name would say nothing.
        raise OSError(error.errno, error.strerror, str(target)) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, temporary):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
