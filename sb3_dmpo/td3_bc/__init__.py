"""TD3 with a behavior cloning term, and with one for the critics as well (ReBRAC)."""

from sb3_dmpo.td3_bc.policies import ReBRACPolicy
from sb3_dmpo.td3_bc.rebrac import ReBRAC
from sb3_dmpo.td3_bc.td3_bc import TD3BC

__all__ = ["TD3BC", "ReBRAC", "ReBRACPolicy"]
