"""LAPO."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_dmpo.common.arguments import BOUNDS, OPEN_UNIT, Range
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.type_aliases import OfflineBatch
from sb3_dmpo.lapo.latent_algorithm import LatentPolicyAlgorithm
from sb3_dmpo.lapo.policies import LAPOPolicy


class LAPO(LatentPolicyAlgorithm):
    """
    LAPO: a latent policy whose autoencoder is fitted to the data under expectile-like weights: 0.9 for actions that are
    better than expected, 0.1 for the others.

    Paper: Chen, Ghadirzadeh, Yu, Gao, Wang, Li, Liang, Finn, Zhang: *LAPO: Latent-Variable Advantage-Weighted Policy
    Optimization for Offline Reinforcement Learning*, NeurIPS 2022. The updates are those of the original implementation.

    Differences from it: actions are clipped to the action box by ``predict`` and not by the environment; the target copy
    of V, which nothing reads, is left out; the last step of an episode cut by a time limit is kept where the dataset has
    its next observation. Rewards are divided by their largest as in the original; where none is positive, pass a number
    as ``reward_scale``. For AntMaze the original uses ``reward_scale=100``, ``value_bounds=(0, 100)`` and
    ``min_q_weight=0.7``.

    :param expectile: weight of actions with a positive advantage; the others have ``1 - expectile``
    :param value_bounds: range of the value targets; None: ``min r / (1 - gamma)`` to ``max r / (1 - gamma)``, which
        ``gamma=1`` does not have
    :param normalize_actions: standardize the dataset's actions
    :param reward_scale: factor on the rewards, see :class:`OfflineAlgorithm`
    :param kwargs: further arguments of :class:`LatentPolicyAlgorithm`; the first ones are those of :class:`OfflineAlgorithm`
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": LAPOPolicy, "MultiInputPolicy": LAPOPolicy}
    policy: LAPOPolicy
    fixed_arguments: ClassVar[tuple[str, ...]] = ("normalize_actions",)
    argument_ranges: ClassVar[dict[str, Range]] = {"expectile": OPEN_UNIT, "value_bounds": BOUNDS}

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        dataset: Any = None,
        learning_rate: float | Schedule = 2e-4,
        batch_size: int = 512,
        tau: float = 0.005,
        gamma: float = 0.99,
        *,
        expectile: float = 0.9,
        value_bounds: tuple[float, float] | None = None,
        normalize_actions: bool = True,
        reward_scale: float | str = "max",
        **kwargs: Any,
    ) -> None:
        self.expectile = expectile
        self.value_bounds = value_bounds
        self.normalize_actions = normalize_actions
        self._action_scaler_is_set = False
        super().__init__(policy, env, dataset, learning_rate, batch_size, tau, gamma, reward_scale=reward_scale, **kwargs)

    def _on_dataset(self, buffer: OfflineReplayBuffer) -> None:
        super()._on_dataset(buffer)
        if self.normalize_actions and not self._action_scaler_is_set:
            # Columns of a table are added up in another order.
            actions = buffer.actions.contiguous()
            self.policy.set_action_statistics(actions.mean(dim=0), actions.std(dim=0, correction=0))
            self._action_scaler_is_set = True

    @property
    def derives_value_bounds(self) -> bool:
        """Whether the range of the value targets is to be derived from the rewards."""
        return self.value_bounds is None

    def sample_batch(self, batch_size: int) -> OfflineBatch:
        """
        A minibatch as in the base class, with standardized actions.

        :param batch_size: minibatch size
        """
        batch = super().sample_batch(batch_size)
        return batch._replace(actions=self.policy.standardize_actions(batch.actions))

    def value_targets(self, batch: OfflineBatch) -> th.Tensor:
        """Target of V, clipped to ``value_bounds``, shape ``(batch, 1)``."""
        assert self.target_bounds is not None
        return super().value_targets(batch).clamp(*self.target_bounds)

    def weights(self, advantages: th.Tensor) -> th.Tensor:
        """
        ``expectile`` where the advantage is positive, else ``1 - expectile``, shape ``(batch, 1)``.

        :param advantages: shape ``(batch, 1)``
        """
        return (self.expectile - (advantages <= 0.0).to(advantages.dtype)).abs()
