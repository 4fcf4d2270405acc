"""Diffusion Q-learning."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_dmpo.common import ranks
from sb3_dmpo.common.arguments import COUNT_OR_ZERO, LEARNING_RATE, NOT_NEGATIVE, POSITIVE, SIZE, Range, optional
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.type_aliases import Metrics, NoiseSpec, OfflineBatch
from sb3_dmpo.diffusion_ql.policies import DiffusionPolicy

#: Actions per next observation with ``max_q_backup``.
BACKUP_ACTIONS = 10


class DiffusionQL(OfflineAlgorithm):
    """
    Diffusion Q-learning: the policy is a conditional diffusion model, trained to denoise the dataset's actions and to
    end its chain where the critics are high.

    Paper: Wang, Hunt, Zhou: *Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning*, ICLR
    2023. The updates are those of the original implementation.

    Differences from it: ``predict(deterministic=True)`` takes the best of the sampled actions, on noise that is fixed
    once and for all, where the original draws one in proportion to exp(Q) (``deterministic=False`` does that). The
    learning rate is constant: the original's decay moves once per 50 000 updates with a period that makes it nearly
    constant. Its choice of a checkpoint by the denoising loss is left to callbacks; the loss is logged as ``bc_loss``.
    The moving average of the actor shares ``tau`` with the critics, both are 0.005 in the original. The last step of an
    episode cut by a time limit is kept where the dataset has its next observation.

    :param critic_learning_rate: learning rate of the critics (``learning_rate`` is that of the actor)
    :param eta: weight of the Q term against the denoising loss
    :param n_diffusion_steps: number of diffusion steps
    :param n_action_samples: number of actions among which ``predict`` chooses
    :param max_q_backup: the target takes the best of 10 actions per next observation
    :param max_grad_norm: bound of the gradient's norm, of the actor and of the critics; None: no bound
    :param ema_start: number of updates after which the actor's moving average starts to move
    :param ema_every: the moving average moves once in so many updates
    :param normalize_observations: scale observations; off as in the original
    :param kwargs: further arguments of :class:`OfflineAlgorithm`, which describes the first ones too
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": DiffusionPolicy,
        "MultiInputPolicy": DiffusionPolicy,
    }
    policy: DiffusionPolicy
    fixed_arguments: ClassVar[tuple[str, ...]] = ("ema_every", "ema_start", "n_action_samples", "n_diffusion_steps")
    argument_ranges: ClassVar[dict[str, Range]] = {
        "critic_learning_rate": LEARNING_RATE,
        "ema_every": SIZE,
        "ema_start": COUNT_OR_ZERO,
        "eta": NOT_NEGATIVE,
        "max_grad_norm": optional(POSITIVE),
        "n_action_samples": SIZE,
        "n_diffusion_steps": SIZE,
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
        critic_learning_rate: float | Schedule = 3e-4,
        eta: float = 1.0,
        n_diffusion_steps: int = 5,
        n_action_samples: int = 50,
        max_q_backup: bool = False,
        max_grad_norm: float | None = 1.0,
        ema_start: int = 1000,
        ema_every: int = 5,
        normalize_observations: bool = False,
        **kwargs: Any,
    ) -> None:
        self.critic_learning_rate = critic_learning_rate
        self.eta = eta
        self.n_diffusion_steps = n_diffusion_steps
        self.n_action_samples = n_action_samples
        self.max_q_backup = max_q_backup
        self.max_grad_norm = max_grad_norm
        self.ema_start = ema_start
        self.ema_every = ema_every
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

    def _policy_arguments(self) -> dict[str, Any]:
        return {"n_diffusion_steps": self.n_diffusion_steps, "n_action_samples": self.n_action_samples}

    def _setup_model(self) -> None:
        super()._setup_model()
        policy = self.policy
        self.add_optimizer("critic", [policy.critic], "critic_learning_rate")
        self.add_optimizer("actor", [policy.actor])
        self.add_target(policy.critic, policy.critic_target)
        self.add_target(policy.actor, policy.actor_ema, every=self.ema_every, start=self.ema_start + 1)

    def noise_specs(self, batch_size: int) -> dict[str, NoiseSpec]:
        """The random numbers that one update consumes, by name; steps are counted from 0 as in ``diffusion_t``."""
        size = self.policy.action_size
        backup_rows = batch_size * (BACKUP_ACTIONS if self.max_q_backup else 1)
        specs = {name: NoiseSpec("normal", (backup_rows, size)) for name in self._chain_names("next")}
        for name in [*self._chain_names("new"), "bc_noise"]:
            specs[name] = NoiseSpec("normal", (batch_size, size), delayed=True)
        specs["diffusion_t"] = NoiseSpec("integers", (batch_size,), high=self.n_diffusion_steps, delayed=True)
        specs["coin"] = NoiseSpec("integers", (), high=self.policy.n_critics, delayed=True)
        return specs

    def _chain_names(self, prefix: str) -> list[str]:
        # The last step of the chain, 0, adds no noise.
        steps = range(self.n_diffusion_steps - 1, 0, -1)
        return [f"{prefix}_x_init", *(f"{prefix}_step_noise_{step}" for step in steps)]

    def _chain_noise(self, batch: OfflineBatch, prefix: str) -> list[th.Tensor]:
        return [batch.noise[name] for name in self._chain_names(prefix)]

    def next_values(self, batch: OfflineBatch) -> th.Tensor:
        """Values of actions of the averaged actor, shape ``(batch, 1)``."""
        policy = self.policy
        observations = batch.next_observations
        noise = self._chain_noise(batch, "next")
        n_actions = BACKUP_ACTIONS if self.max_q_backup else 1
        actions = policy.actor_ema(observations.repeat_interleave(n_actions, dim=0), noise)
        actions = th.unflatten(actions, 0, (len(observations), n_actions))
        q_values = policy.critic_target.all_actions(observations, actions)
        # The best action of each critic, then the smaller of the critics.
        values: th.Tensor = q_values.amax(dim=2).amin(dim=0).unsqueeze(1)
        return values

    def bc_loss(self, batch: OfflineBatch) -> tuple[th.Tensor, Metrics]:
        """Denoising loss on the dataset's actions, 0-d."""
        noise = batch.noise
        loss = self.policy.actor.denoising_loss(batch.observations, batch.actions, noise["diffusion_t"], noise["bc_noise"])
        return loss, {"bc_loss": loss}

    def q_loss(self, batch: OfflineBatch) -> tuple[th.Tensor, Metrics]:
        """Negative value of sampled actions under one critic, chosen by chance, in units of another's, 0-d."""
        policy = self.policy
        actions = policy.actor(batch.observations, self._chain_noise(batch, "new"))
        q_values = policy.critic(batch.observations, actions).squeeze(2)
        scales = ranks.mean(q_values.detach().abs().mean(dim=1))
        losses = -q_values.mean(dim=1) / scales.roll(1)
        chosen = len(losses) - 1 - ranks.first(batch.noise["coin"])
        loss = losses.gather(0, chosen.unsqueeze(0)).squeeze(0)
        return loss, {"q_loss": loss}

    def actor_loss(self, batch: OfflineBatch) -> tuple[th.Tensor, Metrics]:
        """Denoising loss plus the weighted Q term, 0-d."""
        bc_loss, metrics = self.bc_loss(batch)
        q_loss, parts = self.q_loss(batch)
        loss = bc_loss + self.eta * q_loss
        return loss, metrics | parts | {"actor_loss": loss}

    def update(self, batch: OfflineBatch) -> Metrics:
        """One update of the critics, and every ``policy_delay`` updates of the actor."""
        loss, metrics = self.critic_loss(batch)
        self.optimize("critic", loss, self.max_grad_norm)
        if self.is_policy_update:
            loss, parts = self.actor_loss(batch)
            self.optimize("actor", loss, self.max_grad_norm)
            metrics |= parts
        return metrics
