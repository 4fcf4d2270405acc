"""What a pickle from elsewhere may make: every object is built here, from arguments that were checked."""

import math
import reprlib
import sys
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule


class UnsafeFileError(ValueError):
    """The file asks for something that a model file does not need."""


#: Spaces nested deeper, or of more leaves, are in no dataset.
_MAX_SPACE_DEPTH, _MAX_LEAVES = 8, 10_000
_DTYPES = frozenset(
    f"{kind}{size}" for kind, sizes in {"b": "1", "f": "248", "i": "1248", "u": "1248"}.items() for size in sizes
)
_NATIVE = ("<" if sys.byteorder == "little" else ">", "=", "|")


class _Repr(reprlib.Repr):
    """Texts for messages; objects of a file may have texts of any length."""

    def repr_instance(self, x: Any, level: int) -> str:
        return x.__qualname__ if isinstance(x, type) else f"<{type(x).__name__}>"


shorten = _Repr().repr


def _check(condition: bool, what: str, value: Any) -> None:
    if not condition:
        raise UnsafeFileError(f"asks for {what} {shorten(value)}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _state_of(owner: object, state: Any) -> dict[Any, Any]:
    name = type(owner).__name__
    _check(type(state) is dict, f"a {name} of", state)
    _check(not vars(owner), f"a change of the {name}", owner)
    return dict(state)


# NumPy ----------------------------------------------------------------------------------------------------------


def _dtype(code: Any, *flags: Any) -> np.dtype[Any]:
    # Plain numbers only: descriptions with fields or objects can point outside an array. These ones cannot be changed.
    _check(isinstance(code, str) and code in _DTYPES, "the data type", code)
    dtype: np.dtype[Any] = np.dtype(code)
    return dtype


def _build_dtype(dtype: Any, state: Any) -> None:
    _check(isinstance(state, tuple) and len(state) > 1 and state[1] in _NATIVE, "a data type with", state)


def _n_bytes(dtype: Any, shape: Any) -> int:
    _check(isinstance(dtype, np.dtype), "an array of", dtype)
    _check(isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape), "an array of shape", shape)
    return int(math.prod(shape) * dtype.itemsize)


def _check_content(content: Any, dtype: Any, shape: Any) -> None:
    n_bytes = _n_bytes(dtype, shape)
    if not isinstance(content, bytes | bytearray) or len(content) != n_bytes:
        raise UnsafeFileError(f"asks for an array of shape {shorten(shape)} without its {n_bytes} bytes")


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> np.ndarray:
    _check_content(content, dtype, shape)
    array = np.frombuffer(content, dtype=dtype)
    if order == "K" and axis_order is not None:
        return array.reshape(shape).transpose(axis_order)
    return array.reshape(shape, order=order)


def _empty_array(kind: Any, shape: Any, *typecode: Any) -> np.ndarray:
    # NumPy's own function allocates whatever shape it is given; the content comes with the state.
    _check(kind is np.ndarray and shape == (0,), "an array of shape", shape)
    return np.empty(0, dtype=np.int8)


def _build_array(array: np.ndarray, state: Any) -> None:
    _check(array.shape == (0,) and isinstance(state, tuple) and len(state) == 5, "a change of the array", array)
    _, shape, dtype, is_fortran, content = state
    _check_content(content, dtype, shape)
    array.__setstate__((1, shape, dtype, bool(is_fortran), bytes(content)))  # type: ignore[arg-type]


def _scalar(dtype: Any, content: Any) -> Any:
    _check_content(content, dtype, ())
    return np.frombuffer(content, dtype=dtype)[0]


def _bit_generator(kind: Any = np.random.PCG64) -> np.random.PCG64:
    _check(kind is np.random.PCG64 or kind == "PCG64", "the random generator", kind)
    return np.random.PCG64(0)


def _build_bit_generator(generator: np.random.PCG64, state: Any) -> None:
    values = state[0] if isinstance(state, tuple) and len(state) == 2 else state
    try:
        numbers = [values["state"]["state"], values["state"]["inc"], values["has_uint32"], values["uinteger"]]
    except (KeyError, TypeError, IndexError):
        numbers = [None]
    bounds = (2**128, 2**128, 2, 2**32)
    is_right = all(type(n) is int and 0 <= n < bound for n, bound in zip(numbers, bounds, strict=False))
    _check(is_right, "a random generator in the state", values)
    generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": numbers[0], "inc": numbers[1]},
        "has_uint32": numbers[2],
        "uinteger": numbers[3],
    }


def _generator(source: Any = "PCG64", *rest: Any) -> np.random.Generator:
    if not isinstance(source, np.random.PCG64):
        source = _bit_generator(source)
    return np.random.Generator(source)


def _build_generator(generator: np.random.Generator, state: Any) -> None:
    assert isinstance(generator.bit_generator, np.random.PCG64)
    _build_bit_generator(generator.bit_generator, state)


def _seed_sequence(*arguments: Any) -> np.random.SeedSequence:
    # What the generator was seeded with, which its state does not depend on.
    return np.random.SeedSequence(0)


# Spaces ---------------------------------------------------------------------------------------------------------


def _build_box(box: spaces.Box, state: Any) -> None:
    # What else is in the state follows from the bounds, and depends on the version of gymnasium.
    values = _state_of(box, state)
    low, high, dtype = values.get("low"), values.get("high"), values.get("dtype")
    for array in (low, high):
        _check(type(array) is np.ndarray and array.dtype == dtype and not np.isnan(array).any(), "a Box with the bound", array)
    assert isinstance(low, np.ndarray) and isinstance(high, np.ndarray)
    _check(low.shape == high.shape == values.get("_shape"), "a Box of shape", values.get("_shape"))
    vars(box).update(vars(spaces.Box(low, high, dtype=low.dtype.type)))
    _set_generator(box, values)


def _extent(space: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Depth and number of leaves; a space that occurs ten times in one that occurs ten times has a hundred."""
    if not isinstance(space, spaces.Dict):
        return 0, 1
    if id(space) not in known:
        inner = [_extent(value, known) for value in space.spaces.values()]
        known[id(space)] = 1 + max((depth for depth, _ in inner), default=0), sum(leaves for _, leaves in inner)
    return known[id(space)]


def _build_dict(space: spaces.Dict, state: Any) -> None:
    values = _state_of(space, state)
    inner = values.get("spaces")
    _check(isinstance(inner, dict) and all(type(key) is str for key in inner), "a Dict of", inner)
    assert isinstance(inner, dict)
    for key, value in inner.items():
        _check(isinstance(value, spaces.Box | spaces.Dict) and not is_unfinished(value), f"a Dict whose {key[:80]} is", value)
    # An OrderedDict keeps its order, a dict would be sorted.
    made = spaces.Dict(OrderedDict(inner))
    depth, leaves = _extent(made, {})
    _check(depth <= _MAX_SPACE_DEPTH and leaves <= _MAX_LEAVES, "a Dict that is nested too deep or too large:", list(inner))
    vars(space).update(vars(made))
    if "sort_keys" in vars(made):
        vars(space)["sort_keys"] = bool(values.get("sort_keys"))
    _set_generator(space, values)


def _set_generator(space: spaces.Space[Any], state: dict[str, Any]) -> None:
    generator = state.get("_np_random")
    _check(generator is None or isinstance(generator, np.random.Generator), "a space with the random generator", generator)
    vars(space)["_np_random"] = generator


# Stable-Baselines3 and PyTorch ----------------------------------------------------------------------------------

_SCHEDULES = (ConstantSchedule, FloatSchedule, LinearSchedule)
_SCHEDULE_KEYS = {"val", "value_schedule", "start", "end", "end_fraction"}


def _build_schedule(schedule: Any, state: Any) -> None:
    values = _state_of(schedule, state)
    _check(values.keys() <= _SCHEDULE_KEYS, "a schedule with", list(values))
    for value in values.values():
        _check(_is_number(value) or (isinstance(value, _SCHEDULES) and not is_unfinished(value)), "a schedule of", value)
    vars(schedule).update(values)


def _deque(content: Any = (), maxlen: Any = None) -> deque[Any]:
    _check(type(content) in (list, tuple), "a deque of", content)
    _check(maxlen is None or (type(maxlen) is int and 0 <= maxlen <= sys.maxsize), "a deque of length", maxlen)
    return deque(content, maxlen)


def _ordered_dict() -> OrderedDict[Any, Any]:
    return OrderedDict()


def _build_ordered_dict(content: OrderedDict[Any, Any], state: Any) -> None:
    # The versions of modules, which PyTorch writes beside weights. They stay where they are: this is no use of them.
    _check(type(state) is dict and set(state) <= {"_metadata"}, "an OrderedDict with", state)
    for key, version in state.get("_metadata", {}).items():
        is_version = type(version) is dict and all(type(number) is int for number in version.values())
        _check(type(key) is str and is_version, "an OrderedDict with the versions", version)


def make_device(cls: Any, kind: Any, index: Any = None) -> Any:
    """
    A device of PyTorch, which the data part of the package does not import.

    :param cls: ``torch.device``
    :param kind: e.g. ``"cpu"``
    :param index: its number
    :raises UnsafeFileError: something else is asked for
    """
    _check(type(kind) is str and (index is None or type(index) is int), "the device", (kind, index))
    return cls(kind) if index is None else cls(kind, index)


def _train_freq(frequency: Any, unit: Any) -> TrainFreq:
    _check(type(frequency) is int and isinstance(unit, TrainFrequencyUnit), "a TrainFreq of", (frequency, unit))
    return TrainFreq(frequency, unit)


def _train_frequency_unit(name: Any) -> TrainFrequencyUnit:
    _check(name in ("step", "episode"), "a TrainFrequencyUnit of", name)
    return TrainFrequencyUnit(name)


def _enum_member(cls: Any, name: Any) -> TrainFrequencyUnit:
    """How some versions of Python (3.11.2, which Debian 12 has) write the member of an enumeration: by ``getattr``."""
    _check(cls is TrainFrequencyUnit and name in ("STEP", "EPISODE"), "the attribute", (cls, name))
    return TrainFrequencyUnit[name]


def _build_buffer(buffer: ReplayBuffer, state: Any) -> None:
    values = _state_of(buffer, state)
    for key, value in values.items():
        _check(type(key) is str and not hasattr(type(buffer), key), "a buffer with the attribute", key)
        parts = value.values() if isinstance(value, dict) else [value]
        is_data = all(
            part is None
            or isinstance(part, bool | int | float | str | tuple | type | np.ndarray | spaces.Space)
            or type(part).__qualname__ == "device"
            for part in parts
        )
        _check(is_data and not is_unfinished(value), f"a buffer whose {key} is", value)
    vars(buffer).update(values)


# The tables -----------------------------------------------------------------------------------------------------


def _blank(cls: Any) -> Callable[[], Any]:
    return lambda: cls.__new__(cls)


_BLANK = (spaces.Box, spaces.Dict, *_SCHEDULES, ReplayBuffer, DictReplayBuffer, NStepReplayBuffer)
#: What makes an object: by its class, or by the name of the function that pickles call.
MAKERS: dict[Any, Callable[..., Any]] = {
    **{cls: _blank(cls) for cls in _BLANK},
    np.dtype: _dtype,
    deque: _deque,
    OrderedDict: _ordered_dict,
    TrainFreq: _train_freq,
    TrainFrequencyUnit: _train_frequency_unit,
    "getattr": _enum_member,
    "_frombuffer": _from_buffer,
    "_reconstruct": _empty_array,
    "scalar": _scalar,
    "__bit_generator_ctor": _bit_generator,
    "__generator_ctor": _generator,
    "__pyx_unpickle_SeedSequence": _seed_sequence,
}
#: What gives an object its content, by the object's class.
BUILDERS: dict[type, Callable[[Any, Any], None]] = {
    np.dtype: _build_dtype,
    np.ndarray: _build_array,
    np.random.PCG64: _build_bit_generator,
    np.random.Generator: _build_generator,
    np.random.SeedSequence: lambda sequence, state: None,
    spaces.Box: _build_box,
    spaces.Dict: _build_dict,
    **dict.fromkeys(_SCHEDULES, _build_schedule),
    ReplayBuffer: _build_buffer,
    OrderedDict: _build_ordered_dict,
}


def is_unfinished(value: Any) -> bool:
    """
    Whether an object was made but never got its content.

    :param value: anything
    """
    return isinstance(value, _BLANK) and not vars(value)
