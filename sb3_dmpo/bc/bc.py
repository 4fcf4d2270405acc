"""BC."""

from typing import ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from torch.nn import functional as F

from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.policies import DeterministicPolicy
from sb3_dmpo.common.type_aliases import Metrics, OfflineBatch


class BC(OfflineAlgorithm):
    """
    Behavior cloning: regression of the dataset's actions on its observations, the floor under every comparison.

    Paper: Pomerleau: *ALVINN: An Autonomous Land Vehicle in a Neural Network*, NIPS 1988. There is no original
    implementation to differ from; network, optimizer and observation scaling are those of :class:`TD3BC`, of which this
    is the part without a critic. Rewards, ``gamma`` and ``tau`` have no effect.

    The arguments are those of :class:`OfflineAlgorithm`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(
        ("MlpPolicy", "MultiInputPolicy"), DeterministicPolicy
    )
    policy: DeterministicPolicy
    unused_arguments: ClassVar[tuple[str, ...]] = ("gamma", "tau")
    learns_online: ClassVar[bool] = False
    learns_from_rewards: ClassVar[bool] = False

    def _setup_model(self) -> None:
        super()._setup_model()
        self.add_optimizer("actor", [self.policy.actor])

    def actor_loss(self, batch: OfflineBatch) -> tuple[th.Tensor, Metrics]:
        """Mean squared error of the actor's actions, 0-d."""
        loss = F.mse_loss(self.policy.actor(batch.observations), batch.actions)
        return loss, {"actor_loss": loss}

    def update(self, batch: OfflineBatch) -> Metrics:
        """One update of the actor."""
        loss, metrics = self.actor_loss(batch)
        self.optimize("actor", loss)
        return metrics
