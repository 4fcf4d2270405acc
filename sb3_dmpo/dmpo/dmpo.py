"""DMPO."""

import math
import warnings
from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch.nn import functional as F

from sb3_dmpo.common import ranks
from sb3_dmpo.common.arguments import BOUNDS, MAX_SIZE, NOT_NEGATIVE, POSITIVE, UNIT, Range, whole_number
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.losses import (
    LOG_EPS,
    AdvantageWeight,
    advantage_weights,
    categorical_kl,
    effective_sample_size,
    entropy,
    gumbel_softmax,
    min_max_q,
    mixture_diagnostics,
    sampled_component,
    smoothing_noise,
)
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.type_aliases import Metrics, NoiseSpec, OfflineBatch
from sb3_dmpo.dmpo.gate import has_fast_bfloat16
from sb3_dmpo.dmpo.policies import PARTED_SHARE, Gate, MixturePolicy
from sb3_dmpo.files.npz import pack_npz, read_npz
from sb3_dmpo.files.safe_zip import DamagedFileError

#: After so many updates the mutual information of sub-policies and data should be at least this share of log K.
PARTED_AFTER = 5_000
NOT_PARTED = (
    "The sub-policies have not parted: which one a transition belongs to says next to nothing about its action "
    "(train/mutual_information is below 2% of log n_components), so this mixture acts like a single policy. A smaller "
    "kl_coef, e.g. 0.2, lets them part, OneStepDMPO tells them apart by their episodes; if the data have one way of acting "
    "(`sb3_dmpo describe`), TD3BC or BC is simpler."
)
#: Hidden layers from this width on gain from bfloat16.
BFLOAT16_WIDTH = 128
#: How fast the calibrated decoder's variance follows, and its lower bound: a standard deviation of 0.03.
VARIANCE_RATE, LEAST_VARIANCE = 0.005, 1e-3
#: How much one more step of an episode changes the mean evidence of its sub-policies.
EVIDENCE_RATE = 0.05


class DMPO(OfflineAlgorithm):
    """
    Deterministic mixture policy optimization: K deterministic sub-policies that share one network, a posterior that
    assigns data to them, and the critics as the gate.

    Paper: Osa, Hayashi, Deo, Morihira, Yoshiike: *Offline Reinforcement Learning with Mixture of Deterministic
    Policies*, TMLR 09/2023. Where the paper and the authors' published code differ, the code is followed, since it
    made the paper's tables: the component of the target is chosen by the online critics (``target_gate``, eq. 17),
    smoothing noise is added once to the chosen action (eq. 47), the weights of eq. 19 are divided by their mean, the
    reconstruction is the summed squared error, targets move only with the delayed policy updates, and z enters the
    actor through a ReLU layer as wide as the observation (``latent_embedding``). Beyond both: equal advantages in a
    minibatch give uniform weights instead of NaN.

    :param policy: ``"MlpPolicy"``, ``"MultiInputPolicy"`` or a policy class
    :param env: environment; optional
    :param dataset: Minari id, ``MinariDataset``, SB3 ``ReplayBuffer``, path to a D4RL HDF5 file, ...
    :param learning_rate: learning rate of critics, actor, posterior and value network
    :param policy_delay: actor, posterior and targets are updated once every ``policy_delay`` updates
    :param n_components: K, number of sub-policies (the paper's \\|Z\\|)
    :param advantage_scale: the paper's alpha
    :param advantage_weight: ``"normalized"`` (eq. 19), ``"max_shifted"`` or ``"clipped"`` (``exp(alpha A)`` up to 100)
    :param gumbel_temperature: temperature of the relaxed one-hot samples
    :param kl_coef: coefficient of the KL divergence between posterior and gate
    :param target_policy_noise: standard deviation of the target smoothing noise
    :param target_noise_clip: bound of the target smoothing noise
    :param target_gate: which critics choose the component of the target, ``"online"`` or ``"target"``
    :param latent_embedding: ``"observation"``, ``"none"`` or a width, see :class:`MixturePolicy`
    :param value_targets: the AntMaze variant: critics regress on a state-value network instead of the next action
    :param min_q_weight: c of ``c * min + (1 - c) * max`` over the critics, by default 0.7 with ``value_targets``, else 1
    :param value_bounds: range of the value targets; None: ``min r / (1 - gamma)`` to ``max r / (1 - gamma)``, which
        ``gamma=1`` does not have
    :param gating_dtype: precision of the networks while all components are compared, ``"float32"``, ``"bfloat16"`` or
        ``"auto"``: bfloat16 where the device multiplies it faster and the networks are wide enough to gain from it. What
        is chosen is evaluated again in float32 before it enters a loss. docs/speed.rst compares the scores
    :param bootstrap: what the critics evaluate: the gated policy (``"policy"``, the paper); or what the data do next, one step
        of policy improvement, with no action in the target that the data lack (Brandfonbrener et al., NeurIPS 2021):
        ``"data"`` is SARSA on the dataset's next actions, ``"component"`` has critics ``Q_j(s, z)`` of the sub-policies
        instead of ``Q_j(s, a)``, each fitted where the data are its own, by the values of the same sub-policy later
    :param decoder: ``"fixed"``, the published squared error, or ``"calibrated"``: ``err / (2 sigma^2)`` with a variance per
        action dimension at its optimum, the running mean of the weighted error (Rybkin et al., ICML 2021, eq. 7)
    :param assignment: q(z|s, a), ``"posterior"``, the network of the paper, or ``"exact"``: the decoder's own posterior
        ``p(z|s) exp(-err_z / (2 sigma^2 kl_coef))``, normalised, which makes the bound tight and needs no samples, or
        ``"episode"``: the same with the mean evidence of the whole episode, ``p(z|s) exp(n mean_t log r_z(s_t, a_t))``, where
        r is the share of the likelihood, since who acted at one step acted at all. Transitions added online have no evidence
    :param evidence_steps: n of ``assignment="episode"``, as how many independent steps an episode counts
    :param prior: p(z|s), ``"values"``, the paper's softmax of the components' values, or ``"learned"``, a network
    :param gate: which sub-policy acts, in the target, in the baseline and in :meth:`predict`; see :class:`MixturePolicy`
    :param gate_support: see :class:`MixturePolicy`
    :param kwargs: further arguments of :class:`OfflineAlgorithm`
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": MixturePolicy, "MultiInputPolicy": MixturePolicy}
    policy: MixturePolicy
    stores_arrays: ClassVar[bool] = True
    fixed_arguments: ClassVar[tuple[str, ...]] = (
        *("assignment", "bootstrap", "decoder", "gate", "gate_support", "latent_embedding", "min_q_weight", "n_components"),
        *("prior", "value_targets"),
    )
    argument_ranges: ClassVar[dict[str, Range]] = {
        "advantage_scale": NOT_NEGATIVE,
        "evidence_steps": POSITIVE,
        "gate_support": UNIT,
        "gumbel_temperature": POSITIVE,
        "kl_coef": NOT_NEGATIVE,
        "min_q_weight": UNIT,
        "n_components": whole_number(2, MAX_SIZE),
        "target_noise_clip": NOT_NEGATIVE,
        "target_policy_noise": NOT_NEGATIVE,
        "value_bounds": BOUNDS,
    }

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        dataset: Any = None,
        learning_rate: float | Schedule = 3e-4,
        policy_delay: int = 2,
        n_components: int = 8,
        advantage_scale: float = 10.0,
        advantage_weight: AdvantageWeight = "normalized",
        gumbel_temperature: float = 0.67,
        kl_coef: float = 1.0,
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        target_gate: Literal["online", "target"] = "online",
        latent_embedding: Literal["observation", "none"] | int = "observation",
        value_targets: bool = False,
        min_q_weight: float | None = None,
        value_bounds: tuple[float, float] | None = None,
        gating_dtype: Literal["auto", "float32", "bfloat16"] = "float32",
        bootstrap: Literal["policy", "data", "component"] = "policy",
        decoder: Literal["fixed", "calibrated"] = "fixed",
        assignment: Literal["posterior", "exact", "episode"] = "posterior",
        evidence_steps: float = 100.0,
        prior: Literal["values", "learned"] = "values",
        gate: Gate = "values",
        gate_support: float = 0.5,
        **kwargs: Any,
    ) -> None:
        self.n_components = n_components
        self.advantage_scale = advantage_scale
        self.advantage_weight: AdvantageWeight = advantage_weight
        self.gumbel_temperature = gumbel_temperature
        self.kl_coef = kl_coef
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip
        self.target_gate = target_gate
        self.latent_embedding = latent_embedding
        self.value_targets = value_targets
        self.min_q_weight = (0.7 if value_targets else 1.0) if min_q_weight is None else min_q_weight
        self.value_bounds = value_bounds
        self.gating_dtype = gating_dtype
        self.bootstrap = bootstrap
        self.needs_next_actions = bootstrap == "data"
        self.decoder = decoder
        self.assignment = assignment
        self.needs_episodes = assignment == "episode"
        self.evidence_steps = evidence_steps
        self.prior = prior
        self.gate: Gate = gate
        self.gate_support = gate_support
        #: Hash of the data that the evidence of the episodes is about.
        self._evidence_of: str | None = None
        super().__init__(policy, env, dataset, learning_rate, policy_delay=policy_delay, **kwargs)

    def check_combinations(self) -> None:
        """
        Refuse arguments that do not go together, each of which is in its range.

        :raises ValueError: they do not
        """
        if self.value_targets and self.bootstrap != "policy":
            raise ValueError(
                f'value_targets=True regresses on the gated policy: it does not go with bootstrap="{self.bootstrap}".'
            )
        if self.bootstrap == "component" and self.assignment == "posterior":
            raise ValueError('bootstrap="component" needs assignment="episode" or "exact": who goes on must be known.')
        if self.bootstrap == "component" and self.advantage_scale > 0.0:
            raise ValueError('bootstrap="component" has no values of actions, which advantage_scale needs: set it to 0.')
        if self.assignment == "exact" and self.kl_coef == 0.0:
            raise ValueError('assignment="exact" divides by kl_coef: give it a positive one, 1 is the tight bound.')

    def _policy_arguments(self) -> dict[str, Any]:
        return {
            "n_components": self.n_components,
            "latent_embedding": self.latent_embedding,
            "min_q_weight": self.min_q_weight,
            "use_value_network": self.value_targets,
            "gate": self.gate,
            "gate_support": self.gate_support,
            "use_prior": self.prior == "learned",
            "calibrated_decoder": self.decoder == "calibrated",
            "use_info_posterior": False,
            "use_posterior": self.assignment == "posterior",
            "component_critics": self.bootstrap == "component",
        }

    def _setup_model(self) -> None:
        super()._setup_model()
        policy = self.policy
        if policy.value is not None:
            self.add_optimizer("value", [policy.value])
        self.add_optimizer("critic", [policy.critic])
        assigning = [] if policy.posterior is None else [policy.posterior]
        fitted = [] if policy.prior is None else [policy.prior]
        self.add_optimizer("actor", [*assigning, policy.actor, *fitted])
        self.add_target(policy.critic, policy.critic_target)
        self.add_target(policy.actor, policy.actor_target)

    def _on_dataset(self, buffer: OfflineReplayBuffer) -> None:
        super()._on_dataset(buffer)
        if self.assignment != "episode":
            return
        shape = (len(buffer.known_episode_lengths()) + 1, self.n_components)
        stored, self._stored_arrays = self._stored_arrays, None
        if stored is None and self._evidence_of == buffer.fingerprint:  # the same data, given once more
            return
        self.policy.episode_evidence, self._evidence_of = th.zeros(shape, device=self.device), buffer.fingerprint
        if stored is None:
            return
        arrays = read_npz(stored)
        try:
            evidence, fingerprint = arrays["episode_evidence"], str(arrays["fingerprint"])
        except KeyError as error:
            raise DamagedFileError(f"The file lacks the array {error}, which says whose the episodes are.") from None
        if fingerprint != buffer.fingerprint:  # other data: theirs is found out anew
            return
        # As the networks, whose precision is PyTorch's default.
        dtype = self.policy.episode_evidence.cpu().numpy().dtype
        if evidence.shape != shape or evidence.dtype != dtype or not np.isfinite(evidence).all():
            raise DamagedFileError(f"The file's 'episode_evidence' is not {shape[0]} x {shape[1]} finite {dtype} numbers.")
        self.policy.episode_evidence.copy_(th.from_numpy(evidence.copy()))

    def _packed_arrays(self) -> bytes | None:
        evidence = self.policy.episode_evidence
        if self._stored_arrays is not None or evidence is None:
            return self._stored_arrays
        return pack_npz({"episode_evidence": evidence.cpu().numpy(), "fingerprint": np.array(self._evidence_of)})

    @property
    def gate_dtype(self) -> th.dtype:
        """Precision of the gate in the updates."""
        policy = self.policy
        dtype = policy.observation_mean.dtype
        narrowest = min(*policy.actor_arch, *policy.critic_arch)
        pays = dtype == th.float32 and narrowest >= BFLOAT16_WIDTH and has_fast_bfloat16(self.device)
        return th.bfloat16 if self.gating_dtype == "bfloat16" or (self.gating_dtype == "auto" and pays) else dtype

    @property
    def derives_value_bounds(self) -> bool:
        """Whether the range of the value targets is to be derived from the rewards."""
        return self.value_targets and self.value_bounds is None

    def noise_specs(self, batch_size: int) -> dict[str, NoiseSpec]:
        """The random numbers that one update consumes, by name."""
        specs = {"gumbel_uniform": NoiseSpec("uniform", (batch_size, self.n_components), delayed=True)}
        if not self.value_targets and self.bootstrap == "policy":
            specs["target_noise"] = NoiseSpec("normal", (batch_size, self.policy.action_size))
        return specs

    def next_values(self, batch: OfflineBatch) -> th.Tensor:
        """
        The latent-max-Q operator at the next observations (eq. 17), V with value targets, or the values of the data's next
        actions, shape ``(batch, 1)``; with critics of sub-policies, the values of all of them, shape
        ``(batch, n_components)``.
        """
        policy, observations = self.policy, batch.next_observations
        if policy.value is not None:
            values: th.Tensor = policy.value(observations)
            return values
        if self.bootstrap == "component":
            return min_max_q(policy.critic_target(observations), self.min_q_weight)
        if self.bootstrap == "data":
            assert batch.next_actions is not None
            return min_max_q(policy.critic_target(observations, batch.next_actions), self.min_q_weight)
        noise = smoothing_noise(batch.noise["target_noise"], self.target_policy_noise, self.target_noise_clip)
        gate_critic = policy.critic if self.target_gate == "online" else policy.critic_target
        actions = policy.gated_actions(observations, policy.actor_target, gate_critic, self.gate_dtype)
        q_values = policy.critic_target(observations, (actions + noise).clamp(-1.0, 1.0))
        return min_max_q(q_values, self.min_q_weight)

    def _component_errors(self, batch: OfflineBatch) -> th.Tensor:
        """Squared errors of all sub-policies, shape ``(batch, n_components, action_size)``."""
        return (self.policy.actor.all_components(batch.observations) - batch.actions.unsqueeze(1)).square()

    def _owners(self, batch: OfflineBatch) -> th.Tensor:
        """Whose the transitions are by what is known before the actor is asked, shape ``(batch, n_components)``."""
        if self.assignment == "episode":
            assert batch.episodes is not None and self.policy.episode_evidence is not None
            return self._episode_assignment(self._prior(batch), self.policy.episode_evidence[batch.episodes])
        return self._exact_assignment(self._prior(batch), self._component_errors(batch))

    def critic_loss(self, batch: OfflineBatch) -> tuple[th.Tensor, Metrics]:
        """Squared error of all critics, those of sub-policies weighted by whose the transitions are, 0-d."""
        if self.bootstrap != "component":
            return super().critic_loss(batch)
        errors = (self.policy.critic(batch.observations) - self.target_q_values(batch)).square()
        with th.no_grad():
            owners = self._owners(batch)
        loss = (owners * errors).sum(dim=2).mean(dim=1).sum()
        return loss, {"critic_loss": loss}

    @th.no_grad()
    def bellman_errors(self, batch: OfflineBatch) -> th.Tensor | None:
        """Values of the dataset's actions, or of those whose they are, minus the targets, shape ``(n_critics, batch, 1)``."""
        if self.bootstrap != "component":
            return super().bellman_errors(batch)
        errors: th.Tensor = self.policy.critic(batch.observations) - self.target_q_values(batch)
        return (self._owners(batch) * errors).sum(dim=2, keepdim=True)

    def value_loss(self, batch: OfflineBatch) -> tuple[th.Tensor, Metrics]:
        """Squared error of the state value on the clipped value of the gated target policy (eq. 51-53), 0-d."""
        policy = self.policy
        assert policy.value is not None and self.target_bounds is not None
        with th.no_grad():
            actions = policy.gated_actions(batch.observations, policy.actor_target, policy.critic, self.gate_dtype)
            targets = min_max_q(policy.critic_target(batch.observations, actions), self.min_q_weight)
            targets = targets.clamp(*self.target_bounds)
        loss = F.mse_loss(policy.value(batch.observations), targets)
        return loss, {"value_loss": loss}

    @th.no_grad()
    def advantages(self, batch: OfflineBatch) -> th.Tensor:
        """Advantage of the dataset's actions over the gated policy, shape ``(batch, 1)``."""
        policy = self.policy
        q_values = min_max_q(policy.critic(batch.observations, batch.actions), self.min_q_weight)
        if policy.value is not None:
            baseline = policy.value(batch.observations)
        else:
            baseline = policy.gated_values(batch.observations, policy.actor_target, policy.critic, self.gate_dtype)
        advantages: th.Tensor = q_values - baseline
        return advantages

    def _prior(self, batch: OfflineBatch) -> th.Tensor:
        """p(z|s) of the bound, shape ``(batch, n_components)``: the gate, softened, or the network."""
        policy = self.policy
        if self.prior == "learned":
            assert policy.prior is not None
            probabilities: th.Tensor = policy.prior(batch.observations).exp()
            return probabilities
        with th.no_grad():
            table, _ = policy.gate_table(batch.observations, policy.actor, policy.critic, self.gate_dtype)
            return th.softmax(table, dim=1)

    def _precision(self) -> th.Tensor | float:
        """What a squared error counts in the log-likelihood, ``1 / (2 sigma^2)``, shape ``(action_size,)``; 1 if fixed."""
        return 1.0 if self.policy.decoder_variance is None else 0.5 / self.policy.decoder_variance

    def _weights(self, batch: OfflineBatch) -> th.Tensor:
        """Advantage weights of the transitions, shape ``(batch, 1)``; without a scale there is nothing to compute."""
        if self.advantage_scale == 0.0:
            return th.ones_like(batch.rewards)
        return advantage_weights(self.advantages(batch), self.advantage_scale, self.advantage_weight)

    def _exact_assignment(self, prior: th.Tensor, errors: th.Tensor) -> th.Tensor:
        """The decoder's own posterior, without gradient, shape ``(batch, n_components)``."""
        log_likelihood = -(errors * self._precision()).sum(dim=2)
        return th.softmax(th.log(prior + LOG_EPS) + log_likelihood / self.kl_coef, dim=1).detach()

    def _episode_assignment(self, prior: th.Tensor, evidence: th.Tensor) -> th.Tensor:
        """
        q(z|episode, s), without gradient, shape ``(batch, n_components)``.

        :param prior: p(z|s), same shape
        :param evidence: mean log-share of the likelihood in the transitions' episodes, same shape
        """
        return th.softmax(th.log(prior + LOG_EPS) + self.evidence_steps * evidence, dim=1).detach()

    @th.no_grad()
    def _gathered_evidence(self, batch: OfflineBatch) -> th.Tensor:
        """
        The episodes' evidence with what a minibatch says, shape ``(n_episodes + 1, n_components)``. The last row is that of
        transitions that are in no episode of the dataset, 0.

        :param batch: the minibatch
        """
        evidence = self.policy.episode_evidence
        assert evidence is not None and batch.episodes is not None
        shares = th.log_softmax(-(self._component_errors(batch) * self._precision()).sum(dim=2), dim=1)
        sums = evidence.new_zeros(len(evidence), self.n_components + 1)
        sums = ranks.total(sums.index_add(0, batch.episodes, th.cat([shares, th.ones_like(shares[:, :1])], dim=1)))
        counts = sums[:, -1:]
        means = sums[:, :-1] / counts.clamp(min=1.0)
        # As if the steps had come one after the other, each with the mean of those of its episode.
        rates = 1.0 - (1.0 - EVIDENCE_RATE) ** counts
        gathered = evidence + rates * (means - evidence)
        return th.cat([gathered[:-1], evidence[-1:]])

    def actor_loss(self, batch: OfflineBatch) -> tuple[th.Tensor, Metrics]:
        """Weighted negative evidence lower bound of actor, posterior and prior (eq. 11), 0-d."""
        policy = self.policy
        weights = self._weights(batch)
        uniform = batch.noise["gumbel_uniform"]
        evidence: th.Tensor | None = None
        if self.assignment == "episode":
            prior = self._prior(batch)
            evidence = self._gathered_evidence(batch)
            probabilities = self._episode_assignment(prior, evidence[batch.episodes])
            # Nearly all of it is one sub-policy's: a gradient of one instead of K.
            z = policy.actor.one_hots[sampled_component(probabilities, uniform)]
            errors = (policy.actor(batch.observations, z) - batch.actions).square()
        elif policy.posterior is None:
            prior = self._prior(batch)
            errors = self._component_errors(batch)
            probabilities = self._exact_assignment(prior, errors)
            errors = (probabilities.unsqueeze(2) * errors).sum(dim=1)
        else:
            probabilities = th.softmax(policy.posterior(batch.observations, batch.actions), dim=1)
            z = gumbel_softmax(probabilities, uniform, self.gumbel_temperature)
            errors = (policy.actor(batch.observations, z) - batch.actions).square()
            prior = self._prior(batch)
        kl = (weights * categorical_kl(probabilities, prior)).mean()
        precision = self._precision()
        reconstruction = (weights * (errors * precision).sum(dim=1, keepdim=True)).mean()
        loss = reconstruction + self.kl_coef * kl
        parts = {"reconstruction_loss": reconstruction, "kl": kl, "weight_ess": effective_sample_size(weights)}
        if policy.prior is not None and self.prior != "learned":
            fit = -(weights * (probabilities.detach() * policy.prior(batch.observations)).sum(dim=1, keepdim=True)).mean()
            loss = loss + fit
            parts["prior_loss"] = fit
        if evidence is not None:
            parts["episode_evidence"] = evidence
        if policy.decoder_variance is not None:
            parts["decoder_variance"] = (weights * errors).mean(dim=0).detach()
        return loss, {"actor_loss": loss} | parts

    def _keep_statistics(self, metrics: Metrics) -> None:
        """Keep the evidence; move the decoder's variance towards the weighted error of the minibatch; its mean is logged."""
        if self.policy.episode_evidence is not None:
            self.policy.episode_evidence.copy_(metrics.pop("episode_evidence"))
        variance = self.policy.decoder_variance
        if variance is not None:
            variance.lerp_(ranks.mean(metrics["decoder_variance"]).clamp(min=LEAST_VARIANCE), VARIANCE_RATE)
            metrics["decoder_variance"] = variance.mean()

    def info_step(self, batch: OfflineBatch) -> Metrics:
        """
        Mutual-information step of infoDMPO, nothing here.

        :param batch: the minibatch
        """
        return {}

    def update(self, batch: OfflineBatch) -> Metrics:
        """One update of critics (and value network), and every ``policy_delay`` updates of actor and posterior."""
        metrics: Metrics = {}
        if self.value_targets:
            loss, metrics = self.value_loss(batch)
            self.optimize("value", loss)
        loss, parts = self.critic_loss(batch)
        self.optimize("critic", loss)
        metrics |= parts
        if self.is_policy_update:
            # The regularizer moves the actor before its likelihood step.
            metrics |= self.info_step(batch)
            loss, parts = self.actor_loss(batch)
            self.optimize("actor", loss)
            self._keep_statistics(parts)
            metrics |= parts
        return metrics

    @th.no_grad()
    def diagnostics(self, batch: OfflineBatch) -> Metrics:
        """
        Entropy of the gate's choices in nats, ``component_entropy``, and whether the sub-policies part, see
        :func:`mixture_diagnostics`. 0-d each.
        """
        policy = self.policy
        scores, actions = policy.scored_actions(batch.observations, *policy.choosing_networks)
        chosen = scores.argmax(dim=1, keepdim=True)
        if policy.posterior is None:
            posterior = self._owners(batch)
        else:
            posterior = th.softmax(policy.posterior(batch.observations, batch.actions), dim=1)
        usage = F.one_hot(chosen.squeeze(1), self.n_components).to(posterior.dtype).mean(dim=0)
        metrics = mixture_diagnostics(posterior, chosen, actions, batch.actions)
        if self._n_updates >= PARTED_AFTER and metrics["mutual_information"] < PARTED_SHARE * math.log(self.n_components):
            warnings.warn(NOT_PARTED, stacklevel=2)
        return metrics | {"component_entropy": entropy(usage)}
