"""ReBRAC."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_dmpo.common import ranks
from sb3_dmpo.common.arguments import NOT_NEGATIVE, OWN_LEARNING_RATE, Range
from sb3_dmpo.common.losses import min_max_q
from sb3_dmpo.common.type_aliases import Metrics, OfflineBatch
from sb3_dmpo.td3_bc.deterministic_actor_critic import DeterministicActorCritic
from sb3_dmpo.td3_bc.policies import ReBRACPolicy


class ReBRAC(DeterministicActorCritic):
    """
    TD3+BC with a cloning penalty of its own for the critics, layer norm in them, deeper networks and larger minibatches.

    Paper: Tarasov, Kurenkov, Nikulin, Kolesnikov: *Revisiting the Minimalist Approach to Offline Reinforcement Learning*,
    NeurIPS 2023. Where the paper is silent the authors' code is followed: the layer norm stands behind the activation, the
    actor climbs the smallest Q-value, hidden biases begin at 0.1 and last layers near zero, and a step that has no next action
    although the task goes on, the last one of an episode cut by a time limit, is left out of the data.

    Differences from that code: the targets follow the actor as it is after its step, not before it, and the actor moves with
    the second update of each pair, as in TD3. In :meth:`learn_online` the newest step of an episode has no next action yet:
    such a step is kept, and its target carries no penalty. The coefficients belong to the dataset: zoo_configs/rebrac.yml has
    those of the paper. For AntMaze the authors use ``reward_scale=100``.

    :param policy_delay: actor and targets are updated once every ``policy_delay`` updates
    :param critic_learning_rate: learning rate of the critics; None: ``learning_rate``, which is that of the actor
    :param actor_bc_coef: weight of the actor's distance to the dataset's actions, the paper's beta_1
    :param critic_bc_coef: weight of the distance of the target's actions to the dataset's next ones, beta_2
    :param normalize_q: divide the actor's Q-values by their mean absolute value, as TD3+BC does
    :param target_policy_noise: standard deviation of the target smoothing noise
    :param target_noise_clip: bound of the target smoothing noise
    :param normalize_observations: scale observations; off as in the original
    :param kwargs: further arguments of :class:`OfflineAlgorithm`, which describes the first ones too
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(("MlpPolicy", "MultiInputPolicy"), ReBRACPolicy)
    policy: ReBRACPolicy
    critic_rate: ClassVar[str] = "critic_learning_rate"
    argument_ranges: ClassVar[dict[str, Range]] = {
        "actor_bc_coef": NOT_NEGATIVE,
        "critic_bc_coef": NOT_NEGATIVE,
        "critic_learning_rate": OWN_LEARNING_RATE,
    }
    needs_next_actions = True

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        dataset: Any = None,
        learning_rate: float | Schedule = 1e-3,
        batch_size: int = 1024,
        tau: float = 0.005,
        gamma: float = 0.99,
        *,
        policy_delay: int = 2,
        critic_learning_rate: float | Schedule | None = None,
        actor_bc_coef: float = 0.01,
        critic_bc_coef: float = 0.01,
        normalize_q: bool = True,
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        normalize_observations: bool = False,
        **kwargs: Any,
    ) -> None:
        self.critic_learning_rate = critic_learning_rate
        self.actor_bc_coef = actor_bc_coef
        self.critic_bc_coef = critic_bc_coef
        self.normalize_q = normalize_q
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
            normalize_observations=normalize_observations,
            **kwargs,
        )

    def next_values(self, batch: OfflineBatch) -> th.Tensor:
        """
        Smaller target Q-value of the smoothed target action less its penalty, shape ``(batch, 1)``. Where the task ends
        there is no next action, and what is here is not used.
        """
        assert batch.next_actions is not None and batch.has_next_action is not None
        actions = self.smoothed_actions(batch)
        q_values = min_max_q(self.policy.critic_target(batch.next_observations, actions))
        penalty = (actions - batch.next_actions).square().sum(dim=1, keepdim=True) * batch.has_next_action
        return q_values - self.critic_bc_coef * penalty

    def actor_loss(self, batch: OfflineBatch) -> tuple[th.Tensor, Metrics]:
        """Weighted squared distance of the actor's actions to the dataset's, less their smaller Q-value, 0-d."""
        actions = self.policy.actor(batch.observations)
        q_values = min_max_q(self.policy.critic(batch.observations, actions))
        size = ranks.mean(q_values.detach().abs().mean()) if self.normalize_q else None
        q_weight = th.ones_like(q_values[0, 0]) if size is None else 1.0 / size
        bc_loss = (actions - batch.actions).square().sum(dim=1).mean()
        loss = self.actor_bc_coef * bc_loss - q_weight * q_values.mean()
        return loss, {"actor_loss": loss, "bc_loss": bc_loss, "q_weight": q_weight}
