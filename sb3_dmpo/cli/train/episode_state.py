"""Where the environments of the online stage are: kept with a checkpoint, so that a resumed run goes on within the episode."""

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_dmpo.files.save_util import atomic_write


class EpisodeRecord(gym.Wrapper[Any, Any, Any, Any]):
    """
    Remembers how the episode began (the state of the environment's own generator) and its actions. Done again in a new
    environment they lead to the same place, without anything that would have to be unpickled.

    :param env: the environment
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._begin: dict[str, Any] = {}
        self._actions: list[Any] = []
        self._observation: Any = None
        self._is_restored = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Begin an episode, or go on with the restored one.

        :param seed: as of the environment
        :param options: as of the environment
        """
        if self._is_restored:
            self._is_restored = False
            return self._observation, {}
        self._begin = {"seed": seed, "generator": self.unwrapped.np_random.bit_generator.state}
        self._actions = []
        self._observation, info = self.env.reset(seed=seed, options=options)
        return self._observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """
        Take an action.

        :param action: the action
        """
        self._actions.append(np.asarray(action).tolist())
        self._observation, *others = self.env.step(action)
        return self._observation, *others

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs, as plain data."""
        return {**self._begin, "actions": self._actions, "observation": _plain(self._observation)}

    def restore(self, state: dict[str, Any]) -> bool:
        """
        Go to where an episode was; whether that has led to the same observation. If not, the next reset begins a new one.

        :param state: what :meth:`state` gave
        """
        try:
            self.unwrapped.np_random.bit_generator.state = state["generator"]
            self.reset(seed=state["seed"])
            for action in state["actions"]:
                self.step(np.asarray(action, self.action_space.dtype))
            self._is_restored = bool(_plain(self._observation) == state["observation"])
        except (KeyError, TypeError, ValueError):  # another environment, or generator
            self._is_restored = False
        return self._is_restored


def _plain(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: _plain(value) for key, value in observation.items()}
    return np.asarray(observation).tolist()


def record_episodes(env: VecEnv) -> None:
    """
    Remember from here on how the episodes go. Environments in other processes stay as they are.

    :param env: the environments
    """
    inner = env.unwrapped
    if isinstance(inner, DummyVecEnv):
        inner.envs = [EpisodeRecord(one) for one in inner.envs]


def _records(env: VecEnv) -> list[EpisodeRecord]:
    inner = env.unwrapped
    return [one for one in inner.envs if isinstance(one, EpisodeRecord)] if isinstance(inner, DummyVecEnv) else []


def save_episodes(env: VecEnv, path: Path) -> None:
    """
    Write down where the environments are.

    :param env: environments whose episodes are recorded
    :param path: JSON file
    """
    with atomic_write(path) as file:
        file.write(json.dumps([record.state() for record in _records(env)]).encode("utf-8"))


def restore_episodes(env: VecEnv, path: Path) -> None:
    """
    Bring environments to where others were; those that cannot be brought there begin a new episode, which is said.

    :param env: environments whose episodes are recorded
    :param path: what :func:`save_episodes` wrote
    """
    try:
        states = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        states = []
    records = _records(env)
    is_same = len(states) == len(records) == env.num_envs
    if not is_same or not all([record.restore(state) for record, state in zip(records, states, strict=True)]):
        warnings.warn(
            "The environment cannot be brought back to where the run was interrupted: it begins a new episode, and the run "
            "ends with other weights than without the interruption.",
            stacklevel=2,
        )
