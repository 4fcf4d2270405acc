"""Checks of a whole dataset, done once before training."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_dmpo.data.preprocessing import (
    SpaceError,
    UnboundedError,
    action_spaces_match,
    canonical_observation_space,
    check_action_space,
    flat_slices,
    observation_spaces_match,
    scale_actions,
    units_match,
)
from sb3_dmpo.data.table import BLOCK_ROWS
from sb3_dmpo.data.transitions import Advice, DatasetError, DatasetSource, RawTransitions

#: Actions may leave the space by this share of its width (half-precision files round that much); the excess is clipped
ACTION_TOLERANCE = 1e-3
_HOW_BOUNDED = Advice(
    "Pass env= with the bounds that held, and clip_actions=True if actions may lie outside",
    "Name the environment whose bounds held with --env, and add --clip-actions if actions may lie outside",
)
_HOW_CLIPPED = Advice(
    "clip_actions=True clips them; if they were recorded in other bounds, pass those: action_space= beside arrays, env= "
    "beside a file without spaces",
    "--clip-actions clips them; if a file without spaces was recorded in other bounds, name its environment with --env",
)
_HOW_FITTING = "Choose the environment the dataset was recorded in, with the wrappers of that time, or another dataset"


class UnboundedActionsError(DatasetError):
    """The actions of a dataset have no bounds, but those of an environment may hold."""


def checked_spaces(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], label: str
) -> tuple[spaces.Box | spaces.Dict, spaces.Box]:
    """
    Canonical observation space and action space, if the package can learn in them.

    :param observation_space: observation space of a dataset
    :param action_space: action space of a dataset
    :param label: the dataset, for the message
    :raises DatasetError: for discrete, unbounded or otherwise unusable spaces
    """
    try:
        canonical = canonical_observation_space(observation_space)
        return canonical, check_action_space(action_space, label[0].lower() + label[1:])
    except UnboundedError as err:
        raise UnboundedActionsError.at(label, err.what, _HOW_BOUNDED) from None
    except SpaceError as err:
        how = err.environment.capitalize() if err.recorded is None else as_arrays(err.recorded)
        raise DatasetError.at(label, err.what, how) from None
    except ValueError as err:
        raise DatasetError(f"{label}: {err}.") from None


def as_arrays(change: str) -> Advice:
    """
    Advice to change data that are recorded already, and to pass the result.

    :param change: what to change
    """
    change = change[0].upper() + change[1:]
    return Advice(
        f"{change} and pass the arrays: dataset=dict(observations=..., actions=..., rewards=..., terminals=..., timeouts=...)",
        f"{change}, write observations, actions, rewards, terminals and timeouts with numpy.savez, and name that file (*.npz)",
    )


def check_environment(label: str, observation_space: spaces.Box | spaces.Dict, action_space: spaces.Box, env: Any) -> None:
    """
    Compare the spaces of a dataset with those of the environment that the policy is meant for.

    :param label: the dataset, for the message
    :param observation_space: canonical observation space of the dataset
    :param action_space: action space of the dataset
    :param env: gymnasium environment or VecEnv
    :raises DatasetError: if the keys, shapes or units of the observations or the bounds of the actions differ
    """
    env_observation_space, env_action_space = environment_spaces(env, label)
    how = _HOW_FITTING
    if not observation_spaces_match(observation_space, env_observation_space):
        what = f"its observation space is {observation_space}, but that of the environment is {env_observation_space}"
        what += why_no_match(observation_space, env_observation_space)
        raise DatasetError.at(label, what, how)
    if not (isinstance(env_action_space, spaces.Box) and action_spaces_match(env_action_space, action_space)):
        what = f"its action space is {action_space}, but that of the environment is {env_action_space}"
        raise DatasetError.at(label, what, how)


def why_no_match(recorded: spaces.Space[Any], found: spaces.Space[Any]) -> str:
    """
    The end of a message about observation spaces that differ: empty where the message shows the difference by itself.

    :param recorded: canonical observation space of data, or of a model
    :param found: canonical observation space
    """
    return "" if units_match(recorded, found) else " (integers and floats are no observations in the same units)"


def environment_spaces(env: Any, label: str) -> tuple[spaces.Box | spaces.Dict, spaces.Space[Any]]:
    """
    Canonical observation space and action space of one environment.

    :param env: gymnasium environment, gymnasium VectorEnv or SB3 VecEnv
    :param label: the dataset, for the message
    :raises DatasetError: for an observation space that the package cannot learn in
    """
    prefix = "single_" if isinstance(env, gym.vector.VectorEnv) else ""
    try:
        return canonical_observation_space(getattr(env, f"{prefix}observation_space")), getattr(env, f"{prefix}action_space")
    except ValueError as err:
        raise DatasetError.at(label, f"the environment does not fit: {err}", _HOW_FITTING) from None


class _Locator:
    """Turns a row of the joined arrays into the episode, step and field of the dataset."""

    def __init__(self, source: DatasetSource, raw: RawTransitions) -> None:
        self.label = source.label
        self.columns = flat_slices(source.observation_space)
        self.ids = raw.episode_ids
        self.ends = np.cumsum(raw.episode_lengths)
        self.lengths = raw.episode_lengths

    def fault(self, row: int, field: str, what: str, how: str | Advice, step_offset: int = 0) -> DatasetError:
        episode = int(np.searchsorted(self.ends, row, side="right"))
        step = row - int(self.ends[episode] - self.lengths[episode]) + step_offset
        return DatasetError.at(self.label, what, how, episode=int(self.ids[episode]), step=step, field=field)

    def observation_entry(self, column: int) -> tuple[str, int]:
        """Key (with a leading slash, empty for a Box) and index of a column of the flat observations."""
        for key, part in self.columns.items():
            if part.start <= column < part.stop:
                return (f"/{key}" if key else ""), column - part.start
        raise AssertionError(column)


def _first_non_finite(array: npt.NDArray[np.float32]) -> tuple[int, int] | None:
    """Row and column of the first NaN or infinite value, None if there is none."""
    table = array[:, None] if array.ndim == 1 else array
    for start in range(0, len(table), BLOCK_ROWS):
        bad = ~np.isfinite(table[start : start + BLOCK_ROWS])
        if bad.any():
            row, column = np.argwhere(bad)[0]
            return start + int(row), int(column)
    return None


def _check_finite(raw: RawTransitions, locator: _Locator, how: str | Advice) -> None:
    table = raw.table
    for name, offset, array, numbers in (
        ("observations", 0, table.observations, None),
        (*raw.next_field, table.last_observations, table.breaks),
        ("actions", 0, table.actions, None),
        ("rewards", 0, table.rewards, None),
    ):
        place = _first_non_finite(array)
        if place is not None:
            row, column = place
            key, index = locator.observation_entry(column) if "observations" in name else ("", column)
            what = f"it is {array[row]}" if array.ndim == 1 else f"index {index} is {array[row, column]}"
            raise locator.fault(row if numbers is None else int(numbers[row]), name + key, what, how, offset)


def _outside(array: npt.NDArray[Any], low: npt.NDArray[Any], high: npt.NDArray[Any]) -> tuple[int, float]:
    """Number of rows with an entry outside by more than rounding, and the largest distance."""
    rows, distance = 0, 0.0
    for start in range(0, len(array), BLOCK_ROWS):
        block = array[start : start + BLOCK_ROWS].astype(np.float64)
        excess = np.maximum(low - block, block - high)
        rows += int((excess > ACTION_TOLERANCE * (high - low)).any(axis=1).sum())
        distance = max(distance, float(excess.max()))
    return rows, distance


def _check_actions(source: DatasetSource, raw: RawTransitions, locator: _Locator, clip: bool) -> None:
    space, how, actions = source.action_space, _HOW_CLIPPED, raw.table.actions
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if raw.actions_are_scaled:
        low, high = np.full_like(low, -1.0), np.full_like(high, 1.0)
        code = "SB3 stores scaled actions in its buffers: add actions in [-1, 1], e.g. policy.scale_action(action)"
        how = Advice(f"{code}, or clip_actions=True clips them", f"{code}, or --clip-actions clips them")
    tolerance = ACTION_TOLERANCE * (high - low)
    low_excess = actions.min(axis=0) < low - tolerance
    high_excess = actions.max(axis=0) > high + tolerance
    if not (low_excess.any() or high_excess.any()):
        return
    if clip or source.clipped_by is not None:
        count, distance = _outside(actions, low, high)
        because = f", as {source.clipped_by} did in the environment" if source.clipped_by is not None else ""
        warnings.warn(
            f"{source.label}: {count:,} of {len(actions):,} actions lay outside the bounds, by up to {distance:.3g}, and "
            f"are clipped{because}.",
            stacklevel=2,
        )
        return
    outside = (actions < low - tolerance) | (actions > high + tolerance)
    row, column = (int(i) for i in np.argwhere(outside)[0])
    what = f"index {column} is {actions[row, column]}, outside the action space [{low[column]:g}, {high[column]:g}]"
    count, distance = _outside(actions, low, high)
    what += f" ({count:,} of {len(actions):,} actions leave it, by up to {distance:.3g})"
    raise locator.fault(row, "actions", what, how)


def checked_flags(label: str, values: npt.NDArray[Any], field: str, **place: int | str) -> npt.NDArray[np.bool_]:
    """
    Flags as booleans.

    :param label: the dataset, for the message
    :param values: what was read, shape ``(N,)``
    :param field: name of the array in the dataset
    :param place: where the array is, as in ``DatasetError.at``
    :raises DatasetError: for anything but 0 and 1
    """
    check_numbers(label, values.dtype, field, **place)
    flags: npt.NDArray[np.bool_] = values.astype(np.bool_)
    wrong = values != flags
    if wrong.any():
        step = int(np.argmax(wrong))
        what, how = f"it is {values[step]}, neither 0 nor 1", "Write True or False"
        raise DatasetError.at(label, what, how, **place, step=step, field=field)
    return flags


def check_numbers(label: str, dtype: Any, field: str, **place: int | str) -> None:
    """
    Refuse an array that does not hold real numbers.

    :param label: the dataset, for the message
    :param dtype: of the array
    :param field: name of the array in the dataset
    :param place: where it is, as in ``DatasetError.at``
    :raises DatasetError: it holds text, objects or complex numbers
    """
    if getattr(dtype, "kind", None) not in tuple("biuf"):
        what = f"it holds {dtype}, no {'real ' if getattr(dtype, 'kind', None) == 'c' else ''}numbers"
        raise DatasetError.at(label, what, "Record real numbers (integers, floats or booleans)", **place, field=field)


def validate(source: DatasetSource, raw: RawTransitions, clip_actions: bool = False) -> None:
    """
    Check every value of a dataset and scale its actions to [-1, 1], in place.

    :param source: the dataset
    :param raw: what was read from it
    :param clip_actions: whether actions outside the space are clipped, with a warning that says how many
    :raises DatasetError: for NaN, infinite values and actions outside the space, naming episode, step and field
    """
    locator, actions = _Locator(source, raw), raw.table.actions
    _check_finite(raw, locator, source.how_to_repair)
    _check_actions(source, raw, locator, clip_actions)
    for start in range(0, len(actions), BLOCK_ROWS):
        block = actions[start : start + BLOCK_ROWS]
        block[:] = np.clip(block, -1.0, 1.0) if raw.actions_are_scaled else scale_actions(block, source.action_space)
