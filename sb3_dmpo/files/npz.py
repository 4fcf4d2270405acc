"""NumPy's ``.npz``; read from files of unknown origin, it is plain numbers and texts for which the bytes are there."""

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sb3_dmpo.files.archive import Budget, read_archive
from sb3_dmpo.files.plain_text import DamagedFileError, UnsafeFileError

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """
    Shape, whether it is in Fortran's order, and dtype of an array in NumPy's format; the file then stands at its values.

    :param file: opened for reading, at the beginning of the array
    :raises ValueError: no such array, or one of a format that is not known
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"array format {version} is not known")
    header: tuple[tuple[int, ...], bool, np.dtype[Any]] = _HEADERS[version](file)
    return header


def read_npz(content: bytes) -> dict[str, npt.NDArray[np.generic]]:
    """
    The arrays in a file by name, read-only. (NumPy's own reader makes an array of the announced shape first.)

    :param content: the file
    :raises DamagedFileError: no such file, or not complete
    :raises UnsafeFileError: something else than arrays of numbers and texts
    """
    arrays = {}
    for name, entry in read_archive(content, Budget(len(content))).items():
        if not name.endswith(".npy"):
            raise UnsafeFileError(f"The file holds the entry '{name[:100]}', which is no array.")
        try:
            file = io.BytesIO(entry)
            shape, is_fortran, dtype = read_header(file)
        except Exception as error:  # depends on what is in the file
            raise DamagedFileError(f"The array '{name[:100]}' cannot be read ({type(error).__name__}).") from None
        if dtype.kind not in "biufU" or dtype.itemsize == 0:
            raise UnsafeFileError(f"The array '{name[:100]}' holds {str(dtype)[:100]}, neither numbers nor text.")
        n_bytes = math.prod(shape) * dtype.itemsize
        if n_bytes != len(entry) - file.tell() or min(shape, default=0) < 0:
            raise DamagedFileError(f"The array '{name[:100]}' of shape {shape} has not its {n_bytes} bytes.")
        values = np.frombuffer(entry, dtype, offset=file.tell()) if n_bytes else np.zeros(0, dtype)
        arrays[name.removesuffix(".npy")] = values.reshape(shape, order="F" if is_fortran else "C")
    return arrays


def pack_npz(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """
    Arrays as bytes, for :func:`read_npz`; ``np.load`` reads them too.

    :param arrays: by name
    """
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()
