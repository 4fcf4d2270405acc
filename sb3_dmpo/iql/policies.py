"""The Gaussian actors of IQL's two variants."""

import itertools
import math
from typing import Any, Literal

import torch as th
from torch import nn

from sb3_dmpo.common.distributions import GaussianActor, bounded_log_std, gaussian_log_prob
from sb3_dmpo.common.networks import EnsembleLinear, drop
from sb3_dmpo.common.policies import OfflinePolicy

IQLVariant = Literal["original", "dmpo"]

#: Range of the log standard deviation in the original implementation.
LOG_STD_RANGE = (-5.0, 2.0)


def orthogonal_init(module: nn.Module) -> None:
    """
    Give all linear layers orthogonal weights of gain ``sqrt(2)`` and zero biases; the members of an ensemble independently.

    :param module: the network
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | EnsembleLinear):
            for weight in [layer.weight] if isinstance(layer, nn.Linear) else layer.weight.unbind():
                nn.init.orthogonal_(weight, math.sqrt(2.0))
            nn.init.zeros_(layer.bias)


class SharedStdActor(nn.Module):
    """
    Gaussian with mean ``tanh(mu(s))`` and one trained log standard deviation per action entry, the same in all states.

    :param observation_size: S
    :param action_size: A
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation of the hidden layers
    :param dropout: probability of zeroing a hidden unit while training
    """

    def __init__(
        self, observation_size: int, action_size: int, net_arch: list[int], activation_fn: type[nn.Module], dropout: float
    ) -> None:
        super().__init__()
        sizes = [observation_size, *net_arch]
        self.latent_pi = nn.ModuleList(nn.Sequential(nn.Linear(*pair), activation_fn()) for pair in itertools.pairwise(sizes))
        self.mu = nn.Linear(sizes[-1], action_size)
        self.log_std = nn.Parameter(th.zeros(action_size))
        self.dropout = dropout
        self.net_arch = net_arch

    def forward(self, observations: th.Tensor, dropout_uniform: th.Tensor | None = None) -> tuple[th.Tensor, th.Tensor]:
        """
        Mean and log standard deviation, shape ``(batch, action_size)`` each.

        :param observations: shape ``(batch, observation_size)``
        :param dropout_uniform: U(0, 1) draws that decide which hidden units are dropped, shape ``(batch, sum(net_arch))``;
            None keeps all
        """
        hidden = observations
        draws = [None] * len(self.net_arch) if dropout_uniform is None else th.split(dropout_uniform, self.net_arch, dim=1)
        for layer, uniform in zip(self.latent_pi, draws, strict=True):
            hidden = drop(layer(hidden), uniform, self.dropout)
        mean = th.tanh(self.mu(hidden))
        return mean, self.log_std.clamp(*LOG_STD_RANGE).expand_as(mean)

    def log_prob(self, observations: th.Tensor, actions: th.Tensor, dropout_uniform: th.Tensor | None = None) -> th.Tensor:
        """
        Log-density of actions, shape ``(batch, 1)``.

        :param observations: shape ``(batch, observation_size)``
        :param actions: shape ``(batch, action_size)``
        :param dropout_uniform: see :meth:`forward`
        """
        return gaussian_log_prob(actions, *self(observations, dropout_uniform))


class NarrowDensityActor(GaussianActor):
    """
    The authors' re-implementation: samples have log std in (-4.404, -0.596), but the density that is maximised bounds it
    once more, to about (-5.0, -3.84).
    """

    def log_prob(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Log-density of actions, shape ``(batch, 1)``.

        :param observations: shape ``(batch, observation_size)``
        :param actions: shape ``(batch, action_size)``
        """
        mean, log_std = self(observations)
        return gaussian_log_prob(actions, mean, bounded_log_std(log_std))


class IQLPolicy(OfflinePolicy):
    """
    A Gaussian actor, twin critics with their targets and a state-value network.

    :param args: arguments of :class:`OfflinePolicy`
    :param variant: ``"original"``: :class:`SharedStdActor` and orthogonal initialisation of all networks; ``"dmpo"``:
        :class:`NarrowDensityActor` and PyTorch's initialisation
    :param dropout: probability of zeroing a hidden unit of the original's actor while training
    :param kwargs: keyword arguments of :class:`OfflinePolicy`
    """

    actor: SharedStdActor | NarrowDensityActor

    def __init__(self, *args: Any, variant: IQLVariant = "original", dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.variant = variant
        self.dropout = dropout
        sizes = (self.observation_size, self.action_size)
        self.critic = self.make_critic()
        self.value = self.make_value_network()
        if variant == "original":
            self.actor = SharedStdActor(*sizes, self.actor_arch, self.activation_fn, dropout)
            for network in (self.actor, self.critic, self.value):
                orthogonal_init(network)
        else:
            self.actor = NarrowDensityActor(*sizes, self.actor_arch, self.activation_fn)
        self.critic_target = self.make_target(self.critic)

    def _predict(self, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:  # type: ignore[override]
        mean, log_std = self.acting("actor")(self.scale_observations(observation))
        actions: th.Tensor = mean if deterministic else th.normal(mean, log_std.exp())
        return actions.clamp(-1.0, 1.0)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"variant": self.variant, "dropout": self.dropout}
