"""Latent-variable advantage-weighted policy optimization (LAPO), and AWAC with a continuous latent (LP-AWAC)."""

from sb3_dmpo.lapo.lapo import LAPO
from sb3_dmpo.lapo.lp_awac import LPAWAC
from sb3_dmpo.lapo.policies import LAPOPolicy, LatentPolicy

__all__ = ["LAPO", "LPAWAC", "LAPOPolicy", "LatentPolicy"]
