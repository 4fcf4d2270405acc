"""An interrupted online stage goes on within the episode."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

pytest.importorskip("rl_zoo3")

from sb3_dmpo.cli.train.episode_state import record_episodes, restore_episodes, save_episodes

ACTION_SIZE = 2


def environments(seed: int | None) -> DummyVecEnv:
    env = DummyVecEnv([lambda: gym.make("TwoGoals-v0")] * 2)
    env.seed(seed)
    record_episodes(env)
    return env


def actions(n: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (n, 2, ACTION_SIZE)).astype(np.float32)


@pytest.mark.parametrize("n_before", [0, 1, 30])
def test_the_rest_of_the_run_is_the_same(tmp_path: Path, n_before: int) -> None:
    """The rest of this episode, and the beginnings of the next ones, which the environment draws itself."""
    env, done = environments(7), actions(150)
    env.reset()
    for action in done[:n_before]:
        before = env.step(action)[0]
    save_episodes(env, tmp_path / "state.json")
    other = environments(99)
    restore_episodes(other, tmp_path / "state.json")
    now = other.reset()
    if n_before:
        np.testing.assert_array_equal(now, before)
    for action in done[n_before:]:
        for one, two in zip(env.step(action)[:3], other.step(action)[:3], strict=True):
            np.testing.assert_array_equal(one, two)


class Drifting(gym.Env[Any, Any]):
    """Its randomness does not come from its own generator."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gym.spaces.Box(-1, 1, (1,))
    numbers = iter(range(1000))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.full(1, next(self.numbers), np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.full(1, next(self.numbers), np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("content", [None, "[]", "half", "[{}]"])
def test_what_cannot_be_brought_back_is_said(tmp_path: Path, content: str | None) -> None:
    env = DummyVecEnv([Drifting])
    record_episodes(env)
    env.reset()
    env.step(np.zeros((1, 1), np.float32))
    save_episodes(env, tmp_path / "state.json")
    if content is not None:
        (tmp_path / "state.json").write_text(content)
    with pytest.warns(UserWarning, match="begins a new episode"):
        restore_episodes(env, tmp_path / "state.json")
    assert env.reset().shape == (1, 1)
