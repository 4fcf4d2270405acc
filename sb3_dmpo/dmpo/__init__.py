"""Deterministic mixture policy optimization."""

from sb3_dmpo.dmpo.dmpo import DMPO
from sb3_dmpo.dmpo.info_dmpo import InfoDMPO
from sb3_dmpo.dmpo.one_step_dmpo import OneStepDMPO
from sb3_dmpo.dmpo.policies import MixturePolicy

__all__ = ["DMPO", "InfoDMPO", "MixturePolicy", "OneStepDMPO"]
