"""Implicit Q-learning."""

from sb3_dmpo.iql.iql import IQL
from sb3_dmpo.iql.policies import IQLPolicy

__all__ = ["IQL", "IQLPolicy"]
