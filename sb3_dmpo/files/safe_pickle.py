"""
Pickles of unknown origin: replay buffers and agents of Stable-Baselines3, models of early versions, and what
``torch.save`` writes. A pickle is a program. This machine only notes what it asks for, by exact names from a short list;
the objects are made afterwards, from values that were checked, and never by what the file calls.
"""

import importlib
import io
import math
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.her import GoalSelectionStrategy, HerReplayBuffer

from sb3_dmpo.files.archive import Budget
from sb3_dmpo.files.safe_values import (
    MAKERS,
    MAX_BITS,
    MAX_DEPTH,
    MAX_ENTRIES,
    SB3_SCHEDULES,
    TORCH_CLASSES,
    UnsafeFileError,
    check,
    check_key,
    make_array,
    make_dtype,
    shorten,
)

#: Enumerations whose members may be asked for.
_ENUMERATIONS: tuple[type[Enum], ...] = (TrainFrequencyUnit, GoalSelectionStrategy)
Name = tuple[str, str]
_Maker = Callable[..., Any]
_Handler = Callable[[Any], None]
#: Operations and their arguments that a pickle may consist of, and the length of a line of text in it.
_MAX_STEPS, _MAX_LINE = 10**6, 1024

#: What the machine can do. Not among it: persistent ids, copyreg's extensions, calls with keywords, sets, old-style classes.
_OPCODES = (
    "PROTO FRAME STOP MARK POP POP_MARK DUP MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET NONE NEWTRUE NEWFALSE INT "
    "BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINBYTES BINBYTES8 SHORT_BINBYTES UNICODE "
    "BINUNICODE BINUNICODE8 SHORT_BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST EMPTY_DICT DICT GLOBAL "
    "STACK_GLOBAL APPEND APPENDS SETITEM SETITEMS"
)
_STANDARD: dict[int, _Handler] = pickle._Unpickler.dispatch


# What may be asked for ------------------------------------------------------------------------------------------
# A maker takes what ``__setstate__`` would get (None: nothing), and the arguments of the call.


def _dtype(state: Any, code: Any, *flags: Any) -> np.dtype[Any]:
    is_native = state is None or (
        isinstance(state, tuple) and len(state) > 1 and state[1] in ("=", "|", np.dtype("<i4").str[0])
    )
    check(is_native, "a data type with", state)
    return make_dtype(code)


def _array(state: Any, content: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> Any:
    check(state is None, "an array in the state", state)
    return make_array(content, dtype, shape, order, axis_order)


def _array_of_state(state: Any, kind: Any, shape: Any, *typecode: Any) -> Any:
    # NumPy's own function allocates whatever shape it is given; the content comes with the state.
    check(kind is np.ndarray and shape == (0,), "an array of shape", shape)
    check(isinstance(state, tuple) and len(state) == 5, "an array in the state", state)
    return make_array(state[4], state[2], state[1], "F" if state[3] else "C").copy(order="K")


def _scalar(state: Any, dtype: Any, content: Any) -> Any:
    return _array(state, content, dtype, (), "C")[()]


def _generator(state: Any, source: Any = "PCG64", *rest: Any) -> Any:
    if isinstance(source, np.random.Generator) and state is None:
        return source
    check(source is np.random.PCG64 or source == "PCG64", "the random generator", source)
    values = state[0] if isinstance(state, tuple) and len(state) == 2 else state
    try:
        numbers = [values["state"]["state"], values["state"]["inc"], values["has_uint32"], values["uinteger"]]
    except (KeyError, TypeError, IndexError):
        numbers = [None]
    return MAKERS["generator"](numbers)


def _fields(state: Any, *arguments: Any) -> dict[Any, Any]:
    check(type(state) is dict and arguments == (), "an object of", state)
    return dict(state)


def _box(state: Any, *arguments: Any) -> Any:
    # What else is in the state follows from the bounds, and depends on the version of gymnasium.
    values = _fields(state, *arguments)
    low = values.get("low")
    is_right = isinstance(low, np.ndarray) and low.shape == values.get("_shape") and low.dtype == values.get("dtype")
    check(is_right, "a Box with the bound", low)
    return MAKERS["Box"](low, values.get("high"), values.get("_np_random"))


def _dict_space(state: Any, *arguments: Any) -> Any:
    values = _fields(state, *arguments)
    return MAKERS["Dict"](values.get("spaces"), values.get("sort_keys"), values.get("_np_random"))


def _schedule(state: Any, *arguments: Any, cls: type) -> Any:
    return MAKERS[cls.__name__](**_fields(state, *arguments))


def _deque(state: Any, content: Any = (), maxlen: Any = None) -> Any:
    check(type(content) in (tuple, list) and len(content) == 0, "a deque of", content)
    return MAKERS["deque"]([] if state is None else state, maxlen)


def _train_freq(state: Any, frequency: Any, unit: Any) -> Any:
    return MAKERS["TrainFreq"](frequency, unit.value if isinstance(unit, TrainFrequencyUnit) else None)


def _member(state: Any, value: Any, *name: Any, cls: type[Enum] | None = None) -> Enum:
    """Some versions of Python (3.11.2, which Debian 12 has) write the member of an enumeration by ``getattr``."""
    members = [member for kind in _ENUMERATIONS for member in kind]
    if cls is None:
        members = [member for member in members if type(member) is value and (member.name,) == name]
    else:
        members = [member for member in members if type(member) is cls and member.value == value and name == ()]
    check(len(members) == 1, "a member of an enumeration of", (value, *name))
    return members[0]


def _device(state: Any, kind: Any, index: Any = None) -> str:
    # Not a device of PyTorch: nothing that is read here computes with it, and reading data does not import PyTorch.
    check(type(kind) is str and (index is None or type(index) is int), "the device", (kind, index))
    return str(kind)


def _buffer(state: Any, *arguments: Any, cls: type[ReplayBuffer]) -> ReplayBuffer:
    values = _fields(state, *arguments)
    kinds = (bool, int, float, str, tuple, type, np.ndarray, spaces.Space, GoalSelectionStrategy, type(None))
    for key, value in values.items():
        check(type(key) is str and not hasattr(cls, key), "a buffer with the attribute", key)
        parts = value.values() if isinstance(value, dict) else [value]
        check(all(isinstance(part, kinds) for part in parts), f"a buffer whose {key} is", value)
    buffer = cls.__new__(cls)
    vars(buffer).update(values)
    return buffer


def _ordered_dict(state: Any) -> OrderedDict[Any, Any]:
    return OrderedDict(state or {})


_NUMPY_CORES = ("numpy._core", "numpy.core")
#: What may be called, by module and name.
FUNCTIONS: dict[Name, _Maker] = {
    ("builtins", "getattr"): _member,
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "deque"): _deque,
    ("gymnasium.spaces.box", "Box"): _box,
    ("gymnasium.spaces.dict", "Dict"): _dict_space,
    ("numpy", "dtype"): _dtype,
    **{(f"{core}.multiarray", "_reconstruct"): _array_of_state for core in _NUMPY_CORES},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _NUMPY_CORES},
    **{(f"{core}.numeric", "_frombuffer"): _array for core in _NUMPY_CORES},
    ("numpy.random._pickle", "__bit_generator_ctor"): _generator,
    ("numpy.random._pickle", "__generator_ctor"): _generator,
    # What a generator was seeded with, which its state does not depend on.
    ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"): lambda state, *arguments: None,
    **{
        (cls.__module__, cls.__name__): partial(_buffer, cls=cls)
        for cls in (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer, HerReplayBuffer)
    },
    ("stable_baselines3.common.type_aliases", "TrainFreq"): _train_freq,
    **{(cls.__module__, cls.__name__): partial(_member, cls=cls) for cls in _ENUMERATIONS},
    **{(cls.__module__, cls.__name__): partial(_schedule, cls=cls) for cls in SB3_SCHEDULES},
    ("torch", "device"): _device,
}
#: Classes that may be named, and not called, by module.
NAMED: dict[str, tuple[str, ...]] = TORCH_CLASSES | {
    "numpy": ("ndarray", "dtype", "float32", "float64", "int64"),
    "numpy.random._pcg64": ("PCG64",),
    "numpy.random.bit_generator": ("SeedSequence",),
    **{cls.__module__: (cls.__name__,) for cls in _ENUMERATIONS},
}


# The machine ----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Object:
    """
    What a pickle says about an object.

    :param name: module and name of its class, or of the function that makes it
    :param arguments: of the call; None: it is only named
    :param state: what ``__setstate__`` would get
    :param content: entries that are added to it
    """

    name: Name
    arguments: Any = None
    state: Any = None
    content: Any = field(default_factory=list)

    def append(self, item: Any) -> None:
        """An entry of a deque."""
        self.content.append(item)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.content.append((key, value))


def _text(value: Any) -> str:
    return value.name[1][:80] if isinstance(value, _Object) else shorten(value)


def _holds_objects(noted: _Object) -> bool:
    """
    Whether it is an array of objects and not of numbers. Hindsight replay keeps one with the infos of all steps, which is not
    needed, and so not made.
    """
    dtype = noted.state[2] if type(noted.state) is tuple and len(noted.state) == 5 else None
    return noted.name[1] == "_reconstruct" and isinstance(dtype, _Object) and dtype.arguments == ("O8", False, True)


class _BoundedFile:
    """A file whose reader takes neither memory for more than there is in it, nor time without end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._steps_left = file, size, _MAX_STEPS

    def read(self, n: int) -> bytes:
        self._steps_left -= 1
        check(self._steps_left >= 0, "more operations than", _MAX_STEPS)
        if n > self._size:
            raise EOFError("Ran out of input")
        return self._file.read(n)

    def readline(self) -> bytes:
        line = self._file.readline(_MAX_LINE + 1)
        check(len(line) <= _MAX_LINE, "a line of text that is longer than", _MAX_LINE)
        return line

    def readinto(self, buffer: bytearray) -> int:
        return self._file.readinto(buffer)  # type: ignore[attr-defined, no-any-return]


class AllowListUnpickler(pickle._Unpickler):
    """
    An unpickler that makes the objects of the lists above, and executes nothing.

    :param file: the pickle
    :param classes: further classes that may be named, by ``module:name``, e.g. the policies of the algorithm that loads
    """

    functions: ClassVar[Mapping[Name, _Maker]] = FUNCTIONS
    dispatch: ClassVar[dict[int, _Handler]] = {
        getattr(pickle, name)[0]: _STANDARD[getattr(pickle, name)[0]] for name in _OPCODES.split()
    }

    def __init__(self, file: BinaryIO, classes: Mapping[str, type] | None = None) -> None:
        self._size = file.seek(0, io.SEEK_END)
        file.seek(0)
        super().__init__(_BoundedFile(file, self._size))
        self._classes = classes or {}
        self._budget = Budget(self._size)
        #: What was made already and the number of its entries, by id; None: it is being made.
        self._made: dict[int, tuple[Any, int] | None] = {}

    def load(self) -> Any:
        """
        The object in the file.

        :raises UnsafeFileError: it asks for something that is not allowed
        :raises Exception: whatever a damaged pickle leads to
        """
        try:
            noted = super().load()
        except KeyError as error:
            # What the loop of the base does with an operation that is not in the table.
            if error.args and type(error.args[0]) is int:
                raise UnsafeFileError(f"asks for the operation {error.args[0]:#x}") from None
            raise
        return self._make(noted, 0)[0]

    def find_class(self, module: str, name: str) -> Any:
        """
        What the pickle refers to by name, to be made later.

        :raises UnsafeFileError: it is not on a list
        """
        is_known = (module, name) in self.functions or f"{module}:{name}" in self._classes or name in NAMED.get(module, ())
        if not is_known:
            raise UnsafeFileError(f"asks for {shorten(module)[1:-1]}.{shorten(name)[1:-1]}")
        return _Object((module, name))

    def _call(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        is_named = isinstance(called, _Object) and called.arguments is None and called.name in self.functions
        if not is_named or type(arguments) is not tuple:
            raise UnsafeFileError(f"asks for a call of {_text(called)}")
        self.append(_Object(called.name, arguments))  # type: ignore[attr-defined]

    def _build(self) -> None:
        state, changed = self.stack.pop(), self.stack[-1]  # type: ignore[attr-defined]
        # Once, and never a class: what is set on it would stay after loading.
        is_new = isinstance(changed, _Object) and changed.arguments is not None and changed.state is None
        if not is_new:
            raise UnsafeFileError(f"asks for a change of {_text(changed)}")
        changed.state = state

    def _bytearray(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        if length > self._size:
            raise EOFError("Ran out of input")
        content = bytearray(length)
        self.readinto(content)  # type: ignore[attr-defined]
        self.append(content)  # type: ignore[attr-defined]

    def _frame(self) -> None:
        # Nothing but a hint how much to read ahead, and every read is to be counted.
        (length,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        if length > self._size:
            raise EOFError("Ran out of input")

    def _number(self, code: bytes) -> None:
        _STANDARD[code[0]](self)
        number = self.stack[-1]  # type: ignore[attr-defined]
        check(abs(number) < 2**MAX_BITS, "a number with more bits than", MAX_BITS)

    def _put_in_dict(self, code: bytes) -> None:
        # One entry lies behind the dict; several, or those of a new dict, are all that is on the stack since the mark.
        for key in self.stack[-2:-1] if code == pickle.SETITEM else self.stack[::2]:  # type: ignore[attr-defined]
            check_key(key)
        _STANDARD[code[0]](self)

    dispatch |= {pickle.BYTEARRAY8[0]: _bytearray, pickle.FRAME[0]: _frame}
    dispatch |= {pickle.REDUCE[0]: _call, pickle.NEWOBJ[0]: _call, pickle.BUILD[0]: _build}
    for _code in (pickle.INT, pickle.LONG, pickle.LONG1, pickle.LONG4):
        dispatch[_code[0]] = partial(_number, code=_code)
    for _code in (pickle.SETITEM, pickle.SETITEMS, pickle.DICT):
        dispatch[_code[0]] = partial(_put_in_dict, code=_code)

    def _make(self, noted: Any, depth: int) -> tuple[Any, int]:
        """
        What was noted, made, and the number of its entries. Every reference counts: a small pickle can refer to a list ten
        times, to the list of these ten times, and so on.

        :param noted: anything that the machine has put together
        :param depth: how deep it lies
        :raises UnsafeFileError: too many, too deep, a container that contains itself, or not allowed
        """
        if not isinstance(noted, list | tuple | dict | _Object):
            return noted, 1
        if id(noted) in self._made:
            made = self._made[id(noted)]
            check(made is not None, "a container that contains itself:", type(noted))
            return made  # type: ignore[return-value]
        check(depth <= MAX_DEPTH, "containers that are nested too deep:", type(noted))
        if isinstance(noted, _Object) and _holds_objects(noted):
            return None, 1
        self._made[id(noted)] = None
        parts: Any = noted
        if isinstance(noted, _Object):
            parts = [noted.arguments, noted.state, noted.content]
        elif isinstance(noted, dict):
            parts = [*noted, *noted.values()]
        values, total = [], 1
        for part in parts:
            value, count = self._make(part, depth + 1)
            values.append(value)
            total += count
            check(total <= MAX_ENTRIES, "more entries than", MAX_ENTRIES)
        if isinstance(noted, _Object):
            result = self._make_object(noted.name, *values)
            # Many objects may have been made of the same bytes. A Box has its bounds, and as many flags.
            array = result.low if isinstance(result, spaces.Box) else result
            self._budget.take(4 * array.nbytes if isinstance(array, np.ndarray) else 0, "an array")
        elif isinstance(noted, dict):
            result = dict(zip(values[: len(noted)], values[len(noted) :], strict=True))
        else:
            result = type(noted)(values)
        self._made[id(noted)] = result, total
        return result, total

    def _make_object(self, name: Name, arguments: Any, state: Any, content: list[Any]) -> Any:
        if content:
            # What containers are filled with takes the place of their state.
            check(
                arguments is not None and name[0] == "collections" and (state is None or name[1] != "deque"), "items of", name
            )
            if name[1] == "OrderedDict":
                # PyTorch writes the versions of its modules beside weights, as the state; nothing here reads them.
                content = dict(content)  # type: ignore[assignment]
            state = content
        elif name == ("collections", "OrderedDict"):
            state = None
        if arguments is not None:
            return self.functions[name](state, *arguments)
        if ":".join(name) in self._classes:
            return self._classes[":".join(name)]
        if name[1] in NAMED.get(name[0], ()):
            return getattr(importlib.import_module(name[0]), name[1])
        return ".".join(name)


# Tensors --------------------------------------------------------------------------------------------------------

#: Type of a number and its bytes, by the class that names it in the file.
_STORAGES = {
    ("torch", f"{kind}Storage"): (dtype, size)
    for size, kinds in {
        1: {"Bool": "bool", "Byte": "uint8", "Char": "int8"},
        2: {"BFloat16": "bfloat16", "Half": "float16", "Short": "int16"},
        4: {"Float": "float32", "Int": "int32"},
        8: {"Double": "float64", "Long": "int64"},
    }.items()
    for kind, dtype in kinds.items()
}
#: What PyTorch writes beside the pickle and the numbers, and what the order of bytes has to be.
_BESIDE = ("version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id")


class StoredTensor(NamedTuple):
    """
    A tensor in a file, checked and not yet made.

    :param shape: its shape
    :param n_bytes: its size
    :param dtype: name of the type of its numbers, e.g. ``"float32"``
    :param numbers: the bytes that its numbers are among
    :param offset: its first number there
    :param strides: from one of its numbers to the next, along every axis
    """

    shape: tuple[int, ...]
    n_bytes: int
    dtype: str
    numbers: bytes
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Storage:
    dtype: str
    size: int
    numbers: bytes


def _tensor(state: Any, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
    is_right = isinstance(shape, tuple) and isinstance(strides, tuple)
    numbers: list[Any] = [offset, *shape, *strides] if is_right else [None]
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers) or len(shape) != len(strides):
        raise UnsafeFileError(f"asks for a tensor of shape {shorten(shape)}")
    check(len(shape) <= MAX_DEPTH and all(n < 2**48 for n in numbers), "a tensor of shape", shape)
    n_numbers, n_stored = math.prod(shape), len(storage.numbers) // storage.size
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # A tensor that repeats its numbers, or reads beyond them, takes more memory than the file.
    if n_numbers > 0 and (last >= n_stored or n_numbers > n_stored):
        raise UnsafeFileError(f"asks for a tensor of shape {shorten(shape)}, but holds {n_stored} numbers for it")
    return StoredTensor(shape, n_numbers * storage.size, storage.dtype, storage.numbers, offset, strides)


def _parameter(state: Any, tensor: Any, *rest: Any) -> StoredTensor:
    check(isinstance(tensor, StoredTensor), "a parameter of", tensor)
    return tensor  # type: ignore[no-any-return]


class _TensorUnpickler(AllowListUnpickler):
    """
    Reads the structure of what ``torch.save`` has written.

    :param content: the pickle
    :param records: the numbers beside it, by name
    """

    functions: ClassVar[Mapping[Name, _Maker]] = {
        ("collections", "OrderedDict"): _ordered_dict,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
    }
    dispatch: ClassVar[dict[int, _Handler]] = AllowListUnpickler.dispatch | {
        pickle.BINPERSID[0]: _STANDARD[pickle.BINPERSID[0]]
    }

    def __init__(self, content: bytes, records: Mapping[str, bytes]) -> None:
        super().__init__(io.BytesIO(content), {":".join(name): object for name in _STORAGES})
        self._records = records
        #: Names of the numbers that were referred to.
        self.used: set[str] = set()

    def persistent_load(self, pid: Any) -> _Storage:
        """
        The numbers that a tensor refers to.

        :param pid: how it refers to them
        :raises UnsafeFileError: they are not there
        """
        is_right = isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], _Object)
        check(is_right and pid[1].name in _STORAGES and type(pid[2]) is str, "the numbers of", pid)
        _, kind, key, _, n_numbers = pid
        dtype, size = _STORAGES[kind.name]
        numbers = self._records.get(key)
        if numbers is None or type(n_numbers) is not int or n_numbers < 0 or n_numbers * size != len(numbers):
            raise UnsafeFileError(f"refers to {shorten(n_numbers)} numbers that are not there")
        self.used.add(key)
        return _Storage(dtype, size, numbers)


def read_structure(entries: Mapping[str, bytes]) -> Any:
    """
    What ``torch.save`` has written, with a :class:`StoredTensor` for every tensor.

    :param entries: the entries of its archive, whose checksums were checked
    :raises UnsafeFileError: it asks for something else than tensors, for more numbers than it holds, or holds something else
    """
    pickles = [name for name in entries if re.fullmatch(r"[^/]*/data\.pkl", name)]
    check(len(pickles) == 1, "pickles of the names", pickles)
    folder = pickles[0].removesuffix("data.pkl")
    records = {name.removeprefix(f"{folder}data/"): entries[name] for name in entries if name.startswith(f"{folder}data/")}
    declared = {pickles[0], *(f"{folder}{name}" for name in _BESIDE), *(f"{folder}data/{key}" for key in records)}
    check(entries.get(f"{folder}byteorder", b"little") == b"little", "the order of bytes", entries.get(f"{folder}byteorder"))
    unpickler = _TensorUnpickler(entries[pickles[0]], records)
    structure = unpickler.load()
    others = sorted({*(entries.keys() - declared), *(f"{folder}data/{key}" for key in records.keys() - unpickler.used)})
    check(not others, "entries that nothing refers to:", others)
    return structure


def tensor_bytes(structure: Any) -> int:
    """
    What the tensors of a structure take in memory, once they are made: each as often as it stands there.

    :param structure: what :func:`read_structure` has read
    """
    total, pending = 0, [structure]
    while pending:
        item = pending.pop()
        if isinstance(item, StoredTensor):
            total += item.n_bytes
        elif isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            pending.extend(item)
    return total
