"""Latent-variable advantage-weighted policy optimization."""

from sb3_dmpo.lapo.lapo import LAPO
from sb3_dmpo.lapo.policies import LAPOPolicy

__all__ = ["LAPO", "LAPOPolicy"]
