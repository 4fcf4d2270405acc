"""What an algorithm learns from: its dataset, and the minibatches drawn from it."""

from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.policies import OfflinePolicy
from sb3_dmpo.common.type_aliases import OfflineBatch
from sb3_dmpo.common.updates import draw_noise
from sb3_dmpo.data import DatasetError, dataset_identifier, load_transitions
from sb3_dmpo.data.preprocessing import action_spaces_match, observation_spaces_match


class DatasetMixin(OffPolicyAlgorithm):
    """The part of :class:`OfflineAlgorithm` that reads the dataset and draws from it."""

    #: Dataset actions are clipped to plus/minus this value.
    action_clip: ClassVar[float] = 1.0
    #: What a dataset is read into.
    replay_buffer_type: ClassVar[type[OfflineReplayBuffer]] = OfflineReplayBuffer

    policy: OfflinePolicy
    dataset: Any
    dataset_id: str | None
    dataset_fingerprint: str | None
    download: bool
    memory_map: bool
    normalize_observations: bool
    reward_scale: float | str
    reward_shift: float
    is_policy_update: Any
    noise_specs: Any
    _scaler_is_set: bool
    _noise_generator: th.Generator

    def _setup_dataset(self, continuing: bool = False, loaded: OfflineReplayBuffer | None = None) -> None:
        """
        Read the dataset into the replay buffer, once.

        :param continuing: whether a run goes on, which needs the data it began with
        :param loaded: the dataset, if somebody has read it already
        """
        if isinstance(self.replay_buffer, OfflineReplayBuffer):
            return
        dataset = self.dataset if self.dataset is not None else self.dataset_id
        if dataset is None:
            raise ValueError(
                "There is no dataset to learn from: pass `dataset=` to the constructor or to `load`, or call `set_dataset`."
            )
        if self.dataset is None and not str(dataset).endswith(tuple(f"-v{digit}" for digit in range(10))):
            # The name comes out of a zip: files, pickles above all, are only opened if the user names them.
            raise ValueError(f"The model was trained on the file {dataset!r}: pass its path as `dataset=` to `load`.")
        if loaded is not None:
            buffer = loaded
        elif isinstance(dataset, OfflineReplayBuffer):
            buffer = dataset
        else:
            transitions = load_transitions(dataset, download=self.download, env=self.env, memory_map=self.memory_map)
            buffer = self.replay_buffer_type.from_transitions(
                transitions,
                device=self.device,
                seed=self.seed,
                reward_scale=self.reward_scale,
                reward_shift=self.reward_shift,
                action_clip=self.action_clip,
            )
        assert isinstance(self.action_space, spaces.Box) and isinstance(buffer.action_space, spaces.Box)
        matches = {
            "observation": observation_spaces_match(self.observation_space, buffer.observation_space),
            "action": action_spaces_match(self.action_space, buffer.action_space),
        }
        for what, is_match in matches.items():
            if not is_match:
                expected, found = (getattr(owner, f"{what}_space") for owner in (self, buffer))
                raise DatasetError(f"The {what} space of the dataset is {found}, but the model was made for {expected}.")
        if continuing and self.dataset_fingerprint not in (None, buffer.fingerprint):
            raise DatasetError(
                f"The dataset {self.dataset_id} has changed since this run began (its content had the hash "
                f"{self.dataset_fingerprint}, now it is {buffer.fingerprint}). Restore it to continue, or begin a new run on "
                "it with `reset_num_timesteps=True`."
            )
        self._on_dataset(buffer)
        self.replay_buffer = buffer
        self.dataset_fingerprint = buffer.fingerprint

    def _on_dataset(self, buffer: OfflineReplayBuffer) -> None:
        """
        Take over what the algorithm needs of the data before the first update.

        :param buffer: the dataset on the training device
        """
        # A loaded model keeps the scaler its networks were trained with.
        if self.normalize_observations and not self._scaler_is_set:
            self.policy.set_observation_statistics(buffer.observation_mean, buffer.observation_std)
            self._scaler_is_set = True

    def set_dataset(self, dataset: Any) -> None:
        """
        Learn from another dataset from the next call of ``learn`` on, also within a run.

        :param dataset: as in the constructor
        """
        self.dataset, self.dataset_id, self.replay_buffer = dataset, dataset_identifier(dataset), None
        self.dataset_fingerprint = None

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
        assert self.replay_buffer is not None
        data = self.replay_buffer.sample(batch_size)
        return OfflineBatch(
            self.policy.scale_observations(data.observations),
            data.actions,
            self.policy.scale_observations(data.next_observations),
            data.rewards,
            data.dones,
            self.sample_noise(batch_size),
        )
