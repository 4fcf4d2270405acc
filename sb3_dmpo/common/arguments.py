"""Constructor arguments: ranges, and names that are nearly right."""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import torch as th

from sb3_dmpo.files.safe_values import UnsafeFileError


class _Range(NamedTuple):
    accepts: Callable[[Any], bool]
    description: str


def _number(value: Any, low: float, high: float = math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and math.isfinite(value)


def _count(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


_COUNT = _Range(lambda value: _count(value, 1), "a whole number of at least 1")
_NOT_NEGATIVE = _Range(lambda value: _number(value, 0.0), "a number of at least 0")
_POSITIVE = _Range(lambda value: _number(value, 0.0) and value > 0, "a number above 0")
_OPEN_UNIT = _Range(lambda value: _number(value, 0.0, 1.0) and 0.0 < value < 1.0, "a number between 0 and 1, both excluded")
_UNIT = _Range(lambda value: _number(value, 0.0, 1.0), "a number from 0 to 1")
_SINCE = _Range(lambda value: _count(value, 0), "a whole number of at least 0")
_ANY_OR_NONE = _Range(lambda value: value is None or _number(value, -math.inf), "a finite number, or None")
_REWARD_SCALES = ("return_range", "max", "standardize")
_RATE = _Range(lambda value: callable(value) or _number(value, 0.0), "a number of at least 0 or a schedule")

_RANGES: dict[str, _Range] = {
    "advantage_scale": _NOT_NEGATIVE,
    "alpha": _POSITIVE,
    "batch_size": _COUNT,
    "buffer_size": _COUNT,
    "compile": _Range(lambda value: value in (True, False, "auto"), "True, False or 'auto'"),
    "conservative_weight": _NOT_NEGATIVE,
    "context_length": _COUNT,
    "dropout": _Range(lambda value: _number(value, 0.0, 1.0) and value < 1.0, "a number from 0 to 1 (excluded)"),
    "ema_every": _COUNT,
    "ema_start": _SINCE,
    "embed_dim": _COUNT,
    "eta": _NOT_NEGATIVE,
    "expectile": _OPEN_UNIT,
    "gamma": _UNIT,
    "gating_dtype": _Range(lambda value: value in ("auto", "float32", "bfloat16"), "'auto', 'float32' or 'bfloat16'"),
    "gradient_steps": _Range(lambda value: _count(value, -1), "a whole number, or -1 for as many as steps"),
    "gumbel_temperature": _POSITIVE,
    "kl_coef": _NOT_NEGATIVE,
    "latent_bound": _POSITIVE,
    "latent_size": _Range(lambda value: value is None or _count(value, 1), "a whole number of at least 1, or None"),
    "learning_starts": _SINCE,
    "max_episode_length": _COUNT,
    "max_grad_norm": _Range(lambda value: value is None or (_number(value, 0.0) and value > 0), "a number above 0, or None"),
    "min_q_weight": _UNIT,
    "n_action_samples": _COUNT,
    "n_components": _Range(lambda value: _count(value, 2), "a whole number of at least 2"),
    "n_diffusion_steps": _COUNT,
    "n_envs": _COUNT,
    "n_heads": _COUNT,
    "n_layers": _COUNT,
    "n_value_samples": _COUNT,
    "noise_std": _NOT_NEGATIVE,
    "online_ratio": _Range(lambda value: value is None or _number(value, 0.0, 1.0), "a number from 0 to 1, or None"),
    "policy_delay": _COUNT,
    "policy_kwargs": _Range(lambda value: value is None or isinstance(value, dict), "a dict, e.g. dict(net_arch=[256, 256])"),
    "pretraining_updates": _SINCE,
    "return_scale": _POSITIVE,
    "reward_scale": _Range(
        lambda value: value in _REWARD_SCALES if isinstance(value, str) else _number(value, -math.inf),
        f"a finite number or one of {', '.join(map(repr, _REWARD_SCALES))}",
    ),
    "reward_shift": _Range(lambda value: _number(value, -math.inf), "a finite number"),
    "seed": _Range(lambda value: value is None or _is_seed(value), "a whole number from 0 to 4294967295, or None"),
    "target_entropy": _ANY_OR_NONE,
    "target_noise_clip": _NOT_NEGATIVE,
    "target_policy_noise": _NOT_NEGATIVE,
    "target_return": _ANY_OR_NONE,
    "tau": _Range(lambda value: _number(value, 0.0, 1.0) and value > 0, "a number from 0 (excluded) to 1"),
    "train_freq": _Range(lambda value: _is_train_freq(value), "a number of steps, or e.g. (1, 'episode')"),
    "warmup_steps": _SINCE,
}


def _is_seed(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= int(value) < 2**32


def _is_train_freq(value: Any) -> bool:
    if isinstance(value, tuple) and len(value) == 2:
        return _count(value[0], 1) and getattr(value[1], "value", value[1]) in ("step", "episode")
    return _count(value, 1)


def check_argument(owner: str, name: str, value: Any) -> None:
    """
    Check the range of one argument, if it is a known one.

    :param owner: name of what takes it, for the message
    :param name: its name
    :param value: its value
    :raises ValueError: the value is out of its range; the message names the argument, the value and the range
    """
    known = _RATE if name.endswith("learning_rate") and value is not None else _RANGES.get(name)
    if known is not None and not known.accepts(value):
        raise ValueError(f"{owner}: {name} is {value!r}, expected {known.description}.")


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The values that a type names, e.g. a ``Literal``; none if it leaves them open."""
    if annotation is bool:
        return (True, False)
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(choice for part in get_args(annotation) for choice in _choices(part))


def _check_other_types(owner: str, name: str, value: Any, annotation: Any, choices: tuple[Any, ...]) -> None:
    is_number_allowed = int in get_args(annotation)
    if not (is_number_allowed and _count(value, 1)):
        expected = " or ".join([*map(repr, choices), *(["a whole number of at least 1"] if is_number_allowed else [])])
        raise ValueError(f"{owner}: {name} is {value!r}, expected {expected}.")


def check_arguments(model: Any) -> None:
    """
    Check the ranges of a model's constructor arguments, those it has of the known ones.

    :param model: an algorithm whose constructor has set its attributes
    :raises ValueError: a value is out of its range; the message names the argument, the value and the range
    """
    for name, value in vars(model).items():
        check_argument(type(model).__name__, name, value)
    for name, annotation in constructor_arguments(type(model)).items():
        choices = _choices(annotation)
        value = getattr(model, name, None)
        if choices and value is not None and name not in _RANGES and not any(value is one or value == one for one in choices):
            _check_other_types(type(model).__name__, name, value, annotation, choices)
    bounds = getattr(model, "value_bounds", None)
    is_pair = isinstance(bounds, list | tuple) and len(bounds) == 2 and all(_number(bound, -math.inf) for bound in bounds)
    if bounds is not None and not (is_pair and bounds[0] < bounds[1]):
        raise ValueError(f"{type(model).__name__}: value_bounds is {bounds!r}, expected two numbers, the smaller one first.")


#: Counts in a file beyond this are absurd: nothing could be computed with them. (Buffers are not allocated by loading.)
_MAX_STORED_COUNT = 10**6


def check_stored_counts(attributes: Mapping[str, Any]) -> None:
    """
    Refuse counts in a file that are far too large, before something takes as much memory.

    :param attributes: attributes by name
    :raises UnsafeFileError: a count is absurd
    """
    for name, value in attributes.items():
        is_count = name in _RANGES and isinstance(value, int) and name not in ("buffer_size", "learning_starts", "seed")
        if is_count and value > _MAX_STORED_COUNT:
            raise UnsafeFileError(f"The file's {name} is {value}; {_MAX_STORED_COUNT} is the most that is accepted.")


def check_device(device: th.device | str) -> None:
    """
    Check that a device asked for by name is there; SB3 would silently take the CPU instead.

    :param device: as given to the constructor
    :raises ValueError: it is a CUDA device that this machine does not have
    """
    if str(device) == "auto":
        return
    device = th.device(device)
    found = th.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ValueError(f"device is {str(device)!r}, but PyTorch finds {found} CUDA devices here: use 'auto' or 'cpu'.")


def constructor_arguments(cls: type[Any]) -> dict[str, Any]:
    """
    Names and types of the arguments a class takes, with those that it passes on to its bases by ``**kwargs``.

    :param cls: the class
    """
    arguments: dict[str, Any] = {}
    for owner in cls.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = inspect.signature(owner.__init__).parameters.values()  # type: ignore[misc]
        for parameter in parameters:
            is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if is_named and parameter.name != "self" and not parameter.name.startswith("_"):
                arguments.setdefault(parameter.name, parameter.annotation)
        # ``**kwargs`` goes on to the base; what catches unknown names has another name.
        if not any(parameter.kind is parameter.VAR_KEYWORD and parameter.name == "kwargs" for parameter in parameters):
            break
    return arguments


def unknown_argument(algorithm: type, name: str) -> TypeError:
    """
    The error for a keyword that no constructor of the algorithm takes, with the names that are near.

    :param algorithm: class of the algorithm
    :param name: the keyword
    """
    near = difflib.get_close_matches(name, constructor_arguments(algorithm), n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return TypeError(f"{algorithm.__name__}() has no argument '{name}'.{hint}")
