"""Wrappers between what environments give and what Stable-Baselines3 expects."""

from typing import Any, SupportsFloat

import gymnasium as gym

from sb3_dmpo.data.preprocessing import canonical_observation, canonical_observation_space


class FlattenNestedDict(gym.ObservationWrapper[Any, Any, Any]):
    """
    Nested Dict observations with a single level, because SB3's vector environments refuse nested ones: Franka Kitchen's
    ``achieved_goal`` -> ``kettle`` becomes ``"achieved_goal/kettle"``. Other observations pass unchanged, but for the
    sorted keys of a Dict.

    :param env: environment with Box or (nested) Dict observations
    :raises ValueError: an entry of the observation space is not a numeric Box; the message names its key
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = canonical_observation_space(env.observation_space)

    def observation(self, observation: Any) -> Any:
        """
        The observation as :attr:`observation_space` describes it.

        :param observation: what the environment gives
        """
        return canonical_observation(observation)


def is_success(info: dict[str, Any]) -> bool | None:
    """
    Whether the environment calls the current step a success; None if it does not say. Understands ``is_success`` (SB3
    and Gymnasium-Robotics' Fetch), ``success`` (Adroit, PointMaze, AntMaze, Meta-World) and Franka Kitchen's list of
    completed tasks, which is a success when none is left.

    :param info: info of a step
    """
    for key in ("is_success", "success"):
        if info.get(key) is not None:
            return bool(info[key])
    completed = info.get("episode_task_completions")
    if completed is None or "tasks_to_complete" not in info:
        return None
    return not set(info["tasks_to_complete"]) - set(completed)


class SuccessInfo(gym.Wrapper[Any, Any, Any, Any]):
    """
    Puts SB3's ``info["is_success"]`` into every step of environments that report success under another name, so that
    SB3's logger, ``EvalCallback`` and :func:`~sb3_dmpo.common.evaluation.evaluate_policy` see it.

    An episode is a success once one of its steps was. That is the usual reading for Adroit and for the mazes, whose
    episodes go on after the goal was reached. The original Adroit code asks for more than 20 (pen) or 25 (the others)
    successful steps; success rates of papers that follow it are lower than these. Where the environment itself
    reports ``is_success``, its word about the last step stands.

    :param env: environment
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._has_succeeded = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Start an episode, which is no success yet.

        :param seed: passed on
        :param options: passed on
        """
        self._has_succeeded = False
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        Take a step.

        :param action: passed on
        :return: observation, reward, terminated, truncated, and info with ``is_success``: success so far
        """
        observation, reward, terminated, truncated, info = super().step(action)
        success = is_success(info)
        if success is not None and "is_success" not in info:
            self._has_succeeded = self._has_succeeded or success
            info = {**info, "is_success": self._has_succeeded}
        return observation, reward, terminated, truncated, info
