"""From offline to online: an algorithm that has learned from a dataset goes on in an environment, with SB3's own loop."""

import io
import pathlib
import zipfile
import zlib
from typing import Any, ClassVar, TypeVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, TrainFreq

from sb3_dmpo.common.arguments import check_arguments
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.data import DatasetError
from sb3_dmpo.data.preprocessing import action_spaces_match, observation_spaces_match
from sb3_dmpo.files.save_util import atomic_write

SelfOnlineMixin = TypeVar("SelfOnlineMixin", bound="OnlineMixin")


class OnlineMixin(OffPolicyAlgorithm):
    """The part of :class:`OfflineAlgorithm` that steps environments: ``learn_online``, and the transitions it collects."""

    #: Whether the algorithm has what it takes to improve by its own experience: a critic.
    learns_online: ClassVar[bool] = True
    #: Whether ``learn_online`` is running.
    _is_online: bool = False
    online_ratio: float | None
    action_space: spaces.Box
    _setup_dataset: Any
    _take_over_random_state: Any
    _flush_metrics: Any

    def learn_online(
        self: SelfOnlineMixin,
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
    ) -> SelfOnlineMixin:
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
        :param buffer_size: number of collected transitions that are kept; the dataset is never overwritten
        :raises ValueError: the algorithm has no critic, there is no environment or dataset, or a setting is out of its range
        :raises DatasetError: the dataset is not there, not usable, or not the one that the model was trained on
        :raises FloatingPointError: a loss is no longer finite
        :return: the model itself
        """
        self._check_online()
        assert self.env is not None
        self.online_ratio, self.learning_starts, self.buffer_size = online_ratio, learning_starts, buffer_size
        self.gradient_steps = gradient_steps
        self.train_freq = train_freq  # type: ignore[assignment]  # SB3 converts it
        check_arguments(self)
        self._convert_train_freq()
        self.action_noise = action_noise
        if isinstance(action_noise, VectorizedActionNoise) and action_noise.n_envs != self.n_envs:
            # SB3 makes one for as many environments as there are now.
            self.action_noise = action_noise.base_noise
        self._setup_dataset(continuing=True)
        self._take_over_random_state(continuing=True)
        buffer = self.replay_buffer
        assert isinstance(buffer, OfflineReplayBuffer)
        buffer.reserve(max(min(buffer_size, buffer.n_added + total_timesteps + self.n_envs), self.n_envs))
        buffer.online_ratio = online_ratio
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

    def _check_online(self) -> None:
        name = type(self).__name__
        if not self.learns_online:
            raise ValueError(
                f"{name} has no critic and cannot improve by its own experience: use an actor-critic algorithm, e.g. DMPO."
            )
        if self.env is None:
            raise ValueError(f"{name} has no environment to learn in: call `set_env` first, or pass `env=` to `load`.")
        if self._vec_normalize_env is not None and self._vec_normalize_env.norm_obs:
            raise ValueError(
                "The environment is wrapped in VecNormalize, but the policy scales observations itself, by the dataset's "
                "statistics: leave the wrapper out, or use norm_obs=False."
            )

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Set the environment to act and to learn online in. Unlike in SB3 the number of environments may be another one.

        :param env: environment or VecEnv with the model's spaces
        :param force_reset: reset the environment before it is stepped
        :raises ValueError: the spaces differ
        """
        env = self._wrap_env(env, self.verbose)
        self.n_envs = env.num_envs
        if observation_spaces_match(self.observation_space, env.observation_space) and (
            isinstance(env.action_space, spaces.Box) and action_spaces_match(self.action_space, env.action_space)
        ):
            # Versions of an environment differ in the bounds and types of their observations, which does not matter.
            self.observation_space, self.action_space = env.observation_space, env.action_space
        super().set_env(env, force_reset)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        # Random actions, SB3's for the first steps, would be worse than those of the policy.
        return super()._sample_action(0, action_noise, n_envs)

    # The collected transitions ----------------------------------------------------------------------------------

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the collected transitions, without the dataset, as NumPy arrays (there is no pickle in the file).

        :param path: path of the file (``.npz`` is appended if there is no suffix) or a file object
        :raises ValueError: there is no buffer yet
        """
        if not isinstance(self.replay_buffer, OfflineReplayBuffer):
            raise ValueError(f"{type(self).__name__} has no replay buffer yet: call `learn` or `learn_online` first.")
        arrays: dict[str, Any] = self.replay_buffer.added_arrays()
        if not isinstance(path, str | pathlib.Path):
            np.savez(path, **arrays)
            return
        with atomic_write(_with_suffix(path)) as file:
            np.savez(file, **arrays)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Put the transitions of :meth:`save_replay_buffer` behind those of the dataset, which is read if it was not yet.

        :param path: path of the file (``.npz`` is appended if there is no suffix) or a file object
        :param truncate_last_traj: no effect (SB3 uses it for hindsight replay)
        :raises FileNotFoundError: there is no such file
        :raises DatasetError: the file holds no such transitions, or they were collected beside another dataset
        """
        source = _with_suffix(path) if isinstance(path, str | pathlib.Path) else path
        try:
            with np.load(source, allow_pickle=False) as file:
                arrays = dict(file)
        except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DatasetError(f"{source} holds no transitions that `save_replay_buffer` has written: {error}.") from None
        self._setup_dataset(continuing=True)
        assert isinstance(self.replay_buffer, OfflineReplayBuffer)
        self.replay_buffer.restore_added(arrays)


def _with_suffix(path: str | pathlib.Path) -> pathlib.Path:
    path = pathlib.Path(path)
    return path if path.suffix else path.with_suffix(".npz")
