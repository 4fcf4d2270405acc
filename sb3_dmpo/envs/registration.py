"""Evaluation environments of datasets under ids of gymnasium: ``D4RL/pen/human-v2`` -> ``D4RL-pen-human-v2``."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from sb3_dmpo.data import dataset_identifier, dataset_spaces, recover_environment
from sb3_dmpo.data.paths import FILE_SUFFIXES
from sb3_dmpo.envs.spaces_only import SpacesOnlyEnv
from sb3_dmpo.envs.two_goals_data import TWO_GOALS_DATASET_ID
from sb3_dmpo.envs.wrappers import FlattenNestedDict, SuccessInfo

TOY_ENV_ID = "TwoGoals-v0"


def environment_name(dataset: str) -> str:
    """
    Id of a dataset's evaluation environment, which also names the folders of its runs.

    :param dataset: Minari id or path of a file
    """
    if dataset == TWO_GOALS_DATASET_ID:
        return TOY_ENV_ID
    dataset = dataset.rstrip("/")
    name = Path(dataset).stem if dataset.lower().endswith(FILE_SUFFIXES) else dataset
    name = re.sub(r"[^\w.-]+", "-", name)
    # gymnasium takes -v01 for -v1.
    return name if re.search(r"-v(0|[1-9][0-9]*)$", name) else f"{name}-v0"


def make_evaluation_env(dataset: Any, env_id: str | None = None, **kwargs: Any) -> gym.Env[Any, Any]:
    """
    The environment to evaluate in, with one-level observations and ``info["is_success"]``.

    :param dataset: Minari id, or what ``open_dataset`` gave
    :param env_id: another environment than the one that the dataset recorded
    :param kwargs: arguments of the environment, e.g. ``render_mode``
    :raises DatasetError: the dataset's environment cannot be made
    """
    env = recover_environment(dataset, eval_env=True, **kwargs) if env_id is None else gym.make(env_id, **kwargs)
    return SuccessInfo(FlattenNestedDict(env) if isinstance(env.observation_space, spaces.Dict) else env)


def _make_placeholder_env(dataset: Any, **kwargs: Any) -> gym.Env[Any, Any]:
    """An environment that has the dataset's spaces and cannot be stepped, for training without evaluation."""
    return SpacesOnlyEnv(*dataset_spaces(dataset))


def register_environment(dataset: Any, env_id: str | None = None, is_stepped: bool = True) -> str:
    """
    Register the evaluation environment of a dataset with gymnasium.

    :param dataset: Minari id, path of a file, or what ``open_dataset`` gave for it
    :param env_id: another environment than the one that the dataset recorded
    :param is_stepped: whether the environment is needed for more than its spaces
    :return: the id to make it by
    """
    name = environment_name(str(dataset_identifier(dataset)))
    if env_id == name or (env_id is None and name == TOY_ENV_ID):
        return name
    creator = partial(make_evaluation_env, dataset, env_id) if is_stepped else partial(_make_placeholder_env, dataset)
    gym.registry.pop(name, None)
    gym.register(name, entry_point=creator, order_enforce=False, disable_env_checker=True)
    return name
