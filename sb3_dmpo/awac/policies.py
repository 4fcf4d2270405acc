"""Policies with a Gaussian actor and twin critics: one Gaussian for AWAC, a mixture of them for mixAWAC."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn

from sb3_dmpo.common.distributions import GaussianActor, gaussian_log_prob
from sb3_dmpo.common.losses import sampled_component
from sb3_dmpo.common.networks import EnsembleCritic, LatentEmbedding, first_layer_split, remaining_layers
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
        mean, log_std = self.acting("actor")(observations)
        return mean, log_std

    def _predict(self, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:  # type: ignore[override]
        mean, log_std = self.action_distribution(self.scale_observations(observation), deterministic)
        actions = mean if deterministic else th.normal(mean, log_std.exp())
        return actions.clamp(-1.0, 1.0)


class GaussianPolicy(StochasticActorCriticPolicy):
    """
    One Gaussian whose mean and standard deviation depend on the state.

    :param args: arguments of :class:`OfflinePolicy`
    :param kwargs: keyword arguments of :class:`OfflinePolicy`
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_networks(GaussianActor(self.observation_size, self.action_size, self.actor_arch, self.activation_fn))


class GaussianMixtureActor(GaussianActor):
    """
    K Gaussians that share one network, which sees the component as ``relu(W e_k + b)`` beside the observation, and a
    gate ``softmax(gate(s))`` over them.

    :param n_components: K
    :param observation_size: S, also the width of the component's embedding
    :param action_size: A
    :param net_arch: widths of the hidden layers, of the gate and of the components
    :param activation_fn: activation of the hidden layers
    """

    def __init__(
        self, n_components: int, observation_size: int, action_size: int, net_arch: list[int], activation_fn: type[nn.Module]
    ) -> None:
        super().__init__(2 * observation_size, action_size, net_arch, activation_fn)
        self.gate = nn.Sequential(*create_mlp(observation_size, n_components, net_arch, activation_fn))
        self.latent_embedding = LatentEmbedding(n_components, observation_size)
        self.register_buffer("one_hots", th.eye(n_components), persistent=False)
        self.one_hots: th.Tensor

    def choose(self, observations: th.Tensor, gate_uniform: th.Tensor | None = None) -> th.Tensor:
        """
        Index of a component, shape ``(batch,)``.

        :param observations: shape ``(batch, observation_size)``
        :param gate_uniform: U(0, 1) draws, shape ``(batch, n_components)``; None: the most probable component
        """
        logits: th.Tensor = self.gate(observations)
        return logits.argmax(dim=1) if gate_uniform is None else sampled_component(logits.softmax(dim=1), gate_uniform)

    def forward(self, observations: th.Tensor, gate_uniform: th.Tensor | None = None) -> tuple[th.Tensor, th.Tensor]:
        """
        Mean and log standard deviation of one component, shape ``(batch, action_size)`` each.

        :param observations: shape ``(batch, observation_size)``
        :param gate_uniform: see :meth:`choose`
        """
        embedded = self.latent_embedding(self.one_hots)[self.choose(observations, gate_uniform)]
        return super().forward(th.cat([observations, embedded], dim=1))

    def sample(self, observations: th.Tensor, noise: th.Tensor, gate_uniform: th.Tensor | None = None) -> th.Tensor:
        """
        Actions of one component, not clipped, shape ``(batch, action_size)``.

        :param observations: shape ``(batch, observation_size)``
        :param noise: standard normal, shape ``(batch, action_size)``
        :param gate_uniform: see :meth:`choose`
        """
        mean, log_std = self(observations, gate_uniform)
        actions: th.Tensor = mean + log_std.exp() * noise
        return actions

    def all_components(self, observations: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Mean and log standard deviation of every component, shape ``(batch, n_components, action_size)`` each.

        :param observations: shape ``(batch, observation_size)``
        """
        embedded = self.latent_embedding(self.one_hots)
        hidden = first_layer_split(self.latent_pi, observations, embedded.unsqueeze(0))
        mean, log_std = self.heads(remaining_layers(self.latent_pi, hidden))
        return mean, log_std

    def log_prob(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Log-density of actions under the whole mixture, shape ``(batch, 1)``.

        :param observations: shape ``(batch, observation_size)``
        :param actions: shape ``(batch, action_size)``
        """
        log_gate = self.gate(observations).log_softmax(dim=1)
        log_densities = gaussian_log_prob(actions.unsqueeze(1), *self.all_components(observations)).squeeze(2)
        # In logarithms throughout: far from all components the densities are 0, their logarithms are not.
        return th.logsumexp(log_gate + log_densities, dim=1, keepdim=True)


class GaussianMixturePolicy(StochasticActorCriticPolicy):
    """
    A mixture of Gaussians as the actor. Acts with the most probable component, or with a drawn one if
    ``sample_component`` is set and the action is stochastic.

    :param args: arguments of :class:`OfflinePolicy`
    :param n_components: K, number of Gaussians
    :param sample_component: whether stochastic actions draw their component too
    :param kwargs: keyword arguments of :class:`OfflinePolicy`
    """

    min_hidden_layers: ClassVar[int] = 1
    actor: GaussianMixtureActor
    actor_target: GaussianMixtureActor

    def __init__(self, *args: Any, n_components: int = 8, sample_component: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.n_components = n_components
        self.sample_component = sample_component
        sizes = (n_components, self.observation_size, self.action_size)
        self.add_networks(GaussianMixtureActor(*sizes, self.actor_arch, self.activation_fn))

    def action_distribution(self, observations: th.Tensor, deterministic: bool) -> tuple[th.Tensor, th.Tensor]:
        """
        Mean and log standard deviation of the component that ``predict`` acts with, shape ``(batch, action_size)`` each.

        :param observations: scaled observations, shape ``(batch, observation_size)``
        :param deterministic: whether the mean will be taken
        """
        gate_uniform = None
        if self.sample_component and not deterministic:
            gate_uniform = th.rand(len(observations), self.n_components, device=observations.device)
        mean, log_std = self.acting("actor")(observations, gate_uniform)
        return mean, log_std

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        return parameters | {"n_components": self.n_components, "sample_component": self.sample_component}
