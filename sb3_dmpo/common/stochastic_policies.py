"""Base of the policies with a Gaussian actor and twin critics (AWAC, MixAWAC)."""

import torch as th

from sb3_dmpo.common.gaussian import GaussianActor
from sb3_dmpo.common.networks import EnsembleCritic
from sb3_dmpo.common.policies import OfflinePolicy


class StochasticActorCriticPolicy(OfflinePolicy):
    """
    A Gaussian actor and twin critics, with target copies of both. ``predict(deterministic=False)`` draws an action and
    clips it to the box; otherwise the mean is returned. A subclass makes the actor.
    """

    actor: GaussianActor
    actor_target: GaussianActor
    critic: EnsembleCritic
    critic_target: EnsembleCritic

    def add_networks(self, actor: GaussianActor) -> None:
        """
        Take over an actor and create everything else.

        :param actor: the online actor
        """
        self.actor = actor
        self.actor_target = self.make_target(actor)
        self.critic = self.make_critic()
        self.critic_target = self.make_target(self.critic)

    def action_distribution(self, observations: th.Tensor, deterministic: bool) -> tuple[th.Tensor, th.Tensor]:
        """
        Mean and log standard deviation of the Gaussian that ``predict`` acts with, shape ``(batch, action_size)`` each.

        :param observations: scaled observations, shape ``(batch, observation_size)``
        :param deterministic: whether the mean will be taken
        """
        mean, log_std = self.actor(observations)
        return mean, log_std

    def _predict(self, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:  # type: ignore[override]
        mean, log_std = self.action_distribution(self.scale_observations(observation), deterministic)
        actions = mean if deterministic else th.normal(mean, log_std.exp())
        return actions.clamp(-1.0, 1.0)
