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
from sb3_dmpo.data import DatasetError, Transitions, load_transitions
from sb3_dmpo.data.preprocessing import (
    action_spaces_match,
    canonical_observation,
    flatten_observations,
    observation_spaces_match,
)
from sb3_dmpo.data.statistics import observation_statistics, reward_transform
from sb3_dmpo.data.transitions import check_memory, dataset_label, transition_bytes
from sb3_dmpo.files.npz import read_npz
from sb3_dmpo.files.plain_text import DamagedFileError, UnsafeFileError, named_faults
from sb3_dmpo.files.save_util import atomic_write, path_to_read, path_to_write, read_stream

_CANNOT_ADD = "Nothing can be added to a memory-mapped dataset: load it without memory_map"
_TRANSITION_TENSORS = ("observations", "next_observations", "actions", "rewards", "dones")
#: What a file of added transitions holds besides them.
_FURTHER_ARRAYS = ("following", "newest", "oldest", "transform", "fingerprint")
_TENSORS = (*_TRANSITION_TENSORS, "observation_mean", "observation_std")


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
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    rewards: th.Tensor
    dones: th.Tensor
    discounts: th.Tensor
    next_actions: th.Tensor
    has_next_action: th.Tensor


class _Episodes(NamedTuple):
    """
    What the lengths of the episodes say of the transitions of a dataset. A step is dropped where next actions are needed if it
    has none although the task goes on.

    :param ends: whether a step is the last one of its episode, shape ``(n_offline,)``
    :param early_ends: the same once steps are dropped, shape ``(n_offline,)``
    :param kept_before: how many steps are kept before each of those that are dropped, shape ``(n_dropped,)``
    """

    ends: th.Tensor
    early_ends: th.Tensor
    kept_before: th.Tensor


class OfflineReplayBuffer(ReplayBuffer):
    """
    A dataset as contiguous float32 tensors on the training device, sampled there without the host.

    Unlike in SB3's buffer the observations are flat vectors (Dict observations joined), ``dones`` holds terminations
    only, ``rewards`` are already transformed, and minibatches come from a generator of the buffer's own: neither
    NumPy's nor torch's global random state is read or changed.

    With ``extra_capacity`` transitions can be added for fine-tuning in an environment. They go into a region behind the
    dataset, where the oldest ones are overwritten when it is full; the dataset itself is never overwritten.

    Of a memory-mapped dataset, observations and actions stay on disk, nothing can be added, and minibatches are drawn on the
    CPU (the same ones as without) and moved to the device.

    Built by ``from_transitions``; one that is built otherwise has no ``episode_lengths`` and knows single steps only.

    :param observations: shape ``(N, S)``
    :param next_observations: shape ``(N, S)``
    :param actions: actions in [-1, 1], shape ``(N, A)``
    :param rewards: transformed rewards, shape ``(N, 1)``
    :param dones: 1 where the task terminated, else 0, shape ``(N, 1)``
    :param observation_mean: mean of the dataset's observations, shape ``(S,)``
    :param observation_std: their population standard deviation, shape ``(S,)``
    :param observation_space: canonical observation space
    :param action_space: action space in the units of the environment
    :param device: device of all tensors
    :param seed: seed of the minibatches, None: from the operating system
    :param reward_scale: factor of the reward transform, for added transitions
    :param reward_shift: shift of the reward transform, for added transitions
    :param action_clip: actions are clipped to [-action_clip, action_clip]
    :param extra_capacity: number of transitions that can be added
    :param dataset_id: name of the dataset
    :param fingerprint: hash of the dataset's content
    """

    observations: th.Tensor  # type: ignore[assignment]
    next_observations: th.Tensor  # type: ignore[assignment]
    actions: th.Tensor  # type: ignore[assignment]
    rewards: th.Tensor  # type: ignore[assignment]
    dones: th.Tensor  # type: ignore[assignment]
    #: Of a part of a dataset: the number of its first transition there, and how many there are; None: it is the whole.
    first_row: int = 0
    n_whole: int | None = None
    #: What is never divided between two parts, for messages.
    _units: str = "transitions"

    def __init__(
        self,
        observations: th.Tensor,
        next_observations: th.Tensor,
        actions: th.Tensor,
        rewards: th.Tensor,
        dones: th.Tensor,
        observation_mean: th.Tensor,
        observation_std: th.Tensor,
        observation_space: spaces.Box | spaces.Dict,
        action_space: spaces.Box,
        device: th.device | str = "cpu",
        seed: int | None = None,
        reward_scale: float = 1.0,
        reward_shift: float = 0.0,
        action_clip: float = 1.0,
        extra_capacity: int = 0,
        dataset_id: str | None = None,
        fingerprint: str = "",
    ) -> None:
        # ReplayBuffer's own constructor would allocate the NumPy arrays that the tensors replace
        BaseBuffer.__init__(self, len(observations), observation_space, action_space, device)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = True
        self.observations = observations
        self.next_observations = next_observations
        self.actions = actions
        self.rewards = rewards
        self.dones = dones
        self.observation_mean = observation_mean
        self.observation_std = observation_std
        self.reward_scale = reward_scale
        self.reward_shift = reward_shift
        self.action_clip = action_clip
        #: The transform as it was asked for, by number or by name
        self.reward_setting: tuple[float | str, float] = (reward_scale, reward_shift)
        #: Whether rewards were recorded
        self.has_rewards = True
        self.dataset_id = dataset_id
        self.fingerprint = fingerprint
        self.n_offline = len(observations)
        self.extra_capacity = extra_capacity
        self.min_reward = float(rewards.min())
        self.max_reward = float(rewards.max())
        self.memory_map = False
        # Where the indices are drawn: with the data
        self.generator = _make_generator(observations.device, seed)
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
    ) -> "OfflineReplayBuffer":
        """
        A buffer that holds a dataset.

        On the CPU the tensors share the memory of the arrays, so that there is one copy of the data; only what has to
        be converted (dones, transformed rewards, clipped actions) is new. The transitions themselves are not kept.

        :param transitions: the dataset
        :param device: device of the tensors
        :param seed: seed of the minibatches, None: from the operating system
        :param reward_scale: a factor, ``"return_range"`` (1000 / (max - min episode return)), ``"max"``
            (1 / max reward) or ``"standardize"`` ((r - mean) / std)
        :param reward_shift: added to the rewards before they are scaled
        :param action_clip: actions are clipped to [-action_clip, action_clip]
        :param extra_capacity: number of transitions that can be added later; allocated when the first one comes
        :raises DatasetError: if the data do not fit on the device, or their rewards do not allow the scaling
        """
        if not 0 < action_clip <= 1:
            raise ValueError(f"action_clip has to be in (0, 1], got {action_clip}")
        if extra_capacity < 0:
            raise ValueError(f"extra_capacity must not be negative, got {extra_capacity}")
        device = get_device(device)
        memory_map = isinstance(transitions.observations, np.memmap)
        if memory_map and extra_capacity > 0:
            raise ValueError(_CANNOT_ADD)
        storage = th.device("cpu") if memory_map else device
        if storage.type == "cuda":  # the host's memory is checked before it is filled
            needed = transition_bytes(len(transitions), transitions.observations.shape[1], transitions.actions.shape[1])
            check_memory(dataset_label(transitions.dataset_id), needed, th.cuda.mem_get_info(device)[0], f"on {device}")
        scale, shift = reward_transform(transitions, reward_scale, reward_shift)
        rewards = transitions.rewards
        if (scale, shift) != (1.0, 0.0):
            rewards = (scale * (rewards + np.float64(shift))).astype(np.float32)
        actions = transitions.actions
        # A clipped copy of actions on disk would be in memory: minibatches are clipped instead.
        if action_clip < 1 and not memory_map:
            actions = np.clip(actions, -action_clip, action_clip)
        mean, std = observation_statistics(transitions.observations)
        buffer = cls(
            _as_tensor(transitions.observations, storage),
            _as_tensor(transitions.next_observations, storage),
            _as_tensor(actions, storage),
            _as_tensor(rewards.reshape(-1, 1), storage),
            _as_tensor(transitions.terminations.astype(np.float32).reshape(-1, 1), storage),
            _as_tensor(mean.astype(np.float32), device),
            _as_tensor(std.astype(np.float32), device),
            transitions.observation_space,
            transitions.action_space,
            device=device,
            seed=seed,
            reward_scale=scale,
            reward_shift=shift,
            action_clip=action_clip,
            extra_capacity=extra_capacity,
            dataset_id=transitions.dataset_id,
            fingerprint=transitions.fingerprint,
        )
        buffer.memory_map = memory_map
        buffer.episode_lengths = transitions.episode_lengths
        buffer.reward_setting = (reward_scale, reward_shift)
        buffer.has_rewards = transitions.has_rewards
        return buffer

    def twin(self, seed: int | None = None) -> "OfflineReplayBuffer":
        """
        Another buffer with the same dataset, which is held in memory once, and minibatches of its own.

        :param seed: seed of its minibatches, None: from the operating system
        """
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        for name in _TRANSITION_TENSORS:
            setattr(twin, name, getattr(self, name)[: self.n_offline])
        twin.buffer_size, twin.extra_capacity, twin._following = self.n_offline, 0, self._following[:0]
        twin.generator = _make_generator(self.generator.device, seed)
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
            for name in _TRANSITION_TENSORS:
                setattr(copy, name, getattr(self, name)[: self.size()].clone())
                digest.update(getattr(copy, name)[self.n_offline :].cpu().numpy().tobytes())
            copy.n_offline = copy.buffer_size = self.size()
            copy.fingerprint = digest.hexdigest()
            copy.episode_lengths = None
        copy._episodes = None
        if storage != copy.observations.device:
            for name in _TRANSITION_TENSORS:
                setattr(copy, name, getattr(copy, name).to(storage))
            copy.generator = _make_generator(storage, seed)
        copy.device = device
        copy.observation_mean, copy.observation_std = copy.observation_mean.to(device), copy.observation_std.to(device)
        copy._transform_rewards(reward_scale, reward_shift)
        if action_clip < copy.action_clip:
            copy.action_clip = action_clip
            if not self.memory_map:
                copy.actions = copy.actions.clamp(-action_clip, action_clip)
        copy.min_reward, copy.max_reward = float(copy.rewards.min()), float(copy.rewards.max())
        return copy

    def _transform_rewards(self, reward_scale: float | str, reward_shift: float) -> None:
        """Apply a transform that has been asked for, if the rewards are still those of the dataset."""
        asked, has = (reward_scale, reward_shift), (self.reward_scale, self.reward_shift)
        if asked in ((1.0, 0.0), has, self.reward_setting):
            return
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
        self.reward_setting = self.reward_scale, self.reward_shift = float(reward_scale), float(reward_shift)
        values = self.rewards.double().add_(self.reward_shift).mul_(self.reward_scale)
        self.rewards = values.float()

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
        for name in _TRANSITION_TENSORS:
            rows = getattr(self, name)[first:stop]
            setattr(part, name, rows if memory_map else rows.clone().to(storage))
        if self.memory_map and not memory_map:
            part.actions.clamp_(-self.action_clip, self.action_clip)
        part.memory_map, part.device = memory_map, device
        part.n_offline = part.buffer_size = stop - first
        part.first_row, part.n_whole = self.first_row + first, self.n_whole or self.n_offline
        if self.episode_lengths is not None:
            stops = np.cumsum(self.episode_lengths)
            part.episode_lengths = np.diff([first, *stops[(stops > first) & (stops < stop)], stop])
        part._episodes = None
        part._following = self._following[:0].to(device)
        part.observation_mean, part.observation_std = self.observation_mean.to(device), self.observation_std.to(device)
        part.generator = _make_generator(storage, seed)
        return part

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
        """
        return self._get_samples(self._draw_rows(batch_size), env)

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
            raise ValueError(
                "The buffer holds a dataset as it was recorded: leave VecNormalize out, the policy scales the data"
            )
        samples = ReplayBufferSamples(
            observations=self.observations.index_select(0, batch_inds),
            actions=self.actions.index_select(0, batch_inds),
            next_observations=self.next_observations.index_select(0, batch_inds),
            dones=self.dones.index_select(0, batch_inds),
            rewards=self.rewards.index_select(0, batch_inds),
        )
        if not self.memory_map:
            return samples
        samples.actions.clamp_(-self.action_clip, self.action_clip)
        return ReplayBufferSamples(*(tensor.to(self.device) for tensor in samples[:5]))

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
        if not next_actions:
            return self._steps(self._draw_rows(batch_size), n_steps, gamma, episodes.ends)
        n_dropped = len(episodes.kept_before)
        rows = self._draw_rows(batch_size, n_dropped)
        # What was drawn counts the steps that are kept: so many have been dropped before each of them.
        rows = rows + th.searchsorted(episodes.kept_before, rows, right=True)
        return self._steps(rows, n_steps, gamma, episodes.early_ends)

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
        storage = self.observations.device
        is_done = self.dones[: self.n_offline, 0] > 0
        ends = th.zeros(self.n_offline, dtype=th.bool, device=storage)
        ends[th.from_numpy(np.cumsum(self.known_episode_lengths()) - 1).to(storage)] = True
        ends |= is_done
        dropped = (ends & ~is_done).nonzero().squeeze(1)
        early_ends = ends.clone()
        # What is before a step that is dropped is in its episode, or an end already.
        early_ends[(dropped - 1).clamp(min=0)] = True
        self._episodes = _Episodes(ends, early_ends, dropped - th.arange(len(dropped), device=storage))
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

    def _steps(self, rows: th.Tensor, n_steps: int, gamma: float, ends: th.Tensor) -> StepSamples:
        """
        Transitions of several steps.

        :param rows: their first steps, shape ``(batch,)``
        :param n_steps: largest number of steps
        :param gamma: discount factor
        :param ends: behind which steps of the dataset no transition reaches, shape ``(n_offline,)``
        """
        last, rewards = rows, self.rewards[rows]
        discounts = th.full_like(rewards, gamma)
        for _ in range(n_steps - 1):
            last, goes_on = self._next_rows(last, ends)
            factor = discounts * goes_on.unsqueeze(1)
            rewards = rewards + factor * self.rewards[last]
            discounts = th.where(goes_on.unsqueeze(1), gamma * discounts, discounts)
        following, has_next = self._next_rows(last, self._index_episodes().ends)
        samples = StepSamples(
            observations=self.observations.index_select(0, rows),
            actions=self.actions.index_select(0, rows),
            next_observations=self.next_observations.index_select(0, last),
            rewards=rewards,
            dones=self.dones[last],
            discounts=discounts,
            next_actions=self.actions.index_select(0, following),
            has_next_action=has_next.unsqueeze(1).to(rewards.dtype),
        )
        if not self.memory_map:
            return samples
        for actions in (samples.actions, samples.next_actions):
            actions.clamp_(-self.action_clip, self.action_clip)
        return StepSamples(*(tensor.to(self.device) for tensor in samples))

    # Transitions added to those of the dataset ------------------------------------------------------------------

    @property
    def n_added(self) -> int:
        """Number of added transitions."""
        return self.extra_capacity if self.full else self.pos

    def _grow(self) -> None:
        """Make room for the added transitions; one array after the other, so that only one is held twice."""
        size = self.n_offline + self.extra_capacity
        for name in _TRANSITION_TENSORS:
            old = getattr(self, name)
            new = th.zeros((size, old.shape[1]), dtype=old.dtype, device=old.device)
            new[: len(old)] = old
            setattr(self, name, new)
        following = self._following.new_full((self.extra_capacity,), -1)
        following[: len(self._following)] = self._following
        self._following = following
        self.buffer_size = size

    def reserve(self, n_transitions: int) -> None:
        """
        Allow for at least so many added transitions. Those that are there already stay.

        :param n_transitions: number of transitions
        """
        if n_transitions <= self.extra_capacity:
            return
        if self.memory_map:
            raise ValueError(_CANNOT_ADD)
        if self.full:  # in a larger region the oldest one has to stand first
            for name in _TRANSITION_TENSORS:
                tensor = getattr(self, name)
                tensor[self.n_offline :] = tensor[self.n_offline :].roll(-self.pos, dims=0)
            following = self._following.roll(-self.pos)
            self._following = th.where(following < 0, following, (following - self.pos) % self.extra_capacity)
            self._newest = np.where(self._newest < 0, self._newest, (self._newest - self.pos) % self.extra_capacity)
            self.pos, self.full = self.extra_capacity, False
        is_allocated = len(self.observations) > self.n_offline
        self.extra_capacity = n_transitions
        if is_allocated:
            self._grow()

    def added_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The added transitions as plain arrays, with what :meth:`restore_added` needs to put them back."""
        rows = slice(self.n_offline, self.size())
        return {
            **{name: getattr(self, name)[rows].cpu().numpy() for name in _TRANSITION_TENSORS},
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
        for name, values in rows.items():
            shape = (n_added, getattr(self, name).shape[1])
            if values.shape != shape or values.dtype != np.float32 or not np.isfinite(values).all():
                raise DatasetError(
                    f"The added {name} are not {shape[0]} x {shape[1]} finite float32 numbers: save them again."
                )
        if not 0 <= oldest <= n_added:
            raise DatasetError(f"The oldest of {n_added} added transitions cannot be number {oldest}: save them again.")
        # Files of release 0.1.0 and before do not say what follows on what: nothing does then.
        following = arrays.get("following", np.full(n_added, -1))
        newest = arrays.get("newest", np.full(0, -1))
        for name, places in (("following", following), ("newest", newest)):
            are_places = places.dtype == np.int64 and places.ndim == 1 and ((places >= -1) & (places < n_added)).all()
            if not are_places or len(following) != n_added:
                raise DatasetError(f"The {name} of {n_added} added transitions are no places among them: save them again.")
        for name in _TRANSITION_TENSORS:
            setattr(self, name, getattr(self, name)[: self.n_offline])
        self.extra_capacity = n_added
        self.pos, self.full = oldest, n_added > 0
        self._following, self._newest = th.from_numpy(following).to(self.device), newest
        if n_added > 0:
            self._grow()
            for name, values in rows.items():
                getattr(self, name)[self.n_offline :] = th.from_numpy(values).to(self.device)

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

        The first call moves the tensors to make room: references taken before it go on to show the dataset alone.

        :param obs: observations, array or (nested) dict, shape ``(n_envs, *shape)``
        :param next_obs: observations after the step (the last one of an episode, not that of the reset)
        :param action: actions in [-1, 1], shape ``(n_envs, A)``
        :param reward: rewards as the environment gives them, shape ``(n_envs,)``
        :param done: whether the episode ended, shape ``(n_envs,)``
        :param infos: info dicts; ``TimeLimit.truncated`` marks an end that is no termination
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
        if len(self.observations) == self.n_offline:
            self._grow()
        places = (self.pos + np.arange(n_new)) % self.extra_capacity
        self._link(places, rows["observations"].astype(np.float32), np.asarray(done, dtype=bool))
        index = th.from_numpy(self.n_offline + places).to(self.device)
        for name, values in rows.items():
            tensor = getattr(self, name)
            tensor[index] = th.from_numpy(values.astype(np.float32).reshape(n_new, -1)).to(self.device)
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
            reached = self.next_observations[self.n_offline + before]
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
        for name in _TENSORS:
            state[name] = _as_tensor(state[name], state["device"])
        # Buffers pickled by release 0.1.0 and before lack what follows.
        n_places = len(state["observations"]) - state["n_offline"]
        following = state.pop("_following", np.full(n_places, -1))
        state["_following"] = _as_tensor(following, state["device"])
        self.__dict__.update({"episode_lengths": None, "_episodes": None} | state)
        self._newest = state.get("_newest", np.zeros(0, dtype=np.int64))
        self.generator = th.Generator(device=self.device)
        if is_available:
            self.generator.set_state(generator_state)
        else:
            # The state of another kind of device means nothing here
            self.generator.seed()


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
        return dataset.for_model(memory_map=memory_map, **settings)
    load = partial(load_transitions, dataset, download=download, env=env, clip_actions=clip_actions)
    if not ranks.is_joined() or memory_map:
        return buffer_class.from_transitions(load(memory_map=memory_map), **settings)
    # Of the whole dataset this process needs the statistics, and then a part: it stays on disk if it can.
    try:
        transitions = load(memory_map=True)
    except DatasetError:
        transitions = load()
    return buffer_class.from_transitions(transitions, **settings)


def check_buffer(
    buffer: OfflineReplayBuffer,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    fingerprint: str | None,
    needs_rewards: bool = True,
) -> None:
    """
    Check that a model can learn from a buffer.

    :param buffer: the buffer
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
        "observation": observation_spaces_match(*pairs["observation"]),
        "action": action_spaces_match(action_space, buffer.action_space),
    }
    for what, (expected, found) in pairs.items():
        if not matches[what]:
            raise DatasetError(f"The {what} space of the dataset is {found}, but the model was made for {expected}.")
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
            f"it is {buffer.fingerprint}). Restore it to continue, or begin a new run on it with `reset_num_timesteps=True`."
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
    npz = path.with_suffix(".npz")
    return npz if path.suffix == ".pkl" and not path.exists() and npz.exists() else path


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
