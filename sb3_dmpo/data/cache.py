"""
A copy of the transitions on disk that loads without decoding, in ``$SB3_DMPO_CACHE``, else
``$XDG_CACHE_HOME/sb3_dmpo``, else ``~/.cache/sb3_dmpo``.

An entry is a folder with one uncompressed ``.npy`` file per array, which can be mapped into memory. Its name says
which files it was made from: their paths, sizes, inodes and times of modification and change. The time of change
(ctime) cannot be set back by copying tools, so that an edited or replaced dataset always has another name. Entries are
written beside and renamed, verified by their content hash when read, and rebuilt when damaged. Of several processes that
decode the same dataset at once the first one's entry stays, and the others use it. In a cache that everybody may write to,
only one's own entries and root's are believed.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sb3_dmpo.data.memory import available_memory
from sb3_dmpo.data.preprocessing import flat_size
from sb3_dmpo.data.table import BLOCK_ROWS, FURTHER_COLUMNS
from sb3_dmpo.data.transitions import CACHE_VARIABLE, DatasetError, DatasetSource, check_memory
from sb3_dmpo.files.temporary import new_temporary, temporary_folder

#: Raise it whenever the same files would give other arrays
CACHE_VERSION = 2
#: File systems count time in ticks (up to 2 s): two writes within one cannot be told apart, so a dataset that has just
#: been written is not cached yet
SETTLE_SECONDS = 2.0
#: What an entry holds: see :class:`~sb3_dmpo.data.table.TransitionTable` for the first two
ARRAYS = ("table", "breaks", "truncations", "episode_lengths")
Arrays = dict[str, npt.NDArray[Any]]
logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Folder of the cache, whether it exists or not. Empty variables count as not set."""
    own, xdg = os.environ.get(CACHE_VARIABLE), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser()
    return (Path(xdg) if xdg else Path.home() / ".cache") / "sb3_dmpo"


def _identity(files: list[Path]) -> list[list[str | int]]:
    found = [(file.resolve(), file.stat()) for file in files]
    return [[str(path), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns] for path, stat in found]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _is_trusted(folder: Path) -> bool:
    """
    Whether a folder of the cache may be believed: whose content, checksums included, could be anybody's says nothing. It is,
    if it is this user's or root's, or if not everybody may write to the cache.
    """
    if os.name != "posix":
        return folder.is_dir()
    try:
        found, parent = folder.lstat(), folder.parent.stat()
        modes = [path.lstat().st_mode for path in (folder, *folder.iterdir())]
    except OSError:
        return False
    if not stat.S_ISDIR(found.st_mode) or any(mode & stat.S_IWOTH for mode in modes):
        return False
    return found.st_uid in (os.getuid(), 0) or not parent.st_mode & stat.S_IWOTH


@dataclass
class CacheEntry:
    """
    Where the transitions of a dataset are, or would be, in the cache.

    :param source: the dataset
    :param folder: folder of the entry
    :param family: start of the names of all entries made from the same paths
    :param state: start of the names of all entries made from these files as they are now
    :param identity: what the files looked like
    :param is_settled: whether a later change of the files is sure to be seen
    """

    source: DatasetSource
    folder: Path
    family: str
    state: str
    identity: list[list[str | int]]
    is_settled: bool

    @classmethod
    def of(cls, source: DatasetSource, clip_actions: bool = False) -> "CacheEntry | None":
        """
        The entry of a dataset as its files are now, None for a dataset without files.

        :param source: the dataset
        :param clip_actions: whether its actions are clipped, which makes it another one
        """
        if not source.files:
            return None
        try:
            identity, root = _identity(source.files), cache_folder()
        except (OSError, RuntimeError):  # no home folder
            return None
        name = re.sub(r"[^A-Za-z0-9_]+", "-", source.dataset_id or "dataset")[-60:]
        family = f"{name}-{_digest([path for path, *_ in identity])}"
        state = f"{family}-{_digest([CACHE_VERSION, identity])}"
        newest = max(max(int(mtime), int(ctime)) for *_, mtime, ctime in identity)
        return cls(
            source,
            # The same files give other arrays in the spaces of another environment.
            root / f"{state}-{_digest(source.columns())}{'-clipped' if clip_actions else ''}",
            family,
            state,
            identity,
            is_settled=time.time() - newest / 1e9 > SETTLE_SECONDS,
        )

    def _places(self) -> list[Path]:
        """Where the entry may be: the second place is for users who may not believe what lies at the first one."""
        return (
            [self.folder, self.folder.with_name(f"{self.folder.name}-{os.getuid()}")] if os.name == "posix" else [self.folder]
        )

    def load(self, memory_map: bool = False) -> tuple[Arrays, str] | None:
        """
        Arrays and their fingerprint; None if there is no entry. One that is damaged is removed.

        :param memory_map: whether the arrays stay on disk and are read where they are touched; they cannot be written to
        """
        for folder in self._places():
            if folder.is_dir():
                if not _is_trusted(folder):
                    logger.info("The cache entry %s may be of somebody else: it is not used", folder)
                elif (found := self._load(folder, memory_map)) is not None:
                    return found
        return None

    def _load(self, folder: Path, memory_map: bool) -> tuple[Arrays, str] | None:
        number = folder.stat().st_ino
        try:
            meta = json.loads((folder / "meta.json").read_text())
            fingerprint, checksum = str(meta["fingerprint"]), meta["checksum"]
            if not memory_map:
                needed = sum(path.stat().st_size for path in folder.iterdir())
                check_memory(self.source.label, needed, available_memory())
            # First as it lies there: a damaged header may announce any size.
            arrays = _read_arrays(folder, memory_map=True)
            self._check_shapes(arrays)
            if not memory_map:
                arrays = _read_arrays(folder, memory_map=False)
            self._check_values(arrays)
            if checksum == self._checksum(arrays, fingerprint):
                return arrays, fingerprint
        except DatasetError:
            raise
        except (OSError, ValueError, KeyError, TypeError, EOFError) as err:
            logger.info("The cache entry %s cannot be read (%s)", folder, err)
        _discard(folder, number)
        return None

    def _check_shapes(self, arrays: Arrays) -> None:
        """
        :param arrays: what was read
        :raises ValueError: they have other shapes or types than a dataset in these spaces
        """
        n, n_breaks, n_episodes = (len(arrays[name]) for name in ("truncations", "breaks", "episode_lengths"))
        expected: dict[str, tuple[tuple[int, ...], type]] = {
            "table": ((n + n_breaks, self._size + self.source.action_space.shape[0] + FURTHER_COLUMNS), np.float32),
            "breaks": ((n_breaks,), np.int64),
            "truncations": ((n,), np.bool_),
            "episode_lengths": ((n_episodes,), np.int64),
        }
        for name, (shape, dtype) in expected.items():
            if arrays[name].shape != shape or arrays[name].dtype != dtype:
                raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}")

    @property
    def _size(self) -> int:
        """Width of the observations."""
        return flat_size(self.source.observation_space)

    def _check_values(self, arrays: Arrays) -> None:
        """
        :param arrays: arrays of the right shapes
        :raises ValueError: no dataset could have given these values
        """
        table, n, lengths, breaks = arrays["table"], len(arrays["truncations"]), arrays["episode_lengths"], arrays["breaks"]
        if not lengths.size or lengths.min() < 1 or lengths.sum() != n:
            raise ValueError(f"episode_lengths do not add up to {n}")
        if not breaks.size or breaks[0] < 0 or breaks[-1] != n - 1 or (np.diff(breaks) < 1).any():
            raise ValueError(f"breaks do not ascend to {n - 1}")
        for start in range(0, len(table), BLOCK_ROWS):
            block = table[start : start + BLOCK_ROWS]
            if not np.isfinite(block).all():
                raise ValueError("the table is not finite")
            if not (np.abs(block[:, self._size : -FURTHER_COLUMNS]) <= 1.0).all():
                raise ValueError("actions are not in [-1, 1]")
            if not np.isin(block[:, -1], (0.0, 1.0)).all():
                raise ValueError("there are other ends than 0 and 1")

    def _checksum(self, arrays: Arrays, fingerprint: str) -> str:
        """
        SHA-256 of all that an entry says.

        :param arrays: by the names in ``ARRAYS``
        :param fingerprint: hash of the content as the dataset has it
        """
        digest = hashlib.sha256(json.dumps([fingerprint, self.source.columns()], sort_keys=True).encode())
        for name in ARRAYS:
            digest.update(json.dumps(arrays[name].shape).encode())
            digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def store(self, arrays: Arrays, fingerprint: str) -> None:
        """
        Write the entry and drop those of earlier states of the dataset. A cache that cannot be written is no error.

        :param arrays: by the names in ``ARRAYS``
        :param fingerprint: hash of their content
        """
        if not self.is_settled:
            return
        try:
            with self.new_folder() as folder:
                needed = sum(array.nbytes for array in arrays.values())
                if shutil.disk_usage(folder).free < 2 * needed:
                    logger.info("%s is not cached: the disk is nearly full", self.source.label)
                else:
                    self._write(folder, arrays, fingerprint)
                    if self._is_current():
                        self._publish(folder)
        except OSError as err:
            logger.info("%s is not cached: %s", self.source.label, err)

    @contextlib.contextmanager
    def new_folder(self) -> Iterator[Path]:
        """A folder beside the entry, gone at the end unless it has become the entry."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(self.folder) as folder:
            _protect(folder)
            yield folder

    def publish_mapped(self, folder: Path, arrays: Arrays, fingerprint: str) -> tuple[Arrays, str] | None:
        """
        Make a folder with arrays that are mapped from it the entry. What comes back is mapped from the entry, whoever has
        made it; where there can be none, from files that nobody sees any more. None: somebody has changed the dataset while
        it was read.

        :param folder: what :meth:`new_folder` gave
        :param arrays: by the names in ``ARRAYS``
        :param fingerprint: hash of their content
        """
        self._write(folder, arrays, fingerprint)
        own = _read_arrays(folder, memory_map=True)
        if not self._is_current():
            return None
        self._publish(folder)
        return self.load(memory_map=True) or (own, fingerprint)

    def _is_current(self) -> bool:
        """Whether nobody has changed the dataset since it was opened."""
        return _identity(self.source.files) == self.identity

    def _write(self, folder: Path, arrays: Arrays, fingerprint: str) -> None:
        """
        Complete a folder.

        :param folder: what :meth:`new_folder` gave
        :param arrays: by the names in ``ARRAYS``; those mapped from this folder are written already
        :param fingerprint: hash of their content
        """
        for name in ARRAYS:
            array, path = arrays[name], folder / f"{name}.npy"
            if isinstance(array, np.memmap) and path.exists() and os.path.samefile(str(array.filename), path):
                array.flush()
            else:
                np.save(path, array, allow_pickle=False)
        content = {
            "dataset_id": self.source.dataset_id,
            "fingerprint": fingerprint,
            "checksum": self._checksum(arrays, fingerprint),
        }
        (folder / "meta.json").write_text(json.dumps(content))
        for path in folder.iterdir():
            _protect(path)

    def _publish(self, folder: Path) -> None:
        """
        Make a complete folder the entry, unless there is one by now.

        :param folder: what :meth:`new_folder` gave
        """
        for place in self._places():
            try:
                os.rename(folder, place)
            except OSError as err:
                # Somebody was faster, and what he has written is as good; or what lies there cannot be believed.
                logger.info("%s is not cached in %s: %s", self.source.label, place, err)
            if _is_trusted(place):
                self._drop_earlier_states()
                break

    def _drop_earlier_states(self) -> None:
        # Entries only, and no folder that is just being written: exactly the names that `of` makes, or once made.
        earlier = re.compile(rf"{re.escape(self.family)}(-[0-9a-f]{{16}}){{1,2}}(-[0-9]+)?")
        for old in self.folder.parent.glob("*"):
            if earlier.fullmatch(old.name) and not old.name.startswith(f"{self.state}-"):
                with contextlib.suppress(OSError):
                    _discard(old, old.stat().st_ino)


def _read_arrays(folder: Path, memory_map: bool) -> Arrays:
    mode: Literal["r"] | None = "r" if memory_map else None
    return {name: np.load(folder / f"{name}.npy", mode, allow_pickle=False) for name in ARRAYS}


def _protect(path: Path) -> None:
    """
    Not everybody may write, whatever the umask says.

    :param path: file or folder
    """
    path.chmod(path.stat().st_mode & ~stat.S_IWOTH)


def _discard(folder: Path, number: int) -> None:
    """
    Remove an entry in one piece: nobody finds half of it, and one that has come in its place stays.

    :param folder: folder of the entry
    :param number: its inode
    """
    with contextlib.suppress(OSError):
        trash, descriptor = new_temporary(folder, is_folder=True)
        try:
            if folder.stat().st_ino == number:
                os.rename(folder, trash / "entry")
        finally:
            shutil.rmtree(trash, ignore_errors=True)
            os.close(descriptor)
