"""The base of all algorithms: a training loop over a fixed dataset in the shape of SB3's off-policy algorithms."""

import contextlib
import copy
import glob
import io
import math
import os
import pathlib
import pickle
import sys
import time
import warnings
import zipfile
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import utils
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import check_for_nested_spaces
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, ReplayBufferSamples, Schedule, TrainFreq
from stable_baselines3.common.utils import safe_mean
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.patch_gym import _patch_env
from torch import nn
from torch.utils._pytree import tree_map

from sb3_dmpo.common import arguments, ranks
from sb3_dmpo.common.buffers import OfflineReplayBuffer, StepSamples, check_buffer, make_buffer, read_added, write_added
from sb3_dmpo.common.capture import CapturedUpdates, CaptureOption, NotRecordedError, missing_for_capture
from sb3_dmpo.common.compilation import CompiledUpdate, CompileOption, missing_for_recording
from sb3_dmpo.common.environments import (
    check_callback,
    find_environment,
    refuse_normalized,
    refuse_normalized_rewards,
)
from sb3_dmpo.common.losses import bellman_targets, twin_critic_loss
from sb3_dmpo.common.metrics import MetricAverager, check_finite
from sb3_dmpo.common.model_zip import (
    cannot_be_saved,
    checked_changes,
    on_its_own,
    prepare_load,
    random_state_of,
    read_file,
    set_random_state_of,
    settings_of,
)
from sb3_dmpo.common.optimizers import adam_step, clipped, make_optimizer, optimizer_step, prepare_adam
from sb3_dmpo.common.policies import OfflinePolicy
from sb3_dmpo.common.policy_arguments import check_policy_class, check_policy_kwargs, find_policy
from sb3_dmpo.common.stored_weights import NothingDrawn, make_parameters
from sb3_dmpo.common.type_aliases import Metrics, NoiseSpec, OfflineBatch
from sb3_dmpo.common.updates import Target, average_step, denormals_flushed, draw_noise, error_quantiles, make_noise_generator
from sb3_dmpo.data import dataset_identifier, dataset_spaces
from sb3_dmpo.data.minari import is_minari_id
from sb3_dmpo.data.preprocessing import (
    action_spaces_match,
    canonical_observation_space,
    leaf_shapes,
    observation_spaces_match,
)
from sb3_dmpo.envs.spaces_only import SpacesOnlyEnv
from sb3_dmpo.envs.wrappers import FlattenNestedDict
from sb3_dmpo.files.plain_text import FileError, named_faults, plain
from sb3_dmpo.files.safe_zip import ARRAYS, SETTINGS, DamagedFileError, read_model
from sb3_dmpo.files.save_util import atomic_write, decode_state, encode_generator, path_to_write, unpicklable_attribute

SelfOfflineAlgorithm = TypeVar("SelfOfflineAlgorithm", bound="OfflineAlgorithm")

#: Name of the rate of averaged networks beside those of the optimizers
_AVERAGE = "average"
#: Arguments that the replay buffer is made with.
_OF_DATA = ("clip_actions", "reward_scale", "reward_shift")


def _make_logger(verbose: int, folder: str | None, name: str, is_new: bool) -> Logger:
    """As SB3 makes it, which takes brackets in the folder's name for a pattern, and lets runs write over each other."""
    if folder is None or find_spec("tensorboard") is None:
        return utils.configure_logger(verbose, folder)
    run_id = utils.get_latest_run_id(glob.escape(folder), name) + is_new
    return configure(os.path.join(folder, f"{name}_{run_id}"), [*(["stdout"] if verbose >= 1 else []), "tensorboard"])


class OfflineAlgorithm(OffPolicyAlgorithm):
    """
    Base of the offline algorithms. One timestep is one gradient update; no environment is needed to learn.

    A subclass builds its optimizers in ``_setup_model`` (:meth:`add_optimizer`, :meth:`add_target`), says in
    :meth:`noise_specs` which random numbers an update consumes, and computes its losses in :meth:`update`. One with critics
    says in :meth:`next_values` what follows on a transition is worth; :meth:`critic_loss` is then here.

    :param policy: ``"MlpPolicy"`` (Box observations), ``"MultiInputPolicy"`` (Dict observations) or a policy class
    :param env: environment, VecEnv or environment id; optional, for its spaces, for callbacks and for ``learn_online``
    :param dataset: Minari id, ``MinariDataset``, ``dict`` of arrays, SB3 ``ReplayBuffer`` (or path to its pickle), path to a
        file of D4RL or d3rlpy (HDF5) or of OGBench (``.npz``, or a folder of them), or :class:`OfflineReplayBuffer`; read when
        ``learn`` is called, and never changed. Only its id goes into the zip.
    :param learning_rate: learning rate, a float or a function of the remaining progress (from 1 to 0)
    :param batch_size: minibatch size
    :param tau: coefficient of the soft updates
    :param gamma: discount factor
    :param policy_delay: the actor and the targets are updated once every ``policy_delay`` updates
    :param normalize_observations: scale observations by the dataset's mean and standard deviation
    :param reward_scale: factor on the rewards, or ``"return_range"`` (1000 / (max - min episode return)),
        ``"max"`` (1 / max reward), ``"standardize"`` ((r - mean) / std)
    :param reward_shift: added to the rewards before they are scaled
    :param download: fetch the dataset through Minari if it is not there
    :param memory_map: leave the data on disk and read what a minibatch needs: for datasets that do not fit into memory
    :param clip_actions: clip actions that lie outside the bounds, with a warning that says how many and how far, instead of
        refusing the dataset
    :param compile: whether the updates are compiled, which takes one or two minutes before the first ones and needs a C++
        compiler on CPUs; ``"auto"``: on CUDA, and on CPUs in runs of at least 100 000 updates
    :param capture: whether all that an update does, its minibatch and its noise included, is captured as a CUDA graph, so that
        an update is a single launch; ``"auto"``: on CUDA, if the updates are compiled
    :param policy_kwargs: arguments of the policy, e.g. ``dict(net_arch=[256, 256])``; for the critics ``n_critics`` (2) and
        ``critic_layer_norm`` (off), which puts a layer norm behind every hidden layer of theirs
    :param stats_window_size: window of the rollout statistics (SB3)
    :param tensorboard_log: log folder of TensorBoard
    :param verbose: 0 no output, 1 info messages, 2 debug messages
    :param seed: seed of the pseudo random generators
    :param device: device of networks and data
    :param n_steps: the critics learn from so many rewards at a time, as in SB3: the sum ends with the episode, and bootstraps
        where that was cut
    :param ema_decay: act by exponential averages of the networks instead of the newest ones: after every update the average is
        ``d * average + (1 - d) * newest``, where d is ``ema_decay``, or ``(1 + n) / (10 + n)`` while that is less after n
        updates. None: no averages
    :param _init_setup_model: whether to build the networks at once (``load`` builds them later)
    :raises ValueError: an argument is out of its range
    :raises TypeError: there is no argument of that name
    """

    policy: OfflinePolicy
    action_space: spaces.Box
    #: Ranges of the constructor's arguments and of those of :meth:`learn_online`; a subclass declares its own.
    argument_ranges: ClassVar[dict[str, arguments.Range]] = {
        "batch_size": arguments.SIZE,
        "buffer_size": arguments.COUNT,
        "capture": arguments.one_of(True, False, "auto"),
        "compile": arguments.one_of(True, False, "auto"),
        "ema_decay": arguments.optional(arguments.BELOW_ONE),
        "gamma": arguments.UNIT,
        "gradient_steps": arguments.GRADIENT_STEPS,
        "learning_rate": arguments.LEARNING_RATE,
        "learning_starts": arguments.COUNT_OR_ZERO,
        "n_envs": arguments.SIZE,
        "n_steps": arguments.SIZE,
        "online_ratio": arguments.optional(arguments.UNIT),
        "policy_delay": arguments.SIZE,
        "policy_kwargs": arguments.DICT,
        "reward_scale": arguments.REWARD_SCALE,
        "reward_shift": arguments.FINITE,
        "seed": arguments.SEED,
        "tau": arguments.ABOVE_ZERO,
        "train_freq": arguments.TRAIN_FREQ,
    }
    #: Arguments that networks and targets are made with: they cannot be changed afterwards. A subclass adds its own.
    fixed_arguments: ClassVar[tuple[str, ...]] = ("ema_decay", "normalize_observations", "policy_delay", "policy_kwargs")
    #: Arguments without an effect here, which a search leaves out.
    unused_arguments: ClassVar[tuple[str, ...]] = ()
    #: Dataset actions are clipped to plus/minus this value.
    action_clip: ClassVar[float] = 1.0
    #: What a dataset is read into.
    replay_buffer_type: ClassVar[type[OfflineReplayBuffer]] = OfflineReplayBuffer
    #: Whether the algorithm has what it takes to improve by its own experience: a critic.
    learns_online: ClassVar[bool] = True
    #: Why not, for messages.
    why_offline: ClassVar[str] = "has no critic and cannot improve by its own experience"
    #: Whether the losses need the actions that the dataset has at the next observations.
    needs_next_actions: bool = False
    #: Whether the losses need to know the transitions' episodes.
    needs_episodes: bool = False
    #: Range of the value targets, of algorithms that clip them; None: derived from the rewards.
    value_bounds: tuple[float, float] | None = None
    _derived_bounds: tuple[float, float] | None = None
    #: Whether a file is being loaded into it.
    _is_loading: bool = False
    #: Whether it learns from rewards. What does not imitates.
    learns_from_rewards: ClassVar[bool] = True
    #: Arguments that several processes share equally.
    shared_arguments: ClassVar[tuple[str, ...]] = ("batch_size",)
    #: Whether several of it can be trained at once: nothing but updates happens in its training.
    can_learn_together: ClassVar[bool] = True
    #: Whether ``learn`` is at what comes before the first update, which may be broken off at any moment.
    _is_preparing: bool = False
    #: Whether its zips hold arrays besides networks and optimizers.
    stores_arrays: ClassVar[bool] = False
    #: What a zip held as arrays, until it is needed.
    _stored_arrays: bytes | None = None
    #: Whether ``learn_online`` is running.
    _is_online: bool = False
    #: Random states found in a zip; applied when training continues, never on load.
    _random_state: dict[str, Any] | None = None
    #: What the last evaluation in training found, see :meth:`EvaluationResult.summary`.
    last_evaluation: dict[str, Any] | None = None
    #: The file that was saved or loaded last.
    _last_good: pathlib.Path | None = None

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        dataset: Any = None,
        learning_rate: float | Schedule = 3e-4,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        policy_delay: int = 1,
        normalize_observations: bool = True,
        reward_scale: float | str = 1.0,
        reward_shift: float = 0.0,
        download: bool = False,
        memory_map: bool = False,
        clip_actions: bool = False,
        compile: CompileOption = "auto",
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        n_steps: int = 1,
        ema_decay: float | None = None,
        capture: CaptureOption = "auto",
        _init_setup_model: bool = True,
        **unknown: Any,
    ) -> None:
        for name in unknown:
            raise arguments.unknown_argument(type(self), name)
        arguments.check_device(device)
        super().__init__(
            policy,
            None if env is None else find_environment(env, verbose),  # type: ignore[arg-type]
            learning_rate,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Box,),
        )
        self.n_steps = n_steps
        self.ema_decay = ema_decay
        self.policy_delay = policy_delay
        self.normalize_observations = normalize_observations
        self.reward_scale = reward_scale
        self.reward_shift = reward_shift
        self.download = download
        self.memory_map = memory_map
        self.clip_actions = clip_actions
        self.dataset = dataset
        self.dataset_id = dataset_identifier(dataset)
        self.dataset_fingerprint: str | None = None
        self.online_ratio: float | None = None
        self._scaler_is_set = False
        self.compile = compile
        self.capture = capture
        self._is_compiled: bool | None = None
        self._rates: dict[str, th.Tensor] = {}
        self._filled_rates: dict[str, float] = {}
        self._metrics = MetricAverager()
        self._last_batch: OfflineBatch | None = None
        self._placeholder_env: VecEnv | None = None
        for name in {*arguments.constructor_arguments(type(self)), "_stats_window_size"} - {"dataset", "env"}:
            if name in vars(self):
                setattr(self, name, arguments.as_python(getattr(self, name)))
        arguments.check_arguments(self)
        check_policy_class(type(self), self.policy_class)
        if _init_setup_model:
            self._check_spaces(policy)
            self._setup_model()
            for name, accepted in arguments.argument_ranges(type(self)).items():
                if accepted in (arguments.LEARNING_RATE, arguments.OWN_LEARNING_RATE) and getattr(self, name) is not None:
                    arguments.check_schedule(type(self).__name__, name, utils.FloatSchedule(getattr(self, name)))

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        return find_policy(type(self), policy_name)

    def _check_spaces(self, policy: str | type[BasePolicy]) -> None:
        if self.env is None:
            if self.dataset is None:
                raise ValueError(
                    f"{type(self).__name__} needs a dataset or an env to know its spaces, "
                    f"e.g. {type(self).__name__}('MlpPolicy', dataset='D4RL/pen/human-v2')."
                )
            self.observation_space, self.action_space = dataset_spaces(self.dataset, download=self.download)
            self.n_envs = 1
        self._warn_of_images()
        if policy == "MlpPolicy" and isinstance(self.observation_space, spaces.Dict):
            raise ValueError("You must use `MultiInputPolicy` when working with dict observation space, not MlpPolicy")

    def check_combinations(self) -> None:
        """
        Refuse arguments that do not go together, each of which is in its range.

        :raises ValueError: they do not
        """

    @property
    def derives_value_bounds(self) -> bool:
        """Whether the range of the value targets is to be derived from the rewards."""
        return False

    @property
    def target_bounds(self) -> tuple[float, float] | None:
        """Range of the value targets: ``value_bounds``, or what was derived from the dataset's rewards."""
        return self._derived_bounds if self.value_bounds is None else self.value_bounds

    def _warn_of_images(self) -> None:
        shapes = leaf_shapes(canonical_observation_space(self.observation_space))
        images = [shape for shape in shapes.values() if len(shape) > 2]
        if images:
            warnings.warn(
                f"{type(self).__name__} flattens images of the shape {images[0]} into {math.prod(images[0]):,} numbers, and "
                "its networks know nothing of which lie side by side: better let an encoder make features of them first.",
                stacklevel=4,
            )

    # Building blocks for subclasses -----------------------------------------------------------------------------

    def _policy_arguments(self) -> dict[str, Any]:
        """Arguments of the policy that are constructor arguments of the algorithm."""
        return {}

    def make_policy(self) -> OfflinePolicy:
        """New networks of the configured architecture."""
        self._setup_lr_schedule()
        given = self._policy_arguments() | ({} if self.ema_decay is None else {"average": True})
        check_policy_kwargs(type(self), self.policy_class, given, self.policy_kwargs)
        policy: Any = self.policy_class(
            self.observation_space, self.action_space, self.lr_schedule, **given, **self.policy_kwargs
        )
        made: OfflinePolicy = policy
        if self.ema_decay is not None:
            made.add_average()
        return made

    def _setup_model(self) -> None:
        # Loading leaves the global generators alone, from which other threads draw.
        if not self._is_loading:
            super().set_random_seed(self.seed)
        elif self.seed is not None:
            self.action_space.seed(self.seed)
        self._made_with = self._values_of(arguments.fixed_arguments(type(self)))
        self.policy = self.make_policy().to(self.device)
        self._optimizers: dict[str, tuple[th.optim.Optimizer, Schedule, list[nn.Parameter]]] = {}
        self._targets: list[Target] = []
        if self.ema_decay is not None:
            for name, average in self.policy.average.items():
                self._targets.append(Target(getattr(self.policy, name), average, 1, 1, is_average=True))
        self._noise_generator = make_noise_generator(self.device, self.seed)
        self._compiled = CompiledUpdate(self._update_all)
        self._captured = CapturedUpdates(self._metrics)
        self._convert_train_freq()

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        self._scheduled_rate = self.learning_rate

    def _values_of(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: copy.deepcopy(getattr(self, name)) for name in names}

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        As in SB3, with the generators that noise and minibatches come from: what follows repeats.

        :param seed: the seed; None leaves all generators as they are
        """
        super().set_random_seed(seed)
        if seed is None:
            return
        self.seed = int(seed)
        # Generators found in a zip would otherwise take over when the run goes on.
        self._random_state = None
        self._noise_generator = make_noise_generator(self.device, seed)
        if isinstance(self.replay_buffer, OfflineReplayBuffer):
            self.replay_buffer.generator.manual_seed(seed)

    def add_optimizer(
        self, name: str, modules: Iterable[nn.Module | nn.Parameter], learning_rate: str | float | Schedule = "learning_rate"
    ) -> None:
        """
        Create the optimizer ``<name>_optimizer`` over the parameters of some networks. It is saved in the zip.

        :param name: name of the loss that it minimises
        :param modules: networks or single parameters
        :param learning_rate: name of the argument that holds its learning rate (one that is None follows ``learning_rate``),
            or a learning rate or schedule of its own
        """
        schedule: Schedule
        if isinstance(learning_rate, str):
            schedule = partial(self._rate, learning_rate)
        else:
            schedule = utils.FloatSchedule(learning_rate)
        parameters = [p for m in modules for p in ([m] if isinstance(m, nn.Parameter) else m.parameters())]
        optimizer = make_optimizer(self.policy.optimizer_class, parameters, schedule(1.0), self.policy.optimizer_kwargs)
        self._optimizers[name] = (optimizer, schedule, parameters)
        setattr(self, f"{name}_optimizer", optimizer)

    def _rate(self, argument: str, progress_remaining: float) -> float:
        """The learning rate that an argument gives now; one that was assigned counts at once."""
        if self.learning_rate is not self._scheduled_rate:
            self._setup_lr_schedule()
        own = None if argument == "learning_rate" else getattr(self, argument)
        rate = (self.lr_schedule if own is None else utils.FloatSchedule(own))(progress_remaining)
        arguments.check_rate(type(self).__name__, argument, rate, progress_remaining)
        return rate

    def add_target(self, online: nn.Module, target: nn.Module, every: int | None = None, start: int | None = None) -> None:
        """
        Declare a soft update ``target <- tau * online + (1 - tau) * target``.

        :param online: the network that is followed
        :param target: the network that follows
        :param every: run once in so many updates; None: with every policy update
        :param start: first update at which it runs; None: when ``every`` updates are done
        """
        every = every or self.policy_delay
        self._targets.append(Target(online, target, every, start or every))

    # Dataset ---------------------------------------------------------------------------------------------------------

    def _setup_dataset(self, continuing: bool = False, loaded: OfflineReplayBuffer | None = None) -> None:
        """
        Read the dataset into the replay buffer, once.

        :param continuing: whether a run goes on, which needs the data it began with
        :param loaded: the dataset, if somebody has read it already
        """
        if isinstance(self.replay_buffer, OfflineReplayBuffer):
            self._derive_bounds(self.replay_buffer)
            return
        dataset = self.dataset if self.dataset is not None else self.dataset_id
        if dataset is None:
            raise ValueError(
                "There is no dataset to learn from: pass `dataset=` to the constructor or to `load`, or call `set_dataset`."
            )
        if self.dataset is None and not is_minari_id(str(dataset)):
            # The name comes out of a zip: files, pickles above all, are only opened if the user names them.
            raise ValueError(f"The model was trained on the file {dataset!r}: pass its path as `dataset=` to `load`.")
        if loaded is not None:
            buffer = loaded
        else:
            with ranks.first_alone():
                buffer = make_buffer(
                    dataset,
                    self.replay_buffer_type,
                    self.download,
                    self.env,
                    self.memory_map,
                    self.clip_actions,
                    device="cpu" if ranks.is_joined() else self.device,
                    seed=self.seed,
                    reward_scale=self.reward_scale,
                    reward_shift=self.reward_shift,
                    action_clip=self.action_clip,
                )
        # A name that comes out of a zip may be that of other data by now, or of the whole where a part was trained on.
        expected = self.dataset_fingerprint if continuing or self.dataset is None else None
        check_buffer(buffer, self.observation_space, self.action_space, expected, self.learns_from_rewards)
        if self.n_steps > 1 or self.needs_next_actions or self.needs_episodes:
            buffer.check_episodes(self.needs_next_actions)
        self._on_dataset(buffer)
        if ranks.is_joined():
            # Statistics are those of the whole, and this process holds its part.
            buffer = buffer.part(ranks.rank(), ranks.world(), self.device, self.seed, self.memory_map)
        self.replay_buffer = buffer
        self.dataset_fingerprint = buffer.fingerprint
        self._made_with |= self._values_of(_OF_DATA)

    def _on_dataset(self, buffer: OfflineReplayBuffer) -> None:
        """
        Take over what the algorithm needs of the data before the first update.

        :param buffer: the dataset on the training device
        """
        # A loaded model keeps the scaler its networks were trained with.
        if self.normalize_observations and not self._scaler_is_set:
            self.policy.set_observation_statistics(buffer.observation_mean, buffer.observation_std)
            self._scaler_is_set = True
        self._derive_bounds(buffer)

    def _derive_bounds(self, buffer: OfflineReplayBuffer) -> None:
        if self.derives_value_bounds:
            self._derived_bounds = buffer.value_bounds(self.gamma)

    def set_dataset(self, dataset: Any) -> None:
        """
        Learn from another dataset from the next call of ``learn`` on, also within a run. Observations stay scaled by the
        statistics of the first one, with which the networks were trained.

        :param dataset: as in the constructor
        """
        self.dataset, self.dataset_id, self.replay_buffer = dataset, dataset_identifier(dataset), None
        self.dataset_fingerprint = None

    def noise_specs(self, batch_size: int) -> dict[str, NoiseSpec]:
        """
        The random numbers that one update consumes, by name.

        :param batch_size: minibatch size
        """
        return {}

    def sample_noise(self, batch_size: int) -> dict[str, th.Tensor]:
        """
        Draw the random numbers of one update from the algorithm's own generator.

        :param batch_size: minibatch size
        """
        return draw_noise(self.noise_specs(batch_size), self._noise_generator, self.is_policy_update)

    def sample_batch(self, batch_size: int) -> OfflineBatch:
        """
        A minibatch drawn uniformly from the dataset, with scaled observations and the noise of one update.

        :param batch_size: minibatch size
        """
        buffer = self.replay_buffer
        assert isinstance(buffer, OfflineReplayBuffer)
        further: dict[str, th.Tensor] = {}
        data: StepSamples | ReplayBufferSamples
        if self.n_steps == 1 and not (self.needs_next_actions or self.needs_episodes):
            data = buffer.sample(batch_size)
        else:
            data = buffer.sample_steps(batch_size, self.n_steps, self.gamma, self.needs_next_actions)
            further["discounts"] = data.discounts
            if self.needs_next_actions:
                further |= {"next_actions": data.next_actions, "has_next_action": data.has_next_action}
            if self.needs_episodes:
                further["episodes"] = data.episodes
        return OfflineBatch(
            self.policy.scale_observations(data.observations),
            data.actions,
            self.policy.scale_observations(data.next_observations),
            data.rewards,
            data.dones,
            self.sample_noise(batch_size),
            **further,
        )

    # Losses ----------------------------------------------------------------------------------------------------------

    def next_values(self, batch: OfflineBatch) -> th.Tensor:
        """
        Values of the next observations, from which the critics bootstrap, shape ``(batch, 1)``, where there are critics.

        :param batch: the minibatch
        """
        raise NotImplementedError()

    @th.no_grad()
    def target_q_values(self, batch: OfflineBatch) -> th.Tensor:
        """
        Target of the critics, shape ``(batch, 1)`` or of what they return.

        :param batch: the minibatch
        """
        return bellman_targets(batch, self.gamma, self.next_values(batch))

    def critic_loss(self, batch: OfflineBatch) -> tuple[th.Tensor, Metrics]:
        """
        Squared Bellman error of all critics, 0-d.

        :param batch: the minibatch
        """
        loss = twin_critic_loss(self.policy.critic(batch.observations, batch.actions), self.target_q_values(batch))
        return loss, {"critic_loss": loss}

    @th.no_grad()
    def bellman_errors(self, batch: OfflineBatch) -> th.Tensor | None:
        """
        Q-values of the dataset's actions minus their targets, shape ``(n_critics, batch, 1)``; None without critics.

        :param batch: a minibatch with the noise of an update
        """
        critic = getattr(self.policy, "critic", None)
        if critic is None:
            return None
        errors: th.Tensor = critic(batch.observations, batch.actions) - self.target_q_values(batch)
        return errors

    def diagnostics(self, batch: OfflineBatch) -> Metrics:
        """
        Costlier quantities, computed only when the logger writes.

        :param batch: a minibatch
        :return: 0-d tensors to be logged
        """
        return {}

    # Updates ---------------------------------------------------------------------------------------------------------

    def update(self, batch: OfflineBatch) -> Metrics:
        """
        One gradient update; nothing in it waits for the device.

        :param batch: the minibatch
        :return: 0-d tensors to be logged
        """
        raise NotImplementedError()

    def optimize(self, name: str, loss: th.Tensor, max_grad_norm: float | None = None) -> None:
        """
        One step of an optimizer; gradients reach only its own parameters.

        :param name: as given to :meth:`add_optimizer`
        :param loss: 0-d
        :param max_grad_norm: bound of the gradient's norm
        """
        gradients = ranks.mean_gradients(list(th.autograd.grad(loss, self._optimizers[name][2])))
        self._step(name, gradients if max_grad_norm is None else clipped(gradients, max_grad_norm))

    def optimize_all(self, losses: dict[str, th.Tensor]) -> None:
        """
        One step of several optimizers; all gradients are taken before the first step. Parameters that belong to two of them
        move by both steps.

        :param losses: 0-d, by the name given to :meth:`add_optimizer`
        """
        last = list(losses)[-1]
        gradients = {
            name: list(th.autograd.grad(loss, self._optimizers[name][2], retain_graph=name != last))
            for name, loss in losses.items()
        }
        reduced = iter(ranks.mean_gradients([gradient for own in gradients.values() for gradient in own]))
        for name, own in gradients.items():
            self._step(name, [next(reduced) for _ in own])

    def _step(self, name: str, gradients: list[th.Tensor]) -> None:
        optimizer, _, parameters = self._optimizers[name]
        if self._compiled.is_recording:
            adam_step(optimizer, parameters, gradients, self._rates[name])
        else:
            optimizer_step(optimizer, parameters, gradients)

    @property
    def is_policy_update(self) -> bool:
        """Whether the current update includes the delayed part (actor and targets)."""
        return self._n_updates % self.policy_delay == 0

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        # Several environments step at once, and beyond the end: a learning rate that falls to 0 would become negative there.
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """
        Sample minibatches and do the updates.

        :param gradient_steps: number of updates
        :param batch_size: minibatch size
        """
        if not self.policy.training:  # to visit every module takes longer than it looks
            self.policy.set_training_mode(True)
        batch_size //= ranks.world()
        for _ in range(gradient_steps):
            self._begin_update()
            batch, names = self._replay_update(batch_size) if self._captured.is_on else (None, None)
            self._last_batch = self.sample_batch(batch_size) if batch is None else batch
            if names is None:
                self._metrics.append(self._run_update(self._last_batch, batch_size), self._n_updates)
            else:
                self._metrics.written(names, self._n_updates)

    def _begin_update(self) -> None:
        self._set_rates()
        self._count_update()

    def _set_rates(self) -> None:
        """Set the learning rates of the next update."""
        for name, (optimizer, schedule, _) in self._optimizers.items():
            rate = schedule(self._current_progress_remaining)
            utils.update_learning_rate(optimizer, rate)
            self._fill_rate(name, rate)

    def _count_update(self) -> None:
        """Count the next update, and prepare what depends on its number."""
        self._n_updates += 1
        if self.ema_decay is not None:
            self._fill_rate(_AVERAGE, average_step(self.ema_decay, self._n_updates))
        if ranks.is_joined():
            self._seed_update()

    def _fill_rate(self, name: str, rate: float) -> None:
        """Let a recorded update use this rate."""
        if self._compiled.is_on and self._filled_rates.get(name) != rate:
            self._rates[name].fill_(rate)
            self._filled_rates[name] = rate

    def _seed_update(self) -> None:
        """
        Let all that is drawn for the next update depend on the seed, the update and the process alone: a file has the random
        states of one process, and what goes on from it is to draw what it would have drawn.
        """
        assert self.seed is not None and isinstance(self.replay_buffer, OfflineReplayBuffer)
        for stream, generator in enumerate((self.replay_buffer.generator, self._noise_generator)):
            generator.manual_seed(ranks.seed_of(self.seed, self._n_updates, stream))

    def _run_update(self, batch: OfflineBatch, batch_size: int) -> Metrics:
        with denormals_flushed() if self.device.type == "cpu" else contextlib.nullcontext():
            metrics = self._compiled(batch, self.update_variant(batch_size))
        if self._compiled.has_failed:
            self._is_compiled = False
        return metrics

    def _replay_update(self, batch_size: int) -> tuple[OfflineBatch | None, tuple[str, ...] | None]:
        """
        Do the update, from the drawing of its minibatch to the writing of its metrics, as one replay of a graph. Its minibatch
        and the names of its metrics; no names: it could not be captured and has not happened.

        :param batch_size: minibatch size
        """
        buffer = self.replay_buffer
        assert isinstance(buffer, OfflineReplayBuffer)
        variant, data = self.update_variant(batch_size), self._fixed_data(buffer)
        generators = [buffer.generator, self._noise_generator] if data else []
        # What the graph cannot draw itself is drawn before.
        batch = None if data else self.sample_batch(batch_size)
        held = None if batch is None else self._captured.input(variant, batch)

        def body() -> tuple[OfflineBatch, tuple[str, ...]]:
            own = self.sample_batch(batch_size) if held is None else held
            metrics = self._run_update(own, batch_size)
            if not self._compiled.is_on:
                raise NotRecordedError("the update could not be compiled")
            self._metrics.write(metrics)
            return own, tuple(metrics)

        return self._captured.run((variant, buffer), body, self.device, generators, data) or (batch, None)

    def _fixed_data(self, buffer: OfflineReplayBuffer) -> list[th.Tensor]:
        """See :meth:`OfflineReplayBuffer.fixed_data`."""
        return buffer.fixed_data()

    def _update_all(self, batch: OfflineBatch) -> Metrics:
        metrics = self.update(batch)
        for target in self._targets:
            if target.is_due(self._n_updates):
                target.move(self._average_step() if target.is_average else self.tau)
        return metrics

    def _average_step(self) -> float | th.Tensor:
        if self._compiled.is_recording:
            return self._rates[_AVERAGE]
        assert self.ema_decay is not None
        return average_step(self.ema_decay, self._n_updates)

    def update_variant(self, batch_size: int) -> tuple[Any, ...]:
        """
        What decides which operations the current update consists of; it is compiled once for every value.

        :param batch_size: minibatch size
        """
        return batch_size, self.is_policy_update, *(target.is_due(self._n_updates) for target in self._targets)

    def _setup_compilation(self, n_updates: int, continuing: bool) -> None:
        """
        Decide whether the updates are compiled; a run that goes on stays with what it began with.

        :param n_updates: updates to come
        :param continuing: whether a run goes on
        """
        optimizers = [optimizer for optimizer, _, _ in self._optimizers.values()]
        obstacle = missing_for_recording(optimizers) or missing_for_capture(self.device)
        option, before = self.compile, self._is_compiled if continuing else None
        if ranks.is_joined():
            obstacle = "several processes train together"
            if option == "auto":
                # The processes may take minutes of different length for it; who wants that says so.
                option, before = False, None
        self._is_compiled = self._compiled.decide(option, before, n_updates, optimizers, self.device)
        # Captured updates are recorded ones.
        self._compiled.is_on |= self._captured.decide(self.capture, self._is_compiled, obstacle)
        self._use_state()

    def _use_state(self) -> None:
        """Let recorded updates work on the tensors and with the settings of now."""
        if not self._compiled.is_on:
            return
        names = {*arguments.constructor_arguments(type(self))} & vars(self).keys() - {"capture", "compile"}
        settings = {name: getattr(self, name) for name in names} | {"target_bounds": self.target_bounds}
        state = self._update_state()
        # Plain numbers become part of the recorded update.
        plain_ones = {name: value for name, value in settings.items() if isinstance(value, bool | int | float | str | tuple)}
        if not self._compiled.use(state, plain_ones):
            self._captured.forget()
        self._captured.use(state)

    def _update_state(self) -> list[th.Tensor]:
        """Every tensor that an update reads or writes apart from the minibatch, each of them once."""
        names = [*self._optimizers, *([] if self.ema_decay is None else [_AVERAGE])]
        self._rates = self._rates or {name: th.zeros((), device=self.device) for name in names}
        state = [*self.policy.parameters(), *self.policy.buffers(), *self._rates.values()]
        for optimizer, _, _ in self._optimizers.values():
            prepare_adam(optimizer)
            state += [tensor for values in optimizer.state.values() for tensor in values.values()]
        return list({id(tensor): tensor for tensor in state}.values())

    def set_parameters(
        self,
        load_path_or_dict: str | pathlib.Path | io.BufferedIOBase | dict[str, Any],
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """
        As in SB3, with a file checked as by :meth:`load` before the first weight is changed; a dictionary that does not fit
        leaves the model as it was. Compiled updates go on with the new tensors of the optimizers.

        :param load_path_or_dict: a zip, or what :meth:`get_parameters` has returned
        :param exact_match: whether all weights and optimizers have to be there
        :param device: has no effect, the tensors go where the model is
        :raises DamagedFileError: the file is not complete, or its weights are not the model's
        :raises UnsafeFileError: the file asks for something that a model does not need
        :raises ValueError: the dictionary has other weights than the model, or some that are not finite
        """
        if not isinstance(load_path_or_dict, dict):
            with named_faults(load_path_or_dict):
                load_path_or_dict = make_parameters(self, read_model(read_file(load_path_or_dict)), exact_match)
            self._replace_parameters(load_path_or_dict, exact_match)
            self._metrics.clear()
            return
        before = copy.deepcopy(self.get_parameters())
        try:
            self._replace_parameters(load_path_or_dict, exact_match)
            self._check_weights()
        except Exception as error:  # depends on what is in the dictionary
            self._replace_parameters(before)
            if isinstance(error, ValueError):
                raise
            what = "are not finite" if isinstance(error, FloatingPointError) else "do not fit this model"
            raise ValueError(f"The parameters {what}, and the model is as it was: {error}") from error
        # A loss that has diverged was that of other weights.
        self._metrics.clear()

    def _replace_parameters(self, parameters: dict[str, Any], exact_match: bool = True) -> None:
        """SB3's ``set_parameters``, with the compiled updates told of the new tensors."""
        super().set_parameters(parameters, exact_match)
        self._use_state()

    # Training ---------------------------------------------------------------------------------------------------

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        is_custom = self._custom_logger
        if not is_custom and ranks.rank() == 0:
            self._logger = _make_logger(self.verbose, self.tensorboard_log, tb_log_name, reset_num_timesteps)
        if self._is_online:
            # SB3 would make another logger.
            self._custom_logger = True
            try:
                return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
            finally:
                self._custom_logger = is_custom
        # As in SB3, without resetting an environment: none is stepped here.
        self.start_time = time.time_ns()
        if self.ep_info_buffer is None or reset_num_timesteps:
            self.ep_info_buffer = deque(maxlen=self._stats_window_size)
            self.ep_success_buffer = deque(maxlen=self._stats_window_size)
        if reset_num_timesteps:
            self.num_timesteps = 0
            self._episode_num = 0
        else:
            total_timesteps += self.num_timesteps
        self._total_timesteps = total_timesteps
        self._num_timesteps_at_start = self.num_timesteps
        self._consent = ranks.Consent()
        if ranks.rank() > 0:
            # Process 0 alone writes and evaluates.
            self._logger = Logger(folder=None, output_formats=[])
            return total_timesteps, self._init_callback(None)
        return total_timesteps, self._init_callback(callback, progress_bar)

    def learn(
        self: SelfOfflineAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1000,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfOfflineAlgorithm:
        """
        Train on the dataset; one timestep is one gradient update. Transitions that :meth:`learn_online` has collected are
        drawn like the others, whatever its ``online_ratio`` was.

        :param total_timesteps: number of updates (added to those already done with ``reset_num_timesteps=False``)
        :param callback: callback(s) called after every update
        :param log_interval: write the log every so many updates; None switches automatic logging off
        :param tb_log_name: name of the run for TensorBoard, by default the algorithm's
        :param reset_num_timesteps: whether to count from zero or to continue
        :param progress_bar: show a progress bar (needs tqdm and rich)
        :raises DatasetError: the dataset is not there or not usable (before anything is trained)
        :raises FloatingPointError: a loss or a weight is no longer finite
        :return: the model itself
        """
        total_timesteps = self._check_learn(total_timesteps, log_interval, {})
        self._join_ranks()
        self._setup_dataset(continuing=not reset_num_timesteps)
        assert isinstance(self.replay_buffer, OfflineReplayBuffer)
        self.replay_buffer.online_ratio = None
        self._take_over_random_state(continuing=not reset_num_timesteps)
        self._setup_compilation(total_timesteps, continuing=not reset_num_timesteps)
        with self._env_for_callbacks():
            total_timesteps, callback = self._setup_learn(
                total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
            )
            callback.on_training_start(locals(), globals())
            self._is_preparing = True
            try:
                self._prepare_updates(callback, log_interval, progress_bar)
            finally:
                self._is_preparing = False
            while self.num_timesteps < total_timesteps:
                self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
                self.train(gradient_steps=1, batch_size=self.batch_size)
                self.num_timesteps += 1
                if not self._end_update(callback, log_interval, locals()):
                    break
            self._flush_metrics()
            callback.on_training_end()
        return self

    def _join_ranks(self) -> None:
        """Begin as the other processes do that train this model together with this one; with one process nothing is done."""
        if ranks.is_joined():
            self.check_ranks()
            ranks.copy_from_first([*self.policy.parameters(), *self.policy.buffers()])

    def check_ranks(self) -> None:
        """
        Check that several processes can train this model, if there are several.

        :raises ValueError: they cannot
        """
        if not ranks.is_joined():
            return
        if self.seed is None:
            raise ValueError(
                f"Several processes train one model, which begins in all of them alike: give {type(self).__name__} a seed."
            )
        for name in self.shared_arguments:
            ranks.check_divisible(name, getattr(self, name))
        ranks.check_not_shared(self.device)

    def _prepare_updates(self, callback: BaseCallback, log_interval: int | None, progress_bar: bool) -> None:
        """
        Whatever comes before the updates of ``learn``.

        :param callback: as in :meth:`learn`
        :param log_interval: as in :meth:`learn`
        :param progress_bar: as in :meth:`learn`
        """

    @property
    def has_learned(self) -> bool:
        """Whether there is something that is worth saving."""
        return self.num_timesteps > 0

    @contextlib.contextmanager
    def _env_for_callbacks(self) -> Iterator[None]:
        """Callbacks of SB3 insist on a training env; where there is none, one has the spaces and nothing else."""
        if self.env is None:
            env = SpacesOnlyEnv(self.observation_space, self.action_space)
            self._placeholder_env = DummyVecEnv([lambda: env])
        try:
            yield
        finally:
            self._placeholder_env = None

    def _end_update(self, callback: BaseCallback, log_interval: int | None, variables: dict[str, Any]) -> bool:
        """
        Write the log when it is due and call the callbacks; False ends the training.

        :param callback: called after every update
        :param log_interval: as in :meth:`learn`
        :param variables: local variables of the training, which callbacks may look at
        """
        if log_interval is not None and self.num_timesteps % log_interval == 0:
            self.dump_logs()
        callback.update_locals(variables)
        return self._consent.goes_on(callback.on_step())

    def get_env(self) -> VecEnv | None:
        """The environment; while learning without one, a placeholder with the right spaces that cannot be stepped."""
        return self.env if self.env is not None else self._placeholder_env

    def _flush_metrics(self) -> None:
        self.check_finite()
        for name, value in ranks.mean_numbers(self._metrics.means()).items():
            self.logger.record(f"train/{name}", value)
        self._metrics.clear()

    def dump_logs(self) -> None:
        """Write the log."""
        assert self.ep_info_buffer is not None
        self._flush_metrics()
        if self._last_batch is not None and ranks.rank() == 0:
            with th.no_grad():
                costly = self.diagnostics(self._last_batch) | error_quantiles(self.bellman_errors(self._last_batch))
                for name, value in costly.items():
                    self.logger.record(f"train/{name}", value.item())
        elapsed = max((time.time_ns() - self.start_time) / 1e9, sys.float_info.epsilon)
        if len(self.ep_info_buffer) > 0 and len(self.ep_info_buffer[0]) > 0:
            self.logger.record("rollout/ep_rew_mean", safe_mean([info["r"] for info in self.ep_info_buffer]))
            self.logger.record("rollout/ep_len_mean", safe_mean([info["l"] for info in self.ep_info_buffer]))
        if self.ep_success_buffer:
            self.logger.record("rollout/success_rate", safe_mean(self.ep_success_buffer))
        if self._is_online:
            self.logger.record("time/episodes", self._episode_num, exclude="tensorboard")
        for name, (optimizer, _, _) in self._optimizers.items():
            self.logger.record(f"train/{name}_learning_rate", float(optimizer.param_groups[0]["lr"]))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / elapsed))
        self.logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        made = super()._init_callback(callback, progress_bar)
        check_callback(made, self._is_online)
        return made

    # Learning online -------------------------------------------------------------------------------------------------

    def learn_online(
        self: SelfOfflineAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        *,
        online_ratio: float | None = 0.5,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 100,
        train_freq: int | tuple[int, str] | TrainFreq = 1,
        gradient_steps: int = 1,
        buffer_size: int = 1_000_000,
    ) -> SelfOfflineAlgorithm:
        """
        Go on learning in the environment; one timestep is one step of one environment, as in SB3.

        SB3's loop collects, and every minibatch holds transitions of the dataset and collected ones. Observations stay
        scaled by the dataset's statistics. The settings are those of SB3's constructors and hold for this call; to go on
        with an interrupted run, give them again. Unlike in SB3 the policy itself collects the first ``learning_starts``
        steps, since it has learned already. Learning rate schedules run over this call.

        :param total_timesteps: number of environment steps (added to those done with ``reset_num_timesteps=False``)
        :param callback: callback(s) called after every step, as in SB3
        :param log_interval: write the log every so many episodes; None switches automatic logging off
        :param tb_log_name: name of the run for TensorBoard, by default the algorithm's
        :param reset_num_timesteps: whether to count steps from zero (after ``learn``) or to continue an earlier call
        :param progress_bar: show a progress bar (needs tqdm and rich)
        :param online_ratio: share of collected transitions in a minibatch; None draws uniformly from all transitions
        :param action_noise: exploration noise, added to the actions in [-1, 1]; deterministic policies need it to explore
        :param learning_starts: number of steps before the first update
        :param train_freq: steps between updates, or e.g. ``(1, "episode")``
        :param gradient_steps: updates at a time; -1: as many as steps were collected
        :param buffer_size: number of collected transitions that are kept (those of an earlier call stay); the dataset is never
            overwritten
        :raises ValueError: the algorithm has no critic, there is no environment or dataset, VecNormalize scales its rewards,
            or a setting is out of its range
        :raises DatasetError: the dataset is not there, not usable, or not the one that the model was trained on
        :raises FloatingPointError: a loss is no longer finite
        :return: the model itself
        """
        self._check_online()
        settings = {
            "online_ratio": online_ratio,
            "learning_starts": learning_starts,
            "train_freq": train_freq,
            "gradient_steps": gradient_steps,
            "buffer_size": buffer_size,
        }
        total_timesteps = self._check_learn(total_timesteps, log_interval, settings)
        if not isinstance(action_noise, ActionNoise | None):
            raise TypeError(f"action_noise is {action_noise!r}, expected one of stable_baselines3.common.noise, or None.")
        arguments.check_action_noise(action_noise, self.action_space)
        vars(self).update(arguments.as_python(settings))
        self._convert_train_freq()
        self.action_noise = action_noise
        if isinstance(action_noise, VectorizedActionNoise) and action_noise.n_envs != self.n_envs:
            # SB3 makes one for as many environments as there are now.
            self.action_noise = action_noise.base_noise
        self._setup_dataset(continuing=True)
        self._take_over_random_state(continuing=True)
        self._use_state()
        buffer = self.replay_buffer
        assert isinstance(buffer, OfflineReplayBuffer)
        buffer.reserve(max(min(self.buffer_size, buffer.n_added + total_timesteps + self.n_envs), self.n_envs))
        buffer.online_ratio = self.online_ratio
        if self.gradient_steps == 0:
            warnings.warn("learn_online does no update with gradient_steps=0.", stacklevel=2)
        elif total_timesteps + (0 if reset_num_timesteps else self.num_timesteps) <= self.learning_starts:
            warnings.warn(
                f"learn_online({total_timesteps:,}) does no update: the first one comes after learning_starts="
                f"{self.learning_starts:,} steps. Do more steps, or lower learning_starts.",
                stacklevel=2,
            )
        self._is_online = True
        try:
            super().learn(
                total_timesteps,
                callback,
                log_interval,  # type: ignore[arg-type]  # None is what the loop understands
                tb_log_name or type(self).__name__,
                reset_num_timesteps,
                progress_bar,
            )
        finally:
            self._is_online = False
        self._flush_metrics()
        return self

    def _check_learn(self, total_timesteps: float, log_interval: int | None, settings: dict[str, Any]) -> int:
        """Check the arguments of a call, before anything is changed or done. The number of timesteps, which may be ``1e6``."""
        ranges = arguments.argument_ranges(type(self))
        for name, value in settings.items():
            arguments.check_argument(type(self).__name__, name, value, ranges[name])
        arguments.check_argument(type(self).__name__, "total_timesteps", total_timesteps, arguments.NOT_NEGATIVE)
        arguments.check_argument(type(self).__name__, "log_interval", log_interval, arguments.optional(arguments.COUNT))
        # Attributes may have been changed since the constructor.
        arguments.check_arguments(self)
        self._check_fixed()
        return math.ceil(total_timesteps)

    def _check_fixed(self) -> None:
        """Refuse values that something was made without."""
        for name, made_with in self._made_with.items():
            value = getattr(self, name)
            if value == made_with or (name in _OF_DATA and self.replay_buffer is None):
                continue
            what, how = "its networks were made", "pass it to the constructor of a new model"
            if name in _OF_DATA:
                what, how = "the dataset was read", "call `set_dataset`, which lets it be read again"
            raise ValueError(
                f"{type(self).__name__}: {name} was {made_with!r} when {what}, and is {value!r} now: {how}, or set it back."
            )

    def _check_online(self) -> None:
        name = type(self).__name__
        if ranks.is_joined():
            raise ValueError("learn_online is for one process: several of them share a dataset, and `learn` from it.")
        if not self.learns_online:
            raise ValueError(f"{name} {self.why_offline}: use an actor-critic algorithm, e.g. DMPO.")
        if self.env is None:
            raise ValueError(f"{name} has no environment to learn in: call `set_env` first, or pass `env=` to `load`.")
        refuse_normalized_rewards(self.env)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        # Random actions, SB3's for the first steps, would be worse than those of the policy.
        return super()._sample_action(0, action_noise, n_envs)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the collected transitions, without the dataset, as NumPy arrays (there is no pickle in the file).

        :param path: path of the file (``.npz`` is appended if there is no suffix) or a file object
        :raises ValueError: there is no buffer yet, or the path is empty
        """
        if not isinstance(self.replay_buffer, OfflineReplayBuffer):
            raise ValueError(f"{type(self).__name__} has no replay buffer yet: call `learn` or `learn_online` first.")
        write_added(self.replay_buffer, path)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Put the transitions of :meth:`save_replay_buffer` behind those of the dataset, which is read if it was not yet.

        :param path: path of the file (``.npz`` is appended if there is no suffix) or a file object
        :param truncate_last_traj: no effect (SB3 uses it for hindsight replay)
        :raises FileNotFoundError: there is no such file
        :raises DamagedFileError: the file holds no such transitions, or is not complete
        :raises UnsafeFileError: the file holds something else
        :raises DatasetError: the transitions were collected beside another dataset, or do not fit the model
        """
        arrays = read_added(path)
        self._setup_dataset(continuing=True)
        assert isinstance(self.replay_buffer, OfflineReplayBuffer)
        self.replay_buffer.restore_added(arrays)

    # Environments -----------------------------------------------------------------------------------------------

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        env = find_environment(env, verbose)
        refuse_normalized(env)
        # SB3 refuses nested Dict observations; the canonical one-level form holds the same numbers.
        if isinstance(env, gym.Env) and canonical_observation_space(env.observation_space) != env.observation_space:
            env = FlattenNestedDict(env)
        # As SB3 does, which goes on to turn images for its convolutions; networks here take them flat, in the order of the
        # dataset.
        if not isinstance(env, VecEnv):
            single = _patch_env(env)
            if monitor_wrapper and not is_wrapped(single, Monitor):
                single = Monitor(single)
            env = DummyVecEnv([lambda: single])
        check_for_nested_spaces(env.observation_space)
        return env

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """
        Set the environment to act and to learn online in. Unlike in SB3 the number of environments may be another one.

        :param env: environment, VecEnv or environment id, with the model's spaces
        :param force_reset: reset the environment before it is stepped
        :raises ValueError: the spaces differ, or VecNormalize scales the observations
        """
        env = self._wrap_env(env, self.verbose)  # type: ignore[arg-type]
        # Versions of an environment differ in the bounds and types of their observations, which does not matter.
        if not observation_spaces_match(self.observation_space, env.observation_space):
            raise ValueError(f"Observation spaces do not match: {self.observation_space} != {env.observation_space}")
        if not isinstance(env.action_space, spaces.Box) or not action_spaces_match(self.action_space, env.action_space):
            raise ValueError(f"Action spaces do not match: {self.action_space} != {env.action_space}")
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.n_envs = env.num_envs
        super().set_env(env, force_reset)

    # Saving and loading ----------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Everything. PyTorch's generators do not survive the way into a process that is spawned; a text does."""
        state = vars(self).copy()
        if "_noise_generator" in state:
            state["_noise_generator"] = encode_generator(state["_noise_generator"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if "_noise_generator" in state:
            self._noise_generator = th.Generator(device=self.device)
            self._noise_generator.set_state(decode_state(state["_noise_generator"]))

    def _excluded_save_params(self) -> list[str]:
        runtime = [
            "lr_schedule",
            "_scheduled_rate",
            "_made_with",
            "_derived_bounds",
            "dataset",
            "_optimizers",
            "_targets",
            "_noise_generator",
            "_metrics",
            "_compiled",
            "_captured",
            "_rates",
            "_filled_rates",
            "_last_batch",
            "_placeholder_env",
            "_is_online",
            "action_noise",
            "_last_good",
            "_is_preparing",
            "_stored_arrays",
            "_consent",
        ]
        return [*super()._excluded_save_params(), *runtime]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *(f"{name}_optimizer" for name in self._optimizers)], []

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model, its optimizers and its random states in a zip file of SB3's format, atomically.

        :meth:`load` reads attributes as plain data, so what has no such form is refused here. A learning rate may be any
        function of the remaining progress: it comes back as a formula (constants, straight lines and half a cosine, to the
        last bit), else as a table of 1025 values with straight lines between them. Classes, e.g. an ``activation_fn`` of
        your own, have to be importable. Attributes that you have added to the model are for ``trust_pickle=True`` only.

        :param path: path of the file (``.zip`` is appended if there is no suffix) or a file object
        :param exclude: names of attributes to leave out
        :param include: names of attributes to keep that are left out by default, for SB3's ``load``
        :raises FloatingPointError: a loss or a weight is no longer finite
        :raises TypeError: an attribute cannot be saved
        :raises ValueError: the path is empty, an argument is out of its range, or one was changed that networks or data were
            made with
        :raises OSError: the disk is full, the folder is read-only, ...; in every case the previous file is left as it was
        """
        self.check_finite()
        arguments.check_arguments(self)
        self._check_fixed()
        pending, excluded = self._random_state, set(exclude or ())
        self._random_state = pending or random_state_of(self)
        # In memory first: a disk that is full then says so itself, and not PyTorch or zipfile in words of their own.
        content = io.BytesIO()
        try:
            settings = settings_of(self, excluded)
            super().save(content, excluded, include)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            name = unpicklable_attribute(vars(self), {*self._excluded_save_params(), *excluded} - {*(include or ())})
            raise (error if name is None else cannot_be_saved(name, error)) from error
        finally:
            self._random_state = pending
        arrays = self._packed_arrays()
        with zipfile.ZipFile(content, "a") as archive:
            archive.writestr(SETTINGS, settings)
            if arrays is not None:
                archive.writestr(ARRAYS, arrays)
        if not isinstance(path, str | os.PathLike):
            path.write(content.getbuffer())
            return
        if ranks.rank() > 0:
            return  # process 0 has written the same file
        path = path_to_write(path, ".zip")
        with atomic_write(path) as file:
            file.write(content.getbuffer())
        self._last_good = path

    def _packed_arrays(self) -> bytes | None:
        """What else goes into the zip, see :mod:`sb3_dmpo.files.npz`; read when ``_stored_arrays`` are needed."""
        return None

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """
        As in SB3. Tensors that are parts of larger ones, as while several seeds learn at once, are copied: a file would hold
        the whole.
        """
        parameters: dict[str, dict[str, Any]] = super().get_parameters()
        for name, values in parameters.items():
            if name == "policy":
                values.update({key: on_its_own(value) for key, value in values.items()})
            else:
                parameters[name] = tree_map(on_its_own, values)
        return parameters

    def check_finite(self) -> None:
        """
        Stop here if training has diverged: look at the losses since the last log, the weights and the optimizers.

        :raises FloatingPointError: the message names the term, the update and the last good file
        """
        try:
            self._metrics.check()
            self._check_weights()
        except FloatingPointError as error:
            if self._last_good is None:
                raise
            raise FloatingPointError(f"{error} The last good state is {self._last_good}.") from None

    def _check_weights(self) -> None:
        """Refuse weights and optimizer states that are not finite."""
        optimizers = {name: optimizer for name, (optimizer, _, _) in self._optimizers.items()}
        check_finite(self.policy, optimizers, self._n_updates)

    def export(self, path: str | pathlib.Path) -> None:
        """
        Write the whole policy as one graph that runs without this package: what ``predict(observation,
        deterministic=True)`` returns, for any number of observations, see :func:`~sb3_dmpo.common.export.export_policy`.

        :param path: file ending in ``.onnx`` (needs the extra ``export``) or ``.pt2`` (a ``torch.export`` program)
        :raises ValueError: another ending, or a key of the observations is a name that an ONNX file needs for something else
        :raises ImportError: onnx or onnxscript is missing
        """
        # Not with the package: the exporter is rarely needed.
        from sb3_dmpo.common.export import export_policy

        metadata = {"algorithm": type(self).__name__, "dataset": str(self.dataset_id), "updates": str(self._n_updates)}
        export_policy(self.policy, path, metadata)

    @classmethod
    def load(
        cls: type[SelfOfflineAlgorithm],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        trust_pickle: bool = False,
        trusted_classes: Collection[type] = (),
        **kwargs: Any,
    ) -> SelfOfflineAlgorithm:
        """
        Load a model. No dataset and no environment are needed, and global random generators are left alone.

        Nothing in the file is executed: attributes are read as plain data, and checksums, sizes and names are checked first.
        (Zips of early versions hold pickles only, which are read through a list of exact class names.)

        :param path: path of the file (``.zip`` is appended if there is no such file) or a file object, which is read from its
            beginning
        :param env: environment or environment id to go on with; None for acting and for learning from a dataset
        :param device: device of the networks
        :param custom_objects: replacements for attributes in the file, which are then not decoded
        :param print_system_info: print on which system the file was made
        :param force_reset: reset the environment before it is stepped
        :param trust_pickle: unpickle what the file holds, e.g. the very function that was given as a learning rate; a file
            from somebody else can then execute anything
        :param trusted_classes: classes of your own that the file may name, e.g. an ``activation_fn``
        :param kwargs: attributes to change, e.g. ``dataset=...``
        :raises FileNotFoundError: there is no such file
        :raises DamagedFileError: the file is not complete, or its weights do not fit
        :raises UnsafeFileError: the file asks for something that a model does not need
        :raises ValueError: the path is empty, an attribute is out of its range, or the environment has other spaces
        :raises TypeError: there is no such attribute, or the path is none
        :return: the model
        """
        arguments.check_device(device)
        changes = checked_changes(cls, kwargs)
        content = read_file(path)
        with named_faults(path):
            stored = read_model(content)
            if print_system_info:
                print("== CURRENT SYSTEM INFO ==")
                utils.get_system_info()
                print(f"== SAVED MODEL SYSTEM INFO ==\n{plain(stored.system)}")
            attributes = prepare_load(cls, stored, custom_objects, trust_pickle, trusted_classes)
            try:
                model = cls._assemble(attributes, device, changes)
                model._replace_parameters(make_parameters(model, stored))
            except Exception as error:  # depends on what is in the file
                if kwargs:
                    # Whose fault is it? On its own the file loads, or says what is wrong with it.
                    cls.load(io.BytesIO(content), None, device, custom_objects, False, True, trust_pickle, trusted_classes)
                    if isinstance(error, FileError):
                        raise ValueError(f"The weights in the file are not for {', '.join(kwargs)}: {error}") from error
                if kwargs or isinstance(error, FileError):
                    raise
                raise DamagedFileError(f"The weights in the file do not fit {cls.__name__}: {error}") from error
        if "seed" in kwargs:
            # What the seed is for: other draws than the interrupted run's.
            model._random_state = None
        model._stored_arrays = stored.arrays
        model._last_good = pathlib.Path(path) if isinstance(path, str | os.PathLike) else None
        if env is not None:
            model.set_env(env, force_reset)
            model.action_space.seed(model.seed)
            assert model.env is not None
            model.env.seed(model.seed)
        if "dataset" in kwargs:
            # The hash stays: what is passed has to be the data that the run began with.
            fingerprint = model.dataset_fingerprint
            model.set_dataset(kwargs["dataset"])
            model.dataset_fingerprint = fingerprint
        return model

    @classmethod
    def _assemble(
        cls: type[SelfOfflineAlgorithm],
        attributes: dict[str, Any],
        device: th.device | str,
        changes: dict[str, Any],
    ) -> SelfOfflineAlgorithm:
        """A model of the attributes in a file, whose weights are to follow; as SB3's ``load`` makes it."""
        architecture = attributes.get("policy_kwargs")
        if changes.get("policy_kwargs", architecture) != architecture:
            raise ValueError(
                f"The specified policy kwargs do not equal the stored policy kwargs. Stored kwargs: {architecture}, specified "
                f"kwargs: {changes['policy_kwargs']}"
            )
        scaled = attributes.get("normalize_observations")
        if attributes.get("_n_updates") and changes.get("normalize_observations", scaled) != scaled:
            raise ValueError(
                f"normalize_observations is {scaled} in the file, and its networks were trained so: it cannot be changed."
            )
        for name in ("observation_space", "action_space"):
            if name not in attributes:
                raise DamagedFileError(f"The file has no {name}.")
        model = cls(policy=attributes["policy_class"], env=None, device=device, _init_setup_model=False)
        vars(model).update(attributes)
        vars(model).update(changes)
        model._is_loading = True
        with NothingDrawn():  # type: ignore[no-untyped-call]
            model._setup_model()
        del model._is_loading
        return model

    def _take_over_random_state(self, continuing: bool) -> None:
        """
        Use the random states of the zip up: a continued run draws what the interrupted one would have drawn.

        :param continuing: whether the run continues; otherwise the states are dropped
        """
        state, self._random_state = self._random_state, None
        if state is not None and continuing:
            set_random_state_of(self, state)
