"""The latent policy with standardized actions."""

from typing import Any, ClassVar

import torch as th

from sb3_dmpo.common.latent_policies import LatentPolicy


class LAPOPolicy(LatentPolicy):
    """
    Latent policy whose networks see standardized observations and actions, ``(x - mean) / (std + 1e-6)``.

    :param args: arguments of :class:`LatentPolicy`
    :param net_arch: widths of the hidden layers; None: three layers of 256
    :param kwargs: keyword arguments of :class:`LatentPolicy`
    """

    scale_eps: ClassVar[float] = 1e-6

    def __init__(self, *args: Any, net_arch: list[int] | dict[str, list[int]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"net_arch": [256, 256, 256] if net_arch is None else net_arch})
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
        actions = self.latent_actions(self.scale_observations(observation), self.actor)
        return (actions * self.action_std + self.action_mean).clamp(-1.0, 1.0)
