"""MixAWAC."""

import math
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_dmpo.awac.policies import GaussianMixturePolicy
from sb3_dmpo.awac.weighted_actor_critic import WeightedActorCritic
from sb3_dmpo.common.arguments import MAX_SIZE, Range, whole_number
from sb3_dmpo.common.distributions import gaussian_log_prob
from sb3_dmpo.common.losses import LOG_EPS, entropy, min_max_q, mixture_diagnostics
from sb3_dmpo.common.type_aliases import Metrics, NoiseSpec, OfflineBatch


class MixAWAC(WeightedActorCritic):
    """
    Advantage-weighted actor-critic with a mixture of K Gaussians and a gating network: the counterpart of DMPO with a
    multimodal policy that is stochastic and has no critic as its gate.

    Paper: Osa, Hayashi, Deo, Morihira, Yoshiike: *Offline Reinforcement Learning with Mixture of Deterministic
    Policies*, TMLR 09/2023, section 7 and appendix F. Where the paper and the authors' published code differ, the code
    is followed: the component of an action is the most probable one (the paper draws it by the Gumbel trick; the code
    draws the noise, too, but it has no effect; ``sample_component=True`` draws the component), the advantage takes the
    target critics in both terms and a single sampled action, and the weights of eq. 19 are not divided by their mean.

    Differences from that code: it adds 1e-12 to the density before the logarithm, so that actions far from all components
    (at the start, that is most of them) have no gradient; here the log-density is that of the mixture, unless
    ``published_code=True``. Equal advantages in a minibatch, and ``advantage_scale=0``, give uniform weights.

    :param n_components: K, number of Gaussians
    :param sample_component: draw the component of sampled actions, in training and in ``predict(deterministic=False)``
    :param published_code: add 1e-12 to the density, as the published code does
    :param kwargs: further arguments of :class:`WeightedActorCritic`; the first ones are those of :class:`OfflineAlgorithm`
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": GaussianMixturePolicy,
        "MultiInputPolicy": GaussianMixturePolicy,
    }
    policy: GaussianMixturePolicy
    fixed_arguments: ClassVar[tuple[str, ...]] = ("n_components", "sample_component")
    argument_ranges: ClassVar[dict[str, Range]] = {"n_components": whole_number(2, MAX_SIZE)}
    unit_mean_weights: ClassVar[bool] = False

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
        n_components: int = 8,
        sample_component: bool = False,
        published_code: bool = False,
        **kwargs: Any,
    ) -> None:
        self.n_components = n_components
        self.sample_component = sample_component
        self.published_code = published_code
        super().__init__(policy, env, dataset, learning_rate, batch_size, tau, gamma, **kwargs)

    def _policy_arguments(self) -> dict[str, Any]:
        return {"n_components": self.n_components, "sample_component": self.sample_component}

    def noise_specs(self, batch_size: int) -> dict[str, NoiseSpec]:
        """The random numbers that one update consumes, by name."""
        specs = {}
        for block, delayed in (("next", False), ("baseline", True)):
            specs[f"{block}_action_noise"] = NoiseSpec("normal", (batch_size, self.policy.action_size), delayed=delayed)
            if self.sample_component:
                specs[f"{block}_gumbel_uniform"] = NoiseSpec("uniform", (batch_size, self.n_components), delayed=delayed)
        return specs

    def _target_actions(self, observations: th.Tensor, batch: OfflineBatch, block: str) -> th.Tensor:
        noise = batch.noise
        gate_uniform = noise[f"{block}_gumbel_uniform"] if self.sample_component else None
        return self.policy.actor_target.sample(observations, noise[f"{block}_action_noise"], gate_uniform)

    def next_actions(self, batch: OfflineBatch) -> th.Tensor:
        """Actions of the target actor at the next observations, shape ``(batch, action_size)``."""
        return self._target_actions(batch.next_observations, batch, "next")

    @th.no_grad()
    def baseline(self, batch: OfflineBatch) -> th.Tensor:
        """Value of an action of the target actor under the target critics, shape ``(batch, 1)``."""
        actions = self._target_actions(batch.observations, batch, "baseline")
        return min_max_q(self.policy.critic_target(batch.observations, actions))

    @th.no_grad()
    def advantages(self, batch: OfflineBatch) -> th.Tensor:
        """Advantage of the dataset's actions over those of the target actor, shape ``(batch, 1)``."""
        q_values = min_max_q(self.policy.critic_target(batch.observations, batch.actions))
        return q_values - self.baseline(batch)

    def log_likelihood(self, batch: OfflineBatch) -> th.Tensor:
        """Log-densities of the dataset's actions under the mixture, shape ``(batch, 1)``."""
        log_prob = super().log_likelihood(batch)
        if self.published_code:
            log_prob = th.logaddexp(log_prob, th.full_like(log_prob, math.log(LOG_EPS)))
        return log_prob

    @th.no_grad()
    def diagnostics(self, batch: OfflineBatch) -> Metrics:
        """
        Entropy of the gate's choices in nats, ``component_entropy``, and whether the Gaussians part, see
        :func:`mixture_diagnostics`. 0-d each.
        """
        actor = self.policy.actor
        logits = actor.gate(batch.observations)
        means, log_stds = actor.all_components(batch.observations)
        log_densities = gaussian_log_prob(batch.actions.unsqueeze(1), means, log_stds).squeeze(2)
        posterior = (logits.log_softmax(dim=1) + log_densities).softmax(dim=1)
        metrics = mixture_diagnostics(posterior, logits.argmax(dim=1, keepdim=True), means, batch.actions)
        return metrics | {"component_entropy": entropy(logits.softmax(dim=1).mean(dim=0))}
