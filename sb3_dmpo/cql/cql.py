"""CQL."""

import math
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_dmpo.common.arguments import COUNT_OR_ZERO, FINITE, LEARNING_RATE, NOT_NEGATIVE, SIZE, Range, optional
from sb3_dmpo.common.losses import bellman_targets, min_max_q, twin_critic_loss
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.type_aliases import Metrics, NoiseSpec, OfflineBatch
from sb3_dmpo.cql.action_tables import action_values
from sb3_dmpo.cql.policies import CQLPolicy, SquashedGaussian


class CQL(OfflineAlgorithm):
    """
    Conservative Q-learning on top of SAC: the critics are pushed down where the policy would act and up at the dataset's
    actions.

    Paper: Kumar, Zhou, Tucker, Levine: *Conservative Q-Learning for Offline Reinforcement Learning*, NeurIPS 2020. The
    updates are those of the PyTorch implementation by its author and X. Geng (no Lagrange multiplier, no entropy in the
    target, Xavier initialisation of the last layers with gain 0.01), with the settings of the DMPO paper's table 13:
    three hidden layers, ``conservative_weight=10``, actor at 3e-5, and an actor that is cloned during the first 40 000
    updates. That implementation's own defaults are two layers, 5, 3e-4 and no pre-training. **A run shorter than the
    pre-training never improves the actor by the critics**; lower ``pretraining_updates`` then.

    Differences from that implementation: both critics share one optimizer (Adam acts on each parameter alone, the steps
    are the same); densities of sampled actions are computed from their noise; and the last step of an episode cut by a
    time limit is kept where the dataset has its next observation. Rewards are not changed; for AntMaze pass
    ``reward_shift=-1``.

    :param actor_learning_rate: learning rate of actor and temperature (``learning_rate`` is that of the critics)
    :param conservative_weight: weight of the conservative term
    :param n_action_samples: number of actions of each of the three kinds (uniform, policy at the observation, policy at
        the next observation) in the conservative term
    :param importance_sampling: weight these actions by their inverse densities, CQL(H); False: CQL(rho), where they and
        the dataset's action count alike (the DMPO paper on Adroit)
    :param pretraining_updates: number of updates during which the actor maximises the likelihood of the dataset's actions
        instead of their Q-values
    :param target_entropy: entropy that the temperature aims at; None: minus the size of the action
    :param normalize_observations: scale observations; off as in the original
    :param kwargs: further arguments of :class:`OfflineAlgorithm`, which describes the first ones too
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": CQLPolicy, "MultiInputPolicy": CQLPolicy}
    policy: CQLPolicy
    argument_ranges: ClassVar[dict[str, Range]] = {
        "actor_learning_rate": LEARNING_RATE,
        "conservative_weight": NOT_NEGATIVE,
        "n_action_samples": SIZE,
        "pretraining_updates": COUNT_OR_ZERO,
        "target_entropy": optional(FINITE),
    }
    action_clip: ClassVar[float] = 0.999

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
        actor_learning_rate: float | Schedule = 3e-5,
        conservative_weight: float = 10.0,
        n_action_samples: int = 10,
        importance_sampling: bool = True,
        pretraining_updates: int = 40_000,
        target_entropy: float | None = None,
        normalize_observations: bool = False,
        **kwargs: Any,
    ) -> None:
        self.actor_learning_rate = actor_learning_rate
        self.conservative_weight = conservative_weight
        self.n_action_samples = n_action_samples
        self.importance_sampling = importance_sampling
        self.pretraining_updates = pretraining_updates
        self.target_entropy = target_entropy
        super().__init__(
            policy,
            env,
            dataset,
            learning_rate,
            batch_size,
            tau,
            gamma,
            normalize_observations=normalize_observations,
            **kwargs,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.target_entropy is None:
            self.target_entropy = -float(self.policy.action_size)
        self.add_optimizer("ent_coef", [self.policy.log_ent_coef], "actor_learning_rate")
        self.add_optimizer("actor", [self.policy.actor], "actor_learning_rate")
        self.add_optimizer("critic", [self.policy.critic])
        self.add_target(self.policy.critic, self.policy.critic_target)

    def noise_specs(self, batch_size: int) -> dict[str, NoiseSpec]:
        """The random numbers that one update consumes, by name."""
        one, several = (batch_size, self.policy.action_size), (batch_size, self.n_action_samples, self.policy.action_size)
        return {
            "pi_noise": NoiseSpec("normal", one, delayed=True),
            "next_pi_noise": NoiseSpec("normal", one),
            "random_actions_uniform": NoiseSpec("uniform", several),
            "cur_noise": NoiseSpec("normal", several),
            "next_noise": NoiseSpec("normal", several),
        }

    @property
    def is_pretraining(self) -> bool:
        """Whether the actor is cloned in the current update."""
        return self._n_updates <= self.pretraining_updates

    def update_variant(self, batch_size: int) -> tuple[Any, ...]:
        """What decides which operations the current update consists of."""
        return *super().update_variant(batch_size), self.is_pretraining

    def ent_coef_loss(self, log_prob: th.Tensor) -> tuple[th.Tensor, Metrics]:
        """
        Loss of the temperature, 0-d: it grows while the entropy is below its target.

        :param log_prob: log-densities of the actor's own actions, shape ``(batch, 1)``
        """
        assert self.target_entropy is not None
        loss = -(self.policy.log_ent_coef * (log_prob.detach() + self.target_entropy)).mean()
        return loss, {"ent_coef_loss": loss, "ent_coef": self.policy.log_ent_coef.detach().exp()}

    def actor_loss(
        self, batch: OfflineBatch, distribution: SquashedGaussian, actions: th.Tensor, log_prob: th.Tensor
    ) -> tuple[th.Tensor, Metrics]:
        """
        Negative entropy-regularised value of the actor's actions, or, while pre-training, negative log-likelihood of the
        dataset's, 0-d.

        :param batch: the minibatch
        :param distribution: the actor's at the observations
        :param actions: drawn from it, shape ``(batch, action_size)``
        :param log_prob: their log-densities, shape ``(batch, 1)``
        """
        if self.is_pretraining:
            objective = distribution.log_prob(batch.actions)
        else:
            objective = min_max_q(self.policy.critic(batch.observations, actions))
        loss = (self.policy.log_ent_coef.detach().exp() * log_prob - objective).mean()
        return loss, {"actor_loss": loss}

    @th.no_grad()
    def next_values(self, batch: OfflineBatch, following: SquashedGaussian | None = None) -> th.Tensor:
        """
        Smaller target Q-value of a sampled next action, without entropy, shape ``(batch, 1)``.

        :param batch: the minibatch
        :param following: the actor's distribution at the next observations, if it is known already
        """
        following = following or self.policy.actor(batch.next_observations)
        next_actions, _ = following.sample(batch.noise["next_pi_noise"])
        return min_max_q(self.policy.critic_target(batch.next_observations, next_actions))

    @th.no_grad()
    def contrast_actions(
        self, batch: OfflineBatch, current: SquashedGaussian, following: SquashedGaussian
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        The actions whose values are pushed down, uniform, of the policy at the next observation, and of the policy at the
        observation, shape ``(batch, 3 * n_action_samples, action_size)``, and their log-densities,
        shape ``(batch, 3 * n_action_samples)``.

        :param batch: the minibatch
        :param current: the actor's distribution at the observations
        :param following: the actor's distribution at the next observations
        """
        random_actions = 2.0 * batch.noise["random_actions_uniform"] - 1.0
        next_actions, next_log_prob = following.several().sample(batch.noise["next_noise"])
        cur_actions, cur_log_prob = current.several().sample(batch.noise["cur_noise"])
        random_log_prob = th.full_like(cur_log_prob, -math.log(2.0) * self.policy.action_size)
        log_prob = th.cat([random_log_prob, next_log_prob, cur_log_prob], dim=1)
        return th.cat([random_actions, next_actions, cur_actions], dim=1), log_prob.squeeze(2)

    def critic_loss(  # type: ignore[override]
        self, batch: OfflineBatch, current: SquashedGaussian, following: SquashedGaussian
    ) -> tuple[th.Tensor, Metrics]:
        """
        Squared Bellman error of both critics plus the weighted conservative term (eq. 4 of the paper), 0-d.

        :param batch: the minibatch
        :param current: the actor's distribution at the observations
        :param following: the actor's distribution at the next observations
        """
        actions, log_prob = self.contrast_actions(batch, current, following)
        # The dataset's action comes last, so that the critics evaluate all actions of an observation at once.
        actions = th.cat([actions, batch.actions.unsqueeze(1)], dim=1)
        table = action_values(self.policy.critic, batch.observations, actions)
        q_values = table[:, :, -1:]
        scores = table[:, :, :-1] - log_prob if self.importance_sampling else table
        gap = th.logsumexp(scores, dim=2, keepdim=True) - q_values
        conservative_loss = self.conservative_weight * gap.flatten(start_dim=1).mean(dim=1).sum()
        targets = bellman_targets(batch, self.gamma, self.next_values(batch, following))
        bellman_loss = twin_critic_loss(q_values, targets)
        return bellman_loss + conservative_loss, {"critic_loss": bellman_loss, "conservative_loss": conservative_loss}

    def update(self, batch: OfflineBatch) -> Metrics:
        """One update of the critics, and every ``policy_delay`` updates of temperature and actor."""
        current = self.policy.actor(batch.observations)
        with th.no_grad():
            following = self.policy.actor(batch.next_observations)
        # Every loss is computed before anything moves.
        critic_loss, metrics = self.critic_loss(batch, current, following)
        if self.is_policy_update:
            actions, log_prob = current.sample(batch.noise["pi_noise"])
            ent_coef_loss, parts = self.ent_coef_loss(log_prob)
            metrics |= parts
            actor_loss, parts = self.actor_loss(batch, current, actions, log_prob)
            metrics |= parts
            self.optimize("ent_coef", ent_coef_loss)
            self.optimize("actor", actor_loss)
        self.optimize("critic", critic_loss)
        return metrics
