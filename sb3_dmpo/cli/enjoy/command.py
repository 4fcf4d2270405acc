"""Watch and score a trained model, through rl_zoo3's ``enjoy()``."""

import argparse
import contextlib
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym

import sb3_dmpo
from sb3_dmpo.cli.configs import REFUSED_KEYS
from sb3_dmpo.cli.enjoy.record import EpisodeCounter, RecordingEnv, choose_renderer, has_display
from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.free_name import free_name
from sb3_dmpo.cli.literals import read_yaml
from sb3_dmpo.cli.results import score_line
from sb3_dmpo.cli.zoo import PlainLoader, ZooParser, prepared_zoo, swapped
from sb3_dmpo.common.arguments import SEED
from sb3_dmpo.data import load_transitions
from sb3_dmpo.data.validation import check_environment
from sb3_dmpo.envs import TWO_GOALS_DATASET_ID
from sb3_dmpo.envs.registration import environment_name
from sb3_dmpo.files.save_util import check_writable
from sb3_dmpo.plots.common import METHOD_NAMES, raw_observations, some_of


class EnjoyParser(ZooParser):
    """Options of ``enjoy``: those of rl_zoo3, the dataset, and the number of episodes."""

    changes: ClassVar[dict[str, dict[str, Any]]] = {
        **ZooParser.changes,
        "--folder": {"default": "logs"},
        "--n-timesteps": {"default": None, "help": "number of steps (instead of --episodes)"},
        "--seed": {"default": None, "help": "of the episodes (default: the run's, which repeats its last evaluation)"},
    }

    def __init__(self, argv: Sequence[str], options: argparse.Namespace) -> None:
        super().__init__(argv, options, prog="sb3_dmpo enjoy", description=__doc__)
        self.add_argument("--episodes", type=int, default=None, help="number of episodes (default: 10; of a video: 2)")
        self.add_argument(
            "--record",
            nargs="?",
            const="",
            metavar="FILE.mp4",
            help="write a video, with what the sub-policies are worth beside the picture (default: in the run's folder)",
        )

    def prepare(self, options: argparse.Namespace) -> None:
        """
        Find the run and its environment before anything is loaded.

        :param options: the options, changed in place
        :raises UsageError: there is no such run
        :raises DatasetError: the dataset, which knows the environment, is not there
        """
        from huggingface_sb3 import EnvironmentName  # type: ignore[import-untyped]

        _check_lengths(options)
        if options.seed is not None and options.seed < 0:
            raise UsageError(f"--seed {options.seed}: the seed of the episodes is a whole number from 0.")
        options.dataset = options.dataset or TWO_GOALS_DATASET_ID
        name = EnvironmentName(environment_name(options.dataset))
        run_folder = Path(_run_folder(options, name))
        of_run = _options_of_run(run_folder / name)
        options.env = options.env or of_run.get("eval_env_id")
        options.env_kwargs = {**of_run["env_kwargs"], **(options.env_kwargs or {})}
        if options.seed is None:
            seed = of_run.get("seed")
            options.seed = seed if seed is not None and SEED.accepts(seed) else 0
        self.open_dataset(options, is_stepped=True)
        options.env = EnvironmentName(options.env)
        if options.n_timesteps is None:
            options.episodes = options.episodes or (10 if options.record is None else 2)
            # rl_zoo3 counts steps; this many are never reached, and no progress bar can show them.
            options.n_timesteps, options.progress = sys.maxsize, False
        if options.record is not None:
            self._prepare_recording(options, run_folder / "videos" / f"{options.algo}.mp4")
        elif not options.no_render and not has_display():
            print("There is no display: running without rendering (--no-render).")
            options.no_render = True

    @staticmethod
    def _prepare_recording(options: argparse.Namespace, default: Path) -> None:
        options.record = free_name(Path(options.record or default))
        if options.record.suffix != ".mp4":
            raise UsageError(f"--record {options.record} has to end in .mp4.")
        if options.n_envs != 1:
            raise UsageError("--record shows a single environment: leave --n-envs at 1.")
        if importlib.util.find_spec("imageio_ffmpeg") is None:
            raise UsageError("--record needs imageio-ffmpeg, which is missing: pip install imageio-ffmpeg.")
        check_writable(options.record)
        choose_renderer()
        options.no_render = True
        options.env_kwargs["render_mode"] = "rgb_array"


def _check_lengths(options: argparse.Namespace) -> None:
    """
    :param options: the options
    :raises UsageError: fewer than one episode, step or environment, or both episodes and steps
    """
    for option, value in (("--episodes", options.episodes), ("-n", options.n_timesteps), ("--n-envs", options.n_envs)):
        if value is not None and value < 1:
            raise UsageError(f"{option} {value}: expected a whole number of at least 1.")
    if options.episodes is not None and options.n_timesteps is not None:
        raise UsageError("--episodes and -n both say how long to go on: leave one of them out.")


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
        if os.path.isdir(options.folder) and not os.access(options.folder, os.R_OK | os.X_OK):
            found = f"You may not read {options.folder}"
        raise UsageError(
            f"{error}. {found} (other folders: -f, other runs: --exp-id, unfinished ones: --load-last-checkpoint)."
        ) from error
    return folder


def _options_of_run(folder: Path) -> dict[str, Any]:
    """
    The options that a run was trained with; ``env_kwargs`` are those of the environments that it was evaluated in.

    :param folder: where rl_zoo3 keeps the settings of the run
    :raises UsageError: they cannot be read, are no plain data, or ask for what rl_zoo3 would unpickle or import
    """
    if not folder.is_dir():
        # The model was saved by a program, not by `train`.
        return {"env_kwargs": {}}
    found = []
    for name in ("config.yml", "args.yml"):
        try:
            found.append(read_yaml(folder / name, PlainLoader))
        except UsageError as error:
            raise UsageError(f"The settings of the run in {folder} cannot be read: {name}: {error}") from error
    settings, options = found
    if not isinstance(settings, dict) or not isinstance(options, dict):
        raise UsageError(f"The settings of the run in {folder} are no tables.")
    for key in REFUSED_KEYS:
        if settings.get(key):
            raise UsageError(f"The run in {folder} uses {key!r}: {REFUSED_KEYS[key]}.")
    env_kwargs = options.get("eval_env_kwargs") or options.get("env_kwargs") or settings.get("env_kwargs") or {}
    if not isinstance(env_kwargs, dict):
        raise UsageError(f"The settings of the run in {folder} have the env_kwargs {env_kwargs!r}, which are no table.")
    return {**options, "env_kwargs": env_kwargs}


def run(argv: Sequence[str]) -> None:
    """
    Run a trained model as the command line says.

    :param argv: arguments
    :raises UsageError: what was asked for cannot be done
    """
    import rl_zoo3.enjoy
    from rl_zoo3.exp_manager import ExperimentManager
    from rl_zoo3.utils import create_test_env

    options = argparse.Namespace()
    counters: list[EpisodeCounter] = []

    def make_counter(env_fns: list[Callable[[], gym.Env[Any, Any]]], **kwargs: Any) -> EpisodeCounter:
        if options.record is None:
            counters.append(EpisodeCounter(env_fns, options.episodes, options.seed))
        else:
            title = f"{METHOD_NAMES[options.algo]} on {environment_name(options.dataset)}"
            counters.append(RecordingEnv(env_fns, options.episodes, options.seed, options.record, title))
        return counters[-1]

    class Loader:
        """Stands in for the algorithm, so that the recording knows which model acts."""

        @staticmethod
        def load(*args: Any, **kwargs: Any) -> Any:
            model = sb3_dmpo.ALGOS[options.algo].load(*args, **kwargs)
            if isinstance(counters[-1], RecordingEnv):
                counters[-1].model = model
                policy: Any = model.policy
                if hasattr(policy, "acts_as_one"):
                    seen = some_of(load_transitions(options.source, progress_bar=False).observations)
                    counters[-1].overlay.is_one = policy.acts_as_one(raw_observations(model.observation_space, seen))
            return model

    def make_env(*args: Any, **kwargs: Any) -> Any:
        try:
            # rl_zoo3 would add those of the training, which may be others.
            env = create_test_env(*args, **{**kwargs, "env_kwargs": options.env_kwargs})
        except (TypeError, ValueError) as error:
            raise UsageError(f"{environment_name(options.dataset)} cannot be made: {error}") from error
        check_environment(options.dataset, options.source.observation_space, options.source.action_space, env)
        return env

    stand_ins = {"ALGOS": dict.fromkeys(sb3_dmpo.ALGOS, Loader), "create_test_env": make_env}
    with (
        prepared_zoo(),
        swapped(rl_zoo3.enjoy, argparse=EnjoyParser.module(argv, options), **stand_ins),
        swapped(ExperimentManager, default_vec_env_cls=make_counter),
    ):
        rl_zoo3.enjoy.enjoy()
    if options.record is not None:
        print(f"Video: {options.record}")
    result = counters[0].result(options.source, options.eval_env_id)
    print(f"Score: {score_line(result)}" if result is not None else "Score: no episode has ended (raise --n-timesteps)")
