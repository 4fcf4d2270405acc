"""Watch and score a trained model, through rl_zoo3's ``enjoy()``."""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import yaml
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dmpo.cli.configs import REFUSED_KEYS
from sb3_dmpo.cli.environments import environment_name, register_environment
from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.results import score_line
from sb3_dmpo.cli.zoo import PlainLoader, ZooParser, prepared_zoo, swapped
from sb3_dmpo.common.evaluation import EvaluationResult, reference_scores
from sb3_dmpo.envs import TWO_GOALS_DATASET_ID, make_two_goals_dataset


class EpisodeCounter(DummyVecEnv):
    """
    Environments that remember how their episodes went, and end rl_zoo3's loop (as Ctrl-C does) after enough of them.

    :param env_fns: makers of the environments
    :param limit: number of episodes; None: no limit
    """

    def __init__(self, env_fns: list[Callable[[], gym.Env[Any, Any]]], limit: int | None) -> None:
        super().__init__(env_fns)
        self.limit = limit
        self.episodes: list[dict[str, Any]] = []

    def step_async(self, actions: np.ndarray) -> None:
        """
        Take the actions.

        :param actions: one for every environment
        :raises KeyboardInterrupt: all episodes have been run
        """
        if self.limit is not None and len(self.episodes) >= self.limit:
            raise KeyboardInterrupt
        super().step_async(actions)

    def step_wait(self) -> Any:
        """Do the step."""
        observations, rewards, dones, infos = super().step_wait()
        for done, info in zip(dones, infos, strict=True):
            if done:
                self.episodes.append({**info["episode"], "is_success": info.get("is_success")})
        return observations, rewards, dones, infos

    def result(self, dataset: str, env_id: str | None) -> EvaluationResult | None:
        """
        What the episodes so far amount to, None if none has ended.

        :param dataset: Minari id, for reference scores
        :param env_id: the environment, if it is not the dataset's
        """
        if not self.episodes:
            return None
        successes = [episode["is_success"] for episode in self.episodes]
        return EvaluationResult(
            returns=np.array([episode["r"] for episode in self.episodes], np.float64),
            lengths=np.array([episode["l"] for episode in self.episodes], np.int64),
            successes=None if None in successes else np.array(successes, np.bool_),
            reference=reference_scores(dataset, env_id),
        )


class EnjoyParser(ZooParser):
    """Options of ``enjoy.py``: those of rl_zoo3, the dataset, and the number of episodes."""

    changes: ClassVar[dict[str, dict[str, Any]]] = {
        **ZooParser.changes,
        "--folder": {"default": "logs"},
        "--n-timesteps": {"default": None, "help": "number of steps (instead of --episodes)"},
    }

    def __init__(self, argv: Sequence[str] | None, options: argparse.Namespace) -> None:
        super().__init__(argv, options, prog="enjoy.py", description=__doc__)
        self.add_argument("--episodes", type=int, default=10, help="number of episodes (default: 10)")

    def prepare(self, options: argparse.Namespace) -> None:
        """
        Find the run and its environment before anything is loaded.

        :param options: the options, changed in place
        :raises UsageError: there is no such run
        :raises DatasetError: the dataset, which knows the environment, is not there
        """
        from huggingface_sb3 import EnvironmentName  # type: ignore[import-untyped]

        if options.dataset in (None, TWO_GOALS_DATASET_ID):
            options.dataset = TWO_GOALS_DATASET_ID
            make_two_goals_dataset()
        name = EnvironmentName(environment_name(options.dataset))
        trained_with = _options_of_run(Path(_run_folder(options, name)) / name)
        options.eval_env_id = options.env or trained_with.get("eval_env_id")
        options.env = EnvironmentName(register_environment(options.dataset, options.eval_env_id))
        if options.n_timesteps is None:
            # rl_zoo3 counts steps; this many are never reached, and no progress bar can show them.
            options.n_timesteps, options.progress = sys.maxsize, False
        else:
            options.episodes = None
        if not options.no_render and not _has_display():
            print("There is no display: running without rendering (--no-render).")
            options.no_render = True


def _run_folder(options: argparse.Namespace, name: Any) -> str:
    """
    Folder of the run that is meant, by rl_zoo3's own search.

    :param options: the options
    :param name: environment of the run
    :raises UsageError: there is none
    """
    from rl_zoo3.utils import get_model_path

    which = (options.load_best, options.load_checkpoint, options.load_last_checkpoint)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _, _, folder = get_model_path(options.exp_id, options.folder, options.algo, name, *which)
    except (AssertionError, ValueError, OSError) as error:
        runs = sorted(path.name for path in Path(options.folder).glob("*/*_*") if path.is_dir())
        found = f"Runs in {options.folder}: {', '.join(runs)}" if runs else f"There are no runs in {options.folder}"
        raise UsageError(
            f"{error}. {found} (other folders: -f, other runs: --exp-id, unfinished ones: --load-last-checkpoint)."
        ) from error
    return folder


def _options_of_run(folder: Path) -> dict[str, Any]:
    """
    The options that a run was trained with.

    :param folder: where rl_zoo3 keeps the settings of the run
    :raises UsageError: they are not there, are no plain data, or ask for what rl_zoo3 would unpickle or import
    """
    try:
        settings, options = (
            # A subclass of yaml.SafeLoader.
            yaml.load((folder / name).read_text(encoding="utf-8"), Loader=PlainLoader)
            for name in ("config.yml", "args.yml")
        )
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"The settings of the run in {folder} cannot be read: {error}") from error
    if not isinstance(settings, dict) or not isinstance(options, dict):
        raise UsageError(f"The settings of the run in {folder} are no tables.")
    for key in REFUSED_KEYS:
        if settings.get(key):
            raise UsageError(f"The run in {folder} uses {key!r}: {REFUSED_KEYS[key]}.")
    return options


def _has_display() -> bool:
    return not sys.platform.startswith("linux") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def run(argv: Sequence[str] | None = None) -> None:
    """
    Run a trained model as the command line says.

    :param argv: arguments; None: those of the process
    :raises UsageError: what was asked for cannot be done
    """
    import rl_zoo3.enjoy
    from rl_zoo3.exp_manager import ExperimentManager

    options = argparse.Namespace()
    counters: list[EpisodeCounter] = []

    def make_counter(env_fns: list[Callable[[], gym.Env[Any, Any]]], **kwargs: Any) -> EpisodeCounter:
        counters.append(EpisodeCounter(env_fns, options.episodes))
        return counters[-1]

    with (
        prepared_zoo(),
        swapped(rl_zoo3.enjoy, argparse=EnjoyParser.module(argv, options)),
        swapped(ExperimentManager, default_vec_env_cls=make_counter),
    ):
        rl_zoo3.enjoy.enjoy()
    result = counters[0].result(options.dataset, options.eval_env_id)
    print(f"Score: {score_line(result)}" if result is not None else "Score: no episode has ended (raise --n-timesteps)")
