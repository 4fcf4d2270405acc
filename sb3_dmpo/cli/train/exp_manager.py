"""rl_zoo3's experiment manager for runs that learn from a dataset."""

import contextlib
import os
import shlex
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from pprint import pprint
from types import FrameType
from typing import Any, ClassVar

import numpy as np
import optuna
import rl_zoo3.exp_manager
import torch as th
import yaml
from gymnasium import spaces
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS, get_latest_run_id
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

import sb3_dmpo
from sb3_dmpo.cli.checkpoints import checkpoints
from sb3_dmpo.cli.configs import RUN_KEYS, check_classes, check_hyperparameters, find_entry, parse_values
from sb3_dmpo.cli.episodes import EVAL_SEED_OFFSET
from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.literals import as_yaml
from sb3_dmpo.cli.results import COLUMNS, ResultsFile, commit, score_line
from sb3_dmpo.cli.search import count_trials, make_sampler, with_trial
from sb3_dmpo.cli.train.callbacks import (
    ProgressFile,
    ResultHandler,
    RunEvalCallback,
    SaveBeforeUpdates,
    StopOnInterrupt,
    TrialProgress,
)
from sb3_dmpo.cli.train.resume import InterruptedRun, check_episodes, lock_run
from sb3_dmpo.cli.zoo import swapped
from sb3_dmpo.common import ranks
from sb3_dmpo.common.evaluation import EvaluationResult
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.data import DatasetError, DatasetSource
from sb3_dmpo.data.tasks import describe_data, reference_scores
from sb3_dmpo.envs.registration import TOY_ENV_ID
from sb3_dmpo.files.save_util import atomic_write
from sb3_dmpo.hub.summary import read_summary

#: The paper's protocol, for what neither the command line nor the config says.
EVAL_FREQ, EVAL_EPISODES = 5000, 10
_MAX_EVAL_ENVS = 10
#: What the parsed options hold beside options.
_NOT_OPTIONS = ("argv", "source", "interrupted_run", "locks")


@contextlib.contextmanager
def can_begin(model: BaseAlgorithm, managers: Sequence["OfflineExperimentManager"]) -> Iterator[None]:
    """
    What ends a run before its first update was asked for: settings that ``learn`` refuses, faults of the data, batches that
    memory does not hold, files that cannot be written. It did not begin, and leaves no folder, unless something that came
    before the updates (MAPLE's ensemble) was saved. Later updates may have been crowded out of memory.

    :param model: a model that is about to learn
    :param managers: what made it and those that learn with it
    :raises UsageError: it cannot learn so
    """
    before = model.num_timesteps
    try:
        yield
    except (RuntimeError, MemoryError, ValueError, OSError) as error:
        # On the CPU, PyTorch has no class for it.
        is_memory = isinstance(error, MemoryError | th.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)
        is_saved = any(checkpoints(Path(manager.save_path)) for manager in managers)
        is_foreseen = isinstance(error, ValueError | OSError) or (is_memory and not is_saved)
        if model.num_timesteps > before or not is_foreseen:
            raise
        if not is_saved:
            for manager in managers:
                manager.discard()
        if isinstance(error, DatasetError | OSError) or managers[0].verbose >= 2:
            raise
        if is_memory:
            what = str(error).partition("\n")[0] or type(error).__name__
            size = f"batch_size is {getattr(model, 'batch_size', '?')}"
            raise UsageError(f"The first update does not fit into memory ({size}): {what}") from error
        raise UsageError(f"{managers[0].algo} on {managers[0].dataset}: {error}") from error


class OfflineExperimentManager(ExperimentManager):
    """
    A run that learns from a dataset: settings are looked up by dataset, the environment is only for evaluation, and
    scores are normalised. Reads ``dataset``, ``source``, ``eval_env_id``, ``results`` and ``argv`` from the parsed options.

    :param args: parsed options
    :param positional: as rl_zoo3's ``train`` passes them
    :param keywords: the same by name
    """

    #: Columns of its results.
    columns: ClassVar[tuple[str, ...]] = COLUMNS

    def __init__(self, args: Any, *positional: Any, **keywords: Any) -> None:
        super().__init__(args, *positional, **keywords)
        self.dataset: str = args.dataset
        self.source: DatasetSource = args.source
        self.final_eval_episodes = 0
        self.eval_callback: RunEvalCallback | None = None
        self.final_result: EvaluationResult | None = None
        self.interrupt = StopOnInterrupt()
        #: What lines begin with that come between those of other runs.
        self.label = ""
        self._until_saved = contextlib.ExitStack()
        self._has_folder = False
        self.resumed: InterruptedRun | None = args.interrupted_run
        self._is_finished = False
        #: Timesteps that the agent of ``-i`` had behind it.
        self._first_timestep = 0
        if self.resumed is not None:
            self.save_path = str(self.resumed.folder)
            self.params_path = f"{self.save_path}/{self.env_name}"
            self._first_timestep = self.resumed.options.get("first_timestep", 0)
            if begins_with := self.resumed.checkpoint or self.resumed.options.get("trained_agent"):
                self.trained_agent, self.continue_training = str(begins_with), True
        #: To be typed again in the same folder.
        launcher = ["torchrun", "--nproc-per-node", str(ranks.world())] if ranks.is_joined() else ["python"]
        self.command = shlex.join([*launcher, "-m", "sb3_dmpo", "train", *args.argv])
        self.results: ResultsFile | None = None
        if args.results:
            self.results = ResultsFile(
                Path(args.results),
                {
                    "algorithm": self.algo,
                    "dataset": self.dataset,
                    "label": describe_data(self.dataset),
                    "seed": self.seed,
                    "command": self.command,
                    "commit": commit(),
                    "version": sb3_dmpo.__version__,
                    "env_steps": 0,
                },
                self.columns,
            )
            self.results.check()

    # Settings ---------------------------------------------------------------------------------------------------

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Settings for the dataset, with those of a study and of ``-params`` over them; values, and as they were written.

        :raises UsageError: no entry for the dataset, or a name that nobody knows
        """
        key, written = find_entry(self.config, self.dataset)
        print(f"Loading hyperparameters from: {self.config}, entry {key!r}")
        if self.storage and self.study_name and self.trial_id is not None:
            print("Loading from Optuna study...")
            trial = self.load_trial(self.storage, self.study_name, self.trial_id)
            written = with_trial(written, trial, self.custom_hyperparams or {})
        else:
            written.update(self.custom_hyperparams or {})
        hyperparams = parse_values(written)
        check_hyperparameters(hyperparams, ALGOS[self.algo], self.algo)
        self._refuse_contradictions(hyperparams)
        if self.env_kwargs:
            hyperparams["env_kwargs"] = self.env_kwargs
        if self.n_timesteps <= 0 and "n_timesteps" not in hyperparams:
            raise UsageError(f"{self.config} does not say how many updates to do (n_timesteps): use -n.")
        hyperparams.setdefault("n_timesteps", self.n_timesteps)
        if self.resumed is not None:
            self.resumed.check_config(dict(written), self.args)
        self._choose_protocol(hyperparams)
        # Without a state to go on from, the run begins again, and with it the file of its evaluations.
        if self.resumed is not None and self.resumed.checkpoint is not None and self.eval_freq > 0:
            check_episodes(self.resumed.folder, self.n_eval_episodes)
        print("Hyperparameters (those being tuned will be overridden, but for those of -params):")
        pprint(dict(sorted(written.items())))
        return hyperparams, OrderedDict(sorted(written.items()))

    def _refuse_contradictions(self, hyperparams: dict[str, Any]) -> None:
        """
        :param hyperparams: parsed settings
        :raises UsageError: an option says something else than ``-params``
        """
        options = {
            "n_timesteps": ("-n", self.n_timesteps if self.n_timesteps != -1 else None),
            "eval_freq": ("--eval-freq", self.eval_freq),
            "eval_episodes": ("--eval-episodes", self.n_eval_episodes),
            "env_kwargs": ("--env-kwargs", self.env_kwargs or None),
        }
        for key in self.custom_hyperparams or {}:
            option, value = options.get(key, ("", None))
            if value is not None and value != hyperparams[key]:
                raise UsageError(f"-params says {key}:{hyperparams[key]}, and {option} says {value}: leave one of them out.")

    def _choose_protocol(self, hyperparams: dict[str, Any]) -> None:
        """
        Frequency, episodes and environments of the evaluation: command line, config, the paper's, in this order.

        :param hyperparams: parsed settings
        :raises UsageError: fewer than one episode, or ``-params`` says something about evaluations that there will not be
        """
        typed = self.custom_hyperparams or {}
        # --eval-episodes is about all evaluations, unless -params says more about the last one.
        knows_last = "final_eval_episodes" in hyperparams and (self.n_eval_episodes is None or "final_eval_episodes" in typed)
        if self.n_eval_episodes is None:
            self.n_eval_episodes = int(hyperparams.get("eval_episodes", EVAL_EPISODES))
        self.final_eval_episodes = int(hyperparams["final_eval_episodes"]) if knows_last else self.n_eval_episodes
        if self.eval_freq is None:
            self.eval_freq = int(hyperparams.get("eval_freq", EVAL_FREQ))
        if self.n_eval_episodes < 1:
            raise UsageError("--eval-episodes has to be at least 1; --eval-freq -1 switches evaluation off.")
        self._refuse_unused(typed)
        if self.n_eval_envs is not None and self.n_eval_envs < 1:
            raise UsageError(f"--n-eval-envs is {self.n_eval_envs}, expected a whole number of at least 1.")
        if self.n_eval_envs is None:
            self.n_eval_envs = min(self.n_eval_episodes, _MAX_EVAL_ENVS)

    def _refuse_unused(self, typed: dict[str, Any]) -> None:
        """
        :param typed: settings of ``-params``
        :raises UsageError: one of them is about evaluations that there will not be
        """
        if self.optimize_hyperparameters:
            unused = {"eval_freq", "final_eval_episodes"}
            reason = "a search evaluates every trial --n-evaluations times, with --eval-episodes episodes: leave it out"
        elif self.eval_freq <= 0:
            unused = {"eval_episodes", "final_eval_episodes"}
            reason = (
                f"with an eval_freq of {self.eval_freq} nothing is evaluated: for a single evaluation, after the last update, "
                "give an --eval-freq larger than the number of updates"
            )
        else:
            return
        for key in typed:
            if key in unused:
                raise UsageError(f"-params says {key}:{typed[key]}, but {reason}.")

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        # Schedules of SB3 itself and plain floats: the zip must load where there is no rl_zoo3.
        for key, value in hyperparams.items():
            if key.endswith("learning_rate") and isinstance(value, str):
                kind, _, initial = value.partition("_")
                try:
                    if kind != "lin":
                        raise ValueError
                    hyperparams[key] = LinearSchedule(float(initial), 0.0, 1.0)
                except ValueError:
                    raise UsageError(f"{key} is {value!r}: write a number, or e.g. lin_3e-4 (falling to 0).") from None
        return hyperparams

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        check_classes(hyperparams)
        processed, *others = super()._preprocess_hyperparams(hyperparams)
        if self._eval_env_kwargs_args is None:
            self.eval_env_kwargs = self.env_kwargs
        arguments = {key: value for key, value in processed.items() if key == "policy" or key not in RUN_KEYS}
        arguments["dataset"] = self.source
        arguments["memory_map"] = self.args.memory_map
        arguments["clip_actions"] = self.args.clip_actions
        if self.args.dynamics:
            arguments["dynamics"] = self.args.dynamics
        if "policy" not in arguments:
            is_dict = isinstance(self.source.observation_space, spaces.Dict)
            arguments["policy"] = "MultiInputPolicy" if is_dict else "MlpPolicy"
        return (arguments, *others)

    # The run's folder, environments and model -------------------------------------------------------------------

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        Make folder, environments, callbacks and model.

        :raises UsageError: a value that the algorithm does not take
        """
        try:
            made = super().setup_experiment()
            if made is not None and isinstance(made[0], OfflineAlgorithm):
                made[0].check_ranks()
            return made
        except BaseException as error:
            self.discard()
            if isinstance(error, TypeError | ValueError) and not isinstance(error, DatasetError) and self.verbose < 2:
                raise UsageError(f"{self.algo} on {self.dataset}: {error}") from error
            raise

    def discard(self) -> None:
        """Remove the run's folder if this run has made it: it did not begin."""
        if self._has_folder:
            shutil.rmtree(self.save_path, ignore_errors=True)

    def create_log_folder(self) -> None:
        """Make the run's folder. A run that starts at the same moment gets another number, not the same folder."""
        if self.resumed is not None:
            return
        os.makedirs(self.log_path, exist_ok=True)
        run_id = get_latest_run_id(self.log_path, self.env_name)
        while not self._has_folder:
            run_id += 1
            self.save_path = os.path.join(self.log_path, f"{self.env_name}_{run_id}")
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.save_path)
                self._has_folder = True
        lock_run(Path(self.save_path), self.args.locks)
        self.params_path = f"{self.save_path}/{self.env_name}"
        os.mkdir(self.params_path)
        ranks.object_of_first(self.save_path)

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        Environments, which nobody steps but to evaluate and to fine-tune. Images stay as they are in the dataset.

        :param n_envs: how many
        :param eval_env: whether they are for evaluation
        :param no_log: ignored, there are no training episodes to log
        """
        with (
            swapped(self, seed=self.seed + (EVAL_SEED_OFFSET if eval_env else 0)),
            # rl_zoo3 turns images for convolutions unless they are turned already.
            swapped(rl_zoo3.exp_manager, is_vecenv_wrapped=lambda env, wrapper: True),
        ):
            return super().create_envs(n_envs, eval_env, no_log=True)

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        # rl_zoo3 would unpickle a vecnormalize.pkl that lies beside the agent to be continued.
        return env

    def create_callbacks(self) -> None:
        """Progress bar and checkpoints as in rl_zoo3, evaluation with normalised scores, and Ctrl-C."""
        with swapped(self, eval_freq=-1):
            super().create_callbacks()  # type: ignore[no-untyped-call]
        self.callbacks.append(self.interrupt)
        if self.optimize_hyperparameters:
            return
        self.progress_file = ProgressFile(Path(self.save_path) / "progress.csv")
        self.callbacks.append(self.progress_file)
        self.callbacks.append(SaveBeforeUpdates(Path(self.save_path)))
        self.eval_callback = self.make_eval_callback(self.save_path, self._on_result)
        if self.eval_callback is not None:
            self.callbacks.append(self.eval_callback)
        # Behind the evaluation of the same update: killed in it, the run goes on from before it, and evaluates again.
        self.callbacks.sort(key=lambda callback: isinstance(callback, CheckpointCallback))

    def make_eval_callback(self, folder: str, on_result: ResultHandler, n_envs: int = 1) -> RunEvalCallback | None:
        """
        The evaluation that the run's options ask for, in environments of its own; None if they ask for none.

        :param folder: where the best model and the evaluations go
        :param on_result: is called after every evaluation
        :param n_envs: timesteps between two calls of the callback
        """
        if self.eval_freq <= 0:
            return None
        knows_scores = reference_scores(self.source) is not None
        return RunEvalCallback(
            self.create_envs(self.n_eval_envs, eval_env=True),
            self.source if knows_scores else self.args.eval_env_id or self.source,
            self.final_eval_episodes,
            self.seed,
            on_result,
            best_model_save_path=folder,
            n_eval_episodes=self.n_eval_episodes,
            log_path=folder,
            eval_freq=max(self.eval_freq // n_envs, 1),
            deterministic=True,
            verbose=self.verbose,
        )

    def load_arguments(self) -> dict[str, Any]:
        """Arguments of ``load`` that are this run's own, whatever the zip says."""
        arguments = {"dataset": self.source, "memory_map": self.args.memory_map, "clip_actions": self.args.clip_actions}
        return arguments | {"device": self.device, "tensorboard_log": self.tensorboard_log, "verbose": self.verbose}

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        changed: dict[str, Any] = {}
        goes_on = self.resumed is not None and self.resumed.checkpoint is not None
        if goes_on:
            print(f"Resuming {self.trained_agent}")
            # A function is never imported because a file names it: here the config does.
            changed = {key: hyperparams[key] for key in ("termination_fn",) if key in hyperparams}
        else:
            print(f"Continuing {self.trained_agent}, with its own hyperparameters but for those of -params")
            changed = {key: hyperparams[key] for key in self.custom_hyperparams or {} if key in hyperparams}
        for key in ("policy", "policy_kwargs"):
            if key in changed:
                raise UsageError(f"{key!r} cannot be changed with -i: the networks are those of {self.trained_agent}.")
        try:
            if not goes_on and self.args.dynamics:
                changed["dynamics"] = self.args.dynamics
            if not goes_on and read_summary(self.trained_agent).attributes.get("seed") != self.seed:
                changed["seed"] = self.seed
            arguments = self.load_arguments() | changed
            model: BaseAlgorithm = ALGOS[self.algo].load(self.trained_agent, env=env, **arguments)
        except Exception as error:  # what goes wrong depends on what is in the file
            if isinstance(error, DatasetError):
                raise
            raise UsageError(f"{self.trained_agent} cannot be continued as {self.algo} on {self.dataset}: {error}") from error
        if not goes_on:
            self._first_timestep = model.num_timesteps
        return model

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if self.resumed is not None:
            print(f"Log path: {self.save_path}")
            return
        folder = Path(self.params_path)
        options = {key: value for key, value in vars(self.args).items() if key not in _NOT_OPTIONS}
        options["first_timestep"] = self._first_timestep
        for name, content in (("config.yml", saved_hyperparams), ("args.yml", options)):
            with atomic_write(folder / name) as file:
                file.write(yaml.safe_dump(as_yaml(dict(content))).encode("utf-8"))
        (folder / "command.txt").write_text(self.command, encoding="utf-8")
        print(f"Log path: {self.save_path}")

    # Training ---------------------------------------------------------------------------------------------------

    def learn(self, model: BaseAlgorithm) -> None:
        """
        Train, and evaluate at the end.

        :param model: the model
        """
        n_timesteps = self.n_timesteps
        if self.resumed is not None and self.resumed.checkpoint is not None:
            n_timesteps = max(n_timesteps + self._first_timestep - model.num_timesteps, 0)
            is_final = self.resumed.checkpoint.name == f"{self.env_name}.zip"
            # Of several processes the first one evaluates, and knows.
            self._is_finished = ranks.object_of_first(n_timesteps == 0 and is_final and self._is_evaluated(model))
            self._catch_up(model.num_timesteps)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.interrupt.listening())
            try:
                if not self._is_finished:
                    with can_begin(model, [self]):
                        self._learn_and_evaluate(model, n_timesteps)
            finally:
                # Until the model is saved, Ctrl-C must not come between.
                self.interrupt.note_only()
                self.close_environments(model)
            self._until_saved = stack.pop_all()

    def learn_arguments(self) -> dict[str, Any]:
        """Arguments of ``learn`` and ``learn_online`` that options give."""
        return {} if self.log_interval == -1 else {"log_interval": self.log_interval if self.log_interval > -1 else None}

    def close_environments(self, model: BaseAlgorithm) -> None:
        """
        Close those of the model and of the evaluation.

        :param model: the model
        """
        for env in (model.env, self.eval_callback.eval_env if self.eval_callback is not None else None):
            if env is not None:
                env.close()

    def close_progress_bars(self) -> None:
        """Let go of the screen after an interrupt."""
        for callback in self.callbacks:
            if hasattr(callback, "pbar"):
                callback.pbar.close()

    def _learn_and_evaluate(self, model: BaseAlgorithm, n_timesteps: int) -> None:
        is_new = not self.continue_training
        try:
            model.learn(n_timesteps, callback=self.callbacks, reset_num_timesteps=is_new, **self.learn_arguments())
            if self.eval_callback is not None and not self.interrupt.requested:
                self.final_result = self.eval_callback.evaluate_at_end()
        except KeyboardInterrupt:
            self.interrupt.requested = True
            self.close_progress_bars()

    def _is_evaluated(self, model: BaseAlgorithm) -> bool:
        """Whether the final evaluation of a model whose updates are done has been made: Ctrl-C may have come before it."""
        if self.eval_callback is None or not isinstance(model, OfflineAlgorithm):
            return True
        last = model.last_evaluation or {}
        return (last.get("updates"), last.get("n_episodes")) == (model._n_updates, self.final_eval_episodes)

    def _catch_up(self, timesteps: int) -> None:
        """
        Bring the callbacks to where they were: evaluations and checkpoints come at the same updates as before.

        :param timesteps: timesteps of the model so far
        """
        for callback in self.callbacks:
            callback.n_calls = timesteps - self._first_timestep
        if self.eval_callback is not None:
            self.eval_callback.restore_evaluations(timesteps)

    def _on_result(self, result: EvaluationResult, updates: int, is_final: bool) -> None:
        if self.verbose > 0:
            print(f"{self.label}Evaluation after {updates} updates: {score_line(result, with_source=False)}")
        self.write_result(result, is_final, self.progress_file, updates=updates)

    def write_result(self, result: EvaluationResult, is_final: bool, progress: ProgressFile, **columns: Any) -> None:
        """
        Append an evaluation to the results file, if one was asked for.

        :param result: the evaluation
        :param is_final: whether it is the last one of its stage
        :param progress: knows how long the stage has learned
        :param columns: further columns
        """
        if self.results is not None:
            columns["evaluation"] = "final" if is_final else "training"
            self.results.append(result, wall_seconds=f"{progress.wall_seconds():.1f}", **columns)

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Save the model and say where it is and how good it is.

        :param model: the model
        :raises KeyboardInterrupt: training was interrupted (after saving)
        """
        with self._until_saved:
            if not getattr(model, "has_learned", model.num_timesteps > 0):
                print("Interrupted before the first update: nothing to save.")
                raise KeyboardInterrupt
            if self._is_finished:
                path = f"{self.save_path}/{self.env_name}.zip"
                print(f"Model: {path} ({model.num_timesteps} updates) was finished before")
            else:
                super().save_trained_model(model)
                print(f"Model: {self.save_path}/{self.env_name}.zip ({model.num_timesteps} updates)")
            if self.interrupt.requested:
                raise KeyboardInterrupt
        if not self._is_finished:
            self._show(model)

    def _show(self, model: BaseAlgorithm) -> None:
        if self.final_result is not None:
            print(f"Score: {score_line(self.final_result)}{self._toy_failures(self.final_result)}")
        if self.env_name.gym_id == TOY_ENV_ID:
            self._draw_toy(model, self.final_eval_episodes if self.final_result is not None else EVAL_EPISODES)

    def _toy_failures(self, result: EvaluationResult) -> str:
        if self.env_name.gym_id != TOY_ENV_ID:
            return ""
        collisions, time_outs = (100 * float((result.returns == value).mean()) for value in (-1.0, 0.0))
        return f", collisions {collisions:.0f}%, time-outs {time_outs:.0f}%"

    def _draw_toy(self, model: BaseAlgorithm, n_episodes: int) -> None:
        try:
            from sb3_dmpo.plots.two_goals import plot_two_goals
        except ImportError:
            print("Figure: not drawn, matplotlib is missing (pip install 'sb3_dmpo[plots]')")
            return
        path = Path(self.save_path) / "two_goals.png"
        # The episodes of the last evaluation.
        seed = self.seed + EVAL_SEED_OFFSET
        plot_two_goals(model, path, title=type(model).__name__, n_trajectories=n_episodes, seed=seed, dataset=self.source)
        print(f"Figure: {path}")

    # Search -----------------------------------------------------------------------------------------------------

    def hyperparameters_optimization(self) -> None:
        """
        Search as rl_zoo3 does, and say now and then how far a trial is. Trials keep what the config and ``-params`` say.

        :raises UsageError: there is no completed trial to report
        :raises KeyboardInterrupt: it was interrupted (after the report)
        """
        HYPERPARAMS_SAMPLER[self.algo] = make_sampler(sb3_dmpo.ALGOS[self.algo], self._hyperparams, self.custom_hyperparams)
        try:
            with swapped(rl_zoo3.exp_manager, TrialEvalCallback=TrialProgress):
                super().hyperparameters_optimization()
        except ValueError as error:
            if "No trials are completed" not in str(error):
                raise
            if self.interrupt.requested:
                print("No trial was completed.")
                raise KeyboardInterrupt from None
            raise UsageError(
                "-optimize: no trial was completed (each was pruned, has failed or was interrupted), so that there is no best "
                "one. Let it run longer, with more trials (--n-trials) or without pruning (--pruner none)."
            ) from None
        finally:
            # Its report stands beside it, and enjoy would take it for the latest run.
            self.discard()
        if self.interrupt.requested:
            raise KeyboardInterrupt

    def _create_sampler(self, sampler_method: str) -> optuna.samplers.BaseSampler:
        # Started again with the same seed, it would repeat its trials.
        n_trials = count_trials(self.storage, self.study_name)
        seed = int(np.random.SeedSequence([self.seed, n_trials]).generate_state(1)[0]) if n_trials else self.seed
        with swapped(self, seed=seed):
            return super()._create_sampler(sampler_method)

    def objective(self, trial: optuna.Trial) -> float:
        """
        Score of one trial; a diverged one is pruned.

        :param trial: the trial
        :raises DatasetError: the data are at fault, which no other trial would mend
        """
        try:
            return super().objective(trial)
        except KeyboardInterrupt:
            # rl_zoo3 ends the search without a word.
            self.interrupt.requested = True
            raise
        except FloatingPointError as error:
            print(error)
            raise optuna.exceptions.TrialPruned() from error
        except optuna.TrialPruned as error:
            # For rl_zoo3 every ValueError is a trial that has diverged.
            if isinstance(error.__cause__, DatasetError):
                raise error.__cause__ from None
            raise


class _IgnoreInterrupt(StopOnInterrupt):
    """Goes on after Ctrl-C: process 0 hears it as well, and says when all end."""

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        pass


class FollowingManager(OfflineExperimentManager):
    """
    What a process does for a run that is not the first of several ones: its share of the updates, and nothing that is written.

    :param args: parsed options
    :param positional: as rl_zoo3's ``train`` passes them
    :param keywords: the same by name
    """

    def __init__(self, args: Any, *positional: Any, **keywords: Any) -> None:
        super().__init__(args, *positional, **keywords)
        self.interrupt = _IgnoreInterrupt()

    def create_log_folder(self) -> None:
        """Take over the folder of the first process."""
        if self.resumed is None:
            self.save_path = ranks.object_of_first("")
            self.params_path = f"{self.save_path}/{self.env_name}"

    def create_callbacks(self) -> None:
        """None."""
        self.callbacks = []

    def _refuse_contradictions(self, hyperparams: dict[str, Any]) -> None:
        # The first process does, with the options that were typed.
        pass

    def _choose_protocol(self, hyperparams: dict[str, Any]) -> None:
        # The first process evaluates.
        pass

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        pass

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Nothing.

        :param model: the model
        """
        self._until_saved.close()
