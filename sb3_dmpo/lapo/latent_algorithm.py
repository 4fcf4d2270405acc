"""The update that LP-AWAC and LAPO have in common."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from torch.nn import functional as F

from sb3_dmpo.common.losses import effective_sample_size, min_max_q, twin_critic_loss
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.type_aliases import Metrics, NoiseSpec, OfflineBatch
from sb3_dmpo.lapo.policies import LatentPolicy


class LatentPolicyAlgorithm(OfflineAlgorithm):
    """
    A conditional VAE fitted to the dataset's actions under advantage weights, and a deterministic actor that looks for
    the best action in its latent space. A subclass says in :meth:`weights` how advantages become weights.

    :param args: arguments of :class:`OfflineAlgorithm`
    :param latent_size: size of the latent; None: twice the size of the action
    :param latent_bound: largest absolute value of the actor's latents
    :param kl_coef: coefficient of the VAE's KL divergence
    :param target_policy_noise: standard deviation of the noise on the target latents
    :param target_noise_clip: bound of the noise on the target latents
    :param min_q_weight: c of ``c * min + (1 - c) * max`` over the critics; 1 is the plain minimum
    :param kwargs: keyword arguments of :class:`OfflineAlgorithm`
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": LatentPolicy, "MultiInputPolicy": LatentPolicy}
    policy: LatentPolicy

    def __init__(
        self,
        *args: Any,
        latent_size: int | None = None,
        latent_bound: float = 2.0,
        kl_coef: float = 1.0,
        target_policy_noise: float = 0.1,
        target_noise_clip: float = 0.2,
        min_q_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.latent_size = latent_size
        self.latent_bound = latent_bound
        self.kl_coef = kl_coef
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip
        self.min_q_weight = min_q_weight
        super().__init__(*args, **kwargs)

    def _policy_arguments(self) -> dict[str, Any]:
        return {"latent_size": self.latent_size, "latent_bound": self.latent_bound}

    def _setup_model(self) -> None:
        super()._setup_model()
        policy = self.policy
        self.add_optimizer("critic", [policy.critic, policy.value])
        self.add_optimizer("vae", [policy.vae])
        self.add_optimizer("latent_actor", [policy.actor])
        self.add_target(policy.critic, policy.critic_target)
        self.add_target(policy.vae, policy.vae_target)
        self.add_target(policy.actor, policy.actor_target)

    def noise_specs(self, batch_size: int) -> dict[str, NoiseSpec]:
        """The random numbers that one update consumes, by name."""
        shape = (batch_size, self.policy.latent_size)
        return {"target_latent_noise": NoiseSpec("normal", shape), "vae_noise": NoiseSpec("normal", shape, delayed=True)}

    @th.no_grad()
    def target_q_values(self, batch: OfflineBatch) -> th.Tensor:
        """Target of the critics, ``r + gamma V(s')`` with the online V (no target copy), shape ``(batch, 1)``."""
        next_values: th.Tensor = self.policy.value(batch.next_observations)
        return batch.rewards + (1.0 - batch.dones) * self.gamma * next_values

    @th.no_grad()
    def value_targets(self, batch: OfflineBatch) -> th.Tensor:
        """Target of V: target critics at the noisy latent action of the target actor (eq. 55), shape ``(batch, 1)``."""
        policy = self.policy
        noise = batch.noise["target_latent_noise"] * self.target_policy_noise
        noise = noise.clamp(-self.target_noise_clip, self.target_noise_clip)
        actions = policy.latent_actions(batch.observations, policy.actor_target, noise)
        return min_max_q(policy.critic_target(batch.observations, actions), self.min_q_weight)

    def critic_loss(self, batch: OfflineBatch) -> th.Tensor:
        """Squared Bellman error of both critics, 0-d."""
        q_values = self.policy.critic(batch.observations, batch.actions)
        return twin_critic_loss(q_values, self.target_q_values(batch))

    def value_loss(self, batch: OfflineBatch) -> th.Tensor:
        """Squared error of V, 0-d."""
        return F.mse_loss(self.policy.value(batch.observations), self.value_targets(batch))

    @th.no_grad()
    def advantages(self, batch: OfflineBatch) -> th.Tensor:
        """One-step advantage ``r + gamma Q(s', pi(s')) - V(s)`` with target Q and pi, shape ``(batch, 1)``."""
        policy = self.policy
        next_actions = policy.latent_actions(batch.next_observations, policy.actor_target)
        next_q_values = min_max_q(policy.critic_target(batch.next_observations, next_actions), self.min_q_weight)
        returns = batch.rewards + (1.0 - batch.dones) * self.gamma * next_q_values
        advantages: th.Tensor = returns - policy.value(batch.observations)
        return advantages

    def weights(self, advantages: th.Tensor) -> th.Tensor:
        """
        Weights of the VAE's likelihood, shape ``(batch, 1)``, without gradient.

        :param advantages: shape ``(batch, 1)``
        """
        raise NotImplementedError()

    def vae_loss(self, batch: OfflineBatch, weights: th.Tensor) -> tuple[th.Tensor, Metrics]:
        """
        Weighted negative evidence lower bound of the VAE, 0-d, and its parts.

        :param batch: the minibatch
        :param weights: shape ``(batch, 1)``
        """
        vae = self.policy.vae
        mean, log_var = vae.encode(batch.observations, batch.actions)
        latents = mean + (0.5 * log_var).exp() * batch.noise["vae_noise"]
        squared_error = (vae.decode(batch.observations, latents) - batch.actions).square().sum(dim=1, keepdim=True)
        divergence = 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).sum(dim=1, keepdim=True)
        reconstruction = (weights * squared_error).mean()
        kl = (weights * divergence).mean()
        return reconstruction + self.kl_coef * kl, {"reconstruction_loss": reconstruction, "kl": kl}

    def actor_loss(self, batch: OfflineBatch) -> th.Tensor:
        """Negative value of the latent actor's actions under the first critic (eq. 57), 0-d."""
        policy = self.policy
        actions = policy.latent_actions(batch.observations, policy.actor)
        q_values: th.Tensor = policy.critic(batch.observations, actions)[0]
        return -q_values.mean()

    def update(self, batch: OfflineBatch) -> Metrics:
        """One update of critics and V, then (every ``policy_delay`` updates) of the VAE and the latent actor."""
        metrics: Metrics = {"critic_loss": self.critic_loss(batch), "value_loss": self.value_loss(batch)}
        self.optimize("critic", metrics["critic_loss"] + metrics["value_loss"])
        if self.is_policy_update:
            weights = self.weights(self.advantages(batch))
            metrics["vae_loss"], parts = self.vae_loss(batch, weights)
            self.optimize("vae", metrics["vae_loss"])
            metrics["actor_loss"] = self.actor_loss(batch)
            self.optimize("latent_actor", metrics["actor_loss"])
            metrics |= parts | {"weight_ess": effective_sample_size(weights)}
        return metrics
