"""Arrays in memory as a dataset."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_dmpo.data.preprocessing import masked_index
from sb3_dmpo.data.recording import FIELDS, ArrayInfo, Part, RecordingSource, check_fields, refuse_misnamed, spaces_of
from sb3_dmpo.data.transitions import DatasetError
from sb3_dmpo.data.validation import checked_spaces

LABEL = "The arrays"
_SETTINGS = ("action_space", "observation_space", "dataset_id")
#: gymnasium's words for D4RL's.
_OTHER_NAMES = {"terminations": "terminals", "truncations": "timeouts"}
_HOW_TIMEOUTS = (
    "Pass timeouts=..., True at the last step of each episode that was only cut (all False if every episode has reached its "
    "end). Without them nobody can tell where the others end"
)


def _as_array(name: str, values: Any, **place: int | str) -> Any:
    index = masked_index(values)
    if index is not None:
        place |= {"step": index[0]} if index else {}
        what = f"it is masked there{f' (index {index})' if len(index) > 1 else ''}, and what stands behind a mask is no data"
        how = "Leave such steps out (what comes before them is then an episode that was cut), or pass array.filled(value)"
        raise DatasetError.at(LABEL, what, how, **place, field=name)
    try:
        array = np.asarray(values)
    except Exception as err:  # tensors on a GPU, ragged lists, objects of other libraries
        raise DatasetError.at(LABEL, f"{type(err).__name__}: {err}", "Pass NumPy arrays", **place, field=name) from None
    return array


def _entries(name: str, values: Any) -> dict[str, Any]:
    """The arrays of Dict observations by ``<name>/<key>``, nested ones too."""
    if not isinstance(values, Mapping):
        return {name: _as_array(name, values)}
    found: dict[str, Any] = {}
    for key, entry in values.items():
        if not isinstance(key, str) or not key:
            fault = "is empty" if isinstance(key, str) else f"is of the type {type(key).__name__}, no string"
            what = f"it has the key {key!r}, which {fault}"
            how = "Rename it here and in the environment: the keys of Dict observations are texts, e.g. 'camera'"
            raise DatasetError.at(LABEL, what, how, field=name)
        found |= _entries(f"{name}/{key}", entry)
    return found


@dataclass
class ArraysSource(RecordingSource):
    """
    Arrays in memory, which are copied and never changed.

    :param arrays: by name
    """

    arrays: Part

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> "ArraysSource":
        """
        A ``dict`` of arrays and, perhaps, ``action_space``, ``observation_space`` and ``dataset_id``.

        :param given: the dict
        :raises DatasetError: an array is missing, or is of another kind or shape
        """
        arrays: dict[str, Any] = {}
        for given_name, values in given.items():
            name = _OTHER_NAMES.get(given_name, given_name)
            if name in FIELDS and values is not None:
                if name in arrays:
                    raise DatasetError.at(LABEL, f"{given_name!r} and {name!r} are the same", "Pass one of them")
                arrays |= _entries(name, values) if name.endswith("observations") else {name: _as_array(name, values)}
        names = [str(_OTHER_NAMES.get(name, name)) for name, values in given.items() if values is not None]
        refuse_misnamed(LABEL, names, (*FIELDS, *_OTHER_NAMES, *_SETTINGS))
        label = f"Dataset {given['dataset_id']!r}" if given.get("dataset_id") else LABEL
        has_rewards = check_fields(label, arrays, _HOW_TIMEOUTS)
        infos = {name: ArrayInfo(array.shape, array.dtype) for name, array in arrays.items()}
        for name in ("observation_space", "action_space"):
            if not isinstance(given.get(name), spaces.Space | None):
                raise DatasetError.at(
                    label, f"it is a {type(given[name]).__name__}, no space", "Pass a gymnasium space", field=name
                )
        found = checked_spaces(*spaces_of(label, infos, given.get("observation_space"), given.get("action_space")), label)
        source = cls(label, given.get("dataset_id"), *found, arrays, has_rewards=has_rewards)
        # At the door, so that the error comes before a model is built
        source._check_shapes(arrays, {})
        return source

    @classmethod
    def from_episodes(cls, episodes: Sequence[Any]) -> "ArraysSource":
        """
        The episodes of a dataset of d3rlpy 2 in memory.

        :param episodes: each with ``observations``, ``actions``, ``rewards`` and ``terminated``
        :raises DatasetError: there are none, or an array is of another kind or shape
        """
        names = ("observations", "actions", "rewards", "terminated")
        try:
            given = [{name: getattr(episode, name) for name in names} for episode in episodes]
            # One by one: joined, masked arrays lose their masks.
            arrays = [
                {name: _as_array(name, values, episode=number) for name, values in episode.items()}
                for number, episode in enumerate(given)
            ]
            ends = np.cumsum([len(episode["actions"]) for episode in arrays]) - 1
            terminated = np.zeros(ends[-1] + 1, np.bool_)
            terminated[ends] = [bool(episode["terminated"]) for episode in arrays]
            joined: dict[str, Any] = {name: np.concatenate([episode[name] for episode in arrays]) for name in names[:3]}
        except DatasetError:
            raise
        except (AttributeError, TypeError, ValueError, IndexError) as err:
            how = "Write them with dump of d3rlpy 2, and pass the path of the file"
            raise DatasetError(f"The episodes of d3rlpy cannot be read ({type(err).__name__}: {err}). {how}.") from None
        if joined["actions"].dtype.kind in "biu":
            raise DatasetError.at(
                "The episodes of d3rlpy", "their actions are discrete", "Use an algorithm for discrete actions"
            )
        timeouts = np.zeros_like(terminated)
        timeouts[ends] = ~terminated[ends]
        return cls.from_mapping({**joined, "terminals": terminated, "timeouts": timeouts})

    @property
    def _has_next(self) -> bool:
        return any(name.partition("/")[0] == "next_observations" for name in self.arrays)

    @contextlib.contextmanager
    def parts(self) -> Iterator[Iterator[Part]]:
        yield iter([self.arrays])
