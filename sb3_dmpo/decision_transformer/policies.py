"""The policy of Decision Transformer: it remembers the episode in SB3's ``state``."""

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_dmpo.common.memory import checked_starts
from sb3_dmpo.common.policies import OfflinePolicy
from sb3_dmpo.decision_transformer.transformer import RewardModel, TransformerActor


class DecisionTransformerState(NamedTuple):
    """
    The last ``context_length`` steps of ``n`` environments, the newest last, as :meth:`DecisionTransformerPolicy.predict`
    returns them.

    :param observations: flat observations, shape ``(n, context_length, observation_size)``
    :param actions: actions in [-1, 1], shape ``(n, context_length, action_size)``
    :param returns_to_go: shape ``(n, context_length)``
    :param lengths: number of steps since the beginning of the episode, shape ``(n,)``
    :param rewards: what the last action brought, shape ``(n,)``; infinite where unknown. ``predict`` cannot know: who steps
        the environment may fill it in, see :func:`observe_rewards`
    """

    observations: np.ndarray
    actions: np.ndarray
    returns_to_go: np.ndarray
    lengths: np.ndarray
    rewards: np.ndarray


def observe_rewards(locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
    """
    Callback of SB3's ``evaluate_policy`` that tells a Decision Transformer the rewards it got, which ``predict`` does not
    see: ``evaluate_policy(model, env, callback=observe_rewards)`` reduces the return-to-go exactly as the paper does.
    In a loop of one's own the same is ``state.rewards[:] = rewards`` after each step.

    :param locals_: local variables of ``evaluate_policy``
    :param globals_: unused
    """
    DecisionTransformerState(*locals_["states"]).rewards[locals_["i"]] = locals_["reward"]


#: Stands for a reward that was not observed. Unlike NaN it equals itself, so that states can be compared.
UNKNOWN = np.inf


def _newest_last(window: th.Tensor, newest: th.Tensor) -> th.Tensor:
    """The window moved on by one step, same shape; a copy, as the caller may want to go back."""
    return th.cat([window[:, 1:], newest.unsqueeze(1)], dim=1)


class DecisionTransformerPolicy(OfflinePolicy):
    """
    A transformer over the last steps of an episode, conditioned on the return that is still to come.

    ``predict`` gives actions and a :class:`DecisionTransformerState`, which has to be passed to the next call, with
    ``episode_start`` where episodes have ended, as recurrent policies want it. Without a state every observation is taken
    for the first of an episode.

    :param observation_space: Box, or (nested) Dict of Boxes
    :param action_space: bounded Box
    :param lr_schedule: learning rate schedule (kept for SB3's signature)
    :param transformer: arguments of :class:`TransformerActor`
    :param target_return: return that an episode begins with
    :param predict_rewards: have a network predict the rewards that ``predict`` does not see; its hidden layers are those
        of the critics in ``net_arch``
    :param optimizer_class: class of the optimizers
    :param optimizer_kwargs: further arguments of the optimizers, by default ``dict(weight_decay=1e-4)`` for AdamW
    :param kwargs: keyword arguments of :class:`OfflinePolicy`
    :raises ValueError: an argument is out of its range
    """

    scale_eps: ClassVar[float] = 1e-6
    has_memory: ClassVar[bool] = True
    state_names: ClassVar[tuple[str, ...]] = DecisionTransformerState._fields

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        lr_schedule: Schedule,
        transformer: dict[str, Any],
        target_return: float = 0.0,
        predict_rewards: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not math.isfinite(target_return):
            raise ValueError(f"target_return is {target_return}, it must be finite.")
        if optimizer_kwargs is None and optimizer_class is th.optim.AdamW:
            optimizer_kwargs = {"weight_decay": 1e-4}
        optimizer: dict[str, Any] = {"optimizer_class": optimizer_class, "optimizer_kwargs": optimizer_kwargs}
        super().__init__(observation_space, action_space, lr_schedule, **optimizer, **kwargs)
        # A buffer: parameters that are handed on decide by themselves what is predicted.
        self.register_buffer("target_return", th.tensor(float(target_return)))
        self.target_return: th.Tensor
        self.transformer = transformer
        self.context_length: int = transformer["context_length"]
        sizes = (self.observation_size, self.action_size)
        self.actor: TransformerActor = TransformerActor(*sizes, activation_fn=self.activation_fn, **transformer)
        self.reward_model: RewardModel | None = None
        if predict_rewards:
            input_size = 2 * self.observation_size + self.action_size
            self.reward_model = RewardModel(input_size, self.critic_arch, self.activation_fn)

    def initial_state(self, n_envs: int) -> DecisionTransformerState:
        """
        The state before the first step.

        :param n_envs: number of environments
        """
        window = (n_envs, self.context_length)
        return DecisionTransformerState(
            observations=np.zeros((*window, self.observation_size), np.float32),
            actions=np.zeros((*window, self.action_size), np.float32),
            returns_to_go=np.zeros(window),
            lengths=np.zeros(n_envs, np.int64),
            rewards=np.full(n_envs, UNKNOWN),
        )

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
        :param deterministic: without effect, the policy is deterministic
        :raises ValueError: wrong shape, missing key, a value that is not finite, or a state of other environments
        """
        if self.training:
            self.set_training_mode(False)
        observations, vectorized = self.prepare_observation(observation)
        before = self._check_state(len(observations), state, episode_start)
        with th.inference_mode():
            given = [th.as_tensor(array, device=self.device) for array in (observations, *before)]
            scaled_actions, after = self.step(*given)
        actions = self.unscale_action(scaled_actions.cpu().numpy())
        new_state = DecisionTransformerState(*(tensor.cpu().numpy() for tensor in after))
        return (actions if vectorized else actions[0]), new_state

    def step(self, observation: th.Tensor, *state: th.Tensor) -> tuple[th.Tensor, tuple[th.Tensor, ...]]:
        """
        Actions in [-1, 1], shape ``(batch, action_size)``, and the state after them.

        :param observation: flat raw observations, shape ``(batch, observation_size)``
        :param state: tensors of a :class:`DecisionTransformerState`; an episode begins where ``lengths`` is 0
        """
        observations, actions, returns_to_go, lengths, rewards = state
        starts = lengths == 0
        observed = rewards.isfinite() | starts
        rewards = th.where(observed, rewards, self._predicted_rewards(observations[:, -1], actions[:, -1], observation))
        return_to_go = th.where(starts, self.target_return.double(), returns_to_go[:, -1] - rewards)
        observations = _newest_last(observations, observation)
        actions = _newest_last(actions, th.zeros_like(actions[:, 0]))
        returns_to_go = _newest_last(returns_to_go, return_to_go)
        lengths = lengths + 1
        steps = th.arange(self.context_length, device=lengths.device) - self.context_length
        n_known = lengths.clamp(max=self.context_length)
        newest = self.acting("actor")(
            self.scale_observations(observations),
            actions,
            returns_to_go.float().unsqueeze(2),
            (lengths.unsqueeze(1) + steps).clamp(min=0),
            steps >= -n_known.unsqueeze(1),
        )[:, -1]
        actions = th.cat([actions[:, :-1], newest.unsqueeze(1)], dim=1)
        return newest, (observations, actions, returns_to_go, lengths, th.full_like(rewards, UNKNOWN))

    def _check_state(
        self, n_envs: int, state: tuple[np.ndarray, ...] | None, episode_start: np.ndarray | None
    ) -> DecisionTransformerState:
        """The state before a step, with a length of 0 where episodes begin."""
        initial = self.initial_state(n_envs)
        if state is None:
            return initial
        starts = checked_starts(initial, state, episode_start)
        found = DecisionTransformerState(*state)
        return found._replace(lengths=np.where(starts, 0, found.lengths))

    def _predicted_rewards(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """What the last actions have probably brought, shape ``(n,)``; 0 without a model."""
        if self.reward_model is None:
            return th.zeros_like(next_observations[:, 0], dtype=th.float64)
        scaled, scaled_next = self.scale_observations(observations), self.scale_observations(next_observations)
        rewards: th.Tensor = self.reward_model(scaled, actions, scaled_next)
        return rewards.squeeze(1).double()

    def _predict(self, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:  # type: ignore[override]
        # Without a state there is nothing but the first step of an episode.
        first = observation.new_zeros(len(observation), 1, 1)
        actions: th.Tensor = self.acting("actor")(
            self.scale_observations(observation).unsqueeze(1),
            first.expand(-1, -1, self.action_size),
            first + self.target_return,
            first[:, :, 0].long(),
            first[:, :, 0] == 0,
        )
        return actions[:, -1]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"transformer": self.transformer, "predict_rewards": self.reward_model is not None}
        return super()._get_constructor_parameters() | own
