"""
A grid of runs, on this machine or on a SLURM cluster: every algorithm on every dataset with every seed. Started again, the
same command skips what is finished and goes on with what is not. Options behind ``--`` are those of ``train``.
"""

import argparse
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_dmpo import ALGOS
from sb3_dmpo.cli.configs import check_hyperparameters, parse_values
from sb3_dmpo.cli.errors import Parser, UsageError
from sb3_dmpo.cli.literals import check_updates, parse_seeds, parse_settings
from sb3_dmpo.cli.sweep.jobs import Jobs, LocalJobs, SlurmJobs
from sb3_dmpo.cli.sweep.runs import PlannedRun, options_of_train
from sb3_dmpo.cli.zoo import algorithm_name
from sb3_dmpo.common.arguments import check_values
from sb3_dmpo.envs import TWO_GOALS_DATASET_ID

#: Time of a SLURM job where none is asked for.
DEFAULT_MINUTES = 24 * 60
#: Options of the grid, which a file of grids takes the place of.
_GRID_OPTIONS = {"--algos": "algos", "--datasets": "datasets", "--seeds": "seeds", "-n": "n_timesteps"}
_GRID_OPTIONS |= {"-params": "hyperparams", "--label": "label", "--vary": "vary"}


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = Parser(prog="sb3_dmpo sweep", description=__doc__, allow_abbrev=False)
    grid = parser.add_argument_group("the grid")
    grid.add_argument("--table", type=Path, metavar="FILE.yml", help="file of grids, instead of all other options of the grid")
    grid.add_argument("--algos", nargs="+", default=[], type=algorithm_name, metavar="ALGO")
    grid.add_argument("--datasets", nargs="+", default=[TWO_GOALS_DATASET_ID], metavar="ID", help="default: the toy")
    grid.add_argument("--seeds", nargs="+", default=["0"], metavar="SEED", help="numbers and ranges (0-4); default: 0")
    grid.add_argument("-n", "--n-timesteps", type=int, default=-1, help="updates of every run (default: as in the config)")
    grid.add_argument("-params", "--hyperparams", nargs="+", default=[], metavar="KEY:VALUE", help="hyperparameters to change")
    grid.add_argument("--label", default="", help="name of the changed setting in the results (default: the changes)")
    grid.add_argument(
        "--vary",
        nargs="+",
        action="append",
        default=[],
        metavar="KEY VALUE",
        help="also vary a hyperparameter: n_components 4 8 16 32; given more than once: all combinations",
    )
    runs = parser.add_argument_group("the runs")
    runs.add_argument("--folder", type=Path, default=Path("sweeps"), help="where runs and their state are kept")
    runs.add_argument(
        "--results",
        type=Path,
        metavar="FILE.csv",
        help="where all rows go, and those of the logs beside it (default: FOLDER/results.csv, FOLDER/results_training.csv)",
    )
    runs.add_argument("--save-freq", type=int, default=5000, help="updates between checkpoints")
    runs.add_argument("--retries", type=int, default=3, help="how often a run that dies is begun again")
    runs.add_argument("--threads", type=int, default=1, help="threads of every run")
    runs.add_argument("--dry-run", action="store_true", help="only print the commands and what they need")
    runs.add_argument(
        "--times", type=Path, metavar="FILE.csv", help="measured times for --dry-run (default: benchmarks/results/speed.csv)"
    )
    cluster = parser.add_argument_group("the machine")
    cluster.add_argument("--cluster", choices=("local", "slurm"), default="local")
    cluster.add_argument("--jobs", type=int, default=1, help="runs at a time")
    cluster.add_argument("--gpus", nargs="+", default=[], metavar="DEVICE", help="local: CUDA devices to divide")
    cluster.add_argument("--partition", help="SLURM: partition")
    cluster.add_argument("--time", type=minutes, help="SLURM: time of a job, minutes or HH:MM:SS; it goes on in another one")
    cluster.add_argument("--gres", help="SLURM: generic resources, e.g. gpu:1")
    cluster.add_argument("--mem", help="SLURM: memory, e.g. 4GB")
    cluster.add_argument("--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="SLURM: further options of sbatch")
    cluster.add_argument("--setup", nargs="+", default=[], metavar="COMMAND", help="SLURM: commands before the run")
    return parser


def check_grid(options: argparse.Namespace) -> None:
    """
    Refuse a grid that is not said, or said twice.

    :param options: parsed options
    :raises UsageError: ``--table`` and options that it stands for, or neither it nor ``--algos``
    """
    given = [option for option, name in _GRID_OPTIONS.items() if getattr(options, name) != make_parser().get_default(name)]
    if options.table is not None and given:
        raise UsageError(
            f"--table says what is run: leave out {', '.join(given)}, or write them into a copy of {options.table}."
        )
    if options.table is None and not options.algos:
        raise UsageError("Say what is to be run: --algos dmpo td3_bc, or --table FILE.yml.")


def minutes(text: str) -> int:
    """
    Minutes in a time as SLURM writes it.

    :param text: minutes, ``HH:MM:SS`` or ``D-HH:MM:SS``
    :raises argparse.ArgumentTypeError: it is neither
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if match:
        days, hours, mins, seconds = (int(part or 0) for part in match.groups())
        return (days * 24 + hours) * 60 + mins + (seconds > 0)
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither minutes nor HH:MM:SS")
    return int(text)


def _check_params(algo: str, params: Sequence[str]) -> None:
    """
    Refuse what every run with these settings would refuse.

    :param algo: name of the algorithm
    :param params: as after ``-params``
    :raises UsageError: a name that nobody knows, or a value that is out of its range
    """
    typed = parse_values(parse_settings(params))
    check_hyperparameters(typed, ALGOS[algo], algo)
    # A schedule is still a text, e.g. lin_3e-4; the run makes it.
    plain = {name: value for name, value in typed.items() if not (name.endswith("learning_rate") and isinstance(value, str))}
    try:
        check_values(ALGOS[algo], plain)
    except ValueError as error:
        raise UsageError(str(error)) from None


def make_grid(options: argparse.Namespace, arguments: Sequence[str]) -> list[PlannedRun]:
    """
    The grid: all seeds of a setting beside each other, so that means come early.

    :param options: parsed options
    :param arguments: options of ``train``
    :raises UsageError: an option that makes no sense
    """
    check_updates(options.n_timesteps)
    options_of_train(tuple(arguments))
    if any(len(varied) < 2 for varied in options.vary):
        raise UsageError("--vary needs a hyperparameter and its values, e.g. --vary n_components 4 8 16 32.")
    changes = list(itertools.product(*([f"{key}:{value}" for value in values] for key, *values in options.vary)))
    for algo, change in itertools.product(options.algos, changes):
        _check_params(algo, (*options.hyperparams, *change))
    runs = []
    for dataset in options.datasets:
        for algo in options.algos:
            for change in changes:
                params = (*options.hyperparams, *change)
                varied = ",".join(item.replace(":", "=", 1) for item in (change if options.label else params))
                label = ",".join(part for part in (options.label, varied) if part)
                runs += [
                    PlannedRun(algo, dataset, seed, options.n_timesteps, params, label, tuple(arguments))
                    for seed in parse_seeds(options.seeds)
                ]
    return runs


def make_jobs(options: argparse.Namespace) -> Jobs:
    """
    Where the runs are done.

    :param options: parsed options
    :raises UsageError: it is not there
    """
    folder = options.folder / "submitit"
    if options.cluster == "local":
        return LocalJobs(folder, options.jobs, options.gpus)
    further: dict[str, Any] = {}
    for item in options.slurm:
        key, separator, value = item.partition("=")
        if not separator:
            raise UsageError(f"--slurm {item}: write KEY=VALUE, e.g. --slurm account=lab constraint=a100.")
        further[key] = value
    parameters = {
        "timeout_min": options.time or DEFAULT_MINUTES,
        "cpus_per_task": options.threads,
        "slurm_partition": options.partition,
        "slurm_gres": options.gres,
        "slurm_mem": options.mem,
        "slurm_setup": options.setup or None,
        "slurm_additional_parameters": further or None,
    }
    return SlurmJobs(folder, options.jobs, parameters)
