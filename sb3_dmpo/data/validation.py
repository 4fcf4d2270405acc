"""Checks of a whole dataset, done once before training."""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_dmpo.data.preprocessing import (
    action_spaces_match,
    canonical_observation_space,
    check_action_space,
    flat_slices,
    observation_spaces_match,
    scale_actions,
)
from sb3_dmpo.data.transitions import BLOCK_ROWS, DatasetError, DatasetSource, RawTransitions

#: Actions may leave the space by this share of its width (half-precision files round that much); the excess is clipped
ACTION_TOLERANCE = 1e-3
_HOW_FITTING = "Choose the environment the dataset was recorded in (recover_environment gives it), or another dataset"


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
    except ValueError as err:
        raise DatasetError(f"{label}: {err}.") from None
    try:
        return canonical, check_action_space(action_space, label[0].lower() + label[1:])
    except ValueError as err:
        raise DatasetError(f"{err}.") from None


def check_environment(label: str, observation_space: spaces.Box | spaces.Dict, action_space: spaces.Box, env: Any) -> None:
    """
    Compare the spaces of a dataset with those of the environment that the policy is meant for.

    :param label: the dataset, for the message
    :param observation_space: canonical observation space of the dataset
    :param action_space: action space of the dataset
    :param env: gymnasium environment or VecEnv
    :raises DatasetError: if the keys or shapes of the observations or the bounds of the actions differ
    """
    env_observation_space, env_action_space = environment_spaces(env, label)
    how = _HOW_FITTING
    if not observation_spaces_match(env_observation_space, observation_space):
        what = f"its observation space is {observation_space}, but that of the environment is {env_observation_space}"
        raise DatasetError.at(label, what, how)
    if not (isinstance(env_action_space, spaces.Box) and action_spaces_match(env_action_space, action_space)):
        what = f"its action space is {action_space}, but that of the environment is {env_action_space}"
        raise DatasetError.at(label, what, how)


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

    def fault(self, row: int, field: str, what: str, how: str, step_offset: int = 0) -> DatasetError:
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
    table = array.reshape(len(array), -1)
    for start in range(0, len(table), BLOCK_ROWS):
        bad = ~np.isfinite(table[start : start + BLOCK_ROWS])
        if bad.any():
            row, column = np.argwhere(bad)[0]
            return start + int(row), int(column)
    return None


_HOW_FINITE = "Repair the value (beyond the range of float32 counts as inf) or leave the episode out (filter_episodes)"


def _check_finite(raw: RawTransitions, locator: _Locator) -> None:
    for name, offset, array in (
        ("observations", 0, raw.observations),
        (*raw.next_field, raw.next_observations),
        ("actions", 0, raw.actions),
        ("rewards", 0, raw.rewards),
    ):
        place = _first_non_finite(array)
        if place is not None:
            row, column = place
            key, index = locator.observation_entry(column) if "observations" in name else ("", column)
            what = f"it is {array[row]}" if array.ndim == 1 else f"index {index} is {array[row, column]}"
            raise locator.fault(row, name + key, what, _HOW_FINITE, offset)


def _check_actions(raw: RawTransitions, space: spaces.Box, locator: _Locator) -> None:
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    how = "Clip the actions when recording the dataset, or record the action space that they were drawn from"
    if raw.actions_are_scaled:
        low, high = np.full_like(low, -1.0), np.full_like(high, 1.0)
        how = "SB3 stores scaled actions in its buffers: add actions in [-1, 1], e.g. policy.scale_action(action)"
    tolerance = ACTION_TOLERANCE * (high - low)
    low_excess = raw.actions.min(axis=0) < low - tolerance
    high_excess = raw.actions.max(axis=0) > high + tolerance
    if not (low_excess.any() or high_excess.any()):
        return
    outside = (raw.actions < low - tolerance) | (raw.actions > high + tolerance)
    row, column = (int(i) for i in np.argwhere(outside)[0])
    what = f"index {column} is {raw.actions[row, column]}, outside the action space [{low[column]:g}, {high[column]:g}]"
    raise locator.fault(row, "actions", what, how)


def validate(source: DatasetSource, raw: RawTransitions) -> None:
    """
    Check every value of a dataset and scale its actions to [-1, 1], in place.

    :param source: the dataset
    :param raw: what was read from it
    :raises DatasetError: for NaN, infinite values and actions outside the space, naming episode, step and field
    """
    locator = _Locator(source, raw)
    _check_finite(raw, locator)
    _check_actions(raw, source.action_space, locator)
    for start in range(0, len(raw.actions), BLOCK_ROWS):
        block = raw.actions[start : start + BLOCK_ROWS]
        block[:] = np.clip(block, -1.0, 1.0) if raw.actions_are_scaled else scale_actions(block, source.action_space)
