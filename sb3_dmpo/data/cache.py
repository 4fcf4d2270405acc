"""
A copy of the transitions on disk that loads without decoding, in ``$SB3_DMPO_CACHE``, else
``$XDG_CACHE_HOME/sb3_dmpo``, else ``~/.cache/sb3_dmpo``.

An entry is a folder with one uncompressed ``.npy`` file per array, which can be mapped into memory. Its name says
which files it was made from: their paths, sizes, inodes and times of modification and change. The time of change
(ctime) cannot be set back by copying tools, so that an edited or replaced dataset always has another name. Entries are
written beside and renamed, verified by their content hash when read, and rebuilt when damaged.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sb3_dmpo.data.memory import available_memory
from sb3_dmpo.data.transitions import DatasetError, DatasetSource, array_fingerprint, check_memory

CACHE_VARIABLE = "SB3_DMPO_CACHE"
#: Raise it whenever the same files would give other arrays
CACHE_VERSION = 1
#: File systems count time in ticks (up to 2 s): two writes within one cannot be told apart, so a dataset that has just
#: been written is not cached yet
SETTLE_SECONDS = 2.0
ARRAYS = (
    "observations",
    "next_observations",
    "actions",
    "rewards",
    "terminations",
    "truncations",
    "episode_lengths",
)
Arrays = dict[str, npt.NDArray[Any]]
logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Folder of the cache, whether it exists or not."""
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE])
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "sb3_dmpo"


def _identity(files: list[Path]) -> list[list[str | int]]:
    found = [(file.resolve(), file.stat()) for file in files]
    return [[str(path), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns] for path, stat in found]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


@dataclass
class CacheEntry:
    """
    Where the transitions of a dataset are, or would be, in the cache.

    :param source: the dataset
    :param folder: folder of the entry
    :param family: start of the names of all entries made from the same paths
    :param identity: what the files looked like
    :param is_settled: whether a later change of the files is sure to be seen
    """

    source: DatasetSource
    folder: Path
    family: str
    identity: list[list[str | int]]
    is_settled: bool

    @classmethod
    def of(cls, source: DatasetSource) -> "CacheEntry | None":
        """
        The entry of a dataset as its files are now, None for a dataset without files.

        :param source: the dataset
        """
        if not source.files:
            return None
        try:
            identity, root = _identity(source.files), cache_folder()
        except (OSError, RuntimeError):  # no home folder
            return None
        name = re.sub(r"[^A-Za-z0-9_]+", "-", source.dataset_id or "dataset")[-60:]
        family = f"{name}-{_digest([path for path, *_ in identity])}"
        newest = max(max(int(mtime), int(ctime)) for *_, mtime, ctime in identity)
        return cls(
            source,
            root / f"{family}-{_digest([CACHE_VERSION, identity, source.columns()])}",
            family,
            identity,
            is_settled=time.time() - newest / 1e9 > SETTLE_SECONDS,
        )

    def load(self, memory_map: bool = False) -> tuple[Arrays, str] | None:
        """
        Arrays and their fingerprint; None if there is no entry or it is damaged, in which case it is removed.

        :param memory_map: whether the arrays stay on disk and are read where they are touched; they cannot be written to
        """
        if not self.folder.is_dir():
            return None
        try:
            fingerprint = json.loads((self.folder / "meta.json").read_text())["fingerprint"]
            if not memory_map:
                needed = sum(path.stat().st_size for path in self.folder.iterdir())
                check_memory(self.source.label, needed, available_memory())
            mode: Literal["r"] | None = "r" if memory_map else None
            arrays: Arrays = {name: np.load(self.folder / f"{name}.npy", mode, allow_pickle=False) for name in ARRAYS}
            if fingerprint == array_fingerprint(arrays, self.source):
                return arrays, fingerprint
        except DatasetError:
            raise
        except (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError) as err:
            logger.info("The cache entry %s cannot be read (%s)", self.folder, err)
        shutil.rmtree(self.folder, ignore_errors=True)
        return None

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
                    self.finish(folder, arrays, fingerprint)
        except OSError as err:
            logger.info("%s is not cached: %s", self.source.label, err)

    @contextlib.contextmanager
    def new_folder(self) -> Iterator[Path]:
        """A folder beside the entry, gone at the end unless :meth:`finish` has made it the entry."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{self.folder.name}.", dir=self.folder.parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self, folder: Path, arrays: Arrays, fingerprint: str) -> None:
        """
        Make a folder the entry, unless somebody has changed the dataset while it was read.

        :param folder: what :meth:`new_folder` gave
        :param arrays: by the names in ``ARRAYS``; those mapped from this folder are written already
        :param fingerprint: hash of their content
        """
        if _identity(self.source.files) != self.identity:
            return
        for name in ARRAYS:
            array, path = arrays[name], folder / f"{name}.npy"
            if isinstance(array, np.memmap) and path.exists() and os.path.samefile(str(array.filename), path):
                array.flush()
            else:
                np.save(path, array, allow_pickle=False)
        (folder / "meta.json").write_text(json.dumps({"dataset_id": self.source.dataset_id, "fingerprint": fingerprint}))
        os.rename(folder, self.folder)
        for old in self.folder.parent.glob(f"{self.family}-*"):
            if old != self.folder:
                shutil.rmtree(old, ignore_errors=True)
