"""Reading a zip that somebody else may have made: everything is checked before anything is built."""

import base64
import io
import re
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sb3_dmpo.files.archive import Budget, read_archive
from sb3_dmpo.files.plain_text import DamagedFileError as DamagedFileError
from sb3_dmpo.files.plain_text import UnsafeFileError as UnsafeFileError
from sb3_dmpo.files.safe_pickle import AllowListUnpickler as AllowListUnpickler
from sb3_dmpo.files.safe_pickle import read_structure, tensor_bytes
from sb3_dmpo.files.settings import decode, parse

#: Upper bound of a JSON entry in bytes; decoded, it takes up to thirty times as many. Ours hold about 100 kB there.
MAX_DATA_BYTES = 4 * 2**20
#: Our own entry, and its version.
SETTINGS, FORMAT = "settings.json", 1
#: The other entries of Stable-Baselines3's format that are not tensors.
_DATA, _SYSTEM = "data", "system_info.txt"
#: Our entry for what is neither a network's nor an optimizer's; of algorithms that have such things.
ARRAYS = "arrays.npz"
_NOTES = {SETTINGS, _DATA, _SYSTEM, "_stable_baselines3_version"}


@dataclass(frozen=True)
class StoredModel:
    """
    What is in a zip, nothing of it made yet.

    :param tensors: the structure of its tensors (what they are, not themselves), by the name of the entry without ``.pth``
    :param attributes: the attributes as JSON
    :param algorithm: name of the algorithm's class; None: the zip has no settings of ours, its attributes are pickles
    :param policy: alias of the policy, or the name of its class
    :param system: on what it was made
    :param data: the attributes as Stable-Baselines3 has pickled them; they are read if the caller trusts the file
    :param arrays: the entry for :func:`sb3_dmpo.files.npz.read_npz`; None: there is none
    """

    tensors: dict[str, Any]
    attributes: dict[str, Any]
    algorithm: str | None = None
    policy: str | None = None
    system: str = ""
    data: bytes = b""
    arrays: bytes | None = None

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
        self.check_names(allowed_keys)
        return {key: self._decode(key, item, classes) for key, item in self.attributes.items() if key not in replaced}

    def check_names(self, allowed_keys: Collection[str]) -> None:
        """
        Refuse attributes that are not known.

        :param allowed_keys: names that may be set on the model
        :raises UnsafeFileError: there is one
        """
        unknown = sorted(set(self.attributes) - set(allowed_keys))
        if unknown:
            raise UnsafeFileError(
                f"The file sets attributes that this algorithm does not have: {', '.join(unknown)[:300]}. It is of another "
                "algorithm or version; if you trust it, load it with `trust_pickle=True`."
            )

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
            raise DamagedFileError(f"The attribute '{key}' cannot be read ({_short(error)}).") from None


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def check_archive(content: bytes) -> dict[str, Any]:
    """
    Check that a zip is complete, of plausible size, and holds what models hold, before anything in it is decoded. What its
    tensors are, by the name of the entry without ``.pth``.

    :param content: the file
    :raises DamagedFileError: not a zip, cut off, or a checksum is wrong
    :raises UnsafeFileError: it would grow far beyond the size of the file, or holds what no model holds
    """
    return _check_entries(content)[1]


def _check_entries(content: bytes) -> tuple[dict[str, bytes], dict[str, Any]]:
    budget = Budget(len(content))
    entries = read_archive(content, budget)
    if not {_DATA, "policy.pth"} <= entries.keys():
        held = f"it holds {', '.join(sorted(entries)[:20]) or 'nothing'}"
        raise DamagedFileError(f"This is no model of Stable-Baselines3's format: {held[:1000]}.")
    tensors = {}
    for name, entry in entries.items():
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]{0,99}\.pth", name):
            tensors[name.removesuffix(".pth")] = _check_tensors(name, entry, budget)
        elif name not in {*_NOTES, ARRAYS}:
            raise UnsafeFileError(f"The file holds the entry '{name[:100]}', which no model has.")
        elif name != ARRAYS and len(entry) > MAX_DATA_BYTES:
            raise UnsafeFileError(f"The attributes in '{name}' take {len(entry)} bytes; {MAX_DATA_BYTES} are allowed.")
    return entries, tensors


def _check_tensors(name: str, content: bytes, budget: Budget) -> Any:
    """What a ``.pth`` entry holds: it is a zip of its own, in which PyTorch compresses nothing."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise DamagedFileError(f"The entry '{name}' holds no tensors in PyTorch's zip format.")
    entries = read_archive(content, budget, f" in '{name}'", may_be_compressed=False)
    try:
        structure = read_structure(entries)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"The entry '{name}' {error}, which no model of this package needs.") from None
    except Exception as error:  # what a damaged pickle leads to has no end
        raise DamagedFileError(f"The tensors in '{name}' cannot be read ({_short(error)}).") from None
    budget.take(tensor_bytes(structure), f"the tensors in '{name}'")
    return structure


def read_model(content: bytes) -> StoredModel:
    """
    Check a zip and read what it says about itself, as plain data.

    :param content: the file
    :raises DamagedFileError: it is no zip, not complete, or its attributes are no JSON
    :raises UnsafeFileError: it would grow far beyond its size, holds what no model holds, or is of a later version
    """
    entries, tensors = _check_entries(content)
    is_ours, data = SETTINGS in entries, entries[_DATA]
    stored = _json(lambda: parse(entries[SETTINGS]) if is_ours else parse(data, is_strict=False))
    system = entries.get(_SYSTEM, b"").decode("utf-8", "replace")
    if not is_ours and isinstance(stored, dict):
        return StoredModel(tensors, stored, system=system, data=data)
    if not isinstance(stored, dict) or (stored.get("format") == FORMAT and not _is_complete(stored)):
        raise DamagedFileError("The attributes of the model are not a JSON object.")
    if stored.get("format") != FORMAT:
        raise UnsafeFileError("The attributes of the model are in the format of another version: update sb3_dmpo.")
    return StoredModel(tensors, stored["attributes"], stored["algorithm"], stored["policy"], system, data, entries.get(ARRAYS))


def _json(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"The attributes of the model cannot be read ({_short(error)}).") from None


def _is_complete(stored: dict[str, Any]) -> bool:
    kinds = {"format": int, "algorithm": str, "policy": str, "attributes": dict}
    return stored.keys() == kinds.keys() and all(type(stored[name]) is kind for name, kind in kinds.items())
