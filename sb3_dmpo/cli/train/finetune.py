"""``train --finetune N``: after the updates on the dataset, N steps in the environment."""

import argparse
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback
from stable_baselines3.common.noise import NormalActionNoise

import sb3_dmpo
from sb3_dmpo.cli.errors import UsageError, suggest
from sb3_dmpo.cli.literals import as_yaml, parse_settings, read_yaml
from sb3_dmpo.cli.results import FINETUNE_COLUMNS, score_line
from sb3_dmpo.cli.train.callbacks import ProgressFile
from sb3_dmpo.cli.train.episode_state import record_episodes, restore_episodes, save_episodes
from sb3_dmpo.cli.train.exp_manager import OfflineExperimentManager
from sb3_dmpo.cli.train.resume import check_episodes, check_settings, newest_state
from sb3_dmpo.common.arguments import NOT_NEGATIVE, check_argument
from sb3_dmpo.common.callbacks import OnlineCheckpointCallback
from sb3_dmpo.common.evaluation import EvaluationResult
from sb3_dmpo.files.safe_zip import DamagedFileError, UnsafeFileError
from sb3_dmpo.files.save_util import atomic_write

#: What ``--finetune-params`` may set: arguments of ``learn_online``, the standard deviation of normal exploration noise on
#: actions in [-1, 1], and the number of environments to collect in.
DEFAULTS: dict[str, Any] = {
    "online_ratio": 0.5,
    "learning_starts": 100,
    "train_freq": 1,
    "gradient_steps": 1,
    "buffer_size": 1_000_000,
    "noise_std": 0.1,
    "n_envs": 1,
}
#: What their values may be.
RANGES = sb3_dmpo.OfflineAlgorithm.argument_ranges | {"noise_std": NOT_NEGATIVE}


def finetune_settings(options: argparse.Namespace) -> dict[str, Any]:
    """
    The settings of the online stage, empty without ``--finetune``.

    :param options: parsed options
    :raises UsageError: an unknown name, or an algorithm or option that it cannot be combined with
    """
    if options.finetune <= 0:
        if options.finetune_params or options.finetune < 0:
            raise UsageError("--finetune N needs a positive number of steps, and --finetune-params needs --finetune.")
        return {}
    if options.optimize_hyperparameters:
        raise UsageError("--finetune continues a run: it does not go with -optimize.")
    if not sb3_dmpo.ALGOS[options.algo].learns_online:
        known = ", ".join(name for name, algorithm in sb3_dmpo.ALGOS.items() if algorithm.learns_online)
        why = sb3_dmpo.ALGOS[options.algo].why_offline
        raise UsageError(f"{options.algo} {why}, so that it cannot be fine-tuned in an environment; these can: {known}.")
    settings = dict(DEFAULTS)
    for name, value in parse_settings(options.finetune_params).items():
        if name not in DEFAULTS:
            raise UsageError(f"--finetune-params knows no {name!r}. {suggest(name, DEFAULTS)}")
        settings[name] = value
    try:
        for name, value in settings.items():
            check_argument("--finetune-params", name, value, RANGES[name])
    except ValueError as error:
        raise UsageError(str(error)) from None
    unit = settings["train_freq"][1] if isinstance(settings["train_freq"], tuple) else "step"
    if unit == "episode" and settings["n_envs"] > 1:
        raise UsageError(
            f"--finetune-params: to train after whole episodes needs one environment: n_envs is {settings['n_envs']}."
        )
    return settings


class FineTuningManager(OfflineExperimentManager):
    """
    A run that goes on in the environment. This stage has a folder of its own inside the run's, with the same kinds of files,
    and can be resumed like the run itself.

    :param args: parsed options with ``finetune`` and ``finetune_params``
    :param positional: as rl_zoo3's ``train`` passes them
    :param keywords: the same by name
    """

    columns: ClassVar[tuple[str, ...]] = FINETUNE_COLUMNS

    def __init__(self, args: argparse.Namespace, *positional: Any, **keywords: Any) -> None:
        super().__init__(args, *positional, **keywords)
        self.n_steps: int = args.finetune
        self.settings: dict[str, Any] = args.finetune_params
        self.online_model: Any = None

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Save the model and say how good it is, then learn online and do so again.

        :param model: the model after its last update on the dataset
        :raises KeyboardInterrupt: it was interrupted (after saving)
        :raises UsageError: the online stage was begun with other settings, or a setting makes no sense
        """
        super().save_trained_model(model)
        self.folder = Path(self.save_path) / "finetune"
        self.online_progress = ProgressFile(self.folder / "progress.csv")
        checkpoint, finished = self._find_checkpoint(), self.folder / f"{self.env_name}.zip"
        if checkpoint == finished:
            print(f"Model: {finished} was finished before")
            return
        env = self.create_envs(self.settings["n_envs"])
        record_episodes(env)
        callback = self.make_eval_callback(str(self.folder), self._on_online_result, self.settings["n_envs"])
        callbacks: list[BaseCallback] = [self.interrupt, *([callback] if callback is not None else []), self.online_progress]
        if self.show_progress:
            callbacks.append(ProgressBarCallback())
        if self.save_freq > 0:
            save_freq = max(self.save_freq // self.settings["n_envs"], 1)
            callbacks.append(_Checkpoints(save_freq, str(self.folder)))
        if checkpoint is None:
            self.online_model = model
            self.online_model.set_env(env)
        else:
            print(f"Resuming {checkpoint}")
            self.online_model = self._load_checkpoint(type(model), checkpoint, env)
            for one in callbacks:
                one.n_calls = self.online_model.num_timesteps // self.settings["n_envs"]
            if callback is not None:
                check_episodes(self.folder, self.n_eval_episodes)
                callback.restore_evaluations(self.online_model.num_timesteps)
        print(f"Fine-tuning for {self.n_steps} steps: {self.settings}")
        result = None
        with self.interrupt.listening():
            try:
                self._learn_online(callbacks, is_new=checkpoint is None)
                if callback is not None and not self.interrupt.requested:
                    result = callback.evaluate_at_end()
            finally:
                is_whole = not self.interrupt.requested
                self.interrupt.note_only()
                env.close()
                if callback is not None:
                    callback.eval_env.close()
            # An interrupted stage has its checkpoints to go on from; the name of the finished zip would say otherwise.
            path = finished if is_whole else self.folder / "interrupted.zip"
            self.online_model.save(path)
            print(f"Model: {path} ({self.online_model.num_timesteps} steps, {self.online_model._n_updates} updates)")
        if self.interrupt.requested:
            raise KeyboardInterrupt
        if result is not None:
            if self.final_result is not None:
                print(f"Score before fine-tuning: {score_line(self.final_result, with_source=False)}")
            print(f"Score after fine-tuning: {score_line(result)}")

    def _learn_online(self, callbacks: list[BaseCallback], is_new: bool) -> None:
        arguments = {name: value for name, value in self.settings.items() if name not in ("noise_std", "n_envs")}
        model = self.online_model
        size = model.action_space.shape[0]
        noise = NormalActionNoise(np.zeros(size), np.full(size, float(self.settings["noise_std"])))
        try:
            model.learn_online(
                self.n_steps if is_new else max(self.n_steps - model.num_timesteps, 0),
                callback=callbacks,
                reset_num_timesteps=is_new,
                action_noise=noise,
                **self.learn_arguments(),
                **arguments,
            )
        except (TypeError, ValueError, AssertionError) as error:
            if is_new and model.num_timesteps == 0:  # it has not begun, and may begin with other settings
                (self.folder / "settings.yml").unlink(missing_ok=True)
            if self.verbose >= 2:
                raise
            raise UsageError(f"fine-tuning {self.algo} on {self.dataset}: {error}") from error

    def _find_checkpoint(self) -> Path | None:
        """The newest state of this stage with its transitions; None if there is none. Writes the settings down."""
        file, settings = self.folder / "settings.yml", as_yaml(self.settings)
        # Files of early versions say nothing about these.
        further = {"finetune": self.n_steps, "env": self.args.eval_env_id}
        if file.exists():
            try:
                before = read_yaml(file)
            except UsageError as error:
                raise UsageError(f"--resume: {file} cannot be read: {error}") from error
            if not isinstance(before, dict):
                raise UsageError(f"--resume: {file} is no table of settings.")
            check_settings(f"--resume: {self.folder}", further | before, further | settings)
            return newest_state(self.folder, self.env_name, lambda path: transitions_of(path).exists())
        with atomic_write(file) as stream:
            stream.write(yaml.safe_dump(further | settings).encode("utf-8"))
        return None

    def _load_checkpoint(self, kind: Any, checkpoint: Path, env: Any) -> Any:
        try:
            loaded = kind.load(checkpoint, env=env, **self.load_arguments())
        except (DamagedFileError, UnsafeFileError) as error:
            what = str(error).removeprefix(f"{checkpoint}: ")
            raise UsageError(f"{checkpoint} cannot be continued: {what}") from error
        loaded.load_replay_buffer(transitions_of(checkpoint))
        restore_episodes(env, episodes_of(checkpoint))
        return loaded

    def _on_online_result(self, result: EvaluationResult, steps: int, is_final: bool) -> None:
        updates = self.online_model._n_updates
        if self.verbose > 0:
            print(f"Evaluation after {steps} steps ({updates} updates): {score_line(result, with_source=False)}")
        self.write_result(result, is_final, self.online_progress, updates=updates, env_steps=steps)


class _Checkpoints(OnlineCheckpointCallback):
    """Checkpoints of the online stage, and where its environments are."""

    def _save_if_due(self) -> None:
        if self._is_due:
            checkpoint = Path(self._checkpoint_path(extension="zip"))
            save_episodes(self.training_env, episodes_of(checkpoint))
        super()._save_if_due()


def episodes_of(checkpoint: Path) -> Path:
    """
    Where it is written down how far a checkpoint's environments were.

    :param checkpoint: e.g. ``rl_model_1000_steps.zip``
    """
    return checkpoint.with_name(checkpoint.name.replace("rl_model_", "rl_model_episodes_")).with_suffix(".json")


def transitions_of(checkpoint: Path) -> Path:
    """
    Where a checkpoint's collected transitions lie.

    :param checkpoint: e.g. ``rl_model_1000_steps.zip``
    """
    return checkpoint.with_name(checkpoint.name.replace("rl_model_", "rl_model_replay_buffer_")).with_suffix(".npz")
