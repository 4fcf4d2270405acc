"""AWAC."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_dmpo.awac.policies import GaussianPolicy
from sb3_dmpo.awac.weighted_actor_critic import WeightedActorCritic
from sb3_dmpo.common.arguments import SIZE, Range
from sb3_dmpo.common.losses import min_max_q
from sb3_dmpo.common.type_aliases import NoiseSpec, OfflineBatch


class AWAC(WeightedActorCritic):
    """
    Advantage-weighted actor-critic with one Gaussian, in the variant of the DMPO paper: the counterpart of DMPO with a
    unimodal policy.

    Papers: Nair, Gupta, Dalal, Levine: *AWAC: Accelerating Online Reinforcement Learning with Offline Datasets*, 2020;
    the variant: Osa, Hayashi, Deo, Morihira, Yoshiike: *Offline Reinforcement Learning with Mixture of Deterministic
    Policies*, TMLR 09/2023, appendix F.

    Differences of the variant from the original AWAC: weights normalised by the range of the advantages in the minibatch
    (eq. 19) instead of ``exp(A / lambda)``, a delayed actor, a tanh on the mean, log standard deviations that depend on
    the state, and scaled observations. Where the paper and the authors' published code differ: the weights are those of
    the paper divided by their mean (``advantage_weight="max_shifted"`` is the default of the published script, without
    the division by the range); as in the code, the critics bootstrap from the online actor, and the baseline is the mean
    value of a few actions of the target actor under the online critics. Differences from that code: equal advantages in
    a minibatch, and ``advantage_scale=0``, give uniform weights. The paper's batch size is 1024, the code's 256.

    :param n_value_samples: number of actions whose mean value is the baseline of the advantage
    :param kwargs: further arguments of :class:`WeightedActorCritic`; the first ones are those of :class:`OfflineAlgorithm`
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": GaussianPolicy, "MultiInputPolicy": GaussianPolicy}
    argument_ranges: ClassVar[dict[str, Range]] = {"n_value_samples": SIZE}

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
        n_value_samples: int = 5,
        **kwargs: Any,
    ) -> None:
        self.n_value_samples = n_value_samples
        super().__init__(policy, env, dataset, learning_rate, batch_size, tau, gamma, **kwargs)

    def noise_specs(self, batch_size: int) -> dict[str, NoiseSpec]:
        """The random numbers that one update consumes, by name; those of the baseline sample by sample."""
        size = self.policy.action_size
        return {
            "next_action_noise": NoiseSpec("normal", (batch_size, size)),
            "baseline_noise": NoiseSpec("normal", (self.n_value_samples * batch_size, size), delayed=True),
        }

    def next_actions(self, batch: OfflineBatch) -> th.Tensor:
        """Actions of the online actor at the next observations, shape ``(batch, action_size)``."""
        return self.policy.actor.sample(batch.next_observations, batch.noise["next_action_noise"])

    @th.no_grad()
    def baseline(self, batch: OfflineBatch) -> th.Tensor:
        """Mean value of actions of the target actor under the online critics, shape ``(batch, 1)``."""
        noise = batch.noise["baseline_noise"].view(self.n_value_samples, *batch.actions.shape)
        actions = self.policy.actor_target.sample(batch.observations, noise)
        q_values = min_max_q(self.policy.critic.all_actions(batch.observations, actions.transpose(0, 1)))
        return q_values.mean(dim=1, keepdim=True)

    @th.no_grad()
    def advantages(self, batch: OfflineBatch) -> th.Tensor:
        """Advantage of the dataset's actions over those of the target actor, shape ``(batch, 1)``."""
        q_values = min_max_q(self.policy.critic(batch.observations, batch.actions))
        return q_values - self.baseline(batch)
