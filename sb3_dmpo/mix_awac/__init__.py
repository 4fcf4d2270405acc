"""Advantage-weighted actor-critic with a mixture of Gaussians."""

from sb3_dmpo.mix_awac.mix_awac import MixAWAC
from sb3_dmpo.mix_awac.policies import GaussianMixturePolicy

__all__ = ["GaussianMixturePolicy", "MixAWAC"]
