"""Environments rebuilt from what a dataset recorded about them, without importing anything that the dataset names."""

import contextlib
import importlib
import re
import warnings
from typing import Any

import gymnasium as gym

from sb3_dmpo.data.transitions import DatasetError
from sb3_dmpo.files.settings import parse

#: Names of arguments that say where something is, and texts that say no such thing: words, e.g. ``"sparse"``.
_PLACE, _WORDS = re.compile(r"file|path|dir|folder|xml|url|model|asset", re.IGNORECASE), re.compile(r"[\w -]{0,100}", re.ASCII)


def register_robotics() -> None:
    """Register the environments of gymnasium-robotics, which many datasets name, where it is installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("gymnasium_robotics")


def _is_plain(name: str, value: Any) -> bool:
    """Whether a value is numbers and words, and points at nothing on this machine."""
    if isinstance(value, dict):
        return all(_is_plain(str(key), item) and _WORDS.fullmatch(str(key)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(name, item) for item in value)
    if isinstance(value, str):
        return _WORDS.fullmatch(value) is not None and not _PLACE.search(name)
    return value is None or isinstance(value, bool | int | float)


def make_recorded_environment(spec_json: Any, label: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """
    An environment that a dataset recorded, made by the entry point that gymnasium has registered for its id.

    The entry point and the wrappers that the file names are never imported: a dataset is data. Wrappers recorded
    with the environment are left out with a warning.

    :param spec_json: ``EnvSpec`` as JSON, as Minari stores it
    :param label: the dataset, for messages
    :param kwargs: further arguments of ``gymnasium.make``, e.g. ``render_mode``
    :raises DatasetError: if the record cannot be read, its id is not registered, or making the environment fails
    """
    try:
        recorded = parse(spec_json.encode(), is_strict=False)
        env_id, arguments = recorded["id"], dict(recorded.get("kwargs") or {})
        wrappers = [wrapper["name"] for wrapper in recorded.get("additional_wrappers") or []]
        max_episode_steps = recorded.get("max_episode_steps")
    except (TypeError, ValueError, KeyError, AttributeError) as err:
        raise DatasetError.at(
            label, f"the recorded environment cannot be read ({err!r})", "Make the environment yourself and pass it as env="
        ) from None
    if str(env_id) not in gym.registry:
        register_robotics()
    # Exactly this id: ``module:id`` would import the module.
    registered = gym.registry.get(str(env_id))
    if registered is None:
        raise DatasetError.at(
            label,
            f"its environment {env_id!r} is not registered in gymnasium, and an entry point named in a dataset is never "
            "imported",
            "Import the package that registers it first (gymnasium-robotics for Adroit, AntMaze, PointMaze and Kitchen), "
            "or make the environment yourself and pass it as env=",
        )
    for name, value in arguments.items():
        if registered.kwargs.get(name) != value and not _is_plain(name, value):
            raise DatasetError.at(
                label,
                f"its environment {env_id!r} is to be made with {name}={value!r:.100}, which can point at a file here",
                "If you know that file, make the environment yourself and pass it as env=",
            )
    if wrappers:
        warnings.warn(
            f"{label}: the wrappers {wrappers} recorded with {env_id} are left out, because a wrapper named in a dataset is "
            "never imported. Wrap the environment yourself if you need them.",
            stacklevel=3,
        )
    if max_episode_steps is None and registered.max_episode_steps is not None:
        max_episode_steps = -1  # recorded without a time limit; None would bring back the registered one
    try:
        env: gym.Env[Any, Any] = gym.make(env_id, **{"max_episode_steps": max_episode_steps, **arguments, **kwargs})
    # Whatever the environment's constructor raises, the reader needs to know which dataset asked for it
    except Exception as err:
        raise DatasetError.at(
            label,
            f"its environment {env_id!r} could not be made with {arguments} ({type(err).__name__}: {err})",
            "Mend the cause, or make the environment yourself and pass it as env=",
        ) from err
    return env
