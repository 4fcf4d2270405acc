"""The dataset as tensors on the training device."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dmpo.common.added_transitions import CANNOT_ADD, TRANSITION_TENSORS, AddedTransitionsMixin
from sb3_dmpo.data import Transitions
from sb3_dmpo.data.statistics import observation_statistics, reward_transform
from sb3_dmpo.data.transitions import check_memory, dataset_label, transition_bytes

_TENSORS = (*TRANSITION_TENSORS, "observation_mean", "observation_std")


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


class OfflineReplayBuffer(AddedTransitionsMixin):
    """
    A dataset as contiguous float32 tensors on the training device, sampled there without the host.

    Unlike in SB3's buffer the observations are flat vectors (Dict observations joined), ``dones`` holds terminations
    only, ``rewards`` are already transformed, and minibatches come from a generator of the buffer's own: neither
    NumPy's nor torch's global random state is read or changed.

    With ``extra_capacity`` transitions can be added for fine-tuning in an environment. They go into a region behind the
    dataset, where the oldest ones are overwritten when it is full; the dataset itself is never overwritten.

    Of a memory-mapped dataset, observations and actions stay on disk, nothing can be added, and minibatches are drawn on the
    CPU (the same ones as without) and moved to the device.

    Built by ``from_transitions``.

    :param observations: shape ``(N, S)``
    :param next_observations: shape ``(N, S)``
    :param actions: Actions in [-1, 1], shape ``(N, A)``
    :param rewards: Transformed rewards, shape ``(N, 1)``
    :param dones: 1 where the task terminated, else 0, shape ``(N, 1)``
    :param observation_mean: Mean of the dataset's observations, shape ``(S,)``
    :param observation_std: Their population standard deviation, shape ``(S,)``
    :param observation_space: Canonical observation space
    :param action_space: Action space in the units of the environment
    :param device: Device of all tensors
    :param seed: Seed of the minibatches, None: from the operating system
    :param reward_scale: Factor of the reward transform, for added transitions
    :param reward_shift: Shift of the reward transform, for added transitions
    :param action_clip: Actions are clipped to [-action_clip, action_clip]
    :param extra_capacity: Number of transitions that can be added
    :param dataset_id: Name of the dataset
    :param fingerprint: Hash of the dataset's content
    """

    observations: th.Tensor  # type: ignore[assignment]
    next_observations: th.Tensor  # type: ignore[assignment]
    actions: th.Tensor  # type: ignore[assignment]
    rewards: th.Tensor  # type: ignore[assignment]
    dones: th.Tensor  # type: ignore[assignment]

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

        :param transitions: The dataset
        :param device: Device of the tensors
        :param seed: Seed of the minibatches, None: from the operating system
        :param reward_scale: A factor, ``"return_range"`` (1000 / (max - min episode return)), ``"max"``
            (1 / max reward) or ``"standardize"`` ((r - mean) / std)
        :param reward_shift: Added to the rewards before they are scaled
        :param action_clip: Actions are clipped to [-action_clip, action_clip]
        :param extra_capacity: Number of transitions that can be added later; allocated when the first one comes
        :raises DatasetError: if the data do not fit on the device, or their rewards do not allow the scaling
        """
        if not 0 < action_clip <= 1:
            raise ValueError(f"action_clip has to be in (0, 1], got {action_clip}")
        if extra_capacity < 0:
            raise ValueError(f"extra_capacity must not be negative, got {extra_capacity}")
        device = get_device(device)
        memory_map = isinstance(transitions.observations, np.memmap)
        if memory_map and extra_capacity > 0:
            raise ValueError(CANNOT_ADD)
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
        return buffer

    def twin(self, seed: int | None = None) -> "OfflineReplayBuffer":
        """
        Another buffer with the same dataset, which is held in memory once, and minibatches of its own.

        :param seed: Seed of its minibatches, None: from the operating system
        """
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        for name in TRANSITION_TENSORS:
            setattr(twin, name, getattr(self, name)[: self.n_offline])
        twin.buffer_size, twin.extra_capacity = self.n_offline, 0
        twin.generator = _make_generator(self.generator.device, seed)
        twin.reset()
        return twin

    def size(self) -> int:
        """Number of transitions, those of the dataset and added ones."""
        return self.n_offline + self.n_added

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        A minibatch drawn uniformly with replacement, on the device; observations ``(batch, S)``, actions
        ``(batch, A)``, rewards and dones ``(batch, 1)``. With an ``online_ratio``, that share of it comes from the added
        transitions (if there are any) and stands last.

        :param batch_size: Number of transitions
        :param env: Not supported; the policy scales the observations
        """
        if self.online_ratio is None or self.n_added == 0:
            return self._get_samples(self._draw(self.size(), batch_size), env)
        n_online = round(self.online_ratio * batch_size)
        offline = self._draw(self.n_offline, batch_size - n_online)
        added = self.n_offline + self._draw(self.n_added, n_online)
        return self._get_samples(th.cat([offline, added]), env)

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

    def __getstate__(self) -> dict[str, Any]:
        """Plain arrays and bytes, so that a pickled buffer can be read on a machine without the device."""
        if self.memory_map:
            raise ValueError("A memory-mapped buffer is not pickled, which would write the whole dataset: load it again")
        state = self.__dict__.copy()
        for name in _TENSORS:
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
        self.__dict__.update(state)
        self.generator = th.Generator(device=self.device)
        if is_available:
            self.generator.set_state(generator_state)
        else:
            # The state of another kind of device means nothing here
            self.generator.seed()
