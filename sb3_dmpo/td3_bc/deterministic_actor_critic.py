"""What TD3+BC and ReBRAC have in common: the update of TD3."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_dmpo.common.arguments import NOT_NEGATIVE, Range
from sb3_dmpo.common.losses import smoothing_noise
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.policies import DeterministicActorCriticPolicy
from sb3_dmpo.common.type_aliases import Metrics, NoiseSpec, OfflineBatch


class DeterministicActorCritic(OfflineAlgorithm):
    """
    TD3: critics that bootstrap from the smoothed actions of a target actor, and a delayed deterministic actor. A subclass says
    in :meth:`actor_loss` what the actor learns.

    :param policy_delay: actor and targets are updated once every ``policy_delay`` updates
    :param target_policy_noise: standard deviation of the target smoothing noise
    :param target_noise_clip: bound of the target smoothing noise
    :param kwargs: further arguments of :class:`OfflineAlgorithm`, which describes the first ones too
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(
        ("MlpPolicy", "MultiInputPolicy"), DeterministicActorCriticPolicy
    )
    policy: DeterministicActorCriticPolicy
    #: The argument that holds the critics' learning rate.
    critic_rate: ClassVar[str] = "learning_rate"
    argument_ranges: ClassVar[dict[str, Range]] = {
        "target_noise_clip": NOT_NEGATIVE,
        "target_policy_noise": NOT_NEGATIVE,
    }

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
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        **kwargs: Any,
    ) -> None:
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip
        super().__init__(policy, env, dataset, learning_rate, batch_size, tau, gamma, policy_delay, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.add_optimizer("critic", [self.policy.critic], self.critic_rate)
        self.add_optimizer("actor", [self.policy.actor])
        self.add_target(self.policy.critic, self.policy.critic_target)
        self.add_target(self.policy.actor, self.policy.actor_target)

    def noise_specs(self, batch_size: int) -> dict[str, NoiseSpec]:
        """The random numbers that one update consumes, by name."""
        return {"target_noise": NoiseSpec("normal", (batch_size, self.policy.action_size))}

    def smoothed_actions(self, batch: OfflineBatch) -> th.Tensor:
        """Actions of the target actor at the next observations plus noise, shape ``(batch, action_size)``."""
        noise = smoothing_noise(batch.noise["target_noise"], self.target_policy_noise, self.target_noise_clip)
        actions: th.Tensor = self.policy.actor_target(batch.next_observations) + noise
        return actions.clamp(-1.0, 1.0)

    def actor_loss(self, batch: OfflineBatch) -> tuple[th.Tensor, Metrics]:
        """
        What the actor minimises, 0-d.

        :param batch: the minibatch
        """
        raise NotImplementedError()

    def update(self, batch: OfflineBatch) -> Metrics:
        """One update of the critics, and every ``policy_delay`` updates of the actor."""
        loss, metrics = self.critic_loss(batch)
        self.optimize("critic", loss)
        if self.is_policy_update:
            loss, parts = self.actor_loss(batch)
            self.optimize("actor", loss)
            metrics |= parts
        return metrics
