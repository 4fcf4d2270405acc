"""All numbers of a dataset in one row-major table, every observation once."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

#: Rows per block where a temporary array is needed, so that it stays small beside the data
BLOCK_ROWS = 16_384
#: Columns behind those of observation and action: the reward, and 1 where the task ended
FURTHER_COLUMNS = 2


def table_bytes(n_rows: int, observation_size: int, action_size: int) -> int:
    """
    Memory that a table takes, in bytes.

    :param n_rows: number of its rows
    :param observation_size: width of the flat observations
    :param action_size: width of the actions
    """
    return 4 * n_rows * (observation_size + action_size + FURTHER_COLUMNS)


def differ(some: npt.NDArray[np.generic], others: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """
    Which rows are not the same to the bit once they are float32, shape ``(n,)``.

    :param some: rows of numbers, shape ``(n, width)``
    :param others: as many
    """
    with np.errstate(over="ignore"):  # what is too large becomes inf
        first, second = (np.ascontiguousarray(values, np.float32).view(np.uint32) for values in (some, others))
    found: npt.NDArray[np.bool_] = (first != second).any(axis=1)
    return found


@dataclass(frozen=True, eq=False)
class TransitionTable:
    """
    ``N`` transitions. After most of them comes what the next one begins with. After ``K`` of them, the breaks, comes another
    observation: at the end of an episode, and wherever the recording skips something.

    Row ``n`` is transition ``n``: observation, action in [-1, 1], reward, and 1 if the task ended with it, else 0. The
    observation after it stands in row ``n + 1``, or, if it is break number ``k``, in row ``N + k``, which is 0 elsewhere.

    :param rows: shape ``(N + K, S + A + 2)``, float32
    :param breaks: numbers of the breaks, ascending; the last transition is always one, shape ``(K,)``, int64
    :param observation_size: S
    """

    rows: FloatArray
    breaks: IntArray
    observation_size: int

    def __len__(self) -> int:
        return len(self.rows) - len(self.breaks)

    @classmethod
    def pack(
        cls,
        observations: FloatArray,
        next_observations: FloatArray,
        actions: FloatArray,
        rewards: FloatArray,
        terminations: npt.NDArray[np.bool_],
    ) -> "TransitionTable":
        """
        A table of arrays with a row for every transition.

        :param observations: shape ``(N, S)``
        :param next_observations: shape ``(N, S)``
        :param actions: shape ``(N, A)``
        :param rewards: shape ``(N,)``
        :param terminations: whether the task ended, shape ``(N,)``
        """
        n, size = observations.shape
        is_break = np.ones(n, np.bool_)
        for start in range(0, n - 1, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, n - 1)
            is_break[start:stop] = differ(next_observations[start:stop], observations[start + 1 : stop + 1])
        breaks = np.flatnonzero(is_break).astype(np.int64)
        width = size + actions.shape[1] + FURTHER_COLUMNS
        table = cls(np.empty((n + len(breaks), width), np.float32), breaks, size)
        table.observations[:], table.actions[:] = observations, actions
        table.rewards[:], table.dones[:] = rewards, terminations
        for start in range(0, len(breaks), BLOCK_ROWS):
            stop = start + BLOCK_ROWS
            table.last_observations[start:stop] = next_observations[breaks[start:stop]]
        table.rows[n:, size:] = 0.0
        return table

    @property
    def observations(self) -> FloatArray:
        """A view, shape ``(N, S)``."""
        return self.rows[: len(self), : self.observation_size]

    @property
    def last_observations(self) -> FloatArray:
        """What comes after the breaks, a view, shape ``(K, S)``."""
        return self.rows[len(self) :, : self.observation_size]

    @property
    def actions(self) -> FloatArray:
        """A view, shape ``(N, A)``."""
        return self.rows[: len(self), self.observation_size : -FURTHER_COLUMNS]

    @property
    def rewards(self) -> FloatArray:
        """A view, shape ``(N,)``."""
        return self.rows[: len(self), -2]

    @property
    def dones(self) -> FloatArray:
        """A view, shape ``(N,)``."""
        return self.rows[: len(self), -1]

    def next_observations(self, start: int = 0, stop: int | None = None) -> FloatArray:
        """
        The observations after some transitions, a copy, shape ``(stop - start, S)``.

        :param start: the first one
        :param stop: behind the last one, None: all
        """
        stop = len(self) if stop is None else min(stop, len(self))
        # Behind the last transition, which is a break, there is a row as well.
        following = self.rows[start + 1 : stop + 1, : self.observation_size].copy()
        first, last = np.searchsorted(self.breaks, (start, stop))
        following[self.breaks[first:last] - start] = self.last_observations[first:last]
        return np.asarray(following)
