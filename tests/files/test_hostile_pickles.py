"""Pickles that use what is allowed for what it is not meant for. Each is refused before it allocates or changes anything."""

import io
import pickle
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_dmpo.data import DatasetError, load_transitions
from sb3_dmpo.files.safe_zip import AllowListUnpickler, UnsafeFileError

UTILS = "stable_baselines3.common.utils"
HUGE = 10**11


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def value(content: Any) -> bytes:
    """Opcodes that put something on the stack; bytes are opcodes already."""
    if isinstance(content, bytes):
        return content
    if isinstance(content, tuple):
        return b"(" + b"".join(map(value, content)) + b"t"
    if isinstance(content, list):
        return b"](" + b"".join(map(value, content)) + b"e"
    if isinstance(content, dict):
        return b"}(" + b"".join(value(key) + value(entry) for key, entry in content.items()) + b"u"
    return pickle.dumps(content, protocol=2)[2:-1]


def call(module: str, name: str, *arguments: Any) -> bytes:
    return named(module, name) + value(arguments) + b"R"


def new(module: str, name: str, state: Any = None) -> bytes:
    made = named(module, name) + b")\x81"
    return made if state is None else made + value(state) + b"b"


def raw_bytes(content: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(content)) + content


FLOATS = call("numpy", "dtype", "f4", False, True)
BIT_GENERATOR = call("numpy.random._pickle", "__bit_generator_ctor", named("numpy.random._pcg64", "PCG64"))
ARRAY = call("numpy._core.numeric", "_frombuffer", raw_bytes(b"\0\0\0\0"), FLOATS, (1,), "C")
EMPTY = call("numpy._core.multiarray", "_reconstruct", named("numpy", "ndarray"), (0,), raw_bytes(b"b"))
BOX_STATE = {"dtype": FLOATS, "_shape": (1,), "low": ARRAY, "high": ARRAY}
BOX = ("gymnasium.spaces.box", "Box")
DICT = ("gymnasium.spaces.dict", "Dict")


def doubled(start: bytes, times: int) -> bytes:
    """A list that holds the same list twice, which holds the same list twice, ..."""
    pickled = start + b"q\x00"
    for level in range(times):
        pickled += b"](h" + bytes([level]) + b"h" + bytes([level]) + b"eq" + bytes([level + 1])
    return pickled


def dict_of_itself() -> bytes:
    return named(*DICT) + b")\x81q\x01" + value({"spaces": {"a": b"h\x01"}}) + b"b"


def nested_dicts(levels: int, width: int) -> bytes:
    pickled = new(*BOX, BOX_STATE) + b"q\x00"
    for level in range(levels):
        inner = {str(index): b"h" + bytes([level]) for index in range(width)}
        pickled += new(*DICT, {"spaces": inner}) + b"q" + bytes([level + 1])
    return pickled


PICKLES = {
    "attribute of a class": named(UTILS, "ConstantSchedule")
    + value((None, {"__call__": named("torch.optim.sgd", "SGD")}))
    + b"b",
    "attribute of an activation": named("torch.nn.modules.activation", "ReLU") + value((None, {"inplace": True})) + b"b",
    "call of an activation": call("torch.nn.modules.activation", "ReLU"),
    "call of an optimizer": call("torch.optim.sgd", "SGD", [1], 0.1),
    "array of a shape": call("numpy", "ndarray", (HUGE,)),
    "array that repeats its bytes": call("numpy", "ndarray", (HUGE,), "b", raw_bytes(b"\0" * 8), 0, (0,)),
    "array by NEWOBJ": named("numpy", "ndarray") + value(((HUGE,),)) + b"\x81",
    "array reconstructed": call("numpy._core.multiarray", "_reconstruct", named("numpy", "ndarray"), (HUGE,), raw_bytes(b"d")),
    "array without its bytes": EMPTY + value((1, (HUGE,), FLOATS, False, raw_bytes(b"\0" * 8))) + b"b",
    "array changed twice": EMPTY + value((1, (1,), FLOATS, False, raw_bytes(b"\0" * 4))) * 1 + b"b" + value((1, (0,))) + b"b",
    "buffer of another shape": call("numpy._core.numeric", "_frombuffer", raw_bytes(b"\0"), FLOATS, (HUGE,), "C"),
    "buffer of a negative shape": call("numpy._core.numeric", "_frombuffer", raw_bytes(b"\0" * 4), FLOATS, (-1,), "C"),
    "scalar without bytes": call("numpy._core.multiarray", "scalar", call("numpy", "dtype", f"V{2**30}", False, True)),
    "scalar of objects": call("numpy._core.multiarray", "scalar", call("numpy", "dtype", "O8"), raw_bytes(b"\0" * 8)),
    "type with fields": call("numpy", "dtype", [("a", "f4")], False, True),
    "type of subarrays": call("numpy", "dtype", (f"({2**20},{2**20})f4"), False, True),
    "type of the other byte order": FLOATS + value((3, ">", None, None, None, -1, -1, 0)) + b"b",
    "deque of an array": call("collections", "deque", ARRAY),
    "deque of a negative length": call("collections", "deque", [], -1),
    "device of anything": call("torch", "device", [1]),
    "schedule of a class": new(UTILS, "FloatSchedule", {"value_schedule": named("collections", "deque")}),
    "schedule of itself": named(UTILS, "FloatSchedule") + b")\x81q\x01" + value({"value_schedule": b"h\x01"}) + b"b",
    "schedule without content": new(UTILS, "ConstantSchedule"),
    "schedule with a method": new(UTILS, "ConstantSchedule", {"val": 1.0, "__class__": 1}),
    "schedule that is infinite": new(UTILS, "ConstantSchedule", {"val": float("inf")}),
    "frequency of a list": named("stable_baselines3.common.type_aliases", "TrainFreq") + value(([1], "step")) + b"\x81",
    "box without content": new(*BOX),
    "box of another shape": new(*BOX, BOX_STATE | {"_shape": (HUGE,)}),
    "box of numbers": new(*BOX, BOX_STATE | {"low": 1.0}),
    "box changed twice": new(*BOX, BOX_STATE) + value(BOX_STATE) + b"b",
    "dict of itself": dict_of_itself(),
    "dict of strings": new(*DICT, {"spaces": {"a": "b"}}),
    "dict of dicts of dicts": nested_dicts(60, 1),
    "dict of the same dicts": nested_dicts(8, 40),
    "generator in no state": BIT_GENERATOR + value(({"state": {"state": "x"}}, None)) + b"b",
    "generator of another kind": call("numpy.random._pickle", "__bit_generator_ctor", "MT19937"),
    "generator of a list": call("numpy.random._pickle", "__generator_ctor", [1]),
    "lists of the same lists": doubled(value([1]), 40),
    "lists in lists": b"]" * 100_000 + b"a" * 99_999,
    "list of itself": b"]q\x01h\x01a",
    "items of an array": ARRAY + value(0) + value(1) + b"s",
    "entries of a deque class": named("collections", "deque") + value(1) + b"a",
    "keywords": named("collections", "deque") + b")}\x92",
    "persistent id": b"Pname\n",
    "extension": b"\x82\x01",
    "old-style class": b"(icollections\ndeque\n",
    "set": b"\x8f",
}
DAMAGED = {
    "bytes that are not there": b"\x96" + struct.pack("<Q", 2**40),
    "text that is not there": b"\x8d" + struct.pack("<Q", 2**40),
    "frame that is not there": b"\x95" + struct.pack("<Q", 2**40),
    "number that is not there": b"\x8b" + struct.pack("<i", 2**30),
}


def load(content: bytes) -> Any:
    return AllowListUnpickler(io.BytesIO(content)).load()


@pytest.mark.parametrize("name", [*PICKLES, *DAMAGED])
def test_refused_before_anything_is_allocated(name: str) -> None:
    content = b"\x80\x04" + (PICKLES | DAMAGED)[name] + b"."
    tracemalloc.start()
    try:
        with pytest.raises(UnsafeFileError if name in PICKLES else (EOFError, pickle.UnpicklingError)) as caught:
            load(content)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 500


def test_arrays_of_objects_are_not_made() -> None:
    """Hindsight replay keeps one that nobody needs."""
    content = EMPTY + value((1, (1,), call("numpy", "dtype", "O8", False, True), False, [1])) + b"b"
    assert load(b"\x80\x04" + content + b".") is None


def test_classes_are_as_before() -> None:
    """Live: SB3's class would stay changed in the whole process."""
    content = b"\x80\x04" + PICKLES["attribute of a class"] + b"."
    original = ConstantSchedule.__call__
    try:
        pickle.loads(content)
        assert ConstantSchedule.__call__ is not original
    finally:
        ConstantSchedule.__call__ = original  # type: ignore[method-assign]
    with pytest.raises(UnsafeFileError, match="a change of ConstantSchedule"):
        load(content)
    assert ConstantSchedule.__call__ is original


def test_methods_of_spaces_are_not_taken_from_the_file() -> None:
    box = load(b"\x80\x04" + new(*BOX, BOX_STATE | {"sample": named("collections", "deque")}) + b".")
    assert box == spaces.Box(0, 0, (1,)) and box.sample() == [0] and "sample" not in vars(box)


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_what_models_hold_comes_back(protocol: int) -> None:
    rng = np.random.default_rng(3)
    arrays = [np.zeros((0, 3)), rng.random((3, 4)), np.asfortranarray(rng.random((3, 4))), rng.random((4, 6))[::2, 1:3]]
    arrays += [rng.integers(0, 255, (2, 3), np.uint8), np.array([True, False]), np.array(2.5, np.float32)]
    for array in arrays:
        found = load(pickle.dumps(array, protocol=protocol))
        np.testing.assert_array_equal(found, array)
        assert (found.dtype, type(found)) == (array.dtype, np.ndarray)
    for scalar in (np.float32(1.5), np.int64(-3), np.float64(np.nan)):
        found = load(pickle.dumps(scalar, protocol=protocol))
        assert type(found) is type(scalar) and str(found) == str(scalar)
    low = spaces.Box(np.array([-1, -np.inf]), np.array([2, np.inf]), dtype=np.float64)
    space = spaces.Dict(OrderedDict(z=low, a=spaces.Dict(b=spaces.Box(0, 255, (2, 2), np.uint8))))
    space.seed(4)
    found = load(pickle.dumps(space, protocol=protocol))
    assert found == space and list(found.spaces) == list(space.spaces)
    assert found["z"].np_random.bit_generator.state == space["z"].np_random.bit_generator.state
    for schedule in (FloatSchedule(LinearSchedule(1e-3, 0.0, 0.5)), FloatSchedule(0.25), ConstantSchedule(2)):
        assert load(pickle.dumps(schedule, protocol=protocol))(0.75) == schedule(0.75)


@pytest.mark.parametrize(
    "changes",
    [
        {"sample": 1},
        {"pos": HUGE},
        {"pos": -1},
        {"pos": 2.5},
        {"buffer_size": HUGE, "full": True},
        {"n_envs": HUGE},
        {"rewards": np.zeros((2, 1))},
        {"dones": None},
        {"actions": np.zeros((10, 1, 5))},
        {"observations": {"a": np.zeros((10, 1, 3))}},
        {"timeouts": np.zeros(3)},
        {"observation_space": None},
    ],
    ids=str,
)
def test_buffer_that_contradicts_itself(tmp_path: Path, changes: dict[str, Any]) -> None:
    buffer = ReplayBuffer(10, spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), device="cpu")
    for _ in range(4):
        buffer.add(np.zeros(3), np.zeros(3), np.zeros(2), np.zeros(1), np.zeros(1), [{}])
    path = tmp_path / "buffer.pkl"
    path.write_bytes(pickle.dumps(buffer))
    assert len(load_transitions(path, cache=False)) == 4
    vars(buffer).update(changes)
    path.write_bytes(pickle.dumps(buffer))
    with pytest.raises(DatasetError, match=r"buffer\.pkl"):
        load_transitions(path, cache=False)
