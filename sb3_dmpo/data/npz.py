"""NumPy's ``.npz`` files: OGBench's, one or a folder of shards, and arrays of one's own."""

import contextlib
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sb3_dmpo.data.faults import readable_or_fault, reading_fault
from sb3_dmpo.data.memory import available_memory
from sb3_dmpo.data.recording import FIELDS, ArrayInfo, Part, RecordingSource, check_fields, refuse_misnamed, spaces_of
from sb3_dmpo.data.transitions import DatasetError, check_memory
from sb3_dmpo.data.validation import checked_spaces
from sb3_dmpo.files.npz import read_header

SUFFIX = ".npz"
_VALIDATION = "-val.npz"
_HOW_TORN = "Download or write the file again"


class _Member(NamedTuple):
    """One array of a file, of which only the header has been read."""

    info: ArrayInfo
    is_fortran: bool
    offset: int


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Member:
    with archive.open(entry) as file:
        shape, is_fortran, dtype = read_header(file)
        offset = file.tell()
    if not dtype.hasobject and offset + int(np.prod(shape, dtype=object)) * dtype.itemsize != entry.file_size:
        raise ValueError(f"{entry.filename} has {entry.file_size} bytes, which do not fit its shape {shape}")
    return _Member(ArrayInfo(tuple(shape), dtype), is_fortran, offset)


def _members(path: Path) -> dict[str, _Member]:
    """The arrays of a file that matter, by name; ``observations/<key>`` for the entries of Dict observations."""
    with zipfile.ZipFile(path) as archive:
        found = {}
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if entry.filename.endswith(".npy") and (name in FIELDS or name.partition("/")[0] in FIELDS[:2]):
                if name in found:
                    raise ValueError(f"it holds {entry.filename} twice")
                found[name] = _member(archive, entry)
    return found


def shards_of(folder: Path) -> list[Path]:
    """
    The files of a folder that belong to a dataset, in the order of their numbers; validation files of OGBench do not.

    :param folder: a folder
    """

    def number(path: Path) -> tuple[str, int, str]:
        digits = re.search(r"(\d+)$", path.stem)
        return (_family(path), int(digits[1]) if digits else -1, path.name)

    files = [path for path in folder.iterdir() if path.suffix.lower() == SUFFIX and not path.name.endswith(_VALIDATION)]
    return sorted(files, key=number)


def _family(path: Path) -> str:
    """Name of a shard without its number."""
    return re.sub(r"(?<![-_]v)(?<!\d)\d+$", "", path.stem).rstrip("-_.")


@dataclass
class NpzSource(RecordingSource):
    """
    An ``.npz`` file, or a folder of them that are parts of one dataset, with the arrays of D4RL or of OGBench (``masks`` of 0
    end the task). Nothing in it is unpickled.

    :param paths: the files
    :param names: the arrays in them
    """

    paths: list[Path]
    names: frozenset[str]

    @classmethod
    def from_path(cls, path: Path) -> "NpzSource":
        """
        A file, or a folder of shards.

        :param path: its path
        :raises DatasetError: if a file cannot be read or lacks an array, or the shards do not belong together
        """
        label = f"Dataset {str(path)!r}"
        readable_or_fault(label, path)
        try:
            paths = shards_of(path) if path.is_dir() else [path]
        except OSError as err:
            raise reading_fault(label, "it cannot be opened", err, path, _HOW_TORN) from None
        families = sorted({_family(shard) for shard in paths})
        if len(families) > 1:
            what = f"it holds files of several datasets ({', '.join(families[:5])}{', ...' if len(families) > 5 else ''})"
            raise DatasetError.at(label, what, "Name one of the files, or put the shards of one dataset into a folder")
        all_infos = [cls._infos(label, shard) for shard in paths]
        for shard in paths:
            with zipfile.ZipFile(shard) as archive:
                refuse_misnamed(label, [name.removesuffix(".npy") for name in archive.namelist()])
        first = all_infos[0]
        for shard, infos in zip(paths, all_infos, strict=True):
            has_rewards = check_fields(f"{label}, file {shard.name!r}" if path.is_dir() else label, infos)
            for name in sorted({*first, *infos}):
                ours, others = first.get(name), infos.get(name)
                if ours is None or others is None or ours.shape[1:] != others.shape[1:]:
                    shapes = f"{paths[0].name} has {ours and ours.shape}, {shard.name} has {others and others.shape}"
                    raise DatasetError.at(label, f"its files differ: {shapes}", "Name one of the files", field=name)
        found = checked_spaces(*spaces_of(label, first), label)
        name = f"{path.resolve().name}/" if path.is_dir() else path.name
        return cls(label, name, *found, paths, frozenset(first), files=paths, has_rewards=has_rewards)

    @staticmethod
    def _infos(label: str, path: Path) -> dict[str, ArrayInfo]:
        readable_or_fault(label, path)
        try:
            return {name: member.info for name, member in _members(path).items()}
        except Exception as err:  # depends on what is wrong with the file
            raise reading_fault(label, f"{path.name} cannot be opened", err, path, _HOW_TORN) from None

    @property
    def _has_next(self) -> bool:
        return any(name.partition("/")[0] == "next_observations" for name in self.names)

    def _place(self, number: int) -> dict[str, int | str]:
        return {"file": self.paths[number].name} if len(self.paths) > 1 else {}

    @contextlib.contextmanager
    def parts(self) -> Iterator[Iterator[Part]]:
        yield (_NpzPart(self.label, path) for path in self.paths)


class _NpzPart(dict[str, Any]):
    """The arrays of one file, each read when it is first asked for."""

    def __init__(self, label: str, path: Path) -> None:
        self._label, self._path = label, path
        try:
            super().__init__({name: _LazyArray(self, name, member) for name, member in _members(path).items()})
        except Exception as err:
            raise reading_fault(label, f"{path.name} cannot be read", err, path, _HOW_TORN) from None

    def read(self, name: str, member: _Member) -> npt.NDArray[Any]:
        info = member.info
        check_memory(self._label, int(np.prod(info.shape, dtype=object)) * info.dtype.itemsize, available_memory())
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(f"{name}.npy") as file:
                array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        except Exception as err:
            raise reading_fault(
                self._label, f"{self._path.name} cannot be read", err, self._path, _HOW_TORN, field=name
            ) from None
        return array


class _LazyArray:
    """An array with shape and dtype, whose values come with the first slice."""

    def __init__(self, part: _NpzPart, name: str, member: _Member) -> None:
        self._part, self._name, self._member = part, name, member
        self.shape, self.dtype = member.info
        self._values: npt.NDArray[Any] | None = None

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        if self._values is None:
            self._values = self._part.read(self._name, self._member)
        values: npt.NDArray[Any] = self._values[rows]
        return values
