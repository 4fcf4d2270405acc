"""Environments for watching a model: they count episodes and end rl_zoo3's loop."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dmpo.common.evaluation import EvaluationResult, reference_scores


class EpisodeCounter(DummyVecEnv):
    """
    Environments that remember how their episodes went, and end rl_zoo3's loop (as Ctrl-C does) after enough of them.

    :param env_fns: makers of the environments
    :param limit: number of episodes; None: no limit
    """

    def __init__(self, env_fns: list[Callable[[], gym.Env[Any, Any]]], limit: int | None) -> None:
        super().__init__(env_fns)
        self.limit = limit
        self.episodes: list[dict[str, Any]] = []

    def step_async(self, actions: np.ndarray) -> None:
        """
        Take the actions.

        :param actions: one for every environment
        :raises KeyboardInterrupt: all episodes have been run
        """
        if self.limit is not None and len(self.episodes) >= self.limit:
            raise KeyboardInterrupt
        super().step_async(actions)

    def step_wait(self) -> Any:
        """Do the step."""
        observations, rewards, dones, infos = super().step_wait()
        for done, info in zip(dones, infos, strict=True):
            if done:
                self.episodes.append({**info["episode"], "is_success": info.get("is_success")})
        return observations, rewards, dones, infos

    def result(self, dataset: str, env_id: str | None) -> EvaluationResult | None:
        """
        What the episodes so far amount to, None if none has ended.

        :param dataset: Minari id, for reference scores
        :param env_id: the environment, if it is not the dataset's
        """
        if not self.episodes:
            return None
        successes = [episode["is_success"] for episode in self.episodes]
        return EvaluationResult(
            returns=np.array([episode["r"] for episode in self.episodes], np.float64),
            lengths=np.array([episode["l"] for episode in self.episodes], np.int64),
            successes=None if None in successes else np.array(successes, np.bool_),
            reference=reference_scores(dataset, env_id),
        )
