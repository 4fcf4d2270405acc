"""Statistics of a dataset: what observations and rewards are scaled by."""

import numpy as np
import numpy.typing as npt

from sb3_dmpo.data.table import BLOCK_ROWS
from sb3_dmpo.data.transitions import DatasetError, Transitions, dataset_label


def observation_statistics(
    observations: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """
    Mean and population standard deviation of every column, shape ``(S,)`` each, accumulated in float64.

    :param observations: shape ``(N, S)``
    """
    blocks = range(0, len(observations), BLOCK_ROWS)
    total = np.zeros(observations.shape[1])
    for start in blocks:
        total += np.ascontiguousarray(observations[start : start + BLOCK_ROWS]).sum(axis=0, dtype=np.float64)
    mean = total / len(observations)
    squares, room = np.zeros_like(mean), np.empty((min(BLOCK_ROWS, len(observations)), len(mean)))
    for start in blocks:
        block = observations[start : start + BLOCK_ROWS]
        differences = np.subtract(block, mean, out=room[: len(block)])
        squares += np.square(differences, out=differences).sum(axis=0)
    return mean, np.sqrt(squares / len(observations))


def reward_transform(transitions: Transitions, reward_scale: float | str, reward_shift: float) -> tuple[float, float]:
    """
    Numbers ``(scale, shift)`` of the transformed reward ``scale * (r + shift)``.

    :param transitions: the dataset
    :param reward_scale: a factor, ``"return_range"`` (1000 / (max - min episode return)), ``"max"`` (1 / max reward)
        or ``"standardize"`` (1 / std, shifted by -mean)
    :param reward_shift: added to the rewards before they are scaled; without effect under ``"standardize"``
    :raises ValueError: for an unknown name or a factor that is not finite
    :raises DatasetError: if the rewards of the dataset do not allow the scaling
    """
    if not np.isfinite(reward_shift):
        raise ValueError(f"reward_shift has to be finite, got {reward_shift}")
    if not isinstance(reward_scale, str):
        if not np.isfinite(reward_scale):
            raise ValueError(f"reward_scale has to be finite, got {reward_scale}")
        return float(reward_scale), float(reward_shift)
    rewards = transitions.table.rewards if transitions.has_table else transitions.rewards
    if reward_scale == "return_range":
        returns = transitions.episode_returns()
        numerator, denominator, what = 1000.0, float(np.ptp(returns)), "all episodes have the same return"
    elif reward_scale == "max":
        numerator, denominator, what = 1.0, float(rewards.max()), "the largest reward is not positive"
    elif reward_scale == "standardize":
        mean, std = observation_statistics(rewards[:, None])
        numerator, denominator, what = 1.0, float(std[0]), "all rewards are the same"
        reward_shift = -float(mean[0])
    else:
        raise ValueError(f"reward_scale={reward_scale!r} is unknown: use a number, 'return_range', 'max' or 'standardize'")
    if denominator <= 0:
        label = dataset_label(transitions.dataset_id)
        raise DatasetError.at(
            label, f"reward_scale={reward_scale!r} cannot be used, {what}", "Give a number instead", field="rewards"
        )
    return numerator / denominator, float(reward_shift)
