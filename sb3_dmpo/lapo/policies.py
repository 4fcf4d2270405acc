"""The latent policies of LAPO and LP-AWAC."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn

from sb3_dmpo.common.losses import min_max_q
from sb3_dmpo.common.networks import Actor
from sb3_dmpo.common.policies import OfflinePolicy


class LatentActor(Actor):
    """
    Deterministic actor ``pi(s)`` in the latent space, every entry in plus/minus ``latent_bound``.

    :param observation_size: S
    :param latent_size: L
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation of the hidden layers
    :param latent_bound: largest absolute value of an entry
    """

    def __init__(
        self,
        observation_size: int,
        latent_size: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        latent_bound: float,
    ) -> None:
        super().__init__(observation_size, latent_size, net_arch, activation_fn)
        self.latent_bound = latent_bound

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Latent actions, shape ``(batch, latent_size)``."""
        return self.latent_bound * super().forward(observations)


class ConditionalVAE(nn.Module):
    """
    Variational autoencoder of the actions, given the observation; the decoder's output is not bounded.

    :param observation_size: S
    :param action_size: A
    :param latent_size: L
    :param net_arch: widths of the hidden layers of encoder and decoder
    :param activation_fn: activation of the hidden layers
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        latent_size: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
    ) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*create_mlp(observation_size + action_size, -1, net_arch, activation_fn))
        width = [observation_size + action_size, *net_arch][-1]
        self.mean, self.log_var = nn.Linear(width, latent_size), nn.Linear(width, latent_size)
        self.decoder = nn.Sequential(*create_mlp(observation_size + latent_size, action_size, net_arch, activation_fn))

    def encode(self, observations: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Mean and log-variance of the latent, shape ``(batch, latent_size)`` each.

        :param observations: shape ``(batch, observation_size)``
        :param actions: shape ``(batch, action_size)``
        """
        hidden = self.encoder(th.cat([observations, actions], dim=1))
        return self.mean(hidden), self.log_var(hidden)

    def decode(self, observations: th.Tensor, latents: th.Tensor) -> th.Tensor:
        """
        Actions, shape ``(batch, action_size)``.

        :param observations: shape ``(batch, observation_size)``
        :param latents: shape ``(batch, latent_size)``
        """
        actions: th.Tensor = self.decoder(th.cat([observations, latents], dim=1))
        return actions


class LatentPolicy(OfflinePolicy):
    """
    A deterministic actor in the latent space of a conditional VAE: actions are ``decode(s, pi(s))``, decoded by the
    target copy of the VAE in training and in ``predict``, where they are also clipped to [-1, 1].

    :param args: arguments of :class:`OfflinePolicy`
    :param latent_size: L, size of the latent; None: twice the size of the action
    :param latent_bound: largest absolute value of the actor's latents
    :param kwargs: keyword arguments of :class:`OfflinePolicy`
    """

    def __init__(self, *args: Any, latent_size: int | None = None, latent_bound: float = 2.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.latent_size = 2 * self.action_size if latent_size is None else latent_size
        self.latent_bound = latent_bound
        self.actor: LatentActor = LatentActor(
            self.observation_size, self.latent_size, self.actor_arch, self.activation_fn, latent_bound
        )
        self.actor_target = self.make_target(self.actor)
        self.vae = ConditionalVAE(
            self.observation_size, self.action_size, self.latent_size, self.actor_arch, self.activation_fn
        )
        self.vae_target = self.make_target(self.vae)
        self.critic = self.make_critic()
        self.critic_target = self.make_target(self.critic)
        self.value = self.make_value_network()

    def latent_actions(self, observations: th.Tensor, actor: LatentActor, noise: th.Tensor | None = None) -> th.Tensor:
        """
        Actions of a latent actor, decoded by the target VAE, not clipped, shape ``(batch, action_size)``.

        :param observations: scaled observations, shape ``(batch, observation_size)``
        :param actor: online or target actor
        :param noise: added to the latents, shape ``(batch, latent_size)``
        """
        latents = actor(observations)
        return self.vae_target.decode(observations, latents if noise is None else latents + noise)

    def _predict(self, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:  # type: ignore[override]
        return self.latent_actions(self.scale_observations(observation), self.acting("actor")).clamp(-1.0, 1.0)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        return parameters | {"latent_size": self.latent_size, "latent_bound": self.latent_bound}


class LAPOPolicy(LatentPolicy):
    """
    Latent policy whose networks see standardized observations and actions, ``(x - mean) / (std + 1e-6)``.

    :param args: arguments of :class:`LatentPolicy`
    :param kwargs: keyword arguments of :class:`LatentPolicy`
    """

    scale_eps: ClassVar[float] = 1e-6
    default_net_arch: ClassVar[tuple[int, ...]] = (256, 256, 256)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("action_mean", th.zeros(self.action_size))
        self.register_buffer("action_std", th.ones(self.action_size))
        self.action_mean: th.Tensor
        self.action_std: th.Tensor

    def set_action_statistics(self, mean: th.Tensor, std: th.Tensor) -> None:
        """
        Set the action scaler to ``(a - mean) / (std + scale_eps)``.

        :param mean: shape ``(action_size,)``
        :param std: population standard deviation, shape ``(action_size,)``
        """
        self.action_mean.copy_(mean)
        self.action_std.copy_(std + self.scale_eps)

    def standardize_actions(self, actions: th.Tensor) -> th.Tensor:
        """
        What the networks see of the dataset's actions, same shape.

        :param actions: in [-1, 1], shape ``(batch, action_size)``
        """
        return (actions - self.action_mean) / self.action_std

    def _predict(self, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:  # type: ignore[override]
        actions = self.latent_actions(self.scale_observations(observation), self.acting("actor"))
        return (actions * self.action_std + self.action_mean).clamp(-1.0, 1.0)

    def acting_values(self, observation: th.Tensor) -> th.Tensor:
        """
        As in the base class; the critics know standardized actions.

        :param observation: flat raw observations, shape ``(batch, observation_size)``
        """
        actions = self.standardize_actions(self._predict(observation, deterministic=True))
        return min_max_q(self.critic(self.scale_observations(observation), actions))
