"""Behavior cloning."""

from sb3_dmpo.bc.bc import BC

__all__ = ["BC"]
