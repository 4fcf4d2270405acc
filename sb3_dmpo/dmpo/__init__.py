"""Deterministic mixture policy optimization."""

from sb3_dmpo.dmpo.dmpo import DMPO, InfoDMPO
from sb3_dmpo.dmpo.policies import MixturePolicy

__all__ = ["DMPO", "InfoDMPO", "MixturePolicy"]
