"""Environments: importing this package registers them with gymnasium."""

import gymnasium as gym

from sb3_dmpo.data.minari import MADE_ON_FIRST_USE
from sb3_dmpo.envs.two_goals import TwoGoals
from sb3_dmpo.envs.two_goals_data import TWO_GOALS_DATASET_ID, make_two_goals_dataset
from sb3_dmpo.envs.wrappers import FlattenNestedDict, SuccessInfo, is_success

gym.register("TwoGoals-v0", entry_point="sb3_dmpo.envs.two_goals:TwoGoals", max_episode_steps=40)
MADE_ON_FIRST_USE[TWO_GOALS_DATASET_ID] = make_two_goals_dataset

__all__ = [
    "TWO_GOALS_DATASET_ID",
    "FlattenNestedDict",
    "SuccessInfo",
    "TwoGoals",
    "is_success",
    "make_two_goals_dataset",
]
