"""Diagonal Gaussian actors and their densities."""

import math

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn


def bounded_log_std(raw: th.Tensor) -> th.Tensor:
    """``-5 + 2.5 (tanh(raw) + 1)``: log standard deviations in (-5, 0), same shape."""
    return -5.0 + 2.5 * (th.tanh(raw) + 1.0)


def gaussian_log_prob(actions: th.Tensor, mean: th.Tensor, log_std: th.Tensor) -> th.Tensor:
    """
    Log-density of a diagonal Gaussian, summed over the action's entries, shape ``(..., 1)``.

    :param actions: shape ``(..., action_size)``
    :param mean: same shape, or one that broadcasts
    :param log_std: same shape, or one that broadcasts
    """
    standardized = (actions - mean) * th.exp(-log_std)
    return (-0.5 * standardized.square() - log_std - 0.5 * math.log(2.0 * math.pi)).sum(dim=-1, keepdim=True)


class GaussianHeads(nn.Module):
    """
    Mean ``tanh(W h + b)`` and ``log std = bounded_log_std(tanh(W h + b))`` on the last hidden layer, as the authors'
    AWAC has them. The two tanh of the standard deviation leave log std in (-4.404, -0.596).

    :param hidden_size: width of the last hidden layer
    :param action_size: A
    """

    def __init__(self, hidden_size: int, action_size: int) -> None:
        super().__init__()
        self.mu = nn.Linear(hidden_size, action_size)
        self.log_std = nn.Linear(hidden_size, action_size)

    def forward(self, hidden: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Mean and log standard deviation, shape ``(..., action_size)`` each."""
        return th.tanh(self.mu(hidden)), bounded_log_std(th.tanh(self.log_std(hidden)))


class GaussianActor(nn.Module):
    """
    Gaussian with state-dependent standard deviation; the mean is bounded, samples are not.

    :param observation_size: S
    :param action_size: A
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation of the hidden layers
    """

    def __init__(
        self, observation_size: int, action_size: int, net_arch: list[int], activation_fn: type[nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.latent_pi = nn.Sequential(*create_mlp(observation_size, -1, net_arch, activation_fn))
        self.heads = GaussianHeads([observation_size, *net_arch][-1], action_size)

    def forward(self, observations: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Mean and log standard deviation, shape ``(batch, action_size)`` each."""
        mean, log_std = self.heads(self.latent_pi(observations))
        return mean, log_std

    def log_prob(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Log-density of actions, shape ``(batch, 1)``.

        :param observations: shape ``(batch, observation_size)``
        :param actions: shape ``(batch, action_size)``
        """
        return gaussian_log_prob(actions, *self(observations))

    def sample(self, observations: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """
        Actions ``mean + std * noise``, not clipped, shape of the noise.

        :param observations: shape ``(batch, observation_size)``
        :param noise: standard normal, shape ``(batch, action_size)``, or ``(n, batch, action_size)`` for n actions each
        """
        mean, log_std = self(observations)
        actions: th.Tensor = mean + log_std.exp() * noise
        return actions
