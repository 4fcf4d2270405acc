"""Minari datasets: finding them in the local root and reading their episodes."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_dmpo.data.faults import readable_or_fault, reading_fault, shown
from sb3_dmpo.data.minari_download import LONGEST_ID, ROOT_VARIABLE, download_minari, local_dataset_ids, near_ids
from sb3_dmpo.data.minari_episodes import EpisodeReader, Hdf5EpisodeReader, StorageEpisodeReader
from sb3_dmpo.data.preprocessing import flat_slices, leaf_shapes
from sb3_dmpo.data.recorded_env import make_recorded_environment
from sb3_dmpo.data.transitions import Advice, DatasetError, DatasetSource, RawTransitions, dataset_label
from sb3_dmpo.data.validation import check_numbers, checked_flags, checked_spaces, environment_spaces

_MAIN_FILE = "main_data.hdf5"
T = TypeVar("T")
#: Datasets that are made here when they are first asked for, by id. Filled by who can make them.
MADE_ON_FIRST_USE: dict[str, Callable[[], Any]] = {}
_HOW_OLD = "Take a newer version of the dataset, or install the Minari that wrote it"
_HOW_LEFT_OUT = "Leave the episode out: dataset=minari.load_dataset(...).filter_episodes(lambda episode: episode.id != ...)"
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
    what = f"{dataset_label(dataset_id)} is not in the local Minari root {root}. {known} Get it with `minari download "
    what += f"{dataset_id}`"
    where = f"or point {ROOT_VARIABLE} to the folder that holds it"
    error = DatasetError(f"{what}, download=True or, on the command line, --download; {where}.")
    error.shell_message = f"{what} or --download; {where}."
    return error


def is_minari_id(dataset_id: str) -> bool:
    """
    Whether a string is written like the id of a Minari dataset.

    :param dataset_id: the string
    """
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        return parse_dataset_id(dataset_id)[2] is not None
    except (TypeError, ValueError):
        return False


def is_local_minari(dataset_id: str) -> bool:
    """
    Whether a dataset is in the local Minari root, or is made there when it is first asked for.

    :param dataset_id: its id
    """
    from minari.storage import get_dataset_path

    if not is_minari_id(dataset_id):
        return False
    try:
        return dataset_id in MADE_ON_FIRST_USE or (Path(get_dataset_path()) / dataset_id / "data").exists()
    except OSError:  # said where the dataset is opened
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
            f"{shown(repr(dataset_id), LONGEST_ID)} is neither a Minari id (namespace/name-v0) nor a path to a file of D4RL "
            "or d3rlpy (*.hdf5, *.h5), to one of OGBench (*.npz, or a folder of them) or to a pickled ReplayBuffer (*.pkl)."
        ) from None
    data_path = root / dataset_id / "data"
    readable_or_fault(dataset_label(dataset_id), data_path)
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

    path = data_path / "metadata.json"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        if (data_path / _MAIN_FILE).is_file():
            what = f"it has no metadata.json{_old_version(data_path / _MAIN_FILE)}; Minari before 0.5 wrote none"
            raise DatasetError.at(label, what, _HOW_OLD) from None
        raise reading_fault(label, "its metadata.json cannot be read", err, path, _HOW_TORN) from None
    except (OSError, ValueError, RecursionError) as err:
        raise reading_fault(label, "its metadata.json cannot be read", err, path, _HOW_TORN) from None
    if not isinstance(metadata, dict):
        raise DatasetError.at(label, "its metadata.json holds no table", _HOW_TORN)
    version = metadata.get("minari_version")
    if not isinstance(version, str) or version not in supported_dataset_versions:
        by = (
            f"it was written by Minari {shown(version, 40)}"
            if version is not None
            else "it does not say which Minari wrote it"
        )
        known = ", ".join(sorted(supported_dataset_versions))
        raise DatasetError.at(label, f"{by}, the installed one reads {known}", _HOW_OLD)
    return metadata


def _old_version(path: Path) -> str:
    """Which Minari wrote a file of data, as far as it says so."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            version = file.attrs.get("minari_version")
    except Exception:  # whatever is wrong with it, there is more to say about its metadata
        return ""
    return "" if version is None else f" (Minari {shown(version, 40)} wrote it)"


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
        raise reading_fault(label, f"its {name!r} cannot be read", err, Path(), _HOW_TORN) from None
    return space


def _usable_spaces(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], metadata: Mapping[str, Any], env: Any, label: str
) -> tuple[spaces.Box | spaces.Dict, spaces.Box, str | None]:
    """
    The spaces of a dataset, and what has clipped its actions. The bounds of actions without any are those of the environment
    that is meant, or else of the recorded one inside its ClipAction, which clips whatever it is given.
    """
    clipped_by = None
    if isinstance(action_space, spaces.Box) and not action_space.is_bounded():
        bounded = None
        if env is not None:
            bounded = environment_spaces(env, label)[1]
        elif _wrappers_of_actions(metadata) == ["ClipAction"]:
            with warnings.catch_warnings():
                # The wrappers are left out, which is what is wanted here
                warnings.filterwarnings("ignore", ".*wrappers .* are left out", UserWarning)
                recorded = make_recorded_environment(recorded_environment_spec(metadata, eval_env=False), label)
            bounded, clipped_by = recorded.action_space, "ClipAction"
            recorded.close()
        if isinstance(bounded, spaces.Box) and bounded.shape == action_space.shape and bounded.is_bounded():
            action_space = bounded
        else:
            clipped_by = None
    return *checked_spaces(observation_space, action_space, label), clipped_by


def _wrappers_of_actions(metadata: Mapping[str, Any]) -> list[str]:
    """Names of the recorded wrappers that change actions."""
    try:
        wrappers = json.loads(recorded_environment_spec(metadata, eval_env=False))["additional_wrappers"]
        return [wrapper["name"] for wrapper in wrappers if "Action" in wrapper["name"]]
    except (TypeError, ValueError, KeyError, RecursionError):  # there is no record, or none that makes sense
        return []


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
    episodes: Sequence[int]
    total_steps: int | None
    how_to_repair: ClassVar[str | Advice] = Advice(
        f"Repair the value (beyond the range of float32 counts as inf). {_HOW_LEFT_OUT}",
        "Repair the value in the file (beyond the range of float32 counts as inf), or record a dataset without the episode",
    )

    @classmethod
    def from_id(cls, dataset_id: str, download: bool, env: Any = None) -> "MinariSource":
        """
        A dataset by its id.

        :param dataset_id: Minari id
        :param download: whether to fetch it if it is not there
        :param env: environment whose bounds hold if the recorded action space has none
        :raises DatasetError: if it is not there or its metadata are unusable
        """
        label, data_path = dataset_label(dataset_id), find_minari(dataset_id, download)
        metadata = read_minari_metadata(data_path, label)
        found = _recorded_space(metadata, "observation_space", label), _recorded_space(metadata, "action_space", label)
        observation_space, action_space, clipped_by = _usable_spaces(*found, metadata, env, label)
        episodes, steps = metadata.get("total_episodes"), metadata.get("total_steps")
        if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in (episodes, steps)):
            what = f"its metadata.json announces {shown(episodes, 40)} episodes and {shown(steps, 40)} steps"
            raise DatasetError.at(label, what, _HOW_TORN)
        assert isinstance(episodes, int) and isinstance(steps, int)
        return cls(
            label,
            dataset_id,
            observation_space,
            action_space,
            data_path,
            # A number in a file costs nothing before there are as many episodes
            range(episodes),
            steps,
            metadata=metadata,
            files=_data_files(data_path),
            clipped_by=clipped_by,
        )

    @classmethod
    def from_object(cls, dataset: Any, env: Any = None) -> "MinariSource":
        """
        A dataset that is already open.

        :param dataset: ``minari.MinariDataset``
        :param env: as in :meth:`from_id`
        :raises DatasetError: for spaces the package cannot learn in
        """
        label = dataset_label(dataset.id)
        storage = dataset.storage
        data_path = Path(storage.data_path)
        metadata = read_minari_metadata(data_path, label)
        found = dataset.observation_space, dataset.action_space
        observation_space, action_space, clipped_by = _usable_spaces(*found, metadata, env, label)
        episodes = np.asarray(dataset.episode_indices, dtype=np.int64)
        is_whole = np.array_equal(episodes, np.arange(storage.total_episodes))
        return cls(
            label,
            dataset.id,
            observation_space,
            action_space,
            data_path,
            episodes.tolist(),
            int(storage.total_steps) if is_whole else None,
            metadata=metadata,
            files=_data_files(data_path) if is_whole else [],
            clipped_by=clipped_by,
        )

    def read(self, progress_bar: bool | None) -> RawTransitions:
        try:
            reader = _open_reader(self.data_path, self.metadata.get("data_format", "hdf5"), self.observation_space)
        except Exception as err:  # depends on the format and on what is wrong with the file
            raise reading_fault(self.label, "its data cannot be opened", err, self._data_file, _HOW_TORN) from None
        try:
            return self._read_episodes(reader, progress_bar)
        finally:
            reader.close()

    @property
    def _data_file(self) -> Path:
        """The file of the data, their folder if there are several."""
        path = self.data_path / _MAIN_FILE
        return path if path.exists() or path.is_symlink() else self.data_path

    def _guarded(self, read: Callable[..., T], episode: int, *arguments: Any, field: str) -> T:
        """Call a method of the reader and turn what a damaged file raises into an error with the place."""
        try:
            return read(episode, *arguments)
        except Exception as err:
            path = self._data_file
            raise reading_fault(self.label, "it cannot be read", err, path, _HOW_TORN, episode=episode, field=field) from None

    def _read_episodes(self, reader: EpisodeReader, progress_bar: bool | None) -> RawTransitions:
        lengths = np.array(
            [self._guarded(reader.length, episode, field="rewards") for episode in self.episodes], dtype=np.int64
        )
        n_steps = int(lengths.sum())
        if self.total_steps is not None and n_steps != self.total_steps:
            what = f"its metadata.json announces {self.total_steps} steps, but its episodes hold {n_steps}"
            raise DatasetError.at(self.label, what, _HOW_TORN)
        episodes, lengths = np.asarray(self.episodes, dtype=np.int64)[lengths > 0], lengths[lengths > 0]
        # The observation after step t is row t + 1 of the episode's observations
        raw = self.allocate(lengths, episodes, np.cumsum(lengths) - 1, next_field=("observations", 1))
        table = raw.table
        columns_of, shapes = flat_slices(self.observation_space), leaf_shapes(self.observation_space)
        start = 0
        # What is too large for float32 becomes inf, which the validation reports with its place
        with self.progress(n_steps, progress_bar) as bar, np.errstate(over="ignore"):
            for number, (episode, length) in enumerate(zip(episodes.tolist(), lengths.tolist(), strict=True)):
                rows = slice(start, start + length)
                for key, columns in columns_of.items():
                    field = f"observations/{key}" if key else "observations"
                    values = self._array(reader, episode, field, (length + 1, *shapes[key])).reshape(length + 1, -1)
                    table.observations[rows, columns] = values[:-1]
                    table.last_observations[number, columns] = values[-1]
                table.actions[rows] = self._array(reader, episode, "actions", (length, *self.action_space.shape))
                table.rewards[rows] = self._array(reader, episode, "rewards", (length,))
                raw.terminations[rows] = self._flags(reader, episode, "terminations", length)
                raw.truncations[rows] = self._flags(reader, episode, "truncations", length)
                start += length
                bar.update(length)
        return raw

    def _array(self, reader: EpisodeReader, episode: int, field: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        values = self._guarded(reader.read, episode, field, shape, field=field)
        check_numbers(self.label, values.dtype, field, episode=episode)
        if values.shape == shape:
            return values
        what = f"it has the shape {values.shape}, expected {shape}"
        how = Advice(_HOW_LEFT_OUT, "Record the dataset again")
        if values.shape[1:] == shape[1:]:
            what = f"it has {len(values)} rows, expected {shape[0]}"
            if field.startswith("observations"):
                what += f" (one more than the {shape[0] - 1} steps: the observation after the last step is stored as well)"
            else:
                what += " (the number of rewards)"
        raise DatasetError.at(self.label, what, how, episode=episode, field=field)

    def _flags(self, reader: EpisodeReader, episode: int, field: str, length: int) -> npt.NDArray[np.bool_]:
        values = self._array(reader, episode, field, (length,))
        return checked_flags(self.label, values, field, episode=episode)
