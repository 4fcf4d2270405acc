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


def episodes_of_each(n_episodes: int, n_envs: int) -> list[int]:
    """
    How many episodes each environment runs, as SB3's evaluation divides them. Whoever took the first ones that end would
    count too many short ones.

    :param n_episodes: episodes of all environments
    :param n_envs: number of environments
    """
    return [(n_episodes + i) // n_envs for i in range(n_envs)]


def seed_episodes(env: VecEnv, seed: int) -> None:
    """
    Let the environments, each of which runs its :func:`episodes_of_each`, begin their episodes with the seed of the run plus
    ``EVAL_SEED_OFFSET``, the next one, and so on: however many environments there are, n episodes are the same ones.
    Environments in other processes stay as they are.

    :param env: the environments
    :param seed: seed of the run
    """
    inner = env.unwrapped
    if isinstance(inner, DummyVecEnv):
        for i, one in enumerate(inner.envs):
            one = one.env if isinstance(one, SeededEpisodes) else one
            # The last environments run the most episodes.
            inner.envs[i] = SeededEpisodes(one, seed + EVAL_SEED_OFFSET + inner.num_envs - 1 - i, inner.num_envs)
