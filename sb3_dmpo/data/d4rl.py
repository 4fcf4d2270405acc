"""HDF5 files of flat arrays: D4RL's and d3rlpy's."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_dmpo.data.faults import readable_or_fault, reading_fault, shown
from sb3_dmpo.data.hdf5 import check_inside
from sb3_dmpo.data.recording import FIELDS, ArrayInfo, Part, RecordingSource, check_fields, refuse_misnamed, spaces_of
from sb3_dmpo.data.transitions import DatasetError
from sb3_dmpo.data.validation import checked_spaces

_HOW_TORN = "Download or write the file again"
_HOW_TIMEOUTS = (
    "Add them, 1 at the last step of each episode that was only cut and else 0: with h5py.File(path, 'r+') as file: "
    "file['timeouts'] = numpy.zeros(len(file['terminals']), bool) if every episode has reached its end. Without them nobody "
    "can tell where the others end"
)


@contextlib.contextmanager
def opened_hdf5(label: str, path: Path) -> Iterator[Any]:
    """
    An HDF5 file, whose faults become errors with their cause.

    :param label: the dataset, for messages
    :param path: the file
    :raises DatasetError: whatever is wrong with the file, also within the block
    """
    import h5py

    readable_or_fault(label, path)
    if not path.is_file():
        raise DatasetError(f"{label} does not exist: check the path.")
    try:
        file = h5py.File(path, "r")
    except Exception as err:  # depends on what is wrong with the file
        raise reading_fault(label, "it cannot be opened", err, path, _HOW_TORN) from None
    with file:
        try:
            for name in file:
                check_inside(file, name)
        except Exception as err:
            raise reading_fault(label, "it cannot be opened", err, path, _HOW_TORN) from None
        try:
            yield file
        except Exception as err:
            raise reading_fault(label, "it cannot be read", err, path, _HOW_TORN) from None


def _arrays(file: Any) -> dict[str, Any]:
    """The arrays of a file that matter, by name; those of a group of observations by ``observations/<key>``."""
    import h5py

    found: dict[str, Any] = {}
    for name in FIELDS:
        entry = file.get(name)
        if isinstance(entry, h5py.Dataset):
            found[name] = entry
        elif isinstance(entry, h5py.Group) and name.endswith("observations"):
            entry.visititems(
                lambda key, value, name=name: (
                    found.__setitem__(f"{name}/{key}", value) if isinstance(value, h5py.Dataset) else None
                )
            )
    return found


def _info(arrays: Mapping[str, Any]) -> dict[str, ArrayInfo]:
    return {name: ArrayInfo(tuple(array.shape or ()), array.dtype) for name, array in arrays.items()}


def _refuse_groups(label: str, file: Any) -> None:
    """Say what a file of groups is."""
    import h5py

    groups = sorted(name for name in file if isinstance(file.get(name), h5py.Group))
    if any(name.startswith("episode_") for name in groups):
        what = "it holds the episodes of a Minari dataset"
        how = "Pass the id of the dataset, which is the path of its folder below the Minari root, e.g. my/toy-v0"
        raise DatasetError.at(label, what, how)
    arrays = any(isinstance(file.get(name), h5py.Dataset) for name in FIELDS)
    if groups and not arrays:
        shown_groups = ", ".join(repr(shown(name, 40)) for name in groups[:5])
        what = f"it holds groups ({shown_groups}{', ...' if len(groups) > 5 else ''}) and no flat arrays"
        how = (
            "Join the episodes and pass the arrays: dataset=dict(observations=..., actions=..., rewards=..., terminals=..., "
            "timeouts=...)"
        )
        raise DatasetError.at(label, what, how)


@dataclass
class D4rlSource(RecordingSource):
    """
    A D4RL file with the arrays ``observations``, ``actions``, ``rewards``, ``terminals``, ``timeouts`` and, in newer
    files, ``next_observations``; all others are ignored. Files of d3rlpy are read too.

    :param path: the file
    :param names: the arrays in the file
    """

    path: Path
    names: frozenset[str]

    @classmethod
    def from_path(cls, path: Path) -> RecordingSource:
        """
        A file by its path.

        The format records no spaces: they come from the environment, and without one the actions are taken to lie in
        [-1, 1], as those of all D4RL tasks do.

        :param path: the file
        :raises DatasetError: if the file cannot be read or lacks an array
        """
        label = f"Dataset {str(path)!r}"
        with opened_hdf5(label, path) as file:
            if "columns" in file and "num_episodes" in file:
                return D3rlpySource.from_file(label, path, file)
            _refuse_groups(label, file)
            arrays = _arrays(file)
            for name in FIELDS:
                if name in file and not any(found.partition("/")[0] == name for found in arrays):
                    raise DatasetError.at(label, "it is a group, no array", "Write one row for every step", field=name)
            refuse_misnamed(label, file)
            infos = _info(arrays)
            is_mdp_dataset = "discrete_action" in file
            if is_mdp_dataset:
                _refuse_discrete(label, bool(file["discrete_action"][()]))
                infos.setdefault("timeouts", ArrayInfo((), np.dtype(np.bool_)))
        has_rewards = check_fields(label, infos, _HOW_TIMEOUTS)
        found = checked_spaces(*spaces_of(label, infos), label)
        kind = MdpDatasetSource if is_mdp_dataset else cls
        return kind(label, path.name, *found, path, frozenset(infos), files=[path], has_rewards=has_rewards)

    @property
    def _has_next(self) -> bool:
        return any(name.partition("/")[0] == "next_observations" for name in self.names)

    @contextlib.contextmanager
    def parts(self) -> Iterator[Iterator[Part]]:
        with opened_hdf5(self.label, self.path) as file:
            yield iter([_arrays(file)])


def _refuse_discrete(label: str, is_discrete: bool) -> None:
    if is_discrete:
        raise DatasetError.at(label, "it is a dump of d3rlpy with discrete actions", "Use an algorithm for discrete actions")


@dataclass
class MdpDatasetSource(D4rlSource):
    """A dump of d3rlpy 1 (``MDPDataset.dump``), where ``episode_terminals`` end an episode in either way."""

    @contextlib.contextmanager
    def parts(self) -> Iterator[Iterator[Part]]:
        with opened_hdf5(self.label, self.path) as file:
            arrays = _arrays(file)
            ends = file["episode_terminals"] if "episode_terminals" in file else arrays["terminals"]
            # NaN stays NaN, for the check of the flags
            arrays["timeouts"] = np.where(np.asarray(arrays["terminals"][:]) == 1, 0, np.asarray(ends[:]))
            yield iter([arrays])


@dataclass
class D3rlpySource(RecordingSource):
    """
    A dump of d3rlpy 2 (``ReplayBuffer.dump``): arrays for every episode, which has terminated or was cut.

    :param path: the file
    :param n_episodes: number of episodes
    """

    path: Path
    n_episodes: int

    @classmethod
    def from_file(cls, label: str, path: Path, file: Any) -> "D3rlpySource":
        """
        A dump by the open file.

        :param label: how messages name it
        :param path: its path
        :param file: the file
        :raises DatasetError: for a dump of another version, or of discrete actions
        """
        n_episodes = int(file["num_episodes"][()])
        if n_episodes < 1:
            raise DatasetError.at(label, "it holds no transitions", "Choose another dataset, or record it again")
        first = cls._part(file, 0)
        if first is None:
            what = "it is a dump of d3rlpy, but not of the kind that d3rlpy 2 writes"
            raise DatasetError.at(label, what, "Load it with d3rlpy and write it with ReplayBuffer.dump of d3rlpy 2")
        infos = _info({name: array for name, array in first.items() if name not in ("terminals", "timeouts")})
        _refuse_discrete(label, infos["actions"].dtype.kind in "biu")
        found = checked_spaces(*spaces_of(label, infos), label)
        return cls(label, path.name, *found, path, n_episodes, files=[path])

    @staticmethod
    def _part(file: Any, episode: int) -> Part | None:
        fields = ("observations", "actions", "rewards")
        arrays = {field: file.get(f"{field}_{episode}") for field in fields}
        entry = 0
        # Observations of several parts are numbered
        while arrays["observations"] is None or entry:
            part = file.get(f"observations_{episode}_{entry}")
            if part is None:
                break
            arrays[f"observations/{entry}"] = part
            entry += 1
        if entry:
            del arrays["observations"]
        flag = file.get(f"terminated_{episode}")
        if flag is None or any(array is None or not array.shape for array in arrays.values()):
            return None
        n_rows = arrays["actions"].shape[0]
        is_end = np.arange(n_rows) == n_rows - 1
        terminated = np.asarray(flag[()]).reshape(-1)[:1]
        terminals = np.where(is_end, terminated, 0)
        return {**arrays, "terminals": terminals, "timeouts": np.where(is_end, 1 - terminated, 0)}

    @property
    def _has_next(self) -> bool:
        return False

    def _place(self, number: int) -> dict[str, int | str]:
        return {"episode": number}

    @contextlib.contextmanager
    def parts(self) -> Iterator[Iterator[Part]]:
        with opened_hdf5(self.label, self.path) as file:
            yield self._episodes(file)

    def _episodes(self, file: Any) -> Iterator[Part]:
        for episode in range(self.n_episodes):
            part = self._part(file, episode)
            if part is None:
                what = f"its episode {episode} of {self.n_episodes} is not complete"
                raise DatasetError.at(self.label, what, _HOW_TORN)
            yield part
