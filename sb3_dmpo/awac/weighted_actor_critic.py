"""The update that AWAC and MixAWAC have in common."""

from typing import Any, ClassVar

import torch as th

from sb3_dmpo.awac.policies import StochasticActorCriticPolicy
from sb3_dmpo.common.losses import AdvantageWeight, advantage_weights, effective_sample_size, min_max_q, twin_critic_loss
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.type_aliases import Metrics, OfflineBatch


class WeightedActorCritic(OfflineAlgorithm):
    """
    Twin critics that bootstrap from the policy's own actions, and a stochastic actor fitted to the dataset's actions by
    advantage-weighted maximum likelihood. A subclass says in :meth:`next_actions` where the critics bootstrap, and in
    :meth:`advantages` what an action is worth.

    :param args: arguments of :class:`OfflineAlgorithm`
    :param policy_delay: actor and targets are updated once every ``policy_delay`` updates
    :param advantage_scale: the DMPO paper's alpha; 0 gives uniform weights
    :param advantage_weight: ``"normalized"`` (eq. 19), ``"max_shifted"`` or ``"clipped"`` weights, see
        :func:`~sb3_dmpo.common.losses.advantage_weights`
    :param kwargs: keyword arguments of :class:`OfflineAlgorithm`
    """

    policy: StochasticActorCriticPolicy
    #: Whether the weights are divided by their mean over the minibatch.
    unit_mean_weights: ClassVar[bool] = True

    def __init__(
        self,
        *args: Any,
        policy_delay: int = 2,
        advantage_scale: float = 10.0,
        advantage_weight: AdvantageWeight = "normalized",
        **kwargs: Any,
    ) -> None:
        self.advantage_scale = advantage_scale
        self.advantage_weight: AdvantageWeight = advantage_weight
        super().__init__(*args, **kwargs | {"policy_delay": policy_delay})

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

    @th.no_grad()
    def target_q_values(self, batch: OfflineBatch) -> th.Tensor:
        """Target of the critics, shape ``(batch, 1)``: the smaller target Q-value of a sampled next action."""
        next_q_values = min_max_q(self.policy.critic_target(batch.next_observations, self.next_actions(batch)))
        return batch.rewards + (1.0 - batch.dones) * self.gamma * next_q_values

    def critic_loss(self, batch: OfflineBatch) -> th.Tensor:
        """Squared Bellman error of both critics, 0-d."""
        q_values = self.policy.critic(batch.observations, batch.actions)
        return twin_critic_loss(q_values, self.target_q_values(batch))

    def log_likelihood(self, batch: OfflineBatch) -> th.Tensor:
        """
        What the actor maximises: log-densities of the dataset's actions, shape ``(batch, 1)``.

        :param batch: the minibatch
        """
        return self.policy.actor.log_prob(batch.observations, batch.actions)

    def actor_loss(self, batch: OfflineBatch, weights: th.Tensor) -> th.Tensor:
        """
        Weighted negative log-likelihood of the dataset's actions, 0-d.

        :param batch: the minibatch
        :param weights: shape ``(batch, 1)``
        """
        return -(weights * self.log_likelihood(batch)).mean()

    def update(self, batch: OfflineBatch) -> Metrics:
        """One update of the critics, and every ``policy_delay`` updates of the actor."""
        metrics: Metrics = {"critic_loss": self.critic_loss(batch)}
        self.optimize("critic", metrics["critic_loss"])
        if self.is_policy_update:
            weights = advantage_weights(
                self.advantages(batch), self.advantage_scale, self.advantage_weight, self.unit_mean_weights
            )
            metrics["actor_loss"] = self.actor_loss(batch, weights)
            self.optimize("actor", metrics["actor_loss"])
            metrics["weight_ess"] = effective_sample_size(weights)
        return metrics
