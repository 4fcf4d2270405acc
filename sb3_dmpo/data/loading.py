"""Datasets of all supported formats as transitions."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv

from sb3_dmpo.data.arrays import ArraysSource
from sb3_dmpo.data.cache import SETTLE_SECONDS, Arrays, CacheEntry
from sb3_dmpo.data.d4rl import D4rlSource
from sb3_dmpo.data.faults import shown
from sb3_dmpo.data.minari import MinariSource, is_local_minari, is_minari_id, recorded_environment_spec
from sb3_dmpo.data.npz import NpzSource, shards_of
from sb3_dmpo.data.paths import FILE_SUFFIXES, format_of, is_minari_folder, is_path
from sb3_dmpo.data.preprocessing import flat_size
from sb3_dmpo.data.recorded_env import make_recorded_environment
from sb3_dmpo.data.replay_buffer import ReplayBufferSource
from sb3_dmpo.data.table import TransitionTable
from sb3_dmpo.data.transitions import (
    CACHE_VARIABLE,
    Advice,
    DatasetError,
    DatasetSource,
    Transitions,
    content_fingerprint,
    dataset_label,
)
from sb3_dmpo.data.validation import check_environment, validate

_KINDS = (
    "pass a Minari id, a MinariDataset, a dict of arrays (observations, actions, rewards, terminals, timeouts), an SB3 "
    "ReplayBuffer or the path of its pickle (*.pkl), or the path of a file of D4RL or d3rlpy (*.hdf5) or of OGBench (*.npz)"
)


def open_dataset(dataset: Any, *, download: bool = False, env: gym.Env[Any, Any] | VecEnv | None = None) -> DatasetSource:
    """
    Find a dataset and its spaces, without reading its data (but a pickle has no other way). Everything that takes a dataset
    takes what comes back, and does not open it again.

    :param dataset: as in :func:`load_transitions`
    :param download: whether to fetch a Minari dataset that is not in the local root
    :param env: environment that the policy is meant for: its bounds hold where the dataset recorded none
    :raises DatasetError: if the dataset is not there or the package cannot learn in its spaces
    """
    if isinstance(dataset, DatasetSource):
        return dataset
    if isinstance(dataset, str | os.PathLike):
        return _open_path(os.fspath(dataset), isinstance(dataset, os.PathLike), download, env)
    if isinstance(dataset, Mapping):
        return ArraysSource.from_mapping(dataset)
    if isinstance(dataset, ReplayBuffer):
        return ReplayBufferSource.from_object(dataset)
    if type(dataset).__module__.partition(".")[0] == "d3rlpy" and hasattr(dataset, "episodes"):
        return ArraysSource.from_episodes(dataset.episodes)
    from minari import MinariDataset

    if isinstance(dataset, MinariDataset):
        return MinariSource.from_object(dataset, env)
    if isinstance(dataset, gym.Env | VecEnv):
        raise DatasetError(
            f"{type(dataset).__name__} is an environment, no dataset: pass it as env=, and beside it {_KINDS[5:]}."
        )
    raise DatasetError(f"A {type(dataset).__name__} is no dataset: {_KINDS}.")


def _open_path(dataset: str | bytes, is_path_object: bool, download: bool, env: Any) -> DatasetSource:
    if isinstance(dataset, bytes) or not dataset or "\0" in dataset:
        raise DatasetError(f"{shown(repr(dataset), 100)} is neither a path nor the id of a dataset: {_KINDS}.")
    try:
        path = Path(dataset).expanduser()
        exists = path.exists()
    except RuntimeError as err:  # no such user
        raise DatasetError(f"Dataset {dataset!r} cannot be found ({err}): write the path without ~.") from None
    except PermissionError:
        exists = True
    except OSError as err:  # a name that is too long
        raise DatasetError(f"{shown(repr(dataset), 100)} cannot be a dataset ({err.strerror}): {_KINDS}.") from None
    if not exists and path.suffix.lower() not in FILE_SUFFIXES and not path.is_symlink():
        return MinariSource.from_id(str(dataset), download, env)
    if not (is_path_object or is_path(dataset)):
        # An id goes before a file or folder that happens to have the same name.
        if is_local_minari(dataset):
            return MinariSource.from_id(dataset, download, env)
        if path.is_dir() and is_minari_id(dataset) and not (is_minari_folder(path) or shards_of(path)):
            return MinariSource.from_id(dataset, download, env)
    found = format_of(path, f"Dataset {str(path)!r}")
    if found == "hdf5":
        return D4rlSource.from_path(path)
    return NpzSource.from_path(path) if found == "npz" else ReplayBufferSource.from_pickle(path)


_NOT_MAPPED = "only a whole dataset in files can be memory-mapped"
_HOW_MAPPED = Advice(
    "Pass the id of a Minari dataset or the path of a file with arrays, or leave memory_map out",
    "Name the id of a Minari dataset or a file with arrays, or leave --memory-map out",
)


def load_transitions(
    dataset: Any,
    *,
    download: bool = False,
    env: gym.Env[Any, Any] | VecEnv | None = None,
    progress_bar: bool | None = None,
    cache: bool = True,
    memory_map: bool = False,
    clip_actions: bool = False,
) -> Transitions:
    """
    All transitions of a dataset, validated, with flat float32 observations and actions in [-1, 1].

    :param dataset: Minari id, ``MinariDataset``, ``dict`` of arrays (see :func:`from_arrays`), SB3
        ``ReplayBuffer``/``DictReplayBuffer``, path to its pickle (``*.pkl``; only SB3's own classes are read from it), path to
        a file of D4RL or d3rlpy (``*.hdf5``, ``*.h5``) or of OGBench (``*.npz``, or a folder of such files), what
        :func:`open_dataset` gave, or ``Transitions``, which are returned as they are
    :param download: whether to fetch a Minari dataset that is not in the local root
    :param env: environment that the policy is meant for; its spaces are compared with those of the dataset
    :param progress_bar: whether to show a progress bar, None: only if loading takes more than a moment
    :param cache: whether to keep a decoded copy on disk, which makes the next time fast
    :param memory_map: whether the data stay on disk, in that copy, and are read where they are touched: for datasets in
        files that do not fit into memory
    :param clip_actions: whether actions outside the bounds are clipped, with a warning that says how many and how far, and
        not refused
    :raises DatasetError: for every fault of the dataset, naming episode, step and field where there is one
    """
    if isinstance(dataset, Transitions):
        label = dataset_label(dataset.dataset_id)
        if memory_map and not isinstance(dataset.table.rows, np.memmap):
            raise DatasetError.at(label, _NOT_MAPPED, _HOW_MAPPED)
        if env is not None:
            check_environment(label, dataset.observation_space, dataset.action_space, env)
        return dataset
    source = open_dataset(dataset, download=download, env=env)
    if env is not None:
        source = source.for_environment(env)
        check_environment(source.label, source.observation_space, source.action_space, env)
    if memory_map:
        arrays, fingerprint = _mapped_arrays(source, progress_bar, clip_actions)
    else:
        # Clipped data are never taken for data that needed no clipping.
        entry = CacheEntry.of(source) if cache and not clip_actions else None
        cached = entry.load() if entry is not None else None
        arrays, fingerprint = cached or _read(source, progress_bar, clip_actions)
        if entry is not None and cached is None:
            entry.store(arrays, fingerprint)
    return Transitions.of_table(
        TransitionTable(arrays["table"], arrays["breaks"], flat_size(source.observation_space)),
        truncations=arrays["truncations"],
        episode_lengths=arrays["episode_lengths"],
        observation_space=source.observation_space,
        action_space=source.action_space,
        dataset_id=source.dataset_id,
        fingerprint=fingerprint,
        has_rewards=source.has_rewards,
    )


def from_arrays(
    observations: Any,
    actions: Any,
    rewards: Any,
    terminals: Any,
    timeouts: Any = None,
    next_observations: Any = None,
    *,
    masks: Any = None,
    action_space: spaces.Box | None = None,
    observation_space: spaces.Space[Any] | None = None,
    dataset_id: str | None = None,
    clip_actions: bool = False,
) -> Transitions:
    """
    Arrays as transitions, checked and copied; what ``dataset=dict(...)`` of the same names stands for. One row per step, one
    episode after the other.

    Without ``next_observations`` the successor of a step is the next row, and the last step of an episode that was cut, whose
    successor is not there, is left out.

    :param observations: shape ``(N, ...)``, or a dict of such arrays
    :param actions: in the units of ``action_space``, shape ``(N, A)``
    :param rewards: shape ``(N,)``
    :param terminals: whether the step ended the task, shape ``(N,)``
    :param timeouts: whether the episode was only cut after the step, shape ``(N,)``
    :param next_observations: as ``observations``, after the step
    :param masks: OGBench's: 0 where the task ended; ``terminals`` then end the episode, and ``timeouts`` may be left out
    :param action_space: bounds of the actions, None: [-1, 1]
    :param observation_space: None: any numbers of the shape of ``observations``
    :param dataset_id: name for messages and for the zip
    :param clip_actions: whether actions outside the bounds are clipped, with a warning, and not refused
    :raises DatasetError: naming the array, and the step where there is one
    """
    return load_transitions(
        {
            "observations": observations,
            "actions": actions,
            "rewards": rewards,
            "terminals": terminals,
            "timeouts": timeouts,
            "next_observations": next_observations,
            "masks": masks,
            "action_space": action_space,
            "observation_space": observation_space,
            "dataset_id": dataset_id,
        },
        clip_actions=clip_actions,
    )


def _read(source: DatasetSource, progress_bar: bool | None, clip_actions: bool) -> tuple[Arrays, str]:
    raw = source.read(progress_bar)
    validate(source, raw, clip_actions)
    raw.table.dones[:] = raw.terminations
    arrays: Arrays = {
        "table": raw.table.rows,
        "breaks": raw.table.breaks,
        "truncations": raw.truncations,
        "episode_lengths": raw.episode_lengths,
    }
    return arrays, content_fingerprint(raw.table, raw.terminations, raw.truncations, raw.episode_lengths, source)


def _mapped_arrays(source: DatasetSource, progress_bar: bool | None, clip_actions: bool) -> tuple[Arrays, str]:
    """Arrays that stay on disk, decoded into the cache first if they are not there; never in memory as a whole."""
    entry = CacheEntry.of(source, clip_actions)
    if entry is None:
        raise DatasetError.at(source.label, _NOT_MAPPED, _HOW_MAPPED)
    cached = entry.load(memory_map=True)
    if cached is None:
        if not entry.is_settled:
            time.sleep(SETTLE_SECONDS)
        try:
            with entry.new_folder() as folder:
                source.map_folder = folder
                cached = entry.publish_mapped(folder, *_read(source, progress_bar, clip_actions))
        except OSError as err:
            what = f"it cannot be decoded into {entry.folder.parent} ({err})"
            raise DatasetError.at(
                source.label, what, f"Let {CACHE_VARIABLE} name a folder with room that you may write to"
            ) from None
        finally:
            source.map_folder = None
    if cached is None:
        raise DatasetError.at(source.label, "its files were changed while they were read", "Try again when nobody writes them")
    return cached


def dataset_spaces(dataset: Any, *, download: bool = False) -> tuple[spaces.Box | spaces.Dict, spaces.Box]:
    """
    Canonical observation space and action space of a dataset, without reading its data (but a pickle has no other way).

    :param dataset: as in ``load_transitions``, or a buffer that an algorithm trains on
    :param download: whether to fetch a Minari dataset that is not in the local root
    :raises DatasetError: if the dataset is not there or the package cannot learn in its spaces
    """
    if isinstance(dataset, Transitions):
        return dataset.observation_space, dataset.action_space
    source = open_dataset(dataset, download=download)
    return source.observation_space, source.action_space


def dataset_identifier(dataset: Any) -> str | None:
    """
    Name of a dataset: the id of a Minari dataset, the name of a file without its folder, None for a buffer in memory.

    :param dataset: as in ``load_transitions``, or None
    """
    if isinstance(dataset, Mapping):
        identifier = dataset.get("dataset_id")
        return identifier if isinstance(identifier, str) else None
    if isinstance(dataset, str | os.PathLike):
        text = str(dataset)
        path = Path(text)
        if path.suffix.lower() in FILE_SUFFIXES:
            return path.name
        is_shards = isinstance(dataset, os.PathLike) or is_path(text) or not is_minari_id(text)
        return f"{path.name}/" if is_shards else text
    # Transitions, OfflineReplayBuffer and DatasetSource, then MinariDataset
    identifier = getattr(dataset, "dataset_id", None) or getattr(dataset, "id", None)
    return identifier if isinstance(identifier, str) else None


def names_dataset(name: str) -> bool:
    """
    Whether a text could be the name of a dataset: the path of a file of data, or a Minari id. Nothing is looked up.

    :param name: the text
    """
    return Path(name).suffix.lower() in FILE_SUFFIXES or is_minari_id(name)


def recover_environment(dataset: Any, *, eval_env: bool = True, download: bool = False, **kwargs: Any) -> gym.Env[Any, Any]:
    """
    The environment that a Minari dataset recorded, made by what gymnasium has registered under its id.

    Unlike ``MinariDataset.recover_environment`` this never imports an entry point or a wrapper that the dataset names.

    :param dataset: Minari id, ``MinariDataset`` or what :func:`open_dataset` gave
    :param eval_env: whether to prefer the environment meant for evaluation
    :param download: whether to fetch a dataset that is not in the local root
    :param kwargs: further arguments of ``gymnasium.make``, e.g. ``render_mode``
    :raises DatasetError: if the dataset recorded no environment or one that gymnasium does not know, if making it
        fails, or if its spaces are not those of the dataset
    """
    source = open_dataset(dataset, download=download)
    spec = recorded_environment_spec(source.metadata, eval_env)
    if spec is None:
        raise DatasetError.at(source.label, "it recorded no environment", "Make the environment yourself and pass it as env=")
    env = make_recorded_environment(spec, source.label, **kwargs)
    try:
        check_environment(source.label, source.observation_space, source.action_space, env)
    except DatasetError:
        env.close()
        raise
    return env
