"""The dataset as tensors on the training device."""

import hashlib
import io
import os
import pathlib
import pickle
import warnings
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import GymEnv, ReplayBufferSamples
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dmpo.common import ranks
from sb3_dmpo.common.read_ahead import Gather, ReadAhead
from sb3_dmpo.data import DatasetError, Transitions, load_transitions
from sb3_dmpo.data.preprocessing import (
    action_spaces_match,
    canonical_observation,
    flatten_observations,
    observation_spaces_match,
)
from sb3_dmpo.data.statistics import observation_statistics, reward_transform
from sb3_dmpo.data.table import FURTHER_COLUMNS, TransitionTable
from sb3_dmpo.data.transitions import check_memory, dataset_label
from sb3_dmpo.data.validation import why_no_match
from sb3_dmpo.files.npz import read_npz
from sb3_dmpo.files.plain_text import DamagedFileError, UnsafeFileError, named_faults
from sb3_dmpo.files.save_util import atomic_write, path_to_read, path_to_write, read_stream

_CANNOT_ADD = "Nothing can be added to a memory-mapped dataset: load it without memory_map"
_NO_VEC_NORMALIZE = "The buffer holds a dataset as it was recorded: leave VecNormalize out, the policy scales the data"
_TRANSITION_TENSORS = ("observations", "next_observations", "actions", "rewards", "dones")
#: What a file of added transitions holds besides them.
_FURTHER_ARRAYS = ("following", "newest", "oldest", "transform", "fingerprint")
_TENSORS = ("table", "breaks", "observation_mean", "observation_std")


def _as_tensor(array: npt.NDArray[Any], device: th.device) -> th.Tensor:
    """The array as a contiguous tensor; on the CPU it shares the memory of the array. One on disk stays there."""
    if isinstance(array, np.memmap):
        with warnings.catch_warnings():
            # It cannot be written to, and is not.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return th.from_numpy(array)
    array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        array = array.copy()
    return th.from_numpy(array).to(device)


def _is_available(device: th.device) -> bool:
    try:
        th.empty(0, device=device)
    except (RuntimeError, AssertionError):  # torch built without the device, or a device index that is not there
        return False
    return True


def _make_generator(device: th.device, seed: int | None) -> th.Generator:
    generator = th.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


class StepSamples(NamedTuple):
    """
    What follows on some steps of a minibatch, n steps at a time.

    :param observations: shape ``(batch, S)``
    :param actions: shape ``(batch, A)``
    :param next_observations: those after the last of the steps, shape ``(batch, S)``
    :param rewards: discounted sum of the rewards of the steps, shape ``(batch, 1)``
    :param dones: 1 where the last of the steps ended the task, else 0, shape ``(batch, 1)``
    :param discounts: gamma to the power of the number of steps, shape ``(batch, 1)``
    :param next_actions: actions at ``next_observations``, shape ``(batch, A)``; anything where there is none
    :param has_next_action: 1 where there is one, else 0, shape ``(batch, 1)``
    :param episodes: numbers of their episodes, int64, shape ``(batch,)``; of added transitions the number of episodes
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    rewards: th.Tensor
    dones: th.Tensor
    discounts: th.Tensor
    next_actions: th.Tensor
    has_next_action: th.Tensor
    episodes: th.Tensor


class _Episodes(NamedTuple):
    """
    What the lengths of the episodes say of the transitions of a dataset. A step is dropped where next actions are needed if it
    has none although the task goes on.

    :param ends: whether a step is the last one of its episode, shape ``(n_offline,)``
    :param early_ends: the same once steps are dropped, shape ``(n_offline,)``
    :param last_rows: numbers of the last steps of the episodes, shape ``(n_episodes,)``
    :param kept_before: how many steps are kept before each of those that are dropped, shape ``(n_dropped,)``
    """

    ends: th.Tensor
    early_ends: th.Tensor
    last_rows: th.Tensor
    kept_before: th.Tensor


class OfflineReplayBuffer(ReplayBuffer):
    """
    A dataset as one float32 table on the training device, sampled there without the host.

    Unlike in SB3's buffer the observations are flat vectors (Dict observations joined), ``dones`` holds terminations
    only, ``rewards`` are already transformed, and minibatches come from a generator of the buffer's own: neither
    NumPy's nor torch's global random state is read or changed.

    The table is that of :class:`~sb3_dmpo.data.table.TransitionTable`: transitions by number, every observation once. What
    SB3's buffer has as arrays are columns of it, but for ``next_observations``, which are put together when they are asked
    for.

    With ``extra_capacity`` transitions can be added for fine-tuning in an environment. They go into a region behind the
    dataset, where the oldest ones are overwritten when it is full; the dataset itself is never overwritten. Every one of them
    is a break.

    A memory-mapped dataset stays on disk. Nothing can be added to it, and minibatches are drawn on the CPU (the same ones as
    without), converted and moved to the device; for a GPU, each is read while the one before is used.

    Built by ``from_transitions``; one that is built otherwise has no ``episode_lengths`` and knows single steps only.

    :param table: observation, action in [-1, 1], transformed reward, and 1 where the task terminated, shape
        ``(N + K, S + A + 2)``
    :param breaks: numbers of the transitions whose next observations stand in the last K rows, shape ``(K,)``
    :param observation_mean: mean of the dataset's observations, shape ``(S,)``
    :param observation_std: their population standard deviation, shape ``(S,)``
    :param observation_space: canonical observation space
    :param action_space: action space in the units of the environment
    :param device: device of all tensors
    :param seed: seed of the minibatches, None: from the operating system
    :param extra_capacity: number of transitions that can be added
    :param dataset_id: name of the dataset
    :param fingerprint: hash of the dataset's content
    :param memory_map: whether the table is on disk, and holds rewards and actions as they were recorded
    """

    #: Of a part of a dataset: the numbers of its first transition and of that one's episode there, and how many transitions
    #: there are; None: it is the whole.
    first_row: int = 0
    first_episode: int = 0
    n_whole: int | None = None
    #: What is never divided between two parts, for messages.
    _units: str = "transitions"

    def __init__(
        self,
        table: th.Tensor,
        breaks: th.Tensor,
        observation_mean: th.Tensor,
        observation_std: th.Tensor,
        observation_space: spaces.Box | spaces.Dict,
        action_space: spaces.Box,
        device: th.device | str = "cpu",
        seed: int | None = None,
        extra_capacity: int = 0,
        dataset_id: str | None = None,
        fingerprint: str = "",
        memory_map: bool = False,
    ) -> None:
        # ReplayBuffer's own constructor would allocate the NumPy arrays that the table replaces
        BaseBuffer.__init__(self, len(table) - len(breaks), observation_space, action_space, device)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = True
        self.table = table
        self.breaks = breaks
        self.observation_mean = observation_mean
        self.observation_std = observation_std
        #: Where the observations after breaks begin
        self._last_rows = self.buffer_size
        self.n_breaks = len(breaks)
        self.reward_scale = 1.0
        self.reward_shift = 0.0
        self.action_clip = 1.0
        #: The transform as it was asked for, by number or by name
        self.reward_setting: tuple[float | str, float] = (1.0, 0.0)
        #: Whether rewards were recorded
        self.has_rewards = True
        self.dataset_id = dataset_id
        self.fingerprint = fingerprint
        self.n_offline = self.buffer_size
        self.extra_capacity = extra_capacity
        self.memory_map = memory_map
        #: What reads the data ahead, if they have a way to go
        self._ahead = self._new_reader()
        # Where the indices are drawn: with the data
        self.generator = _make_generator(table.device, seed)
        #: Share of added transitions in a minibatch, once there are some; None: as many as chance draws
        self.online_ratio: float | None = None
        #: Number of transitions of every episode of the dataset, in order
        self.episode_lengths: npt.NDArray[np.int64] | None = None
        #: Made when they are first needed
        self._episodes: _Episodes | None = None
        #: Of every place for added transitions the place of the step that follows in its episode, -1 where none does
        self._following = th.zeros(0, dtype=th.int64, device=device)
        #: Places of the steps that were added last, one per environment, -1 where the episode has ended
        self._newest: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        # pos and full describe the region of added transitions
        self.reset()
        self._convert(None, 1.0, is_own=True)

    @classmethod
    def from_transitions(
        cls,
        transitions: Transitions,
        device: th.device | str = "cpu",
        seed: int | None = None,
        reward_scale: float | str = 1.0,
        reward_shift: float = 0.0,
        action_clip: float = 1.0,
        extra_capacity: int = 0,
        is_own: bool = False,
    ) -> "OfflineReplayBuffer":
        """
        A buffer that holds a dataset.

        On the CPU it shares the memory of transitions that were loaded from files, until somebody asks those for an array, so
        that there is one copy of the data. The transitions themselves are not kept.

        :param transitions: the dataset
        :param device: device of the tensors
        :param seed: seed of the minibatches, None: from the operating system
        :param reward_scale: a factor, ``"return_range"`` (1000 / (max - min episode return)), ``"max"``
            (1 / max reward) or ``"standardize"`` ((r - mean) / std)
        :param reward_shift: added to the rewards before they are scaled
        :param action_clip: actions are clipped to [-action_clip, action_clip]
        :param extra_capacity: number of transitions that can be added later; allocated when the first one comes
        :param is_own: whether nobody else needs the transitions, so that rewards and actions are converted in place
        :raises DatasetError: if the data do not fit on the device, or their rewards do not allow the scaling
        :raises ValueError: ``action_clip`` or ``extra_capacity`` is out of its range, ``reward_scale`` is no known word, or
            there is to be room in a dataset that is left on disk
        """
        if not 0 < action_clip <= 1:
            raise ValueError(f"action_clip has to be in (0, 1], got {action_clip}")
        if extra_capacity < 0:
            raise ValueError(f"extra_capacity must not be negative, got {extra_capacity}")
        device, data = get_device(device), transitions.table
        memory_map = isinstance(data.rows, np.memmap)
        if memory_map and extra_capacity > 0:
            raise ValueError(_CANNOT_ADD)
        storage = th.device("cpu") if memory_map else device
        if storage.type == "cuda":  # the host's memory is checked before it is filled
            label = dataset_label(transitions.dataset_id)
            check_memory(label, data.rows.nbytes, th.cuda.mem_get_info(device)[0], f"on {device}")
        scale, shift = reward_transform(transitions, reward_scale, reward_shift)
        mean, std = observation_statistics(data.observations)
        table = _as_tensor(data.rows, storage)
        buffer = cls(
            table,
            _as_tensor(data.breaks, storage),
            _as_tensor(mean.astype(np.float32), device),
            _as_tensor(std.astype(np.float32), device),
            transitions.observation_space,
            transitions.action_space,
            device=device,
            seed=seed,
            extra_capacity=extra_capacity,
            dataset_id=transitions.dataset_id,
            fingerprint=transitions.fingerprint,
            memory_map=memory_map,
        )
        is_shared = transitions.has_table and table.data_ptr() == data.rows.ctypes.data
        buffer._convert((scale, shift), action_clip, is_own or not is_shared)
        buffer.episode_lengths = transitions.episode_lengths
        buffer.reward_setting = (reward_scale, reward_shift)
        buffer.has_rewards = transitions.has_rewards
        return buffer

    @classmethod
    def of(cls, buffer: "OfflineReplayBuffer") -> "OfflineReplayBuffer":
        """
        What a buffer holds as one of this class; the same tensors.

        :param buffer: a buffer that nobody uses any more
        :raises DatasetError: it does not know what this class needs
        """
        made = cls.__new__(cls)
        made.__dict__.update(buffer.__dict__)
        made._ahead = made._new_reader()
        return made

    def _convert(self, transform: tuple[float, float] | None, action_clip: float, is_own: bool) -> None:
        """
        Transform the rewards, if they are still as they were recorded, and clip the actions.

        :param transform: scale and shift, None: they stay as they are
        :param action_clip: largest absolute action
        :param is_own: whether the table is this buffer's alone
        """
        changes_rewards = transform not in (None, (1.0, 0.0))
        changes_actions = action_clip < self.action_clip
        if transform is not None:
            self.reward_scale, self.reward_shift = transform
        self.action_clip = min(action_clip, self.action_clip)
        if (changes_rewards or changes_actions) and not self.memory_map:
            if not is_own:
                self.table = self.table.clone()
            if changes_rewards:
                self.rewards.copy_(self._transformed(self.rewards))
            if changes_actions:
                self.actions.clamp_(-action_clip, action_clip)
        # Along one axis, as the whole of a column would be copied
        column = self.table[: self.buffer_size, -2:-1]
        extremes = th.cat([column.amin(dim=0), column.amax(dim=0)])
        self.min_reward, self.max_reward = sorted((self._transformed(extremes) if self.memory_map else extremes).tolist())

    def _transformed(self, rewards: th.Tensor) -> th.Tensor:
        """
        :param rewards: as they were recorded
        """
        if (self.reward_scale, self.reward_shift) == (1.0, 0.0):
            return rewards
        return rewards.double().add_(self.reward_shift).mul_(self.reward_scale).float()

    @property
    def observations(self) -> th.Tensor:  # type: ignore[override]
        """Columns of the table, shape ``(N, S)``; room for added transitions is a part of it once it is allocated."""
        return self.table[: self.buffer_size, : self.observation_size]

    @property
    def next_observations(self) -> th.Tensor:  # type: ignore[override]
        """Put together from the table, shape ``(N, S)``."""
        numbers = th.arange(self.buffer_size, device=self.table.device)
        return self.table[:, : self.observation_size].index_select(0, self._rows_after(numbers))

    @property
    def actions(self) -> th.Tensor:  # type: ignore[override]
        """Columns of the table, shape ``(N, A)``; those of a memory-mapped dataset are clipped in minibatches."""
        return self.table[: self.buffer_size, self.observation_size : -FURTHER_COLUMNS]

    @property
    def rewards(self) -> th.Tensor:  # type: ignore[override]
        """Transformed rewards, shape ``(N, 1)``; a column of the table unless that is on disk."""
        column = self.table[: self.buffer_size, -2:-1]
        return self._transformed(column) if self.memory_map else column

    @property
    def dones(self) -> th.Tensor:  # type: ignore[override]
        """A column of the table, shape ``(N, 1)``."""
        return self.table[: self.buffer_size, -1:]

    @property
    def observation_size(self) -> int:
        """Width of the observations."""
        return len(self.observation_mean)

    def twin(self, seed: int | None = None) -> "OfflineReplayBuffer":
        """
        Another buffer with the same dataset, which is held in memory once, and minibatches of its own.

        :param seed: seed of its minibatches, None: from the operating system
        """
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        # It sees nothing of the region of added transitions, and leaves the table when it adds some.
        twin.buffer_size, twin.extra_capacity, twin._following = self.n_offline, 0, self._following[:0]
        twin.generator, twin._ahead = _make_generator(self.generator.device, seed), self._new_reader()
        twin.reset()
        return twin

    def for_model(
        self,
        device: th.device | str = "cpu",
        seed: int | None = None,
        reward_scale: float | str = 1.0,
        reward_shift: float = 0.0,
        action_clip: float = 1.0,
        memory_map: bool = False,
    ) -> "OfflineReplayBuffer":
        """
        Another buffer with the same transitions for a model that is given this one as its dataset: with minibatches of its
        own, those that the dataset itself would give, and room of its own for added transitions. This one is never changed.

        :param device: device of the model
        :param seed: seed of the minibatches, None: from the operating system
        :param reward_scale: as in :meth:`from_transitions`; 1: as in this buffer
        :param reward_shift: as in :meth:`from_transitions`; with a scale of 1, 0: as in this buffer
        :param action_clip: as in :meth:`from_transitions`
        :param memory_map: whether the data are to be on disk
        :raises ValueError: an argument contradicts what this buffer is
        """
        if memory_map and not self.memory_map:
            raise ValueError(
                "The dataset is an OfflineReplayBuffer in memory, and memory_map=True wants it on disk: leave memory_map out, "
                "or build the buffer with load_transitions(..., memory_map=True)."
            )
        device = get_device(device)
        storage = th.device("cpu") if self.memory_map else device
        copy = self.twin(seed)
        if self.n_added > 0:
            # They are part of the dataset now, and must not change when this buffer overwrites them.
            digest = hashlib.sha256(self.fingerprint.encode())
            for added in self._added().values():
                digest.update(added.cpu().numpy().tobytes())
            copy.fingerprint = digest.hexdigest()
            copy.n_breaks += self.n_added
            copy.table = th.cat([self.table[: self.size()], self.table[self._last_rows :][: copy.n_breaks]])
            copy.breaks = self.breaks[: copy.n_breaks]
            copy.n_offline = copy.buffer_size = copy._last_rows = self.size()
            copy.episode_lengths = None
        copy._episodes = None
        if storage != copy.table.device:
            copy.table, copy.breaks = copy.table.to(storage), copy.breaks.to(storage)
            copy.generator = _make_generator(storage, seed)
        copy.device = device
        copy._ahead = copy._new_reader()
        copy.observation_mean, copy.observation_std = copy.observation_mean.to(device), copy.observation_std.to(device)
        has = (self.reward_scale, self.reward_shift)
        if (reward_scale, reward_shift) == (1.0, 0.0) != has:
            # A model does not know of it, and would go on with the rewards as they were recorded.
            copy.fingerprint = hashlib.sha256(f"{copy.fingerprint} {has}".encode()).hexdigest()
        transform = copy._further_transform(reward_scale, reward_shift)
        if transform is not None:
            copy.reward_setting = transform
        copy._convert(transform, action_clip, is_own=copy.table.data_ptr() != self.table.data_ptr())
        return copy

    def _further_transform(self, reward_scale: float | str, reward_shift: float) -> tuple[float, float] | None:
        """A transform that has been asked for, if it is still to be applied."""
        asked, has = (reward_scale, reward_shift), (self.reward_scale, self.reward_shift)
        if asked in ((1.0, 0.0), has, self.reward_setting):
            return None
        if isinstance(reward_scale, str):
            raise ValueError(
                f"reward_scale={reward_scale!r} needs the episodes, and the dataset is an OfflineReplayBuffer: build it with "
                f"OfflineReplayBuffer.from_transitions(..., reward_scale={reward_scale!r}), or give a number."
            )
        if has != (1.0, 0.0):
            raise ValueError(
                f"reward_scale={reward_scale} and reward_shift={reward_shift} are asked for, but the rewards of the "
                f"OfflineReplayBuffer have been scaled by {has[0]} and shifted by {has[1]} before: leave both arguments out, "
                "or build the buffer without them."
            )
        return float(reward_scale), float(reward_shift)

    def part(
        self, number: int, n_parts: int, device: th.device | str = "cpu", seed: int | None = None, memory_map: bool = False
    ) -> "OfflineReplayBuffer":
        """
        What one of several processes holds that train together: consecutive transitions, with the statistics, the range of
        the rewards and the fingerprint of the whole dataset. An episode that is cut in two is cut as by a time limit.

        :param number: number of the part, from 0 on
        :param n_parts: how many there are, of the same size but for a transition
        :param device: where it is held
        :param seed: seed of its minibatches
        :param memory_map: whether it is left on disk, where this buffer is then
        :raises DatasetError: there is nothing left for a part
        """
        cuts = self._cuts(n_parts)
        first, stop = cuts[number], cuts[number + 1]
        if len({*cuts}) <= n_parts:
            raise DatasetError(
                f"{dataset_label(self.dataset_id)} cannot be divided among {n_parts} processes: there are fewer "
                f"{self._units} than processes. Start fewer."
            )
        device = get_device(device)
        storage = th.device("cpu") if memory_map else device
        part = self.twin(seed)
        part._cut_table(first, stop, memory_map)
        part.table, part.breaks = part.table.to(storage), part.breaks.to(storage)
        part.memory_map, part.device = memory_map, device
        # What comes next is not known before its update has been seeded.
        part._ahead = None
        part.first_row, part.n_whole = self.first_row + first, self.n_whole or self.n_offline
        if self.episode_lengths is not None:
            stops = np.cumsum(self.episode_lengths)
            part.episode_lengths = np.diff([first, *stops[(stops > first) & (stops < stop)], stop])
            part.first_episode = self.first_episode + int(np.searchsorted(stops, first, side="right"))
        part._episodes = None
        part._following = self._following[:0].to(device)
        part.observation_mean, part.observation_std = self.observation_mean.to(device), self.observation_std.to(device)
        part.generator = _make_generator(storage, seed)
        return part

    def _cut_table(self, first: int, stop: int, memory_map: bool) -> None:
        """
        Keep some transitions of the table only.

        :param first: number of the first one
        :param stop: number behind the last one
        :param memory_map: whether they are left on disk, else they are copied as they are used
        """
        breaks, numbers = self.breaks[: self.n_breaks], th.arange(first, stop, device=self.table.device)
        start, end = th.searchsorted(breaks, numbers[[0, -1]]).tolist()
        if memory_map:
            # The end of the table, where behind the last transition, or at it, there is another break.
            self.table, self.breaks = self.table[first:], breaks[start : end + 1] - first
            self._last_rows += start - first
        else:
            # After the last transition comes what the part does not hold.
            breaks = th.cat([breaks[start:end], numbers[-1:]])
            self.table = self._select(numbers, self._rows_after(breaks))
            self.table[stop - first :, self.observation_size :] = 0.0
            self.breaks, self._last_rows = breaks - first, stop - first
        self.n_breaks = len(self.breaks)
        self.n_offline = self.buffer_size = stop - first

    def _cuts(self, n_parts: int) -> list[int]:
        """Where the parts begin, and the last one ends."""
        return [self.n_offline * number // n_parts for number in range(n_parts + 1)]

    def value_bounds(self, gamma: float) -> tuple[float, float]:
        """
        The range of returns: ``min r / (1 - gamma)`` to ``max r / (1 - gamma)``.

        :param gamma: discount factor
        """
        horizon = 1.0 - gamma
        return self.min_reward / horizon, self.max_reward / horizon

    def size(self) -> int:
        """Number of transitions, those of the dataset and added ones."""
        return self.n_offline + self.n_added

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        A minibatch drawn uniformly with replacement, on the device; observations ``(batch, S)``, actions
        ``(batch, A)``, rewards and dones ``(batch, 1)``. With an ``online_ratio``, that share of it comes from the added
        transitions (if there are any) and stands last.

        :param batch_size: number of transitions
        :param env: not supported; the policy scales the observations
        :raises ValueError: there is an ``env``
        """
        if env is not None:
            raise ValueError(_NO_VEC_NORMALIZE)
        return self._transitions(*self._minibatch(self._gather, batch_size, ("transitions",)))

    def fixed_data(self) -> list[th.Tensor]:
        """
        Where minibatches come from as long as drawing one is the same operations on the same tensors of the device every
        time: the table, shape ``(N + K, S + A + 2)``, and the numbers of its breaks, shape ``(K,)``; nothing if the data are
        on disk, or transitions are being added.
        """
        return [] if self.memory_map or self.n_added > 0 else [self.table, self.breaks]

    def _draw_rows(self, batch_size: int, n_dropped: int = 0) -> th.Tensor:
        """
        Numbers of the transitions of a minibatch, shape ``(batch,)``.

        :param batch_size: number of transitions
        :param n_dropped: so many fewer of the dataset there are; those behind move up
        """
        n_offline = self.n_offline - n_dropped
        if self.online_ratio is None or self.n_added == 0:
            return self._draw(n_offline + self.n_added, batch_size)
        n_online = round(self.online_ratio * batch_size)
        offline = self._draw(n_offline, batch_size - n_online)
        return th.cat([offline, n_offline + self._draw(self.n_added, n_online)])

    def _draw(self, n: int, size: int) -> th.Tensor:
        """Numbers below ``n``, shape ``(size,)``."""
        return th.randint(n, (size,), generator=self.generator, device=self.generator.device)

    def _get_samples(  # type: ignore[override]
        self, batch_inds: th.Tensor, env: VecNormalize | None = None
    ) -> ReplayBufferSamples:
        if env is not None:
            raise ValueError(_NO_VEC_NORMALIZE)
        return self._transitions(*self._moved(self._gather(batch_inds)))

    def _minibatch(self, gather: Gather, batch_size: int, kind: tuple[Any, ...], n_dropped: int = 0) -> tuple[th.Tensor, ...]:
        """
        Draw transitions and gather what belongs to them, on the device.

        :param gather: does that where the data lie, given the numbers that were drawn
        :param batch_size: number of transitions
        :param kind: what ``gather`` depends on
        :param n_dropped: as in :meth:`_draw_rows`
        """
        drawn = self._draw_rows(batch_size, n_dropped)
        if self._ahead is None:
            return self._moved(gather(drawn))

        def to_copy(numbers: th.Tensor) -> tuple[th.Tensor, ...]:
            found = gather(numbers)
            # The system must not move what is copied while the GPU works.
            return tuple(tensor.pin_memory() for tensor in found) if self.device.type == "cuda" else found

        found = self._ahead.take(kind, drawn, to_copy)
        state = self.generator.get_state()
        self._ahead.start(kind, self._draw_rows(batch_size, n_dropped), to_copy)
        # A run that is saved here goes on with what was drawn ahead.
        self.generator.set_state(state)
        return self._moved(found)

    def _new_reader(self) -> ReadAhead | None:
        """On the CPU the update and a second thread would want the same cores, and wait for each other."""
        return ReadAhead() if self.memory_map and self.device.type != "cpu" else None

    def _moved(self, tensors: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
        """What was gathered where the data lie, on the device."""
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in tensors) if self.memory_map else tensors

    def _rows_after(self, numbers: th.Tensor) -> th.Tensor:
        """
        Rows with the observations after some transitions, same shape.

        :param numbers: numbers of the transitions
        """
        places = th.searchsorted(self.breaks, numbers)
        return th.where(self.breaks.take(places) == numbers, places + self._last_rows, numbers + 1)

    def _select(self, *rows: th.Tensor) -> th.Tensor:
        """
        Rows of the table, one minibatch of them behind the other, shape ``(n, S + A + 2)``.

        :param rows: their numbers
        """
        found = self.table.index_select(0, th.cat(rows))
        if self.memory_map and self.action_clip < 1.0:
            found[:, self.observation_size : -FURTHER_COLUMNS].clamp_(-self.action_clip, self.action_clip)
        if self.memory_map and (self.reward_scale, self.reward_shift) != (1.0, 0.0):
            found[:, -2] = self._transformed(found[:, -2])
        return found

    def _gather(self, numbers: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        Rows of some transitions, then those after them, shape ``(2 n, S + A + 2)``.

        :param numbers: numbers of the transitions, shape ``(n,)``
        """
        return (self._select(numbers, self._rows_after(numbers)),)

    def _transitions(self, rows: th.Tensor) -> ReplayBufferSamples:
        """
        :param rows: what :meth:`_gather` found
        """
        here, after = rows.chunk(2)
        size = self.observation_size
        return ReplayBufferSamples(
            observations=here[:, :size],
            actions=here[:, size:-FURTHER_COLUMNS],
            next_observations=after[:, :size],
            dones=here[:, -1:],
            rewards=here[:, -2:-1],
        )

    # Several steps ----------------------------------------------------------------------------------------------

    def sample_steps(self, batch_size: int, n_steps: int, gamma: float, next_actions: bool) -> StepSamples:
        """
        A minibatch as by :meth:`sample` whose transitions are ``n_steps`` steps long, or as many as the episode has left, as
        in SB3's ``NStepReplayBuffer``.

        :param batch_size: number of transitions
        :param n_steps: n
        :param gamma: discount factor
        :param next_actions: whether next actions are needed. Steps of the dataset that have none, the last ones of episodes
            that were cut, are then left out. Added transitions stay: the next action of the newest one is not there yet.
        """
        episodes = self._index_episodes()

        def gather(drawn: th.Tensor) -> tuple[th.Tensor, ...]:
            if not next_actions:
                return self._gather_steps(drawn, n_steps, gamma, episodes.ends)
            # What was drawn counts the steps that are kept: so many have been dropped before each of them.
            rows = drawn + th.searchsorted(episodes.kept_before, drawn, right=True)
            return self._gather_steps(rows, n_steps, gamma, episodes.early_ends)

        kind = ("steps", n_steps, gamma, next_actions)
        n_dropped = len(episodes.kept_before) if next_actions else 0
        return self._steps(*self._minibatch(gather, batch_size, kind, n_dropped))

    def _steps(
        self,
        rows: th.Tensor,
        rewards: th.Tensor,
        dones: th.Tensor,
        discounts: th.Tensor,
        has_next: th.Tensor,
        episodes: th.Tensor,
    ) -> StepSamples:
        """
        :param rows: what :meth:`_gather_steps` found, and so on
        :param rewards: discounted sums
        :param dones: whether the task ended
        :param discounts: of what comes after
        :param has_next: whether there are next actions
        :param episodes: numbers of the episodes
        """
        first, after, following = rows.chunk(3)
        size = self.observation_size
        return StepSamples(
            observations=first[:, :size],
            actions=first[:, size:-FURTHER_COLUMNS],
            next_observations=after[:, :size],
            rewards=rewards,
            dones=dones,
            discounts=discounts,
            next_actions=following[:, size:-FURTHER_COLUMNS],
            has_next_action=has_next,
            episodes=episodes,
        )

    def check_episodes(self, next_actions: bool) -> None:
        """
        Check that :meth:`sample_steps` is possible.

        :param next_actions: whether next actions are needed
        :raises DatasetError: the buffer does not know its episodes, or no step has a next action
        """
        n_dropped = len(self._index_episodes().kept_before)
        if next_actions and n_dropped == self.n_offline:
            raise DatasetError(
                f"{dataset_label(self.dataset_id)}: every episode is a single step that is cut, so that no step has a next "
                "action. Use an algorithm that needs none, e.g. TD3BC."
            )

    def known_episode_lengths(self) -> npt.NDArray[np.int64]:
        """
        Number of transitions of every episode of the dataset, in order.

        :raises DatasetError: the buffer does not know them
        """
        if self.episode_lengths is None:
            raise DatasetError(
                "An OfflineReplayBuffer that was not built by `from_transitions`, or had transitions added before it became a "
                "dataset, cannot tell where its episodes end, which n_steps, next actions and sequences need: pass what it "
                "was made from."
            )
        return self.episode_lengths

    def _index_episodes(self) -> _Episodes:
        if self._episodes is not None:
            return self._episodes
        storage = self.table.device
        is_done = self.dones[: self.n_offline, 0] > 0
        ends = th.zeros(self.n_offline, dtype=th.bool, device=storage)
        last_rows = th.from_numpy(np.cumsum(self.known_episode_lengths()) - 1).to(storage)
        ends[last_rows] = True
        ends |= is_done
        dropped = (ends & ~is_done).nonzero().squeeze(1)
        early_ends = ends.clone()
        # What is before a step that is dropped is in its episode, or an end already.
        early_ends[(dropped - 1).clamp(min=0)] = True
        self._episodes = _Episodes(ends, early_ends, last_rows, dropped - th.arange(len(dropped), device=storage))
        return self._episodes

    def _next_rows(self, rows: th.Tensor, ends: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        The steps that follow on some steps in their episodes (anything where none does), and whether one does.

        :param rows: numbers of the steps, shape ``(batch,)``
        :param ends: whether steps of the dataset are followed by none, shape ``(n_offline,)``
        """
        following, has_next = rows + 1, ~ends[rows.clamp(max=self.n_offline - 1)]
        if self.n_added > 0:
            is_added = rows >= self.n_offline
            places = self._following[(rows - self.n_offline).clamp(min=0)]
            following = th.where(is_added, self.n_offline + places, following)
            has_next = th.where(is_added, places >= 0, has_next)
        return th.where(has_next, following, rows), has_next

    def _gather_steps(self, rows: th.Tensor, n_steps: int, gamma: float, ends: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        Transitions of several steps: rows of the first steps, rows after the last ones and rows of the steps that follow;
        rewards, dones, discounts, 1 where a step follows, and the episodes' numbers.

        :param rows: their first steps, shape ``(batch,)``
        :param n_steps: largest number of steps
        :param gamma: discount factor
        :param ends: behind which steps of the dataset no transition reaches, shape ``(n_offline,)``
        """
        last, rewards = rows, self._rewards_at(rows)
        discounts = th.full_like(rewards, gamma)
        for _ in range(n_steps - 1):
            last, goes_on = self._next_rows(last, ends)
            factor = discounts * goes_on.unsqueeze(1)
            rewards = rewards + factor * self._rewards_at(last)
            discounts = th.where(goes_on.unsqueeze(1), gamma * discounts, discounts)
        following, has_next = self._next_rows(last, self._index_episodes().ends)
        found = self._select(rows, self._rows_after(last), following)
        episodes = self.first_episode + th.searchsorted(self._index_episodes().last_rows, rows)
        return found, rewards, self.dones[last], discounts, has_next.unsqueeze(1).to(rewards.dtype), episodes

    def _rewards_at(self, rows: th.Tensor) -> th.Tensor:
        """
        Rewards of some transitions, shape ``(n, 1)``.

        :param rows: their numbers, shape ``(n,)``
        """
        found = self.table[:, -2:-1][rows]
        return self._transformed(found) if self.memory_map else found

    # Transitions added to those of the dataset ------------------------------------------------------------------

    @property
    def n_added(self) -> int:
        """Number of added transitions."""
        return self.extra_capacity if self.full else self.pos

    def _grow(self) -> None:
        """Make room for the added transitions."""
        n, n_breaks, size = self.n_offline, self.n_breaks, self.n_offline + self.extra_capacity
        old, n_kept = self.table, self.buffer_size - self.n_offline
        self.table = old.new_zeros(size + n_breaks + self.extra_capacity, old.shape[1])
        self.table[: self.buffer_size] = old[: self.buffer_size]
        self.table[size : size + n_breaks + n_kept] = old[self._last_rows :][: n_breaks + n_kept]
        self.breaks = th.cat([self.breaks[:n_breaks], th.arange(n, size, device=old.device)])
        following = self._following.new_full((self.extra_capacity,), -1)
        following[: len(self._following)] = self._following
        self._following = following
        self.buffer_size = self._last_rows = size

    def _added_rows(self) -> tuple[th.Tensor, th.Tensor]:
        """The region of added transitions, and the rows with the observations after them; both are views."""
        first = self._last_rows + self.n_breaks
        n = self.buffer_size - self.n_offline
        return self.table[self.n_offline : self.buffer_size], self.table[first : first + n]

    def _added(self) -> dict[str, th.Tensor]:
        """The added transitions by the names of SB3's buffer, shape ``(n_added, width)`` each; views."""
        size = self.observation_size
        here, after = (rows[: self.n_added] for rows in self._added_rows())
        return {
            "observations": here[:, :size],
            "next_observations": after[:, :size],
            "actions": here[:, size:-FURTHER_COLUMNS],
            "rewards": here[:, -2:-1],
            "dones": here[:, -1:],
        }

    def reserve(self, n_transitions: int) -> None:
        """
        Allow for at least so many added transitions. Those that are there already stay.

        :param n_transitions: number of transitions
        :raises ValueError: the data are on disk, where nothing can be added
        """
        if n_transitions <= self.extra_capacity:
            return
        if self.memory_map:
            raise ValueError(_CANNOT_ADD)
        if self.full:  # in a larger region the oldest one has to stand first
            for rows in self._added_rows():
                rows.copy_(rows.roll(-self.pos, dims=0))
            following = self._following.roll(-self.pos)
            self._following = th.where(following < 0, following, (following - self.pos) % self.extra_capacity)
            self._newest = np.where(self._newest < 0, self._newest, (self._newest - self.pos) % self.extra_capacity)
            self.pos, self.full = self.extra_capacity, False
        is_allocated = self.buffer_size > self.n_offline
        self.extra_capacity = n_transitions
        if is_allocated:
            self._grow()

    def added_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The added transitions as plain arrays, with what :meth:`restore_added` needs to put them back."""
        return {
            **{name: np.ascontiguousarray(values.cpu().numpy()) for name, values in self._added().items()},
            "following": self._following[: self.n_added].cpu().numpy(),
            "newest": self._newest,
            "oldest": np.array(self.pos if self.full else 0),
            "transform": np.array([self.reward_scale, self.reward_shift, self.action_clip]),
            "fingerprint": np.array(self.fingerprint),
        }

    def restore_added(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """
        Replace the added transitions by those of :meth:`added_arrays`, each in its old place.

        :param arrays: what it returned
        :raises DatasetError: if they are incomplete or were added to another dataset
        :raises ValueError: the data are on disk, where nothing can be added
        """
        try:
            rows = {name: arrays[name] for name in _TRANSITION_TENSORS}
            oldest, transform, fingerprint = int(arrays["oldest"]), arrays["transform"].tolist(), str(arrays["fingerprint"])
        except (KeyError, ValueError, TypeError) as err:
            raise DatasetError(f"The added transitions are incomplete ({err}): save them again.") from None
        if self.memory_map:
            raise ValueError(_CANNOT_ADD)
        here = [self.reward_scale, self.reward_shift, self.action_clip]
        if fingerprint != self.fingerprint or transform != here:
            raise DatasetError(
                f"The transitions were added to a dataset with the hash {fingerprint} and the reward scale, reward shift and "
                f"action clip {transform}; here it is {self.fingerprint} and {here}. Use the data and settings of that run."
            )
        n_added = len(rows["rewards"])
        widths = {name: values.shape[1] for name, values in self._added().items()}
        for name, values in rows.items():
            shape = (n_added, widths[name])
            if values.shape != shape or values.dtype != np.float32 or not np.isfinite(values).all():
                raise DatasetError(
                    f"The added {name} are not {shape[0]} x {shape[1]} finite float32 numbers: save them again."
                )
        for name, what, are_right in (
            ("actions", "in [-1, 1]", np.abs(rows["actions"]) <= 1),
            ("dones", "each 0 or 1", np.isin(rows["dones"], (0, 1))),
        ):
            if not are_right.all():
                raise DatasetError(f"The added {name} are not {n_added} x {widths[name]} numbers {what}: save them again.")
        if not 0 <= oldest <= n_added:
            raise DatasetError(f"The oldest of {n_added} added transitions cannot be number {oldest}: save them again.")
        # Files of early versions do not say what follows on what: nothing does then.
        following = arrays.get("following", np.full(n_added, -1))
        newest = arrays.get("newest", np.full(0, -1))
        for name, places in (("following", following), ("newest", newest)):
            are_places = places.dtype == np.int64 and places.ndim == 1 and ((places >= -1) & (places < n_added)).all()
            if not are_places or len(following) != n_added:
                raise DatasetError(f"The {name} of {n_added} added transitions are no places among them: save them again.")
        self.buffer_size, self.extra_capacity = self.n_offline, n_added
        self.pos, self.full = oldest, n_added > 0
        # Arrays from a file cannot be written to, which PyTorch warns of unless they are copied.
        self._following, self._newest = _as_tensor(following, self.device), newest
        if n_added > 0:
            self._grow()
            for name, added in self._added().items():
                added.copy_(_as_tensor(rows[name], self.device))

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: npt.NDArray[Any],
        reward: npt.NDArray[Any],
        done: npt.NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Add one step of one or several environments.

        The first call moves the table to make room: references taken before it go on to show the dataset alone.

        :param obs: observations, array or (nested) dict, shape ``(n_envs, *shape)``
        :param next_obs: observations after the step (the last one of an episode, not that of the reset)
        :param action: actions in [-1, 1], shape ``(n_envs, A)``
        :param reward: rewards as the environment gives them, shape ``(n_envs,)``
        :param done: whether the episode ended, shape ``(n_envs,)``
        :param infos: info dicts; ``TimeLimit.truncated`` marks an end that is no termination
        :raises ValueError: there is no room for them, or their keys, shapes or values are not those of the space or not finite
        """
        if self.extra_capacity == 0:
            raise ValueError(
                "The buffer has no room for further transitions: build it with extra_capacity=<number of transitions>"
            )
        truncated = np.array([info.get("TimeLimit.truncated", False) for info in infos], dtype=bool)
        rows = {
            "observations": flatten_observations(canonical_observation(obs), self.observation_space),
            "next_observations": flatten_observations(canonical_observation(next_obs), self.observation_space),
            "actions": np.clip(action, -self.action_clip, self.action_clip),
            "rewards": self.reward_scale * (np.asarray(reward, dtype=np.float64) + self.reward_shift),
            "dones": np.asarray(done, dtype=bool) & ~truncated,
        }
        for name, values in rows.items():
            if not np.isfinite(values).all():
                raise ValueError(f"A transition was added whose {name} are not finite ({values}): check the environment")
        n_new = len(rows["observations"])
        if n_new > self.extra_capacity:
            raise ValueError(f"{n_new} environments add more than extra_capacity={self.extra_capacity}: raise it")
        if self.buffer_size == self.n_offline:
            self._grow()
        places = (self.pos + np.arange(n_new)) % self.extra_capacity
        self._link(places, rows["observations"].astype(np.float32), np.asarray(done, dtype=bool))
        columns = {name: values.astype(np.float32).reshape(n_new, -1) for name, values in rows.items()}
        following, index = columns.pop("next_observations"), th.from_numpy(places).to(self.device)
        here, after = self._added_rows()
        here[index] = th.from_numpy(np.concatenate(list(columns.values()), axis=1)).to(self.device)
        after[index, : self.observation_size] = th.from_numpy(following).to(self.device)
        self.full = self.full or self.pos + n_new >= self.extra_capacity
        self.pos = (self.pos + n_new) % self.extra_capacity

    def _link(self, places: npt.NDArray[np.int64], observations: npt.NDArray[np.float32], done: npt.NDArray[np.bool_]) -> None:
        """
        Note on what steps new ones follow: on the last ones before, where the episode goes on where they have led.

        :param places: where the new steps go, one per environment
        :param observations: flat observations of the new steps
        :param done: whether the episodes end with them
        """
        before = th.from_numpy(self._newest.clip(min=0)).to(self.device)
        new = th.from_numpy(places).to(self.device)
        if len(before) == len(new):
            reached = self._added_rows()[1][before, : self.observation_size]
            goes_on = (reached == th.from_numpy(observations).to(self.device)).all(dim=1)
            goes_on &= th.from_numpy(self._newest >= 0).to(self.device)
            # Where the last step before is the last of its episode, or its place another's by now, it stays as it is.
            self._following[before] = th.where(goes_on, new, self._following[before])
        self._following[new] = -1
        self._newest = np.where(done, -1, places)

    def reset(self) -> None:
        """Forget the added transitions; the dataset stays."""
        self.pos = 0
        self.full = False
        self._following = th.full_like(self._following, -1)
        self._newest = np.zeros(0, dtype=np.int64)

    # Pickling ---------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Plain arrays and bytes, so that a pickled buffer can be read on a machine without the device."""
        if self.memory_map:
            raise ValueError("A memory-mapped buffer is not pickled, which would write the whole dataset: load it again")
        state = self.__dict__.copy()
        state["_episodes"] = None
        del state["_ahead"]
        for name in (*_TENSORS, "_following"):
            state[name] = state[name].cpu().numpy()
        # Bytes mean the same to every version of torch
        state["generator"] = self.generator.get_state().numpy().tobytes()
        state["device"] = str(self.device)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        device = th.device(state["device"])
        generator_state = th.frombuffer(bytearray(state.pop("generator")), dtype=th.uint8)
        is_available = _is_available(device)
        state["device"] = device if is_available else th.device("cpu")
        if "table" not in state:
            _pack_state(state)
        for name in _TENSORS:
            state[name] = _as_tensor(state[name], state["device"])
        # Pickled buffers of early versions lack what follows.
        n_places = state["buffer_size"] - state["n_offline"]
        following = state.pop("_following", np.full(n_places, -1))
        state["_following"] = _as_tensor(following, state["device"])
        self.__dict__.update({"episode_lengths": None, "_episodes": None, "_ahead": None} | state)
        self._newest = state.get("_newest", np.zeros(0, dtype=np.int64))
        self.generator = th.Generator(device=self.device)
        if is_available:
            self.generator.set_state(generator_state)
        else:
            # The state of another kind of device means nothing here
            self.generator.seed()


def _pack_state(state: dict[str, Any]) -> None:
    """
    Put the arrays of a pickled buffer of an early version into a table.

    :param state: its state
    """
    observations, following, actions, rewards, dones = (state.pop(name) for name in _TRANSITION_TENSORS)
    n, size = state["n_offline"], len(observations)
    data = TransitionTable.pack(observations[:n], following[:n], actions[:n], rewards[:n, 0], dones[:n, 0] != 0.0)
    here = np.concatenate([observations[n:], actions[n:], rewards[n:], dones[n:]], axis=1)
    after = np.zeros((size - n, data.rows.shape[1]), np.float32)
    after[:, : data.observation_size] = following[n:]
    state["table"] = np.concatenate([data.rows[:n], here, data.rows[n:], after])
    state["breaks"] = np.concatenate([data.breaks, np.arange(n, size)])
    state |= {"n_breaks": len(data.breaks), "_last_rows": size, "buffer_size": size, "memory_map": False}


def make_buffer(
    dataset: Any,
    buffer_class: type[OfflineReplayBuffer] = OfflineReplayBuffer,
    download: bool = False,
    env: GymEnv | None = None,
    memory_map: bool = False,
    clip_actions: bool = False,
    **settings: Any,
) -> OfflineReplayBuffer:
    """
    A dataset as a buffer of its own, also of one that is a buffer already, which is left as it is.

    :param dataset: see :class:`~sb3_dmpo.common.offline_algorithm.OfflineAlgorithm`
    :param buffer_class: what it is read into
    :param download: fetch it through Minari if it is not there
    :param env: where the spaces come from if the dataset does not tell them
    :param memory_map: leave it on disk
    :param clip_actions: clip actions outside the bounds instead of refusing them
    :param settings: see :meth:`OfflineReplayBuffer.from_transitions`
    :raises DatasetError: it is not there or not usable
    """
    if isinstance(dataset, OfflineReplayBuffer):
        made = dataset.for_model(memory_map=memory_map, **settings)
        return made if isinstance(made, buffer_class) else buffer_class.of(made)
    load = partial(load_transitions, dataset, download=download, env=env, clip_actions=clip_actions)
    if ranks.is_joined() and not memory_map:
        # Of the whole dataset this process needs the statistics, and then a part: it stays on disk if it can.
        try:
            transitions = load(memory_map=True)
        except DatasetError:
            transitions = load()
    else:
        transitions = load(memory_map=memory_map)
    return buffer_class.from_transitions(transitions, is_own=transitions is not dataset, **settings)


def check_buffer(
    buffer: OfflineReplayBuffer | Transitions,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    fingerprint: str | None,
    needs_rewards: bool = True,
) -> None:
    """
    Check that a dataset is one for a model: to learn from, or to be evaluated on.

    :param buffer: the dataset
    :param observation_space: the model's
    :param action_space: the model's
    :param fingerprint: hash of the data that a run which goes on has begun with; None: nothing is expected
    :param needs_rewards: whether it learns from rewards
    :raises DatasetError: spaces or data are others
    """
    assert isinstance(action_space, spaces.Box) and isinstance(buffer.action_space, spaces.Box)
    pairs = {
        "observation": (observation_space, buffer.observation_space),
        "action": (action_space, buffer.action_space),
    }
    matches = {
        "observation": observation_spaces_match(buffer.observation_space, observation_space),
        "action": action_spaces_match(action_space, buffer.action_space),
    }
    for what, (expected, found) in pairs.items():
        if not matches[what]:
            why = why_no_match(found, expected) if what == "observation" else ""
            raise DatasetError(f"The {what} space of the dataset is {found}, but the model was made for {expected}{why}.")
    if needs_rewards and not buffer.has_rewards:
        raise DatasetError.at(
            dataset_label(buffer.dataset_id),
            "it holds no rewards: OGBench's files are made for reaching goals, and rewarded for one of them afterwards",
            "Let OGBench do that, _, data, _ = ogbench.make_env_and_datasets('...-singletask-v0'), and pass dataset=data; or "
            "imitate the data with BC, which needs none",
        )
    if fingerprint not in (None, buffer.fingerprint):
        raise DatasetError(
            f"The dataset {buffer.dataset_id} has changed since this run began (its content had the hash {fingerprint}, now "
            f"it is {buffer.fingerprint}). Restore it to continue, or begin a new run: pass the data to `load` as "
            "`dataset=`, and learn with `reset_num_timesteps=True`."
        )


def write_added(buffer: OfflineReplayBuffer, path: str | pathlib.Path | io.BufferedIOBase) -> None:
    """
    Save the added transitions, without the dataset, as NumPy arrays (there is no pickle in the file).

    :param buffer: the buffer
    :param path: path of the file (``.npz`` is appended if there is no suffix) or a file object
    """
    arrays: dict[str, Any] = buffer.added_arrays()
    if not isinstance(path, str | os.PathLike):
        np.savez(path, **arrays)
        return
    with atomic_write(path_to_write(path, ".npz")) as file:
        np.savez(file, **arrays)


def _unless_npz(path: pathlib.Path) -> pathlib.Path:
    """SB3 saves ``buffer`` as ``buffer.pkl``, this package as ``buffer.npz``: who asks for the former means the latter."""
    if path.suffix != ".pkl" or path.exists():
        return path
    npz = path.with_suffix(".npz")
    return npz if npz.exists() else path


def read_added(path: str | pathlib.Path | io.BufferedIOBase) -> dict[str, npt.NDArray[Any]]:
    """
    What :func:`write_added` has written, for :meth:`OfflineReplayBuffer.restore_added`.

    :param path: path of the file (``.npz`` is appended if there is no such file, and takes the place of SB3's ``.pkl``) or a
        file object
    :raises FileNotFoundError: there is no such file
    :raises DamagedFileError: the file holds no such transitions, or is not complete
    :raises UnsafeFileError: the file holds something else
    """
    source: Any = path
    if isinstance(path, str | os.PathLike):
        source = path_to_read(_unless_npz(pathlib.Path(path)), ".npz")
    content = source.read_bytes() if isinstance(source, pathlib.Path) else read_stream(source)
    with named_faults(source):
        if content[:1] == pickle.PROTO:
            raise DamagedFileError(
                "This holds no transitions that `save_replay_buffer` has written: it is a pickle, as that of SB3 writes it. "
                "Pass a pickled ReplayBuffer as `dataset=` to learn from it."
            )
        try:
            arrays = read_npz(content)
        except DamagedFileError as error:
            raise DamagedFileError(f"This holds no transitions that `save_replay_buffer` has written: {error}") from None
        others = sorted(arrays.keys() - {*_TRANSITION_TENSORS, *_FURTHER_ARRAYS})
        if others:
            raise UnsafeFileError(f"The file holds {', '.join(others)[:300]}, which `save_replay_buffer` does not write.")
        return arrays
