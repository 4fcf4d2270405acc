"""MAPLE."""

from sb3_dmpo.maple.maple import MAPLE
from sb3_dmpo.maple.policies import MAPLEPolicy, MAPLEState

__all__ = ["MAPLE", "MAPLEPolicy", "MAPLEState"]
