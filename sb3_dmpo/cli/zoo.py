"""
Everything that rl_zoo3 has to know about this package, and what of it must not run as it is.

``python -m sb3_dmpo.cli.zoo record_video --algo dmpo --env D4RL-pen-human-v2 -f logs`` runs a script of rl_zoo3 (here
``rl_zoo3.record_video``) with the algorithms and the environments of all local datasets registered.
"""

import argparse
import contextlib
import glob
import importlib
import os
import runpy
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium as gym
import torch as th
import yaml
from minari.storage import get_dataset_path

import sb3_dmpo
from sb3_dmpo.cli.checkpoints import checkpoints
from sb3_dmpo.cli.errors import Parser, UsageError, check_env_id, exit_code, import_packages, suggest
from sb3_dmpo.cli.literals import DistinctKeysLoader, StoreSettings, parse_value
from sb3_dmpo.common.arguments import SEED, check_device
from sb3_dmpo.data import open_dataset
from sb3_dmpo.data.minari import recorded_environment_spec
from sb3_dmpo.data.minari_download import local_dataset_ids
from sb3_dmpo.data.validation import UnboundedActionsError
from sb3_dmpo.envs import TWO_GOALS_DATASET_ID
from sb3_dmpo.envs.registration import register_environment

#: rl_zoo3 evaluates hyperparameters as Python in these modules.
_MODULES_WITH_EVAL = ("rl_zoo3.utils", "rl_zoo3.exp_manager")


class PlainLoader(DistinctKeysLoader):
    """Reads plain data, and the ordered dicts that stock rl_zoo3 writes into its logs. Never makes other objects."""

    def get_single_data(self) -> Any:
        """What the file says. A config may write the arguments of the environment as a text, ``dict(name=1)``."""
        data = super().get_single_data()
        if isinstance(data, dict) and isinstance(data.get("env_kwargs"), str):
            data["env_kwargs"] = parse_value(data["env_kwargs"])
        return data


def _ordered_dict(loader: yaml.SafeLoader, node: yaml.Node) -> dict[str, Any]:
    arguments = loader.construct_sequence(node, deep=True)
    return dict(arguments[0]) if arguments else {}


PlainLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered_dict)
PlainLoader.add_constructor("tag:yaml.org,2002:python/tuple", PlainLoader.construct_sequence)


@contextlib.contextmanager
def swapped(owner: Any, **values: Any) -> Iterator[None]:
    """
    Set attributes for the duration of a block.

    :param owner: module, class or object
    :param values: the attributes
    """
    previous = {name: vars(owner)[name] for name in values if name in vars(owner)}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in values:
            delattr(owner, name)
        for name, value in previous.items():
            setattr(owner, name, value)


def _glob_in_folder(pattern: str) -> list[str]:
    """
    Files whose names fit a pattern, in folders whose own names may hold brackets.

    :param pattern: only its last part may have brackets that mean something
    """
    folder, name = os.path.split(pattern)
    if name == "rl_model_*_steps.zip":
        # rl_zoo3 would take anything for a number.
        return [str(path) for path in checkpoints(Path(folder))]
    return glob.glob(os.path.join(folder.replace("[", "[[]"), name))


@contextlib.contextmanager
def prepared_zoo() -> Iterator[None]:
    """
    rl_zoo3 with our algorithms in its tables. While the block lasts it reads values and logs without executing them: it
    calls ``eval`` on hyperparameters, and YAML's unsafe loader on the files that it finds beside a model.
    """
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    from sb3_dmpo.cli.search import convert_params, make_sampler

    for name, algorithm in sb3_dmpo.ALGOS.items():
        ALGOS[name] = algorithm
        HYPERPARAMS_SAMPLER[name] = make_sampler(algorithm)
        HYPERPARAMS_CONVERTER[name] = convert_params
    with contextlib.ExitStack() as stack:
        stack.enter_context(swapped(yaml, UnsafeLoader=PlainLoader))
        # rl_zoo3 takes brackets in the names of log folders for patterns.
        zoo_utils = importlib.import_module("rl_zoo3.utils")
        stack.enter_context(swapped(zoo_utils, glob=SimpleNamespace(glob=_glob_in_folder)))
        for module in _MODULES_WITH_EVAL:
            # A module's own name goes before the builtin.
            stack.enter_context(swapped(importlib.import_module(module), eval=parse_value))
        yield


def _check_seed_and_device(options: argparse.Namespace) -> None:
    """
    Refuse what NumPy and PyTorch would not take once a folder is made.

    :param options: parsed options
    :raises UsageError: a seed too large, or a device that is not there
    """
    if options.seed is not None and not SEED.accepts(max(options.seed, 0)):
        raise UsageError(f"--seed {options.seed}: seeds are whole numbers up to {2**32 - 1}.")
    if options.device == "auto":
        return
    try:
        check_device(options.device)
        # The GPU's context is left to the model.
        if th.device(options.device).type != "cuda":
            th.zeros((), device=options.device).item()
    except ValueError as error:
        raise UsageError(f"--device {options.device}: {error}") from error
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {options.device} cannot be used here: write auto, cpu or e.g. cuda:0.") from error


def algorithm_name(name: str) -> str:
    """
    The name itself if it is an algorithm's.

    :param name: what was typed after ``--algo``
    :raises UsageError: unknown; the nearest are named
    """
    if name not in sb3_dmpo.ALGOS:
        raise UsageError(f"There is no algorithm {name!r}. {suggest(name, sb3_dmpo.ALGOS)}")
    return name


class ZooParser(Parser):
    """
    The parser that rl_zoo3's scripts fill with their options, with ours beside them.

    :param argv: arguments
    :param options: where the parsed options go, for those who are not rl_zoo3
    """

    #: What is different about options of rl_zoo3, by their long names.
    changes: ClassVar[dict[str, dict[str, Any]]] = {
        "--algo": {"choices": None, "type": algorithm_name, "default": "dmpo", "help": ", ".join(sb3_dmpo.ALGOS)},
        "--env": {"type": str, "default": None, "help": "environment to evaluate in, if not the one the dataset recorded"},
        **{name: {"action": StoreSettings} for name in ("--hyperparams", "--env-kwargs", "--eval-env-kwargs")},
    }

    def __init__(self, argv: Sequence[str], options: argparse.Namespace, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.argv = argv
        self.options = options
        self.add_argument("--dataset", help="Minari id, e.g. D4RL/pen/human-v2 (default: the TwoGoals toy)")

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """
        Add an option, as rl_zoo3 wants it or as ``changes`` says.

        :param args: the option's names
        :param kwargs: its properties
        """
        for name in args:
            kwargs |= self.changes.get(name, {})
        return super().add_argument(*args, **kwargs)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """
        Options of the command line, checked and made ready for rl_zoo3.

        :param args: rl_zoo3 passes none
        :param namespace: rl_zoo3 passes none
        :raises UsageError: an unknown option, or whatever is wrong with the known ones
        """
        options, unknown = self.parse_known_args(self.argv, self.options)
        if unknown:
            names = [name for action in self._actions for name in action.option_strings]
            raise UsageError(f"There is no option {unknown[0]!r}. {suggest(unknown[0], names)}")
        _check_seed_and_device(options)
        import_packages(options.gym_packages)
        self.prepare(options)
        return options

    @staticmethod
    def open_dataset(options: argparse.Namespace, is_stepped: bool) -> None:
        """
        Open the dataset, once for all that needs it (``source``), and register the environment to evaluate in (``env``;
        what was typed becomes ``eval_env_id``).

        :param options: the options, changed in place
        :param is_stepped: whether the environment is needed for more than its spaces
        :raises UsageError: there is no such environment, or the dataset knows none
        :raises DatasetError: the dataset is not there
        """
        options.dataset = options.dataset or TWO_GOALS_DATASET_ID
        options.eval_env_id = options.env
        if options.env is not None:
            check_env_id(options.env)
        download = getattr(options, "download", False)
        try:
            options.source = open_dataset(options.dataset, download=download)
        except UnboundedActionsError:
            if options.env is None:
                raise
            with contextlib.closing(gym.make(options.env)) as env:
                options.source = open_dataset(options.dataset, download=download, env=env)
        if options.env is None and is_stepped and recorded_environment_spec(options.source.metadata, eval_env=True) is None:
            raise UsageError(
                f"{options.dataset} knows no environment: name one with --env ID, or train without evaluation "
                "(--eval-freq -1)."
            )
        options.env = register_environment(options.source, options.env, is_stepped)

    def prepare(self, options: argparse.Namespace) -> None:
        """
        Make the parsed options ready for rl_zoo3.

        :param options: the options, changed in place
        """
        raise NotImplementedError()

    @classmethod
    def module(cls, argv: Sequence[str], options: argparse.Namespace) -> SimpleNamespace:
        """
        What stands in for the module ``argparse`` in a script of rl_zoo3.

        :param argv: as in the constructor
        :param options: as in the constructor
        """
        return SimpleNamespace(ArgumentParser=partial(cls, argv, options), Namespace=argparse.Namespace)


def run_script(argv: Sequence[str]) -> None:
    """
    Run a script of rl_zoo3.

    :param argv: its name (``record_video``, ``plots.all_plots``, ...) and its arguments
    :raises UsageError: no or an unknown name
    """
    scripts = {"benchmark", "enjoy", "plots.all_plots", "plots.plot_from_file", "plots.plot_train", "record_video", "train"}
    if not argv or argv[0] not in scripts:
        raise UsageError(f"Name a script of rl_zoo3. {suggest(argv[0] if argv else '', scripts)}")
    for dataset in local_dataset_ids(Path(get_dataset_path())):
        register_environment(dataset)
    with prepared_zoo(), swapped(sys, argv=list(argv)), warnings.catch_warnings():
        # The package has imported some of its scripts by then; running them a second time is what is wanted.
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        runpy.run_module(f"rl_zoo3.{argv[0]}", run_name="__main__")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run_script(sys.argv[1:]), "sb3_dmpo.cli.zoo"))
