"""The policy of AWAC."""

from typing import Any

from sb3_dmpo.common.gaussian import GaussianActor
from sb3_dmpo.common.stochastic_policies import StochasticActorCriticPolicy


class GaussianPolicy(StochasticActorCriticPolicy):
    """
    One Gaussian whose mean and standard deviation depend on the state.

    :param args: arguments of :class:`OfflinePolicy`
    :param kwargs: keyword arguments of :class:`OfflinePolicy`
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_networks(GaussianActor(self.observation_size, self.action_size, self.actor_arch, self.activation_fn))
