"""
What goes into a model's zip and what comes out of it: SB3's format, so that its own tools open it, and beside the attributes
that SB3 pickles the same ones as plain data, which are all that :meth:`OfflineAlgorithm.load` reads.
"""

import contextlib
import io
import json
import math
import os
import pathlib
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.save_util import json_to_data

from sb3_dmpo.common.arguments import (
    OF_LEARN_ONLINE,
    as_python,
    check_arguments,
    check_values,
    constructor_arguments,
    is_number,
    is_whole,
    unknown_argument,
)
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.stored_weights import check_declared, check_networks
from sb3_dmpo.files.plain_text import named_faults
from sb3_dmpo.files.safe_values import UnsafeFileError, classes_by_name, shorten
from sb3_dmpo.files.safe_zip import (
    FORMAT,
    MAX_DATA_BYTES,
    DamagedFileError,
    StoredModel,
    read_model,
)
from sb3_dmpo.files.save_util import (
    check_random_state,
    decode_state,
    encode_generator,
    get_random_state,
    path_to_read,
    read_stream,
    set_random_state,
)
from sb3_dmpo.files.settings import class_name, encode, encode_schedule

#: Attributes that a model gets after its constructor.
_KEYS_OF_SETUP = ("action_space", "lr_schedule", "n_envs", "observation_space", "_random_state", "last_evaluation")
#: What environments have said about the last episodes.
_ROWS = ("ep_info_buffer", "ep_success_buffer")
#: Where classes that zips of early versions name are today, by module.
_MOVED = {
    "sb3_dmpo.mix_awac.policies": "sb3_dmpo.awac.policies",
    "sb3_dmpo.common.latent_policies": "sb3_dmpo.lapo.policies",
}
#: Arguments that all algorithms share or that say nothing about which one it is.
NOT_HYPERPARAMETERS = frozenset(
    {"policy", "env", "dataset", "device", "seed", "verbose", "tensorboard_log", "download", "stats_window_size"}
)


def read_file(path: str | os.PathLike[str] | io.BufferedIOBase) -> bytes:
    """
    The content of a zip.

    :param path: path of the file (or of one with ``.zip`` appended) or a file object
    :raises FileNotFoundError: there is no such file
    :raises TypeError: it is no file
    """
    if isinstance(path, str | os.PathLike):
        return path_to_read(path, ".zip").read_bytes()
    return read_stream(path)


def read_arrays_of(path: str | pathlib.Path, algorithm: str) -> bytes | None:
    """
    The entry of a model's zip that holds arrays, without loading the model.

    :param path: path of the zip
    :param algorithm: name of the class that it has to be of
    :raises FileNotFoundError: there is no such file
    :raises DamagedFileError: it is no zip, not complete, or of another algorithm
    """
    with named_faults(path):
        stored = read_model(read_file(path))
        if stored.algorithm != algorithm:
            what = f", but of {shorten(stored.algorithm)}" if stored.algorithm else ""
            raise DamagedFileError(f"This is no zip of {algorithm}{what}.")
        return stored.arrays


# Settings -------------------------------------------------------------------------------------------------------


def _blank(cls: type[Any]) -> tuple[Any, set[str]]:
    """A model without networks, and the names of the attributes that belong into a zip."""
    # As `load` makes it: in subclasses the policy may have no default.
    model = cls(policy="MlpPolicy", env=None, device="cpu", _init_setup_model=False)
    # What no file of ours holds is not taken from a file, e.g. a device or the dataset to be read.
    return model, {*vars(model), *_KEYS_OF_SETUP} - {*model._excluded_save_params()}


def checked_changes(cls: type[Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """
    Attributes that the caller of ``load`` changes, with NumPy's numbers as Python's.

    :param cls: the algorithm that loads
    :param changes: values by name
    :raises TypeError: there is no argument of a name
    :raises ValueError: a value is out of its range
    """
    # `learn_online` would set them to its own; the size of a buffer is what rl_zoo3's scripts give every off-policy algorithm.
    of_learn_online = {*OF_LEARN_ONLINE} - {"buffer_size"}
    known = {*constructor_arguments(cls), *vars(_blank(cls)[0]), *_KEYS_OF_SETUP} - of_learn_online
    for name in changes:
        if name not in known:
            raise unknown_argument(cls, name)
    python_values = {name: value if name == "dataset" else as_python(value) for name, value in changes.items()}
    check_values(cls, python_values)
    return python_values


def attribute_names(cls: type[Any]) -> set[str]:
    """
    Names of the attributes that a zip may hold.

    :param cls: the algorithm
    """
    return _blank(cls)[1]


def cannot_be_saved(name: str, error: Exception) -> TypeError:
    """
    What to say if an attribute has no form in a zip.

    :param name: its name
    :param error: why not
    """
    advice = f"Nothing was written; `exclude=['{name}']` leaves it out."
    return TypeError(f"The attribute '{name}' cannot be saved ({error}). {advice}")


def settings_of(model: Any, excluded: Collection[str] = ()) -> bytes:
    """
    The content of ``settings.json``: what ``load`` needs besides tensors, as plain data. Attributes that somebody has added
    to the model are not among it.

    :param model: the model
    :param excluded: names of attributes to leave out
    :raises TypeError: an attribute has no such form
    """
    names = attribute_names(type(model)) - {"policy_class", *excluded}
    attributes = {}
    for name, value in vars(model).items():
        if name in names:
            if name in _ROWS and isinstance(value, deque):
                value = _plain_row(value)
            if name in _KINDS and not _KINDS[name](value):
                # `load` would refuse it.
                raise cannot_be_saved(name, ValueError(f"it is {shorten(value)}"))
            try:
                attributes[name] = encode_schedule(value) if callable(value) else encode(value)
            except (TypeError, UnsafeFileError) as error:
                raise cannot_be_saved(name, error) from error
    alias = "MultiInputPolicy" if isinstance(model.observation_space, spaces.Dict) else "MlpPolicy"
    is_alias = model.policy_aliases.get(alias) is model.policy_class
    settings = {
        "format": FORMAT,
        "algorithm": type(model).__name__,
        "policy": alias if is_alias else class_name(model.policy_class),
        "attributes": attributes,
    }
    content = json.dumps(settings, allow_nan=False).encode()
    if len(content) > MAX_DATA_BYTES:
        raise TypeError(f"The settings take {len(content)} bytes, more than the {MAX_DATA_BYTES} that can be loaded again.")
    return content


def _classes_of(cls: type[Any], trusted: Collection[type]) -> dict[str, type]:
    """The classes that a zip may name besides those of PyTorch, by ``module:name``; also by the names that they had."""
    classes = classes_by_name([*cls.policy_aliases.values(), *trusted])
    for before, now in _MOVED.items():
        classes |= {name.replace(now, before): known for name, known in classes.items() if name.startswith(f"{now}:")}
    return classes


def find_algorithm(stored: StoredModel, algorithms: Mapping[str, type[Any]]) -> str | None:
    """
    Name of the algorithm whose zip it is; None: none of these. Zips of early versions do not say it: it is the
    one whose policy it is and that explains most of the attributes.

    :param stored: what is in the zip
    :param algorithms: algorithms by name
    """
    if stored.algorithm is not None:
        return next((name for name, cls in algorithms.items() if cls.__name__ == stored.algorithm), None)
    policy = stored.attributes.get("policy_class")
    module = str(policy.get("__module__")) if isinstance(policy, dict) else ""
    arguments = {name: set(constructor_arguments(cls)) - NOT_HYPERPARAMETERS for name, cls in algorithms.items()}
    common = set.intersection(*arguments.values())
    scores = {}
    for name, cls in algorithms.items():
        if _MOVED.get(module, module) in {known.__module__ for known in cls.policy_aliases.values()}:
            own = arguments[name] - common
            # What is missing may be younger than the file, but weighs more than what is there.
            scores[name] = len(own & set(stored.attributes)) - 2 * len(own - set(stored.attributes))
    return max(scores, key=lambda name: scores[name], default=None)


def _policy_class(cls: type[Any], stored: StoredModel, classes: Mapping[str, type]) -> Any:
    """The policy that the file names; whether it is one is checked later."""
    if stored.policy is not None:
        return cls.policy_aliases.get(stored.policy) or classes.get(stored.policy, stored.policy)
    names = set(stored.attributes)
    return stored.decode(names, classes, names - {"policy_class"}).get("policy_class")


def _is_array(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else [value]
    return value is None or all(isinstance(part, np.ndarray) for part in parts)


def _is_row(value: Any) -> bool:
    return value is None or (isinstance(value, deque) and all(map(_is_episode, value)))


def _is_episode(value: Any) -> bool:
    # What SB3's Monitor says about an episode, or whether it was a success: a number, which need not be finite.
    return _is_summary(value) if isinstance(value, dict) else _is_scalar(value) and not isinstance(value, str | None)


def _is_summary(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_scalar, value.values())))


def _is_scalar(value: Any) -> bool:
    return type(value) in (bool, int, float, str, type(None)) or isinstance(value, np.bool_ | np.number)


def _plain_row(row: deque[Any]) -> deque[Any]:
    """What environments have said about episodes, as :func:`_is_row` wants it; what is no number or text is left out."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            items = {key: plain(item) for key, item in value.items()}
            return {key: item for key, item in items.items() if type(key) is str and _is_scalar(item)}
        is_one = isinstance(value, np.ndarray | th.Tensor) and math.prod(value.shape) == 1
        return as_python(value.item() if is_one else value)

    return deque(filter(_is_episode, map(plain, row)), row.maxlen)


def _is_count(value: Any) -> bool:
    return is_whole(value, 0) and value < 2**63


def _is_text(value: Any) -> bool:
    # No path has a zero byte.
    return value is None or (isinstance(value, str) and "\0" not in value)


def _is_bool(value: Any) -> bool:
    # Also 0 and 1, which arguments may be.
    return isinstance(value, int) and value in (0, 1)


#: What attributes have to be that are no arguments with a range of their own.
_KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("_action_scaler_is_set", "_scaler_is_set", "optimize_memory_usage", "use_sde_at_warmup"), _is_bool),
    **dict.fromkeys(("download", "memory_map", "normalize_observations"), _is_bool),
    **dict.fromkeys(("_episode_num", "_n_updates", "_num_timesteps_at_start", "_total_timesteps", "n_steps"), _is_count),
    **dict.fromkeys(("num_timesteps", "_stats_window_size"), _is_count),
    **dict.fromkeys(("dataset_fingerprint", "dataset_id", "tensorboard_log"), _is_text),
    **dict.fromkeys(_ROWS, _is_row),
    **dict.fromkeys(("_last_obs", "_last_original_obs", "_last_episode_starts"), _is_array),
    "sde_sample_freq": lambda value: is_whole(value, -1),
    # As in SB3, `verbose=True` is 1.
    "verbose": lambda value: isinstance(value, bool) or is_whole(value, -1),
    **dict.fromkeys(("_current_progress_remaining", "start_time"), is_number),
    "_is_compiled": lambda value: value is None or isinstance(value, bool),
    "use_sde": lambda value: value is False,
    "last_evaluation": _is_summary,
    "replay_buffer_class": lambda value: value is None or isinstance(value, type),
    "replay_buffer_kwargs": lambda value: value is None or value == {},
    "observation_space": lambda value: isinstance(value, spaces.Box | spaces.Dict),
    "action_space": lambda value: isinstance(value, spaces.Box),
}
#: Where on the way from the beginning of a run to its end the schedules of a file are tried. No update gets to the end itself.
_PROGRESS = [1.0, 0.9, 0.75, 0.5, 0.25, 0.1, 0.001]


def check_attributes(attributes: Mapping[str, Any]) -> None:
    """
    Refuse what would fail later on, in ``learn``.

    :param attributes: attributes by name
    :raises UnsafeFileError: one is of the wrong kind
    """
    for name, value in attributes.items():
        if name in _KINDS and not _KINDS[name](value):
            raise UnsafeFileError(f"The file's {name} is {shorten(value)}.")
        if callable(value) and not isinstance(value, type):
            try:
                is_right = all(is_number(float(value(progress)), 0.0) for progress in _PROGRESS)
            except Exception:  # depends on the numbers in the file
                is_right = False
            if not is_right:
                raise UnsafeFileError(f"The file's {name} is a schedule that does not give numbers of at least 0.")
    state = attributes.get("_random_state")
    if state is not None:
        try:
            check_random_state(state)
        except Exception as error:  # depends on what is in the file
            raise DamagedFileError(f"The random states in the file are none ({type(error).__name__}: {error}).") from None


def checked_attributes(
    cls: type[Any], stored: StoredModel, replaced: Mapping[str, Any], trusted: Collection[type] = ()
) -> dict[str, Any]:
    """
    The attributes in a file, of which it is known that they make the networks whose weights it holds.

    :param cls: the algorithm that loads
    :param stored: what is in the zip
    :param replaced: attributes that the caller replaces
    :param trusted: classes that the caller knows
    :raises UnsafeFileError: they do not, or ask for something that a model does not need
    """
    trial, known = _blank(cls)
    classes = _classes_of(cls, trusted)
    if stored.policy is not None:
        known.discard("policy_class")
    attributes = stored.decode(known, classes, {"policy_class", *replaced})
    if "policy_class" not in replaced:
        attributes["policy_class"] = _policy_class(cls, stored, classes)
    vars(trial).update({**attributes, **replaced})
    for name, value in attributes.items():
        if isinstance(value, type) and (name not in ("policy_class", "replay_buffer_class")):
            raise UnsafeFileError(f"The file's {name} is the class {value.__name__}.")
    if "policy_class" not in replaced and not any(trial.policy_class is policy for policy in classes.values()):
        raise UnsafeFileError(f"The file's policy_class is {shorten(trial.policy_class)}, which is none of {cls.__name__}.")
    try:
        check_arguments(trial)
    except ValueError as error:
        raise UnsafeFileError(f"The file's settings are impossible: {error}") from None
    check_attributes(attributes)
    check_networks(trial.make_policy, stored.tensors["policy"])
    return attributes


def on_its_own(value: Any) -> Any:
    """
    A tensor that is part of a larger one, copied: a file would hold the whole. Anything else as it is.

    :param value: anything
    """
    if not isinstance(value, th.Tensor) or value.untyped_storage().nbytes() <= value.nbytes:
        return value
    return value.detach().clone()


# Random states --------------------------------------------------------------------------------------------------


def random_state_of(model: Any) -> dict[str, Any]:
    """
    States of all random generators that a run draws from, as plain data.

    :param model: the model
    """
    state = get_random_state()
    state["device"] = model.device.type
    state["noise"] = encode_generator(model._noise_generator)
    if isinstance(model.replay_buffer, OfflineReplayBuffer):
        state["buffer"] = encode_generator(model.replay_buffer.generator)
        # A memory-mapped dataset's stays on the CPU.
        state["buffer_device"] = model.replay_buffer.generator.device.type
    return state


def set_random_state_of(model: Any, state: dict[str, Any]) -> None:
    """
    Use the random states of a zip: a continued run draws what the interrupted one would have drawn.

    :param model: the model
    :param state: what :func:`random_state_of` has returned
    :raises DamagedFileError: they are none; the generators are as they were before
    """
    before = get_random_state()
    try:
        set_random_state(state)
        # Generators of different devices have different states; the run then continues with fresh ones.
        if state["device"] == model.device.type:
            model._noise_generator.set_state(decode_state(state["noise"]))
        if "buffer" in state and isinstance(model.replay_buffer, OfflineReplayBuffer):
            generator = model.replay_buffer.generator
            if state.get("buffer_device", state["device"]) == generator.device.type:
                generator.set_state(decode_state(state["buffer"]))
    except Exception as error:  # depends on what is in the file
        set_random_state(before)
        raise DamagedFileError(
            f"The random states in the model's file are none ({type(error).__name__}: {error}): the run cannot continue. "
            "Begin a new one with `reset_num_timesteps=True`."
        ) from error


# Zips -----------------------------------------------------------------------------------------------------------


def prepare_load(
    cls: type[Any],
    stored: StoredModel,
    custom_objects: Mapping[str, Any] | None,
    trust_pickle: bool,
    trusted_classes: Collection[type],
) -> dict[str, Any]:
    """
    The attributes of a model in a zip.

    :param cls: the algorithm that loads
    :param stored: what is in the zip
    :param custom_objects: replacements for attributes in the file
    :param trust_pickle: whether it may be unpickled
    :param trusted_classes: classes that the file may name
    :raises DamagedFileError: the file is not complete, or of another algorithm
    :raises UnsafeFileError: the file asks for something that a model does not need
    :raises ValueError: a replacement is out of its range
    """
    check_declared(cls, stored)
    if not isinstance(custom_objects, Mapping | None):
        raise TypeError(f"custom_objects is a {type(custom_objects).__name__}, not a dictionary of values by attribute.")
    objects = dict(custom_objects or {})
    # What is wrong with them is no fault of the file.
    check_values(cls, {name: as_python(value) for name, value in objects.items() if name in stored.attributes})
    if not trust_pickle:
        names = {*stored.attributes, "policy_class"}
        attributes = checked_attributes(cls, stored, objects, trusted_classes)
        return attributes | {name: value for name, value in objects.items() if name in names}
    with contextlib.suppress(UnsafeFileError, DamagedFileError):
        # By name even so: modules may have moved since.
        objects = {"policy_class": _policy_class(cls, stored, _classes_of(cls, trusted_classes))} | objects
    trusted: dict[str, Any] = json_to_data(stored.data.decode(), custom_objects=objects)
    return trusted
