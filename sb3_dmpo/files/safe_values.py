"""What a file of unknown origin may make: every object is built here, from values that were checked."""

import math
import reprlib
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_dmpo.files.plain_text import UnsafeFileError as UnsafeFileError

#: Classes of PyTorch that models may name, e.g. as ``activation_fn``, by module.
TORCH_CLASSES = {
    "torch.nn.modules.activation": ("ELU", "GELU", "LeakyReLU", "Mish", "ReLU", "SELU", "SiLU", "Sigmoid", "Softplus", "Tanh"),
    "torch.optim.adam": ("Adam",),
    "torch.optim.adamax": ("Adamax",),
    "torch.optim.adamw": ("AdamW",),
    "torch.optim.nadam": ("NAdam",),
    "torch.optim.radam": ("RAdam",),
    "torch.optim.rmsprop": ("RMSprop",),
    "torch.optim.sgd": ("SGD",),
}
#: Schedules of Stable-Baselines3, and what they consist of.
SB3_SCHEDULES = {
    ConstantSchedule: {"val"},
    FloatSchedule: {"value_schedule"},
    LinearSchedule: {"start", "end", "end_fraction"},
}
#: Nesting, and number of entries (references counted as often as they occur), of what comes out of a file.
MAX_DEPTH, MAX_ENTRIES = 32, 2 * 10**5
#: Whole numbers have fewer bits: a random generator's have 128, and computing with longer ones takes time.
MAX_BITS = 256
_DTYPES = frozenset(
    f"{kind}{size}" for kind, sizes in {"b": "1", "f": "248", "i": "1248", "u": "1248"}.items() for size in sizes
)


class _Repr(reprlib.Repr):
    """Texts for messages; objects of a file may have texts of any length."""

    def repr_instance(self, x: Any, level: int) -> str:
        if x is None or isinstance(x, bool | float):
            return repr(x)
        return x.__qualname__ if isinstance(x, type) else f"<{type(x).__name__}>"


shorten = _Repr().repr


def check(condition: bool, what: str, value: Any) -> None:
    """
    Refuse what is not allowed.

    :param condition: whether it is
    :param what: what the file asks for, for the message
    :param value: with which value
    :raises UnsafeFileError: it is not allowed
    """
    if not condition:
        raise UnsafeFileError(f"asks for {what} {shorten(value)}")


def check_key(key: Any) -> None:
    """
    Refuse keys of a dict that are no texts or small numbers: a tuple of tuples can take for ever to look up, and so can
    numbers that were chosen to collide.

    :param key: the key
    :raises UnsafeFileError: it is something else
    """
    check(type(key) is str or (type(key) is int and abs(key) < 2**31), "a dict with the key", key)


def classes_by_name(classes: Iterable[type]) -> dict[str, type]:
    """
    Classes by ``module:name``.

    :param classes: the classes
    """
    return {f"{cls.__module__}:{cls.__qualname__}": cls for cls in classes}


def make_dtype(code: Any) -> np.dtype[Any]:
    """
    A type of plain numbers: descriptions with fields or objects can point outside an array.

    :param code: e.g. ``"f4"``
    """
    check(isinstance(code, str) and code in _DTYPES, "the data type", code)
    dtype: np.dtype[Any] = np.dtype(code)
    return dtype


def make_array(content: Any, dtype: Any, shape: Any, order: Any = "C", axis_order: Any = None) -> npt.NDArray[Any]:
    """
    An array, whose bytes have to be there.

    :param content: the bytes
    :param dtype: type of the numbers
    :param shape: its shape
    :param order: ``"C"``, ``"F"``, or ``"K"``: with the order of axes
    :param axis_order: the order of axes
    """
    check(isinstance(dtype, np.dtype), "an array of", dtype)
    check(isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape), "an array of shape", shape)
    n_bytes = math.prod(shape) * dtype.itemsize
    if not isinstance(content, bytes | bytearray) or len(content) != n_bytes:
        raise UnsafeFileError(f"asks for an array of shape {shorten(shape)} without its {n_bytes} bytes")
    array = np.frombuffer(content, dtype=dtype)
    if order == "K" and axis_order is not None:
        return array.reshape(shape).transpose(axis_order)
    return array.reshape(shape, order=order)


def _float(value: Any) -> float:
    check(value in ("nan", "inf", "-inf"), "the number", value)
    return float(value)


def _generator(numbers: Any) -> np.random.Generator:
    bounds = {"state": 2**128, "inc": 2**128, "has_uint32": 2, "uinteger": 2**32}
    is_right = type(numbers) is list and len(numbers) == len(bounds)
    is_right = is_right and all(type(n) is int and 0 <= n < bound for n, bound in zip(numbers, bounds.values(), strict=True))
    check(is_right, "a random generator in the state", numbers)
    state, inc, has_uint32, uinteger = numbers
    source = np.random.PCG64(0)
    source.state = {
        "bit_generator": "PCG64",
        "state": {"state": state, "inc": inc},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
    return np.random.Generator(source)


def _with_generator(space: Any, generator: Any) -> Any:
    is_right = generator is None or isinstance(generator, np.random.Generator)
    check(is_right, "a space with the random generator", generator)
    vars(space)["_np_random"] = generator
    return space


def _box(low: Any, high: Any, generator: Any) -> Any:
    for array in (low, high):
        check(type(array) is np.ndarray and not np.isnan(array).any(), "a Box with the bound", array)
    check(low.shape == high.shape and low.dtype == high.dtype, "a Box with the bounds", (low, high))
    return _with_generator(spaces.Box(low, high, dtype=low.dtype.type), generator)


def _dict(inner: Any, sort_keys: Any, generator: Any) -> Any:
    check(isinstance(inner, dict) and all(type(key) is str for key in inner), "a Dict of", inner)
    for key, value in inner.items():
        check(isinstance(value, spaces.Box | spaces.Dict), f"a Dict whose {key[:80]} is", value)
    # An OrderedDict keeps its order, a dict would be sorted.
    space = spaces.Dict(OrderedDict(inner))
    if "sort_keys" in vars(space):
        vars(space)["sort_keys"] = bool(sort_keys)
    return _with_generator(space, generator)


def _schedule(cls: Any, /, **values: Any) -> Any:
    check(values.keys() == SB3_SCHEDULES[cls], f"a {cls.__name__} of", list(values))
    for name, value in values.items():
        is_right = callable(value) if name == "value_schedule" else type(value) in (int, float) and math.isfinite(value)
        check(is_right and not isinstance(value, type), f"a {cls.__name__} of", value)
    schedule = cls.__new__(cls)
    vars(schedule).update(values)
    return schedule


def _deque(items: Any, maxlen: Any = None) -> deque[Any]:
    check(type(items) in (list, tuple), "a row of", items)
    check(maxlen is None or (type(maxlen) is int and 0 <= maxlen <= sys.maxsize), "a deque of length", maxlen)
    return deque(items, maxlen)


def _train_freq(frequency: Any, unit: Any) -> TrainFreq:
    check(type(frequency) is int and unit in ("step", "episode"), "a TrainFreq of", (frequency, unit))
    return TrainFreq(frequency, TrainFrequencyUnit(unit))


#: What makes an object from its parts, by its type.
MAKERS: dict[str, Callable[..., Any]] = {
    "float": _float,
    "generator": _generator,
    "Box": _box,
    "Dict": _dict,
    "tuple": lambda items: tuple(_deque(items)),
    "deque": _deque,
    "TrainFreq": _train_freq,
    **{cls.__name__: partial(_schedule, cls) for cls in SB3_SCHEDULES},
}
