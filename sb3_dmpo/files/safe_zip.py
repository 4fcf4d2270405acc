"""Reading a zip that somebody else may have made: everything is checked before anything is built."""

import base64
import io
import json
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sb3_dmpo.files.safe_pickle import AllowListUnpickler as AllowListUnpickler
from sb3_dmpo.files.safe_pickle import read_structure
from sb3_dmpo.files.safe_values import UnsafeFileError as UnsafeFileError
from sb3_dmpo.files.settings import decode, parse

#: A stored array takes as much room in the zip as in memory; more than this factor is a decompression bomb.
MAX_EXPANSION = 20
#: Upper bound of a JSON entry in bytes; decoded, it takes up to thirty times as many. Ours hold about 100 kB there.
MAX_DATA_BYTES = 4 * 2**20
#: Our own entry, and its version.
SETTINGS, FORMAT = "settings.json", 1


class DamagedFileError(ValueError):
    """The file is no zip, not complete, or not of this package or algorithm."""


@dataclass(frozen=True)
class StoredModel:
    """
    What is in a zip, nothing of it made yet.

    :param tensors: the structure of its tensors (their shapes, not their numbers), by the name of the entry
    :param attributes: the attributes as JSON
    :param algorithm: name of the algorithm's class; None: the zip has no settings of ours, its attributes are pickles
    :param policy: alias of the policy, or the name of its class
    :param system: on what it was made
    """

    tensors: dict[str, Any]
    attributes: dict[str, Any]
    algorithm: str | None = None
    policy: str | None = None
    system: str = ""

    def decode(
        self, allowed_keys: Collection[str], classes: Mapping[str, type], replaced: Collection[str] = ()
    ) -> dict[str, Any]:
        """
        The attributes, decoded without executing anything that the file brings.

        :param allowed_keys: names that may be set on the model
        :param classes: classes that may be named besides those of every file, by ``module:name``
        :param replaced: attributes that the caller replaces; they are not decoded
        :raises UnsafeFileError: an unknown attribute, or one that asks for something that is not allowed
        :raises DamagedFileError: an attribute cannot be decoded
        """
        unknown = sorted(set(self.attributes) - set(allowed_keys))
        if unknown:
            raise UnsafeFileError(
                f"The file sets attributes that this algorithm does not have: {', '.join(unknown)}. It is of another "
                "algorithm or version; if you trust it, load it with `trust_pickle=True`."
            )
        return {key: self._decode(key, item, classes) for key, item in self.attributes.items() if key not in replaced}

    def _decode(self, key: str, item: Any, classes: Mapping[str, type]) -> Any:
        try:
            if self.algorithm is not None:
                return decode(item, classes)
            if not (isinstance(item, dict) and ":serialized:" in item):
                return item
            pickled = io.BytesIO(base64.b64decode(item[":serialized:"], validate=True))
            return AllowListUnpickler(pickled, classes).load()
        except UnsafeFileError as error:
            raise UnsafeFileError(
                f"The attribute '{key}' {error}, which no model of this package needs. If you trust the file, load it with "
                f"`trust_pickle=True`; to keep the check, replace it: `custom_objects={{'{key}': ...}}`."
            ) from None
        except Exception as error:  # what a damaged file leads to has no end
            raise DamagedFileError(f"The attribute '{key}' cannot be read ({type(error).__name__}: {error}).") from None


def check_archive(content: bytes) -> dict[str, Any]:
    """
    Check that a zip is complete and of plausible size, before anything in it is decoded. What its tensors are, by the name
    of the entry.

    :param content: the file
    :raises DamagedFileError: not a zip, cut off, or a checksum is wrong
    :raises UnsafeFileError: an entry would grow far beyond the size of the file
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            _check_sizes(archive, "entry", "")
            if "data" not in names or "policy.pth" not in names:
                raise DamagedFileError(f"This is no model of Stable-Baselines3's format: it holds {names or 'nothing'}.")
            if len(set(names)) != len(names):
                raise DamagedFileError("The zip holds an entry twice.")
            for name in {"data", SETTINGS} & set(names):
                if archive.getinfo(name).file_size > MAX_DATA_BYTES:
                    size = archive.getinfo(name).file_size
                    raise UnsafeFileError(f"The attributes take {size} bytes; {MAX_DATA_BYTES} are allowed.")
            _check_sums(archive, "of the entry", "")
            return {name: _check_tensors(name, archive.read(name)) for name in names if name.endswith(".pth")}
    except (DamagedFileError, UnsafeFileError):
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, OverflowError, RuntimeError, ValueError) as error:
        raise DamagedFileError(
            f"This is no complete zip file ({error}): it is damaged or was cut off. Use another copy."
        ) from None


def _check_sizes(archive: zipfile.ZipFile, what: str, where: str) -> None:
    for entry in archive.infolist():
        if entry.file_size > MAX_EXPANSION * entry.compress_size + 1024:
            sizes = f"from {entry.compress_size} to {entry.file_size} bytes"
            raise UnsafeFileError(f"The {what} '{entry.filename}'{where} would grow {sizes}.")


def _check_sums(archive: zipfile.ZipFile, what: str, where: str) -> None:
    damaged = archive.testzip()
    if damaged is not None:
        raise DamagedFileError(f"The checksum {what} '{damaged}'{where} is wrong: the file is damaged. Use another copy.")


def _check_tensors(name: str, content: bytes) -> Any:
    """What a ``.pth`` entry holds: it is a zip of its own; storages in it lie there uncompressed."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise DamagedFileError(f"The entry '{name}' holds no tensors in PyTorch's zip format.")
    with zipfile.ZipFile(io.BytesIO(content)) as inner:
        _check_sizes(inner, "tensor", f" in '{name}'")
        _check_sums(inner, "of", f" in '{name}'")
        try:
            return read_structure(inner)
        except UnsafeFileError as error:
            raise UnsafeFileError(f"The entry '{name}' {error}, which no model of this package needs.") from None
        except Exception as error:  # what a damaged pickle leads to has no end
            raise DamagedFileError(f"The tensors in '{name}' cannot be read ({type(error).__name__}: {error}).") from None


def read_model(content: bytes) -> StoredModel:
    """
    Check a zip and read what it says about itself, as plain data.

    :param content: the file
    :raises DamagedFileError: it is no zip, not complete, or its attributes are no JSON
    :raises UnsafeFileError: it would grow far beyond its size, or is of a later version
    """
    tensors = check_archive(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        is_ours = SETTINGS in archive.namelist()
        try:
            stored = parse(archive.read(SETTINGS)) if is_ours else json.loads(archive.read("data").decode())
        except (ValueError, RecursionError) as error:
            raise DamagedFileError(f"The attributes of the model cannot be read ({error}).") from None
        system = archive.read("system_info.txt").decode("utf-8", "replace") if "system_info.txt" in archive.namelist() else ""
    if not is_ours and isinstance(stored, dict):
        return StoredModel(tensors, stored, system=system)
    if not isinstance(stored, dict) or (stored.get("format") == FORMAT and not _is_complete(stored)):
        raise DamagedFileError("The attributes of the model are not a JSON object.")
    if stored.get("format") != FORMAT:
        raise UnsafeFileError("The attributes of the model are in the format of another version: update sb3_dmpo.")
    return StoredModel(tensors, stored["attributes"], stored["algorithm"], stored["policy"], system)


def _is_complete(stored: dict[str, Any]) -> bool:
    kinds = {"format": int, "algorithm": str, "policy": str, "attributes": dict}
    return stored.keys() == kinds.keys() and all(type(stored[name]) is kind for name, kind in kinds.items())


def without_pickles(content: bytes, names: Collection[str]) -> io.BytesIO:
    """
    A zip for SB3's loader, which unpickles attributes: they have names there, and nothing else.

    :param content: the zip, checked
    :param names: names of the attributes
    """
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(file, "w") as copy:
        for name in archive.namelist():
            if name.endswith(".npz"):  # SB3 knows nothing of it
                continue
            copy.writestr(name, json.dumps(dict.fromkeys(names)) if name == "data" else archive.read(name))
    file.seek(0)
    return file
