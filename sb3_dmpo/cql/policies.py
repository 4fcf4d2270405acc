"""The policy of CQL: a Gaussian squashed by tanh, and its temperature."""

import math
from typing import Any, ClassVar, NamedTuple

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn
from torch.nn import functional as F

from sb3_dmpo.common.distributions import gaussian_log_prob
from sb3_dmpo.common.networks import EnsembleLinear
from sb3_dmpo.common.policies import OfflinePolicy

#: Range of the log standard deviation before the tanh.
LOG_STD_RANGE = (-20.0, 2.0)
#: Gain of the last layers' Xavier initialisation.
OUTPUT_GAIN = 0.01
#: Actions are kept this far inside of the bounds when tanh is inverted.
ATANH_MARGIN = 1e-6


def log_tanh_derivative(u: th.Tensor) -> th.Tensor:
    """``log(1 - tanh(u)^2)`` in a form that does not underflow, same shape."""
    return 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))


class SquashedGaussian(NamedTuple):
    """
    The distribution of ``tanh(u)``, u normal with independent entries.

    :param mean: mean of u, shape ``(..., action_size)``
    :param log_std: log standard deviation of u, same shape
    """

    mean: th.Tensor
    log_std: th.Tensor

    def several(self) -> "SquashedGaussian":
        """The same with an axis for several actions per row, shape ``(batch, 1, action_size)``, cut off the gradient."""
        return SquashedGaussian(self.mean.detach().unsqueeze(1), self.log_std.detach().unsqueeze(1))

    def mode(self) -> th.Tensor:
        """Image of the mean, shape ``(..., action_size)``."""
        return th.tanh(self.mean)

    def sample(self, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Actions in [-1, 1], shape of the noise, and their log-densities, shape ``(..., 1)``.

        :param noise: standard normal, shape ``(..., action_size)``, broadcast against the mean
        """
        u = self.mean + self.log_std.exp() * noise
        # (u - mean) / std is the noise itself.
        summands = 0.5 * noise.square() + self.log_std + log_tanh_derivative(u)
        return th.tanh(u), -0.5 * math.log(2.0 * math.pi) * noise.shape[-1] - summands.sum(dim=-1, keepdim=True)

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """
        Log-densities of actions, shape ``(..., 1)``.

        :param actions: in [-1, 1], shape ``(..., action_size)``
        """
        u = th.atanh(actions.clamp(-1.0 + ATANH_MARGIN, 1.0 - ATANH_MARGIN))
        return gaussian_log_prob(u, self.mean, self.log_std) - log_tanh_derivative(u).sum(dim=-1, keepdim=True)


def output_init(layer: nn.Module) -> None:
    """
    Initialise a last layer, or each one of an ensemble, to nearly zero.

    :param layer: ``nn.Linear`` or :class:`EnsembleLinear`
    """
    assert isinstance(layer, nn.Linear | EnsembleLinear)
    for weight in [layer.weight] if isinstance(layer, nn.Linear) else layer.weight.unbind():
        nn.init.xavier_uniform_(weight, OUTPUT_GAIN)
    nn.init.zeros_(layer.bias)


class SquashedGaussianActor(nn.Module):
    """
    Squashed Gaussian whose log standard deviation is the network's output on a trained scale with a trained offset.

    :param observation_size: S
    :param action_size: A
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation of the hidden layers
    """

    def __init__(self, observation_size: int, action_size: int, net_arch: list[int], activation_fn: type[nn.Module]) -> None:
        super().__init__()
        self.mean_and_log_std = nn.Sequential(*create_mlp(observation_size, 2 * action_size, net_arch, activation_fn))
        self.log_std_multiplier = nn.Parameter(th.ones(()))
        self.log_std_offset = nn.Parameter(-th.ones(()))
        output_init(self.mean_and_log_std[-1])

    def forward(self, observations: th.Tensor) -> SquashedGaussian:
        """Distribution of the actions at every observation."""
        mean, raw = self.mean_and_log_std(observations).chunk(2, dim=1)
        return SquashedGaussian(mean, (self.log_std_multiplier * raw + self.log_std_offset).clamp(*LOG_STD_RANGE))


class CQLPolicy(OfflinePolicy):
    """
    A squashed Gaussian actor, twin critics with targets, and the trained temperature of the entropy term.

    :param args: arguments of :class:`OfflinePolicy`
    :param kwargs: keyword arguments of :class:`OfflinePolicy`
    """

    default_net_arch: ClassVar[tuple[int, ...]] = (256, 256, 256)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.actor: SquashedGaussianActor = SquashedGaussianActor(
            self.observation_size, self.action_size, self.actor_arch, self.activation_fn
        )
        self.critic = self.make_critic()
        output_init(self.critic.layers[-1])
        self.critic_target = self.make_target(self.critic)
        self.log_ent_coef = nn.Parameter(th.zeros(()))

    def _predict(self, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:  # type: ignore[override]
        distribution = self.acting("actor")(self.scale_observations(observation))
        actions: th.Tensor = distribution.mode() if deterministic else distribution.sample(th.randn_like(distribution.mean))[0]
        return actions
