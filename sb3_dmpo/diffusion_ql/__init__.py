"""Diffusion Q-learning."""

from sb3_dmpo.diffusion_ql.diffusion_ql import DiffusionQL
from sb3_dmpo.diffusion_ql.policies import DiffusionPolicy

__all__ = ["DiffusionPolicy", "DiffusionQL"]
