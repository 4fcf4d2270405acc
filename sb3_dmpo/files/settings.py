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
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule, TrainFreq

from sb3_dmpo.files import safe_values
from sb3_dmpo.files.safe_values import MAX_DEPTH, SB3_SCHEDULES, TORCH_CLASSES, UnsafeFileError, check, shorten

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


class FormulaSchedule:
    """
    A schedule that one of the usual formulas gives, to the last bit.

    :param formula: which one
    :param first: value at the beginning of a run
    :param last: value at its end
    """

    def __init__(self, formula: str, first: float, last: float) -> None:
        check(isinstance(formula, str) and formula in _FORMULAS, "the schedule", formula)
        check(type(first) is float and type(last) is float, "a schedule of", (first, last))
        self.formula, self.first, self.last = formula, first, last

    def __call__(self, progress_remaining: float) -> float:
        return _FORMULAS[self.formula](progress_remaining, self.first, self.last)


class TabulatedSchedule:
    """
    A schedule as the values that it gives along a run, with straight lines between them. It is exact at the 1025 points of
    the table, and up to rounding wherever the original is straight between two of them.

    :param values: from the end of a run (no progress remains) to its beginning, equally spaced
    """

    def __init__(self, values: Sequence[float]) -> None:
        is_right = type(values) is list and len(values) == _STEPS + 1 and all(type(value) is float for value in values)
        check(is_right, "a schedule of the values", values)
        self.values = values

    def __call__(self, progress_remaining: float) -> float:
        position = min(max(progress_remaining, 0.0), 1.0) * _STEPS
        low = min(int(position), _STEPS - 1)
        share = position - low
        return (1.0 - share) * self.values[low] + share * self.values[low + 1]


def represent_schedule(schedule: Schedule) -> FormulaSchedule | TabulatedSchedule:
    """
    Any function of the remaining progress as plain data: as a formula if one gives the same values to the last bit, else as
    a table.

    :param schedule: the function
    :raises TypeError: it gives no finite numbers, or other ones when it is asked again
    """
    points = [step / _STEPS for step in range(_STEPS + 1)]
    # Between the points of the table too: whoever tells formulas apart looks at all bits.
    between = [math.sqrt(2.0) * point for point in points[:700]]
    try:
        # An object that counts its calls must not notice.
        function = copy.deepcopy(schedule)
        values = [float(function(point)) for point in [*points, *between]]
        again = [float(function(point)) for point in [*points, *between]]
    except Exception as error:  # it is the user's function
        raise TypeError(f"as a schedule it fails with {type(error).__name__}: {error}") from error
    if not all(map(math.isfinite, values)) or values != again:
        raise TypeError("as a schedule it has to give finite numbers, the same for the same progress")
    first, last = values[_STEPS], values[0]
    for name in _FORMULAS:
        formula = FormulaSchedule(name, first, last)
        if values == [formula(point) for point in [*points, *between]]:
            return formula
    return TabulatedSchedule(values[: _STEPS + 1])


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
    return f"{cls.__module__}:{cls.__qualname__}"


def _array(array: np.ndarray | np.generic) -> dict[str, Any]:
    code = array.dtype.newbyteorder("<").str.lstrip("<|")
    safe_values.make_dtype(code)
    content = np.asarray(array, order="C").astype(array.dtype.newbyteorder("<")).tobytes()
    return {"dtype": code, "shape": list(array.shape), "content": base64.b64encode(content).decode("ascii")}


def _space(space: spaces.Space[Any]) -> dict[str, Any]:
    generator = space._np_random
    numbers = None
    if generator is not None and isinstance(generator.bit_generator, np.random.PCG64):
        state: Any = generator.bit_generator.state
        numbers = [state["state"]["state"], state["state"]["inc"], state["has_uint32"], state["uinteger"]]
    if isinstance(space, spaces.Box):
        return {_TYPE: "Box", "low": encode(space.low), "high": encode(space.high), "generator": numbers}
    assert isinstance(space, spaces.Dict)
    inner = {key: encode(value) for key, value in space.spaces.items()}
    return {_TYPE: "Dict", "spaces": inner, "sort_keys": getattr(space, "sort_keys", None), "generator": numbers}


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
    if type(value) is dict:
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
    if type(value) in (*SB3_SCHEDULES, FormulaSchedule, TabulatedSchedule):
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
        return encode(represent_schedule(value))


# Reading --------------------------------------------------------------------------------------------------------


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def parse(content: bytes) -> Any:
    """
    JSON, without what only Python's reader lets through: names that occur twice, and numbers that are none.

    :param content: the text
    :raises ValueError: it is no JSON
    """
    try:
        return json.loads(content.decode(), object_pairs_hook=_object_of, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _text_of_array(value: dict[str, Any]) -> np.ndarray:
    text, shape = value["content"], value["shape"]
    check(type(text) is str and type(shape) is list, "an array of", text)
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError:
        raise UnsafeFileError("asks for an array whose bytes are no base64") from None
    dtype = safe_values.make_dtype(value["dtype"]).newbyteorder("<")
    array = safe_values.make_array(content, dtype, tuple(shape))
    return array.astype(dtype.newbyteorder("="))


def _class_of(name: Any, classes: Mapping[str, type]) -> type:
    check(type(name) is str, "the class", name)
    module, _, qualname = name.partition(":")
    if name in classes:
        return classes[name]
    if qualname not in TORCH_CLASSES.get(module, ()):
        text = shorten(name)[1:-1].replace(":", ".")
        raise UnsafeFileError(
            f"asks for the class {text}; pass it as `trusted_classes=[{shorten(qualname)[1:-1]}]` if you know it"
        )
    found: type = getattr(importlib.import_module(module), qualname)
    return found


def _float_of(text: Any) -> float:
    check(text in ("nan", "inf", "-inf"), "the number", text)
    return float(text)


def _generator_of(numbers: Any) -> np.random.Generator | None:
    return None if numbers is None else safe_values.make_generator(numbers)


_SCHEDULES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "FormulaSchedule": lambda value: FormulaSchedule(value["formula"], value["first"], value["last"]),
    "TabulatedSchedule": lambda value: TabulatedSchedule(value["values"]),
    **{cls.__name__: lambda value, cls=cls: safe_values.make_schedule(cls, value) for cls in SB3_SCHEDULES},  # type: ignore[misc]
}
#: What objects are made by, from their decoded entries.
_MAKERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "float": lambda value: _float_of(value["value"]),
    "tuple": lambda value: tuple(safe_values.make_deque(value["items"], None)),
    "deque": lambda value: safe_values.make_deque(value["items"], value["maxlen"]),
    "array": _text_of_array,
    "scalar": lambda value: _text_of_array(value | {"shape": []})[()],
    "Box": lambda value: safe_values.make_box(value["low"], value["high"], _generator_of(value["generator"])),
    "Dict": lambda value: safe_values.make_dict(value["spaces"], value["sort_keys"], _generator_of(value["generator"])),
    "TrainFreq": lambda value: safe_values.make_train_freq(value["frequency"], value["unit"]),
    **_SCHEDULES,
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
        kind = value[_TYPE]
        try:
            if kind == "class":
                return _class_of(content["name"], classes)
            check(type(kind) is str and kind in _MAKERS, "an object of the type", kind)
            return _MAKERS[kind](content)
        except KeyError as error:
            raise UnsafeFileError(f"asks for a {shorten(kind)} without {error}") from None
    # As text, numbers can be larger than a float is.
    check(type(value) is not float or math.isfinite(value), "the number", value)
    return value
