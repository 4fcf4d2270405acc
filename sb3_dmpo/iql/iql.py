"""IQL."""

import math
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_dmpo.common.arguments import BELOW_ONE, NOT_NEGATIVE, OPEN_UNIT, Range
from sb3_dmpo.common.losses import (
    AdvantageWeight,
    advantage_weights,
    effective_sample_size,
    expectile_loss,
    min_max_q,
)
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.type_aliases import Metrics, NoiseSpec, OfflineBatch
from sb3_dmpo.iql.policies import IQLPolicy, IQLVariant


class IQL(OfflineAlgorithm):
    """
    Implicit Q-learning: the state value is an upper expectile of the dataset's Q-values, so that no action outside of the
    dataset is ever evaluated; the actor is cloned with advantages as weights.

    Paper: Kostrikov, Nair, Levine: *Offline Reinforcement Learning with Implicit Q-Learning*, ICLR 2022.

    ``variant="original"`` follows the original implementation: orthogonal initialisation, a standard deviation that does
    not depend on the state, weights ``min(exp(T A), 100)``, raw observations, and a learning rate of the actor that
    falls to 0 along a cosine. Differences: the last step of an episode cut by a time limit is kept where the dataset has
    its next observation; critic and actor steps do not see each other, so that their order is free. The original's
    rescaling of MuJoCo rewards is ``reward_scale="return_range"``, its AntMaze reward is ``reward_shift=-1``.

    ``variant="dmpo"`` follows the re-implementation that the authors of DMPO published: standard deviations that depend
    on the state and are bounded twice in the density, PyTorch's initialisation, range-normalised weights (eq. 19 of their
    paper), scaled observations. Differences: actions are clipped to 1 - 1e-5 as in the original, the cosine ends at 0
    also with ``policy_delay=2`` (theirs counts policy updates and ends halfway), and ``advantage_scale=0`` gives uniform
    weights.

    :param variant: see above
    :param expectile: expectile of the Q-values that the state value estimates, in (0, 1)
    :param advantage_scale: the inverse temperature T of the weights (the DMPO paper's alpha)
    :param advantage_weight: ``"clipped"``, ``"normalized"`` or ``"max_shifted"`` weights, see
        :func:`~sb3_dmpo.common.losses.advantage_weights`; None: that of the variant
    :param dropout: probability of zeroing a hidden unit of the actor while training (the original uses 0.1 on Adroit).
        The masks come from the algorithm's own generator like all noise, so that runs repeat bit for bit
    :param normalize_observations: scale observations by the dataset's mean and standard deviation; None: only in the
        variant ``"dmpo"``
    :param kwargs: further arguments of :class:`OfflineAlgorithm`, which describes the first ones too
    :raises ValueError: unknown variant, or dropout outside of [0, 1) or in the variant without
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": IQLPolicy, "MultiInputPolicy": IQLPolicy}
    policy: IQLPolicy
    fixed_arguments: ClassVar[tuple[str, ...]] = ("dropout", "variant")
    argument_ranges: ClassVar[dict[str, Range]] = {
        "advantage_scale": NOT_NEGATIVE,
        "dropout": BELOW_ONE,
        "expectile": OPEN_UNIT,
    }
    action_clip: ClassVar[float] = 1.0 - 1e-5

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
        variant: IQLVariant = "original",
        expectile: float = 0.7,
        advantage_scale: float = 3.0,
        advantage_weight: AdvantageWeight | None = None,
        dropout: float = 0.0,
        normalize_observations: bool | None = None,
        **kwargs: Any,
    ) -> None:
        is_original = variant == "original"
        self.variant = variant
        self.expectile = expectile
        self.advantage_scale = advantage_scale
        self.advantage_weight: AdvantageWeight = advantage_weight or ("clipped" if is_original else "normalized")
        self.dropout = dropout
        if normalize_observations is None:
            normalize_observations = not is_original
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

    def check_combinations(self) -> None:
        """
        Refuse arguments that do not go together, each of which is in its range.

        :raises ValueError: they do not
        """
        if self.dropout > 0.0 and self.variant != "original":
            raise ValueError(f"dropout is {self.dropout}, it must be 0 in the variant 'dmpo'.")

    def _policy_arguments(self) -> dict[str, Any]:
        return {"variant": self.variant, "dropout": self.dropout}

    def _setup_model(self) -> None:
        super()._setup_model()
        self.add_optimizer("value", [self.policy.value])
        self.add_optimizer("critic", [self.policy.critic])
        self.add_optimizer("actor", [self.policy.actor], self._annealed)
        self.add_target(self.policy.critic, self.policy.critic_target)

    def _annealed(self, progress_remaining: float) -> float:
        """The actor's learning rate: half a cosine of ``learning_rate``, which falls to 0 over the run."""
        return 0.5 * (1.0 + math.cos(math.pi * (1.0 - progress_remaining))) * self._rate("learning_rate", progress_remaining)

    def noise_specs(self, batch_size: int) -> dict[str, NoiseSpec]:
        """The random numbers that one update consumes, by name."""
        if self.dropout == 0.0:
            return {}
        return {"actor_dropout": NoiseSpec("uniform", (batch_size, sum(self.policy.actor_arch)), delayed=True)}

    def value_loss(self, batch: OfflineBatch, q_values: th.Tensor) -> tuple[th.Tensor, Metrics]:
        """
        Expectile regression of the state value (eq. 5 of the IQL paper), 0-d.

        :param batch: the minibatch
        :param q_values: smaller target Q-value of the dataset's actions, shape ``(batch, 1)``
        """
        loss = expectile_loss(self.policy.value(batch.observations), q_values, self.expectile)
        return loss, {"value_loss": loss}

    def actor_loss(self, batch: OfflineBatch, q_values: th.Tensor) -> tuple[th.Tensor, Metrics]:
        """
        Negative log-likelihood of the dataset's actions, weighted by their advantages (eq. 7), 0-d.

        :param batch: the minibatch
        :param q_values: smaller target Q-value of the dataset's actions, shape ``(batch, 1)``
        """
        with th.no_grad():
            advantages = q_values - self.policy.value(batch.observations)
        weights = advantage_weights(advantages, self.advantage_scale, self.advantage_weight, unit_mean=False)
        dropout = [batch.noise["actor_dropout"]] if self.dropout > 0.0 else []
        loss = -(weights * self.policy.actor.log_prob(batch.observations, batch.actions, *dropout)).mean()
        return loss, {"actor_loss": loss, "weight_ess": effective_sample_size(weights)}

    def next_values(self, batch: OfflineBatch) -> th.Tensor:
        """The state values of the next observations (eq. 6), shape ``(batch, 1)``."""
        values: th.Tensor = self.policy.value(batch.next_observations)
        return values

    def update(self, batch: OfflineBatch) -> Metrics:
        """One update of value network and critics, and every ``policy_delay`` updates of the actor."""
        with th.no_grad():
            q_values = min_max_q(self.policy.critic_target(batch.observations, batch.actions))
        loss, metrics = self.value_loss(batch, q_values)
        self.optimize("value", loss)
        if self.is_policy_update:
            loss, parts = self.actor_loss(batch, q_values)
            self.optimize("actor", loss)
            metrics |= parts
        loss, parts = self.critic_loss(batch)
        self.optimize("critic", loss)
        return metrics | parts
