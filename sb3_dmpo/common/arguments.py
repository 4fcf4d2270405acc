"""Constructor arguments: ranges, and names that are nearly right."""

import copy
import difflib
import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.type_aliases import Schedule


class Range(NamedTuple):
    """
    The values that an argument may have.

    :param accepts: whether a value is one of them
    :param description: what is expected, for the message
    """

    accepts: Callable[[Any], bool]
    description: str


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """
    Whether a value is a finite number within bounds.

    :param value: the value
    :param low: smallest number
    :param high: largest number
    """
    is_real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return is_real and bool(low <= value <= high) and math.isfinite(value)


def is_whole(value: Any, low: int) -> bool:
    """
    Whether a value is a whole number.

    :param value: the value
    :param low: smallest number
    """
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= low


def as_python(value: Any) -> Any:
    """
    NumPy's numbers as Python's, also within lists, tuples and dicts, and paths as texts; anything else as it is.

    :param value: value of an argument
    """
    if isinstance(value, np.floating):
        return float(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) in (list, tuple):
        return type(value)(map(as_python, value))
    return {key: as_python(item) for key, item in value.items()} if type(value) is dict else value


def whole_number(low: int, high: float = math.inf) -> Range:
    """
    The whole numbers from a smallest to a largest one.

    :param low: the smallest
    :param high: the largest
    """
    upper = "" if high == math.inf else f" and at most {high}"
    return Range(lambda value: is_whole(value, low) and value <= high, f"a whole number of at least {low}{upper}")


def one_of(*choices: Any) -> Range:
    """
    A few values.

    :param choices: the values
    """
    *first, last = map(repr, choices)
    return Range(lambda value: value in choices, f"{', '.join(first)} or {last}")


def optional(accepted: Range) -> Range:
    """
    The same values, or None.

    :param accepted: the range without None
    """
    return Range(lambda value: value is None or accepted.accepts(value), f"{accepted.description}, or None")


def _are_bounds(value: Any) -> bool:
    is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(is_number(bound) for bound in value)
    return value is None or (is_pair and value[0] < value[1])


def _is_seed(value: Any) -> bool:
    return is_whole(value, 0) and int(value) < 2**32


def _is_train_freq(value: Any) -> bool:
    if isinstance(value, tuple) and len(value) == 2:
        return is_whole(value[0], 1) and getattr(value[1], "value", value[1]) in ("step", "episode")
    return is_whole(value, 1)


#: At so many points a schedule is looked at beforehand. The end is none of them: no offline update gets there.
_STEPS_OF_SCHEDULE = 1000
_REWARD_SCALES = ("return_range", "max", "standardize")

COUNT = whole_number(1)
COUNT_OR_ZERO = whole_number(0)
#: Of what is in memory at once, or done again and again. A file could ask for any number; more is absurd.
MAX_SIZE = 10**6
SIZE = whole_number(1, MAX_SIZE)
FINITE = Range(is_number, "a finite number")
NOT_NEGATIVE = Range(lambda value: is_number(value, 0.0), "a number of at least 0")
POSITIVE = Range(lambda value: is_number(value, 0.0) and value > 0, "a number above 0")
UNIT = Range(lambda value: is_number(value, 0.0, 1.0), "a number from 0 to 1")
OPEN_UNIT = Range(lambda value: is_number(value, 0.0, 1.0) and 0.0 < value < 1.0, "a number between 0 and 1, both excluded")
BELOW_ONE = Range(lambda value: is_number(value, 0.0, 1.0) and value < 1.0, "a number from 0 to 1 (excluded)")
ABOVE_ZERO = Range(lambda value: is_number(value, 0.0, 1.0) and value > 0, "a number from 0 (excluded) to 1")
BOUNDS = Range(_are_bounds, "two numbers, the smaller one first")
LEARNING_RATE = Range(lambda value: callable(value) or is_number(value, 0.0), "a number of at least 0 or a schedule")
#: Of a part: None follows ``learning_rate``.
OWN_LEARNING_RATE = optional(LEARNING_RATE)

DICT = Range(lambda value: value is None or isinstance(value, dict), "a dict, e.g. dict(net_arch=[256, 256])")
GRADIENT_STEPS = Range(lambda value: is_whole(value, -1), "a whole number, or -1 for as many as steps")
REWARD_SCALE = Range(
    lambda value: value in _REWARD_SCALES if isinstance(value, str) else is_number(value),
    f"a finite number or one of {', '.join(map(repr, _REWARD_SCALES))}",
)
SEED = Range(lambda value: value is None or _is_seed(value), "a whole number from 0 to 4294967295, or None")
TRAIN_FREQ = Range(_is_train_freq, "a number of steps, or e.g. (1, 'episode')")


#: Arguments of the policy that concern its critics.
CRITIC_ARGUMENTS = {"critic_layer_norm": one_of(True, False), "n_critics": COUNT}


def check_critic_arguments(model: Any) -> None:
    """
    Check what is said of a model's critics: ``n_steps``, and in ``policy_kwargs``.

    :param model: an algorithm whose constructor has set its attributes
    :raises ValueError: a value is out of its range, or the algorithm has no critics
    """
    given = {name: value for name, value in (model.policy_kwargs or {}).items() if name in CRITIC_ARGUMENTS}
    # MAPLE has critics, of sequences.
    if model.n_steps != 1 and not model.learns_online:
        raise ValueError(f"{type(model).__name__} has no critics of single transitions, which n_steps is for: leave it out.")
    for name, value in given.items():
        if not model.learns_online:
            raise ValueError(
                f"{type(model).__name__} has no critics of single transitions, which {name} is for: leave it out of "
                "policy_kwargs."
            )
        check_argument(f"{type(model).__name__}, policy_kwargs", name, value, CRITIC_ARGUMENTS[name])


def argument_ranges(cls: type[Any]) -> dict[str, Range]:
    """
    The ranges of the arguments of an algorithm: what it declares as ``argument_ranges``, and what its bases declare.

    :param cls: class of the algorithm
    """
    ranges: dict[str, Range] = {}
    for owner in reversed(cls.__mro__):
        ranges |= vars(owner).get("argument_ranges", {})
    return ranges


def fixed_arguments(cls: type[Any]) -> list[str]:
    """
    The arguments of an algorithm that cannot be changed later: what it declares so, and what its bases declare.

    :param cls: class of the algorithm
    """
    return [name for owner in cls.__mro__ for name in vars(owner).get("fixed_arguments", ())]


def check_argument(owner: str, name: str, value: Any, accepted: Range) -> None:
    """
    Check the range of one argument.

    :param owner: name of what takes it, for the message
    :param name: its name
    :param value: its value
    :param accepted: its range
    :raises ValueError: the value is out of its range; the message names the argument, the value and the range
    """
    if not accepted.accepts(value):
        raise ValueError(f"{owner}: {name} is {value!r}, expected {accepted.description}.")


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """The values that a type names, e.g. a ``Literal``; none if it leaves them open."""
    if annotation is bool:
        return (True, False)
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(choice for part in get_args(annotation) for choice in choices_of(part))


def _check_other_types(owner: str, name: str, value: Any, annotation: Any, choices: tuple[Any, ...]) -> None:
    is_number_allowed = int in get_args(annotation)
    if not (is_number_allowed and is_whole(value, 1)):
        expected = " or ".join([*map(repr, choices), *(["a whole number of at least 1"] if is_number_allowed else [])])
        raise ValueError(f"{owner}: {name} is {value!r}, expected {expected}.")


def check_values(cls: type[Any], values: Mapping[str, Any]) -> None:
    """
    Check the ranges of constructor arguments.

    :param cls: class of the algorithm
    :param values: arguments by name, and whatever else there is among them
    :raises ValueError: a value is out of its range; the message names the argument, the value and the range
    """
    owner, ranges = cls.__name__, argument_ranges(cls)
    for name, value in values.items():
        if name in ranges:
            check_argument(owner, name, value, ranges[name])
    for name, annotation in constructor_arguments(cls).items():
        choices = choices_of(annotation)
        if not choices or name not in values or name in ranges:
            continue
        value, allowed = values[name], (*choices, None) if type(None) in get_args(annotation) else choices
        if not any(value is one or value == one for one in allowed):
            _check_other_types(owner, name, value, annotation, choices)


def check_arguments(model: Any) -> None:
    """
    Check the constructor arguments of a model, alone and together.

    :param model: an algorithm whose constructor has set its attributes
    :raises ValueError: a value is out of its range; the message names the argument, the value and the range
    """
    owner = type(model).__name__
    check_values(type(model), vars(model))
    check_critic_arguments(model)
    if model.derives_value_bounds and model.gamma == 1:
        raise ValueError(
            f"{owner}: gamma is 1, and returns without discount have no bounds that follow from the rewards: pass "
            "value_bounds=(smallest, largest return)."
        )
    model.check_combinations()


def check_rate(owner: str, name: str, rate: float, progress: float) -> None:
    """
    Check a learning rate that a schedule gives.

    :param owner: name of the algorithm, for the message
    :param name: name of the argument
    :param rate: the learning rate
    :param progress: the remaining progress, from 1 to 0
    :raises ValueError: it is negative or not finite
    """
    if not 0.0 <= rate < math.inf:
        raise ValueError(
            f"{owner}: the schedule {name} gives {rate:.3g} at a remaining progress of {progress:.3g} (which falls from 1 to "
            "0), expected a finite number of at least 0."
        )


def check_schedule(owner: str, name: str, schedule: Schedule) -> None:
    """
    Check what a learning rate schedule gives along a run, before the run begins.

    :param owner: name of the algorithm, for the message
    :param name: name of the argument
    :param schedule: a function of the remaining progress
    :raises ValueError: a learning rate is negative or not finite
    """
    try:
        # An object that counts its calls must not notice.
        schedule = copy.deepcopy(schedule)
    except Exception:  # anything can be in it; what it gives in the run is checked there
        return
    for step in range(_STEPS_OF_SCHEDULE, 0, -1):
        progress = step / _STEPS_OF_SCHEDULE
        check_rate(owner, name, schedule(progress), progress)


def check_device(device: th.device | str) -> None:
    """
    Check that a device asked for by name is there; SB3 would silently take the CPU instead.

    :param device: as given to the constructor
    :raises ValueError: there is no such device, or this machine does not have it
    """
    if str(device) == "auto":
        return
    try:
        device = th.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device is {device!r}, but must be 'auto', 'cpu' or e.g. 'cuda:0'.") from error
    found = th.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ValueError(f"device is {str(device)!r}, but PyTorch finds {found} CUDA devices here: use 'auto' or 'cpu'.")


def check_action_noise(noise: ActionNoise | None, action_space: spaces.Box) -> None:
    """
    Check that noise has the size of the actions; SB3 adds it in the middle of a run.

    :param noise: the noise
    :param action_space: the model's
    :raises ValueError: it has another size
    """
    while isinstance(noise, VectorizedActionNoise):
        noise = noise.base_noise
    mean = getattr(noise, "_mu", None)
    if mean is not None and np.shape(mean) not in ((), (1,), action_space.shape):
        raise ValueError(
            f"action_noise has the shape {np.shape(mean)}, but actions have {action_space.shape}: make it of "
            f"np.zeros({action_space.shape[0]})."
        )


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


def near_names(name: str, known: Iterable[str]) -> str:
    """
    The names that are nearly like one, as a question; nothing if there are none.

    :param name: a name
    :param known: those that there are
    """
    near = difflib.get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(near)}?" if near else ""


#: Arguments that SB3's networks for images take.
OF_FEATURES = ("features_extractor_class", "features_extractor_kwargs", "share_features_extractor", "normalize_images")
#: What there is instead of them.
NO_FEATURES = (
    "All networks are MLPs on flat vectors here, and `net_arch` sets their widths: extract features first, record them as "
    "the observations of the dataset, and use 'MlpPolicy'."
)
#: Arguments of ``learn_online``, which no constructor takes.
OF_LEARN_ONLINE = ("action_noise", "buffer_size", "gradient_steps", "learning_starts", "online_ratio", "train_freq")
_NO_HER = (
    "Data come from `dataset`, which may be SB3's own buffer, and there is no hindsight replay: relabel the goals when you "
    "write the dataset."
)
_NO_SDE = "There is no state-dependent exploration: `learn_online` takes `action_noise`."
_NO_ENTROPY = "There is no entropy bonus."
#: What there is instead of other arguments of SB3's algorithms.
_INSTEAD = {
    **dict.fromkeys(OF_LEARN_ONLINE, "It is an argument of `learn_online`."),
    **dict.fromkeys(("replay_buffer_class", "replay_buffer_kwargs"), _NO_HER),
    **dict.fromkeys(("use_sde", "sde_sample_freq", "use_sde_at_warmup"), _NO_SDE),
    **dict.fromkeys(("ent_coef", "target_entropy"), _NO_ENTROPY),
    **dict.fromkeys(OF_FEATURES, NO_FEATURES),
    "monitor_wrapper": "An environment always gets a Monitor.",
    "optimize_memory_usage": "With `memory_map=True` the data stay on disk.",
    "target_update_interval": "`tau` and `policy_delay` say how fast the targets move.",
}


def unknown_argument(algorithm: type[Any], name: str) -> TypeError:
    """
    The error for a keyword that no constructor of the algorithm takes, with what there is instead or the names that are near.

    :param algorithm: class of the algorithm
    :param name: the keyword
    """
    hint = near_names(name, constructor_arguments(algorithm))
    if name in _INSTEAD:
        hint = f" {_INSTEAD[name]}"
    elif name in constructor_arguments(algorithm.policy_aliases["MlpPolicy"]):
        hint = f" It is an argument of the policy: policy_kwargs=dict({name}=...)."
    return TypeError(f"{algorithm.__name__}() has no argument '{name}'.{hint}")
