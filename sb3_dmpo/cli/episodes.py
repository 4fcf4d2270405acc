"""Episodes that can be seen again: those of a run's last evaluation, of its picture and of ``enjoy`` are the same."""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

#: The first of these episodes has the run's seed plus this.
EVAL_SEED_OFFSET = 100


class SeededEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """
    An environment whose every episode has a seed of its own: ``first``, ``first + step``, ...

    :param env: the environment
    :param first: seed of the next episode
    :param step: difference between the seeds of two episodes
    """

    def __init__(self, env: gym.Env[Any, Any], first: int, step: int = 1) -> None:
        super().__init__(env)
        self._next, self._step = first, step

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Begin the next episode.

        :param seed: ignored
        :param options: as of the environment
        """
        seed, self._next = self._next, self._next + self._step
        return self.env.reset(seed=seed, options=options)


def seed_episodes(env: VecEnv, seed: int) -> None:
    """
    Let episode i of the environments, counted over all of them, begin with the seed of the run plus ``EVAL_SEED_OFFSET + i``.
    Environments in other processes stay as they are.

    :param env: the environments
    :param seed: seed of the run
    """
    inner = env.unwrapped
    if isinstance(inner, DummyVecEnv):
        for i, one in enumerate(inner.envs):
            one = one.env if isinstance(one, SeededEpisodes) else one
            inner.envs[i] = SeededEpisodes(one, seed + EVAL_SEED_OFFSET + i, inner.num_envs)
