"""TD3 with a behavior cloning term."""

from sb3_dmpo.td3_bc.td3_bc import TD3BC

__all__ = ["TD3BC"]
