"""Room for transitions from an environment behind those of a dataset."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_dmpo.data import DatasetError
from sb3_dmpo.data.preprocessing import flatten_observations

CANNOT_ADD = "Nothing can be added to a memory-mapped dataset: load it without memory_map"
TRANSITION_TENSORS = ("observations", "next_observations", "actions", "rewards", "dones")


class AddedTransitionsMixin(ReplayBuffer):
    """
    The part of :class:`OfflineReplayBuffer` that takes transitions beyond the dataset's: the tensors' rows from
    ``n_offline`` on, of which ``pos`` and ``full`` say which are there.
    """

    n_offline: int
    extra_capacity: int
    memory_map: bool
    reward_scale: float
    reward_shift: float
    action_clip: float
    fingerprint: str

    @property
    def n_added(self) -> int:
        """Number of added transitions."""
        return self.extra_capacity if self.full else self.pos

    def _grow(self) -> None:
        """Make room for the added transitions; one array after the other, so that only one is held twice."""
        size = self.n_offline + self.extra_capacity
        for name in TRANSITION_TENSORS:
            old = getattr(self, name)
            new = th.zeros((size, old.shape[1]), dtype=old.dtype, device=old.device)
            new[: len(old)] = old
            setattr(self, name, new)
        self.buffer_size = size

    def reserve(self, n_transitions: int) -> None:
        """
        Allow for at least so many added transitions. Those that are there already stay.

        :param n_transitions: Number of transitions
        """
        if n_transitions <= self.extra_capacity:
            return
        if self.memory_map:
            raise ValueError(CANNOT_ADD)
        if self.full:  # in a larger region the oldest one has to stand first
            for name in TRANSITION_TENSORS:
                tensor = getattr(self, name)
                tensor[self.n_offline :] = tensor[self.n_offline :].roll(-self.pos, dims=0)
            self.pos, self.full = self.extra_capacity, False
        is_allocated = len(self.observations) > self.n_offline
        self.extra_capacity = n_transitions
        if is_allocated:
            self._grow()

    def added_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The added transitions as plain arrays, with what :meth:`restore_added` needs to put them back."""
        rows = slice(self.n_offline, self.size())
        return {
            **{name: getattr(self, name)[rows].cpu().numpy() for name in TRANSITION_TENSORS},
            "oldest": np.array(self.pos if self.full else 0),
            "transform": np.array([self.reward_scale, self.reward_shift, self.action_clip]),
            "fingerprint": np.array(self.fingerprint),
        }

    def restore_added(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """
        Replace the added transitions by those of :meth:`added_arrays`, each in its old place.

        :param arrays: What it returned
        :raises DatasetError: if they are incomplete or were added to another dataset
        """
        try:
            rows = {name: arrays[name] for name in TRANSITION_TENSORS}
            oldest, transform, fingerprint = int(arrays["oldest"]), arrays["transform"].tolist(), str(arrays["fingerprint"])
        except (KeyError, ValueError, TypeError) as err:
            raise DatasetError(f"The added transitions are incomplete ({err}): save them again.") from None
        if self.memory_map:
            raise ValueError(CANNOT_ADD)
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
        for name in TRANSITION_TENSORS:
            setattr(self, name, getattr(self, name)[: self.n_offline])
        self.extra_capacity = n_added
        self.pos, self.full = oldest, n_added > 0
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

        :param obs: Observations, array or (nested) dict, shape ``(n_envs, *shape)``
        :param next_obs: Observations after the step (the last one of an episode, not that of the reset)
        :param action: Actions in [-1, 1], shape ``(n_envs, A)``
        :param reward: Rewards as the environment gives them, shape ``(n_envs,)``
        :param done: Whether the episode ended, shape ``(n_envs,)``
        :param infos: Info dicts; ``TimeLimit.truncated`` marks an end that is no termination
        """
        if self.extra_capacity == 0:
            raise ValueError(
                "The buffer has no room for further transitions: build it with extra_capacity=<number of transitions>"
            )
        truncated = np.array([info.get("TimeLimit.truncated", False) for info in infos], dtype=bool)
        rows = {
            "observations": flatten_observations(obs, self.observation_space),
            "next_observations": flatten_observations(next_obs, self.observation_space),
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
        places = self.n_offline + (self.pos + np.arange(n_new)) % self.extra_capacity
        index = th.from_numpy(places).to(self.device)
        for name, values in rows.items():
            tensor = getattr(self, name)
            tensor[index] = th.from_numpy(values.astype(np.float32).reshape(n_new, -1)).to(self.device)
        self.full = self.full or self.pos + n_new >= self.extra_capacity
        self.pos = (self.pos + n_new) % self.extra_capacity

    def reset(self) -> None:
        """Forget the added transitions; the dataset stays."""
        self.pos = 0
        self.full = False
