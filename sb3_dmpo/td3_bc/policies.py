"""The policy of ReBRAC."""

from typing import Any, ClassVar

import torch as th
from torch import nn

from sb3_dmpo.common.networks import EnsembleLinear
from sb3_dmpo.common.policies import DeterministicActorCriticPolicy

#: Biases of the hidden layers at the start.
HIDDEN_BIAS = 0.1
#: Bounds of the last layers' weights and biases at the start.
ACTOR_BOUND, CRITIC_BOUND = 1e-3, 3e-3


@th.no_grad()
def near_zero_init(module: nn.Module, bound: float) -> None:
    """
    Give the hidden layers a constant bias, and the last one weights and biases near zero.

    :param module: a network of linear layers
    :param bound: largest absolute value in the last layer
    """
    *hidden, last = [layer for layer in module.modules() if isinstance(layer, nn.Linear | EnsembleLinear)]
    for layer in hidden:
        layer.bias.fill_(HIDDEN_BIAS)
    last.weight.uniform_(-bound, bound)
    last.bias.uniform_(-bound, bound)


class ReBRACPolicy(DeterministicActorCriticPolicy):
    """
    A deterministic actor and layer-normed critics, all of three hidden layers unless told otherwise, that begin near zero.

    :param args: arguments of :class:`OfflinePolicy`
    :param critic_layer_norm: whether a layer norm follows on the activation of every hidden layer of the critics
    :param kwargs: keyword arguments of :class:`OfflinePolicy`
    """

    default_net_arch: ClassVar[tuple[int, ...]] = (256, 256, 256)

    def __init__(self, *args: Any, critic_layer_norm: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, critic_layer_norm=critic_layer_norm, **kwargs)
        near_zero_init(self.actor, ACTOR_BOUND)
        near_zero_init(self.critic, CRITIC_BOUND)
        self.actor_target = self.make_target(self.actor)
        self.critic_target = self.make_target(self.critic)
