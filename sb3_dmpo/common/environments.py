"""What may be given as an environment, to learn in or to evaluate in."""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_dmpo.data import names_dataset


def find_environment(env: Any, verbose: int = 0) -> Any:
    """
    An environment, made if its id is given.

    :param env: environment, VecEnv or id
    :param verbose: whether to say that one is made
    :raises ValueError: it is the name of a dataset
    :raises TypeError: it is something else
    """
    if isinstance(env, str):
        try:
            return maybe_make_env(env, verbose)
        except gym.error.Error as error:
            if not names_dataset(env):
                raise
            raise ValueError(
                f"There is no environment {env!r} ({error}) If it is a dataset, pass it as `dataset={env!r}`."
            ) from error
    if isinstance(env, gym.vector.VectorEnv):
        raise TypeError(
            "A vector environment of gymnasium is none of SB3's: use stable_baselines3.common.env_util.make_vec_env."
        )
    # Not by class: SB3 takes environments of older versions of gym.
    if not isinstance(env, VecEnv) and not (hasattr(env, "reset") and hasattr(env, "step")):
        raise TypeError(
            f"{env if env is None else f'A {type(env).__name__}'} is no environment: pass a gymnasium.Env, a VecEnv or an id. "
            "Data to learn from are passed as `dataset=...`."
        )
    return env


def refuse_normalized(env: Any) -> None:
    """
    Refuse an environment whose observations are scaled already.

    :param env: environment or VecEnv
    :raises ValueError: it is wrapped in VecNormalize
    """
    wrapper = unwrap_vec_normalize(env) if isinstance(env, VecEnv) else None
    if wrapper is not None and wrapper.norm_obs:
        raise ValueError(
            "The environment is wrapped in VecNormalize, but the policy scales observations itself, by the dataset's "
            "statistics: leave the wrapper out, or use norm_obs=False."
        )


def refuse_normalized_rewards(env: VecEnv) -> None:
    """
    Refuse an environment to learn in whose rewards are scaled.

    :param env: the environment
    :raises ValueError: it is wrapped in VecNormalize
    """
    wrapper = unwrap_vec_normalize(env)
    if wrapper is not None and wrapper.norm_reward:
        raise ValueError(
            "The environment to learn in is wrapped in VecNormalize with norm_reward=True, but its rewards stand beside those "
            "of the dataset and have to be in the same units: use norm_reward=False, and `reward_scale` to scale both."
        )


def check_callback(callback: BaseCallback, is_online: bool) -> None:
    """
    Refuse callbacks that cannot do here what they are for.

    :param callback: a callback, which may hold others
    :param is_online: whether an environment is stepped
    :raises ValueError: an ``EvalCallback`` has environments in VecNormalize, or episodes are counted where none are run
    """
    if isinstance(callback, EvalCallback):
        refuse_normalized(callback.eval_env)
    if isinstance(callback, StopTrainingOnMaxEpisodes) and not is_online:
        raise ValueError(
            "StopTrainingOnMaxEpisodes counts episodes, and `learn` runs none, it reads a dataset: leave it out "
            "(total_timesteps is the number of updates), or pass it to `learn_online`."
        )
    for child in [*getattr(callback, "callbacks", []), getattr(callback, "callback", None)]:
        if isinstance(child, BaseCallback):
            check_callback(child, is_online)
