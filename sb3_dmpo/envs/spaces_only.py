"""An environment that has spaces and nothing else."""

from typing import Any, NoReturn

import gymnasium as gym
from gymnasium import spaces


class SpacesOnlyEnv(gym.Env[Any, Any]):
    """
    Stands in for the training environment while a model learns from a dataset alone, because SB3's callbacks ask for
    one. Nobody can act in it.

    :param observation_space: observation space of the dataset
    :param action_space: action space of the dataset
    """

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space

    def step(self, action: Any) -> NoReturn:
        """:raises RuntimeError: always"""
        raise RuntimeError("This model learns from a dataset and has no environment: pass `env=` or call `set_env`.")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> NoReturn:
        """:raises RuntimeError: always"""
        raise RuntimeError("This model learns from a dataset and has no environment: pass `env=` or call `set_env`.")
