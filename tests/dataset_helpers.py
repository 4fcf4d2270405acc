"""Small datasets for the tests of the data layer."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector.episode_buffer import EpisodeBuffer

#: Awkward on purpose: episodes of one step, each kind of end, and an end without any flag
MIXED_EPISODES = ((1, "terminated"), (3, "truncated"), (1, "truncated"), (4, "neither"), (2, "terminated"))
BOX = spaces.Box(-np.inf, np.inf, (3,), np.float64)
DICT = spaces.Dict({"observation": BOX, "achieved_goal": spaces.Box(-np.inf, np.inf, (), np.float64)})
NESTED_DICT = spaces.Dict(
    {
        "observation": spaces.Box(-np.inf, np.inf, (2,), np.float64),
        "achieved_goal": spaces.Dict(
            {
                "microwave": spaces.Box(-np.inf, np.inf, (1,), np.float64),
                "kettle": spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
            }
        ),
    }
)
ACTIONS = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))


def random_observations(space: spaces.Space[Any], n: int, rng: np.random.Generator) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: random_observations(subspace, n, rng) for key, subspace in space.spaces.items()}
    if np.issubdtype(space.dtype, np.integer):
        return rng.integers(space.low, space.high, (n, *space.shape), space.dtype, endpoint=True)
    return rng.normal(size=(n, *space.shape)).astype(space.dtype)


def random_episodes(
    observation_space: spaces.Space[Any] = BOX,
    action_space: spaces.Box = ACTIONS,
    episodes: tuple[tuple[int, str], ...] = MIXED_EPISODES,
    seed: int = 0,
) -> list[EpisodeBuffer]:
    rng = np.random.default_rng(seed)
    buffers = []
    for length, end in episodes:
        terminations, truncations = np.zeros(length, bool), np.zeros(length, bool)
        if length:
            terminations[-1], truncations[-1] = end == "terminated", end == "truncated"
        buffers.append(
            EpisodeBuffer(
                observations=random_observations(observation_space, length + 1, rng),
                actions=rng.uniform(action_space.low, action_space.high, (length, *action_space.shape)).astype(np.float32),
                rewards=rng.normal(size=length),
                terminations=terminations,
                truncations=truncations,
                infos={},
            )
        )
    return buffers


def make_dataset(
    dataset_id: str = "tests/mixed-v0",
    observation_space: spaces.Space[Any] = BOX,
    action_space: Any = ACTIONS,
    buffers: list[EpisodeBuffer] | None = None,
    **kwargs: Any,
) -> minari.MinariDataset:
    """A Minari dataset in the current root."""
    if buffers is None:
        buffers = random_episodes(observation_space, action_space)
    kwargs = {"observation_space": observation_space, "action_space": action_space, **kwargs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari asks for author, description, ...
        return minari.create_dataset_from_buffers(dataset_id, buffers, **kwargs)


def edit_hdf5(dataset: minari.MinariDataset, edit: Callable[[h5py.File], None]) -> None:
    with h5py.File(Path(dataset.storage.data_path) / "main_data.hdf5", "r+") as file:
        edit(file)


def replace_array(file: h5py.File, name: str, values: Any) -> None:
    del file[name]
    file[name] = values


def edit_metadata(dataset: minari.MinariDataset, **changes: Any) -> None:
    """Change entries of metadata.json; None removes one."""
    path = Path(dataset.storage.data_path) / "metadata.json"
    metadata = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))
