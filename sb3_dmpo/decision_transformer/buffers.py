"""The dataset as tensors on the training device, sampled in pieces of episodes."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_dmpo.common import ranks
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.data import Transitions
from sb3_dmpo.data.table import FURTHER_COLUMNS

#: Built from rewards and episode lengths, therefore not pickled
_DERIVED = ("returns_to_go", "_episode_starts", "_episode_stops")


class SequenceBatch(NamedTuple):
    """
    A minibatch of consecutive steps, aligned at their last one; what is padded stands at the front.

    :param observations: shape ``(batch, length, observation_size)``
    :param actions: actions in [-1, 1], shape ``(batch, length, action_size)``
    :param next_observations: shape ``(batch, length, observation_size)``
    :param rewards: shape ``(batch, length, 1)``
    :param returns_to_go: undiscounted sum of the rewards from the step to the end of its episode, shape ``(batch, length, 1)``
    :param timesteps: number of the step in its episode, int64, shape ``(batch, length)``
    :param mask: False where padded, shape ``(batch, length)``
    :param noise: the random numbers of this update, by name
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    rewards: th.Tensor
    returns_to_go: th.Tensor
    timesteps: th.Tensor
    mask: th.Tensor
    noise: dict[str, th.Tensor]

    def mean(self, values: th.Tensor) -> th.Tensor:
        """
        Mean over all steps that are not padded, 0-d; with several processes this one's part of it, times their number.

        :param values: shape ``(batch, length, n)``
        """
        return (values.mean(dim=2) * self.mask).sum() / ranks.mean(self.mask.sum())


class SequenceReplayBuffer(OfflineReplayBuffer):
    """
    An :class:`OfflineReplayBuffer` that knows where its episodes begin and end.

    Built by ``from_transitions``. Its transitions lie episode after episode; further ones cannot be added.
    """

    returns_to_go: th.Tensor
    _episode_starts: th.Tensor
    _episode_stops: th.Tensor
    _units = "episodes"

    @classmethod
    def from_transitions(cls, transitions: Transitions, *args: Any, **kwargs: Any) -> "SequenceReplayBuffer":
        """
        A buffer that holds a dataset.

        :param transitions: the dataset
        :param args: as in :meth:`OfflineReplayBuffer.from_transitions`
        :param kwargs: as in :meth:`OfflineReplayBuffer.from_transitions`
        :raises DatasetError: if the data do not fit on the device, or their rewards do not allow the scaling
        """
        return _indexed(super().from_transitions(transitions, *args, **kwargs))

    @classmethod
    def of(cls, buffer: OfflineReplayBuffer) -> "SequenceReplayBuffer":
        """
        What a buffer holds with the knowledge where its episodes are; the same tensors.

        :param buffer: a buffer that nobody uses any more
        :raises DatasetError: its episodes are not known
        """
        return _indexed(super().of(buffer))

    def for_model(self, *args: Any, **kwargs: Any) -> "SequenceReplayBuffer":
        """
        Another buffer with the same episodes for a model that is given this one.

        :param args: as in :meth:`OfflineReplayBuffer.for_model`
        :param kwargs: as in :meth:`OfflineReplayBuffer.for_model`
        """
        return _indexed(super().for_model(*args, **kwargs))

    def part(self, *args: Any, **kwargs: Any) -> "SequenceReplayBuffer":
        """
        What one of several processes holds: whole episodes, as nearly as many transitions as that allows.

        :param args: as in :meth:`OfflineReplayBuffer.part`
        :param kwargs: as in :meth:`OfflineReplayBuffer.part`
        """
        return _indexed(super().part(*args, **kwargs))

    def _cuts(self, n_parts: int) -> list[int]:
        ends = np.append(0, np.cumsum(self.known_episode_lengths()))
        return [int(ends[np.abs(ends - cut).argmin()]) for cut in super()._cuts(n_parts)]

    def _index_sequences(self) -> None:
        lengths = self.known_episode_lengths()
        stops = np.cumsum(lengths)
        starts = stops - lengths
        rewards = self.rewards[: self.n_offline].cpu().numpy().astype(np.float64)
        # Rewards from each step to the end of the dataset, less those that belong to later episodes
        to_the_end = np.append(np.cumsum(rewards[::-1])[::-1], 0.0)
        returns = to_the_end[:-1] - np.repeat(to_the_end[stops], lengths)
        storage = self.table.device
        self.returns_to_go = th.from_numpy(returns.astype(np.float32).reshape(-1, 1)).to(storage)
        self._episode_starts = th.from_numpy(starts).to(storage)
        self._episode_stops = th.from_numpy(stops).to(storage)

    def episode_returns(self) -> th.Tensor:
        """Undiscounted return of every episode, shape ``(n_episodes,)``."""
        return self.returns_to_go[self._episode_starts].squeeze(1)

    def episode_ends(self, steps: th.Tensor) -> th.Tensor:
        """
        The step behind the last one of the episode that a step belongs to, same shape.

        :param steps: numbers of steps, where the data lie
        """
        return self._episode_stops[th.searchsorted(self._episode_stops, steps, right=True)]

    def sample_sequences(self, batch_size: int, length: int) -> SequenceBatch:
        """
        Pieces of episodes, on the device, without noise. An episode is drawn with a probability in proportion to its
        length and a first step uniformly among its steps; the piece ends with the episode if that comes before ``length``
        steps.

        :param batch_size: number of pieces
        :param length: number of steps in each, padding included
        """
        found, returns_to_go, timesteps, mask = self._minibatch(
            lambda firsts: self._gather_sequences(firsts, length), batch_size, ("sequences", length)
        )
        here, after = found.view(2, batch_size, length, -1)
        size = self.observation_size
        return SequenceBatch(
            observations=here[..., :size],
            actions=here[..., size:-FURTHER_COLUMNS],
            next_observations=after[..., :size],
            rewards=here[..., -2:-1],
            returns_to_go=returns_to_go,
            timesteps=timesteps,
            mask=mask,
            noise={},
        )

    def _gather_sequences(self, drawn: th.Tensor, length: int) -> tuple[th.Tensor, ...]:
        """
        Rows of the steps of pieces and those after them, and their returns to go, numbers and mask.

        To draw an episode by its length and then one of its steps is to draw a step of the dataset.

        :param drawn: first steps of the pieces, shape ``(batch,)``
        :param length: as in :meth:`sample_sequences`
        """
        firsts = drawn.unsqueeze(1)
        episodes = th.searchsorted(self._episode_stops, firsts, right=True)
        ends = th.minimum(firsts + length, self._episode_stops[episodes])
        steps = ends - length + th.arange(length, device=ends.device)
        mask = steps >= firsts
        steps = th.maximum(steps, firsts)
        (found,) = self._gather(steps.flatten())
        return found, self.returns_to_go[steps], steps - self._episode_starts[episodes], mask

    def steps(self, numbers: th.Tensor) -> ReplayBufferSamples:
        """
        Transitions by number, on the device, with the axes of the numbers in front, e.g. observations ``(n, length, S)``.

        :param numbers: numbers of transitions, any shape, where the data lie
        """
        flat = self._get_samples(numbers.reshape(-1))
        return ReplayBufferSamples(*(tensor.view(*numbers.shape, tensor.shape[1]) for tensor in flat[:5]))

    def add(self, *args: Any, **kwargs: Any) -> None:
        """
        Not possible.

        :raises ValueError: always
        """
        raise ValueError("A SequenceReplayBuffer holds whole episodes: single transitions cannot be added to it")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in _DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._index_sequences()


def _indexed(buffer: OfflineReplayBuffer) -> SequenceReplayBuffer:
    """
    A buffer that knows where its sequences are.

    :param buffer: one that was just made
    """
    assert isinstance(buffer, SequenceReplayBuffer)
    buffer._index_sequences()
    return buffer
