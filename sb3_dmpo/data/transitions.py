"""What the readers of all dataset formats share: the transitions they give, their faults, and the interface."""

import hashlib
import json
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from tqdm import tqdm

from sb3_dmpo.data.memory import available_memory, format_bytes
from sb3_dmpo.data.preprocessing import flat_size, flat_slices
from sb3_dmpo.data.table import BLOCK_ROWS, FURTHER_COLUMNS, FloatArray, IntArray, TransitionTable, table_bytes
from sb3_dmpo.files.plain_text import plain

BoolArray = npt.NDArray[np.bool_]

#: Loading has to take this long before a progress bar appears by itself
PROGRESS_DELAY_SECONDS = 1.0
#: Environment variable that names the folder of the cache
CACHE_VARIABLE = "SB3_DMPO_CACHE"
#: Bytes that are written at once to take a file's place on the disk
_ZEROS = 2**20


class Advice(NamedTuple):
    """How to mend a fault, in the words of Python (arguments) and in those of the command line (options)."""

    code: str
    shell: str


class DatasetError(ValueError):
    """
    A fault of a dataset, found before training. The message says what, where and how to mend it.

    :param message: the message
    """

    def __init__(self, message: str) -> None:
        # It quotes the dataset, which a terminal must not obey.
        super().__init__(plain(message))

    #: The message in the words of the command line, where they are others.
    shell_message: str | None = None

    @classmethod
    def at(cls, dataset: str, what: str, how: str | Advice, **place: int | str) -> "DatasetError":
        """
        A fault with its place, e.g. ``"Dataset 'a/b-v0', episode 3, step 7, field 'rewards': it is nan. <how>."``

        :param dataset: the dataset as ``DatasetSource.label`` names it
        :param what: what is wrong
        :param how: how to mend it
        :param place: any of ``episode`` (its number in the dataset), ``step`` (its number in the episode; in the file, for
            formats without episodes) and ``field`` (name of the array in the dataset), in this order
        """
        where = ", ".join([dataset, *(f"{name} {value!r}" for name, value in place.items())])
        if isinstance(how, str):
            return cls(f"{where}: {what}. {how}.")
        error = cls(f"{where}: {what}. {how.code}.")
        error.shell_message = f"{where}: {what}. {how.shell}."
        return error


_HOW_SMALLER = "Free memory, or use a part of the dataset"
_HOW_MAPPED = Advice(
    "Free memory, or leave the data on disk: memory_map=True", "Free memory, or leave the data on disk: train has --memory-map"
)


#: Arrays that a table holds
_TABLED = ("observations", "next_observations", "actions", "rewards", "terminations")


@dataclass(frozen=True, eq=False)
class Transitions:
    """
    All transitions of a dataset, episode after episode, ready to become tensors. ``N`` transitions, ``E`` episodes.

    :param observations: flat observations, shape ``(N, S)``, float32
    :param next_observations: flat observations after the step, shape ``(N, S)``, float32
    :param actions: actions scaled to [-1, 1], shape ``(N, A)``, float32
    :param rewards: rewards as recorded, shape ``(N,)``, float32
    :param terminations: whether the step ended the task, shape ``(N,)``, bool. Only these end the bootstrap
    :param truncations: whether the episode was cut after the step, shape ``(N,)``, bool
    :param episode_lengths: number of transitions of every episode, in order, shape ``(E,)``, int64
    :param observation_space: canonical observation space (one-level Dict or Box)
    :param action_space: action space of the environment (its own units)
    :param dataset_id: name of the dataset, None for a buffer without one
    :param fingerprint: hash of the content, the same wherever and whenever the data are loaded
    :param has_rewards: whether rewards were recorded; without, they are all 0, and only imitation can learn from the data
    """

    observations: FloatArray
    next_observations: FloatArray
    actions: FloatArray
    rewards: FloatArray
    terminations: BoolArray
    truncations: BoolArray
    episode_lengths: IntArray
    observation_space: spaces.Box | spaces.Dict
    action_space: spaces.Box
    dataset_id: str | None
    fingerprint: str
    has_rewards: bool = True

    @classmethod
    def of_table(cls, table: TransitionTable, **others: Any) -> "Transitions":
        """
        What was read as a table, which is taken apart when an array of it is first asked for.

        :param table: the table; one in memory belongs to the transitions
        :param others: the other fields
        """
        transitions = cls.__new__(cls)
        transitions.__dict__.update(others, _table=table)
        return transitions

    @property
    def has_table(self) -> bool:
        """Whether they are held as the table that they were read as."""
        return "_table" in self.__dict__

    @property
    def table(self) -> TransitionTable:
        """The numbers as a table: that which they were read as, a new one once somebody has been given the arrays."""
        if self.has_table:
            found: TransitionTable = self.__dict__["_table"]
            return found
        return TransitionTable.pack(*(getattr(self, name) for name in _TABLED))

    def __getattr__(self, name: str) -> Any:
        table: TransitionTable | None = self.__dict__.get("_table")
        if table is None or name not in _TABLED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if isinstance(table.rows, np.memmap):
            # It cannot be written to, so that it stays right. What is no part of it goes into memory.
            if name == "next_observations":
                check_memory(dataset_label(self.dataset_id), table.observations.nbytes, available_memory())
            self.__dict__[name] = _part(table, name)
        else:
            # Whoever gets an array may write to it: from here on the arrays are what holds.
            self.__dict__.update({part: np.ascontiguousarray(_part(table, part)) for part in _TABLED})
            del self.__dict__["_table"]
        return self.__dict__[name]

    def __len__(self) -> int:
        return len(self.truncations)

    def episode_returns(self) -> npt.NDArray[np.float64]:
        """Undiscounted sum of the rewards of every episode, shape ``(E,)``."""
        rewards = np.ascontiguousarray(self.table.rewards if self.has_table else self.rewards)
        starts = np.cumsum(self.episode_lengths) - self.episode_lengths
        returns: npt.NDArray[np.float64] = np.add.reduceat(rewards, starts, dtype=np.float64)
        return returns


def _part(table: TransitionTable, name: str) -> npt.NDArray[Any]:
    """
    An array as :class:`Transitions` has it.

    :param table: the table
    :param name: name of the array
    """
    if name == "next_observations":
        return table.next_observations()
    part: npt.NDArray[Any] = table.dones != 0.0 if name == "terminations" else getattr(table, name)
    return part


def dataset_label(dataset_id: str | None) -> str:
    """
    How messages name a dataset.

    :param dataset_id: its id, None if it has none
    """
    return f"Dataset {dataset_id!r}" if dataset_id else "The dataset"


def check_memory(
    label: str, needed: int, available: int | None, place: str = "of memory", how: str | Advice = _HOW_SMALLER
) -> None:
    """
    Refuse a dataset that does not fit before anything is allocated.

    :param label: the dataset, for the message
    :param needed: bytes the dataset needs
    :param available: bytes that are left, None if that is not known
    :param place: where they are left
    :param how: how to mend it
    :raises DatasetError: naming both sizes
    """
    if available is not None and needed > available:
        raise DatasetError.at(
            label,
            f"it needs {format_bytes(needed)} {place}, only {format_bytes(available)} are left",
            how,
        )


def new_mapped_array(path: Path, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """
    An array that is a file, whose place on the disk is taken at once: writing to it later cannot fail, which the process
    would not survive (SIGBUS).

    :param path: ``.npy`` file to make
    :param shape: shape of the array
    :param dtype: dtype of the array
    :raises OSError: the disk has no room for it
    """
    array: npt.NDArray[Any] = np.lib.format.open_memmap(path, "w+", dtype, shape)
    size = path.stat().st_size
    with open(path, "r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.seek(size - array.nbytes)
            for start in range(0, array.nbytes, _ZEROS):
                file.write(bytes(min(_ZEROS, array.nbytes - start)))
    return array


@dataclass
class RawTransitions:
    """
    Transitions while they are read: a table that is being filled, actions still in the units of the file.

    ``episode_ids`` are the numbers that the dataset itself gives to its episodes, for messages. ``next_field`` names
    what the last observations were read from, with the offset of their step.
    """

    table: TransitionTable
    terminations: BoolArray
    truncations: BoolArray
    episode_lengths: IntArray
    episode_ids: IntArray
    actions_are_scaled: bool = False
    next_field: tuple[str, int] = ("next_observations", 0)


@dataclass
class DatasetSource(ABC):
    """
    A dataset that has been found and whose spaces are known, but whose data have not been read. Everything that takes a
    dataset takes this too, so that a run opens it once.

    :param label: how messages name the dataset, e.g. ``"Dataset 'D4RL/pen/human-v2'"``
    :param dataset_id: name of the dataset, None if it has none
    :param observation_space: canonical observation space
    :param action_space: checked action space
    :param metadata: what the dataset says about itself (Minari's ``metadata.json``), empty for other formats
    :param files: files whose identity decides whether a cached copy is valid; empty if nothing is to be cached
    :param has_rewards: whether rewards were recorded
    :param clipped_by: what has clipped the actions while they were recorded, so that those outside the bounds are no fault
    :param map_folder: where ``read`` puts the arrays as files mapped into memory, None: in memory
    """

    label: str
    dataset_id: str | None
    observation_space: spaces.Box | spaces.Dict
    action_space: spaces.Box
    metadata: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    files: list[Path] = field(default_factory=list, kw_only=True)
    has_rewards: bool = field(default=True, kw_only=True)
    clipped_by: str | None = field(default=None, kw_only=True)
    map_folder: Path | None = field(default=None, kw_only=True)
    #: What helps against single bad values.
    how_to_repair: ClassVar[str | Advice] = (
        "Repair the value (beyond the range of float32 counts as inf) or leave its episode out"
    )

    @abstractmethod
    def read(self, progress_bar: bool | None) -> RawTransitions:
        """
        All transitions, not validated.

        :param progress_bar: whether to show a progress bar, None: only if it takes more than a moment
        :raises DatasetError: for files that cannot be read and for arrays of wrong shape
        """

    def columns(self) -> dict[str, Any]:
        """What the columns of its arrays mean, as plain data."""
        observation = {key: [part.start, part.stop] for key, part in flat_slices(self.observation_space).items()}
        return {"observation": observation, "action": [self.action_space.low.tolist(), self.action_space.high.tolist()]}

    def allocate(self, lengths: IntArray, ids: IntArray, breaks: IntArray, **options: Any) -> RawTransitions:
        """
        Room for the transitions of the dataset, not yet filled.

        :param lengths: episode lengths
        :param ids: numbers of the episodes in the dataset
        :param breaks: after which transitions another observation comes than that of the next one
        :param options: further fields of :class:`RawTransitions`
        :raises DatasetError: for an empty dataset, or one that does not fit into memory
        """
        n_steps, folder = int(lengths.sum()), self.map_folder
        if n_steps == 0:
            raise DatasetError.at(self.label, "it holds no transitions", "Choose another dataset, or record it again")
        observation_size, action_size = flat_size(self.observation_space), self.action_space.shape[0]
        n_rows = n_steps + len(breaks)
        needed = table_bytes(n_rows, observation_size, action_size)
        if folder is None:
            check_memory(self.label, needed, available_memory(), how=_HOW_MAPPED if self.files else _HOW_SMALLER)
        else:
            self._check_disk(folder, needed)

        shape = (n_rows, observation_size + action_size + FURTHER_COLUMNS)
        if folder is None:
            rows = np.zeros(shape, np.float32)
        else:
            try:
                rows = new_mapped_array(folder / "table.npy", shape, np.float32)
            except OSError as error:  # somebody else has taken the room since
                raise self._no_room(folder, needed, f"which cannot be had ({error.strerror})") from None
        return RawTransitions(
            table=TransitionTable(rows, breaks, observation_size),
            terminations=np.zeros(n_steps, np.bool_),
            truncations=np.zeros(n_steps, np.bool_),
            episode_lengths=lengths,
            episode_ids=ids,
            **options,
        )

    def _check_disk(self, folder: Path, needed: int) -> None:
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise self._no_room(folder, needed, f"only {format_bytes(free)} are left there")

    def _no_room(self, folder: Path, needed: int, what: str) -> DatasetError:
        how = f"Make room, or let {CACHE_VARIABLE} name a folder on a larger disk"
        return DatasetError.at(self.label, f"it needs {format_bytes(needed)} in {folder.parent}, {what}", how)

    def for_environment(self, env: Any) -> "DatasetSource":
        """
        The dataset with the spaces of the environment, for formats that record none; itself otherwise.

        :param env: Gymnasium environment or VecEnv that the policy is meant for
        """
        return self

    def progress(self, total: int, progress_bar: bool | None) -> Any:
        """
        Progress bar over ``total`` steps.

        :param total: number of steps to read
        :param progress_bar: as in ``read``
        """
        return tqdm(
            total=total,
            desc=f"Loading {self.dataset_id or 'dataset'}",
            unit="step",
            unit_scale=True,
            disable=progress_bar is False,
            delay=0.0 if progress_bar else PROGRESS_DELAY_SECONDS,
            # A log file gets a line now and then
            mininterval=0.1 if sys.stderr.isatty() else 10.0,
        )


def content_fingerprint(
    table: TransitionTable, terminations: BoolArray, truncations: BoolArray, episode_lengths: IntArray, source: DatasetSource
) -> str:
    """
    SHA-256 of the arrays of a dataset, as :class:`Transitions` has them one after the other, and of what their columns mean.

    :param table: observations, actions and rewards
    :param terminations: whether the task ended
    :param truncations: whether the episode was cut
    :param episode_lengths: lengths of the episodes
    :param source: the dataset that they are of
    """
    observations = table.observations
    like: list[npt.NDArray[Any]] = [observations, observations, table.actions, table.rewards]
    small: list[npt.NDArray[Any]] = [terminations, truncations, episode_lengths]
    header = source.columns() | {"arrays": [[array.dtype.str, list(array.shape)] for array in (*like, *small)]}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    parts: list[Callable[[int, int], npt.NDArray[Any]]] = [
        lambda start, stop: observations[start:stop],
        table.next_observations,
        lambda start, stop: table.actions[start:stop],
        lambda start, stop: table.rewards[start:stop],
    ]
    for part in parts:
        for start in range(0, len(table), BLOCK_ROWS):
            digest.update(np.ascontiguousarray(part(start, start + BLOCK_ROWS)).data)
    for array in small:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
