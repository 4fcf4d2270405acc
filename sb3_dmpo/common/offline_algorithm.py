"""The base of all algorithms: a training loop over a fixed dataset in the shape of SB3's off-policy algorithms."""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import utils
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import safe_mean
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import nn

from sb3_dmpo.common.arguments import check_arguments, check_device, unknown_argument
from sb3_dmpo.common.compilation import CompiledUpdate, CompileOption
from sb3_dmpo.common.learning_data import DatasetMixin
from sb3_dmpo.common.metrics import MetricAverager
from sb3_dmpo.common.online import OnlineMixin
from sb3_dmpo.common.policies import OfflinePolicy
from sb3_dmpo.common.type_aliases import Metrics, OfflineBatch
from sb3_dmpo.common.updates import Target, error_quantiles
from sb3_dmpo.common.updating import UpdateMixin
from sb3_dmpo.common.zip_mixin import ZipMixin
from sb3_dmpo.data import dataset_identifier, dataset_spaces
from sb3_dmpo.data.preprocessing import canonical_observation_space
from sb3_dmpo.envs.spaces_only import SpacesOnlyEnv
from sb3_dmpo.envs.wrappers import FlattenNestedDict

SelfOfflineAlgorithm = TypeVar("SelfOfflineAlgorithm", bound="OfflineAlgorithm")


class OfflineAlgorithm(DatasetMixin, UpdateMixin, OnlineMixin, ZipMixin, OffPolicyAlgorithm):
    """
    Base of the offline algorithms. One timestep is one gradient update; no environment is needed to learn.

    A subclass builds its optimizers in ``_setup_model`` (:meth:`add_optimizer`, :meth:`add_target`), says in
    :meth:`noise_specs` which random numbers an update consumes, and computes its losses in :meth:`update`.

    :param policy: ``"MlpPolicy"`` (Box observations), ``"MultiInputPolicy"`` (Dict observations) or a policy class
    :param env: environment, VecEnv or environment id; optional, for its spaces, for callbacks and for ``learn_online``
    :param dataset: Minari id, ``MinariDataset``, SB3 ``ReplayBuffer`` (or path to its pickle), path to a D4RL HDF5
        file, or :class:`OfflineReplayBuffer`; read when ``learn`` is called. Only its id goes into the zip.
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
    :param compile: whether the updates are compiled, which takes one or two minutes before the first ones and needs a C++
        compiler on CPUs; ``"auto"``: on CUDA, and on CPUs in runs of at least 100 000 updates
    :param policy_kwargs: arguments of the policy, e.g. ``dict(net_arch=[256, 256])``
    :param stats_window_size: window of the rollout statistics (SB3)
    :param tensorboard_log: log folder of TensorBoard
    :param verbose: 0 no output, 1 info messages, 2 debug messages
    :param seed: seed of the pseudo random generators
    :param device: device of networks and data
    :param _init_setup_model: whether to build the networks at once (``load`` builds them later)
    :raises ValueError: an argument is out of its range
    :raises TypeError: there is no argument of that name
    """

    policy: OfflinePolicy

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
        compile: CompileOption = "auto",
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        **unknown: Any,
    ) -> None:
        for name in unknown:
            raise unknown_argument(type(self), name)
        check_device(device)
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
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
        self.policy_delay = policy_delay
        self.normalize_observations = normalize_observations
        self.reward_scale = reward_scale
        self.reward_shift = reward_shift
        self.download = download
        self.memory_map = memory_map
        self.dataset = dataset
        self.dataset_id = dataset_identifier(dataset)
        self.dataset_fingerprint: str | None = None
        self.online_ratio: float | None = None
        self._scaler_is_set = False
        self.compile = compile
        self._is_compiled: bool | None = None
        self._compiled: CompiledUpdate | None = None
        self._rates: dict[str, th.Tensor] = {}
        self._metrics = MetricAverager()
        self._last_batch: OfflineBatch | None = None
        self._placeholder_env: VecEnv | None = None
        check_arguments(self)
        if _init_setup_model:
            self._check_spaces(policy)
            self._setup_model()

    def _check_spaces(self, policy: str | type[BasePolicy]) -> None:
        if self.env is None:
            if self.dataset is None:
                raise ValueError(
                    f"{type(self).__name__} needs a dataset or an env to know its spaces, "
                    f"e.g. {type(self).__name__}('MlpPolicy', dataset='D4RL/pen/human-v2')."
                )
            self.observation_space, self.action_space = dataset_spaces(self.dataset, download=self.download)
            self.n_envs = 1
        if policy == "MlpPolicy" and isinstance(self.observation_space, spaces.Dict):
            raise ValueError("You must use `MultiInputPolicy` when working with dict observation space, not MlpPolicy")

    # Building blocks for subclasses -----------------------------------------------------------------------------

    def _policy_arguments(self) -> dict[str, Any]:
        """Arguments of the policy that are constructor arguments of the algorithm."""
        return {}

    def make_policy(self) -> OfflinePolicy:
        """New networks of the configured architecture."""
        self._setup_lr_schedule()
        policy: Any = self.policy_class(
            self.observation_space, self.action_space, self.lr_schedule, **self._policy_arguments(), **self.policy_kwargs
        )
        made: OfflinePolicy = policy
        return made

    def _setup_model(self) -> None:
        self.set_random_seed(self.seed)
        self.policy = self.make_policy().to(self.device)
        self._optimizers: dict[str, tuple[th.optim.Optimizer, Schedule, list[nn.Parameter]]] = {}
        self._targets: list[Target] = []
        self._noise_generator = th.Generator(device=self.device)
        if self.seed is None:
            self._noise_generator.seed()
        else:
            # Not the seed itself: the buffer has that one, and noise would repeat the numbers that choose the minibatches.
            self._noise_generator.manual_seed(int(np.random.SeedSequence([self.seed, 1]).generate_state(1)[0]))
        self._convert_train_freq()

    def diagnostics(self, batch: OfflineBatch) -> Metrics:
        """
        Costlier quantities, computed only when the logger writes.

        :param batch: a minibatch
        :return: 0-d tensors to be logged
        """
        return {}

    def target_q_values(self, batch: OfflineBatch) -> th.Tensor:
        """
        Target of the critics, shape ``(batch, 1)``, where there are critics.

        :param batch: the minibatch
        """
        raise NotImplementedError()

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

    # Training ---------------------------------------------------------------------------------------------------

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if self._is_online:
            return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
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
        if not self._custom_logger:
            self._logger = utils.configure_logger(self.verbose, self.tensorboard_log, tb_log_name, reset_num_timesteps)
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
        Train on the dataset; one timestep is one gradient update.

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
        self._setup_dataset(continuing=not reset_num_timesteps)
        self._take_over_random_state(continuing=not reset_num_timesteps)
        self._setup_compilation(total_timesteps, continuing=not reset_num_timesteps)
        with self._env_for_callbacks():
            self._learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        return self

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

    def _learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback,
        log_interval: int | None,
        tb_log_name: str | None,
        reset_num_timesteps: bool,
        progress_bar: bool,
    ) -> None:
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        callback.on_training_start(locals(), globals())
        while self.num_timesteps < total_timesteps:
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            self.train(gradient_steps=1, batch_size=self.batch_size)
            self.num_timesteps += 1
            if not self._end_update(callback, log_interval, locals()):
                break
        self._flush_metrics()
        callback.on_training_end()

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
        return callback.on_step()

    def get_env(self) -> VecEnv | None:
        """The environment; while learning without one, a placeholder with the right spaces that cannot be stepped."""
        return self.env if self.env is not None else self._placeholder_env

    def _flush_metrics(self) -> None:
        self.check_finite()
        for name, value in self._metrics.means().items():
            self.logger.record(f"train/{name}", value)
        self._metrics.clear()

    def dump_logs(self) -> None:
        """Write the log."""
        assert self.ep_info_buffer is not None
        self._flush_metrics()
        if self._last_batch is not None:
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

    # Environments -----------------------------------------------------------------------------------------------

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        # SB3 refuses nested Dict observations; the canonical one-level form holds the same numbers.
        if isinstance(env, gym.Env) and canonical_observation_space(env.observation_space) != env.observation_space:
            env = FlattenNestedDict(env)
        return OffPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)
