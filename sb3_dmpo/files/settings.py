"""
The entry ``settings.json`` of a model's zip: attributes as plain data. Objects are JSON objects with a ``"$type"``; the
bounds of spaces and other arrays keep every bit.
"""

import base64
import copy
import importlib
import json
import math
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule, TrainFreq

from sb3_dmpo.files import safe_values
from sb3_dmpo.files.safe_values import (
    MAKERS,
    MAX_BITS,
    MAX_DEPTH,
    MAX_ENTRIES,
    SB3_SCHEDULES,
    TORCH_CLASSES,
    UnsafeFileError,
    check,
    classes_by_name,
    shorten,
)

#: Marks an object.
_TYPE = "$type"
#: Steps of the table of a schedule: a power of two, so that its points are numbers without rounding.
_STEPS = 1024


# Schedules ------------------------------------------------------------------------------------------------------

#: Schedules as people write them: a function of the remaining progress, the first and the last value. Which of the ways
#: to write a straight line it is matters for the last bit.
_FORMULAS: dict[str, Callable[[float, float, float], float]] = {
    "constant": lambda progress, first, last: first,
    "proportional": lambda progress, first, last: progress * first,
    "line from the end": lambda progress, first, last: last + progress * (first - last),
    "line from the start": lambda progress, first, last: first + (1 - progress) * (last - first),
    "cosine": lambda progress, first, last: 0.5 * first * (1.0 + math.cos(math.pi * (1.0 - progress))),
}


class PlainSchedule:
    """
    A schedule as plain data: one of the usual formulas, or the values that it gives along a run with straight lines between
    them. A table is exact at its 1025 points, and up to rounding wherever the original is straight between two of them.

    :param formula: which formula, or ``"table"``
    :param values: the first and the last value of a run, or all from the end of a run to its beginning, equally spaced
    """

    def __init__(self, formula: str, values: list[float]) -> None:
        length = _STEPS + 1 if formula == "table" else 2
        check(formula == "table" or (type(formula) is str and formula in _FORMULAS), "the schedule", formula)
        is_right = type(values) is list and len(values) == length and all(type(value) is float for value in values)
        check(is_right and all(map(math.isfinite, values)), "a schedule of", values)
        self.formula, self.values = formula, values

    def __call__(self, progress_remaining: float) -> float:
        if self.formula in _FORMULAS:
            return _FORMULAS[self.formula](progress_remaining, *self.values)
        position = min(max(progress_remaining, 0.0), 1.0) * _STEPS
        low = min(int(position), _STEPS - 1)
        share = position - low
        return (1.0 - share) * self.values[low] + share * self.values[low + 1]


def plain_schedule(schedule: Schedule) -> PlainSchedule:
    """
    Any function of the remaining progress as plain data: as a formula if one gives the same values to the last bit, else as
    a table.

    :param schedule: the function
    :raises TypeError: it gives no finite numbers, or other ones when it is asked again
    """
    # Between the points of the table too: whoever tells formulas apart looks at all bits.
    points = [step / _STEPS for step in range(_STEPS + 1)]
    points += [math.sqrt(0.5) * point for point in points]
    try:
        # An object that counts its calls must not notice.
        function = copy.deepcopy(schedule)
        values = [float(function(point)) for point in points]
        is_steady = values == [float(function(point)) for point in points]
    except Exception as error:  # it is the user's function
        raise TypeError(f"as a schedule it fails with {type(error).__name__}: {error}") from error
    if not is_steady or not all(map(math.isfinite, values)):
        raise TypeError("as a schedule it has to give finite numbers, the same for the same progress")
    for formula in _FORMULAS:
        candidate = PlainSchedule(formula, [values[_STEPS], values[0]])
        if values == [candidate(point) for point in points]:
            return candidate
    return PlainSchedule("table", values[: _STEPS + 1])


# Writing --------------------------------------------------------------------------------------------------------


def class_name(cls: type) -> str:
    """
    Where a class is found: ``module:name``.

    :param cls: the class
    :raises TypeError: it cannot be imported
    """
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not cls:
        raise TypeError(f"the class {cls.__qualname__} cannot be imported: define it at the top of a module")
    return next(iter(classes_by_name([cls])))


def _array(array: np.ndarray | np.generic) -> dict[str, Any]:
    code = array.dtype.newbyteorder("<").str.lstrip("<|")
    safe_values.make_dtype(code)
    content = np.asarray(array, order="C").astype(array.dtype.newbyteorder("<")).tobytes()
    return {"dtype": code, "shape": list(array.shape), "content": base64.b64encode(content).decode("ascii")}


def _space(space: spaces.Space[Any]) -> dict[str, Any]:
    generator = None
    if space._np_random is not None and isinstance(space._np_random.bit_generator, np.random.PCG64):
        state: Any = space._np_random.bit_generator.state
        numbers = [state["state"]["state"], state["state"]["inc"], state["has_uint32"], state["uinteger"]]
        generator = {_TYPE: "generator", "numbers": numbers}
    if isinstance(space, spaces.Box):
        return {_TYPE: "Box", "low": encode(space.low), "high": encode(space.high), "generator": generator}
    assert isinstance(space, spaces.Dict)
    inner = {key: encode(value) for key, value in space.spaces.items()}
    return {_TYPE: "Dict", "inner": inner, "sort_keys": getattr(space, "sort_keys", None), "generator": generator}


def encode(value: Any) -> Any:
    """
    A value as JSON.

    :param value: numbers, texts, lists, dicts, arrays, spaces, schedules of Stable-Baselines3, classes, ...
    :raises TypeError: there is no such form
    """
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    if type(value) is float:
        return {_TYPE: "float", "value": repr(value)}
    if type(value) is list:
        return [encode(item) for item in value]
    # Stable-Baselines3's environments give OrderedDicts as observations.
    if type(value) in (dict, OrderedDict):
        if not all(type(key) is str and key != _TYPE for key in value):
            raise TypeError(f"the keys of a dict have to be texts, but are {shorten(list(value))}")
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, TrainFreq):
        return {_TYPE: "TrainFreq", "frequency": value.frequency, "unit": value.unit.value}
    if type(value) is tuple:
        return {_TYPE: "tuple", "items": [encode(item) for item in value]}
    if type(value) is deque:
        return {_TYPE: "deque", "items": [encode(item) for item in value], "maxlen": value.maxlen}
    if type(value) is np.ndarray or isinstance(value, np.generic):
        return {_TYPE: "scalar" if isinstance(value, np.generic) else "array", **_array(value)}
    if isinstance(value, spaces.Box | spaces.Dict):
        return _space(value)
    if isinstance(value, type):
        return {_TYPE: "class", "name": class_name(value)}
    if type(value) in (*SB3_SCHEDULES, PlainSchedule):
        inner = {key: encode_schedule(item) if callable(item) else encode(item) for key, item in vars(value).items()}
        return {_TYPE: type(value).__name__, **inner}
    raise TypeError(f"a {type(value).__name__} has no form as plain data")


def encode_schedule(value: Any) -> Any:
    """
    A value as JSON, where functions are schedules.

    :param value: as in :func:`encode`, or a function of the remaining progress
    :raises TypeError: there is no such form
    """
    try:
        return encode(value)
    except TypeError:
        if not callable(value) or isinstance(value, type):
            raise
        return encode(plain_schedule(value))


# Reading --------------------------------------------------------------------------------------------------------


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _integer_of(text: str) -> int:
    # As many digits as the longest number has: reading thousands of them takes time.
    if len(text) > MAX_BITS // 3:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def parse(content: bytes, is_strict: bool = True) -> Any:
    """
    JSON, without what only Python's reader lets through: names that occur twice, and numbers that are none.

    :param content: the text
    :param is_strict: refuse numbers that are none; Stable-Baselines3 writes them
    :raises ValueError: it is no JSON, or nested as no settings are
    """
    constant = _refuse_constant if is_strict else None
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_ENTRIES:
        raise ValueError(f"it has more than {MAX_ENTRIES} entries")
    try:
        value = json.loads(content.decode(), object_pairs_hook=_object_of, parse_int=_integer_of, parse_constant=constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    _check_nesting(value)
    return value


def _check_nesting(value: Any) -> None:
    """Level by level, not by a function that calls itself."""
    level = [value]
    for _ in range(MAX_DEPTH + 4):
        level = [
            inner
            for item in level
            if isinstance(item, list | dict)
            for inner in (item if isinstance(item, list) else item.values())
        ]
        if not level:
            return
    raise ValueError("it is nested too deep")


def _array_of(dtype: Any, shape: Any, content: Any) -> np.ndarray:
    check(type(content) is str and type(shape) is list, "an array of", content)
    stored = safe_values.make_dtype(dtype).newbyteorder("<")
    array = safe_values.make_array(base64.b64decode(content, validate=True), stored, tuple(shape))
    return array.astype(stored.newbyteorder("="))


def _class_of(name: Any, classes: Mapping[str, type]) -> type:
    check(type(name) is str, "the class", name)
    module, _, qualname = name.partition(":")
    if name not in classes and qualname not in TORCH_CLASSES.get(module, ()):
        text = repr(name[:100])[1:-1].replace(":", ".")
        raise UnsafeFileError(f"asks for the class {text} (`trusted_classes=[...]` takes those that you know)")
    found: type = classes.get(name) or getattr(importlib.import_module(module), qualname)
    return found


_MAKERS: dict[str, Callable[..., Any]] = MAKERS | {
    "array": _array_of,
    "scalar": lambda dtype, shape, content: _array_of(dtype, [], content)[()],
    "PlainSchedule": PlainSchedule,
}


def decode(value: Any, classes: Mapping[str, type], depth: int = 0) -> Any:
    """
    What :func:`encode` has written.

    :param value: parsed JSON
    :param classes: classes that may be named besides PyTorch's, as :func:`class_name` names them
    :param depth: how deep it lies
    :raises UnsafeFileError: it is something else, or names another class
    """
    check(depth <= MAX_DEPTH, "values that are nested too deep:", type(value))
    if isinstance(value, list):
        return [decode(item, classes, depth + 1) for item in value]
    if isinstance(value, dict):
        content = {key: decode(item, classes, depth + 1) for key, item in value.items() if key != _TYPE}
        if _TYPE not in value:
            return content
        if value[_TYPE] == "class":
            return _class_of(content.get("name"), classes)
        check(type(value[_TYPE]) is str and value[_TYPE] in _MAKERS, "an object of the type", value[_TYPE])
        return _MAKERS[value[_TYPE]](**content)
    # As text, numbers can be larger than a float is.
    check(type(value) is not float or math.isfinite(value), "the number", value)
    return value
