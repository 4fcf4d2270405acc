"""A tiny environment and tiny datasets of it."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback

from sb3_dmpo.common.type_aliases import OfflineBatch
from sb3_dmpo.data import Transitions

#: Not [-1, 1], and different for every entry
ACTION_LOW, ACTION_HIGH = (-2.0, 0.0), (1.0, 5.0)
EPISODE_LENGTH = 8


def box_space() -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (3,), np.float32)


def nested_space() -> spaces.Dict:
    goal = spaces.Dict({"arm": spaces.Box(-np.inf, np.inf, (2,), np.float32)})
    return spaces.Dict({"goal": goal, "observation": box_space()})


def bounded_action_space() -> spaces.Box:
    return spaces.Box(np.array(ACTION_LOW, np.float32), np.array(ACTION_HIGH, np.float32))


class DriftEnv(gym.Env[Any, Any]):
    """
    The observation drifts by what the action says; episodes are cut after ``EPISODE_LENGTH`` steps.

    :param observation_space: Box or Dict
    :param action_space: bounded Box
    """

    def __init__(self, observation_space: spaces.Space[Any] | None = None, action_space: spaces.Box | None = None) -> None:
        self.observation_space = observation_space or box_space()
        self.action_space = action_space or bounded_action_space()

    def _observation(self, space: spaces.Space[Any] | None = None) -> Any:
        space = space or self.observation_space
        if isinstance(space, spaces.Dict):
            return {key: self._observation(entry) for key, entry in space.spaces.items()}
        return np.full(space.shape, self.position, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.steps = self.np_random.normal(), 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.position += 0.1 * float(action.sum())
        self.steps += 1
        return self._observation(), float(np.exp(-abs(self.position))), False, self.steps == EPISODE_LENGTH, {}


def make_transitions(
    n_episodes: int = 10, observation_space: spaces.Space[Any] | None = None, action_space: spaces.Box | None = None
) -> Transitions:
    """
    Random episodes; every second one ends with a termination, the others with a truncation.

    :param n_episodes: number of episodes of ``EPISODE_LENGTH`` steps
    :param observation_space: Box or Dict of vectors
    :param action_space: bounded Box
    """
    observation_space, action_space = observation_space or box_space(), action_space or bounded_action_space()
    size = int(spaces.flatdim(observation_space))
    rng = np.random.default_rng(0)
    walks = rng.normal(size=(n_episodes, EPISODE_LENGTH + 1, size)).cumsum(axis=1).astype(np.float32)
    is_last = np.arange(n_episodes * EPISODE_LENGTH) % EPISODE_LENGTH == EPISODE_LENGTH - 1
    is_even = np.arange(n_episodes).repeat(EPISODE_LENGTH) % 2 == 0
    return Transitions(
        observations=walks[:, :-1].reshape(-1, size),
        next_observations=walks[:, 1:].reshape(-1, size),
        actions=rng.uniform(-1.0, 1.0, (len(is_last), action_space.shape[0])).astype(np.float32),
        rewards=rng.normal(size=len(is_last)).astype(np.float32),
        terminations=is_last & is_even,
        truncations=is_last & ~is_even,
        episode_lengths=np.full(n_episodes, EPISODE_LENGTH, np.int64),
        observation_space=observation_space,
        action_space=action_space,
        dataset_id=None,
        fingerprint=f"toy-{n_episodes}",
    )


def make_replay_buffer(observation_space: spaces.Space[Any] | None = None) -> ReplayBuffer:
    """
    SB3's own buffer, filled by random actions in the environment.

    :param observation_space: Box or Dict
    """
    env = DriftEnv(observation_space)
    kind = DictReplayBuffer if isinstance(env.observation_space, spaces.Dict) else ReplayBuffer
    buffer = kind(48, env.observation_space, env.action_space, handle_timeout_termination=True)
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    for _ in range(48):
        scaled = rng.uniform(-1.0, 1.0, 2)
        low, high = np.array(ACTION_LOW), np.array(ACTION_HIGH)
        following, reward, _, truncated, _ = env.step((low + 0.5 * (scaled + 1.0) * (high - low)).astype(np.float32))
        infos = [{"TimeLimit.truncated": truncated}]
        buffer.add(observation, following, scaled, np.array([reward]), np.array([truncated]), infos)
        observation = env.reset()[0] if truncated else following
    return buffer


class BatchRecorder(BaseCallback):
    """Keeps the minibatch of every update."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[OfflineBatch] = []

    def _on_step(self) -> bool:
        self.batches.append(self.model._last_batch)
        return True
