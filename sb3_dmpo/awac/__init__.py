"""Advantage-weighted actor-critic, with one Gaussian (AWAC) and with a mixture of them (mixAWAC)."""

from sb3_dmpo.awac.awac import AWAC
from sb3_dmpo.awac.mix_awac import MixAWAC
from sb3_dmpo.awac.policies import GaussianMixturePolicy, GaussianPolicy

__all__ = ["AWAC", "GaussianMixturePolicy", "GaussianPolicy", "MixAWAC"]
