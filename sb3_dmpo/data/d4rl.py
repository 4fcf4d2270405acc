"""D4RL's HDF5 files: one long recording, cut into episodes by two flags."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_dmpo.data.hdf5 import check_inside
from sb3_dmpo.data.memory import available_memory
from sb3_dmpo.data.preprocessing import flat_size
from sb3_dmpo.data.transitions import (
    BLOCK_ROWS,
    BoolArray,
    DatasetError,
    DatasetSource,
    RawTransitions,
    check_memory,
    transition_bytes,
)
from sb3_dmpo.data.validation import checked_spaces, environment_spaces

_FIELDS = ("observations", "actions", "rewards", "terminals", "timeouts")
_HOW_TORN = "Download the file again"


@dataclass
class D4rlSource(DatasetSource):
    """
    A D4RL file with the arrays ``observations``, ``actions``, ``rewards``, ``terminals``, ``timeouts`` and, in newer
    files, ``next_observations``; all others are ignored.

    Without ``next_observations`` a step's successor is the next row. That of a step cut by a time limit is not in the
    file, so the step is left out, and so is a last step that carries neither flag. A terminal step is always kept; its
    own observation stands in for the successor, which no target uses.

    :param path: the file
    """

    path: Path

    @classmethod
    def from_path(cls, path: Path) -> "D4rlSource":
        """
        A file by its path.

        The format records no spaces: they come from the environment, and without one the actions are taken to lie in
        [-1, 1], as those of all D4RL tasks do.

        :param path: the file
        :raises DatasetError: if the file cannot be read or lacks an array
        """
        import h5py

        label = f"Dataset {str(path)!r}"
        if not path.is_file():
            raise DatasetError(f"{label} does not exist: check the path.")
        try:
            with h5py.File(path, "r") as file:
                for name in file:
                    check_inside(file, name)
                missing = [name for name in _FIELDS if not isinstance(file.get(name), h5py.Dataset)]
                shapes = {name: file[name].shape for name in file if isinstance(file[name], h5py.Dataset)}
        except Exception as err:  # depends on what is wrong with the file
            raise DatasetError.at(label, f"it cannot be opened ({err})", _HOW_TORN) from None
        if missing:
            what = f"it lacks {', '.join(map(repr, missing))}; it holds {', '.join(map(repr, sorted(shapes))) or 'nothing'}"
            raise DatasetError.at(label, what, f"A D4RL file has the arrays {', '.join(_FIELDS)}")
        for name in ("observations", "actions"):
            if len(shapes[name]) != 2:
                what = f"it has the shape {shapes[name]}, expected (steps, width)"
                raise DatasetError.at(label, what, "Flatten every row", field=name)
        observation_space = spaces.Box(-np.inf, np.inf, (shapes["observations"][1],), np.float32)
        action_space = spaces.Box(-1.0, 1.0, (shapes["actions"][1],), np.float32)
        return cls(label, path.name, *checked_spaces(observation_space, action_space, label), path, files=[path])

    def for_environment(self, env: Any) -> "D4rlSource":
        def fitting(found: spaces.Space[Any], own: spaces.Space[Any]) -> spaces.Space[Any]:
            # Spaces of another size stay out: the comparison with the environment says which they are.
            return found if isinstance(found, spaces.Box) and flat_size(found) == flat_size(own) else own

        observed, acted = environment_spaces(env, self.label)
        observation_space, action_space = checked_spaces(
            fitting(observed, self.observation_space), fitting(acted, self.action_space), self.label
        )
        return replace(self, observation_space=observation_space, action_space=action_space)

    def read(self, progress_bar: bool | None) -> RawTransitions:
        import h5py

        try:
            with h5py.File(self.path, "r") as file:
                return self._read(file, progress_bar)
        except DatasetError:
            raise
        except Exception as err:  # depends on what is wrong with the file
            raise DatasetError.at(self.label, f"it cannot be read ({type(err).__name__}: {err})", _HOW_TORN) from None

    def _check_shapes(self, file: Any, n_rows: int, has_next: bool) -> None:
        expected = {
            "observations": (n_rows, flat_size(self.observation_space)),
            "actions": (n_rows, self.action_space.shape[0]),
            "terminals": (n_rows,),
            "timeouts": (n_rows,),
        }
        if has_next:
            expected["next_observations"] = expected["observations"]
        for name, shape in expected.items():
            # Some files keep single numbers as columns
            found = file[name].shape[:1] if len(shape) == 1 and file[name].shape[1:] == (1,) else file[name].shape
            if found != shape:
                what = f"it has the shape {file[name].shape}, expected {shape} as there are {n_rows} rewards"
                raise DatasetError.at(self.label, what, _HOW_TORN, field=name)
            if file[name].dtype.kind not in "biuf":
                raise DatasetError.at(self.label, f"it holds {file[name].dtype}, no numbers", _HOW_TORN, field=name)

    def _read(self, file: Any, progress_bar: bool | None) -> RawTransitions:
        n_rows, has_next = file["rewards"].shape[0], "next_observations" in file
        self._check_shapes(file, n_rows, has_next)
        size, width = flat_size(self.observation_space), self.action_space.shape[0]
        if self.map_folder is None:
            check_memory(self.label, transition_bytes(n_rows, size, width), available_memory())
        terminals, timeouts = _flags(file["terminals"]), _flags(file["timeouts"])
        ends = terminals | timeouts
        ends[-1:] = True
        kept = np.ones(n_rows, dtype=np.bool_) if has_next else terminals | ~ends
        starts = np.flatnonzero(np.concatenate([[True], ends[:-1]])[:n_rows])
        lengths = np.add.reduceat(kept, starts, dtype=np.int64) if n_rows else np.zeros(0, dtype=np.int64)
        ids = np.flatnonzero(lengths)
        next_field = ("next_observations", 0) if has_next else ("observations", 1)
        raw = self.allocate(lengths[ids], ids.astype(np.int64), next_field=next_field)
        raw.terminations[:] = terminals[kept]
        raw.truncations[:] = False
        raw.truncations[np.cumsum(raw.episode_lengths) - 1] = True
        raw.truncations &= ~raw.terminations
        written = 0
        with self.progress(n_rows, progress_bar) as bar, np.errstate(over="ignore"):
            for start in range(0, n_rows, BLOCK_ROWS):
                stop = min(start + BLOCK_ROWS, n_rows)
                keep = kept[start:stop]
                rows = slice(written, written + int(keep.sum()))
                observations = file["observations"][start : stop + 1]
                raw.observations[rows] = observations[: stop - start][keep]
                if has_next:
                    raw.next_observations[rows] = file["next_observations"][start:stop][keep]
                else:
                    raw.next_observations[rows] = _successors(observations, terminals[start:stop])[keep]
                raw.actions[rows] = file["actions"][start:stop][keep]
                raw.rewards[rows] = file["rewards"][start:stop].reshape(-1)[keep]
                written = rows.stop
                bar.update(stop - start)
        return raw


def _flags(dataset: Any) -> BoolArray:
    flags: BoolArray = dataset[()].reshape(-1) != 0
    return flags


def _successors(observations: npt.NDArray[Any], terminals: BoolArray) -> npt.NDArray[Any]:
    """The next row of every step, its own row for terminal steps and for the last row of the file."""
    own = observations[: len(terminals)]
    following = np.concatenate([observations[1:], observations[-1:]])[: len(terminals)]
    return np.where(terminals[:, None], own, following)
