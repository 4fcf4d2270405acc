"""TD3+BC."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch.nn import functional as F

from sb3_dmpo.common import ranks
from sb3_dmpo.common.arguments import POSITIVE, Range
from sb3_dmpo.common.losses import min_max_q
from sb3_dmpo.common.type_aliases import Metrics, OfflineBatch
from sb3_dmpo.td3_bc.deterministic_actor_critic import DeterministicActorCritic


class TD3BC(DeterministicActorCritic):
    """
    TD3 whose actor is also pulled towards the dataset's actions.

    Paper: Fujimoto, Gu: *A Minimalist Approach to Offline Reinforcement Learning*, NeurIPS 2021. The updates are those of
    the original implementation. What differs is the data: the last step of an episode cut by a time limit is kept where
    the dataset has its next observation. The original does not change rewards; for AntMaze pass ``reward_shift=-1``.

    :param policy_delay: actor and targets are updated once every ``policy_delay`` updates
    :param alpha: weight of the value term against the cloning term, relative to the mean absolute Q-value
    :param target_policy_noise: standard deviation of the target smoothing noise
    :param target_noise_clip: bound of the target smoothing noise
    :param kwargs: further arguments of :class:`OfflineAlgorithm`, which describes the first ones too
    """

    argument_ranges: ClassVar[dict[str, Range]] = {"alpha": POSITIVE}

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
        policy_delay: int = 2,
        alpha: float = 2.5,
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        **kwargs: Any,
    ) -> None:
        self.alpha = alpha
        super().__init__(
            policy,
            env,
            dataset,
            learning_rate,
            batch_size,
            tau,
            gamma,
            policy_delay=policy_delay,
            target_policy_noise=target_policy_noise,
            target_noise_clip=target_noise_clip,
            **kwargs,
        )

    def next_values(self, batch: OfflineBatch) -> th.Tensor:
        """Smaller target Q-value of the smoothed target action, shape ``(batch, 1)``."""
        return min_max_q(self.policy.critic_target(batch.next_observations, self.smoothed_actions(batch)))

    def actor_loss(self, batch: OfflineBatch) -> tuple[th.Tensor, Metrics]:
        """Negative normalised Q-value of the actor's actions plus their cloning error, 0-d."""
        actions = self.policy.actor(batch.observations)
        q_values = self.policy.critic(batch.observations, actions)[0]
        q_weight = self.alpha / ranks.mean(q_values.detach().abs().mean())
        bc_loss = F.mse_loss(actions, batch.actions)
        loss = bc_loss - q_weight * q_values.mean()
        return loss, {"actor_loss": loss, "bc_loss": bc_loss, "q_weight": q_weight}
