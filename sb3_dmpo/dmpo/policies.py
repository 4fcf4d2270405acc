"""The mixture policy: one actor, K components, and the critics as the gate."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from torch import nn

from sb3_dmpo.common.gating import best_actions, is_near_tie
from sb3_dmpo.common.losses import entropy, min_max_q
from sb3_dmpo.common.networks import EnsembleCritic, ValueNetwork, chosen_actions
from sb3_dmpo.common.policies import OfflinePolicy
from sb3_dmpo.dmpo.gate import best_component, gate_table
from sb3_dmpo.dmpo.gate_kernels import BLOCK_ROWS
from sb3_dmpo.dmpo.networks import ComponentCritic, ComponentPrior, MixtureActor, Posterior

Layers = tuple[Sequence[th.Tensor], Sequence[th.Tensor]]
#: How the sub-policy that acts is chosen.
Gate = Literal["values", "supported", "learned"]


def _gate_arguments(actor: nn.Module, critic: nn.Module) -> tuple[th.Tensor, Layers, Layers, Layers]:
    """What the actor sees of each component, matrices and biases of both networks, and the critics' layer norms."""
    assert isinstance(actor, MixtureActor) and isinstance(critic, EnsembleCritic)
    critic_layers, norms = critic.weights_and_biases(), critic.scales_and_shifts()
    return actor.latent_embedding(actor.one_hots), actor.weights_and_biases(), critic_layers, norms


#: Sub-policies whose actions are nearer than this share of the largest distance between two actions are one.
ONE_POLICY_SHARE = 0.01
#: So are those of which less than this share of log K is known from an action.
PARTED_SHARE = 0.02


class MixturePolicy(OfflinePolicy):
    """
    K deterministic sub-policies ``mu(s, z)`` and the gate ``argmax_z min_j Q_j(s, mu(s, z))`` (section 4 of the paper).

    The paper has no gating network: the critics are the gate and therefore part of the policy. Once sub-policies differ, a
    critic prefers some in states where no data are theirs. Two other gates use a network ``p(z|s)`` that is fitted to the
    posterior: ``"supported"`` is the argmax of the same values over ``{z: p(z|s) >= gate_support * max_z p(z|s)}``, and
    ``"learned"`` is the argmax of ``p(z|s)``.

    :param args: arguments of :class:`OfflinePolicy`
    :param n_components: K, number of sub-policies
    :param latent_embedding: how z enters the actor: through ``relu(W z + b)`` as wide as the observation
        (``"observation"``, the published code), of a given width (an int), or directly (``"none"``)
    :param min_q_weight: c of ``c * min + (1 - c) * max`` over the critics; 1 is the plain minimum
    :param use_value_network: add the state-value network of the AntMaze variant
    :param use_info_posterior: add infoDMPO's auxiliary network g(z|s, a)
    :param use_posterior: add the network ``q(z|s, a)``; without it the decoder says whose an action is
    :param gate: ``"values"`` (the paper), ``"supported"`` or ``"learned"``
    :param gate_support: least probability of a sub-policy for the gate ``"supported"``, as a share of the largest one
    :param use_prior: add the network ``p(z|s)``, which the gates but the paper's need anyway
    :param calibrated_decoder: keep the variance of the data's actions around their sub-policies
    :param component_critics: critics ``Q_j(s, z)`` of sub-policies instead of ``Q_j(s, a)`` of actions
    :param kwargs: keyword arguments of :class:`OfflinePolicy`
    """

    min_hidden_layers: ClassVar[int] = 1
    learned_buffers: ClassVar[tuple[str, ...]] = ("decoder_variance", "episode_evidence")

    def __init__(
        self,
        *args: Any,
        n_components: int = 8,
        latent_embedding: Literal["observation", "none"] | int = "observation",
        min_q_weight: float = 1.0,
        use_value_network: bool = False,
        use_info_posterior: bool = False,
        use_posterior: bool = True,
        gate: Gate = "values",
        gate_support: float = 0.5,
        use_prior: bool = False,
        calibrated_decoder: bool = False,
        component_critics: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.n_components = n_components
        self.latent_embedding = latent_embedding
        self.min_q_weight = min_q_weight
        widths = {"observation": self.observation_size, "none": 0}
        embedding_size = widths[latent_embedding] if isinstance(latent_embedding, str) else latent_embedding
        sizes = (self.observation_size, self.action_size, n_components)
        self.actor: MixtureActor = MixtureActor(*sizes, self.actor_arch, self.activation_fn, embedding_size)
        self.actor_target = self.make_target(self.actor)
        self.component_critics = component_critics
        self.critic = self.make_critic()
        self.critic_target = self.make_target(self.critic)
        self.posterior: Posterior | None = Posterior(*sizes, self.critic_arch, self.activation_fn) if use_posterior else None
        self.value: ValueNetwork | None = self.make_value_network() if use_value_network else None
        self.info_posterior: Posterior | None = (
            Posterior(*sizes, self.critic_arch, self.activation_fn) if use_info_posterior else None
        )
        self.gate: Gate = gate
        self.gate_support = gate_support
        # Last, so that the other networks start from the same weights with it and without.
        self.prior: ComponentPrior | None = None
        if use_prior or gate != "values":
            self.prior = ComponentPrior(self.observation_size, n_components, self.actor_arch, self.activation_fn)
        # It starts as wide as the published decoder, whose squared error is that of a variance of 1/2.
        self.register_buffer("decoder_variance", th.full((self.action_size,), 0.5) if calibrated_decoder else None)
        self.decoder_variance: th.Tensor | None
        # As long as the dataset, which a policy that only acts knows nothing of: not among its weights therefore.
        self.register_buffer("episode_evidence", None, persistent=False)
        self.episode_evidence: th.Tensor | None

    def make_critic(self) -> EnsembleCritic:
        """New critics of the configured architecture, of actions or of sub-policies."""
        if not self.component_critics:
            return super().make_critic()
        rest = (self.critic_arch, self.activation_fn, self.n_critics, self.critic_layer_norm)
        return ComponentCritic(self.observation_size, self.n_components, *rest)

    @property
    def gate_networks(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the networks that choose among actions; an exported policy has them in double precision."""
        return ("actor", "critic") if self.prior is None or self.gate == "values" else ("actor", "critic", "prior")

    @property
    def acting_networks(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the networks that ``predict`` uses."""
        return self.gate_networks

    @property
    def choosing_networks(self) -> list[nn.Module]:
        """The networks that :meth:`scored_actions` takes in :meth:`predict`."""
        return [self.acting(name) for name in self.gate_networks]

    def component_table(self, observations: th.Tensor, actor: nn.Module, critic: nn.Module) -> tuple[th.Tensor, th.Tensor]:
        """
        Value of every component, shape ``(batch, n_components)``, and its action,
        shape ``(batch, n_components, action_size)``.

        :param observations: scaled observations, shape ``(batch, observation_size)``
        :param actor: online or target actor
        :param critic: online or target critics
        """
        assert isinstance(actor, MixtureActor) and isinstance(critic, EnsembleCritic)
        actions = actor.all_components(observations)
        return min_max_q(critic.all_actions(observations, actions), self.min_q_weight), actions

    @th.no_grad()
    def gate_table(
        self, observations: th.Tensor, actor: nn.Module, critic: nn.Module, dtype: th.dtype
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :meth:`component_table` for the updates: fast, without gradient.

        :param observations: scaled observations, shape ``(batch, observation_size)``
        :param actor: online or target actor
        :param critic: online or target critics
        :param dtype: precision of the layers; reduced, the values are good for choosing only
        """
        if self.component_critics:
            return self.component_table(observations, actor, critic)
        components, actor_layers, critic_layers, norms = _gate_arguments(actor, critic)
        q_values, actions = gate_table(
            observations, components, actor_layers, critic_layers, dtype, self.critic.activation, norms
        )
        return min_max_q(q_values, self.min_q_weight), actions

    def scored_actions(
        self, observations: th.Tensor, actor: nn.Module, critic: nn.Module, prior: nn.Module | None = None
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        What the gate compares, shape ``(batch, n_components)``, the largest score acts, and the actions of all components,
        shape ``(batch, n_components, action_size)``.

        :param observations: scaled observations, shape ``(batch, observation_size)``
        :param actor: online or target actor
        :param critic: online or target critics
        :param prior: ``p(z|s)``; None for the paper's gate
        """
        if self.gate == "learned":
            assert prior is not None and isinstance(actor, MixtureActor)
            return prior(observations), actor.all_components(observations)
        values, actions = self.component_table(observations, actor, critic)
        return self._supported(observations, values, prior), actions

    def _supported(self, observations: th.Tensor, values: th.Tensor, prior: nn.Module | None) -> th.Tensor:
        """The values, minus infinity where the gate ``"supported"`` sees no data of a component, same shape."""
        if self.gate != "supported":
            return values
        assert prior is not None
        log_prior: th.Tensor = prior(observations)
        least = log_prior.amax(dim=1, keepdim=True) + (math.log(self.gate_support) if self.gate_support > 0.0 else -math.inf)
        return values.masked_fill(log_prior < least, -math.inf)

    def _best_component(self, observations: th.Tensor, actor: nn.Module, critic: nn.Module) -> tuple[th.Tensor, th.Tensor]:
        """Value ``(batch, 1)`` and action ``(batch, action_size)`` of the best component, in full precision."""
        if self.min_q_weight == 1.0 and not self.component_critics:
            components, actor_layers, critic_layers, norms = _gate_arguments(actor, critic)
            return best_component(observations, components, actor_layers, critic_layers, self.critic.activation, norms)
        values, actions = self.gate_table(observations, actor, critic, observations.dtype)
        best, index = values.max(dim=1, keepdim=True)
        return best, chosen_actions(actions, index)

    @th.no_grad()
    def gated_actions(self, observations: th.Tensor, actor: nn.Module, critic: nn.Module, dtype: th.dtype) -> th.Tensor:
        """
        Actions of the components that the gate picks, in full precision, shape ``(batch, action_size)``.

        :param observations: scaled observations, shape ``(batch, observation_size)``
        :param actor: online or target actor
        :param critic: online or target critics
        :param dtype: precision of the gate
        """
        if self.gate == "learned":
            assert self.prior is not None
            scores = self.prior(observations)
        elif self.gate == "values" and dtype == observations.dtype:
            return self._best_component(observations, actor, critic)[1]
        else:
            scores = self._supported(observations, self.gate_table(observations, actor, critic, dtype)[0], self.prior)
        chosen: th.Tensor = actor(observations, self.actor.one_hots[scores.argmax(dim=1)])
        return chosen

    @th.no_grad()
    def gated_values(self, observations: th.Tensor, actor: nn.Module, critic: nn.Module, dtype: th.dtype) -> th.Tensor:
        """
        Values of the components that the gate picks, in full precision, shape ``(batch, 1)``.

        :param observations: scaled observations, shape ``(batch, observation_size)``
        :param actor: online or target actor
        :param critic: online or target critics
        :param dtype: precision of the gate
        """
        if self.gate == "values" and dtype == observations.dtype:
            return self._best_component(observations, actor, critic)[0]
        if self.component_critics:
            scores, _ = self.scored_actions(observations, actor, critic, self.prior)
            values = min_max_q(critic(observations), self.min_q_weight)
            return values.gather(1, scores.argmax(dim=1, keepdim=True))
        actions = self.gated_actions(observations, actor, critic, dtype)
        return min_max_q(critic(observations, actions), self.min_q_weight)

    def _scaled(self, observation: Any) -> th.Tensor:
        observations, _ = self.prepare_observation(observation)
        return self.scale_observations(th.as_tensor(observations, device=self.device))

    @th.no_grad()
    def select_component(self, observation: Any) -> np.ndarray:
        """
        Which sub-policy the gate picks, shape ``(batch,)``.

        :param observation: one raw observation or a batch of them
        """
        components: np.ndarray = self._best_actions(self._scaled(observation))[0].squeeze(1).cpu().numpy()
        return components

    @th.no_grad()
    def component_q_values(self, observation: Any) -> np.ndarray:
        """
        Value of every sub-policy, ``c * min + (1 - c) * max`` over the critics with ``min_q_weight`` as c (1: the smallest),
        shape ``(batch, n_components)``.

        :param observation: one raw observation or a batch of them
        """
        actor, critic = self.acting("actor"), self.acting("critic")
        values: np.ndarray = self.component_table(self._scaled(observation), actor, critic)[0].cpu().numpy()
        return values

    @th.no_grad()
    def acts_as_one(self, observation: Any) -> bool:
        """
        Whether the sub-policies are as good as the same: on average over the observations their actions lie within 1% of the
        largest distance between two actions, or nobody can tell from an action whose it is (mutual information
        below 2% of log K).

        :param observation: a batch of raw observations
        """
        observations = self._scaled(observation)
        actions = self.acting("actor").all_components(observations)
        n, k, size = actions.shape
        farthest = (actions - actions.mean(dim=1, keepdim=True)).norm(dim=2).amax(dim=1)
        if self.posterior is None:
            variance = 0.5 if self.decoder_variance is None else self.decoder_variance
            errors = (actions.unsqueeze(1) - actions.unsqueeze(2)).square() / (2.0 * variance)
            logits = -errors.sum(dim=3).view(n * k, k)
        else:
            logits = self.posterior(observations.repeat_interleave(k, dim=0), actions.reshape(n * k, size))
        posterior = th.softmax(logits, dim=1)
        information = entropy(posterior.mean(dim=0)) - entropy(posterior).mean()
        is_near = farthest.mean() < ONE_POLICY_SHARE * 2.0 * math.sqrt(size)
        return k == 1 or bool(is_near) or bool(information < PARTED_SHARE * math.log(k))

    def _predict(self, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:  # type: ignore[override]
        return self._best_actions(self.scale_observations(observation))[1]

    def acting_values(self, observation: th.Tensor) -> th.Tensor:
        """
        As in the base class; critics of sub-policies tell the value of the one that acts.

        :param observation: flat raw observations, shape ``(batch, observation_size)``
        """
        if not self.component_critics:
            return super().acting_values(observation)
        observations = self.scale_observations(observation)
        return min_max_q(self.acting("critic")(observations)).gather(1, self._best_actions(observations)[0])

    def _best_actions(self, observations: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        block_size = max(BLOCK_ROWS // self.n_components, 1)
        return best_actions(observations, self.choosing_networks, self.scored_actions, block_size)

    def _predict_one(self, observation: th.Tensor, deterministic: bool) -> th.Tensor:
        scaled = self.scale_observations(observation)
        if self.gate != "values" or self.component_critics:
            return self._best_actions(scaled)[1]
        # Fewer steps count more here than less arithmetic: all components as one batch, compared by Python.
        repeated = scaled.expand(self.n_components, -1)
        actor, critic = self.acting("actor"), self.acting("critic")
        actions: th.Tensor = actor(repeated, actor.one_hots)
        values = min_max_q(critic(repeated, actions), self.min_q_weight).squeeze(1).tolist()
        if is_near_tie(values):
            return self._best_actions(scaled)[1]
        return actions[values.index(max(values))].unsqueeze(0)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {
            "n_components": self.n_components,
            "latent_embedding": self.latent_embedding,
            "min_q_weight": self.min_q_weight,
            "use_value_network": self.value is not None,
            "use_info_posterior": self.info_posterior is not None,
            "use_posterior": self.posterior is not None,
            "gate": self.gate,
            "gate_support": self.gate_support,
            "use_prior": self.prior is not None,
            "calibrated_decoder": self.decoder_variance is not None,
            "component_critics": self.component_critics,
        }
