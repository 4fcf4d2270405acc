"""Callbacks for training from a dataset."""

import os
import warnings
import zipfile
import zlib
from typing import Any

import gymnasium as gym
import numpy as np
from minari import MinariDataset
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_dmpo.common.evaluation import (
    EvaluationResult,
    env_id_of,
    evaluate_policy,
    to_vec_env,
)
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.data.tasks import reference_scores
from sb3_dmpo.files.save_util import atomic_write, preserved_random_state

#: Arrays of ``evaluations.npz``; all but the first have a column for every episode.
_ARRAYS = ("timesteps", "results", "ep_lengths", "successes", "normalized_scores")


def read_evaluations(path: str) -> dict[str, np.ndarray]:
    """
    What evaluations have written into ``evaluations.npz``, by the names of the arrays.

    :param path: the file
    :raises OSError: it cannot be read, or its arrays do not fit together
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in _ARRAYS if name in arrays}
        n, n_episodes = found["results"].shape
        for name, array in found.items():
            if array.shape != ((n,) if name == "timesteps" else (n, n_episodes)) or array.dtype.kind not in "biuf":
                raise ValueError(f"{name} has the shape {array.shape} and the dtype {array.dtype}")
    except (OSError, ValueError, TypeError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        what = f"The earlier evaluations in {path} cannot be read ({error})"
        raise OSError(f"{what}: remove the file to go on without them.") from error
    return found


class NormalizedEvalCallback(EvalCallback):
    """
    SB3's ``EvalCallback`` with D4RL's normalised score.

    Logs ``eval/mean_reward``, ``eval/mean_ep_length``, ``eval/success_rate`` (where the environment reports it) and
    ``eval/normalized_score`` (0 to 100, where reference scores are known). ``evaluations.npz`` has SB3's arrays and
    ``normalized_scores``, shape (evaluations, episodes); it is replaced in one piece. Random streams of the training
    are the same with and without evaluation.

    :param eval_env: environment or VecEnv; its environments are run at once
    :param dataset: where reference scores are looked for first; by default the model's own dataset
    :param kwargs: as of ``EvalCallback``: ``n_eval_episodes``, ``eval_freq``, ``log_path``, ``best_model_save_path``, ...
    """

    def __init__(
        self, eval_env: gym.Env[Any, Any] | VecEnv, dataset: str | MinariDataset | None = None, **kwargs: Any
    ) -> None:
        super().__init__(to_vec_env(eval_env), **kwargs)
        self.dataset = dataset
        self.evaluations_normalized: list[list[float]] = []

    def _init_callback(self) -> None:
        with warnings.catch_warnings():
            # Different kinds of VecEnv only matter where normalisation statistics have to be copied between them.
            if self.model.get_vec_normalize_env() is None:
                warnings.filterwarnings("ignore", message="Training and eval env are not of the same type")
            super()._init_callback()
        if self.dataset is None:
            self.dataset = getattr(self.model, "dataset_id", None)
        if self.verbose >= 1:
            reference = reference_scores(self.dataset, env_id_of(self.eval_env))
            if reference is None:
                self.logger.info("No reference scores are known for this dataset and environment: scores are raw returns.")
            else:
                low, high, source = reference
                self.logger.info(f"Normalized scores: 0 is a return of {low:g}, 100 of {high:g}, from {source}.")

    def _on_step(self) -> bool:
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq != 0:
            return True
        if isinstance(self.model, OfflineAlgorithm):
            self.model.check_finite()
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.eval_env)
        with preserved_random_state():
            result = evaluate_policy(
                self.model,
                self.eval_env,
                n_eval_episodes=self.n_eval_episodes,
                deterministic=self.deterministic,
                render=self.render,
                dataset=self.dataset,
                warn=self.warn,
            )
        self.last_mean_reward = result.mean_return
        if isinstance(self.model, OfflineAlgorithm):
            # Goes into the zip, that of the best model too.
            self.model.last_evaluation = result.summary(self.model._n_updates)
        self._save_evaluations(result)
        self._log_evaluation(result)
        return self._pass_on(result)

    def _save_evaluations(self, result: EvaluationResult) -> None:
        if self.log_path is None:
            return
        self.evaluations_timesteps.append(self.num_timesteps)
        self.evaluations_results.append(result.returns.tolist())
        self.evaluations_length.append(result.lengths.tolist())
        arrays: dict[str, Any] = {
            "timesteps": self.evaluations_timesteps,
            "results": self.evaluations_results,
            "ep_lengths": self.evaluations_length,
        }
        if result.successes is not None:
            self.evaluations_successes.append(result.successes.tolist())
            arrays["successes"] = self.evaluations_successes
        if result.reference is not None:
            self.evaluations_normalized.append(result.reference.normalize(result.returns).tolist())
            arrays["normalized_scores"] = self.evaluations_normalized
        with atomic_write(f"{self.log_path}.npz") as file:
            np.savez(file, **arrays)

    def restore_evaluations(self, updates: int) -> None:
        """
        Take over the evaluations that an interrupted run has written, so that the file goes on and the best model stays.

        :param updates: update to go on from; later evaluations are dropped
        :raises OSError: the file cannot be read
        :raises ValueError: they have another number of episodes, which does not go into the same arrays
        """
        if self.log_path is None or not os.path.exists(f"{self.log_path}.npz"):
            return
        earlier = read_evaluations(f"{self.log_path}.npz")
        n_episodes = earlier["results"].shape[1]
        if n_episodes != self.n_eval_episodes:
            what = f"The evaluations in {self.log_path}.npz have {n_episodes} episodes, and now they would have"
            raise ValueError(f"{what} {self.n_eval_episodes}: pass n_eval_episodes={n_episodes}, or another log_path.")
        lists: dict[str, list[Any]] = {
            "timesteps": self.evaluations_timesteps,
            "results": self.evaluations_results,
            "ep_lengths": self.evaluations_length,
            "successes": self.evaluations_successes,
            "normalized_scores": self.evaluations_normalized,
        }
        kept = earlier["timesteps"] <= updates
        for key, values in earlier.items():
            lists[key].extend(values[kept].tolist())
        means = [float(np.mean(returns)) for returns in self.evaluations_results]
        self.best_mean_reward = max(means, default=self.best_mean_reward)

    def _log_evaluation(self, result: EvaluationResult) -> None:
        values = {
            "eval/mean_reward": result.mean_return,
            "eval/mean_ep_length": float(result.lengths.mean()),
            "eval/success_rate": result.success_rate,
            "eval/normalized_score": result.normalized_score,
        }
        for name, value in values.items():
            if value is not None:
                self.logger.record(name, value)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def _pass_on(self, result: EvaluationResult) -> bool:
        """Save the best model so far and tell the child callbacks; False ends the training."""
        goes_on = True
        if result.mean_return > self.best_mean_reward:
            self.best_mean_reward = result.mean_return
            if self.best_model_save_path is not None:
                self.model.save(os.path.join(self.best_model_save_path, "best_model"))
            if self.callback_on_new_best is not None:
                goes_on = self.callback_on_new_best.on_step()
        if self.callback is not None:
            goes_on = self._on_event() and goes_on
        return goes_on


class OnlineCheckpointCallback(CheckpointCallback):
    """
    SB3's checkpoints for ``learn_online``: the model, and beside it the collected transitions.

    They are written between two rollouts. SB3 writes them within a step, before its transition is stored and its updates
    are done, so that a continued run would lack both.

    :param save_freq: steps of the vector environment between checkpoints
    :param save_path: folder
    :param kwargs: as of ``CheckpointCallback``
    """

    def __init__(self, save_freq: int, save_path: str, **kwargs: Any) -> None:
        super().__init__(save_freq, save_path, **{"save_replay_buffer": True} | kwargs)
        self._is_due = False

    def _checkpoint_path(self, checkpoint_type: str = "", extension: str = "") -> str:
        return super()._checkpoint_path(checkpoint_type, "npz" if checkpoint_type == "replay_buffer_" else extension)

    def _on_step(self) -> bool:
        self._is_due = self._is_due or self.n_calls % self.save_freq == 0
        return True

    def _on_rollout_start(self) -> None:
        self._save_if_due()

    def _on_training_end(self) -> None:
        self._save_if_due()

    def _save_if_due(self) -> None:
        if not self._is_due:
            return
        self._is_due = False
        n_calls = self.n_calls
        try:
            self.n_calls = 0  # SB3 saves in its own rhythm only, in which 0 always is
            super()._on_step()
        finally:
            self.n_calls = n_calls
