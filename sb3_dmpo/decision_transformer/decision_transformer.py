"""Decision Transformer."""

import math
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_dmpo.common.arguments import BELOW_ONE, COUNT_OR_ZERO, FINITE, POSITIVE, SIZE, Range, optional
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.type_aliases import Metrics, NoiseSpec
from sb3_dmpo.decision_transformer.buffers import SequenceBatch, SequenceReplayBuffer
from sb3_dmpo.decision_transformer.policies import DecisionTransformerPolicy

#: Arguments of the algorithm that its transformer takes under the same name.
TRANSFORMER_ARGUMENTS = (
    "context_length",
    "return_scale",
    "embed_dim",
    "n_layers",
    "n_heads",
    "dropout",
    "max_episode_length",
)


class DecisionTransformer(OfflineAlgorithm):
    """
    Decision Transformer: no values, no dynamic programming; a GPT-2-like transformer learns which action followed on
    (returns-to-go, observations, actions) in the dataset, and is then asked for the actions of a high return.

    Paper: Chen, Lu, Rajeswaran, Lee, Grover, Laskin, Abbeel, Srinivas, Mordatch: *Decision Transformer: Reinforcement
    Learning via Sequence Modeling*, NeurIPS 2021. Network, loss, sampling and default hyperparameters are those of the
    original's gym experiments. There are no recorded updates of the original to check this implementation against, as
    there are for the other algorithms: the tests hold on to its properties (causality, padding, acting step by step) only.

    **Rewards while acting.** The original takes each reward off the return-to-go, but SB3's ``predict`` sees no rewards. A
    small network ``r(s, a, s')``, learned from the dataset beside the transformer (it does not touch it), stands in for
    them, so that ``evaluate_policy``, callbacks and scripts work unchanged. Where the rewards are at hand, put them into
    the state (``state.rewards``), or pass ``callback=observe_rewards`` to ``evaluate_policy``: they are then taken off
    exactly. With ``predict_rewards=False`` and without observed rewards the return-to-go stays at ``target_return``.

    Other differences: the return to aim for is by default the best one in the dataset (the original: 3600 for Hopper, 5000
    for Walker2d, 6000 and 12000 for HalfCheetah); its untrained heads for observations and returns are left out; its
    dropout of the embeddings, always 0.1, follows ``dropout``; padding repeats a step instead of holding constants (it is
    masked in both). ``gamma``, ``tau`` and ``policy_delay`` have no effect, and rewards cannot be transformed.

    :param policy: ``"MlpPolicy"``, ``"MultiInputPolicy"`` or a policy class
    :param env: environment; optional
    :param dataset: Minari id, ``MinariDataset``, SB3 ``ReplayBuffer``, path to a D4RL HDF5 file, ...
    :param learning_rate: learning rate
    :param batch_size: number of sequences in a minibatch
    :param context_length: number of steps in a sequence
    :param target_return: return to aim for, in the units of the environment; None: the best one of an episode in the dataset.
        Changed afterwards by :meth:`set_target_return` or ``load(path, target_return=...)``
    :param return_scale: what returns-to-go are divided by
    :param embed_dim: width of the transformer
    :param n_layers: number of its blocks
    :param n_heads: number of its attention heads
    :param dropout: probability of zeroing an entry while training. What is dropped is drawn from the algorithm's own
        generator like all noise, so that runs repeat bit for bit
    :param max_episode_length: number of steps that are told apart by an embedding of their own; later ones share the last
    :param warmup_steps: number of updates over which the learning rate of the transformer rises linearly
    :param max_grad_norm: bound of the norm of the transformer's gradient; None: no bound
    :param predict_rewards: see above
    :param kwargs: further arguments of :class:`OfflineAlgorithm`
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": DecisionTransformerPolicy,
        "MultiInputPolicy": DecisionTransformerPolicy,
    }
    policy: DecisionTransformerPolicy
    fixed_arguments: ClassVar[tuple[str, ...]] = (*TRANSFORMER_ARGUMENTS, "predict_rewards")
    unused_arguments: ClassVar[tuple[str, ...]] = ("gamma", "tau", "policy_delay")
    argument_ranges: ClassVar[dict[str, Range]] = {
        **dict.fromkeys(("context_length", "embed_dim", "max_episode_length", "n_heads", "n_layers"), SIZE),
        "dropout": BELOW_ONE,
        "max_grad_norm": optional(POSITIVE),
        "return_scale": POSITIVE,
        "target_return": optional(FINITE),
        "warmup_steps": COUNT_OR_ZERO,
    }
    learns_online: ClassVar[bool] = False
    replay_buffer_type: ClassVar[type[OfflineReplayBuffer]] = SequenceReplayBuffer

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        dataset: Any = None,
        learning_rate: float | Schedule = 1e-4,
        batch_size: int = 64,
        context_length: int = 20,
        target_return: float | None = None,
        return_scale: float = 1000.0,
        embed_dim: int = 128,
        n_layers: int = 3,
        n_heads: int = 1,
        dropout: float = 0.1,
        max_episode_length: int = 1000,
        warmup_steps: int = 10_000,
        max_grad_norm: float | None = 0.25,
        predict_rewards: bool = True,
        **kwargs: Any,
    ) -> None:
        self.context_length = context_length
        self.target_return = target_return
        self.return_scale = return_scale
        self.embed_dim = embed_dim
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.dropout = dropout
        self.max_episode_length = max_episode_length
        self.warmup_steps = warmup_steps
        self.max_grad_norm = max_grad_norm
        self.predict_rewards = predict_rewards
        super().__init__(policy, env, dataset, learning_rate, batch_size, **kwargs)

    def _policy_arguments(self) -> dict[str, Any]:
        target_return = 0.0 if self.target_return is None else self.target_return
        transformer = {name: getattr(self, name) for name in TRANSFORMER_ARGUMENTS}
        return {"transformer": transformer, "target_return": target_return, "predict_rewards": self.predict_rewards}

    def _setup_model(self) -> None:
        super()._setup_model()
        self.add_optimizer("actor", [self.policy.actor], self._warmed_up)
        if self.policy.reward_model is not None:
            self.add_optimizer("reward", [self.policy.reward_model])

    def _warmed_up(self, progress_remaining: float) -> float:
        return self._rate("learning_rate", progress_remaining) * min((self._n_updates + 1) / max(self.warmup_steps, 1), 1.0)

    def _on_dataset(self, buffer: OfflineReplayBuffer) -> None:
        assert isinstance(buffer, SequenceReplayBuffer)
        if (buffer.reward_scale, buffer.reward_shift) != (1.0, 0.0):
            raise ValueError(
                "DecisionTransformer is told returns in the units of the environment: leave reward_scale and reward_shift "
                "out; what the network sees is scaled by return_scale."
            )
        super()._on_dataset(buffer)
        if self.target_return is None:
            self.policy.target_return.fill_(float(buffer.episode_returns().max()))
        # A loaded model keeps the statistics its networks were trained with.
        if self.policy.reward_model is not None and self._n_updates == 0:
            self.policy.reward_model.set_statistics(buffer.rewards)

    def set_target_return(self, target_return: float) -> None:
        """
        Aim for another return from the next episode on.

        :param target_return: in the units of the environment
        """
        if not math.isfinite(target_return):
            raise ValueError(f"target_return is {target_return}, it must be finite.")
        self.target_return = target_return
        self.policy.target_return.fill_(target_return)

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> "DecisionTransformer":
        """
        Load a model. No dataset and no environment are needed, and global random generators are left alone.

        :param args: arguments of SB3's ``load``: the path, optionally an environment, a device, ...
        :param kwargs: the same by name, and attributes to change, e.g. ``dataset=...`` or ``target_return=...``
        :return: the model
        """
        model = super().load(*args, **kwargs)
        assert isinstance(model, DecisionTransformer)
        if kwargs.get("target_return") is not None:
            # The policy's parameters have brought the saved one.
            model.set_target_return(kwargs["target_return"])
        return model

    def noise_specs(self, batch_size: int) -> dict[str, NoiseSpec]:
        """The random numbers that one update consumes, by name."""
        if self.dropout == 0.0:
            return {}
        attention, residual = self.policy.actor.dropout_shapes(batch_size)
        return {"attention_dropout": NoiseSpec("uniform", attention), "residual_dropout": NoiseSpec("uniform", residual)}

    def sample_batch(self, batch_size: int) -> SequenceBatch:  # type: ignore[override]
        """
        Pieces of episodes with scaled observations and the noise of one update.

        :param batch_size: number of pieces
        """
        assert isinstance(self.replay_buffer, SequenceReplayBuffer)
        batch = self.replay_buffer.sample_sequences(batch_size, self.context_length)
        return batch._replace(
            observations=self.policy.scale_observations(batch.observations),
            next_observations=self.policy.scale_observations(batch.next_observations),
            noise=self.sample_noise(batch_size),
        )

    def actor_loss(self, batch: SequenceBatch) -> tuple[th.Tensor, Metrics]:
        """Mean squared error of the actions of all steps that are not padded, 0-d."""
        actions = self.policy.actor(
            batch.observations,
            batch.actions,
            batch.returns_to_go,
            batch.timesteps,
            batch.mask,
            batch.noise.get("attention_dropout"),
            batch.noise.get("residual_dropout"),
        )
        loss = batch.mean((actions - batch.actions).square())
        return loss, {"actor_loss": loss}

    def reward_loss(self, batch: SequenceBatch) -> tuple[th.Tensor, Metrics]:
        """Mean squared error of the standardised rewards of all steps that are not padded, 0-d: the unexplained variance."""
        model = self.policy.reward_model
        assert model is not None
        errors = model.standardized(batch.observations, batch.actions, batch.next_observations) - model.standardize(
            batch.rewards
        )
        loss = batch.mean(errors.square())
        return loss, {"reward_loss": loss}

    def update(self, batch: SequenceBatch) -> Metrics:  # type: ignore[override]
        """One update of the transformer and of the reward model."""
        loss, metrics = self.actor_loss(batch)
        self.optimize("actor", loss, self.max_grad_norm)
        if self.policy.reward_model is not None:
            loss, parts = self.reward_loss(batch)
            self.optimize("reward", loss)
            metrics |= parts
        return metrics
