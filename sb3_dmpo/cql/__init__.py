"""Conservative Q-learning."""

from sb3_dmpo.cql.cql import CQL
from sb3_dmpo.cql.policies import CQLPolicy

__all__ = ["CQL", "CQLPolicy"]
