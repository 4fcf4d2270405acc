"""Datasets of all supported formats as transitions: the public face of the data layer."""

from typing import Any

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_dmpo.common.dataset_environment import make_recorded_environment
from sb3_dmpo.common.dataset_minari import (
    MinariSource,
    find_minari,
    minari_label,
    read_minari_metadata,
    recorded_environment_spec,
)
from sb3_dmpo.common.dataset_types import DatasetError, DatasetSource, Transitions, array_fingerprint
from sb3_dmpo.common.dataset_validation import check_environment, validate

__all__ = [
    "DatasetError",
    "Transitions",
    "dataset_identifier",
    "dataset_spaces",
    "load_transitions",
    "recover_environment",
]


def _open(dataset: Any, download: bool) -> DatasetSource:
    """Find a dataset and its spaces."""
    if isinstance(dataset, str):
        return MinariSource.from_id(dataset, download)
    return MinariSource.from_object(dataset)


def load_transitions(
    dataset: Any,
    *,
    download: bool = False,
    env: gym.Env[Any, Any] | VecEnv | None = None,
    progress_bar: bool | None = None,
    cache: bool = True,
) -> Transitions:
    """
    All transitions of a dataset, validated.
    """
    if isinstance(dataset, Transitions):
        return dataset
    source = _open(dataset, download)
    if env is not None:
        check_environment(source, env)
    raw = source.read(progress_bar)
    validate(source, raw)
    arrays = {
        name: getattr(raw, name)
        for name in (
            "observations",
            "next_observations",
            "actions",
            "rewards",
            "terminations",
            "truncations",
            "episode_lengths",
        )
    }
    return Transitions(
        **arrays,
        observation_space=source.observation_space,
        action_space=source.action_space,
        dataset_id=source.dataset_id,
        fingerprint=array_fingerprint(list(arrays.values()), source.observation_space, source.action_space),
    )


def dataset_spaces(dataset: Any, *, download: bool = False) -> tuple[spaces.Box | spaces.Dict, spaces.Box]:
    """
    Canonical observation space and action space of a dataset.
    """
    source = _open(dataset, download)
    return source.observation_space, source.action_space


def dataset_identifier(dataset: Any) -> str | None:
    """
    Name of a dataset.
    """
    return dataset if isinstance(dataset, str) else getattr(dataset, "dataset_id", None)


def recover_environment(dataset_id: Any, *, eval_env: bool = True, download: bool = False, **kwargs: Any) -> gym.Env[Any, Any]:
    """
    The environment of a dataset.
    """
    label = minari_label(dataset_id)
    metadata = read_minari_metadata(find_minari(dataset_id, download), label)
    spec = recorded_environment_spec(metadata, eval_env)
    return make_recorded_environment(spec, label, **kwargs)
