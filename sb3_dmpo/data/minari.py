"""Minari datasets: finding them in the local root and reading their episodes."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_dmpo.data.minari_download import ROOT_VARIABLE, download_minari, local_dataset_ids, near_ids
from sb3_dmpo.data.minari_episodes import EpisodeReader, Hdf5EpisodeReader, StorageEpisodeReader
from sb3_dmpo.data.preprocessing import flat_slices, leaf_shapes
from sb3_dmpo.data.recorded_env import make_recorded_environment
from sb3_dmpo.data.transitions import DatasetError, DatasetSource, IntArray, RawTransitions, dataset_label
from sb3_dmpo.data.validation import checked_spaces

_MAIN_FILE = "main_data.hdf5"
T = TypeVar("T")
#: Datasets that are made here when they are first asked for, by id. Filled by who can make them.
MADE_ON_FIRST_USE: dict[str, Callable[[], Any]] = {}
_HOW_TORN = "Delete the dataset's folder and download or record it again"


def _not_local(dataset_id: str, root: Path) -> DatasetError:
    local = local_dataset_ids(root)
    near = near_ids(dataset_id, local)
    if near:
        known = f"Near ids found there: {', '.join(near)}."
    elif local:
        known = f"Found there: {', '.join(local[:5])}{', ...' if len(local) > 5 else ''}."
    else:
        known = "There are no datasets."
    return DatasetError(
        f"{dataset_label(dataset_id)} is not in the local Minari root {root}. {known} Get it with `minari download "
        f"{dataset_id}`, download=True or, on the command line, --download; or point {ROOT_VARIABLE} to the folder that "
        "holds it."
    )


def is_minari_id(name: str) -> bool:
    """
    Whether a text has the form of a Minari id, ``namespace/name-v0``, by Minari's own rules.

    :param name: the text
    """
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(name)
    except (TypeError, ValueError):  # the first one: there is no version
        return False
    return True


def find_minari(dataset_id: str, download: bool) -> Path:
    """
    Folder that holds the data of a Minari dataset.

    :param dataset_id: Minari id
    :param download: whether to fetch the dataset if it is not there
    :raises DatasetError: for something that is no id, a dataset that is not there, or a failed download
    """
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage import get_dataset_path

    try:
        root = Path(get_dataset_path())
    except OSError as err:
        raise DatasetError(f"The Minari root cannot be used ({err}): point {ROOT_VARIABLE} to another folder.") from None
    try:
        parse_dataset_id(dataset_id)
    except TypeError:
        known = near_ids(dataset_id, local_dataset_ids(root))
        hint = f" Found in {root}: {', '.join(known)}." if known else ""
        raise DatasetError(f"{dataset_label(dataset_id)} has no version: write e.g. {dataset_id + '-v0'!r}.{hint}") from None
    except ValueError:
        raise DatasetError(
            f"{dataset_id!r} is neither a Minari id (namespace/name-v0) nor a path to a D4RL file (*.hdf5) or a pickled "
            "ReplayBuffer (*.pkl)."
        ) from None
    data_path = root / dataset_id / "data"
    if not data_path.exists():
        if dataset_id in MADE_ON_FIRST_USE:
            MADE_ON_FIRST_USE[dataset_id]()
            return data_path
        if not download:
            raise _not_local(dataset_id, root)
        download_minari(dataset_id, root)
    return data_path


def read_minari_metadata(data_path: Path, label: str) -> dict[str, Any]:
    """
    Content of ``metadata.json``, of a version that the installed Minari knows.

    :param data_path: folder that holds the data
    :param label: the dataset, for messages
    :raises DatasetError: for a file that is missing, damaged or of another version
    """
    from minari import supported_dataset_versions

    try:
        metadata = json.loads((data_path / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise DatasetError.at(label, f"its metadata.json cannot be read ({err})", _HOW_TORN) from None
    if not isinstance(metadata, dict):
        raise DatasetError.at(label, "its metadata.json holds no table", _HOW_TORN)
    version = metadata.get("minari_version")
    if version not in supported_dataset_versions:
        raise DatasetError.at(
            label,
            f"it was written by Minari {version}, the installed one reads {', '.join(sorted(supported_dataset_versions))}",
            "Take a newer version of the dataset, or install the Minari that wrote it",
        )
    return metadata


def recorded_environment_spec(metadata: Mapping[str, Any], eval_env: bool) -> Any:
    """
    What the dataset recorded about its environment, as JSON, None if nothing.

    :param metadata: content of ``metadata.json``
    :param eval_env: whether to prefer the environment meant for evaluation
    """
    return (metadata.get("eval_env_spec") if eval_env else None) or metadata.get("env_spec")


def _recorded_space(metadata: Mapping[str, Any], name: str, label: str) -> spaces.Space[Any]:
    from minari.serialization import deserialize_space

    serialized = metadata.get(name)
    if serialized is None:
        spec = recorded_environment_spec(metadata, eval_env=False)
        if spec is None:
            raise DatasetError.at(label, f"its metadata.json has neither {name!r} nor 'env_spec'", _HOW_TORN)
        env = make_recorded_environment(spec, label)
        space: spaces.Space[Any] = getattr(env, name)
        env.close()
        return space
    try:
        space = deserialize_space(serialized)
    except Exception as err:  # the file's content decides what goes wrong here
        raise DatasetError.at(label, f"its {name!r} cannot be read ({type(err).__name__}: {err})", _HOW_TORN) from None
    return space


def _holds_images(space: spaces.Box | spaces.Dict) -> bool:
    """Whether Minari may have compressed a part of the observations as images, which only its own reader decodes."""
    leaves = space.spaces.values() if isinstance(space, spaces.Dict) else (space,)
    return any(leaf.dtype == np.uint8 and leaf.shape is not None and len(leaf.shape) in (2, 3) for leaf in leaves)


def _data_files(data_path: Path) -> list[Path]:
    return sorted(path for path in data_path.rglob("*") if path.is_file())


def _open_reader(data_path: Path, data_format: str, observation_space: spaces.Box | spaces.Dict) -> EpisodeReader:
    if data_format == "hdf5" and not _holds_images(observation_space):
        return Hdf5EpisodeReader(data_path / _MAIN_FILE)
    from minari import MinariDataset

    return StorageEpisodeReader(MinariDataset(data_path).storage)


@dataclass
class MinariSource(DatasetSource):
    """
    A Minari dataset in the local root, or a ``MinariDataset`` object (possibly with a selection of its episodes).

    :param data_path: folder that holds the data
    :param episodes: numbers of the episodes to read
    :param total_steps: number of steps that the metadata announce, None for a selection of episodes
    """

    data_path: Path
    episodes: IntArray
    total_steps: int | None

    @classmethod
    def from_id(cls, dataset_id: str, download: bool) -> "MinariSource":
        """
        A dataset by its id.

        :param dataset_id: Minari id
        :param download: whether to fetch it if it is not there
        :raises DatasetError: if it is not there or its metadata are unusable
        """
        label, data_path = dataset_label(dataset_id), find_minari(dataset_id, download)
        metadata = read_minari_metadata(data_path, label)
        found = _recorded_space(metadata, "observation_space", label), _recorded_space(metadata, "action_space", label)
        observation_space, action_space = checked_spaces(*found, label)
        episodes, steps = metadata.get("total_episodes"), metadata.get("total_steps")
        if not (isinstance(episodes, int) and isinstance(steps, int) and min(episodes, steps) >= 0):
            raise DatasetError.at(label, f"its metadata.json announces {episodes} episodes and {steps} steps", _HOW_TORN)
        return cls(
            label,
            dataset_id,
            observation_space,
            action_space,
            data_path,
            np.arange(episodes, dtype=np.int64),
            steps,
            metadata=metadata,
            files=_data_files(data_path),
        )

    @classmethod
    def from_object(cls, dataset: Any) -> "MinariSource":
        """
        A dataset that is already open.

        :param dataset: ``minari.MinariDataset``
        :raises DatasetError: for spaces the package cannot learn in
        """
        label = dataset_label(dataset.id)
        observation_space, action_space = checked_spaces(dataset.observation_space, dataset.action_space, label)
        storage = dataset.storage
        data_path = Path(storage.data_path)
        episodes = np.asarray(dataset.episode_indices, dtype=np.int64)
        is_whole = np.array_equal(episodes, np.arange(storage.total_episodes))
        return cls(
            label,
            dataset.id,
            observation_space,
            action_space,
            data_path,
            episodes,
            int(storage.total_steps) if is_whole else None,
            metadata=read_minari_metadata(data_path, label),
            files=_data_files(data_path) if is_whole else [],
        )

    def read(self, progress_bar: bool | None) -> RawTransitions:
        try:
            reader = _open_reader(self.data_path, self.metadata.get("data_format", "hdf5"), self.observation_space)
        except Exception as err:  # depends on the format and on what is wrong with the file
            raise DatasetError.at(self.label, f"its data cannot be opened ({err})", _HOW_TORN) from None
        try:
            return self._read_episodes(reader, progress_bar)
        finally:
            reader.close()

    def _guarded(self, read: Callable[..., T], episode: int, *arguments: Any, field: str) -> T:
        """Call a method of the reader and turn what a damaged file raises into an error with the place."""
        try:
            return read(episode, *arguments)
        except Exception as err:
            what = f"it cannot be read ({type(err).__name__}: {str(err).strip()[:300]})"
            raise DatasetError.at(self.label, what, _HOW_TORN, episode=episode, field=field) from None

    def _read_episodes(self, reader: EpisodeReader, progress_bar: bool | None) -> RawTransitions:
        lengths = np.array(
            [self._guarded(reader.length, episode, field="rewards") for episode in self.episodes.tolist()], dtype=np.int64
        )
        n_steps = int(lengths.sum())
        if self.total_steps is not None and n_steps != self.total_steps:
            what = f"its metadata.json announces {self.total_steps} steps, but its episodes hold {n_steps}"
            raise DatasetError.at(self.label, what, _HOW_TORN)
        episodes, lengths = self.episodes[lengths > 0], lengths[lengths > 0]
        # The observation after step t is row t + 1 of the episode's observations
        raw = self.allocate(lengths, episodes, next_field=("observations", 1))
        columns_of, shapes = flat_slices(self.observation_space), leaf_shapes(self.observation_space)
        start = 0
        # What is too large for float32 becomes inf, which the validation reports with its place
        with self.progress(n_steps, progress_bar) as bar, np.errstate(over="ignore"):
            for episode, length in zip(episodes.tolist(), lengths.tolist(), strict=True):
                rows = slice(start, start + length)
                for key, columns in columns_of.items():
                    field = f"observations/{key}" if key else "observations"
                    values = self._array(reader, episode, field, (length + 1, *shapes[key])).reshape(length + 1, -1)
                    raw.observations[rows, columns] = values[:-1]
                    raw.next_observations[rows, columns] = values[1:]
                raw.actions[rows] = self._array(reader, episode, "actions", (length, *self.action_space.shape))
                raw.rewards[rows] = self._array(reader, episode, "rewards", (length,))
                raw.terminations[rows] = self._flags(reader, episode, "terminations", length)
                raw.truncations[rows] = self._flags(reader, episode, "truncations", length)
                start += length
                bar.update(length)
        return raw

    def _array(self, reader: EpisodeReader, episode: int, field: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        values = self._guarded(reader.read, episode, field, shape, field=field)
        if values.dtype.kind not in "biuf":
            raise DatasetError.at(
                self.label, f"it holds {values.dtype}, no numbers", "Record numbers", episode=episode, field=field
            )
        if values.shape == shape:
            return values
        what = f"it has the shape {values.shape}, expected {shape}"
        how = "Leave the episode out (MinariDataset.filter_episodes) or record it again"
        if values.shape[1:] == shape[1:]:
            what = f"it has {len(values)} rows, expected {shape[0]}"
            if field.startswith("observations"):
                what += f" (one more than the {shape[0] - 1} steps: the observation after the last step is stored as well)"
            else:
                what += " (the number of rewards)"
        raise DatasetError.at(self.label, what, how, episode=episode, field=field)

    def _flags(self, reader: EpisodeReader, episode: int, field: str, length: int) -> npt.NDArray[np.bool_]:
        values = self._array(reader, episode, field, (length,))
        finite = np.isfinite(values)
        if not finite.all():
            what, how = "a flag is not finite", "Record True or False"
            raise DatasetError.at(self.label, what, how, episode=episode, step=int(np.argmin(finite)), field=field)
        flags: npt.NDArray[np.bool_] = values != 0
        return flags
