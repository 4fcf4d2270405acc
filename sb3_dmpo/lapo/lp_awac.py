"""LP-AWAC."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_dmpo.common.arguments import NOT_NEGATIVE, Range
from sb3_dmpo.common.losses import advantage_weights
from sb3_dmpo.lapo.latent_algorithm import LatentPolicyAlgorithm


class LPAWAC(LatentPolicyAlgorithm):
    """
    LP-AWAC: a latent policy with a continuous latent, the counterpart of the mixture's discrete one. A conditional VAE
    is fitted to the data under normalized advantage weights, a deterministic actor acts in its latent space.

    Paper: Osa, Hayashi, Deo, Morihira, Yoshiike: *Offline Reinforcement Learning with Mixture of Deterministic
    Policies*, TMLR 09/2023, appendix E, a simplification of LAPO. Where the paper and the authors' published code
    differ, the code is followed: V regresses on the target critics at the noisy action of the target policy and not on
    the dataset's action (eq. 55), the advantage is a one-step estimate with the target critics, the actor's gradient
    goes through the target decoder (eq. 57), V shares the optimizer of the critics, and nothing is delayed.

    Differences from that code: ``advantage_scale`` is 10 as for the paper's other weighted methods, while the published
    script never passed it on and ran with 5; the decoder's linear output is clipped to the action box by ``predict``
    and not by the environment; the target copy of V, which nothing reads, is left out; equal advantages in a minibatch
    give uniform weights instead of NaN.

    :param advantage_scale: the paper's alpha
    :param kwargs: further arguments of :class:`LatentPolicyAlgorithm`; the first ones are those of :class:`OfflineAlgorithm`
    """

    argument_ranges: ClassVar[dict[str, Range]] = {"advantage_scale": NOT_NEGATIVE}

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
        advantage_scale: float = 10.0,
        **kwargs: Any,
    ) -> None:
        self.advantage_scale = advantage_scale
        super().__init__(policy, env, dataset, learning_rate, batch_size, tau, gamma, **kwargs)

    def weights(self, advantages: th.Tensor) -> th.Tensor:
        """
        Weights of eq. 19 divided by their mean, shape ``(batch, 1)``, without gradient.

        :param advantages: shape ``(batch, 1)``
        """
        return advantage_weights(advantages, self.advantage_scale)
