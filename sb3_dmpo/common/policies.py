"""Base of all policies: observation scaler, networks, and ``predict`` on what an environment returns."""

import copy
import math
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import get_actor_critic_arch
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_dmpo.common.losses import min_max_q
from sb3_dmpo.common.networks import Actor, EnsembleCritic, ValueNetwork
from sb3_dmpo.data.preprocessing import (
    ActionUnscaler,
    canonical_observation,
    canonical_observation_space,
    check_action_space,
    flat_size,
    scale_actions,
    unmasked,
)

ModuleType = TypeVar("ModuleType", bound=nn.Module)


class OfflinePolicy(BasePolicy):
    """
    Policy object of an offline algorithm. Networks see flat, scaled observations and give actions in [-1, 1];
    ``predict`` takes raw observations and returns actions of the environment.

    :param observation_space: Box, or (nested) Dict of Boxes
    :param action_space: bounded Box
    :param lr_schedule: learning rate schedule (kept for SB3's signature; optimizers belong to the algorithm)
    :param net_arch: widths of the hidden layers, a list or ``dict(pi=[...], qf=[...])``; None: ``default_net_arch``
    :param activation_fn: activation of the hidden layers
    :param optimizer_class: class of the optimizers
    :param optimizer_kwargs: further arguments of the optimizers
    :param n_critics: number of Q-functions
    :param critic_layer_norm: whether a layer norm follows on the activation of every hidden layer of the Q-functions, and of
        the state-value network where there is one
    :param average: whether it acts by averages of its networks, see :meth:`add_average`
    """

    actor: nn.Module
    #: Of policies with critics.
    critic: EnsembleCritic
    #: Added to the standard deviation of every coordinate by the observation scaler.
    scale_eps: ClassVar[float] = 1e-3
    #: Whether actions depend on more than the current observation.
    has_memory: ClassVar[bool] = False
    #: Widths of the hidden layers without ``net_arch``.
    default_net_arch: ClassVar[tuple[int, ...]] = (256, 256)
    #: Number of hidden layers that actor and critics have at least.
    min_hidden_layers: ClassVar[int] = 0
    #: Names of the arrays of its memory, in the order of the state that ``predict`` takes and returns.
    state_names: ClassVar[tuple[str, ...]] = ()
    #: Networks that choose among actions by their values; an exported policy has them in double precision.
    gate_networks: ClassVar[tuple[str, ...]] = ()
    #: Online networks that ``predict`` uses; where there are averages, those of these networks act.
    acting_networks: ClassVar[tuple[str, ...]] = ("actor",)
    #: Names of the buffers that updates change; the others hold what the data say, or never change.
    learned_buffers: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 2,
        critic_layer_norm: bool = False,
        average: bool = False,
    ) -> None:
        super().__init__(
            canonical_observation_space(observation_space),
            check_action_space(action_space, "the policy"),
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
        )
        self.net_arch = list(self.default_net_arch) if net_arch is None else net_arch
        self.activation_fn = activation_fn
        self.actor_arch, self.critic_arch = get_actor_critic_arch(self.net_arch)
        self.n_critics = n_critics
        self.critic_layer_norm = critic_layer_norm
        self.observation_size = flat_size(self.observation_space)
        assert isinstance(self.action_space, spaces.Box)
        self.action_size = int(np.prod(self.action_space.shape))
        self._unscaler = ActionUnscaler(self.action_space)
        self.has_average = average
        self.average = nn.ModuleDict()
        self.register_buffer("observation_mean", th.zeros(self.observation_size))
        self.register_buffer("observation_std", th.ones(self.observation_size))
        self.observation_mean: th.Tensor
        self.observation_std: th.Tensor

    # Construction -----------------------------------------------------------------------------------------------

    def make_deterministic_actor(self) -> Actor:
        """A new deterministic actor of the configured architecture."""
        return Actor(self.observation_size, self.action_size, self.actor_arch, self.activation_fn)

    def make_critic(self) -> EnsembleCritic:
        """A new ensemble of Q-functions of the configured architecture."""
        sizes = (self.observation_size, self.action_size)
        return EnsembleCritic(*sizes, self.critic_arch, self.activation_fn, self.n_critics, self.critic_layer_norm)

    def make_value_network(self) -> ValueNetwork:
        """A new state-value network of the configured architecture."""
        return ValueNetwork(self.observation_size, self.critic_arch, self.activation_fn, self.critic_layer_norm)

    @staticmethod
    def make_target(module: ModuleType) -> ModuleType:
        """
        A frozen copy of a network, to be moved by soft updates only.

        :param module: the online network
        """
        return copy.deepcopy(module).requires_grad_(False)

    def add_average(self) -> None:
        """Copy the acting networks; ``predict`` uses the copies from now on, which somebody has to move."""
        self.average = nn.ModuleDict({name: self.make_target(getattr(self, name)) for name in self.acting_networks})

    def acting(self, name: str) -> Any:
        """
        The network that ``predict`` uses: the average, if there is one.

        :param name: one of ``acting_networks``
        """
        return self.average[name] if name in self.average else getattr(self, name)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As in PyTorch; a policy that was loaded on its own has made no copies yet."""
        if self.has_average and not self.average:
            self.add_average()
        return super().load_state_dict(*args, **kwargs)

    # Scaling ----------------------------------------------------------------------------------------------------

    def set_observation_statistics(self, mean: th.Tensor, std: th.Tensor) -> None:
        """
        Set the observation scaler to ``(s - mean) / (std + scale_eps)``.

        :param mean: shape ``(observation_size,)``
        :param std: population standard deviation, shape ``(observation_size,)``
        """
        self.observation_mean.copy_(mean)
        self.observation_std.copy_(std + self.scale_eps)

    def scale_observations(self, observations: th.Tensor) -> th.Tensor:
        """
        Scaled observations, shape ``(batch, observation_size)``.

        :param observations: flat raw observations, same shape
        """
        return (observations - self.observation_mean) / self.observation_std

    def prepare_observation(self, observation: Any) -> tuple[np.ndarray, bool]:
        """
        Flat float32 observations ``(batch, observation_size)`` and whether the input was a batch.

        :param observation: one observation or a batch of them, as the environment (or a VecEnv) returns it
        :raises ValueError: wrong shape, missing key, or a value that is masked or not finite
        """
        space = self.observation_space
        if isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict):
            raise ValueError(
                "The observation is a tuple, as gymnasium's `reset` returns it: `observation, info = env.reset()`. (That of a "
                "VecEnv returns the observations alone.)"
            )
        if isinstance(space, spaces.Dict):
            observation = canonical_observation(observation)
            if not isinstance(observation, dict):
                raise ValueError(
                    f"Expected an observation with the keys {list(space.spaces)}, got {type(observation).__name__}."
                )
            missing = [key for key in space.spaces if key not in observation]
            if missing:
                raise ValueError(f"The observation lacks the keys {missing}; it has {sorted(observation)}.")
            parts = [self._check_array(observation[key], sub, f"observation['{key}']") for key, sub in space.spaces.items()]
            sizes = {(part.shape[0], vectorized) for part, vectorized in parts}
            if len(sizes) > 1:
                raise ValueError(
                    f"The keys of the observation have different batch sizes: {sorted(size for size, _ in sizes)}."
                )
            return np.concatenate([part for part, _ in parts], axis=1), parts[0][1]
        return self._check_array(observation, space, "observation")

    def obs_to_tensor(self, observation: Any) -> tuple[th.Tensor, bool]:
        """
        Flat raw observations ``(batch, observation_size)``, which the policy itself takes, and whether the input was a batch.

        :param observation: one observation or a batch of them, as the environment (or a VecEnv) returns it
        :raises ValueError: wrong shape, missing key, or a value that is masked or not finite
        """
        observations, vectorized = self.prepare_observation(observation)
        return th.as_tensor(observations, device=self.observation_mean.device), vectorized

    def is_vectorized_observation(self, observation: Any) -> bool:
        """
        Whether an observation is a batch.

        :param observation: one observation or a batch of them
        """
        return self.prepare_observation(observation)[1]

    @staticmethod
    def _check_array(value: Any, space: spaces.Space[Any], name: str) -> tuple[np.ndarray, bool]:
        if isinstance(value, dict):
            raise ValueError(f"{name} is a dict, but the policy was made for {space}.")
        array = np.asarray(unmasked(value, name), dtype=np.float32)
        assert space.shape is not None
        if array.shape != space.shape and array.shape[1:] != space.shape:
            expected = f"{space.shape} or (n, {', '.join(map(str, space.shape))})"
            raise ValueError(f"{name} has shape {array.shape}, expected {expected}.")
        vectorized = array.shape != space.shape
        array = array.reshape(-1, math.prod(space.shape))
        if not np.isfinite(array).all():
            row, column = np.argwhere(~np.isfinite(array))[0]
            raise ValueError(
                f"{name} is not finite: row {row}, entry {column} is {array[row, column]}. Check the sensor or env."
            )
        return array, vectorized

    # Acting -----------------------------------------------------------------------------------------------------

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Actions of the environment, shape ``action_space.shape`` or ``(n, *action_space.shape)``, and the state.

        :param observation: one raw observation or a batch of them
        :param state: hidden state (returned as it is by policies without memory)
        :param episode_start: which episodes have just begun, shape ``(n,)`` (policies with memory only)
        :param deterministic: whether stochastic policies return their mode
        :raises ValueError: wrong shape, missing key, or a value that is masked or not finite
        """
        if self.training:
            self.set_training_mode(False)
        observations, vectorized = self.prepare_observation(observation)
        # Not self.device, which goes through the list of all parameters
        with th.inference_mode():
            tensor = th.as_tensor(observations, device=self.observation_mean.device)
            act = self._predict_one if len(tensor) == 1 else self._predict
            scaled_actions = act(tensor, deterministic).cpu().numpy()
        actions = self.unscale_action(scaled_actions)
        return (actions if vectorized else actions[0]), state

    def scale_action(self, action: np.ndarray) -> np.ndarray:
        """
        Actions in [-1, 1], exactly as those of a dataset are scaled; same shape.

        :param action: actions in the units of the environment
        """
        assert isinstance(self.action_space, spaces.Box)
        return scale_actions(action, self.action_space)

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """
        Actions within the bounds of the environment, which SB3's formula may leave by a rounding error; same shape.

        :param scaled_action: actions in [-1, 1]
        """
        return self._unscaler(scaled_action)

    def _predict(self, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:  # type: ignore[override]
        """
        Actions in [-1, 1], shape ``(batch, action_size)``.

        :param observation: flat raw observations, shape ``(batch, observation_size)``
        :param deterministic: whether to take the mode
        """
        actions: th.Tensor = self.acting("actor")(self.scale_observations(observation))
        return actions

    def acting_values(self, observation: th.Tensor) -> th.Tensor:
        """
        What the policy's own deterministic actions are worth to the smallest of its critics, shape ``(batch, 1)``, where there
        are critics.

        :param observation: flat raw observations, shape ``(batch, observation_size)``
        """
        actions = self._predict(observation, deterministic=True).clamp(-1.0, 1.0)
        return min_max_q(self.acting("critic")(self.scale_observations(observation), actions))

    def initial_state(self, n_envs: int) -> tuple[np.ndarray, ...]:
        """
        The state before the first step, one array for every name in ``state_names``.

        :param n_envs: number of environments
        """
        return ()

    def step(self, observation: th.Tensor, *state: th.Tensor) -> tuple[th.Tensor, tuple[th.Tensor, ...]]:
        """
        Deterministic actions in [-1, 1], shape ``(batch, action_size)``, and the state after them.

        :param observation: flat raw observations, shape ``(batch, observation_size)``
        :param state: tensors of the state before, in the order of ``state_names``
        """
        return self._predict(observation, deterministic=True), ()

    def _predict_one(self, observation: th.Tensor, deterministic: bool) -> th.Tensor:
        """
        As :meth:`_predict` for a single observation, which is where overhead counts, shape ``(1, action_size)``.

        :param observation: flat raw observation, shape ``(1, observation_size)``
        :param deterministic: whether to take the mode
        """
        return self._predict(observation, deterministic)

    def forward(self, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:
        """
        Actions in [-1, 1], shape ``(batch, action_size)``.

        :param observation: flat raw observations, shape ``(batch, observation_size)``
        :param deterministic: whether to take the mode
        """
        return self._predict(observation, deterministic)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "net_arch": self.net_arch,
            "activation_fn": self.activation_fn,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            "n_critics": self.n_critics,
            "critic_layer_norm": self.critic_layer_norm,
            "average": self.has_average,
            "lr_schedule": self._dummy_schedule,
        }
        return data


class DeterministicPolicy(OfflinePolicy):
    """A single deterministic actor (BC)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.actor: Actor = self.make_deterministic_actor()


class DeterministicActorCriticPolicy(DeterministicPolicy):
    """A deterministic actor and critics, two unless told otherwise, with their targets (TD3+BC)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.actor_target = self.make_target(self.actor)
        self.critic = self.make_critic()
        self.critic_target = self.make_target(self.critic)
