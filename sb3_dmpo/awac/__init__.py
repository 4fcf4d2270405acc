"""Advantage-weighted actor-critic."""

from sb3_dmpo.awac.awac import AWAC
from sb3_dmpo.awac.policies import GaussianPolicy

__all__ = ["AWAC", "GaussianPolicy"]
