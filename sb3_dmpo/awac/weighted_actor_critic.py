"""The update that AWAC and MixAWAC have in common."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_dmpo.awac.policies import StochasticActorCriticPolicy
from sb3_dmpo.common.arguments import NOT_NEGATIVE, Range
from sb3_dmpo.common.losses import AdvantageWeight, advantage_weights, effective_sample_size, min_max_q
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.type_aliases import Metrics, OfflineBatch


class WeightedActorCritic(OfflineAlgorithm):
    """
    Twin critics that bootstrap from the policy's own actions, and a stochastic actor fitted to the dataset's actions by
    advantage-weighted maximum likelihood. A subclass says in :meth:`next_actions` where the critics bootstrap, and in
    :meth:`advantages` what an action is worth.

    :param policy_delay: actor and targets are updated once every ``policy_delay`` updates
    :param advantage_scale: the DMPO paper's alpha; 0 gives uniform weights
    :param advantage_weight: ``"normalized"`` (eq. 19), ``"max_shifted"`` or ``"clipped"`` weights, see
        :func:`~sb3_dmpo.common.losses.advantage_weights`
    :param kwargs: further arguments of :class:`OfflineAlgorithm`, which describes the first ones too
    """

    policy: StochasticActorCriticPolicy
    argument_ranges: ClassVar[dict[str, Range]] = {"advantage_scale": NOT_NEGATIVE}
    #: Whether the weights are divided by their mean over the minibatch.
    unit_mean_weights: ClassVar[bool] = True

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        dataset: Any = None,
        learning_rate: float | Schedule = 3e-4,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        *,
        policy_delay: int = 2,
        advantage_scale: float = 10.0,
        advantage_weight: AdvantageWeight = "normalized",
        **kwargs: Any,
    ) -> None:
        self.advantage_scale = advantage_scale
        self.advantage_weight: AdvantageWeight = advantage_weight
        super().__init__(policy, env, dataset, learning_rate, batch_size, tau, gamma, policy_delay, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        policy = self.policy
        self.add_optimizer("critic", [policy.critic])
        self.add_optimizer("actor", [policy.actor])
        for online, target in ((policy.critic, policy.critic_target), (policy.actor, policy.actor_target)):
            self.add_target(online, target)

    def next_actions(self, batch: OfflineBatch) -> th.Tensor:
        """
        Actions at the next observations, from which the critics bootstrap, shape ``(batch, action_size)``.

        :param batch: the minibatch
        """
        raise NotImplementedError()

    def advantages(self, batch: OfflineBatch) -> th.Tensor:
        """
        Advantage of the dataset's actions, shape ``(batch, 1)``, without gradient.

        :param batch: the minibatch
        """
        raise NotImplementedError()

    def next_values(self, batch: OfflineBatch) -> th.Tensor:
        """Smaller target Q-value of a sampled next action, shape ``(batch, 1)``."""
        return min_max_q(self.policy.critic_target(batch.next_observations, self.next_actions(batch)))

    def log_likelihood(self, batch: OfflineBatch) -> th.Tensor:
        """
        What the actor maximises: log-densities of the dataset's actions, shape ``(batch, 1)``.

        :param batch: the minibatch
        """
        return self.policy.actor.log_prob(batch.observations, batch.actions)

    def actor_loss(self, batch: OfflineBatch) -> tuple[th.Tensor, Metrics]:
        """Negative log-likelihood of the dataset's actions, weighted by their advantages, 0-d."""
        advantages = self.advantages(batch)
        weights = advantage_weights(advantages, self.advantage_scale, self.advantage_weight, self.unit_mean_weights)
        loss = -(weights * self.log_likelihood(batch)).mean()
        return loss, {"actor_loss": loss, "weight_ess": effective_sample_size(weights)}

    def update(self, batch: OfflineBatch) -> Metrics:
        """One update of the critics, and every ``policy_delay`` updates of the actor."""
        loss, metrics = self.critic_loss(batch)
        self.optimize("critic", loss)
        if self.is_policy_update:
            loss, parts = self.actor_loss(batch)
            self.optimize("actor", loss)
            metrics |= parts
        return metrics
