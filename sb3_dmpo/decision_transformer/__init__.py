"""Decision Transformer."""

from sb3_dmpo.decision_transformer.decision_transformer import DecisionTransformer
from sb3_dmpo.decision_transformer.policies import DecisionTransformerPolicy, DecisionTransformerState, observe_rewards

__all__ = ["DecisionTransformer", "DecisionTransformerPolicy", "DecisionTransformerState", "observe_rewards"]
