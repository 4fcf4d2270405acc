"""The update that LP-AWAC and LAPO have in common."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch.nn import functional as F

from sb3_dmpo.common.arguments import NOT_NEGATIVE, POSITIVE, SIZE, UNIT, Range, optional
from sb3_dmpo.common.losses import bellman_targets, effective_sample_size, min_max_q, smoothing_noise
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.type_aliases import Metrics, NoiseSpec, OfflineBatch
from sb3_dmpo.lapo.policies import LatentPolicy


class LatentPolicyAlgorithm(OfflineAlgorithm):
    """
    A conditional VAE fitted to the dataset's actions under advantage weights, and a deterministic actor that looks for
    the best action in its latent space. A subclass says in :meth:`weights` how advantages become weights.

    :param latent_size: size of the latent; None: twice the size of the action
    :param latent_bound: largest absolute value of the actor's latents
    :param kl_coef: coefficient of the VAE's KL divergence
    :param target_policy_noise: standard deviation of the noise on the target latents
    :param target_noise_clip: bound of the noise on the target latents
    :param min_q_weight: c of ``c * min + (1 - c) * max`` over the critics; 1 is the plain minimum
    :param kwargs: further arguments of :class:`OfflineAlgorithm`, which describes the first ones too
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": LatentPolicy, "MultiInputPolicy": LatentPolicy}
    policy: LatentPolicy
    fixed_arguments: ClassVar[tuple[str, ...]] = ("latent_bound", "latent_size")
    argument_ranges: ClassVar[dict[str, Range]] = {
        "kl_coef": NOT_NEGATIVE,
        "latent_bound": POSITIVE,
        "latent_size": optional(SIZE),
        "min_q_weight": UNIT,
        "target_noise_clip": NOT_NEGATIVE,
        "target_policy_noise": NOT_NEGATIVE,
    }

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
        super().__init__(policy, env, dataset, learning_rate, batch_size, tau, gamma, **kwargs)

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

    def next_values(self, batch: OfflineBatch) -> th.Tensor:
        """The online V of the next observations (there is no target copy), shape ``(batch, 1)``."""
        values: th.Tensor = self.policy.value(batch.next_observations)
        return values

    @th.no_grad()
    def value_targets(self, batch: OfflineBatch) -> th.Tensor:
        """Target of V: target critics at the noisy latent action of the target actor (eq. 55), shape ``(batch, 1)``."""
        policy = self.policy
        noise = smoothing_noise(batch.noise["target_latent_noise"], self.target_policy_noise, self.target_noise_clip)
        actions = policy.latent_actions(batch.observations, policy.actor_target, noise)
        return min_max_q(policy.critic_target(batch.observations, actions), self.min_q_weight)

    def value_loss(self, batch: OfflineBatch) -> tuple[th.Tensor, Metrics]:
        """Squared error of V, 0-d."""
        loss = F.mse_loss(self.policy.value(batch.observations), self.value_targets(batch))
        return loss, {"value_loss": loss}

    @th.no_grad()
    def advantages(self, batch: OfflineBatch) -> th.Tensor:
        """One-step advantage ``r + gamma Q(s', pi(s')) - V(s)`` with target Q and pi, shape ``(batch, 1)``."""
        policy = self.policy
        next_actions = policy.latent_actions(batch.next_observations, policy.actor_target)
        next_q_values = min_max_q(policy.critic_target(batch.next_observations, next_actions), self.min_q_weight)
        advantages: th.Tensor = bellman_targets(batch, self.gamma, next_q_values) - policy.value(batch.observations)
        return advantages

    def weights(self, advantages: th.Tensor) -> th.Tensor:
        """
        Weights of the VAE's likelihood, shape ``(batch, 1)``, without gradient.

        :param advantages: shape ``(batch, 1)``
        """
        raise NotImplementedError()

    def vae_loss(self, batch: OfflineBatch) -> tuple[th.Tensor, Metrics]:
        """Weighted negative evidence lower bound of the VAE, 0-d."""
        weights, vae = self.weights(self.advantages(batch)), self.policy.vae
        mean, log_var = vae.encode(batch.observations, batch.actions)
        latents = mean + (0.5 * log_var).exp() * batch.noise["vae_noise"]
        squared_error = (vae.decode(batch.observations, latents) - batch.actions).square().sum(dim=1, keepdim=True)
        divergence = 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).sum(dim=1, keepdim=True)
        reconstruction = (weights * squared_error).mean()
        kl = (weights * divergence).mean()
        loss = reconstruction + self.kl_coef * kl
        parts = {"reconstruction_loss": reconstruction, "kl": kl, "weight_ess": effective_sample_size(weights)}
        return loss, {"vae_loss": loss} | parts

    def actor_loss(self, batch: OfflineBatch) -> tuple[th.Tensor, Metrics]:
        """Negative value of the latent actor's actions under the first critic (eq. 57), 0-d."""
        policy = self.policy
        actions = policy.latent_actions(batch.observations, policy.actor)
        q_values: th.Tensor = policy.critic(batch.observations, actions)[0]
        loss = -q_values.mean()
        return loss, {"actor_loss": loss}

    def update(self, batch: OfflineBatch) -> Metrics:
        """One update of critics and V, then (every ``policy_delay`` updates) of the VAE and the latent actor."""
        critic_loss, metrics = self.critic_loss(batch)
        value_loss, parts = self.value_loss(batch)
        metrics |= parts
        self.optimize("critic", critic_loss + value_loss)
        if self.is_policy_update:
            loss, parts = self.vae_loss(batch)
            metrics |= parts
            self.optimize("vae", loss)
            loss, parts = self.actor_loss(batch)
            metrics |= parts
            self.optimize("latent_actor", loss)
        return metrics
