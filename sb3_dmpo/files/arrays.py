"""Arrays by name as the content of one entry of a zip: NumPy's own format, and nothing in it that could be executed."""

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sb3_dmpo.files.safe_zip import MAX_EXPANSION, DamagedFileError


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """
    Arrays as bytes, for :func:`unpack_arrays`; ``np.load`` reads them too.

    :param arrays: numbers by name
    """
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def unpack_arrays(content: bytes) -> dict[str, np.ndarray]:
    """
    The arrays of :func:`pack_arrays`. Nothing is made before it is known to be there.

    :param content: its return value, or what somebody says is one
    :raises DamagedFileError: it is none
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in archive.infolist()}
    except (
        ValueError,
        TypeError,
        KeyError,
        OSError,
        EOFError,
        SyntaxError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DamagedFileError(f"The arrays in the file cannot be read ({error}).") from None


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    if entry.file_size > MAX_EXPANSION * entry.compress_size + 1024:
        raise ValueError(f"'{entry.filename}' would grow from {entry.compress_size} to {entry.file_size} bytes")
    file = io.BytesIO(archive.read(entry))
    version: Any = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"'{entry.filename}' is of version {version}")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    numbers = file.read()
    # The header may promise anything; what is there decides.
    if is_fortran or dtype.kind not in "fiub" or len(numbers) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"'{entry.filename}' is no array of {shape} numbers ({dtype})")
    return np.frombuffer(numbers, dtype).reshape(shape).copy()
