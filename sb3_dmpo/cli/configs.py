"""Hyperparameters by dataset: finding the entry of a config, and checking its names before any work."""

import collections.abc
import importlib
import re
import runpy
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy

import sb3_dmpo
from sb3_dmpo.cli.errors import UsageError, suggest
from sb3_dmpo.cli.literals import parse_value, read_yaml
from sb3_dmpo.common.arguments import constructor_arguments
from sb3_dmpo.data.tasks import entry_keys

#: Keys of an entry that are for the command line, with the types of their values; all others are arguments of the algorithm.
RUN_KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    "n_timesteps": ((int,), "a whole number, at least 1"),
    "eval_freq": ((int,), "a whole number of updates; -1: no evaluation"),
    "eval_episodes": ((int,), "a whole number, at least 1"),
    "final_eval_episodes": ((int,), "a whole number, at least 1"),
    "policy": ((str,), "the name of a policy"),
    "env_kwargs": ((dict,), "arguments of the environment, e.g. dict(name=1)"),
    "callback": ((str, dict, list, BaseCallback), "the path of a callback, e.g. 'package.module.Class', or a list of them"),
    "monitor_kwargs": ((dict,), "arguments of SB3's Monitor, e.g. dict(info_keywords=('name',))"),
}

#: Arguments of the algorithms that belong to a run, with the option that sets them.
RUN_OPTIONS = {
    "env": "--env",
    "dataset": "--dataset",
    "download": "--download",
    "memory_map": "--memory-map",
    "clip_actions": "--clip-actions",
    "seed": "--seed",
    "device": "--device",
    "dynamics": "--dynamics",
    "verbose": "--verbose",
    "tensorboard_log": "--tensorboard-log",
}

_THE_DATASET_DECIDES = (
    "the dataset fixes what observations and actions are, so nothing may change them between it and the policy"
)
#: Keys of rl_zoo3 that make no sense here, and why.
REFUSED_KEYS = {
    "normalize": "observations are scaled inside the policy by the dataset's statistics (normalize_observations), which "
    "VecNormalize could not learn: it would freeze on the only observation it ever sees",
    "frame_stack": _THE_DATASET_DECIDES,
    "env_wrapper": _THE_DATASET_DECIDES,
    "vec_env_wrapper": _THE_DATASET_DECIDES,
    "n_envs": "no environment is used for training; --n-eval-envs sets the number for evaluation",
}


def config_path(algorithm: str) -> Path:
    """
    The config that belongs to an algorithm.

    :param algorithm: name in ``sb3_dmpo.ALGOS``
    :raises UsageError: there is none
    """
    package = Path(sb3_dmpo.__file__).parent
    # Inside the package in a wheel, beside it in a checkout.
    candidates = [folder / "zoo_configs" / f"{algorithm}.yml" for folder in (package, package.parent)]
    for path in candidates:
        if path.is_file():
            return path
    raise UsageError(f"There is no zoo_configs/{algorithm}.yml: name a config with -conf FILE.")


def load_config(config: str) -> dict[str, dict[str, Any]]:
    """
    Entries of a config by their keys.

    :param config: YAML file, or (as in rl_zoo3) a Python file or module with a dict called ``hyperparams``
    :raises UsageError: it cannot be read, or is no table of tables
    """
    try:
        if config.endswith((".yml", ".yaml")):
            entries = read_yaml(Path(config))
        else:
            entries = _run_config(config)
    except UsageError as error:
        raise UsageError(f"The config {config} cannot be read: {error}") from error
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise UsageError(f"The config {config} has to map dataset ids (or families, or 'default') to hyperparameters.")
    for name, entry in entries.items():
        for key in entry:
            if not isinstance(key, str):
                raise UsageError(f"The config {config}, entry {name!r}: {key!r} is not the name of a hyperparameter.")
    return entries


def _run_config(config: str) -> Any:
    """
    :param config: Python file or module
    :raises UsageError: it fails, in whatever way, or has no ``hyperparams``
    """
    try:
        names = runpy.run_path(config) if config.endswith(".py") else vars(importlib.import_module(config))
    except (OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    except (Exception, SystemExit) as error:  # it may do anything
        raise UsageError(f"{type(error).__name__}: {error}") from error
    if "hyperparams" not in names:
        raise UsageError("it has no dict called hyperparams")
    return names["hyperparams"]


def find_entry(config: str, dataset: str) -> tuple[str, dict[str, Any]]:
    """
    The entry of a config for a dataset: its key and a copy of its settings.

    :param config: as in :func:`load_config`
    :param dataset: as in :func:`~sb3_dmpo.data.tasks.entry_keys`
    :raises UsageError: no key of the dataset is there, or the config cannot be read
    """
    entries = load_config(config)
    keys = entry_keys(dataset)
    for key in keys:
        if key in entries:
            return key, dict(entries[key])
    raise UsageError(f"The config {config} has no entry for {dataset}: it needs one of {', '.join(keys)}.")


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value that a config can hold may be passed where a type is expected; True where that is not plain."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(_fits(value, member) for member in members)
    if origin is Literal:
        return value in members
    if origin is collections.abc.Callable:
        # A schedule, written as lin_3e-4.
        return isinstance(value, str) or callable(value)
    kinds: dict[Any, Any] = {kind: kind for kind in (bool, int, str, NoneType, dict)}
    kinds |= {float: int | float, tuple: list | tuple, list: list | tuple}
    kind = kinds.get(origin or annotation)
    if kind is None:
        return True
    return isinstance(value, kind) and (annotation is bool or not isinstance(value, bool))


def _check_run_key(key: str, value: Any) -> None:
    """
    :param key: one of ``RUN_KEYS``
    :param value: its value
    :raises UsageError: the value is of another type, or too small
    """
    types, expected = RUN_KEYS[key]
    if types == (int,):
        # 1e6 is a float.
        is_whole = value.is_integer() if isinstance(value, float) else type(value) is int
        is_right = is_whole and (value >= 1 or key == "eval_freq")
    else:
        is_right = isinstance(value, types)
    if not is_right:
        raise UsageError(f"{key} is {value!r}, expected {expected}.")


def _type_name(annotation: Any) -> str:
    name = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    return re.sub(r"collections\.abc\.Callable\[[^|]*\]", "schedule", name.replace("typing.", ""))


def check_hyperparameters(hyperparams: dict[str, Any], algorithm: type[BaseAlgorithm], name: str) -> None:
    """
    Refuse hyperparameters that neither the algorithm nor the command line knows, and values of another type.

    :param hyperparams: what the config and ``-params`` say, values parsed
    :param algorithm: the algorithm
    :param name: its name
    :raises UsageError: the first unknown one, with the nearest known ones, or the first with a wrong value
    """
    arguments = {key: kind for key, kind in constructor_arguments(algorithm).items() if key not in RUN_OPTIONS}
    for key, value in hyperparams.items():
        if key in REFUSED_KEYS:
            raise UsageError(f"{key!r} cannot be used for offline algorithms: {REFUSED_KEYS[key]}.")
        if key in RUN_OPTIONS:
            raise UsageError(f"{key!r} is not a hyperparameter: use the option {RUN_OPTIONS[key]}.")
        if key not in arguments and key not in RUN_KEYS:
            raise UsageError(f"{name} has no hyperparameter {key!r}. {suggest(key, {*arguments, *RUN_KEYS})}")
        if key in RUN_KEYS:
            _check_run_key(key, value)
        elif not _fits(value, arguments[key]):
            raise UsageError(f"{key} is {value!r}, expected {_type_name(arguments[key])}.")
    policy_kwargs = hyperparams.get("policy_kwargs") or {}
    policy = algorithm.policy_aliases.get(hyperparams.get("policy", "MlpPolicy"))
    if policy is None:
        return
    known = set(constructor_arguments(policy)) - {"observation_space", "action_space", "lr_schedule"}
    for key in policy_kwargs:
        if key not in known:
            raise UsageError(f"The policy of {name} has no argument {key!r} (policy_kwargs). {suggest(str(key), known)}")


def check_classes(hyperparams: dict[str, Any]) -> None:
    """
    Refuse callbacks and policies that are none. rl_zoo3 calls what their paths name, and any function may stand there.

    :param hyperparams: parsed settings
    :raises UsageError: a path leads nowhere, or to something else
    """
    policy = hyperparams.get("policy")
    # Without a dot it is an alias, which the algorithm knows.
    if isinstance(policy, str) and "." in policy:
        _check_class("policy", policy, BasePolicy)
    callbacks = hyperparams.get("callback", [])
    for item in callbacks if isinstance(callbacks, list) else [callbacks]:
        if isinstance(item, dict) and len(item) != 1:
            raise UsageError(f"callback has {item!r}, expected a single path with its arguments.")
        path = next(iter(item)) if isinstance(item, dict) else item
        if not isinstance(path, BaseCallback):
            _check_class("callback", path, BaseCallback)


def _check_class(key: str, path: Any, base: type[Any]) -> None:
    """
    :param key: what the path is for
    :param path: e.g. ``package.module.Class``
    :param base: what the class has to inherit from
    :raises UsageError: there is no such class
    """
    module, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    if not module or not name:
        raise UsageError(f"{key} has {path!r}, expected a path, e.g. 'package.module.Class'.")
    try:
        found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # of a module that fails: any
        raise UsageError(f"{key} is {path!r}, which cannot be imported: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UsageError(f"{key} is {path!r}, which is no class derived from {base.__name__}.")


def parse_values(hyperparams: dict[str, Any]) -> dict[str, Any]:
    """
    Texts as the values they stand for: YAML reads ``3e-4`` (without a dot) as a text, and ``dict(...)`` and ``nn.ReLU`` are
    some. Those inside dicts and lists are read too, but not the arguments of environments and callbacks, which may be any
    text.

    :param hyperparams: what a config says
    :raises UsageError: a text that stands for nothing
    """
    return {key: parse_value(value) if key in RUN_KEYS else _parse_nested(value) for key, value in hyperparams.items()}


def _parse_nested(value: Any) -> Any:
    value = parse_value(value)
    if isinstance(value, dict):
        return {key: _parse_nested(item) for key, item in value.items()}
    return type(value)(map(_parse_nested, value)) if type(value) in (list, tuple) else value
