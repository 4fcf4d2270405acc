"""Datasets of all supported formats as transitions."""

import os
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv

from sb3_dmpo.data.cache import ARRAYS, SETTLE_SECONDS, Arrays, CacheEntry
from sb3_dmpo.data.d4rl import D4rlSource
from sb3_dmpo.data.minari import MinariSource, is_minari_id, recorded_environment_spec
from sb3_dmpo.data.recorded_env import make_recorded_environment
from sb3_dmpo.data.replay_buffer import ReplayBufferSource
from sb3_dmpo.data.transitions import (
    CACHE_VARIABLE,
    DatasetError,
    DatasetSource,
    Transitions,
    array_fingerprint,
    dataset_label,
)
from sb3_dmpo.data.validation import check_environment, validate

_HDF5_SUFFIXES = (".hdf5", ".h5")
_PICKLE_SUFFIXES = (".pkl", ".pickle")


def open_dataset(dataset: Any, *, download: bool = False) -> DatasetSource:
    """
    Find a dataset and its spaces, without reading its data (but a pickle has no other way). Everything that takes a dataset
    takes what comes back, and does not open it again.

    :param dataset: as in :func:`load_transitions`
    :param download: whether to fetch a Minari dataset that is not in the local root
    :raises DatasetError: if the dataset is not there or the package cannot learn in its spaces
    """
    if isinstance(dataset, DatasetSource):
        return dataset
    if isinstance(dataset, str | os.PathLike):
        path = Path(dataset)
        if path.suffix.lower() in _HDF5_SUFFIXES:
            return D4rlSource.from_path(path)
        if path.suffix.lower() in _PICKLE_SUFFIXES:
            return ReplayBufferSource.from_pickle(path)
        return MinariSource.from_id(str(dataset), download)
    if isinstance(dataset, ReplayBuffer):
        return ReplayBufferSource.from_object(dataset)
    from minari import MinariDataset

    if isinstance(dataset, MinariDataset):
        return MinariSource.from_object(dataset)
    raise DatasetError(
        f"A {type(dataset).__name__} is no dataset: pass a Minari id, a MinariDataset, an SB3 ReplayBuffer or the path of its "
        "pickle (*.pkl), or the path of a D4RL file (*.hdf5)."
    )


def load_transitions(
    dataset: Any,
    *,
    download: bool = False,
    env: gym.Env[Any, Any] | VecEnv | None = None,
    progress_bar: bool | None = None,
    cache: bool = True,
    memory_map: bool = False,
) -> Transitions:
    """
    All transitions of a dataset, validated, with flat float32 observations and actions in [-1, 1].

    :param dataset: Minari id, ``MinariDataset``, SB3 ``ReplayBuffer``/``DictReplayBuffer``, path to its pickle
        (``*.pkl``; only SB3's own classes are read from it), path to a D4RL file
        (``*.hdf5``), what :func:`open_dataset` gave, or ``Transitions``, which are returned as they are
    :param download: whether to fetch a Minari dataset that is not in the local root
    :param env: environment that the policy is meant for; its spaces are compared with those of the dataset
    :param progress_bar: whether to show a progress bar, None: only if loading takes more than a moment
    :param cache: whether to keep a decoded copy on disk, which makes the next time fast
    :param memory_map: whether the data stay on disk, in that copy, and are read where they are touched: for datasets in
        files that do not fit into memory
    :raises DatasetError: for every fault of the dataset, naming episode, step and field where there is one
    """
    if isinstance(dataset, Transitions):
        if env is not None:
            label = dataset_label(dataset.dataset_id)
            check_environment(label, dataset.observation_space, dataset.action_space, env)
        return dataset
    source = open_dataset(dataset, download=download)
    if env is not None:
        source = source.for_environment(env)
        check_environment(source.label, source.observation_space, source.action_space, env)
    if memory_map:
        arrays, fingerprint = _mapped_arrays(source, progress_bar)
    else:
        entry = CacheEntry.of(source) if cache else None
        cached = entry.load() if entry is not None else None
        arrays, fingerprint = cached or _read(source, progress_bar)
        if entry is not None and cached is None:
            entry.store(arrays, fingerprint)
    return Transitions(
        **arrays,
        observation_space=source.observation_space,
        action_space=source.action_space,
        dataset_id=source.dataset_id,
        fingerprint=fingerprint,
    )


def _read(source: DatasetSource, progress_bar: bool | None) -> tuple[Arrays, str]:
    raw = source.read(progress_bar)
    validate(source, raw)
    arrays = {name: getattr(raw, name) for name in ARRAYS}
    return arrays, array_fingerprint(arrays, source)


def _mapped_arrays(source: DatasetSource, progress_bar: bool | None) -> tuple[Arrays, str]:
    """Arrays that stay on disk, decoded into the cache first if they are not there; never in memory as a whole."""
    entry = CacheEntry.of(source)
    if entry is None:
        how = "Pass the id of a Minari dataset or the path of a D4RL file, or leave memory_map out"
        raise DatasetError.at(source.label, "only a whole dataset in files can be memory-mapped", how)
    cached = entry.load(memory_map=True)
    if cached is None:
        if not entry.is_settled:
            time.sleep(SETTLE_SECONDS)
        try:
            with entry.new_folder() as folder:
                source.map_folder = folder
                cached = entry.publish_mapped(folder, *_read(source, progress_bar))
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
    if isinstance(dataset, str | os.PathLike):
        path = Path(dataset)
        return path.name if path.suffix.lower() in _HDF5_SUFFIXES + _PICKLE_SUFFIXES else str(dataset)
    # Transitions, OfflineReplayBuffer and DatasetSource, then MinariDataset
    identifier = getattr(dataset, "dataset_id", None) or getattr(dataset, "id", None)
    return identifier if isinstance(identifier, str) else None


def names_dataset(name: str) -> bool:
    """
    Whether a text could be the name of a dataset: the path of a file of data, or a Minari id. Nothing is looked up.

    :param name: the text
    """
    return Path(name).suffix.lower() in _HDF5_SUFFIXES + _PICKLE_SUFFIXES or is_minari_id(name)


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
