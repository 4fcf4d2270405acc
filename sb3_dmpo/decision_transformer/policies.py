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


def _newest_last(window: np.ndarray, newest: np.ndarray) -> np.ndarray:
    """The window moved on by one step, same shape; a copy, as the caller may want to go back."""
    return np.concatenate([window[:, 1:], newest[:, None]], axis=1)


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
        new_state = self._advance(observations, *self._check_state(len(observations), state, episode_start))
        n_known = np.minimum(new_state.lengths, self.context_length)[:, None]
        steps = np.arange(self.context_length) - self.context_length
        with th.inference_mode():
            scaled_actions = self.actor(
                self.scale_observations(self._to_tensor(new_state.observations)),
                self._to_tensor(new_state.actions),
                self._to_tensor(new_state.returns_to_go[:, :, None]),
                th.as_tensor(np.maximum(new_state.lengths[:, None] + steps, 0), device=self.device),
                th.as_tensor(steps >= -n_known, device=self.device),
            )[:, -1]
        new_state.actions[:, -1] = scaled_actions.cpu().numpy()
        actions = self.unscale_action(new_state.actions[:, -1])
        return (actions if vectorized else actions[0]), new_state

    def _to_tensor(self, array: np.ndarray) -> th.Tensor:
        return th.as_tensor(array, dtype=th.float32, device=self.device)

    def _check_state(
        self, n_envs: int, state: tuple[np.ndarray, ...] | None, episode_start: np.ndarray | None
    ) -> tuple[DecisionTransformerState, np.ndarray]:
        if state is None:
            return self.initial_state(n_envs), np.ones(n_envs, bool)
        starts = checked_starts(self.initial_state(n_envs), state, episode_start)
        return DecisionTransformerState(*state), starts

    def _advance(
        self, observations: np.ndarray, state: DecisionTransformerState, starts: np.ndarray
    ) -> DecisionTransformerState:
        """The state with the new observations and returns-to-go, its newest actions still 0."""
        is_known = np.isfinite(state.rewards) | starts
        predicted = np.zeros(len(starts)) if is_known.all() else self._predicted_rewards(state, observations)
        rewards = np.where(is_known, state.rewards, predicted)
        returns_to_go = np.where(starts, self.target_return.item(), state.returns_to_go[:, -1] - rewards)
        return DecisionTransformerState(
            observations=_newest_last(state.observations, observations),
            actions=_newest_last(state.actions, np.zeros_like(state.actions[:, 0])),
            returns_to_go=_newest_last(state.returns_to_go, returns_to_go),
            lengths=np.where(starts, 0, state.lengths) + 1,
            rewards=np.full_like(state.rewards, UNKNOWN),
        )

    def _predicted_rewards(self, state: DecisionTransformerState, next_observations: np.ndarray) -> np.ndarray:
        """What the last actions have probably brought, shape ``(n,)``; 0 without a model."""
        if self.reward_model is None:
            return np.zeros(len(next_observations))
        with th.inference_mode():
            rewards = self.reward_model(
                self.scale_observations(self._to_tensor(state.observations[:, -1])),
                self._to_tensor(state.actions[:, -1]),
                self.scale_observations(self._to_tensor(next_observations)),
            )
        predicted: np.ndarray = rewards.squeeze(1).double().cpu().numpy()
        return predicted

    def _predict(self, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:  # type: ignore[override]
        # Without a state there is nothing but the first step of an episode.
        first = observation.new_zeros(len(observation), 1, 1)
        actions: th.Tensor = self.actor(
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
