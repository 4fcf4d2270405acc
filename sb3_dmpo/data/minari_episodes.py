"""Reading single episodes of Minari datasets."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sb3_dmpo.data.hdf5 import check_inside

_METADATA_CACHE_BYTES = 2**20


class EpisodeReader(ABC):
    """Gives the arrays of one episode by the name of their field, e.g. ``"observations/achieved_goal"``."""

    @abstractmethod
    def length(self, episode: int) -> int:
        """Number of steps of an episode."""

    @abstractmethod
    def read(self, episode: int, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """
        One array of an episode, as float32 where that saves a conversion.

        :param episode: number of the episode
        :param name: field
        :param shape: expected shape; of an array of another shape only the shape has to be right
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""


class Hdf5EpisodeReader(EpisodeReader):
    """
    Reads HDF5 through h5py's low-level interface: half the time per array, and float64 becomes float32 on the way.

    Minari's own reader decodes the infos as well and gives float64.
    """

    def __init__(self, path: Path) -> None:
        import h5py

        self._h5d, self._all = h5py.h5d, h5py.h5s.ALL
        self._float32 = h5py.h5t.py_create(np.dtype(np.float32))
        self._file = h5py.File(path, "r")
        # HDF5 would keep the headers of all arrays: more than the data of a set of short episodes
        config = self._file.id.get_mdc_config()
        config.set_initial_size = True
        config.initial_size = config.min_size = config.max_size = _METADATA_CACHE_BYTES
        self._file.id.set_mdc_config(config)

    def _open(self, episode: int, name: str) -> Any:
        path = f"episode_{episode}/{name}"
        check_inside(self._file.id, path)
        return self._h5d.open(self._file.id, path.encode())

    def length(self, episode: int) -> int:
        return int(self._open(episode, "rewards").shape[0])

    def read(self, episode: int, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        dataset = self._open(episode, name)
        if dataset.shape != shape:
            # A damaged header can announce any size
            return np.broadcast_to(np.float32(0), dataset.shape)
        numeric = dataset.dtype.kind in "iuf"
        array = np.empty(dataset.shape, dtype=np.float32 if numeric else dataset.dtype)
        dataset.read(self._all, self._all, array, self._float32 if numeric else None)
        return array

    def close(self) -> None:
        self._file.close()


class StorageEpisodeReader(EpisodeReader):
    """Reads any storage format through Minari (Arrow, Parquet, compressed images)."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self._episode: tuple[int, Any] | None = None

    def length(self, episode: int) -> int:
        return int(next(iter(self._storage.get_episode_metadata([episode])))["total_steps"])

    def read(self, episode: int, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        if self._episode is None or self._episode[0] != episode:
            self._episode = (episode, next(iter(self._storage.get_episodes([episode]))))
        value = self._episode[1]
        for key in name.split("/"):
            value = value[key]
        return np.asarray(value)

    def close(self) -> None:
        self._episode = None
