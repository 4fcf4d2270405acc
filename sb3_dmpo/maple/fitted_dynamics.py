"""An ensemble of dynamics after its training: what it was fitted to, and how far it strays."""

import copy
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.decision_transformer.buffers import SequenceReplayBuffer
from sb3_dmpo.files.safe_zip import DamagedFileError
from sb3_dmpo.maple.dynamics import DynamicsEnsemble


class DataKey(NamedTuple):
    """
    What an ensemble was fitted to.

    :param fingerprint: hash of the dataset
    :param transform: scale and shift of the rewards, and the bound of the actions
    """

    fingerprint: str
    transform: tuple[float, float, float]

    @classmethod
    def of(cls, buffer: OfflineReplayBuffer) -> "DataKey":
        """
        That of a dataset.

        :param buffer: the dataset
        """
        return cls(buffer.fingerprint, (float(buffer.reward_scale), float(buffer.reward_shift), float(buffer.action_clip)))

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "DataKey":
        """
        That of :meth:`to_arrays`.

        :param arrays: what it returned; the entries are taken out
        :raises DamagedFileError: it is not there
        """
        try:
            fingerprint, transform = arrays.pop("fingerprint"), arrays.pop("transform")
            scale, shift, clip = map(float, transform)
            return cls(fingerprint.astype(np.uint8).tobytes().decode(), (scale, shift, clip))
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedFileError(f"The file does not say what its ensemble of dynamics was fitted to ({error}).") from None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """As arrays."""
        return {
            "fingerprint": np.frombuffer(self.fingerprint.encode(), np.uint8),
            "transform": np.array(self.transform),
        }

    def __str__(self) -> str:
        scale, shift, _ = self.transform
        return f"hash {self.fingerprint}, reward_scale {scale:g}, reward_shift {shift:g}"


class OpenLoopErrors(NamedTuple):
    """
    Errors of an ensemble over the horizon.

    :param observations: root mean squared error of the observations in standard deviations of the dataset, by elite and step,
        shape ``(n_elites, horizon)``
    :param rewards: mean absolute error of the rewards, shape ``(n_elites, horizon)``
    :param unchanged: the first of these if nothing had been predicted but that observations stay as they are, ``(horizon,)``
    :param n_pieces: number of pieces of episodes
    """

    observations: np.ndarray
    rewards: np.ndarray
    unchanged: np.ndarray
    n_pieces: int


class FittedDynamics(NamedTuple):
    """
    An ensemble, and what it was fitted to.

    :param ensemble: the ensemble
    :param data: the data
    :param seed: of the stream that has split the data
    """

    ensemble: DynamicsEnsemble
    data: DataKey
    seed: int

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "FittedDynamics":
        """
        What :meth:`to_arrays` was called on.

        :param arrays: its return value
        :raises DamagedFileError: they are not that
        """
        rest = dict(arrays)
        data, seed = DataKey.from_arrays(rest), rest.pop("seed", np.zeros(0))
        if seed.shape != () or seed.dtype.kind != "i":
            raise DamagedFileError("The file does not say how the data of its ensemble of dynamics were split.")
        return cls(DynamicsEnsemble.from_arrays(rest), data, int(seed))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything as arrays."""
        return self.ensemble.to_arrays() | self.data.to_arrays() | {"seed": np.array(self.seed)}

    @th.no_grad()
    def open_loop_errors(self, data: SequenceReplayBuffer, starts: th.Tensor, horizon: int) -> OpenLoopErrors:
        """
        How far the elites stray on their own predictions when they follow recorded actions.

        :param data: the dataset
        :param starts: numbers of the steps where they begin, each with ``horizon`` steps of its episode left, shape ``(n,)``
        :param horizon: number of steps
        """
        found = data.steps(starts.unsqueeze(1) + th.arange(horizon, device=starts.device))
        scale = data.observation_std.clamp(min=1e-6)
        ensemble = copy.deepcopy(self.ensemble).to(data.device)
        observations = found.observations[:, 0].expand(ensemble.n_models, -1, -1)
        errors, reward_errors, unchanged = [], [], []
        for step in range(horizon):
            actions = found.actions[:, step].expand(ensemble.n_models, -1, -1)
            means, _ = ensemble(th.cat([observations, actions], dim=2))
            observations = observations + means[:, :, 1:]
            true = found.next_observations[:, step]
            errors.append(((observations - true) / scale).square().mean(dim=(1, 2)).sqrt()[ensemble.elites])
            reward_errors.append((means[:, :, 0] - found.rewards[:, step, 0]).abs().mean(dim=1)[ensemble.elites])
            unchanged.append(((found.observations[:, 0] - true) / scale).square().mean().sqrt())
        found_errors, found_rewards = (th.stack(values, dim=1).cpu().numpy() for values in (errors, reward_errors))
        return OpenLoopErrors(found_errors, found_rewards, th.stack(unchanged).cpu().numpy(), len(starts))
