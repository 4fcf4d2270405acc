from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dmpo.envs import FlattenNestedDict, SuccessInfo, is_success


class ScriptedEnv(gym.Env):
    """Gives the infos of a list, one a step, and ends after the last."""

    def __init__(self, infos: list[dict[str, Any]], observation_space: spaces.Space | None = None) -> None:
        self.observation_space = observation_space or spaces.Box(-1.0, 1.0, (1,))
        self.action_space = spaces.Box(-1.0, 1.0, (1,))
        self._infos = infos
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self._step = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        return self.observation_space.sample(), 0.0, False, self._step == len(self._infos), self._infos[self._step - 1]


def successes(infos: list[dict[str, Any]]) -> list[Any]:
    env = SuccessInfo(ScriptedEnv(infos))
    env.reset(seed=0)
    return [env.step(np.zeros(1))[4].get("is_success") for _ in infos]


@pytest.mark.parametrize(
    "infos, expected",
    [
        # Adroit, mazes: one successful step is enough, whatever comes after it
        ([{"success": False}, {"success": np.True_}, {"success": False}], [False, True, True]),
        ([{"success": 0.0}, {"success": 0.0}], [False, False]),
        # SB3's own word is left as it is
        ([{"is_success": True, "success": True}, {"is_success": False, "success": True}], [True, False]),
        # the environment says nothing
        ([{}, {"reward_run": 1.0}], [None, None]),
        # Franka Kitchen, with and without removal of completed tasks
        (
            [
                {"tasks_to_complete": ["kettle", "microwave"], "episode_task_completions": []},
                {"tasks_to_complete": ["kettle"], "episode_task_completions": ["microwave"]},
                {"tasks_to_complete": [], "episode_task_completions": ["microwave", "kettle"]},
            ],
            [False, False, True],
        ),
        ([{"tasks_to_complete": ["kettle"], "episode_task_completions": ["kettle"]}], [True]),
    ],
)
def test_success_info_follows_the_convention_of_the_environment(infos: list[dict[str, Any]], expected: list[Any]) -> None:
    assert successes(infos) == expected


def test_success_ends_with_the_episode_and_infos_are_not_changed_in_place() -> None:
    infos: list[dict[str, Any]] = [{"success": False}, {"success": True}]
    env = SuccessInfo(ScriptedEnv(infos))
    for _ in range(2):
        env.reset()
        assert [env.step(np.zeros(1))[4]["is_success"] for _ in range(2)] == [False, True]
    assert infos == [{"success": False}, {"success": True}]
    assert is_success({"is_success": None, "success": 1}) is True


def test_nested_observations_become_one_level_that_vector_environments_take() -> None:
    nested = spaces.Dict(
        {
            "observation": spaces.Box(-1.0, 1.0, (3,)),
            "achieved_goal": spaces.Dict({"microwave": spaces.Box(-1, 1, (1,)), "kettle": spaces.Box(-1, 1, (7,))}),
        }
    )
    env = FlattenNestedDict(ScriptedEnv([{}, {}], nested))
    assert isinstance(env.observation_space, spaces.Dict)
    assert list(env.observation_space) == ["achieved_goal/kettle", "achieved_goal/microwave", "observation"]
    first, _ = env.reset(seed=1)
    second, *_ = env.step(np.zeros(1))
    assert first in env.observation_space and second in env.observation_space
    batch = DummyVecEnv([lambda: FlattenNestedDict(ScriptedEnv([{}], nested))] * 2).reset()
    assert isinstance(batch, dict) and batch["achieved_goal/kettle"].shape == (2, 7)


def test_flat_observations_pass_unchanged() -> None:
    env = FlattenNestedDict(ScriptedEnv([{}]))
    assert env.observation_space == spaces.Box(-1.0, 1.0, (1,))
    assert env.reset(seed=0)[0].shape == (1,)


def test_entries_that_are_not_numbers_are_named() -> None:
    space = spaces.Dict({"goal": spaces.Dict({"which": spaces.Discrete(3)}), "observation": spaces.Box(-1, 1, (2,))})
    with pytest.raises(ValueError, match="goal/which"):
        FlattenNestedDict(ScriptedEnv([{}], space))
