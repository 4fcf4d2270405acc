"""Writing Minari datasets into the local root: complete under their name, or not at all."""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import minari
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import create_namespace, list_local_namespaces
from minari.storage import get_dataset_path

from sb3_dmpo.data.preprocessing import ActionUnscaler, unflatten_observations
from sb3_dmpo.data.transitions import DatasetError, Transitions, dataset_label
from sb3_dmpo.files.temporary import temporary_folder


def write_in_one_piece(dataset_id: str, write: Callable[[Path], None]) -> bool:
    """
    Let a function write a dataset's storage; it gets its name when it is complete. Of several processes that write the same
    dataset at once, the first wins.

    :param dataset_id: id
    :param write: writes the storage into a folder that does not exist yet
    :return: whether the dataset is the one that was written
    :raises OSError: the Minari root cannot be written
    """
    target = get_dataset_path(dataset_id)
    namespace = dataset_id.rpartition("/")[0]
    if namespace and namespace not in list_local_namespaces():
        # ValueError: another process has made it since the line above.
        with contextlib.suppress(ValueError):
            create_namespace(namespace)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Its leading dot hides the folder from Minari's listings.
    with temporary_folder(target) as temporary:
        write(temporary / "data")
        try:
            os.rename(temporary, target)
        except OSError:
            # The name is taken: another process was faster.
            if not (target / "data").exists():
                raise
            return False
    return True


def check_new_id(dataset_id: str) -> None:
    """
    Refuse an id that is taken or malformed, before any work.

    :param dataset_id: id of a dataset to be written
    :raises DatasetError: it cannot be used
    """
    try:
        parse_dataset_id(dataset_id)
    except TypeError:  # that is how Minari says it
        raise DatasetError(f"{dataset_id!r} has no version: write e.g. {dataset_id + '-v0'!r}.") from None
    except ValueError as error:
        raise DatasetError(f"{dataset_id!r} is no id for a dataset ({error}). Write e.g. my/hopper/medium-v0.") from None
    if get_dataset_path(dataset_id).exists():
        raise DatasetError.at(dataset_label(dataset_id), "it is there already", "Choose another id, or delete it first")


def environment_text(env_spec: EnvSpec) -> str:
    """
    An environment as a dataset remembers it.

    :param env_spec: the environment
    :raises DatasetError: it cannot be written down, since it is registered with a class and not with its name
    """
    try:
        return env_spec.to_json()
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"{env_spec.id} cannot be remembered in a dataset: {error} Register it by name, with "
            "entry_point='my_package.my_module:MyEnv', and with keyword arguments that JSON can hold."
        ) from None


def write_new_dataset(
    dataset_id: str,
    episodes: Iterable[EpisodeBuffer],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    env_spec: EnvSpec | None = None,
    **metadata: Any,
) -> None:
    """
    Write a new dataset into the local Minari root.

    :param dataset_id: id
    :param episodes: its episodes, read once
    :param observation_space: space of their observations
    :param action_space: space of their actions
    :param env_spec: environment that they are of, also for evaluation
    :param metadata: further entries, e.g. ``ref_min_score``
    :raises DatasetError: the id is taken, or the environment cannot be written down
    """
    check_new_id(dataset_id)
    entries = {"dataset_id": dataset_id, "minari_version": minari.__version__, **metadata}
    if env_spec is not None:
        entries["eval_env_spec"] = environment_text(env_spec)

    # Minari makes JPEGs of images, which come back changed, unless (since 0.5.4) it is told not to.
    knows_jpeg = "jpeg_encoding" in inspect.signature(MinariStorage.new).parameters
    options: dict[str, Any] = {"env_spec": env_spec} | ({"jpeg_encoding": False} if knows_jpeg else {})

    def write(path: Path) -> None:
        storage = MinariStorage.new(path, observation_space=observation_space, action_space=action_space, **options)
        storage.update_episodes(episodes)
        storage.update_metadata(entries)

    if not write_in_one_piece(dataset_id, write):
        raise DatasetError.at(dataset_label(dataset_id), "another process has written it meanwhile", "Choose another id")


def episodes_of(transitions: Transitions, observation_space: spaces.Space[Any]) -> Iterator[EpisodeBuffer]:
    """
    Transitions as episodes with T + 1 observations, as the environment gave them, and actions in its units.

    :param transitions: the transitions
    :param observation_space: space of the written observations, nested or not; that of the transitions is its canonical form
    :raises DatasetError: a step does not begin where the one before it has ended
    """
    actions = ActionUnscaler(transitions.action_space)(transitions.actions)
    start = 0
    for episode, length in enumerate(transitions.episode_lengths):
        rows = slice(start, start + int(length))
        observations, following = transitions.observations[rows], transitions.next_observations[rows]
        broken = np.flatnonzero((following[:-1] != observations[1:]).any(axis=1))
        if len(broken):
            raise DatasetError.at(
                dataset_label(transitions.dataset_id),
                "the next observation is not the observation of the next step",
                "Only whole episodes can be written; train on the file itself",
                episode=episode,
                step=int(broken[0]),
            )
        yield EpisodeBuffer(
            observations=unflatten_observations(np.concatenate([observations, following[-1:]]), observation_space),
            actions=actions[rows],
            rewards=transitions.rewards[rows],
            terminations=transitions.terminations[rows],
            truncations=transitions.truncations[rows],
        )
        start = rows.stop
