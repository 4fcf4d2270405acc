"""SB3's replay buffers as datasets, in memory or pickled by ``save_replay_buffer``."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_dmpo.data.faults import readable_or_fault, reading_fault, shown
from sb3_dmpo.data.preprocessing import flatten_observations
from sb3_dmpo.data.table import BLOCK_ROWS, differ
from sb3_dmpo.data.transitions import DatasetError, DatasetSource, RawTransitions
from sb3_dmpo.data.validation import check_numbers, checked_flags, checked_spaces
from sb3_dmpo.files.safe_zip import AllowListUnpickler, UnsafeFileError


def _observations_at(array: Any, steps: npt.NDArray[np.int64], env: int) -> Any:
    """Rows of one environment, from an array or a dict of arrays of shape ``(buffer_size, n_envs, ...)``."""
    if isinstance(array, dict):
        return {key: values[steps, env] for key, values in array.items()}
    return array[steps, env]


def _holds_tensors(buffer: ReplayBuffer) -> bool:
    """Whether it is one of this package's own buffers, which hold transformed rewards on a device."""
    return type(getattr(buffer, "rewards", None)).__module__.partition(".")[0] == "torch"


def _check(buffer: ReplayBuffer, label: str, how: str) -> None:
    """
    Compare the arrays of a buffer with its sizes, and its flags with each other.

    :param buffer: the buffer
    :param label: how messages name it
    :param how: how to mend it
    :raises DatasetError: naming the field
    """
    found = vars(buffer)
    sizes: dict[str, Any] = {name: found.get(name) for name in ("buffer_size", "n_envs", "pos")}
    if not all(isinstance(size, int | np.integer) and not isinstance(size, bool) and size >= 0 for size in sizes.values()):
        raise DatasetError.at(label, f"its sizes are {shown(sizes)}", how)
    rows = (int(sizes["buffer_size"]), int(sizes["n_envs"]))
    if sizes["pos"] > rows[0]:
        raise DatasetError.at(label, f"it is at row {sizes['pos']} of {rows[0]}", how, field="pos")
    names = ["observations", "actions", "rewards", "dones"]
    names += [] if found.get("optimize_memory_usage") else ["next_observations"]
    names += ["timeouts"] if "timeouts" in found else []
    for name in names:
        array = found.get(name)
        for part in array.values() if isinstance(array, dict) else [array]:
            if not isinstance(part, np.ndarray):
                raise DatasetError.at(label, f"it is a {type(part).__name__}, no array", how, field=name)
            if part.shape[:2] != rows or (name in ("rewards", "dones", "timeouts") and part.shape != rows):
                what = f"it has the shape {part.shape}, expected {rows} to begin with (rows and environments)"
                raise DatasetError.at(label, what, how, field=name)
            check_numbers(label, part.dtype, name)
    filled = slice(None) if buffer.full else slice(0, buffer.pos)
    flags = {
        name: checked_flags(label, found[name][filled].reshape(-1), name).reshape(-1, rows[1])
        for name in ("dones", "timeouts")
        if name in found and rows[1] > 0
    }
    if "timeouts" in flags and (flags["timeouts"] & ~flags["dones"]).any():
        row = int(np.argmax((flags["timeouts"] & ~flags["dones"]).any(axis=1)))
        what = "it is 1, but the episode goes on (dones is 0)"
        raise DatasetError.at(label, what, "Add the step with done=True as well", step=row, field="timeouts")


@dataclass
class ReplayBufferSource(DatasetSource):
    """
    SB3's ``ReplayBuffer`` or ``DictReplayBuffer``, full or not, of one or several environments.

    The transitions are put in order: one environment after the other, oldest first. Ends that the buffer knows to be
    time limits (``handle_timeout_termination``) are truncations, all other ends are terminations; an episode that goes on
    behind an environment's last row is cut there. With ``optimize_memory_usage`` the successor is the next row; SB3 has
    overwritten that of the end of an episode with the first observation of the next one, which no target uses as all ends
    count as terminations there.

    SB3's algorithms store actions scaled to [-1, 1], so they are taken as they are.

    :param buffer: The buffer
    """

    buffer: ReplayBuffer

    @classmethod
    def from_object(
        cls, buffer: ReplayBuffer, label: str = "The replay buffer", how: str = "Record it again with buffer.add"
    ) -> "ReplayBufferSource":
        """
        A buffer in memory.

        :param buffer: The buffer
        :param label: How messages name it
        :param how: How to mend arrays that contradict each other
        :raises DatasetError: for spaces the package cannot learn in, and for arrays that contradict each other
        """
        if not _holds_tensors(buffer):
            _check(buffer, label, how)
        observation_space, action_space = checked_spaces(buffer.observation_space, buffer.action_space, label)
        return cls(label, getattr(buffer, "dataset_id", None), observation_space, action_space, buffer)

    @classmethod
    def from_pickle(cls, path: Path) -> "ReplayBufferSource":
        """
        A buffer in a file. Nothing in it is executed: only the classes that SB3's buffers hold are admitted.

        :param path: What ``model.save_replay_buffer`` has written
        :raises DatasetError: if there is no such file, or if it holds something else
        """
        label = f"The replay buffer {str(path)!r}"
        readable_or_fault(label, path)
        if not path.is_file():
            raise DatasetError(f"{label} does not exist: check the path.")
        how = "Write the file again with model.save_replay_buffer"
        try:
            with open(path, "rb") as file:
                buffer = AllowListUnpickler(file).load()
        except UnsafeFileError as err:
            what = f"it {err}, which no replay buffer of Stable-Baselines3 needs"
            how = "If you trust the file, load it with stable_baselines3.common.save_util.load_from_pkl and pass the object"
            raise DatasetError.at(label, what, how) from None
        except Exception as err:  # depends on what is in the file
            raise reading_fault(label, "it cannot be unpickled", err, path, how) from None
        if not isinstance(buffer, ReplayBuffer):
            raise DatasetError.at(label, f"it holds a {type(buffer).__name__}, no ReplayBuffer", how)
        source = cls.from_object(buffer, label, how)
        source.dataset_id = path.name
        return source

    def _steps(self) -> npt.NDArray[np.int64]:
        """Rows of the buffer that hold whole transitions, oldest first."""
        buffer = self.buffer
        if not buffer.full:
            return np.arange(buffer.pos, dtype=np.int64)
        steps = (buffer.pos + np.arange(buffer.buffer_size, dtype=np.int64)) % buffer.buffer_size
        # The newest successor lies where the oldest observation was
        return steps[1:] if buffer.optimize_memory_usage else steps

    def read(self, progress_bar: bool | None) -> RawTransitions:
        if _holds_tensors(self.buffer):
            what = "it holds tensors with transformed rewards, no recorded transitions"
            raise DatasetError.at(self.label, what, "Pass the OfflineReplayBuffer itself as the dataset of an algorithm")
        steps, n_envs = self._steps(), self.buffer.n_envs
        dones = self.buffer.dones[steps].T != 0
        ends = dones.copy()
        ends[:, -1:] = True
        # Episodes end where an environment's rows do
        lengths = np.diff(np.flatnonzero(ends.reshape(-1)), prepend=-1).astype(np.int64)
        breaks = self._breaks(steps)
        raw = self.allocate(lengths, np.arange(len(lengths), dtype=np.int64), breaks, actions_are_scaled=True)
        timeouts = getattr(self.buffer, "timeouts", np.zeros_like(self.buffer.dones))[steps].T != 0
        raw.terminations[:] = (dones & ~timeouts).reshape(-1)
        raw.truncations[:] = ends.reshape(-1) & ~raw.terminations
        with self.progress(len(raw.truncations), progress_bar) as bar:
            for env, start in itertools.product(range(n_envs), range(0, len(steps), BLOCK_ROWS)):
                block, first = steps[start : start + BLOCK_ROWS], env * len(steps) + start
                self._fill(raw, env, block, slice(first, first + len(block)))
                bar.update(len(block))
        return raw

    def _flat(self, env: int, steps: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Flat observations of one environment."""
        try:
            return flatten_observations(_observations_at(self.buffer.observations, steps, env), self.observation_space)
        except ValueError as err:
            raise self._misfit(err) from None

    def _following(self, env: int, steps: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Flat observations of one environment after some steps."""
        buffer = self.buffer
        if buffer.optimize_memory_usage:
            return self._flat(env, (steps + 1) % buffer.buffer_size)
        try:
            return flatten_observations(_observations_at(buffer.next_observations, steps, env), self.observation_space)
        except ValueError as err:
            raise self._misfit(err) from None

    def _misfit(self, error: ValueError) -> DatasetError:
        return DatasetError.at(self.label, f"its arrays do not fit its spaces ({error})", "Record it again")

    def _breaks(self, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """
        After which transitions another observation comes than that of the next one.

        :param steps: rows of the buffer, oldest first
        """
        is_break = np.ones((self.buffer.n_envs, len(steps)), np.bool_)
        for env, start in itertools.product(range(len(is_break)), range(0, len(steps) - 1, BLOCK_ROWS)):
            block = steps[start : start + BLOCK_ROWS + 1]
            observations = self._flat(env, block)
            found = differ(self._following(env, block[:-1]), observations[1:])
            is_break[env, start : start + len(found)] = found
        return np.flatnonzero(is_break).astype(np.int64)

    def _fill(self, raw: RawTransitions, env: int, block: npt.NDArray[np.int64], rows: slice) -> None:
        table, buffer = raw.table, self.buffer
        first, last = np.searchsorted(table.breaks, (rows.start, rows.stop))
        try:
            table.observations[rows] = self._flat(env, block)
            if first < last:
                table.last_observations[first:last] = self._following(env, block[table.breaks[first:last] - rows.start])
            table.actions[rows] = buffer.actions[block, env]
            table.rewards[rows] = buffer.rewards[block, env]
        except ValueError as err:
            raise self._misfit(err) from None
