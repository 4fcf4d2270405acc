"""Faults of Minari and D4RL files: each has to be named, with the dataset, before anything is trained."""

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
from minari.data_collector.episode_buffer import EpisodeBuffer

from benchmarks.fault_campaigns.common import ACTION_SPACE, OBSERVATION_SPACE

ID, LENGTHS = "faults/mixed-v0", (3, 1, 4)


def _minari(folder: Path) -> Path:
    """A small dataset in a Minari root of its own; the folder of its files."""
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    rng, buffers = np.random.default_rng(0), []
    for length in LENGTHS:
        ends = np.arange(length) == length - 1
        actions = rng.uniform(-2, 2, (length, 2)).astype(np.float32)
        observations = rng.normal(size=(length + 1, 3)).astype(np.float32)
        buffers.append(
            EpisodeBuffer(
                observations=observations,
                actions=actions,
                rewards=rng.normal(size=length),
                terminations=ends,
                truncations=~ends & ends,
                infos={},
            )
        )
    spaces: dict[str, Any] = {"observation_space": OBSERVATION_SPACE, "action_space": ACTION_SPACE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Path(minari.create_dataset_from_buffers(ID, buffers, **spaces).storage.data_path)


def _edited(edit: Callable[[h5py.File], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with h5py.File(folder / "main_data.hdf5", "r+") as file:
            edit(file)

    return damage


def _poked(name: str, index: Any, value: float) -> Callable[[Path], None]:
    return _edited(lambda file: file[name].__setitem__(index, value))


def _put(name: str, values: Any) -> Callable[[Path], None]:
    def edit(file: h5py.File) -> None:
        del file[name]
        file[name] = values

    return _edited(edit)


def _content(change: Callable[[bytes], bytes], name: str = "main_data.hdf5") -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def _metadata(**changes: Any) -> Callable[[Path], None]:
    return _content(lambda content: json.dumps(json.loads(content) | changes).encode(), "metadata.json")


def _flipped(content: bytes) -> bytes:
    # The superblock's signature and every thousandth byte after it.
    damaged = bytearray(content)
    for position in range(0, len(content), 1000):
        damaged[position] ^= 0x10
    return bytes(damaged)


_DAMAGES: dict[str, Callable[[Path], Any]] = {
    "HDF5 cut in half": _content(lambda content: content[: len(content) // 2]),
    "HDF5 without its last byte": _content(lambda content: content[:-1]),
    "HDF5 with flipped bits": _content(_flipped),
    "HDF5 is not there": lambda folder: (folder / "main_data.hdf5").unlink(),
    "HDF5 is a folder": lambda folder: ((folder / "main_data.hdf5").unlink(), (folder / "main_data.hdf5").mkdir()),
    "HDF5 episode missing": _edited(lambda file: file.pop("episode_1")),
    "HDF5 actions missing": _edited(lambda file: file.pop("episode_1/actions")),
    "HDF5 terminations missing": _edited(lambda file: file.pop("episode_0/terminations")),
    "HDF5 NaN observation": _poked("episode_0/observations", (1, 2), np.nan),
    "HDF5 infinite reward": _poked("episode_2/rewards", 3, np.inf),
    "HDF5 NaN action": _poked("episode_2/actions", (0, 0), np.nan),
    "HDF5 action outside the space": _poked("episode_2/actions", (0, 0), 2.5),
    "HDF5 observations too short": _put("episode_0/observations", np.zeros((3, 3))),
    "HDF5 actions too long": _put("episode_0/actions", np.zeros((4, 2))),
    "HDF5 observations too wide": _put("episode_0/observations", np.zeros((4, 5))),
    "HDF5 rewards that are text": _put("episode_1/rewards", np.array([b"a"])),
    "HDF5 observations that are text": _put("episode_1/observations", np.array([[b"a"] * 3] * 2)),
    "HDF5 group in place of rewards": _edited(
        lambda file: (file.pop("episode_1/rewards"), file.create_group("episode_1/rewards"))
    ),
    "HDF5 NaN among the flags": _put("episode_1/truncations", np.array([np.nan])),
    "metadata missing": lambda folder: (folder / "metadata.json").unlink(),
    "metadata cut off": _content(lambda content: content[:40], "metadata.json"),
    "metadata without spaces": _metadata(observation_space=None, env_spec=None),
    "metadata announces more episodes": _metadata(total_episodes=9),
    "metadata announces other steps": _metadata(total_steps=100),
    "more steps announced than there are": _metadata(total_steps=10**13),
    "metadata of a newer Minari": _metadata(minari_version="99.0.0"),
}


def _d4rl(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], Path]:
    """A file of D4RL's layout with something changed."""

    def build(folder: Path) -> Path:
        n, rng = 20, np.random.default_rng(0)
        arrays: dict[str, np.ndarray] = {
            "observations": rng.normal(size=(n, 3)).astype(np.float32),
            "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
            "rewards": rng.normal(size=n).astype(np.float32),
            "terminals": np.arange(n) % 10 == 9,
            "timeouts": np.zeros(n, bool),
        }
        change(arrays)
        with h5py.File(folder / "data.hdf5", "w") as file:
            for name, values in arrays.items():
                file[name] = values
        return folder / "data.hdf5"

    return build


def _endless(folder: Path) -> Path:
    # Chunks that were never written take no room in the file.
    shapes: dict[str, tuple[int, ...]] = {"observations": (10**13, 3), "actions": (10**13, 2)}
    shapes |= dict.fromkeys(("rewards", "terminals", "timeouts"), (10**13,))
    with h5py.File(folder / "data.hdf5", "w") as file:
        for name, shape in shapes.items():
            file.create_dataset(name, shape, "f4", chunks=(1000, *shape[1:]))
    return folder / "data.hdf5"


_D4RL: dict[str, Callable[[Path], Path]] = {
    "D4RL rewards missing": _d4rl(lambda arrays: arrays.pop("rewards")),
    "D4RL NaN observation": _d4rl(lambda arrays: arrays["observations"].__setitem__((4, 1), np.nan)),
    "D4RL actions too short": _d4rl(lambda arrays: arrays.update(actions=arrays["actions"][:-1])),
    "D4RL infinite reward": _d4rl(lambda arrays: arrays["rewards"].__setitem__(4, np.inf)),
    "D4RL actions that are text": _d4rl(lambda arrays: arrays.update(actions=np.array([[b"a", b"b"]] * 20))),
    "D4RL file larger than memory": _endless,
    "D4RL without rows": _d4rl(lambda arrays: arrays.update({name: values[:0] for name, values in arrays.items()})),
}


def _minari_fault(damage: Callable[[Path], Any]) -> Callable[[], Any]:
    def build() -> Any:
        damage(_minari(Path(tempfile.mkdtemp())))
        return ID

    return build


def _d4rl_fault(make: Callable[[Path], Path]) -> Callable[[], Any]:
    return lambda: make(Path(tempfile.mkdtemp()))


#: What builds the faulty dataset and returns what is passed as ``dataset``.
HDF5_FAULTS: dict[str, Callable[[], Any]] = {name: _minari_fault(damage) for name, damage in _DAMAGES.items()} | {
    name: _d4rl_fault(make) for name, make in _D4RL.items()
}
