"""Train an offline algorithm on a dataset, through rl_zoo3's ``train()``."""

import argparse
import contextlib
import importlib.util
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

import sb3_dmpo
from sb3_dmpo.cli.configs import config_path, load_config
from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.literals import check_updates, parse_seeds
from sb3_dmpo.cli.search import check_search
from sb3_dmpo.cli.train.exp_manager import FollowingManager, OfflineExperimentManager
from sb3_dmpo.cli.train.finetune import FineTuningManager, finetune_settings
from sb3_dmpo.cli.train.resume import find_run
from sb3_dmpo.cli.train.seeds import SeveralSeedsManager
from sb3_dmpo.cli.zoo import ZooParser, prepared_zoo, swapped
from sb3_dmpo.common import ranks
from sb3_dmpo.common.arguments import constructor_arguments
from sb3_dmpo.files.safe_zip import DamagedFileError, UnsafeFileError
from sb3_dmpo.hub.summary import read_summary

#: Options that belong to a single run, and what to do instead.
_SINGLE_RUN = {
    "resume": ("--resume", "finish the runs one by one, with --seed N --resume"),
    "finetune": ("--finetune", "train them first, then fine-tune one by one, with --seed N --resume --finetune N"),
    "trained_agent": ("-i", "a model that is continued has a seed of its own"),
    "optimize_hyperparameters": ("-optimize", "search with a single seed"),
    "track": ("--track", "track the runs one by one, with --seed N"),
}
#: Options that belong to a single process, and what to do instead.
_ONE_PROCESS = {
    "seeds": ("--seeds", "train the seeds one by one, or all of them in one process"),
    "finetune": ("--finetune", "train first, then fine-tune in one process, with --resume --finetune N"),
    "optimize_hyperparameters": ("-optimize", "start workers one by one, which share a study by --storage and --study-name"),
}
#: Options of a process that only does its share of the updates: nothing is written, evaluated or shown.
_FOLLOWER: dict[str, Any] = {
    **{"results": "", "tensorboard_log": "", "progress": False, "track": False, "verbose": 0},
    **{"eval_freq": -1, "save_freq": -1},
}
_SEVERAL_PROCESSES = """
Several processes train one model together, each with its share of the data and of every minibatch:
torchrun --nproc-per-node 2 -m sb3_dmpo train --algo dmpo --dataset D4RL/pen/human-v2
"""


class TrainParser(ZooParser):
    """Options of ``train``: those of rl_zoo3, the dataset, and where to write results."""

    changes: ClassVar[dict[str, dict[str, Any]]] = {
        **ZooParser.changes,
        "--n-timesteps": {"help": "number of updates (default: as in the config)"},
        "--log-interval": {"help": "updates (with --finetune, then episodes) between two logs; -1: the usual ones, -2: none"},
        "--eval-freq": {"default": None, "help": "evaluate every n updates (default: config, else 5000; -1: no evaluation)"},
        "--eval-episodes": {"default": None, "help": "episodes of an evaluation (default: config, else 10)"},
        "--n-eval-envs": {"default": None, "help": "environments run at once (default: as many as episodes, up to 10)"},
        "--conf-file": {"help": "hyperparameters by dataset (default: zoo_configs/<algo>.yml)"},
        "--trained-agent": {"help": "zip to continue: its counters, networks and hyperparameters go on"},
    }

    def __init__(self, argv: Sequence[str], options: argparse.Namespace) -> None:
        super().__init__(argv, options, prog="sb3_dmpo train", description=__doc__, epilog=_SEVERAL_PROCESSES)
        self.add_argument("--download", action="store_true", help="fetch the dataset through Minari if it is not there")
        self.add_argument("--clip-actions", action="store_true", help="clip actions outside the bounds, and say how many")
        self.add_argument("--memory-map", action="store_true", help="leave the data on disk: for more than fits into memory")
        self.add_argument(
            "--resume", action="store_true", help="finish the newest run of this algorithm, dataset and seed, in its folder"
        )
        self.add_argument("--finetune", type=int, default=0, metavar="N", help="then learn for N steps in the environment")
        self.add_argument(
            "--finetune-params",
            nargs="+",
            default=[],
            metavar="NAME:VALUE",
            help="e.g. online_ratio:0.5 noise_std:0.1 n_envs:1",
        )
        self.add_argument(
            "--seeds",
            nargs="+",
            metavar="SEED",
            help="instead of --seed: train these at once, e.g. 0-4 or 0,2,5; each ends as its own run would",
        )
        self.add_argument(
            "--dynamics",
            default="",
            metavar="MODEL.zip",
            help="maple: take the fitted ensemble of another run on the same data",
        )
        self.add_argument("--results", default="", metavar="FILE.csv", help="append a row for every evaluation")

    def prepare(self, options: argparse.Namespace) -> None:
        """
        Find the dataset, its environment and its config before anything is made.

        :param options: the options, changed in place
        :raises UsageError: something that was asked for is not there
        :raises DatasetError: the dataset is not there
        """
        check_updates(options.n_timesteps)
        if options.log_interval == 0:
            raise UsageError("--log-interval 0: it has to be at least 1; -2 logs nothing.")
        if ranks.is_joined():
            self._check_ranks(options)
        if options.seeds is not None:
            self._check_seeds(options)
        options.finetune_params = finetune_settings(options)
        if options.memory_map and options.finetune > 0:
            raise UsageError("--finetune adds transitions to the data, and --memory-map leaves those on disk: choose one.")
        if options.dynamics and "dynamics" not in constructor_arguments(sb3_dmpo.ALGOS[options.algo]):
            raise UsageError(f"--dynamics: {options.algo} fits no ensemble of dynamics, maple does.")
        if options.dynamics and not os.path.isfile(options.dynamics):
            raise UsageError(f"--dynamics {options.dynamics} is no file: name the zip of a MAPLE model.")
        options.argv = list(self.argv)
        is_evaluated = options.eval_freq is None or options.eval_freq > 0 or options.optimize_hyperparameters
        with ranks.first_alone():
            self.open_dataset(options, is_stepped=is_evaluated or options.finetune > 0)
        options.conf_file = options.conf_file or str(config_path(options.algo))
        load_config(options.conf_file)
        if options.trained_agent:
            self._check_trained_agent(options)
        options.interrupted_run = None
        if options.resume:
            self._find_interrupted_run(options)
        if options.save_replay_buffer:
            raise UsageError("--save-replay-buffer is of no use: the replay buffer is the dataset.")
        if options.uuid:
            raise UsageError(
                "-uuid is of no use: every run has a numbered folder of its own, also of those begun at the same moment."
            )
        if options.optimize_hyperparameters and importlib.util.find_spec("pandas") is None:
            raise UsageError("rl_zoo3 writes the report of -optimize with pandas, which is missing: pip install pandas.")
        check_search(options)
        if ranks.is_joined() and options.seed < 0:
            options.seed = ranks.object_of_first(int(np.random.randint(2**32 - 1)))
        if ranks.rank() > 0:
            vars(options).update(_FOLLOWER)

    @staticmethod
    def _check_ranks(options: argparse.Namespace) -> None:
        for name, (option, remedy) in _ONE_PROCESS.items():
            if getattr(options, name):
                raise UsageError(f"{option} does not go with torchrun: {remedy}.")

    @staticmethod
    def _check_seeds(options: argparse.Namespace) -> None:
        if options.seed >= 0:
            raise UsageError("--seed and --seeds exclude each other: choose one.")
        for name, (option, remedy) in _SINGLE_RUN.items():
            if getattr(options, name):
                raise UsageError(f"{option} does not go with --seeds: {remedy}.")
        options.seeds = parse_seeds(options.seeds)
        options.seed = options.seeds[0]

    @staticmethod
    def _find_interrupted_run(options: argparse.Namespace) -> None:
        if options.trained_agent or options.optimize_hyperparameters:
            raise UsageError("--resume finishes a run: it goes neither with -i nor with -optimize.")
        run = None
        if ranks.rank() == 0:
            run = find_run(options.log_folder, options.algo, options.env, options.dataset, options.seed, options.locks)
        run = ranks.object_of_first(run)
        if run is None:
            print(f"--resume: no run of {options.algo} on {options.dataset} under {options.log_folder}, beginning one.")
            return
        options.interrupted_run, options.seed = run, run.seed

    @staticmethod
    def _check_trained_agent(options: argparse.Namespace) -> None:
        path = options.trained_agent
        if not path.endswith(".zip") or not os.path.isfile(path):
            raise UsageError(f"-i {path} is no zip file of a model.")
        try:
            seed = read_summary(path).attributes.get("seed")
        except (OSError, DamagedFileError, UnsafeFileError) as error:
            what = str(error).removeprefix(f"{path}: ")
            raise UsageError(f"-i {path} is no zip file of a model: {what}") from error
        if options.seed < 0 and isinstance(seed, int):
            options.seed = seed


@contextlib.contextmanager
def quiet_follower() -> Iterator[None]:
    """What several processes would say alike, process 0 says alone; errors are everybody's own."""
    if ranks.rank() == 0:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def run(argv: Sequence[str]) -> None:
    """
    Train as the command line says.

    :param argv: arguments
    :raises UsageError: what was asked for cannot be done
    """
    import rl_zoo3.train

    def manager(args: argparse.Namespace, *positional: Any, **keywords: Any) -> OfflineExperimentManager | SeveralSeedsManager:
        if ranks.rank() > 0:
            return FollowingManager(args, *positional, **keywords)
        if args.seeds is not None:
            return SeveralSeedsManager(args, *positional, **keywords)
        return (FineTuningManager if args.finetune else OfflineExperimentManager)(args, *positional, **keywords)

    locks = contextlib.ExitStack()
    parser = TrainParser.module(argv, argparse.Namespace(locks=locks))
    with (
        ranks.joined(),
        quiet_follower(),
        locks,
        prepared_zoo(),
        swapped(rl_zoo3.train, ExperimentManager=manager, argparse=parser),
    ):
        rl_zoo3.train.train()
