"""Reading a zip that somebody else may have made: everything is checked before anything is built."""

import base64
import io
import json
import zipfile
import zlib
from collections.abc import Collection
from typing import Any

from sb3_dmpo.files.safe_pickle import AllowListUnpickler as AllowListUnpickler
from sb3_dmpo.files.safe_pickle import read_structure
from sb3_dmpo.files.safe_values import UnsafeFileError as UnsafeFileError

#: A stored array takes as much room in the zip as in memory; more than this factor is a decompression bomb.
MAX_EXPANSION = 20
#: Upper bound of the JSON entry in bytes; decoded, it takes up to thirty times as many. Ours hold about 100 kB there.
MAX_DATA_BYTES = 4 * 2**20


class DamagedFileError(ValueError):
    """The file is no zip, not complete, or not of this package."""


def _decode(key: str, item: Any, classes: Collection[type]) -> Any:
    if not (isinstance(item, dict) and ":serialized:" in item):
        return item
    try:
        return AllowListUnpickler(
            io.BytesIO(base64.b64decode(item[":serialized:"], validate=True)),
            {(cls.__module__, cls.__qualname__): cls for cls in classes},
        ).load()
    except UnsafeFileError as error:
        raise UnsafeFileError(
            f"The attribute '{key}' {error}, which no model of this package needs. If you trust the file, load it with "
            f"`trust_pickle=True`; to keep the check, replace it: `custom_objects={{'{key}': ...}}`."
        ) from None
    except Exception as error:  # what a damaged pickle leads to has no end
        raise DamagedFileError(f"The attribute '{key}' cannot be read ({type(error).__name__}: {error}).") from None


def check_archive(content: bytes) -> dict[str, Any]:
    """
    Check that a zip is complete and of plausible size, before anything in it is decoded. What its tensors are (their
    shapes, not their numbers), by the name of the entry.

    :param content: the file
    :raises DamagedFileError: not a zip, cut off, or a checksum is wrong
    :raises UnsafeFileError: an entry would grow far beyond the size of the file
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            for entry in entries:
                if entry.file_size > MAX_EXPANSION * entry.compress_size + 1024:
                    raise UnsafeFileError(
                        f"The entry '{entry.filename}' would grow from {entry.compress_size} to {entry.file_size} bytes."
                    )
            names = [entry.filename for entry in entries]
            if "data" not in names or "policy.pth" not in names:
                raise DamagedFileError(f"This is no model of Stable-Baselines3's format: it holds {names or 'nothing'}.")
            if len(set(names)) != len(names):
                raise DamagedFileError("The zip holds an entry twice.")
            if archive.getinfo("data").file_size > MAX_DATA_BYTES:
                raise UnsafeFileError(
                    f"The attributes take {archive.getinfo('data').file_size} bytes; {MAX_DATA_BYTES} are allowed."
                )
            damaged = archive.testzip()
            if damaged is not None:
                raise DamagedFileError(
                    f"The checksum of the entry '{damaged}' is wrong: the file is damaged. Use another copy."
                )
            return {name: _check_tensors(name, archive.read(name)) for name in names if name.endswith(".pth")}
    except (DamagedFileError, UnsafeFileError):
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, OverflowError, RuntimeError, ValueError) as error:
        raise DamagedFileError(
            f"This is no complete zip file ({error}): it is damaged or was cut off. Use another copy."
        ) from None


def _check_tensors(name: str, content: bytes) -> Any:
    """What a ``.pth`` entry holds: it is a zip of its own; storages in it lie there uncompressed."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise DamagedFileError(f"The entry '{name}' holds no tensors in PyTorch's zip format.")
    with zipfile.ZipFile(io.BytesIO(content)) as inner:
        for entry in inner.infolist():
            if entry.file_size > MAX_EXPANSION * entry.compress_size + 1024:
                raise UnsafeFileError(
                    f"The tensors in '{name}' would grow from {entry.compress_size} to {entry.file_size} bytes."
                )
        damaged = inner.testzip()
        if damaged is not None:
            raise DamagedFileError(f"The checksum of '{damaged}' in '{name}' is wrong: the file is damaged. Use another copy.")
        try:
            return read_structure(inner)
        except UnsafeFileError as error:
            raise UnsafeFileError(f"The entry '{name}' {error}, which no model of this package needs.") from None
        except Exception as error:  # what a damaged pickle leads to has no end
            raise DamagedFileError(f"The tensors in '{name}' cannot be read ({type(error).__name__}: {error}).") from None


def read_attributes(
    content: bytes, allowed_keys: Collection[str], classes: Collection[type], replaced: Collection[str] = ()
) -> dict[str, Any]:
    """
    The attributes of a model, decoded without executing anything that the file brings.

    :param content: the file, checked by :func:`check_archive`
    :param allowed_keys: names that may be set on the model
    :param classes: classes that may be named, besides those of every file
    :param replaced: attributes that the caller replaces; they are not decoded
    :raises UnsafeFileError: an unknown attribute, or one that needs an arbitrary pickle
    :raises DamagedFileError: an attribute cannot be decoded
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        try:
            items = json.loads(archive.read("data").decode())
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise DamagedFileError(f"The attributes of the model cannot be read ({error}).") from None
    if not isinstance(items, dict):
        raise DamagedFileError("The attributes of the model are not a JSON object.")
    unknown = sorted(set(items) - set(allowed_keys))
    if unknown:
        raise UnsafeFileError(
            f"The file sets attributes that this algorithm does not have: {', '.join(unknown)}. It is of another algorithm or "
            "version; if you trust it, load it with `trust_pickle=True`."
        )
    return {key: _decode(key, item, classes) for key, item in items.items() if key not in replaced}
