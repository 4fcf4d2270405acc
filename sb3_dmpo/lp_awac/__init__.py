"""Advantage-weighted actor-critic with a continuous latent."""

from sb3_dmpo.lp_awac.lp_awac import LPAWAC

__all__ = ["LPAWAC"]
