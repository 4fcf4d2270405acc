"""infoDMPO."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch.nn import functional as F

from sb3_dmpo.common.arguments import LEARNING_RATE, Range
from sb3_dmpo.common.type_aliases import Metrics, NoiseSpec, OfflineBatch
from sb3_dmpo.dmpo.dmpo import DMPO


class InfoDMPO(DMPO):
    """
    infoDMPO: DMPO with a mutual-information regularizer that keeps the sub-policies apart (section 5 of the paper).

    The variational bound ``E_z[log g(z | s, mu(s, z))]`` is raised by an optimizer of its own over the actor and g,
    before the likelihood step. The published code draws labels from all components but the last and applies softmax
    twice in the loss; both are slips and mended here unless ``published_code=True``.

    :param policy: ``"MlpPolicy"``, ``"MultiInputPolicy"`` or a policy class
    :param env: environment; optional
    :param dataset: Minari id, ``MinariDataset``, SB3 ``ReplayBuffer``, path to a D4RL HDF5 file, ...
    :param learning_rate: learning rate of critics, actor, posterior and value network
    :param policy_delay: actor, posterior and targets are updated once every ``policy_delay`` updates
    :param n_components: K, number of sub-policies
    :param info_learning_rate: learning rate of the regularizer's optimizer (the paper: 5e-7; 3e-6 on Adroit)
    :param published_code: reproduce the published code's info step
    :param kwargs: further arguments of :class:`DMPO`
    """

    argument_ranges: ClassVar[dict[str, Range]] = {"info_learning_rate": LEARNING_RATE}

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        dataset: Any = None,
        learning_rate: float | Schedule = 3e-4,
        policy_delay: int = 2,
        n_components: int = 8,
        *,
        info_learning_rate: float | Schedule = 5e-7,
        published_code: bool = False,
        **kwargs: Any,
    ) -> None:
        self.info_learning_rate = info_learning_rate
        self.published_code = published_code
        super().__init__(policy, env, dataset, learning_rate, policy_delay, n_components, **kwargs)

    def _policy_arguments(self) -> dict[str, Any]:
        return super()._policy_arguments() | {"use_info_posterior": True}

    def _setup_model(self) -> None:
        super()._setup_model()
        assert self.policy.info_posterior is not None
        self.add_optimizer("info", [self.policy.actor, self.policy.info_posterior], "info_learning_rate")

    def noise_specs(self, batch_size: int) -> dict[str, NoiseSpec]:
        """The random numbers that one update consumes, by name."""
        n_labels = self.n_components - int(self.published_code)
        labels = NoiseSpec("integers", (batch_size,), high=n_labels, delayed=True)
        return super().noise_specs(batch_size) | {"info_label": labels}

    def info_loss(self, batch: OfflineBatch) -> tuple[th.Tensor, Metrics]:
        """Negative log-probability that g recognises the component from its action (section 5), 0-d."""
        policy = self.policy
        assert policy.info_posterior is not None
        labels = batch.noise["info_label"]
        actions = policy.actor(batch.observations, policy.actor.one_hots[labels])
        scores = policy.info_posterior(batch.observations, actions)
        loss = F.cross_entropy(th.softmax(scores, dim=1) if self.published_code else scores, labels)
        return loss, {"info_loss": loss}

    def info_step(self, batch: OfflineBatch) -> Metrics:
        """
        One step of the regularizer over the actor and g.

        :param batch: the minibatch
        """
        loss, metrics = self.info_loss(batch)
        self.optimize("info", loss)
        return metrics
