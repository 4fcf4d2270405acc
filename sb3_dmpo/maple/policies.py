"""The policy of MAPLE: recurrent encoders, an actor and critics that see their contexts, and ``predict`` with a state."""

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn

from sb3_dmpo.common.memory import checked_starts
from sb3_dmpo.common.policies import OfflinePolicy
from sb3_dmpo.cql.policies import SquashedGaussian

#: Hard bounds of the mean and of the log standard deviation before the tanh.
MEAN_BOUND, LOG_STD_RANGE = 9.0, (-5.0, 2.0)


class MAPLEState(NamedTuple):
    """
    What the policy remembers of ``n`` environments, as :meth:`MAPLEPolicy.predict` returns it.

    :param hidden: state of the recurrent encoder, float32, shape ``(n, gru_size)``
    :param last_actions: the actions just taken, in [-1, 1], float32, shape ``(n, action_size)``
    """

    hidden: np.ndarray
    last_actions: np.ndarray


def xavier_init(layer: nn.Module) -> None:
    """
    Xavier-uniform weights and biases of 0.

    :param layer: a module; what is no linear layer is left alone
    """
    if isinstance(layer, nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)


class ContextEncoder(nn.Module):
    """
    ``z_t = tanh(W h_t + b)`` with ``h_t = GRU([o_t, a_{t-1}], h_{t-1})``: which dynamics the steps so far are of.

    :param observation_size: S
    :param action_size: A
    :param gru_size: G, width of the recurrent state
    :param context_size: C, size of the context
    """

    def __init__(self, observation_size: int, action_size: int, gru_size: int, context_size: int) -> None:
        super().__init__()
        self.gru = nn.GRU(observation_size + action_size, gru_size, batch_first=True)
        self.embed = nn.Linear(gru_size, context_size)
        xavier_init(self.embed)
        input_weight, own_weight, input_bias, own_bias = self._gru_parameters()
        for weight in (input_weight, own_weight):
            for gate in th.chunk(weight, 3):
                nn.init.xavier_uniform_(gate)
        nn.init.zeros_(own_bias)
        nn.init.zeros_(input_bias)
        # Of the reset and the update gate; the rest is that of the new state.
        nn.init.ones_(input_bias[: 2 * gru_size])

    def _gru_parameters(self) -> list[nn.Parameter]:
        """Matrices of inputs and state, then their biases; reset gate, update gate and new state below one another."""
        return list(self.gru.parameters())

    def hidden_states(self, observations: th.Tensor, last_actions: th.Tensor, hidden: th.Tensor) -> th.Tensor:
        """
        The recurrent state after every step, shape ``(n, T, G)``.

        :param observations: shape ``(n, T, S)``
        :param last_actions: the action before each of them, shape ``(n, T, A)``
        :param hidden: state before the first step, shape ``(n, G)``
        """
        states: th.Tensor = self.gru(th.cat([observations, last_actions], dim=2), hidden.unsqueeze(0).contiguous())[0]
        return states

    def contexts(self, hidden_states: th.Tensor) -> th.Tensor:
        """
        Contexts, shape ``(..., C)``.

        :param hidden_states: shape ``(..., G)``
        """
        return th.tanh(self.embed(hidden_states))

    def step(self, observations: th.Tensor, last_actions: th.Tensor, hidden: th.Tensor) -> th.Tensor:
        """
        The recurrent state after one step, shape ``(n, G)``; written out, because ONNX has no cell for a single step.

        :param observations: shape ``(n, S)``
        :param last_actions: shape ``(n, A)``
        :param hidden: shape ``(n, G)``
        """
        input_weight, own_weight, input_bias, own_bias = self._gru_parameters()
        inputs = nn.functional.linear(th.cat([observations, last_actions], dim=1), input_weight, input_bias)
        recurrent = nn.functional.linear(hidden, own_weight, own_bias)
        reset, update, new = th.chunk(inputs, 3, dim=1)
        own_reset, own_update, own_new = th.chunk(recurrent, 3, dim=1)
        candidate = th.tanh(new + th.sigmoid(reset + own_reset) * own_new)
        return candidate + th.sigmoid(update + own_update) * (hidden - candidate)


class ContextActor(nn.Module):
    """
    Squashed Gaussian that depends on context and observation.

    :param input_size: C + S
    :param action_size: A
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation of the hidden layers
    """

    def __init__(self, input_size: int, action_size: int, net_arch: list[int], activation_fn: type[nn.Module]) -> None:
        super().__init__()
        self.latent_pi = nn.Sequential(*create_mlp(input_size, -1, net_arch, activation_fn))
        width = net_arch[-1] if net_arch else input_size
        self.mu = nn.Linear(width, action_size)
        self.log_std = nn.Linear(width, action_size)
        self.apply(xavier_init)

    def forward(self, contexts: th.Tensor, observations: th.Tensor) -> SquashedGaussian:
        """
        Distribution of the actions.

        :param contexts: shape ``(..., C)``
        :param observations: shape ``(..., S)``
        """
        hidden = self.latent_pi(th.cat([contexts, observations], dim=-1))
        return SquashedGaussian(self.mu(hidden).clamp(-MEAN_BOUND, MEAN_BOUND), self.log_std(hidden).clamp(*LOG_STD_RANGE))


class ContextCritics(nn.Module):
    """
    Two Q-functions of context, observation and action without shared layers.

    :param input_size: C + S + A
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation of the hidden layers
    """

    def __init__(self, input_size: int, net_arch: list[int], activation_fn: type[nn.Module]) -> None:
        super().__init__()
        self.q1 = nn.Sequential(*create_mlp(input_size, 1, net_arch, activation_fn))
        self.q2 = nn.Sequential(*create_mlp(input_size, 1, net_arch, activation_fn))
        self.apply(xavier_init)

    def forward(self, contexts: th.Tensor, observations: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Both values, shape ``(..., 1)`` each.

        :param contexts: shape ``(..., C)``
        :param observations: shape ``(..., S)``
        :param actions: shape ``(..., A)``
        """
        inputs = th.cat([contexts, observations, actions], dim=-1)
        return self.q1(inputs), self.q2(inputs)


class MAPLEPolicy(OfflinePolicy):
    """
    An actor that adapts: it sees the observation and a context, which a recurrent encoder makes of the episode so far.

    ``predict`` gives actions and a :class:`MAPLEState`, which has to be passed to the next call, with ``episode_start`` where
    episodes have ended, as recurrent policies want it. Without a state every observation is taken for the first of an
    episode. Only the policy's encoder and the actor act; the rest is for learning.

    :param args: arguments of :class:`OfflinePolicy`
    :param gru_size: width of the recurrent states
    :param context_size: size of the contexts
    :param kwargs: keyword arguments of :class:`OfflinePolicy`
    """

    has_memory: ClassVar[bool] = True
    acting_networks: ClassVar[tuple[str, ...]] = ("policy_encoder", "actor")
    state_names: ClassVar[tuple[str, ...]] = MAPLEState._fields

    def __init__(self, *args: Any, gru_size: int = 128, context_size: int = 16, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gru_size, self.context_size = gru_size, context_size
        encoder_sizes = (self.observation_size, self.action_size, gru_size, context_size)
        self.policy_encoder = ContextEncoder(*encoder_sizes)
        self.value_encoder = ContextEncoder(*encoder_sizes)
        state_size = context_size + self.observation_size
        self.actor: ContextActor = ContextActor(state_size, self.action_size, self.actor_arch, self.activation_fn)
        self.critics = ContextCritics(state_size + self.action_size, self.critic_arch, self.activation_fn)
        self.critics_target = self.make_target(self.critics)
        self.log_alpha = nn.Parameter(th.zeros(()))

    def initial_state(self, n_envs: int) -> MAPLEState:
        """
        The state before the first step.

        :param n_envs: number of environments
        """
        return MAPLEState(np.zeros((n_envs, self.gru_size), np.float32), np.zeros((n_envs, self.action_size), np.float32))

    def act(
        self,
        observations: th.Tensor,
        hidden: th.Tensor,
        last_actions: th.Tensor,
        noise: th.Tensor | None = None,
        in_training: bool = False,
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Actions in [-1, 1], shape ``(n, A)``, and the recurrent state after the step, shape ``(n, G)``.

        :param observations: raw, shape ``(n, S)``
        :param hidden: state before the step, shape ``(n, G)``
        :param last_actions: in [-1, 1], shape ``(n, A)``
        :param noise: standard normal, shape ``(n, A)``; None: the mode
        :param in_training: whether the newest networks act, also where ``predict`` has averages
        """
        scaled = self.scale_observations(observations)
        encoder, actor = (getattr(self, name) if in_training else self.acting(name) for name in self.acting_networks)
        hidden = encoder.step(scaled, last_actions, hidden)
        distribution = actor(encoder.contexts(hidden), scaled)
        return (distribution.mode() if noise is None else distribution.sample(noise)[0]), hidden

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Actions of the environment, shape ``action_space.shape`` or ``(n, *action_space.shape)``, and the state for the
        next call.

        :param observation: one raw observation or a batch of them
        :param state: what the previous call returned; None: all episodes begin
        :param episode_start: which episodes begin with this observation, shape ``(n,)``; None: none, unless there is no state
        :param deterministic: whether to take the mode
        :raises ValueError: wrong shape, missing key, a value that is not finite, or a state of other environments
        """
        if self.training:
            self.set_training_mode(False)
        observations, vectorized = self.prepare_observation(observation)
        before = self.initial_state(len(observations))
        if state is not None:
            starts = checked_starts(before, state, episode_start)[:, None]
            before = MAPLEState(*(np.where(starts, zeros, array) for zeros, array in zip(before, state, strict=True)))
        with th.inference_mode():
            hidden, last_actions = map(self._to_tensor, before)
            noise = None if deterministic else th.randn_like(last_actions)
            scaled_actions, hidden = self.act(self._to_tensor(observations), hidden, last_actions, noise)
        after = MAPLEState(hidden.float().cpu().numpy(), scaled_actions.float().cpu().numpy())
        actions = self.unscale_action(after.last_actions)
        return (actions if vectorized else actions[0]), after

    def step(self, observation: th.Tensor, *state: th.Tensor) -> tuple[th.Tensor, tuple[th.Tensor, ...]]:
        """
        Deterministic actions in [-1, 1], shape ``(batch, A)``, and the state after them.

        :param observation: raw, shape ``(batch, S)``
        :param state: ``hidden`` and ``last_actions``
        """
        hidden, last_actions = state
        actions, after = self.act(observation, hidden, last_actions)
        return actions, (after, actions)

    def _to_tensor(self, array: np.ndarray) -> th.Tensor:
        return th.as_tensor(array, dtype=self.log_alpha.dtype, device=self.observation_mean.device)

    def _predict(self, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:  # type: ignore[override]
        # Without a state there is nothing but the first step of an episode.
        hidden = observation.new_zeros(len(observation), self.gru_size)
        last_actions = observation.new_zeros(len(observation), self.action_size)
        noise = None if deterministic else th.randn_like(last_actions)
        return self.act(observation, hidden, last_actions, noise)[0]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"gru_size": self.gru_size, "context_size": self.context_size}
